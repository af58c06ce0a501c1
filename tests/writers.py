"""Real writers of tables and stores: each writes, changes, deletes and appends rows, and reads them itself."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import zarr

ROWS = 300


def rows(seed: int, count: int = ROWS) -> pd.DataFrame:
    """Return rows of a decay, of the run `seed`."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(0, 4, count)
    return pd.DataFrame({"t": t, "y": 2.5 * np.exp(-1.3 * t) + 0.5 + rng.normal(0, 0.05, count), "run": seed})


WRONG = rows(9).assign(y=7.0)
"""Rows that are deleted or replaced, and would be seen in an answer."""


def delta(path: Path) -> tuple[Any, pd.DataFrame]:
    """Delta without deletion vectors, after an update, a delete, an append, optimize and vacuum."""
    from deltalake import DeltaTable, write_deltalake

    both = pd.concat([rows(1), WRONG], ignore_index=True)
    write_deltalake(path, pa.Table.from_pandas(both), partition_by=["run"])
    write_deltalake(path, pa.Table.from_pandas(rows(2)), mode="append")
    table = DeltaTable(path)
    table.update(updates={"y": "y + 0.01"}, predicate="t < 1 and run = 1")
    table.delete("run = 9 or t > 3.9")
    table.optimize.compact()
    table.vacuum(retention_hours=0, enforce_retention_duration=False, dry_run=False)
    write_deltalake(path, pa.Table.from_pandas(rows(3)), mode="append")
    return path, DeltaTable(path).to_pandas()


def delta_of_an_earlier_version(path: Path) -> tuple[Any, pd.DataFrame]:
    """Delta, the version before the last."""
    from deltalake import DeltaTable, write_deltalake

    write_deltalake(path, pa.Table.from_pandas(rows(1)))
    write_deltalake(path, pa.Table.from_pandas(WRONG), mode="overwrite")
    return DeltaTable(path, version=0), DeltaTable(path, version=0).to_pandas()


def delta_with_deletion_vectors(path: Path) -> tuple[Any, pd.DataFrame]:
    """Delta, of which a deletion vector marks rows in place, as Spark writes it (its log entry is made here)."""
    from deltalake import DeltaTable, write_deltalake

    write_deltalake(path, pa.Table.from_pandas(rows(1)), configuration={"delta.enableDeletionVectors": "true"})
    write_deltalake(path, pa.Table.from_pandas(rows(2)), mode="append")
    (add,) = [entry["add"] for entry in _log(path, 1) if "add" in entry]
    gone = np.arange(0, ROWS, 7)
    actions = [
        {"commitInfo": {"timestamp": 0, "operation": "DELETE"}},
        {"remove": {"path": add["path"], "deletionTimestamp": 0, "dataChange": True}},
        {"add": add | {"dataChange": True, "deletionVector": _vector(gone)}},
    ]
    (path / "_delta_log" / f"{2:020}.json").write_text("\n".join(map(json.dumps, actions)) + "\n")
    return path, pa.table(DeltaTable(path).scan()).to_pandas()


def _log(path: Path, version: int) -> list[dict[str, Any]]:
    return list(map(json.loads, (path / "_delta_log" / f"{version:020}.json").read_text().splitlines()))


def _vector(gone: np.ndarray) -> dict[str, Any]:
    """Return an inline deletion vector of some rows: one array container of a 64-bit Roaring bitmap, in Base85."""
    container = struct.pack("<IIHHI", 12346, 1, 0, len(gone) - 1, 16) + gone.astype("<u2").tobytes()
    data = struct.pack("<Iq", 1681511377, 1) + struct.pack("<I", 0) + container
    padded = data + b"\0" * (-len(data) % 4)
    return {
        "storageType": "i",
        "pathOrInlineDv": _z85(padded),
        "sizeInBytes": len(data),
        "cardinality": len(gone),
    }


def _z85(data: bytes) -> str:
    """Return bytes in the alphabet of ZeroMQ's Base85."""
    rfc = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz!#$%&()*+-;<=>?@^_`{|}~"
    z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    return base64.b85encode(data).decode().translate(str.maketrans(rfc, z85))


def iceberg(path: Path) -> tuple[Any, pd.DataFrame]:
    """Iceberg, after an overwrite, a delete, an append and a renamed column."""
    table = _iceberg(path, pd.concat([rows(1), WRONG]).rename(columns={"y": "old"}))
    table.append(pa.Table.from_pandas(rows(2).rename(columns={"y": "old"})))
    with table.update_schema() as update:
        update.rename_column("old", "y")
    table.delete("run = 9")
    table.append(pa.Table.from_pandas(rows(3)))
    return table, table.scan().to_pandas()


def iceberg_with_position_deletes(path: Path) -> tuple[Any, pd.DataFrame]:
    """Iceberg, of which a file of positions marks rows in place, as Spark and Flink write it."""
    from pyiceberg.manifest import DataFileContent

    table = _iceberg(path, rows(1))
    (task,) = table.scan().plan_files()
    places = np.arange(0, ROWS, 5)
    deletes = pa.table({"file_path": [task.file.file_path] * len(places), "pos": places})
    marked = iceberg_with_deletes(table, deletes, DataFileContent.POSITION_DELETES)
    return marked, marked.scan().to_pandas()


def iceberg_with_deletes(table: Any, deletes: pa.Table, content: Any) -> Any:
    """Return an Iceberg table with a file of deletes in one more snapshot: pyiceberg reads them, and writes none."""
    from pyiceberg.manifest import (
        DataFile,
        FileFormat,
        ManifestContent,
        ManifestEntry,
        ManifestEntryStatus,
        ManifestWriterV2,
        write_manifest_list,
    )
    from pyiceberg.table import StaticTable
    from pyiceberg.table.snapshots import Operation, Snapshot, Summary
    from pyiceberg.typedef import Record

    class Deletes(ManifestWriterV2):
        def content(self):
            return ManifestContent.DELETES

        @property
        def _meta(self):
            return super()._meta | {"content": "deletes"}

    place, metadata, number = table.location().removeprefix("file://"), table.metadata, 7
    pq.write_table(deletes, f"{place}/data/deletes.parquet")
    file = DataFile.from_args(
        content=content,
        file_path=f"file://{place}/data/deletes.parquet",
        file_format=FileFormat.PARQUET,
        partition=Record(),
        record_count=len(deletes),
        file_size_in_bytes=Path(place, "data/deletes.parquet").stat().st_size,
        equality_ids=[1],
    )
    entry = ManifestEntry.from_args(status=ManifestEntryStatus.ADDED, snapshot_id=number, data_file=file)
    out, current = table.io.new_output, table.current_snapshot()
    with Deletes(table.spec(), table.schema(), out(f"{place}/metadata/d.avro"), number, "null") as writer:
        writer.add_entry(entry)
    sequence = metadata.last_sequence_number + 1
    with write_manifest_list(
        2, out(f"{place}/metadata/l.avro"), number, current.snapshot_id, sequence, "null"
    ) as manifests:
        manifests.add_manifests([writer.to_manifest_file(), *current.manifests(table.io)])
    snapshot = Snapshot(
        snapshot_id=number,
        parent_snapshot_id=current.snapshot_id,
        sequence_number=sequence,
        timestamp_ms=metadata.last_updated_ms + 1,
        manifest_list=f"{place}/metadata/l.avro",
        summary=Summary(Operation.DELETE),
        schema_id=metadata.current_schema_id,
    )
    told = json.loads(metadata.model_dump_json())
    told["snapshots"].append(json.loads(snapshot.model_dump_json()))
    told |= {"current-snapshot-id": number, "last-sequence-number": sequence, "refs": {}}
    Path(place, "metadata/00009-x.metadata.json").write_text(json.dumps(told))
    return StaticTable.from_metadata(f"{place}/metadata/00009-x.metadata.json")


def _iceberg(path: Path, frame: pd.DataFrame) -> Any:
    from pyiceberg.catalog.sql import SqlCatalog

    path.mkdir(exist_ok=True)
    catalog = SqlCatalog("here", uri=f"sqlite:///{path}/catalog.db", warehouse=f"file://{path}/warehouse")
    catalog.create_namespace("n")
    rows_ = pa.Table.from_pandas(frame, preserve_index=False)
    table = catalog.create_table("n.runs", schema=rows_.schema)
    table.append(rows_)
    return table


def polars(path: Path) -> tuple[Any, pd.DataFrame]:
    """Polars, in folders of keys, of which one is written anew."""
    import polars as pl

    for frame in (WRONG.assign(run=2), rows(1), rows(2)):
        pl.from_pandas(frame).write_parquet(path, partition_by="run", mkdir=True)
    return path, pl.read_parquet(path / "**/*.parquet", hive_partitioning=True).to_pandas()


def duckdb(path: Path) -> tuple[Any, pd.DataFrame]:
    """DuckDB, in folders of keys, after an update and a delete, overwritten and appended to."""
    import duckdb

    db = duckdb.connect()
    db.register("one", pd.concat([rows(1), rows(2), WRONG]))
    db.register("more", rows(3))
    db.execute("create table t as select * from one")
    db.execute("update t set y = y + 0.01 where run = 1")
    db.execute("delete from t where run = 9")
    how = "(format parquet, partition_by (run), {})"
    db.execute(f"copy one to '{path}' " + how.format("overwrite_or_ignore"))
    db.execute(f"copy t to '{path}' " + how.format("overwrite"))
    db.execute(f"copy more to '{path}' " + how.format("append"))
    return path, db.execute(f"select * from read_parquet('{path}/**/*.parquet')").df()


def pandas(path: Path) -> tuple[Any, pd.DataFrame]:
    """pandas, in folders of keys, of which one is removed."""
    import shutil

    pd.concat([rows(1), rows(2), WRONG]).to_parquet(path, partition_cols=["run"])
    shutil.rmtree(path / "run=9")
    rows(3).to_parquet(path, partition_cols=["run"])
    return path, pd.read_parquet(path)


def dask(path: Path) -> tuple[Any, pd.DataFrame]:
    """Dask, overwritten and appended to."""
    dd.from_pandas(WRONG, npartitions=3).to_parquet(path)
    dd.from_pandas(rows(1), npartitions=3).to_parquet(path, overwrite=True, write_metadata_file=True)
    dd.from_pandas(rows(2), npartitions=2).to_parquet(path, append=True, ignore_divisions=True)
    return path, dd.read_parquet(path).compute()


def pyarrow(path: Path) -> tuple[Any, pd.DataFrame]:
    """pyarrow, in folders of keys, with types that differ from file to file."""
    how = {"format": "parquet", "partitioning": ["run"], "partitioning_flavor": "hive"}
    ds.write_dataset(pa.Table.from_pandas(WRONG.assign(run=1), preserve_index=False), path, **how)
    ds.write_dataset(
        pa.Table.from_pandas(rows(1), preserve_index=False), path, existing_data_behavior="delete_matching", **how
    )
    small = pa.Table.from_pandas(rows(2).astype({"t": "f4"}), preserve_index=False)
    ds.write_dataset(small, path, existing_data_behavior="overwrite_or_ignore", basename_template="more-{i}", **how)
    (path / "run=2" / "more-0").rename(path / "run=2" / "more-0.parquet")
    return path, ds.dataset(path, partitioning="hive").to_table().to_pandas()


def spark(path: Path) -> tuple[Any, pd.DataFrame]:
    """What Spark leaves: markers, checksums, and a writer that has not ended (there is no Spark here)."""
    (path / "_temporary/0/task").mkdir(parents=True)
    (path / "run=1").mkdir()
    pq.write_table(pa.Table.from_pandas(WRONG.drop(columns="run")), path / "_temporary/0/task/part-0.parquet")
    pq.write_table(pa.Table.from_pandas(rows(1).drop(columns="run")), path / "run=1/part-00000.snappy.parquet")
    (path / "run=1/.part-00000.snappy.parquet.crc").write_bytes(b"\0")
    (path / "_SUCCESS").touch()
    return path, pq.read_table(path).to_pandas()


def xarray_v2(path: Path) -> tuple[Any, pd.DataFrame]:
    """xarray in Zarr 2, packed, appended to, a region written anew."""
    return _xarray(path, 2)


def xarray_v3(path: Path) -> tuple[Any, pd.DataFrame]:
    """xarray in Zarr 3, packed, appended to, a region written anew."""
    return _xarray(path, 3)


def _xarray(path: Path, zarr_format: int) -> tuple[Any, pd.DataFrame]:
    import xarray as xr

    def dataset(frame):
        return xr.Dataset({name: ("row", frame[name].to_numpy()) for name in ("t", "y")})

    packed = {"y": {"dtype": "i4", "scale_factor": 1e-8, "add_offset": 1.0, "_FillValue": -(2**31)}}
    chunks = {name: {"chunks": (100,)} for name in ("t", "y")}
    encoding = {name: chunks[name] | packed.get(name, {}) for name in chunks}
    dataset(rows(1)).to_zarr(path, zarr_format=zarr_format, encoding=encoding, consolidated=zarr_format == 2)
    dataset(WRONG).to_zarr(path, append_dim="row")
    dataset(rows(2)).to_zarr(path, region={"row": slice(ROWS, 2 * ROWS)})
    return path, xr.open_zarr(path).to_dataframe().reset_index()


def zarr_sharded(path: Path) -> tuple[Any, pd.DataFrame]:
    """zarr with shards, resized and appended to."""
    group = zarr.open_group(path, mode="w")
    for name in ("t", "y"):
        array = group.create_array(name, data=pd.concat([rows(1), WRONG])[name].to_numpy(), chunks=(50,), shards=(100,))
        array.resize((ROWS,))
        array.append(rows(2)[name].to_numpy())
        array[:100] = rows(3)[name].to_numpy()[:100]
    return path, pd.DataFrame({name: group[name][:] for name in ("t", "y")})


def icechunk(path: Path) -> tuple[Any, pd.DataFrame]:
    """Icechunk, after three commits."""
    import icechunk

    repository = icechunk.Repository.create(icechunk.local_filesystem_storage(str(path)))
    for step, frame in enumerate((WRONG, rows(1), rows(2))):
        session = repository.writable_session("main")
        group = zarr.open_group(session.store, mode="a")
        for name in ("t", "y"):
            if step == 2:
                group[name].append(frame[name].to_numpy())
            else:
                group.create_array(name, data=frame[name].to_numpy(), chunks=(100,), overwrite=True)
        session.commit(f"step {step}")
    group = zarr.open_group(repository.readonly_session("main").store, mode="r")
    return path, pd.DataFrame({name: group[name][:] for name in ("t", "y")})


def h5netcdf(path: Path) -> tuple[Any, pd.DataFrame]:
    """h5netcdf, packed, with a dimension that grows."""
    import h5netcdf
    import xarray as xr

    with h5netcdf.File(path, "w") as file:
        file.dimensions = {"row": None}
        file.resize_dimension("row", 2 * ROWS)
        frame = pd.concat([rows(1), rows(2)])
        time = file.create_variable("t", ("row",), "f8")
        time[:] = frame["t"].to_numpy()
        y = file.create_variable("y", ("row",), "i4", fillvalue=np.int32(-(2**31)))
        y.attrs["scale_factor"] = 1e-8
        y[:] = np.round(frame["y"].to_numpy() / 1e-8).astype("i4")
    file = h5netcdf.File(path)
    return {name: file.variables[name] for name in ("t", "y")} | {"file": file}, xr.open_dataset(
        path, engine="h5netcdf"
    ).to_dataframe()


WRITERS = {
    "delta": (delta, "deltalake"),
    "delta of an earlier version": (delta_of_an_earlier_version, "deltalake"),
    "delta with deletion vectors": (delta_with_deletion_vectors, "deltalake"),
    "iceberg": (iceberg, "pyiceberg"),
    "iceberg with position deletes": (iceberg_with_position_deletes, "pyiceberg"),
    "polars": (polars, "polars"),
    "duckdb": (duckdb, "duckdb"),
    "pandas": (pandas, "pandas"),
    "dask": (dask, "dask"),
    "pyarrow": (pyarrow, "pyarrow"),
    "spark's conventions": (spark, "pyarrow"),
    "xarray, Zarr 2": (xarray_v2, "xarray"),
    "xarray, Zarr 3": (xarray_v3, "xarray"),
    "zarr with shards": (zarr_sharded, "zarr"),
    "icechunk": (icechunk, "icechunk"),
    "h5netcdf": (h5netcdf, "h5netcdf"),
}
