"""FitResult: what a fit found, how sure it is, and how it got there."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.optimize import OptimizeWarning

from dask_nlsq._errors import NlsqError, warn
from dask_nlsq._plan import Plan
from dask_nlsq._result import intervals, predictions, responses, saved
from dask_nlsq._result.diagnostics import Diagnostics, diagnose
from dask_nlsq._result.html import document, fragment_of
from dask_nlsq._result.plots import complex_plane, estimates, rows
from dask_nlsq._result.provenance import Provenance
from dask_nlsq._result.report import report
from dask_nlsq._result.table import to_dataframe, to_latex, to_markdown
from dask_nlsq._solver import Factor, Statistics, Status
from dask_nlsq._sources import Columns
from dask_nlsq._sweep import Payload, ResidualSummary
from dask_nlsq._typing import Matrix, Vector

if TYPE_CHECKING:
    pass


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
    n_groups : int or None
        Groups of rows, with ``cov_type="cluster"``; intervals then have Student's t with as many degrees of freedom
        less one.
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
        Model, data, versions, platform, times and memory; where the model's function lies in a working tree of Git,
        ``source`` has its file, the commit, and whether the file differs from it. ``print(result.provenance)`` lists
        all of it.
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
    # Of a fit of several data sets, what each sees of it.
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
    response_number: int | None = dataclasses.field(default=None, compare=False)  # of the one that is looked at

    def __post_init__(self) -> None:
        object.__setattr__(self, "provenance", Provenance(self.provenance))

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
    def n_groups(self) -> int | None:
        """Groups of rows; None unless the covariance is cluster-robust."""
        return self.statistics.n_groups

    @property
    def chisqr(self) -> float:
        """Weighted sum of squared residuals; of counts the deviance."""
        return self.statistics.chisqr

    @property
    def pearson_chisqr(self) -> float:
        """Sum of squared residuals over the variance that the fit expects; of all but counts it is χ²."""
        return self.chisqr if self.statistics.pearson_chisqr is None else self.statistics.pearson_chisqr

    @property
    def redchi(self) -> float:
        """χ² over the degrees of freedom."""
        return self.statistics.redchi

    @property
    def rmse(self) -> float:
        """Root of the weighted mean of squared residuals, in units of y; NaN of counts."""
        return self.statistics.rmse

    @property
    def rsquared(self) -> float:
        """Share of the weighted spread of y that the model explains; NaN of counts."""
        return self.statistics.rsquared

    @property
    def loglik(self) -> float:
        """Log-likelihood, Gaussian but for counts."""
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

    @property
    def response_cov(self) -> pd.DataFrame:
        """Covariance of several responses of a row, as given by ``sigma=`` or found by ``estimate_sigma=True``."""
        _, columns = self._model()
        if not columns.covariance:
            raise NlsqError("The fit had no covariance of responses: give sigma= as a matrix, or estimate_sigma=True.")
        return pd.DataFrame(columns.covariance, columns.response_names, columns.response_names)

    @property
    def row_correlation(self) -> dict[str, float]:
        """Correlation of the rows of a group by its kind, as given by ``correlation=`` or found with the parameters."""
        _, columns = self._model()
        if columns.correlation is None:
            raise NlsqError('The fit took rows as independent: give correlation="ar1" or "exchangeable".')
        kind, rho = columns.correlation
        return {kind: rho}

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
        if self.profiler.problem.objective.correlation == "exchangeable":
            raise NlsqError(
                "A profile leaves the estimates, about which the means of groups were taken for "
                'correlation="exchangeable"; use conf_int(method="t").'
            )
        if self.n_groups is not None:
            raise NlsqError(
                'A profile takes rows for independent, and cov_type="cluster" does not; use conf_int(method="t").'
            )
        return self.profiler

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

    conf_int = intervals.conf_int
    profile = intervals.profile
    contour = intervals.contour
    skewness = intervals.skewness
    response = responses.response
    predict = predictions.predict
    residuals = predictions.residuals
    confidence_band = predictions.confidence_band
    prediction_band = predictions.prediction_band
    eval_uncertainty = predictions.eval_uncertainty
    uvars = predictions.uvars
    to_dict = saved.to_dict
    to_json = saved.to_json
    from_dict = classmethod(saved.from_dict)
    save = saved.save
    load = classmethod(saved.load)
    plot = rows.plot
    plot_residuals = rows.plot_residuals
    plot_components = rows.plot_components
    plot_nyquist = complex_plane.plot_nyquist
    plot_bode = complex_plane.plot_bode
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
        number = self.response_number
        summary: ResidualSummary = self.profiler.residual_summary(self.popt, self._residual_std, expected, number)
        return summary

    @property
    def _residual_std(self) -> float:
        """What residuals are divided by to be standardised, in units of sigma: 1 where none can be divided by."""
        s = float(np.sqrt(self.statistics.dispersion)) if self.dof > 0 else self.rmse
        return s if np.isfinite(s) and s > 0 else 1.0

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
