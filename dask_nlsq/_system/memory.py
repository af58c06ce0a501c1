"""The memory of a process: the largest resident size that it has had, what it may still take and can give back."""

from __future__ import annotations

import contextlib
import ctypes
import sys

import psutil

from dask_nlsq._system.throttle import once_a_second

if sys.platform != "win32":
    import resource


def peak_memory() -> int:
    """Return the largest resident size that this process has had, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    with contextlib.suppress(OSError), open("/proc/self/status", "rb") as status:
        # On Linux, where ru_maxrss begins with what the parent process held.
        return 1024 * int(status.read().partition(b"VmHWM:")[2].split(None, 1)[0])
    # ru_maxrss counts in bytes on macOS, and in KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit


@once_a_second
def available_memory() -> int:
    """Return the bytes that processes of this machine can still take."""
    return int(psutil.virtual_memory().available)


def trim_memory() -> None:
    """Give memory that is free back to the system, where the C library is asked for it: glibc keeps it by itself."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
