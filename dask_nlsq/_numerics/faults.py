"""Faults: the rows in which a model, or a derivative that no difference replaces, is not finite."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dask_nlsq._numerics import difference, numeric
from dask_nlsq._numerics.block import SLABS, TILE, Block, slabs
from dask_nlsq._numerics.compiled import once
from dask_nlsq._numerics.objective import Objective
from dask_nlsq._numerics.tile import jacobian_and_residual
from dask_nlsq._typing import Matrix, Vector


@dataclasses.dataclass(frozen=True)
class Fault:
    """How many rows are at fault, and the first of them."""

    count: int
    row: int
    x: tuple[float, ...]  # its columns
    value: float  # of the model, or of the derivative
    parameter: int | None = None  # a free one, with respect to which the derivative is taken; None: the model
    partition: int = 0


def find(objective: Objective, block: Block, theta: Vector) -> list[Fault]:
    """Return the fault of the model in a block at `theta` (p,), or else those of derivatives, one a parameter."""
    block = block.wide()
    if not block.rows:
        return []
    with jax.enable_x64(True), np.errstate(all="ignore"):
        f, jac = (_numeric if objective.jacobian == "numeric" else _traced)(objective, block, theta)
    if not np.isfinite(f).all():
        return [_fault(block, f)]
    return [_fault(block, column, j) for j, column in enumerate(jac) if not np.isfinite(column).all()]


def merge(found: Sequence[Fault]) -> list[Fault]:
    """Return faults of several partitions as one of the model and one a parameter; the model's is enough."""
    by_model = [fault for fault in found if fault.parameter is None]
    kept = sorted(by_model or found, key=lambda fault: (fault.parameter or 0, fault.partition))
    groups = [list(group) for _, group in itertools.groupby(kept, key=lambda fault: fault.parameter)]
    return [dataclasses.replace(group[0], count=sum(fault.count for fault in group)) for group in groups]


def _fault(block: Block, values: Vector, parameter: int | None = None) -> Fault:
    bad = ~np.isfinite(values)
    row = int(np.argmax(bad))
    return Fault(int(bad.sum()), row, tuple(float(c[row]) for c in block.x), float(values[row]), parameter)


def _numeric(objective: Objective, block: Block, theta: Vector) -> tuple[Vector, Matrix]:
    f = numeric.values(objective, block.x, list(objective.expand(theta.tolist())))
    w = np.ones(block.rows) if block.weight is None else block.weight
    return f, numeric.whole_jacobian(objective, block.x, theta, f, w)[0]


def _traced(objective: Objective, block: Block, theta: Vector) -> tuple[Vector, Matrix]:
    size = SLABS[0]
    run = once(objective, ("faults", size), functools.partial(_compile, objective, size))
    found = [np.asarray(run(theta, slab.x))[:, : slab.places[0, 2]] for _, slab in slabs([block], size, TILE)]
    whole = np.concatenate(found, axis=1)
    if block.weight is not None:
        whole[1:, block.weight == 0] = 0.0
    return whole[0], whole[1:]


def _compile(objective: Objective, rows: int) -> Any:
    p = objective.n_parameters

    def look(theta: Any, x: Any) -> Any:
        nothing, one = jnp.zeros(rows), jnp.ones(rows)
        a = jacobian_and_residual(objective, theta, x, nothing, one, [jnp.zeros((p + 1, rows))])
        (a,), _ = difference.mend_tile(objective, theta, x, one, a)
        return jnp.concatenate([a[p:], a[:p]])

    column = jax.ShapeDtypeStruct((rows,), np.float64)
    theta = jax.ShapeDtypeStruct((p,), np.float64)
    return jax.jit(look).lower(theta, (column,) * objective.n_columns).compile()
