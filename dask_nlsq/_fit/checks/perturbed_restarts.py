"""Perturbed restarts: whether fits from perturbed starts lead back to the minimum that was found.

A fit goes where its start leads. Under the goal QUALITY the answer is tried: from a few starts some way off, the same
solver fits again, all of them sharing sweeps, on the sample where there is one. A start that ends lower says that the
answer was a local minimum.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.optimize import OptimizeResult

from dask_nlsq._errors import NlsqError
from dask_nlsq._fit.checks.restarts import past_deadline, resumable
from dask_nlsq._fit.loop import fitted, minimise, run_searches
from dask_nlsq._fit.observer import Observer
from dask_nlsq._fit.problem import Problem
from dask_nlsq._fit.sample import Sample
from dask_nlsq._kernel import Block
from dask_nlsq._solver import State, Status, TrustRegion, final
from dask_nlsq._typing import Vector

STARTS = 8
"""Perturbed starts; they share their sweeps, which are some ten in all."""

_REACH = 0.2
"""How far a parameter is moved, relative to its size: beyond what a good guess would miss."""

_MOST = 50
"""Sweeps after which a perturbed start is given up."""

_LIMITS = (Status.CALLBACK, Status.TIME_LIMIT, Status.MAX_NFEV)

_ALIKE = 1e-6
"""Relative difference of two costs that is none."""


def look_again(
    problem: Problem,
    solver: TrustRegion,
    state: State,
    block: Block | None,
    observer: Observer,
    deadline: float | None = None,
) -> tuple[Vector | None, str]:
    """Fit from perturbed starts; return a better one where there is one, and what was found in words.

    Parameters
    ----------
    block : Block, optional
        A sample of the rows; without it, all rows are fitted again.
    """
    if block is not None:
        problem = problem.in_memory(block)
    # The tolerances of the user are for the answer; these fits only have to tell minima apart.
    solver = dataclasses.replace(solver, tolerance=1e-3, ftol=None, xtol=None, gtol=None, max_nfev=_MOST)
    theta, _ = final(state, solver.lower, solver.upper)
    # A parameter near zero says nothing of its scale, which its standard error then does.
    size = np.maximum(np.abs(theta), state.at.factor.unscaled_stderr)
    # A fixed seed, so that the same fit is looked at from the same starts.
    moves = np.random.default_rng(0).normal(0.0, _REACH, (STARTS, len(theta))) * size
    starts = [theta, *np.clip(theta + moves, solver.lower, solver.upper)]
    ends = run_searches(problem, [fitted(solver, start, deadline) for start in starts], observer)
    if past_deadline(deadline):
        return None, "The time limit ended the look from perturbed starts."
    minima = [final(end, solver.lower, solver.upper) if end is not None and end.status else None for end in ends]
    least = minima[0][1] if minima[0] is not None else np.inf
    reduction = state.at.reduction
    # Where the model fits without noise, costs are rounding, which is in proportion to y.
    alike = _ALIKE * least + 1e-20 * reduction.weighted_sum_of_squares
    others = [end for end in minima[1:] if end is not None]
    back = sum(abs(cost - least) <= alike for _, cost in others)
    better = min(others, key=lambda end: end[1], default=None)
    if better is not None and better[1] < least - alike:
        return better[0], f"One of {STARTS} perturbed starts led to a lower minimum, which was taken."
    passes = max((len(end.history) for end in ends if end is not None), default=0)
    further = f", in {passes} further passes" if block is None else ""
    return None, f"{back} of {STARTS} perturbed starts led back to this minimum{further}, none to a lower one."


def refit_perturbed(
    problem: Problem,
    solver: TrustRegion,
    state: State,
    sample: Sample | None,
    observer: Observer,
    deadline: float | None,
    callback: Callable[[OptimizeResult], Any] | None,
) -> tuple[State, list[float], str]:
    """Try the answer from perturbed starts, and go on from a lower minimum where all rows agree that it is lower."""
    better, note = look_again(problem, solver, state, None if sample is None else sample.block, observer, deadline)
    if better is None and past_deadline(deadline):
        return resumable(state), [], note
    if better is None:
        return state, [], note
    try:
        second, seconds = minimise(problem, solver, better, observer, deadline, callback)
    except NlsqError as error:
        return state, [], f"A perturbed start led lower on a sample, but not on all rows: {error}"
    history = (*state.history, *second.history)
    lower = second.point is not None and second.point.reduction.cost < state.at.reduction.cost
    if second.status is None or not second.status.success or not lower:
        note = "A perturbed start led lower on a sample, but not on all rows"
        if second.status in _LIMITS:
            return resumable(state), [], f"{note}, as far as it went ({second.status.name})."
        note += "."
        return dataclasses.replace(state, history=history), seconds, note
    return dataclasses.replace(second, history=history), seconds, note
