"""HTML of a fit: what a notebook shows of it, and a page of its own with plots."""

from __future__ import annotations

import dataclasses
import functools
import io
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dask_nlsq._display import Fold, Fragment, Part, Table, Text, page
from dask_nlsq._errors import NlsqError
from dask_nlsq._result.plots import estimates, rows
from dask_nlsq._result.report import remarks, run_rows, statistics_rows
from dask_nlsq._result.table import rounded

if TYPE_CHECKING:
    from dask_nlsq._result.result import FitResult

_MOST = 12
"""Parameters up to which correlations are shown."""

_FIGURES: Mapping[str, tuple[tuple[float, float], Sequence[Callable[..., Any]]]] = {
    "Fit": ((8.4, 5.4), [rows.plot]),
    "Residuals": (
        (8.4, 6.4),
        [functools.partial(rows.plot_residuals, kind=kind) for kind in ("x", "fit", "histogram", "quantiles")],
    ),
    "Convergence": ((8.4, 4.4), [estimates.plot_history, functools.partial(estimates.plot_history, column="step")]),
    "Correlation": ((6.4, 5.4), [estimates.plot_correlation]),
}
"""Of a page, by title: inches, and what draws each panel."""


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
            estimate_table(result),
            Table(
                [
                    *statistics_rows(result.statistics, result.n_dropped, result.condition_number),
                    *run_rows(result.provenance, result.nsweeps),
                ]
            ),
            *folded,
        ],
    )


def estimate_table(result: FitResult) -> Table:
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
    except ModuleNotFoundError:
        return [], ['The plots need matplotlib, which is not installed: pip install "dask-nlsq[plot]".']
    figures, missing = [], []
    for title, (size, panels) in _FIGURES.items():
        # Not one of pyplot, which a notebook would show beside the page.
        figure = Figure(figsize=size, layout="constrained")
        panes = figure.subplots(math.ceil(len(panels) / 2), min(len(panels), 2), squeeze=False)
        try:
            for panel, ax in zip(panels, panes.flat, strict=True):
                panel(result, ax=ax)
        except NlsqError as error:
            missing.append(f"{title} could not be drawn: {error}")
            continue
        figure.savefig(image := io.BytesIO(), format="png", dpi=120)
        figures.append((title, image.getvalue()))
    return figures, missing
