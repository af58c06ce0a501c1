r"""Gauss-Newton: the step that remains at the end of each of many fits, with all the digits of its Jacobian.

The normal equations hold half of the digits of an ill-conditioned J. Here J is evaluated as JS, where S makes its
columns nearly orthonormal: with :math:`J^T J = L L^T` and :math:`S = L^{-T}`, the triangle of J is
:math:`L` times that of JS (CholeskyQR2, Fukaya et al. 2014, doi:10.1109/ScalA.2014.11). The Gauss-Newton step that
remains and the covariance follow from it.
"""

from __future__ import annotations

from typing import NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax

from dask_nlsq._kernel import lanes
from dask_nlsq._model import Objective
from dask_nlsq._solver.batched import Series, convex
from dask_nlsq._solver.evaluation import LanePoint, evaluate_series
from dask_nlsq._typing import Matrix, Vector

T = TypeVar("T")


class GaussNewton(NamedTuple):
    """The Gauss-Newton step of each of n series, and what the covariance follows from."""

    cost: Vector  # (n,), before the step
    step: Matrix  # (n, p), of the free parameters
    decrease: Vector  # (n,), of the cost, that the step is expected to bring
    inverse: npt.NDArray[np.float64]  # (n, p, p), (JᵀJ)⁻¹ of the free parameters, zero for the others
    pivot: Vector  # (n,), least ratio of a pivot to its diagonal element: nothing where columns of J are dependent
    response: Vector  # (n,), Σ (w y)²
    spread: Vector  # (n,), Σ w² (y − mean)²


def gauss_newton_steps(
    objective: Objective,
    series: Series,
    theta: Matrix,
    free: npt.NDArray[np.bool_],
    curvature: Matrix | None = None,
) -> GaussNewton:
    """Return the step at each theta (n, p), with the digits of an orthogonal factorisation.

    Parameters
    ----------
    free : ndarray of bool (n, p)
        The parameters that neither are fixed nor lie at a bound.
    curvature : ndarray (n, p (p + 1) / 2), optional
        :math:`J^T J` there or nearby, as `Fits` has it, from which S is made; without it J is evaluated as it is.
    """
    p = theta.shape[1]
    if curvature is None:
        identity = np.eye(p)[np.tril_indices(p)]
        curvature = np.broadcast_to(identity, (len(theta), len(identity)))
    sizes = (), (p,), (), (p, p), (), (), ()
    return GaussNewton(*evaluate_series(_step_lanes, "gauss-newton", sizes, objective, series, theta, free, curvature))


def _step_lanes(objective: Objective, point: LanePoint, mended: bool) -> list[Array]:
    """Return for each lane what `GaussNewton` has, in its order."""
    theta, free, curvature, data, tiles = point
    p = len(theta)
    if objective.robust:  # the curvature of a robust loss is no sum of products of columns
        sums = lanes.evaluate(objective, theta, data, tiles, mended=mended)
        sums = sums._replace(gram=lanes.only(sums.gram, free), curvature=lanes.only(sums.curvature, free))
        root, pivot = lanes.cholesky(convex(sums))
        z = lanes.substitute(root, [g * f for g, f in zip(sums.gradient, free, strict=True)])
    else:
        first, pivot = lanes.cholesky(lanes.only(curvature, free))
        first = _barrier(first)
        sums = lanes.evaluate(objective, theta, data, tiles, first, free, mended)
        second, least = lanes.cholesky(lanes.only(sums.gram, free))
        second, pivot = _barrier((second, jnp.minimum(pivot, least)))
        z = lanes.substitute(second, sums.gradient)
        root = lanes.multiply(first, second)
    root, z = _barrier((root, z))
    one, zero = jnp.ones_like(theta[0]), jnp.zeros_like(theta[0])
    rows = [lanes.substitute(root, [one if i == j else zero for i in range(p)]) for j in range(p)]
    inverse = [[free[i] * free[j] * lanes.dot(rows[i], rows[j]) for j in range(i + 1)] for i in range(p)]
    step, decrease = [-s * f for s, f in zip(lanes.substitute_back(root, z), free, strict=True)], 0.5 * lanes.dot(z, z)
    step, decrease, inverse = _barrier((step, decrease, inverse))
    square = jnp.stack([inverse[max(i, j)][min(i, j)] for i in range(p) for j in range(p)], axis=1)
    response, spread = lanes.moments(data, len(pivot), tiles)
    return [sums.cost, jnp.stack(step, axis=1), decrease, square.reshape(-1, p, p), pivot, response, spread]


def _barrier(values: T) -> T:
    """Return values across which XLA fuses nothing: it would compute them anew for each of their uses."""
    kept: T = lax.optimization_barrier(values)
    return kept
