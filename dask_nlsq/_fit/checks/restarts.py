r"""Restarts: fits from other starts where the first one did not explain the data.

A start may lie beside a peak, at a wrong frequency or beyond a pole. Where the residuals of a fit are correlated, the
cost is evaluated at many points drawn from the ranges of the data, with the linear parameters at their optimum, and the
lowest few are fitted on a sample of the rows. A lower minimum replaces the first one where its residuals are noise, or
where the first fit was not a success.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import OptimizeResult

from dask_nlsq._errors import ModelError, NlsqError
from dask_nlsq._fit.checks.residual_tests import (
    count_costs,
    exceed_rounding,
    no_better_than_constant,
    noise_pvalue,
    sort_by_column,
    weighted_residuals,
)
from dask_nlsq._fit.loop import fitted, minimise, run_searches
from dask_nlsq._fit.non_finite import describe_not_finite
from dask_nlsq._fit.observer import Observer
from dask_nlsq._fit.problem import Problem
from dask_nlsq._fit.sample import Sample, draw_sample
from dask_nlsq._kernel import Block, Reduction, kernel, lay
from dask_nlsq._model import Objective
from dask_nlsq._solver import STOPPED, State, Status, TrustRegion, draw_in_units, final
from dask_nlsq._typing import Matrix, Vector

ROWS = 2048
"""Largest number of rows in the sample."""

DRAWS = 512
"""Points at which the cost is evaluated."""

FOLLOWED = 8
"""Points from which the sample is fitted."""

_COUNTS_BY_DIFFERENCES = (128, 3)
"""Both numbers for a model with a Jacobian of finite differences, each of which takes many evaluations."""

_MOST = 60
"""Largest number of sweeps of such a fit."""

_UNLIKELY, _LIKELY = 1e-6, 1e-3
"""p-values below which the residuals of a fit count as correlated, and above which those of another count as noise."""

_LARGEST = 1e280
"""Largest sum of squares of a point that is considered; products of larger ones may overflow."""

_LOWER = 1e-6
"""Smallest relative decrease of the cost that counts as a lower minimum."""

_LIMITS = (Status.CALLBACK, Status.TIME_LIMIT, Status.MAX_NFEV, Status.PRECISION, Status.STREAMED)


_NO_BETTER = "The fit explains no more than a constant"


def restart(
    problem: Problem,
    solver: TrustRegion,
    state: State,
    sample: Sample | None,
    observer: Observer,
    deadline: float | None,
    callback: Callable[[OptimizeResult], Any] | None,
) -> tuple[State, list[float], tuple[str, ...]]:
    """Return the state of a fit, or that of a fit from another start where the first does not explain the data.

    Returns
    -------
    State, list of float, tuple of str
        The state, the seconds of further sweeps over all rows, and notes for the result.
    """
    if state.status is None or state.status in _LIMITS or state.point is None:
        return state, [], ()
    doubt, block = _reason_to_doubt(problem.objective, state), None
    at_hand = sample is not None or problem.plan.cache != "none"  # partitions that are not kept are read in sweeps only
    if doubt is not None or at_hand:
        block = _sorted_rows(problem, sample)
        if not block.rows:  # the sampled partitions are empty
            return state, [], ()
        if doubt is None and problem.objective.counts:
            costs = count_costs(problem.objective, block, state.point.theta)
            if no_better_than_constant(block.rows, *costs, state.point.factor.p):
                doubt = _NO_BETTER
        if doubt is None and exceed_rounding(state.point.reduction):
            if noise_pvalue(problem.objective, block, state.point.theta) < _UNLIKELY:
                doubt = "The fit left structure in the residuals"
    if doubt is None or block is None:
        return state, [], ()
    left = solver.max_nfev - state.nsweeps
    if left <= 0:
        return resumable(state), [], (f"{doubt}; max_nfev left no sweeps for other starts.",)
    better, tried = _find_lower_minimum(problem, solver, state, block, observer, deadline)
    if past_deadline(deadline):
        return resumable(state), [], (f"{doubt}; the time limit was reached before other starts had been tried.",)
    if better is None:
        note = f"{doubt}; none of {tried} other starts, tried on {block.rows:,} rows, explains more."
        return state, [], (note,)
    try:
        second, seconds = minimise(
            problem, dataclasses.replace(solver, max_nfev=left), better, observer, deadline, callback
        )
    except ModelError:  # not finite on rows outside the sample
        note = f"{doubt}; a start with a lower cost on {block.rows:,} rows is not finite on all of them."
        return state, [], (note,)
    if second.status is Status.MAX_NFEV:
        return resumable(state), [], (f"{doubt}; max_nfev did not suffice for a fit from another start.",)
    history, lower = (*state.history, *second.history), second.lowest < (1 - _LOWER) * state.lowest
    if second.status in STOPPED:
        stopped = second if lower else dataclasses.replace(state, status=second.status, beyond=state)
        note = f"{doubt} from the first start; the fit from one of {tried} other starts was stopped."
        return dataclasses.replace(stopped, history=history), seconds, (note,)
    if not lower:
        note = f"{doubt}; a fit from another start did not reach a lower cost."
        return dataclasses.replace(state, history=history), seconds, (note,)
    note = f"{doubt} from the first start; one of {tried} other starts led to a lower cost and was used instead."
    return dataclasses.replace(second, history=history, beyond=None), seconds, (note,)


def find_finite_starts(
    problem: Problem,
    solver: TrustRegion,
    theta: Vector,
    sample: Sample | None,
    observer: Observer,
    deadline: float | None,
) -> tuple[list[Vector], str]:
    """Return starts in place of `theta` (p,), where the model is not finite, and a note.

    They are the minima on a sample of the rows that the lowest few points lead to, the lowest first; there are none
    where the model is finite at none of the points.
    """
    block = _sorted_rows(problem, sample)
    if not block.rows:
        return [], ""
    small, quick = _sample_problem(problem, solver, block)
    points = _draw_points(problem, block)
    minima = _refine_lowest(small, quick, points, observer, deadline)
    if not minima:
        return [], ""
    return [
        end for end, _ in minima
    ], f"{describe_not_finite(problem, theta)} One of {len(points)} other starts was used."


def resumable(state: State) -> State:
    """Return a state from which a run with a wider limit goes on."""
    return dataclasses.replace(state, beyond=state.beyond or state)


def _sorted_rows(problem: Problem, sample: Sample | None) -> Block:
    """Return some rows in the order of x."""
    block = _rows(problem, sample)
    return sort_by_column(block, block.x[: problem.objective.n_inputs])


def _rows(problem: Problem, sample: Sample | None) -> Block:
    """Return the sample of the fit, or one that is drawn now, with at most `ROWS` rows."""
    if sample is None:
        sample = draw_sample(problem.executor, problem.groups, len(problem.source.partitions), ROWS)
    block = sample.block.wide()
    if block.rows > ROWS:
        block = block.take(np.sort(np.random.default_rng(0).choice(block.rows, ROWS, replace=False)))
    return block


def _reason_to_doubt(objective: Objective, state: State) -> str | None:
    """Return why the last reduction gives cause to try other starts; None where it gives none."""
    if not state.ending.success:
        return f"The fit ended as {state.ending.name}"
    reduction = state.at.reduction
    if not exceed_rounding(reduction):
        return None
    squares = reduction.response_sum_of_squares
    if not objective.counts and no_better_than_constant(
        reduction.rows, reduction.cost, 0.5 * squares, state.at.factor.p
    ):
        return _NO_BETTER
    if not state.at.factor.r.any(axis=0).all():
        return "Some parameters have no effect where the fit ended"
    return None


def _find_lower_minimum(
    problem: Problem, solver: TrustRegion, state: State, block: Block, observer: Observer, deadline: float | None
) -> tuple[Vector | None, int]:
    """Return a lower minimum on the sample, where there is one, and how many starts were tried."""
    small, quick = _sample_problem(problem, solver, block)
    points = _draw_points(problem, block)
    tried = np.concatenate([state.history[0].theta[None], points])
    minima = _refine_lowest(small, quick, tried, observer, deadline, first=state.at.theta)
    current = _cost(small, quick, state.at.theta)
    parameters = problem.parameters
    # Of several peaks, the one that a given start points to is kept: a lower minimum replaces it only where that
    # explains the rows.
    chosen = state.ending.success and (not parameters.guessed or bool(parameters.sampled))
    for theta, cost in minima:
        if cost >= (1 - _LOWER) * current:
            break
        if not chosen or noise_pvalue(problem.objective, block, theta) > _LIKELY:
            return theta, len(tried)
    return None, len(tried)


def _sample_problem(problem: Problem, solver: TrustRegion, block: Block) -> tuple[Problem, TrustRegion]:
    """Return the problem of the sample in this process, and a solver with a loose tolerance."""
    # Laid out as the kernel takes it, for these rows are swept hundreds of times.
    small = problem.in_memory(*lay([block]))
    return small, dataclasses.replace(solver, tolerance=1e-3, ftol=None, xtol=None, gtol=None, max_nfev=_MOST)


def _refine_lowest(
    problem: Problem,
    solver: TrustRegion,
    points: Matrix,
    observer: Observer,
    deadline: float | None,
    first: Vector | None = None,
) -> list[tuple[Vector, float]]:
    """Fit from the lowest few of the points, and from `first` (p,); return the minima and costs, the lowest first."""
    levels, points = _projected_costs(problem, solver, points, deadline)
    starts = [points[i] for i in _lowest_distinct(levels, _counts(problem)[1])]
    starts = starts if first is None else [first, *starts]
    ends = _fit_each(problem, solver, starts, observer, deadline)
    thetas = [final(end, solver.lower, solver.upper)[0] for end in ends if end is not None and end.status is not None]
    costs = [(theta, _cost(problem, solver, theta)) for theta in thetas]
    return sorted((end for end in costs if np.isfinite(end[1])), key=lambda end: end[1])


def past_deadline(deadline: float | None) -> bool:
    """Whether the time for a fit is over."""
    return deadline is not None and time.monotonic() > deadline


def _reduce(problem: Problem, theta: Vector) -> Reduction:
    ((block,),) = [group.partitions for group in problem.groups]
    return kernel.reduce_block(problem.objective, block, theta, None)


def _cost(problem: Problem, solver: TrustRegion, theta: Vector) -> float:
    """Return the cost at a point, infinite where the model raises."""
    try:
        cost = _reduce(problem, theta).cost
    except Exception:  # whatever the model raises
        return float("inf")
    return cost + (0.0 if solver.prior is None else 0.5 * solver.prior.chisqr(theta))


def _fit_each(
    problem: Problem, solver: TrustRegion, starts: Sequence[Vector], observer: Observer, deadline: float | None
) -> list[State | None]:
    """Return the last states of fits from some starts; None for one in which the model raised."""
    try:
        return run_searches(problem, [fitted(solver, start, deadline) for start in starts], observer)
    except NlsqError:  # the model raised in one of them
        return [_fit_one(problem, solver, start, observer, deadline) for start in starts]


def _fit_one(
    problem: Problem, solver: TrustRegion, start: Vector, observer: Observer, deadline: float | None
) -> State | None:
    try:
        return run_searches(problem, [fitted(solver, start, deadline)], observer)[0]
    except NlsqError:
        return None


def _projected_costs(
    problem: Problem, solver: TrustRegion, points: Matrix, deadline: float | None
) -> tuple[Vector, Matrix]:
    """Return the cost at points (k, p) with the linear parameters at their optimum, and the points with those values.

    The cost is infinite where the model is not finite, and after the deadline.
    """
    if _by_differences(problem):
        costs = [np.inf if past_deadline(deadline) else _residual_cost(problem, solver, theta) for theta in points]
        return np.where(np.isfinite(costs), costs, np.inf), points
    grams = _grams(problem, points, deadline)
    known = np.isfinite(grams).all(axis=(1, 2)) & (np.abs(grams).max(axis=(1, 2)) <= _LARGEST)
    levels, best = np.full(len(points), np.inf), points.copy()
    levels[known], best[known] = solver.projected_costs(points[known], grams[known])
    return levels, best


def _grams(problem: Problem, points: Matrix, deadline: float | None) -> Matrix:
    """Return the Gram matrices at points, (k, p + 1, p + 1); NaN where the model raises, and after the deadline."""
    objective = problem.objective
    if objective.jacobian == "numeric" or not objective.quadratic:
        return np.stack([_gram(problem, theta, deadline) for theta in points])
    ((block,),) = [group.partitions for group in problem.groups]
    grams = kernel.grams(objective, block, points)
    for i in np.flatnonzero(np.isfinite(grams[:, -1, -1]) & ~np.isfinite(grams).all(axis=(1, 2))):
        grams[i] = _gram(problem, points[i], deadline)  # with finite differences for derivatives that are not finite
    return grams


def _gram(problem: Problem, theta: Vector, deadline: float | None) -> Matrix:
    size = len(theta) + 1
    gram = np.full((size, size), np.nan)
    if past_deadline(deadline):
        return gram
    try:
        reduction = _reduce(problem, theta)
    except Exception:  # whatever the model raises
        return gram
    gram[:] = reduction.gram
    gram[-1, -1] = 2.0 * reduction.cost  # which of counts and robust losses is another than the sum of squares
    return gram


def _by_differences(problem: Problem) -> bool:
    """Whether the Jacobian is one of finite differences, so that only residuals are evaluated at the points."""
    return problem.objective.jacobian == "numeric" and problem.objective.jac is None and problem.objective.quadratic


def _residual_cost(problem: Problem, solver: TrustRegion, theta: Vector) -> float:
    ((block,),) = [group.partitions for group in problem.groups]
    believed = 0.0 if solver.prior is None else solver.prior.chisqr(theta)
    try:
        with np.errstate(all="ignore"):
            return 0.5 * float(np.sum(weighted_residuals(problem.objective, block, theta) ** 2) + believed)
    except Exception:  # whatever the model raises
        return float("inf")


def _lowest_distinct(levels: Vector, most: int) -> list[int]:
    """Return the indices of the lowest few costs, no two of which are equal to a part in a thousand."""
    chosen: list[int] = []
    for i in np.argsort(levels, kind="stable").tolist():
        if len(chosen) == most or not np.isfinite(levels[i]):
            break
        if all(abs(levels[i] - levels[j]) > 1e-3 * levels[i] for j in chosen):
            chosen.append(i)
    return chosen


def _draw_points(problem: Problem, block: Block) -> Matrix:
    parameters = problem.parameters
    return draw_in_units(_counts(problem)[0], parameters.lower, parameters.upper, parameters.start, block)


def _counts(problem: Problem) -> tuple[int, int]:
    """Return at how many points the cost is evaluated, and from how many the sample is fitted."""
    return _COUNTS_BY_DIFFERENCES if _by_differences(problem) else (DRAWS, FOLLOWED)
