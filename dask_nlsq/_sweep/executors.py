"""Who runs the tasks: this thread, a thread pool, or a distributed client.

Each offers the same two verbs. `run` calls a function on every partition and yields ``(index, value)`` in the
order of arrival; `hold` loads the partitions once and keeps their blocks.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any, Protocol

import dask
from dask.system import CPU_COUNT

from dask_nlsq._sweep.task import failure, load

Task = Callable[..., Any]


class Executor(Protocol):
    """Runs a task on every partition."""

    @property
    def workers(self) -> int:
        """How many tasks run at a time."""

    def run(self, task: Task, partitions: Sequence[Any], *args: Any) -> Iterator[tuple[int, Any]]:
        """Yield ``(i, task(partitions[i], *args))`` in any order."""

    def hold(self, partitions: Sequence[Any], shared: bool) -> Sequence[Any]:
        """Load every partition once and return what stands for its block from now on."""


class Serial:
    """This thread, one partition after the other."""

    workers = 1

    def run(self, task: Task, partitions: Sequence[Any], *args: Any) -> Iterator[tuple[int, Any]]:
        """Yield ``(i, task(partitions[i], *args))`` in order."""
        for i, partition in enumerate(partitions):
            yield i, task(partition, *args)

    def hold(self, partitions: Sequence[Any], shared: bool) -> Sequence[Any]:
        """Load every partition once."""
        return _hold_here(self, partitions, shared)


class Threads:
    """A pool of threads in this process; reading and XLA both let go of Python's lock."""

    def __init__(self, workers: int | None = None) -> None:
        self.workers: int = workers or dask.config.get("num_workers", None) or CPU_COUNT

    def run(self, task: Task, partitions: Sequence[Any], *args: Any) -> Iterator[tuple[int, Any]]:
        """Yield ``(i, task(partitions[i], *args))`` as they arrive, with few more under way than threads."""
        todo = iter(enumerate(partitions))
        with ThreadPoolExecutor(min(self.workers, len(partitions)), "nlsq") as pool:
            running = {pool.submit(task, p, *args): i for i, p in itertools.islice(todo, self.workers + 1)}
            while running:
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    index = running.pop(future)
                    for i, partition in itertools.islice(todo, 1):
                        running[pool.submit(task, partition, *args)] = i
                    yield index, future.result()

    def hold(self, partitions: Sequence[Any], shared: bool) -> Sequence[Any]:
        """Load every partition once."""
        return _hold_here(self, partitions, shared)


class Cluster:
    """A distributed client: one task a partition, parameters as task arguments, nothing scattered."""

    def __init__(self, client: Any) -> None:
        self.client = client

    @property
    def workers(self) -> int:
        """Threads of all workers; 1 while none has arrived."""
        return max(1, sum(int(threads) for threads in self.client.nthreads().values()))

    def run(self, task: Task, partitions: Sequence[Any], *args: Any) -> Iterator[tuple[int, Any]]:
        """Yield ``(i, task(partitions[i], *args))`` as they arrive, with a bounded number under way."""
        from distributed import as_completed

        run = uuid.uuid4().hex[:8]
        window = max(64, 8 * self.workers)
        todo = iter(enumerate(partitions))
        index: dict[Any, int] = {}

        def submit(count: int) -> list[Any]:
            batch = list(itertools.islice(todo, count))
            if not batch:
                return []
            keys = [f"nlsq-{task.__name__}-{run}-{i}" for i, _ in batch]
            futures = self.client.map(_call, [p for _, p in batch], task=task, args=args, key=keys, pure=False)
            index.update(zip(futures, (i for i, _ in batch), strict=True))
            return list(futures)

        arriving = as_completed(submit(window))
        spent = 0
        for future in arriving:
            i = index.pop(future)
            error = future.exception()
            value = future.result() if error is None else failure("running on a worker", error)
            future.release()
            spent += 1
            if spent >= window // 4 or not index:
                arriving.update(submit(spent))
                spent = 0
            yield i, value

    def hold(self, partitions: Sequence[Any], shared: bool) -> Sequence[Any]:
        """Load every partition on a worker and keep it there; a lost one is read again."""
        if shared:
            return list(self.client.compute(list(partitions)))
        run = uuid.uuid4().hex[:8]
        keys = [f"nlsq-load-{run}-{i}" for i in range(len(partitions))]
        return list(self.client.map(load, partitions, key=keys, pure=False))


def _call(partition: Any, task: Task, args: tuple[Any, ...]) -> Any:
    return task(partition, *args)


def _hold_here(executor: Executor, partitions: Sequence[Any], shared: bool) -> Sequence[Any]:
    if shared:
        return list(dask.compute(*partitions, scheduler="threads"))
    return [value for _, value in sorted(executor.run(load, partitions), key=lambda pair: pair[0])]
