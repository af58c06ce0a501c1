"""Storage: where a checkpoint lies (a local folder, an fsspec URL, a Zarr store), with the verbs that a commit needs.

Names are relative, with slashes. On a disk every file and folder is synced before the next thing is built upon it; an
object store takes a file whole or not at all.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import fsspec
import zarr.abc.store
from fsspec.asyn import get_loop, sync
from zarr.buffer import default_buffer_prototype
from zarr.buffer.cpu import Buffer

from dask_nlsq._errors import CheckpointCorrupt, NlsqError


class Place(Protocol):
    """Where the files of a checkpoint are."""

    def __str__(self) -> str:
        """Say where."""

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, sorted; none where there is no folder."""

    def read(self, name: str, most: int) -> bytes | None:
        """Return what a file holds, or None where there is none; refuse more than so many bytes."""

    def read_all(self, most: Mapping[str, int]) -> dict[str, bytes | None]:
        """Return the same of many files, by their names, of so many bytes at most."""

    def write(self, files: dict[str, bytes]) -> None:
        """Write new files, and return when they will survive a power cut."""

    def create(self, name: str, data: bytes) -> None:
        """Write a file in one step, and raise `FileExistsError` where there is one already."""

    def replace(self, name: str, data: bytes) -> None:
        """Write a file in one step, in the stead of another."""

    def remove(self, name: str) -> None:
        """Remove a file or a folder with all that is in it; nothing where there is none."""


def open_place(
    where: str | os.PathLike[str] | zarr.abc.store.Store, storage_options: dict[str, Any] | None = None
) -> Place:
    """Return the place that a path, a URL or a Zarr store names."""
    if isinstance(where, zarr.abc.store.Store):
        return Store(where)
    if not isinstance(where, (str, os.PathLike)):
        raise NlsqError(f"checkpoint is a {type(where).__name__}; a path, a URL or a Zarr store is needed.")
    fs, path = fsspec.url_to_fs(os.fspath(where), **(storage_options or {}))
    if type(fs).__name__ == "LocalFileSystem":
        return Folder(Path(path))
    return Remote(fs, path, str(where))


class Folder:
    """A folder on a disk of this machine; files are written, synced, and named last."""

    def __init__(self, root: Path) -> None:
        self.root = Path(os.path.realpath(root))

    def __str__(self) -> str:
        return str(self.root)

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, sorted; none where there is no folder."""
        path = self._inside(folder)
        return sorted(os.listdir(path)) if path is not None and os.path.isdir(path) else []

    def read(self, name: str, most: int) -> bytes | None:
        """Return what a regular file of this folder holds, or None; links are not followed."""
        return self._read(self._inside(name), most)

    def read_all(self, most: Mapping[str, int]) -> dict[str, bytes | None]:
        """Return what files of this folder hold, each as `read` does; the folders between are looked at once."""
        folders: set[str] = set()
        return {name: self._read(self._inside(name, folders), size) for name, size in most.items()}

    def _read(self, path: str | None, most: int) -> bytes | None:
        """Return what there is at a path that is `_inside`."""
        if path is None:
            return None
        try:
            # Without O_NONBLOCK a named pipe in the place of the file would wait for a writer.
            handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_NOFOLLOW", 0))
        except (FileNotFoundError, NotADirectoryError):
            return None
        with open(handle, "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise CheckpointCorrupt(f"{path} is no file.")
            if about.st_size > most:
                raise CheckpointCorrupt(f"{path} holds {about.st_size} bytes; {most} were expected at most.")
            return file.read(most + 1)

    def _inside(self, name: str, folders: set[str] | None = None) -> str | None:
        """Return the path of a name, None where it is not there, and refuse links that lead elsewhere.

        The `folders` have been looked at, and those that are now are added.
        """
        path, folders = str(self.root), set() if folders is None else folders
        for part in filter(None, name.split("/")):
            path = f"{path}/{part}"
            if path in folders:
                continue
            try:
                mode = os.lstat(path).st_mode
            except (FileNotFoundError, NotADirectoryError):
                return None
            if stat.S_ISLNK(mode) or part == "..":
                raise CheckpointCorrupt(f"{path} is a link; a checkpoint has none.")
            if stat.S_ISDIR(mode):
                folders.add(path)
        return path

    def write(self, files: dict[str, bytes]) -> None:
        """Write new files and sync them, and then the folders that name them."""
        folders: set[Path] = set()
        todo = iter(files.items())
        while batch := list(itertools.islice(todo, 64)):  # a disk syncs several sooner than one after the other
            with contextlib.ExitStack() as stack:
                opened = []
                for name, data in batch:
                    path = self.root / name
                    self._make(path.parent, folders)
                    opened.append(stack.enter_context(_create(path)))
                    opened[-1].write(data)
                    folders.add(path.parent)
                for file in opened:
                    _settle(file)
        # The deepest first: a folder is named on the disk only once the names in it are there.
        for folder in sorted(folders, key=lambda f: len(f.parts), reverse=True):
            _sync(folder)

    def create(self, name: str, data: bytes) -> None:
        """Write a file beside its place, sync it, and link it there, which fails where there is one."""
        path, half = self._half(name, data)
        try:
            # A rename would replace what is there; a link fails.
            os.link(half, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            if path.exists():
                raise FileExistsError(str(path)) from None
            os.replace(half, path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(half)
        _sync(path.parent)

    def replace(self, name: str, data: bytes) -> None:
        """Write a file beside its place, sync it, and rename it."""
        path, half = self._half(name, data)
        os.replace(half, path)
        _sync(path.parent)

    def _half(self, name: str, data: bytes) -> tuple[Path, Path]:
        path, folders = self.root / name, set[Path]()
        self._make(path.parent, folders)
        for folder in folders:
            _sync(folder)
        half = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
        try:
            _write(half, data)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(half)
            raise
        return path, half

    def _make(self, folder: Path, changed: set[Path]) -> None:
        """Make a folder and those above it, and remember whose listing has changed."""
        if folder.is_dir():
            return
        self._make(folder.parent, changed)
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        changed.add(folder.parent)

    def remove(self, name: str) -> None:
        """Remove a file or a folder, its contents first; links are removed and not followed."""
        path = self.root / name
        if path.is_dir() and not path.is_symlink():
            for below in sorted(os.listdir(path)):
                self.remove(f"{name}/{below}")
            os.rmdir(path)
        else:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(path)


def _write(path: Path, data: bytes) -> None:
    with _create(path) as file:
        file.write(data)
        _settle(file)


def _create(path: Path) -> BinaryIO:
    # O_EXCL fails where anything has the name already, a link too, which open would follow.
    return open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb")


def _settle(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Remote:
    """A folder behind an fsspec URL; every file is one request."""

    def __init__(self, fs: fsspec.AbstractFileSystem, path: str, url: str) -> None:
        self.fs, self.path, self.url = fs, path.rstrip("/"), url

    def __str__(self) -> str:
        return self.url

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, sorted; none where there is no folder."""
        # fsspec remembers listings, and other processes write here.
        self.fs.invalidate_cache()
        try:
            paths = self.fs.ls(f"{self.path}/{folder}", detail=False)
        except FileNotFoundError:
            return []
        return sorted({name.rstrip("/").rpartition("/")[2] for name in paths} - {folder.rpartition("/")[2], ""})

    def read(self, name: str, most: int) -> bytes | None:
        """Return what a file holds, or None where there is none."""
        try:
            # One byte more than may be there, which says that there are more.
            data: bytes = self.fs.cat_file(f"{self.path}/{name}", start=0, end=most + 1)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            if not most or self.fs.size(f"{self.path}/{name}") == 0:  # a range of nothing is refused
                return b""
            raise error
        if len(data) > most:
            raise CheckpointCorrupt(f"{self.url}/{name} holds more than {most} bytes.")
        return data

    def read_all(self, most: Mapping[str, int]) -> dict[str, bytes | None]:
        """Return what files hold, several read at a time."""
        paths, ends = [f"{self.path}/{name}" for name in most], [size + 1 for size in most.values()]
        answers = self.fs.cat_ranges(paths, [0] * len(paths), ends, on_error="return")
        # What is no plain answer is asked for again by itself: nothing, too much, an error.
        return {
            name: answer if isinstance(answer, bytes) and 0 < len(answer) <= size else self.read(name, size)
            for (name, size), answer in zip(most.items(), answers, strict=True)
        }

    def write(self, files: dict[str, bytes]) -> None:
        """Write new files, several at a time."""
        self.fs.pipe({f"{self.path}/{name}": data for name, data in files.items()})

    def create(self, name: str, data: bytes) -> None:
        """Write a file on the condition that there is none, where the store offers that."""
        path = f"{self.path}/{name}"
        self.fs.invalidate_cache()
        # Asked beforehand too, for a file system that takes the mode and does not heed it.
        if self.fs.exists(path):
            raise FileExistsError(path)
        try:
            self.fs.pipe_file(path, data, mode="create")
        except (TypeError, NotImplementedError):  # a file system that knows no conditions; the lock must do
            self.fs.pipe_file(path, data)

    def replace(self, name: str, data: bytes) -> None:
        """Write a file in the stead of another."""
        self.fs.pipe_file(f"{self.path}/{name}", data)

    def remove(self, name: str) -> None:
        """Remove a file or a folder."""
        self.fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            self.fs.rm(f"{self.path}/{name}", recursive=True)


class Store:
    """Any store of Zarr."""

    def __init__(self, store: zarr.abc.store.Store) -> None:
        self.store = store

    def __str__(self) -> str:
        return str(self.store)

    def _wait(self, what: Callable[..., Any], *args: Any, **options: Any) -> Any:
        return sync(get_loop(), what, *args, **options)

    def names(self, folder: str) -> list[str]:
        """Return the names in a folder, sorted; none where there is no folder."""

        async def listed() -> list[str]:
            return [name async for name in self.store.list_dir(folder)]

        return sorted({name.rstrip("/").rpartition("/")[2] for name in self._wait(listed)})

    def read(self, name: str, most: int) -> bytes | None:
        """Return what a file holds, or None where there is none."""
        found = self._wait(self.store.get, name, default_buffer_prototype())
        if found is None:
            return None
        data: bytes = found.to_bytes()
        if len(data) > most:
            raise CheckpointCorrupt(f"{name} holds more than {most} bytes.")
        return data

    def read_all(self, most: Mapping[str, int]) -> dict[str, bytes | None]:
        """Return what files hold."""
        return {name: self.read(name, size) for name, size in most.items()}

    def write(self, files: dict[str, bytes]) -> None:
        """Write new files."""
        for name, data in files.items():
            self.replace(name, data)

    def create(self, name: str, data: bytes) -> None:
        """Write a file unless there is one."""
        if self.store.read_only:
            raise OSError(errno.EROFS, "The store is read-only", name)
        # Zarr does not say whether it has written, so that the file is read again.
        self._wait(self.store.set_if_not_exists, name, Buffer.from_bytes(data))
        if self.read(name, len(data) + 1) != data:
            raise FileExistsError(name)

    def replace(self, name: str, data: bytes) -> None:
        """Write a file in the stead of another."""
        self._wait(self.store.set, name, Buffer.from_bytes(data))

    def remove(self, name: str) -> None:
        """Remove a file or a folder."""
        remove = self.store.delete if self._wait(self.store.exists, name) else self.store.delete_dir
        with contextlib.suppress(FileNotFoundError):
            self._wait(remove, name)
