"""Retention: how many models a process keeps compiled, how many bytes they may hold, and where they are written."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Retention:
    """Limits; beyond them, what was used least recently is dropped first and compiled again when it is needed."""

    models: int = 32
    nbytes: int = 256 << 20
    folder: str | None = None  # in which what was compiled outlives the process


_current = Retention()


def retention() -> Retention:
    """Return the limits of this process."""
    return _current


def set_retention(limits: Retention) -> None:
    """Set the limits of this process; they count from the next model on."""
    global _current
    _current = limits
