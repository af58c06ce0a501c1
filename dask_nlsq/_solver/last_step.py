r"""Last step: what one more evaluation at the end of each fit tells, with all the digits of its Jacobian.

The normal equations hold half of the digits of an ill-conditioned J. Here J is evaluated as JS, where S makes its
columns nearly orthonormal: with :math:`J^T J = L L^T` and :math:`S = L^{-T}`, the triangle of J is
:math:`L` times that of JS (CholeskyQR2, Fukaya et al. 2014, doi:10.1109/ScalA.2014.11). The Gauss-Newton step that
remains and the covariance follow from it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax

from dask_nlsq._kernel import lanes, once
from dask_nlsq._model import Objective
from dask_nlsq._solver.batched import Series, Shape, as_queue, convex, fill, pick, tiles_of
from dask_nlsq._typing import Matrix, Vector

T = TypeVar("T")


class Settled(NamedTuple):
    """What one more evaluation of each end tells, a row each."""

    step: Matrix  # (n, p), the Gauss-Newton step that remains, of the free parameters
    decrease: Vector  # (n,), of the cost, that it is expected to bring
    cost: Vector  # (n,), before it
    inverse: npt.NDArray[np.float64]  # (n, p, p), (JᵀJ)⁻¹ of the free parameters, zero for the others
    pivot: Vector  # (n,), least ratio of a pivot to its diagonal element: nothing where columns of J are dependent


def settle(
    objective: Objective,
    series: Series,
    theta: Matrix,
    free: npt.NDArray[np.bool_],
    curvature: Matrix | None = None,
) -> Settled:
    """Return what is known at each theta (n, p), with the digits of an orthogonal factorisation.

    Parameters
    ----------
    free : ndarray of bool (n, p)
        The parameters that neither are fixed nor lie at a bound that holds them.
    curvature : ndarray (n, p (p + 1) / 2), optional
        :math:`J^T J` there or nearby, as `Fits` has it, from which S is made; without it J is evaluated as it is.
    """
    if curvature is None:
        identity = np.eye(theta.shape[1])[np.tril_indices(theta.shape[1])]
        curvature = np.broadcast_to(identity, (len(theta), len(identity)))
    shape, p = Shape.of(series.y.shape[1]), theta.shape[1]
    series = series.padded(shape)
    found = Settled(*(np.full((len(theta), *more), np.nan) for more in ((p,), (), (), (p, p), ())))
    with jax.enable_x64(True):
        _settle_rows(objective, series, shape, theta, free, curvature, np.arange(len(theta)), found, mended=False)
        again = np.flatnonzero(np.isfinite(found.cost) & ~np.isfinite(found.inverse).all(axis=(1, 2)))
        if len(again):
            _settle_rows(objective, series, shape, theta, free, curvature, again, found, mended=True)
    return found


def _settle_rows(
    objective: Objective,
    series: Series,
    shape: Shape,
    theta: Matrix,
    free: npt.NDArray[np.bool_],
    curvature: Matrix,
    rows: npt.NDArray[np.int64],
    found: Settled,
    mended: bool,
) -> None:
    """Write what is known of some fits."""
    shared = tuple(len(c) == 1 for c in (*series.x, series.y, series.weight))
    compiling = functools.partial(_compile, objective, shape, shared, mended)
    run = once(objective, ("settle", shape, shared, mended), compiling)
    for some in np.split(rows, range(shape.queue, len(rows), shape.queue)):
        part = series.take(some)
        columns = as_queue((*part.x, part.y, part.weight), shape.queue, shared)
        values = run(
            *(fill(rows[some].astype(float), shape.queue) for rows in (theta, free, curvature)),
            columns,
            tiles_of(part, shape),
            -(-len(some) // shape.lanes),
        )
        for column, value in zip(found, values, strict=True):
            column[some] = np.asarray(value)[: len(some)]


def _compile(objective: Objective, shape: Shape, shared: Sequence[bool], mended: bool) -> jax.stages.Compiled:
    p = objective.n_parameters
    real = functools.partial(jax.ShapeDtypeStruct, dtype=np.float64)
    columns = [real((1 if one else shape.queue, shape.points)) for one in shared]
    n = shape.queue
    whole = jax.ShapeDtypeStruct((), np.int64)
    rows = [real((n, p)), real((n, p)), real((n, p * (p + 1) // 2))]
    run = functools.partial(_settle, objective, mended, shape.lanes)
    return jax.jit(run).lower(*rows, columns, whole, whole).compile()


def _settle(
    objective: Objective,
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
    p = objective.n_parameters

    def group(k: Array, known: list[Array]) -> list[Array]:
        place = k * abreast + jnp.arange(abreast)
        *x, y, weight = [pick(rows, place) for rows in columns]
        entries = iter(pick(curvature, place))
        triangle = [[next(entries) for _ in range(i + 1)] for i in range(p)]
        at = list(pick(theta, place)), list(pick(free, place)), triangle
        part = _settle_lanes(objective, *at, lanes.Data(tuple(x), y, weight), tiles, mended)
        return [
            lax.dynamic_update_slice_in_dim(rows, new, k * abreast, 0) for rows, new in zip(known, part, strict=True)
        ]

    n = len(theta)
    vector, matrix = jnp.zeros(n), jnp.zeros((n, p, p))
    known: list[Array] = lax.fori_loop(0, groups, group, [jnp.zeros((n, p)), vector, vector, matrix, vector])
    return known


def _settle_lanes(
    objective: Objective,
    theta: list[Array],
    free: list[Array],
    curvature: lanes.Triangle,
    data: lanes.Data,
    tiles: Array,
    mended: bool,
) -> list[Array]:
    """Return for each lane what `Settled` has, in its order."""
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
    return [jnp.stack(step, 1), decrease, sums.cost, square.reshape(-1, p, p), pivot]


def _barrier(values: T) -> T:
    """Return values across which XLA fuses nothing: it would compute them anew for each of their uses."""
    kept: T = lax.optimization_barrier(values)
    return kept


def square(packed: Matrix) -> npt.NDArray[np.float64]:
    """Return symmetric matrices (n, p, p) from the rows of their lower triangles, (n, p (p + 1) / 2)."""
    p = int(np.sqrt(2 * packed.shape[1]))
    whole = np.zeros((len(packed), p, p))
    i, j = np.tril_indices(p)
    whole[:, i, j] = whole[:, j, i] = packed
    return whole
