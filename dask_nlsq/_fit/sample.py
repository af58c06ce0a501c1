"""Sample: some rows of partitions spread evenly over the data, from which a start is found in memory."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from dask_nlsq._kernel import MANY_ROWS, Block, concatenate
from dask_nlsq._model import Model, Parameters, guessed
from dask_nlsq._sweep import Executor, Failure, draw

PARTITIONS = 16
"""How many partitions a sample is taken from: data are often sorted, and eight partitions of a sorted table left the
start 14 standard errors away, where one in fifty left it 10,000."""

_MOST = 256
"""Partitions at most, where they are so small that 16 hold few rows: of 1,000 sorted files of 1,200 rows, 16 left a
start from which a fit of 30 parameters took 7 sweeps, 84 one from which it took 2."""

ROWS = 100_000
"""Rows of a sample: enough for a start some tens of standard errors away, and fitted in milliseconds."""

GUESS_ROWS = 10_000
"""Rows from which a model's guess works: hundreds of points of a curve, tens of rows each."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Rows drawn, and how many rows all partitions are thought to hold."""

    block: Block
    partitions: int
    estimated_rows: float
    largest: int  # rows of the largest partition that was drawn from


def draw_sample(executor: Executor, groups: Sequence[Any], partitions: int, rows: int = ROWS, seed: int = 0) -> Sample:
    """Draw about `rows` rows from `PARTITIONS` of so many partitions, spread evenly, or from all of fewer.

    Where these hold too few of many rows, so many more partitions take their place that there are enough. The same
    data, partitions and seed give the same rows, whoever draws them and however they are grouped.
    """
    sample = _draw(executor, groups, partitions, min(PARTITIONS, partitions), rows, seed)
    enough = math.ceil(sample.partitions * rows / max(sample.block.rows, 1))
    count = min(enough, _MOST, partitions)
    if sample.estimated_rows <= MANY_ROWS or count < 2 * sample.partitions:
        return sample
    return _draw(executor, groups, partitions, count, rows, seed)


def _draw(executor: Executor, groups: Sequence[Any], partitions: int, count: int, rows: int, seed: int) -> Sample:
    """Draw from `count` partitions."""
    wanted = np.linspace(0, partitions - 1, count).round().astype(int).tolist()
    groups = [g for g in groups if any(i in wanted for i in range(g.start, g.start + len(g.partitions)))]
    drawn: list[Any] = [()] * len(groups)
    for i, answer in executor.run(draw, groups, wanted, -(-rows // count), seed):
        if isinstance(answer, Failure):
            raise answer.error()
        drawn[i] = answer
    blocks, totals = zip(*itertools.chain.from_iterable(drawn), strict=True)
    return Sample(concatenate(list(blocks)), count, sum(totals) / count * partitions, max(totals))


def guess_start(model: Model, parameters: Parameters, sample: Block, proportions: bool = False) -> Parameters:
    """Start at the model's own guess wherever nobody gave a start; of binomial counts, it sees the proportions."""
    block = _useful(sample)
    if model.guess_func is None or not block.rows:
        return parameters
    y = block.y / block.weight if proportions and block.weight is not None else block.y
    guess = guessed(model, block.x, y)
    return parameters.with_guess(guess, block.rows)


def _useful(block: Block) -> Block:
    """Return at most `GUESS_ROWS` of the rows that are finite and have a weight."""
    keep = np.logical_and.reduce([np.isfinite(column) for column in (*block.x, block.y)])
    rows = np.flatnonzero(keep if block.weight is None else keep & (block.weight > 0))
    if len(rows) > GUESS_ROWS:
        # A fixed seed, so that the same rows give the same start.
        rows = np.sort(np.random.default_rng(0).choice(rows, GUESS_ROWS, replace=False))
    return block.take(rows)
