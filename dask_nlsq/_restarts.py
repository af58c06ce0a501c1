r"""Restarts: other starts for a fit that ended where the model does not explain the data.

A fit goes where its start leads, and a start may lie where the model says nothing: beside a peak, at a frequency that
is not there, beyond a pole. Where an end leaves structure in the residuals, the cost is looked up at many points that
are drawn from the ranges of the data, with the parameters in which the model is linear at their best, and the lowest
few of them are followed. A lower minimum is taken where it explains the data and the first end did not, or where the
first was no success.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.optimize import OptimizeResult

from dask_nlsq._errors import ModelError, NlsqError
from dask_nlsq._lockstep import fitted, lockstep
from dask_nlsq._minimise import minimise
from dask_nlsq._numerics import kernel
from dask_nlsq._numerics.block import Block, lay
from dask_nlsq._numerics.reduction import Reduction
from dask_nlsq._numerics.solver.trust_region import State, TrustRegion, final
from dask_nlsq._numerics.starts import draw_in_units
from dask_nlsq._numerics.status import Status
from dask_nlsq._problem import Problem
from dask_nlsq._progress import Progress
from dask_nlsq._refusal import reason
from dask_nlsq._sample import Sample, draw_sample
from dask_nlsq._structure import explains_nothing, in_order, leaves_some, residuals, structured
from dask_nlsq._sweep import Group, Ledger, Serial
from dask_nlsq._typing import Matrix, Vector

ROWS = 2048
"""Rows of the sample that is asked, at most."""

DRAWS = 512
"""Points at which the cost is looked up."""

FOLLOWED = 8
"""Points that are followed to where they lead."""

_BY_DIFFERENCES = (128, 3)
"""The same, where the model is one of NumPy and each step needs many evaluations of it."""

_MOST = 60
"""Sweeps of the sample after which such a fit is given up."""

_UNLIKELY, _LIKELY = 1e-6, 1e-3
"""Probability of the statistic, were the residuals noise, below which an end does not explain the data, and from which
another one does."""

_LARGEST = 1e280
"""Sum of squares beyond which a point is left out: what is made of it may be beyond float64."""

_LOWER = 1e-6
"""Relative decrease of the cost that makes another minimum lower."""

_LIMITS = (Status.CALLBACK, Status.TIME_LIMIT, Status.MAX_NFEV, Status.PRECISION, Status.STREAMED)


def restart(
    problem: Problem,
    solver: TrustRegion,
    state: State,
    sample: Sample | None,
    bar: Progress,
    deadline: float | None,
    callback: Callable[[OptimizeResult], Any] | None,
) -> tuple[State, list[float], tuple[str, ...]]:
    """Return the state, or a lower one from another start where this one does not explain the data.

    Returns
    -------
    State, list of float, tuple of str
        The state, the seconds of further sweeps over all rows, and what there is to be said.
    """
    if state.status is None or state.status in _LIMITS or state.point is None:
        return state, [], ()
    fault, block = _fault(state), None
    at_hand = sample is not None or problem.plan.cache != "none"  # what is not held is read in sweeps only
    if fault is not None or at_hand:
        block = in_order(_rows(problem, sample))
        if not block.rows:  # those that were drawn hold none
            return state, [], ()
        if fault is None and leaves_some(state.point.reduction):
            if structured(problem.objective, block, state.point.theta) < _UNLIKELY:
                fault = "The fit left structure in the residuals"
    if fault is None or block is None:
        return state, [], ()
    left = solver.max_nfev - state.nsweeps
    if left <= 0:
        return _to_go_on(state), [], (f"{fault}; no sweeps were left to look elsewhere.",)
    better, tried = _look(problem, solver, state, block, bar, deadline)
    if _late(deadline):
        return state, [], (f"{fault}; the time limit ended the look at other starts.",)
    if better is None:
        return state, [], (f"{fault}; {tried} other starts were tried on {block.rows:,} rows, and none explains more.",)
    try:
        second, seconds = minimise(problem, dataclasses.replace(solver, max_nfev=left), better, bar, deadline, callback)
    except ModelError:  # not finite on rows that were not drawn
        return state, [], (f"{fault}; a start that explains more of {block.rows:,} rows is none for all of them.",)
    if second.status in (Status.TIME_LIMIT, Status.CALLBACK):
        note = f"{fault}; a start that explains more was left when the fit was stopped."
        return dataclasses.replace(state, status=second.status, beyond=state), seconds, (note,)
    if second.status is Status.MAX_NFEV:
        return _to_go_on(state), [], (f"{fault}; the sweeps that were left did not suffice to go on elsewhere.",)
    history = (*state.history, *second.history)
    lower = second.point is not None and second.point.reduction.cost < (1 - _LOWER) * state.point.reduction.cost
    if not lower:
        return dataclasses.replace(state, history=history), seconds, (f"{fault}; another start led nowhere lower.",)
    note = f"{fault} from the first start. One of {tried} other starts led lower, and was taken."
    return dataclasses.replace(second, history=history, beyond=None), seconds, (note,)


def begin_elsewhere(
    problem: Problem, solver: TrustRegion, theta: Vector, sample: Sample | None, bar: Progress, deadline: float | None
) -> tuple[list[Vector], str]:
    """Return starts for a fit that cannot begin at `theta` (p,), where the model is not finite, and what to say.

    They are where the lowest few of the points that are drawn lead on a sample of the rows, the lowest first.
    """
    block = in_order(_rows(problem, sample))
    if not block.rows:
        return [], ""
    small, quick = _on_rows(problem, solver, block)
    points = _draw(problem, block)
    found = _follow(small, quick, points, bar, deadline)
    if not found:
        return [], ""
    return [end for end, _ in found], f"{reason(problem, theta)} One of {len(points)} other starts was taken."


def _to_go_on(state: State) -> State:
    """Return a state that is tried from other starts where a limit is wider."""
    return dataclasses.replace(state, beyond=state.beyond or state)


def _rows(problem: Problem, sample: Sample | None) -> Block:
    """Return some rows that are at hand, or are drawn."""
    if sample is None:
        sample = draw_sample(problem.executor, problem.groups, len(problem.source.partitions), ROWS)
    block = sample.block.wide()
    if block.rows > ROWS:
        block = block.take(np.sort(np.random.default_rng(0).choice(block.rows, ROWS, replace=False)))
    return block


def _fault(state: State) -> str | None:
    """Return what the sums say is wrong with an end, in words; None where nothing is."""
    assert state.point is not None and state.status is not None
    if not state.status.success:
        return f"The fit ended as {state.status.name}"
    reduction = state.point.reduction
    if not leaves_some(reduction):
        return None
    if explains_nothing(reduction, state.point.factor.p):
        return "The fit explains no more than a constant"
    if not state.point.factor.r.any(axis=0).all():
        return "Some parameters move nothing where the fit ended"
    return None


def _look(
    problem: Problem, solver: TrustRegion, state: State, block: Block, bar: Progress, deadline: float | None
) -> tuple[Vector | None, int]:
    """Return a start that leads to a lower end on the rows, where there is one, and how many were tried."""
    assert state.point is not None and state.status is not None
    small, quick = _on_rows(problem, solver, block)
    points = _draw(problem, block)
    tried = np.concatenate([state.history[0].theta[None], points])
    found = _follow(small, quick, tried, bar, deadline, first=state.point.theta)
    here = _cost(small, quick, state.point.theta)
    parameters = problem.parameters
    believed = state.status.success and (not parameters.guessed or bool(parameters.sampled))
    for theta, cost in found:
        if cost >= (1 - _LOWER) * here:
            break
        if not believed or structured(problem.objective, block, theta) > _LIKELY:
            return theta, len(tried)
    return None, len(tried)


def _on_rows(problem: Problem, solver: TrustRegion, block: Block) -> tuple[Problem, TrustRegion]:
    """Return the problem of some rows in this process, and a solver that ends soon."""
    small = dataclasses.replace(problem, executor=Serial(), groups=[Group(0, (lay([block])[0],))], ledger=Ledger())
    return small, dataclasses.replace(solver, tolerance=1e-3, ftol=None, xtol=None, gtol=None, max_nfev=_MOST)


def _follow(
    problem: Problem,
    solver: TrustRegion,
    points: Matrix,
    bar: Progress,
    deadline: float | None,
    first: Vector | None = None,
) -> list[tuple[Vector, float]]:
    """Return where the lowest few of the points lead, and `first` (p,), with the cost there, the lowest first."""
    levels, points = _levels(problem, solver, points, deadline)
    starts = [points[i] for i in _spread_out(levels, _numbers(problem)[1])]
    starts = starts if first is None else [first, *starts]
    ends = _ends(problem, solver, starts, bar, deadline)
    found = [final(end, solver.lower, solver.upper)[0] for end in ends if end is not None and end.status is not None]
    costs = [(theta, _cost(problem, solver, theta)) for theta in found]
    return sorted((end for end in costs if np.isfinite(end[1])), key=lambda end: end[1])


def _late(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() > deadline


def _reduce(problem: Problem, theta: Vector) -> Reduction:
    ((block,),) = [group.partitions for group in problem.groups]
    return kernel.reduce_block(problem.objective, block, theta, None)


def _cost(problem: Problem, solver: TrustRegion, theta: Vector) -> float:
    """Return the cost at a point, infinite where the model raises."""
    try:
        cost = _reduce(problem, theta).cost
    except Exception:  # whatever a model raises
        return float("inf")
    return cost + (0.0 if solver.prior is None else 0.5 * solver.prior.chisqr(theta))


def _ends(
    problem: Problem, solver: TrustRegion, starts: Sequence[Vector], bar: Progress, deadline: float | None
) -> list[State | None]:
    """Return how fits from some starts end, None for one whose model raises on the way."""
    try:
        return lockstep(problem, [fitted(solver, start, deadline) for start in starts], bar)
    except NlsqError:  # one at a time, then
        return [_end(problem, solver, start, bar, deadline) for start in starts]


def _end(problem: Problem, solver: TrustRegion, start: Vector, bar: Progress, deadline: float | None) -> State | None:
    try:
        return lockstep(problem, [fitted(solver, start, deadline)], bar)[0]
    except NlsqError:
        return None


def _levels(problem: Problem, solver: TrustRegion, points: Matrix, deadline: float | None) -> tuple[Vector, Matrix]:
    """Return the cost at points (k, p) with the linear parameters at their best, and the points with them there.

    It is infinite where it is not finite, and where it is too late.
    """
    if _plain(problem):
        costs = [np.inf if _late(deadline) else _residual_cost(problem, solver, theta) for theta in points]
        return np.where(np.isfinite(costs), costs, np.inf), points
    grams = _grams(problem, points, deadline)
    known = np.isfinite(grams).all(axis=(1, 2)) & (np.abs(grams).max(axis=(1, 2)) <= _LARGEST)
    levels, best = np.full(len(points), np.inf), points.copy()
    levels[known], best[known] = solver.relaxed(points[known], grams[known])
    return levels, best


def _grams(problem: Problem, points: Matrix, deadline: float | None) -> Matrix:
    """Return the sums at points, (k, p + 1, p + 1); NaN where the model raises, and where it is too late."""
    objective = problem.objective
    if objective.jacobian == "numeric" or objective.robust:
        return np.stack([_gram(problem, theta, deadline) for theta in points])
    ((block,),) = [group.partitions for group in problem.groups]
    found = kernel.grams(objective, block, points)
    for i in np.flatnonzero(np.isfinite(found[:, -1, -1]) & ~np.isfinite(found).all(axis=(1, 2))):
        found[i] = _gram(problem, points[i], deadline)  # with differences for what is not finite
    return found


def _gram(problem: Problem, theta: Vector, deadline: float | None) -> Matrix:
    size = len(theta) + 1
    found = np.full((size, size), np.nan)
    if _late(deadline):
        return found
    try:
        reduction = _reduce(problem, theta)
    except Exception:  # whatever a model raises
        return found
    found[:] = reduction.gram
    found[-1, -1] = 2.0 * reduction.cost  # of a robust loss
    return found


def _plain(problem: Problem) -> bool:
    """Whether the cost at a point is that of the residuals there, for derivatives are differences, which cost more."""
    return problem.objective.jacobian == "numeric" and problem.objective.jac is None and not problem.objective.robust


def _residual_cost(problem: Problem, solver: TrustRegion, theta: Vector) -> float:
    ((block,),) = [group.partitions for group in problem.groups]
    believed = 0.0 if solver.prior is None else solver.prior.chisqr(theta)
    try:
        with np.errstate(all="ignore"):
            return 0.5 * float(np.sum(residuals(problem.objective, block, theta) ** 2) + believed)
    except Exception:  # whatever a model raises
        return float("inf")


def _spread_out(levels: Vector, most: int) -> list[int]:
    """Return the places of the lowest few points, no two of which have the same cost."""
    chosen: list[int] = []
    for i in np.argsort(levels, kind="stable").tolist():
        if len(chosen) == most or not np.isfinite(levels[i]):
            break
        if all(abs(levels[i] - levels[j]) > 1e-3 * levels[i] for j in chosen):
            chosen.append(i)
    return chosen


def _draw(problem: Problem, block: Block) -> Matrix:
    parameters = problem.parameters
    return draw_in_units(_numbers(problem)[0], parameters.lower, parameters.upper, parameters.start, block)


def _numbers(problem: Problem) -> tuple[int, int]:
    """Return at how many points the cost is looked up, and how many are followed."""
    return _BY_DIFFERENCES if _plain(problem) else (DRAWS, FOLLOWED)
