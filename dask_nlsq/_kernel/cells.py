"""Counts of rows in the cells of grids of two columns, by one compiled call without Python's lock.

NumPy would take some forty short passes over the rows, between which threads wait for the lock longer than they count.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from dask_nlsq._system import check_not_forked
from dask_nlsq._typing import Matrix, Vector

SIZES = (1 << 13, 1 << 17)
"""Rows of a call, few and many: for each a loop is compiled, and fewer rows are filled up."""


class Counts(NamedTuple):
    """Rows by cells, each (most, most) or (most, cells of the score); and the score of each row."""

    score: Vector  # (y - fit) / (s sigma)
    by_y: npt.NDArray[np.int32]  # (columns, most, most), by each column of x and y
    by_score: npt.NDArray[np.int32]  # (columns, most, scores), by each column of x and the score
    of_fit: npt.NDArray[np.int32]  # (most, scores), by the fit and the score


def count(
    x: Sequence[Vector], y: Vector, fit: Vector, weight: Vector | None, s: float, grids: Matrix, most: int, scores: int
) -> Counts:
    r"""Count the rows of at most ``SIZES[1]``.

    Parameters
    ----------
    grids : ndarray (columns + 3, 2)
        a and b of each column of x, of y, of the fit and of the score: a value v of a column lies in the cell
        :math:`\lfloor a v \rfloor - b`, exactly where a is a power of 2, and a score in
        :math:`\lfloor a v - b \rfloor`, held within its cells.
    most, scores : int
        Cells of a column at most, and those of the score.
    """
    check_not_forked()
    rows, size = len(y), SIZES[len(y) > SIZES[0]]

    def filled(column: Vector) -> Vector:
        return column if rows == size else np.pad(column, (0, size - rows), mode="edge")

    run = _compiled(size, len(x), weight is not None, most, scores)
    with jax.enable_x64(True):
        columns = tuple(map(filled, x)), filled(y), filled(fit), None if weight is None else filled(weight)
        score, *counts = (np.asarray(a) for a in run(*columns, np.int64(rows), np.float64(s), grids))
    return Counts(score[:rows], *counts)


@functools.lru_cache(16)
def _compiled(size: int, k: int, weighted: bool, most: int, scores: int) -> Callable[..., Any]:
    """Return the call for blocks of one size, with k columns of x."""

    def run(
        x: tuple[jax.Array, ...],
        y: jax.Array,
        fit: jax.Array,
        weight: jax.Array | None,
        rows: jax.Array,
        s: jax.Array,
        grids: jax.Array,
    ) -> tuple[jax.Array, ...]:
        ones = (jnp.arange(size) < rows).astype(jnp.int32)
        score = (y - fit) * ((1.0 if weight is None else weight) / s)
        a, b = grids[-1]
        of_score = jnp.clip(jnp.floor(score * a - b), 0, scores - 1).astype(jnp.int32)
        cell = [(jnp.floor(c * g[0]) - g[1]).astype(jnp.int32) for c, g in zip((*x, y, fit), grids, strict=False)]

        def counted(one: jax.Array, other: jax.Array, width: int) -> jax.Array:
            counts = jnp.zeros(most * width, jnp.int32)
            return counts.at[one * width + other].add(ones, mode="promise_in_bounds").reshape(most, width)

        by_y = jnp.stack([counted(c, cell[k], most) for c in cell[:k]])
        by_score = jnp.stack([counted(c, of_score, scores) for c in cell[:k]])
        return score, by_y, by_score, counted(cell[k + 1], of_score, scores)

    return jax.jit(run)
