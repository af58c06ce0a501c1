r"""Factor: the triangle of the Jacobian, from whitened normal equations.

With :math:`J^T J = R^T R` and :math:`z = Q^T r`, every question about one parameter vector is answered by the
p×p triangle R. It comes from :math:`G = (JS)^T (JS) = \tilde R^T \tilde R` as :math:`R = \tilde R S^{-1}`. G has the
squared condition number of JS, not of J, and S is the inverse of the previous triangle, so that JS is nearly
orthonormal: CholeskyQR2 with the preconditioner that an iteration has at hand (Fukaya et al. 2014,
doi:10.1109/ScalA.2014.11). As long as the columns of J, scaled to unit length, have a condition number below
1e5, no S is needed.

Where even the scaled G spans more than 1e8, its small eigenvalues are known to few digits or to none. The
factor then says that it is not `reliable`; the S that it offers brings them within reach of one more sweep.
"""

from __future__ import annotations

import dataclasses
import functools

import numpy as np
import numpy.typing as npt

from dask_nlsq._typing import Matrix, Vector

EPS = float(np.finfo(float).eps)

_WHITEN_ABOVE = 1e5
"""Condition of the scaled triangle from which the next sweep multiplies every tile by S."""

_TRUST_SPAN = 1e-8
"""Ratio of eigenvalues of the scaled G down to which they hold at least half of float64's digits."""


@dataclasses.dataclass(frozen=True)
class Whitening:
    """A p×p preconditioner S and its inverse."""

    s: Matrix
    inverse: Matrix


@dataclasses.dataclass(frozen=True)
class Factor:
    """Triangle R (p, p), projected residual z (p,), and whether all of R can be trusted."""

    r: Matrix
    z: Vector
    reliable: bool

    @property
    def p(self) -> int:
        """Number of parameters."""
        return len(self.z)

    @property
    def gradient(self) -> Vector:
        """Gradient of the cost, Jᵀr."""
        return self.r.T @ self.z

    @functools.cached_property
    def norms(self) -> Vector:
        """Length of each column of J; 1 where it is zero."""
        norms = np.linalg.norm(self.r, axis=0)
        return np.where(norms > 0, norms, 1.0)

    @functools.cached_property
    def svd(self) -> tuple[Matrix, Vector, Matrix]:
        """U, σ and Vᵀ of R with its columns scaled to unit length."""
        u, sigma, vt = np.linalg.svd(self.r / self.norms)
        return u, sigma, vt

    @property
    def determined(self) -> npt.NDArray[np.bool_]:
        """Which singular directions the data sees: those above the rounding level of J."""
        sigma = self.svd[1]
        seen: npt.NDArray[np.bool_] = sigma > 64 * self.p * EPS * max(sigma[0], EPS)
        return seen

    @property
    def condition(self) -> float:
        """Condition number of J with its columns scaled to unit length."""
        sigma = self.svd[1]
        return float(sigma[0] / sigma[-1]) if self.determined.all() else float("inf")

    def whitening(self) -> Whitening | None:
        """Return the S for the next sweep, or None where scaling alone will do."""
        _, sigma, vt = self.svd
        if self.reliable and sigma[-1] * _WHITEN_ABOVE > sigma[0]:
            return None
        sigma = np.maximum(sigma, EPS * max(sigma[0], EPS))
        return Whitening((vt.T / sigma) / self.norms[:, None], (sigma[:, None] * vt) * self.norms)


def factorise(g: Matrix, gradient: Vector, whitening: Whitening | None) -> Factor:
    """Recover R and z from G = (JS)ᵀ(JS) (p, p) and (JS)ᵀr (p,)."""
    p = len(gradient)
    scale = np.sqrt(np.diag(g)) if whitening is None else np.ones(p)
    scale = np.where(scale > 0, scale, 1.0)
    values, vectors = np.linalg.eigh(g / scale / scale[:, None])
    top = max(float(values[-1]), EPS**2)
    floor = 8 * p * EPS * top
    seen = values > floor
    root = np.sqrt(np.where(seen, values, floor))
    z = np.where(seen, (vectors.T @ (gradient / scale)) / root, 0.0)
    doubtful = values <= _TRUST_SPAN * top
    if whitening is None:
        f = root[:, None] * vectors.T * scale
        f[:, np.diag(g) == 0] = 0.0
    else:
        # A direction unseen by a whitened sweep is one that the data do not determine: no sweep will help.
        doubtful &= seen
        f = np.where(seen, root, 0.0)[:, None] * vectors.T @ whitening.inverse
    q, r = np.linalg.qr(f)
    return Factor(r, q.T @ z, not bool(doubtful.any()))
