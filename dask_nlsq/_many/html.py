"""HTML of many fits, as a notebook shows it; it computes no fit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from dask_nlsq._display import Fold, Fragment, Part, Table
from dask_nlsq._result import fragment_of as result_fragment
from dask_nlsq._solver import Status

if TYPE_CHECKING:
    from dask_nlsq._many.result import ManyFits


def fragment_of(fits: ManyFits) -> Fragment:
    """Return how many series ended how, and medians of what was computed; else what will be."""
    notes: list[str] = []
    parts: list[Part] = []
    if fits.computed:
        failed = int(np.count_nonzero(~np.asarray(fits.success)))
        if failed:
            notes.append(f"{failed:,} of {fits.success.size:,} series did not converge; failures() names them.")
        counts = [(str(name), int(count), Status[str(name)].sentence) for name, count in fits.counts().items()]
        parts += [Table(counts, ("status", "series", "meaning")), _medians(fits)]
    else:
        parts += ["Not computed yet: compute(), to_zarr(path) or to_dataset().", _chunks(fits)]
    if fits.shared is not None:
        shared = result_fragment(fits.shared)
        notes += [*filter(None, [shared.failure]), *shared.notes]
        estimates, *others = shared.parts
        parts += [f"Shared by all series: {shared.status}", estimates, Fold("Fit of the shared parameters", others)]
    return Fragment(fits.title, parts, notes=notes)


def _shape(fits: ManyFits) -> str:
    return ", ".join(f"{name}: {n:,}" for name, n in zip(fits.labels.of(len(fits.shape)), fits.shape, strict=True))


def _medians(fits: ManyFits) -> Table:
    converged = np.asarray(fits.success)
    rows = [
        (
            name,
            _shape(fits),
            *(float(pd.Series(array[name][converged]).median()) for array in (fits.params, fits.stderr)),
        )
        for name in fits.names
    ]
    header = ("parameter", "shape", "median where converged", "of its standard error")
    return Table(rows, header, align="llrr")


def _chunks(fits: ManyFits) -> Table:
    chunk = " × ".join(map(str, fits.figures.chunksize[:-1])) or "1"
    rows = [(name, _shape(fits), chunk, str(fits.figures.dtype)) for name in fits.names]
    return Table(rows, ("parameter", "shape", "largest chunk", "dtype"))
