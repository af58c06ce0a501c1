r"""Memory: one formula, for the choice of a tier, for how many tasks run at a time, and for saying no.

A task holds, at its peak,

.. math:: \text{encoded} + c \cdot \text{decoded} \;(+\; \text{the partition before}) + \text{slab} + \text{tile}
          + \text{scratch}

bytes. c says how often a reader holds what it decodes (`READERS`; for Zarr 1 + 2 / columns); the partition before is
there where a task takes several and reads one ahead; the slab is the aligned memory that the kernel is handed; the tile
holds the columns, the Jacobian and what is between them for a few thousand rows; scratch is what the compiler says that
it needs. A process holds its imports besides, and whatever it keeps between sweeps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

from dask_nlsq._errors import one_of
from dask_nlsq._kernel import GROUP_BYTES, PER_THREAD, SLABS, TILE, TOGETHER
from dask_nlsq._plan.tiers import WorkflowTier, member


class Reader(NamedTuple):
    """What a reader holds at its peak, as multiples: of decoded rows, of their bytes as stored, and of one column."""

    decoded: float
    encoded: float
    column: float = 0.0


READERS: Mapping[str, Reader] = {
    "Parquet": Reader(1.3, 1),  # the columns, and the pages of one that is being decoded
    "scanned Parquet": Reader(1.8, 1),  # the pages of all, decoded, and the columns made of them
    "Zarr": Reader(1.0, 0, 2.0),  # the arrays, and the chunk of one on its way, stored and decoded
    "Dask DataFrame": Reader(2.7, 0),  # the Arrow table, the frame, the arrays
    "Dask arrays": Reader(2.0, 0),
    "memory": Reader(0, 0),  # it is there already
    "sent": Reader(2.0, 0),  # from this process to a worker
}
"""Measured, reader by reader: `tests/test_memory.py` holds the first two to it."""

SHARE = 0.8
"""Share of the memory that tasks may fill: allocators and other libraries need the rest."""

IMPORTS = 360_000_000
"""Bytes that a worker process holds before it has any data: Python, NumPy, pandas, Arrow, Dask, JAX."""

STANDARD_COPIES = 3
"""How often STANDARD counts all rows: as they are read, as they are kept, and as what may be computed of them."""


@dataclasses.dataclass(frozen=True)
class TaskMemory:
    """What one task holds at its peak, in bytes."""

    encoded: float
    decoded: float
    before: float  # what is reduced while the next partition is read
    slab: float
    tile: float
    scratch: float

    @property
    def total(self) -> int:
        """Bytes in all."""
        return int(sum(vars(self).values()))


def task_memory(
    partition_rows: float,
    row_bytes: float,
    columns: int,
    n_params: int,
    reader: str = "Parquet",
    *,
    encoded: float | None = None,
    several: bool = False,
    ahead: bool = False,
    scratch: float = 0.0,
) -> TaskMemory:
    """Apply the formula to partitions of so many rows, of so many bytes each once they are decoded.

    Parameters
    ----------
    encoded : float, optional
        Bytes of a partition that are in memory as they are stored, while it is read; by default those of the decoded
        rows. A file nearby is read through a small buffer.
    several : bool
        Whether a task takes several partitions; small ones are then reduced together, as many as fill a slab.
    ahead : bool
        Whether it reads the next while it reduces those before.
    scratch : float
        Bytes that the compiled kernel needs for itself.
    """
    decoded, holds = partition_rows * row_bytes, READERS[reader]
    together = max(partition_rows, min(SLABS[1], TOGETHER * partition_rows)) if several else partition_rows
    waiting = together - (0 if ahead else partition_rows)
    rows = min(TILE, max(partition_rows, 1))
    return TaskMemory(
        encoded=holds.encoded * (decoded if encoded is None else encoded),
        decoded=(holds.decoded + holds.column / columns) * decoded,
        before=row_bytes * waiting if several and holds.decoded else 0.0,
        slab=8.0 * min(SLABS[1], max(together, TILE)) * columns,
        tile=8.0 * rows * (columns + 2 * (n_params + 2)),
        scratch=scratch,
    )


def takes_several(partitions: int, partition_bytes: float, threads: int, per_thread: int = PER_THREAD) -> bool:
    """Whether a task takes several partitions."""
    return partitions > per_thread * threads and 2 * partition_bytes <= GROUP_BYTES


def standard_memory(rows: float, columns: int) -> int:
    """Return the bytes that STANDARD counts for all rows."""
    return int(8 * STANDARD_COPIES * rows * columns)


def tasks_that_fit(threads: int, limit: float, task: float, held: float = IMPORTS) -> int:
    """Return how many tasks a process may run at a time: 0 where not even one fits.

    Parameters
    ----------
    threads : int
        Threads of the process.
    limit : float
        Bytes that the process may hold.
    task : float
        Bytes of one task at its peak.
    held : float
        Bytes that the process holds anyway.
    """
    return int(max(0, min(threads, (SHARE * limit - held) // max(task, 1.0))))


def workers_that_fit(cores: int, available: float, task: float, partitions: int) -> int:
    """Return how many workers of one task each to use: min(cores, ⌊0.8 available / task⌋, partitions), at least 1."""
    return int(max(1, min(cores, SHARE * available // max(task, 1.0), partitions)))


def estimate_memory(
    n_points: int,
    n_params: int,
    tier: str | WorkflowTier = "chunked",
    *,
    n_columns: int = 2,
    partition_rows: int = 1_000_000,
    threads: int = 1,
    reader: str = "Parquet",
) -> int:
    """Estimate how far the memory of a process grows in a fit, in bytes.

    Parameters
    ----------
    n_points, n_params : int
        Rows and free parameters.
    tier : str or WorkflowTier
        STANDARD holds all rows; the others hold a partition or a batch for each task.
    n_columns : int
        Columns that are read: of x, y and sigma.
    partition_rows : int
        Rows of a partition, or of a batch.
    threads : int
        Tasks at a time.
    reader : {"Parquet", "scanned Parquet", "Zarr", "Dask DataFrame", "Dask arrays", "memory"}
        Where the rows come from; Parquet is scanned where it is filtered.

    Returns
    -------
    int
        Bytes beyond what the process holds after its imports.

    Notes
    -----
    For a task: encoded bytes + decoded bytes × copies(reader) + the partition before + the slab + rows of a tile ×
    (columns + 2 (p + 2)) × 8, times the tasks at a time. STANDARD counts rows × columns × 8 × 3.

    Examples
    --------
    >>> from dask_nlsq import estimate_memory
    >>> estimate_memory(10**6, 3, "standard"), estimate_memory(10**9, 3, "chunked", threads=2)
    (48000000, 122770432)
    """
    tier = member(WorkflowTier, "tier", tier)
    one_of("reader", reader, *READERS)
    if tier is WorkflowTier.STANDARD:
        return standard_memory(n_points, n_columns)
    rows = min(partition_rows, n_points)
    partitions = -(-n_points // max(rows, 1))
    several = takes_several(partitions, 8.0 * n_columns * rows, threads)
    task = task_memory(rows, 8.0 * n_columns, n_columns, n_params, reader, several=several, ahead=several)
    return min(threads, partitions) * task.total
