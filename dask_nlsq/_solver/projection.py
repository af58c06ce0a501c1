r"""Projection: the least-squares problem of the nonlinear parameters alone, the linear ones at their best.

With the columns of the triangle in two parts, :math:`R_\beta` of the parameters in which the model is linear and
:math:`R_\alpha` of the others, the best :math:`\beta` for a step of :math:`\alpha` is

.. math:: \delta_\beta = -R_\beta^+ (z + R_\alpha \delta_\alpha),

and what is left of the cost, :math:`\tfrac12 |P(z + R_\alpha \delta_\alpha)|^2` with
:math:`P = I - R_\beta R_\beta^+`, depends on :math:`\alpha` alone: variable projection (Golub & Pereyra 1973,
doi:10.1137/0710036) with the Jacobian of Kaufman (1975, doi:10.1007/BF01932995). No further pass over the data is
needed, for the triangle holds all of it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from dask_nlsq._solver import lapack
from dask_nlsq._solver.factor import EPS, Factor
from dask_nlsq._typing import Matrix, Vector

_NOTHING = 1e-12
"""Length of a projected column of J, beside its own, from which it is rounding."""

_ROUNDING = 1e-12
"""Cost with the linear parameters at their optimum, relative to the cost before, that rounding hides."""


@dataclasses.dataclass(frozen=True)
class Projection:
    """The problem of the nonlinear parameters at one point."""

    linear: npt.NDArray[np.bool_]  # (p,)
    factor: Factor  # of the projected columns of J, (q, q)
    best: Vector  # (p - q,), the step of the linear parameters that alone is best
    follow: Matrix  # (p - q, q), how that step changes with a step of the others
    explained: float  # decrease of the cost that `best` brings

    def lift(self, step: Vector) -> Vector:
        """Return the step of all parameters, (p,), that goes with one of the nonlinear ones, (q,)."""
        delta = np.empty(len(self.linear))
        delta[~self.linear] = step
        delta[self.linear] = self.best + self.follow @ step
        return delta


def project(factor: Factor, linear: npt.NDArray[np.bool_]) -> Projection:
    """Take the linear parameters out of the problem that a factor describes; at the second call, what it returned."""
    known, which = factor.projections, linear.tobytes()
    if which not in known:
        known[which] = _project(factor, linear)
    projection: Projection = known[which]
    return projection


def _project(factor: Factor, linear: npt.NDArray[np.bool_]) -> Projection:
    lengths = factor.norms[linear]
    u, sigma, vt = lapack.thin_svd(factor.r[:, linear] / lengths)
    seen = sigma > 64 * factor.p * EPS * max(sigma[0], EPS)
    if np.count_nonzero(seen) < len(seen):
        u, sigma, vt = u[:, seen], sigma[seen], vt[seen]
    columns = factor.r[:, ~linear]
    z1, inside = u.T @ factor.z, u.T @ columns
    outside = columns - u @ inside
    column_norms = lapack.column_norms(columns)
    projected = lapack.column_norms(outside)
    norms, zero = projected, projected <= _NOTHING * column_norms
    if np.count_nonzero(zero):
        outside[:, zero] = 0.0
        norms = np.where(zero, np.where(column_norms > 0, column_norms, 1.0), projected)
    q, r = lapack.qr(outside)
    inverse = (vt.T / sigma) / lengths[:, None]
    return Projection(
        linear,
        Factor(r, q.T @ (factor.z - u @ z1), norms, factor.reliable),
        -(inverse @ z1),
        -(inverse @ inside),
        0.5 * float(z1 @ z1),
    )


def project_many(grams: Matrix, linear: npt.NDArray[np.bool_]) -> tuple[Vector, Matrix]:
    """Return the costs at many points with the linear parameters at their optimum, (k,), and the steps to it, (k, p).

    The Gram matrices `grams` (k, p + 1, p + 1) hold the squares of the condition numbers, which suffices to rank the
    points. A cost is at least the rounding error of the one before the step.
    """
    within, slopes = grams[:, :-1, :-1][:, linear][:, :, linear], grams[:, :-1, -1][:, linear]
    squares = np.diagonal(within, axis1=1, axis2=2)
    scale = np.sqrt(np.where(squares > 0, squares, 1.0))
    values, vectors = np.linalg.eigh(within / scale[:, :, None] / scale[:, None, :])
    seen = values > 8 * len(linear) * EPS * np.maximum(values[:, -1:], EPS)
    along = np.einsum("kji,kj->ki", vectors, slopes / scale)
    amounts = np.where(seen, along / np.where(seen, values, 1.0), 0.0)
    steps = np.zeros((len(grams), len(linear)))
    steps[:, linear] = -np.einsum("kij,kj->ki", vectors, amounts) / scale
    costs = 0.5 * grams[:, -1, -1]
    return np.maximum(costs - 0.5 * np.sum(along * amounts, axis=1), _ROUNDING * costs), steps
