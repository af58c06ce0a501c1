"""What every solver is: `init`, `request`, `step`, `terminate`, over a state that holds all it knows."""

from __future__ import annotations

import abc
from typing import Generic, TypeVar

from dask_nlsq._kernel import Reduction, Request
from dask_nlsq._typing import Vector

S = TypeVar("S")


class Solver(abc.ABC, Generic[S]):
    """Proposes evaluations and is told their outcome; knows no data, no clock and no Dask.

    The loop of a fit is ``state = solver.step(state, sweep(solver.request(state)))`` until ``solver.terminate(state)``.
    """

    @abc.abstractmethod
    def init(self, theta: Vector) -> S:
        """Return the state before the first sweep, at `theta` (p,)."""

    @abc.abstractmethod
    def request(self, state: S) -> Request:
        """Return what the next sweep is to evaluate."""

    @abc.abstractmethod
    def step(self, state: S, reduction: Reduction) -> S:
        """Return the state after a sweep; the one before stays as it is."""

    @abc.abstractmethod
    def terminate(self, state: S) -> bool:
        """Return whether nothing is left to be evaluated."""
