"""Zarr arrays, read natively: a partition is a run of whole shards (or chunks, where there are no shards)."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import re
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import zarr
from dask.base import tokenize

from dask_nlsq._errors import DataError
from dask_nlsq._numerics.block import SLABS, Block
from dask_nlsq._sources.columns import Columns, check_columns, first_instants
from dask_nlsq._sources.source import Info, Source

ROWS = SLABS[1]
"""Fewest rows of a partition: smaller shards are read several at a time."""


@dataclasses.dataclass(frozen=True)
class ZarrPartition:
    """Rows start to stop of some arrays."""

    arrays: Mapping[str, Any]
    start: int
    stop: int
    columns: Columns

    def load(self) -> Block:
        """Read the rows of every column."""
        return self.columns.block({name: a[self.start : self.stop] for name, a in self.arrays.items()})


def open_zarr(data: Any, columns: Columns) -> Source:
    """Take a group, or a mapping of arrays, of one dimension and one length."""
    if isinstance(data, zarr.Array):
        raise DataError(
            f"data is a Zarr array of shape {data.shape}; a Zarr group with one array a column is needed. Or give x= "
            "and y= as arrays, without data=."
        )
    present = list(data.array_keys()) if isinstance(data, zarr.Group) else list(data)
    check_columns(present, columns.names)
    arrays = {name: data[name] for name in columns.names}
    check_plain(arrays)
    shapes = {name: a.shape for name, a in arrays.items()}
    if any(len(shape) != 1 for shape in shapes.values()):
        raise DataError(f"Arrays of one dimension are needed; the shapes are {shapes}.")
    if len(set(shapes.values())) > 1:
        raise DataError(f"x, y and sigma must have the same length; the shapes are {shapes}.")
    (rows,) = shapes[columns.y]
    step = rows_at_a_time(arrays.values())
    cuts = [(start, min(start + step, rows)) for start in range(0, rows, step)]
    dates = [name for name, a in arrays.items() if a.dtype.kind == "M"]
    reads = ({name: arrays[name][a:b] for name in dates} for a, b in cuts)
    columns = dataclasses.replace(columns, origins=first_instants(dates, reads))
    partitions = [ZarrPartition(arrays, a, b, columns) for a, b in cuts]
    plain = all(not a.compressors for a in arrays.values())
    info = Info(
        "Zarr",
        rows,
        columns.names,
        tuple(present),
        columns.origins,
        absent(arrays),
        partition_rows=min(step, rows),
        encoded=sum(a.nbytes for a in arrays.values()) if plain else None,
        row_bytes=columns.row_bytes({name: a.dtype for name, a in arrays.items()}),
    )
    token = tokenize([str(a.store_path) for a in arrays.values()], shapes, columns)
    return Source(partitions, token, info)


def rows_at_a_time(arrays: Iterable[Any]) -> int:
    """Return the rows of a partition of these arrays, whose last dimension is that of rows."""
    return whole(max((a.shards or a.chunks)[-1] for a in arrays))


def whole(shard: int) -> int:
    """Return the rows of a partition of whole shards, or chunks, of so many rows."""
    return shard * max(1, ROWS // shard)


def absent(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of which chunks are not in the store; Zarr reads such chunks as the fill value."""
    return {
        name: f"{a.nchunks - there} of {a.nchunks} chunks of {name!r} are not in the store (fill value {a.fill_value})"
        for name, a in arrays.items()
        if (there := a.nchunks_initialized) < a.nchunks
    }


def check_plain(arrays: Mapping[str, Any]) -> None:
    """Refuse arrays that hold their values encoded after the CF conventions, as xarray and netCDF write them."""
    for name, array in arrays.items():
        if codes := _codes(array):
            seen = ", ".join(f"{key} {value}" for key, value in codes.items())
            raise DataError(
                f"The array is encoded ({seen}), and Zarr reads it as it is stored. xarray decodes it: give "
                "data=xarray.open_zarr(path).",
                column=name,
            )


def _codes(array: Any) -> dict[str, Any]:
    """Return the attributes by which xarray would change the values of an array."""
    attrs = dict(array.attrs)
    codes = {key: attrs[key] for key, none in (("scale_factor", 1), ("add_offset", 0)) if attrs.get(key, none) != none}
    by_xarray = array.metadata.zarr_format == 2 and "_ARRAY_DIMENSIONS" in attrs
    if by_xarray and array.dtype.kind in "fiu":
        attrs.setdefault("_FillValue", array.fill_value or None)  # 0 is what Zarr fills with unless told otherwise
    if (array.dtype.kind, str(attrs.get("_Unsigned")).lower()) in (("i", "true"), ("u", "false")):
        codes["_Unsigned"] = attrs["_Unsigned"]
    for key in ("_FillValue", "missing_value"):
        if not np.isnan(value := _number(attrs.get(key))).all():
            codes[key] = value
    if re.search(r" since\s+[-+]?\d", str(attrs.get("units"))):  # a date, and not "seconds since the trigger"
        codes["units"] = attrs["units"]
    if str(attrs.get("dtype")).startswith("timedelta64"):
        codes |= {key: attrs[key] for key in ("units", "dtype") if key in attrs}
    return codes


def _number(value: Any) -> Any:
    """Return the numbers in an attribute, where xarray writes floats in Base64; NaN if there are none."""
    with contextlib.suppress(TypeError, ValueError):
        return np.asarray(np.nan if value is None else value, float)
    with contextlib.suppress(TypeError, ValueError, struct.error):
        return np.asarray(struct.unpack("<d", base64.b64decode(value))[0])
    return np.asarray(np.nan)


def is_zarr(data: Any) -> bool:
    """Whether this is a Zarr array or group."""
    return isinstance(data, (zarr.Array, zarr.Group))
