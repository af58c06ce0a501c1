"""Archive: a dataclass in one file, a zip that holds the keys of its Zarr group as they are.

Zarr reads it as a `zarr.storage.ZipStore`. Every key carries a checksum of its own, and is looked at by `check_group`
before it is decoded.
"""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from dask_nlsq._checkpoint.codec import pack, unpack
from dask_nlsq._checkpoint.storage import Folder
from dask_nlsq._errors import CheckpointCorrupt

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")


def save(path: str | os.PathLike[str], value: DataclassInstance, compression: str | None = None) -> None:
    """Write a dataclass to a file: the whole of it, or what was there stays."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for key, data in pack(value, compression).items():
            # Of zipfile's own date, in 1980: equal states make equal files.
            archive.writestr(zipfile.ZipInfo(key), data)
    target = Path(path)
    Folder(target.parent).replace(target.name, file.getvalue())


def load(kind: type[T], path: str | os.PathLike[str]) -> T:
    """Return the dataclass that `save` wrote.

    Raises
    ------
    CheckpointCorrupt
        The file is damaged, or holds no such dataclass.
    """
    raw = Path(path).read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            entries = archive.infolist()
            # What is stored takes no more memory than the file; what is compressed might take any.
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("its parts are compressed, which those of a state are not")
            keys = {entry.filename: archive.read(entry) for entry in entries}
    except Exception as error:  # of a damaged zip the standard library raises many kinds
        raise CheckpointCorrupt(f"{str(path)!r} cannot be read: {type(error).__name__}: {error}") from error
    return unpack(kind, keys)
