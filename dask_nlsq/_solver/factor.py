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
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_nlsq._kernel import Whitening
from dask_nlsq._solver import lapack
from dask_nlsq._typing import Matrix, Vector

EPS = float(np.finfo(float).eps)

_WHITEN_ABOVE = 1e5
"""Condition of the scaled triangle from which the next sweep multiplies every tile by S."""

_TRUST_SPAN = 1e-8
"""Ratio of eigenvalues of the scaled G down to which they hold at least half of float64's digits."""

_NOTHING = 1e-13
"""Length of a column of J, beside what it has been, from which it is rounding."""


@dataclasses.dataclass(frozen=True)
class Factor:
    """Triangle R (p, p), projected residual z (p,), and whether all of R can be trusted."""

    r: Matrix
    z: Vector
    norms: Vector  # (p,), length of each column of J, or what it once was where it is zero
    reliable: bool

    @property
    def p(self) -> int:
        """Number of parameters."""
        return len(self.z)

    @property
    def gradient(self) -> Vector:
        """Gradient of the cost, Jᵀr."""
        return self.r.T @ self.z

    def only(self, kept: npt.NDArray[np.bool_]) -> Factor:
        """Return the factor of some columns of J, the others being held."""
        if kept.all():
            return self
        q, r = np.linalg.qr(self.r[:, kept])
        return Factor(r, q.T @ self.z, self.norms[kept], self.reliable)

    def without(self, lost: npt.NDArray[np.bool_]) -> Factor:
        """Return the factor with some columns of J taken as zero."""
        return dataclasses.replace(self, r=np.where(lost, 0.0, self.r)) if np.count_nonzero(lost) else self

    @functools.cached_property
    def svd(self) -> tuple[Matrix, Vector, Matrix]:
        """U, σ and Vᵀ of R with its columns scaled to unit length."""
        u, sigma, vt = lapack.svd(self.r / self.norms)
        return u, sigma, vt

    @functools.cached_property
    def determined(self) -> npt.NDArray[np.bool_]:
        """Which singular directions the data sees: those above the rounding level of J."""
        sigma = self.svd[1]
        seen: npt.NDArray[np.bool_] = sigma > 64 * self.p * EPS * max(sigma[0], EPS)
        return seen

    @functools.cached_property
    def projections(self) -> dict[bytes, Any]:
        """What was made of the factor by taking some parameters out, by those parameters."""
        return {}

    @property
    def condition(self) -> float:
        """Condition number of J with its columns scaled to unit length."""
        sigma = self.svd[1]
        return float(sigma[0] / sigma[-1]) if self.determined.all() else float("inf")

    @functools.cached_property
    def unscaled_stderr(self) -> Vector:
        """Standard errors for s = 1, from the directions that the data see."""
        _, sigma, vt = self.svd
        seen = self.determined
        rows: Vector = np.linalg.norm(vt[seen].T / sigma[seen], axis=1) / self.norms
        return rows

    def whitening(self, first: npt.NDArray[np.bool_] | None = None) -> Whitening | None:
        """Return the S for the next sweep, or None where scaling alone suffices.

        S is upper triangular with the `first` parameters, (p,), in front: their columns of JS are combinations of their
        own columns of J, and keep their digits at another point, where the other columns may be large.
        """
        sigma = self.svd[1]
        if self.reliable and sigma[-1] * _WHITEN_ABOVE > sigma[0]:
            return None
        order = np.arange(self.p) if first is None else np.argsort(~first, kind="stable")
        scaled = self.r[:, order] / self.norms[order]
        r: Matrix = np.linalg.qr(scaled)[1]
        least = EPS * max(float(np.linalg.norm(r, axis=0).max(initial=0.0)), EPS)
        diagonal = r.diagonal()
        r[np.diag_indices(self.p)] = np.where(np.abs(diagonal) < least, np.where(diagonal < 0, -least, least), diagonal)
        s, inverse = np.zeros((self.p, self.p)), np.zeros((self.p, self.p))
        s[order] = np.linalg.solve(r, np.eye(self.p)) / self.norms[order][:, None]
        inverse[:, order] = r * self.norms[order]
        return Whitening(s, inverse)


def factorise(
    g: Matrix, gradient: Vector, whitening: Whitening | None, reference: Vector | None = None, settled: bool = False
) -> Factor:
    """Recover R and z from G = (JS)ᵀ(JS) and (JS)ᵀr.

    Parameters
    ----------
    g, gradient : ndarray of shape (p, p) and (p,)
        The sums of a sweep.
    whitening : Whitening, optional
        The S of that sweep.
    reference : ndarray of shape (p,), optional
        Lengths that the columns of J have had; one that is nothing beside its own is taken as zero.
    settled : bool
        Whether S comes from this very point. A direction that such a sweep does not see is one that the data do
        not determine; elsewhere it may only lie in the shadow of a stale S, and keeps the largest length that
        it can have.
    """
    p = len(gradient)
    reference = np.zeros(p) if reference is None else reference
    squares = g.diagonal()
    scale = np.sqrt(np.where(squares > 0, squares, 1.0))
    values, vectors = lapack.eigh(g / scale / scale[:, None])
    top = max(float(values[-1]), EPS**2)
    floor = 8 * p * EPS * top
    seen = values > floor
    root = np.sqrt(np.where(seen, values, floor))
    z = np.where(seen, (vectors.T @ (gradient / scale)) / root, 0.0)
    doubtful = values <= _TRUST_SPAN * top
    if settled:
        root, doubtful = np.where(seen, root, 0.0), doubtful & seen
    f = root[:, None] * vectors.T * scale
    if whitening is not None:
        f = f @ whitening.inverse
    with np.errstate(over="ignore"):
        lengths = lapack.column_norms(f)
    zero = lengths <= _NOTHING * reference
    if whitening is None:
        zero |= squares == 0
    norms = lengths
    if np.count_nonzero(zero):
        f[:, zero] = 0.0
        norms = np.where(zero, np.where(reference > 0, reference, 1.0), lengths)
    return Factor(*lapack.triangle(f, z), norms, not np.count_nonzero(doubtful))
