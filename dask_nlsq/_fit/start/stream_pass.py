"""Stream pass: one pass in mini-batches of scattered partitions, the estimate moving as they come.

A batch is a few partitions drawn at random, so that sorted data do not bounce the estimate; the order is a function of
the seed alone. A bounded window of batches is under way: batch i is evaluated at the estimate that stood once batch
i − W was folded, in order, so that the result depends on W, a number of the plan, and not on who was faster. Out of
order, on request, batches are folded as they come. Until the batches have said enough, the information of the sample
from which the pass starts keeps the estimate from straying; it is not counted in the end, for its rows come by again.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import scipy

from dask_nlsq._errors import DataError, NlsqError
from dask_nlsq._fit.loop import validate_first_sweep
from dask_nlsq._fit.observer import Estimates, Observer, SweepBegin, TaskEnd
from dask_nlsq._fit.problem import Problem
from dask_nlsq._fit.sample import Sample
from dask_nlsq._fit.session import PassState
from dask_nlsq._kernel import Block, Request, Whitening, fold, kernel
from dask_nlsq._model import Objective
from dask_nlsq._plan import BATCHES, WINDOW, OptimizationGoal, schedule
from dask_nlsq._solver import State, Status, Streaming, StreamState, TrustRegion, final
from dask_nlsq._sweep import Failure, Group, reduce_group
from dask_nlsq._typing import Matrix, Vector

_FEWEST = 4
"""Batches before which no precision is believed."""

_ROWS = 50
"""Rows for each parameter, of the sample and of the pass, before which neither is believed without a sweep."""

_HARDLY = 1.05
"""Rise of the cost of the sample that means nothing: a model that is not quite right fits each sample differently."""

_CHANCE = 1e-6
"""Probability of a good pass that is taken for a lost one, which costs a sweep."""


@dataclasses.dataclass(frozen=True)
class Pass:
    """What came of a pass.

    `strayed` is how far the estimate is from where the batches were linearised, the sum of |J_b (θ − θ_b)|² / s², and
    `expected` what noise makes of that: each θ_b was as uncertain as what was known of it.
    """

    own: StreamState
    read: float  # share of the batches
    staleness: int  # most updates that an estimate missed
    strayed: float
    expected: float

    @property
    def settled(self) -> bool:
        """Whether the estimate lies where the batches were linearised, as far as noise can tell."""
        p = len(self.own.theta)
        return self.strayed <= self.expected * float(scipy.stats.chi2.isf(_CHANCE, p)) / p


def one_pass(
    problem: Problem,
    solver: Streaming,
    start: tuple[Vector, Whitening | None, Block],
    *,
    seed: int,
    ordered: bool = True,
    enough: Callable[[Pass], bool] = lambda _: False,
    begun: PassState | None = None,
    observer: Observer | None = None,
) -> Pass:
    """Pass over the partitions in batches, from a start that was found on a sample of their rows.

    Parameters
    ----------
    start : tuple
        The estimate, the S in whose coordinates the sums are kept, and the sample.
    ordered : bool
        Fold batches in the order in which they were sent, or else as they come.
    enough : callable
        Called after each batch; True ends the pass.
    begun : PassState, optional
        Where the pass stood when it was written down.
    observer : Observer, optional
        Told after each batch, and what would be written down then.
    """
    observer = observer or Observer()
    partitions = problem.source.partitions
    total = min(len(partitions), BATCHES)
    if begun is None:
        theta, whitening, sample = start
        own = solver.init(theta, whitening)
        s = None if whitening is None else whitening.s
        # `own` holds the batches alone and becomes the answer; `ahead` counts the sample too, and says where batches
        # are evaluated, for the first few alone would send the estimate astray.
        ahead = solver.step(own, kernel.reduce_block(problem.objective, sample, theta, s))
        current, sent = Pass(own, 0.0, 0, 0.0, 0.0), []
    else:
        own, ahead = begun.own, begun.ahead
        current = Pass(own, own.batches / total, begun.staleness, solver.strayed(own), begun.expected)
        labels = zip(begun.numbers.tolist(), begun.stood.tolist(), begun.thetas, begun.uncertainties, strict=True)
        sent = [_Sent(*label) for label in labels]
    batches = enumerate(schedule(len(partitions), seed))
    under_way = {label.number: label for label in sent}
    alike = (len(partitions), seed) if begun is None else None
    with problem.executor.opened(ordered, alike) as window:

        def send(label: _Sent, places: tuple[int, ...]) -> None:
            group = Group(places[0], tuple(partitions[i] for i in places), ahead=problem.plan.ahead, numbers=places)
            request = Request(label.theta, own.whitening, first=label.number == 0)
            under_way[label.number] = label
            window.send(label, reduce_group, group, problem.payload, (request,))

        # What was under way when the pass was written down is sent again, to be evaluated at the estimates of then.
        for number, places in itertools.islice(batches, own.batches + len(sent)):
            if number in under_way:
                send(under_way[number], places)
        while current.own.batches < total:
            for number, places in itertools.islice(batches, WINDOW - len(window)):
                send(_Sent(number, current.own.batches, ahead.theta, solver.uncertainty(ahead)), places)
            label, answer = window.receive()
            if isinstance(answer, Failure):
                raise answer.error(label.theta)
            problem.digests.check(answer.numbers, answer.digests)
            del under_way[label.number]
            reduction = fold(answer.parts[0])
            ahead = solver.step(ahead, reduction, label.theta)
            own = solver.step(current.own, reduction, label.theta)
            current = Pass(
                own,
                own.batches / total,
                max(current.staleness, own.batches - 1 - label.stood),
                solver.strayed(own),
                current.expected + float(np.sum(reduction.gram[:-1, :-1] * label.uncertainty)),
            )
            if own.skipped or enough(current):
                break
            saved = functools.partial(_passing, current, ahead, tuple(under_way.values()))
            observer.notify(TaskEnd(len(answer.digests), saved))
    return current


@dataclasses.dataclass(frozen=True)
class _Sent:
    """A batch under way: its number, the updates that its estimate knew, the estimate, and how uncertain that was."""

    number: int
    stood: int
    theta: Vector
    uncertainty: Matrix


def _passing(current: Pass, ahead: StreamState, sent: tuple[_Sent, ...]) -> dict[str, Any]:
    """Return what there is to be written down of a pass."""
    p = len(ahead.theta)
    return {
        "passing": PassState(
            current.own,
            ahead,
            current.staleness,
            current.expected,
            np.array([label.number for label in sent], np.int64),
            np.array([label.stood for label in sent], np.int64),
            np.array([label.theta for label in sent], float).reshape(-1, p),
            np.array([label.uncertainty for label in sent], float).reshape(-1, p, p),
        )
    }


def precise(solver: Streaming, current: Pass, precision: Callable[[Vector, Vector], bool]) -> bool:
    """Whether enough is known: the pass has settled, no direction is open, and the standard errors are small enough.

    Where the batches contradict each other, the standard errors, which are those of independent rows, say too little.
    """
    state = current.own
    if solver.unlike(state):
        return False
    if (
        state.sums is None
        or state.batches < _FEWEST
        or state.sums.rows < _ROWS * len(state.theta)
        or not current.settled
    ):
        return False
    factor = solver.factor(state)
    free = (state.theta > solver.lower) & (state.theta < solver.upper)
    error = np.zeros(len(free))  # what is held at a bound has none
    if free.any():
        some = factor.only(free)
        if not some.determined.all():
            return False
        error[free] = some.unscaled_stderr * solver.residual_std(state)
    return precision(state.theta, error)


def at_estimate(solver: Streaming, state: StreamState) -> Any:
    """Return the sums as a sweep at the estimate would have brought them."""
    # With r(θ) = r₀ + J (θ − θ₀), the sums at θ have J (θ − θ₀) added to their last row and column.
    shift = np.eye(len(state.theta) + 1)
    delta = state.theta - state.origin
    shift[:-1, -1] = delta if state.whitening is None else state.whitening.inverse @ delta
    gram = shift.T @ state.totals.gram @ shift
    return dataclasses.replace(state.totals, gram=gram, cost=0.5 * float(gram[-1, -1]), dropped=state.dropped)


def stream(
    problem: Problem,
    solver: TrustRegion,
    begun: State | PassState,
    sample: Sample,
    observer: Observer,
    *,
    seed: int,
    ordered: bool = True,
    target: Callable[[Vector, Vector], bool] | None = None,
) -> tuple[State | None, list[float], tuple[str, ...]]:
    """Pass over the data in batches; return the state that certifies next, or the last one where nothing is left to do.

    It is None where the sums are not used: the model was not finite on some batch, so that they lack rows, or the pass
    lost its way.

    The sums of the pass are those of a sweep at the estimate of the sample, but linearised nearer to the end.

    Parameters
    ----------
    begun : State or PassState
        The fit of the sample, from whose estimate the pass begins, or where a pass stood when it was written down.
    """
    clock = time.perf_counter()
    online = Streaming(solver.lower, solver.upper, solver.prior, solver.absolute_sigma, compare=target is not None)
    if isinstance(begun, PassState):
        origin, whitening = begun.own.origin, begun.own.whitening
    else:
        origin, whitening = final(begun, solver.lower, solver.upper)[0], begun.at.factor.whitening()

    def enough(current: Pass) -> bool:
        if current.own.sums is not None:
            observer.notify(Estimates(problem.parameters.free, lambda: online.known(current.own)))
        return target is not None and sample.block.rows >= _ROWS * len(origin) and precise(online, current, target)

    observer.notify(SweepBegin("batches"))
    start = (origin, whitening, sample.block)
    ended = one_pass(
        problem,
        online,
        start,
        seed=seed,
        ordered=ordered,
        enough=enough,
        begun=begun if isinstance(begun, PassState) else None,
        observer=observer,
    )
    streamed, seconds = ended.own, [time.perf_counter() - clock]
    if streamed.skipped:
        note = f"The model was not finite on batch {streamed.batches} of a first pass, which was given up."
        return None, [], (note,)
    if streamed.sums is None:
        raise DataError(
            f"There are no rows to fit: {streamed.dropped} were dropped by the NaN policy, and those of infinite "
            "sigma, which have zero weight, do not count."
        )
    validate_first_sweep(problem, streamed.sums)
    if not ended.settled or not agrees(problem.objective, online, streamed, sample.block):
        note = "A first pass in batches led away from where they were linearised, and was not used."
        return None, [], (note,)
    how = f"{streamed.batches} batches, each evaluated at an estimate at most {ended.staleness} updates old"
    how += "" if ordered else " and folded as it came, so that another run will differ a little"
    fast = problem.plan.goal is OptimizationGoal.FAST and sample.block.rows >= _ROWS * len(origin)
    reached = enough(ended)
    if reached or fast:
        last = solver.step(
            dataclasses.replace(solver.init(streamed.theta), whitening=whitening), at_estimate(online, streamed)
        )
        last = dataclasses.replace(last, status=Status.PRECISION if reached else Status.STREAMED)
        return last, seconds, (f"{100 * ended.read:.3g} % of the batches were read, {how}.",)
    state = solver.step(dataclasses.replace(solver.init(origin), whitening=whitening), streamed.sums)
    if state.status is not None and state.status is not Status.MAX_NFEV:  # not even then is the sweep left out
        trial, whitening = final(state, solver.lower, solver.upper)[0], state.at.factor.whitening()
        state = dataclasses.replace(state, trial=trial, whitening=whitening, proposal=state.at.newton, status=None)
    unlike = "The partitions differ by more than noise, so that no part of them stands for all: everything was read."
    missed = "The precision was not reached by reading everything once."
    left = () if target is None else (unlike if online.unlike(streamed) else missed,)
    return _unmeasured(state), seconds, (f"One pass came first, in {how}.", *left)


def agrees(
    objective: Objective, online: Streaming, streamed: StreamState, block: Block, elsewhere: Vector | None = None
) -> bool:
    """Whether a sample lies hardly higher at the estimate than elsewhere (p,), or as noise has it.

    Elsewhere is where the sums began, by default.
    """
    here = kernel.reduce_block(objective, block, streamed.theta, None)
    there = kernel.reduce_block(objective, block, streamed.origin if elsewhere is None else elsewhere, None)
    rise = 2.0 * (here.cost - there.cost) / online.residual_std(streamed) ** 2
    if here.finite and here.cost <= _HARDLY * there.cost:
        return True
    return bool(here.finite and rise <= scipy.stats.chi2.isf(_CHANCE, len(streamed.theta)))


def _unmeasured(state: State) -> State:
    """Say that no sweep has measured the cost at the point of a state, so that the next one finds no rise in it."""
    point, origin = (dataclasses.replace(each, measured=False) for each in (state.at, state.start))
    return dataclasses.replace(state, point=point, origin=origin)


def target(
    names: Sequence[str], precision: float | Mapping[str, float] | None
) -> Callable[[Vector, Vector], bool] | None:
    """Return whether estimates (p,) and standard errors (p,) of so named parameters are as precise as was asked for.

    Raises
    ------
    NlsqError
        The precision is none, or names what is not free.
    """
    if precision is None:
        return None
    asked = list(precision.values()) if isinstance(precision, Mapping) else [precision]
    if not asked or not all(isinstance(v, (int, float, np.number)) and v > 0 for v in asked):
        raise NlsqError(f"precision is {precision!r}; a number above 0, or some by name, is needed.")
    if isinstance(precision, Mapping):
        if unknown := [name for name in precision if name not in names]:
            raise NlsqError(f"precision names {unknown}; the free parameters are {list(names)}.")
        # A parameter that is not named may have any error.
        absolute = np.array([float(precision.get(name, np.inf)) for name in names])
        return lambda _, error: bool((error <= absolute).all())
    return lambda theta, error: bool((error <= float(precision) * np.abs(theta)).all())
