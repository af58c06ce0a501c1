"""Faults: the rows in which a model, or a derivative that no difference replaces, is not finite."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from dask_nlsq._kernel import finite_difference, safeguarded_difference
from dask_nlsq._kernel.block import SLABS, TILE, Block, slabs
from dask_nlsq._kernel.compile_cache import once
from dask_nlsq._kernel.tile import jacobian_and_residual
from dask_nlsq._model import Objective
from dask_nlsq._typing import Matrix, Vector


@dataclasses.dataclass(frozen=True)
class Fault:
    """How many rows are at fault, and the first of them."""

    count: int
    row: int
    x: tuple[float, ...]  # its columns
    value: float  # of the model, or of the derivative
    parameter: int | None = None  # a free one, with respect to which the derivative is taken; None: the model
    flat: bool = False  # the derivative is not finite and nothing changes; no fault where other rows have one
    beyond: bool = False  # the model is finite, and no rate or probability of counts
    partition: int = 0


def find(objective: Objective, block: Block, theta: Vector) -> list[Fault]:
    """Return the fault of the model in a block at `theta` (p,), or else those of derivatives, two a parameter."""
    block = block.wide()
    if not block.rows:
        return []
    with jax.enable_x64(True), np.errstate(all="ignore"):
        f, jac, flat = (_numeric if objective.jacobian == "numeric" else _traced)(objective, block, theta)
    if not np.isfinite(f).all():
        return [_fault(block, f, ~np.isfinite(f))]
    if objective.counts:
        impossible = np.isnan(objective.count_rows(f, block.y, block.weights, np).cost)
        if impossible.any():
            return [dataclasses.replace(_fault(block, f, impossible), beyond=True)]
    faults = [_fault(block, jac[j], ~np.isfinite(jac[j]), j) for j in range(len(jac))]
    faults += [_fault(block, jac[j], flat[j], j, flat=True) for j in range(len(jac))]
    return [fault for fault in faults if fault.count]


def merge_faults(faults: Sequence[Fault]) -> list[Fault]:
    """Return faults of several partitions as that of the model, or else one a parameter."""
    by_model = [fault for fault in faults if fault.parameter is None]
    by_derivative = [fault for fault in faults if not fault.flat]
    kept = sorted(by_model or by_derivative or faults, key=lambda fault: (fault.parameter or 0, fault.partition))
    groups = [list(group) for _, group in itertools.groupby(kept, key=lambda fault: fault.parameter)]
    whole = [dataclasses.replace(group[0], count=sum(fault.count for fault in group)) for group in groups]
    most = max((fault.count for fault in whole), default=0)
    return [fault for fault in whole if not fault.flat or fault.count == most]


def _fault(
    block: Block, values: Vector, bad: npt.NDArray[np.bool_], parameter: int | None = None, flat: bool = False
) -> Fault:
    row = int(np.argmax(bad))
    return Fault(int(bad.sum()), row, tuple(float(c[row]) for c in block.x), float(values[row]), parameter, flat)


def _numeric(objective: Objective, block: Block, theta: Vector) -> tuple[Vector, Matrix, npt.NDArray[np.bool_]]:
    f = finite_difference.values(objective, block.x, list(objective.expand(theta.tolist())))
    w = block.weights
    jac, taken = finite_difference.whole_jacobian(objective, block.x, theta, f, w)
    return f, jac, taken & (jac == 0)


def _traced(objective: Objective, block: Block, theta: Vector) -> tuple[Vector, Matrix, npt.NDArray[np.bool_]]:
    size, p = SLABS[0], objective.n_parameters
    run = once(objective, ("faults", size), functools.partial(_compile, objective, size))
    pieces = [np.asarray(run(theta, slab.x))[:, : slab.places[0, 2]] for _, slab in slabs([block], size, TILE)]
    whole = np.concatenate(pieces, axis=1)
    if block.weight is not None:
        # A row without weight has no derivative that counts, finite or not.
        whole[1:, block.weight == 0] = 0.0
    return whole[0], whole[1 : p + 1], whole[p + 1 :] > 0


def _compile(objective: Objective, rows: int) -> jax.stages.Compiled:
    p, objective = objective.n_parameters, dataclasses.replace(objective, loss="linear", errors=())

    def look(theta: jax.Array, x: Sequence[jax.Array]) -> jax.Array:
        nothing, ones = jnp.zeros(rows), jnp.ones(rows)
        parts = jacobian_and_residual(objective, theta, x, nothing, ones, [jnp.zeros((p + 1, rows))]).a
        (a,), _, flat = safeguarded_difference.mend_tile(objective, theta, x, ones, parts)
        return jnp.concatenate([a[p:], a[:p], flat.astype(jnp.float64)])

    column = jax.ShapeDtypeStruct((rows,), np.float64)
    theta = jax.ShapeDtypeStruct((p,), np.float64)
    return jax.jit(look).lower(theta, (column,) * objective.n_columns).compile()
