"""Progress on long fits: a bar that fills once a sweep, on a terminal."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from tqdm import TqdmExperimentalWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmExperimentalWarning)
    from tqdm.auto import tqdm

from dask_nlsq._typing import Vector

_SHOWN = 4
"""Estimates that a bar has room for."""


class Progress:
    """A bar over the partitions of the sweep under way; `show` None means on a terminal only."""

    def __init__(self, partitions: int, show: bool | None) -> None:
        hidden = None if show is None else not show  # None lets tqdm look at the terminal
        delay = 0.0 if show else 1.0
        self._bar = tqdm(total=partitions, unit="partition", disable=hidden, delay=delay, leave=False)

    def sweep(self, state: Any) -> None:
        """Begin a sweep of a fit."""
        self.begin(f"sweep {state.nsweeps + 1}")
        if state.history and not self._bar.disable:
            last = state.history[-1]
            self._bar.set_postfix_str(f"cost {last.cost:.6g}, {last.step:.1g} se to go", refresh=False)

    def begin(self, what: str) -> None:
        """Begin a sweep."""
        self._bar.reset()
        self._bar.set_description(what, refresh=False)

    def estimates(self, names: Sequence[str], values: Callable[[], tuple[Vector, Vector]]) -> None:
        """Show estimates and standard errors, which are only asked for where there is a bar."""
        if not self._bar.disable:
            shown = [f"{n} {v:.4g} ± {e:.1g}" for n, v, e in zip(names, *values(), strict=True)]
            self._bar.set_postfix_str(", ".join(shown[:_SHOWN] + ["…"] * (len(shown) > _SHOWN)), refresh=False)

    def count(self, partitions: int) -> None:
        """Count partitions that were finished before."""
        self._bar.update(partitions)

    def answer(self, answer: Any) -> None:
        """Count the partitions of a group."""
        self._bar.update(len(answer.digests))

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
