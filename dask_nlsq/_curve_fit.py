"""curve_fit: SciPy's contract in front of `fit`.

Dask arrays are fitted row by row, in partitions. Arrays in memory are fitted as SciPy does, with the function called
on all of them at once: what `fit` is then given is the number of each row, and a model that picks those rows out
of the whole. That is row-wise whatever the function does with its data, a covariance between rows included.
"""

from __future__ import annotations

import collections
import dataclasses
import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import dask.array as da
import jax
import jax.numpy as jnp
import numpy as np
from scipy import linalg
from scipy.optimize import OptimizeWarning

from dask_nlsq._errors import DataError, ModelError, NlsqWarning, SweepError
from dask_nlsq._fit import fit
from dask_nlsq._numerics.factor import EPS, Factor
from dask_nlsq._numerics.model import Model
from dask_nlsq._numerics.status import Status
from dask_nlsq._result import FitResult
from dask_nlsq._typing import Matrix, Vector

Whiten = Callable[[Any], Any]
_Found = tuple[FitResult, int, Callable[[], Any]]

_LEASTSQ = {"col_deriv", "ftol", "xtol", "gtol", "maxfev", "epsfcn", "factor", "diag"}
"""Keywords that SciPy hands to `leastsq`."""

_LEAST_SQUARES = {
    *("ftol", "xtol", "gtol", "max_nfev", "loss", "f_scale", "callback", "x_scale", "diff_step"),
    *("tr_solver", "tr_options", "jac_sparsity", "verbose", "workers"),
}
"""Keywords that SciPy hands to `least_squares`."""

_HEEDED = ("ftol", "xtol", "gtol", "max_nfev", "loss", "f_scale", "callback")
"""Those that mean something here; the rest steer SciPy's own algorithms."""

_MINPACK = {1: 4, 2: 1, 3: 2, 4: 3}
"""`leastsq`'s number for what `least_squares` calls by another."""

_RENAMED = {Status.CONVERGED: Status.XTOL, Status.ROUNDING: Status.BOTH}
"""SciPy's nearest names for tests that it does not have."""


@dataclasses.dataclass(frozen=True)
class _Task:
    """A call with every argument checked."""

    f: Callable[..., Any]
    jac: Any  # callable or None
    names: tuple[str, ...]  # of the first argument, then of the parameters
    p0: Vector
    lower: Vector
    upper: Vector
    lm: bool
    options: dict[str, Any]  # for fit

    @property
    def p(self) -> int:
        """Number of parameters."""
        return len(self.p0)

    def fit(self, func: Any, x: Any, y: Any, jac: Any, **options: Any) -> FitResult:
        """Hand a function of the arguments `names` to `fit`."""
        model = Model(func, self.names, self.names[:1], name=getattr(self.f, "__name__", type(self.f).__name__))
        with _quiet():
            return fit(model, x, y, p0=self.p0, bounds=(self.lower, self.upper), jac=jac, **self.options, **options)


def curve_fit(
    f: Callable[..., Any],
    xdata: Any,
    ydata: Any,
    p0: Any = None,
    sigma: Any = None,
    absolute_sigma: bool = False,
    check_finite: bool | None = None,
    bounds: Any = (-np.inf, np.inf),
    method: str | None = None,
    jac: Any = None,
    *,
    full_output: bool = False,
    nan_policy: str | None = None,
    **kwargs: Any,
) -> Any:
    """Fit a function to data as `scipy.optimize.curve_fit` does, also to Dask arrays that exceed memory.

    Arguments, defaults, return values, exceptions and warnings are those of SciPy 1.18. The solver is that
    of `dask_nlsq.fit`, whatever `method` says, and by default it goes to the rounding level.

    Parameters
    ----------
    f : callable
        ``f(xdata, *parameters)``. With arrays in memory it is called on all of `xdata`, with Dask arrays on blocks of
        rows, and must then act on each row by itself.
    xdata : array_like, Dask array or object
        Array of shape (..., n), the rows along the last axis; anything else is handed to `f` as it is.
    ydata : array_like or Dask array
        Data of shape (n,).
    p0 : array_like, optional
        Starting values; by default 1, or a point inside the bounds. Needed where `f` takes ``*args``.
    sigma : float, or array_like of shape (n,) or (n, n), optional
        Standard deviation of ydata, or its covariance, which must be in memory.
    absolute_sigma : bool
        Whether `sigma` is in units of ydata.
    check_finite : bool, optional
        Raise ValueError for NaN or inf in arrays in memory; by default where `nan_policy` is None. Dask arrays are
        always checked.
    bounds : tuple or scipy.optimize.Bounds
        ``(lower, upper)``, each a number or of shape (p,).
    method : {"lm", "trf", "dogbox"}, optional
        Which of SciPy's rules apply: "lm" takes no bounds and needs p rows, and its covariance is inf where the data
        do not determine all parameters; the others then return the pseudo-inverse.
    jac : callable or {"2-point", "3-point", "cs"}, optional
        ``jac(xdata, *parameters)`` of shape (n, p). By default JAX differentiates a function written in
        ``jax.numpy``; any other, and any under a string, is differentiated by central differences.
    full_output : bool
        Return ``infodict``, ``mesg`` and ``ier`` too.
    nan_policy : {"raise", "omit"}, optional
        What to do with rows that hold NaN.
    **kwargs
        Those of `scipy.optimize.leastsq` ("lm") and `scipy.optimize.least_squares`: ftol, xtol, gtol, loss, f_scale,
        callback, and maxfev or max_nfev, the most passes over the data; others are accepted without effect.

    Returns
    -------
    popt : ndarray of shape (p,)
        Estimates.
    pcov : ndarray of shape (p, p)
        Their covariance.
    infodict : dict
        ``nfev``, the passes over the data; ``fvec``, the weighted residuals, lazy for Dask arrays; with "lm" also
        ``fjac``, ``ipvt`` and ``qtf``, where ``fjac`` is of shape (p, p).
    mesg : str
        Why the fit stopped.
    ier : int
        1 to 4, as in SciPy.

    Raises
    ------
    ValueError
        NaN in the data, or options that do not go together.
    RuntimeError
        The fit did not converge.
    TypeError
        There are fewer rows than parameters, under "lm".

    Warns
    -----
    OptimizeWarning
        The covariance could not be estimated; it is inf.

    Examples
    --------
    >>> import dask.array as da, jax.numpy as jnp, numpy as np, dask_nlsq
    >>> def decay(t, amplitude, rate):
    ...     return amplitude * jnp.exp(-rate * t)
    >>> t = da.linspace(0, 4, 1000, chunks=250)
    >>> popt, pcov = dask_nlsq.curve_fit(decay, t, 2.5 * np.exp(-1.3 * t))
    >>> popt.round(6).tolist()
    [2.5, 1.3]
    """
    task = _task(f, p0, bounds, method, jac, kwargs, absolute_sigma)
    xdata, ydata, sigma = (_as_array(a) for a in (xdata, ydata, sigma))
    if _is_dask(sigma) and sigma.ndim == 2:
        raise DataError(
            f"sigma is a Dask array of shape {sigma.shape}; a covariance between rows must be in memory: "
            "sigma.compute(), or the standard deviation of each row."
        )
    policy = _policy(nan_policy, check_finite)
    if _by_rows(xdata, ydata, sigma):
        result, rows, fvec = _fit_rows(task, xdata, ydata, sigma, policy)
    else:
        if _is_dask(xdata) and np.ndim(sigma) != 2:
            raise DataError(f"xdata has the shape {xdata.shape}; its last axis must be as long as ydata.")
        result, rows, fvec = _fit_whole(task, _in_memory(xdata), _in_memory(ydata), _in_memory(sigma), policy)
    if not result.success:
        raise RuntimeError(f"Optimal parameters not found: {_message(result)}")
    assert result.factor is not None
    pcov = _covariance(result.factor, result.cost, rows, task.lm, absolute_sigma)
    if pcov is None:
        pcov = np.full((task.p, task.p), np.inf)
        warnings.warn("Covariance of the parameters could not be estimated", OptimizeWarning, stacklevel=2)
    if not full_output:
        return result.popt, pcov
    code = int(_RENAMED.get(result.status, result.status))
    info = {"nfev": result.nfev, "fvec": fvec()} | (_triangle(result.factor) if task.lm else {})
    return result.popt, pcov, info, _message(result), _MINPACK[code] if task.lm else code


def _task(f: Any, p0: Any, bounds: Any, method: Any, jac: Any, kwargs: dict[str, Any], absolute: bool) -> _Task:
    """Check all arguments but the data, in SciPy's words."""
    names = _names(f, None if p0 is None else np.size(p0))
    p = len(names) - 1
    lower, upper = _bounds(bounds, p)
    start = _inside(lower, upper) if p0 is None else np.ravel(np.asarray(p0, float))
    bounded = bool((lower > -np.inf).any() or (upper < np.inf).any())
    method = method or ("trf" if bounded else "lm")
    if method not in ("lm", "trf", "dogbox"):
        raise ValueError("`method` must be 'trf', 'dogbox' or 'lm'.")
    if method == "lm" and bounded:
        raise ValueError("Method 'lm' only works for unconstrained problems. Use 'trf' or 'dogbox' instead.")
    if ((start < lower) | (start > upper)).any():
        raise ValueError("Initial guess is outside of provided bounds")
    if not callable(jac) and jac not in (None, "2-point", "3-point", "cs"):
        raise ValueError("`jac` must be '2-point', '3-point', 'cs' or callable.")
    options = _options(kwargs, method) | {"absolute_sigma": absolute}
    if callable(jac) and kwargs.get("col_deriv"):
        given = jac
        jac = lambda x, *theta: np.transpose(given(x, *theta))  # noqa: E731
    return _Task(f, jac, names, start, lower, upper, method == "lm", options)


def _names(f: Any, p: int | None) -> tuple[str, ...]:
    """Return the names of the data and of the parameters, by signature where that has as many."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        names = tuple(a.name for a in inspect.signature(f).parameters.values() if a.kind in kinds)
    except ValueError:
        names = ()
    if p is None and len(names) < 2:
        raise ValueError("Unable to determine number of fit parameters.")
    return names if p in (None, len(names) - 1) else ("x", *(f"p{i + 1}" for i in range(p or 0)))


def _bounds(bounds: Any, p: int) -> tuple[Vector, Vector]:
    pair = (bounds.lb, bounds.ub) if hasattr(bounds, "lb") else bounds
    if len(pair) != 2:
        raise ValueError("`bounds` must contain 2 elements.")
    sides = [np.asarray(side, float) for side in pair]
    lower, upper = (np.resize(side, p) if side.ndim == 0 else side for side in sides)
    if lower.shape != (p,) or upper.shape != (p,):
        raise ValueError("Inconsistent shapes between bounds and `x0`.")
    if (lower >= upper).any():
        raise ValueError("Each lower bound must be strictly less than each upper bound.")
    return lower, upper


def _inside(lower: Vector, upper: Vector) -> Vector:
    """Return SciPy's start: the middle of two bounds, 1 away from a single one, 1 without."""
    below, above = np.isfinite(lower), np.isfinite(upper)
    with np.errstate(invalid="ignore"):
        return np.select([below & above, below, above], [0.5 * (lower + upper), lower + 1, upper - 1], 1.0)


def _options(kwargs: dict[str, Any], method: str) -> dict[str, Any]:
    """Return the arguments for `fit`; refuse what SciPy would refuse."""
    if "args" in kwargs:
        raise ValueError("'args' is not a supported keyword argument.")
    options = dict(kwargs)
    if method != "lm" and "maxfev" in options and "max_nfev" not in options:
        options["max_nfev"] = options.pop("maxfev")
    unknown = sorted(options.keys() - (_LEASTSQ if method == "lm" else _LEAST_SQUARES))
    if unknown:
        raise TypeError(f"curve_fit() got an unexpected keyword argument {unknown[0]!r} with method={method!r}")
    if method == "lm":
        options["max_nfev"] = options.pop("maxfev", 0) or None
    budget = options.get("max_nfev")
    if budget is not None and budget <= 0:
        raise ValueError("`max_nfev` must be None or positive integer.")
    return {name: options[name] for name in _HEEDED if options.get(name) is not None}


def _policy(nan_policy: str | None, check_finite: bool | None) -> str | None:
    """Return "finite", "raise", "omit" or None: what to ask of the data."""
    if check_finite is None:
        check_finite = nan_policy is None
    if check_finite:
        return "finite"
    if nan_policy == "propagate":
        raise ValueError("`nan_policy='propagate'` is not supported by this function.")
    if nan_policy not in (None, "raise", "omit"):
        raise ValueError("nan_policy must be one of {None, 'raise', 'omit'}")
    return nan_policy


def _is_dask(a: Any) -> bool:
    return isinstance(a, da.Array)


def _as_array(a: Any) -> Any:
    """Return a Dask Series as a Dask array, and anything else as it is."""
    return a.to_dask_array() if hasattr(a, "to_dask_array") else a


def _in_memory(a: Any) -> Any:
    return a.compute() if _is_dask(a) else a


def _by_rows(xdata: Any, ydata: Any, sigma: Any) -> bool:
    """Whether the data can be taken row by row, and some of it is a Dask array."""
    if not (_is_dask(xdata) or _is_dask(ydata)) or np.ndim(sigma) == 2:
        return False
    x = np.asarray(xdata, float) if isinstance(xdata, (list, tuple)) else xdata
    if not isinstance(x, (np.ndarray, da.Array)) or x.ndim == 0:
        return False
    rows = x.shape[-1], np.shape(ydata)[0] if np.ndim(ydata) else x.shape[-1]
    return rows[0] == rows[1] or bool(np.isnan(rows).any())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence two warnings of `fit`: SciPy differentiates without a word, and has its own for the covariance."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The model .* cannot be traced", NlsqWarning)
        warnings.filterwarnings("ignore", "The data do not determine", OptimizeWarning)
        yield


# --- Dask arrays, row by row ------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Rows:
    """A function that takes its data of shape (..., rows) from a stack of columns, (k, rows)."""

    f: Callable[..., Any]
    lead: tuple[int, ...]
    tail: tuple[int, ...] = ()  # shape of a row's value

    def __call__(self, x: Any, *theta: Any) -> Any:
        rows = x.shape[-1:]
        value = self.f(x.reshape(*self.lead, *rows), *theta)
        xp = jnp if isinstance(value, jax.Array) else np
        return xp.broadcast_to(value, (*rows, *self.tail))


def _fit_rows(task: _Task, xdata: Any, ydata: Any, sigma: Any, policy: str | None) -> _Found:
    """Fit in partitions; return the result, the rows, and how to get the weighted residuals."""
    x = da.asarray(xdata, dtype=float) if not _is_dask(xdata) else xdata
    y = ydata if np.ndim(ydata) else da.full(x.shape[-1], ydata, chunks=x.chunks[-1], dtype=float)
    if y.shape[0] == 0:
        raise ValueError("`ydata` must not be empty!")
    if task.lm and y.shape[0] != 1 and task.p > y.shape[0]:
        raise TypeError(_too_few(task.p, y.shape[0]))
    sigma = _sigma(sigma, y.shape)
    columns = (x,) if x.ndim == 1 else tuple(x.reshape(-1, x.shape[-1]) if x.ndim > 2 else x)
    lead = x.shape[:-1]
    jac = _Rows(task.jac, lead, (task.p,)) if callable(task.jac) else task.jac and "3-point"
    weight = {} if sigma is None else {"sigma": abs(sigma)}
    try:
        result = task.fit(
            _Rows(task.f, lead), columns, y, jac, nan_policy="omit" if policy == "omit" else "raise", **weight
        )
    except DataError as error:
        if policy == "raise" and "not finite" in str(error):
            raise DataError(f"The input contains nan values: {error}") from error
        raise
    return result, result.n_obs, lambda: (result.predict(columns) - y) / (1.0 if sigma is None else sigma)


def _sigma(sigma: Any, shape: tuple[Any, ...]) -> Any:
    """Return the standard deviation as a number or as an array of this shape."""
    if sigma is None:
        return None
    sigma = sigma if _is_dask(sigma) else np.asarray(sigma, float)
    if sigma.size == 1:
        return float(_in_memory(sigma).ravel()[0])
    if len(sigma.shape) != 1 or (sigma.shape != shape and not np.isnan([*sigma.shape, *shape]).any()):
        raise ValueError("`sigma` has incorrect shape.")
    return sigma


# --- arrays in memory, whole ------------------------------------------------------------------------------------------


class _Whole:
    """A function of all the data, (n, ...), as one of row numbers: it picks those rows out of the whole.

    Outside the bounds it is NaN and the function is not called, as SciPy promises.
    """

    row_wise = True

    def __init__(self, task: _Task, evaluate: Callable[[Vector], Any]) -> None:
        self.task, self.evaluate = task, evaluate
        self.known: collections.OrderedDict[tuple[float, ...], Any] = collections.OrderedDict()

    def __call__(self, rows: Any, *theta: Any) -> Any:
        return self.at(tuple(float(t) for t in theta))[np.asarray(rows, int)]

    def at(self, theta: tuple[float, ...]) -> Any:
        """Return all values; the latest are remembered, for the pieces in which rows are asked for."""
        if theta not in self.known:
            point = np.array(theta)
            inside = bool(((point >= self.task.lower) & (point <= self.task.upper)).all())
            value = self.evaluate(point) if inside else np.full_like(next(iter(self.known.values())), np.nan)
            self.known[theta] = value
            if len(self.known) > 2 * self.task.p + 2:
                self.known.popitem(last=False)
        return self.known[theta]

    def __reduce__(self) -> Any:
        raise TypeError("data in memory stay in their process")


def _fit_whole(task: _Task, xdata: Any, ydata: Any, sigma: Any, policy: str | None) -> _Found:
    """Fit with the function called on all the data; return the same."""
    xdata, y, sigma = _checked(xdata, ydata, sigma, policy)
    if task.lm and y.size != 1 and task.p > y.size:
        raise TypeError(_too_few(task.p, y.size))
    whiten = _whitener(sigma, y.size)
    with jax.enable_x64(True):
        first = task.f(xdata, *task.p0)
        shape = _shape(first, y)
    rows = shape[0]
    if task.lm and task.p > rows:
        raise TypeError(_too_few(task.p, rows))

    def values(theta: Vector) -> Any:
        return _padded(whiten(_real(task.f(xdata, *theta), shape)), task.p)

    model = _Whole(task, values)
    model.known[tuple(task.p0.tolist())] = _padded(whiten(_real(first, shape)), task.p)
    jac = _derivative(task, xdata, first, whiten)
    target = _padded(whiten(np.broadcast_to(y, shape)), task.p)
    try:
        result = task.fit(model, np.arange(float(len(target))), target, jac, client=False, progress=False)
    except SweepError as error:
        raise error.__cause__ or error from None
    with jax.enable_x64(True):
        fvec = (model.at(tuple(result.popt.tolist())) - target)[:rows]
    return result, rows, lambda: fvec


def _checked(xdata: Any, ydata: Any, sigma: Any, policy: str | None) -> tuple[Any, Vector, Any]:
    """Return data as SciPy hands them on, without the rows that are to be omitted."""
    convert = np.asarray_chkfinite if policy == "finite" else np.asarray
    y = convert(ydata, float)
    if isinstance(xdata, (list, tuple, np.ndarray)):
        xdata = convert(xdata, float)
    if y.size == 0:
        raise ValueError("`ydata` must not be empty!")
    if y.ndim > 1:
        raise DataError(f"ydata has the shape {y.shape}; one dimension is needed.")
    sigma = None if sigma is None else np.asarray(sigma, float)
    if policy not in ("raise", "omit"):
        return xdata, y, sigma
    x = xdata if isinstance(xdata, np.ndarray) else np.zeros(1)
    missing = np.isnan(x).any(axis=tuple(range(x.ndim - 1))) | np.isnan(y)
    if not missing.any():
        return xdata, y, sigma
    if policy == "raise":
        raise DataError("The input contains nan values")
    if sigma is not None and sigma.shape == missing.shape:
        sigma = sigma[~missing]
    elif sigma is not None and sigma.ndim == 2:
        sigma = sigma[np.ix_(~missing, ~missing)]
    return xdata[..., ~missing] if isinstance(xdata, np.ndarray) else xdata, y[~missing], sigma


def _whitener(sigma: Any, n: int) -> Whiten:
    """Return the map that makes errors independent and of size 1, for arrays of shape (n,) or (n, p)."""
    if sigma is None:
        return lambda a: a
    if sigma.size == 1 or sigma.shape == (n,):
        with np.errstate(divide="ignore"):
            weight = 1.0 / sigma.ravel()
        return lambda a: (weight * a.T).T
    if sigma.shape != (n, n):
        raise ValueError("`sigma` has incorrect shape.")
    try:
        triangle = linalg.cholesky(sigma, lower=True)
    except linalg.LinAlgError as error:
        raise ValueError("`sigma` must be positive definite.") from error
    return lambda a: linalg.solve_triangular(triangle, a, lower=True, check_finite=False)


def _shape(value: Any, y: Vector) -> tuple[int, ...]:
    """Return the shape of the residuals: what the function gives, broadcast against the data."""
    shape = np.broadcast_shapes(np.shape(value), y.shape)
    if len(shape) > 1:
        raise ModelError(
            f"f returns the shape {np.shape(value)} for ydata of shape {y.shape}; one number a row is needed."
        )
    if np.iscomplexobj(value):
        raise ModelError(f"f returns {np.asarray(value).dtype}; real numbers are needed.")
    return shape or (1,)


def _real(value: Any, shape: tuple[int, ...]) -> Any:
    return np.broadcast_to(np.asarray(value, float), shape)


def _padded(a: Any, p: int) -> Any:
    """Add rows of zeros up to p of them: they change nothing, and the solver wants as many as parameters."""
    return np.concatenate([a, np.zeros((p - len(a), *a.shape[1:]))]) if len(a) < p else a


def _derivative(task: _Task, xdata: Any, first: Any, whiten: Whiten) -> Any:
    """Return the Jacobian as a function of row numbers, or "3-point" where neither JAX nor the user gives one."""
    exact = task.jac
    if exact is None and isinstance(first, jax.Array):
        try:
            with jax.enable_x64(True):
                traced = jax.jit(jax.jacfwd(lambda theta: task.f(xdata, *theta))).lower(task.p0).compile()
            exact = lambda _, *theta: traced(np.array(theta))  # noqa: E731
        except Exception:  # whatever tracing the user's function may raise: SciPy does not trace
            exact = None
    if not callable(exact):
        return "3-point"
    return _Whole(task, lambda theta: _padded(whiten(np.asarray(exact(xdata, *theta), float)), task.p))


# --- what SciPy returns -----------------------------------------------------------------------------------------------


def _too_few(p: int, n: int) -> str:
    return f"The number of func parameters={p} must not exceed the number of data points={n}"


def _message(result: FitResult) -> str:
    if result.status is Status.MAX_NFEV:
        return f"The maximum number of function evaluations is exceeded ({result.nfev} passes over the data)."
    return result.message


def _covariance(factor: Factor, cost: float, n: int, lm: bool, absolute_sigma: bool) -> Matrix | None:
    """Return the covariance by SciPy's rules, or None where they give none."""
    if not absolute_sigma and n <= factor.p:
        return None
    full = bool(factor.determined.all())
    if lm and not full:
        return None
    if full:
        _, sigma, vt = factor.svd
        half = vt.T / sigma / factor.norms[:, None]
    else:  # SciPy's pseudo-inverse, of the Jacobian as it is
        _, sigma, vt = np.linalg.svd(factor.r)
        seen = sigma > EPS * max(n, factor.p) * sigma[0]
        half = vt[seen].T / sigma[seen]
    cov: Matrix = half @ half.T
    return cov if absolute_sigma else cov * (2.0 * cost / (n - factor.p))


def _triangle(factor: Factor) -> dict[str, Any]:
    """Return MINPACK's names for the triangle with its diagonal in descending order."""
    q, r, order = linalg.qr(factor.r, pivoting=True)
    return {"fjac": r.T, "ipvt": order.astype(np.int32), "qtf": q.T @ factor.z}
