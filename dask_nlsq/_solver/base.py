"""What every solver is: `init`, `request`, `step`, and a state that says when it is done."""

from __future__ import annotations

from typing import Protocol, TypeVar

from dask_nlsq._kernel import Reduction, Request
from dask_nlsq._solver.status import Status
from dask_nlsq._typing import Vector


class HasStatus(Protocol):
    """A state; `status` is None while the fit runs."""

    @property
    def status(self) -> Status | None:
        """Why the fit stopped."""


S = TypeVar("S", bound=HasStatus)


class Solver(Protocol[S]):
    """Proposes evaluations and is told their outcome; knows no data, no clock and no Dask."""

    def init(self, theta: Vector) -> S:
        """Return the state before the first sweep."""

    def request(self, state: S) -> Request:
        """Return what the next sweep is to evaluate."""

    def step(self, state: S, reduction: Reduction) -> S:
        """Return the state after a sweep."""
