"""Curve: a model at given parameters, evaluated and drawn without a fit, and where a fit would start."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dask_nlsq._display import axes
from dask_nlsq._errors import DataError, ModelError
from dask_nlsq._model.expression import Expression
from dask_nlsq._typing import AnyArray, Vector

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from dask_nlsq._model.model import Model


def evaluate(model: Model, x: Any, given: Mapping[str, npt.ArrayLike]) -> Any:
    """Return the values of a model: an array of the shape of a column, or a number where x is one."""
    bound, columns = bind_columns(model, x, given)
    theta = [float(_value(bound, name, given)) for name in bound.parameters]
    shape = np.broadcast_shapes(*(column.shape for column in columns))
    rows = [np.broadcast_to(column, shape).ravel() for column in columns]
    values = np.broadcast_to(_values(bound, rows, theta), (rows[0].size,)).reshape(shape)
    return values.copy() if shape else float(values)


def _values(bound: Model, x: Sequence[Vector], theta: Sequence[float]) -> Vector:
    """Evaluate in float64, as a fit does; with NumPy where the model cannot take arrays of JAX."""
    if isinstance(bound.func, Expression):
        with np.errstate(all="ignore"):
            return np.asarray(bound(x, theta, np.stack), float)
    jax = importlib.import_module("jax")  # a model that is only named or composed needs none
    with jax.enable_x64(True):
        try:
            return np.asarray(bound([jax.numpy.asarray(column) for column in x], theta, jax.numpy.stack), float)
        except Exception:  # whatever a function written for NumPy raises
            return np.asarray(bound(x, theta, np.stack), float)


def _value(model: Model, name: str, given: Mapping[str, Any]) -> Any:
    if name not in given and name not in model.defaults:
        raise ModelError(
            f"No value of {name!r} is given; the parameters of {model.name!r} are {list(model.parameters)}."
        )
    return given.get(name, model.defaults.get(name))


def bind_columns(model: Model, x: Any, given: Mapping[str, Any]) -> tuple[Model, list[AnyArray]]:
    """Return the model bound to the columns that x holds, and these as arrays.

    Parameters
    ----------
    model : Model
    x : array, tuple of arrays, array of shape (k, rows), mapping or frame
        As for `fit`.
    given : mapping
        Values of parameters; these are no columns.
    """
    if hasattr(x, "keys") and getattr(x, "ndim", 2) != 1:  # a Series has keys, too
        names: Sequence[str] = [name for name in model.arguments if name in x and name not in given]
        raw = [x[name] for name in names]
        if len(dims := {tuple(column.dims) for column in raw if hasattr(column, "dims")}) > 1:
            raise DataError(
                f"The columns have the dimensions {sorted(dims)}; give them the same, as xarray.broadcast does."
            )
    else:
        x = tuple(map(np.asarray, x)) if isinstance(x, tuple) and not any(np.isscalar(c) for c in x) else x
        several = isinstance(x, (tuple, list)) and bool(x) and getattr(x[0], "ndim", 0) >= 1
        raw = list(x) if several or getattr(x, "ndim", 1) == 2 else [x]
        names = model.array_names(len(raw), [*model.defaults, *given.keys() - model.defaults.keys()])
    bound = model.bind(names)
    for name in given:
        if name not in bound.parameters:
            nearest = difflib.get_close_matches(name, bound.parameters, n=1)
            remedy = f" Did you mean {nearest[0]!r}?" if nearest else ""
            raise ModelError(
                f"{bound.name!r} has no parameter {name!r}; its parameters are {list(bound.parameters)}.{remedy}"
            )
    return bound, [_numbers(name, column) for name, column in zip(names, raw, strict=True)]


def _numbers(name: str, column: Any) -> AnyArray:
    if hasattr(column, "__dask_graph__"):
        raise DataError(
            f"{name!r} is a collection of Dask, and arrays in memory are needed; for a Dask array, "
            "x.map_blocks(model.eval, dtype=float, ...) is lazy.",
            column=name,
        )
    array = np.asarray(column)
    if array.dtype.kind not in "fiubO":
        raise DataError(
            f"{name!r} holds {array.dtype}, and numbers are needed; of dates, seconds since one of them.", column=name
        )
    try:
        return array.astype(float)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name!r} is {column!r:.80}; numbers are needed.", column=name) from error


def starts(model: Model, x: Any, y: Any) -> dict[str, float]:
    """Return where a fit to these rows would start, if nobody said where."""
    bound, columns = bind_columns(model, x, {})
    arrays = [column.ravel() for column in (*columns, _numbers("y", y))]
    if len({array.size for array in arrays}) > 1:
        raise DataError(f"x and y have {[array.size for array in arrays]} values; they must be equally long.")
    finite = np.logical_and.reduce([np.isfinite(array) for array in arrays])
    *rows, observed = (array[finite] for array in arrays)
    guess = guessed(bound, rows, observed) if len(observed) else {}
    found = {name: float(value) for name, value in guess.items() if np.isfinite(value)}
    values = dict.fromkeys(bound.parameters, 1.0) | found | dict(bound.defaults)
    return {name: values[name] for name in bound.parameters}


def guessed(bound: Model, x: Sequence[Vector], y: Vector) -> Mapping[str, float]:
    """Return what the guess of a bound model says of finite rows; nothing where it has none."""
    if bound.guess_func is None:
        return {}
    places = (bound.columns[name] for name in bound.inputs or bound.columns)
    try:
        return bound.guess_func([x[i] for each in places for i in each], y)
    except Exception as error:
        missing = [name for name in bound.parameters if name not in bound.defaults]
        raise ModelError(
            f"The guess of {bound.name!r} failed on {len(y)} rows ({type(error).__name__}: {error}). Give p0 for "
            f"{', '.join(missing)}."
        ) from error


def plot(model: Model, x: Any, given: Mapping[str, Any], ax: Axes | None) -> Axes:
    """Draw the curve over one column."""
    bound, columns = bind_columns(model, x, given)
    if len(columns) > 1:
        raise ModelError(f"{bound.name!r} has the columns {list(bound.columns)}; a curve is drawn over one.")
    values = evaluate(model, x, given)
    ax = axes(ax)
    order = np.argsort(columns[0].ravel())
    text = ", ".join(f"{name}={_value(bound, name, given):.4g}" for name in bound.parameters)
    ax.plot(columns[0].ravel()[order], np.ravel(values)[order], label=f"{bound.name}: {text}")
    ax.set(xlabel=next(iter(bound.columns)), title=bound.name)
    ax.legend()
    return ax
