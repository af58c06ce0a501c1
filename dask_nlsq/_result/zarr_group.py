"""Dask arrays written to a Zarr group, chunk by chunk, with a progress bar on long work."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import dask.array as da
import distributed
import fsspec
import zarr
from dask.diagnostics import ProgressBar
from fsspec.implementations.local import LocalFileSystem
from zarr.storage import LocalStore

from dask_nlsq._display import is_shown, stream

if TYPE_CHECKING:
    from distributed import Client


@contextlib.contextmanager
def computing(client: Client | None = None, progress: bool | None = None) -> Iterator[None]:
    """Compute with a client, or whom Dask takes, and show a bar where that is wanted."""
    with contextlib.ExitStack() as stack:
        if client is not None:
            stack.enter_context(client.as_current())
        try:
            distributed.get_client()
        except ValueError:
            if is_shown(progress):
                stack.enter_context(ProgressBar(minimum=0.0 if progress else 1.0, out=stream()))
        yield


@contextlib.contextmanager
def replacing(path: Any, overwrite: bool, storage_options: dict[str, Any] | None = None) -> Iterator[Any]:
    """Yield where to write: `path`, or where it is to be replaced a place beside it, which is then moved there.

    What is there stays as it is until all has been written, for it may be read meanwhile, and writing may fail.
    """
    path = path.root if isinstance(path, LocalStore) else path
    if not overwrite or not isinstance(path, (str, os.PathLike)):
        yield path
        return
    fs, root = fsspec.core.url_to_fs(os.fspath(path), **(storage_options or {}))
    root = os.path.realpath(root) if isinstance(fs, LocalFileSystem) else root.rstrip("/")
    if not fs.exists(root):
        yield path
        return
    mark = uuid.uuid4().hex[:8]
    new, old = f"{root}.new-{mark}", f"{root}.old-{mark}"
    try:
        yield fs.unstrip_protocol(new) if "://" in str(path) else new
    except BaseException:
        if fs.exists(new):
            fs.rm(new, recursive=True)
        raise
    fs.mv(root, old, recursive=True)
    fs.mv(new, root, recursive=True)
    fs.rm(old, recursive=True)


def regular(array: da.Array, axes: int) -> da.Array:
    """Return an array whose chunks along the first axes are alike: two tasks must never write to one chunk."""
    even: da.Array = array.rechunk({i: max(sizes, default=1) for i, sizes in enumerate(array.chunks[:axes])})
    return even


def write(
    arrays: Mapping[str, da.Array],
    dims: Mapping[str, Sequence[str]],
    path: Any,
    *,
    overwrite: bool = False,
    storage_options: dict[str, Any] | None = None,
) -> zarr.Group:
    """Write arrays of `regular` chunks to a new Zarr group, each with the names of its dimensions.

    Raises
    ------
    FileExistsError
        There is something already, and `overwrite` is False.
    """
    mode: Literal["w", "w-"] = "w" if overwrite else "w-"
    group = zarr.open_group(path, mode=mode, storage_options=storage_options)
    targets = [
        group.create_array(
            name,
            shape=array.shape,
            chunks=tuple(max(sizes[0], 1) for sizes in array.chunks),
            dtype=array.dtype,
            fill_value=float("nan") if array.dtype.kind == "f" else None,  # of what a failure leaves out
            dimension_names=dims[name],
        )
        for name, array in arrays.items()
    ]
    da.store(list(arrays.values()), targets, lock=False)  # type: ignore[arg-type]  # its annotation leaves out Zarr
    return group
