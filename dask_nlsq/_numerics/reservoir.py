"""Reservoir: an even sample of rows that come in batches, of which nobody knows how many will come.

Every row gets a random key from a seed and the number of its batch, and those with the smallest keys stay: each row
that has come is then as likely to be there as any other (Vitter, doi:10.1145/3147.3165).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dask_nlsq._numerics.block import Block


class Reservoir:
    """A sample of at most `size` of the rows that have come: those with the smallest of seeded random keys.

    It is even over all rows, or where what is old is to be forgotten, of the newest.
    """

    def __init__(self, size: int, newest: bool = False) -> None:
        self._size, self._newest = size, newest
        self._rows = np.empty((0, 0))  # (rows, 1 + columns), the key first
        self._count = 0  # columns of x
        self._weighted = False

    def add(self, block: Block, number: int) -> None:
        """Offer the rows of a batch."""
        wide = block.wide()
        self._count, self._weighted = len(block.x), block.weight is not None
        key = np.random.default_rng([0, number]).random(block.rows) - (number if self._newest else 0)
        new = np.column_stack([key, *wide.columns])
        both = new if not len(self._rows) else np.concatenate([self._rows, new])
        if len(both) > self._size:
            both = both[np.sort(np.argpartition(both[:, 0], self._size)[: self._size])]
        self._rows = both

    def block(self) -> Block:
        """Return the sample."""
        _, *columns = np.ascontiguousarray(self._rows.T)
        weight = columns[-1] if self._weighted else None
        return Block(tuple(columns[: self._count]), columns[self._count], weight)

    def arrays(self) -> dict[str, Any]:
        """Return what `take` takes."""
        return {"sample": self._rows, "sample columns": np.array([self._count, self._weighted])}

    def take(self, arrays: Mapping[str, Any]) -> None:
        """Go on from what `arrays` gave."""
        self._rows = arrays["sample"]
        self._count, self._weighted = int(arrays["sample columns"][0]), bool(arrays["sample columns"][1])
