"""Evaluate a fitted model where the data are: lazily on Dask collections, at once in memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import numpy.typing as npt
import pandas as pd

from dask_nlsq._errors import DataError
from dask_nlsq._sources import (
    Columns,
    Stored,
    align,
    are_paths,
    check_columns,
    grid,
    in_dask,
    is_array,
    is_arrow,
    is_series,
    is_variable,
    select,
    within,
)
from dask_nlsq._sweep import Payload, predict_rows
from dask_nlsq._typing import Vector

_REMEDY = "Columns are taken by the names that they had in the fit; rename them."


def predict(payload: Payload, theta: Vector, columns: Columns, data: Any) -> Any:
    """Return the model's values: a Series for a frame or a Series, an array for all else; lazy where `data` is.

    Parameters
    ----------
    data : Dask or pandas DataFrame or Series, mapping of columns, array, number or date, or sequence of columns
        Columns are taken by name where there are names, else in the order of the fit. A number beside columns stands
        for a column of it.
    """
    if isinstance(data, (dd.Series, pd.Series)) and len(columns.x) == 1:
        data = data.to_frame(name=columns.x[0])
    if isinstance(data, (dd.DataFrame, pd.DataFrame)):
        present = list(data.columns)
        # A column called "index" may be the index of the frame.
        check_columns(present, [name for name in columns.x if name in present or name != "index"], remedy=_REMEDY)
    if isinstance(data, dd.DataFrame):
        # Given, for Dask would otherwise call the model on made-up rows to learn it.
        meta = pd.Series([], dtype="float64", name="predicted")
        return data.map_partitions(_series, payload, theta, columns, meta=meta)
    if isinstance(data, pd.DataFrame):
        return _series(data, payload, theta, columns)
    if are_paths(data):
        raise DataError(f"predict takes rows, and {data!r} is a path: give dask.dataframe.read_parquet(path), for one.")
    if is_arrow(data):
        data = select(data, columns.x, _REMEDY)[1]
    elif fields := getattr(getattr(data, "dtype", None), "names", None):
        data = {name: data[name] for name in fields}
    raw = _raw(data, columns.x)
    dims = {tuple(a.dims) for a in raw.values() if is_variable(a) and a.ndim}
    if len(dims) > 1 or any(getattr(a, "ndim", 0) > 1 and not is_series(a) for a in raw.values()):
        flat, shaped = grid.spread(raw)
        values = shaped(predict(payload, theta, columns, flat))
        whole = data[columns.y].dims if dims and hasattr(data, "data_vars") and columns.y in data else ()
        return values.transpose(*whole, ...) if set(whole) <= set(getattr(values, "dims", ())) and whole else values
    raw = within(raw)
    long = {name: a for name, a in raw.items() if np.ndim(a)}
    if not any(is_array(a) or is_series(a) for a in long.values()):
        # No Dask collection is among the columns, so that the values are wanted now.
        raw |= {name: a[:] for name, a in raw.items() if isinstance(a, Stored)}
        return _values(*raw.values(), payload=payload, theta=theta, columns=columns)
    arrays = (raw | align(in_dask({name: _numbers(a, name, columns) for name, a in long.items()}))).values()
    return da.map_blocks(_values, *arrays, payload=payload, theta=theta, columns=columns, dtype="f8", meta=np.empty(0))


def _raw(data: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return what was given for each column of the model."""
    if hasattr(data, "keys"):  # a mapping, an xarray Dataset, a Zarr group, or a row of a frame
        check_columns([*data.keys(), *getattr(data, "coords", ())], names, remedy=_REMEDY)
        return {name: data[name] for name in names}
    several = isinstance(data, tuple) or (isinstance(data, list) and data and getattr(data[0], "ndim", 0) >= 1)
    if len(names) == 1 and not several and (getattr(data, "ndim", 1) < 2 or data.shape[0] != 1):
        return {names[0]: data}
    shape = getattr(data, "shape", (len(data),) if isinstance(data, Sequence) else ())
    count = 1 if is_series(data) or not shape else shape[0]
    if count != len(names):
        raise DataError(f"{count} arrays were given; the model takes {list(names)}. Give one for each, or a mapping.")
    return dict(zip(names, data, strict=True))


def _numbers(a: Any, name: str, columns: Columns) -> Any:
    """Return what may be of a type of pandas, which Dask arrays do not know, as numbers; a Dask Series lazily."""
    if is_series(a):
        return a.map_partitions(_floats, name, columns, meta=pd.Series([], dtype="float64"))
    return a if is_array(a) or isinstance(a, Stored) else columns.to_float(name, a)


def _floats(part: pd.Series, name: str, columns: Columns) -> pd.Series:
    # The array and not the values, which lose the type of what pandas stores in a way of its own.
    return pd.Series(columns.to_float(name, part.array), dtype="float64")


def _series(frame: pd.DataFrame, payload: Payload, theta: Vector, columns: Columns) -> Any:
    raw = [(frame[name] if name in frame.columns else frame.index).array for name in columns.x]
    values = _values(*raw, payload=payload, theta=theta, columns=columns)
    return pd.Series(values, index=frame.index, name="predicted")


def _values(*raw: Any, payload: Payload, theta: Vector, columns: Columns) -> Vector:
    """Evaluate the model in columns of one length, and numbers, which are repeated to it."""
    x = {name: columns.to_float(name, a if np.ndim(a) else _one(a)) for name, a in zip(columns.x, raw, strict=True)}
    rows = {name: len(x[name]) for name, a in zip(columns.x, raw, strict=True) if np.ndim(a)}
    if len(set(rows.values())) > 1:
        raise DataError(f"Columns have unlike lengths: {rows}. They must come from rows that belong together.")
    n = max(rows.values(), default=1)
    return predict_rows(payload, theta, tuple(c if name in rows else np.repeat(c, n) for name, c in x.items()))


def _one(value: npt.ArrayLike) -> Any:
    """Return a number or date as a column of it."""
    array = np.atleast_1d(value)
    return pd.Series(list(array)).array if array.dtype == object else array  # a Timestamp, perhaps of a time zone
