"""HTML of a fit: what a notebook shows of it, and a page of its own with plots."""

from __future__ import annotations

import dataclasses
import io
from typing import TYPE_CHECKING

from dask_nlsq._errors import NlsqError
from dask_nlsq._html import Fold, Fragment, Part, Table, Text, page
from dask_nlsq._result.report import remarks, run_rows, statistics_rows
from dask_nlsq._result.table import rounded

if TYPE_CHECKING:
    from dask_nlsq._result.result import FitResult

_MOST = 12
"""Parameters up to which correlations are shown."""

_PLOTS = {
    "Fit": "plot",
    "Residuals": "plot_residuals",
    "Convergence": "plot_history",
    "Correlation": "plot_correlation",
}
"""Methods that draw a page's figures, by title."""


def fragment_of(result: FitResult) -> Fragment:
    """Return what the text report says, and folded the correlation, the history and the provenance."""
    history = result.history.reset_index().to_dict("split")
    folded = [
        Fold(
            f"History: {result.nsweeps} sweep{'s' * (result.nsweeps != 1)}",
            [Table(history["data"], header=history["columns"], align="r")],
        ),
        Fold("Provenance", [Table([*result.provenance.items()], align="ll")]),
    ]
    if 1 < len(result.names) <= _MOST:
        folded.insert(0, Fold("Correlation", [_correlation(result)]))
    ending = "converged" if result.success else "NOT converged"
    return Fragment(
        title=f"{result.provenance['model']}({', '.join(result.names)})",
        status=f"{ending} ({result.status.name}){f': {result.message}' if result.success else ''}",
        failure="" if result.success else result.message,
        notes=result.notes,
        parts=[
            estimates(result),
            Table(
                [
                    *statistics_rows(result.statistics, result.n_dropped, result.condition_number),
                    *run_rows(result.provenance, result.nsweeps),
                ]
            ),
            *folded,
        ],
    )


def estimates(result: FitResult) -> Table:
    """Return the table of estimates, rounded by their errors."""
    rows = []
    why = remarks(result.stderr, result.active_mask, result.chisqr)
    for name, value, error, remark in zip(result.names, result.popt.tolist(), result.stderr.tolist(), why, strict=True):
        value_text, error_text = rounded(value, error)
        rows.append((name, value_text, error_text if not remark or remark == "not determined" else "", remark))
    return Table(rows, header=("parameter", "value", "standard error", ""), align="lrrl")


def _correlation(result: FitResult) -> Table:
    values = result.correlation.to_numpy().tolist()
    # NaN, of a parameter at a bound, is left empty.
    rows = [
        (name, *(f"{value:.3f}" if value == value else "" for value in row))
        for name, row in zip(result.names, values, strict=True)
    ]
    return Table(rows, header=("", *result.names), align="l" + "r" * len(rows), shades=values)


def document(result: FitResult, plots: bool) -> str:
    """Return a page with the fragment, the text report, and the plots that can be drawn, or why they cannot."""
    fragment = fragment_of(result)
    figures, missing = draw(result) if plots else ([], [])
    parts: list[Part] = [*fragment.parts, Fold("Report as text", [Text(result.report())]), *missing]
    return page(dataclasses.replace(fragment, parts=parts), figures)


def draw(result: FitResult) -> tuple[list[tuple[str, bytes]], list[str]]:
    """Return figures by title, as PNG, and why others could not be drawn."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return [], ['The plots need matplotlib, which is not installed: pip install "dask-nlsq[plot]".']
    figures, missing = [], []
    for title, method in _PLOTS.items():
        if not hasattr(result, method):
            continue
        # A figure of its own, and not one of pyplot, which a notebook would show beside the page.
        figure = Figure(figsize=(8, 5), layout="constrained")
        try:
            getattr(result, method)(ax=figure.subplots())
        except NlsqError as error:
            missing.append(f"{title} could not be drawn: {error}")
            continue
        figure.savefig(image := io.BytesIO(), format="png", dpi=120)
        figures.append((title, image.getvalue()))
    return figures, missing
