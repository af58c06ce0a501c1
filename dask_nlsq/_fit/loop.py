"""The loop of a fit, of several that share sweeps, and of one over rows in memory.

::

    state = solver.init(start)
    while not solver.terminate(state):
        state = solver.step(state, sweep(source, solver.request(state)))

`fitted` is that loop as a generator, which yields what it wants evaluated and is sent the reduction, so that
``state = yield from fitted(solver, theta)`` is a whole fit inside a larger search. `run_searches` runs any number of
them over the same sweeps, `run_in_memory` runs one over a block. `run_shared` is the loop for states that compete: it
stops those that cannot win, and tells an observer how far it is.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import time
from collections.abc import Callable, Generator, Sequence
from typing import Any, TypeVar

import numpy as np
from scipy.optimize import OptimizeResult

from dask_nlsq._errors import DataError, NlsqError, TooFewRows, warn
from dask_nlsq._fit.non_finite import not_finite
from dask_nlsq._fit.observer import Observer, SweepBegin, SweepEnd, TaskEnd
from dask_nlsq._fit.problem import Problem
from dask_nlsq._fit.sample import Sample
from dask_nlsq._fit.session import EndedRun
from dask_nlsq._kernel import Block, Reduction, Request, kernel
from dask_nlsq._model import Objective
from dask_nlsq._solver import State, Status, TrustRegion, final, residual_std, stop
from dask_nlsq._sweep import Answer, Partial
from dask_nlsq._typing import Vector

T = TypeVar("T")

log = logging.getLogger("dask_nlsq")


_ALIKE = 1e-9
"""Relative difference of two costs that is none: that of a model whose parts can change places."""


Search = Generator[Request, Reduction, T]
"""Yields requests, is sent their reductions, returns what it has found."""


def fitted(solver: TrustRegion, theta: Vector, deadline: float | None = None) -> Search[State | None]:
    """Fit from `theta` (p,) to the end; None where the model is not finite there, or the deadline has passed."""
    state = solver.init(theta)
    while not solver.terminate(state):
        if deadline is not None and time.monotonic() > deadline:
            return None
        reduction = yield solver.request(state)
        if state.point is None and not reduction.finite:
            return None
        state = solver.step(state, reduction)
    return state


def run_in_memory(objective: Objective, block: Block, search: Search[T]) -> T:
    """Run a search over the rows of a block."""
    request = next(search)
    try:
        while True:
            whitening = None if request.whitening is None else request.whitening.s
            request = search.send(kernel.reduce_block(objective, block, request.theta, whitening))
    except StopIteration as end:
        # What a generator returns is the value of the StopIteration that ends it.
        result: T = end.value
    return result


def run_searches(problem: Problem, searches: Sequence[Search[T]], observer: Observer | None = None) -> list[T]:
    """Run searches over the same sweeps, and return what each has found, in their order."""
    results: dict[int, Any] = {}
    waiting: dict[int, Request] = {}
    observer = observer or Observer()

    def answered(answer: Answer) -> None:
        observer.notify(TaskEnd(len(answer.digests)))

    def resume(i: int, go_on: Callable[[], Request]) -> None:
        try:
            waiting[i] = go_on()
        except StopIteration as end:
            waiting.pop(i, None)
            results[i] = end.value

    for i, search in enumerate(searches):
        resume(i, search.__next__)
    while waiting:
        places = list(waiting)
        observer.notify(SweepBegin(f"{len(places)} of {len(searches)} searches under way"))
        reductions = problem.sweep([waiting[i] for i in places], on_answer=answered)
        for i, reduction in zip(places, reductions, strict=True):
            resume(i, functools.partial(searches[i].send, reduction))
    return [results[i] for i in range(len(searches))]


def minimise(
    problem: Problem,
    solver: TrustRegion,
    start: Vector,
    observer: Observer | None = None,
    deadline: float | None = None,
    callback: Callable[[OptimizeResult], Any] | None = None,
) -> tuple[State, list[float]]:
    """Run the loop to its end from one start; return the last state and the seconds of each sweep."""
    (state,), seconds = run_shared(problem, solver, [solver.init(start)], (), observer, deadline, callback)
    return state, seconds


def run_shared(
    problem: Problem,
    solver: TrustRegion,
    begun: Sequence[State],
    spare: Sequence[Vector] = (),
    observer: Observer | None = None,
    deadline: float | None = None,
    callback: Callable[[OptimizeResult], Any] | None = None,
    seconds: Sequence[float] = (),
    partial: Partial | None = None,
    elsewhere: Callable[[Vector], Sequence[Vector]] | None = None,
) -> tuple[list[State], list[float]]:
    """Run the loop from several states, which share every sweep, until none is left that could still win.

    Parameters
    ----------
    spare : sequence of ndarray (p,)
        Starts that are tried where the model is not finite at any of the states.
    seconds : sequence of float
        Of the sweeps before.
    observer : Observer, optional
        Told of every task and every sweep, and what would be written down then.
    partial : Partial, optional
        What of the first sweep is finished.
    elsewhere : callable, optional
        Returns starts where the model is finite, given one where it is not; called once no spare one is left.

    Returns
    -------
    list of State, list of float
        The last states, in the order in which they came, and the seconds of each sweep.
    """
    states, others, seconds = list(begun), list(spare), list(seconds)
    observer = observer or Observer()
    given: Vector | None = None
    while active := [i for i, state in enumerate(states) if state.status is None]:
        clock = time.perf_counter()
        leader = lowest(states)
        partial = partial or Partial(sum(len(g.partitions) for g in problem.groups), len(active))
        title = f"sweep {states[leader].nsweeps + 1}"
        observer.notify(SweepBegin(title, states[leader], int(partial.done.sum())))
        now = _Written(tuple(states), tuple(others), tuple(seconds))

        def answered(answer: Answer, now: _Written = now, partial: Partial = partial) -> None:
            observer.notify(TaskEnd(len(answer.digests), lambda: now() | {"sweep": partial.finished()}))

        try:
            requests = [solver.request(states[i]) for i in active]
            reductions = problem.sweep(requests, on_answer=answered, partial=partial)
        except NlsqError as error:
            # The cause is what failed in the block.
            raise error.at(sweep=states[leader].nsweeps + 1) from error.__cause__
        partial = None
        if not any(states[i].history or reduction.finite for i, reduction in zip(active, reductions, strict=True)):
            if not others:
                validate_rows(problem, reductions[0])
                # The error names the start that was given, and not the last of those tried in its place.
                given = states[active[0]].trial if given is None else given
                others, elsewhere = [] if elsewhere is None else list(elsewhere(given)), None
            if not others:
                raise not_finite(problem, states[active[0]].trial if given is None else given)
            states = [solver.init(others.pop(0))]
            continue
        if not states[active[0]].history:
            validate_rows(problem, reductions[0])
        for i, reduction in zip(active, reductions, strict=True):
            if states[i].history or reduction.finite:
                states[i] = solver.step(states[i], reduction)
            else:
                states[i] = dataclasses.replace(states[i], status=Status.NOT_FINITE)
        seconds.append(time.perf_counter() - clock)
        leader = lowest(states)
        _tell(states[leader], seconds[-1])
        if states[leader].status is None:
            states[leader] = stopped(problem, states[leader], deadline, callback)
        else:
            _asked_to_stop(problem, states[leader], callback)  # who has ended need not stop, and is seen all the same
        states = _prune(states, leader, deadline is not None and time.monotonic() > deadline)
        observer.notify(SweepEnd(_Written(tuple(states), tuple(others), tuple(seconds)), states[leader]))
    return states, seconds


def lowest(states: Sequence[State]) -> int:
    """Return the place of the state with the lowest cost; of those that are alike, the first."""
    if len(states) == 1:
        return 0
    costs = [state.lowest for state in states]
    return next(i for i, cost in enumerate(costs) if cost <= min(costs) * (1.0 + _ALIKE))


def _prune(states: Sequence[State], leader: int, late: bool) -> list[State]:
    """Give up the states that cannot win, for their next step would not bring them below the lowest.

    Where the lowest was stopped, or it is late, the others are stopped too.
    """
    first, pruned = states[leader], list(states)
    for i, state in enumerate(states):
        if i == leader or state.status is not None:
            continue
        if state.point is not None and state.point.believed:
            # Twice the decrease that the linear model promises, for a step may gain more than that; where this does not
            # reach the lowest cost, the state cannot win.
            reach = state.point.reduction.cost - 2.0 * max(state.point.newton.predicted, 0.0)
            if reach > first.at.reduction.cost * (1.0 + _ALIKE):
                pruned[i] = dataclasses.replace(state, status=Status.PRUNED)
                continue
        if first.status in (Status.CALLBACK, Status.TIME_LIMIT) or late:
            pruned[i] = stop(state, Status.CALLBACK if first.status is Status.CALLBACK else Status.TIME_LIMIT)
    return pruned


@dataclasses.dataclass(frozen=True)
class _Written:
    """What the loop would write down: where it is between two sweeps."""

    states: tuple[State, ...]
    others: tuple[Vector, ...]
    seconds: tuple[float, ...]

    def __call__(self) -> dict[str, Any]:
        first, *candidates = self.states
        others = np.array(self.others, float) if self.others and not first.history else None
        return {
            "state": first,
            "candidates": tuple(candidates),
            "others": others,
            "seconds": np.array(self.seconds, float),
        }


def verify(problem: Problem, ended: EndedRun) -> None:
    """Read everything once, and see whether it is what a run that has ended had read.

    Raises
    ------
    CheckpointMismatch
        It is not.
    """
    problem.sweep([Request(ended.states[0].at.theta)])


def stopped(
    problem: Problem, state: State, deadline: float | None, callback: Callable[[OptimizeResult], Any] | None
) -> State:
    """Return the state with the status of a callback that asked to stop, or of a deadline that has passed."""
    status = _asked_to_stop(problem, state, callback)
    if status is None and deadline is not None and time.monotonic() > deadline:
        status = Status.TIME_LIMIT
    return state if status is None else stop(state, status)


def fit_sample(problem: Problem, solver: TrustRegion, sample: Sample, start: Vector | None = None) -> State | None:
    """Return how a fit of the sample in this process ends, or None where it leads nowhere."""
    solver = dataclasses.replace(solver, ftol=None, xtol=None, gtol=None, max_nfev=1000)
    try:
        state, _ = minimise(
            problem.in_memory(sample.block), solver, problem.parameters.start if start is None else start
        )
    except NlsqError as error:
        log.info("the sample could not be fitted: %s", error)
        return None
    return state if state.status is not None and state.status.success else None


def fit_sample_anew(problem: Problem, solver: TrustRegion, sample: Sample, ended: State) -> State:
    """Return how a fit of the sample ends that begins where another has ended, to about a standard error.

    Fits from other starts that have ended in the same minimum have its bits from now on: what is rounded off is where
    they differ.
    """
    at = ended.at
    error = residual_std(at.reduction, at.factor.p, absolute_sigma=False) / at.factor.norms  # the others being held
    if (
        ended.status is not Status.CONVERGED
        or not at.factor.determined.all()
        or not (error > np.finfo(float).tiny).all()
    ):
        return ended
    theta, cost = final(ended, solver.lower, solver.upper)
    unit = np.exp2(np.floor(np.log2(error)))
    start = np.clip(np.round(theta / unit) * unit, solver.lower, solver.upper)
    anew = fit_sample(problem, solver, sample, start)
    return ended if anew is None or final(anew, solver.lower, solver.upper)[1] > cost * (1.0 + _ALIKE) else anew


def lowest_first(problem: Problem, starts: Sequence[Vector]) -> list[Vector]:
    """Return starts in the order of their cost over all rows, which takes one pass."""
    reductions = problem.sweep([Request(start, first=True) for start in starts])
    costs = [reduction.cost if reduction.finite else np.inf for reduction in reductions]
    return [starts[i] for i in np.argsort(costs, kind="stable")]


def validate_first_sweep(problem: Problem, reduction: Reduction) -> None:
    """Raise where the first sweep, at the start, shows that no fit is possible."""
    validate_rows(problem, reduction)
    if not reduction.finite:
        raise not_finite(problem, problem.parameters.start)


def validate_rows(problem: Problem, reduction: Reduction) -> None:
    """Raise where the rows of the first sweep cannot be fitted, and warn of integers that were rounded."""
    for name in sorted(reduction.rounded):
        warn(f"Column {name!r} holds integers beyond 2**53, which float64 rounds.")
    fewest = problem.parameters.fewest_rows
    if reduction.rows == 0:
        raise DataError(
            f"There are no rows to fit: {reduction.dropped} were dropped by the NaN policy, and those of infinite "
            "sigma, which have zero weight, do not count."
        )
    if reduction.rows < fewest:
        raise TooFewRows(f"There are {reduction.rows} rows for {fewest} parameters; at least {fewest} are needed.")
    if not _squares_in_range(problem, reduction):
        raise DataError(
            "The squares of y / sigma lie outside the range of float64, about 1e-290 to 1e290. Rescale y, and sigma "
            "with it.",
            column=problem.columns.y,
        )


def _squares_in_range(problem: Problem, reduction: Reduction) -> bool:
    """Whether neither y nor a weight is so large or small that its square has lost digits."""
    with np.errstate(all="ignore"):
        # NumPy's float overflows to infinity, where Python's raises an OverflowError.
        square = reduction.response_sum_of_squares + reduction.weight * np.float64(reduction.mean) ** 2  # Σ w² y²
        weight = reduction.weight / reduction.rows
    nothing = reduction.mean == reduction.response_sum_of_squares == 0
    return bool(1e-290 < weight < 1e290 and square < 1e290 and (square > 1e-280 or nothing))


def _tell(state: State, seconds: float) -> None:
    last = state.history[-1]
    log.info(
        "sweep %d: cost %.10g, %.3g standard errors remain, damping %.3g, %s, %.3g s",
        last.sweep,
        last.cost,
        last.step,
        last.damping,
        "accepted" if last.accepted else "refused",
        seconds,
    )


def _asked_to_stop(problem: Problem, state: State, callback: Callable[[OptimizeResult], Any] | None) -> Status | None:
    if callback is None or state.point is None:
        return None
    x = np.array([float(v) for v in problem.objective.expand(list(state.point.theta))])
    params = dict(zip(problem.parameters.names, x.tolist(), strict=True))
    intermediate = OptimizeResult()
    intermediate.update(x=x, cost=state.point.reduction.cost, nfev=state.nsweeps, params=params)
    try:
        callback(intermediate)
    except StopIteration:
        return Status.CALLBACK
    return None
