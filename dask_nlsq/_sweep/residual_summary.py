"""What one pass over the data says of the residuals of a fit, in memory that does not grow with the rows."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from dask_nlsq._kernel import Block
from dask_nlsq._model import Objective, Responses
from dask_nlsq._sweep.binned import AnyAxis, Axis, Binned, FixedAxis
from dask_nlsq._sweep.failure import Failure
from dask_nlsq._sweep.groups import Group
from dask_nlsq._sweep.payload import Payload
from dask_nlsq._sweep.task import predict_rows
from dask_nlsq._typing import Vector

CELLS = 128
"""Most cells along a column."""

_CHUNK = 1 << 17
"""Rows at a time."""

SCORES = FixedAxis(np.linspace(-8.05, 8.05, 162))
"""Cells of standardised residuals."""


class Points(NamedTuple):
    """Single rows of few."""

    x: tuple[Vector, ...]
    y: Vector
    fit: Vector
    score: Vector  # the standardised residual
    sigma: Vector | None  # of y, where the fit had one

    def joined(self, other: Points) -> Points:
        """Return the rows of both."""
        x = tuple(np.concatenate(pair) for pair in zip(self.x, other.x, strict=True))
        y, fit, score = (np.concatenate(pair) for pair in zip(self[1:4], other[1:4], strict=True))
        both = self.sigma is not None and other.sigma is not None
        return Points(x, y, fit, score, np.concatenate([self.sigma, other.sigma]) if both else None)


class Axes(NamedTuple):
    """Cells along the columns of x, along y and along the fit."""

    x: tuple[Axis, ...]
    y: Axis
    fit: Axis


@dataclasses.dataclass(frozen=True)
class ResidualSummary:
    r"""Counts of rows by x, y, the fit f and the score :math:`z = (y - f) / (s \sigma)`."""

    rows: int
    powers: tuple[float, float, float, float]  # the sums of z, z², z³ and z⁴
    pairs: tuple[int, float]  # neighbouring rows of a partition, and the sum of the products of their z
    density: tuple[Binned, ...]  # by each column of x and by y
    by_column: tuple[Binned, ...]  # by each column of x and by z, with the total of f where there are several
    by_fit: Binned  # by f and by z
    points: Points | None = None
    partitions: npt.NDArray[np.float64] = dataclasses.field(default_factory=lambda: np.empty((0, 3)))
    """Of each partition its number, rows and sum of z²."""

    @property
    def chisqr(self) -> float:
        """The sum of z²."""
        return self.powers[1]

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
        x, y, of_fit = (tuple(Axis.of(c, CELLS) for c in columns) for columns in (block.x, (block.y,), (fit,)))
        axes = Axes(x, *y, *of_fit)
        starts = range(0, block.rows, _CHUNK)
        chunks = [block.take(slice(start, start + _CHUNK)) for start in starts]
        pieces = (
            cls._of_chunk(chunk.wide(), fit[start : start + _CHUNK], s, axes, keep)
            for start, chunk in zip(starts, chunks, strict=True)
        )
        whole = functools.reduce(cls.merge, pieces)
        return dataclasses.replace(whole, partitions=np.array([[number, whole.rows, whole.chisqr]]))

    @classmethod
    def _of_chunk(cls, block: Block, fit: Vector, s: float, axes: Axes, keep: bool) -> ResidualSummary:
        """Summarise some rows."""
        from dask_nlsq._kernel import cells  # with JAX, at its first use

        every = (*axes.x, axes.y, axes.fit)
        grids = np.array([*(axis.grid for axis in every), SCORES.grid])
        score, by_y, by_score, of_fit = cells.count(block.x, block.y, fit, block.weight, s, grids, CELLS, SCORES.cells)
        square = score**2

        def binned(counts: npt.NDArray[np.int32], one: Axis, other: AnyAxis, total: Vector | None = None) -> Binned:
            return Binned((one, other), counts[: one.cells, : other.cells].astype(np.int64), total)

        # Against a single column the model is a curve, and needs no means.
        several = len(axes.x) > 1
        totals = [_total(axis, c, fit) if several else None for axis, c in zip(axes.x, block.x, strict=True)]
        return cls(
            block.rows,
            (float(score.sum()), _dot(score, score), _dot(score, square), _dot(square, square)),
            (block.rows - 1, _dot(score[:-1], score[1:])),
            tuple(binned(n, axis, axes.y) for n, axis in zip(by_y, axes.x, strict=True)),
            tuple(binned(n, axis, SCORES, t) for n, axis, t in zip(by_score, axes.x, totals, strict=True)),
            binned(of_fit, axes.fit, SCORES),
            Points(block.x, block.y, fit, score, _inverse(block.weight)) if keep else None,
        )

    def merge(self, other: ResidualSummary) -> ResidualSummary:
        """Return the summary of the rows of both."""
        return ResidualSummary(
            self.rows + other.rows,
            (
                self.powers[0] + other.powers[0],
                self.powers[1] + other.powers[1],
                self.powers[2] + other.powers[2],
                self.powers[3] + other.powers[3],
            ),
            (self.pairs[0] + other.pairs[0], self.pairs[1] + other.pairs[1]),
            tuple(a.merge(b) for a, b in zip(self.density, other.density, strict=True)),
            tuple(a.merge(b) for a, b in zip(self.by_column, other.by_column, strict=True)),
            self.by_fit.merge(other.by_fit),
            None if self.points is None or other.points is None else self.points.joined(other.points),
            np.concatenate([self.partitions, other.partitions]),
        )


def _total(axis: Axis, column: Vector, value: Vector) -> Vector:
    """Return the totals of a value in the cells of a column."""
    a, first = axis.grid
    place = (np.floor(a * column) - first).astype(np.int64)
    return np.bincount(place, value, axis.cells).astype(np.float64)


def _inverse(weight: Vector | None) -> Vector | None:
    with np.errstate(divide="ignore"):
        return None if weight is None else 1 / weight


def _dot(a: Vector, b: Vector) -> float:
    """Return the sum of products, without the threads of BLAS, which wait for one another beside other tasks."""
    return float(np.einsum("i,i", a, b))


def summarise(
    group: Group, payload: Payload, theta: Vector, s: float, keep: bool, response: int | None = None
) -> list[ResidualSummary] | Failure:
    """Summarise the residuals of a group of partitions, or of one response; nothing where no row counts."""
    parts: list[ResidualSummary] = []
    for number, block in group.blocks():
        if isinstance(block, Failure):
            return block.at(number)
        try:
            part = _summarise_block(number, block, payload, theta, s, keep, response)
        except Exception as error:
            return Failure.of("evaluating the model", error).at(number)
        parts = merged([*parts, *([] if part is None else [part])])
        del block  # before the next is read
    return parts


def _summarise_block(
    number: int, block: Block, payload: Payload, theta: Vector, s: float, keep: bool, response: int | None
) -> ResidualSummary | None:
    """Summarise the rows of one partition as they were fitted."""
    objective: Objective = payload.value
    if not block.rows:
        return None
    if objective.responses is not None:
        block, fit = _by_response(objective.responses, block, predict_rows(payload, theta, block.x), response)
        block = dataclasses.replace(block, x=block.x[: objective.n_inputs], memory=None)  # as the model has them
        return ResidualSummary.of(number, block, fit, s, keep)
    if not objective.errors:
        block = dataclasses.replace(block, x=block.x[: objective.n_inputs], memory=None)
        fit = predict_rows(payload, theta, block.x)
        return ResidualSummary.of(number, _with_count_weights(objective, block, fit), fit, s, keep)
    # Beside x as it was measured, which holds a part of the distance, residuals of a right model are no noise.
    wide = block.wide()
    nearest, fit = _at_nearest_points(payload, wide, theta)
    summary = ResidualSummary.of(number, nearest, fit, s, keep)
    if summary is None or summary.points is None:
        return summary
    return dataclasses.replace(summary, points=summary.points._replace(x=wide.x[: objective.n_inputs]))


def _by_response(responses: Responses, block: Block, fit: Vector, response: int | None) -> tuple[Block, Vector]:
    """Return rows and fit (rows,), one response behind another, or those of one of them in units of its sigma."""
    number, k = block.x[-1], len(responses)
    if response is None:
        order = np.argsort(number, kind="stable")
        return block.take(order), fit[order]
    if responses.mixed:  # every row of the data has all responses then
        shares, weight = np.stack([c[:k] for c in responses.shares(block.x)], axis=1), block.weights[:k]
        y, fit = (np.linalg.solve(shares, a.reshape(-1, k).T).T.ravel() for a in (block.wide().y, fit))
        covariance = np.linalg.inv((shares.T * weight**2) @ shares)
        block = dataclasses.replace(block, y=y, weight=np.full(block.rows, covariance[response, response] ** -0.5))
    rows = np.flatnonzero(number == response)
    return block.take(rows), fit[rows]


def _at_nearest_points(payload: Payload, block: Block, theta: Vector) -> tuple[Block, Vector]:
    """Return rows at the points of the curve that are nearest, with their distances as weighted residuals, and f."""
    from dask_nlsq._kernel import evaluate_rows, nearest_columns  # with JAX, at its first use

    objective: Objective = payload.value
    free = theta
    if objective.expansion is not None:
        free = theta[[objective.expansion.names.index(name) for name in objective.expansion.free]]
    x = tuple(nearest_columns(objective, block, free))
    fit = predict_rows(payload, theta, x)
    residual = evaluate_rows(objective, block, np.broadcast_to(free, (block.rows, len(free))))[:, -1]
    away = fit - block.y
    weight = np.divide(residual, away, out=np.ones(block.rows), where=away != 0)
    return dataclasses.replace(block, x=x, weight=weight), fit


def _with_count_weights(objective: Objective, block: Block, fit: Vector) -> Block:
    """Return rows of counts as those of least squares with the variance that the fit (rows,) expects; others as is."""
    if not objective.counts:
        return block
    wide = block.wide()
    rows = objective.count_rows(fit, wide.y, wide.weights, np)
    return dataclasses.replace(wide, y=fit - rows.residual, weight=rows.scale)


def merged(parts: Sequence[ResidualSummary]) -> list[ResidualSummary]:
    """Return the summary of all rows, in a list; an empty one where there are no rows."""
    return [functools.reduce(ResidualSummary.merge, parts)] if parts else []
