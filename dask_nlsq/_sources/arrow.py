"""Arrow: tables of polars, pyarrow, DuckDB and others that implement the Arrow PyCapsule interface."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeGuard

import numpy as np
import pyarrow as pa

from dask_nlsq._errors import DataError, NlsqError
from dask_nlsq._sources.columns import Columns, check_columns
from dask_nlsq._sources.in_memory import open_memory
from dask_nlsq._sources.source import Source
from dask_nlsq._typing import AnyArray


class ArrowStream(Protocol):
    """A table of any library that implements the Arrow PyCapsule stream interface."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        """Return a capsule of the stream."""


class LazyFrame(Protocol):
    """A lazy frame of polars, which is no table before it is collected."""

    def collect_schema(self) -> Any:
        """Return the names and types of its columns."""

    def select(self, names: list[str]) -> LazyFrame:
        """Return a frame of some columns."""

    def collect(self) -> ArrowStream:
        """Compute it."""


def is_arrow(data: object) -> TypeGuard[ArrowStream | LazyFrame]:
    """Whether a table implements the Arrow PyCapsule stream interface, or is a lazy frame of polars."""
    return (hasattr(data, "__arrow_c_stream__") and type(data).__name__ not in _COLUMNS) or is_lazy(data)


_COLUMNS = ("Series", "ChunkedArray", "DataArray", "Variable")
"""Types of a single column, which implement the interface too."""


def is_lazy(data: object) -> TypeGuard[LazyFrame]:
    """Whether this is a lazy frame of polars."""
    return type(data).__name__ == "LazyFrame" and hasattr(data, "collect_schema")


def once(data: object) -> Any:
    """Return what can be read a single time, as a reader of batches, as a table; all else as it is."""
    one_shot = type(data).__name__ == "RecordBatchReader" and hasattr(data, "__arrow_c_stream__")
    return pa.RecordBatchReader.from_stream(data).read_all() if one_shot else data


def open_arrow(data: ArrowStream | LazyFrame, columns: Columns) -> Source:
    """Take a table in memory, of which only the columns of the fit are converted, or copied."""
    present, values = select(data, columns.names, numbers=columns.numbers.names)
    return open_memory(values, columns, f"{_kind(data)} in memory", present)


def select(
    data: ArrowStream | LazyFrame,
    names: Sequence[str],
    remedy: str | None = None,
    numbers: Sequence[str] | None = None,
) -> tuple[tuple[str, ...], Mapping[str, AnyArray]]:
    """Return the names of all columns of a table, and some columns as arrays; all, or `numbers`, hold numbers."""
    options = {} if remedy is None else {"remedy": remedy}
    present: tuple[str, ...] = ()
    if is_lazy(data):
        try:
            present = tuple(data.collect_schema().names())
            check_columns(present, names, **options)
            # polars carries the selection to the scan, and reads only these columns of its files.
            data = data.select(list(names)).collect()
        except Exception as error:  # which polars has of many kinds
            if isinstance(error, NlsqError):
                raise
            raise DataError(f"The lazy frame cannot be collected: {type(error).__name__}: {error}") from error
    reader = pa.RecordBatchReader.from_stream(data)
    present = present or tuple(reader.schema.names)
    check_columns(present, names, **options)
    for name, kind in unlike_numbers(reader.schema, names if numbers is None else numbers).items():
        raise DataError(
            f"The column has the type {kind}; numbers or dates are needed. Cast it first, for example with "
            f"table.cast, or data.with_columns(polars.col({name!r}).cast(polars.Float64)).",
            column=name,
        )
    # A stream may hold no batch, from which the types could be taken.
    schema = pa.schema([reader.schema.field(name) for name in names])
    table = pa.Table.from_batches((batch.select(list(names)) for batch in reader), schema)
    return present, arrays(table)


def _kind(data: object) -> str:
    library = type(data).__module__.partition(".")[0].lstrip("_")
    return f"{library} {type(data).__name__}"


def arrays(table: pa.Table) -> Mapping[str, AnyArray]:
    """Return the columns of an Arrow table as NumPy arrays, which share its memory where they can."""
    return {name: to_numpy(table.column(name)) for name in table.column_names}


def to_numpy(column: pa.ChunkedArray) -> AnyArray:
    """Return a NumPy array with nulls as NaN or NaT, or as masked where float64 has no room for all integers.

    Texts in a dictionary are a Series of categories.
    """
    if pa.types.is_dictionary(column.type) and not _numeric(column.type):
        categories: AnyArray = column.to_pandas()  # of groups, which need not be written out
        return categories
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    # NumPy would get both as objects.
    if pa.types.is_decimal(column.type) or pa.types.is_null(column.type):
        column = column.cast("float64")
    if pa.types.is_boolean(column.type) and column.null_count:
        column = column.cast("uint8")  # whose nulls NumPy gets as NaN
    if column.null_count and str(column.type) in ("int64", "uint64"):
        return np.ma.masked_array(column.fill_null(0).to_numpy(), column.is_null().to_numpy())
    values: AnyArray = column.to_numpy()
    return values


def unlike_numbers(schema: pa.Schema, names: Sequence[str]) -> dict[str, str]:
    """Return which of some columns hold no numbers and no dates, with their types."""
    return {name: str(kind) for name in names if not _numeric(kind := schema.field(name).type)}


def _numeric(kind: pa.DataType) -> bool:
    if pa.types.is_dictionary(kind):
        return _numeric(kind.value_type)
    tests = ("integer", "floating", "decimal", "boolean", "null", "timestamp", "date", "duration")
    return any(getattr(pa.types, f"is_{test}")(kind) for test in tests)
