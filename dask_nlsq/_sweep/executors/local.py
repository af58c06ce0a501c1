"""Who runs the tasks: this thread or a pool of threads; `distributed` has the third, the client of a cluster.

Each offers the same verbs. `run` calls a function on every group of partitions and yields ``(index, value)`` in the
order of arrival; `opened` sends tasks off one by one; `hold` loads the partitions once and keeps their blocks.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import itertools
import sys
import threading
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import dask
from dask.system import CPU_COUNT

from dask_nlsq._errors import Interrupted, NlsqError, SweepError
from dask_nlsq._sweep.groups import Group
from dask_nlsq._sweep.groups import group as group_of
from dask_nlsq._system import peak_memory

Task = Callable[..., Any]


class Window:
    """Tasks under way: the oldest is received next, or, out of order, the first that is done.

    `submit` sends a task off and returns what stands for it, `first` waits until one of several is done and returns its
    place, `value` waits for one.
    """

    def __init__(
        self,
        ordered: bool,
        submit: Callable[..., Any],
        first: Callable[[Sequence[Any]], int],
        value: Callable[[Any, Any], Any],
    ) -> None:
        self._ordered, self._submit, self._first, self._value = ordered, submit, first, value
        self._sent: list[tuple[Any, Any, Any]] = []

    def __len__(self) -> int:
        return len(self._sent)

    def send(self, label: object, task: Task, group: object, *args: Any) -> None:
        """Send ``task(group, *args)`` off, under a label."""
        self._sent.append((label, group, self._submit(task, group, *args)))

    def waiting(self) -> list[Any]:
        """Return what stands for the tasks that are under way."""
        return [future for *_, future in self._sent]

    def left(self) -> list[Any]:
        """Return what stands for the tasks that nobody has waited for, and forget them."""
        futures = self.waiting()
        self._sent.clear()
        return futures

    def receive(self) -> tuple[Any, Any]:
        """Wait for the next value; return it with its label."""
        place = 0 if self._ordered else self._first([future for *_, future in self._sent])
        label, group, future = self._sent[place]
        try:
            return label, self._value(future, group)
        finally:
            del self._sent[place]


class Executor(abc.ABC):
    """Runs a task on every group of partitions."""

    remote = False
    """Whether tasks run in other processes."""

    serial = False
    """Whether tasks run one after the other, in the thread that asks."""

    @property
    def name(self) -> str:
        """What it is called in a result's provenance."""
        return type(self).__name__.lower()

    @property
    def closed(self) -> bool:
        """Whether it can run no more tasks."""
        return False

    @property
    @abc.abstractmethod
    def workers(self) -> int:
        """How many tasks run at a time."""

    @abc.abstractmethod
    def run(self, task: Task, groups: Sequence[Any], *args: Any) -> Iterator[tuple[int, Any]]:
        """Yield ``(i, task(groups[i], *args))`` in any order."""

    @abc.abstractmethod
    def opened(self, ordered: bool = True, alike: Hashable = None) -> contextlib.AbstractContextManager[Window]:
        """Return a way to send ``task(group, *args)`` off, one by one, and to wait for it later.

        Whoever gives the same `alike` sends the same groups, in the same order.
        """

    @abc.abstractmethod
    def hold(self, groups: Sequence[Group], shared: bool = False) -> Sequence[Any]:
        """Load every partition once and return what stands for its group from now on."""

    def describe(self, groups: Sequence[Group]) -> Sequence[Any]:
        """Return groups that each task can be sent at little cost."""
        return groups

    def limited(self, at_a_time: int) -> Executor:
        """Return the same with at most so many tasks at a time in a process."""
        return self

    def annotated(self, resources: Mapping[str, float], priority: int) -> Executor:
        """Return the same with what each task needs of the resources that workers declare, and a priority."""
        raise NlsqError(
            f"resources={dict(resources)} and priority={priority} are for the workers of a distributed Client, and "
            "this process runs the tasks itself: open a Client, or leave them out."
        )

    def here(self, threads: bool) -> Executor:
        """Return one that runs tasks in this process, in threads or one after the other."""
        return Threads() if threads else Serial()

    def capacity(self) -> tuple[int, int, int]:
        """Return how many processes run tasks, how many each runs at a time, and its memory limit, or 0."""
        return 1, self.workers, 0

    def ask(self, question: Callable[[], Any]) -> list[tuple[str, Any]]:
        """Return the host of each process and what it answers."""
        return [("here", question())]

    def peak(self) -> int:
        """Return the largest resident size that a process has had, in bytes."""
        return peak_memory()

    def wait_for_workers(self) -> None:  # noqa: B027  (there is always this process)
        """Wait until there is somebody to run tasks."""


class Serial(Executor):
    """This thread, one group after the other; it is `alone` where no other may read ahead for it."""

    serial = True

    def __init__(self, alone: bool = False) -> None:
        self.scheduler = "synchronous" if alone else "threads"
        self._alone = alone

    @property
    def workers(self) -> int:
        """One task at a time."""
        return 1

    def run(self, task: Task, groups: Sequence[Any], *args: Any) -> Iterator[tuple[int, Any]]:
        """Yield ``(i, task(groups[i], *args))`` in order."""
        for i, group in enumerate(groups):
            yield i, self._call(task, group, *args)

    def _call(self, task: Task, group: object, *args: Any) -> Any:
        # To read ahead takes a thread, and Dask's synchronous scheduler promises that there is none.
        if self._alone and isinstance(group, Group):
            group = dataclasses.replace(group, ahead=False)
        return task(group, *args)

    @contextlib.contextmanager
    def opened(self, ordered: bool = True, alike: Hashable = None) -> Iterator[Window]:
        """Run each task where it is sent off."""
        yield Window(ordered, self._call, lambda _: 0, lambda value, _: value)

    def hold(self, groups: Sequence[Group], shared: bool = False) -> Sequence[Any]:
        """Load every partition once."""
        return _hold_here(self, groups, shared)


class Threads(Executor):
    """A pool of threads in this process; reading and XLA both let go of Python's lock.

    Their number is what is given, else Dask's setting `num_workers`, that of its `pool`, or of the CPUs. The threads
    are those of `pool`, Dask's setting or own.
    """

    scheduler = "threads"

    def __init__(self, workers: int | None = None, pool: ThreadPoolExecutor | None = None) -> None:
        configured = pool or dask.config.get("pool", None)
        # As Dask itself counts: a pool of concurrent.futures has the one attribute, one of multiprocessing the other.
        theirs = getattr(configured, "_max_workers", None) or getattr(configured, "_processes", None)
        self._workers: int = workers or dask.config.get("num_workers", None) or theirs or CPU_COUNT
        # A pool that is no ThreadPoolExecutor, as one of multiprocessing, lends its number and not its threads.
        # One pool for all sweeps, for Arrow keeps what it has to spare thread by thread; it ends with this object.
        needs_pool = not isinstance(configured, ThreadPoolExecutor)
        self._pool = ThreadPoolExecutor(self._workers, "nlsq") if needs_pool else configured

    @property
    def workers(self) -> int:
        """How many threads there are."""
        return self._workers

    def limited(self, at_a_time: int) -> Threads:
        """Return so many threads, where these are more."""
        return self if at_a_time >= self.workers else Threads(at_a_time, ThreadPoolExecutor(at_a_time, "nlsq"))

    def run(self, task: Task, groups: Sequence[Any], *args: Any) -> Iterator[tuple[int, Any]]:
        """Yield ``(i, task(groups[i], *args))`` as they arrive, with few more under way than threads."""
        todo, owner = iter(enumerate(groups)), threading.get_ident()
        # One more than there are threads, so that none is idle while a value is taken in.
        running = {self._pool.submit(task, g, *args): i for i, g in itertools.islice(todo, self.workers + 1)}
        try:
            while running:
                for future in _done(running):
                    index = running.pop(future)
                    for i, group in itertools.islice(todo, 1):
                        running[self._pool.submit(task, group, *args)] = i
                    yield index, future.result()
        finally:
            _end(running, owner)

    @contextlib.contextmanager
    def opened(self, ordered: bool = True, alike: Hashable = None) -> Iterator[Window]:
        """Run tasks in the pool."""

        def first(futures: Sequence[Any]) -> int:
            done = _done(futures)
            return next(i for i, future in enumerate(futures) if future in done)

        def value(future: Future[Any], _: object) -> Any:
            _done([future])
            return future.result()

        window, owner = Window(ordered, self._pool.submit, first, value), threading.get_ident()
        try:
            yield window
        finally:
            _end(window.left(), owner)

    def hold(self, groups: Sequence[Group], shared: bool = False) -> Sequence[Any]:
        """Load every partition once."""
        return _hold_here(self, groups, shared)


def _done(running: Collection[Future[Any]]) -> Collection[Future[Any]]:
    """Wait until some are done; a signal that comes as a wait begins ends none, and is noticed after a second."""
    while not (done := wait(running, 1.0, FIRST_COMPLETED).done):
        pass
    return done


def _end(running: Collection[Future[Any]], owner: int) -> None:
    """Wait for the tasks that have begun, unless there is no time to; the others shall not begin.

    A generator that nobody has closed may be collected in a thread that runs one of these very tasks: only the thread
    that has begun it, the `owner`, waits.
    """
    for future in running:
        future.cancel()
    if threading.get_ident() == owner and not isinstance(sys.exc_info()[1], (KeyboardInterrupt, Interrupted)):
        wait(running)


def _hold_here(executor: Serial | Threads, groups: Sequence[Group], shared: bool) -> Sequence[Any]:
    if shared:
        try:
            blocks = dask.compute(*(group.partitions[0] for group in groups), scheduler=executor.scheduler)
        # It says already what is wrong, and where.
        except NlsqError:
            raise
        except Exception as error:
            raise SweepError(f"{type(error).__name__} while reading the data: {error}") from error
        groups = group_of(blocks, sum(int(block.nbytes) for block in blocks), executor.workers)
    return [held for _, held in sorted(executor.run(Group.load, groups), key=lambda pair: pair[0])]
