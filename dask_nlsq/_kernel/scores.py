r"""Scores and rows: what a sweep sums of each row, tile by tile formed by what forms a sweep, and not summed.

The score is the derivative of the cost of a row with respect to the parameters, :math:`\rho'_i w_i^2 r_i J_i`. The sum
of the scores is the gradient, and the sum of their squares the middle of the sandwich.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dask_nlsq._kernel import finite_difference
from dask_nlsq._kernel.block import SLABS, TILE, Block, Slab, slabs
from dask_nlsq._kernel.compile_cache import once
from dask_nlsq._kernel.safeguarded_difference import mend_tile
from dask_nlsq._kernel.tile import jacobian_and_residual
from dask_nlsq._model import Objective, loss
from dask_nlsq._typing import Matrix, Vector


def evaluate_scores(objective: Objective, block: Block, theta: Vector) -> Matrix:
    """Return the score of each row at `theta` (p,), the free parameters; shape (rows, p).

    Derivatives that are not finite although the model is are differences, as in a sweep.
    """
    if objective.jacobian == "numeric":
        with jax.enable_x64(True), np.errstate(all="ignore"):
            return finite_difference.scores(objective, block, theta)
    return _formed(objective, block, theta, "scores", len(theta))


def evaluate_residuals(objective: Objective, block: Block, theta: Vector) -> Matrix:
    """Return the weighted Jacobian and residual of each row, (rows, p + 1), of a model that JAX differentiates."""
    return _formed(objective, block, theta, "rows", len(theta) + 1)


_Form = Literal["scores", "rows"]


def _formed(objective: Objective, block: Block, theta: Vector, form: _Form, width: int) -> Matrix:
    """Return what is formed of each row, (rows, width)."""
    parts = [np.empty((0, width))]
    with jax.enable_x64(True), np.errstate(all="ignore"):
        for _, slab in slabs([block], SLABS[0], TILE):
            part = _of_slab(objective, slab, theta, form, mended=False)
            whole = np.isfinite(part).all()
            parts.append(part if whole else _of_slab(objective, slab, theta, form, mended=True))
    return np.concatenate(parts)


def _of_slab(objective: Objective, slab: Slab, theta: Vector, form: _Form, mended: bool) -> Matrix:
    """Return what is formed of the rows of the one block of a slab, (rows, width)."""
    columns = (*slab.x, slab.y) if slab.weight is None else (*slab.x, slab.y, slab.weight)
    kind = (form, mended, *(c.dtype.char for c in columns))
    run = once(objective, kind, lambda: _compile(objective, columns, form, mended))
    tiles = np.asarray(run(theta, columns))  # (tiles, width, rows of a tile)
    formed: Matrix = np.swapaxes(tiles, 1, 2).reshape(-1, tiles.shape[1])[: slab.places[0, 2]]
    return formed


def _compile(objective: Objective, columns: Sequence[Vector], form: _Form, mended: bool) -> jax.stages.Compiled:
    p, k = objective.n_parameters, objective.n_columns

    def of_tile(theta: jax.Array, columns: Sequence[jax.Array]) -> jax.Array:
        *x, y = (column.astype(jnp.float64) for column in columns[: k + 1])
        weight = columns[k + 1] if objective.weighted else jnp.ones(TILE)
        rows = jacobian_and_residual(objective, theta, x, y, weight, [jnp.zeros((p + 1, TILE))])
        (a,) = mend_tile(objective, theta, rows.x, rows.weight, rows.a)[0] if mended else rows.a
        if form == "rows":
            return a
        slope = loss.evaluate(objective.loss, (a[p] / objective.f_scale) ** 2)[1] if objective.robust else 1.0
        return a[:p] * (slope * a[p])

    def run(theta: jax.Array, columns: Sequence[jax.Array]) -> jax.Array:
        tiles = [column.reshape(-1, TILE) for column in columns]
        formed: jax.Array = lax.map(lambda tile: of_tile(theta, tile), tiles)
        return formed

    shapes = tuple(jax.ShapeDtypeStruct(column.shape, column.dtype) for column in columns)
    return jax.jit(run).lower(jax.ShapeDtypeStruct((p,), np.float64), shapes).compile()
