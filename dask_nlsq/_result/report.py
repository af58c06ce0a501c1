"""The text report of a fit: what a person reads first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from dask.utils import format_bytes, format_time

if TYPE_CHECKING:
    from dask_nlsq._result.result import FitResult


def report(result: FitResult) -> str:
    """Return the report as lines of plain text."""
    title = f"{result.provenance['model']}({', '.join(result.names)})"
    ending = "converged" if result.success else "NOT converged"
    lines = [
        f"Nonlinear least squares: {title}",
        f"  {ending} ({result.status.name}): {result.message}",
        "",
        *_parameters(result),
        "",
        *_statistics(result),
        *_run(result),
    ]
    lines += [f"  note: {note}" for note in result.notes]
    return "\n".join(lines)


def _parameters(result: FitResult) -> list[str]:
    width = max(map(len, result.names))
    rows = []
    for name, value, error in zip(result.names, result.popt, result.stderr, strict=True):
        share = abs(error / value) if value else np.inf
        relative = f"  ({100 * share:.2g} %)" if share < 1 else ""
        rows.append(f"  {name:<{width}}  {value:>17.10g}  ± {error:<11.4g}{relative}".rstrip())
    return rows


def _statistics(result: FitResult) -> list[str]:
    dropped = f", {result.n_dropped:,} dropped" if result.n_dropped else ""
    return [
        f"  rows                {result.n_obs:,}{dropped}",
        f"  degrees of freedom  {result.dof:,}",
        f"  chi-square          {result.chisqr:.8g}  (reduced {result.redchi:.6g})",
        f"  R²                  {result.rsquared:.8g}",
        f"  RMSE                {result.rmse:.6g}",
        f"  AIC, BIC            {result.aic:.10g}, {result.bic:.10g}",
        f"  condition number    {result.condition_number:.3g}",
    ]


def _run(result: FitResult) -> list[str]:
    run = result.provenance
    return [
        f"  data                {run['data']}, {run['partitions']:,} partition{'s' * (run['partitions'] != 1)}",
        f"  sweeps              {result.nsweeps} in {format_time(run['seconds'])}, "
        f"{run['rows_per_second']:,.0f} rows a second",
        f"  peak memory         {format_bytes(run['peak_memory'])} in this process",
    ]
