"""Reads: which fits of a study read the same rows, and with which columns."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from dask_nlsq._errors import NlsqError
from dask_nlsq._fit import FitOptions, Resolved
from dask_nlsq._sources import Columns, are_paths, each_path, open_source
from dask_nlsq._sweep import Pass, Selection, SharedReads

_CUT_BY_ROWS = ("Parquet", "Delta", "Iceberg", "Dask DataFrame", "pandas DataFrame")
"""Kinds of data that are cut into partitions alike, whatever columns are read."""


OPENING = threading.Lock()
"""Held while data are opened: two threads that optimize expressions of Dask wait for one another before Python 3.12,
whose `functools.cached_property` locks the class."""


class Reads:
    """The reads of a study: fits to the same rows share them.

    They do so where data, y, sigma, filters and the like are the same. Where tables are read and no rows are dropped,
    models may have unlike columns: those of all are read, and each fit sees its own.

    Parameters
    ----------
    complete : callable
        Whether no other fit may begin before one of those under way has ended.
    on_pass : callable
        Told of every pass.
    """

    def __init__(self, complete: Callable[[], bool], on_pass: Callable[[Pass], None]) -> None:
        self._complete, self._on_pass = complete, on_pass
        self._lock = threading.Lock()
        self._all: list[_Reading] = []
        self._over: BaseException | None = None

    def join(
        self, name: str, options: FitOptions, resolved: Resolved, resources: Mapping[str, float], priority: int
    ) -> tuple[Resolved, Callable[[], None], Callable[[], bool]]:
        """Return a fit whose executor reads together with others.

        Also what is to be called when it has ended, and what says whether more columns are read than its own.
        """
        key, columns = _key(options, resolved, resources, priority), resolved.columns
        with self._lock:
            if self._over is not None:
                raise self._over
            reading = next((r for r in self._all if r.key == key and r.takes(columns)), None)
            if reading is None:
                how = (resources, priority, self._complete, self._on_pass, self._lock)
                reading = _Reading(key, options, resolved, *how)
                self._all.append(reading)
            reading.add(columns)
        shared = reading.shared
        executor = shared.join(name, lambda: reading.selection(columns))
        joined = dataclasses.replace(resolved, executor=executor)
        return joined, lambda: shared.leave(name), lambda: reading.selection(columns) is not None

    def look(self) -> None:
        """Let passes begin that all wait for."""
        for reading in list(self._all):
            reading.shared.look()

    def abort(self, error: BaseException) -> None:
        """End the sweeps of all fits with an error."""
        with self._lock:
            self._over = error
        for reading in list(self._all):
            reading.shared.abort(error)

    def close(self) -> None:
        """Forget what was held for all; results read their data by themselves from now on."""
        for reading in list(self._all):
            reading.shared.close()


def _key(options: FitOptions, resolved: Resolved, resources: Mapping[str, float], priority: int) -> Hashable:
    """Return what must be the same for two fits to read together."""
    data, columns, kind = options.data, resolved.columns, resolved.source.info.kind
    given: Any = (
        tuple(each_path(data))
        if are_paths(data)
        else tuple(map(id, (data, *options.x) if isinstance(options.x, (list, tuple)) else (data, options.x)))
        if data is None
        else id(data)
    )
    # Arrays are known by their places, whatever each model calls them.
    beside: Any = columns.y, columns.weight
    if data is None:
        given_beside = options.y, options.sigma, options.trials, options.groups, *_each(options.sigma_x)
        beside = tuple(map(id, given_beside))
    named: Any = (*beside, columns.counts, columns.sigma_x, columns.responses, columns.is_complex, columns.groups)
    free = data is not None and columns.nan_policy == "raise" and kind in _CUT_BY_ROWS and not resolved.source.shared
    return (
        *(
            given,
            named,
            columns.nan_policy,
            options.missing_chunks,
            options.fingerprint()["filters"],
            str(options.version),
        ),
        *(repr(options.storage_options), kind, len(resolved.source.partitions), resolved.executor.name),
        *(id(options.client), repr(resources), priority),
        len(columns.x) if data is None else columns.x if _beyond_x(columns) else None if free else frozenset(columns.x),
    )


def _beyond_x(columns: Columns) -> bool:
    """Whether columns lie behind those of x in a block, so that a block of more columns has them elsewhere."""
    return bool(columns.sigma_x) or columns.groups is not None or columns.n_responses > 1


def _each(given: Any) -> tuple[Any, ...]:
    """Return what stands for each column of x, or the one thing that stands for all."""
    if isinstance(given, Mapping):
        return tuple(given.values())
    return tuple(given) if isinstance(given, (list, tuple)) else (given,)


class _Reading:
    """The rows that some fits share, with the columns of all of them."""

    def __init__(
        self,
        key: Hashable,
        options: FitOptions,
        resolved: Resolved,
        resources: Mapping[str, float],
        priority: int,
        complete: Callable[[], bool],
        on_pass: Callable[[Pass], None],
        lock: threading.Lock,
    ) -> None:
        self.key, self._options, self._resolved, self._lock = key, options, resolved, lock
        self._x: list[str] = []
        self._opened = False
        executor = resolved.executor
        if resources or priority:
            executor = executor.annotated(resources, priority)
        self.shared = SharedReads(executor, self._partitions, complete, on_pass)

    @property
    def _by_place(self) -> bool:
        return self._options.data is None or _beyond_x(self._resolved.columns)

    def takes(self, columns: Columns) -> bool:
        """Whether a fit with these columns can join: until partitions are opened, any can."""
        return self._by_place or not self._opened or set(columns.x) <= set(self._x)

    def add(self, columns: Columns) -> None:
        """Read these columns too."""
        self._x += [name for name in columns.x if name not in self._x]

    def _partitions(self) -> Sequence[Any]:
        with self._lock:  # whoever joins later brings no more columns
            self._opened = True
        own, options = self._resolved.source, self._options
        if self._by_place or tuple(self._x) == self._resolved.columns.x:
            return own.partitions
        columns = dataclasses.replace(self._resolved.columns, x=tuple(self._x))
        with OPENING:
            source = open_source(options.data, columns, options.filters, options.storage_options, options.version)
        if len(source.partitions) != len(own.partitions):
            raise NlsqError(
                f"The data are cut into {len(source.partitions)} partitions where all columns are read, and into "
                f"{len(own.partitions)} where some are: fit them one by one."
            )
        return source.partitions

    def selection(self, columns: Columns) -> Selection | None:
        """Return which of the columns that are read a fit takes; None for all, in their order."""
        if self._by_place or columns.x == tuple(self._x):
            return None
        return Selection(tuple(self._x.index(name) for name in columns.x), columns.names)
