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
from dask_nlsq._model import Expansion, Guess, Loss, Model, Objective, Parameters, check_loss, make_feasible
from dask_nlsq._solver import Series, Settled, Status, Tolerance, Way, minimise, settle, square
from dask_nlsq._sweep import serialize
from dask_nlsq._typing import AnyArray, Matrix, Vector

STATISTICS = ("cost", "redchi", "rsquared", "n_obs", "nfev", "status")
"""Figures of each fit besides its parameters and their standard errors."""

_MOST_PARAMETERS = 16
"""Parameters up to which the factorisation is unrolled over lanes; with more, compiling takes minutes."""

_DEPENDENT = 1e-13
"""Ratio of a pivot to its diagonal element below which a column of J is a combination of the others."""

_NOTHING = 1e-13
"""Length of a column of J, beside what it was at the start, from which it is rounding."""

_NEAR, _POLISH = 1e-4, 5
"""Standard errors that the last step may be long, and evaluations that are spent on a longer one."""

Flags = npt.NDArray[np.bool_]


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
    guessed: tuple[str, ...]  # free parameters whose start the model guesses
    absolute_sigma: bool
    nan_policy: str
    covariance: bool
    max_nfev: int

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
        series, usable = self._series(y, given)
        n, p = len(y), len(self.free)
        lower, upper = (
            _own(given.get(side), shared, n) for side, shared in (("lower", self.lower), ("upper", self.upper))
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
        ends = _Ends.none(n, p)
        held = np.broadcast_to(lower == upper, (n, p))
        points = np.count_nonzero(series.weight > 0, axis=1) * np.ones(n, int)
        dof = points - np.count_nonzero(~held, axis=1)
        enough = usable & (dof >= 0)
        start = self._starts(series, enough, given.get("start"), lower, upper)
        ends.status[:] = np.where(enough, ends.status, int(Status.TOO_FEW))
        rows = np.flatnonzero(enough)
        if len(rows):
            self._fit(series, rows, start, lower, upper, bounded, dof, ends)
        return self._figures(series, ends, held, points)

    def _series(self, y: Matrix, given: Mapping[str, Matrix]) -> tuple[Series, Flags]:
        """Return the points with their weights, and which series have any."""
        y = as_float(y)
        x = tuple(np.asarray(c)[None] for c in self.x or ()) or tuple(
            np.asarray(given[f"x{i}"], float) for i in range(self.objective.n_columns)
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
        return Series(tuple(filled[:-1]), filled[-1], np.ascontiguousarray(weight)), usable

    def _starts(self, series: Series, enough: Flags, given: Matrix | None, lower: Matrix, upper: Matrix) -> Matrix:
        """Return where each fit begins, (n, p), inside its bounds."""
        n = len(series.y)
        start = np.array(_own(given, self.start, n) * np.ones((n, 1)))
        if self.guessed and self.model.guess is not None:
            places = [self.free.index(name) for name in self.guessed]
            own_start = np.full(start.shape, np.nan) if given is None else given
            for row in np.flatnonzero(enough & np.isnan(own_start[:, places]).any(axis=1)):
                own = series.take(np.array([row]))
                counts = own.weight[0] > 0
                guess = _guess(self.model.guess, [c[0][counts] for c in own.x], own.y[0][counts])
                values = np.array([guess.get(name, np.nan) for name in self.guessed], float)
                wanted = np.isfinite(values) & np.isnan(own_start[row, places])
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
        ends: _Ends,
    ) -> None:
        """Write how the fits of some series end."""
        # Nothing that is chosen here may hang on the bounds of another series.
        way = Way(bounded=bounded)
        self._attempt(way, series, rows, start, lower, upper, dof, ends)
        rows = rows[~ends.settled[rows]]
        if not len(rows):
            return
        open_ = np.broadcast_to(np.isinf(lower) & np.isinf(upper), start.shape)[rows]
        patterns, which = np.unique(open_ & linearity(self.objective).linear, axis=0, return_inverse=True)
        for i, pattern in enumerate(patterns):
            if pattern.any():
                some = rows[which.ravel() == i]
                projected = dataclasses.replace(way, linear=tuple(pattern.tolist()))
                self._attempt(projected, series, some, start, lower, upper, dof, ends)
        rows = rows[~ends.settled[rows]]
        # A direction that the data never saw has an infinite error; one that was lost on the way is a failure.
        lost = rows[ends.status[rows] > 0]
        if len(lost):
            free = np.broadcast_to(lower < upper, start.shape)[lost]
            begun = settle(self.objective, series.take(lost), start[lost], free)
            ends.status[lost[begun.pivot > _DEPENDENT]] = int(Status.UNIDENTIFIABLE)

    def _attempt(
        self,
        way: Way,
        series: Series,
        rows: npt.NDArray[np.int64],
        start: Matrix,
        lower: Matrix,
        upper: Matrix,
        dof: Vector,
        ends: _Ends,
    ) -> None:
        """Fit some series in one way, and keep what is better than what is known."""
        limits, part = (_some(lower, rows), _some(upper, rows)), series.take(rows)
        tolerance = Tolerance(most=self.max_nfev, way=way)
        fits = minimise(self.objective, part, start[rows], *limits, tolerance=tolerance)
        fitted = _Ends.of(fits.theta, fits.cost, fits.steps, fits.status, fits.curvature)
        _polish(self.objective, part, fitted, *limits, dof[rows])
        _mark_lost(self.objective, part, fitted, start[rows], *limits, way)
        ends.improve(rows, fitted)

    def _figures(self, series: Series, ends: _Ends, held: Flags, points: npt.NDArray[np.int64]) -> Matrix:
        """Return the row of each fit: NaN in place of the estimates of one that failed."""
        n = len(ends.status)
        dof = points - np.count_nonzero(ends.free, axis=1)  # a bound takes a parameter's freedom
        with np.errstate(all="ignore"):
            redchi = np.where(dof > 0, 2.0 * ends.cost / dof, np.nan)
            s2 = np.ones(n) if self.absolute_sigma else np.where(dof > 0, redchi, np.inf)
            inverse = _covariance(ends)
            # A parameter that is fixed keeps the error 0 where there are no degrees of freedom.
            cov = np.where(inverse == 0, 0.0, np.where(np.isinf(inverse), inverse, s2[:, None, None] * inverse))
            cov = np.where(np.isinf(cov), np.inf, cov)
            w2 = np.broadcast_to(series.weight**2, series.y.shape)
            mean = (w2 * series.y).sum(axis=1) / w2.sum(axis=1)
            rsquared = 1.0 - 2.0 * ends.cost / (w2 * (series.y - mean[:, None]) ** 2).sum(axis=1)
        bound = ~ends.free & ~held
        cov[bound[:, :, None] | bound[:, None, :]] = np.nan
        theta, cov = self._expand(ends.theta, cov)
        figures = np.full((n, self.width), np.nan)
        k = theta.shape[1]
        good = ends.status > 0
        figures[good, :k] = theta[good]
        figures[good, k : 2 * k] = np.sqrt(np.einsum("nii->ni", cov))[good]
        statistics = (ends.cost, redchi, rsquared, points, ends.steps, ends.status)
        figures[:, 2 * k : 2 * k + len(STATISTICS)] = np.stack(statistics, axis=1)
        figures[~good, 2 * k : 2 * k + 3] = np.nan
        if self.covariance:
            figures[good, 2 * k + len(STATISTICS) :] = cov.reshape(n, -1)[good]
        return figures

    def _expand(self, theta: Matrix, cov: npt.NDArray[np.float64]) -> tuple[Matrix, npt.NDArray[np.float64]]:
        """Return all parameters and their covariance from those of the free ones."""
        expansion = self.objective.expansion
        if expansion is None:
            return theta, cov
        with jax.enable_x64(True):
            everything = functools.partial(_expand_one, expansion)
            whole = np.asarray(jax.vmap(everything)(jnp.asarray(theta)))
            jacobian = np.asarray(jax.vmap(jax.jacfwd(everything))(jnp.asarray(theta)))
        turned = np.moveaxis(jacobian, 1, 2)
        finite = np.isfinite(cov)
        spread = jacobian @ np.where(finite, cov, 0.0) @ turned
        used, back = (jacobian != 0).astype(float), (turned != 0).astype(float)
        # A parameter that does not depend on another must not take its infinite variance or its NaN.
        for value, there in ((np.inf, np.isinf(cov)), (np.nan, np.isnan(cov))):
            spread[used @ there.astype(float) @ back > 0] = value
        return whole, spread


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


@dataclasses.dataclass(frozen=True)
class _Ends:
    """How fits end, a row each, written as it becomes known."""

    theta: Matrix
    cost: Vector
    steps: npt.NDArray[np.int64]
    status: npt.NDArray[np.int64]
    curvature: Matrix  # (n, p (p + 1) / 2), the rows of the lower triangle of JᵀJ
    inverse: npt.NDArray[np.float64]  # (n, p, p), its inverse
    pivot: Vector
    free: Flags  # (n, p), neither fixed nor held by a bound

    @classmethod
    def none(cls, n: int, p: int) -> _Ends:
        """Return the ends of fits that have none."""
        status, curvature = np.full(n, int(Status.NOT_FINITE)), np.zeros((n, p * (p + 1) // 2))
        return cls.of(np.full((n, p), np.nan), np.full(n, np.inf), np.zeros(n, np.int64), status, curvature)

    @classmethod
    def of(
        cls,
        theta: Matrix,
        cost: Vector,
        steps: npt.NDArray[np.int64],
        status: npt.NDArray[np.int64],
        curvature: Matrix,
    ) -> _Ends:
        """Return ends of which nothing more is known."""
        n, p = theta.shape
        return cls(
            theta, cost, steps, status, curvature, np.full((n, p, p), np.nan), np.zeros(n), np.zeros((n, p), bool)
        )

    @property
    def settled(self) -> Flags:
        """Which fits need no second attempt: they have converged, to where the data determine all parameters."""
        return (self.status > 0) & (self.pivot > _DEPENDENT)

    def improve(self, rows: npt.NDArray[np.int64], other: _Ends) -> None:
        """Take the ends of some rows that are better than what is known of them."""
        before = 2 * self.settled[rows] + (self.status[rows] > 0)
        after = 2 * other.settled + (other.status > 0)
        better = (after > before) | ((after == before) & (other.cost < self.cost[rows]))
        steps = self.steps[rows] + other.steps
        for field in dataclasses.fields(self):
            getattr(self, field.name)[rows[better]] = getattr(other, field.name)[better]
        self.steps[rows] = steps
        self.status[rows] = np.where(better, other.status, self.status[rows])


def _polish(objective: Objective, series: Series, ends: _Ends, lower: Matrix, upper: Matrix, dof: Vector) -> None:
    """Add the last step of each fit, and write what its covariance follows from."""
    rows = np.flatnonzero(np.isfinite(ends.theta).all(axis=1) & np.isfinite(ends.cost))
    if not len(rows):
        return
    at_bound = (ends.theta <= lower) | (ends.theta >= upper)
    ends.free[:] = ~at_bound
    known = settle(objective, series.take(rows), ends.theta[rows], ends.free[rows], ends.curvature[rows])
    _record(ends, rows, known)
    step, decrease = known.step, known.decrease
    for _ in range(_POLISH):
        s2 = 2.0 * ends.cost[rows] / np.maximum(dof[rows], 1)
        trial = np.clip(ends.theta[rows] + step, _some(lower, rows), _some(upper, rows))
        # Of columns of J that depend on one another, the step along what is not determined means nothing.
        good = (ends.status[rows] > 0) & (ends.pivot[rows] > _DEPENDENT) & np.isfinite(step).all(axis=1)
        long = good & (decrease > _NEAR**2 * s2 + _rounding(series.take(rows), ends, rows) ** 2)
        last = good & ~long
        ends.theta[rows[last]] = trial[last]
        ends.cost[rows[last]] -= np.minimum(decrease[last], ends.cost[rows[last]])
        rows, trial = rows[long], trial[long]
        if not len(rows):
            return
        # Of an ill-conditioned J, the normal equations have lost the digits of the step.
        known = settle(objective, series.take(rows), trial, ends.free[rows], ends.curvature[rows])
        lower_cost = known.cost <= ends.cost[rows]
        ends.status[rows[~lower_cost]] = int(Status.STALLED)
        rows, known = rows[lower_cost], Settled(*(column[lower_cost] for column in known))
        ends.theta[rows] = trial[lower_cost]
        _record(ends, rows, known)
        step, decrease = known.step, known.decrease
    ends.status[rows] = int(Status.STALLED)


def _rounding(series: Series, ends: _Ends, rows: npt.NDArray[np.int64]) -> Vector:
    """Return what rounding leaves uncertain in the residuals of some fits, as the length of their vector."""
    i, j = np.tril_indices(ends.theta.shape[1])
    size = (ends.curvature[rows][:, i == j] * ends.theta[rows] ** 2).sum(axis=1)
    response = (series.weight**2 * series.y**2).sum(axis=1)
    level: Vector = 16 * np.finfo(float).eps * np.sqrt(response + size)
    return level


def _mark_lost(
    objective: Objective, series: Series, ends: _Ends, start: Matrix, lower: Matrix, upper: Matrix, way: Way
) -> None:
    """Mark fits in which a parameter has no effect any more, beside the effect that it had at the start.

    An amplitude that ended at 0 leaves a rate undetermined, whose column of J is rounding.
    """
    i, j = np.tril_indices(start.shape[1])
    squares = ends.curvature[:, i == j]
    size = np.maximum(np.abs(ends.theta), np.abs(start)) ** 2
    response = (series.weight**2 * series.y**2).sum(axis=1)[:, None]
    with np.errstate(over="ignore", invalid="ignore"):
        slight = ends.free & (squares * size <= 1e-24 * response)
    rows = np.flatnonzero((ends.status > 0) & slight.any(axis=1))
    if len(rows):
        limits = _some(lower, rows), _some(upper, rows)
        begin = Tolerance(most=0, way=dataclasses.replace(way, linear=()))
        begun = minimise(objective, series.take(rows), start[rows], *limits, tolerance=begin)
        lost = slight[rows] & (squares[rows] <= _NOTHING**2 * begun.curvature[:, i == j])
        ends.pivot[rows[lost.any(axis=1)]] = 0.0


def _record(ends: _Ends, rows: npt.NDArray[np.int64], known: Settled) -> None:
    for name in ("cost", "inverse", "pivot"):
        getattr(ends, name)[rows] = getattr(known, name)


def _covariance(ends: _Ends) -> npt.NDArray[np.float64]:
    """Return (JᵀJ)⁻¹ of each fit, infinite for parameters that a direction unseen by the data moves."""
    inverse = ends.inverse.copy()
    for row in np.flatnonzero((ends.status > 0) & (ends.pivot <= _DEPENDENT)):
        free = ends.free[row]
        gram = square(ends.curvature[row][None])[0][np.ix_(free, free)]
        scale = np.sqrt(np.where(np.diag(gram) > 0, np.diag(gram), 1.0))
        values, vectors = np.linalg.eigh(gram / scale / scale[:, None])
        seen = values > _DEPENDENT * max(values[-1], _DEPENDENT)
        half = vectors[:, seen] / np.sqrt(values[seen]) / scale[:, None]
        block = half @ half.T
        unseen = np.abs(vectors[:, ~seen]).max(axis=1, initial=0.0) > 1e-6
        block[unseen, :] = np.inf
        block[:, unseen] = np.inf
        inverse[row] = 0.0
        inverse[row][np.ix_(free, free)] = block
    return inverse


def _own(given: Matrix | None, shared: Vector, n: int) -> Matrix:
    """Return what all series share, (1, p), or what each has, (n, p), where any has its own."""
    if given is None:
        return shared[None]
    return np.where(np.isnan(given), shared, given)


def _some(limits: Matrix, rows: npt.NDArray[np.int64]) -> Matrix:
    return limits if len(limits) == 1 else limits[rows]


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
) -> Task:
    """Resolve the arguments of many fits by a bound model; without columns, each series has its own."""
    check_loss(loss, f_scale)
    if nan_policy not in ("omit", "raise"):
        raise DataError(f'nan_policy is {nan_policy!r}; "omit" or "raise" is needed.')
    if not isinstance(max_nfev, (int, np.integer)) or max_nfev < 1:
        raise NlsqError(f"max_nfev is {max_nfev!r}; a positive whole number is needed.")
    parameters = Parameters.of(model, p0, bounds, fixed, tied)
    check_names(model.parameters, ())
    return Task(
        objective=_look(model, parameters, loss, f_scale),
        model=model,
        x=None if columns is None else tuple(columns),
        sigma=sigma,
        start=parameters.start,
        lower=parameters.lower,
        upper=parameters.upper,
        guessed=tuple(name for name in parameters.guessed if model.guess is not None),
        absolute_sigma=absolute_sigma,
        nan_policy=nan_policy,
        covariance=covariance,
        max_nfev=int(max_nfev),
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


def _look(model: Model, parameters: Parameters, loss: Loss, f_scale: float) -> Objective:
    """Return what is to be evaluated, looked at before any data."""
    objective = Objective(
        dataclasses.replace(model, guess=None),
        (*(f"x{i}" for i in range(sum(map(len, model.columns.values())))), "y"),
        loss=loss,
        f_scale=f_scale,
        expansion=parameters.expansion,
    )
    if parameters.p > _MOST_PARAMETERS:
        raise ModelError(
            f"The model {model.name!r} has {parameters.p} free parameters; fit_many takes {_MOST_PARAMETERS} at most. "
            "Hold some with fixed=, or fit each series with fit."
        )
    look = validate.look(serialize(objective).value, parameters.start)
    if look.objective.jacobian == "numeric":
        raise ModelError(
            f"The model {model.name!r} {look.obstacle}. fit_many differentiates with JAX only: write the model with "
            "jax.numpy, or fit each series with fit."
        )
    return look.objective


def predict(
    task: Task, theta: npt.NDArray[np.float64], columns: Sequence[npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64]:
    """Return the model with all its parameters `theta` (*outer, all) at columns (points,) or (*outer, points)."""
    outer, points = theta.shape[:-1], columns[0].shape[-1]
    x = [np.broadcast_to(as_float(np.asarray(c)), (*outer, points)).reshape(-1, points) for c in columns]
    return predict_lanes(task.objective, x, theta.reshape(-1, theta.shape[-1])).reshape(*outer, points)
