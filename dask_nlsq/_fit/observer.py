"""Observer: who is told how far a fit is. A progress bar shows it, a session writes it down."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from dask_nlsq._solver import State
from dask_nlsq._typing import Vector

Saved: TypeAlias = Callable[[], Mapping[str, Any]]
"""Makes the fields of a `SavedState` that say where the fit is now."""


@dataclasses.dataclass(frozen=True)
class SweepBegin:
    """A pass over the data begins, or one over the tasks of a search, or what has no tasks to be counted."""

    title: str
    state: State | None = None  # of the fit whose sweep this is
    done: int = 0  # partitions that were finished before
    counted: bool = True  # whether its tasks are told


@dataclasses.dataclass(frozen=True)
class TaskEnd:
    """A task has ended."""

    partitions: int = 0
    saved: Saved | None = None


@dataclasses.dataclass(frozen=True)
class SweepEnd:
    """A sweep has ended, and the solver has made its step."""

    saved: Saved
    state: State | None = None  # of the fit that leads


@dataclasses.dataclass(frozen=True)
class Estimates:
    """A stream knows more; values and standard errors, (p,), are made where somebody wants to see them."""

    names: Sequence[str]
    values: Callable[[], tuple[Vector, Vector]]


Event: TypeAlias = SweepBegin | TaskEnd | SweepEnd | Estimates


class Observer:
    """One whom nothing interests."""

    def notify(self, event: Event) -> None:
        """Take notice of an event."""


class Observers(Observer):
    """Several, of whom each is told everything, in their order."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def notify(self, event: Event) -> None:
        """Tell all."""
        for observer in self._observers:
            observer.notify(event)
