"""HTML of a fit, as a notebook shows it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from dask_nlsq._result.report import remarks

if TYPE_CHECKING:
    from dask_nlsq._result.result import FitResult

_TEMPLATES = jinja2.Environment(loader=jinja2.PackageLoader("dask_nlsq._result"), autoescape=True, trim_blocks=True)

_MOST = 12
"""Parameters up to which correlations are shown."""


def to_html(result: FitResult) -> str:
    """Return a self-contained fragment of HTML, in which all text of the user is escaped."""
    return _TEMPLATES.get_template("result.html").render(
        result=result,
        rows=[
            (name, *rounded(value, error), remark)
            for name, value, error, remark in zip(
                result.names,
                result.popt.tolist(),
                result.stderr.tolist(),
                remarks(result.stderr, result.active_mask, result.chisqr),
                strict=True,
            )
        ],
        correlation=_correlation(result) if 1 < len(result.names) <= _MOST else [],
        history=result.history.reset_index().to_dict("split"),
        cell=_cell,
    )


def rounded(value: float, error: float) -> tuple[str, str]:
    """Return a value and its standard error as the field rounds them: two digits of the error, and as far the value.

    Examples
    --------
    >>> from dask_nlsq._result.html import rounded
    >>> rounded(2.4998587, 0.0003227), rounded(123456.7, 1234.0), rounded(1.5e-12, 2e-14)
    (('2.49986', '0.00032'), ('123500', '1200'), ('1.500e-12', '0.020e-12'))
    """
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return f"{value:.8g}", f"{error:.2g}"
    error = float(f"{error:.1e}")  # of two digits, as 0.0996 is 0.10
    last = math.floor(math.log10(error)) - 1  # the place of the second digit of the error
    first = max(math.floor(math.log10(abs(value))) if value else last + 1, last + 1)
    if -5 <= first < 7:
        decimals = max(-last, 0)
        return f"{round(value, -last):.{decimals}f}", f"{round(error, -last):.{decimals}f}"
    scale, decimals = 10.0**first, max(first - last, 0)
    return f"{value / scale:.{decimals}f}e{first:+03d}", f"{error / scale:.{decimals}f}e{first:+03d}"


def _correlation(result: FitResult) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return a row for each parameter: its name, and text and colour of each entry."""
    rows = []
    for name, values in zip(result.names, result.correlation.to_numpy(), strict=True):
        hues = np.where(values < 0, 220, 10)
        rows.append(
            (
                name,
                [
                    (f"{value:.3f}", f"hsla({hue}, 80%, 50%, {0.6 * abs(value):.2f})")
                    if math.isfinite(value)
                    else ("", "")
                    for value, hue in zip(values.tolist(), hues.tolist(), strict=True)
                ],
            )
        )
    return rows


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
