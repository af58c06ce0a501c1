r"""Determined: what of an end the data determine, tried by moving the parameters there.

The triangle R speaks of the model's slope. Where a slope vanishes, or nearly does, it says nothing of how far a
parameter may go: a square whose best root is zero, two terms that coincide, a product of which only the whole matters.
A direction is believed where one standard error along it changes the cost by what R says.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_nlsq._numerics import kernel
from dask_nlsq._numerics.block import Block
from dask_nlsq._numerics.factor import Factor
from dask_nlsq._numerics.objective import Objective
from dask_nlsq._numerics.parameters import Parameters
from dask_nlsq._numerics.reduction import Reduction
from dask_nlsq._numerics.request import Whitening
from dask_nlsq._numerics.solver.trust_region import State, TrustRegion, residual_noise, unit
from dask_nlsq._numerics.starts import draw_in_units
from dask_nlsq._problem import Problem
from dask_nlsq._sample import draw_sample
from dask_nlsq._typing import Matrix, Vector

_ROWS = 1024
"""Rows on which the model is tried."""

_ABOVE = 1e3
"""Least move of the model, beside the rounding of y, by which a direction is tried where data have no noise."""

_WEAK = 1e-6
"""Singular value of J, its columns scaled to unit length, beside the largest, from which a direction is tried."""

_BLURRED = 1e-8
"""The same, below which a Jacobian of differences says nothing."""

_AS_SAID = 10.0
"""Factor within which the cost changes by what the slope says."""

_ROOM = 0.1
"""Share of a standard error that bounds must leave for a direction to be tried."""

_PROBES = 64
"""Points at which parameters that move nothing are tried."""


def determined(problem: Problem, solver: TrustRegion, state: State) -> Factor:
    """Return the factor of an end with the columns and directions that are not believed taken as zero."""
    point = state.point
    assert point is not None
    factor = point.factor.without(faded(problem, solver, state))
    u, sigma, vt = factor.svd
    kept = sigma.copy()
    if problem.objective.jacobian == "numeric" and problem.objective.jac is None:
        kept[sigma < _BLURRED * sigma[0]] = 0.0
    weak = np.flatnonzero(factor.determined & (kept > 0) & (sigma < _WEAK * sigma[0]))
    if not len(weak) and (kept == sigma).all():
        return factor
    block, directions = _some_rows(problem), (vt.T / np.maximum(sigma, np.finfo(float).tiny)) / factor.norms[:, None]
    if not block.rows:
        return factor
    whitening = Whitening(directions, (np.maximum(sigma, np.finfo(float).tiny)[:, None] * vt) * factor.norms)
    here = _reduced(problem.objective, solver, block, point.theta, whitening)
    s = _move(solver, state)
    for i in weak.tolist():
        step = s * directions[:, i]
        room = _room(point.theta, step, solver.lower, solver.upper)
        if (room < _ROOM).any():
            continue
        ends = point.theta + np.array([[-1.0], [1.0]]) * room[:, None] * step
        moves = s * room * (-1.0, 1.0)
        if not _as_said(problem.objective, solver, block, ends, moves, here.gram[i, -1], here.gram[i, i], here.cost):
            kept[i] = 0.0
    return dataclasses.replace(factor, r=(u * kept) @ vt * factor.norms)


def faded(problem: Problem, solver: TrustRegion, state: State) -> npt.NDArray[np.bool_]:
    """Return which parameters have columns of J that say nothing of how far they may go, (p,).

    A column of J is believed where moving its parameter by :math:`h = s / |J_j|`, which would change the residuals by
    one standard deviation in all, changes the cost by what the column says, within a factor of ten. A square whose
    best root is zero, or a frequency whose amplitude has vanished, moves the model by far more, or less. Only
    parameters that are small beside h are tried.
    """
    point = state.point
    assert point is not None
    found, norms = np.zeros(len(point.theta), bool), np.linalg.norm(point.factor.r, axis=0)
    linear = found if solver.linearity is None else solver.linearity.linear
    s = _move(solver, state)
    steps = np.divide(s, norms, out=np.zeros_like(norms), where=norms > 0)
    tried = np.flatnonzero((np.abs(point.theta) < 0.1 * steps) & ~linear & np.isfinite(steps))
    if not len(tried):
        return found
    block = _some_rows(problem)
    if not block.rows:
        return found
    here = _reduced(problem.objective, solver, block, point.theta, None)
    for j in tried.tolist():
        ends = point.theta + np.array([[-1.0], [1.0]]) * np.where(np.arange(len(found)) == j, steps, 0.0)
        ends = np.clip(ends, solver.lower, solver.upper)
        moves = ends[:, j] - point.theta[j]
        found[j] = not _as_said(
            problem.objective, solver, block, ends, moves, here.gram[j, -1], here.gram[j, j], here.cost
        )
    return found


def went_silent(problem: Problem, state: State) -> bool:
    """Whether parameters that move nothing where the fit ended would do so elsewhere.

    A parameter that the model does not use moves nothing anywhere; its variance is infinite, and the fit is none
    the worse for it. Where others silence it (a product of two zeros, the exponential of a large number), the
    gradient is zero and the end is no answer.
    """
    assert state.point is not None
    silent = ~state.point.factor.r.any(axis=0)
    if not silent.any():
        return False
    return speak_elsewhere(problem.objective, problem.parameters, _some_rows(problem), state.point.theta, silent)


def speak_elsewhere(objective: Objective, parameters: Parameters, block: Block, theta: Vector, silent: Any) -> bool:
    """Whether parameters that are `silent` (p,), for they move nothing at `theta` (p,), move the model elsewhere."""
    here = _evaluate(objective, block, theta)
    noise = 1e-9 * np.abs(here[np.isfinite(here)]).max(initial=0.0)
    for point in draw_in_units(_PROBES, parameters.lower, parameters.upper, parameters.start, block):
        there = np.where(silent, point, theta)
        found = _evaluate(objective, block, there)
        if (np.isfinite(found) & (np.abs(found - here) > noise)).any():
            return True
    return False


def _evaluate(objective: Objective, block: Block, theta: Vector) -> Vector:
    """Return the model at some rows, from the free parameters; NaN where it raises."""
    try:
        with np.errstate(all="ignore"):
            return kernel.predict_block(objective, block, np.array(objective.expand(theta.tolist()), float))
    except Exception:  # whatever a model raises
        return np.full(block.rows, np.nan)


def _as_said(
    objective: Objective,
    solver: TrustRegion,
    block: Block,
    ends: Matrix,
    moves: Vector,
    slope: float,
    curvature: float,
    cost: float,
) -> bool:
    """Whether the cost at two ends (2, p), `moves` (2,) along a direction, is what slope and curvature say there."""
    try:
        rise = sum(_reduced(objective, solver, block, end, None).cost - cost for end in ends)
    except Exception:  # whatever a model raises: it has no value there
        return False
    expected = float(slope * moves.sum() + 0.5 * curvature * np.sum(moves**2))
    return bool(expected / _AS_SAID <= rise <= _AS_SAID * expected)


def _reduced(
    objective: Objective, solver: TrustRegion, block: Block, theta: Vector, whitening: Whitening | None
) -> Reduction:
    """Return the sums of some rows, and of the prior."""
    found = kernel.reduce_block(objective, block, theta, None if whitening is None else whitening.s)
    return found if solver.prior is None else solver.prior.add_to(found, theta, whitening)


def _move(solver: TrustRegion, state: State) -> float:
    """Return by how much the residuals are to change in all where a direction is tried."""
    assert state.point is not None
    reduction = state.point.reduction
    rounding = residual_noise(reduction) * np.sqrt(reduction.rows)
    return float(max(unit(reduction, state.point.factor.p, solver.absolute_sigma), _ABOVE * rounding))


def _room(theta: Vector, step: Vector, lower: Vector, upper: Vector) -> Vector:
    """Return the shares (2,) of a step backwards and forwards that bounds leave, 1 at most."""
    shares = []
    for delta in (-step, step):
        limit = np.where(delta > 0, upper - theta, lower - theta)
        shares.append(np.min(np.divide(limit, delta, out=np.ones_like(delta), where=delta != 0), initial=1.0))
    return np.array(shares)


def _some_rows(problem: Problem) -> Block:
    return draw_sample(problem.executor, problem.groups, len(problem.source.partitions), _ROWS).block
