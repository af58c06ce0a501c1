"""Output: whether a progress bar is wanted, and where its text goes."""

from __future__ import annotations

import io
import sys
from typing import Any, TextIO


def is_shown(progress: bool | None) -> bool:
    """Whether a bar is wanted: as asked, else on a terminal and in a notebook."""
    return (sys.stderr.isatty() or _in_notebook()) if progress is None else progress


def stream() -> TextIO:
    """Return where text of a bar goes; in a notebook to one output, in which the last line stands."""
    return _LastLine() if _in_notebook() else sys.stderr


class _LastLine(io.StringIO):
    """An output of a notebook that shows the last line that was written to it."""

    def __init__(self) -> None:
        super().__init__()
        self._handle: Any = None

    def write(self, text: str) -> int:
        """Show a line in the place of the one before."""
        display: Any = sys.modules["IPython.display"].display  # of the notebook that this runs in
        if line := text.strip():
            if self._handle is None:
                self._handle = display({"text/plain": line}, raw=True, display_id=True)
            else:
                self._handle.update({"text/plain": line}, raw=True)
        return len(text)


def _in_notebook() -> bool:
    ipython: Any = sys.modules.get("IPython")
    return hasattr(ipython.get_ipython(), "kernel") if hasattr(ipython, "get_ipython") else False
