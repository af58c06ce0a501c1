"""Dask arrays of one dimension, also with chunks of unknown sizes."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import dask
import dask.array as da
import numpy as np
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph

from dask_nlsq._errors import DataError
from dask_nlsq._kernel import Block
from dask_nlsq._sources.cf import Decoder
from dask_nlsq._sources.columns import Columns, first_instants
from dask_nlsq._sources.graph import GraphPartition, cut, on_workers
from dask_nlsq._sources.source import Info, Source
from dask_nlsq._system import read_again
from dask_nlsq._typing import AnyArray


def open_array(raw: Mapping[str, Any], columns: Columns) -> Source:
    """Take arrays of which at least one is a Dask array; the others are cut as it is."""
    arrays = align({name: raw[name] for name in columns.names})
    graph: Any = HighLevelGraph.merge(*(a.__dask_graph__() for a in arrays.values()))
    keys = list(zip(*(a.__dask_keys__() for a in arrays.values()), strict=True))
    if not on_workers(graph):  # which Dask's optimisation would forget
        graph = da.Array.__dask_optimize__(graph, list(itertools.chain(*keys)))  # of all, for they may share reads
    parts = cut(dict(graph), keys)
    dates = [name for name, a in arrays.items() if a.dtype.kind == "M"]
    # Computed one after the other, and mostly the first alone, which shows an instant of every column.
    reads = ({name: read_again(arrays[name].blocks[i].compute) for name in dates} for i in range(len(keys)))
    columns = dataclasses.replace(columns, origins=first_instants(dates, reads))
    rows = sum(arrays[columns.y].chunks[0])
    known = None if np.isnan(rows) else int(rows)
    info = Info(
        "Dask arrays",
        known,
        columns.names,
        tuple(raw),
        columns.origins,
        partition_rows=None if known is None else max(arrays[columns.y].chunks[0], default=0),
        row_bytes=columns.row_bytes({name: a.dtype for name, a in arrays.items()}),
        reader="Dask arrays",
    )
    token = tokenize(*(a.name for a in arrays.values()), columns)
    if parts is None:
        to_block = dask.delayed(_to_block, pure=True)
        pieces = zip(*(a.to_delayed().ravel() for a in arrays.values()), strict=True)
        return Source([to_block(list(piece), columns) for piece in pieces], token, info, shared=True)
    partitions = [GraphPartition(g, k, _raw, columns) for g, k in zip(parts, keys, strict=True)]
    return Source(partitions, token, info)


def align(raw: dict[str, Any]) -> dict[str, Any]:
    """Cut every array where the first Dask array is cut."""
    guide_name, guide = next((n, a) for n, a in raw.items() if isinstance(a, da.Array))
    for name, a in raw.items():
        if a.ndim != 1:
            raise DataError(f"The array has shape {a.shape}; one dimension is needed.", column=name)
    lengths = {name: a.shape[0] for name, a in raw.items()}
    # Dask gives chunks of unknown size the length NaN, which is equal to nothing, itself included.
    known = {n for n in lengths.values() if not np.isnan(n)}
    unknown = any(np.isnan(n) for n in lengths.values())
    if len(known) > 1:
        raise DataError(f"Columns must have the same length; they have {lengths}.")
    aligned = {}
    for name, a in raw.items():
        if isinstance(a, da.Array) and (a.chunks == guide.chunks or (unknown and a.numblocks == guide.numblocks)):
            aligned[name] = a
        elif unknown:
            raise DataError(
                f"Chunk sizes are not known, and {name!r} has {getattr(a, 'numblocks', 1)} chunks where "
                f"{guide_name!r} has {guide.numblocks}. Call compute_chunk_sizes() on both, or take the columns "
                "from one DataFrame.",
                column=name,
            )
        else:
            aligned[name] = da.asanyarray(a).rechunk(guide.chunks)
    return aligned


def _raw(values: Sequence[Any], names: tuple[str, ...]) -> Mapping[str, Any]:
    return dict(zip(names, values, strict=True))


def _to_block(values: Sequence[Any], columns: Columns) -> Block:
    return columns.block(_raw(values, columns.names))


def decoded(values: AnyArray | da.Array, decode: Decoder) -> AnyArray | da.Array:
    """Decode an array at once, or block by block where it is one of Dask."""
    if isinstance(values, da.Array):
        blocks: da.Array = da.map_blocks(decode, values, dtype=decode.dtype(values.dtype))
        return blocks
    return decode(values)


def is_array(data: object) -> TypeGuard[da.Array]:
    """Whether this is a Dask array."""
    return isinstance(data, da.Array)
