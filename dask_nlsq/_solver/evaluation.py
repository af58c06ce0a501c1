"""Evaluation: one more evaluation of many series, each at its own parameters, queue by queue in a compiled loop."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax

from dask_nlsq._kernel import lanes, once
from dask_nlsq._model import Objective
from dask_nlsq._solver.batched import Series, Shape, as_queue, fill, pick, tiles_of
from dask_nlsq._typing import Matrix


class LanePoint(NamedTuple):
    """Where the model is evaluated in each lane, and the points of its series."""

    theta: list[Array]  # p arrays (lanes,)
    free: list[Array]  # p arrays (lanes,), 1 for each parameter whose column of J counts, and 0 for the others
    curvature: lanes.Triangle  # JᵀJ there or nearby
    data: lanes.Data
    tiles: Array  # (), that hold the points


LaneFunction: TypeAlias = Callable[[Objective, LanePoint, bool], list[Array]]
"""What is computed for each lane: arrays whose first axis is the lanes, the cost before the others. The last argument
says whether derivatives that are not finite are replaced by differences."""


def evaluate_series(
    function: LaneFunction,
    key: Hashable,
    sizes: Sequence[tuple[int, ...]],
    objective: Objective,
    series: Series,
    theta: Matrix,
    free: npt.NDArray[np.bool_],
    curvature: Matrix,
) -> list[npt.NDArray[np.float64]]:
    """Return what a function computes for each of n series, arrays (n, *size).

    Where the cost of a series is finite and something else is not, it is evaluated once more with differences.

    Parameters
    ----------
    function : callable
        A `LaneFunction`, compiled once for each objective, key and shape.
    key : Hashable
        By which the function is known.
    sizes : sequence of tuple
        Of each array, without its first axis.
    theta : ndarray (n, p)
        Where each series is evaluated.
    free : ndarray of bool (n, p)
        The parameters whose columns of J count.
    curvature : ndarray (n, p (p + 1) / 2)
        :math:`J^T J` there or nearby, as `Fits` has it.
    """
    shape = Shape.of(series.y.shape[1])
    series = series.padded(shape)
    shared = series.shared
    arrays = [np.full((len(theta), *size), np.nan) for size in sizes]
    rows = np.arange(len(theta))
    with jax.enable_x64(True):
        for mended in (False, True):
            for some in np.split(rows, range(shape.queue, len(rows), shape.queue)) if len(rows) else ():
                compiling = functools.partial(_compile, function, sizes, objective, shape, shared, mended)
                run = once(objective, (key, shape, shared, mended), compiling)
                part = series.take(some)
                values = run(
                    *(fill(each[some].astype(float), shape.queue) for each in (theta, free, curvature)),
                    as_queue((*part.x, part.y, part.weight), shape.queue, shared),
                    tiles_of(part, shape),
                    -(-len(some) // shape.lanes),
                )
                for array, value in zip(arrays, values, strict=True):
                    array[some] = np.asarray(value)[: len(some)]
            rows = np.flatnonzero(np.isfinite(arrays[0]) & ~_finite_rows(arrays[1:]))
    return arrays


def _finite_rows(arrays: Sequence[npt.NDArray[np.float64]]) -> npt.NDArray[np.bool_]:
    finite = np.ones(len(arrays[0]), bool)
    for array in arrays:
        finite &= np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
    return finite


def _compile(
    function: LaneFunction,
    sizes: Sequence[tuple[int, ...]],
    objective: Objective,
    shape: Shape,
    shared: Sequence[bool],
    mended: bool,
) -> jax.stages.Compiled:
    p, n = objective.n_parameters, shape.queue
    real, whole = functools.partial(jax.ShapeDtypeStruct, dtype=np.float64), jax.ShapeDtypeStruct((), np.int64)
    columns = [real((1 if one else n, shape.points)) for one in shared]
    rows = [real((n, p)), real((n, p)), real((n, p * (p + 1) // 2))]
    run = functools.partial(_run, function, sizes, objective, mended, shape.lanes)
    return jax.jit(run).lower(*rows, columns, whole, whole).compile()


def _run(
    function: LaneFunction,
    sizes: Sequence[tuple[int, ...]],
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
    n, p = theta.shape

    def group(k: Array, arrays: list[Array]) -> list[Array]:
        place = k * abreast + jnp.arange(abreast)
        *x, y, weight = [pick(rows, place) for rows in columns]
        entries = iter(pick(curvature, place))
        triangle = [[next(entries) for _ in range(i + 1)] for i in range(p)]
        at = list(pick(theta, place)), list(pick(free, place)), triangle
        part = function(objective, LanePoint(*at, lanes.Data(tuple(x), y, weight), tiles), mended)
        return [
            lax.dynamic_update_slice_in_dim(rows, new, k * abreast, 0) for rows, new in zip(arrays, part, strict=True)
        ]

    evaluated: list[Array] = lax.fori_loop(0, groups, group, [jnp.zeros((n, *size)) for size in sizes])
    return evaluated
