r"""Diagnostics: what a fit leaves in its residuals, and how far its standard errors can be believed.

With the standardised residual :math:`z = (y - f) / (s \sigma)`, counted by cells c of a column, :math:`n_c` rows each:

===============  ===================================================================================================
autocorrelation  :math:`r_1 = \sum z_i z_{i+1} / \sum z_i^2` of neighbouring rows; :math:`r_1 \sqrt n` is normal
normality        Jarque and Bera's :math:`\tfrac n6 (g_1^2 + \tfrac14 g_2^2)`, doi:10.2307/1403192, is chi-square(2)
mean             :math:`\sum n_c \bar z_c^2 / \overline{z^2}` is chi-square with as many degrees as cells
spread           :math:`\sum n_c (\overline{z_c^2} - \overline{z^2})^2 / \mathrm{var}(z^2)`, the same less one; the
                 studentised test of Koenker, doi:10.1016/0304-4076(81)90062-2, with cells for regressors
partition        :math:`\sqrt{n_k} (\overline{z_k^2} - \overline{z^2}) / \mathrm{sd}(z^2)`, the largest of all k
===============  ===================================================================================================
"""

from __future__ import annotations

import dataclasses
import itertools
import textwrap
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd
import scipy

from dask_nlsq._display import Fold, Fragment, Table
from dask_nlsq._errors import NlsqError
from dask_nlsq._result.plots import panels
from dask_nlsq._sweep import Binned, ResidualSummary

if TYPE_CHECKING:
    from dask_nlsq._result.result import FitResult

_SURE = 1e-3
"""Probability under noise alone below which something is said: a table has some ten rows."""

_NOTABLE = 0.05
"""Share of the standard deviation from which it is said: of 1e9 rows, one of 1e-4 is certain and of no account."""

_ROUNDING = 1e-13
"""Residuals, beside the fit, that are rounding and tell nothing."""

_CORRELATED = 0.95
"""Correlation of two estimates from which it is said."""

_ILL = 1e4
"""Condition number from which the direction that the data hardly see is named."""

_SKEWED = 0.25
"""Skewness of an estimate from which linear theory misleads, after Ratkowsky."""


class Check(NamedTuple):
    """One row of the table."""

    check: str
    statistic: float
    pvalue: float
    finding: str


@dataclasses.dataclass(frozen=True)
class Diagnostics:
    """Checks of a fit; printed, it is what they found, in words.

    Attributes
    ----------
    table : DataFrame
        A row a check: ``statistic``; ``pvalue``, how probable one as far out is where the residuals are independent
        noise of one spread, NaN where there is no such test; and ``finding``, empty where all is well.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> x = np.linspace(0, 4, 60)
    >>> y = 1 + 2 * x + np.random.default_rng(0).normal(0, 0.1, 60)
    >>> print(dask_nlsq.fit("a + b*x", x, y).diagnostics())
    10 checks found nothing out of the ordinary.
    """

    table: pd.DataFrame

    @property
    def findings(self) -> list[str]:
        """What was found, a sentence or two each."""
        found = self.table["finding"]
        return [str(words) for words in found[found != ""]]

    def __str__(self) -> str:
        if not self.findings:
            return f"{len(self.table)} checks found nothing out of the ordinary."
        wrapper = textwrap.TextWrapper(100, initial_indent="- ", subsequent_indent="  ")
        return "\n".join(map(wrapper.fill, self.findings))

    def __repr__(self) -> str:
        return f"<Diagnostics of {len(self.table)} checks, {len(self.findings)} with a finding>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: what was found, and folded the table of all checks."""
        rows = self.table.astype(object).where(self.table.notna(), "").reset_index().to_dict("split")
        title = f"{len(self.table)} checks, {len(self.findings)} with a finding"
        return Fragment(title, [Fold("Checks", [Table(rows["data"], rows["columns"])])], notes=self.findings).html()


def diagnose(result: FitResult) -> Diagnostics:
    """Make all checks."""
    checks = [*_of_estimates(result), *_of_residuals(result)]
    return Diagnostics(pd.DataFrame(checks).set_index("check"))


def _of_estimates(result: FitResult) -> Iterator[Check]:
    words = f"The fit did not converge ({result.status.name}), and what follows is not reliable."
    yield Check("convergence", np.nan, np.nan, "" if result.success else words)
    yield Check("condition number", result.condition_number, np.nan, _weak_direction(result))
    if len(result.names) > 1:
        yield _of_correlations(result)
    for name, side in zip(result.names, result.active_mask, strict=True):
        if side:
            end = "lower" if side < 0 else "upper"
            words = f"{name} lies at its {end} bound, so that the bound decides it; the other errors take it as known."
            yield Check(f"bound of {name}", float(result.params[name]), np.nan, words)
    skewness = _skewness(result)
    if len(skewness):
        skewed = [f"{name} ({value:.2g})" for name, value in skewness.items() if abs(value) > _SKEWED]
        words = f"The estimates of {', '.join(skewed)} are skewed, so that intervals by their standard errors mislead: "
        words += 'use conf_int(method="profile").'
        yield Check("skewness", float(skewness.abs().max()), np.nan, words if skewed else "")
    if result.statistics.pearson_chisqr is not None and result.dof > 0:
        pvalue = _chisqr_pvalue(result.pearson_chisqr, result.dof)
        dispersion = result.statistics.dispersion
        words = f"The variance of the counts is {dispersion:.2g} times what their distribution has: the model lacks "
        words += 'something, or the rows are not independent; scale="pearson" scales the covariance by it.'
        told = result.absolute_sigma and abs(dispersion - 1)
        yield Check("dispersion", dispersion, pvalue, _said(words, pvalue, told))
    elif result.absolute_sigma and result.dof > 0:
        pvalue = _chisqr_pvalue(result.chisqr, result.dof)
        ratio = float(np.sqrt(result.redchi))
        words = f"The residuals are {ratio:.2g} times as large as sigma says: sigma is in other units, or the model "
        words += "lacks something; the standard errors follow sigma."
        yield Check("chi-square", result.chisqr, pvalue, _said(words, pvalue, abs(ratio - 1)))


def _chisqr_pvalue(chisqr: float, dof: int) -> float:
    """Return the two-sided p-value of a chi-square."""
    return float(2 * min(scipy.stats.chi2.cdf(chisqr, dof), scipy.stats.chi2.sf(chisqr, dof)))


def _of_correlations(result: FitResult) -> Check:
    """Find the pairs of parameters that the data hardly tell apart."""
    values = result.correlation.to_numpy()
    pairs = [(i, j) for i, j in itertools.combinations(range(len(values)), 2) if np.isfinite(values[i, j])]
    close = [
        f"{result.names[i]} and {result.names[j]} ({values[i, j]:.3g})"
        for i, j in pairs
        if abs(values[i, j]) > _CORRELATED
    ]
    words = f"Strongly correlated: {', '.join(close)}. The data determine combinations of them better than each alone."
    return Check(
        "correlation", max((abs(values[i, j]) for i, j in pairs), default=np.nan), np.nan, words if close else ""
    )


def _skewness(result: FitResult) -> pd.Series:
    try:
        return result.skewness().dropna()
    except NlsqError:  # as for a robust loss, which has none
        return pd.Series(dtype=float)


def _weak_direction(result: FitResult) -> str:
    """Say in which direction the parameters can move with the least change of the fit."""
    open_ends = result.stderr.index[np.isinf(result.stderr)]
    if len(open_ends):
        return (
            f"The data do not determine {', '.join(open_ends)}, or only a combination: hold one with fixed=, or take a "
            "model without it."
        )
    if result.factor is None or result.condition_number < _ILL:
        return ""
    free = result._model()[0].value
    names = free.model.parameters if free.expansion is None else free.expansion.free
    direction = result.factor.svd[2][-1] / result.factor.norms
    # As changes that go together, in units of the largest beside its standard error.
    errors = result.stderr[list(names)].to_numpy()
    with np.errstate(all="ignore"):
        share = np.nan_to_num(np.abs(direction / errors))
    taken = np.flatnonzero(share > 0.3 * share.max())
    first = taken[0]
    moves = [f"{names[j]} by {direction[j] / direction[first]:.3g}" for j in taken]
    return f"The fit hardly changes where these move together: {', '.join(moves)}."


def _of_residuals(result: FitResult) -> Iterator[Check]:
    summary = result._residual_summary
    mean, square, third, fourth = (power / summary.rows for power in summary.powers)
    centred = square - mean**2
    axis = summary.by_fit.axes[0]
    rounding = _ROUNDING * max(abs(axis.lower), abs(axis.upper))
    if summary.rows < 3 or not centred > 0 or result.rmse <= rounding:  # data without noise
        return
    variance = max(fourth - square**2, np.finfo(float).tiny)
    columns = result._model()[1]
    pairs, products = summary.pairs
    if columns.correlation is not None:  # the other checks take rows as independent
        if pairs > 1:
            yield Check("autocorrelation", products / pairs / square, np.nan, "")
        return
    remedy = "weigh the rows by sigma=" if columns.sigma is None else "sigma is not right everywhere"
    remedy = "the counts are not all of that distribution" if columns.counts else remedy
    for name, binned in zip((*columns.x, "the fit"), (*summary.by_column, summary.by_fit), strict=True):
        yield from _against(name, binned, summary.rows, remedy)
    if pairs > 1:
        lag = products / pairs / square
        pvalue = float(2 * scipy.stats.norm.sf(abs(lag) * np.sqrt(pairs)))
        sign, size = ("positively", "small") if lag > 0 else ("negatively", "large")
        words = f"The residuals of neighbouring rows are {sign} correlated ({lag:.2g}): the model lacks something, or "
        words += f'the rows are not independent, and standard errors are too {size}: correlation="ar1" estimates it.'
        yield Check("autocorrelation", lag, pvalue, _said(words, pvalue, abs(lag)))
    if not columns.counts:  # whose residuals are skewed where the counts are few
        skew = (third - 3 * mean * square + 2 * mean**3) / centred**1.5
        excess = (fourth - 4 * mean * third + 6 * mean**2 * square - 3 * mean**4) / centred**2 - 3
        yield _of_normality(summary.rows, skew, excess, result.provenance.get("loss", "linear") == "linear")
    if len(summary.partitions) > 1:
        yield _of_partitions(summary, square, variance)


def _of_normality(rows: int, skew: float, excess: float, linear: bool) -> Check:
    jarque = rows / 6 * (skew**2 + excess**2 / 4)
    pvalue = float(scipy.stats.chi2.sf(jarque, 2))
    words = f"The residuals are not normal: skewness {skew:.2g}, excess kurtosis {excess:.2g}."
    if excess > 1 and linear:
        words += ' Where these are outliers, a robust loss such as loss="soft_l1" gives them less weight.'
    return Check("normality", jarque, pvalue, _said(words, pvalue, max(abs(skew), abs(excess))))


def _against(name: str, binned: Binned, rows: int, remedy: str) -> Iterator[Check]:
    """Compare the residuals in cells of a column; those beyond the last cell of z count as there."""
    axis, score = panels.coarse(binned, rows).axes, binned.axes[1].middles
    counts = binned.on(axis).counts
    square = float(counts.sum(axis=0) @ score**2 / counts.sum())
    variance = float(counts.sum(axis=0) @ score**4 / counts.sum()) - square**2
    n = counts.sum(axis=1)
    counts, n = counts[n >= 5], n[n >= 5]
    if len(n) < 2 or not (square > 0 and variance > 0):
        return
    means, squares = counts @ score / n, counts @ score**2 / n
    statistic = float((n * means**2).sum() / square)
    pvalue = float(scipy.stats.chi2.sf(statistic, len(n)))
    # How far the means scatter more than noise would.
    excess = float(np.sqrt(max((statistic - len(n)) / n.sum(), 0.0)))
    words = f"The mean residual varies with {name}, by {excess:.2g} standard deviations: the model lacks something."
    yield Check(f"mean against {name}", statistic, pvalue, _said(words, pvalue, excess))
    statistic = float((n * (squares - square) ** 2).sum() / variance)
    pvalue = float(scipy.stats.chi2.sf(statistic, len(n) - 1))
    low, high = np.sqrt(np.quantile(squares, [0.05, 0.95]) / square)
    words = f"The scatter of the residuals changes with {name}, from {low:.2g} to {high:.2g} times its average: "
    words += f'{remedy}, or take cov_type="sandwich".'
    yield Check(f"spread against {name}", statistic, pvalue, _said(words, pvalue, float(high - low)))


def _of_partitions(summary: ResidualSummary, square: float, variance: float) -> Check:
    """Find the partition whose mean square of residuals is farthest from that of all rows."""
    number, rows, chisqr = summary.partitions.T
    departure = np.sqrt(rows) * (chisqr / rows - square) / np.sqrt(variance)
    worst = int(np.argmax(np.abs(departure)))
    # The largest of so many.
    pvalue = float(min(2 * scipy.stats.norm.sf(abs(departure[worst])) * len(rows), 1.0))
    ratio = float(np.sqrt(chisqr[worst] / rows[worst] / square))
    words = f"The residuals of partition {int(number[worst])} are {ratio:.2g} times those of all rows: examine it."
    return Check("outlying partition", float(departure[worst]), pvalue, _said(words, pvalue, abs(ratio - 1)))


def _said(words: str, pvalue: float, effect: float) -> str:
    return words if pvalue < _SURE and effect > _NOTABLE else ""
