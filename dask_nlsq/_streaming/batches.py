"""Batches of a `StreamingFitter` as blocks of rows, whatever form they come in."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from dask_nlsq._errors import DataError
from dask_nlsq._fit import resolve_sigma, split
from dask_nlsq._kernel import Block
from dask_nlsq._model import Model, Objective
from dask_nlsq._sources import Columns, each_table, is_table
from dask_nlsq._sweep import serialize


def weighing(objective: Objective, weighted: bool) -> Objective:
    """Return the objective of this process that has weights, or has none: with equal ones, kernels are shared."""
    if objective.weighted == weighted:
        return objective
    shared: Objective = serialize(dataclasses.replace(objective, weighted=weighted)).value
    return shared


def blocks(model: Model, columns: Columns, x: object, y: object, sigma: object) -> Iterator[Block]:
    """Yield what came as blocks: one, or one for each partition of a Dask frame.

    Raises
    ------
    DataError
        A column is missing, is not numeric or is of another length, sigma is not positive, or y is given twice.
    """
    sigma = resolve_sigma(sigma, named=False)
    if not is_table(x):
        yield _block(*_arrays(model, columns, x, y), sigma)
        return
    if y is not None:
        raise DataError(
            f"y is read from the frame, which holds it as {columns.y!r}. Leave y out; where another column is the "
            "response, name it in StreamingFitter(y=...)."
        )
    columns = dataclasses.replace(columns, sigma=sigma if isinstance(sigma, str) else None)
    for table in each_table(x):
        missing = [name for name in columns.names if name not in table]
        if missing:
            raise DataError(f"The batch has no column {missing[0]!r}; it has {list(table)}.", column=missing[0])
        yield _block(columns, {name: table[name] for name in columns.names}, sigma)


def _arrays(model: Model, columns: Columns, x: object, y: object) -> tuple[Columns, dict[str, Any]]:
    """Return x and y that are given as arrays by the names of their columns."""
    if y is None:
        raise DataError("Give x and y, or a frame that holds both.")
    _, arrays = split(model, x, y)
    if len(arrays) != len(columns.x):
        raise DataError(f"x has {len(arrays)} columns; the model takes {list(columns.x)}.")
    if columns.y in columns.x:
        columns = dataclasses.replace(columns, y="fitted y")
    return columns, dict(zip(columns.x, map(_array, arrays), strict=True)) | {columns.y: _array(y)}


def _block(columns: Columns, raw: Mapping[str, Any], sigma: object) -> Block:
    if isinstance(sigma, float):
        columns = dataclasses.replace(columns, sigma=sigma)
    elif sigma is not None and columns.sigma is None:
        columns = dataclasses.replace(columns, sigma="sigma of y")
        raw = {**raw, "sigma of y": _array(sigma)}
    if dates := [name for name, values in raw.items() if getattr(getattr(values, "dtype", 0), "kind", "") == "M"]:
        raise DataError("The column holds dates; give seconds since an instant of your own.", column=dates[0])
    return columns.block(raw)


def _array(values: object) -> Any:
    return values if hasattr(values, "dtype") else np.asarray(values)
