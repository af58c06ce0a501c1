"""What a task does with a group of partitions: reduce them, draw rows from them, evaluate a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dask_nlsq._errors import DataError
from dask_nlsq._numerics.block import Block
from dask_nlsq._numerics.reduction import Reduction, fold_level
from dask_nlsq._numerics.request import Request
from dask_nlsq._sweep.failure import Failure, load
from dask_nlsq._sweep.group import Group
from dask_nlsq._sweep.shipped import Shipped
from dask_nlsq._typing import Vector


@dataclasses.dataclass(frozen=True)
class Mark:
    """What a partition held: enough to notice that it has changed."""

    rows: int
    dropped: int
    checksum: bytes


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came of a group: a mark for each partition, and for each request the leaves or nodes of the tree."""

    start: int
    marks: tuple[Mark, ...]
    parts: tuple[tuple[Reduction, ...], ...]


def reduce_group(group: Group, shipped: Shipped, requests: Sequence[Request]) -> Answer | Failure:
    """Load each partition once and reduce it for each request."""
    marks, leaves = [], []
    for index, block in group.blocks():
        found: list[Reduction] = []
        for request in requests:
            leaf = _reduce(block, shipped, request, look=request.first and index == group.start)
            if isinstance(leaf, Failure):
                return leaf.at(index)
            found.append(leaf)
        leaves.append(found)
        marks.append(Mark(found[0].rows, found[0].dropped, np.asarray(found[0].checksum).tobytes()))
    level = fold_level if group.whole else tuple
    return Answer(group.start, tuple(marks), tuple(tuple(level(column)) for column in zip(*leaves, strict=True)))


def reduce_partition(partition: Any, shipped: Shipped, request: Request) -> Reduction | Failure:
    """Load a partition and reduce it."""
    return _reduce(load(partition), shipped, request, request.first)


def _reduce(block: Block | Failure, shipped: Shipped, request: Request, look: bool) -> Reduction | Failure:
    if isinstance(block, Failure):
        return block
    try:
        objective = shipped.value
        whitening = None if request.whitening is None else request.whitening.s
        reduction: Reduction = _kernel().reduce_block(objective, block, request.theta, whitening)
        if not np.isfinite(reduction.sums).all():
            _refuse_non_finite(block, objective.columns)
        if look:
            _kernel().check_rows(objective, block, request.theta)
        return reduction
    except Exception as error:
        return Failure.of("evaluating the model", error)


def draw(group: Group, wanted: Sequence[int], count: int, seed: int) -> list[tuple[Block, int]] | Failure:
    """Return at most `count` rows, in order, of each partition that is wanted, and how many rows it has."""
    drawn = []
    for i, partition in enumerate(group.partitions, group.start):
        if i in wanted:
            block = load(partition)
            if isinstance(block, Failure):
                return block.at(i)
            drawn.append((_some(block, count, seed), block.rows))
    return drawn


def _some(block: Block, count: int, seed: int) -> Block:
    block = block.wide()
    if block.rows <= count:
        return block
    mark = int(np.bitwise_xor.reduce(block.y.view(np.uint64)))  # partitions of one length differ in their rows
    rows = np.random.default_rng([seed, mark]).choice(block.rows, count, replace=False, shuffle=False)
    return block.take(np.sort(rows))


def predict_rows(shipped: Shipped, theta: Vector, x: tuple[Vector, ...]) -> Vector:
    """Evaluate the model at columns x, each of shape (rows,)."""
    values: Vector = _kernel().predict_block(shipped.value, Block(x, x[0]), theta)
    return values


def _kernel() -> Any:
    """Import the kernel at its first use: the scheduler imports this module too, and must not start XLA."""
    from dask_nlsq._numerics import kernel

    return kernel


def _refuse_non_finite(block: Block, names: tuple[str, ...]) -> None:
    """Raise for the first column with a cell that is not finite; a sum may also overflow, which is no fault."""
    for name, column in zip(names, (*block.x, block.y), strict=True):
        bad = ~np.isfinite(column)
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(
                f"{int(bad.sum())} of {len(bad)} cells are not finite; the first is row {row} with {column[row]}. "
                'nan_policy="omit" drops such rows and counts them.',
                column=name,
            )
