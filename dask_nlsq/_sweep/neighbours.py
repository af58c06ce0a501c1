"""Neighbours: the last row of each group in each partition, and products of the residuals of neighbouring rows."""

from __future__ import annotations

import dataclasses

import numpy as np

from dask_nlsq._kernel import Block
from dask_nlsq._sources import Grouping, LastRows
from dask_nlsq._sweep.failure import Failure
from dask_nlsq._sweep.groups import Group, of_each_block
from dask_nlsq._sweep.payload import Payload
from dask_nlsq._sweep.task import predict_rows
from dask_nlsq._typing import Vector


@dataclasses.dataclass(frozen=True)
class NeighbourProducts:
    """Sums over rows of products of weighted residuals z."""

    rows: int = 0
    pairs: int = 0
    first: float = 0.0  # z² of rows without a preceding one
    later: float = 0.0  # z² of the later row of each pair
    earlier: float = 0.0  # z² of the earlier row
    cross: float = 0.0  # the product of both

    def __add__(self, other: NeighbourProducts) -> NeighbourProducts:
        mine, others = dataclasses.astuple(self), dataclasses.astuple(other)
        return NeighbourProducts(*(a + b for a, b in zip(mine, others, strict=True)))

    def deviance(self, rho: float) -> tuple[float, float, float, float]:
        """Return z' R⁻¹ z and the logarithm of the determinant of R, and the derivatives of both by rho."""
        rest = 1 - rho**2
        squares = (self.later - 2 * rho * self.cross + rho**2 * self.earlier) / rest
        slope = (2 * rho * (squares + self.earlier) - 2 * self.cross) / rest
        return self.first + squares, self.pairs * float(np.log(rest)), slope, -2 * rho * self.pairs / rest


def last_rows(group: Group, grouping: Grouping) -> list[LastRows] | Failure:
    """Return the last row of each group of rows in each of some partitions."""
    return of_each_block(group, lambda block: LastRows.of(block, grouping), "grouping the rows")


def neighbour_products(
    group: Group, payload: Payload, theta: Vector, grouping: Grouping
) -> list[NeighbourProducts] | Failure:
    """Sum over each of some partitions, whose rows come with the preceding ones, at all parameters `theta`."""
    n = grouping.inputs

    def of_block(block: Block) -> NeighbourProducts:
        *x, y, weight, linked = block.x[-n - 3 :]
        z = (predict_rows(payload, theta, block.x[:n]) - block.y) * block.weights
        preceding = (predict_rows(payload, theta, tuple(x)) - y) * weight
        pair = linked > 0
        first, later, earlier = z[~pair], z[pair], preceding[pair]
        squares = _dot(first, first), _dot(later, later), _dot(earlier, earlier)
        return NeighbourProducts(block.rows, int(pair.sum()), *squares, _dot(later, earlier))

    return of_each_block(group, of_block)


def _dot(a: Vector, b: Vector) -> float:
    """Return the sum of products, without the threads of BLAS, whose number may decide about the last bits."""
    return float(np.einsum("i,i", a, b))
