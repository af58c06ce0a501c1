"""File stamps: which files data at a path consist of, each with its size and when or as what it was written."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeGuard

import fsspec

AnyPath: TypeAlias = "str | os.PathLike[str]"
"""A path or URL."""

GROUP = ("zarr.json", ".zgroup")
"""Files of which one lies in every group of Zarr."""

# As file systems call them; when it was created comes last, for a file that is written anew in place may keep that.
_STAMPS = (
    *("ETag", "mtime", "LastModified", "etag", "last_modified", "Last-Modified", "updated", "modified", "modify"),
    *("modificationTime", "Content-MD5", "Digest", "created"),
)


def is_path(data: object) -> TypeGuard[AnyPath]:
    """Whether this is a path or URL."""
    return isinstance(data, (str, os.PathLike))


def are_paths(data: object) -> TypeGuard[AnyPath | Sequence[AnyPath]]:
    """Whether this is a path or URL, or a list of them."""
    return is_path(data) or (isinstance(data, (list, tuple)) and len(data) > 0 and all(map(is_path, data)))


def each_path(path: AnyPath | Sequence[AnyPath]) -> list[str]:
    """Return a path, or each of a list of them, as text."""
    return [os.fspath(path)] if isinstance(path, (str, os.PathLike)) else [os.fspath(each) for each in path]


def files(path: AnyPath | Sequence[AnyPath], storage_options: dict[str, Any] | None = None) -> dict[str, str] | None:
    """Return size and ETag, or time of change, of every file that a path or URL names, by its name.

    None where a file system does not tell: only reading the data says whether they are the same.
    """
    given, options = each_path(path), storage_options or {}
    fs, _, paths = fsspec.get_fs_token_paths(given if len(given) > 1 else given[0], storage_options=options)
    whole = fsspec.core.url_to_fs(given[0], **options)[1]
    # Names begin below the folder of a pattern, or below the one that all paths share, so that files of one name in
    # several folders are told apart.
    base = base_folder(whole).rstrip("/") + "/" if "*" in whole else None
    if len(given) > 1:
        base = os.path.commonpath([os.path.dirname(root) for root in paths]).rstrip("/") + "/"
    stamps = {}
    for root in paths:
        if fs.isfile(root) and any(fs.exists(f"{root.rstrip('/')}/{name}") for name in GROUP):
            return None  # a folder that is a page to its server, which need not list all files
        for name, about in sorted(fs.find(root, detail=True).items()):
            if (stamp := _size_and_stamp(fs, name, about)) is None:
                return None
            key = name.removeprefix(root.rstrip("/")) or name.rpartition("/")[2]
            stamps[key if base is None else name.removeprefix(base)] = stamp
    return stamps or None


def _size_and_stamp(fs: fsspec.AbstractFileSystem, name: str, about: Mapping[str, Any]) -> str | None:
    """Return the size of a file, if it is known, and when or as what it was written; None where that is not known."""
    try:
        # What a file system lists of a file, HTTP's for one, may be less than what it says when it is asked for that
        # file.
        if about.get("size") is None or (written := _stamp(about)) is None:
            about = fs.info(name)
            written = _stamp(about) or fs.modified(name)
    except Exception:  # whatever a file system raises that cannot tell
        return None
    return f"{about.get('size')} {written}" if written else None


def _stamp(about: Mapping[str, Any]) -> Any:
    return next((about[key] for key in _STAMPS if about.get(key)), None)


def base_folder(root: str) -> str:
    """Return the folder below which the names of folders are keys, of a path or a pattern."""
    fixed, *pattern = re.split(r"[*?[]", root, maxsplit=1)
    return fixed.rpartition("/")[0] if pattern else fixed


def files_were(count: int) -> str:
    """Return the beginning of a sentence about so many files."""
    return "1 file was" if count == 1 else f"{count} files were"
