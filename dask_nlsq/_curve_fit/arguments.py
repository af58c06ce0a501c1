"""SciPy's arguments of `curve_fit` but the data: each function takes one as SciPy does, or refuses it in SciPy's words.

`Call.of` asks them in turn; nothing behind it sees an argument as the user gave it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dask_nlsq._errors import ModelError
from dask_nlsq._model import COUNTS
from dask_nlsq._typing import Vector

if TYPE_CHECKING:
    from scipy.optimize import Bounds

_LEASTSQ = {"col_deriv", "ftol", "xtol", "gtol", "maxfev", "epsfcn", "factor", "diag"}
"""Keywords that SciPy hands to `leastsq`."""

_LEAST_SQUARES = {
    *("ftol", "xtol", "gtol", "max_nfev", "loss", "f_scale", "callback", "x_scale", "diff_step"),
    *("tr_solver", "tr_options", "jac_sparsity", "verbose", "workers"),
}
"""Keywords that SciPy hands to `least_squares`."""

_HEEDED = ("ftol", "xtol", "gtol", "max_nfev", "loss", "f_scale", "callback")
"""Those that mean something here; the rest steer SciPy's own algorithms."""


def read_names(f: Callable[..., Any], p: int | None) -> tuple[str, ...]:
    """Return the names of the data and of the parameters, by signature where that has as many."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    try:
        names = tuple(a.name for a in inspect.signature(f).parameters.values() if a.kind in kinds)
    # inspect cannot read the signature of every function that is written in C.
    except ValueError:
        names = ()
    if p is None and len(names) < 2:
        raise ValueError("Unable to determine number of fit parameters.")
    return names if p in (None, len(names) - 1) else ("x", *(f"p{i + 1}" for i in range(p or 0)))


def read_bounds(bounds: tuple[npt.ArrayLike, npt.ArrayLike] | Bounds, p: int) -> tuple[Vector, Vector]:
    """Return lower and upper bounds, each of shape (p,)."""
    pair: Any = bounds
    if hasattr(bounds, "lb"):
        pair = pair.lb, pair.ub
    if len(pair) != 2:
        raise ValueError("`bounds` must contain 2 elements.")
    sides = [np.asarray(side, float) for side in pair]
    lower, upper = (np.resize(side, p) if side.ndim == 0 else side for side in sides)
    if lower.shape != (p,) or upper.shape != (p,):
        raise ValueError("Inconsistent shapes between bounds and `x0`.")
    if (lower >= upper).any():
        raise ValueError("Each lower bound must be strictly less than each upper bound.")
    return lower, upper


def choose_method(method: str | None, bounded: bool) -> str:
    """Return the method by name, by default "trf" with bounds and "lm" without."""
    method = method or ("trf" if bounded else "lm")
    if method not in ("lm", "trf", "dogbox"):
        raise ValueError("`method` must be 'trf', 'dogbox' or 'lm'.")
    if method == "lm" and bounded:
        raise ValueError("Method 'lm' only works for unconstrained problems. Use 'trf' or 'dogbox' instead.")
    return method


def choose_start(p0: npt.ArrayLike | None, lower: Vector, upper: Vector) -> Vector:
    """Return p0, or SciPy's start: the middle of two bounds, 1 away from a single one, 1 without."""
    if p0 is None:
        below, above = np.isfinite(lower), np.isfinite(upper)
        with np.errstate(invalid="ignore"):
            # The middle of two infinite bounds is NaN, and is not selected.
            return np.select([below & above, below, above], [0.5 * (lower + upper), lower + 1, upper - 1], 1.0)
    start = np.ravel(np.asarray(p0, float))
    if ((start < lower) | (start > upper)).any():
        raise ValueError("Initial guess is outside of provided bounds")
    return start


def choose_jacobian(jac: Callable[..., Any] | str | None, transposed: bool) -> Callable[..., Any] | str | None:
    """Return a function of shape (n, p), "3-point" for any scheme of differences, or None."""
    if not callable(jac):
        if jac not in (None, "2-point", "3-point", "cs"):
            raise ValueError("`jac` must be '2-point', '3-point', 'cs' or callable.")
        return jac and "3-point"
    # col_deriv: each row of what `jac` returns belongs to one parameter.
    return (lambda x, *theta: np.transpose(jac(x, *theta))) if transposed else jac


def read_options(kwargs: dict[str, Any], method: str) -> dict[str, Any]:
    """Return the arguments for `fit`; refuse what SciPy would refuse."""
    if "args" in kwargs:
        raise ValueError("'args' is not a supported keyword argument.")
    options = dict(kwargs)
    # SciPy takes either name for these methods.
    if method != "lm" and "maxfev" in options and "max_nfev" not in options:
        options["max_nfev"] = options.pop("maxfev")
    unknown = sorted(options.keys() - (_LEASTSQ if method == "lm" else _LEAST_SQUARES))
    if unknown:
        raise TypeError(f"curve_fit() got an unexpected keyword argument {unknown[0]!r} with method={method!r}")
    if method == "lm":
        # 0 asks leastsq for its default.
        options["max_nfev"] = options.pop("maxfev", 0) or None
    if options.get("loss") in COUNTS:
        raise ModelError(
            f"loss={options['loss']!r} is none of SciPy's losses, and its covariance is that of the likelihood: use "
            "dask_nlsq.fit, whose result has popt and pcov too."
        )
    budget = options.get("max_nfev")
    if budget is not None and budget <= 0:
        raise ValueError("`max_nfev` must be None or positive integer.")
    return {name: options[name] for name in _HEEDED if options.get(name) is not None}


def choose_policy(nan_policy: str | None, check_finite: bool | None) -> str | None:
    """Return "finite", "raise", "omit" or None: what to ask of the data."""
    # SciPy checks by default, and leaves NaN to a policy where one is given.
    if check_finite is None:
        check_finite = nan_policy is None
    if check_finite:
        return "finite"
    if nan_policy == "propagate":
        raise ValueError("`nan_policy='propagate'` is not supported by this function.")
    if nan_policy not in (None, "raise", "omit"):
        raise ValueError("nan_policy must be one of {None, 'raise', 'omit'}")
    return nan_policy
