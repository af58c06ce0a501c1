"""Estimates of many series: where their fits end, the last step of each, and what its covariance follows from."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from dask_nlsq._model import Objective
from dask_nlsq._solver import GaussNewton, Series, Status, Tolerance, Way, gauss_newton_steps, minimise, square
from dask_nlsq._typing import Matrix, Vector

DEPENDENT = 1e-13
"""Ratio of a pivot to its diagonal element below which a column of J is a combination of the others."""

_NOTHING = 1e-13
"""Length of a column of J, beside what it was at the start, from which it is rounding."""

_NEAR, _POLISH = 1e-4, 5
"""Standard errors that the last step may be long, and evaluations that are spent on a longer one."""

Flags = npt.NDArray[np.bool_]
Cube = npt.NDArray[np.float64]
"""A matrix for each series, (n, rows, columns)."""


@dataclasses.dataclass(frozen=True)
class Estimates:
    """Where fits end, a row each, written as it becomes known."""

    theta: Matrix
    cost: Vector
    steps: npt.NDArray[np.int64]
    status: npt.NDArray[np.int64]
    curvature: Matrix  # (n, p (p + 1) / 2), the rows of the lower triangle of JᵀJ
    inverse: npt.NDArray[np.float64]  # (n, p, p), its inverse
    pivot: Vector
    response: Vector  # Σ (w y)²
    spread: Vector  # Σ w² (y − mean)²
    free: Flags  # (n, p), neither fixed nor at a bound

    @classmethod
    def unknown(cls, n: int, p: int) -> Estimates:
        """Return the estimates of fits of which nothing is known."""
        status, curvature = np.full(n, int(Status.NOT_FINITE)), np.zeros((n, p * (p + 1) // 2))
        return cls.of(np.full((n, p), np.nan), np.full(n, np.inf), np.zeros(n, np.int64), status, curvature)

    @classmethod
    def of(
        cls,
        theta: Matrix,
        cost: Vector,
        steps: npt.NDArray[np.int64],
        status: npt.NDArray[np.int64],
        curvature: Matrix,
    ) -> Estimates:
        """Return estimates of which nothing more is known."""
        n, p = theta.shape
        inverse, free = np.full((n, p, p), np.nan), np.zeros((n, p), bool)
        response, spread = np.full((2, n), np.nan)
        return cls(theta, cost, steps, status, curvature, inverse, np.zeros(n), response, spread, free)

    @property
    def conclusive(self) -> Flags:
        """Which fits need no second attempt: they have converged, to where the data determine all parameters."""
        return (self.status > 0) & (self.pivot > DEPENDENT)

    def improve(self, rows: npt.NDArray[np.int64], other: Estimates) -> None:
        """Take the estimates of some rows that are better than what is known of them."""
        before = 2 * self.conclusive[rows] + (self.status[rows] > 0)
        after = 2 * other.conclusive + (other.status > 0)
        better = (after > before) | ((after == before) & (other.cost < self.cost[rows]))
        steps = self.steps[rows] + other.steps
        for field in dataclasses.fields(self):
            known, new = getattr(self, field.name), getattr(other, field.name)
            if better.all() and len(rows) == len(known):
                known[:] = new
            else:
                known[rows[better]] = new[better]
        self.steps[rows] = steps
        self.status[rows] = np.where(better, other.status, self.status[rows])


def polish(
    objective: Objective, series: Series, estimates: Estimates, lower: Matrix, upper: Matrix, dof: Vector
) -> None:
    """Add the last step of each fit, and write what its covariance follows from."""
    rows = np.flatnonzero(np.isfinite(estimates.theta).all(axis=1) & np.isfinite(estimates.cost))
    if not len(rows):
        return
    at_bound = (estimates.theta <= lower) | (estimates.theta >= upper)
    estimates.free[:] = ~at_bound
    known = gauss_newton_steps(
        objective, series.take(rows), estimates.theta[rows], estimates.free[rows], estimates.curvature[rows]
    )
    _record(estimates, rows, known)
    step, decrease = known.step, known.decrease
    for _ in range(_POLISH):
        s2 = 2.0 * estimates.cost[rows] / np.maximum(dof[rows], 1)
        trial = np.clip(estimates.theta[rows] + step, some_rows(lower, rows), some_rows(upper, rows))
        # Of columns of J that depend on one another, the step along what is not determined means nothing.
        good = (estimates.status[rows] > 0) & (estimates.pivot[rows] > DEPENDENT) & np.isfinite(step).all(axis=1)
        long = good & (decrease > _NEAR**2 * s2 + _rounding(estimates, rows) ** 2)
        last = good & ~long
        estimates.theta[rows[last]] = trial[last]
        estimates.cost[rows[last]] -= np.minimum(decrease[last], estimates.cost[rows[last]])
        rows, trial = rows[long], trial[long]
        if not len(rows):
            return
        # Of an ill-conditioned J, the normal equations have lost the digits of the step.
        known = gauss_newton_steps(objective, series.take(rows), trial, estimates.free[rows], estimates.curvature[rows])
        lower_cost = known.cost <= estimates.cost[rows]
        estimates.status[rows[~lower_cost]] = int(Status.STALLED)
        rows, known = rows[lower_cost], GaussNewton(*(column[lower_cost] for column in known))
        estimates.theta[rows] = trial[lower_cost]
        _record(estimates, rows, known)
        step, decrease = known.step, known.decrease
    estimates.status[rows] = int(Status.STALLED)


def _rounding(estimates: Estimates, rows: npt.NDArray[np.int64]) -> Vector:
    """Return what rounding leaves uncertain in the residuals of some fits, as the length of their vector."""
    i, j = np.tril_indices(estimates.theta.shape[1])
    size = (estimates.curvature[rows][:, i == j] * estimates.theta[rows] ** 2).sum(axis=1)
    level: Vector = 16 * np.finfo(float).eps * np.sqrt(estimates.response[rows] + size)
    return level


def mark_lost(
    objective: Objective, series: Series, estimates: Estimates, start: Matrix, lower: Matrix, upper: Matrix, way: Way
) -> None:
    """Mark fits in which a parameter has no effect any more, beside the effect that it had at the start.

    An amplitude that ended at 0 leaves a rate undetermined, whose column of J is rounding.
    """
    i, j = np.tril_indices(start.shape[1])
    squares = estimates.curvature[:, i == j]
    size = np.maximum(np.abs(estimates.theta), np.abs(start)) ** 2
    response = estimates.response[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        slight = estimates.free & (squares * size <= 1e-24 * response)
    rows = np.flatnonzero((estimates.status > 0) & slight.any(axis=1))
    if len(rows):
        limits = some_rows(lower, rows), some_rows(upper, rows)
        begin = Tolerance(most=0, way=dataclasses.replace(way, linear=()))
        begun = minimise(objective, series.take(rows), start[rows], *limits, tolerance=begin)
        lost = slight[rows] & (squares[rows] <= _NOTHING**2 * begun.curvature[:, i == j])
        estimates.pivot[rows[lost.any(axis=1)]] = 0.0


def _record(estimates: Estimates, rows: npt.NDArray[np.int64], known: GaussNewton) -> None:
    for name in ("cost", "inverse", "pivot", "response", "spread"):
        getattr(estimates, name)[rows] = getattr(known, name)


def unscaled_covariance(estimates: Estimates) -> npt.NDArray[np.float64]:
    """Return (JᵀJ)⁻¹ of each fit, infinite for parameters that a direction unseen by the data moves."""
    rows = np.flatnonzero((estimates.status > 0) & (estimates.pivot <= DEPENDENT))
    inverse = estimates.inverse.copy() if len(rows) else estimates.inverse
    for row in rows:
        free = estimates.free[row]
        gram = square(estimates.curvature[row][None])[0][np.ix_(free, free)]
        scale = np.sqrt(np.where(np.diag(gram) > 0, np.diag(gram), 1.0))
        values, vectors = np.linalg.eigh(gram / scale / scale[:, None])
        seen = values > DEPENDENT * max(values[-1], DEPENDENT)
        half = vectors[:, seen] / np.sqrt(values[seen]) / scale[:, None]
        block = half @ half.T
        unseen = np.abs(vectors[:, ~seen]).max(axis=1, initial=0.0) > 1e-6
        block[unseen, :] = np.inf
        block[:, unseen] = np.inf
        inverse[row] = 0.0
        inverse[row][np.ix_(free, free)] = block
    return inverse


def determined(estimates: Estimates, rows: npt.NDArray[np.int64], first: int) -> Flags:
    """Return which of the `first` parameters are free in some fits, and determined beside those before them, (n, p)."""
    free: Flags = estimates.free[rows]
    for i in np.flatnonzero(estimates.pivot[rows] <= DEPENDENT):
        gram = square(estimates.curvature[rows[i]][None])[0]
        kept: list[int] = []
        for j in range(first):
            left = gram[j, j]
            if kept and left > 0:
                beside = gram[np.ix_(kept, kept)]
                scale = np.sqrt(beside.diagonal())
                share = np.linalg.lstsq(beside / scale / scale[:, None], gram[kept, j] / scale, rcond=DEPENDENT)[0]
                left -= share @ (gram[kept, j] / scale)
            if free[i, j] and left > DEPENDENT * gram[j, j]:
                kept.append(j)
            else:
                free[i, j] = False
    return free


def dependent_on_own(curvature: Matrix, free: Flags, n_own: int) -> Flags:
    """Return which shared parameters have a column of J in the span of those of the own parameters, (n, p - n_own)."""
    gram = square(curvature)
    scale = np.sqrt(np.einsum("nii->ni", gram))
    scale = np.where(scale > 0, scale, 1.0)
    gram = gram / scale[:, :, None] / scale[:, None, :]
    mask = free[:, :n_own]
    inner = np.where(mask[:, :, None] & mask[:, None, :], gram[:, :n_own, :n_own], np.eye(n_own))
    mixed = np.where(mask[:, :, None], gram[:, :n_own, n_own:], 0.0)
    finite = np.isfinite(inner).all(axis=(1, 2)) & np.isfinite(mixed).all(axis=(1, 2))
    remainder = np.ones((len(gram), gram.shape[1] - n_own))
    coefficients = np.linalg.pinv(inner[finite], rcond=DEPENDENT, hermitian=True) @ mixed[finite]
    remainder[finite] = 1.0 - (mixed[finite] * coefficients).sum(axis=1)
    dependent: Flags = remainder <= DEPENDENT
    return dependent


def some_rows(limits: Matrix, rows: npt.NDArray[np.int64]) -> Matrix:
    return limits if len(limits) == 1 else limits[rows]
