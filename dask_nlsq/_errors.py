"""Every exception and warning of the package, in one tree.

::

    NlsqError
    ├─ ModelError(ValueError)         the model: shape, dtype, cannot be traced, non-finite at the start
    │  └─ ModelNotPicklable(TypeError)   cannot travel to a worker process
    ├─ DataError(ValueError)          columns, lengths, NaN under nan_policy="raise"
    │  ├─ NotFiniteError                 a cell of x or y is NaN or infinite
    │  └─ TooFewRows(TypeError)          fewer rows than parameters
    ├─ BoundsError(ValueError)        lower > upper, start outside
    ├─ PlanError(MemoryError)         something does not fit into memory
    ├─ ForkedProcessError(RuntimeError)  the process was forked from one that had fitted
    ├─ SweepError(RuntimeError)       a partition failed; the original exception is its cause
    └─ CheckpointError(OSError)       a checkpoint cannot be used, or not be written
       ├─ CheckpointMismatch(ValueError)  it is of other data, another model or other options
       └─ CheckpointCorrupt               it does not verify

    Interrupted(SystemExit)           a signal ended a fit whose state is in a checkpoint; exit status 75

    NlsqWarning(UserWarning)          said once, with what to do about it

Each error also inherits the built-in that a caller would expect, so that ``except ValueError`` keeps working.
"""

from __future__ import annotations

import contextlib
import contextvars
import difflib
import functools
import inspect
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class NlsqError(Exception):
    """An error of dask_nlsq: what was seen, what was expected, what to change.

    Parameters
    ----------
    message : str
        One or more sentences.
    **where
        What is known of the place: ``partition``, ``column``, ``sweep``, ``theta``. Each becomes an
        attribute and is appended to the text.
    """

    def __init__(self, message: str, **where: Any) -> None:
        super().__init__(message)
        self.where = where

    def at(self, **where: Any) -> NlsqError:
        """Add to what is known of the place, where an outer layer knows more."""
        self.where = where | self.where
        return self

    def __getattr__(self, name: str) -> Any:
        if name != "where" and name in self.where:
            return self.where[name]
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    def __str__(self) -> str:
        place = ", ".join(f"{key} {value}" for key, value in self.where.items())
        return f"{self.args[0]} [{place}]" if place else str(self.args[0])


class ModelError(NlsqError, ValueError):
    """The model returns the wrong shape or dtype, cannot be traced, or is not finite at the start."""


class ModelNotPicklable(ModelError, TypeError):
    """The model cannot travel to a worker process."""


class DataError(NlsqError, ValueError):
    """A column is missing, not numeric, not finite, or not as long as the others."""


class NotFiniteError(DataError):
    """A cell of x or y is NaN or infinite, under ``nan_policy="raise"``."""


class TooFewRows(DataError, TypeError):
    """There are fewer rows than free parameters."""


class BoundsError(NlsqError, ValueError):
    """A lower bound lies above its upper bound, or the start lies outside."""


class PlanError(NlsqError, MemoryError):
    """Something does not fit into memory; the message has both numbers and the remedy."""


class ForkedProcessError(NlsqError, RuntimeError):
    """The process was forked from one that had fitted; the message says how to start processes instead."""


class SweepError(NlsqError, RuntimeError):
    """A partition failed during a sweep; ``__cause__`` is the original exception."""


class CheckpointError(NlsqError, OSError):
    """A checkpoint cannot be used, or not be written; the message says why and what to do."""


class CheckpointMismatch(CheckpointError, ValueError):
    """A checkpoint is of other data, of another model or of other options; the message lists what differs."""


class CheckpointCorrupt(CheckpointError):
    """A checkpoint does not verify: it is torn, damaged or no checkpoint."""


class Interrupted(SystemExit):
    """A signal asked a fit to stop; what it had is in its checkpoint, and the same call goes on from there.

    The exit status is 75, EX_TEMPFAIL: try again.

    Examples
    --------
    >>> import signal
    >>> from dask_nlsq import Interrupted
    >>> Interrupted(signal.SIGTERM).code
    75
    """

    def __init__(self, signum: int) -> None:
        super().__init__(75)
        self.signum = signum


class NlsqWarning(UserWarning):
    """Something that the user will want to know, with what to do about it."""


class DifferencesWarning(NlsqWarning):
    """A model is differentiated by differences, for JAX cannot do so."""


_collected: contextvars.ContextVar[list[tuple[str, type[Warning]]] | None]
_collected = contextvars.ContextVar("_collected", default=None)
"""Where warnings of this thread are kept instead of being shown."""


@contextlib.contextmanager
def collected_warnings() -> Iterator[list[tuple[str, type[Warning]]]]:
    """Keep the warnings of this thread, which is not that of the user, for `warn` in another."""
    kept: list[tuple[str, type[Warning]]] = []
    token = _collected.set(kept)
    try:
        yield kept
    finally:
        _collected.reset(token)


def warn(message: str, category: type[Warning] = NlsqWarning) -> None:
    """Warn at the line outside this package that led here, through whatever door."""
    if (kept := _collected.get()) is not None:
        kept.append((message, category))
        return
    inside, frame, level = os.path.dirname(__file__) + os.sep, inspect.currentframe(), 1
    while frame is not None and frame.f_code.co_filename.startswith(inside):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def one_of(name: str, value: object, *choices: str, error: type[NlsqError] = NlsqError) -> None:
    """Refuse an argument that is none of its choices."""
    if value not in choices:
        *others, last = (f'"{choice}"' for choice in choices)
        raise error(f"{name} is {value!r}; {', '.join(others)} or {last} is needed.{nearest(value, choices)}")


def nearest(name: object, names: Iterable[object]) -> str:
    """Return a sentence with the name that is nearest to one that is not there; empty where none is near."""
    near = difflib.get_close_matches(str(name), map(str, names), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def check_keywords(function: Callable[P, R]) -> Callable[P, R]:
    """Let a function refuse keyword arguments that it does not have with the name that is nearest to each."""

    @functools.cache
    def names() -> dict[str, inspect.Parameter]:
        return dict(inspect.signature(checked).parameters)

    @functools.wraps(function)
    def checked(*args: P.args, **options: P.kwargs) -> R:
        for name in options:
            if name not in names():
                remedy = nearest(name, names()) or " help() lists those that it has."
                raise TypeError(f"{function.__name__}() got an unexpected keyword argument {name!r}.{remedy}")
        return function(*args, **options)

    return checked
