"""What one pass over the data says of the residuals of a fit, in memory that does not grow with the rows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dask_nlsq._kernel import Block
from dask_nlsq._sweep.binned import Axis, Binned, FixedAxis
from dask_nlsq._sweep.failure import Failure
from dask_nlsq._sweep.groups import Group
from dask_nlsq._sweep.payload import Payload
from dask_nlsq._sweep.task import predict_rows
from dask_nlsq._typing import Vector

CELLS = 128
"""Most cells along a column."""

SCORES = FixedAxis(np.linspace(-8.05, 8.05, 162))
"""Cells of standardised residuals."""


class Points(NamedTuple):
    """Single rows of few."""

    x: tuple[Vector, ...]
    y: Vector
    fit: Vector
    score: Vector  # the standardised residual

    def joined(self, other: Points) -> Points:
        """Return the rows of both."""
        x = tuple(np.concatenate(pair) for pair in zip(self.x, other.x, strict=True))
        return Points(x, *(np.concatenate(pair) for pair in zip(self[1:], other[1:], strict=True)))


@dataclasses.dataclass(frozen=True)
class ResidualSummary:
    r"""Counts of rows by x, y, the fit f and the score :math:`z = (y - f) / (s \sigma)`."""

    rows: int
    density: tuple[Binned, ...]  # by each column of x and by y
    by_column: tuple[Binned, ...]  # by each column of x and by z, with the total of f
    by_fit: Binned  # by f and by z
    pairs: tuple[int, float]  # neighbouring rows of a partition, and the sum of the products of their z
    partitions: npt.NDArray[np.float64]  # (partitions, 3): number, rows, sum of z²
    points: Points | None = None

    @property
    def score_counts(self) -> npt.NDArray[np.int64]:
        """Rows by z."""
        counts: npt.NDArray[np.int64] = self.by_fit.counts.sum(axis=0)
        return counts

    @classmethod
    def of(cls, number: int, block: Block, fit: Vector, s: float, keep: bool) -> ResidualSummary | None:
        """Summarise the rows of one partition; None where there are none.

        Parameters
        ----------
        fit : ndarray (rows,)
        s : float
            The residual standard deviation of the fit.
        keep : bool
            Keep the rows one by one, too.
        """
        if not block.rows:
            return None
        block = block.wide()
        score = block.y - fit
        score /= s
        if block.weight is not None:
            score *= block.weight
        columns = [Axis.of(column, CELLS) for column in block.x]
        y = Axis.of(block.y, CELLS)
        total = fit if len(columns) > 1 else None
        return cls(
            block.rows,
            tuple(Binned.of([axis, y], [x, block.y]) for axis, x in zip(columns, block.x, strict=True)),
            tuple(Binned.of([axis, SCORES], [x, score], total) for axis, x in zip(columns, block.x, strict=True)),
            Binned.of([Axis.of(fit, CELLS), SCORES], [fit, score]),
            (block.rows - 1, float(score[:-1] @ score[1:])),
            np.array([[number, block.rows, float(score @ score)]]),
            Points(block.x, block.y, fit, score) if keep else None,
        )

    def merge(self, other: ResidualSummary) -> ResidualSummary:
        """Return the summary of the rows of both."""
        return ResidualSummary(
            self.rows + other.rows,
            tuple(a.merge(b) for a, b in zip(self.density, other.density, strict=True)),
            tuple(a.merge(b) for a, b in zip(self.by_column, other.by_column, strict=True)),
            self.by_fit.merge(other.by_fit),
            (self.pairs[0] + other.pairs[0], self.pairs[1] + other.pairs[1]),
            np.concatenate([self.partitions, other.partitions]),
            None if self.points is None or other.points is None else self.points.joined(other.points),
        )


def summarise(group: Group, payload: Payload, theta: Vector, s: float, keep: bool) -> list[ResidualSummary] | Failure:
    """Summarise the residuals of a group of partitions; nothing where no row counts."""
    parts: list[ResidualSummary] = []
    for number, block in group.blocks():
        if isinstance(block, Failure):
            return block.at(number)
        try:
            part = ResidualSummary.of(number, block, predict_rows(payload, theta, block.x), s, keep)
        except Exception as error:
            return Failure.of("evaluating the model", error).at(number)
        parts = merged([*parts, *([] if part is None else [part])])
        del block  # before the next is read
    return parts


def merged(parts: Sequence[ResidualSummary]) -> list[ResidualSummary]:
    """Return the summary of all rows, in a list; an empty one where there are no rows."""
    return [functools.reduce(ResidualSummary.merge, parts)] if parts else []
