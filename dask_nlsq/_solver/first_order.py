r"""First-order descent: the mean gradient of a mini-batch moves the estimate, by the rule of an optimizer of optax.

Where a start is so far that the linear model says nothing, a step of bounded length downhill still leads somewhere. The
optimizer works on :math:`u_k = \theta_k / c_k`, in which

.. math:: c_k = \sqrt{\sum_i r_i^2 / \sum_i J_{ik}^2}

is the change of one parameter that would account for the residuals of the first batch: one learning rate then suits
amplitudes of 1e6 and rates of 1e-3. The cost is divided by its first value. The end of a descent is a start, no answer.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Protocol

import numpy as np

from dask_nlsq._kernel import Reduction, Request
from dask_nlsq._solver.base import Solver
from dask_nlsq._typing import Vector

_PATIENCE = 200
"""Steps without a lower mean cost after which a descent is over."""

_LOWER = 0.99
"""What counts as lower, beside the lowest so far."""

_MEMORY = 0.05
"""Weight of a new batch in the running mean of the cost."""


_FARTHEST = 100.0
"""Longest unit of a parameter beside its size or 1: where the model hardly responds, the formula asks for more."""

_MOST_REFUSED = 8
"""Steps to where the model is not finite after which a descent is over."""


class GradientTransformation(Protocol):
    """An optimizer, as optax has them: a pair of functions; `update` takes the cost as ``value=``."""

    init: Any
    update: Any


@dataclasses.dataclass(frozen=True)
class FirstOrderState:
    """Where a descent stands."""

    theta: Vector  # (p,)
    scale: Vector | None = None  # (p,), of the parameters; found at the first batch
    unit: float = 1.0  # of the cost
    memory: Any = None  # of the optimizer
    # How it goes.
    steps: int = 0
    cost: float = float("inf")  # mean over the rows of the last batches
    lowest: float = float("inf")
    best: Vector | None = None  # (p,), where the mean was lowest
    patience: int = _PATIENCE
    refused: int = 0  # steps to where the model is not finite
    status: str | None = None  # how it ended


@dataclasses.dataclass(frozen=True)
class FirstOrder(Solver[FirstOrderState]):
    """Options of the solver; bounds are arrays of shape (p,)."""

    lower: Vector
    upper: Vector
    optimizer: GradientTransformation
    most: int = 2000  # steps

    def init(self, theta: Vector) -> FirstOrderState:
        """Return the state before the first batch, at `theta` (p,)."""
        return FirstOrderState(np.asarray(theta, float))

    def request(self, state: FirstOrderState) -> Request:
        """Return where the next batch is to be evaluated."""
        return Request(state.theta)

    def terminate(self, state: FirstOrderState) -> bool:
        """Return whether the descent has ended."""
        return state.status is not None

    def step(self, state: FirstOrderState, reduction: Reduction) -> FirstOrderState:
        """Move downhill by what a batch says."""
        p = len(state.theta)
        if not reduction.finite:
            return self._shorter(state)
        scale = state.scale
        if scale is None:
            squares = np.diag(reduction.gram)
            c = np.sqrt(squares[p] / np.where(squares[:p] > 0, squares[:p], np.inf))
            size = np.maximum(np.abs(state.theta), 1.0)
            scale = np.where(c > 0, np.minimum(c, _FARTHEST * size), size)
            unit = max(reduction.cost / max(reduction.rows, 1), np.finfo(float).tiny)
            state = dataclasses.replace(state, scale=scale, unit=unit, memory=self.optimizer.init(state.theta / scale))
        cost = reduction.cost / max(reduction.rows, 1) / state.unit
        mean = cost if state.steps == 0 else (1 - _MEMORY) * state.cost + _MEMORY * cost
        lower = mean < _LOWER * state.lowest
        gradient = reduction.gram[:p, p] / max(reduction.rows, 1) / state.unit * scale
        update, memory = self.optimizer.update(gradient, state.memory, state.theta / scale, value=cost)
        theta = np.clip(state.theta + np.asarray(update, float) * scale, self.lower, self.upper)
        patience = _PATIENCE if lower else state.patience - 1
        steps = state.steps + 1
        ended = "it no longer went down" if patience <= 0 else "its steps were used up" if steps >= self.most else None
        return FirstOrderState(
            theta=theta,
            scale=scale,
            unit=state.unit,
            memory=memory,
            steps=steps,
            cost=mean,
            lowest=mean if lower else state.lowest,
            best=state.theta if lower else state.best,
            patience=patience,
            refused=state.refused,
            status=ended,
        )

    def _shorter(self, state: FirstOrderState) -> FirstOrderState:
        """Go back to where the cost was lowest, and take steps of a tenth from there."""
        if state.scale is None or state.best is None or state.refused == _MOST_REFUSED:
            return dataclasses.replace(state, status="the model or the rows were not finite")
        scale = 0.1 * state.scale
        memory = self.optimizer.init(state.best / scale)
        return dataclasses.replace(state, theta=state.best, scale=scale, memory=memory, refused=state.refused + 1)
