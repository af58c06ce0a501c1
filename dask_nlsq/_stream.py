"""Stream: one pass in mini-batches of scattered partitions, the estimate moving as they come.

A batch is a few partitions drawn at random, so that sorted data do not bounce the estimate; the order is a function of
the seed alone. A bounded window of batches is under way: batch i is evaluated at the estimate that stood once batch
i − W was folded, in order, so that the result depends on W, a number of the plan, and not on who was faster. Out of
order, on request, batches are folded as they come. Until the batches have said enough, the information of the sample
from which the pass starts keeps the estimate from straying; it is not counted in the end, for its rows come by again.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from dask_nlsq._errors import DataError, NlsqError
from dask_nlsq._minimise import first_look
from dask_nlsq._numerics import kernel
from dask_nlsq._numerics.block import Block
from dask_nlsq._numerics.factor import Whitening
from dask_nlsq._numerics.reduction import fold
from dask_nlsq._numerics.solver.streaming import Streaming, StreamState
from dask_nlsq._numerics.solver.trust_region import State, TrustRegion, final
from dask_nlsq._numerics.status import Status
from dask_nlsq._plan import OptimizationGoal
from dask_nlsq._problem import Problem
from dask_nlsq._progress import Progress
from dask_nlsq._sample import Sample
from dask_nlsq._sweep import Failure, Group
from dask_nlsq._sweep.task import Answer, reduce_group
from dask_nlsq._typing import Vector

WINDOW = 16
"""Batches under way; more would be evaluated at older estimates."""

BATCHES = 512
"""Batches of a pass, where there are partitions enough: so many that a precision is noticed early."""

_FEWEST = 4
"""Batches before which no precision is believed."""


def schedule(partitions: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Yield the partitions of each batch, in the order of the pass: a function of their number and the seed."""
    order = np.random.default_rng(seed).permutation(partitions)
    for part in np.array_split(order, min(partitions, BATCHES)):
        yield tuple(int(i) for i in np.sort(part))


@dataclasses.dataclass(frozen=True)
class Pass:
    """What came of a pass: the sums, how much was read, and how many updates old the estimates were at most."""

    own: StreamState
    read: float
    staleness: int


def one_pass(
    problem: Problem,
    solver: Streaming,
    start: tuple[Vector, Whitening | None, Block],
    *,
    seed: int,
    ordered: bool = True,
    enough: Callable[[StreamState], bool] = lambda _: False,
    on_answer: Callable[[Answer], None] = lambda _: None,
) -> Pass:
    """Pass over the partitions in batches, from a start that was found on a sample of their rows.

    Parameters
    ----------
    start : tuple
        The estimate, the S in whose coordinates the sums are kept, and the sample.
    ordered : bool
        Fold batches in the order in which they were sent, or else as they come.
    enough : callable
        Called with the sums after each batch; True ends the pass.
    """
    theta, whitening, sample = start
    own = solver.init(theta, whitening)
    s = None if whitening is None else whitening.s
    ahead = solver.step(own, kernel.reduce_block(problem.objective, sample, theta, s))
    batches = enumerate(schedule(len(problem.source.partitions), seed))
    total, staleness = min(len(problem.source.partitions), BATCHES), 0
    with problem.executor.opened(ordered) as window:
        while own.batches < total:
            for number, places in itertools.islice(batches, WINDOW - len(window)):
                group = Group(places[0], tuple(problem.source.partitions[i] for i in places), numbers=places)
                request = dataclasses.replace(solver.request(ahead), first=number == 0)
                window.send((request.theta, own.batches), reduce_group, group, problem.shipped, (request,))
            (theta, stood), answer = window.receive()
            if isinstance(answer, Failure):
                raise answer.error(theta)
            problem.ledger.check(answer.numbers, answer.marks)
            staleness = max(staleness, own.batches - stood)
            reduction = fold(answer.parts[0])
            own, ahead = solver.step(own, reduction, theta), solver.step(ahead, reduction, theta)
            on_answer(answer)
            if enough(own):
                break
    return Pass(own, own.batches / total, staleness)


def precise(solver: Streaming, own: StreamState, precision: Callable[[Vector, Vector], bool]) -> bool:
    """Whether enough is known: no direction is open, and the standard errors are as small as is asked."""
    if own.sums is None:
        return False
    factor = solver.factor(own)
    return bool(factor.determined.all()) and precision(own.theta, factor.spread * solver.spread(own))


def at_estimate(solver: Streaming, state: StreamState) -> Any:
    """Return the sums as a sweep at the estimate would have brought them."""
    assert state.sums is not None
    shift = np.eye(len(state.theta) + 1)
    delta = state.theta - state.origin
    shift[:-1, -1] = delta if state.whitening is None else state.whitening.inverse @ delta
    gram = shift.T @ state.sums.gram @ shift
    return dataclasses.replace(state.sums, gram=gram, cost=0.5 * float(gram[-1, -1]))


def stream(
    problem: Problem,
    solver: TrustRegion,
    near: State,
    sample: Sample,
    bar: Progress,
    *,
    seed: int,
    ordered: bool = True,
    target: Callable[[Vector, Vector], bool] | None = None,
) -> tuple[State | None, list[float], tuple[str, ...]]:
    """Pass over the data in batches; return the state that certifies next, or the last one where nothing is left to do.

    It is None where the model was not finite on some batch: the sums then lack rows, and are not used.

    The sums of the pass are those of a sweep at the estimate of the sample, but linearised nearer to the end.
    """
    clock = time.perf_counter()
    assert near.point is not None
    online = Streaming(solver.lower, solver.upper, solver.prior, solver.absolute_sigma)
    origin, whitening = final(near, solver.lower, solver.upper)[0], near.point.factor.whitening()

    def enough(now: StreamState) -> bool:
        if now.sums is not None:
            bar.estimates(problem.parameters.free, lambda: (now.theta, online.factor(now).spread * online.spread(now)))
        return target is not None and now.batches >= _FEWEST and precise(online, now, target)

    bar.begin("batches")
    start = (origin, whitening, sample.block)
    found = one_pass(problem, online, start, seed=seed, ordered=ordered, enough=enough, on_answer=bar.answer)
    own, seconds = found.own, [time.perf_counter() - clock]
    if own.skipped:
        note = f"The model was not finite on {own.skipped} batches of a first pass, which was not used."
        return None, [], (note,)
    if own.sums is None:
        raise DataError(f"There are no rows to fit ({own.dropped} were dropped by the NaN policy).")
    first_look(problem, own.sums)
    how = f"{own.batches} batches, each evaluated at an estimate at most {found.staleness} updates old"
    how += "" if ordered else " and folded as it came, so that another run may differ in the last digits"
    fast = problem.plan.goal is OptimizationGoal.FAST
    reached = target is not None and (found.read < 1 or precise(online, own, target))
    if reached or fast:
        last = solver.step(dataclasses.replace(solver.init(own.theta), whitening=whitening), at_estimate(online, own))
        last = dataclasses.replace(last, status=Status.PRECISION if reached else Status.STREAMED)
        return last, seconds, (f"{100 * found.read:.3g} % of the data was read, in {how}.",)
    state = solver.step(dataclasses.replace(solver.init(origin), whitening=whitening), own.sums)
    if state.status is not None and state.point is not None:  # not even then is the sweep left out
        trial, whitening = final(state, solver.lower, solver.upper)[0], state.point.factor.whitening()
        state = dataclasses.replace(state, trial=trial, whitening=whitening, proposal=state.point.newton, status=None)
    left = ("The precision was not reached by reading everything once.",) if target is not None else ()
    return state, seconds, (f"One pass came first, in {how}.", *left)


def target(problem: Problem, precision: Any) -> Callable[[Vector, Vector], bool] | None:
    """Return whether estimates (p,) and standard errors (p,) are as precise as was asked for."""
    if precision is None:
        return None
    names = problem.parameters.free
    if isinstance(precision, Mapping):
        if unknown := [name for name in precision if name not in names]:
            raise NlsqError(f"precision names {unknown}; the free parameters are {list(names)}.")
        absolute = np.array([float(precision.get(name, np.inf)) for name in names])
        return lambda _, error: bool((error <= absolute).all())
    if not float(precision) > 0:
        raise NlsqError(f"precision is {precision}; a number above 0 is needed.")
    return lambda theta, error: bool((error <= float(precision) * np.abs(theta)).all())
