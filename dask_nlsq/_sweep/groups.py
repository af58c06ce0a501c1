"""Groups: neighbouring partitions that one task takes, read one ahead.

A task has a price of about a millisecond on a cluster, whatever it does. Partitions of a few thousand rows are
therefore taken many at a time; how many is a matter of speed and of memory alone, for the leaves of the tree are
partitions however they are grouped.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

import cloudpickle

from dask_nlsq._kernel import FAN_IN, GROUP_BYTES, PER_THREAD, SLABS, TILE, TOGETHER, Block, pack
from dask_nlsq._sweep.failure import Failure, load

if TYPE_CHECKING:
    from dask_nlsq._sources import Partition

T = TypeVar("T")

Batch = list[tuple[int, Block | Failure]]
"""Blocks by the numbers of their partitions."""


@dataclasses.dataclass(frozen=True)
class Group:
    """Partitions `start`, `start` + 1 and so on.

    The next is read `ahead`, while one is worked on, unless memory has no room for both. Where `numbers` are given they
    are those of the partitions, which then need not be neighbours.
    """

    start: int
    partitions: tuple[Partition | Failure, ...]
    ahead: bool = True
    numbers: tuple[int, ...] = ()

    @functools.cached_property
    def indices(self) -> tuple[int, ...]:
        """Numbers of the partitions."""
        return self.numbers or tuple(range(self.start, self.start + len(self.partitions)))

    @functools.cached_property
    def nodes(self) -> tuple[tuple[int, int], ...]:
        """The nodes of the tree that the partitions make up, by level and place; of level 1 where all of it is here."""
        if self.numbers:
            return tuple((0, number) for number in self.numbers)
        first, stop = -(-self.start // FAN_IN), (self.start + len(self.partitions)) // FAN_IN
        if first >= stop:
            return tuple((0, number) for number in self.indices)
        head, tail = range(self.start, first * FAN_IN), range(stop * FAN_IN, self.start + len(self.partitions))
        return (*((0, i) for i in head), *((1, i) for i in range(first, stop)), *((0, i) for i in tail))

    def blocks(self) -> Iterator[tuple[int, Block | Failure]]:
        """Read the partitions in order, each while the one before it is being worked on; small ones several at a time.

        Threads that take turns for each of thousands of small files would wait for one another more than they read.
        """
        # Blocks are read already, so that a thread has nothing to do for them.
        if not self.ahead or len(self.partitions) == 1 or isinstance(self.partitions[0], Block):
            yield from ((i, load(p)) for i, p in zip(self.indices, self.partitions, strict=True))
            return
        left = zip(self.indices, self.partitions, strict=True)
        with ThreadPoolExecutor(1, "nlsq-read") as reader:
            coming = reader.submit(_some, left)
            while blocks := coming.result():
                coming = reader.submit(_some, left)
                blocks.reverse()
                while blocks:
                    yield blocks.pop()  # and hold it no longer

    def batches(self) -> Iterator[Batch]:
        """Read the partitions in order, small ones put together: as many as one call of the kernel takes.

        What no other can join does not wait for the next to be read, which would be one more in memory.
        """
        batch: Batch = []
        tiles, full = 0, SLABS[1] // TILE
        for index, block in self.blocks():
            more = full if isinstance(block, Failure) else -(-block.rows // TILE)
            if batch and tiles + more > full:
                yield batch
                batch, tiles = [], 0
            batch.append((index, block))
            tiles += more
            del block  # who takes the batch decides how long it is there
            if tiles >= full or len(batch) == TOGETHER:
                yield batch
                batch, tiles = [], 0
        if batch:
            yield batch

    def load(self) -> Group:
        """Return the group with its partitions read; one that cannot be read is a `Failure` in its place.

        What is read is laid out for the kernel; what is in memory already stays, lest it be there twice.
        """
        held: list[Block | Failure] = []
        for batch in self.batches():
            blocks = [block for _, block in batch if isinstance(block, Block)]
            if len(blocks) < len(batch) or isinstance(self.partitions[0], Block):
                held += (_held(block) for _, block in batch)
            else:
                held += pack(blocks)
        return dataclasses.replace(self, partitions=tuple(held))


def _some(left: Iterator[tuple[int, Partition | Failure]]) -> Batch:
    """Read the next partition, or so many small ones that a call of the kernel is worth its price."""
    blocks: Batch = []
    rows = 0
    for index, partition in left:
        blocks.append((index, block := load(partition)))
        rows += SLABS[0] if isinstance(block, Failure) else block.rows
        if rows >= SLABS[0]:
            break
    return blocks


def _held(block: Block | Failure) -> Block | Failure:
    return block if isinstance(block, Failure) else dataclasses.replace(block, held=True)


def of_each_block(
    group: Group, evaluate: Callable[[Block], T], doing: str = "evaluating the model"
) -> list[T] | Failure:
    """Return what a function returns for each partition of a group, in order, or the first failure of either."""
    values = []
    for number, block in group.blocks():
        if isinstance(block, Failure):
            return block.at(number)
        try:
            values.append(evaluate(block))
        except Exception as error:
            return Failure.of(doing, error).at(number)
        del block  # before the next is read
    return values


@dataclasses.dataclass(frozen=True)
class Packed:
    """A group whose partitions are not read, as bytes that the task opens which reads them.

    Dask unpickles the arguments of a task where messages come in, in the scheduler too, and a worker that cannot do so
    for want of a module breaks its connection; here the task says so.
    """

    payload: bytes

    @classmethod
    def of(cls, group: Group) -> Packed:
        """Pack a group."""
        # cloudpickle, for graphs of Dask hold lambdas and functions of the user's own script.
        return cls(cloudpickle.dumps(group, pickle.HIGHEST_PROTOCOL))

    def open(self) -> Group | Failure:
        """Return the group, or why it cannot be opened here."""
        try:
            group: Group = pickle.loads(self.payload)
        except Exception as error:
            return Failure.of("opening the description of partitions", error)
        return group


def group(
    partitions: Sequence[Partition | Failure], nbytes: float, threads: int, per_thread: int = PER_THREAD
) -> list[Group]:
    """Cut partitions of `nbytes` bytes in all into even groups, as many for each of so many threads."""
    count = max(len(partitions), 1)
    most = max(1, int(GROUP_BYTES * count / max(nbytes, 1.0)))
    groups = min(count, threads * max(per_thread, math.ceil(count / (most * threads))))
    cuts = [i * count // groups for i in range(groups)] + [len(partitions)]
    return [Group(start, tuple(partitions[start:stop])) for start, stop in itertools.pairwise(cuts) if stop > start]
