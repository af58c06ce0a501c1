"""Sample: some rows of partitions spread evenly over the data, from which a start is found in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dask_nlsq._errors import ModelError
from dask_nlsq._numerics.block import Block, concatenate
from dask_nlsq._numerics.model import Model
from dask_nlsq._numerics.parameters import Parameters
from dask_nlsq._sweep import Executor
from dask_nlsq._sweep.task import Failure, draw

PARTITIONS = 16
"""How many partitions a sample is taken from: data are often sorted, and eight partitions of a sorted table left the
start 14 standard errors away, where one in fifty left it 10,000."""

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


def draw_sample(executor: Executor, partitions: Sequence[Any], rows: int = ROWS, seed: int = 0) -> Sample:
    """Draw about `rows` rows from `PARTITIONS` partitions spread evenly over the data, or from all of fewer.

    The same data, partitions and seed give the same rows, whoever draws them.
    """
    count = min(PARTITIONS, len(partitions))
    chosen = np.linspace(0, len(partitions) - 1, count).round().astype(int)
    drawn: list[Any] = [None] * count
    for i, found in executor.run(draw, [partitions[j] for j in chosen], -(-rows // count), seed):
        if isinstance(found, Failure):
            raise found.error(int(chosen[i]))
        drawn[i] = found
    seen = sum(total for _, total in drawn)
    return Sample(concatenate([block for block, _ in drawn]), count, seen / count * len(partitions))


def guess_start(model: Model, parameters: Parameters, sample: Block) -> Parameters:
    """Start at the model's own guess wherever nobody gave a start."""
    block = _useful(sample)
    if model.guess is None or not block.rows:
        return parameters
    taken = (model.columns[name] for name in model.inputs or model.columns)
    try:
        found = model.guess([block.x[i] for places in taken for i in places], block.y)
    except Exception as error:
        raise ModelError(
            f"The guess of {model.name!r} failed on {block.rows} rows ({type(error).__name__}: {error}). Give p0 for "
            f"{', '.join(parameters.guessed)}."
        ) from error
    return parameters.with_guess(found, block.rows)


def _useful(block: Block) -> Block:
    """Return at most `GUESS_ROWS` of the rows that are finite and have a weight."""
    keep = np.logical_and.reduce([np.isfinite(column) for column in (*block.x, block.y)])
    rows = np.flatnonzero(keep if block.weight is None else keep & (block.weight > 0))
    if len(rows) > GUESS_ROWS:
        rows = np.sort(np.random.default_rng(0).choice(rows, GUESS_ROWS, replace=False))
    return block.take(rows)
