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

from dask_nlsq._numerics.factor import EPS, Factor
from dask_nlsq._typing import Matrix, Vector

_NOTHING = 1e-12
"""Length of a projected column of J, beside its own, from which it is rounding."""


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
    """Take the linear parameters out of the problem that a factor describes."""
    lengths = factor.norms[linear]
    u, sigma, vt = np.linalg.svd(factor.r[:, linear] / lengths, full_matrices=False)
    seen = sigma > 64 * factor.p * EPS * max(sigma[0], EPS)
    u, sigma, vt = u[:, seen], sigma[seen], vt[seen]
    columns = factor.r[:, ~linear]
    z1, inside = u.T @ factor.z, u.T @ columns
    outside = columns - u @ inside
    own = np.linalg.norm(columns, axis=0)
    projected = np.linalg.norm(outside, axis=0)
    zero = projected <= _NOTHING * own
    outside[:, zero] = 0.0
    q, r = np.linalg.qr(outside)
    norms = np.where(zero, np.where(own > 0, own, 1.0), projected)
    inverse = (vt.T / sigma) / lengths[:, None]
    return Projection(
        linear,
        Factor(r, q.T @ (factor.z - u @ z1), norms, factor.reliable),
        -(inverse @ z1),
        -(inverse @ inside),
        0.5 * float(z1 @ z1),
    )
