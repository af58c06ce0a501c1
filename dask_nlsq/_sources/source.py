"""Source: an ordered list of partitions, each of which can be sent to a worker and loaded there."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from dask_nlsq._kernel import Block


class Partition(Protocol):
    """A picklable reader of some rows; `load` may be called any number of times and gives the same rows."""

    def load(self) -> Block:
        """Read the rows."""


@dataclasses.dataclass(frozen=True)
class Info:
    """What is known of the data without reading it."""

    kind: str  # for people to read
    rows: int | None  # None: not known before a sweep
    columns: tuple[str, ...]  # that are read
    present: tuple[str, ...] = ()  # that there are
    origins: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # of datetime columns
    absent: Mapping[str, str] = dataclasses.field(default_factory=dict)  # columns of which Zarr lacks chunks, in words
    notes: tuple[str, ...] = ()  # what else there is to say of the data
    identity: str | None = None  # of a version of a table, whatever lies beside it
    # What memory it takes.
    partition_rows: int | None = None  # of the largest partition
    encoded: int | None = None  # bytes stored, of the columns that are read
    encoded_partition: int | None = None  # that are in memory as stored while a partition is read, at most
    row_bytes: int = 8  # of a row in a block
    reader: str | None = None  # what a plan knows of its memory; None for rows that are in memory


@dataclasses.dataclass(frozen=True)
class Source:
    """Partitions in their order, the identity of the data, and what is known of it.

    Where `shared` is true the partitions are Dask ``Delayed`` objects that depend on common work (a shuffle),
    and must be computed together once.
    """

    partitions: Sequence[Any]  # of `Partition`, and of `Block`, which is one, where the rows are in memory
    token: str
    info: Info
    shared: bool = False
