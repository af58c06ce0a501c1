"""Stores: what the commands of many fits read and replace; imported when one runs, for it loads pandas and Zarr."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import Any

import dask.array as da
import fsspec
import zarr
from fsspec.implementations.local import LocalFileSystem

import dask_nlsq
from dask_nlsq._errors import DataError, NlsqError
from dask_nlsq._many import Labels
from dask_nlsq._result import replacing
from dask_nlsq._sources import PARQUET, ZARR, as_stored, check_columns, decoded, read_frame

__all__ = ["Series", "check_output", "count_status", "read_frame", "remote", "replacing"]


@dataclasses.dataclass(frozen=True)
class Series:
    """The series of an array: what `fit_many` takes of a store, and the paths that are read."""

    x: dict[str, Any]
    y: Any
    sigma: Any
    axis: int
    labels: Labels
    paths: tuple[str, ...]

    @classmethod
    def open(
        cls,
        place: str,
        options: dict[str, Any] | None,
        *,
        array: str | None,
        axis: str,
        x: Sequence[str] | None,
        sigma: str | float | None,
    ) -> Series:
        """Open an array at a path or URL, or one of the group there, with what belongs to it."""
        store = _Store(place, _open(place, options), options, [])
        y = store.response(array, (*(x or ()), sigma))
        dims = _dims(y)
        number = _number(axis, dims, y.ndim)
        outer = tuple(name for i, name in enumerate(dims) if i != number % y.ndim and name is not None)
        return cls(
            store.columns(x or _coordinate(store, dims, number)),
            _values(y),
            _values(store.get(sigma)) if isinstance(sigma, str) else sigma,
            number,
            Labels(outer if len(outer) == y.ndim - 1 else ()),
            tuple(store.paths),
        )


@dataclasses.dataclass(frozen=True)
class _Store:
    """A Zarr array or group at a path, and the paths of what was read."""

    place: str
    node: zarr.Array[Any] | zarr.Group
    options: dict[str, Any] | None
    paths: list[str]

    def response(self, name: str | None, others: Sequence[object]) -> zarr.Array[Any]:
        """Return the array that is fitted: the one that is named, or the only one of several dimensions."""
        if isinstance(self.node, zarr.Array):
            if name is not None:
                raise DataError(f"--array is {name!r}, and {self.place!r} is one array; leave it out.")
            self.paths.append(self.place)
            return self.node
        if name is None:
            wide = [key for key, array in self.node.arrays() if array.ndim > 1 and key not in others]
            if len(wide) != 1:
                raise DataError(f"--array must name what is fitted: {self.place!r} has the arrays {self._present()}.")
            (name,) = wide
        return self.get(name)

    def columns(self, names: Iterable[str]) -> dict[str, Any]:
        """Return arrays of the group, or at other paths, by the last part of their names."""
        found: dict[str, Any] = {}
        for name in names:
            last = name.rstrip("/").rpartition("/")[2].removesuffix(".zarr")
            if last in found:
                raise DataError(f"--x names two arrays {last!r}; each needs a name of its own.")
            found[last] = _values(self.get(name))
        return found

    def get(self, name: str) -> zarr.Array[Any]:
        """Return an array of the group, or one at another path."""
        inside = isinstance(self.node, zarr.Group) and name in self.node
        place = f"{self.place.rstrip('/')}/{name}" if inside else name
        self.paths.append(place)
        try:
            array = self.node[name] if isinstance(self.node, zarr.Group) and inside else _open(name, self.options)
        except OSError:
            check_columns(self._present(), [name], repr(self.place), "A path of a Zarr array is taken as well.")
            raise
        if not isinstance(array, zarr.Array):
            raise DataError(f"{place!r} is a Zarr group, and an array is needed: {place}/NAME.")
        return array

    def _present(self) -> list[str]:
        return list(self.node.array_keys()) if isinstance(self.node, zarr.Group) else []


def _open(place: str, options: dict[str, Any] | None) -> zarr.Array[Any] | zarr.Group:
    try:
        node: zarr.Array[Any] | zarr.Group = zarr.open(place, mode="r", **remote(place, options))
    except ValueError as error:  # there is a folder, and no Zarr in it
        raise DataError(f"{place!r} cannot be read: {type(error).__name__}: {error}") from error
    except FileNotFoundError as error:
        if any(sign in place for sign in "*?["):
            raise DataError(f"{place!r} is a pattern; the path or URL of one Zarr array or group is needed.") from error
        raise
    return node


def remote(place: str, options: dict[str, Any] | None) -> dict[str, Any]:
    """Return the options of fsspec as Zarr takes them, which refuses them for a path."""
    return {"storage_options": options} if options and "://" in place else {}


def _values(array: zarr.Array[Any]) -> Any:
    """Return an array, lazily decoded where its numbers stand for others, as xarray writes them."""
    decode = as_stored(array.basename or array.name, array).decode
    return array if decode is None else decoded(da.from_zarr(array), decode)


def _dims(array: zarr.Array[Any]) -> tuple[str | None, ...]:
    """Return the names of dimensions, as Zarr 3 has them and as xarray writes them to Zarr 2; none where none have."""
    names = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS")
    return tuple(names) if names else ()  # type: ignore[arg-type]  # attributes are any JSON


def _number(axis: str, dims: Sequence[str | None], ndim: int) -> int:
    """Return the number of an axis."""
    try:
        number = int(axis)
    except ValueError:
        if axis not in dims:
            raise DataError(f"axis is {axis!r}; the {ndim} dimensions are called {list(dims)}.") from None
        return list(dims).index(axis)
    if not -ndim <= number < ndim:
        raise DataError(f"axis is {number}, and the array has {ndim} dimensions.")
    return number


def _coordinate(store: _Store, dims: Sequence[str | None], place: int) -> list[str]:
    """Return the name of the coordinate of an axis."""
    name = dims[place] if dims else None
    if name is None or not isinstance(store.node, zarr.Group) or name not in store.node:
        raise DataError("--x must name the array of x: no coordinate is stored for the axis.")
    return [name]


def check_output(
    output: str,
    options: dict[str, Any] | None,
    overwrite: bool,
    kind: str,
    inputs: Iterable[str],
) -> None:
    """Refuse an output that must not be replaced, before anything is fitted.

    Parameters
    ----------
    kind : {"Zarr", "Parquet"}
        Of an earlier output, which alone may be replaced.
    inputs : iterable of str
        What is read.
    """
    fs, root = _resolve(output, options)
    if not fs.exists(root):
        return
    if not overwrite:
        raise NlsqError(f"{output!r} exists; --overwrite replaces it.")
    for each in inputs:
        _, place = _resolve(each, options)
        read = fs.glob(place) if any(sign in place for sign in "*?[") else [place]
        if any(f"{name}/".startswith(f"{root}/") for name in read):
            raise NlsqError(f"{output!r} cannot be replaced, for {each!r} is read from it; write elsewhere.")
    names = [name.rpartition("/")[2] for name in (fs.ls(root, detail=False) if fs.isdir(root) else [root])]
    if names and not (_is_zarr if kind == "Zarr" else _is_parquet)(names):
        raise NlsqError(f"{output!r} is not {kind}, and --overwrite replaces nothing else.")


def _is_zarr(names: Sequence[str]) -> bool:
    return not set(names).isdisjoint(ZARR)


def _is_parquet(names: Sequence[str]) -> bool:
    return all(name.endswith(PARQUET) or name.startswith("_") for name in names)


def _resolve(place: str, options: dict[str, Any] | None) -> tuple[fsspec.AbstractFileSystem, str]:
    fs, root = fsspec.core.url_to_fs(place, **(options or {}))
    return fs, (os.path.realpath(root) if isinstance(fs, LocalFileSystem) else root.rstrip("/"))


def count_status(output: str, options: dict[str, Any] | None) -> dict[str, int]:
    """Return how many series ended with each status, as a store of `ManyFits.to_zarr` has them."""
    status = da.from_zarr(zarr.open_array(f"{output.rstrip('/')}/status", mode="r", **remote(output, options)))
    codes, counts = da.compute(*da.unique(status, return_counts=True), scheduler="threads")
    return {dask_nlsq.Status.of(int(code)).name: int(count) for code, count in zip(codes, counts, strict=True)}
