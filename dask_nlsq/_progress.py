"""Progress on long fits: a bar that fills once a sweep, on a terminal."""

from __future__ import annotations

import warnings
from types import TracebackType
from typing import Any

from tqdm import TqdmExperimentalWarning

with warnings.catch_warnings():
    warnings.simplefilter("ignore", TqdmExperimentalWarning)
    from tqdm.auto import tqdm


class Progress:
    """A bar over the partitions of the sweep under way; `show` None means on a terminal only."""

    def __init__(self, partitions: int, show: bool | None) -> None:
        hidden = None if show is None else not show  # None lets tqdm look at the terminal
        delay = 0.0 if show else 1.0
        self._bar = tqdm(total=partitions, unit="partition", disable=hidden, delay=delay, leave=False)

    def sweep(self, state: Any) -> None:
        """Begin a sweep of a fit."""
        self.begin(f"sweep {state.nsweeps + 1}")
        if state.history:
            last = state.history[-1]
            self._bar.set_postfix_str(f"cost {last.cost:.6g}, {last.step:.1g} se to go", refresh=False)

    def begin(self, what: str) -> None:
        """Begin a sweep."""
        self._bar.reset()
        self._bar.set_description(what, refresh=False)

    def answer(self, answer: Any) -> None:
        """Count the partitions of a group."""
        self._bar.update(len(answer.marks))

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
