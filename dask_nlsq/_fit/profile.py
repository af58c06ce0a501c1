r"""Profile likelihood: how the cost rises when one parameter is held and the others are fitted again.

With C(v) the least cost where :math:`\theta_j = v`, and s the residual standard deviation of the fit,

.. math:: \tau(v) = \operatorname{sign}(v - \hat\theta_j) \sqrt{2 (C(v) - C(\hat\theta))} / s

is linear in v where the model is linear in its parameters. The interval ends where :math:`|\tau|` is Student's
quantile (Bates & Watts, doi:10.1002/9780470316757, chapter 6); it needs no symmetry and follows the bend that
standard errors do not see. Its slope costs nothing, :math:`d\tau/dv = (\partial C/\partial\theta_j) / (s^2 \tau)`, so
each end is found by Newton's method (compare Venzon & Moolgavkar, doi:10.2307/2347496). All ends of all parameters
share sweeps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy

from dask_nlsq._errors import DataError, NlsqError
from dask_nlsq._fit.loop import Search, fitted, run_searches
from dask_nlsq._fit.problem import Problem, arrange
from dask_nlsq._fit.progress import Progress
from dask_nlsq._fit.residual_pass import readable_again, residual_summary
from dask_nlsq._kernel import Request, Whitening
from dask_nlsq._result import columns_of
from dask_nlsq._solver import EPS, Factor, State, Statistics, Status, TrustRegion, cost_noise, final, lost
from dask_nlsq._sweep import ResidualSummary
from dask_nlsq._typing import Vector

T = TypeVar("T")

_TOLERANCE = 1e-3
"""Remaining step, in standard errors, of the other parameters: the cost knows it by its square."""

_CLOSE = 1e-4
"""Distance of τ from its aim within which the last step of Newton's method needs no sweep."""

_ROUNDS = 25
"""Values tried for one end; a few suffice where there is one."""

_FARTHEST = 1e3
"""Standard errors from the estimate at which an interval that has not ended is called open."""

_LOWER = 1e-3
"""Decrease of the cost, in units of s², that no rounding and no step left over explains."""


_SAME = 1e-4
"""Relative difference of χ² that steps left out and rounding make, and no change of the data."""

_PROBE = 0.01
"""Standard errors by which parameters move for a derivative of JᵀJ, which only matters over a standard error or so."""

_UNFINISHED = (Status.MAX_NFEV, Status.STALLED)
"""Ends of a fit that leave open how low its cost can be; where parameters are silent, it can be no lower."""


@dataclasses.dataclass(frozen=True)
class Conditional:
    """The fit with one parameter held at a value: τ, its slope, and where the other parameters have gone."""

    value: float
    tau: float
    slope: float  # dτ/dv
    theta: Vector  # (p,)
    tangent: Vector  # (p,), dθ/dv
    cost: float


@dataclasses.dataclass(frozen=True)
class Profiler:
    """A finished fit, ready to be fitted again with a parameter held."""

    problem: Problem  # without its groups, which may hold much memory
    solver: TrustRegion
    theta: Vector  # (p,), the estimates
    cost: float
    factor: Factor  # at the estimates
    noise: float  # what rounding leaves uncertain in the cost
    s2: float  # never below that: where the data have no noise, their rounding is it
    dof: int

    @classmethod
    def of(cls, problem: Problem, solver: TrustRegion, state: State, statistics: Statistics) -> Profiler:
        """Return what profiles the end of a fit."""
        # Limits and tolerances that were set for the fit would end fits of the profile short of their minima.
        solver = dataclasses.replace(solver, ftol=None, xtol=None, gtol=None, max_nfev=TrustRegion.max_nfev)
        at = _centre(solver, state)
        s2 = max(1.0 if solver.absolute_sigma else statistics.dispersion, at["noise"], float(np.finfo(float).tiny))
        return cls(dataclasses.replace(problem, groups=()), solver, **at, s2=s2, dof=statistics.dof)

    def _settled(self) -> Profiler:
        """Return the same at the minimum over all rows, where the fit was allowed to stop farther from it."""
        if (self.solver.tolerance or 0.0) <= _TOLERANCE:
            return self
        solver = dataclasses.replace(self.solver, tolerance=_TOLERANCE)
        (state,) = self._run([fitted(solver, self.theta)])
        if state is None or state.status is None or not state.status.success:
            raise NlsqError(
                'goal="fast" ended this fit before it came to a minimum over all rows, and none was found from there. '
                "Fit again without it."
            )
        return dataclasses.replace(self, solver=solver, **_centre(solver, state))

    def residual_summary(
        self, theta: Vector, s: float, chisqr: float | None, response: int | None = None
    ) -> ResidualSummary:
        """Return what one pass over the rows says of the residuals at all parameters `theta`.

        Parameters
        ----------
        s : float
            What residuals are divided by.
        chisqr : float, optional
            That of the fit, which of a linear loss without a prior is that of the rows.
        response : int, optional
            The one of several whose residuals are wanted, in units of its sigma; by default those of all.

        Raises
        ------
        DataError
            The rows are others than in the fit.
        """
        summary = residual_summary(readable_again(self.problem), theta, s, response)
        plain = self.problem.objective.ordinary and self.solver.prior is None and response is None
        if chisqr is not None and plain:
            now = summary.chisqr * s**2
            if abs(now - chisqr) > _SAME * chisqr + 4 * self.noise:
                raise DataError(f"χ² is {now:.8g} and was {chisqr:.8g} in the fit: the data have changed. Fit again.")
        return summary

    def intervals(self, level: float) -> dict[str, tuple[float, float]]:
        """Return both ends of the interval of each parameter that is free and determined."""
        quantile, at = float(scipy.stats.t.ppf(0.5 + level / 2, max(self.dof, 1))), self._settled()
        inside = (at.solver.lower < at.theta) & (at.theta < at.solver.upper)
        known = [j for j in np.flatnonzero(inside).tolist() if at._estimate(j).slope > 0]
        if not known:
            return {}
        ends = self._run([at._end(j, side * quantile) for j in known for side in (-1, 1)])
        names = self.problem.parameters.free
        return {names[j]: (ends[2 * i], ends[2 * i + 1]) for i, j in enumerate(known)}

    def _place(self, name: str) -> int:
        """Return the place of a free parameter."""
        free = self.problem.parameters.free
        if name not in free:
            raise NlsqError(f"{name!r} is no free parameter of this fit; those are {', '.join(free)}.")
        return free.index(name)

    def curve(self, name: str, values: npt.ArrayLike | None = None) -> pd.DataFrame:
        """Return τ, the cost and the other parameters at some values of one parameter."""
        j = self._place(name)
        values, at = None if values is None else _numbers(name, values), self._settled()
        estimate = at._estimate(j)
        if values is None:
            if not estimate.slope > 0:
                raise NlsqError(f"The data do not determine {name!r}; say with values= where to hold it.")
            values = estimate.value + np.linspace(-3, 3, 13) / estimate.slope
        # Values beyond a bound are on it, and there one fit will do.
        tried = np.unique(np.clip(values, self.solver.lower[j], self.solver.upper[j]))
        conditionals = self._run([at._conditional(j, value, estimate) for value in tried.tolist()])
        names = self.problem.parameters.names
        labels = columns_of(names, ("tau", "cost"))
        label = labels[names.index(name)]
        rows, index = [self._row(held) for held in conditionals], pd.Index(tried, name=label)
        return pd.DataFrame(rows, index=index, columns=["tau", "cost", *labels]).drop(columns=label)

    def contour(self, a: str, b: str, values: tuple[Vector, Vector] | None, points: int, within: float) -> pd.DataFrame:
        """Return the rise of χ², in units of s², on a grid of two parameters, the others being fitted again."""
        places = [self._place(name) for name in (a, b)]
        if a == b:
            raise NlsqError(f"A contour needs two parameters; {a!r} was named twice.")
        free, at = self.problem.parameters.free, self._settled()
        sides = []
        for j, given in zip(places, values or (None, None), strict=True):
            estimate = at._estimate(j)
            if given is None and not estimate.slope > 0:
                raise NlsqError(f"The data do not determine {free[j]!r}; say with values= where to hold it.")
            side = estimate.value + np.linspace(-within, within, points) / estimate.slope if given is None else given
            sides.append(np.unique(np.clip(_numbers(free[j], side), self.solver.lower[j], self.solver.upper[j])))
        pairs = [(one, other) for one in sides[0].tolist() for other in sides[1].tolist()]
        rises = self._run([at._rise(dict(zip(places, pair, strict=True))) for pair in pairs])
        grid = np.array(rises).reshape(len(sides[0]), len(sides[1]))
        return pd.DataFrame(grid, index=pd.Index(sides[0], name=a), columns=pd.Index(sides[1], name=b))

    def _rise(self, held: dict[int, float]) -> Search[float]:
        """Find the rise of χ² in units of s² with some parameters held; infinite where the model is not finite."""
        others = [j for j in range(len(self.theta)) if j not in held]
        shift = np.zeros(len(self.theta))
        for j, value in held.items():
            shift[j] = value - self.theta[j]
        scaled = self.factor.r / self.factor.norms
        along, *_ = np.linalg.lstsq(scaled[:, others], self.factor.r @ shift, rcond=64 * self.factor.p * EPS)
        shift[others] = -along / self.factor.norms[others]
        end = yield from self._with_held(held, self.theta + shift)
        if end is None:
            return float("inf")
        state, _, cost = end
        return float("nan") if state.status in _UNFINISHED else max(2.0 * (cost - self.cost) / self.s2, 0.0)

    def skewness(self, cov: pd.DataFrame) -> dict[str, float]:
        """Return Hougaard's measure of skewness of each free parameter that has a variance."""
        free = list(self.problem.parameters.free)
        known = cov.loc[free, free].to_numpy()
        places = [j for j in range(len(free)) if 0 < known[j, j] < np.inf]
        # What is at a bound, or not determined, stays where it is.
        units = [np.where(np.isfinite(known[j]), known[j], 0.0) / np.sqrt(known[j, j]) for j in places]
        ends = [(u, self.theta + sign * _PROBE * u) for u in units for sign in (-1, 1)]
        lengths = self._run([self._squared_length(theta, u) for u, theta in ends])
        slopes = (np.array(lengths[1::2]) - np.array(lengths[::2])) / (2 * _PROBE * self.s2)
        return dict(zip([free[j] for j in places], (0.0 - 1.5 * slopes).tolist(), strict=True))

    def _squared_length(self, theta: Vector, u: Vector) -> Search[float]:
        """Find the squared length of J u at some parameters."""
        whitening = Whitening(np.diag(1 / self.factor.norms), np.diag(self.factor.norms))
        reduction = yield Request(theta, whitening)
        v = whitening.inverse @ u
        return float(v @ reduction.gram[:-1, :-1] @ v)

    def _row(self, held: Conditional | None) -> list[float]:
        if held is None:
            return [np.nan, np.inf] + [np.nan] * len(self.problem.parameters.names)
        return [held.tau, held.cost, *map(float, self.problem.objective.expand(held.theta.tolist()))]

    def _run(self, searches: Sequence[Search[T]]) -> list[T]:
        problem = readable_again(self.problem)
        # Rows are held while a profile runs, and not for as long as the result lives.
        groups = arrange(problem.source, problem.reader, problem.plan)
        with Progress(len(problem.source.partitions), problem.progress) as bar:
            return run_searches(dataclasses.replace(problem, groups=groups), searches, bar)

    def _estimate(self, j: int) -> Conditional:
        """Return the fit itself as a point of the profile."""
        tangent, length = _follow(self.factor, j)
        return Conditional(float(self.theta[j]), 0.0, length / np.sqrt(self.s2), self.theta, tangent, self.cost)

    def _conditional(self, j: int, value: float, near: Conditional) -> Search[Conditional | None]:
        """Fit the other parameters, from where the tangent at a known point leads."""
        end = yield from self._with_held({j: value}, near.theta + near.tangent * (value - near.value))
        if end is None:
            return None
        state, theta, cost = end
        if state.status in _UNFINISHED:  # the least cost is lower by nobody knows how much
            return Conditional(value, np.nan, np.nan, theta, near.tangent, cost)
        factor, delta = state.at.factor, theta - state.at.theta
        tau = float(np.sign(value - self.theta[j]) * np.sqrt(max(2.0 * (cost - self.cost) / self.s2, 0.0)))
        gradient = float(factor.r[:, j] @ (factor.z + factor.r @ delta))  # of the cost, where the last step has led
        # At the estimate itself this is 0 / 0.
        slope = gradient / (self.s2 * tau) if tau else near.slope
        return Conditional(value, tau, slope, theta, _follow(factor, j)[0], cost)

    def _with_held(self, held: Mapping[int, float], start: Vector) -> Search[tuple[State, Vector, float] | None]:
        """Fit with some parameters held at values; None where the model is not finite at the start.

        Returned are the state at the end, the estimates (p,) with the last step added, and their cost.
        """
        lower, upper = self.solver.lower.copy(), self.solver.upper.copy()
        for j, value in held.items():
            lower[j] = upper[j] = value
        solver = dataclasses.replace(self.solver, lower=lower, upper=upper, tolerance=_TOLERANCE)
        state = yield from fitted(solver, np.clip(start, lower, upper))
        if state is None or state.point is None:
            return None
        theta, cost = final(state, lower, upper)
        if self.cost - cost > 10 * self.noise + _LOWER * self.s2 and state.status not in _UNFINISHED:
            parameters = self.problem.parameters
            p0 = dict(zip(parameters.free, theta.tolist(), strict=True)) | dict(parameters.fixed)
            at = ", ".join(f"{parameters.free[j]} = {value:g}" for j, value in held.items())
            raise NlsqError(
                f"With {at} the cost is {cost:g}, below that of the fit, {self.cost:g}: the fit had ended in a local "
                "minimum, or ftol, xtol or gtol had ended it before it came to one. Fit "
                f"again from p0={p0}."
            )
        return state, theta, cost

    def _end(self, j: int, aim: float) -> Search[float]:
        """Find where τ reaches its aim; a bound where that comes first, infinite where it goes on for ever."""
        centre = here = inner = self._estimate(j)
        side, reach = float(np.sign(aim)), abs(aim) / centre.slope
        bound = float(self.solver.upper[j] if side > 0 else self.solver.lower[j])
        # Where the data have no noise, τ is known no better than rounding lets the cost be.
        far, close = side * np.inf, max(_CLOSE, self.noise / self.s2)
        for _ in range(_ROUNDS):
            value = here.value + (aim - here.tau) / here.slope if here.slope > 0 else np.nan
            if np.isfinite(far):
                # Newton's value where it lies in the bracket, and else the middle, which always halves it.
                between = min(inner.value, far) < value < max(inner.value, far)
                value = value if between else 0.5 * (inner.value + far)
            else:
                most = 2.0 * max(abs(inner.value - centre.value), reach)
                value = centre.value + side * min(abs(value - centre.value) if np.isfinite(value) else most, most)
            value = min(value, bound) if side > 0 else max(value, bound)
            if abs(inner.value - centre.value) > _FARTHEST * reach:
                return bound  # τ stays below its aim
            if value == inner.value:
                return value  # the bound, or what is left is below rounding
            held = yield from self._conditional(j, value, inner)
            if held is None:
                far = value
                continue
            if np.isnan(held.tau):
                return float("nan")
            if abs(held.tau - aim) <= close and held.slope > 0:
                return held.value + (aim - held.tau) / held.slope
            if abs(held.tau) < abs(aim):
                inner = held
            else:
                far = value
            here = held
        return float("nan")


def _centre(solver: TrustRegion, state: State) -> dict[str, Any]:
    """Return the end of a fit, and how well its cost is known, as a Profiler holds them."""
    point = state.at
    theta, cost = final(state, solver.lower, solver.upper)
    noise = cost_noise(point.reduction) + 0.5 * point.rounding_level**2
    return {
        "theta": theta,
        "cost": cost,
        "factor": point.factor.without(lost(state, solver.absolute_sigma)),
        "noise": noise,
    }


def _numbers(name: str, values: npt.ArrayLike) -> Vector:
    """Return the values at which a parameter is to be held, or refuse them."""
    try:
        numbers = np.asarray(values, float)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if not numbers.size or not np.isfinite(numbers).all():
        raise NlsqError(f"values is {values!r:.200}; one or more finite numbers are needed, where to hold {name!r}.")
    return numbers


def _follow(factor: Factor, j: int) -> tuple[Vector, float]:
    """Return how the other parameters follow parameter j at least cost, (p,), and the length of what that leaves."""
    others = np.arange(factor.p) != j
    scaled = factor.r / factor.norms
    along, *_ = np.linalg.lstsq(scaled[:, others], scaled[:, j], rcond=64 * factor.p * EPS)
    left = float(np.linalg.norm(scaled[:, j] - scaled[:, others] @ along))
    tangent = np.ones(factor.p)
    tangent[others] = -along * factor.norms[j] / factor.norms[others]
    return tangent, factor.norms[j] * left if left > 64 * factor.p * EPS else 0.0
