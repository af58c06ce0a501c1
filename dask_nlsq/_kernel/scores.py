r"""Scores: the derivative of the cost of each row with respect to the parameters, :math:`\rho'_i w_i^2 r_i J_i`.

Their sum is the gradient, and the sum of their squares the middle of the sandwich. Tile by tile they are formed by what
forms a sweep, and are not summed.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    with jax.enable_x64(True), np.errstate(all="ignore"):
        if objective.jacobian == "numeric":
            return finite_difference.scores(objective, block, theta)
        parts = [np.empty((0, len(theta)))]
        for _, slab in slabs([block], SLABS[0], TILE):
            part = _scores(objective, slab, theta, mended=False)
            parts.append(part if np.isfinite(part).all() else _scores(objective, slab, theta, mended=True))
    return np.concatenate(parts)


def _scores(objective: Objective, slab: Slab, theta: Vector, mended: bool) -> Matrix:
    """Return the scores of the one block of a slab, (rows, p)."""
    columns = (*slab.x, slab.y) if slab.weight is None else (*slab.x, slab.y, slab.weight)
    kind = ("scores", mended, *(c.dtype.char for c in columns))
    run = once(objective, kind, lambda: _compile(objective, columns, mended))
    tiles = np.asarray(run(theta, columns))  # (tiles, p, rows of a tile)
    scores: Matrix = np.swapaxes(tiles, 1, 2).reshape(-1, len(theta))[: slab.places[0, 2]]
    return scores


def _compile(objective: Objective, columns: Sequence[Vector], mended: bool) -> jax.stages.Compiled:
    p, k = objective.n_parameters, objective.n_columns

    def of_tile(theta: jax.Array, columns: Sequence[jax.Array]) -> jax.Array:
        *x, y = (column.astype(jnp.float64) for column in columns[: k + 1])
        weight = columns[k + 1] if objective.weighted else jnp.ones(TILE)
        rows = jacobian_and_residual(objective, theta, x, y, weight, [jnp.zeros((p + 1, TILE))])
        (a,) = mend_tile(objective, theta, rows.x, rows.weight, rows.a)[0] if mended else rows.a
        slope = loss.evaluate(objective.loss, (a[p] / objective.f_scale) ** 2)[1] if objective.robust else 1.0
        return a[:p] * (slope * a[p])

    def run(theta: jax.Array, columns: Sequence[jax.Array]) -> jax.Array:
        tiles = [column.reshape(-1, TILE) for column in columns]
        scores: jax.Array = lax.map(lambda tile: of_tile(theta, tile), tiles)
        return scores

    shapes = tuple(jax.ShapeDtypeStruct(column.shape, column.dtype) for column in columns)
    return jax.jit(run).lower(jax.ShapeDtypeStruct((p,), np.float64), shapes).compile()
