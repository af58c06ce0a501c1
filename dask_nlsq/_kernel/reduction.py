r"""Reduction: all that a sweep returns, a monoid under `merge`.

Rows i have weight :math:`w_i = 1/\sigma_i`, residual :math:`r_i = f(x_i; \theta) - y_i` and Jacobian row
:math:`J_i`. With a p×p preconditioner S, one pass accumulates

.. math:: \begin{pmatrix} G & g \\ g^T & q \end{pmatrix} = \sum_i w_i^2
          \begin{pmatrix} S^T J_i^T \\ r_i \end{pmatrix} \begin{pmatrix} J_i S & r_i \end{pmatrix}

beside the weighted mean and spread of y, which the statistics of the fit need, and a checksum of the rows.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_nlsq._kernel.request import Whitening
from dask_nlsq._model import Prior
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
    # Σ w² (y − mean)².
    response_sum_of_squares: float = dataclasses.field(metadata={"stored": "spread"})
    log_weight: float  # Σ log w
    # What the rows were: sums that turn NaN when a cell is, as those of y do, and a hash of the bit patterns.
    sums: Vector  # of x, (columns,)
    checksum: npt.NDArray[np.uint64]  # of x, y and the weight
    rounded: frozenset[str] = frozenset()  # columns of integers beyond 2**53, which float64 rounds
    # Sums that only some fits ask for, (p, p), whitened too.
    curvature: Matrix | None = None  # weighted by ρ' + 2 z ρ'' (robust losses)
    meat: Matrix | None = None  # Σ w⁴ (ρ' r)² Jᵀ J (sandwich covariance)
    # Derivatives that are differences, for each parameter: how many, partition and row of the first, and how many are
    # 0, (p, 4).
    differences: npt.NDArray[np.int64] | None = None

    @property
    def weighted_sum_of_squares(self) -> float:
        """Σ w² y²."""
        return self.response_sum_of_squares + self.weight * self.mean**2

    def with_prior(self, prior: Prior, theta: Vector, whitening: Whitening | None) -> Reduction:
        """Return the reduction with a prior at `theta` (p,) added, in the coordinates of its whitening."""
        p = len(theta)
        s = np.eye(p) if whitening is None else whitening.s
        residual = prior.weight * (theta - prior.mean)
        rows = np.concatenate([prior.weight[:, None] * s, residual[:, None]], axis=1)  # (p, p + 1)
        product = rows.T @ rows
        curvature, meat = (None if sums is None else sums + product[:p, :p] for sums in (self.curvature, self.meat))
        return dataclasses.replace(
            self,
            rows=self.rows + int(np.count_nonzero(prior.weight)),
            cost=self.cost + 0.5 * float(product[p, p]),
            gram=self.gram + product,
            log_weight=self.log_weight + float(np.log(prior.weight[prior.weight > 0]).sum()),
            curvature=curvature,
            meat=meat,
        )

    @property
    def finite(self) -> bool:
        """Whether the sums are finite, and every parameter is in its domain.

        One that has no derivative in any row, and changes nothing, is out of it.
        """
        return self.sums_finite and (self.differences is None or not (self.differences[:, 3] == self.rows).any())

    @functools.cached_property
    def sums_finite(self) -> bool:
        """Whether residuals, Jacobian and what a loss makes of them were finite in every row."""
        matrices = (self.gram, self.curvature, self.meat)
        return math.isfinite(self.cost) and all(np.isfinite(each).all() for each in matrices if each is not None)

    @property
    def model_finite(self) -> bool:
        """Whether residuals were finite in every row, and what a loss makes of them."""
        return math.isfinite(self.cost) and math.isfinite(self.gram[-1, -1])

    @property
    def data_finite(self) -> bool:
        """Whether x and y were finite in every row, unless their sums are beyond float64."""
        return all(map(math.isfinite, (self.response_sum_of_squares, *self.sums.tolist())))

    def placed(self, partition: int = 0, row: int = 0) -> Reduction:
        """Return the sums with the place of what was counted from 0: its partition, and the row where it begins."""
        if self.differences is None or not (partition or row):
            return self
        return dataclasses.replace(self, differences=self.differences + np.array([0, partition, row, 0]))

    def combine(self, other: Reduction) -> Reduction:
        """Add the sums of two disjoint sets of rows."""
        return merge([self, other])


def merge(parts: Sequence[Reduction]) -> Reduction:
    """Add the sums of disjoint sets of rows, from left to right."""
    if len(parts) == 1:
        return parts[0]
    held = [part for part in parts if part.rows] or parts[:1]
    dropped, rounded = sum(part.dropped for part in parts), frozenset().union(*(part.rounded for part in parts))
    if len(held) == 1:
        return dataclasses.replace(held[0], dropped=dropped, rounded=rounded)
    weight, mean, squares = held[0].weight, held[0].mean, held[0].response_sum_of_squares
    for part in held[1:]:
        total = weight + part.weight
        # Every row of two parts may have the weight 0.
        share = part.weight / total if total > 0 else 0.0
        step = part.mean - mean
        squares += part.response_sum_of_squares + step * step * weight * share
        weight, mean = total, mean + step * share
    # Sums that overflow are no warning of NumPy's: `finite` says so to the solver, which refuses the point.
    with np.errstate(all="ignore"):
        return Reduction(
            rows=sum(part.rows for part in held),
            dropped=dropped,
            cost=_added(part.cost for part in held),
            gram=_added(part.gram for part in held),
            weight=weight,
            mean=mean,
            response_sum_of_squares=squares,
            log_weight=_added(part.log_weight for part in held),
            sums=_added(part.sums for part in held),
            checksum=_added(part.checksum for part in held),
            rounded=rounded,
            curvature=_added(part.curvature for part in held),
            meat=_added(part.meat for part in held),
            differences=_counted([part.differences for part in held]),
        )


def differences(counts: Vector, rows: Vector, flat: Vector) -> npt.NDArray[np.int64] | None:
    """Return what `Reduction.differences` holds of one partition: counts, first rows and zeros, each (p,)."""
    if not counts.any():
        return None
    first = np.where(counts > 0, rows, 0.0)
    return np.stack([counts, np.zeros_like(counts), first, flat], axis=1).astype(np.int64)


def _counted(parts: Sequence[npt.NDArray[np.int64] | None]) -> npt.NDArray[np.int64] | None:
    """Add counts, and keep the first place of each parameter."""
    held = [part for part in parts if part is not None]
    if not held:
        return None
    total = held[0].copy()
    for part in held[1:]:
        new = total[:, 0] == 0
        total[new, 1:3] = part[new, 1:3]
        total[:, [0, 3]] += part[:, [0, 3]]
    return total


def _added(terms: Iterable[Any]) -> Any:
    """Add one after another, which the sum() of newer Pythons does not; None where there is nothing to be added."""
    return functools.reduce(lambda one, two: None if one is None or two is None else one + two, terms)


def fold(leaves: Iterable[Reduction]) -> Reduction:
    """Combine leaves in a tree whose shape their number alone decides.

    Neighbours are folded from left to right `FAN_IN` at a time, and so are the results, until one is left.
    """
    level = list(leaves)
    while len(level) > 1:
        level = [merge(level[i : i + FAN_IN]) for i in range(0, len(level), FAN_IN)]
    return level[0]
