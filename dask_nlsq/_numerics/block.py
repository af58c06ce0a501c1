"""Block: the rows that one task holds, handed to the kernel in slabs of one shape.

A compiled kernel knows one array shape. Partitions come in any length, so a block is cut into slabs: whole
numbers of tiles, the last one padded, with the count of real rows beside it. A kernel is thus compiled once
for small blocks and once for large ones, whatever the partitions look like.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dask_nlsq._typing import Vector

TILE = 2048
"""Rows of one tile: with 15 parameters a tile of the Jacobian (256 kB) stays in a core's L2 cache."""

SLABS = (16 * TILE, 256 * TILE)
"""Rows of a slab. Small ones keep small fits cheap; at 524,288 rows a call's overhead is below 1 %."""


PADDING = 8192
"""The last tile of a slab is filled up to a multiple of this, which the rows of a tile divide."""

ALIGNMENT = 64
"""XLA takes an array in memory as it is where it begins at a multiple of this, and copies it elsewhere."""


class Slab(NamedTuple):
    """What one call of the kernel takes: arrays of one fixed length and the count of rows that are real.

    Those that fill up the last tile repeat the first row, with the weight 0 where there are weights; what lies beyond
    is not looked at.
    """

    x: tuple[Vector, ...]
    y: Vector
    weight: Vector | None
    rows: int


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity: what is on a device hangs on it
class Block:
    """Columns of one partition, with rows already dropped where the NaN policy says so.

    They are float64, or float32 where the data are: that takes half of the memory, and the kernel computes in float64
    all the same, tile by tile.
    """

    x: tuple[Vector, ...]  # each (rows,)
    y: Vector  # (rows,)
    weight: Vector | None = None  # (rows,), 1/sigma; None means 1 for every row
    dropped: int = 0
    rounded: tuple[str, ...] = ()  # columns of integers beyond 2**53, which float64 rounds
    held: bool = False  # in memory for many sweeps

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.y)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(a.nbytes for a in self._arrays())

    def load(self) -> Block:
        """Return itself: a block already in memory is a partition whose reading is done."""
        return self

    def wide(self) -> Block:
        """Return the block with all its columns as float64, which NumPy needs in order to compute in it."""
        return dataclasses.replace(
            self, x=tuple(c.astype(np.float64, copy=False) for c in self.x), y=self.y.astype(np.float64, copy=False)
        )

    def _arrays(self) -> tuple[Vector, ...]:
        return (*self.x, self.y) if self.weight is None else (*self.x, self.y, self.weight)

    def take(self, rows: slice | npt.NDArray[Any]) -> Block:
        """Return the block of some of the rows."""
        weight = None if self.weight is None else self.weight[rows]
        return dataclasses.replace(self, x=tuple(c[rows] for c in self.x), y=self.y[rows], weight=weight, held=False)

    def slabs(self, padding: int = PADDING) -> Iterator[Slab]:
        """Cut into slabs of one shape, each to be done with before the next: they share the memory of this thread.

        Where a column may be taken as it is, a slab is a view of it.
        """
        size = SLABS[0] if self.rows <= SLABS[0] else SLABS[1]
        k, columns = len(self.x), self._arrays()
        for start in range(0, self.rows, size):
            rows = min(size, self.rows - start)
            end = min(size, rows + -rows % padding)
            parts = [
                _fit(i, column[start : start + rows], size, end, fill=None if i <= k else 0.0)
                for i, column in enumerate(columns)
            ]
            yield Slab(tuple(parts[:k]), parts[k], None if self.weight is None else parts[k + 1], rows)


def concatenate(blocks: list[Block]) -> Block:
    """Join blocks of the same columns, in order."""
    first = blocks[0]
    return Block(
        tuple(np.concatenate(columns) for columns in zip(*(b.x for b in blocks), strict=True)),
        np.concatenate([b.y for b in blocks]),
        None if first.weight is None else np.concatenate([b.weight for b in blocks if b.weight is not None]),
        sum(b.dropped for b in blocks),
    )


_thread = threading.local()


def _fit(place: int, rows: Vector, size: int, end: int, fill: float | None) -> Vector:
    """Return rows as an array of `size`; what lies past them, up to `end`, is the first of them or the `fill`."""
    if len(rows) == size and rows.ctypes.data % ALIGNMENT == 0:
        return rows
    buffers: dict[Any, Vector] = _thread.__dict__.setdefault("buffers", {})
    kind = (place, size, rows.dtype.char)
    if kind not in buffers:
        buffers[kind] = _aligned(size, rows.dtype)
    buffer = buffers[kind]
    buffer[: len(rows)] = rows
    buffer[len(rows) : end] = rows[0] if fill is None else fill
    return buffer


def _aligned(size: int, dtype: Any) -> Vector:
    """Return an array that begins at a multiple of `ALIGNMENT`, which NumPy's own do not."""
    memory = np.empty(size * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    array: Vector = memory[start : start + size * dtype.itemsize].view(dtype)
    return array
