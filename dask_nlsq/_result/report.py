"""The text report of a fit: what a person reads first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from dask.utils import format_bytes, format_time

from dask_nlsq._solver import Statistics, Status
from dask_nlsq._typing import Vector

METHODS = {
    "poisson": "Maximum likelihood, Poisson",
    "binomial": "Maximum likelihood, binomial",
    "neyman": "Neyman's chi-square",
    "pearson": "Pearson's chi-square",
}
"""What is done with counts, by the loss."""


def report(
    names: Sequence[str],
    popt: Vector,
    stderr: Iterable[float],
    active_mask: Iterable[int],
    statistics: Statistics,
    status: Status,
    *,
    n_dropped: int,
    condition_number: float,
    nsweeps: int,
    provenance: Mapping[str, Any],
    notes: Sequence[str],
) -> str:
    """Return the report as lines of plain text; arguments are named as in `FitResult`."""
    title = f"{provenance['model']}({', '.join(names)})"
    ending = "converged" if status.success else "NOT converged"
    lines = [
        f"{METHODS.get(provenance.get('loss', ''), 'Nonlinear least squares')}: {title}",
        f"  {ending} ({status.name}): {status.sentence}",
        "",
        *_parameters(names, popt, stderr, remarks(stderr, active_mask, statistics.chisqr)),
        "",
        *(f"  {label:<20}{text}" for label, text in statistics_rows(statistics, n_dropped, condition_number)),
        *(f"  {label:<20}{text}" for label, text in run_rows(provenance, nsweeps)),
    ]
    lines += [f"  note: {note}" for note in notes]
    return "\n".join(lines)


def remarks(stderr: Iterable[float], active_mask: Iterable[int], chisqr: float) -> list[str]:
    """Return why a parameter has no ordinary standard error, a text for each; empty where it has one."""
    sides = {-1: "at its lower bound", 1: "at its upper bound"}
    exact = chisqr == 0  # so that all errors are 0

    def remark(error: float) -> str:
        if error == 0 and not exact:
            return "fixed"
        return "not determined" if np.isinf(error) else "follows one at a bound" if np.isnan(error) else ""

    return [sides.get(int(side)) or remark(error) for side, error in zip(active_mask, stderr, strict=True)]


def _parameters(names: Sequence[str], popt: Vector, stderr: Iterable[float], remarks: Sequence[str]) -> list[str]:
    width = max(map(len, names))
    rows = []
    for name, value, error, remark in zip(names, popt, stderr, remarks, strict=True):
        share = abs(error / value) if value else np.inf
        relative = f"({100 * share:.2g} %)" if 0 < share < 1 else ""
        uncertainty = f"± {error:<11.4g}" if error > 0 else ""
        words = "  ".join(filter(None, (uncertainty, relative, f"({remark})" if remark else "")))
        rows.append(f"  {name:<{width}}  {value:>17.10g}  {words}".rstrip())
    return rows


def statistics_rows(statistics: Statistics, n_dropped: int, condition_number: float) -> list[tuple[str, str]]:
    """Return the statistics of the fit, each with its name."""
    dropped = f", {n_dropped:,} dropped" if n_dropped else ""
    return [
        ("rows", f"{statistics.n_obs:,}{dropped}"),
        ("degrees of freedom", f"{statistics.dof:,}"),
        *_errors_rows(statistics),
        *_fit_rows(statistics),
        *_likelihood_rows(statistics),
        ("condition number", f"{condition_number:.3g}"),
    ]


def _likelihood_rows(statistics: Statistics) -> list[tuple[str, str]]:
    """Return the criteria of a fit by likelihood."""
    if np.isnan(statistics.loglik):
        return []
    return [("AIC, BIC", f"{statistics.aic:.10g}, {statistics.bic:.10g}")]


def _errors_rows(statistics: Statistics) -> list[tuple[str, str]]:
    """Return what standard errors are where they take rows to depend on one another."""
    if statistics.n_groups is None:
        return []
    return [("standard errors", f"cluster-robust, {statistics.n_groups:,} groups")]


def _fit_rows(statistics: Statistics) -> list[tuple[str, str]]:
    chisqr = f"{statistics.chisqr:.8g}  (reduced {statistics.redchi:.6g})"
    if statistics.pearson_chisqr is not None and not np.isnan(statistics.loglik):
        pearson = f"{statistics.pearson_chisqr:.8g}  (reduced {statistics.dispersion:.6g})"
        return [("deviance", chisqr), ("Pearson chi-square", pearson)]
    if np.isnan(statistics.rmse):  # with errors in x, or of counts
        return [("chi-square", chisqr)]
    determined = [] if np.isnan(statistics.rsquared) else [("R²", f"{statistics.rsquared:.8g}")]  # of one mean of y
    return [("chi-square", chisqr), *determined, ("RMSE", f"{statistics.rmse:.6g}")]


def run_rows(run: Mapping[str, Any], nsweeps: int) -> list[tuple[str, str]]:
    """Return what was read in which time and memory, each with its name."""
    partitions = f"{run['partitions']:,} partition{'s' * (run['partitions'] != 1)}"
    speed = f"{run['rows_per_second']:,.0f} rows a second"
    return [
        ("data", f"{run['data']}, {partitions}"),
        ("sweeps", f"{nsweeps} in {format_time(run['seconds'])}, {speed}"),
        ("peak memory", f"{format_bytes(run['peak_memory'])} in this process"),
    ]
