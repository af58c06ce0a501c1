"""NumPy arrays, pandas frames and mappings of arrays, cut into blocks without a copy."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Mapping
from typing import Any

from dask.base import tokenize

from dask_nlsq._kernel import SLABS
from dask_nlsq._sources.columns import Columns, first_instants
from dask_nlsq._sources.source import Info, Source

ROWS = SLABS[1]
"""Rows of a partition: one slab, so that threads share the work and no padding is copied but at the end."""

_HEAD = 16
"""Bytes by which NumPy's large arrays begin after a multiple of `ALIGNMENT`: malloc's own. The first partition is as
much shorter than the others, which thus begin at a multiple and are not copied. Where arrays begin elsewhere they are:
how they are cut must not depend on where they lie, for the bits depend on how they are cut."""


def open_memory(raw: Mapping[str, Any], columns: Columns, kind: str, present: tuple[str, ...]) -> Source:
    """Take arrays that are in memory already."""
    dates = [name for name in columns.names if getattr(getattr(raw[name], "dtype", None), "kind", "") == "M"]
    columns = dataclasses.replace(columns, origins=first_instants(dates, [raw]))
    whole = columns.block(raw)
    rows, k = len(raw[columns.y]), columns.n_responses
    size = ROWS - ROWS % k  # what belongs to one row of the data stays together
    first = size - (_HEAD // whole.y.itemsize) * (k == 1) if whole.rows > size else whole.rows
    edges = [0, *range(first, whole.rows, size), whole.rows]
    blocks = [whole.take(slice(*edge)) for edge in itertools.pairwise(edges)]
    # Rows that were dropped lie in no block, and are counted with the first.
    blocks = [dataclasses.replace(b, dropped=whole.dropped if i == 0 else 0) for i, b in enumerate(blocks)]
    width = k * (whole.nbytes // max(whole.rows, 1))
    at_a_time = min(rows, size // k)
    info = Info(kind, rows, columns.names, present, columns.origins, partition_rows=at_a_time, row_bytes=width)
    return Source(blocks, _token(columns, rows), info)


@functools.lru_cache(64)
def _token(columns: Columns, rows: int) -> str:
    """Return what Dask makes of the names and the length, which takes longer than all else here."""
    return str(tokenize(columns, rows))
