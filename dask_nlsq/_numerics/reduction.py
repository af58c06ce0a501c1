r"""Reduction: all that a sweep returns, a monoid under `combine`.

Rows i have weight :math:`w_i = 1/\sigma_i`, residual :math:`r_i = f(x_i; \theta) - y_i` and Jacobian row
:math:`J_i`. With a p×p preconditioner S, one pass accumulates

.. math:: \begin{pmatrix} G & g \\ g^T & q \end{pmatrix} = \sum_i w_i^2
          \begin{pmatrix} S^T J_i^T \\ r_i \end{pmatrix} \begin{pmatrix} J_i S & r_i \end{pmatrix}

beside the weighted mean and spread of y, which the statistics of the fit need, and a checksum of the rows.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from dask_nlsq._typing import Matrix, Vector

FAN_IN = 32
"""How many neighbours a node of the tree combines."""


@dataclasses.dataclass(frozen=True)
class Reduction:
    """Sums over rows at one parameter vector."""

    rows: int
    dropped: int
    cost: float  # ½ Σ w² r², or ½ C² Σ ρ under a robust loss
    gram: Matrix  # (p + 1, p + 1), whitened by the request's S; each row of it weighted by ρ'
    # Weighted moments of y, merged by Chan's formulas so that a large offset costs no digits.
    weight: float  # Σ w²
    mean: float  # Σ w² y / Σ w²
    spread: float  # Σ w² (y − mean)²
    log_weight: float  # Σ log w
    # What the rows were: sums that turn NaN when a cell is, as those of y do, and a hash of the bit patterns.
    sums: Vector  # of x, (columns,)
    checksum: npt.NDArray[np.uint64]  # of x, y and the weight
    rounded: frozenset[str] = frozenset()  # columns of integers beyond 2**53, which float64 rounds
    # Sums that only some fits ask for, (p, p), whitened too.
    curvature: Matrix | None = None  # weighted by ρ' + 2 z ρ'' (robust losses)
    meat: Matrix | None = None  # Σ w⁴ (ρ' r)² Jᵀ J (sandwich covariance)

    @property
    def finite(self) -> bool:
        """Whether residuals and Jacobian were finite in every row."""
        return bool(np.isfinite(self.gram).all() and np.isfinite(self.cost))

    @property
    def data_finite(self) -> bool:
        """Whether x and y were finite in every row, unless their sums are beyond float64."""
        return bool(np.isfinite(self.sums).all() and np.isfinite(self.spread))

    def combine(self, other: Reduction) -> Reduction:
        """Add the sums of two disjoint sets of rows."""
        if self.rows == 0 or other.rows == 0:
            held, empty = (self, other) if other.rows == 0 else (other, self)
            rounded = held.rounded | empty.rounded
            return dataclasses.replace(held, dropped=held.dropped + empty.dropped, rounded=rounded)
        weight = self.weight + other.weight
        share = other.weight / weight if weight > 0 else 0.0
        step = other.mean - self.mean
        with np.errstate(all="ignore"):
            return Reduction(
                rows=self.rows + other.rows,
                dropped=self.dropped + other.dropped,
                cost=self.cost + other.cost,
                gram=self.gram + other.gram,
                weight=weight,
                mean=self.mean + step * share,
                spread=self.spread + other.spread + step * step * self.weight * share,
                log_weight=self.log_weight + other.log_weight,
                sums=self.sums + other.sums,
                checksum=self.checksum + other.checksum,
                rounded=self.rounded | other.rounded,
                curvature=_add(self.curvature, other.curvature),
                meat=_add(self.meat, other.meat),
            )


def _add(one: Matrix | None, two: Matrix | None) -> Matrix | None:
    return None if one is None or two is None else one + two


def fold(leaves: Iterable[Reduction]) -> Reduction:
    """Combine leaves in a tree whose shape their number alone decides.

    Neighbours are folded from left to right `FAN_IN` at a time, and so are the results, until one is left.
    """
    level = list(leaves)
    while len(level) > 1:
        level = fold_level(level)
    return level[0]


def fold_level(level: Sequence[Reduction]) -> list[Reduction]:
    """Combine neighbours `FAN_IN` at a time: one level of the tree."""
    return [functools.reduce(Reduction.combine, level[i : i + FAN_IN]) for i in range(0, len(level), FAN_IN)]
