"""Reservoir: a sample of rows that come in batches, of which nobody knows how many will come.

Every row gets a random key from a seed and its place, and those with the smallest keys stay: each row that has come is
then as likely to be there as any other (Vitter, doi:10.1145/3147.3165).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from dask_nlsq._kernel import Block
from dask_nlsq._typing import Matrix, Vector


@dataclasses.dataclass(frozen=True)
class Drawn:
    """The rows of a sample, each behind its key: x, y, and the weight where there is one."""

    rows: Matrix  # (rows, 1 + columns)
    columns: int = 0  # of x
    weighted: bool = False
    place: Vector | None = None  # (rows,), rows of the stream up to the end of the batch that brought each
    theta: Matrix | None = None  # (rows, p), where that batch was linearised

    def block(self) -> Block:
        """Return the sample without its keys."""
        _, *columns = np.ascontiguousarray(self.rows.T)
        weight = columns[-1] if self.weighted else None
        return Block(tuple(columns[: self.columns]), columns[self.columns], weight)

    @property
    def places(self) -> Vector:
        """The same as `place`; none where there are no rows."""
        return np.empty(0) if self.place is None else self.place

    @property
    def thetas(self) -> Matrix:
        """The same as `theta`; none where there are no rows."""
        return np.empty((0, 0)) if self.theta is None else self.theta

    def take(self, rows: npt.NDArray[np.int64]) -> Drawn:
        """Return some of the rows, by their positions."""
        return dataclasses.replace(self, rows=self.rows[rows], place=self.places[rows], theta=self.thetas[rows])

    def join(self, other: Drawn) -> Drawn:
        """Return the rows of both."""
        if not len(self.rows):
            return other
        pairs = [(self.rows, other.rows), (self.places, other.places), (self.thetas, other.thetas)]
        rows, place, theta = (np.concatenate(pair) for pair in pairs)
        return dataclasses.replace(self, rows=rows, place=place, theta=theta)


class Reservoir:
    """A sample of at most `size` of the rows that have come: those with the smallest of seeded random keys.

    It is even over all rows, or where what is old is to be forgotten, of the newest.
    """

    def __init__(self, size: int, newest: bool = False) -> None:
        self._size, self._newest = size, newest
        self.drawn = Drawn(np.empty((0, 0)))

    def add(self, block: Block, place: int, theta: Vector) -> None:
        """Offer the rows of a batch, which was linearised at `theta` (p,) and ends after `place` rows of the stream."""
        # Less than all keys of before, where the newest rows are to stay.
        key = np.random.default_rng([0, place]).random(block.rows) - (place if self._newest else 0)
        rows = np.column_stack([key, *block.wide().columns])
        places, thetas = np.full(block.rows, float(place)), np.tile(theta, (block.rows, 1))
        self._keep(self.drawn.join(Drawn(rows, len(block.x), block.weight is not None, places, thetas)))

    def merge(self, other: Drawn, of: int, after: int) -> None:
        """Take in the sample of another stream of `of` rows, which is to come after so many rows.

        Its keys are drawn anew, as the smallest of so many, since both streams have used the same seed.
        """
        rows = other.rows.copy()
        if not self._newest:
            # The smallest of n uniform numbers are partial sums of exponential gaps over the sum of all n + 1 gaps
            # (Rényi). The last n + 1 - m of them together are a gamma variate.
            gaps = np.random.default_rng([1, of, after]).exponential(size=len(rows))
            rest = np.random.default_rng([2, of, after]).gamma(of + 1 - len(rows))
            rows[np.argsort(rows[:, 0]), 0] = np.cumsum(gaps) / (gaps.sum() + rest)
        self._keep(self.drawn.join(dataclasses.replace(other, rows=rows, place=other.places + after)))

    def _keep(self, drawn: Drawn) -> None:
        if len(drawn.rows) > self._size:
            # In the order in which they came: argpartition promises none, and the bits depend on it.
            drawn = drawn.take(np.sort(np.argpartition(drawn.rows[:, 0], self._size)[: self._size]))
        self.drawn = drawn
