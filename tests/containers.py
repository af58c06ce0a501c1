"""Containers that can be fitted, the expected outcome of each kind of access, and the table of them.

``python tests/containers.py`` prints the table of ``docs/data.md`` from what `tests/test_containers.py` asserts.
"""

from __future__ import annotations

import dataclasses
import functools
import http.server
import importlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.feather
import pyarrow.orc
import pyarrow.parquet as pq
import zarr

ROWS = 400
T = np.linspace(0, 4, ROWS)
Y = 2.5 * np.exp(-1.3 * T) + 0.5 + 0.01 * np.cos(40 * T)
FRAME = pd.DataFrame({"t": T, "y": Y, "other": -T})

WAYS = {"path": "path", "object": "object", "workers": "worker processes", "url": "URL"}


@dataclasses.dataclass(frozen=True)
class Container:
    """How rows are written, by the way in which they are given; what is refused has the words of its remedy instead."""

    ways: tuple[str, ...]
    name: str
    make: Callable[[Path], dict[str, Any]]
    refused: dict[str, str] = dataclasses.field(default_factory=dict)
    needs: tuple[str, ...] = ()
    array_call: bool = False  # x and y are given, not data
    note: str = ""

    @property
    def missing(self) -> str | None:
        """The package that is not installed, of those that write it."""
        return next((name for name in self.needs if not _there(name)), None)


@functools.cache
def _there(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


CONTAINERS: list[Container] = []


def container(
    ways: str, name: str, *needs: str, array_call: bool = False, note: str = "", **refused: str
) -> Callable[..., Any]:
    """Add a container that a function writes, and returns in each of these ways."""

    def add(make: Callable[[Path], dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
        CONTAINERS.append(Container(tuple(ways.split()), name, make, refused, needs, array_call, note))
        return make

    return add


def in_memory_files(path: Path, name: str) -> str:
    """Copy files to fsspec's file system in memory, which stands for a bucket; return their URL."""
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.put(str(path), f"/{path.parent.name}/{name}", recursive=True)
    return f"memory://{path.parent.name}/{name}"


@container("path object workers url", "Parquet file")
def parquet_file(path):
    FRAME.to_parquet(path / "runs.parquet")
    return {
        "path": str(path / "runs.parquet"),
        "object": dd.read_parquet(path / "runs.parquet"),
        "workers": str(path / "runs.parquet"),
        "url": in_memory_files(path / "runs.parquet", "runs.parquet"),
    }


@container("path object workers url", "folder of Parquet, with keys as `k=0.5`")
def parquet_folder(path):
    table = pa.table({**FRAME, "k": np.repeat([0.5, 1.5], ROWS // 2)})
    ds.write_dataset(table, path / "runs", format="parquet", partitioning=["k"], partitioning_flavor="hive")
    here = str(path / "runs")
    return {
        "path": here,
        "object": ds.dataset(here, partitioning="hive"),
        "workers": here,
        "url": in_memory_files(path / "runs", "runs"),
    }


@container("path workers", "several Parquet files: a pattern, or a list of paths")
def parquet_list(path):
    for i in range(4):
        FRAME[i * 100 : (i + 1) * 100].to_parquet(path / f"{i}.parquet")
    return {"path": [path / f"{i}.parquet" for i in range(4)], "workers": f"{path}/*.parquet"}


@container(
    "path workers",
    "Parquet as Spark leaves it (`_SUCCESS`, `.crc`, `_temporary`)",
    note="what was not committed is left out",
)
def spark_folder(path):
    (path / "runs/_temporary/0").mkdir(parents=True)
    for i in range(2):
        FRAME[i * 200 : (i + 1) * 200].to_parquet(path / f"runs/part-0000{i}.snappy.parquet")
        (path / f"runs/.part-0000{i}.snappy.parquet.crc").write_bytes(b"crc")
    (2 * FRAME).to_parquet(path / "runs/_temporary/0/part-00002.snappy.parquet")
    (path / "runs/_SUCCESS").touch()
    return {"path": path / "runs", "workers": path / "runs"}


@container("path object workers", "Delta table", "deltalake", note="also `version=`")
def delta(path):
    from deltalake import DeltaTable, write_deltalake

    write_deltalake(path / "runs", pa.Table.from_pandas(2 * FRAME))
    write_deltalake(path / "runs", pa.Table.from_pandas(FRAME), mode="overwrite")
    here = str(path / "runs")
    return {"path": here, "object": DeltaTable(here), "workers": here}


@container("path", "file inside of a Delta table", "deltalake", path="data=deltalake.DeltaTable(path)")
def inside_delta(path):
    delta(path)
    return {"path": next((path / "runs").glob("*.parquet"))}


@container("path", "folder above Delta tables", "deltalake", path="data=deltalake.DeltaTable(path)")
def above_delta(path):
    delta(path)
    return {"path": path}


@container(
    "path object workers",
    "Iceberg table",
    "pyiceberg",
    path="data=catalog.load_table(name)",
    note="also `version=`, and a scan of it",
)
def iceberg(path):
    table = iceberg_table(path)
    return {"path": path / "warehouse/n/runs", "object": table, "workers": table.scan(selected_fields=("t", "y"))}


def iceberg_table(path):
    """Write an Iceberg table of which rows were deleted."""
    from pyiceberg.catalog.sql import SqlCatalog

    catalog = SqlCatalog("here", uri=f"sqlite:///{path}/catalog.db", warehouse=f"file://{path}/warehouse")
    catalog.create_namespace("n")
    rows = pa.Table.from_pandas(FRAME)
    table = catalog.create_table("n.runs", schema=rows.schema)
    table.append(rows)
    table.append(pa.Table.from_pandas(FRAME.assign(t=9.0)))
    table.delete("t > 8")
    return table


@container("path", "metadata file of an Iceberg table", "pyiceberg")
def iceberg_metadata(path):
    return {"path": iceberg_table(path).metadata_location}


@container("path", "Hudi table", path="data=hudi.HudiTableBuilder")
def hudi(path):
    (path / "runs/.hoodie").mkdir(parents=True)
    FRAME.to_parquet(path / "runs/0.parquet")
    return {"path": path / "runs"}


def write_zarr(path, **options):
    """Write rows as a group of Zarr."""
    group = zarr.open_group(path, mode="w", **options.pop("group", {}))
    for name, values in FRAME.items():
        group.create_array(name, data=values.to_numpy(), **{"chunks": (100,), **options})
    return group


@container("path object workers url", "Zarr group")
def zarr_group(path):
    group, here = write_zarr(path / "runs.zarr"), str(path / "runs.zarr")
    return {"path": here, "object": group, "workers": here, "url": in_memory_files(path / "runs.zarr", "runs.zarr")}


@container("object workers", "Zarr arrays", array_call=True)
def zarr_arrays(path):
    group = write_zarr(path / "runs.zarr")
    return {"object": (group["t"], group["y"]), "workers": (group["t"], group["y"])}


@container("path workers", "Zarr with shards")
def zarr_shards(path):
    write_zarr(path / "runs.zarr", chunks=(50,), shards=(200,))
    return {"path": path / "runs.zarr", "workers": path / "runs.zarr"}


@container(
    "path object workers",
    "Zarr as xarray encodes it (`scale_factor`, `_FillValue`, times)",
    "xarray",
    note="decoded by xarray",
)
def zarr_encoded(path):
    import xarray

    data = xarray.Dataset({name: ("row", values) for name, values in FRAME.items()})
    packed = {"y": {"dtype": "i4", "scale_factor": 2e-9, "_FillValue": -(2**31)}}
    data.to_zarr(path / "runs.zarr", encoding=packed, zarr_format=2)
    return {"path": path / "runs.zarr", "object": xarray.open_zarr(path / "runs.zarr"), "workers": path / "runs.zarr"}


@container("path", "one Zarr array of records", path="data=zarr.open_array(path)[:]")
def zarr_records(path):
    zarr.create_array(path / "runs.zarr", data=np.array(FRAME.to_records(index=False)), chunks=(100,))
    return {"path": path / "runs.zarr"}


@container("url", "Zarr in a ZIP file")
def zarr_zip(path):
    import shutil

    write_zarr(path / "runs.zarr")
    shutil.make_archive(str(path / "runs"), "zip", path / "runs.zarr")
    return {"url": f"zip://::file://{path}/runs.zip"}


@container("url", "Zarr by references (`reference://`, as kerchunk makes)")
def zarr_references(path):
    write_zarr(path / "runs.zarr", group={"zarr_format": 2})
    names = [one.relative_to(path / "runs.zarr").as_posix() for one in (path / "runs.zarr").rglob("*") if one.is_file()]
    references = {name: [f"file://{path}/runs.zarr/{name}"] for name in names}
    (path / "references.json").write_text(json.dumps({"version": 1, "refs": references}))
    return {"url": f"reference://::file://{path}/references.json"}


@container("url", "Zarr behind plain HTTP that lists nothing", "aiohttp")
def zarr_http(path):
    write_zarr(path / "runs.zarr", group={"zarr_format": 2})
    zarr.consolidate_metadata(str(path / "runs.zarr"))
    handler = functools.partial(_Plain, directory=str(path))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return {"url": f"http://127.0.0.1:{server.server_port}/runs.zarr"}


class _Plain(http.server.SimpleHTTPRequestHandler):
    def list_directory(self, path):
        self.send_error(403, "no listing")

    def log_message(self, *_):
        pass


@container("path object workers", "Icechunk repository", "icechunk", note="also `version=`")
def icechunk_repository(path):
    repository = _repository(path)
    session = repository.writable_session("main")
    write_zarr(session.store)
    session.commit("rows")
    return {"path": path / "repository", "object": repository, "workers": repository.readonly_session("main")}


@container("object workers", "Icechunk session with changes", "icechunk", workers="Commit the session")
def icechunk_uncommitted(path):
    session = _repository(path).writable_session("main")
    write_zarr(session.store)
    return {"object": session, "workers": session}


def _repository(path):
    import icechunk

    return icechunk.Repository.create(icechunk.local_filesystem_storage(str(path / "repository")))


@container("object workers", "xarray Dataset", "xarray")
def xarray_dataset(path):
    import xarray

    data = xarray.Dataset({name: ("row", values) for name, values in FRAME.items()})
    return {"object": data, "workers": data.chunk(row=100)}


@container("object", "xarray `Dataset.variables`", "xarray")
def xarray_variables(path):
    import xarray

    return {"object": xarray.Dataset({name: ("row", values) for name, values in FRAME.items()}).variables}


@container("object", "node of an xarray DataTree", "xarray")
def xarray_tree(path):
    import xarray

    data = xarray.Dataset({name: ("row", values) for name, values in FRAME.items()})
    return {"object": xarray.DataTree.from_dict({"/a": data})["a"]}


@container("object workers", "xarray DataArrays of an image", "xarray", array_call=True, note="x is repeated over y")
def xarray_image(path):
    import xarray

    y = xarray.DataArray(np.stack([Y, Y]), dims=("pixel", "t"), coords={"t": T})
    return {"object": (y["t"], y), "workers": (y["t"], y.chunk(t=100))}


@container("path object workers", "netCDF file", "xarray", "h5netcdf", path="data=xarray.open_dataset(path, chunks={})")
def netcdf(path):
    import xarray

    data = xarray.Dataset({name: ("row", values) for name, values in FRAME.items()})
    data.to_netcdf(path / "runs.nc", engine="h5netcdf")
    return {
        "path": path / "runs.nc",
        "object": xarray.open_dataset(path / "runs.nc", engine="h5netcdf"),
        "workers": xarray.open_dataset(path / "runs.nc", engine="h5netcdf", chunks={}),
    }


@container("path object workers", "HDF5 file: h5py File, its datasets", "h5py", path="data=h5py.File(path)")
def hdf5(path):
    import h5py

    with h5py.File(path / "runs.h5", "w") as file:
        for name, values in FRAME.items():
            file.create_dataset(name, data=values, chunks=(100,))
    file = h5py.File(path / "runs.h5")
    return {"path": path / "runs.h5", "object": file, "workers": file}


@container("object workers", "variables of h5netcdf", "h5netcdf", workers="data=xarray.open_dataset(path, chunks={})")
def h5netcdf_variables(path):
    import h5netcdf

    netcdf(path)
    file = h5netcdf.File(path / "runs.nc")
    variables = {name: file.variables[name] for name in FRAME}
    return {"object": variables, "workers": variables, "open": file}


@container(
    "path object workers", "FITS table: astropy Table, records", "astropy", path="data=astropy.table.Table.read(path)"
)
def fits(path):
    from astropy.io import fits
    from astropy.table import Table

    Table.from_pandas(FRAME).write(path / "runs.fits")
    return {
        "path": path / "runs.fits",
        "object": Table.read(path / "runs.fits"),
        "workers": fits.getdata(path / "runs.fits"),
    }


@container("object workers", "pandas DataFrame, also of Arrow's types and decimals")
def pandas_frame(path):
    decimals = pa.array(np.round(Y, 9)).cast(pa.decimal128(12, 9))
    pq.write_table(pa.table({"t": T, "y": decimals}), path / "runs.parquet")
    return {
        "object": pd.read_parquet(path / "runs.parquet"),
        "workers": pd.read_parquet(path / "runs.parquet", dtype_backend="pyarrow"),
    }


@container("object workers", "Dask DataFrame")
def dask_frame(path):
    return {"object": dd.from_pandas(FRAME, npartitions=4), "workers": dd.from_pandas(FRAME, npartitions=4)}


@container("object workers", "Dask Series", array_call=True)
def dask_series(path):
    frame = dd.from_pandas(FRAME, npartitions=4)
    return {"object": (frame["t"], frame["y"]), "workers": (frame["t"], frame["y"])}


@container("object workers", "Dask arrays", array_call=True)
def dask_arrays(path):
    arrays = tuple(da.from_array(FRAME[name].to_numpy(), chunks=100) for name in "ty")
    return {"object": arrays, "workers": arrays}


@container("object workers", "Dask arrays of spectra: y of shape (n, k), x of shape (k,)", array_call=True)
def dask_spectra(path):
    y = da.from_array(np.stack([Y, Y, Y, Y]), chunks=(2, 100))
    return {"object": (T, y), "workers": (T, y)}


@container("object workers", "NumPy arrays, a mapping of them")
def mapping(path):
    data = {name: values.to_numpy() for name, values in FRAME.items()}
    return {"object": data, "workers": data}


@container("object", "NumPy images: `x=(xx, yy)`, y of shape (n, k)", array_call=True)
def image(path):
    shape = (20, ROWS // 20)
    return {"object": (T.reshape(shape), Y.reshape(shape))}


@container("object workers", "NumPy records")
def records(path):
    return {"object": FRAME.to_records(index=False), "workers": FRAME.to_records(index=False)}


@container("object workers", "pyarrow Table")
def arrow_table(path):
    return {"object": pa.Table.from_pandas(FRAME), "workers": pa.Table.from_pandas(FRAME)}


@container("object", "pyarrow RecordBatchReader")
def arrow_reader(path):
    return {"object": pa.Table.from_pandas(FRAME).to_reader(max_chunksize=100)}


@container("object workers", "polars DataFrame", "polars")
def polars_frame(path):
    import polars

    return {"object": polars.from_pandas(FRAME), "workers": polars.from_pandas(FRAME)}


@container("object", "polars LazyFrame", "polars")
def polars_lazy(path):
    import polars

    FRAME.to_parquet(path / "runs.parquet")
    return {"object": polars.scan_parquet(path / "runs.parquet").with_columns(polars.col("t") * 1.0)}


@container("object", "DuckDB relation", "duckdb")
def duckdb_relation(path):
    import duckdb

    FRAME.to_parquet(path / "runs.parquet")
    return {"object": duckdb.connect().from_parquet(str(path / "runs.parquet"))}


@container("path workers url", "CSV: a file, a folder, a pattern, `.gz`")
def csv(path):
    (path / "runs").mkdir()
    FRAME.to_csv(path / "runs/0.csv.gz", index=False)
    FRAME.to_csv(path / "runs.csv", index=False)
    return {
        "path": path / "runs.csv",
        "workers": path / "runs",
        "url": in_memory_files(path / "runs.csv", "runs.csv"),
    }


@container("path object", "Feather (Arrow IPC) file", path="data=pyarrow.feather.read_table(path)")
def feather(path):
    pa.feather.write_feather(FRAME, path / "runs.feather")
    return {"path": path / "runs.feather", "object": pa.feather.read_table(path / "runs.feather")}


@container("path object", "ORC file", path="data=dask.dataframe.read_orc(path)")
def orc(path):
    pa.orc.write_table(pa.Table.from_pandas(FRAME), path / "runs.orc")
    return {"path": path / "runs.orc", "object": dd.read_orc(str(path / "runs.orc"))}


@container("path object", "NumPy `.npz` file", path="data=numpy.load(path)")
def npz(path):
    np.savez(path / "runs.npz", **{name: values.to_numpy() for name, values in FRAME.items()})
    return {"path": path / "runs.npz", "object": np.load(path / "runs.npz")}


def table() -> str:
    """Return what can be fitted as a table of Markdown."""
    lines = ["| container | " + " | ".join(WAYS.values()) + " |", "|---" * (len(WAYS) + 1) + "|"]
    for one in CONTAINERS:
        cells = [_cell(one, way) for way in WAYS]
        lines.append(f"| {one.name}{f' ({one.note})' if one.note else ''} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _cell(one: Container, way: str) -> str:
    return f"refused: `{one.refused[way]}`" if way in one.refused else "right" if way in one.ways else "–"


if __name__ == "__main__":
    print(table(), end="")
