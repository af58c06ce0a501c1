"""Driver of a sweep: run, check, fold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dask_nlsq._errors import CheckpointMismatch, DataError, Interrupted
from dask_nlsq._kernel import Reduction, Request
from dask_nlsq._sweep.executors.local import Executor
from dask_nlsq._sweep.failure import Failure
from dask_nlsq._sweep.payload import Payload
from dask_nlsq._sweep.task import Answer, Digests, reduce_group
from dask_nlsq._sweep.tree import Partial
from dask_nlsq._system import check_not_forked

_UNSEEN = np.uint64(2**64 - 1)
"""Stands for the rows of a partition that no sweep has reached yet."""


class PartitionDigests:
    """Remembers what each partition held in the first sweep, so that data that change are noticed.

    One that goes on from a checkpoint remembers what they held before that.
    """

    def __init__(self, digests: Digests | None = None) -> None:
        self._resumed = digests is not None
        self._seen: Digests = np.empty((0, 0), np.uint64) if digests is None else digests

    @property
    def digests(self) -> Digests:
        """What was seen, (partitions, 2 + columns)."""
        return self._seen

    @property
    def rows(self) -> dict[int, int]:
        """Rows of each partition that was seen."""
        rows = self._seen[:, 0] if self._seen.size else np.empty(0, np.uint64)
        return {i: int(rows[i]) for i in np.flatnonzero(rows != _UNSEEN).tolist()}

    def check(self, numbers: Sequence[int], digests: Digests) -> None:
        """Refuse partitions of these numbers whose rows are not those of the first sweep."""
        end = max(numbers) + 1
        if end > len(self._seen):
            more = np.full((end - len(self._seen), digests.shape[1]), _UNSEEN)
            self._seen = np.concatenate([self._seen.reshape(-1, digests.shape[1]), more])
        places = np.asarray(numbers)
        before = self._seen[places]
        # Nearly always, after the first sweep.
        if before.tobytes() == digests.tobytes():
            return
        new = before[:, 0] == _UNSEEN
        self._seen[places[new]] = before[new] = digests[new]
        for i in np.flatnonzero((before != digests).any(axis=1)).tolist():
            rows, now = int(before[i, 0]), int(digests[i, 0])
            other = f"{now} rows" if now != rows else "other values"
            if self._resumed:
                raise CheckpointMismatch(
                    f"The partition gave {rows} rows when the checkpoint was written and {other} now: it is of other "
                    "data. resume=False starts anew.",
                    partition=int(places[i]),
                )
            raise DataError(
                f"The partition gave {rows} rows in the first sweep and {other} now. A fit reads its data "
                "several times, so they must stay as they are: write them down first, or seed what is random, or hold "
                'them in memory with cache="persist".',
                partition=int(places[i]),
            )


def sweep_each(
    executor: Executor,
    groups: Sequence[Any],
    payload: Payload,
    requests: Sequence[Request],
    digests: PartitionDigests | None = None,
    on_answer: Callable[[Answer], None] = lambda _: None,
    partial: Partial | None = None,
) -> list[Reduction]:
    """Reduce every partition for each request, in one pass over the data.

    ``fold(reduce_partition(p, payload, request) for p in partitions)`` is what each answer is, to the bit,
    however the partitions are grouped and whatever executes them. What is in `partial` already is not swept again.
    """
    check_not_forked()
    digests = digests or PartitionDigests()
    partial = partial or Partial(sum(len(g.partitions) for g in groups), len(requests))
    left = [g for g in groups if not partial.covers(g.indices)] if partial.done.any() else groups
    answers = executor.run(reduce_group, left, payload, tuple(requests)) if left else iter(())
    try:
        for _, answer in answers:
            if isinstance(answer, Failure):
                raise answer.error(requests[0].theta)
            digests.check(answer.numbers, answer.digests)
            partial.add(answer)
            on_answer(answer)
    except (KeyboardInterrupt, Interrupted) as error:
        if hasattr(answers, "throw"):
            answers.throw(error)  # or it would wait for the tasks that have begun
        raise
    return partial.roots()
