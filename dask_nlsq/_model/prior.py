r"""Prior: Gaussian knowledge of parameters, added to a reduction as if each were one more row.

A prior of mean m and standard deviation d adds :math:`\tfrac12 (\theta_j - m)^2 / d^2` to the cost, so p×p and p
numbers to the sums of a sweep, and nothing to its price. To the sandwich it adds the variance that it has, and not the
square of its one residual.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from dask_nlsq._typing import Matrix, Vector


@dataclasses.dataclass(frozen=True)
class Prior:
    """Mean and inverse standard deviation of each free parameter, shape (p,); weight 0 means none."""

    mean: Vector
    weight: Vector

    def add_to_grams(self, grams: Matrix, thetas: Matrix) -> Matrix:
        """Return sums at many points, (k, p + 1, p + 1) at (k, p), with the prior added."""
        residuals, sums = self.weight * (thetas - self.mean), grams.copy()
        i = np.arange(len(self.weight))
        sums[:, i, i] += self.weight**2
        sums[:, :-1, -1] += self.weight * residuals
        sums[:, -1, :-1] += self.weight * residuals
        sums[:, -1, -1] += np.sum(residuals**2, axis=1)
        return sums

    def chisqr(self, theta: Vector) -> float:
        """Return the part of χ² that comes from here at `theta` (p,)."""
        return float(np.sum((self.weight * (theta - self.mean)) ** 2))
