"""Git: the commit that a file is of, where it lies in a working tree."""

from __future__ import annotations

import functools
import inspect
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

_SECONDS = 5.0
"""After which Git is not waited for: a working tree on a slow disk holds no fit up."""


def source_commit(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the file of a function, the commit of its working tree, and whether the file differs from that commit.

    Empty where there is no file, or none in a working tree of Git.
    """
    try:
        path = Path(inspect.getsourcefile(inspect.unwrap(function)) or "").resolve()
        tree = next((folder for folder in path.parents if (folder / ".git").exists()), None) if path.is_file() else None
        return {} if tree is None else dict(_commit(path, tree, path.stat().st_mtime_ns, _moved(tree)))
    except (TypeError, ValueError, OSError, subprocess.SubprocessError):  # no function, no Git
        return {}


def _moved(tree: Path) -> tuple[int, ...]:
    """Return what changes as commits are made."""
    return tuple(
        (tree / ".git" / name).stat().st_mtime_ns for name in ("HEAD", "index") if (tree / ".git" / name).exists()
    )


@functools.lru_cache(64)
def _commit(path: Path, tree: Path, written: int, moved: tuple[int, ...]) -> dict[str, Any]:
    commit = _git(tree, "rev-parse", "HEAD")
    dirty = bool(_git(tree, "status", "--porcelain", "--", str(path)))
    return {"file": str(path), "commit": commit, "dirty": dirty}


def _git(tree: Path, *command: str) -> str:
    run = ["git", "-C", str(tree), "-c", "core.fsmonitor=false", *command]
    return subprocess.run(run, capture_output=True, text=True, check=True, timeout=_SECONDS).stdout.strip()
