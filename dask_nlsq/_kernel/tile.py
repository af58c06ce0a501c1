r"""A tile, the few thousand rows that a core's cache takes: what is formed of them, what is summed, as JAX traces it.

The model is evaluated on the tile, and one reverse pass gives every column of its Jacobian: the parameters are handed
to the model once a row, so that the derivative with respect to row i's copy of :math:`\theta_j` *is* :math:`J_{ij}`.
The model sees one row at a time (under ``vmap``), which makes that exact for whatever it does with its parameters. A
model that cannot be differentiated in reverse (a ``while_loop``) takes one forward pass a parameter instead; so does
one that computes much from its parameters alone, such as an integral on a grid, and it sees all rows of the tile at
once, so that this is done once a tile and not once a row. The columns become the rows of a matrix A, of which the
last is the residual; the weight comes in as the cotangent of that pass, so that it costs nothing; and :math:`A A^T`
is formed. A is kept in a few arrays, its parts, and the blocks of that product above its diagonal are not formed.

Whatever else is summed over rows is summed in lanes: XLA adds the numbers of one float64 sum one after another, but
those of many sums side by side.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from dask_nlsq._kernel.additive import Additive
from dask_nlsq._kernel.orthogonal import nearest
from dask_nlsq._model import Objective, loss, saturated

LANES = 256
"""Sums that are kept side by side while a block is read, and added up at its end."""

_CHAIN = np.uint64(33)
"""Multiplier that carries a checksum from tile to tile (Bernstein's): a shift and an addition, for any vector unit."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""Makes odd multipliers, one a row of the tile (golden-ratio hashing), so that swapped rows change the checksum."""

_EXPONENT, _MANTISSA, _ONE = np.uint64(52), np.uint64(2**52 - 1), np.uint64(1023 << 52)
"""A float64 is made of a sign, 11 bits of exponent counted from 1023, and 52 bits of mantissa."""


class Evaluated(NamedTuple):
    """Rows of a tile at a parameter vector."""

    a: list[jax.Array]  # the parts of A
    x: Sequence[jax.Array]  # the columns where the model was evaluated
    weight: jax.Array  # that the columns of the Jacobian are multiplied by, (tile,)
    cost: jax.Array | None = None  # of each row, where it is not half the squared residual
    bend: jax.Array | None = None  # second derivative of that cost with respect to f, beside the squared weight


def jacobian_and_residual(
    objective: Objective,
    theta: jax.Array | Sequence[jax.Array],
    x: Sequence[jax.Array],
    y: jax.Array,
    weight: jax.Array,
    a: Sequence[jax.Array],
    terms: Additive | None = None,
) -> Evaluated:
    """Write the columns of the Jacobian and the residual, all times the weight, over the parts of A, each (n, tile).

    The parts have p + 1 rows together, or a few more, which stay as they are. The columns of a model of which the
    `terms` are known are in their order.
    """

    def one_row(x_row: Sequence[jax.Array], *theta_row: jax.Array) -> jax.Array:
        value = objective.evaluate([c[None] for c in x_row], theta_row, jnp.stack)
        return jnp.asarray(value, jnp.float64)[0]

    stretch: jax.Array | float = 1.0
    if objective.errors:
        theta = list(theta)
        each = jax.vmap(one_row, (0, *(0 if jnp.ndim(t) else None for t in theta)))
        x, weight, stretch = nearest(objective, lambda x, theta: each(x, *theta), theta, x, y, weight)

    def of_rows(f: jax.Array) -> tuple[jax.Array, Evaluated]:
        """Return the weighted residual of values, and the rows without A."""
        if not objective.counts:
            return (f - y) * weight * stretch, Evaluated([], x, weight)
        rows = objective.count_rows(f, y, weight, jnp)
        return rows.residual * rows.scale, Evaluated([], x, rows.scale, rows.cost, rows.bend)

    if terms is not None:
        # The weight of a count is known with the value of the model, and comes in afterwards.
        f, blocks = terms.columns(jnp.stack(list(theta)), x, jnp.ones_like(y) if objective.counts else weight)
        residual, rows = of_rows(f)
        blocks = [block * rows.weight for block in blocks] if objective.counts else blocks
        return rows._replace(a=_columns([*blocks, residual[None]], a))
    if objective.jacobian == "shared":
        f, slopes = _shared(objective, theta, x)
        residual, rows = of_rows(f)
        return rows._replace(a=_columns([slopes * rows.weight, residual[None]], a))

    single_rows = jax.vmap(one_row)
    parameters = [jnp.broadcast_to(t, y.shape) for t in theta]
    if objective.jacobian == "reverse":
        f, pull = jax.vjp(lambda *t: single_rows(x, *t), *parameters)
        residual, rows = of_rows(f)
        jacobian = pull(rows.weight)
    else:
        f, push = jax.linearize(lambda *t: single_rows(x, *t), *parameters)
        residual, rows = of_rows(f)
        zero = jnp.zeros_like(y)
        jacobian = [push(*(rows.weight if i == j else zero for i in range(len(theta)))) for j in range(len(theta))]
    return rows._replace(a=_columns([column[None] for column in (*jacobian, residual)], a))


def _shared(
    objective: Objective, theta: jax.Array | Sequence[jax.Array], x: Sequence[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Return the values of all rows at once, (rows,), and their derivatives by a forward pass each, (p, rows)."""

    def rows(theta: jax.Array) -> jax.Array:
        return jnp.asarray(objective.evaluate(x, list(theta), jnp.stack), jnp.float64)

    f, push = jax.linearize(rows, theta)
    return f, jax.vmap(push)(jnp.eye(len(theta)))


def _columns(blocks: Sequence[jax.Array], a: Sequence[jax.Array]) -> list[jax.Array]:
    """Write columns, in blocks (columns, tile), over the rows of the parts, in order.

    They are written one behind another: stacked, they would be a choice for each element.
    """
    parts, i, row = list(a), 0, 0
    for block in blocks:
        while len(block):
            if row == len(parts[i]):
                i, row = i + 1, 0
            fit = len(parts[i]) - row
            parts[i] = lax.dynamic_update_slice(parts[i], block[:fit], (row, 0))
            row, block = row + min(fit, len(block)), block[fit:]
    return parts


def second_derivatives(
    objective: Objective, theta: jax.Array, x: Sequence[jax.Array], y: jax.Array, weight: jax.Array
) -> jax.Array:
    """Return the second derivatives of the model times residual and squared weight, summed over a tile: (p, p)."""

    def values(t: jax.Array) -> jax.Array:
        return jnp.asarray(objective.evaluate(x, list(t), jnp.stack), jnp.float64)

    def weighed(f: jax.Array) -> jax.Array:
        if not objective.counts:
            return (f - y) * weight**2
        rows = objective.count_rows(f, y, weight, jnp)
        score: jax.Array = rows.residual * rows.scale**2
        return score

    # Only the model is differentiated; the residual that it is multiplied by is a constant here.
    residual = lax.stop_gradient(weighed(values(theta)))
    # A loop of unknown length has no reverse derivative.
    gradient = (jax.grad if objective.jacobian == "reverse" else jax.jacfwd)(lambda t: jnp.sum(residual * values(t)))
    hessian: jax.Array = jax.jacfwd(gradient)(theta)
    return hessian


def products(objective: Objective, rows: Evaluated, s: jax.Array | None) -> dict[str, list[jax.Array]]:
    """Return what is summed of products of A, as blocks (see `blocks`), and the cost where the Gram matrix lacks it.

    The Jacobian is multiplied by s (p, p) before, where given.
    """
    a, weight = rows.a, rows.weight
    residual = a[-1][_residual_row(a, objective.n_parameters)]
    if s is not None:
        a = _whiten(a, s)
    slope = jnp.ones(())
    if objective.quadratic:
        sums = {"gram": _product(a, a)}
    elif rows.cost is not None:
        sums = {"cost": [jnp.sum(in_lanes(lax.optimization_barrier(rows.cost)))], "gram": _product(a, a)}
        if objective.second:
            sums["curvature"] = _product([part * jnp.asarray(rows.bend) for part in a], a)
    else:
        scale = objective.f_scale
        # Rows past the end would have z = 0, where a loss may have infinite derivatives, and 0 times infinity is NaN.
        z = jnp.where(weight > 0, (residual / scale) ** 2, 1.0)
        rho, slope, bend = loss.evaluate(objective.loss, z)
        sums = {
            "cost": [0.5 * scale**2 * jnp.sum(in_lanes(jnp.where(weight > 0, rho, 0.0)))],
            # The factor stands on one side of the product only: on both, XLA computes the fusion anew for each operand,
            # up to seven times slower.
            "gram": _product([part * slope for part in a], a),
            "curvature": _product([part * loss.curvature(z, slope, bend) for part in a], a),
        }
    if objective.sandwich:
        sums["meat"] = _product([part * (slope * residual) ** 2 for part in a], a)
    return sums


def _residual_row(a: Sequence[jax.Array], p: int) -> int:
    """Return where in the last part the residual lies, counted from its end: rows that fill it up come behind."""
    return p - sum(map(len, a))


def _whiten(a: Sequence[jax.Array], s: jax.Array) -> list[jax.Array]:
    """Return A with s (p, p) times its Jacobian, and the residual as it is."""
    p, ends, last = len(s), np.cumsum([len(part) for part in a]), _residual_row(a, len(s))
    whole = jnp.zeros((ends[-1], ends[-1])).at[:p, :p].set(s)
    whitened: list[Any] = [  # sum() begins with the number 0
        sum(block @ part for block, part in zip(jnp.split(row, ends[:-1], axis=1), a, strict=True))
        for row in jnp.split(whole, ends[:-1])
    ]
    return [*whitened[:-1], whitened[-1].at[last].set(a[-1][last])]


def _product(a: Sequence[jax.Array], b: Sequence[jax.Array]) -> list[jax.Array]:
    return [left @ right.T for i, left in enumerate(a) for right in b[: i + 1]]


def blocks(shape: tuple[int, ...], parts: Sequence[int]) -> list[tuple[int, ...]]:
    """Return the shapes of what stands for a symmetric matrix: its blocks on and below the diagonal, row by row.

    A number, of the shape (), stands for itself.
    """
    return [(m, n) for i, m in enumerate(parts) for n in parts[: i + 1]] if shape else [shape]


def assemble(
    parts: Sequence[jax.Array], shape: tuple[int, ...], order: npt.NDArray[np.intp] | None = None
) -> jax.Array:
    """Return the symmetric matrix that some blocks stand for, cut to its shape, or the number.

    `order` says which parameter each of its first p rows and columns belongs to, where that is not its number.
    """
    if not shape:
        return parts[0]
    n = math.isqrt(2 * len(parts))
    rows = [parts[i * (i + 1) // 2 :][: i + 1] for i in range(n)]
    whole = [[rows[i][j] if j <= i else rows[j][i].T for j in range(n)] for i in range(n)]
    matrix = jnp.block(whole)[: shape[0], : shape[1]]
    if order is None:
        return matrix
    back = np.arange(shape[0])
    back[: len(order)] = np.argsort(order)
    return matrix[np.ix_(back, back)]


def moments(y: jax.Array, weight: jax.Array | None) -> list[jax.Array]:
    """Return Σ w² y, Σ w² y², Σ w² and Σ log w over a tile, in lanes; the first two where there are no weights.

    Rows past the end have the weight 0, or y = 0, so that they do not count.
    """
    if weight is None:
        return [in_lanes(y), in_lanes(y * y)]
    w2 = weight**2
    return [in_lanes(w2 * y), in_lanes(w2 * y * y), in_lanes(w2), log_sum(jnp.where(weight > 0, weight, 1.0))]


def count_moments(loss: str, y: jax.Array, origin: jax.Array, weight: jax.Array) -> list[jax.Array]:
    """Return what `moments` does, with the saturated log-likelihood in place of the logarithms.

    The variance of a count is taken to be the count, or 1. Rows past the end have the weight 0.
    """
    w2 = jnp.where(weight > 0, 1.0 / jnp.maximum(y, 1.0), 0.0)
    away = y - origin
    # Formed before it is summed: in one loop with the sum it takes longer.
    likely = lax.optimization_barrier(jnp.where(weight > 0, saturated(loss, y, weight, jnp), 0.0))
    return [in_lanes(w2 * away), in_lanes(w2 * away * away), in_lanes(w2), in_lanes(likely)]


def log_sum(values: jax.Array) -> jax.Array:
    """Return the sum of the logarithms of positive values, in lanes.

    Of the mantissas, 1 to 2, eight are multiplied first; the product of a thousand would be beyond float64.
    """
    bits = lax.bitcast_convert_type(values, jnp.uint64)
    exponents = (bits >> _EXPONENT).astype(jnp.float64) - 1023.0
    mantissas = lax.bitcast_convert_type(bits & _MANTISSA | _ONE, jnp.float64)
    together = math.gcd(8, len(values) // LANES)
    logarithms = jnp.log(jnp.prod(mantissas.reshape(-1, together, LANES), axis=1))
    sums: jax.Array = in_lanes(exponents) * np.log(2.0) + jnp.sum(logarithms, axis=0)
    return sums


def in_lanes(values: jax.Array) -> jax.Array:
    """Return the sums of every 256th value, or of fewer lanes where the values are fewer."""
    return jnp.sum(values.reshape(-1, math.gcd(LANES, len(values))), axis=0)


def total(values: jax.Array) -> jax.Array:
    """Return the sum of a tile or of lanes, in two steps.

    What XLA does of its own accord, sums of 32 and sums of these, takes longer to compile.
    """
    partial: jax.Array = lax.optimization_barrier(jnp.sum(values.reshape(-1, 16, 16), axis=(0, 1)))
    return jnp.sum(partial)


def chain(before: jax.Array, column: jax.Array, place: int | jax.Array = 0) -> jax.Array:
    """Return the checksums of a column, one for each row of a tile, with those of the tiles before.

    A column that is shorter than the tile is the piece of that place in it.
    """
    size = len(column)
    whole = size == len(before)
    piece = before if whole else lax.dynamic_slice(before, (place * size,), (size,))
    bits = lax.bitcast_convert_type(column, jnp.uint64)
    piece = piece * _CHAIN + (bits ^ (bits >> np.uint64(32)))  # products carry a bit upwards only
    return piece if whole else lax.dynamic_update_slice(before, piece, (place * size,))


def checksum(chained: jax.Array) -> jax.Array:
    """Return the one checksum of what has been chained."""
    return total(chained * (np.arange(len(chained), dtype=np.uint64) * _GOLDEN | np.uint64(1)))
