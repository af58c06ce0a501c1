"""Lock: one driver at a time writes a checkpoint.

``lock.json`` names the owner (see `owner`) and the job of a queue, and counts heartbeats. A dead owner's lock is taken
over at once where this process can see that it is dead, or where a queue has started the owner's job again; otherwise
after three heartbeats were missed, by the monotonic clock of the one who waits.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import threading
import time
import uuid
from typing import Any

from dask_nlsq._checkpoint.owner import Life, identify, life
from dask_nlsq._checkpoint.storage import Place
from dask_nlsq._errors import CheckpointError, warn
from dask_nlsq._system import identify as identify_job
from dask_nlsq._system import run_count

log = logging.getLogger("dask_nlsq")

NAME = "lock.json"

HEARTBEAT = 10.0
"""Seconds between two heartbeats."""

_MISSED = 3
"""Heartbeats that a living owner does not miss."""


def job() -> str | None:
    """Return the job of a queue that this process belongs to; a requeued job keeps its name."""
    names = identify_job(os.environ)
    return None if names is None else ":".join(names)


class Lock:
    """The right to write to a place; a context."""

    def __init__(self, place: Place, heartbeat: float = HEARTBEAT) -> None:
        self._place, self._heartbeat = place, heartbeat
        self._own = {"owner": uuid.uuid4().hex, **identify(), "job": job(), "run": run_count(os.environ), "beat": 0}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lock, or wait to see whether its owner is alive.

        Raises
        ------
        CheckpointError
            If another process holds the lock and is alive.
        """
        for _ in range(10):
            if self._try():
                break
        else:
            raise CheckpointError(f"The lock of {self._place} changes hands all the time.")
        # A daemon, so that a process that ends without giving the lock back does not wait for this thread.
        self._thread = threading.Thread(target=self._beat, name="nlsq-heartbeat", daemon=True)
        self._thread.start()

    def _try(self) -> bool:
        """Create the lock, or take over that of a dead owner; return whether it is this one's."""
        try:
            self._place.create(NAME, self._data())
            return True
        except FileExistsError:
            other = self._read()
        # On a disk that is full or read-only a living owner is still refused; what else becomes of the error is for the
        # fit to decide.
        except OSError:
            self._check_free()
            raise
        if other is None or not self._outlives(other):
            return False
        self._place.replace(NAME, self._data())
        time.sleep(0.05)  # another may have seen the same
        return self.mine()

    def _check_free(self) -> None:
        """Refuse a living owner where nothing can be written, and a place that cannot be read either."""
        try:
            other = self._read()
        except Exception as error:  # whatever a service raises
            raise CheckpointError(
                f"The checkpoint {self._place} can be neither read nor written: {type(error).__name__}: {error}"
            ) from error
        if other is not None and life(other, self._own) is Life.ALIVE:
            raise self._busy(other)

    def _outlives(self, other: dict[str, Any]) -> bool:
        """Return whether the owner is dead, or False if it has given the lock back.

        Raises
        ------
        CheckpointError
            If it is alive.
        """
        who = _name(other)
        seen = life(other, self._own)
        if seen is Life.ALIVE:
            raise self._busy(other)
        if seen is Life.DEAD:
            warn(f"The checkpoint {self._place} belonged to {who}, which is gone; it is taken over.")
            return True
        if self._runs_again(other):
            log.info("the checkpoint %s belongs to %s of the same job, which runs again here", self._place, who)
            return True
        log.warning("the checkpoint %s belongs to %s; waiting to see whether it is alive", self._place, who)
        return self._misses_heartbeats(other)

    def _misses_heartbeats(self, other: dict[str, Any]) -> bool:
        """Wait for heartbeats, and return whether there are none, or False if the lock was given back.

        Looks are counted, so that a machine that stood still meanwhile does not take the pause for silence.
        """
        pause = min(1.0, self._heartbeat / 4)
        for _ in range(math.ceil(_MISSED * self._heartbeat / pause)):
            time.sleep(pause)
            record = self._read()
            if record is None:
                return False
            if record != other:
                raise self._busy(other)
        warn(
            f"The checkpoint {self._place} belonged to {_name(other)}, whose heartbeats have stopped; it is taken over."
        )
        return True

    def _runs_again(self, other: dict[str, Any]) -> bool:
        """Return whether the owner belongs to an earlier run of the same job."""
        if self._own["job"] is None or other.get("job") != self._own["job"]:
            return False
        if None not in (self._own["run"], other.get("run")):
            return bool(other["run"] != self._own["run"])
        same_kernel = self._own["boot"] is not None and other.get("boot") == self._own["boot"]
        return other.get("host") != self._own["host"] and not same_kernel  # the queue does not count runs

    def _busy(self, other: dict[str, Any]) -> CheckpointError:
        return CheckpointError(
            f"The checkpoint {self._place} is being written by {_name(other)}. Wait for it, or choose another."
        )

    @property
    def held(self) -> bool:
        """Whether the lock has been taken; another process may have taken it over since."""
        return self._thread is not None

    def mine(self) -> bool:
        """Whether nobody has taken the lock over."""
        record = self._read()
        return record is not None and record.get("owner") == self._own["owner"]

    def release(self) -> None:
        """Give the lock back; one that cannot be given back is taken over when its owner is gone."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=self._heartbeat)
        with contextlib.suppress(Exception):  # of a service it need be no OSError
            if self.mine():
                self._place.remove(NAME)

    def _beat(self) -> None:
        while not self._stop.wait(self._heartbeat):
            self._own["beat"] += 1
            with contextlib.suppress(Exception):  # whatever it is, the next may come through
                # One that was taken over meanwhile is not taken back.
                if self.mine():
                    self._place.replace(NAME, self._data())

    def _data(self) -> bytes:
        return json.dumps(self._own, indent=1).encode()

    def _read(self) -> dict[str, Any] | None:
        """Return the record of the owner; one that is damaged belongs to an unknown process."""
        data = self._place.read(NAME, 100_000)
        if data is None:
            return None
        try:
            record = json.loads(data)
        except (ValueError, RecursionError):
            record = None
        return record if isinstance(record, dict) else {"host": "an unknown host", "pid": "unknown", "text": data.hex()}

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _name(owner: dict[str, Any]) -> str:
    return f"process {owner.get('pid')} on {owner.get('host')}"
