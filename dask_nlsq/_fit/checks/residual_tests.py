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
from collections.abc import Sequence

import numpy as np
from scipy import special

from dask_nlsq._kernel import Block, Reduction, evaluate_rows, kernel, nearest_columns
from dask_nlsq._model import Objective
from dask_nlsq._solver import EPS
from dask_nlsq._typing import Matrix, Vector

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
    """Return the smaller p-value of the two tests for rows sorted by x; 1 where there are too few rows to test.

    Of counts only runs are compared: few counts have the ranks of the fit, for many of them are equal.
    Rows with errors in x are sorted by the points of the curve that are nearest: with their own x, which has a part in
    it, the orthogonal distance is correlated.
    """
    if objective.robust:
        return 1.0
    if objective.errors:
        block = sort_by_column(block, nearest_columns(objective, block, theta))
    count = min(_RUNS, block.rows // (2 * objective.n_parameters + 2))
    grams, residual = _evaluate(objective, block, theta, count if count >= 3 else 0)
    of_runs = _chow_pvalue(grams, block.rows)
    return of_runs if objective.counts else min(of_runs, _bartels_pvalue(residual))


def _evaluate(objective: Objective, block: Block, theta: Vector, count: int) -> tuple[Matrix, Vector]:
    """Return the Gram matrices of (J, r) of so many runs, (count, p + 1, p + 1), and the weighted residuals."""
    p = len(theta)
    bounds = np.linspace(0, block.rows, count + 1).astype(int) if count else np.zeros(0, int)
    runs = list(itertools.pairwise(bounds.tolist()))
    if objective.jacobian != "numeric":
        rows = evaluate_rows(objective, block, np.broadcast_to(theta, (block.rows, p)))
        if np.isfinite(rows).all():
            grams = [rows[a:b].T @ rows[a:b] for a, b in runs]
            return np.array(grams).reshape(-1, p + 1, p + 1), rows[:, -1]
    # Derivatives that are not finite although the model is are replaced by differences in a sweep.
    parts = kernel.reduce_blocks(objective, [block.take(slice(a, b)) for a, b in runs], theta, None) if runs else []
    grams = [part.gram if part.finite else np.full((p + 1, p + 1), np.nan) for part in parts]
    return np.array(grams).reshape(-1, p + 1, p + 1), weighted_residuals(objective, block, theta)


def _chow_pvalue(grams: Matrix, n: int) -> float:
    """Return the p-value of Chow's F-test for separate fits of the runs of n rows, by their Gram matrices."""
    if not len(grams) or not np.isfinite(grams).all():
        return 1.0
    p = grams.shape[1] - 1
    squares = np.diagonal(grams, axis1=1, axis2=2)[:, :p]
    scale = np.sqrt(np.where(squares > 0, squares, 1.0))
    values, vectors = np.linalg.eigh(grams[:, :p, :p] / scale[:, :, None] / scale[:, None, :])
    seen = values > 8 * p * EPS * np.maximum(values[:, -1:], EPS)
    # Each run gains what a step of its own parameters would, so that no run has to be fitted.
    along = np.einsum("kji,kj->ki", vectors, grams[:, :p, p] / scale)
    gained = float(np.sum(along**2 / np.where(seen, values, np.inf)))
    total, ranks = float(grams[:, p, p].sum()), int(seen.sum())
    left, dof, rest = total - gained, ranks - p, n - ranks
    # Where separate fits leave nothing but rounding, their ratio to the whole says nothing.
    if dof <= 0 or rest <= 0 or left <= 1e-14 * total:
        return 1.0
    return float(special.fdtrc(dof, rest, (gained / dof) / (left / rest)))


def _bartels_pvalue(residual: Vector) -> float:
    """Return the p-value of Bartels' test against positive correlation of neighbours."""
    n = len(residual)
    if n < _FEW or not np.isfinite(residual).all():
        return 1.0
    ranks = _ranks(residual)
    spread = np.sum((ranks - ranks.mean()) ** 2)
    if spread == 0:
        return 1.0
    ratio = np.sum(np.diff(ranks) ** 2) / spread
    # Both parameters of the beta distribution that has the mean and the variance of the ratio (Bartels 1982).
    shape = 5.0 * n * (n + 1.0) * (n - 1.0) ** 2 / (2.0 * (n - 2.0) * (5.0 * n**2 - 2.0 * n - 9.0)) - 0.5
    return float(special.betainc(shape, shape, min(ratio / 4.0, 1.0)))


def _ranks(values: Vector) -> Vector:
    """Return the ranks of values, from 1; those of equal ones are their mean."""
    ordered = np.sort(values)
    below, up_to = np.searchsorted(ordered, values, "left"), np.searchsorted(ordered, values, "right")
    ranks: Vector = 0.5 * (below + up_to + 1).astype(np.float64)
    return ranks


def no_better_than_constant(rows: int, cost: float, cost_of_constant: float, p: int) -> bool:
    """Whether an F-test does not reject that a model of p parameters explains no more than a constant."""
    if p < 2 or not cost_of_constant > 0:
        return False
    rest, gained = rows - p, 1.0 - cost / cost_of_constant
    if rest <= 0:
        return gained < 0
    probability = special.fdtrc(p - 1, rest, max(gained, 0.0) / (p - 1) / max((1.0 - gained) / rest, _LEAST))
    return gained < _NOTHING or bool(probability > _BY_CHANCE)


def count_costs(objective: Objective, block: Block, theta: Vector) -> tuple[float, float]:
    """Return what rows of counts add to the cost, and what they would if one rate or probability were that of all."""
    trials = block.weights
    everything = np.array(objective.expand(theta.tolist()), float)
    with np.errstate(all="ignore"):
        values = kernel.predict_block(objective, block, everything), np.full(block.rows, block.y.sum() / trials.sum())
        fitted, constant = (objective.count_rows(f, block.y, trials, np).cost.sum() for f in values)
    return float(fitted), float(constant)


def exceed_rounding(reduction: Reduction) -> bool:
    """Whether residuals are left that may have structure: more than rounding."""
    return reduction.cost > _ROUNDING * reduction.weighted_sum_of_squares


def sort_by_column(block: Block, x: Sequence[Vector] | None = None) -> Block:
    """Return rows in the order of the column of x, of `x` where given, that has the most values."""
    columns = block.x if x is None else x
    most = columns[0] if len(columns) == 1 else max(columns, key=lambda column: len(np.unique(column)))
    return block.take(np.argsort(most, kind="stable"))


def weighted_residuals(objective: Objective, block: Block, theta: Vector) -> Vector:
    """Return the weighted residuals of rows, (rows,)."""
    residual = kernel.predict_block(objective, block, np.array(objective.expand(theta.tolist()), float)) - block.y
    return residual if block.weight is None else residual * block.weight
