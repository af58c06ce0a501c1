"""Task: what is done with the series of one chunk, from arrays to a row of figures for each."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from dask_nlsq._errors import BoundsError, DataError, ModelError, NlsqError
from dask_nlsq._kernel import linearity, predict_lanes, validate
from dask_nlsq._many.estimates import (
    DEPENDENT,
    Cube,
    Estimates,
    Flags,
    dependent_on_own,
    determined,
    mark_lost,
    polish,
    some_rows,
    unscaled_covariance,
)
from dask_nlsq._model import COUNTS, Expansion, Guess, Loss, Model, Objective, Parameters, check_loss, make_feasible
from dask_nlsq._solver import Eliminated, Series, Status, Tolerance, Way, eliminate, gauss_newton_steps, minimise
from dask_nlsq._sweep import serialize
from dask_nlsq._typing import AnyArray, Matrix, Vector

STATISTICS = ("cost", "redchi", "rsquared", "n_obs", "nfev", "status")
"""Figures of each fit besides its parameters and their standard errors."""

_MOST_PARAMETERS = 16
"""Parameters up to which the factorisation is unrolled over lanes; with more, compiling takes minutes."""

_EXACT = 1e-9
"""Standard errors that may remain where shared parameters have been found."""


@dataclasses.dataclass(frozen=True, eq=False)
class Shared:
    """What all series together say of the parameters that they share, and of the spread of their residuals."""

    values: Vector  # (q,)
    unscaled_covariance: Matrix  # (q, q), that of s² = 1
    s2: float
    status: Status


@dataclasses.dataclass(frozen=True)
class Fitted:
    """Fits of some series, beside what they were fitted to."""

    series: Series
    estimates: Estimates
    fixed: Flags  # (n, p), by equal bounds
    points: npt.NDArray[np.int64]  # (n,), that count

    @property
    def dof(self) -> npt.NDArray[np.int64]:
        """Degrees of freedom of each series; a parameter at a bound takes none."""
        dof: npt.NDArray[np.int64] = self.points - np.count_nonzero(self.estimates.free, axis=1)
        return dof


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A model and the options of its fits; what is given for each series comes with the series."""

    objective: Objective
    model: Model  # with its guess
    x: tuple[Vector, ...] | None  # columns that all series share, each (points,)
    sigma: Vector | float | None  # that all series share
    start: Vector  # (p,), of the free parameters
    lower: Vector
    upper: Vector
    guessed: tuple[str, ...]  # free parameters whose start nobody gave, and which the model may guess
    absolute_sigma: bool
    nan_policy: str
    covariance: bool
    max_nfev: int
    n_shared: int = 0  # free parameters, the last of all, that are common to all series
    shared: Shared | None = None  # their estimates, once they are known

    @property
    def n_own(self) -> int:
        """Number of free parameters that each series has for itself; they are the first."""
        return len(self.start) - self.n_shared

    @property
    def alone(self) -> Task | None:
        """The same fits with nothing shared, where nobody says at which values shared parameters begin."""
        return dataclasses.replace(self, n_shared=0) if set(self.guessed) & set(self.free[self.n_own :]) else None

    @property
    def free(self) -> tuple[str, ...]:
        """Names of the free parameters."""
        expansion = self.objective.expansion
        return self.model.parameters if expansion is None else expansion.free

    @property
    def width(self) -> int:
        """Figures of a row: all parameters, their standard errors, the statistics and the covariance if wanted."""
        everything = len(self.model.parameters)
        return 2 * everything + len(STATISTICS) + everything**2 * self.covariance

    def __call__(self, y: Matrix, given: Mapping[str, Matrix]) -> Matrix:
        """Return the figures (n, width) of the fits to y (n, points).

        Parameters
        ----------
        given : mapping of str to ndarray
            What each series has of its own: ``x0``, ``x1``, … and ``sigma`` (n, points); ``start``, ``lower`` and
            ``upper`` (n, p), of which NaN stands for what all share.
        """
        return self.figures(
            self.fit(y, given if self.shared is None else self.with_shared(y, given, self.shared.values))
        )

    def with_shared(self, y: Matrix, given: Mapping[str, Matrix], values: Vector) -> dict[str, Matrix]:
        """Return what is given for each series with the shared parameters fixed at their values (q,)."""
        roles = {}
        for role in ("start", "lower", "upper"):
            rows = np.array(given.get(role, np.full((len(y), len(self.free)), np.nan)))
            rows[:, self.n_own :] = values
            roles[role] = rows
        return {**given, **roles}

    def fit(self, y: Matrix, given: Mapping[str, Matrix]) -> Fitted:
        """Fit each series; `given` is as above."""
        series, usable = self._series(y, given)
        n, p = len(y), len(self.free)
        lower, upper = (
            _each_or_shared(given.get(side), shared, n)
            for side, shared in (("lower", self.lower), ("upper", self.upper))
        )
        bounded = "lower" in given or "upper" in given or bool(np.isfinite([self.lower, self.upper]).any())
        if "lower" in given or "upper" in given:
            lower, upper = (np.broadcast_to(limit, (n, p)).copy() for limit in (lower, upper))
        if (lower > upper).any():
            row, column = np.argwhere(lower > upper)[0]
            raise BoundsError(
                f"The lower bound of {self.free[column]!r} is {lower[row, column]:g}, above its upper bound "
                f"{upper[row, column]:g}, for a series."
            )
        estimates = Estimates.unknown(n, p)
        fixed = np.broadcast_to(lower == upper, (n, p))
        points = np.count_nonzero(series.weight > 0, axis=1) * np.ones(n, int)
        dof = points - np.count_nonzero(~fixed, axis=1)
        enough = usable & (dof >= 0)
        start = self._starts(series, enough, given.get("start"), lower, upper)
        estimates.status[:] = np.where(enough, estimates.status, int(Status.TOO_FEW))
        rows = np.flatnonzero(enough)
        if len(rows):
            self._fit(series, rows, start, lower, upper, bounded, dof, estimates)
        return Fitted(series, estimates, fixed, points)

    def _series(self, y: Matrix, given: Mapping[str, Matrix]) -> tuple[Series, Flags]:
        """Return the points with their weights, and which series have any."""
        y = np.ascontiguousarray(as_float(y))  # NumPy sums rows in an order that hangs on how they lie
        x = tuple(np.asarray(c)[None] for c in self.x or ()) or tuple(
            np.ascontiguousarray(given[f"x{i}"], float) for i in range(self.objective.n_columns)
        )
        sigma = given.get("sigma", self.sigma)
        with np.errstate(divide="ignore"):
            weight = np.ones((1, 1)) if sigma is None else 1.0 / np.atleast_2d(np.asarray(sigma, float))
        known = np.isfinite(y)
        for column in (*x, np.where(np.isnan(weight), np.nan, 0.0)):
            known = known & np.isfinite(column)
        bad = known & ((weight < 0) | np.isinf(weight))
        if bad.any():
            raise DataError(
                f"sigma must be positive, or inf for a point without weight; it is zero or negative in {bad.sum():,} "
                "points of a chunk."
            )
        if not known.all():
            if self.nan_policy == "raise":
                row, point = np.argwhere(~np.broadcast_to(known, y.shape))[0]
                raise DataError(
                    f"x, y or sigma is not finite in {np.count_nonzero(~known):,} points of a chunk, the first of them "
                    f'point {point} of its series {row}; nan_policy="omit" leaves such points out.'
                )
            weight = np.where(known, weight, 0.0)
        weight = np.broadcast_to(weight, (len(weight), y.shape[1]))
        filled = [column if np.isfinite(column).all() else _repeat_known(column, weight > 0) for column in (*x, y)]
        usable = np.broadcast_to((weight > 0).any(axis=1), len(y))
        # One series alone shares no more than many do, so that their loop serves for it, too.
        of_x = (self.x is not None and bool(np.isfinite(column).all()) for column in x)
        shared = (*of_x, False, "sigma" not in given and bool(known.all()))
        return Series(tuple(filled[:-1]), filled[-1], np.ascontiguousarray(weight), shared), usable

    def _starts(self, series: Series, enough: Flags, given: Matrix | None, lower: Matrix, upper: Matrix) -> Matrix:
        """Return where each fit begins, (n, p), inside its bounds."""
        n = len(series.y)
        start = np.array(_each_or_shared(given, self.start, n) * np.ones((n, 1)))
        if self.guessed and self.model.guess_func is not None:
            places = [self.free.index(name) for name in self.guessed]
            given_start = np.full(start.shape, np.nan) if given is None else given
            for row in np.flatnonzero(enough & np.isnan(given_start[:, places]).any(axis=1)):
                one = series.take(np.array([row]))
                counts = one.weight[0] > 0
                guess = _guess(self.model.guess_func, [c[0][counts] for c in one.x], one.y[0][counts])
                values = np.array([guess.get(name, np.nan) for name in self.guessed], float)
                wanted = np.isfinite(values) & np.isnan(given_start[row, places])
                start[row, places] = np.where(wanted, values, start[row, places])
        feasible: Matrix = make_feasible(start, lower, upper)
        inside = (lower <= start) & (start <= upper)
        return np.where(inside, start, feasible)

    def _fit(
        self,
        series: Series,
        rows: npt.NDArray[np.int64],
        start: Matrix,
        lower: Matrix,
        upper: Matrix,
        bounded: bool,
        dof: Vector,
        estimates: Estimates,
    ) -> None:
        """Write how the fits of some series end."""
        # Nothing that is chosen here may hang on the bounds of another series.
        linear = tuple(linearity(self.objective).linear.tolist())
        way = Way(bounded=bounded, first=() if all(linear) else linear)
        self._attempt(way, series, rows, start, lower, upper, dof, estimates)
        rows = rows[~estimates.conclusive[rows]]
        if not len(rows):
            return
        open_ = np.broadcast_to(np.isinf(lower) & np.isinf(upper), start.shape)[rows]
        patterns, which = np.unique(open_ & linearity(self.objective).linear, axis=0, return_inverse=True)
        for i, pattern in enumerate(patterns):
            if pattern.any():
                some = rows[which.ravel() == i]
                projected = Way(bounded=bounded, linear=tuple(pattern.tolist()))
                self._attempt(projected, series, some, start, lower, upper, dof, estimates)
        rows = rows[~estimates.conclusive[rows]]
        # A direction that the data never saw has an infinite error; one that was lost on the way is a failure.
        lost = rows[estimates.status[rows] > 0]
        if len(lost):
            free = np.broadcast_to(lower < upper, start.shape)[lost]
            begun = gauss_newton_steps(self.objective, series.take(lost), start[lost], free)
            estimates.status[lost[begun.pivot > DEPENDENT]] = int(Status.UNIDENTIFIABLE)

    def _attempt(
        self,
        way: Way,
        series: Series,
        rows: npt.NDArray[np.int64],
        start: Matrix,
        lower: Matrix,
        upper: Matrix,
        dof: Vector,
        estimates: Estimates,
    ) -> None:
        """Fit some series in one way, and keep what is better than what is known."""
        limits, part = (some_rows(lower, rows), some_rows(upper, rows)), series.take(rows)
        tolerance = Tolerance(most=self.max_nfev, way=way)
        if self.shared is not None:  # from where they stand a last step brings the digits of a fit of all series
            tolerance = dataclasses.replace(tolerance, step=_EXACT)
        fits = minimise(self.objective, part, start[rows], *limits, tolerance=tolerance)
        fitted = Estimates.of(fits.theta, fits.cost, fits.steps, fits.status, fits.curvature)
        polish(self.objective, part, fitted, *limits, dof[rows])
        mark_lost(self.objective, part, fitted, start[rows], *limits, way)
        estimates.improve(rows, fitted)

    def figures(self, fitted: Fitted) -> Matrix:
        """Return the row of each fit: NaN in place of the estimates of one that failed."""
        estimates, dof = fitted.estimates, fitted.dof
        n = len(estimates.status)
        with np.errstate(all="ignore"):
            redchi = np.where(dof > 0, 2.0 * estimates.cost / dof, np.nan)
            s2 = np.ones(n) if self.absolute_sigma else np.where(dof > 0, redchi, np.inf)
            inverse = unscaled_covariance(estimates)
            if self.shared is not None:
                inverse, s2 = inverse + self._coupled(fitted, self.shared), np.full(n, self.shared.s2)
            # A parameter that is fixed keeps the error 0 where there are no degrees of freedom.
            cov = s2[:, None, None] * inverse
            odd = ~np.isfinite(cov).all(axis=(1, 2))
            some = np.where(inverse[odd] == 0, 0.0, np.where(np.isinf(inverse[odd]), inverse[odd], cov[odd]))
            cov[odd] = np.where(np.isinf(some), np.inf, some)
            rsquared = 1.0 - 2.0 * estimates.cost / estimates.spread
        bound = ~estimates.free & ~fitted.fixed
        if self.shared is not None:
            bound[:, self.n_own :] = np.isnan(self.shared.unscaled_covariance.diagonal())
        if bound.any():
            cov[bound[:, :, None] | bound[:, None, :]] = np.nan
        theta, cov = self._expand(estimates.theta, cov)
        figures = np.full((n, self.width), np.nan)
        k = theta.shape[1]
        status = estimates.status
        if self.shared is not None and not self.shared.status.success:
            status = np.where(status > 0, int(self.shared.status), status)
        good = status > 0
        figures[good, :k] = theta[good]
        figures[good, k : 2 * k] = np.sqrt(np.einsum("nii->ni", cov))[good]
        statistics = (estimates.cost, redchi, rsquared, fitted.points, estimates.steps, status)
        figures[:, 2 * k : 2 * k + len(STATISTICS)] = np.stack(statistics, axis=1)
        figures[~good, 2 * k : 2 * k + 3] = np.nan
        if self.covariance:
            figures[good, 2 * k + len(STATISTICS) :] = cov.reshape(n, -1)[good]
        return figures

    def _coupled(self, fitted: Fitted, shared: Shared) -> Cube:
        r"""Return what the uncertainty of the shared parameters s adds to the unscaled covariance of each series.

        The own ones u follow them as :math:`u = -Ks`, so that it is :math:`T V T^T` with the rows −K and the identity
        in T, where V is the unscaled covariance of s.
        """
        turn = np.zeros((len(fitted.points), len(self.free), self.n_shared))
        turn[:, self.n_own :] = np.eye(self.n_shared)
        rows = np.flatnonzero(fitted.estimates.status > 0)
        if len(rows):
            turn[rows, : self.n_own] = -self.eliminate(fitted, rows).coupling
        known = np.nan_to_num(shared.unscaled_covariance, nan=0.0, posinf=np.inf)  # one at a bound stays there
        return _propagate(turn, np.broadcast_to(known, (len(turn), *known.shape)))

    def eliminate(self, fitted: Fitted, rows: npt.NDArray[np.int64]) -> Eliminated:
        """Return what some series say of the shared parameters once their own ones are eliminated."""
        estimates = fitted.estimates
        free = determined(estimates, rows, self.n_own)
        free[:, self.n_own :] = True
        part, curvature = fitted.series.take(rows), estimates.curvature[rows]
        eliminated = eliminate(self.objective, part, estimates.theta[rows], free, curvature, self.n_own)
        # A projected column of which only rounding is left counts as zero.
        eliminated.root[dependent_on_own(curvature, free, self.n_own)] = 0.0
        return eliminated

    def _expand(self, theta: Matrix, cov: Cube) -> tuple[Matrix, Cube]:
        """Return all parameters and their covariance from those of the free ones."""
        expansion = self.objective.expansion
        if expansion is None:
            return theta, cov
        if expansion.tied:
            with jax.enable_x64(True):
                everything = functools.partial(_expand_one, expansion)
                whole = np.asarray(jax.vmap(everything)(jnp.asarray(theta)))
                jacobian = np.asarray(jax.vmap(jax.jacfwd(everything))(jnp.asarray(theta)))
            return whole, _propagate(jacobian, cov)
        place = [expansion.names.index(name) for name in expansion.free]
        whole = np.empty((len(theta), len(expansion.names)))
        whole[:] = [expansion.fixed.get(name, np.nan) for name in expansion.names]
        whole[:, place] = theta
        jacobian = np.zeros((len(theta), len(expansion.names), len(place)))
        jacobian[:, place, range(len(place))] = 1.0
        return whole, _propagate(jacobian, cov)


def _propagate(jacobian: Cube, cov: Cube) -> Cube:
    """Return J C Jᵀ for each of n matrices, where a zero in J keeps what is not finite in C away."""
    turned = np.moveaxis(jacobian, 1, 2)
    finite = np.isfinite(cov)
    spread: Cube = jacobian @ np.where(finite, cov, 0.0) @ turned
    if not finite.all():
        used, back = (jacobian != 0).astype(float), (turned != 0).astype(float)
        for value, there in ((np.inf, np.isinf(cov)), (np.nan, np.isnan(cov))):
            spread[used @ there.astype(float) @ back > 0] = value
    return spread


def _guess(guess: Guess, x: Sequence[Vector], y: Vector) -> Mapping[str, float]:
    """Return what a model guesses from the points of a series; nothing if it raises, as it may for a few points."""
    try:
        return dict(guess(x, y))
    except Exception:  # the function may be the user's own, and one series must not stop the others
        return {}


def _expand_one(expansion: Expansion, theta: jax.Array) -> jax.Array:
    return jnp.stack([jnp.asarray(value, jnp.float64) for value in expansion(list(theta))])


def as_float(array: AnyArray) -> AnyArray:
    """Return float64, with NaN where an array is masked; dates are seconds since 1970, NaT among them NaN."""
    if np.ma.isMaskedArray(array):
        array = np.ma.filled(array.astype(float), np.nan)
    if array.dtype.kind in "mM":
        seconds = array.astype(f"{array.dtype.kind}8[ns]")
        return np.where(np.isnat(seconds), np.nan, seconds.astype(np.int64) / 1e9)
    if array.dtype.kind not in "fiub":
        raise DataError(f"An array has the dtype {array.dtype}; real numbers are needed.")
    return np.asarray(array, float)


def _each_or_shared(given: Matrix | None, shared: Vector, n: int) -> Matrix:
    """Return what all series share, (1, p), or what each has, (n, p), where any has its own."""
    if given is None:
        return shared[None]
    return np.where(np.isnan(given), shared, given)


def _repeat_known(column: Matrix, known: Flags) -> Matrix:
    """Return a column with a known value of its series, or 0, in place of each that does not count."""
    column, known = np.broadcast_arrays(column, known)
    first = np.take_along_axis(column, known.argmax(axis=1)[:, None], axis=1)
    return np.where(known & np.isfinite(column), column, np.where(np.isfinite(first), first, 0.0))


def indices(names: Sequence[str]) -> dict[str, int]:
    """Return the column of each parameter and statistic in a row of figures."""
    k = len(names)
    return dict(zip(names, range(k), strict=True)) | {s: 2 * k + i for i, s in enumerate(STATISTICS)}


def make_task(
    model: Model,
    columns: Sequence[Vector] | None,
    *,
    sigma: Vector | float | None,
    p0: Any,
    bounds: Any,
    fixed: Any,
    tied: Mapping[str, str] | None,
    loss: Loss,
    f_scale: float,
    absolute_sigma: bool,
    nan_policy: str,
    max_nfev: object,
    covariance: bool = False,
    shared: str | Sequence[str] | None = None,
) -> Task:
    """Resolve the arguments of many fits by a bound model; without columns, each series has its own."""
    check_loss(loss, f_scale)
    if loss in COUNTS:
        raise NlsqError(
            f"loss={loss!r} is for dask_nlsq.fit, which maximises the likelihood of one series of counts; many series "
            "are fitted with sigma= or one of the other losses."
        )
    if nan_policy not in ("omit", "raise"):
        raise DataError(f'nan_policy is {nan_policy!r}; "omit" or "raise" is needed.')
    if not isinstance(max_nfev, (int, np.integer)) or max_nfev < 1:
        raise NlsqError(f"max_nfev is {max_nfev!r}; a positive whole number is needed.")
    common = () if shared is None else (shared,) if isinstance(shared, str) else tuple(shared)
    parameters = Parameters.of(model, p0, bounds, fixed, tied).with_shared_last(common)
    check_names(model.parameters, ())
    return Task(
        objective=_checked_objective(model, parameters, loss, f_scale),
        model=model,
        x=None if columns is None else tuple(columns),
        sigma=sigma,
        start=parameters.start,
        lower=parameters.lower,
        upper=parameters.upper,
        guessed=parameters.guessed,
        absolute_sigma=absolute_sigma,
        nan_policy=nan_policy,
        covariance=covariance,
        max_nfev=int(max_nfev),
        n_shared=len(common),
    )


def check_names(parameters: Sequence[str], keys: Sequence[str]) -> None:
    """Refuse names of which two would stand for one column of the answer.

    Raises
    ------
    ModelError
        A parameter has the name of a statistic, of a standard error or of a key.
    """
    names = [*parameters, *(f"{name}_stderr" for name in parameters), *STATISTICS, *keys]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ModelError(f"The answer would have two columns {twice[0]!r}; rename the parameter, or use Model.prefix.")


def _checked_objective(model: Model, parameters: Parameters, loss: Loss, f_scale: float) -> Objective:
    """Return what is to be evaluated, with its Jacobian chosen."""
    objective = Objective(
        dataclasses.replace(model, guess_func=None),
        (*(f"x{i}" for i in range(sum(map(len, model.columns.values())))), "y"),
        loss=loss,
        f_scale=f_scale,
        expansion=parameters.expansion,
    )
    if parameters.p > _MOST_PARAMETERS:
        raise ModelError(
            f"The model {model.name!r} has {parameters.p} free parameters; fit_many takes {_MOST_PARAMETERS} at most. "
            "Fix some with fixed=, or fit each series with fit."
        )
    checked = validate.check(serialize(objective).value, parameters.start)
    if checked.objective.jacobian == "numeric":
        raise ModelError(
            f"The model {model.name!r} {checked.obstacle}. fit_many differentiates with JAX only: write the model with "
            "jax.numpy, or fit each series with fit."
        )
    if checked.objective.responses is not None:
        raise ModelError(f"The model {model.name!r} is complex; fit_many takes one real y. Fit each series with fit.")
    return checked.objective


def predict(
    task: Task, theta: npt.NDArray[np.float64], columns: Sequence[npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64]:
    """Return the model with all its parameters `theta` (*outer, all) at columns (points,) or (*outer, points)."""
    outer, points = theta.shape[:-1], columns[0].shape[-1]
    x = [np.broadcast_to(as_float(np.asarray(c)), (*outer, points)).reshape(-1, points) for c in columns]
    return predict_lanes(task.objective, x, theta.reshape(-1, theta.shape[-1])).reshape(*outer, points)
