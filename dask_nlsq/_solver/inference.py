r"""Covariance and statistics of a fit, all from the triangle R and the sums of the last sweep.

With n rows, p free parameters, :math:`\chi^2 = \sum_i w_i^2 r_i^2` and :math:`\nu = n - p`:

============  =============================================================================================
covariance    :math:`s^2 (R^T R)^{-1}` with :math:`s^2 = \chi^2/\nu`, or with :math:`s^2 = 1` under
              ``absolute_sigma``
R²            :math:`1 - \chi^2 / \sum w_i^2 (y_i - \bar y)^2`, with the weighted mean
log L         Gaussian: :math:`-\tfrac12 \chi^2 - \tfrac n2 \log 2\pi + \sum \log w_i` under ``absolute_sigma``;
              else with the variance at its most likely value,
              :math:`-\tfrac n2 (\log(2\pi\chi^2/n) + 1) + \sum \log w_i`
AIC           :math:`2k - 2 \log L`, k = p, plus 1 where the variance was estimated
AICc          AIC + :math:`2k(k+1)/(n-k-1)`
BIC           :math:`k \log n - 2 \log L`
============  =============================================================================================

A prior counts as a row in all of them but R² and the root mean square error, which are of the data alone.

Of counts, :math:`\chi^2` is the deviance, :math:`s^2` is Pearson's chi-square over :math:`\nu` where it is asked for
and else 1, and log L is that of the saturated model less :math:`\tfrac12 \chi^2`; no variance is estimated (k = p).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt

from dask_nlsq._kernel import Reduction
from dask_nlsq._solver.factor import Factor
from dask_nlsq._typing import Matrix, Vector

_ENTANGLED = 1e4
"""Standard error, beside what it would be were the other parameters known, from which they are hardly told apart."""


@dataclasses.dataclass(frozen=True)
class Statistics:
    """How well the model fits."""

    n_obs: int
    dof: int
    chisqr: float
    redchi: float
    rmse: float
    rsquared: float
    loglik: float
    aic: float
    aicc: float
    bic: float
    pearson_chisqr: float | None = None  # of counts, whose chisqr is the deviance
    n_groups: int | None = None  # of a cluster-robust covariance

    @property
    def dispersion(self) -> float:
        """The residual variance as the rows tell it: χ² over the degrees of freedom, of counts that of Pearson."""
        if self.pearson_chisqr is None:
            return self.redchi
        return self.pearson_chisqr / self.dof if self.dof > 0 else float("nan")

    def residual_variance(self, absolute_sigma: bool) -> float:
        """Return s²: 1 under ``absolute_sigma``, and infinity without degrees of freedom."""
        return 1.0 if absolute_sigma else self.dispersion if self.dof > 0 else float("inf")

    @property
    def interval_dof(self) -> int:
        """Degrees of freedom of Student's t in intervals: of a cluster-robust covariance, its groups less one."""
        return self.dof if self.n_groups is None else self.n_groups - 1

    def without_spread(self) -> Statistics:
        """Return the statistics without R² and RMSE: distances that are not along y are no share of its spread."""
        return dataclasses.replace(self, rsquared=float("nan"), rmse=float("nan"))


def statistics(reduction: Reduction, cost: float, p: int, absolute_sigma: bool, believed: float = 0.0) -> Statistics:
    """Compute the statistics of a fit whose cost is ``chisqr / 2``, `believed` of χ² coming from priors."""
    n, chisqr = reduction.rows, 2.0 * cost
    dof = n - p
    k = p if absolute_sigma else p + 1
    with np.errstate(all="ignore"):
        n_, chi_, weight, spread = map(np.float64, (n, chisqr, reduction.weight, reduction.response_sum_of_squares))
        if absolute_sigma:
            loglik = -0.5 * chi_ - 0.5 * n_ * np.log(2 * np.pi) + reduction.log_weight
        else:
            loglik = -0.5 * n_ * (np.log(2 * np.pi * chi_ / n_) + 1) + reduction.log_weight
        aic = 2 * k - 2 * loglik
        return Statistics(
            n_obs=n,
            dof=dof,
            chisqr=chisqr,
            redchi=float(chi_ / dof) if dof > 0 else float("nan"),
            rmse=float(np.sqrt((chi_ - believed) / weight)),
            rsquared=float(1 - (chi_ - believed) / spread),
            loglik=float(loglik),
            aic=float(aic),
            aicc=float(aic + 2 * k * (k + 1) / (n - k - 1)) if n > k + 1 else float("inf"),
            bic=float(k * np.log(n_) - 2 * loglik),
        )


def with_parameters(statistics: Statistics, absolute_sigma: bool, further: int) -> Statistics:
    """Return the statistics of a fit that estimated further parameters, which the criteria count."""
    n = statistics.n_obs
    k = n - statistics.dof + (not absolute_sigma) + further
    aic = 2 * k - 2 * statistics.loglik
    return dataclasses.replace(
        statistics,
        aic=aic,
        aicc=aic + 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else float("inf"),
        bic=k * math.log(n) - 2 * statistics.loglik,
    )


def count_statistics(reduction: Reduction, cost: float, p: int, believed: float = 0.0, beliefs: int = 0) -> Statistics:
    """Compute the statistics of a fit of counts, `believed` of χ² coming from so many priors."""
    n, k = reduction.rows, p
    loglik = reduction.log_weight - cost - 0.5 * beliefs * math.log(2 * math.pi)
    aic = 2 * k - 2 * loglik
    return Statistics(
        n_obs=n,
        dof=n - p,
        chisqr=2.0 * cost,
        redchi=2.0 * cost / (n - p) if n > p else float("nan"),
        rmse=float("nan"),
        rsquared=float("nan"),
        loglik=loglik,
        aic=aic,
        aicc=aic + 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else float("inf"),
        bic=k * math.log(n) - 2 * loglik,
        # A chi-square that is minimised, whose rows have no likelihood, is itself Pearson's or Neyman's.
        pearson_chisqr=2.0 * cost - believed if math.isnan(loglik) else float(reduction.gram[-1, -1]) - believed,
    )


@np.errstate(over="ignore")
def covariance(factor: Factor, s2: float, free: npt.NDArray[np.bool_], meat: Matrix | None = None) -> Matrix:
    """Return s²(RᵀR)⁻¹ over the `free` parameters, NaN for the others; with `meat` M, (RᵀR)⁻¹ s²M (RᵀR)⁻¹.

    A parameter that a direction unseen by the data moves has infinite variance; the others keep the variance
    that the directions seen by the data give them.
    """
    cov = np.full((factor.p, factor.p), np.nan)
    if not free.any():
        return cov
    part = factor.only(free)
    _, sigma, vt = part.svd
    seen = part.determined
    half = vt[seen].T / sigma[seen] / part.norms[:, None]
    core = np.eye(len(sigma[seen])) if meat is None else half.T @ meat[np.ix_(free, free)] @ half
    block = s2 * (half @ core @ half.T) if np.isfinite(s2) else np.full((part.p, part.p), np.inf)
    open_ends = np.abs(vt[~seen]).max(axis=0, initial=0.0) > 1e-6
    block[open_ends, :] = np.inf
    block[:, open_ends] = np.inf
    cov[np.ix_(free, free)] = block
    return cov


@np.errstate(over="ignore")
def entangled(factor: Factor, theta: Vector, cov: Matrix, free: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    r"""Return which of the `free` parameters the data hardly tell from one another.

    Such a parameter lies within three standard errors of zero, and its standard error is over :math:`10^4` times what
    it would be were the others known: :math:`s` over the length of its column of J, whatever covariance was asked for.
    """
    mask = np.zeros(factor.p, bool)
    if not free.any():
        return mask
    part, variance = factor.only(free), np.diag(cov)[free]
    vague = np.isfinite(variance) & (9 * variance > theta[free] ** 2)
    mask[free] = vague & (part.unscaled_stderr * part.norms > _ENTANGLED)
    return mask


def propagate(cov: Matrix, jacobian: Matrix) -> Matrix:
    """Return T C Tᵀ for T of shape (all, free), where a zero in T keeps what is not finite in C away."""
    used = jacobian != 0
    both = used[:, None, :, None] & used[None, :, None, :]
    with np.errstate(invalid="ignore"):
        terms = jacobian[:, None, :, None] * jacobian[None, :, None, :] * cov
    spread: Matrix = np.where(both, terms, 0.0).sum(axis=(2, 3))
    return spread
