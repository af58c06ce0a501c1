"""curve_fit: SciPy's contract in front of `fit`.

Its arguments become a `Call`, which is fitted by `fit_rows` where there are Dask arrays and by `fit_whole` where all
is in memory; either gives an `Output`, which holds what SciPy returns.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import OptimizeWarning

from dask_nlsq._curve_fit.call import Call
from dask_nlsq._curve_fit.data import Data, by_rows, in_memory
from dask_nlsq._curve_fit.rows import fit_rows
from dask_nlsq._curve_fit.whole import fit_whole
from dask_nlsq._errors import warn
from dask_nlsq._system import check_not_forked

if TYPE_CHECKING:
    import dask.array as da
    import dask.dataframe as dd
    from scipy.optimize import Bounds


def curve_fit(
    f: Callable[..., Any],
    xdata: object,
    ydata: npt.ArrayLike | da.Array | dd.Series,
    p0: npt.ArrayLike | None = None,
    sigma: npt.ArrayLike | da.Array | dd.Series | None = None,
    absolute_sigma: bool = False,
    check_finite: bool | None = None,
    bounds: tuple[npt.ArrayLike, npt.ArrayLike] | Bounds = (-np.inf, np.inf),
    method: str | None = None,
    jac: Callable[..., Any] | str | None = None,
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
        ``f(xdata, *parameters)``. With arrays in memory it is called on all of `xdata`, or compiled once where its
        trace shows that it acts on each row by itself; with Dask arrays it is called on blocks of rows, and must act
        so.
    xdata : array_like, Dask array or object
        Array of shape (..., n), the rows along the last axis; anything else is handed to `f` as it is.
    ydata : array_like or Dask array
        Data of shape (n,).
    p0 : array_like, optional
        Starting values; by default 1, or a point inside the bounds. Needed where `f` takes ``*args``.
    sigma : float, or array_like of shape (n,) or (n, n), optional
        Standard deviation of ydata, or its covariance, which must fit in memory.
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
        ``jac(xdata, *parameters)`` of shape (n, p). By default JAX differentiates a function that it can
        trace, as one written in ``jax.numpy``; any other, and any under a string, is differentiated by central
        differences.
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
    check_not_forked()
    call = Call.of(f, p0, bounds, method, jac, absolute_sigma, nan_policy, check_finite, kwargs)
    data = Data.of(xdata, ydata, sigma)
    output = fit_rows(call, data) if by_rows(data) else fit_whole(call, in_memory(data))
    if not output.success:
        raise RuntimeError(f"Optimal parameters not found: {output.message}")
    popt, pcov = output.result.popt, output.covariance
    if pcov is None:
        pcov = np.full((call.p, call.p), np.inf)
        warn("Covariance of the parameters could not be estimated", OptimizeWarning)
    return (popt, pcov, output.info, output.message, output.code) if full_output else (popt, pcov)
