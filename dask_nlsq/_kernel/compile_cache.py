"""What XLA has compiled, and what else was found for an objective once.

It is kept as long as the objective is, and is among those used last. In a folder that `Retention` names, what was
compiled is found by the next process, through the cache of JAX itself.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import os
import platform
import sys
import threading
import weakref
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, TypeVar

import jax
import jaxlib.version
from jax.experimental.compilation_cache import compilation_cache

from dask_nlsq._errors import warn
from dask_nlsq._kernel.retention import retention
from dask_nlsq._model import Objective
from dask_nlsq._system import check_not_forked

T = TypeVar("T")

_compiled: weakref.WeakKeyDictionary[Objective, dict[Hashable, Any]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()

_TURN, _turns = "turn", itertools.count()
"""Under which it is kept when an objective was used last."""

_OBJECTIVES = 2
"""Objectives of one model that a fit evaluates by turns: with second derivatives, and without."""


def once(objective: Objective, kind: Hashable, compile_it: Callable[[], T]) -> T:
    """Return what was compiled or found for an objective: once whatever the threads, unlike kinds side by side."""
    # XLA's threads are not copied by a fork: a computation in the child would wait for them for ever.
    check_not_forked()
    with _lock:
        known = _used(objective)
        lock = None if kind in known else known.setdefault(("lock", kind), threading.RLock())
    if lock is not None:
        with lock:
            if kind not in known:  # no other thread has compiled it while this one waited
                persist(retention().folder)
                known[kind] = compile_it()
    made: T = known[kind]
    return made


@functools.lru_cache(1)
def persist(folder: str | None) -> None:
    """Let JAX keep what it compiles in a folder, unless it has been told to keep it in another."""
    told = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]  # public, but made at run time
    if folder is None or told is not None:
        return
    where = os.path.join(os.path.expanduser(folder), environment())
    try:
        os.makedirs(where, exist_ok=True)
    except OSError as error:
        warn(f"The compilation cache {where} cannot be made ({error}). What is compiled is not kept.")
        return
    jax.config.update("jax_compilation_cache_dir", where)
    # JAX by itself keeps what took a second to compile; of a kernel's parts none does.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    compilation_cache.reset_cache()  # what was compiled before has settled that there is none


@functools.cache
def environment() -> str:
    """Return a name for this processor and these versions: the code that others have compiled may not run here."""
    lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines() if os.path.exists("/proc/cpuinfo") else []
    features = {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    processor = "\n".join([platform.machine(), platform.processor(), *sorted(features)])
    ours = sys.modules["dask_nlsq"].__version__
    digest = hashlib.sha256(processor.encode()).hexdigest()[:12]
    return f"{ours}-jax-{jax.__version__}-jaxlib-{jaxlib.version.__version__}-{platform.machine()}-{digest}"


def _used(objective: Objective) -> dict[Hashable, Any]:
    """Return what is known of an objective, which is the one used last now; a new one takes the place of the first."""
    known = _compiled.get(objective)
    if known is None:
        surplus = len(_compiled) + 1 - _OBJECTIVES * retention().models
        for oldest in sorted(_compiled, key=lambda each: _compiled[each][_TURN])[: max(0, surplus)]:
            _compiled.pop(oldest, None)
        known = _compiled[objective] = {}
    known[_TURN] = next(_turns)
    return known


def scratch(objective: Objective) -> float:
    """Return the bytes that the compiled kernels of an objective need for themselves, as the compiler says."""
    known = _compiled.get(objective, {})
    # A copy of the items, for another thread may add to them. The analysis is None where a backend has none.
    sizes = [run.memory_analysis() for kind, run in list(known.items()) if isinstance(run, jax.stages.Compiled)]
    return float(max((size.temp_size_in_bytes for size in sizes if size is not None), default=0))
