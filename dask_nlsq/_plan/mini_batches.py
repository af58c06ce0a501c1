"""Mini-batches: which partitions make up each batch of a streaming pass, a pure function of their number and a seed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

WINDOW = 16
"""Batches under way; more would be evaluated at older estimates."""

BATCHES = 512
"""Batches of a pass, where there are partitions enough: so many that a precision is noticed early."""


def schedule(partitions: int, seed: int) -> Iterator[tuple[int, ...]]:
    """Yield the partitions of each batch, in the order of the pass."""
    order = np.random.default_rng(seed).permutation(partitions)
    for part in np.array_split(order, min(partitions, BATCHES)):
        yield tuple(int(i) for i in np.sort(part))
