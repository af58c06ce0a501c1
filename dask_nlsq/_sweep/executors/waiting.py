"""Waiting on a cluster: for workers where it has none, and inside a task of the cluster itself."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator

import dask
from dask.utils import format_time, parse_timedelta

from dask_nlsq._errors import SweepError

log = logging.getLogger("dask_nlsq")

INTERVAL = 1.0
"""Seconds between two looks for workers; a look is one round trip to the scheduler."""


class WorkerWatch:
    """Look from time to time whether the cluster has workers, while somebody waits for tasks.

    Without workers it says so in the log, once, and again when some have come. Where none has come within the seconds
    of `nlsq.worker-timeout` in Dask's configuration, it ends the wait.

    Parameters
    ----------
    count : callable
        Returns how many workers there are that can run the tasks.
    end_wait : callable
        Makes whoever waits for tasks raise.
    what : str
        What kind of worker is needed, for the messages.
    """

    def __init__(self, count: Callable[[], int], end_wait: Callable[[], None], what: str = "worker") -> None:
        self._count, self._end_wait, self._what = count, end_wait, what
        self._over = threading.Event()
        self._limit = _limit()
        self._since: float | None = None  # when there was no worker, for the first time
        self.expired = False

    def __enter__(self) -> WorkerWatch:
        threading.Thread(target=self._watch, name="nlsq-watch", daemon=True).start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._over.set()
        if kind is None and not self.expired:
            self._come()

    def error(self) -> SweepError:
        """Return what to raise once the wait has been ended."""
        return SweepError(
            f"The cluster has had no {self._what} for {format_time(self._limit or 0.0)} (nlsq.worker-timeout). Start "
            "workers, cluster.scale(2) for instance, look at their logs and at the queue if they are jobs, and fit "
            "again; or wait longer: dask.config.set({'nlsq.worker-timeout': None})."
        )

    def _watch(self) -> None:
        with contextlib.suppress(Exception):  # a lost scheduler is noticed by whoever waits for its tasks
            while not self._over.wait(INTERVAL):
                if self._count():
                    self._come()
                else:
                    self._lack(time.monotonic())

    def _come(self) -> None:
        """Take notice that there are workers, or that what was waited for is there."""
        if self._since is not None:
            log.warning("A %s has come after %s; the fit goes on.", self._what, _ago(self._since))
        self._since = None

    def _lack(self, now: float) -> None:
        """Take notice that there is no worker, and end the wait where it has lasted too long."""
        if self._over.is_set():
            return
        if self._since is None:
            self._since = now
            limit = "without a limit" if self._limit is None else f"for at most {format_time(self._limit)}"
            log.warning("The cluster has no %s; the fit waits for one, %s.", self._what, limit)
        elif self._limit is not None and now - self._since >= self._limit:
            self.expired = True
            self._over.set()
            self._end_wait()


def _ago(then: float) -> str:
    return str(format_time(time.monotonic() - then))


def _limit() -> float | None:
    """Return the most seconds to wait for workers, or None."""
    timeout = dask.config.get("nlsq.worker-timeout", None)
    return None if timeout is None else float(parse_timedelta(timeout, default="s"))


@contextlib.contextmanager
def seceded() -> Iterator[None]:
    """Leave the thread pool of the worker whose task this is, as Dask's own ``compute`` does while it waits there.

    Otherwise the tasks that are waited for might wait for this very thread. Outside of a task nothing happens.
    """
    from distributed import rejoin, secede

    try:
        secede()
    except (ValueError, AttributeError, KeyError):  # in no task, in none with a thread of its own, or outside already
        yield
        return
    owner = threading.get_ident()
    try:
        yield
    finally:
        if threading.get_ident() == owner:  # and not a thread in which a generator is collected
            rejoin()
