"""Lockstep: fits that are independent of one another share sweeps, one pass over the data for all of them.

A fit is written as a generator: it yields what it wants evaluated and is sent the reduction. ``x = yield from
fitted(solver, theta)`` is thus a whole fit inside a larger search, and `lockstep` runs any number of searches
abreast until the last has returned.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

from dask_nlsq._fit.problem import Problem
from dask_nlsq._fit.progress import Progress
from dask_nlsq._kernel import Reduction, Request
from dask_nlsq._solver import State, TrustRegion
from dask_nlsq._sweep import sweep_each
from dask_nlsq._typing import Vector

T = TypeVar("T")

Search = Generator[Request, Reduction, T]
"""Yields requests, is sent their reductions, returns what it has found."""


def fitted(solver: TrustRegion, theta: Vector, deadline: float | None = None) -> Search[State | None]:
    """Fit from `theta` (p,) to the end; None where the model is not finite there, or the deadline has passed."""
    state = solver.init(theta)
    while state.status is None:
        if deadline is not None and time.monotonic() > deadline:
            return None
        reduction = yield solver.request(state)
        if state.point is None and not reduction.finite:
            return None
        state = solver.step(state, reduction)
    return state


def lockstep(problem: Problem, searches: Sequence[Search[T]], bar: Progress | None = None) -> list[T]:
    """Run searches abreast and return what each has found, in their order."""
    found: dict[int, Any] = {}
    waiting: dict[int, Request] = {}
    bar = bar or Progress(0, show=False)

    def resume(i: int, go_on: Callable[[], Request]) -> None:
        try:
            waiting[i] = go_on()
        except StopIteration as end:
            waiting.pop(i, None)
            found[i] = end.value

    for i, search in enumerate(searches):
        resume(i, search.__next__)
    while waiting:
        places = list(waiting)
        bar.begin(f"{len(places)} of {len(searches)} searches under way")
        reductions = sweep_each(
            problem.executor,
            problem.groups,
            problem.payload,
            [waiting[i] for i in places],
            digests=problem.digests,
            on_answer=bar.answer,
        )
        for i, reduction in zip(places, reductions, strict=True):
            resume(i, functools.partial(searches[i].send, reduction))
    return [found[i] for i in range(len(searches))]
