"""Plots of complex numbers: in their plane, and as modulus and phase."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from dask_nlsq._display import axes, pyplot
from dask_nlsq._errors import NlsqError
from dask_nlsq._result.plots import panels
from dask_nlsq._result.responses import each_response
from dask_nlsq._sweep import predict_rows
from dask_nlsq._typing import Vector

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dask_nlsq._result.result import FitResult

_CURVE = 400
"""Points of a curve."""

_DECADE = 10.0
"""Ratio of the ends of a positive column from which it is drawn on a logarithmic axis."""

Complex = npt.NDArray[np.complex128]


class _Drawn(NamedTuple):
    x: Vector
    values: Complex


def plot_nyquist(result: FitResult, *, conjugate: bool = False, ax: Axes | None = None) -> Axes:
    """Draw complex observations and the fit in the complex plane, along the first column of x.

    Up to 5,000 rows are points; of more, in the middle of each cell of x, what the fit has there and the mean residual
    of the cell. Two passes over the data count them.

    Parameters
    ----------
    conjugate : bool
        Draw minus the imaginary part upwards, as is usual for impedances.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default in a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Raises
    ------
    NlsqError
        matplotlib is not installed, y is not complex, the model takes several columns, or the result keeps no data.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> w = np.geomspace(0.1, 10, 50)
    >>> result = dask_nlsq.fit(lambda w, r, c: r / (1 + 1j * w * r * c), w, 2 / (1 + 1j * w), p0=[1, 1])
    >>> result.plot_nyquist(conjugate=True).get_ylabel()
    '−imaginary part of y'
    """
    points, curve = _drawn(result)
    name, sign = _name(result), -1.0 if conjugate else 1.0
    ax = axes(ax)
    ax.plot(points.values.real, sign * points.values.imag, ".", color="C0", label="data")
    ax.plot(curve.values.real, sign * curve.values.imag, color="C1", label="fit")
    minus = "−" if conjugate else ""
    ax.set(xlabel=f"real part of {name}", ylabel=f"{minus}imaginary part of {name}", title=panels.title(result))
    ax.set_aspect("equal", adjustable="datalim")
    ax.legend()
    return ax


def plot_bode(result: FitResult) -> Any:
    """Draw modulus and phase of complex observations and of the fit against the first column of x.

    The data are drawn as by `plot_nyquist`. Columns and moduli that are positive and span a decade have a logarithmic
    axis.

    Returns
    -------
    array of two matplotlib.axes.Axes
        Of the modulus, and of the phase in degrees, in a new figure.

    Raises
    ------
    NlsqError
        matplotlib is not installed, y is not complex, the model takes several columns, or the result keeps no data.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> w = np.geomspace(0.1, 10, 50)
    >>> result = dask_nlsq.fit(lambda w, r, c: r / (1 + 1j * w * r * c), w, 2 / (1 + 1j * w), p0=[1, 1])
    >>> [ax.get_ylabel() for ax in result.plot_bode()]
    ['modulus of y', 'phase (degrees)']
    """
    drawn = _drawn(result)
    _, panes = pyplot().subplots(2, sharex=True, figsize=(6.4, 5.4), layout="constrained")
    styles: tuple[dict[str, Any], ...] = ({"marker": ".", "linestyle": "", "label": "data"}, {"label": "fit"})
    for (x, values), style in zip(drawn, styles, strict=True):
        # The phase of one turn follows on that of the last; rows need not come in the order of x.
        order = np.argsort(x, kind="stable")
        at, phase = panels.shown(result, result._model()[1].x[0], x[order]), np.unwrap(np.angle(values[order]))
        panes[0].plot(at, np.abs(values[order]), **style)
        panes[1].plot(at, np.degrees(phase), **style)
    modulus = np.abs(np.concatenate([part.values for part in drawn]))
    for axis, span in ((panes[0].set_yscale, modulus), (panes[1].set_xscale, drawn[1].x)):
        if _logarithmic(span):
            axis("log")
    panes[0].set(ylabel=f"modulus of {_name(result)}", title=panels.title(result))
    panes[1].set(ylabel="phase (degrees)", xlabel=result._model()[1].x[0])
    panels.show_dates(panes[1], result, result._model()[1].x[0])
    panes[0].legend()
    return panes


def _name(result: FitResult) -> str:
    """Return what y is called, as far as it is one column."""
    columns = result._model()[1]
    return " + i ".join(columns.responses) or columns.y


def _logarithmic(values: Vector) -> bool:
    return bool(values.min() > 0 and values.max() > _DECADE * values.min())


def _drawn(result: FitResult) -> tuple[_Drawn, _Drawn]:
    """Return observations, or their means in cells of x, and the curve of the fit."""
    payload, columns = result._model()
    parts = each_response(result)
    if parts is None or payload.value.responses is None or not payload.value.responses.is_complex:
        raise NlsqError("y is not complex; plot() draws real numbers.")
    if len(columns.x) > 1:
        raise NlsqError(f"The model takes the columns {list(columns.x)}; complex numbers are drawn along one.")
    x, real, imag = (*_observed(parts[0]), _observed(parts[1])[1])
    lower, upper = x.min(), x.max()
    grid = np.geomspace(lower, upper, _CURVE) if _logarithmic(x) else np.linspace(lower, upper, _CURVE)
    fitted = [predict_rows(part._model()[0], result.popt, (grid,)) for part in parts]
    return _Drawn(x, real + 1j * imag), _Drawn(grid, fitted[0] + 1j * fitted[1])


def _observed(part: FitResult) -> tuple[Vector, Vector]:
    """Return x and a part of y, row by row, or in cells of x."""
    summary, (payload, columns) = part._residual_summary, part._model()
    if summary.points is not None:
        return summary.points.x[0], summary.points.y
    (sigma,) = columns.sigmas
    if isinstance(sigma, str):
        raise NlsqError("Of more than 5,000 rows with a column of sigma, complex numbers are not drawn; plot() is.")
    # The mean of y in a wide cell would lie beside the curve, where that bends.
    cells = panels.moments(summary.by_column[0])
    fit = predict_rows(payload, part.popt, (cells.middle,))
    return cells.middle, fit + part._residual_std * (sigma or 1.0) * cells.mean
