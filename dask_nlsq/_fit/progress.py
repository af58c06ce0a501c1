"""Progress on long fits: a bar that fills once a sweep, on a terminal."""

from __future__ import annotations

import warnings
from types import TracebackType

from tqdm import TqdmWarning

with warnings.catch_warnings():
    # `tqdm.auto` warns that its bar for notebooks is experimental, or that it is text without ipywidgets.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm

from dask_nlsq._fit.observer import Estimates, Event, Observer, SweepBegin, TaskEnd

_SHOWN = 4
"""Estimates that a bar has room for."""


class Progress(Observer):
    """A bar over the partitions of the sweep under way; `show` None means on a terminal only."""

    def __init__(self, partitions: int, show: bool | None) -> None:
        hidden = None if show is None else not show  # None lets tqdm look at the terminal
        delay = 0.0 if show else 1.0
        self._bar = tqdm(total=partitions, unit="partition", disable=hidden, delay=delay, leave=False)

    def notify(self, event: Event) -> None:
        """Show an event."""
        if isinstance(event, SweepBegin):
            self._begin(event)
        elif isinstance(event, TaskEnd):
            self._bar.update(event.partitions)
        elif isinstance(event, Estimates) and not self._bar.disable:
            shown = [f"{n} {v:.4g} ± {e:.1g}" for n, v, e in zip(event.names, *event.values(), strict=True)]
            self._bar.set_postfix_str(", ".join(shown[:_SHOWN] + ["…"] * (len(shown) > _SHOWN)), refresh=False)

    def _begin(self, event: SweepBegin) -> None:
        self._bar.reset()
        self._bar.set_description(event.title, refresh=False)
        if event.state is not None and event.state.history and not self._bar.disable:
            last = event.state.history[-1]
            self._bar.set_postfix_str(f"cost {last.cost:.6g}, {last.step:.1g} se to go", refresh=False)
        self._bar.update(event.done)

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
