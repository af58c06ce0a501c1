"""Panels: what several plots draw alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from dask_nlsq._errors import NlsqError
from dask_nlsq._sweep import Binned
from dask_nlsq._typing import Vector

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dask_nlsq._result.result import FitResult


_FEWEST = 3
"""Rows of a cell whose mean is drawn."""


class Moments(NamedTuple):
    """Of the standardised residuals in each cell of a column that holds a few rows."""

    middle: Vector
    rows: Vector
    mean: Vector
    spread: Vector  # standard deviation


def moments(binned: Binned) -> Moments:
    """Return mean and spread of what the second axis counts, by cells of the first."""
    axis, score = binned.axes
    count = binned.counts.sum(axis=1).astype(float)
    filled = count >= _FEWEST
    counts, n = binned.counts[filled], count[filled]
    mean = counts @ score.middles / n
    square = counts @ score.middles**2 / n - mean**2
    spread = np.sqrt(np.maximum(square, 0.0) * n / (n - 1))
    # The first and the last cell may reach beyond the rows.
    return Moments(np.clip(axis.middles[filled], axis.lower, axis.upper), n, mean, spread)


def coarse(binned: Binned, rows: int) -> Binned:
    """Return cells of which each has some tens of rows, or some tens of cells."""
    return binned.coarsened(int(np.clip(rows / 20, 8, 48)))


def shown(result: FitResult, name: str, values: Vector) -> Any:
    """Return values of a column as its axis shows them: dates where the column holds some."""
    origin = result._model()[1].origins.get(name)
    if origin is None:
        return values
    moment = pd.Timestamp(origin)
    moment = moment.tz_localize(None) if moment.tzinfo is not None else moment
    return (moment + pd.to_timedelta(values, unit="s")).to_numpy()


def show_dates(ax: Axes, result: FitResult, name: str) -> None:
    """Label an axis of dates by as many as there is room for."""
    if result._model()[1].origins.get(name) is not None:
        from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

        locator = AutoDateLocator(maxticks=6)
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def title(result: FitResult) -> str:
    """Return the name of the model, and that the fit did not converge where it did not."""
    return f"{result.provenance['model']}{'' if result.success else f' (NOT converged: {result.status.name})'}"


def number_of(result: FitResult, x: str | None) -> int:
    """Return the place of a column among those of x, the first where none is named.

    Raises
    ------
    NlsqError
        There is no such column.
    """
    names = result._model()[1].x
    if x is None:
        return 0
    if x not in names:
        raise NlsqError(f"There is no column {x!r} of x; the model takes {list(names)}.")
    return names.index(x)


def binned_residuals(ax: Axes, binned: Binned, s: float, x: Any) -> None:
    """Draw mean and spread of the residuals in cells; `x` turns the middles of cells to what the axis shows."""
    m = moments(binned)
    at = x(m.middle)
    low, high = s * (m.mean - m.spread), s * (m.mean + m.spread)
    error = s * m.spread / np.sqrt(m.rows)
    ax.fill_between(at, low, high, color="C0", alpha=0.2, linewidth=0, label="± standard deviation")
    ax.errorbar(at, s * m.mean, error, fmt=".", color="C0", markersize=4, linewidth=1, label="mean ± standard error")
    ax.axhline(0.0, color="C1", linewidth=1)


def scale(ax: Axes, values: pd.Series) -> None:
    """Make the vertical axis logarithmic where finite values are positive and span more than a decade."""
    finite = values[np.isfinite(values)]
    if len(finite) and (finite > 0).all() and finite.max() > 10 * finite.min():
        ax.set_yscale("log")


def dots(rows: int) -> float:
    """Return the size of a point where there are so many."""
    return 7.0 if rows <= 50 else 5.0 if rows <= 500 else 3.0


def residual_label(result: FitResult) -> str:
    """Return what the axis of residuals is called."""
    columns = result._model()[1]
    return "Pearson residual" if columns.counts else "residual" if columns.sigma is None else "residual / sigma"
