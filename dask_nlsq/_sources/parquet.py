"""Parquet files, read natively: a partition is a run of row groups of one file, straight to NumPy."""

from __future__ import annotations

import dataclasses
import pickle
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import fsspec
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs
import pyarrow.parquet as pq
from dask.base import tokenize

from dask_nlsq._errors import DataError
from dask_nlsq._kernel import SLABS, Block
from dask_nlsq._sources.arrow import arrays as to_arrays
from dask_nlsq._sources.arrow import unlike_numbers
from dask_nlsq._sources.columns import Columns, check_columns, first_instants
from dask_nlsq._sources.file_stamps import base_folder
from dask_nlsq._sources.places import PARQUET, check_above, check_below
from dask_nlsq._sources.source import Info, Source
from dask_nlsq._typing import AnyArray

ROWS = SLABS[1]
"""Fewest rows of a partition: smaller row groups of one file are read several at a time."""

WHOLE = 2**31 - 1
"""Rows of a batch: a row group is one batch, whose columns NumPy takes without a copy; several would be joined."""

BUFFER = 1 << 20
"""Bytes that are read at a time from a file nearby, which is then never in memory as it was stored. What is smaller is
read in one piece, and what is far away in as few requests as can be."""

LARGE = 64 << 20
"""Bytes of a partition after which Arrow gives back what it has to spare, for some milliseconds."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

Filters: TypeAlias = "ds.Expression | Sequence[object]"
"""Which rows to take: an expression of pyarrow, or a list of tuples ``(column, operator, value)``, or of such lists."""

THINGS = {"timestamp": "dates", "date": "dates", "duration": "durations"}
"""What columns of Arrow's types hold, if not numbers."""


@dataclasses.dataclass(frozen=True)
class ParquetPartition:
    """Some row groups of one file, and the filter that their rows must pass.

    Arrow's scanner applies a filter, and makes alike what is unlike from file to file. Its threads hold on to what they
    have read for a while, now and then until the next partition is there too, so that all else is read without it.
    """

    fragment: ds.ParquetFileFragment
    filter: ds.Expression | None
    keys: tuple[pa.Field, ...]  # of each column that the names of its folders hold
    columns: Columns
    scanned: bool
    near: bool  # its columns are read one by one, and no more than one of them is being decoded
    keep: AnyArray | None = None  # which of its rows there are

    def load(self) -> Block:
        """Read the columns of these row groups."""
        return self.columns.block(self.read())

    def read(self) -> dict[str, Any]:
        """Read the columns, one Arrow array each, in the order of the file.

        A fragment that has been pickled may have its row groups in another order.
        """
        groups = sorted(group.id for group in self.fragment.row_groups)
        arrays = self._scan(groups) if self.scanned else self._fetch(groups)
        if self.keep is not None:
            arrays = {name: array[self.keep] for name, array in arrays.items()}
        if sum(array.nbytes for array in arrays.values()) >= LARGE:
            pa.default_memory_pool().release_unused()
        return arrays

    def _scan(self, groups: list[int]) -> dict[str, Any]:
        schema = pa.schema([*self.fragment.physical_schema, *self.keys])
        rows, names = self.fragment.subset(schema=schema, row_group_ids=groups), list(self.columns.names)
        # Partitions are read side by side already, and each thread of Arrow holds on to memory of its own.
        how = {"filter": self.filter, "use_threads": False, "batch_size": WHOLE}
        return dict(to_arrays(rows.to_table(schema, columns=names, **how)))

    def _fetch(self, groups: list[int]) -> dict[str, Any]:
        # With the metadata that the fragment has, or the footer of the file would be read again for each partition.
        path, filesystem, metadata = self.fragment.path, self.fragment.filesystem, self.fragment.metadata
        with opened(path, filesystem, self.near, metadata) as file:
            return fetch(file, path, filesystem, groups, self.columns.names, self.near)


def opened(
    path: str, filesystem: pyarrow.fs.FileSystem, near: bool, metadata: pq.FileMetaData | None = None
) -> pq.ParquetFile:
    """Open a file, of which a small one nearby is read into memory at once."""
    if near:
        with filesystem.open_input_file(path) as file:
            if file.size() < BUFFER:
                return pq.ParquetFile(pa.BufferReader(file.read_buffer()), metadata=metadata)
    return pq.ParquetFile(path, filesystem=filesystem, metadata=metadata, pre_buffer=not near)


def fetch(
    file: pq.ParquetFile,
    path: str,
    filesystem: pyarrow.fs.FileSystem,
    groups: list[int],
    names: Sequence[str],
    near: bool,
    expression: ds.Expression | None = None,
) -> dict[str, Any]:
    """Read columns of row groups of an open file, of the rows that pass a filter; large ones nearby one by one."""
    size = sum(file.metadata.row_group(group).total_byte_size for group in groups)
    if not near or size < BUFFER or expression is not None:
        table = file.read_row_groups(groups, columns=list(names), use_threads=False)
        return dict(to_arrays(table if expression is None else table.filter(expression)))
    arrays: dict[str, Any] = {}
    with pq.ParquetFile(path, filesystem=filesystem, metadata=file.metadata, buffer_size=BUFFER) as buffered:
        for name in names:
            arrays |= to_arrays(buffered.read_row_groups(groups, columns=[name], use_threads=False))
    return arrays


def find_rows(path: str | Sequence[str], storage_options: dict[str, Any] | None = None) -> Rows:
    """List a file, a folder or a pattern, at a path or an fsspec URL, or a list of them."""
    options = storage_options or {}
    fs, files, notes, roots = _find(path, options)
    local = is_near(fs)
    base = base_folder(fsspec.core.url_to_fs(path if isinstance(path, str) else path[0], **options)[1])
    folder = (fs, roots[0]) if len(roots) == 1 else None
    return Rows(_dataset(files, base, fs, local), local, str(path), notes=tuple(notes), folder=folder)


def is_near(fs: fsspec.AbstractFileSystem) -> bool:
    """Whether files lie on a disk of this machine."""
    return type(fs).__name__ == "LocalFileSystem"


def to_filesystem(fs: fsspec.AbstractFileSystem) -> pyarrow.fs.FileSystem:
    """Return a file system as Arrow takes it."""
    return pyarrow.fs.LocalFileSystem() if is_near(fs) else pyarrow.fs.PyFileSystem(pyarrow.fs.FSSpecHandler(fs))


def _find(
    path: str | Sequence[str], options: dict[str, Any]
) -> tuple[fsspec.AbstractFileSystem, list[str], list[str], list[str]]:
    """Return the file system, the files, what was left out in words, and the folders and files that are named."""
    files: list[str] = []
    notes: list[str] = []
    roots: list[str] = []
    for url in [path] if isinstance(path, str) else path:
        fs, _, named = fsspec.get_fs_token_paths(url, storage_options=options)
        # fsspec expands only patterns that have a *; these signs may also be part of a name.
        if any(sign in url for sign in "?[") and not fs.exists(fsspec.core.url_to_fs(url, **options)[1]):
            named = sorted(fs.glob(fsspec.core.url_to_fs(url, **options)[1]))
        inside, remarks = listed(fs, named, url)
        if not inside:
            raise DataError(f"Nothing was found at {url!r}.")
        files, notes, roots = [*files, *inside], [*notes, *remarks], [*roots, *named]
    check_above(fs, roots, path)
    if len(set(files)) < len(files):
        twice = next(name for name in files if files.count(name) > 1)
        raise DataError(f"The paths name the file {twice!r} more than once; its rows would count as often.")
    return fs, files, notes, roots


@dataclasses.dataclass(frozen=True)
class Rows:
    """A dataset of Parquet files, and which of their rows are left out."""

    dataset: ds.FileSystemDataset
    near: bool
    place: str
    kept: Mapping[str, AnyArray] = dataclasses.field(default_factory=dict)  # by file, which rows there are
    kind: str = "Parquet"
    notes: tuple[str, ...] = ()
    identity: str | None = None
    folder: tuple[fsspec.AbstractFileSystem, str] | None = None  # or the one file


def open_rows(rows: Rows, columns: Columns, filters: Filters | None = None) -> Source:
    """Take the rows of a dataset that pass filters."""
    expression = to_expression(filters)
    if missing := [name for name in filtered(filters) if name not in rows.dataset.schema.names]:
        check_columns(rows.dataset.schema.names, missing, remedy="filters= name a column that there is.")
    try:
        source = _open_rows(rows, columns, expression)
    except (pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
        if expression is None:
            raise
        raise DataError(f"The filters {filters!r} are not of the types of the columns: {error}") from error
    if rows.folder is not None and filters is None and (stale := _older_metadata(*rows.folder, source.info.rows)):
        return dataclasses.replace(source, info=dataclasses.replace(source.info, notes=(*source.info.notes, stale)))
    return source


def filtered(filters: object) -> list[str]:
    """Return the columns that filters name, where they are a list of tuples, or a list of such lists."""
    if not isinstance(filters, (list, tuple)):
        return []
    if len(filters) == 3 and isinstance(filters[0], str):
        return [filters[0]]
    return [name for each in filters for name in filtered(each)]


def to_expression(filters: Filters | None) -> ds.Expression | None:
    """Return filters as an expression of pyarrow, or None."""
    if filters is None:
        return None
    try:
        return pq.filters_to_expression(filters)
    except (TypeError, ValueError, AttributeError) as error:
        raise DataError(
            f"filters is {filters!r}; a list such as [('t', '<', 2.0)] or an expression of pyarrow.compute is needed."
        ) from error


def _open_rows(rows: Rows, columns: Columns, expression: ds.Expression | None) -> Source:
    dataset, place = rows.dataset, rows.place
    check_columns(dataset.schema.names, columns.names)
    held: dict[str, _Held] = {}
    partitions, lengths, stored, buffers = [], [], [], BUFFER * len(columns.names)
    layout: _Layout | None = None
    for fragment in dataset.get_fragments(filter=expression):
        in_file, folders = fragment.physical_schema, ds.get_partition_keys(fragment.partition_expression)
        # Most often that of the file before, which has been looked at.
        if layout is None or tuple(folders) != layout.folders or not in_file.equals(layout.in_file):
            layout = _lay_out(rows, columns, fragment, in_file, tuple(folders))
            _compare(held, fragment, layout.schema, columns.names)
        scanned = expression is not None or not layout.plain
        kept, start = rows.kept.get(fragment.path), 0
        for run, length, size in _runs(fragment, layout.schema, expression):
            keep = None if kept is None else kept[start : start + length]
            start += length
            partitions.append(ParquetPartition(run, expression, layout.keys, columns, scanned, rows.near, keep))
            lengths.append(length)
            stored.append(int(layout.share * size))
    if not partitions:
        if expression is None:
            raise DataError(f"There are no rows at {place!r}.")
        raise DataError(f"No row group at {place!r} can hold a row that passes the filters {expression}.")
    types: dict[str, str] = {name: str(dataset.schema.field(name).type) for name in columns.names}
    dates = [name for name, found in held.items() if found.things.startswith("dates")]
    if (origins := first_instants(dates, (p.read() for p in partitions))) != columns.origins:
        columns = dataclasses.replace(columns, origins=origins)
        partitions = [dataclasses.replace(p, columns=columns) for p in partitions]
    known = sum(lengths) - sum(int(len(keep) - keep.sum()) for keep in rows.kept.values())
    info = Info(
        rows.kind,
        known if expression is None else None,
        columns.names,
        tuple(dataset.schema.names),
        columns.origins,
        partition_rows=max(lengths),
        encoded=sum(stored),
        encoded_partition=min(buffers, max(stored)) if rows.near else max(stored),
        row_bytes=columns.row_bytes(types),
        reader="scanned Parquet" if any(p.scanned for p in partitions) else "Parquet",
        notes=rows.notes,
        identity=rows.identity,
    )
    return Source(
        partitions, tokenize(rows.identity or sorted(dataset.files), known, _whole(expression), columns), info
    )


@dataclasses.dataclass(frozen=True)
class _Layout:
    """What is known of the columns of a file by its schema and the keys of its folders."""

    in_file: pa.Schema
    folders: tuple[str, ...]  # names of keys
    keys: tuple[pa.Field, ...]  # of each column that the names of its folders hold
    schema: pa.Schema  # with these
    plain: bool  # all columns are in the file, of the types of the dataset
    share: float  # which part of a row they are


def _lay_out(
    rows: Rows, columns: Columns, fragment: ds.ParquetFileFragment, in_file: pa.Schema, folders: tuple[str, ...]
) -> _Layout:
    """Return the layout of a file, and refuse one that lacks a column or holds no numbers in it."""
    whole, names = rows.dataset.schema, columns.names
    # Columns of other kinds may be younger than a file.
    outside = folders if rows.kind == "Parquet" else whole.names
    keys = tuple(whole.field(name) for name in outside if name not in in_file.names)
    schema = pa.schema([*in_file, *keys])
    check_columns(schema.names, names, f"the file {fragment.path!r}")
    _check_types(schema, columns.numbers.names, fragment.path)
    plain = all(name in in_file.names for name in names) and _alike(schema, whole, names)
    return _Layout(in_file, folders, keys, schema, plain, _share(in_file, names))


def _whole(expression: ds.Expression | None) -> str | bytes:
    """Return an expression in a form that leaves nothing out, as its text does of long lists."""
    text = str(expression)
    return pickle.dumps(expression) if "..." in text else text


def listed(fs: fsspec.AbstractFileSystem, roots: Sequence[str], path: str) -> tuple[list[str], list[str]]:
    """Return the files of Parquet in folders, or the files that are named, and what was left out, in words.

    Spark and Hive leave out what begins with ``_`` or ``.``: their records, and rows of writers that have not ended.
    """
    files: list[str] = []
    hidden: list[str] = []
    others: list[str] = []
    for root in roots:
        if not fs.isdir(root):
            files.append(root)
            continue
        inside = fs.find(root)
        check_below(inside, path)
        seen: list[str] = []
        unseen: list[str] = []
        for name in inside:
            (unseen if _hidden(name, root) else seen).append(name)
        named = [name for name in seen if name.endswith(PARQUET)]
        hidden += [name for name in unseen if name.endswith(PARQUET)]
        others += [name for name in seen if not name.endswith(PARQUET)] if named else []
        # Writers need not give names an ending: where none has one of Parquet's, all are taken.
        files += named or seen
    notes = []
    if hidden:
        notes.append(f"{_files(hidden)} below names that begin with _ or . left out, as Spark and Hive do.")
    if others:
        notes.append(f"{_files(others)} beside the Parquet files left out, by the ending of the name.")
    return sorted(set(files)), notes


def _hidden(name: str, root: str) -> bool:
    inside = name[len(root.rstrip("/")) + 1 :]
    # A folder named after a key, as _year=2026, is not hidden from Spark either.
    return any(part.startswith(("_", ".")) and "=" not in part for part in inside.split("/"))


def _files(names: Sequence[str]) -> str:
    return f"{len(names)} files ({names[0]!r} is the first) were" if len(names) > 1 else f"The file {names[0]!r} was"


def _older_metadata(fs: fsspec.AbstractFileSystem, root: str, rows: int | None) -> str | None:
    """Return in words what a ``_metadata`` file says of rows, where its folder holds others."""
    name = f"{root.rstrip('/')}/_metadata"
    if not fs.exists(name):
        return None
    try:
        with fs.open(name) as file:
            there = pq.read_metadata(file).num_rows
    except (OSError, pa.ArrowInvalid) as error:
        return f"The file {name!r}, which need not be read, cannot be: {error}"
    if there == rows:
        return None
    return (
        f"The file {name!r} lists {there} rows, and the files hold {rows}, which were read: it is older. "
        "dask.dataframe.read_parquet may read what it lists; remove it, or write it anew."
    )


def _dataset(paths: Sequence[str], base: str, fs: fsspec.AbstractFileSystem, local: bool) -> ds.FileSystemDataset:
    """Open files, or a folder, whose folders below `base` may be named after keys: ``year=2026``."""
    scan = ds.ParquetFragmentScanOptions(pre_buffer=not local, use_buffered_stream=local, buffer_size=BUFFER)
    how = {
        "source": paths[0] if len(paths) == 1 else sorted(paths),
        "filesystem": to_filesystem(fs),
        "format": ds.ParquetFileFormat(default_fragment_scan_options=scan),
    }
    if not any("=" in path for path in paths):
        return ds.dataset(**how)
    try:
        keyed = ds.dataset(**how, partitioning="hive", partition_base_dir=base)
    except (pa.ArrowTypeError, pa.ArrowInvalid):  # a column of the files has the name of a key, and another type
        return ds.dataset(**how)
    keys = set() if keyed.partitioning is None else set(keyed.partitioning.schema.names)
    if not keys:
        return keyed
    # What the files hold counts, wherever they lie: a key of the same name would hide it from filters.
    plain = ds.dataset(**how)
    if keys & set(plain.schema.names):
        return plain
    numbers = _numbers(keyed, keys)
    if not numbers:
        return keyed
    types = [(field.name, "float64" if field.name in numbers else field.type) for field in keyed.partitioning.schema]
    partitioning = ds.partitioning(pa.schema(types), flavor="hive")
    return ds.dataset(**how, partitioning=partitioning, partition_base_dir=base)


def _numbers(dataset: ds.FileSystemDataset, keys: set[str]) -> set[str]:
    """Return which keys are texts that all are numbers, as 0.5, of which Arrow knows the whole ones alone."""
    texts = {name for name in keys if pa.types.is_string(dataset.partitioning.schema.field(name).type)}
    for fragment in dataset.get_fragments() if texts else ():
        for name, value in ds.get_partition_keys(fragment.partition_expression).items():
            if name in texts and value is not None and not _NUMBER.fullmatch(value):
                texts.discard(name)
    return texts


def _runs(
    fragment: ds.ParquetFileFragment, schema: pa.Schema, expression: ds.Expression | None
) -> list[tuple[ds.ParquetFileFragment, int, int]]:
    """Group neighbouring row groups of a file until a partition has rows enough; return their rows and bytes too.

    Bytes are those in the file, or once they are not compressed. The metadata of single columns are not asked: of what
    it cannot read, pyarrow may end the process.
    """
    if expression is not None:
        fragment = fragment.subset(filter=expression, schema=schema)
    runs: list[list[Any]] = []
    size = ROWS
    for group in fragment.row_groups:
        if size >= ROWS:
            runs.append([])
            size = 0
        runs[-1].append(group)
        size += group.num_rows
    return [
        (
            fragment.subset(row_group_ids=[group.id for group in run]),
            sum(group.num_rows for group in run),
            sum(group.total_byte_size for group in run),
        )
        for run in runs
    ]


def _alike(schema: pa.Schema, other: pa.Schema, names: Sequence[str]) -> bool:
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


def _compare(held: dict[str, _Held], fragment: ds.ParquetFileFragment, schema: pa.Schema, names: Sequence[str]) -> None:
    """Refuse a file whose column holds other things than the files before, which would be fitted as like numbers."""
    for name in names:
        kind = str(schema.field(name).type)
        if kind == "null":  # which any column is that has no values
            continue
        things = THINGS.get(kind.partition("[")[0].rstrip("0123456789"), "numbers")
        if "tz=" in kind:
            things = "dates with a time zone"
        if "string" in kind:  # of groups, also as categories
            things = "texts"
        contents = _Held(things, kind, fragment.path)
        if held.setdefault(name, contents).things != things:
            raise DataError(
                f"The column holds {held[name]} and {contents}. Write both files with one type, or give the path of "
                "one.",
                column=name,
            )


def _check_types(schema: pa.Schema, names: Sequence[str], path: str) -> None:
    """Refuse columns that hold neither numbers nor dates."""
    for name, kind in unlike_numbers(schema, names).items():
        raise DataError(
            f"The column has the type {kind} in {path!r}; numbers or dates are needed. Read it where it can be "
            f"converted: data=dask.dataframe.read_parquet(path), and then .astype({{{name!r}: 'float64'}}) or what its "
            "values need.",
            column=name,
        )


def _share(schema: pa.Schema, names: Sequence[str]) -> float:
    """Return which part of a row some columns are, by their types; what has no width counts as 16 bytes."""
    widths = {field.name: _width(field.type) for field in schema}
    return sum(widths.get(name, 0.0) for name in names) / max(sum(widths.values()), 1.0)


def _width(kind: pa.DataType) -> float:
    try:
        return float(kind.bit_width) / 8
    except ValueError:  # of texts and lists
        return 16.0
