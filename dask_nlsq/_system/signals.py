"""Signals that ask a fit to write down what it has and to leave."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from dask_nlsq._errors import Interrupted

GRACE = 30.0
"""Seconds that tasks under way are waited for."""

_WARNING = getattr(signal, "SIGUSR1", None)
_SIGNALS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGINT") if hasattr(signal, name)]


class Interrupt:
    """A context in which SIGTERM, SIGUSR1 (a queue's warning) and Ctrl-C are noticed, in the main thread only.

    `check` raises once a signal has come. Where it is not called within `grace` seconds, or a second signal comes that
    is not one more warning, the exception is raised wherever the main thread is, but not inside `held`.
    """

    def __init__(self, grace: float = GRACE) -> None:
        self._grace = grace
        self._signum: int | None = None
        self._late = False
        self._holding = False
        self._before: dict[int, Any] = {}
        self._timer: threading.Timer | None = None

    def __enter__(self) -> Interrupt:
        # Python refuses to set handlers in any other thread.
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._come) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        for number, before in self._before.items():
            # None stands for a handler that was not set from Python, and cannot be set again from here.
            signal.signal(number, before if before is not None else signal.SIG_DFL)

    def _come(self, signum: int, _: FrameType | None) -> None:
        if self._signum is None:
            self._signum = signum
            self._timer = threading.Timer(self._grace, self._hurry)
            self._timer.daemon = True
            self._timer.start()
        # The scripts of `job_script` repeat the warning of a queue every second, which must not hurry a commit.
        elif (self._late or signum != _WARNING) and not self._holding:
            self.check()

    def _hurry(self) -> None:
        self._late = True
        # Python runs handlers in the main thread, wherever that waits; raised here, the exception would end the timer
        # alone.
        os.kill(os.getpid(), self._signum or signal.SIGTERM)

    def check(self) -> None:
        """Raise if a signal has come.

        Raises
        ------
        KeyboardInterrupt
            It was Ctrl-C.
        Interrupted
            It was another; the exit status is 75.
        """
        if self._signum == signal.SIGINT:
            raise KeyboardInterrupt
        if self._signum is not None:
            raise Interrupted(self._signum)

    def held(self, work: Callable[[], Any]) -> Any:
        """Do what a signal must not tear."""
        self._holding = True
        try:
            return work()
        finally:
            self._holding = False
