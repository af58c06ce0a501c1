"""Shards: which chunks of Zarr are missing inside the shards that are there, as the index of each shard says.

The index lies at the end or the start of a shard: offset and length of each chunk as little-endian integers of eight
bytes, both ``2**64 - 1`` for a chunk that is not there, and a checksum of four bytes (the ``sharding_indexed`` codec
of Zarr 3).
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
from zarr.abc.store import RangeByteRequest, Store, SuffixByteRequest
from zarr.buffer import default_buffer_prototype
from zarr.storage import FsspecStore, LocalStore

if TYPE_CHECKING:
    import zarr

_CHECKSUM = 4

_MOST, _MOST_AFAR = 20_000, 1_000
"""Shards whose index is read at most, on a disk and elsewhere: each is a request."""

_AT_A_TIME = 16

Read = Callable[[str, int, bool], bytes | None]
"""Returns the first or last bytes of an object of a store, or None where it is not there."""


def count_inner(array: zarr.Array[Any]) -> int | None:
    """Return how many chunks of a sharded array are missing, with their shard or alone; None where it is unknown."""
    codec = array.metadata.codecs[0] if array.metadata.zarr_format == 3 else None
    about: Any = codec.to_dict().get("configuration", {}) if codec is not None else {}
    shards = array.shards or ()
    names = [c["name"] if isinstance(c, dict) else c for c in about.get("index_codecs", ())]
    counts = [-(-n // s) for n, s in zip(array.shape, shards, strict=True)]
    # An index of other codecs may be compressed, and its length is not known before it is read.
    if names != ["bytes", "crc32c"] or math.prod(counts) > (
        _MOST if isinstance(array.store, LocalStore) else _MOST_AFAR
    ):
        return None
    inner = math.prod(s // c for s, c in zip(shards, array.chunks, strict=True))
    read, at_end = _reader(array.store), str(about.get("index_location", "end")) == "end"
    keys = [f"{array.path}/{array.metadata.encode_chunk_key(place)}".lstrip("/") for place in np.ndindex(*counts)]
    try:
        with ThreadPoolExecutor(_AT_A_TIME, "nlsq-shards") as pool:
            indices = pool.map(lambda key: read(key, 16 * inner + _CHECKSUM, at_end), keys)
            missing = [inner if index is None else _missing(index, inner) for index in indices]
    except Exception:  # whatever a store raises
        return None
    return sum(missing) - _beyond(array, shards, counts)


def _missing(index: bytes, inner: int) -> int:
    entries = np.frombuffer(index[: 16 * inner], "<u8").reshape(-1, 2)
    return int((entries == 2**64 - 1).all(axis=1).sum())


def _beyond(array: zarr.Array[Any], shards: tuple[int, ...], counts: list[int]) -> int:
    """Return how many chunks of the last shards lie beyond the end of the array, and are in no store."""
    held = math.prod(n * (s // c) for n, s, c in zip(counts, shards, array.chunks, strict=True))
    there = math.prod(-(-n // c) for n, c in zip(array.shape, array.chunks, strict=True))
    return held - there


def _reader(store: Store) -> Read:
    """Return what reads of a store without its event loop, which is Zarr's own."""
    if isinstance(store, LocalStore):
        return lambda key, count, at_end: _from_disk(os.path.join(store.root, key), count, at_end)
    if isinstance(store, FsspecStore):
        fs, root = _in_step(store.fs), store.path.rstrip("/")
        return lambda key, count, at_end: _from_files(fs, f"{root}/{key}", count, at_end)
    return lambda key, count, at_end: asyncio.run(_from_store(store, key, count, at_end))


def _from_disk(path: str, count: int, at_end: bool) -> bytes | None:
    try:
        with open(path, "rb") as file:
            file.seek(-count if at_end else 0, os.SEEK_END if at_end else os.SEEK_SET)
            return file.read(count)
    except FileNotFoundError:
        return None


def _in_step(fs: fsspec.AbstractFileSystem) -> fsspec.AbstractFileSystem:
    """Return a file system as one that waits for its answers."""
    if (inner := getattr(fs, "sync_fs", None)) is not None:  # which was wrapped
        return inner
    return fsspec.filesystem(fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0], **_options(fs))


def _options(fs: fsspec.AbstractFileSystem) -> dict[str, Any]:
    # Both tie the file system to the event loop of Zarr.
    return {key: value for key, value in fs.storage_options.items() if key not in ("asynchronous", "loop")}


def _from_files(fs: fsspec.AbstractFileSystem, path: str, count: int, at_end: bool) -> bytes | None:
    try:
        data: bytes = fs.cat_file(path, start=-count if at_end else 0, end=None if at_end else count)
    except FileNotFoundError:
        return None
    return data


async def _from_store(store: Store, key: str, count: int, at_end: bool) -> bytes | None:
    part = SuffixByteRequest(count) if at_end else RangeByteRequest(0, count)
    data = await store.get(key, default_buffer_prototype(), part)
    return None if data is None else data.to_bytes()
