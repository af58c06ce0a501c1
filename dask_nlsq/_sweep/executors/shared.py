"""Shared: several fits to the same rows, which read them together.

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
import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

from dask_nlsq._kernel import Block
from dask_nlsq._sweep.executors.local import Executor, Task, Window
from dask_nlsq._sweep.failure import Failure
from dask_nlsq._sweep.groups import Group
from dask_nlsq._sweep.task import Selection, Share, Usage, draw, reduce_each, reduce_group, with_selection

_END = object()
"""Put after the last answer of a pass."""


@dataclasses.dataclass(frozen=True)
class Pass:
    """One reading of all partitions, in a sweep, in batches, or to hold them: for which fits, and what it took."""

    what: str
    fits: tuple[str, ...]
    partitions: int
    seconds: float
    read_seconds: float  # summed over tasks
    compute_seconds: float
    nbytes: int
    workers: Mapping[str, int]  # tasks that each has run


class _Ask:
    """What one fit wants of the next pass, and where its answers arrive."""

    def __init__(self, fit: str, executor: Executor, groups: Sequence[Any], share: Share) -> None:
        self.fit, self.executor, self.groups, self.share = fit, executor, groups, share
        self.given_up = False
        self._answers: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def put(self, answer: Any) -> None:
        self._answers.put(answer)

    def __iter__(self) -> Iterator[Any]:
        while (answer := self._answers.get()) is not _END:
            if isinstance(answer, BaseException):
                raise answer
            yield answer


class _Stream:
    """One pass in batches that several fits make together: each is read once all of them have asked for it."""

    def __init__(
        self, executor: Executor, ordered: bool, fits: Sequence[str], on_end: Callable[[float, list[Usage]], None]
    ) -> None:
        self._executor, self._ordered, self._on_end = executor, ordered, on_end
        self._members = set(fits)
        self._lock = threading.Lock()
        self._asked: dict[tuple[int, ...], tuple[Group, dict[str, Share]]] = {}
        self._ready: queue.SimpleQueue[tuple[Group, dict[str, Share]] | None] = queue.SimpleQueue()
        self._answers: dict[str, queue.SimpleQueue[Any]] = {fit: queue.SimpleQueue() for fit in fits}
        threading.Thread(target=self._run, name="nlsq stream", daemon=True).start()

    def send(self, fit: str, group: Group, share: Share) -> None:
        """Ask for a batch."""
        with self._lock:
            self._asked.setdefault(group.indices, (group, {}))[1][fit] = share
            self._look()

    def _look(self) -> None:
        for numbers, (group, shares) in list(self._asked.items()):
            if self._members <= shares.keys():
                self._ready.put((group, shares))
                del self._asked[numbers]

    def receive(self, fit: str) -> tuple[tuple[int, ...], Any]:
        """Wait for the next answer; return it with the numbers of the partitions of its batch."""
        answer = self._answers[fit].get()
        if isinstance(answer, BaseException):
            raise answer
        numbers, value = answer
        return numbers, value

    def leave(self, fit: str) -> None:
        """Go on without a fit that has ended its pass."""
        with self._lock:
            self._members.discard(fit)
            self._look()
            if not self._members:
                self._ready.put(None)

    def abort(self, error: BaseException) -> None:
        """End the pass of every fit with an error."""
        for answers in self._answers.values():
            answers.put(error)
        self._ready.put(None)

    def _run(self) -> None:
        begun, usages = time.perf_counter(), list[Usage]()
        try:
            with self._executor.opened(self._ordered) as window:
                while True:
                    try:
                        asked = self._ready.get(block=not len(window))
                    except queue.Empty:
                        self._hand_out(*window.receive(), usages)
                        continue
                    if asked is None:
                        break
                    group, shares = asked
                    distinct, places = _distinct(list(shares.values()))
                    window.send((group.indices, dict(zip(shares, places, strict=True))), reduce_each, group, distinct)
        except BaseException as error:  # whatever it is, it is raised where each fit waits
            self.abort(error)
        self._on_end(time.perf_counter() - begun, usages)

    def _hand_out(self, label: tuple[tuple[int, ...], dict[str, int]], answer: Any, usages: list[Usage]) -> None:
        numbers, places = label
        if not isinstance(answer, Failure):
            usages.append(answer[1])
        for fit, place in places.items():
            self._answers[fit].put((numbers, answer if isinstance(answer, Failure) else answer[0][place]))


class _SharedWindow(Window):
    """The batches of one fit that are under way in a stream which it shares."""

    def __init__(self, stream: _Stream, fit: str, partitions: Sequence[Any], selection: Selection | None) -> None:
        self._stream, self._fit, self._partitions, self._selection = stream, fit, partitions, selection
        self._labels: dict[tuple[int, ...], Any] = {}

    def __len__(self) -> int:
        return len(self._labels)

    def send(self, label: object, task: Task, group: Any, *args: Any) -> None:
        payload, requests = args  # of `reduce_group`, which is all that is sent in batches
        self._labels[group.indices] = label
        whole = dataclasses.replace(group, partitions=tuple(self._partitions[i] for i in group.indices))
        self._stream.send(self._fit, whole, Share(payload, tuple(requests), self._selection))

    def receive(self) -> tuple[Any, Any]:
        numbers, answer = self._stream.receive(self._fit)
        return self._labels.pop(numbers), answer


class _StreamAsk:
    """A request of one fit to pass over the data in batches, and where its stream arrives."""

    def __init__(self, fit: str, executor: Executor, alike: Hashable, ordered: bool) -> None:
        self.fit, self.executor, self.alike, self.ordered = fit, executor, alike, ordered
        self._begun: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def put(self, stream: Any) -> None:
        self._begun.put(stream)

    def stream(self) -> _Stream:
        found = self._begun.get()
        if isinstance(found, BaseException):
            raise found
        stream: _Stream = found
        return stream


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
        self._waiting: dict[str, _Ask | _StreamAsk] = {}
        self._streams: list[_Stream] = []
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
                each.abort(error) if isinstance(each, _Stream) else each.put(error)
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
            if isinstance(ask, _StreamAsk):
                streams[id(ask.executor), ask.alike, ask.ordered].append(ask)
            else:
                together[(id(ask.executor), *map(id, ask.groups))].append(ask)
        for each in together.values():
            threading.Thread(target=self._run, args=(each,), name="nlsq pass", daemon=True).start()
        for alike in streams.values():
            self._begin_stream(alike)

    def _begin_stream(self, asks: Sequence[_StreamAsk]) -> None:
        fits, count = tuple(ask.fit for ask in asks), len(self._once["partitions"])

        def ended(seconds: float, usages: list[Usage]) -> None:
            self._on_pass(_pass("stream", fits, count, seconds, usages))

        stream = _Stream(asks[0].executor, asks[0].ordered, fits, ended)
        self._streams.append(stream)
        for ask in asks:
            ask.put(stream)

    def _wait(self, ask: _Ask | _StreamAsk) -> None:
        """Let a fit wait for what it asks for."""
        with self._lock:
            if self._over is not None:
                raise self._over
            self._waiting[ask.fit] = ask
        self.look()

    @contextlib.contextmanager
    def stream(self, ask: _StreamAsk, selection: Callable[[], Selection | None]) -> Iterator[Window]:
        """Make a pass in batches together with others."""
        self._await_all()
        partitions = self.once("partitions", self._partitions)
        self._wait(ask)
        stream = ask.stream()
        try:
            yield _SharedWindow(stream, ask.fit, partitions, selection())
        finally:
            stream.leave(ask.fit)

    def sweep(self, ask: _Ask) -> Iterator[Any]:
        """Yield the answers of the next pass, in which this fit takes part."""
        self._wait(ask)
        try:
            yield from ask
        finally:
            ask.given_up = True

    def _run(self, asks: Sequence[_Ask]) -> None:
        begun, usages = time.perf_counter(), list[Usage]()
        first, (shares, places) = asks[0], _distinct([ask.share for ask in asks])
        answers = first.executor.run(reduce_each, first.groups, shares)
        try:
            for i, answer in answers:
                if isinstance(answer, Failure):  # of the group, so of each
                    each: Sequence[Any] = [answer] * len(shares)
                else:
                    each, usage = answer
                    usages.append(usage)
                for ask, place in zip(asks, places, strict=True):
                    ask.put((i, each[place]))
                if self._over is not None or all(ask.given_up for ask in asks):
                    break
        except BaseException as error:  # whatever it is, it is raised where each fit waits
            for ask in asks:
                ask.put(error)
        try:
            if hasattr(answers, "close"):
                answers.close()
            count = sum(len(group.partitions) for group in asks[0].groups)
            self._on_pass(_pass("sweep", [ask.fit for ask in asks], count, time.perf_counter() - begun, usages))
        finally:
            for ask in asks:
                ask.put(self._over or _END)

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
            yield from self._reads.sweep(_Ask(self._fit, self._executor, groups, share))
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
            ask = _StreamAsk(self._fit, self._executor, alike, ordered)
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


def _distinct(shares: Sequence[Share]) -> tuple[list[Share], list[int]]:
    """Return the shares of which no two are the same, and for each of all its place among them."""
    keys = [share.key for share in shares]
    places = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    first = dict(zip(reversed(keys), reversed(shares), strict=True))
    return [first[key] for key in places], [places[key] for key in keys]


def _pass(what: str, fits: Sequence[str], partitions: int, seconds: float, usages: Sequence[Usage]) -> Pass:
    return Pass(
        what,
        tuple(fits),
        partitions,
        seconds,
        sum(usage.read for usage in usages),
        sum(usage.computed for usage in usages),
        sum(usage.nbytes for usage in usages),
        dict(collections.Counter(usage.worker for usage in usages)),
    )
