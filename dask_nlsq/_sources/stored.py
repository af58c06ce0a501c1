"""Stored: arrays in a store or a file, whose rows are read as they are asked for, and decoded."""

from __future__ import annotations

import dataclasses
import functools
import socket
import threading
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from dask_nlsq._errors import DataError
from dask_nlsq._kernel import SLABS, Block
from dask_nlsq._sources.cf import Decoder
from dask_nlsq._sources.columns import Columns
from dask_nlsq._typing import AnyArray, Index

if TYPE_CHECKING:
    import zarr

ROWS = SLABS[1]
"""Fewest rows of a partition: smaller chunks are read several at a time."""


class FileArray(Protocol):
    """An array in a file, as `hdf5` reads it."""

    chunks: tuple[int, ...] | None

    def __getitem__(self, index: Index) -> AnyArray:
        """Read a part."""


@dataclasses.dataclass(frozen=True)
class Stored:
    """An array that is read by slices along its last dimension, as its values.

    Zarr reads a chunk that is not there as the fill value, whoever reads it, so `present` is how many were there when
    the array was opened: a process that sees fewer sees another store. None where that is not known.
    """

    name: str
    array: Any
    decode: Decoder | None = None
    present: int | None = None
    opened: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return tuple(self.array.shape)

    @property
    def ndim(self) -> int:
        """Its number of dimensions."""
        return len(self.shape)

    @property
    def place(self) -> str:
        """Where it lies."""
        return str(getattr(self.array, "store_path", None) or self.array.place)

    @functools.cached_property
    def dtype(self) -> np.dtype[Any]:
        """The type of its values."""
        stored: np.dtype[Any] = np.dtype(self.array.dtype)
        return stored if self.decode is None else self.decode.dtype(stored)

    def __getitem__(self, index: Index) -> AnyArray:
        stored = self.array[index]
        if self.present is not None:
            self._look(stored)
        return stored if self.decode is None else self.decode(stored)

    def _look(self, stored: AnyArray) -> None:
        """Refuse a chunk that is nothing but fill value where this process lacks chunks that were there."""
        flat, fill = np.ravel(stored), self.array.fill_value
        step = min(shortest(self.array), max(flat.size, 1))
        if not any(_is_fill(flat[i : i + step], fill) for i in range(0, flat.size, step)):
            return
        # The chunk may well be right: Zarr by default stores none that holds the fill value alone. Only where there are
        # fewer chunks than at the opening is one missing.
        there = _present(self)
        if there < (self.present or 0):
            raise DataError(
                f"The store {self.array.store_path} had {self.present} chunks of the array when it was opened, and "
                f"the process on {socket.gethostname()} sees {there}: it has another disk, or what was there is gone. "
                "Zarr would read what is missing as the fill value. Put the store where every worker sees it.",
                column=self.name,
            )


def _is_fill(values: AnyArray, fill: object) -> bool:
    """Whether all of some values are the fill value; the first alone tells nearly always."""
    if fill is not None and fill != fill:  # NaN, or no time
        return bool(values[0] != values[0] and (values != values).all())
    return bool(values[0] == fill and (values == fill).all())


def shortest(array: zarr.Array[Any]) -> int:
    """Return the length of the shortest chunk of a Zarr array along its last dimension, as they are stored."""
    return min(chunk_sizes(array), default=1) or 1


def chunk_sizes(array: zarr.Array[Any]) -> tuple[int, ...]:
    """Return the lengths along the last dimension of the objects in which a Zarr array is stored: shards or chunks.

    Where all are alike there is one, which may be longer than what the array has left for the last.
    """
    try:
        return ((array.shards or array.chunks)[-1],)
    except NotImplementedError:  # a grid of unlike chunks, which Zarr 3.2 and later read
        newer: Any = array
        return tuple(newer.write_chunk_sizes[-1])


_counts: dict[tuple[str, str], int] = {}
"""Chunks that this process sees, of arrays by name of the array and of its opening."""


def _present(stored: Stored) -> int:
    key = (str(stored.array.store_path), stored.opened)
    with _looking:
        if key not in _counts:
            if len(_counts) >= 1000:
                _counts.clear()
            _counts[key] = stored.array.nchunks_initialized
        return _counts[key]


_looking = threading.Lock()
"""Held while a store is listed, so that one thread does for all."""


@dataclasses.dataclass(frozen=True)
class StoredPartition:
    """Rows start to stop of some arrays."""

    arrays: Mapping[str, Stored]
    start: int
    stop: int
    columns: Columns

    def load(self) -> Block:
        """Read the rows of every column."""
        return self.columns.block({name: a[self.start : self.stop] for name, a in self.arrays.items()})
