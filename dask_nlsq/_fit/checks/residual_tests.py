r"""Residual tests: whether the residuals of a fit are independent noise.

A sample of the rows is sorted by x and divided into runs. Where the residuals are independent, separate fits of the
runs reduce the cost by no more than chance does:

.. math:: F = \frac{\sum_k |Q_k^T r_k|^2 / (Kp - p)}{(|r|^2 - \sum_k |Q_k^T r_k|^2) / (n - Kp)}

follows the F distribution (Chow 1960, doi:10.2307/1910133), :math:`Q_k` spanning the columns of the Jacobian of run k.
The rank version of von Neumann's ratio tests the correlation of neighbours: the sum of squared differences of their
ranks over that of the squared deviations of the ranks has mean 2 and, approximately, a beta distribution on (0, 4)
(Bartels 1982, doi:10.1080/01621459.1982.10477764).
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy import stats

from dask_nlsq._kernel import Block, Reduction, kernel
from dask_nlsq._model import Objective
from dask_nlsq._solver import factorise
from dask_nlsq._typing import Vector

_RUNS = 12
"""Largest number of runs."""

_FEW = 10
"""Fewest rows for Bartels' test."""

_NOTHING = 0.01
"""R² up to which a model counts as no better than a constant, whatever the number of rows."""

_BY_CHANCE = 0.01
"""p-value of the F-test against a constant from which it is not rejected."""

_ROUNDING = 1e-20
"""Ratio of the cost to the sum of squares of y that is rounding."""

_LEAST = 1e-12
"""Lower limit of the residual variance in the F-test, relative to the variance of y."""


def noise_pvalue(objective: Objective, block: Block, theta: Vector) -> float:
    """Return the smaller p-value of the two tests for rows sorted by x; 1 where there are too few rows to test."""
    if objective.robust:
        return 1.0
    return min(_chow_pvalue(objective, block, theta), _bartels_pvalue(objective, block, theta))


def _chow_pvalue(objective: Objective, block: Block, theta: Vector) -> float:
    """Return the p-value of Chow's F-test for separate fits of the runs."""
    p, n = objective.n_parameters, block.rows
    count = min(_RUNS, n // (2 * p + 2))
    if count < 3:
        return 1.0
    bounds = np.linspace(0, n, count + 1).astype(int)
    runs = [block.take(slice(a, b)) for a, b in itertools.pairwise(bounds.tolist())]
    # Each run gains what a step of its own parameters would, so that no run has to be fitted.
    gained = total = ranks = 0.0
    for part in kernel.reduce_blocks(objective, runs, theta, None):
        if not part.finite:
            return 1.0
        factor = factorise(part.gram[:p, :p], part.gram[:p, p], None)
        u, _, _ = factor.svd
        seen = factor.determined
        gained += float(np.sum((u.T @ factor.z)[seen] ** 2))
        ranks += int(seen.sum())
        total += 2.0 * part.cost
    left, dof, rest = total - gained, ranks - p, n - ranks
    # Where separate fits leave nothing but rounding, their ratio to the whole says nothing.
    if dof <= 0 or rest <= 0 or left <= 1e-14 * total:
        return 1.0
    return float(stats.f.sf((gained / dof) / (left / rest), dof, rest))


def _bartels_pvalue(objective: Objective, block: Block, theta: Vector) -> float:
    """Return the p-value of Bartels' test against positive correlation of neighbours."""
    n = block.rows
    if n < _FEW:
        return 1.0
    residual = weighted_residuals(objective, block, theta)
    ranks = stats.rankdata(residual)
    spread = np.sum((ranks - ranks.mean()) ** 2)
    if not np.isfinite(residual).all() or spread == 0:
        return 1.0
    ratio = np.sum(np.diff(ranks) ** 2) / spread
    # Both parameters of the beta distribution that has the mean and the variance of the ratio (Bartels 1982).
    shape = 5.0 * n * (n + 1.0) * (n - 1.0) ** 2 / (2.0 * (n - 2.0) * (5.0 * n**2 - 2.0 * n - 9.0)) - 0.5
    return float(stats.beta.cdf(ratio / 4.0, shape, shape))


def no_better_than_constant(reduction: Reduction, p: int) -> bool:
    """Whether an F-test does not reject that a model of p parameters explains no more than a constant."""
    if p < 2 or not reduction.response_sum_of_squares > 0:
        return False
    rest, gained = reduction.rows - p, 1.0 - 2.0 * reduction.cost / reduction.response_sum_of_squares
    if rest <= 0:
        return gained < 0
    probability = stats.f.sf(max(gained, 0.0) / (p - 1) / max((1.0 - gained) / rest, _LEAST), p - 1, rest)
    return gained < _NOTHING or bool(probability > _BY_CHANCE)


def exceed_rounding(reduction: Reduction) -> bool:
    """Whether residuals are left that may have structure: more than rounding."""
    return reduction.cost > _ROUNDING * reduction.weighted_sum_of_squares


def sort_by_column(block: Block) -> Block:
    """Return rows in the order of the column of x that has the most values."""
    most = max(block.x, key=lambda column: len(np.unique(column)))
    return block.take(np.argsort(most, kind="stable"))


def weighted_residuals(objective: Objective, block: Block, theta: Vector) -> Vector:
    """Return the weighted residuals of rows, (rows,)."""
    residual = kernel.predict_block(objective, block, np.array(objective.expand(theta.tolist()), float)) - block.y
    return residual if block.weight is None else residual * block.weight
