"""Plots that take one pass over the rows: the data beside the fit, and the residuals."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import scipy

from dask_nlsq._display import axes, pyplot
from dask_nlsq._errors import NlsqError, one_of
from dask_nlsq._model import Model
from dask_nlsq._result.bands import Band, band, check_level, curve_stderr, variance_of
from dask_nlsq._result.plots import panels
from dask_nlsq._result.responses import each_response
from dask_nlsq._sweep import predict_rows
from dask_nlsq._typing import Vector

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dask_nlsq._result.result import FitResult

_CURVE = 400
"""Points of a curve."""

_CELLS_FROM = 200
"""Rows from which means in cells say more than the points alone."""


def plot(
    result: FitResult,
    x: str | None = None,
    *,
    level: float = 0.95,
    residuals: bool | None = None,
    ax: Axes | None = None,
) -> Any:
    """Draw the data, the fit with its confidence and prediction bands, and the residuals below.

    Up to 5,000 rows are points, more are drawn as the number of rows in cells of a grid; one pass over the data counts
    them, and later plots of the same result take no other.

    Parameters
    ----------
    x : str, optional
        The column to draw against, by default the first. Of a model of several columns, the means of the fit in cells
        of this column are drawn in place of a curve with bands.
    level : float
        Probability that a band covers, at least 0.5 and below 1. The prediction band is left out where the fit had a
        column of sigma.
    residuals : bool, optional
        Whether to draw the residuals in a panel below; by default in a new figure of one response.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.

    Returns
    -------
    matplotlib.axes.Axes, or an array of one for each of several responses
        That of the data; that of the residuals is ``ax.figure.axes[1]``.

    Raises
    ------
    NlsqError
        matplotlib is not installed, there is no such column, or the result keeps no data.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> x = np.linspace(0, 4, 50)
    >>> result = dask_nlsq.fit("a * exp(-b*x)", x, 2 * np.exp(-x) + 0.01 * np.cos(9 * x), p0={"a": 1.0, "b": 0.5})
    >>> ax = result.plot()
    >>> ax.get_ylabel(), len(ax.get_lines())
    ('y', 2)
    """
    check_level(level)
    j = panels.number_of(result, x)
    if (several := each_response(result)) is not None:
        return _plot_each(several, x, level, residuals, ax)
    summary = result._residual_summary
    columns = result._model()[1]
    below: Axes | None = None
    if ax is None:
        with_residuals = residuals is not False
        plt = pyplot()
        _, panes = plt.subplots(
            1 + with_residuals,
            squeeze=False,
            sharex=True,
            figsize=(6.4, 5.4 if with_residuals else 4.4),
            height_ratios=[3, 1][: 1 + with_residuals],
            layout="constrained",
        )
        ax, below = panes[0, 0], panes[1, 0] if with_residuals else None
    elif residuals:
        from mpl_toolkits.axes_grid1 import make_axes_locatable

        below = make_axes_locatable(ax).append_axes("bottom", "30%", pad=0.1, sharex=ax)
    assert ax is not None
    at = functools.partial(panels.shown, result, columns.x[j])
    points = summary.points
    if points is not None:
        style: dict[str, Any] = {"fmt": ".", "markersize": panels.dots(summary.rows), "elinewidth": 0.8, "color": "C0"}
        line = ax.errorbar(at(points.x[j]), points.y, points.sigma, **style)
        line.set_label("data")
    else:
        _density(ax, summary.density[j], at)
    _curve(ax, result, j, level, at)
    ax.set(ylabel=columns.y if columns.trials is None else f"{columns.y} / trials", title=panels.title(result))
    ax.legend()
    (below or ax).set_xlabel(columns.x[j])
    panels.show_dates(below or ax, result, columns.x[j])
    if below is not None:
        ax.tick_params(labelbottom=False)
        if points is not None:
            below.plot(at(points.x[j]), points.score * result._residual_std, ".", color="C0", markersize=4, alpha=0.7)
            below.axhline(0.0, color="C1", linewidth=1)
        else:
            cells = panels.coarse(summary.by_column[j], summary.rows)
            panels.binned_residuals(below, cells, result._residual_std, at)
        below.set_ylabel(panels.residual_label(result))
    return ax


def _plot_each(
    several: Sequence[FitResult], x: str | None, level: float, residuals: bool | None, ax: Axes | None
) -> Any:
    """Draw each of several responses in a panel of its own."""
    if ax is not None:
        names = [one._model()[1].y for one in several]
        raise NlsqError(f"ax= takes one panel; draw one of the responses {names}: result.response(name).plot(ax=ax).")
    size = (4.8 * len(several), 4.8)
    _, panes = pyplot().subplots(1, len(several), squeeze=False, figsize=size, layout="constrained")
    for one, pane in zip(several, panes[0], strict=True):
        plot(one, x, level=level, residuals=bool(residuals), ax=pane)
    return panes[0]


def _density(ax: Axes, density: Any, at: Any) -> None:
    """Draw the number of rows in each cell."""
    from matplotlib.colors import LogNorm

    horizontal, vertical = density.axes
    counts = np.ma.masked_equal(density.counts.T, 0)
    norm = LogNorm(1, max(int(counts.max()), 2))
    mesh = ax.pcolormesh(at(horizontal.edges), vertical.edges, counts, norm=norm, cmap="Blues", rasterized=True)
    ax.figure.colorbar(mesh, ax=ax, label="rows", pad=0.01)


def _curve(ax: Axes, result: FitResult, j: int, level: float, at: Any) -> None:
    """Draw the fit, with its bands where the model takes one column."""
    payload, columns = result._model()
    axis = result._residual_summary.by_column[j].axes[0]
    if len(columns.x) > 1:
        summary = result._residual_summary
        binned = panels.coarse(summary.by_column[j], summary.rows)
        count, middles = binned.counts.sum(axis=1), binned.axes[0].middles
        filled = count > 0
        assert binned.total is not None
        mean = binned.total[filled] / count[filled]
        ax.plot(at(middles[filled]), mean, "D", color="C1", markersize=5, label="mean of the fit", zorder=3)
        return
    x = np.linspace(axis.lower, axis.upper, _CURVE)
    ax.plot(at(x), predict_rows(payload, result.popt, (x,)), color="C1", label="fit", zorder=3)
    for name, alpha, limits in (
        (f"{100 * level:.3g} % confidence band", 0.45, _band(result, x, level, new=False)),
        (f"{100 * level:.3g} % prediction band", 0.15, _band(result, x, level, new=True)),
    ):
        if limits is not None and np.isfinite(limits.lower).all():
            ax.fill_between(
                at(x), limits.lower, limits.upper, color="C1", alpha=alpha, linewidth=0, label=name, zorder=2
            )


def _band(result: FitResult, x: Vector, level: float, *, new: bool) -> Band | None:
    """Return the confidence band, or that of new observations where their sigma is known, at numbers x."""
    payload, columns = result._model()
    if new and isinstance(columns.weight, str):
        return None
    columns = dataclasses.replace(columns, origins={})  # dates are the seconds that the model sees
    predicted = predict_rows(payload, result.popt, (x,))
    stderr = curve_stderr(payload, columns, result.params, result.cov, (x,))
    if new:
        s2 = result.statistics.residual_variance(result.absolute_sigma)
        stderr = np.sqrt(stderr**2 + s2 * variance_of(columns, (x,), predicted))
    limits: Band = band(predicted, stderr, level, result.statistics.interval_dof)
    return limits


def plot_residuals(result: FitResult, kind: str | None = None, *, x: str | None = None, ax: Axes | None = None) -> Any:
    """Draw the residuals against a column, against the fit, as a histogram, and beside quantiles of the normal.

    Parameters
    ----------
    kind : {"x", "fit", "histogram", "quantiles"}, optional
        One of the panels; by default all four in a new figure.
    x : str, optional
        The column to draw against, by default the first.
    ax : matplotlib.axes.Axes, optional
        Where to draw the one panel.

    Returns
    -------
    matplotlib.axes.Axes, or an array of four, (2, 2)

    Raises
    ------
    NlsqError
        matplotlib is not installed, there is no such column or panel, or the result keeps no data.

    Notes
    -----
    Against x and the fit, up to 5,000 rows are points; from 200 rows, means in cells are drawn with their standard
    errors, and the standard deviation in a cell as a band. Where a panel compares them with the normal distribution,
    residuals are standardised: divided by sigma and by the residual standard deviation.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> x = np.linspace(0, 4, 50)
    >>> result = dask_nlsq.fit("a * exp(-b*x)", x, 2 * np.exp(-x) + 0.01 * np.cos(9 * x), p0={"a": 1.0, "b": 0.5})
    >>> result.plot_residuals().shape
    (2, 2)
    """
    j = panels.number_of(result, x)
    draw: Mapping[str, Any] = {
        "x": functools.partial(_against_column, j=j),
        "fit": _against_fit,
        "histogram": _histogram,
        "quantiles": _quantiles,
    }
    if kind is not None:
        one_of("kind", kind, *draw)
        ax = axes(ax)
        draw[kind](ax, result)
        return ax
    if ax is not None:
        raise NlsqError(f"ax= takes one panel; name it with kind=, one of {', '.join(draw)}.")
    figure, panes = pyplot().subplots(2, 2, figsize=(8.4, 6.4), layout="constrained")
    for panel, function in zip(panes.flat, draw.values(), strict=True):
        function(panel, result)
    panes[0, 0].legend(fontsize="small") if panes[0, 0].get_legend_handles_labels()[0] else None
    figure.suptitle(f"Residuals of {panels.title(result)}")
    return panes


def _against_column(ax: Axes, result: FitResult, j: int) -> None:
    name, summary = result._model()[1].x[j], result._residual_summary
    points = None if summary.points is None else (summary.points.x[j], summary.points.score)
    _against(ax, result, summary.by_column[j], points, functools.partial(panels.shown, result, name))
    ax.set_xlabel(name)
    panels.show_dates(ax, result, name)


def _against_fit(ax: Axes, result: FitResult) -> None:
    summary = result._residual_summary
    points = None if summary.points is None else (summary.points.fit, summary.points.score)
    _against(ax, result, summary.by_fit, points, np.asarray)
    ax.set_xlabel(f"fitted {result._model()[1].y}")


def _against(ax: Axes, result: FitResult, binned: Any, points: tuple[Vector, Vector] | None, at: Any) -> None:
    s = result._residual_std
    rows = result._residual_summary.rows
    if points is not None:
        ax.plot(at(points[0]), s * points[1], ".", color="C0" if rows < _CELLS_FROM else "0.6", markersize=4, alpha=0.7)
    if rows < _CELLS_FROM:
        ax.axhline(0.0, color="C1", linewidth=1)
    else:
        panels.binned_residuals(ax, panels.coarse(binned, rows), s, at)
    ax.set_ylabel(panels.residual_label(result))


def _histogram(ax: Axes, result: FitResult) -> None:
    summary = result._residual_summary
    counts, edges = summary.score_counts, summary.by_fit.axes[1].edges
    if summary.points is not None:
        counts, edges = np.histogram(np.clip(summary.points.score, edges[0], edges[-1]), "auto")
    filled = np.flatnonzero(counts)
    first, last = filled[0], filled[-1] + 1
    density = counts[first:last] / (counts.sum() * np.diff(edges)[first:last])
    beyond = int(summary.score_counts[[0, -1]].sum()) if summary.points is None else 0
    ax.stairs(density, edges[first : last + 1], fill=True, color="C0", alpha=0.5)
    z = np.linspace(min(edges[first], -4.0), max(edges[last], 4.0), _CURVE)
    ax.plot(z, scipy.stats.norm.pdf(z), color="C1", label="normal")
    label = f"standardised residual; {beyond:,} rows beyond ±8 at the ends" if beyond else "standardised residual"
    ax.set(xlabel=label, ylabel="density")
    ax.legend()


def _quantiles(ax: Axes, result: FitResult) -> None:
    summary = result._residual_summary
    if summary.points is not None:
        z = np.sort(summary.points.score)
        share = (np.arange(len(z)) + 0.5) / len(z)
    else:
        # At the edges of cells it is known exactly how many rows lie below.
        below = np.cumsum(summary.score_counts)[:-1] / summary.rows
        inside = (below > 0) & (below < 1)
        z, share = summary.by_fit.axes[1].edges[1:-1][inside], below[inside]
    normal = scipy.stats.norm.ppf(share)
    ax.plot(normal, z, ".", color="C0", markersize=4)
    if len(z):
        ends = np.array([normal[0], normal[-1]])
        ax.plot(ends, ends, color="C1", linewidth=1)
    ax.set(xlabel="normal quantile", ylabel="standardised residual")


def plot_components(result: FitResult, x: str | None = None, *, ax: Axes | None = None) -> Axes:
    """Draw the fit, and each of the models that it is the sum of.

    Parameters
    ----------
    x : str, optional
        The column to draw against; a model of several columns has no components to draw.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default `plot` draws the data in a new figure first.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    NlsqError
        The model is no sum of models, or takes several columns.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> from dask_nlsq import models
    >>> x = np.linspace(-3, 3, 80)
    >>> y = 2 * np.exp(-(x**2)) + 0.3 * x + 0.01 * np.cos(9 * x)
    >>> result = dask_nlsq.fit(models.gaussian + models.line, x, y)
    >>> [line.get_label() for line in result.plot_components().get_lines()][-2:]
    ['gaussian', 'line']
    """
    payload, columns = result._model()
    parts = payload.value.model.components
    if len(parts) < 2:
        raise NlsqError(f"{result.provenance['model']!r} is no sum of models, such as models.gaussian + models.line.")
    if payload.value.responses is not None:
        raise NlsqError("Components are drawn of a model that returns one real number a row.")
    if len(columns.x) > 1:
        raise NlsqError(f"The model takes the columns {list(columns.x)}; components are drawn against one.")
    panels.number_of(result, x)
    axis = result._residual_summary.by_column[0].axes[0]
    grid = np.linspace(axis.lower, axis.upper, _CURVE)
    at = panels.shown(result, columns.x[0], grid)
    ax = plot(result, residuals=False) if ax is None else ax
    for i, part in enumerate(parts):
        values = _value(part, grid, [float(result.params[name]) for name in part.parameters])
        ax.plot(at, np.broadcast_to(values, grid.shape), "--", color=f"C{i + 2}", linewidth=1.2, label=part.name)
    ax.legend()
    return ax


def _value(part: Model, x: Vector, theta: Sequence[float]) -> Vector:
    bound = dataclasses.replace(part, columns={part.inputs[0]: (0,)})
    with jax.enable_x64(True):
        return np.asarray(bound((jnp.asarray(x),), theta, jnp.stack), float)
