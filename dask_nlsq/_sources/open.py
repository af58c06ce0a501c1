"""Tell what the data is, and open it."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import cloudpickle
import dask.array as da
import dask.dataframe as dd
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs
import zarr
from dask.base import tokenize
from dask.delayed import Delayed

from dask_nlsq._errors import DataError, NlsqError
from dask_nlsq._sources import hdf5, tables
from dask_nlsq._sources.array import is_array, open_array
from dask_nlsq._sources.arrow import is_arrow, open_arrow
from dask_nlsq._sources.columns import Columns, check_columns
from dask_nlsq._sources.file_stamps import are_paths, each_path, is_path
from dask_nlsq._sources.frame import is_frame, is_series, open_frame, open_series
from dask_nlsq._sources.grid import spread
from dask_nlsq._sources.hdf5 import is_hdf5, library
from dask_nlsq._sources.in_memory import open_memory
from dask_nlsq._sources.parquet import Filters, Rows, find_rows, open_rows
from dask_nlsq._sources.places import kind_at, kind_by_name, refused
from dask_nlsq._sources.source import Source
from dask_nlsq._sources.stored import Stored, StoredPartition
from dask_nlsq._sources.tables import Version
from dask_nlsq._sources.text import open_text, read_text
from dask_nlsq._sources.variables import Variables, is_dataset, is_variable, stored_rows, to_array
from dask_nlsq._sources.zarr import absent, as_stored, is_zarr, open_stored, open_zarr, rows_at_a_time, whole

KINDS = (
    "a path or URL of Parquet, Zarr, Delta, Iceberg, Icechunk or CSV, a Dask, pandas, polars or Arrow table, a mapping "
    "of arrays, an xarray Dataset, an h5py File, a Zarr group or records of NumPy"
)


@dataclasses.dataclass(frozen=True)
class Reading:
    """How data at a path are read: which rows, with which options of the file system, of which version of a table."""

    filters: Filters | None = None
    storage_options: dict[str, Any] | None = None
    version: Version | None = None


def open_source(
    data: object,
    columns: Columns,
    filters: Filters | None = None,
    storage_options: dict[str, Any] | None = None,
    version: Version | None = None,
) -> Source:
    """Open what holds the rows: a path or URL, a frame, a table, a mapping of arrays, a group, a dataset.

    Raises
    ------
    DataError
        The data is of no known kind, or lacks a column.
    """
    reading = Reading(filters, storage_options, version)
    if is_path(data):
        if not os.fspath(data):
            raise DataError("data is an empty path.")
        return _open_path(os.fspath(data), columns, reading)
    if are_paths(data):
        return _open_paths(each_path(data), columns, reading)
    if isinstance(data, Rows):
        with _named(data.place):
            return open_rows(data, columns, reading.filters)
    if (source := _open_table(data, columns, reading)) is not None:
        return source
    if reading.version is not None:
        raise DataError("version= needs data= to be a Delta or Iceberg table or an Icechunk repository.")
    if reading.filters is not None:
        raise DataError("filters= needs data= to be a path or URL of Parquet; filter the collection instead.")
    if is_frame(data):
        return open_frame(data, columns)
    if isinstance(data, pd.DataFrame):
        return _open_pandas(data, columns)
    if is_zarr(data):
        return open_zarr(data, columns)
    if is_dataset(data):
        return _open_dataset(data, columns)
    if (names := getattr(getattr(data, "dtype", None), "names", None)) and isinstance(data, np.ndarray):
        return _open_mapping({name: data[name] for name in names}, columns)
    # A closed file or group of h5py is false.
    if library(data) == "h5py" and not data:
        raise DataError("The HDF5 file is closed: open it for the time of the fit.")
    # Also a File or Group of h5py.
    if isinstance(data, Mapping):
        return _open_mapping(data, columns)
    # Behind the frames of pandas, which implement the interface of Arrow as well.
    if is_arrow(data):
        return open_arrow(data, columns)
    if hasattr(data, "colnames"):  # a Table of astropy
        table: Any = data
        return _open_mapping({name: table[name] for name in table.colnames}, columns)
    raise DataError(f"data is a {type(data).__name__} of {library(data)}; {_remedy(data) or f'{KINDS} is needed.'}")


def check_known(data: object, column: str | None = None) -> None:
    """Refuse lazy objects whose length and type are not known before they are computed."""
    if isinstance(data, (list, tuple)):
        for each in data[:100]:  # columns, and not numbers
            check_known(each, column)
    lazily = isinstance(data, Delayed) or library(data) in ("dask_awkward", "awkward") or type(data).__name__ == "Bag"
    if lazily:
        where = {} if column is None else {"column": column}
        raise DataError(f"A {type(data).__name__} of {library(data)} cannot be fitted: {_remedy(data)}", **where)


def check_travels(source: Source) -> None:
    """Refuse rows that cannot be sent to other processes, before a scheduler does in its own words."""
    partition = source.partitions[0]
    if source.shared or not isinstance(partition, StoredPartition):
        return
    for name, column in partition.arrays.items():
        try:
            cloudpickle.dumps(column)
        except NlsqError:
            raise
        except Exception as error:  # whatever a store raises that is of this process alone
            raise DataError(
                f"The array cannot be sent to worker processes: {str(error).splitlines()[0]} "
                f"{_TRAVELS.get(library(getattr(column.array, 'store', None)), 'Write it where they can open it.')}",
                column=name,
            ) from error


_TRAVELS = {
    "icechunk": "Commit the session, and give data=repository.readonly_session('main').store, which travels.",
}
"""By the library of a store, what to do where it stays in its process."""


def _remedy(data: object) -> str | None:
    """Return the line that makes data of a kind that is known into one that is taken."""
    known = {
        "dask": "give dask.array.from_delayed(...), a Bag's to_dataframe(), or its compute().",
        "awkward": "give data={name: awkward.to_numpy(data[name]) for name in columns}.",
        "dask_awkward": "give data={name: dask_awkward.to_dask_array(data[name]) for name in columns}.",
        "pyspark": "give data=frame.toPandas(), or write it to Parquet and give the path.",
        "tables": "give data=h5py.File(path).",
        "icechunk": "give data=repository.readonly_session('main').store.",
    }
    if library(data) in known:
        return known[library(data)]
    return "data.to_pandas() gives a frame that can be fitted." if hasattr(data, "to_pandas") else None


def _open_table(data: object, columns: Columns, reading: Reading) -> Source | None:
    """Open a table of a format with a log, a repository, or a dataset of pyarrow; None for all else."""
    kind = library(data)
    if tables.is_delta(data):
        if reading.version is not None:
            raise DataError("data is a DeltaTable of one version already: give DeltaTable(path, version=...).")
        return tables.open_delta(data, columns, reading.filters)
    if isinstance(data, ds.Dataset) and isinstance(getattr(data, "format", None), ds.ParquetFileFormat):
        near = isinstance(data.filesystem, pyarrow.fs.LocalFileSystem)
        return open_rows(Rows(data, near, "the dataset"), columns, reading.filters)
    if isinstance(data, ds.Dataset):
        return open_arrow(data.to_table(list(columns.names)), columns)
    if kind not in ("pyiceberg", "icechunk"):
        return None
    if reading.filters is not None:
        raise DataError("filters= needs Parquet; of an Iceberg table give data=table.scan(row_filter=...).")
    if tables.is_scan(data):
        return tables.open_scan(data, columns, reading.version)
    if tables.is_iceberg(data):
        return tables.open_scan(data.scan(), columns, reading.version)
    if tables.is_repository(data):
        return tables.open_repository(data, columns, reading.version)
    if tables.is_store(data):
        return tables.open_session(data.session, columns)
    return tables.open_session(data, columns) if tables.is_session(data) else None


def locate(data: object, storage_options: dict[str, Any] | None = None, version: Version | None = None) -> object:
    """Return what is at a path of Parquet with its files listed, which is opened sooner more than once; else the data.

    Raises
    ------
    DataError
        The path cannot be read.
    """
    if not is_path(data) or not os.fspath(data) or version is not None:
        return data
    path, options = os.fspath(data), storage_options or {}
    with _named(path):
        return find_rows(path, options) if _look(path, options)[0] == "Parquet" else data


def _look(path: str, options: dict[str, Any]) -> tuple[str, str]:
    """Return the format of what is at a path now, and its place in the file system."""
    fs, root = fsspec.core.url_to_fs(path, **options)
    fs.invalidate_cache()  # others may have written since it listed
    return kind_at(fs, root), root


@contextlib.contextmanager
def _named(path: str) -> Iterator[None]:
    """Say in an error of a file system or a format which path it is about."""
    try:
        yield
    # ImportError is how fsspec says which package a protocol needs.
    except (OSError, EOFError, ValueError, ImportError, pa.ArrowException) as error:
        if isinstance(error, NlsqError):
            raise
        raise DataError(f"{path!r} cannot be read: {type(error).__name__}: {error}") from error


def _open_path(path: str, columns: Columns, reading: Reading) -> Source:
    options = reading.storage_options or {}
    with _named(path):
        kind, root = _look(path, options)
        if reading.version is not None and kind not in ("Delta", "Iceberg", "Icechunk"):
            raise DataError(f"version= needs a Delta, Iceberg or Icechunk table; {path!r} is {kind}.")
        if kind not in ("Parquet", "Delta") and reading.filters is not None:
            raise DataError(f"filters= needs Parquet or Delta; {path!r} is {kind}. Filter a collection instead.")
        if kind == "Delta":
            return tables.open_delta_path(path, columns, reading.filters, options, reading.version)
        if kind == "Iceberg":
            return tables.open_iceberg_path(path, columns, options, reading.version)
        if kind == "Icechunk":
            return tables.open_icechunk(root, columns, reading.version)
        if kind == "Zarr":
            return _open_store(path, columns, options)
        if kind == "text":
            return open_text(path, columns, options)
        if kind != "Parquet":
            raise refused(path, kind)
        return open_rows(find_rows(path, options), columns, reading.filters)


def read_frame(
    path: str, storage_options: dict[str, Any] | None = None, keys: Sequence[str] = (), whole_files: bool = False
) -> dd.DataFrame:
    """Return Parquet or CSV at a path or URL as a frame, of which only the columns that are taken are read.

    Parameters
    ----------
    keys : sequence of str
        Columns that tell rows apart, which keep their types.
    whole_files : bool
        Whether each file lies within one partition.
    """
    options = storage_options or {}
    try:
        fs, root = fsspec.core.url_to_fs(path, **options)
        if any(sign in root for sign in "*?[") and not fs.exists(root) and not fs.glob(root):
            raise DataError(f"Nothing was found at {path!r}.")
        kind = kind_at(fs, root)
        if kind == "text":
            return read_text(path, options, keys, whole_files)
        if kind == "Parquet":
            split = False if whole_files else "infer"
            frame: dd.DataFrame = dd.read_parquet(path, storage_options=options, split_row_groups=split)
            return frame
    except FileNotFoundError as error:
        raise DataError(f"Nothing was found at {path!r}.") from error
    except (OSError, EOFError, ValueError, ImportError, pa.ArrowException) as error:
        if isinstance(error, NlsqError):
            raise
        raise DataError(f"{path!r} cannot be read: {type(error).__name__}: {error}") from error
    raise DataError(f"{path!r} is {kind}, and Parquet or CSV is needed.")


def _open_paths(paths: Sequence[str], columns: Columns, reading: Reading) -> Source:
    """Open a list of paths of Parquet or of text, which are read as one table."""
    options = reading.storage_options or {}
    if reading.version is not None:
        raise DataError("version= needs one Delta, Iceberg or Icechunk table, and data is a list of paths.")
    try:
        kinds = {kind_by_name(path) or kind_at(*fsspec.core.url_to_fs(path, **options)) for path in paths}
        if kinds == {"text"} and reading.filters is None:
            return open_text(list(paths), columns, options)
        if kinds == {"Parquet"}:
            return open_rows(find_rows(list(paths), options), columns, reading.filters)
    except (OSError, EOFError, ValueError, ImportError, pa.ArrowException) as error:
        if isinstance(error, NlsqError):
            raise
        raise DataError(f"The paths cannot be read: {type(error).__name__}: {error}") from error
    if kinds == {"text"}:
        raise DataError("filters= needs Parquet or Delta; data is a list of CSV. Filter a collection instead.")
    raise DataError(
        f"data is a list of paths of {' and '.join(sorted(kinds))}; several of Parquet, or several of CSV, are read as "
        "one table. xarray.open_mfdataset(paths) joins those of Zarr and netCDF: give that as data=."
    )


def _open_store(path: str, columns: Columns, options: dict[str, Any]) -> Source:
    try:
        group = zarr.open_group(path, mode="r", storage_options=options or None)
    except zarr.errors.ContainsArrayError:
        array = zarr.open_array(path, mode="r", storage_options=options or None)
        records = f"records {array.dtype.names}" if array.dtype.names else f"shape {array.shape}"
        raise DataError(
            f"{path!r} is one Zarr array, of {records}; a group with one array a column is needed. "
            + ("data=zarr.open_array(path)[:] fits records in memory." if array.dtype.names else "Give x= and y=.")
        ) from None
    return open_zarr(group, columns)


def _open_pandas(data: pd.DataFrame, columns: Columns) -> Source:
    if "index" in columns.names and "index" not in data.columns:
        if data.index.nlevels > 1:
            raise DataError(
                f"The index has {data.index.nlevels} levels {tuple(data.index.names)}, and one is needed. Call "
                "reset_index() on the frame, and name the columns that the levels become.",
                column="index",
            )
        data = data.rename_axis(index="index").reset_index()
    check_columns(list(data.columns), columns.names)
    return open_memory({name: data[name] for name in columns.names}, columns, "pandas DataFrame", tuple(data.columns))


def _open_dataset(data: Variables, columns: Columns) -> Source:
    """Take variables of the dimensions of y, row by row; what is not loaded yet is read partition by partition."""
    present = [*data.data_vars, *data.coords]
    check_columns(present, columns.names)
    chosen = {name: data[name] for name in columns.names}
    if any(len(a.dims) != 1 for a in chosen.values()) or len({a.dims for a in chosen.values()}) > 1:
        chosen, _ = spread(chosen, columns.y)
    source = _open_arrays(chosen, columns)
    return dataclasses.replace(source, info=dataclasses.replace(source.info, present=tuple(present)))


def _open_mapping(data: Mapping[str, Any], columns: Columns) -> Source:
    check_columns(list(data), columns.names)
    for name in columns.names:
        if f"{name}.mask" in data:
            raise DataError(
                f"A mask {name + '.mask'!r} lies beside the column, as astropy writes it: "
                "data=astropy.table.Table.read(path) applies it.",
                column=name,
            )
    chosen = {name: data[name] for name in columns.names}
    source = _open_arrays(chosen, columns)
    return dataclasses.replace(source, info=dataclasses.replace(source.info, present=tuple(data)))


def _open_arrays(raw: Mapping[str, Any], columns: Columns) -> Source:
    raw = within(raw)
    if all(isinstance(a, Stored) for a in raw.values()):
        kind = "Zarr" if all(is_zarr(a.array) for a in raw.values()) else "HDF5"
        return open_stored(raw, columns, kind, tuple(raw))
    if all(is_series(a) for a in raw.values()) and len({a.npartitions for a in raw.values()}) == 1:
        return open_series(raw, columns)
    lazily = {name: a for name, a in raw.items() if isinstance(a, Stored)}
    if lazily or any(is_array(a) or is_series(a) for a in raw.values()):
        return count_absent(open_array(in_dask(raw), columns), lazily)
    arrays = {name: a if hasattr(a, "dtype") else np.asarray(a) for name, a in raw.items()}
    return open_memory(arrays, columns, "arrays in memory", tuple(raw))


def within(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return arrays as they are read: those of stores and files as `Stored`, those inside variables of xarray bare."""
    arrays = dict(raw)
    for name, a in raw.items():
        if isinstance(a, zarr.Array):
            arrays[name] = as_stored(name, a)
        elif is_hdf5(a):
            arrays[name] = hdf5.as_stored(name, a)
        else:
            check_known(a, name)
    return arrays | _variables({name: a for name, a in arrays.items() if is_variable(a)})


def _variables(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays inside variables of one dimension, all cut alike where they are not loaded."""
    for name, variable in variables.items():
        if len(variable.dims) != 1:
            raise DataError(f"The array has shape {variable.shape}; one dimension is needed.", column=name)
    rows = whole(max((stored_rows(a) or 1 for a in variables.values()), default=1))
    return {name: to_array(name, variable, rows) for name, variable in variables.items()}


def count_absent(source: Source, arrays: Mapping[str, Any]) -> Source:
    """Return a source that says, too, which chunks these stored arrays lack, for they are read through Dask."""
    if not arrays:
        return source
    lacking = absent(a if isinstance(a, Stored) else as_stored(name, a) for name, a in arrays.items())
    return dataclasses.replace(source, info=dataclasses.replace(source.info, absent={**source.info.absent, **lacking}))


def in_dask(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that need not be in memory as Dask arrays; what is stays as it is."""
    parts = {a.npartitions for a in raw.values() if is_series(a) or is_array(a)}
    # The lengths of a Series take a pass over its rows, which is done without where all have as many partitions and
    # none has known lengths.
    unsized = len(parts) == 1 and all(is_series(a) or (is_array(a) and np.isnan(a.size)) for a in raw.values())
    arrays = {name: a.to_dask_array(lengths=not unsized or None) if is_series(a) else a for name, a in raw.items()}
    chunks = next((a.chunks[0] for a in arrays.values() if is_array(a) and not np.isnan(a.size)), None)
    return {
        name: lazy(a, chunks) if isinstance(a, Stored) else a if is_array(a) else np.asanyarray(a)
        for name, a in arrays.items()
    }


def lazy(array: Stored, chunks: tuple[int, ...] | None = None) -> da.Array:
    """Return a stored array as a Dask array, cut along its last dimension into what is read at a time."""
    # Lengths that are unlike are refused later, by name.
    given = chunks is not None and sum(chunks) == array.shape[-1]
    cuts = (*array.shape[:-1], chunks if given else rows_at_a_time([array.array]))
    name = f"zarr-{tokenize(array.place, array.shape, cuts)}"
    meta = np.empty((0,) * array.ndim, array.dtype)
    # Inline, for an array that was a task of its own would be work that all partitions share.
    blocks: da.Array = da.from_array(array, cuts, name, meta=meta, inline_array=True)
    return blocks
