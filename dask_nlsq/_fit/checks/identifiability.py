r"""Identifiability: which parameters, and which combinations of them, the data determine at the end of a fit.

The triangle R holds the model's first derivatives only. Where they vanish, or nearly do, R does not bound how far a
parameter may go: a square whose best root is zero, two equal terms, a product of two parameters. Such columns and
directions are probed by evaluating the model one standard error away on a sample of the rows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from dask_nlsq._fit.problem import Problem
from dask_nlsq._fit.sample import draw_sample
from dask_nlsq._kernel import Block, Reduction, Whitening, kernel
from dask_nlsq._model import Objective, Parameters
from dask_nlsq._solver import Factor, State, TrustRegion, draw_in_units, residual_noise, residual_std
from dask_nlsq._typing import Matrix, Vector

_ROWS = 1024
"""Rows of the sample on which the model is probed."""

_LEAST_CHANGE = 1e3
"""Least change of the residuals in a probe, in units of the rounding of y; it counts for data without noise."""

_WEAK = 1e-6
"""Ratio of a singular value of the scaled J to the largest, below which its direction is probed."""

_DIFFERENCES = 1e-8
"""The same ratio, below which a Jacobian of finite differences holds no information."""

_FACTOR = 10.0
"""Factor within which the change of the cost has to agree with its prediction."""

_LEAST_SHARE = 0.1
"""Share of a step that has to lie within the bounds for its direction to be probed."""

_PROBES = 64
"""Points at which the response to parameters without any effect is evaluated."""


def identifiable_factor(problem: Problem, solver: TrustRegion, state: State) -> Factor:
    r"""Return the factor at the end of a fit, with columns and directions that the data do not determine set to zero.

    A singular direction :math:`v` with a small singular value :math:`\sigma` is probed at
    :math:`\theta \pm (s / \sigma) v`. It is kept where the cost changes by the quadratic prediction, within a factor
    of ten. A Jacobian of finite differences says nothing of directions below its own error.
    """
    point = state.at
    factor = point.factor.without(vanishing_columns(problem, solver, state))
    u, sigma, vt = factor.svd
    kept = sigma.copy()
    if problem.objective.jacobian == "numeric" and problem.objective.jac is None:
        # Differences have some eight to ten right digits; a direction below that is made of their errors.
        kept[sigma < _DIFFERENCES * sigma[0]] = 0.0
    weak = np.flatnonzero(factor.determined & (kept > 0) & (sigma < _WEAK * sigma[0]))
    if len(weak):
        kept[_contradicted(problem, solver, state, factor, weak)] = 0.0
    return factor if (kept == sigma).all() else dataclasses.replace(factor, r=(u * kept) @ vt * factor.norms)


def _contradicted(
    problem: Problem, solver: TrustRegion, state: State, factor: Factor, weak: npt.NDArray[np.intp]
) -> list[int]:
    """Return those of the `weak` singular directions along which the cost does not change as predicted."""
    block, theta = _sample_rows(problem), state.at.theta
    if not block.rows:
        return []
    _, sigma, vt = factor.svd
    # Divided by below also where a direction is zero, which is then not among the weak ones.
    sigma = np.maximum(sigma, np.finfo(float).tiny)
    whitening = Whitening((vt.T / sigma) / factor.norms[:, None], (sigma[:, None] * vt) * factor.norms)
    cost = functools.partial(_reduced, problem.objective, solver, block)
    here, s, contradicted = cost(theta, whitening), _probe_length(solver, state), []
    for i in weak.tolist():
        step = s * whitening.s[:, i]
        shares = _share_within_bounds(theta, step, solver.lower, solver.upper)
        if (shares < _LEAST_SHARE).any():
            continue
        ends = theta + np.array([[-1.0], [1.0]]) * shares[:, None] * step
        if not _matches_quadratic(cost, here, i, ends, s * shares * (-1.0, 1.0)):
            contradicted.append(i)
    return contradicted


def vanishing_columns(problem: Problem, solver: TrustRegion, state: State) -> npt.NDArray[np.bool_]:
    """Return which columns of J are so small that they do not bound their parameter, (p,).

    Each parameter that is small beside :math:`h = s / |J_j|` is moved by h, which would change the residuals by one
    standard deviation in all. Where the cost does not change by the quadratic prediction, within a factor of ten, the
    column is one: a square whose best root is zero, or a frequency whose amplitude has vanished.
    """
    point = state.at
    vanishing, norms = np.zeros(len(point.theta), bool), np.linalg.norm(point.factor.r, axis=0)
    linear = vanishing if solver.linearity is None else solver.linearity.linear
    steps = np.divide(_probe_length(solver, state), norms, out=np.zeros_like(norms), where=norms > 0)
    tried = np.flatnonzero((np.abs(point.theta) < 0.1 * steps) & ~linear & np.isfinite(steps))
    if not len(tried):
        return vanishing
    block = _sample_rows(problem)
    if not block.rows:
        return vanishing
    cost = functools.partial(_reduced, problem.objective, solver, block)
    here = cost(point.theta)
    for j in tried.tolist():
        ends = point.theta + np.array([[-1.0], [1.0]]) * np.where(np.arange(len(vanishing)) == j, steps, 0.0)
        ends = np.clip(ends, solver.lower, solver.upper)
        vanishing[j] = not _matches_quadratic(cost, here, j, ends, ends[:, j] - point.theta[j])
    return vanishing


def lost_sensitivity(problem: Problem, state: State) -> bool:
    """Whether parameters without any effect where the fit ended have one elsewhere.

    A parameter that the model does not use has no effect anywhere; its variance is infinite, and the fit is valid.
    Where other parameters suppress it (a product of two zeros, the exponential of a large number), the gradient is
    zero without a minimum.
    """
    silent: npt.NDArray[np.bool_] = np.logical_not(state.at.factor.r.any(axis=0))
    if not silent.any():
        return False
    return responds_elsewhere(problem.objective, problem.parameters, _sample_rows(problem), state.at.theta, silent)


def responds_elsewhere(
    objective: Objective, parameters: Parameters, block: Block, theta: Vector, silent: npt.NDArray[np.bool_]
) -> bool:
    """Whether the `silent` parameters (p,), which have no effect at `theta` (p,), have one elsewhere."""
    here = _evaluate(objective, block, theta)
    noise = 1e-9 * np.abs(here[np.isfinite(here)]).max(initial=0.0)
    for point in draw_in_units(_PROBES, parameters.lower, parameters.upper, parameters.start, block):
        there = np.where(silent, point, theta)
        response = _evaluate(objective, block, there)
        if (np.isfinite(response) & (np.abs(response - here) > noise)).any():
            return True
    return False


def _evaluate(objective: Objective, block: Block, theta: Vector) -> Vector:
    """Return the model at some rows, from the free parameters; NaN where it raises."""
    try:
        with np.errstate(all="ignore"):
            return kernel.predict_block(objective, block, np.array(objective.expand(theta.tolist()), float))
    except Exception:  # whatever a model raises
        return np.full(block.rows, np.nan)


def _matches_quadratic(
    cost: Callable[[Vector], Reduction], here: Reduction, i: int, ends: Matrix, moves: Vector
) -> bool:
    """Whether the cost at two points (2, p), `moves` (2,) along coordinate i of a reduction, is as predicted."""
    try:
        rise = sum(cost(end).cost - here.cost for end in ends)
    except Exception:  # whatever the model raises: it has no value there
        return False
    # Of two opposite moves the gradient cancels, unless a bound cuts one of them short.
    predicted = float(here.gram[i, -1] * moves.sum() + 0.5 * here.gram[i, i] * np.sum(moves**2))
    return bool(predicted / _FACTOR <= rise <= _FACTOR * predicted)


def _reduced(
    objective: Objective, solver: TrustRegion, block: Block, theta: Vector, whitening: Whitening | None = None
) -> Reduction:
    """Return the reduction of some rows, with the prior added."""
    reduction = kernel.reduce_block(objective, block, theta, None if whitening is None else whitening.s)
    return reduction if solver.prior is None else reduction.with_prior(solver.prior, theta, whitening)


def _probe_length(solver: TrustRegion, state: State) -> float:
    """Return the norm of the change of the residuals that a probe aims at."""
    reduction = state.at.reduction
    rounding = residual_noise(reduction) * np.sqrt(reduction.rows)
    return float(max(residual_std(reduction, state.at.factor.p, solver.absolute_sigma), _LEAST_CHANGE * rounding))


def _share_within_bounds(theta: Vector, step: Vector, lower: Vector, upper: Vector) -> Vector:
    """Return which shares (2,) of the backward and the forward step lie within the bounds, at most 1."""
    shares = []
    for delta in (-step, step):
        limit = np.where(delta > 0, upper - theta, lower - theta)
        shares.append(np.min(np.divide(limit, delta, out=np.ones_like(delta), where=delta != 0), initial=1.0))
    return np.array(shares)


def _sample_rows(problem: Problem) -> Block:
    return draw_sample(problem.executor, problem.groups, len(problem.source.partitions), _ROWS).block
