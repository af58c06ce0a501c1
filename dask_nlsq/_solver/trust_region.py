r"""Trust-region Gauss-Newton on the triangle of the Jacobian: one sweep a trial, none for a re-damping.

A sweep at the trial point returns cost, gradient and curvature together. An accepted trial thus needs no
second sweep, and after a rejected one the triangle of the last accepted point is still here: the shorter step
is free.

Progress is measured in standard errors. The Gauss-Newton step δ has the length :math:`e = |R\delta|/s`, and no
parameter moves by more than e of its standard errors (the relative offset of Bates & Watts,
doi:10.1080/00401706.1981.10486291). After two such steps the next is about
:math:`e_k \min(1, e_k/e_{k-1})`; when that is below the tolerance, the last step is added without
another sweep. Where another sweep is cheap the step itself must be below it, and the covariance is then
that of the minimiser to as many digits.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import numpy.typing as npt

from dask_nlsq._kernel import MANY_ROWS, Linearity, Reduction, Request, Whitening
from dask_nlsq._model import Prior
from dask_nlsq._solver import lapack
from dask_nlsq._solver.base import Solver
from dask_nlsq._solver.factor import EPS, Factor, factorise
from dask_nlsq._solver.projection import Projection, project, project_many
from dask_nlsq._solver.status import STOPPED, Status
from dask_nlsq._solver.subproblem import Step, gauss_newton, measure, solve
from dask_nlsq._typing import Matrix, Vector

_TINY = float(np.finfo(float).tiny)

_TIGHT, _LOOSE = 1e-8, 1e-4
"""Largest remaining step in standard errors: up to `MANY_ROWS`, where it is the step itself, and above."""

_LOOSE_SPREAD = 5e-6
"""Largest relative change of a standard error that the last step, taken without a sweep, is expected to bring."""

_PATIENCE = 4
"""Accepted sweeps without a shorter remaining step, at the noise level of the cost, before rounding is blamed."""


_IDLE, _PROGRESS = 100, 1e-4
"""Sweeps without progress after which a fit has stalled: neither has the cost fallen by so many s², nor the remaining
step to a half. What creeps towards a minimum that lies nowhere would go on until `max_nfev`."""


_SPENT = 250
"""Largest number of sweeps of an attempt where the linear parameters are known. The last attempt has this limit only
where second derivatives are available: without them, some valid fits converge slowly."""


_POLISH = 3
"""Sweeps spent at the end on a triangle that could not be trusted: each brings 1e8 more within reach."""


_RADII = (0.1, 0.1, 10.0)
"""First radius of each attempt, in units of the scaled start: with the linear parameters projected out, then without,
then a large one. On the NIST problems each finds the way somewhere where those before it do not."""


_FADED = 1e-3
"""Length of a column of J, beside the longest that it has had, from which the model may have stopped responding."""

_NEXT_TO_NOTHING = 0.1
"""Standard errors that the undamped step may leave where steps are refused for what is below rounding."""

_FORGET = 0.5
"""Share of a parameter's scale that outlasts a sweep: an oscillation of the scale does not let steps jump."""

_HALF, _SLOW = 0.5, 6
"""Contraction of the remaining step that is slow, and sweeps in a row after which second derivatives are asked for."""

_RECENTRE = 1.0
"""Change of an amplitude, beside itself, from which derivatives that it scales are evaluated anew."""

_TEMPER = 4.0
"""Most that an amplitude changes beside its best in one step."""

_SHARE = 1e-3
"""Share of the residuals that roundings of the parameters, which differ from row to row, add up with."""

_LEAST_CURVATURE = 0.1
"""Share of the curvature without its negative part that the full one must keep in every direction to be used."""


@dataclasses.dataclass(frozen=True)
class Record:
    """What one sweep taught: a row of the history."""

    sweep: int
    theta: Vector
    cost: float
    step: float  # length of the Gauss-Newton step from here, in standard errors
    damping: float
    radius: float
    accepted: bool


@dataclasses.dataclass(frozen=True)
class Point:
    """The last accepted point, and all that its sweep taught."""

    theta: Vector  # (p,)
    whitening: Whitening | None  # of the reduction
    reduction: Reduction
    factor: Factor
    newton: Step  # the undamped step from here
    # The trust region around it.
    scale: Vector  # (p,), zero for parameters that are projected out
    radius: float
    measured: bool = True  # else the cost is that of linear models, and no yardstick for the next sweep
    explained: float = 0.0  # decrease of the cost that the linear parameters alone bring
    bent: Factor | None = None  # with the second derivatives of the model, where they hold a step

    @property
    def model(self) -> Factor:
        """The triangle on which steps are computed."""
        return self.factor if self.bent is None else self.bent

    @property
    def level(self) -> float:
        """The cost with the linear parameters at their best."""
        return max(self.reduction.cost - self.explained, 0.0)

    @property
    def rounding_level(self) -> float:
        """What one unit in the last place of the parameters does to the residual."""
        return EPS * lapack.norm(self.factor.norms * self.theta)

    def within(self, radius: float) -> Point:
        """Return the point with another radius of its trust region."""
        known = self.theta, self.whitening, self.reduction, self.factor, self.newton, self.scale
        return Point(*known, radius, self.measured, self.explained, self.bent)

    @property
    def noise(self) -> float:
        """What rounding leaves uncertain in the cost, that of the parameters included."""
        level = self.rounding_level
        return cost_noise(self.reduction) + level * (math.sqrt(2.0 * self.reduction.cost) * _SHARE + 0.5 * level)

    @property
    def believed(self) -> bool:
        """Whether the undamped step lies where the linear model holds: inside the trust region, or next to nothing."""
        return self.slight or lapack.norm(self.scale * self.newton.delta) <= self.radius

    @property
    def slight(self) -> bool:
        """Whether the undamped step moves each parameter by a thousandth of itself, or of what the data would see."""
        s = math.sqrt(2.0 * self.reduction.cost / max(self.reduction.rows, 1))
        moves = np.abs(self.newton.delta)
        return bool(((moves <= 1e-3 * np.abs(self.theta)) | (self.scale * moves <= 1e-3 * s)).all())


@dataclasses.dataclass(frozen=True)
class State:
    """All that the solver knows; what is not here does not matter."""

    # What is to be swept next.
    trial: Vector  # (p,)
    whitening: Whitening | None = None
    proposal: Step | None = None  # how the trial was reached; None for a start, or for the same point again
    # What is known.
    point: Point | None = None
    origin: Point | None = None  # the first point
    refused: bool = False  # whether the last trial was rejected
    # how a first attempt ended that was not believed
    fallback: State | None = dataclasses.field(default=None, metadata={"stored": "refuge"})
    history: tuple[Record, ...] = ()
    # What is left to try.
    shortest: float = float("inf")
    patience: int = _PATIENCE
    slow: int = 0  # sweeps that did not halve the remaining step, less those that did
    second: bool = False  # whether second derivatives are asked for
    attempt: int = 0  # place in the attempts
    begun: int = 0  # sweeps before this one
    milestone: int = 0  # place in the history of the last sweep that was progress
    polish: int = _POLISH
    status: Status | None = None
    beyond: State | None = None  # where it goes on from, had a limit been wider

    @property
    def at(self) -> Point:
        """The last accepted point, of a state that has seen a sweep."""
        if self.point is None:
            raise RuntimeError("No sweep has been taken yet.")
        return self.point

    @property
    def start(self) -> Point:
        """The first point, of a state that has seen a sweep."""
        if self.origin is None:
            raise RuntimeError("No sweep has been taken yet.")
        return self.origin

    @property
    def ending(self) -> Status:
        """How the fit ended, of a state in which it has."""
        if self.status is None:
            raise RuntimeError("The fit has not ended yet.")
        return self.status

    @property
    def nsweeps(self) -> int:
        """Sweeps so far."""
        return len(self.history)

    @property
    def idle(self) -> bool:
        """Whether too many sweeps have gone by without progress."""
        return self.nsweeps - self.milestone > _IDLE

    @property
    def lowest(self) -> float:
        """The lowest cost of a point that was accepted; infinite before the first."""
        known = [state.point.reduction.cost for state in (self, self.fallback) if state is not None and state.point]
        return min(known, default=float("inf"))


@dataclasses.dataclass(frozen=True)
class TrustRegion(Solver[State]):
    """Options of the solver; bounds are arrays of shape (p,)."""

    lower: Vector
    upper: Vector
    prior: Prior | None = None
    tolerance: float | None = None  # largest remaining step, in standard errors; by default the rows decide
    absolute_sigma: bool = False
    ftol: float | None = None
    xtol: float | None = None
    gtol: float | None = None
    max_nfev: int = 1000
    # What is known of the model.
    linearity: Linearity | None = None
    second_order: bool = False  # whether its second derivatives can be had

    def _projects(self, state: State) -> npt.NDArray[np.bool_]:
        """Return which parameters are projected out, (p,): those in which the model is linear, without bounds.

        Later attempts project none out.
        """
        return self._none if self.linearity is None or state.attempt > 0 else self._unbounded_linear

    @functools.cached_property
    def _none(self) -> npt.NDArray[np.bool_]:
        return np.zeros(len(self.lower), bool)

    @functools.cached_property
    def _unbounded_linear(self) -> npt.NDArray[np.bool_]:
        linear: npt.NDArray[np.bool_] = self._none if self.linearity is None else self.linearity.linear
        return np.isinf(self.lower) & np.isinf(self.upper) & linear

    @property
    def _coupled(self) -> npt.NDArray[np.bool_]:
        """Which parameters scale the derivative with respect to another one and are linear, (p,)."""
        return self._none if self.linearity is None else self.linearity.coupled

    def init(self, theta: Vector) -> State:
        """Return the state before the first sweep, at `theta` (p,)."""
        return State(trial=np.asarray(theta, float))

    def request(self, state: State) -> Request:
        """Return what the next sweep is to evaluate."""
        return Request(state.trial, state.whitening, first=not state.history, second=state.second)

    def projected_costs(self, thetas: Matrix, grams: Matrix) -> tuple[Vector, Matrix]:
        """Return the costs at points (k, p) with the linear parameters at their optimum, and those points.

        The Gram matrices at the points are `grams` (k, p + 1, p + 1), with the residuals last. The points are clipped
        to the bounds; the costs are those without bounds.
        """
        if self.prior is not None:
            grams = self.prior.add_to_grams(grams, thetas)
        if self.linearity is None or not self.linearity.linear.any():
            return 0.5 * grams[:, -1, -1], thetas
        costs, steps = project_many(grams, self.linearity.linear)
        return costs, np.clip(thetas + steps, self.lower, self.upper)

    def step(self, state: State, reduction: Reduction) -> State:
        """Accept or refuse the trial, and propose the next."""
        if self.prior is not None:
            reduction = reduction.with_prior(self.prior, state.trial, state.whitening)
        trial = self._trial(state, reduction) if state.point is None or reduction.finite else None
        gain = self._gain(state, trial)
        # The thresholds of the gain, 1e-4 here and 0.25 and 0.75 of the radius, are those of MINPACK's lmder.
        if trial is not None and (state.point is None or gain > 1e-4):
            state = self._accept(state, trial, gain)
        else:
            state = self._reject(state, state.at, reduction, trial)
        following = self._next(state)
        if state.nsweeps < self.max_nfev or following.status is not None:
            return following
        ended = _better(dataclasses.replace(state, status=state.status or Status.MAX_NFEV), state.fallback)
        return dataclasses.replace(ended, beyond=following)

    def terminate(self, state: State) -> bool:
        """Return whether the fit has ended."""
        return state.status is not None

    def go_on(self, state: State) -> State:
        """Return a state that a limit had stopped as if it had not, where the limit is farther now."""
        if state.status in STOPPED:
            return state.beyond or dataclasses.replace(state, status=None)
        return state if state.beyond is None or state.nsweeps >= self.max_nfev else state.beyond

    def _next(self, state: State) -> State:
        """Propose what to sweep next, or end."""
        point = state.at
        doubtful = not point.factor.reliable and state.polish > 0
        near = state.history[-1].accepted and point.newton.length <= 1e-3 * self._residual_std(point.reduction)
        if doubtful and (near or state.status is not None):
            return self._settle(state, point)
        elif state.status is not None and state.attempt + 1 < len(_RADII) and self._strayed(state):
            state = self._start_again(state)
        if state.status is not None:
            return _better(state, state.fallback)
        return self._propose(state)

    def _settle(self, state: State, point: Point) -> State:
        """Sweep at the accepted point once more, with the S that its own triangle offers."""
        return dataclasses.replace(
            state,
            trial=point.theta,
            whitening=point.factor.whitening(self._projects(state)),
            proposal=None,
            polish=state.polish - 1,
            status=None,
        )

    def _strayed(self, state: State) -> bool:
        """Whether a fit ended where it may have lost its way: stalled, or with a parameter that no longer responds."""
        insensitive = state.start.factor.determined.all() and not state.at.factor.determined.all()
        spent = state.nsweeps - state.begun > _SPENT
        idle = state.idle and not spent and not self._projects(state).any()
        return bool(insensitive) or (state.status is Status.STALLED and not idle)

    def _start_again(self, state: State) -> State:
        """Go back to the start, whose sweep is known, without projection and with another radius."""
        origin = dataclasses.replace(state.start, scale=state.start.factor.norms, explained=0.0)
        again = State(
            trial=origin.theta,
            origin=origin,
            fallback=_better(state, state.fallback),
            history=state.history,
            attempt=state.attempt + 1 if self._projects(state).any() else len(_RADII) - 1,
            begun=state.nsweeps,
            milestone=state.nsweeps,
        )
        radius = _RADII[again.attempt] * (lapack.norm(origin.scale * origin.theta) or 1.0)
        return dataclasses.replace(again, point=origin.within(radius))

    def _trial(self, state: State, reduction: Reduction) -> Point | None:
        """Return what the sweep at the trial taught, or None where that is no use; its radius is the point's before."""
        p, before = len(state.trial), state.point
        settled = state.proposal is None and state.whitening is not None
        reference = None if before is None else before.factor.norms
        gradient, curvature = reduction.gram[:p, p], _curvature(reduction)
        form = curvature if curvature is not None and not state.second else reduction.gram[:p, :p]
        factor = factorise(form, gradient, state.whitening, reference, settled)
        if before is not None and not all(map(math.isfinite, factor.norms.tolist())):  # beyond what float64 squares
            return None
        bent = None
        if state.second and curvature is not None:
            bent = factorise(curvature, gradient, state.whitening, reference, settled)
        newton = gauss_newton(bent or factor, self.lower - state.trial, self.upper - state.trial)
        linear, explained, scale = self._projects(state), 0.0, factor.norms
        if np.count_nonzero(linear):
            projection = project(factor, linear)
            explained, scale = projection.explained, np.zeros(p)
            scale[~linear] = projection.factor.norms
        if before is not None:
            scale = np.maximum(scale, _FORGET * before.scale)
        radius = 0.0 if before is None else before.radius
        return Point(
            state.trial, state.whitening, reduction, factor, newton, scale, radius, explained=explained, bent=bent
        )

    def _gain(self, state: State, trial: Point | None) -> float:
        """Return the decrease of the cost over the predicted one; 1 where rounding hides both."""
        if trial is None:
            return -1.0
        if state.point is None or state.proposal is None or state.proposal.recentres:
            return 1.0
        if not state.point.measured:
            return 1.0
        actual = state.point.level - trial.level
        predicted = state.proposal.predicted
        if max(abs(actual), predicted) <= state.point.noise:
            return 1.0
        return actual / predicted if predicted > 0 else -1.0

    def _accept(self, state: State, trial: Point, gain: float) -> State:
        reduction = trial.reduction
        point = trial.within(self._radius(state, trial, gain))
        remains = point.newton.length / self._residual_std(reduction)
        patience = _PATIENCE if remains < state.shortest else state.patience - 1
        slow = state.slow + 1 if remains > _HALF * self._remains(state.point) else max(state.slow - 1, 0)
        accepted = dataclasses.replace(
            state,
            point=point,
            origin=state.origin or point,
            shortest=min(state.shortest, remains),
            patience=patience,
            slow=slow,
            refused=False,
            milestone=state.nsweeps if self._ahead(state, reduction, remains) else state.milestone,
            history=(*state.history, self._record(state, reduction, remains, True)),
            status=self._judge(state, point, remains, patience, gain),
        )
        spent = accepted.nsweeps - state.begun > _SPENT and self.linearity is not None
        spent = spent and (self.second_order or state.attempt < len(_RADII) - 1)
        if accepted.status is None and (accepted.idle or spent):
            return dataclasses.replace(accepted, status=Status.STALLED)
        return accepted

    def _remains(self, point: Point | None) -> float:
        return float("inf") if point is None else point.newton.length / self._residual_std(point.reduction)

    def _ahead(self, state: State, reduction: Reduction, remains: float) -> bool:
        """Whether an accepted sweep is progress since the last that was; the first of an attempt is."""
        if state.milestone == state.nsweeps or not state.history[state.milestone].accepted:
            return True
        if state.point is not None and not state.point.measured:
            return True
        last, s = state.history[state.milestone], self._residual_std(reduction)
        return reduction.cost < last.cost - _PROGRESS * s * s or remains < 0.5 * last.step

    def _reject(self, state: State, point: Point, reduction: Reduction, trial: Point | None) -> State:
        reach = point.radius if state.proposal is None else lapack.norm(point.scale * state.proposal.delta)
        radius = 0.25 * min(point.radius, reach) if reach > 0 else point.radius
        vanished = radius <= 4 * EPS * lapack.norm(point.scale * point.theta)
        noise = 100 * point.noise  # the estimate is one of size only
        equal = trial is None or trial.level - point.level <= noise
        hidden = state.proposal is not None and equal and state.proposal.predicted <= noise
        hidden = hidden and self._promises_nothing(state, point, noise)
        return dataclasses.replace(
            state,
            point=point.within(radius),
            slow=state.slow + 1,
            refused=True,
            history=(*state.history, self._record(state, reduction, float("nan"), False)),
            status=Status.ROUNDING if hidden else Status.STALLED if vanished else None,
        )

    def _promises_nothing(self, state: State, point: Point, noise: float) -> bool:
        """Whether the undamped step is next to nothing, or means nothing, for the model has stopped responding."""
        small = point.newton.length <= _NEXT_TO_NOTHING * self._residual_std(point.reduction)
        return small or point.newton.predicted <= noise or bool(lost(state, self.absolute_sigma).any())

    def _propose(self, state: State) -> State:
        point, linear = state.at, self._projects(state)
        lower, upper = self.lower - point.theta, self.upper - point.theta
        if np.count_nonzero(linear):
            step = self._projected_step(state, point, linear, lower, upper)
        else:
            step = solve(point.model, point.newton, point.scale, point.radius, lower, upper)
        trial = np.minimum(np.maximum(point.theta + step.delta, self.lower), self.upper)
        second = state.second or (self.second_order and state.slow >= _SLOW)
        return dataclasses.replace(
            state, trial=trial, whitening=point.factor.whitening(linear), proposal=step, second=second
        )

    def _projected_step(
        self, state: State, point: Point, linear: npt.NDArray[np.bool_], lower: Vector, upper: Vector
    ) -> Step:
        """Return a step of the nonlinear parameters inside their region, the linear ones following at their best."""
        nonlinear = ~linear
        if not np.count_nonzero(nonlinear):
            return dataclasses.replace(point.newton, recentres=True)
        projection = project(point.model, linear)
        if self._recentres(state, point, projection):
            return dataclasses.replace(
                measure(point.model, projection.lift(np.zeros(np.count_nonzero(nonlinear))), 0.0), recentres=True
            )
        newton = measure(projection.factor, point.newton.delta[nonlinear], 0.0)
        step = solve(
            projection.factor, newton, point.scale[nonlinear], point.radius, lower[nonlinear], upper[nonlinear]
        )
        delta = point.newton.delta if step is newton else projection.lift(step.delta)
        delta = self._tempered(point, projection, delta)
        return Step(delta, step.damping, step.predicted, lapack.norm(point.model.r @ delta))

    def _tempered(self, point: Point, projection: Projection, delta: Vector) -> Vector:
        """Keep amplitudes near their best at the point: their linear prediction may change signs where it is poor."""
        linear = projection.linear
        best = point.theta[linear] + projection.best
        ends, others = best / _TEMPER, best * _TEMPER
        kept = np.maximum(point.theta[linear] + delta[linear], np.minimum(ends, others))
        kept = np.minimum(kept, np.maximum(ends, others))
        delta = delta.copy()
        delta[linear] = np.where(self._coupled[linear], kept - point.theta[linear], delta[linear])
        return delta

    def _recentres(self, state: State, point: Point, projection: Projection) -> bool:
        """Whether the linear parameters are so far from their best that they scale the other derivatives wrongly."""
        if state.proposal is not None and state.proposal.recentres:
            return False
        coupled = self._coupled[projection.linear]
        here = point.theta[projection.linear]
        far = np.abs(projection.best) > _RECENTRE * np.minimum(np.abs(here), np.abs(here + projection.best))
        return bool(np.count_nonzero(coupled & far)) and projection.explained > 0.5 * point.newton.predicted

    def _radius(self, state: State, trial: Point, gain: float) -> float:
        if state.point is None or (state.proposal is not None and state.proposal.recentres and state.nsweeps == 1):
            return self._first_radius(trial)
        if state.proposal is None:
            return state.point.radius
        reach = lapack.norm(trial.scale * state.proposal.delta)
        if gain < 0.25:
            return 0.5 * reach
        return max(state.point.radius, 2.0 * reach) if gain > 0.75 else state.point.radius

    def _first_radius(self, trial: Point) -> float:
        return _RADII[0] * lapack.norm(trial.scale * trial.theta) or math.sqrt(2.0 * trial.level) or 1.0

    def _judge(self, before: State, now: Point, remains: float, patience: int, gain: float) -> Status | None:
        """Return the first test that holds at a newly accepted point."""
        if remains <= _TIGHT:
            return Status.CONVERGED
        shrinks = self._shrinks(before, now)
        if self.tolerance is not None:
            if remains * shrinks <= self.tolerance:
                return Status.CONVERGED
        elif now.reduction.rows > MANY_ROWS and remains * shrinks <= _LOOSE:
            if _spread_change(before.point, now) * shrinks <= _LOOSE_SPREAD:
                return Status.CONVERGED
        if now.newton.length <= residual_noise(now.reduction) * math.sqrt(now.factor.p) + now.rounding_level:
            return Status.ROUNDING
        if patience <= 0 and now.newton.predicted <= now.noise:
            return Status.ROUNDING
        return self._scipy_tests(before, now, gain)

    def _shrinks(self, before: State, now: Point) -> float:
        """Return by what factor the remaining step is expected to shrink; 1 where nothing is known."""
        if before.point is None or before.proposal is None or before.proposal.damping > 0 or before.proposal.recentres:
            return 1.0
        ratio = now.newton.length / max(before.point.newton.length, _TINY)
        return min(1.0, ratio / max(1.0 - ratio, 0.1))

    def _scipy_tests(self, before: State, now: Point, gain: float) -> Status | None:
        """Return SciPy's own tests, for those who set them; a poor step, cut short, says nothing of the cost."""
        if self.gtol is not None:
            gradient = now.factor.gradient
            room = np.where(gradient > 0, now.theta - self.lower, self.upper - now.theta)
            if np.max(np.abs(gradient) * np.minimum(room, 1.0)) < self.gtol:
                return Status.GTOL
        if before.point is None or before.proposal is None:
            return None
        reach, size = lapack.norm(before.proposal.delta), lapack.norm(now.theta)
        gained = before.point.reduction.cost - now.reduction.cost
        small_step = self.xtol is not None and bool(reach < self.xtol * (self.xtol + size))
        small_gain = self.ftol is not None and gain > 0.25 and bool(gained < self.ftol * now.reduction.cost)
        if small_step and small_gain:
            return Status.BOTH
        return Status.FTOL if small_gain else Status.XTOL if small_step else None

    def _residual_std(self, reduction: Reduction) -> float:
        return residual_std(reduction, len(self.lower), self.absolute_sigma)

    def _record(self, state: State, reduction: Reduction, remains: float, accepted: bool) -> Record:
        damping = 0.0 if state.proposal is None else state.proposal.damping
        radius = 0.0 if state.point is None else state.point.radius
        return Record(state.nsweeps + 1, state.trial, reduction.cost, remains, damping, radius, accepted)


def _spread_change(before: Point | None, now: Point) -> float:
    """Return the largest relative change of a standard error between two points, their unit s aside."""
    if before is None:
        return 1.0
    old, new = before.factor.unscaled_stderr, now.factor.unscaled_stderr
    return float(np.max(np.abs(new - old) / np.where(old > 0, old, 1.0)))


def _curvature(reduction: Reduction) -> Matrix | None:
    """Return the curvature with second derivatives, of a loss or of the model, where it holds a step."""
    p = len(reduction.gram) - 1
    gram, full = reduction.gram[:p, :p], reduction.curvature
    if full is None or not np.isfinite(full).all():
        return None
    scale = np.sqrt(np.where(np.diag(gram) > 0, np.diag(gram), 1.0))
    excess = (full - _LEAST_CURVATURE * gram) / scale / scale[:, None]
    return full if np.linalg.eigvalsh(excess)[0] >= 0 else None


def stop(state: State, status: Status) -> State:
    """Return a state that somebody stops: a second attempt, too, ends at the better of both."""
    ended = _better(dataclasses.replace(state, status=status), state.fallback)
    if ended.point is state.point:
        return ended
    return dataclasses.replace(ended, status=status, beyond=state if status in STOPPED else None)


def _better(last: State, first: State | None) -> State:
    """Return the lower of two endings, or, where the costs are within s², the one that converged; history of both."""
    if first is None or first.status is None or last.status is None:
        return last
    earlier, later = first.at.reduction, last.at.reduction
    s = residual_std(min(earlier, later, key=lambda each: each.cost), first.at.factor.p, absolute_sigma=False)
    alike = abs(earlier.cost - later.cost) <= s * s
    before, after = (alike and first.status.success, -earlier.cost), (alike and last.status.success, -later.cost)
    return last if after >= before else dataclasses.replace(first, history=last.history)


def final(state: State, lower: Vector, upper: Vector) -> tuple[Vector, float]:
    """Return the parameters with the last Gauss-Newton step added, and the cost predicted there.

    No sweep looks at that step. Where another test than its length ended the fit, it is added only if it is next to
    nothing: at the rounding level, parameters of a term that has vanished may move far.
    """
    point = state.at
    if state.status is None or not state.status.success or state.refused or not point.believed:
        return point.theta, point.reduction.cost
    near = point.newton.length <= _NEXT_TO_NOTHING * residual_std(point.reduction, point.factor.p, absolute_sigma=False)
    if state.status is not Status.CONVERGED and not (near or point.slight):
        return point.theta, point.reduction.cost
    theta = np.clip(point.theta + point.newton.delta, lower, upper)
    return theta, max(point.reduction.cost - point.newton.predicted, 0.0)


def lost(state: State, absolute_sigma: bool) -> npt.NDArray[np.bool_]:
    """Return which parameters the model has stopped responding to on the way, (p,).

    Their columns of J are next to nothing beside what they have been, and their standard errors reach farther
    than any trust region did: a square or a product whose best value is zero, a rate whose amplitude has
    vanished. The triangle then says nothing of how far they may go.
    """
    point = state.at
    reach = residual_std(point.reduction, point.factor.p, absolute_sigma) * point.factor.unscaled_stderr * point.scale
    farthest = max(record.radius for record in state.history)
    faded: npt.NDArray[np.bool_] = (point.factor.norms <= _FADED * point.scale) & (reach > farthest)
    return faded


def residual_std(reduction: Reduction, p: int, absolute_sigma: bool) -> float:
    """Return s, the residual standard deviation behind the standard errors."""
    s = math.sqrt(2.0 * reduction.cost / max(reduction.rows - p, 1))
    return max(min(s, 1.0) if absolute_sigma else s, _TINY)


def residual_noise(reduction: Reduction) -> float:
    """Return what float64 leaves uncertain in one weighted residual: some units in the last place of y."""
    square = reduction.weighted_sum_of_squares / max(reduction.rows, 1)
    return 4.0 * EPS * math.sqrt(square)


def cost_noise(reduction: Reduction) -> float:
    """Return what rounding leaves uncertain in the cost: of the summation, and of each residual."""
    each = residual_noise(reduction)
    norm = math.sqrt(2.0 * reduction.cost)
    return 1e-13 * reduction.cost + norm * each + 0.5 * reduction.rows * each**2
