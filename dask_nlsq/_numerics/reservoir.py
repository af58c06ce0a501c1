"""Reservoir: an even sample of rows that come in batches, of which nobody knows how many will come.

Every row gets a random key from a seed and the number of its batch, and those with the smallest keys stay: each row
that has come is then as likely to be there as any other (Vitter, doi:10.1145/3147.3165).
"""

from __future__ import annotations

import dataclasses

import numpy as np

from dask_nlsq._numerics.block import Block
from dask_nlsq._typing import Matrix


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The rows of a sample, each behind its key: x, y, and the weight where there is one."""

    rows: Matrix  # (rows, 1 + columns)
    columns: int = 0  # of x
    weighted: bool = False

    def block(self) -> Block:
        """Return the sample without its keys."""
        _, *columns = np.ascontiguousarray(self.rows.T)
        weight = columns[-1] if self.weighted else None
        return Block(tuple(columns[: self.columns]), columns[self.columns], weight)


class Reservoir:
    """A sample of at most `size` of the rows that have come: those with the smallest of seeded random keys.

    It is even over all rows, or where what is old is to be forgotten, of the newest.
    """

    def __init__(self, size: int, newest: bool = False) -> None:
        self._size, self._newest = size, newest
        self.drawn = Drawn(np.empty((0, 0)))

    def add(self, block: Block, number: int) -> None:
        """Offer the rows of a batch."""
        key = np.random.default_rng([0, number]).random(block.rows) - (number if self._newest else 0)
        rows = np.column_stack([key, *block.wide().columns])
        if len(self.drawn.rows):
            rows = np.concatenate([self.drawn.rows, rows])
        if len(rows) > self._size:
            rows = rows[np.sort(np.argpartition(rows[:, 0], self._size)[: self._size])]
        self.drawn = Drawn(rows, len(block.x), block.weight is not None)
