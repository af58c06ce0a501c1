"""Block: the rows that one task holds, handed to the kernel in slabs of one shape.

A compiled kernel knows one array shape, and a call of it has its price. Partitions come in any length, so a large
block is cut into several slabs, and small ones share a slab: each takes whole tiles, the last one padded, and where
it lies and how many of its rows are real stands beside it. A kernel is thus compiled once, whatever the partitions
look like, and what it finds for a block does not depend on the blocks beside it.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import mmap
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dask_nlsq._typing import Vector

TILE = 2048
"""Rows of one tile: with 15 parameters a tile of the Jacobian (256 kB) stays in a core's L2 cache."""

SLABS = (16 * TILE, 256 * TILE)
"""Rows of a slab. At 524,288 rows a call's overhead is below 1 %; small ones are for what computes all rows of a slab,
real or not."""

MANY_ROWS = 1_000_000
"""Rows above which another sweep is dear: a fit then starts from a sample and stops by the step predicted to remain."""

GROUP_BYTES = 128 << 20
"""Most bytes of the partitions that one task takes: some tenths of a second of reading and reducing."""

PER_THREAD = 4
"""Fewest tasks for each thread, so that the last one to finish does not keep the others waiting for long. What lies on
a worker is swept there, by one task a thread where that suffices."""

TOGETHER = 64
"""Most blocks in a slab: sixty of 10,000 rows pay for one call what one would."""

ALIGNMENT = 64
"""XLA takes an array in memory as it is where it begins at a multiple of this, and copies it elsewhere."""


class Slab(NamedTuple):
    """What one call of the kernel takes: arrays of one fixed length and where in them the blocks are.

    Each block begins with a tile. Rows that fill up its last tile repeat its first row, with the weight 0 where there
    are weights; what lies beyond the last block is not looked at.
    """

    x: tuple[Vector, ...]
    y: Vector
    weight: Vector | None
    places: npt.NDArray[np.int64]  # (room, 3), of each block: its first tile, the one past its last, and its rows
    blocks: np.int64  # how many


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
    memory: Memory | None = None  # that it shares with its neighbours, laid out for the kernel
    start: int = 0  # its first row there

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.y)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(a.nbytes for a in self.columns)

    def load(self) -> Block:
        """Return itself: a block already in memory is a partition whose reading is done."""
        return self

    def wide(self) -> Block:
        """Return the block with all its columns as float64, which NumPy needs in order to compute in it."""
        x = tuple(c.astype(np.float64, copy=False) for c in self.x)
        return dataclasses.replace(self, x=x, y=self.y.astype(np.float64, copy=False), memory=None)

    @functools.cached_property
    def columns(self) -> tuple[Vector, ...]:
        """All columns: x, y, and the weight where there is one."""
        return (*self.x, self.y) if self.weight is None else (*self.x, self.y, self.weight)

    @property
    def weights(self) -> Vector:
        """The weight of each row, which is 1 where none are given."""
        return np.ones(self.rows) if self.weight is None else self.weight

    def take(self, rows: slice | npt.NDArray[Any]) -> Block:
        """Return the block of some of the rows."""
        weight = None if self.weight is None else self.weight[rows]
        x = tuple(c[rows] for c in self.x)
        return dataclasses.replace(self, x=x, y=self.y[rows], weight=weight, held=False, memory=None)

    def select(self, places: tuple[int, ...], names: tuple[str, ...]) -> Block:
        """Return the block with some of its columns x, by their places; `names` are those of all its columns then."""
        x, rounded = tuple(self.x[i] for i in places), tuple(name for name in self.rounded if name in names)
        memory = None if self.memory is None else self.memory.select((*places, *range(len(self.x), len(self.columns))))
        return dataclasses.replace(self, x=x, rounded=rounded, memory=memory)

    def cut(self, size: int) -> list[Block]:
        """Return the block in pieces of `size` rows, each a view."""
        if self.rows <= size:
            return [self] if self.rows else []
        return [
            dataclasses.replace(self.take(slice(i, i + size)), memory=self.memory, start=self.start + i)
            for i in range(0, self.rows, size)
        ]


class Memory:
    """Columns in which blocks lie behind one another as in a slab. It is not pickled along with them."""

    def __init__(self, columns: tuple[Vector, ...]) -> None:
        self.columns = columns
        self._selected: dict[tuple[int, ...], Memory] = {}
        self.slabs: dict[tuple[int, ...], Slab] = {}  # of single blocks, by their place

    def select(self, places: tuple[int, ...]) -> Memory:
        """Return some of the columns, the same object each time: blocks are neighbours where their memory is one."""
        return self._selected.setdefault(places, Memory(tuple(self.columns[i] for i in places)))

    def __reduce__(self) -> Any:
        # The blocks of a pickle bring their own columns; what lies beside them here would travel for nothing.
        return type(None), ()


def pack(blocks: Sequence[Block]) -> list[Block]:
    """Return blocks that are to be held, laid out as one slab, so that no sweep copies them into one.

    What is a slab by itself stays where it is, and so do unlike columns, blocks that would leave much of their tiles or
    most of the slab empty, and what is more than a slab, for both are in memory while it is copied.
    """
    rows, size = sum(block.rows for block in blocks), sum(_tiled(block.rows, TILE) for block in blocks)
    unlike = len({tuple(c.dtype for c in block.columns) for block in blocks}) > 1
    ready = len(blocks) == 1 and all(_ready(c, SLABS[1]) for c in blocks[0].columns)
    if ready or unlike or 4 * size > 5 * rows or not SLABS[1] // 2 <= size <= SLABS[1]:
        return [dataclasses.replace(block, held=True) for block in blocks]
    return lay(blocks)


def lay(blocks: Sequence[Block]) -> list[Block]:
    """Return blocks of at most a slab, laid out as one."""
    filled = [block for block in blocks if block.rows]
    allocate = _aligned if 2 * sum(_tiled(block.rows, TILE) for block in filled) > SLABS[1] else _sparse
    memory = Memory(tuple(_lay(allocate(SLABS[1], c[0].dtype), c, TILE, fill) for c, fill in _columns(filled)))
    starts = itertools.accumulate((_tiled(block.rows, TILE) for block in blocks), initial=0)
    return [_put(block, memory, start) for block, start in zip(blocks, starts, strict=False)]


def _put(block: Block, memory: Memory, start: int) -> Block:
    """Return a block in the memory where its rows lie."""
    x, y, weight = _split([c[start : start + block.rows] for c in memory.columns], len(block.x))
    return dataclasses.replace(block, x=x, y=y, weight=weight, held=True, memory=memory, start=start)


def slabs(blocks: Sequence[Block], size: int, tile: int, room: int = 1) -> Iterator[tuple[list[int], Slab]]:
    """Cut or gather blocks into slabs of `size` rows, and say which blocks each holds, at most `room` of them.

    Each slab is to be done with before the next, for they share the memory of this thread. Where a column may be taken
    as it is, a slab is a view of it.
    """
    pieces: list[tuple[int, Block]] = []
    used, kind = 0, None
    _thread.lent = []
    for i, block in enumerate(blocks):
        for piece in block.cut(size):
            tiles, now = -(-piece.rows // tile), [c.dtype for c in piece.columns]
            # A compiled kernel takes one type a column, so that blocks of another type begin a slab of their own.
            if pieces and (used + tiles > size // tile or len(pieces) == room or now != kind):
                yield _gather(pieces, size, tile, room)
                pieces, used = [], 0
            pieces.append((i, piece))
            used, kind = used + tiles, now
    if pieces:
        yield _gather(pieces, size, tile, room)


def single(block: Block, size: int, tile: int, room: int) -> Slab | None:
    """Return the slab of a block that lies in one already: at the second call, that of the first."""
    if block.memory is None or not 0 < block.rows <= size:
        return None
    known, place = block.memory.slabs, (block.start, block.rows, size, tile, room)
    if place not in known:
        if _lying([block], size, tile) is None:
            return None
        known[place] = _gather([(0, block)], size, tile, room)[1]
    return known[place]


def _gather(pieces: Sequence[tuple[int, Block]], size: int, tile: int, room: int) -> tuple[list[int], Slab]:
    blocks = [block for _, block in pieces]
    parts = _lying(blocks, size, tile) or tuple(
        _fit(i, column, size, tile, fill) for i, (column, fill) in enumerate(_columns(blocks))
    )
    rows = [block.rows for block in blocks]
    ends = list(itertools.accumulate((-(-n // tile) for n in rows), initial=0))
    # The kernel loops over the first `blocks` of the places, and never looks at the zeros behind them.
    places = np.zeros((room, 3), np.int64)
    places[: len(blocks)] = list(zip(ends, ends[1:], rows, strict=False))
    x, y, weight = _split(parts, len(blocks[0].x))
    return [i for i, _ in pieces], Slab(x, y, weight, places, np.int64(len(blocks)))


def _split(columns: Sequence[Vector], k: int) -> tuple[tuple[Vector, ...], Vector, Vector | None]:
    """Return the first k columns, the next, and the one after it, if there is one."""
    return tuple(columns[:k]), columns[k], columns[k + 1] if len(columns) > k + 1 else None


def _columns(blocks: Sequence[Block]) -> Iterator[tuple[list[Vector], float | None]]:
    """Yield each column, block by block, and what fills up a tile of it; None is its first row."""
    for i, column in enumerate(zip(*(block.columns for block in blocks), strict=True)):
        # Rows that fill up a tile repeat a real row, at which the model has a value; the weight 0 takes them out of the
        # sums.
        yield list(column), None if i <= len(blocks[0].x) else 0.0


def _lying(blocks: Sequence[Block], size: int, tile: int) -> tuple[Vector, ...] | None:
    """Return the columns of a slab that blocks lie in already."""
    memory, start = blocks[0].memory, blocks[0].start
    if memory is None or tile != TILE or start + size > len(memory.columns[0]):
        return None
    starts = itertools.accumulate((_tiled(block.rows, tile) for block in blocks), initial=start)
    if any(block.memory is not memory or block.start != at for block, at in zip(blocks, starts, strict=False)):
        return None
    return tuple(c[start : start + size] for c in memory.columns)


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


def _fit(place: int, columns: Sequence[Vector], size: int, tile: int, fill: float | None) -> Vector:
    """Return columns behind one another, each from a multiple of `tile`, as an array of `size`."""
    if _ready(columns[0], size):
        # No slice: what JAX makes of a slice holds the column, and lets go of the slice.
        view: Vector = np.frombuffer(columns[0].data, columns[0].dtype)
        _thread.lent.append(weakref.ref(view))
        return view
    buffers: dict[Any, Vector] = _thread.__dict__.setdefault("buffers", {})
    dtype = columns[0].dtype
    kind = (place, size, dtype.char)
    if kind not in buffers:
        buffers[kind] = _aligned(size, dtype)
    return _lay(buffers[kind], columns, tile, fill)


def lent() -> bool:
    """Whether somebody still holds a view of a column that this thread has last put into slabs."""
    return any(view() is not None for view in getattr(_thread, "lent", ()))


def _ready(column: Vector, size: int) -> bool:
    """Whether XLA takes a column as it is."""
    return len(column) == size and column.ctypes.data % ALIGNMENT == 0


def _lay(memory: Vector, columns: Sequence[Vector], tile: int, fill: float | None) -> Vector:
    """Write columns behind one another, each from a multiple of `tile`, and return the memory.

    What fills up a tile is the first row of its column, or the `fill`.
    """
    start = 0
    for column in columns:
        end = start + len(column)
        memory[start:end] = column
        start = _tiled(end, tile)
        memory[end:start] = column[0] if fill is None else fill
    return memory


def _tiled(rows: int, tile: int) -> int:
    """Return the rows of as many tiles as it takes."""
    return -(-rows // tile) * tile


def _aligned(size: int, dtype: np.dtype[np.float64]) -> Vector:
    """Return an array that begins at a multiple of `ALIGNMENT`, which NumPy's own do not."""
    memory = np.empty(size * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    array: Vector = memory[start : start + size * dtype.itemsize].view(dtype)
    return array


def _sparse(size: int, dtype: np.dtype[np.float64]) -> Vector:
    """Return an aligned array most of which is never written to: of it, no memory is taken.

    NumPy asks for huge pages, of which the first byte that is written to takes, and zeroes, two megabytes.
    """
    array: Vector = np.frombuffer(mmap.mmap(-1, size * dtype.itemsize), dtype)
    return array
