r"""Restarts: other starts for a fit that ended where the model does not explain the data.

A fit goes where its start leads, and a start may lie where the model says nothing: beside a peak, at a frequency that
is not there, beyond a pole. Whether an end explains the data is asked of a sample of the rows, put in order of x and
cut into runs. Where the model holds, the residuals of a run are noise, so that fits of single runs gain no more than
noise gains:

.. math:: F = \frac{\sum_k |Q_k^T r_k|^2 / (Kp - p)}{(|r|^2 - \sum_k |Q_k^T r_k|^2) / (n - Kp)}

follows the F distribution (Chow 1960, doi:10.2307/1910133), :math:`Q_k` spanning the columns of the Jacobian of run k.
Where it does not, residuals of neighbours are alike too: the squared differences of their ranks sum up to less than
twice the squared deviations of the ranks (Bartels 1982, doi:10.1080/01621459.1982.10477764).

Where an end does not, the cost is looked up at many points that are drawn from the ranges of the data, with the
parameters in which the model is linear at their best, and the lowest few of them are followed. A lower minimum is taken
where it explains the data and the first end did not, or where the first was no success.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy import stats
from scipy.optimize import OptimizeResult

from dask_nlsq._errors import ModelError, NlsqError
from dask_nlsq._lockstep import fitted, lockstep
from dask_nlsq._minimise import minimise
from dask_nlsq._numerics import kernel
from dask_nlsq._numerics.block import Block, lay
from dask_nlsq._numerics.factor import factorise
from dask_nlsq._numerics.objective import Objective
from dask_nlsq._numerics.reduction import Reduction
from dask_nlsq._numerics.solver.trust_region import State, TrustRegion, final
from dask_nlsq._numerics.starts import draw_in_units
from dask_nlsq._numerics.status import Status
from dask_nlsq._problem import Problem
from dask_nlsq._progress import Progress
from dask_nlsq._refusal import reason
from dask_nlsq._sample import Sample, draw_sample
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

_RUNS = 12
"""Runs into which the rows are cut, at most: enough to see an oscillation, with enough rows in each."""

_FEW = 10
"""Rows below which their order says too little."""

_UNLIKELY, _LIKELY = 1e-6, 1e-3
"""Probability of the statistic, were the residuals noise, below which an end does not explain the data, and from which
another one does."""

_NOTHING = 0.01
"""R² up to which a model explains no more than a constant."""

_BY_CHANCE = 0.01
"""Probability from which what a model explains, beside a constant, may be chance."""

_LARGEST = 1e280
"""Sum of squares beyond which a point is left out: what is made of it may be beyond float64."""

_HIDDEN = 1e-12
"""Share of the cost at a point below which rounding hides what the linear parameters would leave of it."""

_ROUNDING = 1e-20
"""Cost beside the squares of y at which a model explains all there is."""

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
    if (
        fault is not None or sample is not None or problem.plan.cache != "none"
    ):  # what is not held is read in sweeps only
        block = _ordered(_rows(problem, sample))
        if not block.rows:  # those that were drawn hold none
            return state, [], ()
        if fault is None and _leaves(state) and structured(problem.objective, block, state.point.theta) < _UNLIKELY:
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
    block = _ordered(_rows(problem, sample))
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


def _ordered(block: Block) -> Block:
    """Return rows in the order of the column of x that has the most values."""
    most = max(block.x, key=lambda column: len(np.unique(column)))
    return block.take(np.argsort(most, kind="stable"))


def _leaves(state: State) -> bool:
    """Whether residuals are left that may have structure: more than rounding."""
    assert state.point is not None
    reduction = state.point.reduction
    return reduction.cost > _ROUNDING * (reduction.spread + reduction.weight * reduction.mean**2)


def _fault(state: State) -> str | None:
    """Return what the sums say is wrong with an end, in words; None where nothing is."""
    assert state.point is not None and state.status is not None
    if not state.status.success:
        return f"The fit ended as {state.status.name}"
    reduction = state.point.reduction
    if not _leaves(state):
        return None
    if _flat(reduction, state.point.factor.p):
        return "The fit explains no more than a constant"
    if not state.point.factor.r.any(axis=0).all():
        return "Some parameters move nothing where the fit ended"
    return None


def _flat(reduction: Reduction, p: int) -> bool:
    """Whether a model of p parameters explains no more than a constant does, by an F-test."""
    if p < 2 or not reduction.spread > 0:
        return False
    rest, gained = reduction.rows - p, 1.0 - 2.0 * reduction.cost / reduction.spread
    if rest <= 0:
        return gained < 0
    probability = stats.f.sf(max(gained, 0.0) / (p - 1) / max((1.0 - gained) / rest, _HIDDEN), p - 1, rest)
    return gained < _NOTHING or bool(probability > _BY_CHANCE)


def structured(objective: Objective, block: Block, theta: Vector) -> float:
    """Return how probable the residuals of rows in order of x are, were they noise; 1 where rows are too few to say."""
    if objective.robust:
        return 1.0
    return min(_runs(objective, block, theta), _neighbours(objective, block, theta))


def _neighbours(objective: Objective, block: Block, theta: Vector) -> float:
    """Return how probable it is that residuals of neighbours are no farther from each other in rank."""
    n = block.rows
    if n < _FEW:
        return 1.0
    residual = _residual(objective, block, theta)
    ranks = stats.rankdata(residual)
    spread = np.sum((ranks - ranks.mean()) ** 2)
    if not np.isfinite(residual).all() or spread == 0:
        return 1.0
    ratio = np.sum(np.diff(ranks) ** 2) / spread
    shape = 5.0 * n * (n + 1.0) * (n - 1.0) ** 2 / (2.0 * (n - 2.0) * (5.0 * n**2 - 2.0 * n - 9.0)) - 0.5
    return float(stats.beta.cdf(ratio / 4.0, shape, shape))


def _runs(objective: Objective, block: Block, theta: Vector) -> float:
    """Return how probable it is that fits of single runs gain no less."""
    p, n = objective.n_parameters, block.rows
    count = min(_RUNS, n // (2 * p + 2))
    if count < 3:
        return 1.0
    bounds = np.linspace(0, n, count + 1).astype(int)
    runs = [block.take(slice(a, b)) for a, b in itertools.pairwise(bounds.tolist())]
    gained = total = ranks = 0.0
    for part in kernel.reduce_blocks(objective, runs, theta, None):
        if not part.finite:
            return 1.0
        factor = factorise(part.gram[:p, :p], part.gram[:p, p], None)
        u, _, _ = factor.svd
        seen = factor.determined
        gained += float(np.sum((u.T @ factor.z)[seen] ** 2))
        ranks += int(seen.sum())
        total += 2.0 * part.cost
    left, dof, rest = total - gained, ranks - p, n - ranks
    if dof <= 0 or rest <= 0 or left <= 1e-14 * total:
        return 1.0
    return float(stats.f.sf((gained / dof) / (left / rest), dof, rest))


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
    looked = [(np.inf, theta) if _late(deadline) else _level(problem, solver, theta) for theta in points]
    levels = np.array([level for level, _ in looked])
    starts = [looked[i][1] for i in _spread_out(levels, _numbers(problem)[1])]
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


def _level(problem: Problem, solver: TrustRegion, theta: Vector) -> tuple[float, Vector]:
    """Return the cost at a point with the linear parameters at their best, and the point with them there.

    It is infinite where it is not finite. Bounds of the linear parameters are kept by the point, not by the cost.
    """
    nowhere = float("inf"), theta
    try:
        if _plain(problem):
            cost = _residual_cost(problem, solver, theta)
            return (cost, theta) if np.isfinite(cost) else nowhere
        reduction = _reduce(problem, theta)
    except Exception:  # whatever a model raises
        return nowhere
    if not reduction.finite or np.abs(reduction.gram).max() > _LARGEST:
        return nowhere
    level, best = solver.relaxed(theta, reduction)
    return max(level, _HIDDEN * reduction.cost), best


def _plain(problem: Problem) -> bool:
    """Whether the cost at a point is that of the residuals there, for derivatives are differences, which cost more."""
    return problem.objective.jacobian == "numeric" and problem.objective.jac is None and not problem.objective.robust


def _residual_cost(problem: Problem, solver: TrustRegion, theta: Vector) -> float:
    ((block,),) = [group.partitions for group in problem.groups]
    believed = 0.0 if solver.prior is None else solver.prior.chisqr(theta)
    with np.errstate(all="ignore"):
        return 0.5 * float(np.sum(_residual(problem.objective, block, theta) ** 2) + believed)


def _residual(objective: Objective, block: Block, theta: Vector) -> Vector:
    """Return the weighted residuals of rows, (rows,)."""
    residual = kernel.predict_block(objective, block, np.array(objective.expand(theta.tolist()), float)) - block.y
    return residual if block.weight is None else residual * block.weight


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
