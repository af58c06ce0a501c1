"""Dask DataFrames: the partition list is frozen once, with only the columns that the fit reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import dask
import dask.dataframe as dd
import pandas as pd

from dask_nlsq._errors import DataError
from dask_nlsq._kernel import Block
from dask_nlsq._sources.columns import Columns, check_columns, first_instants
from dask_nlsq._sources.frame_files import FilePartition, file_partitions
from dask_nlsq._sources.graph import GraphPartition, cut
from dask_nlsq._sources.source import Info, Source
from dask_nlsq._system import read_again

KIND = "Dask DataFrame"


def open_frame(frame: dd.DataFrame, columns: Columns, present: tuple[str, ...] = ()) -> Source:
    """Take a Dask DataFrame; ``"index"`` names its index where no column does."""
    if "index" in columns.names and "index" not in frame.columns:
        frame = frame.rename_axis(index="index").reset_index()
    present = present or tuple(frame.columns)
    check_columns(present, columns.names)
    # One partition may otherwise be fused with its neighbours at run time, and the list would not be what it says.
    with dask.config.set({"optimization.tune.active": False}):
        files, frame = file_partitions(frame, columns, _raw), frame[list(columns.names)].optimize()
    if files is not None:
        return _of_files(files, str(frame._name), columns, present)
    graph, keys = dict(frame.__dask_graph__()), [(key,) for key in frame.__dask_keys__()]
    parts = cut(graph, keys)
    dates = [name for name in columns.names if frame.dtypes[name].kind == "M"]
    reads = (read_again(frame.partitions[i].compute) for i in range(frame.npartitions))
    columns = dataclasses.replace(columns, origins=first_instants(dates, reads))
    width = columns.row_bytes(dict(frame.dtypes))
    info = Info(KIND, None, columns.names, present, columns.origins, row_bytes=width, reader=KIND)
    if parts is None:
        to_block = dask.delayed(_to_block, pure=True)
        return Source([to_block(part, columns) for part in frame.to_delayed()], frame._name, info, shared=True)
    # The name of an optimised frame is Dask's own hash of what it computes, and serves as the token of the source.
    partitions = [GraphPartition(g, k, _raw, columns) for g, k in zip(parts, keys, strict=True)]
    return Source(partitions, str(frame._name), info)


def _of_files(partitions: Sequence[FilePartition], token: str, columns: Columns, present: tuple[str, ...]) -> Source:
    """Take partitions that are files, as many and in the order of the frame, under its token and kind.

    A checkpoint of the one way of reading goes on the other way, and both reduce the same rows in each partition.
    """
    types = partitions[0].types
    dates = [name for name in columns.names if types[name].kind == "M"]
    columns = dataclasses.replace(columns, origins=first_instants(dates, (read_again(p.read) for p in partitions)))
    partitions = [dataclasses.replace(p, columns=columns) for p in partitions]
    width = columns.row_bytes(types)
    info = Info(KIND, None, columns.names, present, columns.origins, row_bytes=width, reader=KIND)
    return Source(partitions, token, info)


def open_series(raw: Mapping[str, Any], columns: Columns) -> Source:
    """Take Series of equally many partitions, which lie beside one another row by row, whatever their indices."""
    # One frame, so that a reader is called once for all its columns, and for no others.
    frame = dd.map_partitions(
        _beside,
        *raw.values(),
        names=tuple(raw),
        meta=_beside(*(series._meta for series in raw.values()), names=tuple(raw)),
        # Dask would otherwise align by the index, for which it needs to know divisions.
        align_dataframes=False,
        enforce_metadata=False,
    )
    return open_frame(frame, columns)


def _beside(*series: Any, names: tuple[str, ...]) -> pd.DataFrame:
    lengths = {name: len(column) for name, column in zip(names, series, strict=True)}
    if len(set(lengths.values())) > 1:
        raise DataError(f"The Series have unlike lengths in one partition: {lengths}. Take them from one DataFrame.")
    # Without their indices, by which pandas would align them.
    return pd.DataFrame({name: column.array for name, column in zip(names, series, strict=True)}, copy=False)


def _raw(values: Sequence[Any], names: tuple[str, ...]) -> Mapping[str, Any]:
    (frame,) = values
    # A partition need not have the columns that the collection claims: Dask does not compare them.
    check_columns(tuple(frame.columns), names)
    return {name: frame[name] for name in names}


def _to_block(frame: pd.DataFrame, columns: Columns) -> Block:
    return columns.block({name: frame[name] for name in columns.names})


def is_frame(data: object) -> TypeGuard[dd.DataFrame]:
    """Whether this is a Dask DataFrame."""
    return isinstance(data, dd.DataFrame)


def is_series(data: object) -> TypeGuard[dd.Series]:
    """Whether this is a Dask Series, or an Index."""
    return isinstance(data, dd.Series)
