r"""Binned sums: what rows add up to in cells of a grid that need not be known beforehand.

The edges are multiples of :math:`2^k`, and k is the least that makes at most `most` cells of the range of the rows. A
cell of one k lies in one cell of any larger k, so that grids of different partitions are brought to one exactly: the
cells and their counts are those that all rows together would have, however they were partitioned.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_nlsq._typing import Vector

_LEAST = -1000
"""Least exponent of a width, so that its power of 2 and the inverse are numbers."""

_DIGITS = 44
"""Binary digits that a column is resolved to at most: an index of a cell has to be a whole number."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """The cells along one column: cell i holds ``(first + i) 2**k <= value < (first + i + 1) 2**k``."""

    lower: float  # the least value, and the greatest
    upper: float
    most: int

    @classmethod
    def of(cls, column: Vector, most: int) -> Axis:
        """Return the cells for the values of a column, one or more."""
        return cls(float(column.min()), float(column.max()), most)

    @functools.cached_property
    def k(self) -> int:
        """The exponent of the width."""
        largest = max(abs(self.lower), abs(self.upper))
        k = max(math.frexp(largest)[1] - _DIGITS, _LEAST)
        # Never finer than what a range of one value is resolved to, so that joining axes can only make them coarser.
        if (extent := self.upper - self.lower) > 0:
            k = max(k, math.frexp(extent)[1] - self.most.bit_length() - 1)
        while self._cell(self.upper, k) - self._cell(self.lower, k) >= self.most:
            k += 1
        return k

    @functools.cached_property
    def first(self) -> int:
        """The number of the first cell."""
        return self._cell(self.lower, self.k)

    @functools.cached_property
    def cells(self) -> int:
        """How many cells there are."""
        return self._cell(self.upper, self.k) - self.first + 1

    @property
    def edges(self) -> Vector:
        """Edges of the cells, (cells + 1,)."""
        edges: Vector = np.ldexp(np.arange(self.first, self.first + self.cells + 1, dtype=np.float64), self.k)
        return edges

    @property
    def middles(self) -> Vector:
        """Middles of the cells, (cells,)."""
        edges = self.edges
        middles: Vector = 0.5 * (edges[1:] + edges[:-1])
        return middles

    @property
    def grid(self) -> tuple[float, float]:
        """A value v lies in cell ``floor(a v) - b``: a and b."""
        return 2.0**-self.k, float(self.first)

    def joined(self, other: Axis) -> Axis:
        """Return the cells for the values of both."""
        if self == other:
            return self
        return dataclasses.replace(self, lower=min(self.lower, other.lower), upper=max(self.upper, other.upper))

    @staticmethod
    def _cell(value: float, k: int) -> int:
        return math.floor(math.ldexp(value, -k))


@dataclasses.dataclass(frozen=True, eq=False)
class FixedAxis:
    """Cells of one width between two limits; values beyond count to the first and the last."""

    edges: Vector  # (cells + 1,), equally far apart
    k: int = 0
    first: int = 0

    @property
    def lower(self) -> float:
        """The least value of a cell of its own."""
        return float(self.edges[0])

    @property
    def upper(self) -> float:
        """The greatest."""
        return float(self.edges[-1])

    @property
    def cells(self) -> int:
        """How many cells there are."""
        return len(self.edges) - 1

    @property
    def middles(self) -> Vector:
        """Middles of the cells, (cells,)."""
        middles: Vector = 0.5 * (self.edges[1:] + self.edges[:-1])
        return middles

    @property
    def grid(self) -> tuple[float, float]:
        """A value v lies in cell ``floor(a v - b)``, held within the cells: a and b."""
        a = self.cells / float(self.edges[-1] - self.edges[0])
        return a, a * float(self.edges[0])


AnyAxis = Axis | FixedAxis


@dataclasses.dataclass(frozen=True)
class Binned:
    """How many rows lie in each cell of a grid of two columns, and the total of one more by cells of the first."""

    axes: tuple[AnyAxis, ...]
    counts: npt.NDArray[np.int64]  # (cells of the first, of the second)
    total: Vector | None = None  # (cells of the first,)

    def merge(self, other: Binned) -> Binned:
        """Return the sums over the rows of both."""
        axes = tuple(
            a.joined(b) if isinstance(a, Axis) and isinstance(b, Axis) else a  # fixed ones are the same everywhere
            for a, b in zip(self.axes, other.axes, strict=True)
        )
        one, two = self.on(axes), other.on(axes)
        total = None if one.total is None or two.total is None else one.total + two.total
        return Binned(axes, one.counts + two.counts, total)

    def coarsened(self, most: int) -> Binned:
        """Return the same in fewer, wider cells along the first column, at most `most`."""
        first, *rest = self.axes
        return self if isinstance(first, FixedAxis) else self.on((dataclasses.replace(first, most=most), *rest))

    def on(self, axes: tuple[AnyAxis, ...]) -> Binned:
        """Return the same on axes that hold these."""
        counts, total = self.counts, self.total
        for place, (old, new) in enumerate(zip(self.axes, axes, strict=True)):
            if (old.k, old.first, old.cells) == (new.k, new.first, new.cells):
                continue
            index = ((np.arange(old.cells) + old.first) >> (new.k - old.k)) - new.first
            counts = _added(counts, place, index, new.cells)
            total = _added(total, place, index, new.cells) if total is not None and place == 0 else total
        return Binned(axes, counts, total)


def _added(cells: npt.NDArray[Any], place: int, index: npt.NDArray[np.int64], count: int) -> npt.NDArray[Any]:
    """Add cells up along one axis to those that hold them."""
    wide = np.zeros((*cells.shape[:place], count, *cells.shape[place + 1 :]), cells.dtype)
    np.add.at(np.moveaxis(wide, place, 0), index, np.moveaxis(cells, place, 0))
    return wide
