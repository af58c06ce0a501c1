"""Output: whether a progress bar is wanted, and where its text goes."""

from __future__ import annotations

import sys
from typing import Any, TextIO


def is_shown(progress: bool | None) -> bool:
    """Whether a bar is wanted: as asked, else on a terminal and in a notebook."""
    return (sys.stderr.isatty() or _in_notebook()) if progress is None else progress


def stream() -> TextIO:
    """Return where text of a bar goes; in a notebook not where it would look like an error."""
    return sys.stdout if _in_notebook() else sys.stderr


def _in_notebook() -> bool:
    ipython: Any = sys.modules.get("IPython")
    return hasattr(ipython.get_ipython(), "kernel") if hasattr(ipython, "get_ipython") else False
