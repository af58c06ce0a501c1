"""Estimator: ordinary fits of rows that are in memory, and the linear model of a batch about an estimate.

A `StreamingFitter` begins with such a fit of the first rows, and begins anew with one of its sample where the estimate
has gone astray.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

import numpy as np

from dask_nlsq._errors import ModelError
from dask_nlsq._fit import agrees, explain, fitted, run_in_memory
from dask_nlsq._kernel import Block, Reduction, faults, kernel
from dask_nlsq._model import Objective, Parameters
from dask_nlsq._solver import State, Streaming, StreamState, TrustRegion, final, preconditioner
from dask_nlsq._streaming.reservoir import Drawn
from dask_nlsq._typing import Vector

SWEEPS = 30
"""Sweeps over the rows at most, each time."""

_HARDLY = 1.0 + 1e-6
"""Rise of the cost of some rows that rounding explains, or a step that ends a fit."""


@dataclasses.dataclass(frozen=True)
class Estimator:
    """What is fitted to a stream, and how."""

    objective: Objective
    parameters: Parameters
    solver: Streaming

    def begin(self, block: Block, starts: list[Vector], sweeps: int = SWEEPS) -> StreamState:
        """Return the state that an ordinary fit of some rows leads to, from the start that leads lowest."""
        theta, state = self.fit(block, starts, sweeps)
        stream = self.solver.init(theta, preconditioner(state.at.factor))
        begun = self.solver.step(stream, self.reduce(block, stream).placed(1))
        return begun if self._falls(block, theta, begun.theta) else dataclasses.replace(begun, theta=theta)

    def fit(self, block: Block, starts: list[Vector], sweeps: int = SWEEPS) -> tuple[Vector, State]:
        """Fit rows in memory from each start; return the lowest minimum."""
        lower, upper = self.parameters.lower, self.parameters.upper
        solver = TrustRegion(lower, upper, self.parameters.prior, tolerance=1e-3, max_nfev=sweeps)
        ends, refused = [], None
        for start in starts:
            try:
                ends.append(_fit_rows(self.objective, self.parameters.free, solver, block, start))
            except ModelError as error:
                refused = error
        if not ends and refused is not None:
            raise refused
        state = min(ends, key=_cost)
        theta = final(state, lower, upper)[0]
        return (theta if self._falls(block, state.at.theta, theta) else state.at.theta), state

    def _falls(self, block: Block, before: Vector, after: Vector) -> bool:
        """Whether the cost of some rows hardly rises from one estimate to another.

        Along a direction that the rows hardly see, the linear model may lead anywhere.
        """
        costs = [kernel.reduce_block(self.objective, block, theta, None).cost for theta in (before, after)]
        return bool(np.isfinite(costs[1]) and costs[1] <= _HARDLY * costs[0])

    def reduce(self, block: Block, state: StreamState) -> Reduction:
        """Reduce a block at the estimate."""
        request = self.solver.request(state)
        whitening = None if request.whitening is None else request.whitening.s
        return kernel.reduce_block(self.objective, block, request.theta, whitening)

    def reduce_safely(self, block: Block, state: StreamState, sample: Drawn) -> tuple[Reduction, Vector]:
        """Reduce a block at the estimate, or where the model is not finite there, at one that is safer; say where."""
        first = self.reduce(block, state)
        if first.finite or not block.rows:
            return first, state.theta
        safer = [state.origin, self.parameters.start]
        with contextlib.suppress(ModelError):
            safer.insert(0, self.fit(sample.block(), [state.theta, *safer])[0])
        for theta in safer:
            reduction = self.reduce(block, dataclasses.replace(state, theta=theta))
            if reduction.finite:
                return reduction, theta
        return first, state.theta

    def agrees(self, state: StreamState, sample: Block) -> bool:
        """Whether a sample bears the estimate out."""
        return agrees(self.objective, self.solver, state, sample)

    def is_contradicted(self, state: StreamState, sample: Block) -> bool:
        """Whether a sample lies lower at p0 than at the estimate: the first rows have led to another minimum."""
        return not agrees(self.objective, self.solver, state, sample, self.parameters.start)


def _fit_rows(objective: Objective, names: Sequence[str], solver: TrustRegion, block: Block, start: Vector) -> State:
    """Fit rows in memory from a start (p,)."""
    state = run_in_memory(objective, block, fitted(solver, start))
    if state is None:
        raise explain(objective, names, start, faults.find(objective, block, start), part="batch")
    return state


def _cost(state: State) -> float:
    """Return the cost where the fit of some rows has ended, as measured and not as predicted a step ahead."""
    return state.at.reduction.cost
