"""Jacobian and residual of single rows, each at a parameter vector of its own, as the sums of a sweep hold them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from dask_nlsq._kernel import finite_difference
from dask_nlsq._kernel.block import Block
from dask_nlsq._kernel.compile_cache import once
from dask_nlsq._kernel.safeguarded_difference import mend_tile
from dask_nlsq._kernel.tile import jacobian_and_residual
from dask_nlsq._model import Objective
from dask_nlsq._typing import Matrix, Vector

_SIZE = 1024
"""Rows of one call; the last call is filled up."""

_STEP = float(np.cbrt(np.finfo(float).eps))
"""Relative step of central differences, which balances truncation with rounding."""


def evaluate_rows(objective: Objective, block: Block, thetas: Matrix) -> Matrix:
    """Return the weighted Jacobian and residual of each row.

    Parameters
    ----------
    objective : Objective
        What is fitted, with a linear loss.
    block : Block
        The rows.
    thetas : ndarray of shape (rows, p)
        Where each row is evaluated.

    Returns
    -------
    ndarray of shape (rows, p + 1)
        ``[J, f - y]``, times the weight of the row.
    """
    wide = block.wide()
    with jax.enable_x64(True), np.errstate(all="ignore"):
        if objective.jacobian == "numeric":
            return _differences(objective, wide, thetas)
        pieces = [np.empty((0, thetas.shape[1] + 1))]
        pieces += [np.asarray(a).T[:rows] for a, _, rows in _pieces(objective, wide, thetas)]
    return np.concatenate(pieces)


def nearest_columns(objective: Objective, block: Block, theta: Vector) -> list[Vector]:
    """Return the columns of x at the points of the curve that are nearest to rows with errors in x, (rows,) each."""
    wide = block.wide()
    with jax.enable_x64(True), np.errstate(all="ignore"):
        thetas = np.broadcast_to(theta, (wide.rows, len(theta)))
        pieces = [[np.asarray(c)[:rows] for c in x] for _, x, rows in _pieces(objective, wide, thetas)]
    return [np.concatenate(parts) for parts in list(zip(*pieces, strict=True))[: objective.n_inputs]]


def _pieces(objective: Objective, wide: Block, thetas: Matrix) -> Iterator[tuple[jax.Array, Sequence[jax.Array], int]]:
    """Yield the Jacobian and residual (p + 1, _SIZE) of some rows, their columns, and how many they are."""
    run = once(objective, ("single rows", _SIZE), functools.partial(_compile, objective))
    for start in range(0, wide.rows, _SIZE):
        part = slice(start, start + _SIZE)
        columns = [_filled(c[part]) for c in (*wide.columns, *thetas.T)]
        yield (*run(*_arguments(objective, columns)), len(wide.y[part]))


def standard_errors(objective: Objective, x: Sequence[Vector], theta: Vector, cov: Matrix) -> Vector:
    r"""Return the standard error of the model at each row, (rows,), by the delta method: :math:`\sqrt{J C J^T}`.

    Parameters
    ----------
    theta : ndarray (p,)
        The free parameters.
    cov : ndarray (p, p)
        C, infinite for parameters that are not determined, and NaN for those at a bound, which add nothing.
    """
    objective = once(objective, ("alone", len(x)), functools.partial(_alone, objective, len(x)))
    block = Block(tuple(x), np.zeros(len(x[0])))
    jac = evaluate_rows(objective, block, np.broadcast_to(theta, (block.rows, len(theta))))[:, :-1]
    bad = ~np.isfinite(jac).all(axis=1)
    if bad.any() and objective.jacobian != "numeric":
        with jax.enable_x64(True):
            rest = [jnp.asarray(column[bad]) for column in block.wide().x]
            part = jnp.concatenate([jnp.asarray(jac[bad].T), jnp.zeros((1, bad.sum()))])
            (mended,), _, _ = mend_tile(objective, jnp.asarray(theta), rest, jnp.ones(bad.sum()), [part])
            jac[bad] = np.asarray(mended)[:-1].T
    variance = np.maximum(((jac @ np.where(np.isfinite(cov), cov, 0.0)) * jac).sum(axis=1), 0.0)
    open_ends = np.isinf(np.diag(cov))
    errors: Vector = np.where((jac[:, open_ends] != 0).any(axis=1), np.inf, np.sqrt(variance))
    return errors


def _alone(objective: Objective, columns: int) -> Objective:
    """Return the model alone, with so many columns: no y, no weights and no errors."""
    return dataclasses.replace(
        objective,
        columns=(*objective.columns[:columns], "y"),
        weighted=False,
        loss="linear",
        sandwich=False,
        second=False,
        errors=(),
    )


def _filled(column: Vector) -> Vector:
    """Return a column of `_SIZE` rows whose last value is repeated."""
    filled = np.empty(_SIZE)
    filled[: len(column)], filled[len(column) :] = column, column[-1]
    return filled


def _arguments(
    objective: Objective, columns: list[Vector]
) -> tuple[tuple[Vector, ...], Vector, Vector, tuple[Vector, ...]]:
    """Return x, y, weight and parameters as the compiled function takes them."""
    k = objective.n_columns
    weight, rest = (columns[k + 1], columns[k + 2 :]) if objective.weighted else (np.ones(_SIZE), columns[k + 1 :])
    return tuple(columns[:k]), columns[k], weight, tuple(rest)


def _compile(objective: Objective) -> jax.stages.Compiled:
    p, column = objective.n_parameters, jax.ShapeDtypeStruct((_SIZE,), np.float64)
    if objective.jacobian == "shared":  # rows that have parameters of their own share nothing of them
        objective = dataclasses.replace(objective, jacobian="forward")

    def run(
        x: Sequence[jax.Array], y: jax.Array, weight: jax.Array, theta: Sequence[jax.Array]
    ) -> tuple[jax.Array, Sequence[jax.Array]]:
        rows = jacobian_and_residual(objective, theta, x, y, weight, [jnp.zeros((p + 1, _SIZE))])
        return rows.a[0], rows.x if objective.errors else ()

    return jax.jit(run).lower((column,) * objective.n_columns, column, column, (column,) * p).compile()


def _differences(objective: Objective, block: Block, thetas: Matrix) -> Matrix:
    """Evaluate a model that JAX cannot trace, once for each distinct parameter vector."""
    result = np.empty((block.rows, thetas.shape[1] + 1))
    distinct, which = np.unique(thetas, axis=0, return_inverse=True)
    for i, theta in enumerate(distinct):
        # The inverse has the shape (rows, 1) under NumPy 2.0.
        rows = np.flatnonzero(which.ravel() == i)
        part = block.take(rows)
        weight = part.weights
        steps = _STEP * np.where(theta == 0, 1.0, np.abs(theta)) * np.eye(len(theta))
        slopes = [(_values(objective, part, theta + h) - _values(objective, part, theta - h)) / 2 for h in steps]
        residual = _values(objective, part, theta) - part.y
        result[rows] = np.column_stack([*(slope / h.sum() for slope, h in zip(slopes, steps, strict=True)), residual])
        result[rows] *= weight[:, None]
    return result


def _values(objective: Objective, block: Block, theta: Vector) -> Vector:
    return finite_difference.values(objective, block.x, list(objective.expand(theta.tolist())))
