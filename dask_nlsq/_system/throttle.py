"""Throttle: what is asked of the operating system at most once a second, however many small fits are made in it."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Hashable
from typing import TypeVar

T = TypeVar("T")


def once_a_second(function: Callable[..., T]) -> Callable[..., T]:
    """Return a function that is evaluated once a second for the same arguments, which must be hashable.

    Examples
    --------
    >>> calls = []
    >>> ask = once_a_second(calls.append)
    >>> for _ in range(1000):
    ...     ask("the system")
    >>> len(calls) <= 2
    True
    """

    @functools.lru_cache(16)
    def answer(second: int, args: tuple[Hashable, ...]) -> T:
        return function(*args)

    @functools.wraps(function)
    def ask(*args: Hashable) -> T:
        return answer(int(time.monotonic()), args)

    return ask
