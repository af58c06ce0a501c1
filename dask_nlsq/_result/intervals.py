"""Intervals of the estimates: of the linear theory, and by profile likelihood."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pandas as pd
import scipy

from dask_nlsq._errors import NlsqError, one_of
from dask_nlsq._result.bands import check_level

if TYPE_CHECKING:
    from dask_nlsq._result.result import FitResult


def conf_int(result: FitResult, level: float = 0.95, method: str = "t") -> pd.DataFrame:
    r"""Return confidence intervals, one row a parameter.

    Parameters
    ----------
    level : float
        Probability that an interval covers: 0.95 for intervals of 95 %, at least 0.5 and below 1. It is not the
        probability of error, which SciPy's and statsmodels' functions call alpha.
    method : {"t", "profile"}
        "t" is :math:`\hat\theta \pm t_\nu s_{\hat\theta}`, at no cost, with :math:`\nu` the degrees of freedom of
        the fit, or, with ``cov_type="cluster"``, the groups less one. "profile" ends where the cost, minimised
        over all other parameters, has risen by :math:`\tfrac12 s^2 t_\nu^2` (Bates & Watts,
        `doi:10.1002/9780470316757 <https://doi.org/10.1002/9780470316757>`_); it sees how the model bends, is
        the same however the model is parametrised, and takes some sweeps that all ends share; after
        ``goal="fast"`` they begin with those that still lead to the minimum. Where :math:`s^2` is below what
        rounding leaves uncertain in the cost, that counts in its place.

    Returns
    -------
    DataFrame
        Columns ``lower`` and ``upper``. An end is infinite where the data set none, a bound where that comes first,
        NaN where the parameter is at a bound, tied, or not determined.

    Raises
    ------
    NlsqError
        `level` is out of range; or there is no profile: a robust loss, ``cov_type="cluster"``, a fit that did not
        converge or that ``precision=`` ended early, a result that keeps no data; or a better minimum was found on the
        way.

    Examples
    --------
    >>> import numpy as np, jax.numpy as jnp, dask_nlsq
    >>> t = np.array([0.0, 1, 2, 3])
    >>> result = dask_nlsq.fit(lambda t, a, b: a * jnp.exp(-b * t), t, np.array([2.0, 1.2, 0.8, 0.4]))
    >>> result.conf_int(0.9, method="profile").round(2).loc["b"].tolist()
    [0.42, 0.59]
    """
    check_level(level)
    one_of("method", method, "t", "profile")
    if method == "t":
        # Student's t has no quantile at 0 degrees of freedom.
        reach = scipy.stats.t.ppf(0.5 + level / 2, max(result.statistics.interval_dof, 1)) * result.stderr
        return pd.DataFrame({"lower": result.params - reach, "upper": result.params + reach})
    ends = pd.DataFrame(np.nan, index=list(result.names), columns=["lower", "upper"])
    for name, (lower, upper) in result._profiler().intervals(level).items():
        ends.loc[name] = [lower, upper]
    # A fixed parameter has no error: both ends are its value.
    held = result.stderr == 0
    ends[held] = result.params[held].to_numpy()[:, None]
    return ends


def profile(result: FitResult, name: str, values: npt.ArrayLike | None = None) -> pd.DataFrame:
    r"""Hold one parameter at some values, fit the others again, and return how the cost rises.

    Parameters
    ----------
    name : str
        A free parameter.
    values : sequence of float, optional
        Where to hold it, on the bound for values beyond one; by default 13 values within three standard errors. All
        of them share sweeps.

    Returns
    -------
    DataFrame
        One row a value: ``tau``, the signed root of the rise of :math:`\chi^2` in units of :math:`s^2`, which is
        linear where the model is; ``cost``; and the other parameters, one that is called ``tau`` or ``cost`` as
        ``"NAME (parameter)"``.

    Raises
    ------
    NlsqError
        There is no profile, as in `conf_int`, or a better minimum was found on the way; `name` is no free
        parameter; `values` are not finite numbers, or needed where the data do not determine the parameter.
    """
    curve: pd.DataFrame = result._profiler().curve(name, values)
    return curve


def contour(
    result: FitResult,
    a: str,
    b: str,
    values: tuple[npt.ArrayLike, npt.ArrayLike] | None = None,
    *,
    points: int = 15,
    within: float = 3.0,
) -> pd.DataFrame:
    r"""Return the joint confidence region of two parameters by profile likelihood, on a grid.

    With C(u, v) the least cost where the two parameters are held at u and v, the region of the level
    :math:`F_{2,\nu}(\Delta/2)` ends where :math:`\Delta = 2 (C(u, v) - C(\hat\theta)) / s^2` (Bates & Watts,
    `doi:10.1002/9780470316757 <https://doi.org/10.1002/9780470316757>`_). The fits share their sweeps.

    Parameters
    ----------
    a, b : str
        Free parameters.
    values : pair of sequences of float, optional
        Where to hold them; by default evenly around the estimates.
    points : int
        Values of each, where `values` is not given.
    within : float
        How far they reach, in standard errors.

    Returns
    -------
    DataFrame
        The level of the region that ends at each point, from 0 at the estimates to 1; rows are values of `a`,
        columns those of `b`. NaN where a fit did not converge.

    Raises
    ------
    NlsqError
        As in `profile`.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> t = np.array([0.0, 1, 2, 3])
    >>> result = dask_nlsq.fit("a * exp(-b*x)", t, np.array([2.0, 1.2, 0.8, 0.4]), p0={"a": 1.0, "b": 1.0})
    >>> result.contour("a", "b", values=([1.9, 2.0, 2.1], [0.5])).round(2)[0.5].tolist()
    [0.72, 0.01, 0.69]
    """
    pair = None if values is None else tuple(values)
    if pair is not None and len(pair) != 2:
        raise NlsqError(f"values are {len(pair)}; two sequences are needed, of {a} and of {b}.")
    if pair is None and (points < 2 or not within > 0):
        raise NlsqError(f"points is {points} and within is {within}; 2 or more and a positive number are needed.")
    rise: pd.DataFrame = result._profiler().contour(a, b, pair, points, within)
    return pd.DataFrame(scipy.stats.f.cdf(rise / 2, 2, max(result.dof, 1)), index=rise.index, columns=rise.columns)


def skewness(result: FitResult) -> pd.Series:
    r"""Return Hougaard's measure of skewness of each estimate, which says how far linear theory can be believed.

    Below 0.1 an estimate behaves as in a linear model; above 0.25 its intervals should come from
    ``conf_int(method="profile")``, and above 1 it is far from normal. It is the third central moment of the
    estimate, in units of its standard error, to the first order in :math:`s^2`,

    .. math:: g_i = -\frac{3}{2 s^2} \left.\frac{d}{dt}\right|_0 \lVert J(\hat\theta + t u)\, u \rVert^2,
        \qquad u = C_{\cdot i} / \sqrt{C_{ii}},

    and one pass over the data evaluates it for all parameters (Hougaard, J. R. Stat. Soc. B 47 (1985) 103; the
    limits are Ratkowsky's, Handbook of Nonlinear Regression Models, 1990).

    Returns
    -------
    Series
        NaN for parameters that are fixed, tied, at a bound, or not determined.

    Raises
    ------
    NlsqError
        As in `profile`.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> t = np.array([0.0, 1, 2, 3])
    >>> result = dask_nlsq.fit("a * exp(-b*x)", t, np.array([2.0, 1.2, 0.8, 0.4]), p0={"a": 1.0, "b": 1.0})
    >>> result.skewness().round(2).tolist()
    [0.01, 0.1]
    """
    known = result._profiler().skewness(result.cov)
    return pd.Series([known.get(name, np.nan) for name in result.names], index=list(result.names), name="skewness")
