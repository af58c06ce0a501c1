"""Maps: a parameter or statistic of many fits over the series."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from dask_nlsq._display import axes
from dask_nlsq._errors import NlsqError, one_of
from dask_nlsq._solver import Status

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dask_nlsq._many.result import ManyFits


def plot(fits: ManyFits, name: str | None = None, *, ax: Axes | None = None, **style: Any) -> Axes:
    """Draw a parameter or statistic: a map of series in two dimensions, points with errors of those in one.

    Fits that are not computed yet are computed for it: call `compute` first, and draw from what it returns.

    Parameters
    ----------
    name : str, optional
        A parameter (by default the first), its standard error as ``NAME_stderr``, or a statistic: "cost", "redchi",
        "rsquared", "n_obs", "nfev" or "status".
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.
    **style
        Passed to ``pcolormesh`` or ``errorbar`` of matplotlib. The colours of a map reach from the 2nd to the 98th
        percentile unless ``vmin`` and ``vmax`` say otherwise.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    NlsqError
        There is no such name, the series lie in no or more than two dimensions, or matplotlib is not installed.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> t = np.linspace(0, 4, 20)
    >>> y = 3 * np.exp(-np.array([[0.5, 0.7], [1.0, 2.0]])[..., None] * t)
    >>> fits = dask_nlsq.fit_many("amplitude * exp(-rate * x)", t, y).compute()
    >>> fits.plot("rate").get_title()
    'rate'
    """
    arrays = fits.computed_arrays()
    one_of("name", name := name or fits.names[0], *(key for key in arrays if key != "cov"))
    values, dims = np.asarray(arrays[name], float), fits.labels.of(len(fits.shape))
    if len(dims) not in (1, 2):
        raise NlsqError(f"These fits have {len(dims)} dimensions, a map one or two: draw a part of to_dataset().")
    positions = [_positions(fits, dim, size) for dim, size in zip(dims, fits.shape, strict=True)]
    if not values.size:
        raise NlsqError("There are no series to draw.")
    ax = axes(ax)
    if len(dims) == 1:
        error = arrays.get(f"{name}_stderr")
        reach = None if error is None else np.where(np.isfinite(error), error, 0.0)
        ax.errorbar(positions[0], values, reach, **{"fmt": ".", "color": "C0", "elinewidth": 1, **style})
        ax.set(xlabel=dims[0], ylabel=name, title=name)
        return ax
    if name == "status":
        _draw_status(ax, positions, values, style)
    else:
        finite = values[np.isfinite(values)]
        low, high = np.percentile(finite, [2, 98]) if len(finite) else (0.0, 1.0)
        limits = {} if "norm" in style else {"vmin": low, "vmax": high}
        shades = {"cmap": "viridis", **limits, **style}
        mesh = ax.pcolormesh(positions[1], positions[0], values, rasterized=True, **shades)
        ax.figure.colorbar(mesh, ax=ax, label=name, extend="both" if len(finite) > 50 else "neither")
    if not fits.labels.coords:
        ax.locator_params(integer=True)
        ax.invert_yaxis()  # without coordinates, the first row of an image is its top
        ax.set_aspect("equal")
    ax.set(xlabel=dims[1], ylabel=dims[0], title=name)
    return ax


def _positions(fits: ManyFits, dim: str, size: int) -> Any:
    """Return where the series lie along a dimension."""
    coordinate = fits.labels.coords.get(dim)
    return np.arange(size) if coordinate is None else np.asarray(coordinate)


def _draw_status(ax: Axes, positions: list[Any], codes: Any, style: dict[str, Any]) -> None:
    """Draw a colour for each way in which a fit ended."""
    from matplotlib.colors import ListedColormap
    from matplotlib.patches import Patch

    present = np.unique(codes)
    colours = [f"C{i}" for i in range(len(present))]
    mesh = {"cmap": ListedColormap(colours), "vmin": -0.5, "vmax": len(present) - 0.5, **style}
    ax.pcolormesh(positions[1], positions[0], np.searchsorted(present, codes), rasterized=True, **mesh)
    names = [Status.of(int(code)).name for code in present]
    ax.legend(handles=[Patch(color=c, label=n) for c, n in zip(colours, names, strict=True)], fontsize="small")
