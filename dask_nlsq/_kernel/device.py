"""Device: where a thread of this process computes, and which blocks stay there between sweeps.

JAX picks the device; one process a GPU, as dask-cuda starts them, has one to pick from. Where a process has several,
its threads share them evenly. A block that is held in memory anyway is put on its device once and stays there;
on a CPU it is where it has to be.
"""

from __future__ import annotations

import itertools
import threading
import weakref
from collections.abc import Iterator, Sequence

import jax
import numpy as np

from dask_nlsq._kernel.block import SLABS, TILE, Block, Slab, single, slabs

_CACHED = 512 << 10
"""Bytes of a matrix that stays in a core's second-level cache, with what it is made of beside it."""

_PRODUCT = 2**18
"""Multiplications of a product of parts: of many more, XLA (jax 0.8) may share the rows among threads, and the bits of
the sum would depend on their number."""

_MANY = 100
"""Columns from which a matrix is kept in larger parts."""

_slots = itertools.count()
_thread = threading.local()
_resident: weakref.WeakKeyDictionary[Block, tuple[jax.Device, list[Slab]]] = weakref.WeakKeyDictionary()

Placed = tuple[jax.Device, list[int], Slab]
"""A device, the blocks by number, and the slab that holds them there."""


def place(blocks: Sequence[Block], rows: int | None, room: int) -> Iterator[Placed]:
    """Yield blocks in slabs, in tiles of `rows` rows (None: as suits the device), at most `room` blocks in each.

    Where a device has a memory of its own, each block is by itself, and one that is held is put there once.
    """
    device = own()
    if not keeps(device):
        if len(blocks) == 1 and (slab := single(blocks[0], SLABS[1], rows or TILE, room)) is not None:
            yield device, [0], slab
            return
        for numbers, slab in slabs(blocks, SLABS[1], rows or tile(device, SLABS[1]), room):
            yield device, numbers, slab
        return
    for i, block in enumerate(blocks):
        if block.held and block not in _resident:
            # Two threads may get here with one block; setdefault keeps the slabs of the first.
            _resident.setdefault(block, (device, [_put(slab, device) for slab in _alone(block, device, rows)]))
        where, placed = _resident.get(block) or (device, _alone(block, device, rows))
        yield from ((where, [i], slab) for slab in placed)


def _alone(block: Block, device: jax.Device, rows: int | None) -> Iterator[Slab]:
    size = SLABS[0] if block.rows <= SLABS[0] else SLABS[1]
    return (slab for _, slab in slabs([block], size, min(rows or tile(device, size), size)))


def own() -> jax.Device:
    """Return the device of this thread: the one that JAX was told to use, or one of all in turn."""
    chosen: jax.Device | str | None = jax.config.jax_default_device  # type: ignore[attr-defined]  # public, but made at run time
    # The setting holds a device, or the name of a platform that may have several.
    if chosen is not None and not isinstance(chosen, str):
        return chosen
    devices = jax.local_devices(backend=chosen)
    if chosen is not None or len(devices) == 1:
        return devices[0]
    if not hasattr(_thread, "slot"):
        _thread.slot = next(_slots)
    return devices[_thread.slot % len(devices)]


def keeps(device: jax.Device) -> bool:
    """Whether a device has a memory of its own."""
    return bool(device.platform != "cpu")


def tile(device: jax.Device, rows: int) -> int:
    """Return the rows of a tile for slabs of so many rows: what fits a core's cache, or all, for many cores at once."""
    return TILE if device.platform == "cpu" else rows


def rows(device: jax.Device, tile: int, columns: int) -> int:
    """Return how many rows of a tile are taken at a time for a matrix of so many columns.

    It stays in the cache, and products of its parts on one thread. Fewer than 256 rows are slower all the same.
    """
    if device.platform != "cpu":
        return tile
    fit = min(_CACHED // (8 * columns), _PRODUCT // max(parts(device, columns)) ** 2)
    return min(tile, max(256, 1 << fit.bit_length() - 1))  # a power of two, which divides a tile


def parts(device: jax.Device, columns: int) -> list[int]:
    """Return the parts, by their columns, in which a matrix of so many is best kept to be multiplied by itself.

    On a CPU these are parts of 16 columns, or of 32 where there are many; the last part has what is left. Up to 3
    columns are added, so that there is a multiple of 4.
    """
    if device.platform != "cpu":
        return [columns]
    size, fours = 16 if columns <= _MANY else 32, -(-columns // 4) * 4
    return [size] * (fours // size) + [fours % size] * (fours % size > 0)


def _put(slab: Slab, device: jax.Device) -> Slab:
    columns = jax.tree.map(np.copy, (slab.x, slab.y, slab.weight))  # the slab's memory is the next one's too
    x, y, weight = jax.device_put(columns, device)
    return slab._replace(x=x, y=y, weight=weight)
