"""Retry: what a file system fails to read is tried again."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

READS = 3
"""How often a read is tried when the file system reports an error."""


def read_again(read: Callable[[], T]) -> T:
    """Return what `read` returns, which is called again where the file system fails."""
    for attempt in range(1, READS):
        try:
            return read()
        # Waiting mends neither of them.
        except (FileNotFoundError, PermissionError):
            raise
        except OSError:
            time.sleep(0.1 * 2**attempt)
    return read()
