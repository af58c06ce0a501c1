"""Evaluate a function of the rows where the data are: lazily on Dask collections, at once in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from dask_nlsq._typing import Vector

_REMEDY = "Columns are taken by the names that they had in the fit; rename them."


Function = Callable[[tuple[Vector, ...]], Vector]
"""From columns x, each (rows,), to a number a row, (rows,)."""


def evaluate(function: Function, columns: Columns, data: Any, name: str = "predicted") -> Any:
    """Return the values of a function: a Series for a frame or a Series, an array for all else; lazy where `data` is.

    Parameters
    ----------
    function : callable
        What is evaluated in the columns x, such as a model.
    data : Dask or pandas DataFrame or Series, mapping of columns, array, number or date, or sequence of columns
        Columns are taken by name where there are names, else in the order of the fit. A number beside columns stands
        for a column of it.
    name : str
        Of a Series that is returned.
    """
    if isinstance(data, (dd.Series, pd.Series)) and len(columns.x) == 1:
        data = data.to_frame(name=columns.x[0])
    if isinstance(data, (dd.DataFrame, pd.DataFrame)):
        present = list(data.columns)
        # A column called "index" may be the index of the frame.
        check_columns(present, [name for name in columns.x if name in present or name != "index"], remedy=_REMEDY)
    if isinstance(data, dd.DataFrame):
        # Given, for Dask would otherwise call the model on made-up rows to learn it.
        meta = pd.Series([], dtype="float64", name=name)
        return data.map_partitions(_series, function, columns, name, meta=meta)
    if isinstance(data, pd.DataFrame):
        return _series(data, function, columns, name)
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
        values = shaped(evaluate(function, columns, flat))
        whole = data[columns.y].dims if dims and hasattr(data, "data_vars") and columns.y in data else ()
        return values.transpose(*whole, ...) if set(whole) <= set(getattr(values, "dims", ())) and whole else values
    raw = within(raw)
    long = {name: a for name, a in raw.items() if np.ndim(a)}
    if not any(is_array(a) or is_series(a) for a in long.values()):
        # No Dask collection is among the columns, so that the values are wanted now.
        raw |= {name: a[:] for name, a in raw.items() if isinstance(a, Stored)}
        return _values(*raw.values(), function=function, columns=columns)
    arrays = (raw | align(in_dask({name: _numbers(a, name, columns) for name, a in long.items()}))).values()
    return da.map_blocks(_values, *arrays, function=function, columns=columns, dtype="f8", meta=np.empty(0))


def names_of(data: Any) -> list[str]:
    """Return the names of the columns; none for arrays."""
    if hasattr(data, "column_names"):  # of Arrow
        return list(data.column_names)
    if fields := getattr(getattr(data, "dtype", None), "names", None):
        return list(fields)
    if hasattr(data, "columns"):
        return list(data.columns)
    return [*data.keys(), *getattr(data, "coords", ())] if hasattr(data, "keys") else []


def _raw(data: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return what was given for each column of the model."""
    if hasattr(data, "keys"):  # a mapping, an xarray Dataset, a Zarr group, or a row of a frame
        check_columns(names_of(data), names, remedy=_REMEDY)
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


def _series(frame: pd.DataFrame, function: Function, columns: Columns, name: str) -> Any:
    raw = [(frame[x] if x in frame.columns else frame.index).array for x in columns.x]
    return pd.Series(_values(*raw, function=function, columns=columns), index=frame.index, name=name)


def _values(*raw: Any, function: Function, columns: Columns) -> Vector:
    """Evaluate a function in columns of one length, and numbers, which are repeated to it."""
    x = {name: columns.to_float(name, a if np.ndim(a) else _one(a)) for name, a in zip(columns.x, raw, strict=True)}
    rows = {name: len(x[name]) for name, a in zip(columns.x, raw, strict=True) if np.ndim(a)}
    if len(set(rows.values())) > 1:
        raise DataError(f"Columns have unlike lengths: {rows}. They must come from rows that belong together.")
    n = max(rows.values(), default=1)
    return function(tuple(c if name in rows else np.repeat(c, n) for name, c in x.items()))


def _one(value: npt.ArrayLike) -> Any:
    """Return a number or date as a column of it."""
    array = np.atleast_1d(value)
    return pd.Series(list(array)).array if array.dtype == object else array  # a Timestamp, perhaps of a time zone
