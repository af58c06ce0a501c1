"""Neighbours: the last row of each group in each partition, and what residuals of neighbouring rows have in common."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dask_nlsq._sources import Grouping, LastRows
from dask_nlsq._sweep.failure import Failure
from dask_nlsq._sweep.groups import Group
from dask_nlsq._sweep.payload import Payload
from dask_nlsq._sweep.task import predict_rows
from dask_nlsq._typing import Vector


class NeighbourProducts(NamedTuple):
    """Sums over rows of products of weighted residuals z."""

    rows: int = 0
    pairs: int = 0
    alone: float = 0.0  # z² of rows without one before
    later: float = 0.0  # z² of the later row of each pair
    earlier: float = 0.0  # and of the earlier
    both: float = 0.0  # the product of the two

    def __add__(self, other: NeighbourProducts) -> NeighbourProducts:  # type: ignore[override]
        rows, pairs = self.rows + other.rows, self.pairs + other.pairs
        return NeighbourProducts(rows, pairs, *(a + b for a, b in zip(self[2:], other[2:], strict=True)))

    def deviance(self, rho: float) -> tuple[float, float, float, float]:
        """Return z' R⁻¹ z and the logarithm of the determinant of R, and the derivatives of both by rho."""
        rest = 1 - rho**2
        squares = (self.later - 2 * rho * self.both + rho**2 * self.earlier) / rest
        slope = (2 * rho * (squares + self.earlier) - 2 * self.both) / rest
        return self.alone + squares, self.pairs * float(np.log(rest)), slope, -2 * rho * self.pairs / rest


def last_rows(group: Group, grouping: Grouping) -> dict[int, LastRows] | Failure:
    """Return the last row of each group in each of some partitions, by the number of the partition."""
    found = {}
    for number, block in group.blocks():
        if isinstance(block, Failure):
            return block.at(number)
        found[number] = LastRows.of(block, grouping)
        del block  # before the next is read
    return found


def neighbour_products(
    group: Group, payload: Payload, theta: Vector, grouping: Grouping
) -> list[NeighbourProducts] | Failure:
    """Sum over each of some partitions, whose rows bring those before them, at all parameters `theta`."""
    parts, n = list[NeighbourProducts](), grouping.inputs
    for number, block in group.blocks():
        if isinstance(block, Failure):
            return block.at(number)
        if not block.rows:
            continue
        *x, y, weight, linked = block.x[-n - 3 :]
        try:
            z = (predict_rows(payload, theta, block.x[:n]) - block.y) * block.weights
            before = (predict_rows(payload, theta, tuple(x)) - y) * weight
        except Exception as error:
            return Failure.of("evaluating the model", error).at(number)
        pair = linked > 0
        alone, later, earlier = z[~pair], z[pair], before[pair]
        squares = _dot(alone, alone), _dot(later, later), _dot(earlier, earlier)
        parts.append(NeighbourProducts(block.rows, int(pair.sum()), *squares, _dot(later, earlier)))
        del block  # before the next is read
    return parts


def _dot(a: Vector, b: Vector) -> float:
    """Return the sum of products, without the threads of BLAS, whose number may decide about the last bits."""
    return float(np.einsum("i,i", a, b))
