"""Frame files: which file each partition of a Dask DataFrame is, where nothing was done to `dd.read_parquet` yet.

The expression of such a frame says with which options it reads, and its tasks say which row groups of which files.
A partition is then read as one of a path is, without pandas. A frame of any other expression or option has none, and a
file that is not what the frame says of it is left to Dask's own task, so that rows, order and types are Dask's always.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet as pq

from dask_nlsq._kernel import Block
from dask_nlsq._sources.columns import Columns
from dask_nlsq._sources.graph import GraphPartition, Raw
from dask_nlsq._sources.parquet import fetch, filtered, is_near, opened, to_filesystem

_EXPRESSION, _TASK = "ReadParquetFSSpec", "ParquetFunctionWrapper"

_OPTIONS: Mapping[str, tuple[Any, ...]] = {
    "categories": (None,),
    "index": (None, False),
    "calculate_divisions": (False,),
    "split_row_groups": ("infer",),
    "blocksize": ("default",),
    "aggregate_files": (None,),
    "filesystem": ("fsspec",),
    "engine": ("pyarrow",),
    "_partitions": (None,),
    "_series": (False,),
}
"""Values of the options of `dask.dataframe.read_parquet` that change neither rows nor types, nor how they are cut."""

_OPERATORS = ("<", "<=", ">", ">=", "=", "==", "in")
"""Of filters, which treat missing values alike in Dask and in Arrow."""


@dataclasses.dataclass(frozen=True)
class FilePartition:
    """Row groups of one file, or all, and the task of Dask that reads them where the file is not as it should be."""

    path: str
    groups: tuple[int, ...] | None
    filesystem: pyarrow.fs.FileSystem
    near: bool
    types: Mapping[str, np.dtype[Any]]  # of the columns that are fitted, in the frame
    filter: ds.Expression | None
    tested: tuple[str, ...]  # columns of the filter
    task: Any
    raw: Raw
    columns: Columns

    def load(self) -> Block:
        """Read the columns."""
        return self.columns.block(self.read())

    def read(self) -> Mapping[str, Any]:
        """Read the columns, from the file or by the task."""
        names = tuple(dict.fromkeys((*self.columns.names, *self.tested)))
        with opened(self.path, self.filesystem, self.near) as file:
            if self._as_in_frame(file.schema_arrow):
                groups = list(range(file.num_row_groups) if self.groups is None else self.groups)
                return fetch(file, self.path, self.filesystem, groups, names, self.near, self.filter)
        return GraphPartition({"rows": self.task}, ("rows",), self.raw, self.columns).read()

    def _as_in_frame(self, schema: pa.Schema) -> bool:
        """Whether each column is in the file, once, and is there what it is in the frame."""
        if any(schema.names.count(name) != 1 for name in (*self.types, *self.tested)):
            return False
        tests = (schema.field(name).type for name in self.tested if name not in self.types)
        return all(_is(schema.field(name).type, dtype) for name, dtype in self.types.items()) and all(
            pa.types.is_string(kind) or pa.types.is_large_string(kind) or _plain_type(kind) for kind in tests
        )


def _plain_type(kind: pa.DataType) -> bool:
    """Whether a column holds numbers or dates, which pandas and NumPy hold alike."""
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or (pa.types.is_timestamp(kind) and kind.tz is None)


def _is(kind: pa.DataType, dtype: np.dtype[Any]) -> bool:
    """Whether a column of this type is one of this type of NumPy."""
    return _plain_type(kind) and np.dtype(kind.to_pandas_dtype()) == dtype


def file_partitions(frame: dd.DataFrame, columns: Columns, raw: Raw) -> list[FilePartition] | None:
    """Return the partitions of a frame as parts of files, or None where they are not, or may not be, just that."""
    types = {name: frame.dtypes[name] for name in columns.names}
    if not all(isinstance(dtype, np.dtype) and dtype.kind in "fiuM" for dtype in types.values()):
        return None
    reads = frame[list(types)].optimize(fuse=False).expr
    with contextlib.suppress(Exception):  # whatever another release of Dask raises, whose expressions may be others
        return list(_each(reads, frame.npartitions, types, columns, raw))
    return None


class _Unlike(Exception):
    """A frame is not one of files alone."""


def _each(
    reads: Any, count: int, types: Mapping[str, np.dtype[Any]], columns: Columns, raw: Raw
) -> Iterator[FilePartition]:
    while type(reads).__name__ == "Projection":  # as where columns are in another order than in the files
        reads = reads.operand("frame")
    _need(type(reads).__name__ == _EXPRESSION)
    _need(all(reads.operand(name) in allowed for name, allowed in _OPTIONS.items()))
    # What dtype_backend is where nothing was said.
    _need(all(k == "dtype_backend" and v in (None, pd.api.extensions.no_default) for k, v in reads.kwargs.items()))
    filters, graph = reads.operand("filters") or None, reads.__dask_graph__()
    tested = tuple(filtered(filters))
    _need(filters is None or (bool(tested) and all(_plain(test) for test in _tests(filters))))
    expression = None if filters is None else pq.filters_to_expression(filters)
    keys = reads.__dask_keys__()
    _need(len(keys) == count)
    first = graph[keys[0]].func.fs
    near, filesystem = is_near(first), to_filesystem(first)
    for key in keys:
        task = graph[key]
        _need(type(task.func).__name__ == _TASK and not task.kwargs and len(task.args) == 1)
        (part,) = task.args
        _need(set(part) == {"piece"})
        path, groups, folders = part["piece"]
        groups = None if groups in (None, [None]) else tuple(groups)
        _need(isinstance(path, str) and (groups is None or (len(groups) > 0 and groups == tuple(sorted(set(groups))))))
        _need(filters is None or not folders)  # whose names Dask's filters test too
        yield FilePartition(path, groups, filesystem, near, types, expression, tested, task, raw, columns)


def _need(condition: bool) -> None:
    if not condition:
        raise _Unlike


def _tests(filters: Sequence[Any]) -> list[Any]:
    """Return the tests of filters, which are a list of them or a list of such lists."""
    return [test for each in filters for test in ([each] if isinstance(each[0], str) else each)]


def _plain(test: Sequence[Any]) -> bool:
    """Whether a test compares with values that are not missing."""
    _, operator, value = test
    values = value if isinstance(value, (list, tuple, set)) else [value]
    return operator in _OPERATORS and not any(pd.isna(each) for each in values)
