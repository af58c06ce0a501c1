"""Cluster: the workers of a distributed client run the tasks, and hold what fits their memory."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import threading
import uuid
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from typing import TYPE_CHECKING, Any, TypeVar

from dask_nlsq._errors import NlsqError, SweepError
from dask_nlsq._kernel import Block
from dask_nlsq._sweep.executors import versions
from dask_nlsq._sweep.executors.local import Executor, Task, Window
from dask_nlsq._sweep.executors.waiting import WorkerWatch, seceded
from dask_nlsq._sweep.failure import Failure, remedy
from dask_nlsq._sweep.groups import Group, Packed
from dask_nlsq._sweep.groups import group as group_of
from dask_nlsq._system import peak_memory

if TYPE_CHECKING:
    from distributed import Client, Future

    from dask_nlsq._sources import Partition

T = TypeVar("T")

_GPU = "GPU"
"""The resource that workers with GPUs declare, by the custom of dask-cuda's and dask-jobqueue's documents."""

_WINDOW = 64
"""Tasks under way on a cluster at least. To ask for its workers costs a round trip, which fewer tasks do without."""

_SPENT = 4
"""Tasks whose values workers may keep beyond their use: to give them up takes the scheduler milliseconds, while the
workers compute. Not many, for what is kept is computed again where a worker dies."""

_TO_COME = 16
"""Tasks that the workers of a cluster without any are thought to run at a time: data that are cut for one worker would
keep the others idle that come later."""

_KILLED = (
    "Every worker died that ran this, most likely for want of memory: cut the data into smaller partitions, or give "
    "the workers more. The logs of the workers may say more."
)


@dataclasses.dataclass(frozen=True)
class Held:
    """A group that a worker holds, read or only described: the group as it was cut, and what stands for it."""

    group: Group
    future: Future[Any]

    @property
    def start(self) -> int:
        """Number of the first partition."""
        return self.group.start

    @property
    def indices(self) -> tuple[int, ...]:
        """Numbers of the partitions."""
        return self.group.indices

    @property
    def partitions(self) -> tuple[Partition | Failure, ...]:
        """The partitions, not read."""
        return self.group.partitions


class Cluster(Executor):
    """A distributed client: one task a group, parameters as task arguments, nothing scattered.

    What is lost with a worker, Dask itself runs again on another. Where workers declare GPUs, tasks go to those alone,
    one a GPU; asking for a resource that nobody declares would wait for ever. A worker process runs at most `at_a_time`
    tasks at a time where memory has room for no more. What each task needs of `resources`, and its `priority`, Dask is
    told as they are.
    """

    remote = True

    def __init__(
        self,
        client: Client,
        at_a_time: int | None = None,
        resources: Mapping[str, float] | None = None,
        priority: int = 0,
    ) -> None:
        self.client = client
        self._at_a_time, self._priority = at_a_time, priority
        self._spent: list[Future[Any]] = []  # futures of the last sweeps, whose values are here
        self._again: Future[Any] | None = None  # the future of a task that is run once more
        # n_workers=-1 asks for all: some releases of Dask describe five workers by default.
        declared = (w["resources"].get(_GPU) for w in client.scheduler_info(n_workers=-1)["workers"].values())
        self._asked = dict(resources or {})
        self._resources = self._asked or ({_GPU: 1} if any(declared) else None)

    def limited(self, at_a_time: int) -> Cluster:
        """Return the same with at most so many tasks at a time in a process."""
        return Cluster(self.client, at_a_time, self._asked, self._priority)

    def annotated(self, resources: Mapping[str, float], priority: int) -> Cluster:
        """Return the same with what each task needs of the resources that workers declare, and a priority."""
        return Cluster(self.client, self._at_a_time, resources, priority)

    @property
    def workers(self) -> int:
        """Tasks that all workers run at a time, or are thought to once some have come."""
        return sum(self._places().values()) or _TO_COME

    @property
    def closed(self) -> bool:
        """Whether the client has been closed."""
        return self.client.status == "closed"

    def _places(self) -> dict[str, int]:
        """Return how many tasks each worker runs at a time: its threads, or as its resources allow."""
        if self._resources is None:
            most = self._at_a_time or 2**31
            return {worker: min(int(threads), most) for worker, threads in self.client.nthreads().items()}
        workers = self.client.scheduler_info(n_workers=-1)["workers"]
        room = {
            worker: min((w["resources"].get(n, 0) // k for n, k in self._resources.items() if k > 0), default=2**31)
            for worker, w in workers.items()
        }
        # A worker runs no more tasks than it has threads, whatever it declares.
        return {worker: min(int(count), workers[worker]["nthreads"]) for worker, count in room.items() if count >= 1}

    def capacity(self) -> tuple[int, int, int]:
        """Return how many workers get tasks, the most that one runs at a time, and the smallest memory limit, or 0."""
        workers, places = self.client.scheduler_info(n_workers=-1)["workers"], self._places()
        limits = [workers[w]["memory_limit"] or 0 for w in places if w in workers]
        return max(len(places), 1), max(places.values(), default=1), min(limits, default=0)

    def wait_for_workers(self) -> None:
        """Wait until there is a worker, with a task: an adaptive cluster starts none without."""
        if self._places():
            return
        # With the resources that the tasks will need, or a worker would come that has none.
        future = self.client.submit(int, key=(_name("wait"), 0), resources=self._resources, pure=False)
        with self._connected(lambda: [future]):
            future.result()

    def ask(self, question: Callable[[], Any]) -> list[tuple[str, Any]]:
        """Return the host of each worker and what it answers."""
        with self._connected():
            answers = self.client.run(question, on_error="ignore")
            workers = self.client.scheduler_info(n_workers=-1)["workers"]
        return [(workers[w]["host"], answer) for w, answer in answers.items() if w in workers]

    def peak(self) -> int:
        """Return the largest resident size that a worker has had, in bytes."""
        with self._connected():
            peaks = self.client.run(peak_memory, on_error="ignore")
        return max(peaks.values(), default=0)

    def check_workers(self) -> str | None:
        """Refuse workers whose versions are not those of this process.

        Returns
        -------
        str or None
            What to do where worker processes of one machine each let XLA use all of its cores.

        Raises
        ------
        SweepError
            A worker has another Python, JAX, NumPy or dask_nlsq.
        """
        with self._connected():
            answers = self.client.run(versions.survey, on_error="return")
            workers = self.client.scheduler_info(n_workers=-1)["workers"]
        answers = {w: a for w, a in answers.items() if w in workers and not isinstance(a, OSError)}  # gone meanwhile
        versions.check_survey(answers)
        # Workers within this process share its XLA, and do not hinder one another.
        open_ended = [w for w, (limit, _) in answers.items() if not limit and not w.startswith("inproc")]
        hosts = collections.Counter(workers[w]["host"] for w in open_ended)
        host, processes = max(hosts.items(), key=lambda item: item[1], default=("", 0))
        if processes < 2:
            return None
        threads = max(workers[w]["nthreads"] for w in answers if workers[w]["host"] == host)
        return (
            f"{processes} worker processes on {host} each let XLA use all cores, and hinder one another. Start them "
            f"with PJRT_NPROC={threads} in their environment: LocalCluster(..., env={{'PJRT_NPROC': '{threads}'}})."
        )

    def run(self, task: Task, groups: Sequence[Any], *args: Any) -> Iterator[tuple[int, Any]]:
        """Yield ``(i, task(groups[i], *args))`` as they arrive, with a bounded number under way."""
        index: dict[Any, int] = {}
        with self._connected(lambda: list(index)):
            yield from self._run(task, groups, args, index)

    def _run(
        self, task: Task, groups: Sequence[Any], args: tuple[Any, ...], index: dict[Any, int]
    ) -> Iterator[tuple[int, Any]]:
        from distributed import as_completed

        name = _name(task.__name__)
        window = _WINDOW if len(groups) <= _WINDOW else max(_WINDOW, 8 * self.workers)
        todo = iter(enumerate(groups))

        def submit(count: int) -> list[Any]:
            batch = list(itertools.islice(todo, count))
            if not batch:
                return []
            keys = [(name, i) for i, _ in batch]
            # A future stands for its group: the task goes to the worker that holds it.
            sent = [g.future if isinstance(g, Held) else _packed(g) for _, g in batch]
            futures = self.client.map(
                _call,
                sent,
                task=task,
                args=args,
                at_a_time=self._at_a_time,
                driver=versions.own(),
                key=keys,
                resources=self._resources,
                priority=self._priority,
                pure=False,
            )
            index.update(zip(futures, (i for i, _ in batch), strict=True))
            if len(self._spent) > _SPENT:
                self._spent.clear()  # now: for 10 ms after Dask has sent word of futures given up, it sends nothing
            return list(futures)

        arriving = as_completed(  # results come along; one by one each would cost a round trip
            submit(window), with_results=True, raise_errors=False, loop=self.client.loop
        )
        spent = 0
        for future, value in arriving:
            i = index.pop(future)
            if future.status != "finished":
                value = self._value(future, groups[i])
            if isinstance(groups[i], Held):
                self._spent.append(future)
            else:
                future.release()
            spent += 1
            if spent >= window // 4 or not index:
                arriving.update(submit(spent))
                spent = 0
            yield i, value

    @contextlib.contextmanager
    def opened(self, ordered: bool = True, alike: Hashable = None) -> Iterator[Window]:
        """Run tasks on the workers; what is not waited for is given up."""
        from distributed import as_completed

        name, count = _name("stream"), itertools.count()

        def first(futures: Sequence[Any]) -> int:
            done = next(iter(as_completed(futures, raise_errors=False, loop=self.client.loop)))
            return next(i for i, future in enumerate(futures) if future is done)

        def submit(task: Task, group: object, *args: Any) -> Future[Any]:
            return self.client.submit(
                _call,
                _packed(group),
                task=task,
                args=args,
                at_a_time=self._at_a_time,
                driver=versions.own(),
                key=(name, next(count)),
                resources=self._resources,
                priority=self._priority,
                pure=False,
            )

        window = Window(ordered, submit, first, self._value)
        with self._connected(window.waiting):
            try:
                yield window
            finally:
                self.client.cancel(window.left())

    def _value(self, future: Future[Any], group: Group | Held) -> Any:
        """Return what a task came to, or a failure where Dask gave it up.

        A task whose workers died is run once more: Dask suspects all that ran beside the one that kills.
        """
        from distributed import KilledWorker

        try:
            try:
                return future.result()
            except KilledWorker:
                with contextlib.suppress(KeyError):  # what it depends on is retried too, but may be no future of ours
                    future.retry()
                self._again = self.client.submit(_itself, future, pure=False)
                return self._again.result()
        except KilledWorker as error:
            return _given_up(group, error, _KILLED)
        except Exception as error:
            if future.status != "error":  # it was not the task that failed
                raise
            return _given_up(group, error, f"{type(error).__name__} while running on a worker: {error}{remedy(error)}")

    @contextlib.contextmanager
    def _connected(self, waiting: Callable[[], Iterable[Any]] | None = None) -> Iterator[None]:
        """Wait for the cluster: for workers where there are none, and outside of the pool of a worker.

        What Dask raises is told in words. The futures that are `waiting` are given up where no worker comes in time.
        """
        needed = " and ".join(f"{'a' if n == 1 else f'{n:g}'} {name}" for name, n in (self._resources or {}).items())
        what = f"worker that declares {needed}" if needed else "worker"

        def end_wait() -> None:
            self.client.cancel([*(waiting() if waiting else ()), *([self._again] if self._again else ())])

        watch = WorkerWatch(lambda: len(self._places()), end_wait, what)
        try:
            with contextlib.ExitStack() as stack:
                if waiting is not None:
                    stack.enter_context(seceded())
                    stack.enter_context(watch)
                yield
        except Exception as error:
            if watch.expired:
                raise watch.error() from error
            if self.client.status == "running" and not isinstance(error, (CancelledError, OSError)):
                raise
            # Dask cancels all that a client has where its scheduler is lost, too.
            if isinstance(error, CancelledError) and self._answers():
                raise _cancelled(error) from error
            raise SweepError(
                f"The scheduler was lost during the fit ({type(error).__name__}), and what was computed with it. "
                "Connect a Client to a running cluster and fit again."
            ) from error
        if watch.expired:
            raise watch.error()

    def _answers(self) -> bool:
        """Whether the scheduler is there."""
        try:
            self.client.nthreads()
        except Exception:
            return False
        return bool(self.client.status == "running")

    def hold(self, groups: Sequence[Group], shared: bool = False) -> Sequence[Any]:
        """Load every partition on a worker and keep it there; a lost one is read again."""
        return self._hold_shared(groups) if shared else self._hold("load", groups, _load, [*map(_packed, groups)])

    def describe(self, groups: Sequence[Group]) -> Sequence[Any]:
        """Send the groups to the workers once, not read, so that each sweep refers to them by their keys."""
        return self._hold("describe", groups, _described, [*map(_packed, groups)])

    def _hold(
        self, what: str, groups: Sequence[Group], make: Callable[..., Any], *arguments: Sequence[Any]
    ) -> list[Held]:
        """Make each group on a worker, the threads in turn: what lies unevenly is swept unevenly.

        That is Dask's own order for tasks that depend on nothing. They are bound to no address: once a cluster has had
        no worker, Dask leaves tasks with `workers=` waiting for that very address, even with `allow_other_workers=`.
        """
        name = _name(what)
        with self._connected():
            return [
                Held(
                    group,
                    self.client.submit(
                        make,
                        *each,
                        at_a_time=self._at_a_time,
                        key=(name, group.start),
                        resources=self._resources,
                        priority=self._priority,
                        pure=False,
                    ),
                )
                for group, *each in zip(groups, *arguments, strict=True)
            ]

    def _hold_shared(self, groups: Sequence[Group]) -> list[Held]:
        """Compute partitions that share work together, or take those that lie on workers, and make groups of them."""
        partitions = [partition for group in groups for partition in group.partitions]
        sizes: list[Any] = []
        with self._connected(lambda: sizes):
            # In one call, so that Dask makes the work that they share once.
            blocks = self.client.compute(partitions)
            # Some sixteen of them are asked: each answer is a task.
            sizes += self.client.map(_size, blocks[:: max(1, len(blocks) // 16)], pure=False)
            known = self.client.gather(sizes, errors="skip")  # an error is told by the sweep
            workers = self.workers
        groups = group_of(partitions, sum(known) / max(len(known), 1) * len(blocks), workers, per_thread=1)
        pieces = [blocks[group.start : group.start + len(group.partitions)] for group in groups]
        return self._hold("load", groups, _together, [dataclasses.replace(g, partitions=()) for g in groups], pieces)


def outside_pool(executor: Executor) -> contextlib.AbstractContextManager[None]:
    """Leave the pool of the worker whose task this is for as long as tasks of its cluster are waited for."""
    return seceded() if executor.remote else contextlib.nullcontext()


def _cancelled(error: BaseException) -> SweepError:
    """Return the error of tasks that somebody has cancelled."""
    return SweepError(
        f"Dask cancelled what the fit needs ({error}): client.restart() was called, or persisted data were given up. "
        "Fit again; data that were persisted are gone, and must be made and persist()ed anew first."
    )


def _name(what: str) -> str:
    """Return the first half of the keys of some tasks, which Dask thus takes as a group of their own.

    Were it the same in every sweep the group would grow, until Dask thought its tasks so many that it no longer minded
    where lies what they take, and copied what is held from worker to worker.
    """
    return f"nlsq-{what.replace('_', '-')}-{uuid.uuid4().hex[:8]}"


def _call(
    group: object, task: Task, args: tuple[Any, ...], at_a_time: int | None, driver: versions.Versions | None = None
) -> Any:
    """Run a task on a worker, where it is that of the `driver`: one that came late nobody has asked."""
    if driver is not None and driver != versions.own():
        error = versions.difference(versions.own(), versions.here(), driver)
        return Failure("running on a worker", error or SweepError("The versions of a worker could not be compared."))
    if isinstance(group, Packed):
        group = group.open()
    if isinstance(group, Failure):
        return group
    # A worker of Dask runs as many tasks as it has threads; where memory has room for fewer they take turns.
    if at_a_time is None:
        return task(group, *args)
    with _turns_lock:
        turn = _turns.setdefault(at_a_time, threading.BoundedSemaphore(at_a_time))
    with turn:
        return task(group, *args)


_turns: dict[int, threading.BoundedSemaphore] = {}
"""Turns of the tasks of this process, by how many may run at a time."""

_turns_lock = threading.Lock()


def _itself(value: T) -> T:
    return value


def _given_up(group: Group | Held, cause: Exception, why: str) -> Failure:
    # Which of the partitions it was, nobody knows: the worker is gone.
    first, *more = group.indices
    apart = more and more[-1] - first != len(more)
    several = ", ".join(map(str, group.indices)) if apart else f"{first} to {more[-1]}" if more else ""
    where: dict[str, Any] = {"partitions": several} if more else {"partition": first}
    if isinstance(cause, NlsqError):
        return Failure("running on a worker", cause.at(**where))
    error = SweepError(why, **where)
    error.__cause__ = cause
    return Failure("running on a worker", error)


def _size(block: Block) -> int:
    return int(block.nbytes)


def _packed(group: T) -> T | Packed:
    """Return what is sent of a group: rows as they are, and what is not read as bytes."""
    if isinstance(group, Group) and not isinstance(group.partitions[0], Block):
        return Packed.of(group)
    return group


def _described(group: Group | Packed, at_a_time: int | None) -> Group | Packed:
    return group


def _load(group: Group | Packed, at_a_time: int | None) -> Group | Failure:
    loaded: Group | Failure = _call(group, Group.load, (), at_a_time)
    return loaded


def _together(group: Group, blocks: Sequence[Any], at_a_time: int | None) -> Group:
    return dataclasses.replace(group, partitions=tuple(blocks)).load()
