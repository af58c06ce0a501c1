"""Table: the estimates of a fit as a table for a paper, with values rounded by their errors."""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, Any

import pandas as pd

from dask_nlsq._errors import NlsqError
from dask_nlsq._result.report import remarks

if TYPE_CHECKING:
    from dask_nlsq._result.result import FitResult


def to_dataframe(result: FitResult) -> pd.DataFrame:
    """Return estimates, standard errors, 95 % intervals and remarks, one row a parameter."""
    return result.summary().assign(remark=remarks(result.stderr, result.active_mask, result.chisqr))


def to_markdown(result: FitResult, **options: Any) -> str:
    """Return the table, rounded, as text of Markdown."""
    table = rounded_table(result)
    # Markdown takes HTML, and a bar ends a cell.
    table = table.set_axis([html.escape(name, quote=False).replace("|", r"\|") for name in table.index])
    align = ("left", *["right"] * (table.shape[1] - 1), "left")
    settings: dict[str, Any] = {"disable_numparse": True, "colalign": align} | options
    try:
        return str(table.to_markdown(**settings))
    except ImportError as error:
        raise NlsqError(
            'to_markdown needs the package tabulate, which is not installed: pip install "dask-nlsq[tables]".'
        ) from error


def to_latex(result: FitResult, **options: Any) -> str:
    """Return the table, rounded, as text of LaTeX."""
    table = rounded_table(result)
    align = "l" + "r" * (table.shape[1] - 1) + "l"
    settings: dict[str, Any] = {"escape": True, "column_format": align} | options
    return str(table.to_latex(**settings))


def rounded_table(result: FitResult) -> pd.DataFrame:
    """Return the table as text: all numbers of a row to the second digit of its standard error."""
    table = to_dataframe(result)
    rows = []
    for value, error, lower, upper, remark in table.itertuples(index=False):
        value_text, error_text = rounded(value, error)
        rows.append([value_text, error_text, rounded(lower, error)[0], rounded(upper, error)[0], remark])
    return pd.DataFrame(rows, index=table.index, columns=table.columns)


def rounded(value: float, error: float) -> tuple[str, str]:
    """Return a value and its standard error as the field rounds them: two digits of the error, and as far the value.

    Examples
    --------
    >>> from dask_nlsq._result.table import rounded
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
