"""Run: the fits of a study as a graph of Dask, whose tasks are whole fits in threads of this process."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask
import psutil

from dask_nlsq._errors import NlsqError, collected_warnings, warn
from dask_nlsq._fit import FitOptions, fit_resolved, resolve_fit
from dask_nlsq._plan import memory_limit
from dask_nlsq._result import FitResult
from dask_nlsq._study.log import FitLog, Log
from dask_nlsq._study.reads import OPENING, Reads
from dask_nlsq._study.variants import Variant, options_after
from dask_nlsq._sweep import outside_pool
from dask_nlsq._system import available_memory

_MOST = 64
"""Fits at a time, each a thread that mostly waits for sweeps."""

_FIT_BYTES = 128 << 20
"""Memory that a fit of a few parameters takes in this process beside its rows: code that is compiled, samples."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a variant has ended: with a result, or with an error in words."""

    result: FitResult | None
    error: str
    seconds: float
    cached: bool = False  # whether its result was in the cache


def fits_at_a_time(variants: int, most: int | None) -> int:
    """Return how many fits are under way at a time: as many as asked, or as there is memory for."""
    if most is not None:
        return max(1, min(variants, most))
    free = min(memory_limit().limit - psutil.Process().memory_info().rss, available_memory())
    return max(1, min(variants, _MOST, int(free // _FIT_BYTES)))


class Runner:
    """Runs variants, each after those that it follows, as many at a time as allowed.

    Parameters
    ----------
    settings : mapping
        Options of all fits that belong to the study: the client, the cache.
    on_end : callable
        Told of each variant that has ended, in the thread that has fitted it.
    """

    def __init__(
        self,
        variants: Mapping[str, Variant],
        settings: Mapping[str, Any],
        most: int,
        log: Log,
        on_end: Callable[[str, Outcome], None],
        on_pass: Callable[[], None] = lambda: None,
    ) -> None:
        self._variants, self._settings, self._most, self._log = variants, settings, most, log
        self._on_end = on_end
        self._warnings: dict[str, list[tuple[str, type[Warning]]]] = {}
        self._lock = threading.Lock()
        self._ended: dict[str, Outcome] = {}
        # Fits that may begin and have not joined those that read; a pass waits for them.
        self._ready = sum(not variant.follows for variant in variants.values())
        self._under_way = 0

        def passed(one: Any) -> None:
            log.passed(one)
            on_pass()

        self._reads = Reads(self._complete, passed)

    def _complete(self) -> bool:
        return self._ready <= 0 or self._under_way >= self._most

    def run(self) -> dict[str, Outcome]:
        """Run all of them."""
        nodes: dict[str, Any] = {}
        one = dask.delayed(self._one, pure=False)
        left = dict(self._variants)
        while left:
            for name, variant in list(left.items()):
                if all(other in nodes for other in variant.follows):
                    nodes[name] = one(name, [nodes[other] for other in variant.follows])
                    del left[name]
        with ThreadPoolExecutor(self._most, "nlsq-study") as pool:
            try:
                ended = dask.compute(*nodes.values(), scheduler="threads", pool=pool, optimize_graph=False, chunksize=1)
            except BaseException as error:
                self._ready = 0  # no other fit will begin, so that none is waited for
                self._reads.abort(error)
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            finally:
                self._reads.close()
        # Here, in the thread of the user, whose line they are to name.
        about: dict[tuple[str, type[Warning]], list[str]] = {}
        for name in self._variants:
            for warning in dict.fromkeys(self._warnings.get(name, ())):
                about.setdefault(warning, []).append(repr(name))
        for (message, category), names in about.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            warn(f"Variant{'s' * (len(names) > 1)} {', '.join(names[:3])}{more}: {message}", category)
        outcomes = dict(zip(nodes, ended, strict=True))
        return {name: outcomes[name] for name in self._variants}

    def _one(self, name: str, before: list[Outcome]) -> Outcome:
        """Fit a variant; what fails is an outcome too."""
        variant, started, joined = self._variants[name], time.perf_counter(), contextlib.ExitStack()

        def begun() -> None:
            self._count(ready=-1, under_way=1)

        waiting = contextlib.ExitStack()
        waiting.callback(begun)
        with joined:
            try:
                with waiting, collected_warnings() as self._warnings[name]:
                    outcome = self._fit(name, variant, before, started, joined, waiting)
            except Exception as error:  # of the model, the data, the cluster: a row of the table
                outcome = Outcome(None, f"{type(error).__name__}: {error}", time.perf_counter() - started)
            try:
                self._log.write(
                    "end",
                    variant=name,
                    status=None if outcome.result is None else outcome.result.status.name,
                    error=outcome.error or None,
                    seconds=outcome.seconds,
                    cached=outcome.cached,
                )
                self._on_end(name, outcome)
            finally:
                # Before it leaves those that sweep, lest they go on without the fits that may begin now.
                self._end(name, outcome)
        return outcome

    def _end(self, name: str, outcome: Outcome) -> None:
        """Note that a variant has ended, and which others may begin now."""
        with self._lock:
            self._ended[name] = outcome
            following = [
                other
                for other, each in self._variants.items()
                if name in each.follows and all(one in self._ended for one in each.follows)
            ]
        self._count(ready=len(following), under_way=-1)

    def _count(self, ready: int, under_way: int) -> None:
        with self._lock:
            self._ready += ready
            self._under_way += under_way
        self._reads.look()

    def _fit(
        self,
        name: str,
        variant: Variant,
        before: list[Outcome],
        started: float,
        joined: contextlib.ExitStack,
        waiting: contextlib.ExitStack,
    ) -> Outcome:
        results = {}
        for other, outcome in zip(variant.follows, before, strict=True):
            if outcome.result is None or not outcome.result.success:
                how = "failed" if outcome.result is None else f"ended as {outcome.result.status.name}"
                raise NlsqError(f"It follows {other!r}, which {how}.")
            results[other] = outcome.result
        options = FitOptions(**{**options_after(variant, results), **self._settings, "progress": False})
        with OPENING:
            alone = resolve_fit(options)
        log = FitLog(self._log, name)
        with outside_pool(alone.executor):
            together, leave, reads_more = self._reads.join(name, options, alone, variant.resources, variant.priority)
            joined.callback(leave)
            waiting.close()  # from now on the others wait for its sweeps
            try:
                result = fit_resolved(together, options, started, log)
            except NlsqError:
                if not reads_more():
                    raise
                leave()  # a column that it does not need may be what cannot be read
                result = fit_resolved(alone, options, started, log)
        hit = bool(result.provenance.get("cache", {}).get("hit"))
        return Outcome(result, "", time.perf_counter() - started, hit)
