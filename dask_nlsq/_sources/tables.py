"""Tables of formats with a log: which files and rows there are is what Delta's or Iceberg's own library says."""

from __future__ import annotations

import dataclasses
import datetime
import importlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias, TypeGuard
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.fs
import zarr
from dask.base import tokenize

from dask_nlsq._errors import DataError
from dask_nlsq._kernel import Block
from dask_nlsq._sources.arrow import arrays
from dask_nlsq._sources.columns import Columns, check_columns, first_instants
from dask_nlsq._sources.file_stamps import files_were
from dask_nlsq._sources.hdf5 import library
from dask_nlsq._sources.parquet import Filters, Rows, open_rows
from dask_nlsq._sources.source import Info, Source
from dask_nlsq._sources.zarr import open_zarr
from dask_nlsq._typing import AnyArray

if TYPE_CHECKING:
    from deltalake import DeltaTable
    from icechunk import IcechunkStore, Repository, Session
    from pyiceberg.schema import Schema
    from pyiceberg.table import DataScan, FileScanTask, Table

Version: TypeAlias = int | str | datetime.datetime
"""A version of a table: its number or a time for Delta, a snapshot or the name of a branch or tag for the others."""


def is_delta(data: object) -> TypeGuard[DeltaTable]:
    """Whether this is a table of deltalake."""
    return library(data) == "deltalake" and hasattr(data, "file_uris")


def is_scan(data: object) -> TypeGuard[DataScan]:
    """Whether this is a scan of a table of pyiceberg."""
    return library(data) == "pyiceberg" and hasattr(data, "plan_files") and hasattr(data, "projection")


def is_iceberg(data: object) -> TypeGuard[Table]:
    """Whether this is a table of pyiceberg."""
    return library(data) == "pyiceberg" and not hasattr(data, "plan_files") and hasattr(data, "scan")


def is_repository(data: object) -> TypeGuard[Repository]:
    """Whether this is a repository of Icechunk."""
    return hasattr(data, "readonly_session")


def is_store(data: object) -> TypeGuard[IcechunkStore]:
    """Whether this is the store of a session of Icechunk."""
    return type(data).__name__ == "IcechunkStore"


def is_session(data: object) -> TypeGuard[Session]:
    """Whether this is a session of Icechunk."""
    return hasattr(data, "store")


def open_delta_path(
    path: str, columns: Columns, filters: Filters | None, options: Mapping[str, Any], version: Version | None
) -> Source:
    """Open the Delta table at a path or URL, of a version by its number or a time."""
    deltalake = _library("deltalake", "delta", "Delta")
    try:
        # deltalake takes options as text alone, and a time not when it opens a table but afterwards.
        table = deltalake.DeltaTable(path, storage_options={k: str(v) for k, v in options.items()} or None)
        if version is not None:
            table.load_as_version(version)
    except Exception as error:  # which deltalake has of many kinds
        raise DataError(
            f"{path!r} is a Delta table that deltalake cannot open: {error}. Open it where its options can be given: "
            "data=deltalake.DeltaTable(path, storage_options=...)."
        ) from error
    return open_delta(table, columns, filters)


def open_delta(table: DeltaTable, columns: Columns, filters: Filters | None = None) -> Source:
    """Take a ``deltalake.DeltaTable`` as it was opened: the live files of its version, without deleted rows."""
    identity = f"Delta table {table.metadata().id}, version {table.version()}"
    kept = _kept(table)
    if kept and filters is not None:
        raise DataError(
            "filters= is not supported for a Delta table with deletion vectors; data=table.scan(columns=[...], "
            "predicate=...) reads such rows into memory."
        )
    dataset = _with_vectors(table) if kept else _dataset(table)
    deleted = sum(int((~keep).sum()) for keep in kept.values())
    but = f", but for {deleted} deleted rows" if deleted else ""
    notes = (f"{identity}: {files_were(len(table.file_uris()))} read{but}.",)
    rows = Rows(dataset, _root(table) is not None, table.table_uri, kept, "Delta", notes, identity)
    return open_rows(rows, columns, filters)


def _root(table: DeltaTable) -> str | None:
    """Return the folder of a table on this machine's disk, or None where it lies elsewhere."""
    uri: str = table.table_uri
    return None if "://" in uri and not uri.startswith("file:") else _path(uri)


def _filesystem(table: DeltaTable) -> pyarrow.fs.FileSystem | None:
    """Return the file system in which the paths of a table are those of its log; None for what deltalake opens."""
    root = _root(table)
    return None if root is None else pyarrow.fs.SubTreeFileSystem(root, pyarrow.fs.LocalFileSystem())


def _dataset(table: DeltaTable) -> ds.Dataset:
    """Return the live files of a Delta table, with the keys of their folders, as pyarrow reads them."""
    try:
        return table.to_pyarrow_dataset(filesystem=_filesystem(table))
    except Exception as error:  # of a table with features that deltalake does not read by file
        raise DataError(
            f"deltalake does not read the files of the Delta table: {error} data=table.scan(columns=[...]) reads it "
            "into memory."
        ) from error


def _kept(table: DeltaTable) -> dict[str, AnyArray]:
    """Return, by file as the dataset names it, which of its rows there are; nothing where none was deleted alone."""
    if "deletionVectors" not in (table.protocol().reader_features or ()):
        return {}
    deleted, root = pa.table(table.deletion_vectors()), _path(table.table_uri).rstrip("/") + "/"
    vectors = zip(deleted["filepath"].to_pylist(), deleted["selection_vector"], strict=True)
    kept = {_path(uri).removeprefix(root): keep.values.to_numpy(zero_copy_only=False) for uri, keep in vectors}
    if strangers := sorted(kept.keys() - {_path(uri).removeprefix(root) for uri in table.file_uris()}):
        raise DataError(f"The Delta table has a deletion vector of {strangers[0]!r}, which is none of its files.")
    return kept


def _path(uri: str) -> str:
    """Return the path in a URI of a file on this machine; any other as it is."""
    return unquote(uri.removeprefix("file://"))


def _with_vectors(table: DeltaTable) -> ds.Dataset:
    """Return the live files of a table with deletion vectors, which deltalake hands out no dataset of."""
    mapping = table.metadata().configuration.get("delta.columnMapping.mode", "none")
    filesystem = _filesystem(table)
    if mapping != "none" or filesystem is None:
        raise DataError(
            "The Delta table has deletion vectors, and its columns are renamed or it does not lie on this machine; "
            "data=table.scan(columns=[...]) reads it into memory."
        )
    schema = pa.schema(table.schema().to_arrow())
    actions = pa.table(table.get_add_actions(flatten=True))
    keys = {name: actions[f"partition.{name}"].cast(schema.field(name).type) for name in _keys(table)}
    form = ds.ParquetFileFormat()
    # Paths are percent-encoded in the log.
    fragments = [
        form.make_fragment(unquote(path), filesystem, _equal({name: key[i] for name, key in keys.items()}))
        for i, path in enumerate(actions["path"].to_pylist())
    ]
    return ds.FileSystemDataset(fragments, schema, form, filesystem)


def _keys(table: DeltaTable) -> list[str]:
    return list(table.metadata().partition_columns)


def _equal(values: Mapping[str, pa.Scalar]) -> ds.Expression:
    """Return that columns have these values."""
    equal = ds.scalar(True)
    for name, value in values.items():
        equal = equal & (ds.field(name) == value if value.is_valid else ds.field(name).is_null())
    return equal


@dataclasses.dataclass(frozen=True)
class IcebergPartition:
    """One file of an Iceberg table and the files of its deletes, as pyiceberg reads them."""

    scan: Any  # what is the same for all: (metadata, io, schema, filter)
    task: FileScanTask
    columns: Columns

    def load(self) -> Block:
        """Read the rows that there are."""
        return self.columns.block(self.read())

    def read(self) -> Mapping[str, AnyArray]:
        """Read the columns."""
        from pyiceberg.io.pyarrow import ArrowScan

        return arrays(ArrowScan(*self.scan).to_table([self.task]))


def open_iceberg_path(path: str, columns: Columns, options: Mapping[str, Any], version: Version | None) -> Source:
    """Open the Iceberg table whose metadata lie at a path: a file of them, or a folder that says which is the last."""
    table_module = _library("pyiceberg.table", "iceberg", "Iceberg")
    try:
        table = table_module.StaticTable.from_metadata(path, {k: str(v) for k, v in options.items()})
    except Exception as error:  # of whatever file system
        raise DataError(
            f"{path!r} is an Iceberg table whose folder does not say which of its metadata are the last "
            f"({type(error).__name__}: {error}); its catalog does: data=catalog.load_table(name). The path of a "
            "*.metadata.json gives the table as it was then."
        ) from error
    return open_scan(table.scan(), columns, version)


def open_scan(scan: DataScan, columns: Columns, version: Version | None = None) -> Source:
    """Take a scan of a table of pyiceberg, of a snapshot by its number or the name of a branch or tag."""
    if scan.limit is not None:
        raise DataError(
            f"The scan of the Iceberg table has limit={scan.limit}, and which rows these are is not defined."
        )
    if version is not None:
        try:
            scan = scan.use_ref(version) if isinstance(version, str) else scan.update(snapshot_id=version)
            scan.projection()
        except ValueError as error:
            raise DataError(f"The Iceberg table has no version {version!r}: {error}") from error
    present = [field.name for field in scan.projection().fields]
    check_columns(present, columns.names)
    scan = scan.select(*columns.names) if set(columns.names) != set(present) else scan
    # pyiceberg promises no order of files, and the bits of the sums depend on it.
    tasks = sorted(_planned(scan), key=lambda task: task.file.file_path)
    if not tasks:
        raise DataError("The Iceberg table has no rows, or none that the scan takes.")
    types = pa.schema(_schema(scan.projection()))
    whole = (scan.table_metadata, scan.io, scan.projection(), scan.row_filter)
    dates = [name for name in columns.names if pa.types.is_temporal(types.field(name).type)]
    partitions = [IcebergPartition(whole, task, columns) for task in tasks]
    columns = dataclasses.replace(columns, origins=first_instants(dates, (p.read() for p in partitions)))
    partitions = [dataclasses.replace(p, columns=columns) for p in partitions]
    # These are the counts of the files, before deletes and filters.
    counts = [task.file.record_count for task in tasks]
    snapshot = scan.snapshot()
    identity = f"Iceberg table {scan.table_metadata.table_uuid}, snapshot {snapshot and snapshot.snapshot_id}"
    identity += "" if str(scan.row_filter) == "AlwaysTrue()" else f", rows of {scan.row_filter}"
    deletes = {d.file_path for task in tasks for d in task.delete_files}
    info = Info(
        "Iceberg",
        sum(counts) if not deletes and str(scan.row_filter) == "AlwaysTrue()" else None,
        columns.names,
        tuple(present),
        columns.origins,
        partition_rows=max(counts),
        encoded=sum(task.file.file_size_in_bytes for task in tasks),
        encoded_partition=max(task.file.file_size_in_bytes for task in tasks),
        row_bytes=columns.row_bytes({field.name: str(field.type) for field in types}),
        reader="scanned Parquet",
        notes=(f"{identity}: {files_were(len(tasks))} read, and {len(deletes)} files of deletes.",),
        identity=identity,
    )
    return Source(partitions, tokenize(identity, str(scan.row_filter), columns), info)


def _planned(scan: DataScan) -> Iterator[FileScanTask]:
    try:
        yield from scan.plan_files()
    except (ValueError, NotImplementedError) as error:
        raise DataError(
            f"pyiceberg cannot read the Iceberg table: {error}. An engine that can, as Spark, rewrites its files."
        ) from error


def _schema(projection: Schema) -> pa.Schema:
    from pyiceberg.io.pyarrow import schema_to_pyarrow

    return schema_to_pyarrow(projection)


def _library(name: str, extra: str, format_: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        raise DataError(
            f"The data are of {format_}, which {name.partition('.')[0]} reads: pip install 'dask-nlsq[{extra}]'."
        ) from None


def open_icechunk(path: str, columns: Columns, version: Version | None) -> Source:
    """Open an Icechunk repository on this machine's disk, of a branch, a tag or a snapshot."""
    icechunk = _library("icechunk", "icechunk", "Icechunk")
    try:
        repository = icechunk.Repository.open(icechunk.local_filesystem_storage(path))
    except Exception as error:  # which Icechunk has of many kinds
        raise DataError(
            f"{path!r} is an Icechunk repository that cannot be opened: {error}. Open it with its options, and give "
            "data=repository.readonly_session('main')."
        ) from error
    return open_repository(repository, columns, version)


def open_repository(repository: Repository, columns: Columns, version: Version | None = None) -> Source:
    """Take a repository of Icechunk: its main branch, or a branch, a tag or a snapshot."""
    name = "main" if version is None else str(version)
    kinds = {"branch": repository.list_branches(), "tag": repository.list_tags()}
    kind = next((kind for kind, names in kinds.items() if name in names), "snapshot_id")
    try:
        which: dict[str, Any] = {kind: name}
        session = repository.readonly_session(**which)
    except Exception as error:  # which Icechunk has of many kinds
        raise DataError(f"The Icechunk repository has no branch, tag or snapshot {name!r}: {error}") from error
    return open_session(session, columns)


def open_session(session: Session, columns: Columns) -> Source:
    """Take a session of Icechunk; one without changes is known by its snapshot."""
    source = open_zarr(zarr.open_group(session.store, mode="r"), columns)
    if getattr(session, "has_uncommitted_changes", False):
        return source
    identity = f"Icechunk snapshot {session.snapshot_id}"
    return dataclasses.replace(source, info=dataclasses.replace(source.info, identity=identity))
