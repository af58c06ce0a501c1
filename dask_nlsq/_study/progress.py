"""Progress of a study: one bar over its variants."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

from dask_nlsq._display import is_shown, stream
from dask_nlsq._fit import DELAY, tqdm
from dask_nlsq._study.run import Outcome


class StudyBar:
    """A bar over variants; it says how many failed, were in the cache, and how often the data were read."""

    def __init__(self, variants: int, show: bool | None) -> None:
        self._variants, self._shown, self._delay = variants, is_shown(show), 0.0 if show else DELAY
        self._lock = threading.Lock()
        self._bar: Any = None
        self._passes = self._failed = self._cached = 0

    def __enter__(self) -> StudyBar:
        if self._shown:
            self._bar = tqdm(
                total=self._variants,
                file=stream(),
                dynamic_ncols=True,
                delay=self._delay,
                bar_format="study: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} fits [{elapsed}{postfix}]",
            )
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            with contextlib.suppress(Exception):
                self._bar.close()

    def ended(self, _: str, outcome: Outcome) -> None:
        """Take notice that a variant has ended."""
        with self._lock:
            self._failed += outcome.result is None
            self._cached += outcome.cached
            self._draw(1)

    def passed(self) -> None:
        """Take notice that all data were read once."""
        with self._lock:
            self._passes += 1
            self._draw(0)

    def _draw(self, more: int) -> None:
        counts = {"passes": self._passes, "from the cache": self._cached, "failed": self._failed}
        with contextlib.suppress(Exception):  # a bar must not end a study
            if self._bar is not None:
                self._bar.set_postfix_str(", ".join(f"{n} {what}" for what, n in counts.items() if n), refresh=False)
                self._bar.update(more)
                self._bar.refresh()
