"""Shared: several fits to the same rows, which read them together, in passes of `shared_pass`.

Each fit runs in a thread of its own and has an executor that looks like any other. Where one wants a sweep it waits
until all others want one too; then each group of partitions is read once, and reduced for all of them::

    reads = SharedReads(Threads(), partitions)
    fit 1:  reads.join("line")   ->  run(reduce_group, groups, …)  ─┐
                                                                    ├─  reduce_each: one task a group
    fit 2:  reads.join("curve")  ->  run(reduce_group, groups, …)  ─┘

Passes in batches are shared likewise, batch by batch, and what several fits ask for at the very same parameters is
computed once. What a fit gets is, to the bit, what it would get alone, for the leaves of the tree of reductions are
partitions, whoever else has them reduced. What all want alike, as to hold the partitions in memory or to draw a sample,
is done once.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

from dask_nlsq._kernel import Block
from dask_nlsq._sweep.executors.local import Executor, Task, Window
from dask_nlsq._sweep.executors.shared_pass import (
    Pass,
    Stream,
    StreamRequest,
    StreamWindow,
    SweepRequest,
    sweep_together,
)
from dask_nlsq._sweep.failure import Failure
from dask_nlsq._sweep.groups import Group
from dask_nlsq._sweep.task import Selection, Share, Usage, draw, reduce_group, with_selection


class SharedReads:
    """The partitions that several fits read together, and who of them is under way.

    Parameters
    ----------
    executor : Executor
        Who runs the tasks.
    partitions : callable
        Returns what is read, with the columns of all fits; called once, after all that may begin have joined.
    complete : callable
        Whether no other fit may begin before one of those under way has ended. A pass waits until then.
    on_pass : callable
        Told of every pass that has ended.
    """

    def __init__(
        self,
        executor: Executor,
        partitions: Callable[[], Sequence[Any]],
        complete: Callable[[], bool] = lambda: True,
        on_pass: Callable[[Pass], None] = lambda _: None,
    ) -> None:
        self._partitions, self._complete, self._on_pass = partitions, complete, on_pass
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._under_way: set[str] = set()
        self._gone: set[str] = set()
        self._waiting: dict[str, SweepRequest | StreamRequest] = {}
        self._streams: list[Stream] = []
        self._once: dict[Any, Any] = {}
        self._once_lock = threading.RLock()
        self._shared: dict[int, Any] = {}  # groups that are read together, by their identity
        self._over: BaseException | None = None
        self.executor = executor

    def join(self, fit: str, selection: Callable[[], Selection | None] = lambda: None) -> Sharing:
        """Return the executor of one more fit, which is under way from now on.

        Which of the columns it takes is asked once `partitions` have been read or described.
        """
        self._resume(fit)
        return Sharing(self, fit, selection, self.executor)

    def _resume(self, fit: str) -> None:
        """Wait for a fit, unless it has ended: a generator that it has left open may be closed at any time."""
        with self._lock:
            if fit not in self._gone:
                self._under_way.add(fit)

    def _pause(self, fit: str) -> None:
        """Wait for a fit no more while it does something else."""
        with self._lock:
            self._under_way.discard(fit)
        self.look()

    def has_joined(self, fit: str) -> bool:
        """Whether a fit is under way, so that the others wait for it."""
        return fit in self._under_way

    def leave(self, fit: str) -> None:
        """Wait for this fit no more: it has ended."""
        with self._lock:
            self._gone.add(fit)
        self._pause(fit)

    def close(self) -> None:
        """Let go of what was read for all, once all fits have ended."""
        with self._once_lock, self._lock:
            self._once.clear()
            self._shared.clear()
            self._streams.clear()

    def abort(self, error: BaseException) -> None:
        """End the sweeps of all fits with an error."""
        with self._changed:
            self._over = error
            self._changed.notify_all()
            for each in (*self._waiting.values(), *self._streams):
                each.abort(error) if isinstance(each, Stream) else each.put(error)
            self._waiting.clear()

    def look(self) -> None:
        """Begin the pass that all wait for; to be called whenever `complete` may have become true."""
        with self._changed:
            self._changed.notify_all()
            if not self._waiting or not self._under_way <= self._waiting.keys() or not self._complete():
                return
            asks, self._waiting = [*self._waiting.values()], {}
        together = collections.defaultdict(list)
        streams = collections.defaultdict(list)
        for ask in asks:
            if isinstance(ask, StreamRequest):
                streams[id(ask.executor), ask.alike, ask.ordered].append(ask)
            else:
                together[(id(ask.executor), *map(id, ask.groups))].append(ask)
        for each in together.values():
            how = (each, self._on_pass, lambda: self._over)
            threading.Thread(target=sweep_together, args=how, name="nlsq pass", daemon=True).start()
        for alike in streams.values():
            self._begin_stream(alike)

    def _begin_stream(self, asks: Sequence[StreamRequest]) -> None:
        fits, count = tuple(ask.fit for ask in asks), len(self._once["partitions"])

        def ended(seconds: float, usages: list[Usage]) -> None:
            self._on_pass(Pass.of("stream", fits, count, seconds, usages))

        stream = Stream(asks[0].executor, asks[0].ordered, fits, ended)
        self._streams.append(stream)
        for ask in asks:
            ask.put(stream)

    def _wait(self, ask: SweepRequest | StreamRequest) -> None:
        """Let a fit wait for what it asks for."""
        with self._lock:
            if self._over is not None:
                raise self._over
            self._waiting[ask.fit] = ask
        self.look()

    @contextlib.contextmanager
    def stream(self, ask: StreamRequest, selection: Callable[[], Selection | None]) -> Iterator[Window]:
        """Make a pass in batches together with others."""
        self._await_all()
        partitions = self.once("partitions", self._partitions)
        self._wait(ask)
        stream = ask.stream()
        try:
            yield StreamWindow(stream, ask.fit, partitions, selection())
        finally:
            stream.leave(ask.fit)

    def sweep(self, ask: SweepRequest) -> Iterator[Any]:
        """Yield the answers of the next pass, in which this fit takes part."""
        self._wait(ask)
        try:
            yield from ask
        finally:
            ask.given_up = True

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what was made under a key, which the first that asks for it makes."""
        with self._once_lock:
            if key not in self._once:
                self._once[key] = make()
            return self._once[key]

    def _await_all(self) -> None:
        """Wait until all fits have joined that may begin, for then it is known which columns are read."""
        with self._changed:
            self._changed.wait_for(lambda: self._over is not None or self._complete())
            if self._over is not None:
                raise self._over

    def read_together(self, what: str, groups: Sequence[Any], make: Callable[..., Any]) -> Sequence[Any]:
        """Make groups of what is read together, cut as these of one fit."""
        self._await_all()
        partitions = self.once("partitions", self._partitions)
        own = [dataclasses.replace(g, partitions=tuple(partitions[i] for i in g.indices)) for g in groups]
        begun = time.perf_counter()
        made = make(own)
        if what == "hold":
            seconds, count = time.perf_counter() - begun, len(partitions)
            held = sum(block.nbytes for group in made for block in group.partitions if isinstance(block, Block))
            self._on_pass(Pass(what, tuple(sorted(self._under_way)), count, seconds, seconds, 0.0, held, {}))
        with self._lock:
            self._shared |= {id(group): group for group in made}
        return list(made)

    def has(self, group: object) -> bool:
        """Whether a group is one that is read together."""
        return id(group) in self._shared


class Sharing(Executor):
    """The executor of one fit of several that read together; what they do not share it runs by itself."""

    def __init__(
        self, reads: SharedReads, fit: str, selection: Callable[[], Selection | None], executor: Executor
    ) -> None:
        self._reads, self._fit, self._select, self._executor = reads, fit, selection, executor
        self.remote, self.serial = executor.remote, executor.serial

    @functools.cached_property
    def _selection(self) -> Selection | None:
        return self._select()

    @property
    def name(self) -> str:
        """The name of the executor that runs the tasks."""
        return self._executor.name

    @property
    def scheduler(self) -> str:
        """The scheduler of Dask that stands for it."""
        return str(getattr(self._executor, "scheduler", "threads"))

    @property
    def closed(self) -> bool:
        """Whether it can run no more tasks."""
        return self._executor.closed

    @property
    def workers(self) -> int:
        """How many tasks run at a time."""
        return self._executor.workers

    def run(self, task: Task, groups: Sequence[Any], *args: Any) -> Iterator[tuple[int, Any]]:
        """Yield ``(i, task(groups[i], *args))``: a sweep with others, a sample once for all, anything else alone."""
        if not groups or not all(map(self._reads.has, groups)):
            yield from self._alone(task, groups, args)
        elif task is reduce_group and self._reads.has_joined(self._fit):
            payload, requests = args
            share = Share(payload, tuple(requests), self._selection)
            yield from self._reads.sweep(SweepRequest(self._fit, self._executor, groups, share))
        elif task is draw or task is Group.load:
            key = (task.__name__, id(self._executor), *map(id, groups), repr(args))
            found = self._reads.once(key, lambda: list(self._executor.run(task, groups, *args)))
            yield from ((i, self._seen(answer)) for i, answer in found)
        elif self._selection is None:
            yield from self._alone(task, groups, args)
        else:
            yield from self._alone(with_selection, groups, (self._selection, task, args))

    def _alone(self, task: Task, groups: Sequence[Any], args: tuple[Any, ...]) -> Iterator[tuple[int, Any]]:
        with self._away():
            yield from self._executor.run(task, groups, *args)

    def _seen(self, answer: Any) -> Any:
        """Return what was read for all with this fit's columns alone."""
        if self._selection is None or isinstance(answer, Failure):
            return answer
        if isinstance(answer, Group):  # whose partitions have been read
            seen: Any = tuple(map(self._selection.of, answer.partitions))  # type: ignore[arg-type]
            return dataclasses.replace(answer, partitions=seen)
        return [(self._selection.of(block), rows) for block, rows in answer]

    @contextlib.contextmanager
    def _away(self) -> Iterator[None]:
        """Let the others sweep while this fit has tasks of its own."""
        under_way = self._reads.has_joined(self._fit)
        self._reads._pause(self._fit)
        try:
            yield
        finally:
            if under_way:
                self._reads._resume(self._fit)

    @contextlib.contextmanager
    def opened(self, ordered: bool = True, alike: Hashable = None) -> Iterator[Window]:
        """Run tasks one by one, together with fits that send the same groups in the same order."""
        if alike is not None and self._reads.has_joined(self._fit):
            ask = StreamRequest(self._fit, self._executor, alike, ordered)
            with self._reads.stream(ask, self._select) as window:
                yield window
        else:
            with self._away(), self._executor.opened(ordered) as window:
                yield window

    def hold(self, groups: Sequence[Group], shared: bool = False) -> Sequence[Any]:
        """Load every partition once, for all fits."""
        return self._together("hold", groups, lambda own: self._executor.hold(own, shared), shared)

    def describe(self, groups: Sequence[Group]) -> Sequence[Any]:
        """Return groups that each task can be sent at little cost, the same for all fits."""
        return self._together("describe", groups, self._executor.describe)

    def _together(self, what: str, groups: Sequence[Group], make: Callable[..., Any], *how: Any) -> Sequence[Any]:
        if not self._reads.has_joined(self._fit):
            alone: Sequence[Any] = make(groups)
            return alone
        # Of fits whose plans differ, each kind has groups of its own.
        key = (what, *how, id(self._executor), *((g.start, len(g.partitions), g.ahead) for g in groups))
        made: Sequence[Any] = self._reads.once(key, lambda: self._reads.read_together(what, groups, make))
        return made

    def limited(self, at_a_time: int) -> Executor:
        """Return the same with at most so many tasks at a time in a process, for all fits."""
        return self._of("limited", lambda: self._executor.limited(at_a_time), at_a_time)

    def here(self, threads: bool) -> Executor:
        """Return one that runs tasks in this process, for all fits."""
        return self._of("here", lambda: self._executor.here(threads), threads)

    def _of(self, what: str, make: Callable[[], Executor], how: object) -> Executor:
        executor = self._reads.once((what, id(self._executor), how), make)
        return Sharing(self._reads, self._fit, self._select, executor)

    def capacity(self) -> tuple[int, int, int]:
        """Return how many processes run tasks, how many each runs at a time, and its memory limit, or 0."""
        return self._executor.capacity()

    def ask(self, question: Callable[[], Any]) -> list[tuple[str, Any]]:
        """Return the host of each process and what it answers."""
        return self._executor.ask(question)

    def peak(self) -> int:
        """Return the largest resident size that a process has had, in bytes."""
        return self._executor.peak()

    def wait_for_workers(self) -> None:
        """Wait until there is somebody to run tasks."""
        self._executor.wait_for_workers()
