"""Tuning: the formulation of the kernel that this machine runs fastest, by the clock and once, on request.

By default a rule decides, so that the same fit gives the same bits on the next run. A clock may decide otherwise from
run to run; what it has decided is therefore recorded with the result.
"""

from __future__ import annotations

import dataclasses
import itertools
import time

from dask_nlsq._kernel import kernel
from dask_nlsq._kernel.block import Block
from dask_nlsq._model import Jacobian, Objective
from dask_nlsq._typing import Vector

TILES = (1024, 2048, 4096, 8192)
"""Rows of a tile that are tried."""

_TIMES = 5
"""Runs of each candidate; the fastest counts."""


def autotune(objective: Objective, block: Block, theta: Vector) -> Objective:
    """Return the objective with the tile and the direction of differentiation that reduce some rows fastest."""
    if objective.jacobian == "numeric" or not block.rows:
        return objective
    directions: tuple[Jacobian, ...] = (
        ("reverse", "forward") if objective.jacobian == "reverse" else (objective.jacobian,)
    )
    candidates = [
        dataclasses.replace(objective, jacobian=direction, tile=tile)
        for direction, tile in itertools.product(directions, TILES)
    ]
    return min(candidates, key=lambda candidate: _seconds(candidate, block, theta))


def _seconds(objective: Objective, block: Block, theta: Vector) -> float:
    """Return the least time of some runs, the compilation not counted."""
    kernel.reduce_block(objective, block, theta, None)
    times = []
    for _ in range(_TIMES):
        clock = time.perf_counter()
        kernel.reduce_block(objective, block, theta, None)
        times.append(time.perf_counter() - clock)
    return min(times)
