"""Files: which files data at a path consist of, each with its size and when or as what it was written."""

from __future__ import annotations

import os
from typing import Any

import fsspec


def files(path: Any, storage_options: dict[str, Any] | None = None) -> dict[str, str]:
    """Return size and ETag, or time of change, of every file that a path or URL names, by its name."""
    fs, _, paths = fsspec.get_fs_token_paths(os.fspath(path), storage_options=storage_options)
    found = {}
    for root in paths:
        for name, about in sorted(fs.find(root, detail=True).items()):
            written = about.get("ETag") or about.get("mtime") or about.get("LastModified") or about.get("created")
            found[name.removeprefix(root.rstrip("/")) or name.rpartition("/")[2]] = f"{about.get('size')} {written}"
    return found
