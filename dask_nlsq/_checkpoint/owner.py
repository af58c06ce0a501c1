"""Owner: the process that a lock names, and what another process can see of it.

A process number means something only within one PID namespace of one running kernel. The start of a process is given in
clock ticks since boot, as the kernel counts them: in seconds it would move whenever the wall clock is set.
"""

from __future__ import annotations

import enum
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

Record = Mapping[str, Any]
"""What a lock says of its owner."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

_NAMESPACES = "pid", "time"
"""Namespaces in which processes are numbered, and in which time is counted from boot."""


class Life(enum.Enum):
    """What can be seen of a process."""

    ALIVE = "alive"
    DEAD = "dead"
    UNKNOWN = "unknown"


def identify() -> dict[str, Any]:
    """Return what names this process among all others; what the system does not say is None."""
    return {
        "host": socket.gethostname(),
        "boot": _boot_id(),
        "namespaces": _namespaces(),
        "pid": os.getpid(),
        "start_ticks": _start_ticks(),
        "started": _create_time(os.getpid()),  # also for versions that know nothing else
    }


def life(owner: Record, here: Record) -> Life:
    """Return what the process `here` can see of an owner: that it is dead only where both number processes alike."""
    # As on macOS, or for an owner of an older version.
    if None in (here["boot"], here["namespaces"], here["start_ticks"], owner.get("boot")):
        return _life_by_wall_clock(owner, here)
    if owner["boot"] != here["boot"] or owner.get("namespaces") != here["namespaces"]:
        return Life.UNKNOWN
    return _life_by_ticks(owner)


def _life_by_wall_clock(owner: Record, here: Record) -> Life:
    """Compare the start by the wall clock: the same start shows a living process, another one shows nothing."""
    if owner.get("host") != here["host"]:
        return Life.UNKNOWN
    try:
        started = _create_time(int(owner["pid"]))
        same = started is not None and abs(started - float(owner["started"])) < 1.0
    except (KeyError, TypeError, ValueError, OverflowError):
        return Life.UNKNOWN
    return Life.ALIVE if same else Life.UNKNOWN


def _life_by_ticks(owner: Record) -> Life:
    pid = owner.get("pid")
    # os.kill takes zero and negative numbers for groups of processes.
    if not isinstance(pid, int) or not 0 < pid < 2**31 or not _own_proc():
        return Life.UNKNOWN
    stat = _stat(pid)
    if stat is None:
        return Life.UNKNOWN if _exists(pid) else Life.DEAD
    state, threads, ticks = stat
    # Z is a process that nobody has waited for, X one that is being removed.
    ended = state in "ZX" and threads <= 1  # of a thread that has ended others may run on
    return Life.DEAD if ended or ticks != owner.get("start_ticks") else Life.ALIVE


def _stat(pid: int | str) -> tuple[str, int, int] | None:
    """Return the state, the number of threads and the start in ticks of a process, or None where it is not shown."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace")
        fields = text.rpartition(")")[2].split()  # the name, in parentheses, may hold anything; the third comes next
        return fields[0], int(fields[17]), int(fields[19])
    except (OSError, ValueError, IndexError):
        return None


def _exists(pid: int) -> bool:
    """Return whether there is a process of this number, which /proc may hide from other users."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # It is there, and belongs to another user.
    except OSError:
        return True
    return True


def _own_proc() -> bool:
    """Return whether /proc shows the PID namespace of this process: a new one may not have mounted its own."""
    return _link("/proc/self") == str(os.getpid())


def _link(path: str) -> str | None:
    try:
        return os.readlink(path)
    except OSError:
        return None


def _boot_id() -> str | None:
    try:
        return _BOOT_ID.read_text("ascii").strip() or None
    except (OSError, ValueError):
        return None


def _namespaces() -> list[str] | None:
    links = [_link(f"/proc/self/ns/{name}") for name in _NAMESPACES]
    return None if links[0] is None else [link or "" for link in links]  # old kernels have none of time


def _start_ticks() -> int | None:
    stat = _stat("self")
    return None if stat is None else stat[2]


def _create_time(pid: int) -> float | None:
    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None
