"""Fork: a process that was forked from one that had fitted cannot fit, for it has none of the threads of XLA and Dask.

It would wait for them for ever. Models that are compiled, executors and results come along in its memory, so that every
use of them has to ask.
"""

from __future__ import annotations

import os
import threading

from dask_nlsq._errors import ForkedProcessError

_lock = threading.Lock()


class _Process:
    """What is known of this process."""

    watched = False
    forked_from: int | None = None

    @classmethod
    def note_fork(cls) -> None:
        """Remember the parent; runs in the child, which may exec another program at once."""
        cls.forked_from = os.getppid()


def check_not_forked() -> None:
    """Refuse a process that was forked after a fit, and note that this one fits.

    Raises
    ------
    ForkedProcessError
        If the process was forked from one that had begun to fit.
    """
    if _Process.forked_from is not None:
        raise ForkedProcessError(
            f"This process was forked from process {_Process.forked_from}, which had fitted: the threads of XLA and "
            "Dask are missing here, and a fit would wait for them for ever. Start processes with "
            'multiprocessing.get_context("spawn") or "forkserver", or fork before the first fit.'
        )
    if not _Process.watched:
        _watch()


def _watch() -> None:
    """Have forks noted from now on: those before the first fit do no harm."""
    with _lock:
        # A callback cannot be taken back from Python, so there is one for the life of the process.
        if not _Process.watched and hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_Process.note_fork)
        _Process.watched = True
