r"""Elimination: what the points of a series say of parameters that it shares with others.

With the series' own parameters u at their best for the shared ones s, its Jacobian is :math:`(J_u\ J_s)`. What is left
of :math:`J_s` and of the residuals once the span of :math:`J_u` is projected out,

.. math:: S = J_s^T (I - P_u) J_s, \qquad b = J_s^T (I - P_u) r,

is the Schur complement of :math:`J_u^T J_u` and the gradient beside it. Their sums over all series are the normal
equations of the shared parameters, as in variable projection (Golub & Pereyra, doi:10.1137/0710036). J is evaluated
with its columns nearly orthonormal, as in `batched_newton`, so that no digits are lost where :math:`J_s` lies nearly in
the span of :math:`J_u`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax

from dask_nlsq._kernel import lanes
from dask_nlsq._model import Objective
from dask_nlsq._solver.batched import Series, holds_step
from dask_nlsq._solver.evaluation import LanePoint, evaluate_series
from dask_nlsq._typing import Matrix, Vector

Matrices = npt.NDArray[np.float64]


class Eliminated(NamedTuple):
    """What each series says of the q shared parameters once its r own ones are eliminated, a row each.

    S is ``root @ inner @ root.T``, and b is ``root @ gradient``.
    """

    cost: Vector  # (n,)
    root: Matrices  # (n, q, q), lower triangles
    inner: Matrices  # (n, q, q)
    curved: Matrices  # (n, q, q), `inner` with the curvature of a robust loss; the same where it is linear
    gradient: Matrix  # (n, q)
    coupling: Matrices  # (n, r, q), the change of the own parameters at their best with the shared ones is −coupling


def eliminate(
    objective: Objective,
    series: Series,
    theta: Matrix,
    free: npt.NDArray[np.bool_],
    curvature: Matrix,
    n_own: int,
) -> Eliminated:
    """Return what each series says of the parameters behind its first `n_own` ones, at theta (n, p).

    Parameters
    ----------
    free : ndarray of bool (n, p)
        The own parameters that neither are fixed nor lie at a bound, and that the series determines.
    curvature : ndarray (n, p (p + 1) / 2)
        :math:`J^T J` there or nearby, as `Fits` has it.
    """
    q = theta.shape[1] - n_own
    sizes = (), (q, q), (q, q), (q, q), (q,), (n_own, q)
    function = functools.partial(_eliminate_lanes, n_own)
    return Eliminated(
        *evaluate_series(function, ("eliminate", n_own), sizes, objective, series, theta, free, curvature)
    )


def _eliminate_lanes(n_own: int, objective: Objective, point: LanePoint, mended: bool) -> list[Array]:
    """Return for each lane what `Eliminated` has, in its order."""
    theta, free, curvature, data, tiles = point
    p = len(theta)
    one, zero = jnp.ones_like(theta[0]), jnp.zeros_like(theta[0])
    if objective.robust:  # the curvature of a robust loss is no sum of products of columns
        sums = lanes.evaluate(objective, theta, data, tiles, mended=mended)
        gram, curved = lanes.only(sums.gram, free), lanes.only(sums.curvature, free)
        curved = lanes.choose(holds_step(sums._replace(gram=gram, curvature=curved), n_own), curved, gram)
        root = lanes.Root([[zero] * i for i in range(p)], [one] * p)
        gradient = [g * f for g, f in zip(sums.gradient, free, strict=True)]
    else:
        root, _ = lanes.cholesky(lanes.only(curvature, free))
        root = lax.optimization_barrier(root)
        sums = lanes.evaluate(objective, theta, data, tiles, root, free, mended)
        gram = curved = sums.gram
        gradient = sums.gradient
    inner, _, _ = _schur(gram, gradient, n_own)
    curved_inner, left, slopes = _schur(curved, gradient, n_own)
    full = [[*row, 1.0 / inverse] for row, inverse in zip(root.below, root.inverse, strict=True)]
    shared = range(n_own, p)
    lower = [[full[i][j] if j <= i else zero for j in shared] for i in shared]
    # J_s = P_u (L_suᵀ + Y L_ssᵀ) + what is orthogonal to the span of P_u, and J_u = P_u L_uuᵀ.
    mixed = [
        [full[s][u] + sum(slopes[k][u] * lower[i][k] for k in range(p - n_own)) for u in range(n_own)]
        for i, s in enumerate(shared)
    ]
    front = lanes.Root(root.below[:n_own], root.inverse[:n_own])
    coupling = [lanes.substitute_back(front, column) for column in mixed]  # q lists of r entries
    coupling = [[f * entry for f, entry in zip(free, column, strict=False)] for column in coupling]
    return [
        sums.cost,
        _stack(lower),
        _stack(inner),
        _stack(curved_inner),
        jnp.stack(left, axis=1),
        _stack([list(row) for row in zip(*coupling, strict=True)]),
    ]


def _schur(
    matrix: lanes.Triangle, gradient: Sequence[Array], n_own: int
) -> tuple[list[list[Array]], list[Array], list[list[Array]]]:
    """Return the Schur complement of the first rows, the gradient beside it, and A_uu⁻¹A_us as a list a column."""
    front, _ = lanes.cholesky(matrix[:n_own])
    rows = [lanes.substitute(front, matrix[s][:n_own]) for s in range(n_own, len(matrix))]
    known = lanes.substitute(front, gradient[:n_own])
    complement = [
        [matrix[max(n_own + i, n_own + j)][min(n_own + i, n_own + j)] - lanes.dot(a, b) for j, b in enumerate(rows)]
        for i, a in enumerate(rows)
    ]
    left = [g - lanes.dot(row, known) for g, row in zip(gradient[n_own:], rows, strict=True)]
    return complement, left, [lanes.substitute_back(front, row) for row in rows]


def _stack(rows: Sequence[Sequence[Array]]) -> Array:
    """Return matrices (lanes, rows, columns)."""
    return jnp.stack([jnp.stack(list(row), axis=1) for row in rows], axis=1)
