"""Partitions of a Dask collection: each carries the part of the graph that makes it.

A partition that depends on nothing that others need travels as a small graph of its own and is run inside the
task that reduces it: reading and reducing are one task, and a lost one is simply run again. Where partitions
share work, as after a shuffle, or lie on workers already, after ``persist``, they are computed together once and held.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import dask
import distributed
from dask.optimization import cull

from dask_nlsq._kernel import Block
from dask_nlsq._sources.columns import Columns

Raw = Callable[[Sequence[Any], tuple[str, ...]], Mapping[str, Any]]
"""Turns the values of a partition's keys into raw arrays by column name."""


@dataclasses.dataclass(frozen=True)
class GraphPartition:
    """A partition as the graph that makes it; `load` runs the graph in this thread."""

    graph: Mapping[Hashable, Any]
    keys: tuple[Any, ...]
    raw: Raw
    columns: Columns

    def load(self) -> Block:
        """Run the graph and convert what comes out."""
        return self.columns.block(self.read())

    def read(self) -> Mapping[str, Any]:
        """Run the graph."""
        return self.raw(dask.get(self.graph, list(self.keys)), self.columns.names)


def on_workers(graph: Mapping[Hashable, Any]) -> bool:
    """Whether some of a graph lies on workers, as after ``persist``, and cannot be made anew elsewhere."""
    return any(isinstance(task, distributed.Future) for task in graph.values())


def cut(graph: Mapping[Hashable, Any], keys: Sequence[tuple[Hashable, ...]]) -> list[dict[Hashable, Any]] | None:
    """Cut a graph into one for each tuple of keys, or return None where they share work or lie on workers."""
    if on_workers(graph):
        return None
    parts, size = [], 0
    for names in keys:
        part, _ = cull(graph, list(names))
        parts.append(dict(part))
        size += len(part)
        if size > len(graph) + len(keys):
            return None
    return parts
