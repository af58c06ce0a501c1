"""The sweep itself: run, check, fold."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dask_nlsq._errors import DataError
from dask_nlsq._numerics.reduction import Reduction, fold
from dask_nlsq._numerics.request import Request
from dask_nlsq._sweep.executors import Executor
from dask_nlsq._sweep.shipped import Shipped
from dask_nlsq._sweep.task import Failure, reduce_partition


@dataclasses.dataclass
class Ledger:
    """Remembers what each partition held in the first sweep, so that data that change are noticed."""

    seen: dict[int, tuple[int, bytes]] = dataclasses.field(default_factory=dict)

    def check(self, index: int, reduction: Reduction) -> None:
        """Refuse a partition whose rows are not those of the first sweep."""
        now = (reduction.rows, np.asarray(reduction.checksum).tobytes())
        before = self.seen.setdefault(index, now)
        if before != now:
            other = f"{now[0]} rows" if now[0] != before[0] else "other values"
            raise DataError(
                f"The partition gave {before[0]} rows in the first sweep and {other} now. A fit reads its data several "
                "times, so they must stay as they are: write them down first, or seed what is random, or hold them "
                'in memory with cache="persist".',
                partition=index,
            )


def sweep(
    executor: Executor,
    partitions: Sequence[Any],
    shipped: Shipped,
    request: Request,
    ledger: Ledger | None = None,
    on_partition: Callable[[Reduction], None] = lambda _: None,
) -> Reduction:
    """Reduce every partition at `request` and fold the results in the order of the partitions.

    ``fold(reduce_partition(p, shipped, request) for p in partitions)`` is what this computes, to the bit,
    whatever executes it.
    """
    leaves: list[Any] = [None] * len(partitions)
    for i, leaf in executor.run(reduce_partition, partitions, shipped, request):
        if isinstance(leaf, Failure):
            raise leaf.error(i, request.theta)
        if ledger is not None:
            ledger.check(i, leaf)
        leaves[i] = leaf
        on_partition(leaf)
    return fold(leaves)
