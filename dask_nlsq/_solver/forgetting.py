r"""Forgetting: how fast a process changes, judged by how well each batch was predicted.

Discounting the information by a factor :math:`\lambda` before each batch, :math:`\Lambda = \lambda A`, is the Kalman
filter of parameters that walk at random with the covariance :math:`(1/\lambda - 1) s^2 A^{-1}` a batch (West &
Harrison, Bayesian Forecasting and Dynamic Models, 1997, section 6.3). Several factors are run side by side. A batch
with information :math:`A_b`, score g and sum of squares q at the prediction of a factor has the log-likelihood

.. math:: \tfrac12 \Big( \log|\Lambda| - \log|\Lambda + A_b| + g^T (\Lambda + A_b)^{-1} g / s^2 - q / s^2 \Big)

there, and the factors are averaged by likelihood (Raftery, Karny & Ettler, doi:10.1198/TECH.2009.08104). A small
share of the weights is spread anew at each batch, so that a process that was steady may begin to drift.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from dask_nlsq._kernel import Reduction
from dask_nlsq._typing import Matrix, Vector

FACTORS = (1.0, 0.998, 0.995, 0.99, 0.98, 0.96, 0.93, 0.88, 0.8, 0.7, 0.5)
"""Factors that are tried; each remembers about half as many batches as the one before."""

_STEADY = 0.6
"""Weight of the first factor beforehand."""

_SHARE = 0.001
"""Share of the weights that is spread anew at each batch."""

_CERTAIN = 0.9
"""Weight from which the first factor, that of a steady process, is taken alone."""


@dataclasses.dataclass(frozen=True)
class Bank:
    """Sums under each of `FACTORS`, and how likely each has shown itself."""

    members: tuple[Reduction, ...]
    squares: Vector  # (factors,), rows by the square of their weight
    weights: Vector  # (factors,), which add up to 1

    @property
    def best(self) -> int:
        """The factor to report: the first where the process is steady, else the likeliest."""
        return 0 if self.weights[0] > _CERTAIN else int(np.argmax(self.weights))


@dataclasses.dataclass(frozen=True)
class Mixture:
    """What the factors say together: the estimate counted from the origin, and its covariance, in coordinates."""

    delta: Vector  # (p,)
    covariance: Matrix  # (p, p), in units of s²


def begin(first: Reduction) -> Bank:
    """Return the bank after one batch."""
    count = len(FACTORS)
    return Bank((first,) * count, np.full(count, float(first.rows)), _beforehand())


def _beforehand() -> Vector:
    rest = (1.0 - _STEADY) / (len(FACTORS) - 1)
    return np.array([_STEADY, *[rest] * (len(FACTORS) - 1)])


def advance(bank: Bank, new: Reduction, s2: float, prior: Matrix) -> Bank:
    """Return the bank after another batch, about the same origin; `prior` (p + 1, p + 1) is added to all sums."""
    from_here = [scaled(member, factor) for member, factor in zip(bank.members, FACTORS, strict=True)]
    likelihood = log_likelihood(np.stack([member.gram for member in from_here]) + prior, new.gram, s2)
    weights = (1.0 - _SHARE) * bank.weights + _SHARE * _beforehand()
    logs = np.log(weights) + likelihood
    weights = np.exp(logs - logs.max())
    members = tuple(member.combine(new) for member in from_here)
    squares = bank.squares * np.square(FACTORS) + new.rows
    return Bank(members, squares, weights / weights.sum())


def merge(left: Bank, right: Bank) -> Bank:
    """Return the bank of two streams together, about one origin."""
    members = tuple(a.combine(b) for a, b in zip(left.members, right.members, strict=True))
    weights = left.weights * right.weights / _beforehand()
    return Bank(members, left.squares + right.squares, weights / weights.sum())


def log_likelihood(grams: npt.NDArray[np.float64], new: Matrix, s2: float) -> Vector:
    """Return the log-likelihood of a batch under each of some sums, (factors, p + 1, p + 1), up to a constant."""
    p = grams.shape[-1] - 1
    before, after = grams[:, :p, :p], grams[:, :p, :p] + new[:p, :p]
    step = np.concatenate([_solve(before, -grams[:, :p, p]), np.ones((len(grams), 1))], axis=1)
    score = step @ new[:, :p]
    squares = np.einsum("ki,ij,kj->k", step, new, step)
    gain = np.einsum("ki,ki->k", score, _solve(after, score))
    likelihood: Vector = 0.5 * (_log_determinant(before) - _log_determinant(after) + (gain - squares) / s2)
    return likelihood


def mix(bank: Bank, s2: float, prior: Matrix) -> Mixture:
    """Return the estimate that the factors give together, each with its weight, and its covariance."""
    grams = np.stack([member.gram for member in bank.members]) + prior
    p = grams.shape[-1] - 1
    weights = bank.weights
    if bank.best == 0 and weights[0] > _CERTAIN:
        weights = np.eye(len(weights))[0]
    deltas = _solve(grams[:, :p, :p], -grams[:, :p, p])
    delta = weights @ deltas
    apart = deltas - delta
    half = inverse_root(grams[:, :p, :p])[0]
    covariance = np.einsum("k,kij,klj->il", weights, half, half) + (apart.T * weights) @ apart / s2
    return Mixture(delta, covariance)


def scaled(sums: Reduction, share: float) -> Reduction:
    """Return sums as if each row counted for a share."""
    if share == 1.0:
        return sums
    return dataclasses.replace(
        sums,
        rows=share * sums.rows,  # type: ignore[arg-type]  # a number of rows that count, which need not be whole
        cost=share * sums.cost,
        gram=share * sums.gram,
        weight=share * sums.weight,
        response_sum_of_squares=share * sums.response_sum_of_squares,
        log_weight=share * sums.log_weight,
        # The meat sums squares of scores, in which a weight counts twice.
        meat=None if sums.meat is None else share**2 * sums.meat,
    )


def inverse_root(matrices: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return W (..., p, p), with W Wᵀ the inverse of each matrix where it is determined, and log determinants."""
    diagonal = np.diagonal(matrices, axis1=-2, axis2=-1)
    scale = 1.0 / np.sqrt(np.where(diagonal > 0, diagonal, 1.0))
    values, vectors = np.linalg.eigh(matrices * scale[..., :, None] * scale[..., None, :])
    floor = 1e-12 * np.maximum(values[..., -1:], 1e-300)
    seen = values > floor
    logs = np.log(np.where(seen, values, floor)).sum(axis=-1) - 2.0 * np.log(scale).sum(axis=-1)
    root = np.where(seen, 1.0 / np.sqrt(np.where(seen, values, 1.0)), 0.0)
    return scale[..., :, None] * vectors * root[..., None, :], logs


def _solve(matrices: npt.NDArray[np.float64], vectors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    half = inverse_root(matrices)[0]
    solution: npt.NDArray[np.float64] = np.einsum("kij,klj,kl->ki", half, half, vectors)
    return solution


def _log_determinant(matrices: npt.NDArray[np.float64]) -> Vector:
    return inverse_root(matrices)[1]
