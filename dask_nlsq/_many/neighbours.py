"""Neighbours: series that failed start again from the estimates of those beside them."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np
from dask.array.overlap import overlap

from dask_nlsq._many.task import Task, indices
from dask_nlsq._sweep import Payload
from dask_nlsq._typing import AnyArray

_ROUNDS = 3
"""How often series that still fail start again: by so many pixels estimates spread."""


def refit_from_neighbours(
    payload: Payload, series: da.Array, given: Mapping[str, da.Array], figures: da.Array
) -> da.Array:
    """Return figures (*outer, width) in which series that failed have been fitted again, lazily.

    Only figures reach over the edges of chunks, so that the series themselves do not travel.
    """
    outer = tuple(range(series.ndim - 1))
    single = itertools.count(series.ndim - 1)  # axes of one chunk each
    arguments: list[Any] = [series, (*outer, next(single))]
    width = next(single)
    for array in given.values():
        arguments += [array, (*outer, next(single))]
    margins = {axis: int(axis in outer) for axis in range(series.ndim)}
    before: list[da.Array] = []
    for _ in range(_ROUNDS):
        now = overlap(figures, depth=margins, boundary=dict.fromkeys(outer, np.nan))
        halos = [part for halo in (now, *before) for part in (halo, (*outer, next(single)))]
        figures = da.blockwise(
            _refit,
            (*outer, width),
            *arguments,
            *halos,
            payload=payload,
            names=tuple(given),
            new_axes={width: payload.value.width},
            concatenate=True,
            dtype=np.float64,
            meta=np.empty((0,) * series.ndim),
            align_arrays=False,
        )
        before = [now]
    return figures


def _refit(y: AnyArray, *arrays: AnyArray, payload: Payload, names: Sequence[str]) -> AnyArray:
    """Fit the series of one chunk again that have failed, and have neighbours that did not in the round before."""
    own, (now, *before) = arrays[: len(names)], arrays[len(names) :]
    task: Task = payload.value
    place = indices(task.model.parameters)
    free = [place[name] for name in task.free]
    core = now[(slice(1, -1),) * (y.ndim - 1)]
    start = _mean_beside(now, free, place["status"])
    again = (core[..., place["status"]] <= 0) & np.isfinite(start).all(axis=-1)
    for halo in before:
        # From where it has failed already it would only fail again.
        again &= (start != _mean_beside(halo, free, place["status"])).any(axis=-1)
    if not again.any():
        return core
    given = {name: np.asarray(array, float)[again] for name, array in zip(names, own, strict=True)}
    found = task(np.asarray(y, float)[again], given | {"start": start[again]})
    first = core[again]
    found[:, place["nfev"]] += first[:, place["nfev"]]
    first[:, place["nfev"]] = found[:, place["nfev"]]
    figures = core.copy()
    figures[again] = np.where(found[:, [place["status"]]] > 0, found, first)
    return figures


def _mean_beside(halo: AnyArray, columns: Sequence[int], status: int) -> AnyArray:
    """Return the mean of some figures over the neighbours of each series that have converged, NaN where none has."""
    ndim = halo.ndim - 1
    shape = tuple(n - 2 for n in halo.shape[:-1])
    total, count = np.zeros((*shape, len(columns))), np.zeros((*shape, 1))
    # In this order each sum is taken wherever the edges of chunks lie.
    for steps in itertools.product((0, 1, 2), repeat=ndim):
        if any(step != 1 for step in steps):
            beside = halo[tuple(slice(step, step + n) for step, n in zip(steps, shape, strict=True))]
            good = beside[..., [status]] > 0
            total += np.where(good, beside[..., columns], 0.0)
            count += good
    mean: AnyArray = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return mean
