"""Lock: one driver at a time writes a checkpoint.

``lock.json`` names the owner by host, process and start, and by the job of a queue, and its heart beats. A dead owner
is taken over at once where this host can see that it is dead, or where the same job runs again elsewhere; otherwise
after three heartbeats were missed, by the clock of the one who waits.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import threading
import time
import uuid
from typing import Any

import psutil

from dask_nlsq._checkpoint.place import Place
from dask_nlsq._errors import CheckpointError, warn
from dask_nlsq._job import identify

log = logging.getLogger("dask_nlsq")

NAME = "lock.json"

HEARTBEAT = 10.0
"""Seconds between two heartbeats."""

_MISSED = 3
"""Heartbeats that a living owner does not miss."""


def job() -> str | None:
    """Return the job of a queue that this process belongs to; a requeued job keeps its name."""
    found = identify(os.environ)
    return None if found is None else ":".join(found)


class Lock:
    """The right to write to a place; a context."""

    def __init__(self, place: Place, heartbeat: float = HEARTBEAT) -> None:
        self._place, self._heartbeat = place, heartbeat
        started = psutil.Process().create_time()
        self._own = {"owner": uuid.uuid4().hex, "host": socket.gethostname(), "pid": os.getpid(), "started": started}
        self._own |= {"job": job(), "beat": 0}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def acquire(self) -> None:
        """Take the lock, or wait to see whether its owner is alive.

        Raises
        ------
        CheckpointError
            It is.
        """
        for _ in range(10):
            try:
                self._place.create(NAME, self._data())
                break
            except FileExistsError:
                other = self._read()
                if other is None:
                    continue
                self._wait_for(other)
                self._place.replace(NAME, self._data())
                time.sleep(0.05)  # another may have seen the same
                if self.mine():
                    break
        else:
            raise CheckpointError(f"The lock of {self._place} changes hands all the time.")
        self._thread = threading.Thread(target=self._beat, name="nlsq-heartbeat", daemon=True)
        self._thread.start()

    def _wait_for(self, other: dict[str, Any]) -> None:
        """Return once it is sure that the owner is dead."""
        who = f"process {other.get('pid')} on {other.get('host')}"
        here = other.get("host") == self._own["host"]
        if self._own["job"] is not None and other.get("job") == self._own["job"] and not (here and _alive(other)):
            log.info("the checkpoint %s belongs to %s of the same job, which runs again here", self._place, who)
            return
        if here and not _alive(other):
            warn(f"The checkpoint {self._place} belonged to {who}, which is gone; it is taken over.")
            return
        busy = f"The checkpoint {self._place} is being written by {who}. Wait for it, or choose another."
        if here:
            raise CheckpointError(busy)
        log.warning("the checkpoint %s belongs to %s; waiting to see whether it is alive", self._place, who)
        deadline = time.monotonic() + _MISSED * self._heartbeat
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._heartbeat / 4))
            now = self._read()
            if now is None:
                return
            if now != other:
                raise CheckpointError(busy)
        warn(f"The checkpoint {self._place} belonged to {who}, whose heart has stopped; it is taken over.")

    def mine(self) -> bool:
        """Whether nobody has taken the lock over."""
        found = self._read()
        return found is not None and found.get("owner") == self._own["owner"]

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
                if self.mine():
                    self._place.replace(NAME, self._data())

    def _data(self) -> bytes:
        return json.dumps(self._own, indent=1).encode()

    def _read(self) -> dict[str, Any] | None:
        """Return who owns the lock; one that cannot be read belongs to nobody who is known."""
        data = self._place.read(NAME, 100_000)
        if data is None:
            return None
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            found = None
        return found if isinstance(found, dict) else {"host": "an unknown host", "pid": "unknown", "text": data.hex()}

    def __enter__(self) -> Lock:
        self.acquire()
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _alive(other: dict[str, Any]) -> bool:
    """Whether the owner runs on this host: a process of that number that began when it did."""
    try:
        return bool(abs(psutil.Process(int(other["pid"])).create_time() - float(other["started"])) < 1.0)
    except (psutil.Error, KeyError, TypeError, ValueError):
        return False
