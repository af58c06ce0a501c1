"""Git: the commit that a file is of, where it lies in a working tree."""

from __future__ import annotations

import functools
import inspect
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dask_nlsq._system.throttle import once_a_second

_SECONDS = 5.0
"""After which Git is not waited for: a working tree on a slow disk holds no fit up."""


def source_commit(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the file of a function, the commit of its working tree, and whether the file differs from that commit.

    Empty where there is no file, or none in a working tree of Git.
    """
    try:
        file, tree = _locate(inspect.unwrap(function).__code__.co_filename)
        return dict(_commit(file, tree, os.stat(file).st_mtime_ns, *_moved(tree))) if tree else {}
    except (AttributeError, ValueError, OSError, subprocess.SubprocessError):  # no function, no Git
        return {}


@once_a_second
def _locate(filename: str) -> tuple[str, str]:
    """Return the path of a file and its working tree; no tree where there is none, or no file."""
    path = Path(filename).resolve()
    trees = (str(folder) for folder in path.parents if (folder / ".git").exists())
    return str(path), next(trees, "") if path.is_file() else ""


def _moved(tree: str) -> tuple[int, int]:
    """Return what changes as commits are made."""
    return _written(f"{tree}/.git/HEAD"), _written(f"{tree}/.git/index")


def _written(path: str) -> int:
    """Return when a file was written, or 0 where there is none."""
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return 0


@functools.lru_cache(64)
def _commit(path: str, tree: str, *written: int) -> dict[str, Any]:
    commit = _git(tree, "rev-parse", "HEAD")
    dirty = bool(_git(tree, "status", "--porcelain", "--", path))
    return {"file": path, "commit": commit, "dirty": dirty}


def _git(tree: str, *command: str) -> str:
    run = ["git", "-C", tree, "-c", "core.fsmonitor=false", *command]
    return subprocess.run(run, capture_output=True, text=True, check=True, timeout=_SECONDS).stdout.strip()
