"""Tree: what of a sweep is finished, nodes of its tree and leaves that wait for their neighbours.

A sweep that is interrupted goes on from here. The shape of the tree is that of `fold`, so the root has the same bits in
whatever order its leaves came, and however often the sweep was interrupted.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_nlsq._errors import CheckpointCorrupt
from dask_nlsq._kernel import FAN_IN, Reduction
from dask_nlsq._kernel import merge as merge_reductions
from dask_nlsq._sweep.group_scores import ScoreAnswer
from dask_nlsq._sweep.task import Answer


@dataclasses.dataclass(frozen=True)
class Finished:
    """What is finished, in a form that can be written down: node `indices[i]` of level `levels[i]` of a request."""

    done: npt.NDArray[np.bool_]  # (partitions,)
    requests: npt.NDArray[np.int64]  # (nodes,)
    levels: npt.NDArray[np.int64]
    indices: npt.NDArray[np.int64]
    nodes: tuple[Reduction, ...]


class Partial:
    """The nodes of the tree that are known, for each request of a sweep; what they are, `merge` adds."""

    def __init__(
        self, partitions: int, requests: int = 1, merge: Callable[[Sequence[Any]], Any] = merge_reductions
    ) -> None:
        self._merge = merge
        self.done = np.zeros(partitions, bool)
        self._counts = [partitions]  # nodes of each level
        while self._counts[-1] > 1:
            self._counts.append(-(-self._counts[-1] // FAN_IN))
        self._nodes: list[dict[tuple[int, int], Any]] = [{} for _ in range(requests)]

    @classmethod
    def of(cls, finished: Finished) -> Partial:
        """Return what `finished` had written down, were it in the middle of a fold; what is finished its nodes say."""
        partitions = len(finished.done)
        partial = cls(partitions, int(finished.requests.max(initial=0)) + 1)
        keys = zip(finished.requests.tolist(), finished.levels.tolist(), finished.indices.tolist(), strict=True)
        done = np.zeros((len(partial._nodes), partitions), bool)
        pairs = sorted(zip(keys, finished.nodes, strict=True), key=lambda pair: -pair[0][1])
        for (request, level, index), node in pairs:  # from the root down: what a node covers is not needed below it
            below = slice(index * FAN_IN**level, (index + 1) * FAN_IN**level)
            if not 0 <= level < len(partial._counts) or not 0 <= index < partial._counts[level]:
                raise CheckpointCorrupt(
                    f"The checkpoint has a node {index} of level {level} of {partitions} partitions."
                )
            if not done[request, below].any():
                partial._nodes[request][level, index] = node
                done[request, below] = True
        for nodes in partial._nodes:
            for level, index in sorted(nodes):
                if (level, index) in nodes:
                    partial._rise(nodes, level, index)
        partial.done = np.logical_and.reduce(list(done))
        return partial

    def covers(self, numbers: Sequence[int]) -> bool:
        """Whether all of these partitions are finished."""
        return bool(self.done[list(numbers)].all())

    def add(self, answer: Answer | ScoreAnswer) -> None:
        """Take what came of a group, but for what is known already."""
        for j, (level, index) in enumerate(answer.nodes):
            first, end = index * FAN_IN**level, (index + 1) * FAN_IN**level
            if self.done[first:end].all():
                continue
            for nodes, parts in zip(self._nodes, answer.parts, strict=True):
                for number in range(first, end) if level else ():  # leaves that came alone before
                    nodes.pop((0, number), None)
                nodes[level, index] = parts[j]
                self._rise(nodes, level, index)
            # Only now, for the nodes of every request belong to it.
            self.done[first:end] = True

    def _rise(self, nodes: dict[tuple[int, int], Any], level: int, index: int) -> None:
        """Fold neighbours as far up as they are complete."""
        while level + 1 < len(self._counts):
            parent = index // FAN_IN
            below = range(parent * FAN_IN, min((parent + 1) * FAN_IN, self._counts[level]))
            if not all((level, i) in nodes for i in below):
                return
            nodes[level + 1, parent] = self._merge([nodes[level, i] for i in below])
            for i in below:
                del nodes[level, i]
            level, index = level + 1, parent

    def roots(self) -> list[Any]:
        """Return the sums of all partitions for each request, once all are finished."""
        return [nodes[len(self._counts) - 1, 0] for nodes in self._nodes]

    def finished(self) -> Finished:
        """Return what is known, to be written down."""
        rows = [(r, *key, node) for r, nodes in enumerate(self._nodes) for key, node in sorted(nodes.items())]
        places = np.array([row[:3] for row in rows], np.int64).reshape(-1, 3)
        requests, levels, indices = (places[:, i].copy() for i in range(3))
        return Finished(self.done.copy(), requests, levels, indices, tuple(row[3] for row in rows))
