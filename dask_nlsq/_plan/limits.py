"""Limits: how much memory this process may hold, inside a container too.

A control group may set a limit of its own, and so may every group around it: the smallest counts. Job queues nest them
(a job, a step, a task), so that a look at the root alone would see the machine's memory and not the job's.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

from dask_nlsq._system import once_a_second

_UNLIMITED = 1 << 60
"""What version 1 says where there is no limit is near 2⁶³."""


@dataclasses.dataclass(frozen=True)
class MemoryLimit:
    """Bytes that a process may hold, and who says so."""

    limit: int
    source: str  # "cgroup v2", "physical memory", …


@once_a_second
def memory_limit(root: Path = Path("/"), pid: str = "self") -> MemoryLimit:
    """Return the limit of this process: the smallest of its control groups and of the machine.

    It is read once a second at most.

    Parameters
    ----------
    root : Path
        Where ``proc`` and ``sys`` are found.
    """
    machine = MemoryLimit(_physical(), "physical memory")
    return min((machine, *_groups(root, pid)), key=lambda limit: limit.limit)


@functools.cache
def _physical() -> int:
    """Return the bytes of the machine, which do not change."""
    return int(psutil.virtual_memory().total)


def _groups(root: Path, pid: str) -> Iterator[MemoryLimit]:
    lines = _read(os.path.join(root, "proc", pid, "cgroup")).splitlines()  # none where this is not Linux
    top = os.path.join(root, "sys", "fs", "cgroup")
    for line in lines:
        # A line of version 2 names no controllers: "0::/path". In a path there may be colons too.
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _walk(top, path, "memory.max", "cgroup v2")
        elif "memory" in controllers.split(","):
            yield from _walk(os.path.join(top, "memory"), path, "memory.limit_in_bytes", "cgroup v1")


def _walk(top: str, path: str, name: str, source: str) -> Iterator[MemoryLimit]:
    """Yield the limits of a group and of those around it, as far as they are seen from here."""
    inside = path.strip("/")
    while True:
        text = _read(os.path.join(top, inside, name)).strip()
        # Version 2 writes "max" where there is no limit.
        if text.isdigit() and int(text) < _UNLIMITED:
            yield MemoryLimit(int(text), source)
        if not inside:
            return
        inside = inside.rpartition("/")[0]


def _read(path: str) -> str:
    """Return a small file, or nothing where there is none."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            return file.read()
    except OSError:
        return ""
