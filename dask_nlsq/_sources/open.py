"""Tell what the data is, and open it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import zarr

from dask_nlsq._errors import DataError, NlsqError
from dask_nlsq._sources.array import is_array, open_array
from dask_nlsq._sources.columns import Columns, check_columns
from dask_nlsq._sources.frame import is_frame, open_frame
from dask_nlsq._sources.memory import open_memory
from dask_nlsq._sources.parquet import open_parquet
from dask_nlsq._sources.source import Source
from dask_nlsq._sources.zarr import check_plain, is_zarr, open_zarr


def open_source(
    data: Any, columns: Columns, filters: Any = None, storage_options: dict[str, Any] | None = None
) -> Source:
    """Open a frame, a mapping of arrays, a Zarr group, or a path or URL of Parquet or Zarr.

    Raises
    ------
    DataError
        The data is of no known kind, or lacks a column.
    """
    if isinstance(data, (str, os.PathLike)):
        return _open_path(os.fspath(data), columns, filters, storage_options or {})
    if filters is not None:
        raise DataError("filters= needs data= to be a path or URL of Parquet; filter the collection instead.")
    if is_frame(data):
        return open_frame(data, columns)
    if isinstance(data, pd.DataFrame):
        if "index" in columns.names and "index" not in data.columns:
            data = data.rename_axis(index="index").reset_index()
        check_columns(list(data.columns), columns.names)
        return open_memory(
            {name: data[name] for name in columns.names}, columns, "pandas DataFrame", tuple(data.columns)
        )
    if is_zarr(data):
        return open_zarr(data, columns)
    if hasattr(data, "data_vars"):  # an xarray Dataset
        data = {name: data[name].data for name in [*data.data_vars, *data.coords]}
    if isinstance(data, Mapping):
        return _open_mapping(data, columns)
    raise DataError(
        f"data is a {type(data).__name__}; a Dask or pandas DataFrame, a mapping of arrays, an xarray Dataset, "
        "a Zarr group, or a path or URL of Parquet or Zarr is needed."
    )


def _open_path(path: str, columns: Columns, filters: Any, storage_options: dict[str, Any]) -> Source:
    try:
        if is_zarr_path(path, storage_options):
            return open_zarr(zarr.open_group(path, mode="r", storage_options=storage_options or None), columns)
        return open_parquet(path, columns, filters, storage_options)
    except (OSError, ValueError, ImportError) as error:
        if isinstance(error, NlsqError):
            raise
        raise DataError(f"{path!r} cannot be read as Parquet or Zarr: {type(error).__name__}: {error}") from error


def _open_mapping(data: Mapping[str, Any], columns: Columns) -> Source:
    check_columns(list(data), columns.names)
    chosen = {name: data[name] for name in columns.names}
    if all(is_zarr(a) for a in chosen.values()):
        return open_zarr(chosen, columns)
    check_plain({k: a for k, a in chosen.items() if is_zarr(a)})
    if any(is_array(a) for a in chosen.values()):
        return open_array({k: a if is_array(a) else np.asanyarray(a) for k, a in chosen.items()}, columns)
    arrays = {k: a if hasattr(a, "dtype") and not is_zarr(a) else np.asarray(a) for k, a in chosen.items()}
    return open_memory(arrays, columns, "arrays in memory", tuple(data))


def is_zarr_path(path: str, storage_options: dict[str, Any]) -> bool:
    """Whether a path or URL holds a Zarr group."""
    if path.rstrip("/").endswith(".zarr"):
        return True
    fs, root = fsspec.core.url_to_fs(path, **storage_options)
    return any(fs.exists(f"{root}/{name}") for name in ("zarr.json", ".zgroup"))
