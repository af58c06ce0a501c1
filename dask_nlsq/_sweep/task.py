"""What a task does: reduce a group of partitions, draw rows from it, explore starts on some rows, evaluate a model."""

from __future__ import annotations

import dataclasses
import itertools
import pickle
import threading
import time
import weakref
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dask_nlsq._errors import DataError, NotFiniteError
from dask_nlsq._kernel import FAN_IN, Block, Reduction, Request, merge
from dask_nlsq._sweep.failure import Failure, load
from dask_nlsq._sweep.groups import Batch, Group
from dask_nlsq._sweep.payload import Payload
from dask_nlsq._typing import Matrix, Vector

if TYPE_CHECKING:
    from dask_nlsq._model import Objective
    from dask_nlsq._sources import Partition

Digests = npt.NDArray[np.uint64]
"""What partitions held, enough to notice that they have changed: rows, rows dropped, checksums; a line each."""

_LARGE = 1 << 16
"""Bytes of a matrix from which sending it costs more than handling it."""


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came of a group: digests of each partition, and for each request the nodes of the tree, leaves or above."""

    numbers: tuple[int, ...]  # of the partitions
    digests: Digests  # (partitions, 2 + columns)
    parts: tuple[tuple[Reduction, ...], ...]
    nodes: tuple[tuple[int, int], ...]  # what the parts are, by level and place

    def __reduce__(self) -> Any:
        """Travel as one piece: of a hundred small arrays Dask would make as many, each handled by itself.

        Large ones it sends as they lie in memory, without the copies that one piece would take.
        """
        content = self.numbers, self.digests, self.parts, self.nodes
        if any(part.gram.nbytes > _LARGE for part in self.parts[0][:1]):
            return Answer, content
        return _opened, (pickle.dumps(content, pickle.HIGHEST_PROTOCOL),)


def _opened(content: bytes) -> Answer:
    return Answer(*pickle.loads(content))


def reduce_group(group: Group, payload: Payload, requests: Sequence[Request]) -> Answer | Failure:
    """Load each partition once and reduce it for each request, small ones together."""
    reduced = _Reduced(payload, requests)
    for batch in group.batches():
        if not reduced.add(batch):
            break
        batch.clear()  # before the next is read
    return reduced.answer(group)


class _Reduced:
    """What of a group has been reduced so far, for each request of one fit."""

    def __init__(self, payload: Payload, requests: Sequence[Request]) -> None:
        self._payload, self._requests = payload, requests
        # Rows, dropped rows and checksums, as each partition is reduced for the first request.
        self._digests: list[Any] = []
        self._parts: list[list[Reduction]] = [[] for _ in requests]
        self.failure: Failure | None = None

    def add(self, batch: Batch) -> bool:
        """Reduce some blocks; return whether that went well."""
        for request, leaves in zip(self._requests, self._parts, strict=True):
            reductions = _reduce(batch, self._payload, request, look=request.first and not self._digests)
            if isinstance(reductions, Failure):
                self.failure = reductions
                return False
            leaves += reductions
        self._digests += ([r.rows, r.dropped, *r.checksum.tolist()] for r in self._parts[0][-len(batch) :])
        return True

    def answer(self, group: Group) -> Answer | Failure:
        """Return what came of all blocks of the group."""
        if self.failure is not None:
            return self.failure
        nodes = tuple(tuple(_folded(leaves, group)) for leaves in self._parts)
        return Answer(group.indices, np.array(self._digests, np.uint64), nodes, group.nodes)


_views: weakref.WeakKeyDictionary[Block, dict[Selection, Block]] = weakref.WeakKeyDictionary()
"""Blocks that are held, with some of their columns."""


@dataclasses.dataclass(frozen=True)
class Selection:
    """Some of the columns x of a block, by their places, and the names of all columns that are left."""

    places: tuple[int, ...]
    names: tuple[str, ...]

    def of(self, block: Block | Failure) -> Block | Failure:
        """Return the block with these columns alone; of one that is held always the same: it may lie on a device."""
        if isinstance(block, Failure):
            return block
        if not block.held:
            return block.select(self.places, self.names)
        views = _views.setdefault(block, {})
        return views.setdefault(self, block.select(self.places, self.names)) if self not in views else views[self]


@dataclasses.dataclass(frozen=True)
class _Selected:
    """A partition of which some columns are wanted."""

    partition: Partition
    selection: Selection

    def load(self) -> Block:
        return self.partition.load().select(self.selection.places, self.selection.names)


def with_selection(group: Group, selection: Selection, task: Any, args: tuple[Any, ...]) -> Any:
    """Run a task on a group of which it sees some columns alone."""
    partitions = tuple(
        selection.of(p) if isinstance(p, (Block, Failure)) else _Selected(p, selection) for p in group.partitions
    )
    return task(dataclasses.replace(group, partitions=partitions), *args)


@dataclasses.dataclass(frozen=True)
class Share:
    """What one of several fits wants of a pass that they share."""

    payload: Payload
    requests: tuple[Request, ...]
    selection: Selection | None = None  # None: all columns

    @property
    def key(self) -> tuple[Any, ...]:
        """What two shares have in common that are, to the bit, the same."""
        asked = [
            (r.theta.tobytes(), None if r.whitening is None else r.whitening.s.tobytes(), r.first, r.second)
            for r in self.requests
        ]
        return self.payload.token, self.selection, *asked


class Usage(NamedTuple):
    """What a task took: seconds for reading and for computing, bytes that were read, and where it ran."""

    read: float
    computed: float
    nbytes: int
    worker: str


def reduce_each(group: Group, shares: Sequence[Share]) -> tuple[tuple[Answer | Failure, ...], Usage] | Failure:
    """Load each partition once and reduce it for each of several fits; one that fails stops no other."""
    reduced = [_Reduced(share.payload, share.requests) for share in shares]
    meter, computed = Meter(), 0.0
    for batch in meter.on(group).batches():
        begun = time.perf_counter()
        for share, each in zip(shares, reduced, strict=True):
            if each.failure is None:
                seen = batch if share.selection is None else [(i, share.selection.of(block)) for i, block in batch]
                each.add(seen)
        computed += time.perf_counter() - begun
        seen = []
        batch.clear()  # before the next is read
    return tuple(each.answer(group) for each in reduced), Usage(meter.seconds, computed, meter.nbytes, _worker())


class Meter:
    """Counts the seconds and bytes of what is read."""

    def __init__(self) -> None:
        self.seconds, self.nbytes = 0.0, 0

    def on(self, group: Group) -> Group:
        """Return the group with its partitions metered, but for those that are in memory."""
        partitions = tuple(p if isinstance(p, (Block, Failure)) else _Metered(p, self) for p in group.partitions)
        return dataclasses.replace(group, partitions=partitions)


@dataclasses.dataclass(frozen=True)
class _Metered:
    partition: Partition
    meter: Meter

    def load(self) -> Block:
        begun = time.perf_counter()
        block = self.partition.load()
        self.meter.seconds += time.perf_counter() - begun
        self.meter.nbytes += block.nbytes
        return block


def _worker() -> str:
    """Return the address of the worker that runs this, or the thread of a process without one."""
    from distributed import get_worker

    try:
        return str(get_worker().address)
    except ValueError:
        return threading.current_thread().name


def _folded(leaves: Iterable[Reduction], group: Group) -> Iterator[Reduction]:
    """Fold the leaves of a group, or those of a node of which all are here."""
    left = iter(leaves)
    for level, _ in group.nodes:
        yield merge(list(itertools.islice(left, FAN_IN**level)))


def reduce_partition(partition: Partition, payload: Payload, request: Request) -> Reduction | Failure:
    """Load a partition and reduce it."""
    reductions = _reduce([(0, load(partition))], payload, request, request.first)
    return reductions if isinstance(reductions, Failure) else reductions[0]


def _reduce(batch: Batch, payload: Payload, request: Request, look: bool) -> list[Reduction] | Failure:
    """Reduce some blocks, of which the first may be looked at; what fails is told with its partition."""
    blocks = []
    for index, block in batch:
        if isinstance(block, Failure):
            return block.at(index)
        blocks.append(block)
    try:
        kernel, validate = _kernels()
        objective = payload.value
        whitening = None if request.whitening is None else request.whitening.s
        reductions: list[Reduction] = kernel.reduce_blocks(objective, blocks, request.theta, whitening, request.second)
        if look:
            validate.check_rows(objective, blocks[0], request.theta)
    except Exception as error:
        # One call of the kernel took all of them, and its error does not say which one.
        for indexed in batch if len(batch) > 1 else ():  # which of them was it?
            if isinstance(alone := _reduce([indexed], payload, request, look=False), Failure):
                return alone
        return Failure.of("evaluating the model", error).at(batch[0][0])
    for (index, _), block, reduction in zip(batch, blocks, reductions, strict=True):
        # Looked for only where a sum is not finite, so that a sweep does not look at each cell.
        if not reduction.data_finite and (fault := non_finite(block, objective)):
            return Failure("evaluating the model", fault, partition=index)
    return [reduction.placed(partition=index) for (index, _), reduction in zip(batch, reductions, strict=True)]


def draw(group: Group, wanted: Sequence[int], count: int, seed: int) -> list[tuple[Block, int]] | Failure:
    """Return at most `count` rows, in order, of each partition that is wanted, and how many rows it has."""
    drawn = []
    for i, partition in enumerate(group.partitions, group.start):
        if i in wanted:
            block = load(partition)
            if isinstance(block, Failure):
                return block.at(i)
            drawn.append((_some(block, count, seed), block.rows))
            del block  # before the next is read
    return drawn


def _some(block: Block, count: int, seed: int) -> Block:
    block = block.wide()
    if block.rows <= count:
        return block
    mark = int(np.bitwise_xor.reduce(block.y.view(np.uint64)))  # partitions of one length differ in their rows
    rows = np.random.default_rng([seed, mark]).choice(block.rows, count, replace=False, shuffle=False)
    return block.take(np.sort(rows))


def find_faults(group: Group, payload: Payload, theta: Vector) -> list[Any] | Failure:
    """Return the faults of the partitions of a group at `theta` (p,), each with its partition."""
    from dask_nlsq._kernel import faults

    faulty: list[Any] = []
    for index, block in group.blocks():
        if isinstance(block, Failure):
            return block.at(index)
        try:
            of_block = faults.find(payload.value, block, theta)
        except Exception as error:
            return Failure.of("evaluating the model", error).at(index)
        faulty += (dataclasses.replace(fault, partition=index) for fault in of_block)
    return faulty


def explore(batch: object, payload: Payload, block: Block) -> Any:
    """Call the payload on a batch and a block that came along."""
    try:
        return payload.value(batch, block)
    except Exception as error:
        return Failure.of("exploring starts", error)


def predict_rows(payload: Payload, theta: Vector, x: tuple[Vector, ...]) -> Vector:
    """Evaluate the model at columns x, each of shape (rows,)."""
    kernel, _ = _kernels()
    values: Vector = kernel.predict_block(payload.value, Block(x, x[0]), theta)
    return values


def standard_errors(payload: Payload, theta: Vector, cov: Matrix, x: tuple[Vector, ...]) -> Vector:
    """Return the standard error of the model at columns x, each of shape (rows,), of its free parameters `theta`."""
    from dask_nlsq._kernel import rows

    return rows.standard_errors(payload.value, x, theta, cov)


def _kernels() -> tuple[ModuleType, ModuleType]:
    """Import what needs JAX at its first use: the scheduler imports this module too, and must not start XLA."""
    from dask_nlsq._kernel import kernel, validate

    return kernel, validate


def non_finite(block: Block, objective: Objective) -> DataError | None:
    """Name the first column with a cell that is not finite; a sum may also overflow, which is no fault."""
    columns = list(zip(objective.columns, (*block.x, block.y), strict=True))
    if (responses := objective.responses) is not None:  # each a row of its own, but for those without weight
        number, runs = block.x[-1], _starts_of_rows(block)
        columns = [(name, c[runs]) for name, c in columns[: -1 - objective.n_appended]]
        columns += [(name, block.y[number == c]) for c, name in enumerate(responses.names)]
    for name, column in columns:
        bad = ~np.isfinite(column)
        if bad.any():
            row = int(np.argmax(bad))
            return NotFiniteError(
                f"{int(bad.sum())} of {len(bad)} cells are not finite; the first is row {row} with {column[row]}. "
                'nan_policy="omit" drops such rows and counts them.',
                column=name,
            )
    return None


def _starts_of_rows(block: Block) -> npt.NDArray[np.intp]:
    """Return where in a block of several responses each row of the data begins: their numbers rise within it."""
    number = block.x[-1]
    return np.flatnonzero(np.append(True, number[1:] <= number[:-1]))
