"""Zarr arrays, read natively: a partition is a run of whole shards (or chunks, where there are no shards)."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeGuard

import numpy as np
import zarr
from dask.base import tokenize

from dask_nlsq._errors import DataError
from dask_nlsq._sources.cf import decoder, remarks
from dask_nlsq._sources.columns import Columns, check_columns, first_instants
from dask_nlsq._sources.shards import count_inner
from dask_nlsq._sources.source import Info, Source
from dask_nlsq._sources.stored import ROWS, FileArray, Stored, StoredPartition, chunk_sizes

MOST = 5_000_000
"""Partitions of a source at most: their list alone takes a gigabyte, and none was ever meant that has more."""


def open_zarr(data: zarr.Array[Any] | zarr.Group | Mapping[str, object], columns: Columns) -> Source:
    """Take a group, or a mapping of arrays, of one dimension and one length."""
    if isinstance(data, zarr.Array):
        raise DataError(
            f"data is a Zarr array of shape {data.shape}; a Zarr group with one array a column is needed. Or give x= "
            "and y= as arrays, without data=."
        )
    if isinstance(data, zarr.Group):
        present, raw, stale = _members(data, columns.names)
    else:
        present, raw, stale = list(data), {name: data[name] for name in columns.names}, []
    arrays = {name: as_stored(name, a) for name, a in raw.items()}
    return open_stored(arrays, columns, "Zarr", present, stale)


def open_stored(
    arrays: Mapping[str, Stored], columns: Columns, kind: str, present: Sequence[str], notes: Sequence[str] = ()
) -> Source:
    """Take stored arrays of one dimension and one length."""
    shapes = {name: a.shape for name, a in arrays.items()}
    if any(len(shape) != 1 for shape in shapes.values()):
        raise DataError(f"Arrays of one dimension are needed; the shapes are {shapes}.")
    if len(set(shapes.values())) > 1:
        raise DataError(f"x, y and sigma must have the same length; the shapes are {shapes}.")
    (rows,) = shapes[columns.y]
    cuts = _cuts([a.array for a in arrays.values()], rows)
    dates = [name for name, a in arrays.items() if a.dtype.kind == "M"]
    reads = ({name: arrays[name][a:b] for name in dates} for a, b in cuts)
    columns = dataclasses.replace(columns, origins=first_instants(dates, reads))
    partitions = [StoredPartition(arrays, a, b, columns) for a, b in cuts]
    # Of compressed arrays nobody knows the size without asking for that of every chunk.
    plain = all(not getattr(a.array, "compressors", True) for a in arrays.values())
    info = Info(
        kind,
        rows,
        columns.names,
        tuple(present),
        columns.origins,
        absent(arrays.values()),
        partition_rows=max((b - a for a, b in cuts), default=0),
        encoded=sum(a.array.nbytes for a in arrays.values()) if plain else None,
        row_bytes=columns.row_bytes({name: a.dtype for name, a in arrays.items()}),
        reader="Zarr",
        notes=(*notes, *(text for a in arrays.values() for text in remarks(a.name, dict(a.array.attrs)))),
    )
    token = tokenize([a.place for a in arrays.values()], shapes, columns)
    return Source(partitions, token, info)


def as_stored(name: str, array: object) -> Stored:
    """Return a Zarr array as a column that knows how it is decoded, and how many of its chunks there are."""
    if not isinstance(array, zarr.Array):
        raise DataError(f"It is a {type(array).__name__} of Zarr; an array is needed.", column=name)
    attrs = dict(array.attrs)
    by_xarray = array.metadata.zarr_format == 2 and "_ARRAY_DIMENSIONS" in attrs
    if by_xarray and array.dtype.kind in "fiu":
        attrs.setdefault("_FillValue", array.fill_value or None)  # 0 is what Zarr fills with unless told otherwise
    return Stored(name, array, decoder(name, attrs, array.dtype), _present(array))


def _present(array: zarr.Array[Any]) -> int | None:
    """Return how many chunks are in the store; None where it does not tell, as most servers of plain HTTP."""
    try:
        there: int = array.nchunks_initialized
    except Exception:  # whatever a store raises that lists nothing
        return None
    return there if there or not array.nchunks or not _answers(array) else None


def _answers(array: zarr.Array[Any]) -> bool:
    """Whether a value at either end is no fill value, and so is there, though no chunk was listed."""
    if not array.size:
        return False
    ends = np.array([array[(0,) * array.ndim], array[(-1,) * array.ndim]])
    return bool((ends != array.fill_value).any() and not (ends != ends).all())


def _members(group: zarr.Group, names: Sequence[str]) -> tuple[list[str], dict[str, Any], list[str]]:
    """Return the names of a group's arrays, those wanted, and what its consolidated metadata say that is not so."""
    present = list(group.array_keys())
    arrays: dict[str, Any] = {name: group[name] for name in names if name in present}
    if getattr(group.metadata, "consolidated_metadata", None) is None:
        check_columns(present, names)
        return present, arrays, []
    notes = []
    for name in names:
        # The metadata of each array are read from the store itself, which writers that append may have changed since
        # the consolidation.
        with contextlib.suppress(Exception):  # what is not there is told as such, and the rest by who reads it
            array = zarr.open_array(group.store, path=f"{group.path}/{name}".lstrip("/"), mode="r")
            if name not in arrays or array.shape != arrays[name].shape:
                listed = f"shape {arrays[name].shape}" if name in arrays else "no such array"
                notes.append(
                    f"The consolidated metadata of the group are out of date: they have {listed} for {name!r}, and the "
                    f"array itself {array.shape}, which was read. zarr.consolidate_metadata() rewrites them."
                )
            arrays[name] = array
    present += [name for name in arrays if name not in present]
    check_columns(present, names)
    return present, arrays, notes


def _cuts(arrays: Sequence[Any], rows: int) -> list[tuple[int, int]]:
    """Cut rows where chunks end, so that a partition is of whole chunks, and rows enough."""
    unlike = next((sizes for a in arrays if len(sizes := _sizes(a)) > 1), None)
    if unlike is None:
        step = rows_at_a_time(arrays)
        if rows > step * MOST:
            raise DataError(
                f"The arrays claim {rows:,} rows in {-(-rows // step):,} partitions of {step:,}, and no more than "
                f"{MOST:,} can be fitted. If there are so many rows, write them in larger chunks."
            )
        return [(start, min(start + step, rows)) for start in range(0, rows, step)]
    edges = [0]
    for end in itertools.accumulate(unlike):
        if end - edges[-1] >= ROWS or end >= rows:
            edges.append(min(end, rows))
    return [(a, b) for a, b in itertools.pairwise(edges) if b > a]


def _sizes(array: zarr.Array[Any] | FileArray) -> tuple[int, ...]:
    return chunk_sizes(array) if isinstance(array, zarr.Array) else ((array.chunks or (ROWS,))[-1],)


def rows_at_a_time(arrays: Iterable[Any]) -> int:
    """Return the rows of a partition of these arrays, whose last dimension is that of rows."""
    return whole(max(max(_sizes(a)) for a in arrays))


def whole(shard: int) -> int:
    """Return the rows of a partition of whole shards, or chunks, of so many rows."""
    return shard * max(1, ROWS // shard)


def absent(arrays: Iterable[Stored]) -> dict[str, str]:
    """Return, by column, what the stores of Zarr arrays lack, which Zarr reads as the fill value, or do not tell."""
    lacking = {}
    for stored in arrays:
        if isinstance(stored.array, zarr.Array) and (text := _absent(stored)):
            lacking[stored.name] = text
    return lacking


def _absent(stored: Stored) -> str | None:
    array, name = stored.array, stored.name
    if stored.present is None:
        return f"the store does not list its files, so that chunks of {name!r} may be missing"
    # Of a shard that is there Zarr counts all chunks as present, whether it holds them or not.
    lacking = count_inner(array) if array.shards else array.nchunks - stored.present
    if lacking is None:
        return f"the shards of {name!r} do not tell which of their chunks there are, and some may be missing"
    if not lacking:
        return None
    missing = f"{lacking} of {array.nchunks} chunks of {name!r} are not in the store"
    return f"{missing}, and are read as {array.fill_value}"


def is_zarr(data: object) -> TypeGuard[zarr.Array[Any] | zarr.Group]:
    """Whether this is a Zarr array or group."""
    return isinstance(data, (zarr.Array, zarr.Group))
