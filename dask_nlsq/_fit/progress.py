"""Progress on long fits: one bar a fit, in a terminal or a notebook, that says what is going on."""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
import warnings
from types import TracebackType
from typing import Any

from tqdm import TqdmWarning

with warnings.catch_warnings():
    # `tqdm.auto` warns that its bar for notebooks is experimental, or that it is text without ipywidgets.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm as tqdm

from dask_nlsq._display import is_shown, stream
from dask_nlsq._fit.observer import Estimates, Event, Observer, SweepBegin, SweepEnd, TaskEnd
from dask_nlsq._solver import State

DELAY = 1.0
"""Seconds that a fit must take for its bar to appear, where nobody asked for it."""

_TICK = 0.5
"""Seconds between two looks at a bar, which goes on while a read or a compiler has the thread of the fit."""

_SHOWN = 4
"""Estimates that a bar has room for."""

_SWEEPING = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} partitions [{elapsed}{postfix}]"
_WAITING = "{desc} [{elapsed}{postfix}]"


class Progress(Observer):
    """A bar over the partitions of the sweep under way, or what is read before the first.

    Events are noted as they come, and drawn by a thread.

    Parameters
    ----------
    partitions : int
    show : bool, optional
        By default on a terminal and in a notebook, after a second.
    rows : float, optional
        Of all partitions, as far as they are known.
    """

    def __init__(self, partitions: int, show: bool | None = None, rows: float | None = None) -> None:
        self._partitions, self._rows, self._show = partitions, rows, show
        self._title, self._format, self._fit, self._ending = "reading", _WAITING, "", ""
        self._rate = 0.0  # rows a second
        self._done = self._from = 0
        self._started = self._begun = time.perf_counter()
        self._bar: Any = None
        self._drawing, self._ended = threading.Lock(), threading.Event()
        self._thread: threading.Thread | None = None

    def notify(self, event: Event) -> None:
        """Note an event, where somebody may see it."""
        if self._thread is None:
            return
        if isinstance(event, SweepBegin):
            self._begin(event)
        elif isinstance(event, TaskEnd):
            self._done += event.partitions
            self._measure(self._rows)
        elif isinstance(event, SweepEnd) and event.state is not None:
            self._end(event.state)
        elif isinstance(event, Estimates):
            shown = [f"{n} {v:.4g} ± {e:.1g}" for n, v, e in zip(event.names, *event.values(), strict=True)]
            self._fit = ", ".join(shown[:_SHOWN] + ["…"] * (len(shown) > _SHOWN))

    def _begin(self, event: SweepBegin) -> None:
        self._title, self._format = event.title, _SWEEPING if event.counted else _WAITING
        self._done = self._from = event.done
        self._begun = time.perf_counter()
        if event.state is not None and event.state.history:
            self._fit = _standing(event.state)

    def _end(self, state: State) -> None:
        self._fit = _standing(state)
        self._rows = float(state.at.reduction.rows)
        self._done = self._partitions
        self._measure(self._rows)
        if state.status is not None:
            self._ending = f"{state.status} after {state.nsweeps} sweep{'s' * (state.nsweeps > 1)}"

    def _measure(self, rows: float | None) -> None:
        """Note how many rows a second the sweep takes."""
        seconds = time.perf_counter() - self._begun
        if rows is not None and self._done > self._from and seconds > 0:
            share = (self._done - self._from) / self._partitions
            self._rate = rows * share / seconds

    def _watch(self) -> None:
        """Draw from time to time until the fit has ended."""
        self._ended.wait(0.0 if self._show else DELAY)
        while not self._ended.wait(_TICK):
            self._draw()

    def _draw(self) -> None:
        # A bar must not end a fit: its stream may be closed, or its notebook gone.
        with self._drawing, contextlib.suppress(Exception):
            if self._bar is None:
                # With a delay it is drawn below for the first time, and not here.
                self._bar = tqdm(
                    total=self._partitions, file=stream(), dynamic_ncols=True, bar_format=self._format, delay=DELAY
                )
                self._bar.start_t -= time.perf_counter() - self._started
            self._bar.n, self._bar.bar_format = min(self._done, self._partitions), self._format
            self._bar.set_description_str(self._title, refresh=False)
            rate = f"{tqdm.format_sizeof(self._rate)} rows/s" if self._rate else ""
            self._bar.set_postfix_str(", ".join(filter(None, (self._fit, rate))), refresh=False)
            with tqdm.get_lock():  # which its own refresh would not give back if the stream fails
                self._bar.refresh(nolock=True)
            self._bar.delay = 0  # with one, its end would not be drawn

    def __enter__(self) -> Progress:
        if is_shown(self._show):
            # What is drawn belongs to the cell of a notebook that has begun the fit, which its context tells.
            draw = contextvars.copy_context().run
            self._thread = threading.Thread(target=draw, args=(self._watch,), name="nlsq progress", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        self._ended.set()
        self._thread.join()
        if self._bar is None and not self._show:
            return
        if kind is None:
            self._title, self._done = self._ending or self._title, self._partitions
        self._draw()
        if self._bar is not None:
            with contextlib.suppress(Exception):
                self._bar.close()


def _standing(state: State) -> str:
    """Say how far a fit is."""
    last = state.history[-1]
    return f"cost {last.cost:.6g}, step {last.step:.3g} SE"
