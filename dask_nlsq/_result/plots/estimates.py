"""Plots of the estimates: how the fit came to them, and how sure they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy

from dask_nlsq._display import axes
from dask_nlsq._errors import NlsqError, one_of, warn
from dask_nlsq._result.bands import check_level
from dask_nlsq._result.plots import panels
from dask_nlsq._typing import Vector

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dask_nlsq._result.result import FitResult

_THIN = 0.99
"""Correlation from which the region of two parameters is too thin for a grid."""

_NUMBERS = 12
"""Parameters up to which a correlation is written into its cell."""


def plot_history(result: FitResult, column: str = "cost", *, ax: Axes | None = None) -> Axes:
    """Draw a column of the history against the sweeps; hollow marks are sweeps whose step was refused.

    Parameters
    ----------
    column : str
        Of ``result.history``: "cost", "step", "damping", "radius", "seconds", or a parameter.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    NlsqError
        matplotlib is not installed, or there is no such column.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> x = np.linspace(0, 4, 50)
    >>> result = dask_nlsq.fit("a * exp(-b*x)", x, 2 * np.exp(-x) + 0.01 * np.cos(9 * x), p0={"a": 1.0, "b": 0.5})
    >>> result.plot_history().get_xlabel()
    'sweep'
    """
    history = result.history
    one_of("column", column, *(name for name in history.columns if name != "accepted"))
    ax = axes(ax)
    values = history[column].astype(float)
    accepted = history.get("accepted", values.notna()).astype(bool)  # a stream, of one sweep, has no such column
    ax.plot(values.index, values, color="C0", linewidth=1)
    ax.plot(values.index[accepted], values[accepted], "o", color="C0")
    ax.plot(values.index[~accepted], values[~accepted], "o", color="C0", markerfacecolor="none")
    if column not in result.names:
        panels.scale(ax, values)
    if len(values) == 1:
        ax.set_xlim(0.0, 2.0)
    label = "remaining step, standard errors" if column == "step" else column
    ax.set(xlabel="sweep", ylabel=label, title=f"{result.provenance['model']}: {result.status.name}")
    ax.locator_params(axis="x", integer=True)
    return ax


def plot_correlation(result: FitResult, *, ax: Axes | None = None) -> Axes:
    """Draw the correlation of the estimates as a matrix of colours, red for positive and blue for negative.

    Parameters
    ----------
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    NlsqError
        matplotlib is not installed.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> result = dask_nlsq.fit("a + b*x", np.arange(4.0), np.array([1.0, 2.9, 5.1, 7.0]))
    >>> result.plot_correlation().get_title()
    'Correlation of the estimates'
    """
    names, values = list(result.names), result.correlation.to_numpy()
    side = float(np.clip(1.6 + 0.55 * len(names), 3.4, 9.0))
    ax = axes(ax, (side + 0.8, side))
    image = ax.imshow(values, cmap="RdBu_r", vmin=-1.0, vmax=1.0)
    ax.set_xticks(range(len(names)), names, rotation=45 if max(map(len, names)) > 3 else 0)
    ax.set_yticks(range(len(names)), names)
    if len(names) <= _NUMBERS:
        for i, j in np.ndindex(values.shape):
            if np.isfinite(values[i, j]):
                colour = "white" if abs(values[i, j]) > 0.6 else "black"
                ax.text(j, i, f"{values[i, j]:.2f}", ha="center", va="center", color=colour, fontsize="small")
    ax.figure.colorbar(image, ax=ax, shrink=0.8)
    ax.set_title("Correlation of the estimates")
    return ax


def plot_profile(result: FitResult, name: str, *, level: float = 0.95, ax: Axes | None = None) -> Axes:
    r"""Draw the profile of a parameter: :math:`\tau`, the signed root of the rise of the cost.

    Where the model is linear in its parameters the profile is the straight line that is drawn beside it; the interval
    of the level lies between the vertical lines, where the profile meets Student's quantile.

    Parameters
    ----------
    name : str
        A free parameter.
    level : float
        Probability that the interval covers.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    NlsqError
        As `FitResult.profile`, or matplotlib is not installed.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> t = np.array([0.0, 1, 2, 3])
    >>> result = dask_nlsq.fit("a * exp(-b*x)", t, np.array([2.0, 1.2, 0.8, 0.4]), p0={"a": 1.0, "b": 1.0})
    >>> result.plot_profile("b").get_xlabel()
    'b'
    """
    check_level(level)
    reach = scipy.stats.t.ppf(0.5 + level / 2, max(result.dof, 1))
    profile = result.profile(name)
    interval = result.conf_int(level, method="profile").loc[name]
    ax = axes(ax)
    value, error = float(result.params[name]), float(result.stderr[name])
    tau = profile["tau"].to_numpy()
    ax.plot(profile.index, tau, "o-", color="C0", markersize=4, label="profile")
    ends = np.array([profile.index[0], profile.index[-1]])
    ax.plot(ends, (ends - value) / error, "--", color="C1", linewidth=1, label="linear theory")
    for sign, end in zip((-1, 1), interval, strict=True):
        ax.axhline(sign * reach, color="0.5", linewidth=0.8, linestyle=":")
        if np.isfinite(end):
            ax.axvline(end, color="C0", linewidth=0.8, linestyle=":")
    ax.plot([value], [0.0], "+", color="C1", markersize=10)
    ax.set(xlabel=name, ylabel="τ", title=f"Profile of {name}, interval of {100 * level:.3g} %")
    ax.legend()
    return ax


def plot_contour(
    result: FitResult,
    a: str,
    b: str,
    *,
    levels: tuple[float, ...] = (0.68, 0.95),
    points: int = 21,
    ax: Axes | None = None,
) -> Axes:
    """Draw joint confidence regions of two parameters by profile likelihood, and the ellipses of the linear theory.

    Parameters
    ----------
    a, b : str
        Free parameters.
    levels : tuple of float
        Probabilities that the regions cover both parameters together.
    points : int
        Values of each parameter, over the extent of the region; fits at ``points**2`` pairs share their sweeps.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    NlsqError
        As `FitResult.contour`, or matplotlib is not installed.

    Warns
    -----
    NlsqWarning
        The parameters are correlated by more than 0.99.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> t = np.linspace(0, 3, 12)
    >>> result = dask_nlsq.fit("a * exp(-b*x)", t, 2 * np.exp(-t) + 0.05 * np.cos(9 * t), p0={"a": 1.0, "b": 0.5})
    >>> ax = result.plot_contour("a", "b", points=7)
    >>> ax.get_xlabel(), ax.get_ylabel()
    ('a', 'b')
    """
    if not levels or not all(0 < level < 1 for level in levels):
        raise NlsqError(f"levels is {levels!r}; probabilities between 0 and 1 are needed, such as (0.68, 0.95).")
    if points < 5:
        raise NlsqError(f"points is {points}; 5 or more are needed for a contour.")
    if a == b or not {a, b} <= set(result.free):
        raise NlsqError(f"{a!r} and {b!r} are no two free parameters of this fit; those are {', '.join(result.free)}.")
    if result.stderr[[a, b]].gt(0).all():
        alike = float(result.correlation[b].to_numpy()[result.names.index(a)])
        if abs(alike) > _THIN:
            warn(
                f"{a} and {b} are correlated by {alike:.4f}, so that their region is thinner than the cells of a grid: "
                "count x from its middle, or take other parameters."
            )
    dof = max(result.dof, 1)
    rises = [2.0 * float(scipy.stats.f.ppf(level, 2, dof)) for level in sorted(levels)]
    # The region reaches as far as the profile of each parameter does where it has risen as much.
    reach = float(2 * scipy.stats.t.cdf(rises[-1] ** 0.5, dof) - 1)
    ends = result.conf_int(min(reach, 1 - 1e-9), method="profile").loc[[a, b]]
    region = result.contour(a, b, values=_extent(ends, points), points=points, within=1.3 * rises[-1] ** 0.5)
    ax = axes(ax)
    names = {rise: f"{100 * level:.3g} %" for rise, level in zip(rises, sorted(levels), strict=True)}
    # Roots of the rise of χ², between which a line is nearly right where the model is nearly linear.
    grid = np.sqrt(2.0 * scipy.stats.f.ppf(region.to_numpy().T, 2, dof))
    grid[~np.isfinite(grid)] = np.nan
    lines = ax.contour(region.index, region.columns, grid, levels=[rise**0.5 for rise in rises], colors="C0")
    ax.clabel(lines, fmt={rise**0.5: name for rise, name in names.items()})
    centre, cov = result.params[[a, b]].to_numpy(), result.cov.loc[[a, b], [a, b]].to_numpy()
    if np.isfinite(cov).all():
        angle = np.linspace(0, 2 * np.pi, 200)
        ellipse = np.linalg.cholesky(cov) @ np.array([np.cos(angle), np.sin(angle)])
        for i, rise in enumerate(rises):
            x, y = centre[:, None] + rise**0.5 * ellipse
            ax.plot(x, y, "--", color="C1", linewidth=1, label=None if i else "linear theory")
    ax.plot(*centre, "+", color="C1", markersize=10)
    ax.plot([], [], color="C0", label="profile likelihood")
    ax.set(xlabel=a, ylabel=b, title="Joint confidence regions")
    ax.legend()
    return ax


def _extent(ends: pd.DataFrame, points: int) -> tuple[Vector, Vector] | None:
    """Return values of two parameters from a little below their lower ends to a little above the upper ones."""
    if not np.isfinite(ends.to_numpy()).all():
        return None
    spans = [np.linspace(1.08 * low - 0.08 * high, 1.08 * high - 0.08 * low, points) for low, high in ends.to_numpy()]
    return spans[0], spans[1]


def plot_starts(result: FitResult, *, ax: Axes | None = None) -> Axes:
    """Draw where each start of a search has ended: the cost by rank, a colour for each minimum.

    Parameters
    ----------
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    NlsqError
        The fit was no search from several starts, or matplotlib is not installed.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> x = np.linspace(0, 4, 60)
    >>> y = np.sin(3 * x) + 0.1 * np.cos(40 * x)
    >>> result = dask_nlsq.fit("sin(w * x)", x, y, p0={"w": 1.0}, bounds={"w": (0.0, 9.0)}, n_starts=8, seed=0)
    >>> result.plot_starts().get_xlabel()
    'start, by cost'
    """
    table = result.starts
    if table is None:
        raise NlsqError("This fit had one start; with n_starts=, say 32, it searches from several.")
    ax = axes(ax)
    # Starts that were left early have a cost on a sample of the rows.
    sampled = table["rows"].nunique() > 1
    per_row = table["cost"].astype(float) / (table["rows"] if sampled else 1.0)
    order = np.argsort(per_row.to_numpy(), kind="stable")
    cost = per_row.iloc[order].reset_index(drop=True)
    minimum = table["minimum"].astype(int).iloc[order].reset_index(drop=True)
    drawn = np.isfinite(cost)
    for number in sorted(minimum[drawn].unique()):
        of = drawn & (minimum == number)
        label = {0: "lowest minimum", -1: "no minimum"}.get(number, f"minimum {number}")
        marker = "x" if number == -1 else "o"
        # A dozen names say enough.
        ax.plot(
            cost.index[of] + 1,
            cost[of],
            marker,
            markersize=5,
            color="0.5" if number < 0 else f"C{number % 10}",
            label=label if number < 10 else "_",
        )
    panels.scale(ax, cost)
    failed = int((~drawn).sum())
    title = f"{len(table)} starts" + (f", {failed} without a cost" if failed else "")
    ax.set(xlabel="start, by cost", ylabel="cost per row" if sampled else "cost", title=title)
    ax.legend()
    return ax
