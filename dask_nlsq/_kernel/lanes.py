r"""Lanes: many fits side by side, one in each element of the last axis, as JAX traces them.

Every array has lanes last: points are (points, lanes), parameters (p, lanes), and a symmetric matrix is the list of the
rows of its lower triangle, each entry (lanes,). Sums run over points, and the Cholesky factor of a p × p matrix is
unrolled into operations on (lanes,), so that no matrix product and no call of LAPACK is made for a single fit. What a
lane computes does not depend on the lanes beside it, to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from dask_nlsq._kernel.compile_cache import once
from dask_nlsq._kernel.safeguarded_difference import mend_tile
from dask_nlsq._model import Objective, loss
from dask_nlsq._typing import Matrix

_ELEMENTS = 3072
"""Elements of a tile: what is formed of it stays in a core's first-level cache."""


def tile(lanes: int) -> int:
    """Return the points of a tile of so many lanes: a power of two, for the padded lengths are multiples of it."""
    return 1 << max(_ELEMENTS // lanes, 1).bit_length() - 1


Triangle = list[list[Array]]
"""The lower triangle of a p × p matrix: row i has i + 1 entries, each (lanes,)."""


class Sums(NamedTuple):
    """What is summed over the points of each lane."""

    gram: Triangle  # JᵀJ, with ρ' of a robust loss
    curvature: Triangle  # the same with ρ' + 2zρ''; `gram` where no loss is robust
    gradient: list[Array]  # p entries, each (lanes,)
    cost: Array  # (lanes,)
    finite: Array  # (lanes,), whether the model is finite at every point that counts


class Data(NamedTuple):
    """The points of each lane; a missing point has the weight 0 and repeats one that is there."""

    x: tuple[Array, ...]  # columns, each (points, lanes), or (points, 1) where all lanes share it
    y: Array  # of either shape
    weight: Array  # of either shape


def evaluate(
    objective: Objective,
    theta: Sequence[Array],
    data: Data,
    tiles: Array,
    root: Root | None = None,
    free: Sequence[Array] | None = None,
    mended: bool = False,
) -> Sums:
    """Return the sums at `theta`, p arrays (lanes,); with `root` those of JS, where S is the inverse of its transpose.

    Points are taken in tiles, and the sums of a tile are added to those before it, so that neither the number of lanes
    nor points of weight 0 at the end change a bit.

    Parameters
    ----------
    tiles : Array ()
        So many tiles are taken; points behind them do not count.
    root : Root, optional
        L of :math:`J^T J = L L^T`, with which :math:`S = L^{-T}` makes JS nearly orthonormal.
    free : sequence of Array (lanes,), optional
        1 for each column of J that counts beside a root, and 0 for the others: with booleans, XLA's code is slower.
    mended : bool
        Whether derivatives that are not finite are replaced by differences.
    """
    lanes = len(theta[0])
    p, size = len(theta), tile(lanes)
    nothing = jnp.zeros(lanes)

    def body(k: Array, sums: Sums) -> Sums:
        rows = [lax.dynamic_slice_in_dim(column, k * size, size) for column in (*data.x, data.y, data.weight)]
        added = _sum_tile(objective, theta, Data(tuple(rows[:-2]), rows[-2], rows[-1]), root, free, mended)
        total: Sums = jax.tree.map(jnp.add, sums._replace(finite=nothing), added._replace(finite=nothing))
        return total._replace(finite=sums.finite & added.finite)

    triangle = [[nothing] * (i + 1) for i in range(p)]
    start = Sums(triangle, triangle if objective.robust else [], [nothing] * p, nothing, jnp.ones(lanes, bool))
    found: Sums = lax.fori_loop(0, tiles, body, start)
    return found if objective.robust else found._replace(curvature=found.gram)


def _sum_tile(
    objective: Objective,
    theta: Sequence[Array],
    data: Data,
    root: Root | None,
    free: Sequence[Array] | None,
    mended: bool,
) -> Sums:
    f, columns = derivatives(objective, theta, data)
    if mended:
        columns = _mend(objective, theta, data, columns)
    counts = data.weight > 0
    away, weight, cost = f - data.y, data.weight, None
    if objective.counts:
        away, weight, cost, _ = objective.count_rows(f, data.y, data.weight, jnp)
    residual = jnp.where(counts, away * weight, 0.0)
    columns = [jnp.where(counts, column * weight, 0.0) for column in columns]
    finite = (jnp.isfinite(residual) | ~counts).all(axis=0)
    if free is not None:
        columns = [column * f for f, column in zip(free, columns, strict=True)]
    if root is not None:
        columns = substitute(root, columns)
    if not objective.robust:
        gram = [[_sum(columns[i] * columns[j]) for j in range(i + 1)] for i in range(len(columns))]
        total = 0.5 * _sum(residual * residual) if cost is None else _sum(cost)
        return Sums(gram, [], [_sum(c * residual) for c in columns], total, finite)
    # At z = 0 a loss may have infinite derivatives, of which points that do not count would make NaN.
    z = jnp.where(counts, (residual / objective.f_scale) ** 2, 1.0)
    rho, slope, bend = loss.evaluate(objective.loss, z)
    bent = loss.curvature(z, slope, bend)
    pairs = [[columns[i] * columns[j] for j in range(i + 1)] for i in range(len(columns))]
    return Sums(
        [[_sum(slope * pair) for pair in row] for row in pairs],
        [[_sum(bent * pair) for pair in row] for row in pairs],
        [_sum(c * slope * residual) for c in columns],
        0.5 * objective.f_scale**2 * _sum(jnp.where(counts, rho, 0.0)),
        finite,
    )


def _sum(values: Array) -> Array:
    """Return the sum over the points of a tile."""
    return jnp.sum(values, axis=0)


def derivatives(objective: Objective, theta: Sequence[Array], data: Data) -> tuple[Array, list[Array]]:
    """Return the model, (points, lanes), and its derivatives with respect to each of p parameters, of that shape."""
    shape = len(data.y), len(theta[0])
    x = [jnp.broadcast_to(column, shape) for column in data.x]
    parameters = [jnp.broadcast_to(t, shape) for t in theta]

    def point(x_point: Sequence[Array], *t: Array) -> Array:
        value = objective.evaluate([c[None] for c in x_point], t, jnp.stack)
        return jnp.asarray(value, jnp.float64)[0]

    every = jax.vmap(jax.vmap(point))
    if objective.jacobian == "reverse":
        f, pull = jax.vjp(lambda *t: every(x, *t), *parameters)
        return f, list(pull(jnp.ones(shape)))
    f, push = jax.linearize(lambda *t: every(x, *t), *parameters)
    one, zero = jnp.ones(shape), jnp.zeros(shape)
    return f, [push(*(one if i == j else zero for i in range(len(theta)))) for j in range(len(theta))]


def _mend(objective: Objective, theta: Sequence[Array], data: Data, columns: list[Array]) -> list[Array]:
    """Return the derivatives with differences where they are not finite though the model is."""
    p, shape = len(theta), (len(data.y), len(theta[0]))

    def lane(theta: Array, x: list[Array], weight: Array, jac: Array) -> Array:
        (a,), _, _ = mend_tile(objective, theta, x, weight, [jnp.concatenate([jac, jnp.zeros((1, shape[0]))])])
        return a[:p]

    def mend(jac: Array) -> Array:
        x = [jnp.broadcast_to(column, shape) for column in data.x]
        counts = jnp.broadcast_to((data.weight > 0).astype(jnp.float64), shape)
        return jax.vmap(lane, (1, 1, 1, 2), 2)(jnp.stack(theta), x, counts, jac)

    jac = jnp.stack(columns)
    return list(lax.cond(jnp.isfinite(jac).all(), lambda jac: jac, mend, jac))


def moments(data: Data, lanes: int, tiles: Array) -> tuple[Array, Array]:
    """Return Σ (w y)² and Σ w² (y − mean)² of each lane, (lanes,), tile by tile as in `evaluate`."""
    size = tile(lanes)
    nothing = jnp.zeros(lanes)

    def rows(k: Array) -> tuple[Array, Array]:
        parts = [lax.dynamic_slice_in_dim(column, k * size, size) for column in (data.y, data.weight**2)]
        # In one layout, whatever all lanes share: XLA's order of a sum hangs on it.
        y, w2 = lax.optimization_barrier([jnp.broadcast_to(part, (size, lanes)) for part in parts])
        return y, w2

    def first(k: Array, sums: list[Array]) -> list[Array]:
        y, w2 = rows(k)
        return [total + _sum(values) for total, values in zip(sums, (w2, w2 * y, w2 * y**2), strict=True)]

    def second(k: Array, sums: Array) -> Array:
        y, w2 = rows(k)
        return sums + _sum(w2 * (y - mean) ** 2)

    weight, weighted, response = lax.fori_loop(0, tiles, first, [nothing] * 3)
    mean = weighted / jnp.where(weight > 0, weight, 1.0)
    return response, lax.fori_loop(0, tiles, second, nothing)


class Root(NamedTuple):
    """L of a positive definite matrix A = LLᵀ."""

    below: Triangle  # without the diagonal: row i has i entries
    inverse: list[Array]  # 1 / L_ii, for a division takes as long as ten products


def cholesky(matrix: Triangle) -> tuple[Root, Array]:
    """Return L of A = LLᵀ, and the least ratio of a pivot to its diagonal element, (lanes,).

    The ratio is :math:`1 - R_j^2`, where R_j is the multiple correlation of column j with those before it: the square
    of the distance from a dependency. Where a pivot is not positive, 1 stands for it.
    """
    below: Triangle = []
    inverse: list[Array] = []
    least = jnp.ones_like(matrix[0][0])
    for i, given in enumerate(matrix):
        row: list[Array] = []
        for j in range(i):
            row.append((given[j] - sum(row[k] * below[j][k] for k in range(j))) * inverse[j])
        pivot = given[i] - sum(entry * entry for entry in row)
        least = jnp.minimum(least, jnp.where(given[i] > 0, pivot / given[i], 0.0))
        below.append(row)
        inverse.append(lax.rsqrt(jnp.where(pivot > 0, pivot, 1.0)))
    return Root(below, inverse), least


def substitute(root: Root, vector: Sequence[Array]) -> list[Array]:
    """Return L⁻¹v: forward substitution."""
    found: list[Array] = []
    for row, inverse, value in zip(root.below, root.inverse, vector, strict=True):
        found.append((value - sum(entry * known for entry, known in zip(row, found, strict=True))) * inverse)
    return found


def substitute_back(root: Root, vector: Sequence[Array]) -> list[Array]:
    """Return L⁻ᵀv: back substitution."""
    p = len(vector)
    found: list[Array] = list(vector)
    for i in reversed(range(p)):
        found[i] = (vector[i] - sum(root.below[j][i] * found[j] for j in range(i + 1, p))) * root.inverse[i]
    return found


def multiply(a: Root, b: Root) -> Root:
    """Return the product of two lower triangles, AB."""
    p = len(a.inverse)
    left = [[*row, 1.0 / inverse] for row, inverse in zip(a.below, a.inverse, strict=True)]
    right = [[*row, 1.0 / inverse] for row, inverse in zip(b.below, b.inverse, strict=True)]
    below = [[dot(left[i][j : i + 1], [right[k][j] for k in range(j, i + 1)]) for j in range(i)] for i in range(p)]
    return Root(below, [u * v for u, v in zip(a.inverse, b.inverse, strict=True)])


def dot(a: Sequence[Array], b: Sequence[Array]) -> Array:
    """Return the inner products of two vectors of p entries, (lanes,)."""
    total = a[0] * b[0]
    for u, v in zip(a[1:], b[1:], strict=True):
        total = total + u * v
    return total


def quadratic(matrix: Triangle, vector: Sequence[Array]) -> Array:
    """Return vᵀAv, (lanes,)."""
    total = jnp.zeros_like(vector[0])
    for i, row in enumerate(matrix):
        for j, entry in enumerate(row):
            total = total + (1.0 if i == j else 2.0) * entry * vector[i] * vector[j]
    return total


def only(matrix: Triangle, free: Sequence[Array]) -> Triangle:
    """Return a matrix with the rows and columns of the identity for parameters whose `free`, (lanes,), is 0."""
    return [
        [jnp.where(free[i] > 0, row[i], 1.0) if i == j else free[i] * free[j] * row[j] for j in range(i + 1)]
        for i, row in enumerate(matrix)
    ]


def choose(wanted: Array, first: Triangle, second: Triangle) -> Triangle:
    """Return the first matrix in lanes where it is wanted, (lanes,), and the second in the others."""
    return [[jnp.where(wanted, a, b) for a, b in zip(*rows, strict=True)] for rows in zip(first, second, strict=True)]


def predict_lanes(objective: Objective, x: Sequence[Matrix], theta: Matrix) -> Matrix:
    """Return the model of many series, (n, points), at columns (n, points) and all its parameters `theta` (n, all)."""

    def compiled() -> jax.stages.Wrapped:
        def one(x_point: Sequence[Array], t: Array) -> Array:
            value = objective.model([c[None] for c in x_point], objective.with_whole(list(t)), jnp.stack)
            return jnp.asarray(value, jnp.float64)[0]

        return jax.jit(jax.vmap(jax.vmap(one, (0, None)), (0, 0)))

    with jax.enable_x64(True):
        return np.asarray(once(objective, "predict lanes", compiled)(tuple(x), theta))
