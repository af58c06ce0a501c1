"""Zarr arrays, read natively: a partition is a run of whole shards (or chunks, where there are no shards)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

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
    present = list(data.array_keys()) if isinstance(data, zarr.Group) else list(data)
    check_columns(present, columns.names)
    arrays = {name: data[name] for name in columns.names}
    shapes = {name: a.shape for name, a in arrays.items()}
    if any(len(shape) != 1 for shape in shapes.values()):
        raise DataError(f"Arrays of one dimension are needed; the shapes are {shapes}.")
    if len(set(shapes.values())) > 1:
        raise DataError(f"x, y and sigma must have the same length; the shapes are {shapes}.")
    (rows,) = shapes[columns.y]
    shard = max((a.shards or a.chunks)[0] for a in arrays.values())
    step = shard * max(1, ROWS // shard)
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
        _absent(arrays),
        partition_rows=min(step, rows),
        encoded=sum(a.nbytes for a in arrays.values()) if plain else None,
        row_bytes=columns.row_bytes({name: a.dtype for name, a in arrays.items()}),
    )
    token = tokenize([str(a.store_path) for a in arrays.values()], shapes, columns)
    return Source(partitions, token, info)


def _absent(arrays: Mapping[str, Any]) -> dict[str, str]:
    """Return the columns of which chunks are not in the store; Zarr reads such chunks as the fill value."""
    return {
        name: f"{a.nchunks - there} of {a.nchunks} chunks of {name!r} are not in the store (fill value {a.fill_value})"
        for name, a in arrays.items()
        if (there := a.nchunks_initialized) < a.nchunks
    }


def is_zarr(data: Any) -> bool:
    """Whether this is a Zarr array or group."""
    return isinstance(data, (zarr.Array, zarr.Group))
