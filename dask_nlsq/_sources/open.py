"""Tell what the data is, and open it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import dask.array as da
import fsspec
import numpy as np
import pandas as pd
import zarr
from dask.base import tokenize

from dask_nlsq._errors import DataError, NlsqError
from dask_nlsq._sources.array import is_array, open_array
from dask_nlsq._sources.columns import Columns, check_columns
from dask_nlsq._sources.files import GROUP
from dask_nlsq._sources.frame import is_frame, is_series, open_frame, open_series
from dask_nlsq._sources.memory import open_memory
from dask_nlsq._sources.parquet import open_parquet
from dask_nlsq._sources.source import Source
from dask_nlsq._sources.zarr import absent, check_plain, is_zarr, open_zarr, rows_at_a_time, whole


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
            if data.index.nlevels > 1:
                raise DataError(
                    f"The index has {data.index.nlevels} levels {tuple(data.index.names)}, and one is needed. Call "
                    "reset_index() on the frame, and name the columns that the levels become.",
                    column="index",
                )
            data = data.rename_axis(index="index").reset_index()
        check_columns(list(data.columns), columns.names)
        return open_memory(
            {name: data[name] for name in columns.names}, columns, "pandas DataFrame", tuple(data.columns)
        )
    if is_zarr(data):
        return open_zarr(data, columns)
    if hasattr(data, "data_vars"):  # an xarray Dataset
        return _open_dataset(data, columns)
    if isinstance(data, Mapping):
        return _open_mapping(data, columns)
    raise DataError(
        f"data is a {type(data).__name__}; a Dask or pandas DataFrame, a mapping of arrays, an xarray Dataset, "
        "a Zarr group, or a path or URL of Parquet or Zarr is needed."
    )


def _open_path(path: str, columns: Columns, filters: Any, storage_options: dict[str, Any]) -> Source:
    try:
        fsspec.core.url_to_fs(path, **storage_options)[0].invalidate_cache()  # others may have written since it listed
        if is_zarr_path(path, storage_options):
            group = zarr.open_group(path, mode="r", storage_options=storage_options or None)
            return open_source(group, columns, filters)
        return open_parquet(path, columns, filters, storage_options)
    except (OSError, ValueError, ImportError) as error:
        if isinstance(error, NlsqError):
            raise
        raise DataError(f"{path!r} cannot be read as Parquet or Zarr: {type(error).__name__}: {error}") from error


def _open_dataset(data: Any, columns: Columns) -> Source:
    """Take variables of one dimension; what is not loaded yet is read partition by partition."""
    present = [*data.data_vars, *data.coords]
    check_columns(present, columns.names)
    chosen = {name: data[name] for name in columns.names}
    dims = {name: variable.dims for name, variable in chosen.items()}
    if unlike := [name for name, own in dims.items() if len(own) != 1 or own != dims[columns.names[0]]]:
        raise DataError(
            f"The variables must lie along one dimension, which is the same for all; the dimensions are {dims}. "
            "Choose with data.isel(), or make one of several with data.stack().",
            column=unlike[0],
        )
    source = _open_arrays(chosen, columns)
    return dataclasses.replace(source, info=dataclasses.replace(source.info, present=tuple(present)))


def _open_mapping(data: Mapping[str, Any], columns: Columns) -> Source:
    check_columns(list(data), columns.names)
    chosen = {name: data[name] for name in columns.names}
    source = _open_arrays(chosen, columns)
    return dataclasses.replace(source, info=dataclasses.replace(source.info, present=tuple(data)))


def _open_arrays(raw: Mapping[str, Any], columns: Columns) -> Source:
    raw = _within(raw)
    if all(is_zarr(a) for a in raw.values()):
        return open_zarr(raw, columns)
    if all(is_series(a) for a in raw.values()) and len({a.npartitions for a in raw.values()}) == 1:
        return open_series(raw, columns)
    stored = {name: a for name, a in raw.items() if is_zarr(a)}
    check_plain(stored)
    if stored or any(is_array(a) or is_series(a) for a in raw.values()):
        return count_absent(open_array(in_dask(raw), columns), stored)
    arrays = {name: a if hasattr(a, "dtype") else np.asarray(a) for name, a in raw.items()}
    return open_memory(arrays, columns, "arrays in memory", tuple(raw))


def _within(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays inside variables of xarray, as Dask arrays where they are not loaded; others as they are."""
    found = dict(raw)
    variables = {name: a for name, a in raw.items() if hasattr(a, "dims")}
    for name, variable in variables.items():
        if len(variable.dims) != 1:
            raise DataError(f"The array has shape {variable.shape}; one dimension is needed.", column=name)
    stored = [np.max(a.encoding.get("preferred_chunks", {}).get(*a.dims, 1)) for a in variables.values()]
    for name, variable in variables.items():
        loaded = variable.chunks is not None or getattr(variable.variable, "_in_memory", True)
        sizes = {variable.dims[0]: whole(int(max(stored)))}
        found[name] = variable.data if loaded else variable.chunk(sizes, inline_array=True).data
    return found


def count_absent(source: Source, arrays: Mapping[str, Any]) -> Source:
    """Return a source that says, too, which chunks these Zarr arrays lack, for they are read through Dask."""
    lacking = absent({name: a for name, a in arrays.items() if is_zarr(a)})
    return dataclasses.replace(source, info=dataclasses.replace(source.info, absent={**source.info.absent, **lacking}))


def in_dask(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that need not be in memory as Dask arrays; what is stays as it is."""
    parts = {a.npartitions for a in raw.values() if is_series(a) or is_array(a)}
    unsized = len(parts) == 1 and all(is_series(a) or (is_array(a) and np.isnan(a.size)) for a in raw.values())
    arrays = {name: a.to_dask_array(lengths=not unsized or None) if is_series(a) else a for name, a in raw.items()}
    chunks = next((a.chunks[0] for a in arrays.values() if is_array(a) and not np.isnan(a.size)), None)
    return {
        name: lazy(a, chunks) if is_zarr(a) else a if is_array(a) else np.asanyarray(a) for name, a in arrays.items()
    }


def lazy(array: Any, chunks: Any = None) -> Any:
    """Return a Zarr array as a Dask array, cut along its last dimension into what is read at a time."""
    if chunks is None or sum(chunks) != array.shape[-1]:  # lengths that are unlike are refused later, by name
        chunks = rows_at_a_time([array])
    chunks = (*array.shape[:-1], chunks)
    name = f"zarr-{tokenize(str(array.store_path), array.shape, chunks)}"
    meta = np.empty((0,) * array.ndim, array.dtype)
    return da.from_array(array, chunks, name, meta=meta, inline_array=True)  # a task of its own would be common work


def is_zarr_path(path: str, storage_options: dict[str, Any]) -> bool:
    """Whether a path or URL holds a Zarr group."""
    if path.rstrip("/").endswith(".zarr"):
        return True
    fs, root = fsspec.core.url_to_fs(path, **storage_options)
    return any(fs.exists(f"{root}/{name}") for name in GROUP)
