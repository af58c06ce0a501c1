"""FitResult: what a fit found, how sure it is, and how it got there."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats
from scipy.optimize import OptimizeWarning

from dask_nlsq._checkpoint import Checkpoints, Text, archive, from_text, pack, to_text, unpack
from dask_nlsq._errors import CheckpointError, DataError, NlsqError, one_of, warn
from dask_nlsq._plan import Plan
from dask_nlsq._result import model_record
from dask_nlsq._result.bands import (
    Derived,
    band,
    beside,
    check_level,
    curve_stderr,
    derived,
    observed,
    on_one_grid,
    sigma_of,
)
from dask_nlsq._result.diagnostics import Diagnostics, diagnose
from dask_nlsq._result.evaluate import evaluate
from dask_nlsq._result.html import document, fragment_of
from dask_nlsq._result.plots import estimates, rows
from dask_nlsq._result.report import report
from dask_nlsq._result.table import to_dataframe, to_latex, to_markdown
from dask_nlsq._result.zarr_group import computing, regular, write
from dask_nlsq._solver import Factor, Statistics, Status
from dask_nlsq._sources import Columns
from dask_nlsq._sweep import Payload, ResidualSummary, predict_rows
from dask_nlsq._typing import Matrix, Vector

if TYPE_CHECKING:
    from zarr.abc.store import Store


@dataclasses.dataclass(frozen=True, repr=False, eq=False)
class FitResult:
    r"""Estimates, their covariance, and how the fit went.

    The covariance is :math:`s^2 (J^T J)^{-1}` at the estimates, with :math:`s^2 = \chi^2/\nu`, or 1 under
    ``absolute_sigma``. Names that SciPy's ``OptimizeResult`` has keep SciPy's meaning.

    Two results are equal where their estimates, covariance, cost, statistics, bounds and status are, to the bit; when
    and how they were computed does not count. ``name in result`` asks for a parameter.

    Attributes
    ----------
    params, stderr : Series
        Estimates and standard errors by name.
    cov, correlation : DataFrame of shape (p, p)
        Covariance and correlation of the estimates.
    popt, pcov : ndarray of shape (p,) and (p, p)
        The same without names; ``popt, pcov = result`` unpacks them.
    free : tuple of str
        The parameters that were estimated.
    cost : float
        Half the weighted sum of squared residuals.
    n_obs, n_dropped, dof : int
        Rows used, rows dropped by the NaN policy, degrees of freedom.
    chisqr, redchi, rmse, rsquared, loglik, aic, aicc, bic : float
        Statistics of the fit; R², log-likelihood and criteria use the weights.
    condition_number : float
        Of the Jacobian with its columns scaled to unit length.
    nsweeps, nfev, njev : int
        Passes over all rows; each evaluates residuals and Jacobian together.
    success, status, message
        Whether a stated test holds, which, and in words.
    history : DataFrame
        One row a sweep: cost, the step that remains in standard errors, damping, trust radius, whether it was accepted,
        the free parameters, seconds. A parameter that is called as another column is ``"NAME (parameter)"``.
    sweeps : dict
        The columns of the history as lists.
    provenance : dict
        Versions, data, times and memory.
    notes : tuple of str
        What was decided for the user and is worth knowing.
    plan : Plan
        What was going to be done, and why; ``plan.report()`` sets what was predicted beside what was measured.
    checkpoint_errors : tuple of str
        Commits to the checkpoint that failed, and why.
    starts : DataFrame or None
        Of a search from many starts, one row a start: the start (``p0_…``), where its minimum lies, the cost there and
        on how many rows that is, the number of the minimum (0 is the answer, -1 none), and how its fit ended. A
        parameter that is called as another column (``cost``, ``rows``, ``minimum``, ``status``) is ``"NAME
        (parameter)"``.
    absolute_sigma : bool
        Whether sigma was taken as it is, and not scaled by the residuals.
    parts : dict of str to FitResult
        Of a fit of several data sets, the same estimates in the names of the model of each; ``predict`` of a part
        evaluates that model, and the statistics are those of all data sets.

    Examples
    --------
    >>> import numpy as np, jax.numpy as jnp, dask_nlsq
    >>> def decay(t, amplitude, rate):
    ...     return amplitude * jnp.exp(-rate * t)
    >>> t = np.linspace(0, 4, 50)
    >>> result = dask_nlsq.fit(decay, t, 2.5 * np.exp(-1.3 * t) + 0.01 * np.cos(9 * t))
    >>> result.success, round(float(result.params["rate"]), 2)
    (True, 1.3)
    """

    names: tuple[str, ...]
    popt: Vector  # (p,)
    pcov: Matrix  # (p, p)
    cost: float
    optimality: float
    statistics: Statistics
    n_dropped: int
    condition_number: float
    active_mask: np.ndarray  # (p,), -1 at the lower bound, 1 at the upper, else 0
    status: Status
    sweeps: Mapping[str, list[Any]]  # columns of the history, a number a sweep
    provenance: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    plan: Plan | None = None
    checkpoint_errors: tuple[str, ...] = ()
    starts: pd.DataFrame | None = None
    absolute_sigma: bool = False
    # Of a fit of several data sets, what each sees of it; they are not written.
    parts: Mapping[str, FitResult] = dataclasses.field(default_factory=dict)
    # What is needed to evaluate the model again.
    payload: Payload | None = None
    columns: Columns | None = None
    # What was read of the model, where it was read without one.
    recorded: Mapping[str, Any] | None = None
    # The triangle of the weighted Jacobian at the last sweep.
    factor: Factor | None = None
    # What is needed to fit again with a parameter held; it stays in the process of the fit.
    profiler: Any = dataclasses.field(default=None, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        # It holds the source and the executor of the fit, which live in its process only.
        # Of what was derived from the fields nothing travels, as rows that were drawn.
        fields = {each.name: getattr(self, each.name) for each in dataclasses.fields(self)}
        return fields | {"profiler": None}

    def __copy__(self) -> FitResult:
        return dataclasses.replace(self)

    @functools.cached_property
    def params(self) -> pd.Series:
        """Estimates by name."""
        return pd.Series(self.popt, index=list(self.names), name="params")

    @functools.cached_property
    def stderr(self) -> pd.Series:
        """Standard errors by name."""
        with np.errstate(invalid="ignore"):
            return pd.Series(np.sqrt(np.diag(self.pcov)), index=list(self.names), name="stderr")

    @functools.cached_property
    def cov(self) -> pd.DataFrame:
        """Covariance by name."""
        return pd.DataFrame(self.pcov, index=list(self.names), columns=list(self.names))

    @functools.cached_property
    def correlation(self) -> pd.DataFrame:
        """Correlation of the estimates."""
        error = self.stderr.to_numpy()
        with np.errstate(all="ignore"):
            # Divided one after the other, for the product of two small errors may underflow.
            values = self.pcov / error / error[:, None]
        return pd.DataFrame(values, index=list(self.names), columns=list(self.names))

    @property
    def free(self) -> tuple[str, ...]:
        """The parameters that were estimated: neither fixed nor tied nor at a bound."""
        expansion = None if self.payload is None else self.payload.value.expansion
        held = {*expansion.fixed, *expansion.tied} if expansion is not None else set()
        if self.payload is None and self.recorded is not None:
            held = {*self.recorded["fixed"], *self.recorded["tied"]}
        pairs = zip(self.names, self.active_mask, strict=True)
        return tuple(name for name, side in pairs if side == 0 and name not in held)

    @property
    def success(self) -> bool:
        """Whether a stated test of convergence holds."""
        return self.status.success

    @property
    def message(self) -> str:
        """Why the fit stopped."""
        return self.status.sentence

    @property
    def x(self) -> Vector:
        """The estimates, under the name that SciPy gives them."""
        return self.popt

    @property
    def nsweeps(self) -> int:
        """Passes over all rows."""
        return len(self.sweeps["cost"])

    @functools.cached_property
    def history(self) -> pd.DataFrame:
        """What each sweep taught, the sweeps numbered from 1.

        A parameter that is called as another column (``cost``, ``step``, ``damping``, ``radius``, ``accepted``,
        ``seconds``) or as the index (``sweep``) has the column ``"NAME (parameter)"``.
        """
        return pd.DataFrame(dict(self.sweeps), index=pd.RangeIndex(1, self.nsweeps + 1, name="sweep"))

    @property
    def nfev(self) -> int:
        """Evaluations of the residuals over all rows; the same passes."""
        return self.nsweeps

    @property
    def njev(self) -> int:
        """Evaluations of the Jacobian over all rows; the same passes."""
        return self.nsweeps

    @property
    def n_obs(self) -> int:
        """Rows used."""
        return self.statistics.n_obs

    @property
    def dof(self) -> int:
        """Degrees of freedom: rows less free parameters."""
        return self.statistics.dof

    @property
    def chisqr(self) -> float:
        """Weighted sum of squared residuals."""
        return self.statistics.chisqr

    @property
    def redchi(self) -> float:
        """χ² over the degrees of freedom."""
        return self.statistics.redchi

    @property
    def rmse(self) -> float:
        """Root of the weighted mean of squared residuals, in units of y."""
        return self.statistics.rmse

    @property
    def rsquared(self) -> float:
        """Share of the weighted spread of y that the model explains."""
        return self.statistics.rsquared

    @property
    def loglik(self) -> float:
        """Gaussian log-likelihood."""
        return self.statistics.loglik

    @property
    def aic(self) -> float:
        """Akaike's criterion."""
        return self.statistics.aic

    @property
    def aicc(self) -> float:
        """Akaike's criterion with the small-sample correction."""
        return self.statistics.aicc

    @property
    def bic(self) -> float:
        """Schwarz's criterion."""
        return self.statistics.bic

    def conf_int(self, level: float = 0.95, method: str = "t") -> pd.DataFrame:
        r"""Return confidence intervals, one row a parameter.

        Parameters
        ----------
        level : float
            Probability that an interval covers: 0.95 for intervals of 95 %, at least 0.5 and below 1. It is not the
            probability of error, which SciPy's and statsmodels' functions call alpha.
        method : {"t", "profile"}
            "t" is :math:`\hat\theta \pm t_\nu s_{\hat\theta}`, at no cost. "profile" ends where the cost, minimised
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
            `level` is out of range; or there is no profile: a robust loss, a fit that did not converge or that
            ``precision=`` ended early, a result that keeps no data; or a better minimum was found on the way.

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
            reach = stats.t.ppf(0.5 + level / 2, max(self.dof, 1)) * self.stderr
            return pd.DataFrame({"lower": self.params - reach, "upper": self.params + reach})
        ends = pd.DataFrame(np.nan, index=list(self.names), columns=["lower", "upper"])
        for name, (lower, upper) in self._profiler().intervals(level).items():
            ends.loc[name] = [lower, upper]
        # A fixed parameter has no error: both ends are its value.
        held = self.stderr == 0
        ends[held] = self.params[held].to_numpy()[:, None]
        return ends

    def profile(self, name: str, values: npt.ArrayLike | None = None) -> pd.DataFrame:
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
        curve: pd.DataFrame = self._profiler().curve(name, values)
        return curve

    def contour(
        self,
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
        rise: pd.DataFrame = self._profiler().contour(a, b, pair, points, within)
        return pd.DataFrame(stats.f.cdf(rise / 2, 2, max(self.dof, 1)), index=rise.index, columns=rise.columns)

    def _profiler(self) -> Any:
        if self.profiler is None:
            raise NlsqError(
                "This result keeps no data: it was read from a file, pickled, made by a StreamingFitter, or is of "
                "several fits together. A profile fits all rows again; profile what dask_nlsq.fit returns for them."
            )
        if self.status is Status.PRECISION:
            raise NlsqError(
                "precision= ended this fit when it had read enough; a profile fits all rows, whose cost is another, so "
                "fit again without it."
            )
        if not self.success:
            raise NlsqError(
                f"This fit did not converge, so there is no minimum to profile: {self.message} Go on from p0=result "
                "with a wider limit, or start elsewhere, until result.success holds."
            )
        if self.profiler.problem.objective.robust:
            raise NlsqError(
                "The cost of a robust loss is no likelihood, so its rise has no level to be compared with; use "
                'conf_int(method="t") with cov_type="sandwich".'
            )
        return self.profiler

    def predict(
        self,
        data: Any,
        *,
        to: str | os.PathLike[str] | Store | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> Any:
        """Evaluate the fitted model; lazy for Dask collections.

        Parameters
        ----------
        data : Dask or pandas DataFrame or Series, mapping of arrays, array, tuple of arrays, or number
            Where to evaluate: columns by name, or arrays in the order of the fit. They must have the same length, and
            are cut alike where some are of Dask; a number beside them stands in every row.
        to : str, path or zarr.abc.store.Store, optional
            Evaluate now, chunk by chunk, and write a Zarr group with the array "predicted", which has the shape and
            the chunks of the data, and the names of their dimensions where they have some.
        storage_options : dict, optional
            Passed to fsspec, for URLs.

        Returns
        -------
        Series for a frame or a Series, otherwise an array; of Dask where a column of `data` is
            With `to`, a Dask array of what was written.

        Raises
        ------
        DataError
            A column is missing, or columns have unlike lengths; where chunks are of unknown sizes, when it is computed.
            With `to`, the data are a frame, whose number of rows is not known before they are read.
        FileExistsError
            There is something at `to`.

        Examples
        --------
        >>> import numpy as np, dask.array as da, dask_nlsq, zarr
        >>> x = np.arange(5.0)
        >>> result = dask_nlsq.fit("a + b*x", x, 1 + 2 * x)
        >>> result.predict(np.array([10.0])).round(6).tolist()
        [21.0]
        >>> result.predict(da.arange(6.0, chunks=2), to=zarr.storage.MemoryStore()).chunks
        ((2, 2, 2),)
        """
        payload, columns = self._model()
        predicted = evaluate(functools.partial(predict_rows, payload, self.popt), columns, data)
        if to is None:
            return predicted
        if isinstance(predicted, (pd.Series, dd.Series)):
            raise DataError("to= writes arrays; write a frame by frame.assign(predicted=...).to_parquet(path).")
        array = da.asarray(getattr(predicted, "data", predicted) if hasattr(predicted, "dims") else predicted)
        if np.isnan(array.size):
            raise DataError("The chunks have unknown sizes; call compute_chunk_sizes() on the data first.")
        array = regular(array, array.ndim)
        dims = getattr(predicted, "dims", [f"dim_{i}" for i in range(array.ndim)])
        with computing():
            group = write({"predicted": array}, {"predicted": dims}, to, storage_options=storage_options)
        return da.from_zarr(group["predicted"])

    def residuals(self, data: Any, y: Any = None, *, weighted: bool = False) -> Any:
        r"""Return what the fitted model leaves of the observations, :math:`y - f(x; \hat\theta)`; lazy for Dask.

        Parameters
        ----------
        data : as for `predict`
            With the column of y, unless `y` is given.
        y : array, optional
            The observations, row by row; needed where `data` has no names.
        weighted : bool
            Divide by sigma, as the fit did.

        Returns
        -------
        Series named "residual" for a frame, otherwise an array, in units of y

        Raises
        ------
        DataError
            A column is missing, or `y` is not as long as the rows.
        NlsqError
            The result has no model.

        Examples
        --------
        >>> import numpy as np, dask_nlsq
        >>> x = np.arange(4.0)
        >>> result = dask_nlsq.fit("a + b*x", x, np.array([1.0, 2.9, 5.1, 7.0]))
        >>> result.residuals(x, np.array([1.0, 2.9, 5.1, 7.0])).round(2).tolist()
        [0.03, -0.09, 0.09, -0.03]
        """
        _, columns = self._model()
        data = on_one_grid(data, columns.names)
        predicted = self.predict(data)
        residual = (observed(columns, data) if y is None else beside(predicted, y, "y")) - predicted
        if weighted:
            residual = residual / sigma_of(columns, data)
        return residual.rename("residual") if isinstance(residual, (pd.Series, dd.Series)) else residual

    def confidence_band(self, data: Any, level: float = 0.95) -> Any:
        r"""Return where the model's curve may lie, :math:`f \pm t_\nu \sqrt{g^T C g}`, row by row; lazy for Dask.

        C is the covariance of the estimates and g the gradient of the model with respect to them. A band of 95 % covers
        the true value with that probability at each row, and not at all rows at once.

        Parameters
        ----------
        data : as for `predict`
        level : float
            Probability to cover, at least 0.5 and below 1.

        Returns
        -------
        DataFrame with the columns ``predicted``, ``lower`` and ``upper`` for a frame, otherwise a `Band` of arrays
            In units of y; infinite where a parameter matters that the data do not determine. A parameter at a bound is
            taken as known.

        Raises
        ------
        NlsqError
            `level` is out of range, or the result has no model.

        Examples
        --------
        >>> import numpy as np, jax.numpy as jnp, dask_nlsq
        >>> t = np.array([0.0, 1, 2, 3])
        >>> result = dask_nlsq.fit(lambda t, a, b: a * jnp.exp(-b * t), t, np.array([2.0, 1.2, 0.8, 0.4]))
        >>> result.confidence_band(np.array([0.5])).lower.round(2).tolist()
        [1.41]
        """
        check_level(level)
        return band(self.predict(data), curve_stderr(*self._model(), self.params, self.cov, data), level, self.dof)

    def prediction_band(self, data: Any, level: float = 0.95, *, sigma: Any = None) -> Any:
        r"""Return where a new observation may lie, :math:`f \pm t_\nu \sqrt{g^T C g + s^2 \sigma^2}`; lazy for Dask.

        Parameters
        ----------
        data : as for `predict`
        level : float
            Probability to cover, at least 0.5 and below 1.
        sigma : number or array, optional
            Standard deviation of each new observation, as in the fit; that of the fit where it is a number or a column
            of `data`, 1 where there was none.

        Returns
        -------
        As `confidence_band`; :math:`s^2` is ``redchi``, or 1 under ``absolute_sigma``

        Raises
        ------
        DataError
            `sigma` is not as long as the rows, or no numbers.
        NlsqError
            `level` is out of range, the fit had a sigma that is not in `data`, or the result has no model.

        Examples
        --------
        >>> import numpy as np, dask_nlsq
        >>> x = np.arange(4.0)
        >>> result = dask_nlsq.fit("a + b*x", x, np.array([1.0, 2.9, 5.1, 7.0]))
        >>> result.prediction_band(np.array([1.5])).lower.round(2).tolist()
        [3.54]
        """
        check_level(level)
        payload, columns = self._model()
        data = on_one_grid(data, columns.names if sigma is None else columns.x)
        predicted = self.predict(data)
        s2 = self.statistics.residual_variance(self.absolute_sigma)
        scatter = s2 * (sigma_of(columns, data) if sigma is None else beside(predicted, sigma, "sigma")) ** 2
        stderr = (curve_stderr(payload, columns, self.params, self.cov, data) ** 2 + scatter) ** 0.5
        return band(predicted, stderr, level, self.dof)

    def eval_uncertainty(self, expression: str) -> Derived:
        r"""Return a quantity that follows from the parameters, with its standard error :math:`\sqrt{g^T C g}`.

        Parameters
        ----------
        expression : str
            Of parameters, such as ``"amplitude / rate"``; as for ``tied=``.

        Returns
        -------
        Derived
            ``value`` and ``stderr``.

        Raises
        ------
        ModelError
            The text names what is no parameter, or holds what an expression may not.

        Examples
        --------
        >>> import numpy as np, jax.numpy as jnp, dask_nlsq
        >>> t = np.array([0.0, 1, 2, 3])
        >>> result = dask_nlsq.fit(lambda t, a, b: a * jnp.exp(-b * t), t, np.array([2.0, 1.2, 0.8, 0.4]))
        >>> half_life = result.eval_uncertainty("log(2) / b")
        >>> round(half_life.value, 2), round(half_life.stderr, 2)
        (1.39, 0.08)
        """
        return derived(expression, self.names, self.popt, self.pcov)

    def skewness(self) -> pd.Series:
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
        known = self._profiler().skewness(self.cov)
        return pd.Series([known.get(name, np.nan) for name in self.names], index=list(self.names), name="skewness")

    def diagnostics(self) -> Diagnostics:
        """Check the estimates and the residuals, and say in words what does not look right.

        One pass over the data counts the residuals by each column, the fit and the partition (the pass that plots
        take), another one is for `skewness`.

        Returns
        -------
        Diagnostics
            ``print`` shows the findings, ``table`` holds all checks. Of many rows, a departure below 5 % of the
            residual standard deviation is not worth words, however certain it is.

        Raises
        ------
        NlsqError
            The result keeps no data.

        Examples
        --------
        >>> import numpy as np, dask_nlsq
        >>> x = np.linspace(0, 4, 400)
        >>> result = dask_nlsq.fit("a + b*x", x, x**2 + 0.1 * np.cos(99 * x))
        >>> result.diagnostics().table.loc["mean against x", "finding"]
        'The mean residual varies with x, by 0.96 standard deviations: the model lacks something.'
        """
        return diagnose(self)

    plot = rows.plot
    plot_residuals = rows.plot_residuals
    plot_components = rows.plot_components
    plot_history = estimates.plot_history
    plot_correlation = estimates.plot_correlation
    plot_profile = estimates.plot_profile
    plot_contour = estimates.plot_contour
    plot_starts = estimates.plot_starts

    @functools.cached_property
    def _residual_summary(self) -> ResidualSummary:
        """What one pass over the rows says of the residuals; the pass is made once."""
        self._model()
        if self.profiler is None:
            raise NlsqError(
                "This result keeps no data: it was read from a file, pickled, made by a StreamingFitter, or is of "
                "several data sets together. Only what dask_nlsq.fit returns for one data set can draw its rows."
            )
        early = self.status is Status.PRECISION  # there are more rows than were read
        expected = None if early else self.chisqr
        summary: ResidualSummary = self.profiler.residual_summary(self.popt, self._residual_std, expected)
        return summary

    @property
    def _residual_std(self) -> float:
        """What residuals are divided by to be standardised, in units of sigma: 1 where none can be divided by."""
        s = float(np.sqrt(self.redchi)) if self.dof > 0 else self.rmse
        return s if np.isfinite(s) and s > 0 else 1.0

    def uvars(self) -> dict[str, Any]:
        """Return the estimates as numbers of the package uncertainties, whose arithmetic keeps their correlations.

        Returns
        -------
        dict of str to uncertainties.ufloat

        Raises
        ------
        NlsqError
            uncertainties is not installed, or an error is not finite; `eval_uncertainty` needs neither.

        Examples
        --------
        >>> import numpy as np, dask_nlsq
        >>> x = np.arange(5.0)
        >>> result = dask_nlsq.fit("a + b*x", x, np.array([1.0, 2.9, 5.1, 7.0, 9.0]))
        >>> u = result.uvars()
        >>> print(f"{u['a'] / u['b']:.1u}")
        0.49+/-0.04
        """
        try:
            import uncertainties
        except ModuleNotFoundError as error:
            raise NlsqError(
                "uvars needs the package uncertainties, which is not installed: pip install uncertainties."
            ) from error
        if not np.isfinite(self.pcov).all():
            unknown = [name for name, error in self.stderr.items() if not np.isfinite(error)]
            raise NlsqError(f"{', '.join(map(str, unknown))} has no finite error, which correlated values need.")
        values = uncertainties.correlated_values(self.popt.tolist(), self.pcov.tolist())
        return dict(zip(self.names, values, strict=True))

    def _model(self) -> tuple[Payload, Columns]:
        if self.payload is None or self.columns is None:
            raise NlsqError(
                "This result has no model: it was read without one, or is of several fits together. Read it with "
                "FitResult.load(path, model=...), or use the result of each fit."
            )
        return self.payload, self.columns

    def report(self) -> str:
        """Return the report that ``print(result)`` shows."""
        return report(
            self.names,
            self.popt,
            self.stderr,
            self.active_mask,
            self.statistics,
            self.status,
            n_dropped=self.n_dropped,
            condition_number=self.condition_number,
            nsweeps=self.nsweeps,
            provenance=self.provenance,
            notes=self.notes,
        )

    def summary(self) -> pd.DataFrame:
        """Return a table of estimates, standard errors and 95 % intervals, one row a parameter."""
        return pd.concat([self.params.rename("value"), self.stderr, self.conf_int()], axis=1)

    def to_dataframe(self) -> pd.DataFrame:
        """Return the table of `summary` with a column ``remark``: why a parameter has no ordinary standard error."""
        return to_dataframe(self)

    def to_markdown(self, **options: Any) -> str:
        """Return the table of `to_dataframe` in Markdown, all numbers of a row rounded by its standard error.

        Parameters
        ----------
        **options
            Passed to `pandas.DataFrame.to_markdown`.

        Raises
        ------
        NlsqError
            The package tabulate, of the extra ``tables``, is not installed.
        """
        return to_markdown(self, **options)

    def to_latex(self, **options: Any) -> str:
        r"""Return the table of `to_dataframe` in LaTeX, all numbers of a row rounded by its standard error.

        Parameters
        ----------
        **options
            Passed to `pandas.DataFrame.to_latex`, such as ``caption`` and ``label``.

        Examples
        --------
        >>> import numpy as np, dask_nlsq
        >>> x = np.arange(6.0)
        >>> result = dask_nlsq.fit("intercept + slope*x", x, np.array([1.0, 3.1, 4.9, 7.0, 9.1, 10.9]))
        >>> result.to_latex().splitlines()[4]
        'intercept & 1.029 & 0.070 & 0.833 & 1.224 &  \\\\'
        """
        return to_latex(self, **options)

    def to_html(self, path: str | os.PathLike[str] | None = None, *, plots: bool = True) -> str | None:
        """Return a page of HTML that needs no other file and no network, or write it to a file.

        It shows what a notebook shows, the report as text, and the plots.

        Parameters
        ----------
        path : str or path, optional
            The file, in UTF-8, which is replaced if it exists; without one, the text is returned.
        plots : bool
            Whether plots are drawn, which needs the extra ``plot``; some take a pass over the data. The page says why
            one is missing.

        Examples
        --------
        >>> import numpy as np, dask_nlsq
        >>> result = dask_nlsq.fit("a*x", np.arange(3.0), np.array([0.0, 1.1, 1.9]))
        >>> result.to_html(plots=False).splitlines()[0]
        '<!DOCTYPE html>'
        """
        text = document(self, plots)
        if path is None:
            return text
        Path(path).write_text(text, encoding="utf-8")
        return None

    def check(self) -> FitResult:
        """Return the result itself, or raise where the fit did not converge.

        Raises
        ------
        NlsqError
            No test of convergence holds.
        """
        if not self.success:
            raise NlsqError(
                f"The fit did not converge ({self.status.name}): {self.message} Go on from p0=result with a wider "
                "limit, or start elsewhere."
            )
        return self

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the function of the model as plain Python values that JSON can hold."""
        living = self.payload is not None and self.columns is not None
        return {
            "params": self.params.to_dict(),
            "stderr": self.stderr.to_dict(),
            "cov": self.pcov.tolist(),
            "cost": self.cost,
            "optimality": self.optimality,
            "statistics": dataclasses.asdict(self.statistics),
            "n_dropped": self.n_dropped,
            "condition_number": self.condition_number,
            "active_mask": self.active_mask.tolist(),
            "success": self.success,
            "status": int(self.status),
            "message": self.message,
            "nsweeps": self.nsweeps,
            "history": {name: list(values) for name, values in self.sweeps.items()},
            "provenance": dict(self.provenance),
            "notes": list(self.notes),
            "checkpoint_errors": list(self.checkpoint_errors),
            "absolute_sigma": self.absolute_sigma,
            "plan": None if self.plan is None else self.plan.to_dict(),
            "starts": None if self.starts is None else self.starts.to_dict(orient="list"),
            "model": model_record.describe(*self._model(), self.popt) if living else self.recorded,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], model: Any = None) -> FitResult:
        """Rebuild a result from `to_dict`.

        Parameters
        ----------
        values : mapping
        model : callable, Model or str, optional
            That was fitted; the result predicts and draws bands only with it.

        Raises
        ------
        CheckpointMismatch
            The model has other parameters than the result, or other values at the estimates.
        CheckpointError
            Nothing is recorded of the model.
        """
        result = cls(
            names=tuple(values["params"]),
            popt=np.array(list(values["params"].values()), float),
            pcov=np.array(values["cov"], float),
            cost=values["cost"],
            optimality=values["optimality"],
            statistics=Statistics(**values["statistics"]),
            n_dropped=values["n_dropped"],
            condition_number=values["condition_number"],
            active_mask=np.array(values["active_mask"]),
            status=Status.of(values["status"]),
            sweeps={name: list(column) for name, column in values["history"].items()},
            provenance=values["provenance"],
            notes=tuple(values["notes"]),
            # Results of earlier versions lack what is looked up with a default.
            checkpoint_errors=tuple(values.get("checkpoint_errors", ())),
            absolute_sigma=values.get("absolute_sigma", False),
            plan=None if values.get("plan") is None else Plan.from_dict(values["plan"]),
            starts=None if values.get("starts") is None else starts_frame(values["starts"]),
            recorded=values.get("model"),
        )
        model = model_record.formula(result.recorded) if model is None else model
        if model is None:
            return result
        payload, columns = model_record.restore(model, result.recorded, result.names, result.popt)
        return dataclasses.replace(result, payload=payload, columns=columns)

    def save(
        self,
        where: str | os.PathLike[str] | Store,
        *,
        storage_options: dict[str, Any] | None = None,
        compression: str | None = None,
    ) -> None:
        """Write the result, without the function of the model.

        Parameters
        ----------
        where : str, path or zarr.abc.store.Store
            A path that ends with ``.zip``: one file, a Zarr group in a zip. Otherwise a folder, an fsspec URL or a Zarr
            store, to which the result is added as the newest generation of a checkpoint; see `dask_nlsq.Checkpoints`.
        storage_options : dict, optional
            Passed to fsspec, for URLs.
        compression : {"gzip"}, optional

        Raises
        ------
        NlsqError
            A file is asked for at a URL.
        """
        written = _Written(to_text(self.to_dict()))
        if (file := _file(where)) is not None:
            archive.save(file, written, compression)
            return
        about = {"sweeps": self.nsweeps, "cost": self.cost, "status": self.status.name, "finished": True}
        # Without a fingerprint, for no fit goes on from a result alone.
        Checkpoints(where, storage_options).commit(pack(written, compression), about, {})

    @classmethod
    def load(
        cls,
        where: str | os.PathLike[str] | Store,
        *,
        model: Any = None,
        storage_options: dict[str, Any] | None = None,
    ) -> FitResult:
        """Read a result that `save` or a fit with a checkpoint wrote.

        Parameters
        ----------
        where : str, path or zarr.abc.store.Store
            The file, folder, URL or store.
        model : callable, Model or str, optional
            That was fitted; the result predicts and draws bands only with it.
        storage_options : dict, optional
            Passed to fsspec, for URLs.

        Raises
        ------
        CheckpointMismatch
            The model has other parameters than the result, or other values at the estimates.
        CheckpointError
            There is no result, or the fit has not ended, or what is there does not verify; or `model` is given, and
            nothing is recorded of it.

        Examples
        --------
        >>> import numpy as np, dask_nlsq, tempfile
        >>> x = np.arange(4.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     dask_nlsq.fit("a + b*x", x, 1 + 2 * x).save(f"{folder}/r.zip")
        ...     again = dask_nlsq.FitResult.load(f"{folder}/r.zip", model="a + b*x")
        >>> again.predict(np.array([5.0])).round(6).tolist()
        [11.0]
        """
        if (file := _file(where)) is not None:
            if not file.exists():
                raise CheckpointError(f"There is no file {str(file)!r}.")
            text, what = archive.load(_Written, file).result, str(file)
        else:
            checkpoints = Checkpoints(where, storage_options)
            newest = checkpoints.newest()
            if newest is None:
                raise CheckpointError(f"There is no checkpoint at {checkpoints.place}.")
            text, what = unpack(_Written, newest[1]).result, f"generation {newest[0].number} at {checkpoints.place}"
        if text is None:
            raise CheckpointError(
                f"The fit has not ended: {what} is on its way. Call fit with the same checkpoint to go on."
            )
        return cls.from_dict(from_text(text), model)

    def to_json(self) -> str:
        """Return `to_dict` as JSON text; infinities are written as ``Infinity``, as Python's json does."""
        return json.dumps(self.to_dict(), indent=2)

    def __iter__(self) -> Iterator[Any]:
        """Return ``popt, pcov``, with a warning where the fit did not converge: nothing else would tell."""
        if not self.success:
            warn(
                f"popt and pcov are of a fit that did not converge ({self.status.name}): {self.message} "
                "result.check() raises in such a case.",
                OptimizeWarning,
            )
        return iter((self.popt, self.pcov))

    def __eq__(self, other: object) -> bool:
        return self._numbers() == other._numbers() if isinstance(other, FitResult) else NotImplemented

    def __hash__(self) -> int:
        return hash((self.names, self.status))

    def _numbers(self) -> str:
        """Return what two equal results have in common, as text: JSON has every bit, and NaN equals itself there."""
        values = self.to_dict()
        compared = ("params", "cov", "cost", "statistics", "n_dropped", "active_mask", "status", "absolute_sigma")
        return json.dumps({name: values[name] for name in compared})

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name in self.names

    def __str__(self) -> str:
        return self.report()

    def _repr_html_(self) -> str:
        """Return what a notebook shows: estimates first, with notes before them; history and provenance folded."""
        return fragment_of(self).html()

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value:.6g}" for name, value in self.params.items())
        return f"<FitResult {self.status.name} {values}>"


@dataclasses.dataclass(frozen=True)
class _Written:
    """A result as JSON; a checkpoint holds more beside it."""

    result: Text | None = None


def _file(where: object) -> Path | None:
    """Return the path of the one file that is meant, or None where it is a folder, a URL or a store."""
    if not isinstance(where, (str, os.PathLike)) or not os.fspath(where).endswith(".zip") or os.path.isdir(where):
        return None
    if "://" in os.fspath(where):
        raise NlsqError(f"{where!r} is a URL: one file is on a local disk; leave .zip away for a folder there.")
    return Path(where)


def starts_frame(columns: Mapping[str, list[Any]]) -> pd.DataFrame:
    """Return a table of starts, numbered from 0: the one that was given."""
    table = pd.DataFrame(dict(columns))
    table.index.name = "start"
    return table
