"""Parquet files, read natively: a partition is a run of row groups of one file, straight to NumPy."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet as pq
from dask.base import tokenize

from dask_nlsq._errors import DataError
from dask_nlsq._numerics.block import SLABS, Block
from dask_nlsq._sources.columns import Columns, check_columns, first_instants
from dask_nlsq._sources.files import base_folder
from dask_nlsq._sources.source import Info, Source

ROWS = SLABS[1]
"""Fewest rows of a partition: smaller row groups of one file are read several at a time."""

WHOLE = 2**31 - 1
"""Rows of a batch: a row group is one batch, whose columns NumPy takes without a copy; several would be joined."""

BUFFER = 1 << 20
"""Bytes that are read at a time from a file nearby, which is then never in memory as it was stored. What is far away is
fetched in as few requests as can be."""

LARGE = 64 << 20
"""Bytes of a partition after which Arrow gives back what it has to spare, for some milliseconds."""

THINGS = {"timestamp": "dates", "date": "dates", "duration": "durations"}
"""What columns of Arrow's types hold, if not numbers."""


@dataclasses.dataclass(frozen=True)
class ParquetPartition:
    """Some row groups of one file, and the filter that their rows must pass.

    Arrow's scanner applies a filter, and makes alike what is unlike from file to file. Its threads hold on to what they
    have read for a while, now and then until the next partition is there too, so that all else is read without it.
    """

    fragment: Any  # pyarrow.dataset.ParquetFileFragment
    filter: Any  # pyarrow.compute.Expression or None
    keys: tuple[Any, ...]  # pyarrow.Field, of each column that the names of its folders hold
    columns: Columns
    scanned: bool
    near: bool  # its columns are read one by one, and no more than one of them is being decoded

    def load(self) -> Block:
        """Read the columns of these row groups."""
        return self.columns.block(self.read())

    def read(self) -> dict[str, Any]:
        """Read the columns, one Arrow array each, in the order of the file.

        A fragment that has been pickled may have its row groups in another order.
        """
        groups = sorted(group.id for group in self.fragment.row_groups)
        arrays = self._scan(groups) if self.scanned else self._fetch(groups)
        if sum(array.nbytes for array in arrays.values()) >= LARGE:
            pa.default_memory_pool().release_unused()
        return arrays

    def _scan(self, groups: list[int]) -> dict[str, Any]:
        schema = pa.schema([*self.fragment.physical_schema, *self.keys])
        rows, names = self.fragment.subset(schema=schema, row_group_ids=groups), list(self.columns.names)
        how = {"filter": self.filter, "use_threads": False, "batch_size": WHOLE}
        return _arrays(rows.to_table(schema, columns=names, **how))

    def _fetch(self, groups: list[int]) -> dict[str, Any]:
        names: list[str] = list(self.columns.names)
        arrays: dict[str, Any] = {}
        where = {"filesystem": self.fragment.filesystem, "metadata": self.fragment.metadata}
        how = {"buffer_size": BUFFER if self.near else 0, "pre_buffer": not self.near}
        with pq.ParquetFile(self.fragment.path, **where, **how) as file:
            for some in ([name] for name in names) if self.near else [names]:
                arrays |= _arrays(file.read_row_groups(groups, columns=some, use_threads=False))
        return arrays


def open_parquet(path: str, columns: Columns, filters: Any, storage_options: dict[str, Any]) -> Source:
    """Take a file, a folder or a pattern, at a path or an fsspec URL."""
    fs, _, paths = fsspec.get_fs_token_paths(path, storage_options=storage_options)
    if not paths:
        raise DataError(f"Nothing was found at {path!r}.")
    local = type(fs).__name__ == "LocalFileSystem"
    dataset = _dataset(paths, base_folder(fsspec.core.url_to_fs(path, **storage_options)[1]), fs, local)
    check_columns(dataset.schema.names, columns.names)
    expression = None if filters is None else pq.filters_to_expression(filters)
    held: dict[str, _Held] = {}
    partitions, lengths, stored, buffers = [], [], [], BUFFER * len(columns.names)
    for fragment in dataset.get_fragments(filter=expression):
        in_file = fragment.physical_schema
        folders = ds.get_partition_keys(fragment.partition_expression)
        keys = tuple(dataset.schema.field(name) for name in folders if name not in in_file.names)
        schema = pa.schema([*in_file, *keys])
        check_columns(schema.names, columns.names, f"the file {fragment.path!r}")
        _compare(held, fragment, schema, columns.names)
        plain = all(name in in_file.names for name in columns.names) and _alike(schema, dataset.schema, columns.names)
        scanned = expression is not None or not plain
        for run in _runs(fragment, schema, expression):
            partitions.append(ParquetPartition(run, expression, keys, columns, scanned, local))
            lengths.append(sum(group.num_rows for group in run.row_groups))
            stored.append(_stored(run, columns.names))
    rows = sum(lengths)
    if not partitions:
        raise DataError(f"No row group at {path!r} can hold a row that passes the filters {filters!r}.")
    types: dict[str, str] = {name: str(dataset.schema.field(name).type) for name in columns.names}
    dates = [name for name, found in held.items() if found.things == "dates"]
    columns = dataclasses.replace(columns, origins=first_instants(dates, (p.read() for p in partitions)))
    partitions = [dataclasses.replace(p, columns=columns) for p in partitions]
    info = Info(
        "Parquet",
        rows if expression is None else None,
        columns.names,
        tuple(dataset.schema.names),
        columns.origins,
        partition_rows=max(lengths),
        encoded=sum(stored),
        encoded_partition=min(buffers, max(stored)) if local else max(stored),
        row_bytes=columns.row_bytes(types),
        reader="scanned Parquet" if any(p.scanned for p in partitions) else "Parquet",
    )
    return Source(partitions, tokenize(paths, rows, str(expression), columns), info)


def _dataset(paths: Sequence[str], base: str, fs: Any, local: bool) -> Any:
    """Open files, or a folder, whose folders below `base` may be named after keys: ``year=2026``."""
    scan = ds.ParquetFragmentScanOptions(pre_buffer=not local, use_buffered_stream=local, buffer_size=BUFFER)
    how = {
        "source": paths[0] if len(paths) == 1 else sorted(paths),
        "filesystem": pyarrow.fs.LocalFileSystem() if local else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs)),
        "format": ds.ParquetFileFormat(default_fragment_scan_options=scan),
    }
    try:
        keyed = ds.dataset(**how, partitioning="hive", partition_base_dir=base)
    except (pa.ArrowTypeError, pa.ArrowInvalid):  # a column of the files has the name of a key, and another type
        return ds.dataset(**how)
    keys = set() if keyed.partitioning is None else set(keyed.partitioning.schema.names)
    if not keys:
        return keyed
    # What the files hold counts, wherever they lie: a key of the same name would hide it from filters.
    plain = ds.dataset(**how)
    return plain if keys & set(plain.schema.names) else keyed


def _runs(fragment: Any, schema: Any, expression: Any) -> list[Any]:
    """Group neighbouring row groups of a file until a partition has rows enough."""
    if expression is not None:
        fragment = fragment.subset(filter=expression, schema=schema)
    runs: list[list[int]] = []
    size = ROWS
    for group in fragment.row_groups:
        if size >= ROWS:
            runs.append([])
            size = 0
        runs[-1].append(group.id)
        size += group.num_rows
    return [fragment.subset(row_group_ids=run) for run in runs]


def _alike(schema: Any, other: Any, names: Sequence[str]) -> bool:
    """Whether columns have the same types in both schemas."""
    return all(schema.field(name).type == other.field(name).type for name in names)


@dataclasses.dataclass(frozen=True)
class _Held:
    """What a column holds, of which type, in which file."""

    things: str
    type: str
    path: str

    def __str__(self) -> str:
        return f"{self.things} ({self.type}) in {self.path!r}"


def _compare(held: dict[str, _Held], fragment: Any, schema: Any, names: Sequence[str]) -> None:
    """Refuse a file whose column holds other things than the files before, which would be fitted as like numbers."""
    for name in names:
        kind = str(schema.field(name).type)
        if kind == "null":  # which any column is that has no values
            continue
        things = THINGS.get(kind.partition("[")[0].rstrip("0123456789"), "numbers")
        found = _Held(things, kind, fragment.path)
        if held.setdefault(name, found).things != things:
            raise DataError(
                f"The column holds {held[name]} and {found}. Write both files with one type, or give the path of one.",
                column=name,
            )


def _stored(run: Any, names: Sequence[str]) -> int:
    """Return the bytes that some columns of these row groups take in their file."""
    schema = run.metadata.schema
    wanted = [i for i in range(len(schema)) if schema.column(i).path.partition(".")[0] in names]
    groups = [run.metadata.row_group(group.id) for group in run.row_groups]
    return sum(group.column(i).total_compressed_size for group in groups for i in wanted)


def _arrays(table: Any) -> dict[str, Any]:
    """Return the columns of a table as NumPy arrays, which share its memory where they can."""
    return {name: _numpy(table.column(name)) for name in table.column_names}


def _numpy(column: Any) -> Any:
    """Return a NumPy array with nulls as NaN or NaT, or as masked where float64 has no room for all integers."""
    if str(column.type).startswith("decimal") or pa.types.is_null(column.type):
        column = column.cast("float64")
    if pa.types.is_boolean(column.type) and column.null_count:
        column = column.cast("uint8")  # whose nulls NumPy gets as NaN
    if column.null_count and str(column.type) in ("int64", "uint64"):
        return np.ma.masked_array(column.fill_null(0).to_numpy(), column.is_null().to_numpy())
    return column.to_numpy()
