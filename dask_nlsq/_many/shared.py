r"""Shared parameters of many series: one fit of all, in which each series eliminates its own parameters.

With the shared parameters s at trial values, each series is fitted by itself; what is left of its Jacobian and its
residuals once its own parameters are eliminated is summed, and the sums are what the trust region of `fit` sees of s:

.. math:: \min_s \sum_g \min_{u_g} \tfrac12 \|r_g(s, u_g)\|^2

Only these sums, of the size of s, leave a worker, and they are exact, so that neither chunks nor their order change a
bit. The state of each series remains with its chunk, and the next sweep goes on from it.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import dask
import numpy as np
from dask.delayed import Delayed, delayed

from dask_nlsq._errors import DataError, warn
from dask_nlsq._fit import build_combined
from dask_nlsq._kernel import ExactSum, Reduction
from dask_nlsq._many.estimates import Flags
from dask_nlsq._many.task import Shared, Task, indices
from dask_nlsq._result import FitResult
from dask_nlsq._solver import State, Status, TrustRegion, final, inference
from dask_nlsq._sweep import Payload, serialize
from dask_nlsq._typing import Matrix, Vector

log = logging.getLogger("dask_nlsq")

Rows = tuple[Matrix, Mapping[str, Matrix]]
"""Series of one length, (n, points), and what each has of its own, as `Task` takes them."""

_SWEEPS = 200
"""Most sweeps; an ordinary fit takes ten."""

_RESTARTS = 5
"""How often the fit goes on with series that had no model before."""

_FAN_IN = 16
"""Sums that are added in one task."""


class SeriesState(NamedTuple):
    """What is known of the series of one chunk between two sweeps."""

    theta: Matrix  # (n, p), where each begins next; NaN where that is not known
    included: Flags  # (n,), whether it takes part


Reduced = tuple[list[SeriesState], ExactSum]
"""The states of the series of a chunk, a list by their lengths, and what they say of the shared parameters in sum."""


class Totals(NamedTuple):
    """Columns of what is summed over series, in order, each with its number of entries for q shared parameters."""

    series: float  # that take part
    points: float
    dof: float  # points, less the own parameters that are free
    cost: float
    weight: float  # Σ w²
    response: float  # Σ w² (y − reference)
    square: float  # of the mean of each series less the reference, times its weight
    spread: float  # Σ w² (y − mean of the series)²
    log_weight: float
    left_out: float  # series that have enough points, and no finite model or derivative
    gram: Matrix  # (q + 1, q + 1)
    curvature: Matrix  # (q, q)

    @classmethod
    def of(cls, sums: Vector, q: int) -> Totals:
        """Return the columns by name."""
        scalars, gram, curvature = np.split(sums, [_SCALARS, _SCALARS + (q + 1) ** 2])
        named = dict(zip(cls._fields, scalars.tolist(), strict=False))
        return cls(**named, gram=gram.reshape(q + 1, q + 1), curvature=curvature.reshape(q, q))

    def reduction(self, robust: bool, reference: float) -> Reduction:
        """Return what the solver sees, whose rows are those that the own parameters leave over."""
        away = self.response / self.weight if self.weight > 0 else 0.0
        return Reduction(
            rows=round(self.dof) if math.isfinite(self.dof) else 0,
            dropped=0,
            cost=self.cost,
            gram=self.gram,
            weight=self.weight,
            mean=reference + away,
            response_sum_of_squares=max(self.spread + self.square - self.weight * away**2, 0.0),
            log_weight=self.log_weight,
            sums=np.zeros(0),
            checksum=np.zeros(0, np.uint64),
            curvature=self.curvature if robust else None,
        )


_SCALARS = len(Totals._fields) - 2
"""Numbers of `Totals` besides its two matrices."""


def reduce_chunk(
    rows: Sequence[Rows],
    before: Reduced | None,
    payload: Payload,
    values: Vector,
    s: Matrix,
    reference: float,
    decide: bool,
) -> Reduced:
    """Fit the series of a chunk with the shared parameters fixed, and sum what they say of them.

    Parameters
    ----------
    rows : sequence
        The series, of one length in each.
    before : tuple, optional
        What this has returned for the same chunk.
    values : ndarray (q,)
        Of the shared parameters.
    s : ndarray (q, q)
        By which their columns of J are multiplied.
    reference : float
        A response about which the moments of y keep their digits.
    decide : bool
        Whether it is decided here which series take part.
    """
    task: Task = payload.value
    states, sums = [], _no_sums(task)
    for i, (y, given) in enumerate(rows):
        now, part = _reduce_rows(task, y, given, None if before is None else before[0][i], values, s, reference, decide)
        states.append(now)
        sums = sums + part
    return states, sums


def _no_sums(task: Task) -> ExactSum:
    q = task.n_shared
    return ExactSum.of(np.zeros((0, _SCALARS + (q + 1) ** 2 + q**2)))


def _reduce_rows(
    task: Task,
    y: Matrix,
    given: Mapping[str, Matrix],
    before: SeriesState | None,
    values: Vector,
    s: Matrix,
    reference: float,
    decide: bool,
) -> tuple[SeriesState, ExactSum]:
    """Return the states of series of one length, and what they say of the shared parameters in sum."""
    start = given.get("start", np.full((len(y), len(task.free)), np.nan))
    if before is not None:
        given = {**given, "start": before.theta}
    fitted = task.fit(y, task.with_shared(y, given, values))
    estimates = fitted.estimates
    finite = (
        np.isfinite(estimates.cost)
        & np.isfinite(estimates.theta).all(axis=1)
        & (estimates.status != int(Status.NOT_FINITE))
    )
    enough = estimates.status != int(Status.TOO_FEW)
    # A series whose own parameters are given as NaN begins at infinity, and is not to be fitted.
    enough &= ~np.isinf(start).any(axis=1)
    included = finite & enough if before is None or decide else before.included
    theta = np.where((estimates.status > 0)[:, None], estimates.theta, start)
    rows = np.flatnonzero(included)
    if not len(rows):
        return SeriesState(theta, included), _count_left_out(task, enough)
    if not finite[rows].all():  # the solver refuses the values
        return SeriesState(theta, included), ExactSum.of(np.full((1, _no_sums(task).finite.size), np.nan))
    eliminated = task.eliminate(fitted, rows)
    turned = np.swapaxes(eliminated.root, 1, 2) @ s  # J_s S is what these are of nearly orthonormal columns
    back = np.swapaxes(turned, 1, 2)
    series = fitted.series.take(rows)
    w2 = np.broadcast_to(series.weight**2, (len(rows), y.shape[1]))
    y = series.y - reference
    weight, response = w2.sum(axis=1), (w2 * y).sum(axis=1)
    mean = np.divide(response, weight, out=np.zeros(len(rows)), where=weight > 0)
    with np.errstate(divide="ignore"):
        logs = np.where(w2 > 0, 0.5 * np.log(w2), 0.0).sum(axis=1)
    scalars = (
        np.ones(len(rows)),
        fitted.points[rows],
        fitted.points[rows] - np.count_nonzero(estimates.free[rows, : task.n_own], axis=1),
        eliminated.cost,
        weight,
        response,
        weight * mean**2,
        (w2 * (y - mean[:, None]) ** 2).sum(axis=1),
        logs,
        np.zeros(len(rows)),
    )
    gram = np.zeros((len(rows), task.n_shared + 1, task.n_shared + 1))
    gram[:, :-1, :-1] = back @ eliminated.inner @ turned
    gram[:, :-1, -1] = gram[:, -1, :-1] = (back @ eliminated.gradient[:, :, None])[:, :, 0]
    gram[:, -1, -1] = 2.0 * eliminated.cost
    curved = back @ eliminated.curved @ turned
    parts = [np.stack(scalars, axis=1), *(a.reshape(len(rows), a[0].size) for a in (gram, curved))]
    each = np.concatenate(parts, axis=1)
    if decide:  # a series without a derivative at the start takes no part either
        good = np.isfinite(each).all(axis=1)
        included[rows[~good]] = False
        each = each[good]
    return SeriesState(theta, included), ExactSum.of(each) + _count_left_out(task, enough & ~included)


def _count_left_out(task: Task, left_out: Flags) -> ExactSum:
    """Return sums that count these series, and of which all else is 0."""
    count = np.zeros((1, _no_sums(task).finite.size))
    count[0, Totals._fields.index("left_out")] = np.count_nonzero(left_out)
    return ExactSum.of(count)


@dataclasses.dataclass(frozen=True)
class Chunks:
    """Series in chunks, each a delayed list of rows, and who computes."""

    rows: Sequence[Delayed]
    computing: Callable[[], AbstractContextManager[None]]
    scheduler: str | None = None

    def sweep(
        self, work: Callable[..., Any], states: Sequence[Any] | None, *arguments: Any
    ) -> tuple[list[Delayed], ExactSum]:
        """Do the work on every chunk; return what each keeps for the next sweep, where it lies, and the sum of all."""
        before = states or [None] * len(self.rows)
        lazy = [delayed(work)(rows, state, *arguments) for rows, state in zip(self.rows, before, strict=True)]
        with self.computing():
            kept = list(dask.persist(*lazy, scheduler=self.scheduler))
            level = [delayed(_sum_of)([state]) for state in kept]
            while len(level) > 1:
                level = [delayed(_total)(level[i : i + _FAN_IN]) for i in range(0, len(level), _FAN_IN)]
            (total,) = dask.compute(*level, scheduler=self.scheduler)
        return kept, total


def _sum_of(states: Sequence[tuple[Any, ExactSum]]) -> ExactSum:
    ((_, total),) = states
    return total


def _total(sums: Sequence[ExactSum]) -> ExactSum:
    return functools.reduce(ExactSum.__add__, sums)


def estimate(task: Task, chunks: Chunks) -> tuple[Shared, FitResult, list[Delayed]]:
    """Fit the parameters that all series share, with those of each at their best.

    Parameters
    ----------
    task : Task
        With shared parameters. Where nobody says at which values they begin, each series is fitted by itself first, and
        they begin at the mean of its estimates.

    Returns
    -------
    Shared, FitResult, list of Delayed
        The estimates, the same with all that a fit says of itself, and the states of the series of each chunk.
    """
    payload, begun = serialize(task), time.perf_counter()
    start, lower, upper = (each[task.n_own :] for each in (task.start, task.lower, task.upper))
    if task.alone is not None:
        given = np.array([name not in task.guessed for name in task.free[task.n_own :]])
        mean = _mean_estimates(task.alone, chunks, task.n_shared, start)
        start = np.clip(np.where(given, start, mean), lower, upper)
    solver = TrustRegion(lower, upper, absolute_sigma=task.absolute_sigma, max_nfev=_SWEEPS)
    state, totals, kept, seconds = _solve(task, payload, chunks, solver, start)
    for _ in range(_RESTARTS):
        if not totals.left_out or not state.ending.success:
            break
        # Series that have no model at the start may have one at the estimates.
        again = _solve(task, payload, chunks, solver, final(state, lower, upper)[0], kept)
        if not again[0].ending.success or again[1].left_out >= totals.left_out:
            break
        state, totals, kept, seconds = again
    if totals.left_out:
        warn(
            f"{round(totals.left_out):,} series take no part in the fit of {', '.join(task.free[task.n_own :])}: their "
            "model is not finite at the start, nor at the estimates of the others. Begin elsewhere with p0, or leave "
            "them out."
        )
    shared, result = _result(task, solver, state, totals, seconds, time.perf_counter() - begun, len(chunks.rows))
    return shared, result, kept


def _solve(
    task: Task,
    payload: Payload,
    chunks: Chunks,
    solver: TrustRegion,
    start: Vector,
    kept: list[Delayed] | None = None,
) -> tuple[State, Totals, list[Delayed], list[float]]:
    """Fit from a start, the series from the states that are kept; return the last state, sums, states and seconds."""
    state, seconds, reference = solver.init(start), list[float](), 0.0
    totals: Totals | None = None
    while not solver.terminate(state):
        clock = time.perf_counter()
        request = solver.request(state)
        s = np.eye(task.n_shared) if request.whitening is None else request.whitening.s
        states, sums = chunks.sweep(reduce_chunk, kept, payload, request.theta, s, reference, not seconds)
        now = Totals.of(sums.rounded(), task.n_shared)
        if totals is None and not now.series > 0:
            raise DataError(
                "None of the series can be fitted at the start: each has fewer points than parameters of its own, or "
                "the model is not finite there. Give p0, or fit without shared=: the status of each series says why."
            )
        reduction = now.reduction(task.objective.robust, reference)
        state = solver.step(state, reduction)
        reference = reference or reduction.mean
        seconds.append(time.perf_counter() - clock)
        last = state.history[-1]
        log.info("sweep %d: cost %.10g, %.3g standard errors remain", last.sweep, last.cost, last.step)
        if np.array_equal(state.at.theta, request.theta):
            kept, totals = states, now
    if totals is None or kept is None:
        raise RuntimeError("No sweep was accepted.")
    return state, totals, kept, seconds


def _mean_estimates(alone: Task, chunks: Chunks, n_shared: int, start: Vector) -> Vector:
    """Return the mean of the estimates of all series, each fitted by itself, weighted by their precision."""
    place = [alone.model.parameters.index(name) for name in alone.free[-n_shared:]]
    _, sums = chunks.sweep(_estimates_alone, None, serialize(alone), tuple(place))
    weighted, weights = np.split(sums.rounded(), 2)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = weighted / weights
    return np.where(np.isfinite(mean), mean, start)


def _estimates_alone(rows: Sequence[Rows], _: None, payload: Payload, place: Sequence[int]) -> tuple[None, ExactSum]:
    task: Task = payload.value
    k, status = len(task.model.parameters), indices(task.model.parameters)["status"]
    sums = ExactSum.of(np.zeros((0, 2 * len(place))))
    for y, given in rows:
        figures = task(y, given)
        values, errors = figures[:, list(place)], figures[:, [k + i for i in place]]
        known = (figures[:, [status]] > 0) & np.isfinite(values) & (errors > 0) & np.isfinite(errors)
        weights = np.where(known, 1.0 / np.where(known, errors, 1.0) ** 2, 0.0)
        sums = sums + ExactSum.of(np.concatenate([weights * np.where(known, values, 0.0), weights], axis=1))
    return None, sums


def _result(
    task: Task, solver: TrustRegion, state: State, totals: Totals, seconds: list[float], total: float, partitions: int
) -> tuple[Shared, FitResult]:
    """Return what is known of the shared parameters at the end."""
    n_eliminated = round(totals.points - totals.dof)
    result = build_combined(
        task.free[task.n_own :],
        solver,
        state,
        dataclasses.replace(state.at.reduction, rows=round(totals.points)),
        seconds,
        total,
        (f"{round(totals.series):,} series, with {n_eliminated:,} parameters of their own, took part.",),
        {
            "model": task.model.name,
            "loss": task.objective.loss_name,
            "data": "series",
            "partitions": partitions,
            "executor": "dask",
        },
        n_eliminated,
    )
    s2 = result.statistics.residual_variance(solver.absolute_sigma)
    unscaled = inference.covariance(state.at.factor, 1.0, result.active_mask == 0)
    return Shared(result.popt, unscaled, s2, state.ending), result
