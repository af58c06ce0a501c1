"""The axes that a plot is drawn on: those that were given, or new ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dask_nlsq._errors import NlsqError

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def pyplot() -> Any:
    """Return matplotlib's interface to new figures, imported at the first plot.

    Raises
    ------
    NlsqError
        matplotlib is not installed.
    """
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError as error:
        raise NlsqError("Plots need matplotlib, which is not installed: pip install 'dask-nlsq[plot]'.") from error
    return plt


def axes(ax: Axes | None, size: tuple[float, float] = (6.4, 4.4)) -> Axes:
    """Return the axes that were given, or those of a new figure of a size in inches."""
    return pyplot().subplots(figsize=size, layout="constrained")[1] if ax is None else ax
