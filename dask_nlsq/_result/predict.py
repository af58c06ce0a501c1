"""Evaluate a fitted model where the data are: lazily on Dask collections, at once in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd

from dask_nlsq._errors import DataError
from dask_nlsq._sources.columns import Columns
from dask_nlsq._sweep.shipped import Shipped
from dask_nlsq._sweep.task import predict_rows
from dask_nlsq._typing import Vector


def predict(shipped: Shipped, theta: Vector, columns: Columns, data: Any) -> Any:
    """Return the model's values: a Series for a frame, an array for arrays, lazy where `data` is.

    Parameters
    ----------
    data : Dask or pandas DataFrame, mapping of arrays, array, or sequence of arrays
        Columns are taken by name where there are names, else in the order of the fit.
    """
    if isinstance(data, (dd.DataFrame, pd.DataFrame)):
        missing = [name for name in columns.x if name not in data.columns and name != "index"]
        if missing:
            raise DataError(f"There is no column {missing}; the data has {list(data.columns)}.", column=missing[0])
    if isinstance(data, dd.DataFrame):
        meta = pd.Series([], dtype="float64", name="predicted")
        return data.map_partitions(_series, shipped, theta, columns, meta=meta)
    if isinstance(data, pd.DataFrame):
        return _series(data, shipped, theta, columns)
    arrays = _arrays(data, columns.x)
    if any(isinstance(a, da.Array) for a in arrays):
        return da.map_blocks(_values, *arrays, shipped=shipped, theta=theta, columns=columns, dtype="f8")
    return _values(*arrays, shipped=shipped, theta=theta, columns=columns)


def _arrays(data: Any, names: Sequence[str]) -> list[Any]:
    if isinstance(data, Mapping):
        return [data[name] for name in names]
    if len(names) == 1 and getattr(data, "ndim", 1) == 1 and not isinstance(data, tuple):
        return [data]
    if len(data) != len(names):
        raise DataError(f"{len(data)} arrays were given; the model takes {list(names)}.")
    return list(data)


def _series(frame: Any, shipped: Shipped, theta: Vector, columns: Columns) -> Any:
    raw = [(frame[name] if name in frame.columns else frame.index).array for name in columns.x]
    values = _values(*raw, shipped=shipped, theta=theta, columns=columns)
    return pd.Series(values, index=frame.index, name="predicted")


def _values(*raw: Any, shipped: Shipped, theta: Vector, columns: Columns) -> Vector:
    x = tuple(columns.to_float(name, np.atleast_1d(a)) for name, a in zip(columns.x, raw, strict=True))
    return predict_rows(shipped, theta, x)
