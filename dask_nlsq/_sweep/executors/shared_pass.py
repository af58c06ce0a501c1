"""Shared pass: one reading of the partitions that several fits make together, in a sweep or in batches.

In a sweep each group of partitions is read once, and reduced for all. In a stream each batch is read once all have
asked for it. What several fits ask for at the very same parameters is computed once. Answers arrive where each fit
waits, in a thread of its own.
"""

from __future__ import annotations

import collections
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

from dask_nlsq._sweep.executors.local import Executor, Task, Window
from dask_nlsq._sweep.failure import Failure
from dask_nlsq._sweep.groups import Group
from dask_nlsq._sweep.task import Selection, Share, Usage, reduce_each

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

    @classmethod
    def of(cls, what: str, fits: Sequence[str], partitions: int, seconds: float, usages: Sequence[Usage]) -> Pass:
        """Return a pass with what its tasks took."""
        return cls(
            what,
            tuple(fits),
            partitions,
            seconds,
            sum(usage.read for usage in usages),
            sum(usage.computed for usage in usages),
            sum(usage.nbytes for usage in usages),
            dict(collections.Counter(usage.worker for usage in usages)),
        )


class SweepRequest:
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


def sweep_together(
    asks: Sequence[SweepRequest], on_pass: Callable[[Pass], None], aborted: Callable[[], BaseException | None]
) -> None:
    """Make one sweep for several fits, and hand out its answers, until it ends or has been `aborted`."""
    begun, usages = time.perf_counter(), list[Usage]()
    first, (shares, places) = asks[0], distinct_shares([ask.share for ask in asks])
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
            if aborted() is not None or all(ask.given_up for ask in asks):
                break
    except BaseException as error:  # whatever it is, it is raised where each fit waits
        for ask in asks:
            ask.put(error)
    try:
        if hasattr(answers, "close"):
            answers.close()
        count = sum(len(group.partitions) for group in asks[0].groups)
        on_pass(Pass.of("sweep", [ask.fit for ask in asks], count, time.perf_counter() - begun, usages))
    finally:
        for ask in asks:
            ask.put(aborted() or _END)


class StreamRequest:
    """A request of one fit to pass over the data in batches, and where its stream arrives."""

    def __init__(self, fit: str, executor: Executor, alike: Hashable, ordered: bool) -> None:
        self.fit, self.executor, self.alike, self.ordered = fit, executor, alike, ordered
        self._begun: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def put(self, stream: Any) -> None:
        self._begun.put(stream)

    def stream(self) -> Stream:
        found = self._begun.get()
        if isinstance(found, BaseException):
            raise found
        stream: Stream = found
        return stream


class Stream:
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
                    distinct, places = distinct_shares(list(shares.values()))
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


class StreamWindow(Window):
    """The batches of one fit that are under way in a stream which it shares."""

    def __init__(self, stream: Stream, fit: str, partitions: Sequence[Any], selection: Selection | None) -> None:
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


def distinct_shares(shares: Sequence[Share]) -> tuple[list[Share], list[int]]:
    """Return the shares of which no two are the same, and for each of all its place among them."""
    keys = [share.key for share in shares]
    places = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    first = dict(zip(reversed(keys), reversed(shares), strict=True))
    return [first[key] for key in places], [places[key] for key in keys]
