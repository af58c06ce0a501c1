"""Places: what lies at a path, as its files say, and what to do with what is read by others."""

from __future__ import annotations

import contextlib
import posixpath
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dask_nlsq._errors import DataError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

TABLES = {"_delta_log": "Delta", ".hoodie": "Hudi"}
"""Folders of which one lies in the root of a table of a format."""

READERS = {
    "Delta": "data=deltalake.DeltaTable(path)",
    "Hudi": "data=hudi.HudiTableBuilder.from_base_uri(path).build().read_snapshot(), as one pyarrow.Table",
    "Iceberg": "data=catalog.load_table(name), with a catalog of pyiceberg",
    "HDF5": "data=h5py.File(path), or data=xarray.open_dataset(path, chunks={})",
    "netCDF": "data=xarray.open_dataset(path, chunks={})",
    "FITS": "data=astropy.table.Table.read(path)",
    "ROOT": "data=uproot.open(path)[tree].arrays(library='pd')",
    "Feather (Arrow IPC)": "data=pyarrow.feather.read_table(path)",
    "ORC": "data=dask.dataframe.read_orc(path)",
    "Avro": "data=polars.read_avro(path)",
    "SQLite": "data=pandas.read_sql(query, connection)",
    "Excel": "data=pandas.read_excel(path)",
    "NumPy": "data=numpy.load(path)",
    "JSON": "data=dask.dataframe.read_json(path)",
    "MATLAB": "data=scipy.io.loadmat(path, squeeze_me=True)",
    "pickle": "data=pandas.read_pickle(path)",
}
"""By format, the line that reads it."""

_MAGIC = {
    b"\x89HDF\r\n\x1a\n": "HDF5",
    b"CDF\x01": "netCDF",
    b"CDF\x02": "netCDF",
    b"CDF\x05": "netCDF",
    b"SIMPLE  =": "FITS",
    b"root": "ROOT",
    b"ARROW1": "Feather (Arrow IPC)",
    b"FEA1": "Feather (Arrow IPC)",
    b"ORC": "ORC",
    b"Obj\x01": "Avro",
    b"SQLite format 3": "SQLite",
    b"\x93NUMPY": "NumPy",
    b"MATLAB 5.0": "MATLAB",
}
"""The first bytes of files of a format."""

_ENDINGS = {
    ".xlsx": "Excel",
    ".xls": "Excel",
    ".npz": "NumPy",
    ".json": "JSON",
    ".jsonl": "JSON",
    ".ndjson": "JSON",
    ".pkl": "pickle",
    ".pickle": "pickle",
    ".nc": "netCDF",
    ".h5": "HDF5",
    ".hdf5": "HDF5",
    ".fits": "FITS",
    ".root": "ROOT",
    ".orc": "ORC",
    ".avro": "Avro",
    ".feather": "Feather (Arrow IPC)",
    ".arrow": "Feather (Arrow IPC)",
}

TEXTS = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".csv.bz2", ".csv.xz", ".csv.zst")

PARQUET = (".parquet", ".parq", ".pq")
"""How names of Parquet files end, as Dask's reader takes them too."""

_UP = 5
"""Folders above a path that may be the root of its table."""

ZARR = ("zarr.json", ".zgroup", ".zarray")


def kind_at(fs: AbstractFileSystem, root: str) -> str:
    """Return the format of what lies at a path: that of a table, Zarr, Icechunk, text, another, or else Parquet."""
    root = root.rstrip("/")
    if any(sign in root for sign in "*?["):
        return "text" if root.lower().endswith((*TEXTS, ".gz")) else "Parquet"
    if root.endswith(".metadata.json"):
        return "Iceberg"
    names = _names(fs, root)
    if names is None:  # a file, or a folder of a server that lists none
        if root.lower().endswith(TEXTS):
            return "text"
        zarr = not root.endswith(PARQUET) and any(_exists(fs, f"{root}/{name}") for name in ZARR)
        return "Zarr" if zarr or root.endswith(".zarr") else _of_file(fs, root)
    # The marks of tables come first, for the other files of a table are plain Parquet, with rows that were deleted.
    for marker, format_ in TABLES.items():
        if marker in names:
            return format_
    if "metadata" in names and _has_metadata(fs, root):
        return "Iceberg"
    if names & set(ZARR) or root.endswith(".zarr"):
        return "Zarr"
    if "snapshots" in names and names & {"refs", "repo"}:
        return "Icechunk"
    seen = {name.lower() for name in names if not name.startswith(("_", "."))}
    text, parquet = (any(name.endswith(endings) for name in seen) for endings in (TEXTS, PARQUET))
    return "text" if text and not parquet else "Parquet"


def kind_by_name(path: str) -> str | None:
    """Return the format of a file by the ending of its name, where that is usual for one that is read here."""
    return "Parquet" if path.lower().endswith(PARQUET) else "text" if path.lower().endswith(TEXTS) else None


def _has_metadata(fs: AbstractFileSystem, root: str) -> bool:
    """Whether a folder is the root of an Iceberg table."""
    return any(name.endswith(".metadata.json") for name in _names(fs, f"{root}/metadata") or ())


def _names(fs: AbstractFileSystem, root: str) -> set[str] | None:
    """Return the names in a folder; None where this is none, or is not listed."""
    try:
        if fs.isfile(root):
            return None
        paths = fs.ls(root, detail=False)
    except Exception:  # whatever a file system raises that does not list
        return None
    return {posixpath.basename(str(name).replace("\\", "/").rstrip("/")) for name in paths} or None


def _exists(fs: AbstractFileSystem, path: str) -> bool:
    with contextlib.suppress(Exception):
        return bool(fs.exists(path))
    return False


def _of_file(fs: AbstractFileSystem, root: str) -> str:
    """Return the format of a file by its first bytes, or its name."""
    with contextlib.suppress(Exception):  # what cannot be read is told by who reads it
        head = fs.cat_file(root, start=0, end=16)
        if head.startswith(b"PAR1"):
            return "Parquet"
        for magic, format_ in _MAGIC.items():
            if head.startswith(magic):
                # A file of netCDF 4 is one of HDF5, and only its name says which library wrote it.
                return "netCDF" if format_ == "HDF5" and root.endswith((".nc", ".nc4")) else format_
        return next((format_ for ending, format_ in _ENDINGS.items() if root.endswith(ending)), "Parquet")
    return "Parquet"


def check_above(fs: AbstractFileSystem, roots: Sequence[str], path: str | Sequence[str]) -> None:
    """Refuse paths inside of a table of a format, whose log alone says which of its rows there are.

    Each folder above is looked at once; a server of plain HTTP is not asked, which may answer whatever it is asked.
    """
    if type(fs).__name__ == "HTTPFileSystem":
        return
    folders: set[str] = set()
    for root in roots:
        above = root.rstrip("/")
        for _ in range(_UP):
            above = posixpath.dirname(above)
            if not above.strip("/") or above in folders:
                break
            folders.add(above)
    for folder in sorted(folders, key=len, reverse=True):
        table_format = next((format_ for marker, format_ in TABLES.items() if _exists(fs, f"{folder}/{marker}")), None)
        if table_format or _has_metadata(fs, folder):
            raise _inside(path, table_format or "Iceberg", folder)


def _inside(path: str | Sequence[str], format_: str, table: str) -> DataError:
    return DataError(
        f"{path!r} lies in the {format_} table {table!r}, and may hold rows that are no longer in the table. Give "
        f"the table, {READERS[format_]}, with a filter for some of its rows."
    )


def check_below(names: Sequence[str], path: str | Sequence[str]) -> None:
    """Refuse a folder that holds tables of a format, given all files that lie below it."""
    for name in names:
        inside = _IN_TABLE.fullmatch(name)
        if inside:
            format_ = TABLES.get(inside["marker"], "Iceberg")
            raise DataError(
                f"{path!r} holds the {format_} table {inside['table']!r}, and its files may hold rows that are no "
                f"longer in the table. Give the table: {READERS[format_]}."
            )


_IN_TABLE = re.compile(r"(?P<table>.*)/((?P<marker>_delta_log|\.hoodie)/.*|metadata/[^/]+\.metadata\.json)")


def refused(path: str, format_: str) -> DataError:
    """Return an error that says how a format is read that a path of it is not."""
    return DataError(
        f"{path!r} is {format_}, and a path or URL of Parquet, Delta, Iceberg, Zarr, Icechunk or CSV is needed: "
        f"{READERS[format_]}."
    )
