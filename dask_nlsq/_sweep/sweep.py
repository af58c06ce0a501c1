"""The sweep itself: run, check, fold."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from dask_nlsq._errors import DataError
from dask_nlsq._numerics.reduction import Reduction, fold
from dask_nlsq._numerics.request import Request
from dask_nlsq._sweep.executors import Executor
from dask_nlsq._sweep.failure import Failure
from dask_nlsq._sweep.shipped import Shipped
from dask_nlsq._sweep.task import Answer, Mark, reduce_group


@dataclasses.dataclass
class Ledger:
    """Remembers what each partition held in the first sweep, so that data that change are noticed."""

    seen: dict[int, Mark] = dataclasses.field(default_factory=dict)

    def check(self, index: int, now: Mark) -> None:
        """Refuse a partition whose rows are not those of the first sweep."""
        before = self.seen.setdefault(index, now)
        if before != now:
            other = f"{now.rows} rows" if now.rows != before.rows else "other values"
            raise DataError(
                f"The partition gave {before.rows} rows in the first sweep and {other} now. A fit reads its data "
                "several times, so they must stay as they are: write them down first, or seed what is random, or hold "
                'them in memory with cache="persist".',
                partition=index,
            )


def sweep_each(
    executor: Executor,
    groups: Sequence[Any],
    shipped: Shipped,
    requests: Sequence[Request],
    ledger: Ledger | None = None,
    on_answer: Callable[[Answer], None] = lambda _: None,
) -> list[Reduction]:
    """Reduce every partition for each request, in one pass over the data.

    ``fold(reduce_partition(p, shipped, request) for p in partitions)`` is what each answer is, to the bit,
    however the partitions are grouped and whatever executes them.
    """
    ledger = ledger or Ledger()
    answers: list[Any] = [None] * len(groups)
    for i, answer in executor.run(reduce_group, groups, shipped, tuple(requests)):
        if isinstance(answer, Failure):
            raise answer.error(requests[0].theta)
        for index, mark in enumerate(answer.marks, answer.start):
            ledger.check(index, mark)
        answers[i] = answer
        on_answer(answer)
    return [fold(itertools.chain.from_iterable(a.parts[k] for a in answers)) for k in range(len(requests))]


def sweep(executor: Executor, groups: Sequence[Any], shipped: Shipped, request: Request, **options: Any) -> Reduction:
    """Reduce every partition for one request."""
    return sweep_each(executor, groups, shipped, [request], **options)[0]
