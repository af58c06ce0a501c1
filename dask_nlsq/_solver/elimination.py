r"""Elimination: what the points of a series say of parameters that it shares with others.

With the series' own parameters u at their best for the shared ones s, its Jacobian is :math:`(J_u\ J_s)`. What is left
of :math:`J_s` and of the residuals once the span of :math:`J_u` is projected out,

.. math:: S = J_s^T (I - P_u) J_s, \qquad b = J_s^T (I - P_u) r,

is the Schur complement of :math:`J_u^T J_u` and the gradient beside it. Their sums over all series are the normal
equations of the shared parameters, as in variable projection (Golub & Pereyra, doi:10.1137/0710036). J is evaluated
with its columns nearly orthonormal, as in `last_step`, so that no digits are lost where :math:`J_s` lies nearly in the
span of :math:`J_u`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax

from dask_nlsq._kernel import lanes, once
from dask_nlsq._model import Objective
from dask_nlsq._solver.batched import Series, Shape, as_queue, fill, holds_step, pick, tiles_of
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
    own: int,
) -> Eliminated:
    """Return what each series says of the parameters behind its first `own` ones, at theta (n, p).

    Parameters
    ----------
    free : ndarray of bool (n, p)
        The own parameters that neither are fixed nor lie at a bound, and that the series determines.
    curvature : ndarray (n, p (p + 1) / 2)
        :math:`J^T J` there or nearby, as `Fits` has it.
    """
    shape, q = Shape.of(series.y.shape[1]), theta.shape[1] - own
    series = series.padded(shape)
    sizes = ((), (q, q), (q, q), (q, q), (q,), (own, q))
    found = Eliminated(*(np.full((len(theta), *size), np.nan) for size in sizes))
    shared = tuple(len(c) == 1 for c in (*series.x, series.y, series.weight))
    with jax.enable_x64(True):
        for mended in (False, True):
            rows = np.flatnonzero(np.isfinite(found.cost) & ~np.isfinite(found.gradient).all(axis=1))
            rows = rows if mended else np.arange(len(theta))
            compiling = functools.partial(_compile, objective, shape, shared, own, mended)
            for some in np.split(rows, range(shape.queue, len(rows), shape.queue)) if len(rows) else ():
                run = once(objective, ("eliminate", shape, shared, own, mended), compiling)
                part = series.take(some)
                values = run(
                    *(fill(each[some].astype(float), shape.queue) for each in (theta, free, curvature)),
                    as_queue((*part.x, part.y, part.weight), shape.queue, shared),
                    tiles_of(part, shape),
                    -(-len(some) // shape.lanes),
                )
                for column, value in zip(found, values, strict=True):
                    column[some] = np.asarray(value)[: len(some)]
    return found


def _compile(objective: Objective, shape: Shape, shared: Sequence[bool], own: int, mended: bool) -> jax.stages.Compiled:
    p, n = objective.n_parameters, shape.queue
    real, whole = functools.partial(jax.ShapeDtypeStruct, dtype=np.float64), jax.ShapeDtypeStruct((), np.int64)
    columns = [real((1 if one else n, shape.points)) for one in shared]
    rows = [real((n, p)), real((n, p)), real((n, p * (p + 1) // 2))]
    run = functools.partial(_eliminate, objective, own, mended, shape.lanes)
    return jax.jit(run).lower(*rows, columns, whole, whole).compile()


def _eliminate(
    objective: Objective,
    own: int,
    mended: bool,
    abreast: int,
    theta: Array,
    free: Array,
    curvature: Array,
    columns: list[Array],
    tiles: Array,
    groups: Array,
) -> list[Array]:
    """Evaluate so many groups of lanes of a queue."""
    n, p = theta.shape
    q = p - own

    def group(k: Array, known: list[Array]) -> list[Array]:
        place = k * abreast + jnp.arange(abreast)
        *x, y, weight = [pick(rows, place) for rows in columns]
        entries = iter(pick(curvature, place))
        triangle = [[next(entries) for _ in range(i + 1)] for i in range(p)]
        at = list(pick(theta, place)), list(pick(free, place)), triangle
        part = _eliminate_lanes(objective, own, mended, *at, lanes.Data(tuple(x), y, weight), tiles)
        return [
            lax.dynamic_update_slice_in_dim(rows, new, k * abreast, 0) for rows, new in zip(known, part, strict=True)
        ]

    square = jnp.zeros((n, q, q))
    start = [jnp.zeros(n), square, square, square, jnp.zeros((n, q)), jnp.zeros((n, own, q))]
    known: list[Array] = lax.fori_loop(0, groups, group, start)
    return known


def _eliminate_lanes(
    objective: Objective,
    own: int,
    mended: bool,
    theta: list[Array],
    free: list[Array],
    curvature: lanes.Triangle,
    data: lanes.Data,
    tiles: Array,
) -> list[Array]:
    """Return for each lane what `Eliminated` has, in its order."""
    p = len(theta)
    one, zero = jnp.ones_like(theta[0]), jnp.zeros_like(theta[0])
    if objective.robust:  # the curvature of a robust loss is no sum of products of columns
        sums = lanes.evaluate(objective, theta, data, tiles, mended=mended)
        gram, curved = lanes.only(sums.gram, free), lanes.only(sums.curvature, free)
        curved = lanes.choose(holds_step(sums._replace(gram=gram, curvature=curved), own), curved, gram)
        root = lanes.Root([[zero] * i for i in range(p)], [one] * p)
        gradient = [g * f for g, f in zip(sums.gradient, free, strict=True)]
    else:
        root, _ = lanes.cholesky(lanes.only(curvature, free))
        root = lax.optimization_barrier(root)
        sums = lanes.evaluate(objective, theta, data, tiles, root, free, mended)
        gram = curved = lanes.only(sums.gram, free)
        gradient = sums.gradient
    inner, _, _ = _schur(gram, gradient, own)
    curved_inner, left, slopes = _schur(curved, gradient, own)
    full = [[*row, 1.0 / inverse] for row, inverse in zip(root.below, root.inverse, strict=True)]
    shared = range(own, p)
    lower = [[full[i][j] if j <= i else zero for j in shared] for i in shared]
    # J_s = P_u (L_suᵀ + Y L_ssᵀ) + what is orthogonal to the span of P_u, and J_u = P_u L_uuᵀ.
    mixed = [
        [full[s][u] + sum(slopes[k][u] * lower[i][k] for k in range(p - own)) for u in range(own)]
        for i, s in enumerate(shared)
    ]
    front = lanes.Root(root.below[:own], root.inverse[:own])
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
    matrix: lanes.Triangle, gradient: Sequence[Array], own: int
) -> tuple[list[list[Array]], list[Array], list[list[Array]]]:
    """Return the Schur complement of the first rows, the gradient beside it, and A_uu⁻¹A_us as a list a column."""
    front, _ = lanes.cholesky(matrix[:own])
    rows = [lanes.substitute(front, matrix[s][:own]) for s in range(own, len(matrix))]
    known = lanes.substitute(front, gradient[:own])
    complement = [
        [matrix[max(own + i, own + j)][min(own + i, own + j)] - lanes.dot(a, b) for j, b in enumerate(rows)]
        for i, a in enumerate(rows)
    ]
    left = [g - lanes.dot(row, known) for g, row in zip(gradient[own:], rows, strict=True)]
    return complement, left, [lanes.substitute_back(front, row) for row in rows]


def _stack(rows: Sequence[Sequence[Array]]) -> Array:
    """Return matrices (lanes, rows, columns)."""
    return jnp.stack([jnp.stack(list(row), axis=1) for row in rows], axis=1)
