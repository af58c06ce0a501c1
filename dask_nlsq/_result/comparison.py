r"""Comparison: which of several models the same rows speak for.

With the log-likelihood L and k parameters, plus one where the variance of the rows is estimated,

============  =============================================================================================
AIC           :math:`2k - 2L` (Akaike, `doi:10.1109/TAC.1974.1100705
              <https://doi.org/10.1109/TAC.1974.1100705>`_)
AICc          :math:`\mathrm{AIC} + 2k(k+1)/(n-k-1)`, for few rows; the same as AIC for many
BIC           :math:`k \log n - 2L` (Schwarz, `doi:10.1214/aos/1176344136 <https://doi.org/10.1214/aos/1176344136>`_)
weights       :math:`e^{-\Delta_i/2} / \sum_j e^{-\Delta_j/2}`, with the differences :math:`\Delta` of AICc from the
              smallest (Burnham & Anderson, `doi:10.1177/0049124104268644
              <https://doi.org/10.1177/0049124104268644>`_)
F             :math:`\frac{(\chi^2_r - \chi^2_f)/(\nu_r - \nu_f)}{\chi^2_f/\nu_f}` of a restricted model and a full one,
              which contains it (Bates & Watts, `doi:10.1002/9780470316757
              <https://doi.org/10.1002/9780470316757>`_)
============  =============================================================================================
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from dask_nlsq._display import axes
from dask_nlsq._errors import DataError, NlsqError, warn
from dask_nlsq._model import LIKELIHOODS
from dask_nlsq._result.result import FitResult

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = ("n_parameters", "n_obs", "chisqr", "redchi", "aic", "aicc", "bic")

_ROUNDING = 1e-9
"""Relative difference of sums over the same rows, added up in other orders."""


class Comparison(NamedTuple):
    """Fits of several models to the same rows, beside one another.

    Attributes
    ----------
    table : DataFrame
        One row a fit, the smallest AICc first.
    f_tests : DataFrame
        One row for each two fits of which one contains the other.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> x = np.arange(8.0)
    >>> y = 1 + 2 * x + np.array([0.1, -0.2, 0.1, 0.0, 0.2, -0.1, -0.2, 0.3])
    >>> table, f_tests = dask_nlsq.compare(dask_nlsq.fit("a + b*x", x, y), dask_nlsq.fit("a + b*x + c*x**2", x, y))
    >>> table.index.tolist(), f_tests["p_value"].round(2).tolist()
    (['a + b*x', 'a + b*x + c*x**2'], [0.63])
    """

    table: pd.DataFrame
    f_tests: pd.DataFrame

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw how far the AICc of each fit lies above the smallest, with its Akaike weight.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default in a new figure.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        NlsqError
            matplotlib is not installed.

        Examples
        --------
        >>> import numpy as np, dask_nlsq
        >>> x, y = np.arange(6.0), np.array([1.0, 2.9, 5.1, 7.0, 9.1, 10.9])
        >>> line, parabola = dask_nlsq.fit("a + b*x", x, y), dask_nlsq.fit("a + b*x + c*x**2", x, y)
        >>> dask_nlsq.compare(line, parabola).plot().get_title()
        'Comparison of models'
        """
        ax = axes(ax, (6.4, 1.4 + 0.4 * len(self.table)))
        rows = self.table.iloc[::-1]  # the best on top
        delta = rows["delta_aicc"].to_numpy(float)
        bars = ax.barh([str(name) for name in rows.index], delta, color="C0", alpha=0.6)
        ax.bar_label(bars, [f"weight {weight:.2g}" for weight in rows["weight"]], padding=4)
        ax.axvline(
            10.0, color="0.5", linewidth=0.8, linestyle=":", zorder=0
        )  # from here on, the data speak against a model
        ax.set(xlabel="AICc above the smallest", title="Comparison of models")
        ax.margins(x=0.4)
        if delta.max(initial=0.0) > 1e3:
            ax.set_xscale("symlog", linthresh=10.0)
        return ax

    def __repr__(self) -> str:
        tests = f"\n\nF-tests of nested models\n{self.f_tests.to_string()}" if len(self.f_tests) else ""
        return self.table.to_string(float_format="{:.6g}".format) + tests

    def _repr_html_(self) -> str:
        tables = [self.table, self.f_tests] if len(self.f_tests) else [self.table]
        return "".join(table.to_html(float_format="{:.6g}".format) for table in tables)


def compare(*results: FitResult, names: Sequence[str] | None = None) -> Comparison:
    r"""Compare fits of several models to the same rows by AIC, BIC and F-tests.

    Parameters
    ----------
    *results : FitResult
        Two or more, of the same rows with the same weights.
    names : sequence of str, optional
        What they are called; by default as their models.

    Returns
    -------
    Comparison
        ``table`` has a row for each fit: ``n_parameters``, ``n_obs``, ``chisqr``, ``redchi``, ``aic``, ``aicc``,
        ``bic``, ``delta_aicc``, the Akaike ``weight``, and ``status``. ``f_tests`` has a row for each two fits in which
        the free parameters of one are among those of the other: ``restricted``, ``full``, ``F``, ``dof``,
        ``dof_full`` and ``p_value``. Whether the restricted model is a special case of the full one, as its parameters
        suggest, is for the user to know.

    Raises
    ------
    DataError
        The numbers of rows differ, or the weights, or the observations.
    NlsqError
        There are fewer than two results, or not as many names; a loss is robust, whose cost is no likelihood; some
        were fitted with ``absolute_sigma`` and others not.

    Warns
    -----
    NlsqWarning
        A fit did not converge, or a full model fits worse than a restricted one: it has not reached its minimum, or the
        models are not nested; or a covariance is cluster-robust, and the criteria are not.

    Notes
    -----
    See `Akaike <https://doi.org/10.1109/TAC.1974.1100705>`_ and `Burnham & Anderson
    <https://doi.org/10.1177/0049124104268644>`_: the weight of a model is the evidence for it among those that are
    compared; differences of AICc below 2 mean little, and from 10 on a great deal.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> x = np.arange(8.0)
    >>> y = 1 + 2 * x + np.array([0.1, -0.2, 0.1, 0.0, 0.2, -0.1, -0.2, 0.1])
    >>> line, cubic = (dask_nlsq.fit(f"a + b*x{more}", x, y) for more in ("", " + c*x**3"))
    >>> dask_nlsq.compare(line, cubic, names=["line", "cubic"]).table["weight"].round(2).to_dict()
    {'line': 0.99, 'cubic': 0.01}
    """
    labels = _labels(results, names)
    for result, label in zip(results, labels, strict=True):
        _check_likelihood(result, label)
        _check_same_rows(results[0], labels[0], result, label)
        if not result.success:
            warn(f"{label!r} did not converge: {result.message}")
    if any(result.n_groups is not None for result in results):
        warn(
            "Criteria and F-tests take rows as independent, which cov_type='cluster' does not: they prefer larger "
            "models than the groups support. Compare fits with correlation=, or the intervals of what models add."
        )
    rows = [{name: _value(result, name) for name in _COLUMNS} for result in results]
    table = pd.DataFrame(rows, index=pd.Index(labels, name="model"))
    finite = table["aicc"].where(np.isfinite(table["aicc"]))
    table["delta_aicc"] = table["aicc"] - finite.min()
    if (perfect := table["aicc"] == -np.inf).any():  # a fit without residuals outweighs all others
        likelihood = perfect.astype(float)
    else:
        likelihood = np.exp(-table["delta_aicc"] / 2)
    table["weight"] = likelihood / likelihood.sum()
    if not np.isfinite(table["aicc"]).all() and not perfect.any():
        warn("There are too few rows for the AICc of some fits, which needs two more than parameters; compare the BIC.")
    table["status"] = [result.status.name for result in results]
    return Comparison(table.sort_values("aicc", kind="stable"), _f_tests(dict(zip(labels, results, strict=True))))


def comparable(results: Mapping[str, FitResult]) -> list[list[str]]:
    """Return the names of results that `compare` takes together, set by set, in the order in which they come."""
    sets: list[list[str]] = []
    for label, result in results.items():
        with contextlib.suppress(NlsqError):  # of a robust loss
            _check_likelihood(result, label)
            for alike in sets:
                with contextlib.suppress(NlsqError):
                    _check_same_rows(results[alike[0]], alike[0], result, label)
                    alike.append(label)
                    break
            else:
                sets.append([label])
    return sets


def _labels(results: Sequence[FitResult], names: Sequence[str] | None) -> list[str]:
    """Return a name for each result, no two the same."""
    if len(results) < 2 or not all(isinstance(result, FitResult) for result in results):
        seen = ", ".join(type(result).__name__ for result in results) or "nothing"
        raise NlsqError(f"Two results of fit, or more, are compared; given is {seen}.")
    labels = [str(name) for name in (names or [result.provenance["model"] for result in results])]
    if names is not None and (len(labels) != len(results) or len(set(labels)) < len(labels)):
        raise NlsqError(f"names are {labels}; {len(results)} are needed, no two of them the same.")
    seen_before = [labels[:i].count(label) for i, label in enumerate(labels)]
    return [f"{label} ({count + 1})" if count else label for label, count in zip(labels, seen_before, strict=True)]


def _check_likelihood(result: FitResult, label: str) -> None:
    loss = result.provenance.get("loss", "not known")
    if loss not in ("linear", *LIKELIHOODS):
        raise NlsqError(
            f"The loss of {label!r} is {loss}, whose cost is no likelihood. Compare fits with loss="
            f"{', '.join(map(repr, ('linear', *LIKELIHOODS)))}, or the residuals of predictions on other rows."
        )


def _check_same_rows(one: FitResult, its_label: str, other: FitResult, label: str) -> None:
    """Refuse two results of unlike rows, as their sums tell."""
    losses = [each.provenance.get("loss") for each in (one, other)]
    if losses[0] != losses[1]:
        raise NlsqError(
            f"The loss is {losses[0]} for {its_label!r} and {losses[1]} for {label!r}; the likelihoods are of unlike "
            "distributions."
        )
    errors = [_errors_in_x(each) for each in (one, other)]
    correlated = any("correlation" in each.provenance for each in (one, other))
    if errors[0] != errors[1] or (np.isnan(one.rmse) != np.isnan(other.rmse) and not correlated):
        raise NlsqError(
            f"The errors in x are {errors[0] or 'none'} for {its_label!r} and {errors[1] or 'none'} for {label!r}; "
            "compare fits with the same sigma_x."
        )
    if any(str(sigma).startswith("sigma of ") for sigma in errors[0].values()):
        warn("sigma_x was given as arrays; whether they were the same for all fits is not seen.")
    if one.absolute_sigma != other.absolute_sigma:
        raise NlsqError(
            f"absolute_sigma is {one.absolute_sigma} for {its_label!r} and {other.absolute_sigma} for {label!r}; the "
            "likelihoods have unlike variances. Fit both with the same."
        )
    if one.n_obs != other.n_obs:
        raise DataError(
            f"{its_label!r} has {one.n_obs:,} rows and {label!r} {other.n_obs:,}; compare fits to the same rows. "
            'With nan_policy="omit", a model with more columns may drop more.'
        )
    if correlated:  # whose sums depend on the correlation too
        return
    what = "weights" if one.statistics.pearson_chisqr is None else "counts"
    sums = {what: _log_weight, "observations, or their weights,": _response_variance}
    for what, of in sums.items():
        (a, slack), (b, more_slack) = of(one), of(other)
        if np.isfinite([a, b]).all() and abs(a - b) > slack + more_slack:
            raise DataError(
                f"The {what} of {its_label!r} and {label!r} differ; compare fits to the same rows, with the same sigma "
                "and prior."
            )


def _errors_in_x(result: FitResult) -> dict[str, str | float]:
    """Return the standard deviations of the columns that have errors, where the result knows its columns."""
    columns = result.columns
    return {} if columns is None else {x: s for x, s in zip(columns.x, columns.sigma_x, strict=False) if s is not None}


def _log_weight(result: FitResult) -> tuple[float, float]:
    """Return Σ log w, as the log-likelihood tells it, and how uncertain rounding leaves it."""
    n, chisqr = result.n_obs, result.chisqr
    if result.statistics.pearson_chisqr is not None:  # of counts: the log-likelihood of the saturated model
        return result.loglik + chisqr / 2, _ROUNDING * (n + abs(result.loglik) + abs(chisqr))
    with np.errstate(all="ignore"):
        own = chisqr / 2 + n * np.log(2 * np.pi) / 2
        if not result.absolute_sigma:
            own = n / 2 * (np.log(2 * np.pi * np.float64(chisqr) / n) + 1)
        return result.loglik + own, _ROUNDING * (n + abs(result.loglik) + abs(own))


def _response_variance(result: FitResult) -> tuple[float, float]:
    """Return the weighted variance of y, as R² and the root mean square tell it, and how uncertain rounding leaves it.

    R² has lost so many digits as the residuals are smaller than y.
    """
    with np.errstate(all="ignore"):
        left = np.float64(1 - result.rsquared)
        variance = result.rmse**2 / left
        return float(variance), float(abs(variance) * (_ROUNDING + np.finfo(float).eps / abs(left)))


def _value(result: FitResult, name: str) -> float:
    return result.n_obs - result.dof if name == "n_parameters" else getattr(result, name)


def _f_tests(results: dict[str, FitResult]) -> pd.DataFrame:
    """Return a row for each two results of which one contains the other."""
    free = {label: result.free for label, result in results.items()}
    # Those whose parameters are not all known by name, as of many series, are left out.
    known = [label for label, result in results.items() if len(free[label]) == result.n_obs - result.dof]
    known = [label for label in known if "correlation" not in results[label].provenance]  # each of another correlation
    rows = [
        {"restricted": r, "full": f} | _f_test(results[r], results[f], r, f)
        for r, f in itertools.permutations(known, 2)
        # At a bound a parameter is neither free nor a restriction, and F has no such distribution.
        if set(free[r]) < set(free[f]) and not results[r].active_mask.any() and not results[f].active_mask.any()
    ]
    return pd.DataFrame(rows, columns=["restricted", "full", "F", "dof", "dof_full", "p_value"])


def _f_test(restricted: FitResult, full: FitResult, its_label: str, label: str) -> dict[str, float]:
    dof = restricted.dof - full.dof
    gain = restricted.chisqr - full.chisqr
    if gain < -_ROUNDING * restricted.chisqr:
        warn(
            f"{label!r} has more parameters than {its_label!r} and fits worse: it has not reached its minimum, or the "
            "models are not nested."
        )
        gain = np.nan
    with np.errstate(all="ignore"):
        value = np.float64(max(gain, 0.0) if np.isfinite(gain) else gain) / dof / np.float64(full.statistics.dispersion)
    return {"F": float(value), "dof": dof, "dof_full": full.dof, "p_value": float(stats.f.sf(value, dof, full.dof))}
