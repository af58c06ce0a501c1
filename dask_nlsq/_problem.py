"""Problem: a fit with every argument made exact; here friendly arguments become one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import distributed
import numpy as np
import psutil

from dask_nlsq._errors import DataError, ModelError, NlsqError, warn
from dask_nlsq._models import named
from dask_nlsq._numerics.block import Block
from dask_nlsq._numerics.model import Model
from dask_nlsq._numerics.objective import Objective
from dask_nlsq._numerics.parameters import Parameters
from dask_nlsq._sources import Columns, Source, open_source
from dask_nlsq._sweep import Cluster, Executor, Ledger, Serial, Shipped, Threads, group


@dataclasses.dataclass(frozen=True)
class Problem:
    """A fit with every argument made exact."""

    source: Source
    columns: Columns
    objective: Objective
    shipped: Shipped
    parameters: Parameters
    executor: Executor
    groups: Sequence[Any]
    ledger: Ledger = dataclasses.field(default_factory=Ledger)


def roles(
    model: Any, x: Any, y: Any, data: Any, sigma: Any, nan_policy: Any, p0: Any, reading: tuple[Any, Any]
) -> tuple[Any, Columns, Model]:
    """Say which data plays which role, by name whatever the form; return data, columns and the bound model."""
    if isinstance(model, str):
        model = named(model)
    if not isinstance(model, Model):
        if not callable(model):
            raise ModelError(
                f"model is a {type(model).__name__}; a function f(x, *parameters), a Model or the name of one is "
                "needed."
            )
        n = None if p0 is None else np.size(getattr(p0, "popt", p0))
        model = Model.from_function(model, n)
    constant = float(sigma) if isinstance(sigma, (int, float, np.floating, np.integer)) else None
    if constant is not None and not constant > 0:
        raise DataError(f"sigma is {constant}; it must be positive.")
    if data is None:
        if x is None or y is None:
            raise DataError("Give x and y as arrays, or data= with x and y as the names of its columns.")
        names, arrays = _split(model, x)
        free = ("y", "sigma") if {"y", "sigma"}.isdisjoint(names) else ("fitted y", "sigma of y")
        data = dict(zip(names, arrays, strict=True)) | {free[0]: y}
        if sigma is not None and constant is None:
            data[free[1]] = sigma
        y, sigma = free[0], None if sigma is None else free[1]
    else:
        y = "y" if y is None else y
        if not isinstance(y, str):
            raise DataError(f"With data=, y must be the name of a column; it is a {type(y).__name__}.")
        names = model.inputs if x is None else (x,) if isinstance(x, str) else tuple(x)
        if x is None and not names:  # an expression whose columns are those that the data has
            present = open_source(data, Columns((), y, constant or sigma, nan_policy), *reading).info.present
            names = model.inputs_among(present, (y, sigma))
    bound = model.bind(names)
    sigma = constant if constant is not None else sigma
    return data, Columns(tuple(names), y, sigma, nan_policy), bound


def warn_of_namesakes(model: Model, source: Source) -> None:
    """Say where a column of the data bears the name of a parameter, which is fitted all the same."""
    for name in model.parameters:
        if name in source.info.present and name not in source.info.columns:
            warn(
                f"The data has a column {name!r}, and the model a parameter of that name: the parameter is fitted, "
                f"and the column is not read. To use the column, add {name!r} to x=.",
            )


def _split(model: Model, x: Any) -> tuple[tuple[str, ...], Sequence[Any]]:
    """Return names and columns of an x given as arrays."""
    if isinstance(x, Mapping):
        return tuple(x), list(x.values())
    if isinstance(x, (tuple, list)) and x and getattr(x[0], "ndim", 0) == 1:
        arrays = list(x)
    elif getattr(x, "ndim", 1) == 2:
        arrays = [x[i] for i in range(x.shape[0])]
    else:
        arrays = [x]
    return model.array_names(len(arrays)), arrays


def choose_executor(client: Any, partitions: int) -> Executor:
    if client is None:
        try:
            client = distributed.Client.current()
        except ValueError:
            return Threads() if partitions > 1 else Serial()
    if client.asynchronous:
        raise NlsqError("The client is asynchronous, and fit waits for its answers: use a synchronous Client.")
    executor = Cluster(client)
    if (remedy := executor.crowded()) is not None:
        warn(remedy)
    return executor


def arrange(source: Source, executor: Executor, cache: str, rows: float | None) -> Sequence[Any]:
    """Cut the partitions into groups, held in memory where that is asked for, or needed, or cheap.

    Parameters
    ----------
    rows : float or None
        Rows of all partitions, as far as they are known.
    """
    nbytes = float("inf") if rows is None or source.shared else 8.0 * rows * len(source.info.columns)
    groups = group(source.partitions, nbytes, executor.workers)
    embedded = isinstance(source.partitions[0], Block)
    if embedded and not isinstance(executor, Cluster):
        return groups
    fits = nbytes < 0.5 * _memory(executor)  # and what is embedded would be sent anew with every sweep
    if source.shared or cache == "persist" or (cache == "auto" and (embedded or fits)):
        return executor.hold(groups, source.shared)
    return groups


def _memory(executor: Executor) -> float:
    """Return the bytes that partitions may take: those of the workers, or what this machine has free."""
    if isinstance(executor, Cluster):
        workers = executor.client.scheduler_info(n_workers=-1)["workers"].values()
        return float(sum(w["memory_limit"] or 0 for w in workers))
    return float(psutil.virtual_memory().available)
