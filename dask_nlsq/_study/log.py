"""Log: what happens in a study, one JSON object a line, in a file where there is one.

========  ==================================================================================================
event     fields, beside ``time``
========  ==================================================================================================
begin     ``variants``
sweep     ``variant``, ``sweep``, ``cost``, ``step`` in standard errors, ``accepted``, ``status`` at the end
pass      ``what``: a "sweep", a "stream" of batches, or a "hold" that reads the data into memory; ``variants``,
          ``partitions``, ``seconds``, ``read_seconds`` and ``compute_seconds`` of all tasks, ``bytes``,
          ``workers`` with the tasks of each
end       ``variant``, ``status`` or ``error``, ``seconds``, ``cached``
========  ==================================================================================================
"""

from __future__ import annotations

import datetime
import json
import logging
import math
import threading
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from dask_nlsq._fit import Event, Observer, SweepEnd
from dask_nlsq._sweep import Pass

logger = logging.getLogger("dask_nlsq")


class Log:
    """The lines of a study, kept in memory and appended to a file."""

    def __init__(self, path: Path | None = None) -> None:
        self.lines: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._file: TextIO | None = None if path is None else path.open("a", encoding="utf-8")

    def write(self, event: str, **fields: Any) -> None:
        """Append a line."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "event": event, **fields}
        with self._lock:
            self.lines.append(line)
            if self._file is None:
                return
            try:
                self._file.write(json.dumps(line) + "\n")
                self._file.flush()  # a study that is killed leaves what it knew
            except OSError as error:
                logger.warning("The log of the study cannot be written (%s); the study goes on without.", error)
                self._file = None

    def passed(self, one: Pass) -> None:
        """Write down a pass over the data."""
        self.write(
            "pass",
            what=one.what,
            variants=list(one.fits),
            partitions=one.partitions,
            seconds=one.seconds,
            read_seconds=one.read_seconds,
            compute_seconds=one.compute_seconds,
            bytes=one.nbytes,
            workers=dict(one.workers),
        )

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._file is not None:
                self._file.close()
            self._file = None


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a file; a last one that was torn is left out."""
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            continue
    return lines


def as_frame(lines: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the lines as a table, with times as times."""
    frame = pd.DataFrame(lines)
    return frame.assign(time=pd.to_datetime(frame["time"])) if len(frame) else frame


class FitLog(Observer):
    """Writes the sweeps of one fit."""

    def __init__(self, log: Log, variant: str) -> None:
        self._log, self._variant = log, variant

    def notify(self, event: Event) -> None:
        """Write a line at the end of a sweep."""
        if isinstance(event, SweepEnd) and event.state is not None and event.state.history:
            last, status = event.state.history[-1], event.state.status
            self._log.write(
                "sweep",
                variant=self._variant,
                sweep=int(last.sweep),
                cost=_plain(last.cost),
                step=_plain(last.step),
                accepted=bool(last.accepted),
                status=None if status is None else status.name,
            )


def _plain(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
