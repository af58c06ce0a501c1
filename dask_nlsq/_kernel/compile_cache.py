"""What XLA has compiled, and what else was found for an objective once.

It is kept as long as the objective is, and is among those used last.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import jax

from dask_nlsq._kernel.retention import retention
from dask_nlsq._model import Objective
from dask_nlsq._system import check_not_forked

T = TypeVar("T")

_compiled: weakref.WeakKeyDictionary[Objective, dict[Hashable, Any]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()

_OBJECTIVES = 2
"""Objectives of one model that a fit evaluates by turns: with second derivatives, and without."""


def once(objective: Objective, kind: Hashable, compile_it: Callable[[], T]) -> T:
    """Return what was compiled or found for an objective: once whatever the threads, unlike kinds side by side."""
    # XLA's threads are not copied by a fork: a computation in the child would wait for them for ever.
    check_not_forked()
    with _lock:
        known = _used(objective)
        lock = known.setdefault(("lock", kind), threading.RLock())
    if kind not in known:
        with lock:
            if kind not in known:  # no other thread has compiled it while this one waited
                known[kind] = compile_it()
    made: T = known[kind]
    return made


def _used(objective: Objective) -> dict[Hashable, Any]:
    """Return what is known of an objective, which is the one used last now, and drop that of the first ones."""
    # A dictionary keeps the order of insertion, so that what is put back is behind all that was used before.
    _compiled[objective] = known = _compiled.pop(objective, {})
    surplus = len(_compiled) - _OBJECTIVES * retention().models
    for oldest in list(itertools.islice(_compiled.keys(), max(0, surplus))):
        _compiled.pop(oldest, None)
    return known


def scratch(objective: Objective) -> float:
    """Return the bytes that the compiled kernels of an objective need for themselves, as the compiler says."""
    known = _compiled.get(objective, {})
    # A copy of the items, for another thread may add to them. The analysis is None where a backend has none.
    sizes = [run.memory_analysis() for kind, run in list(known.items()) if isinstance(run, jax.stages.Compiled)]
    return float(max((size.temp_size_in_bytes for size in sizes if size is not None), default=0))
