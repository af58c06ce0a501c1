"""fit: the loop, and the one module that knows both the numerics and the world.

::

    state = solver.init(start)
    while state.status is None:
        state = solver.step(state, sweep(source, solver.request(state)))

Everything before that makes friendly arguments exact; everything after turns the last state into a result.
"""

from __future__ import annotations

import dataclasses
import logging
import platform
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dask
import distributed
import jax
import numpy as np
import pandas as pd
import psutil
import zarr
from scipy.optimize import OptimizeWarning

from dask_nlsq._errors import DataError, ModelError, NlsqError, NlsqWarning, TooFewRows
from dask_nlsq._numerics import inference, kernel
from dask_nlsq._numerics.block import Block
from dask_nlsq._numerics.model import Model
from dask_nlsq._numerics.objective import Objective
from dask_nlsq._numerics.parameters import Parameters
from dask_nlsq._numerics.reduction import Reduction
from dask_nlsq._numerics.solver.trust_region import State, TrustRegion, final
from dask_nlsq._numerics.status import Status
from dask_nlsq._progress import Progress
from dask_nlsq._result import FitResult, history_frame
from dask_nlsq._sources import Columns, Source, open_source
from dask_nlsq._sweep import Cluster, Executor, Ledger, Serial, Shipped, Threads, ship, sweep

if sys.platform != "win32":
    import resource

log = logging.getLogger("dask_nlsq")


@dataclasses.dataclass(frozen=True)
class Problem:
    """A fit with every argument made exact."""

    source: Source
    columns: Columns
    objective: Objective
    shipped: Shipped
    parameters: Parameters
    executor: Executor
    partitions: Sequence[Any]


def fit(
    model: Any,
    x: Any = None,
    y: Any = None,
    *,
    data: Any = None,
    sigma: Any = None,
    filters: Any = None,
    storage_options: dict[str, Any] | None = None,
    p0: Any = None,
    bounds: Any = None,
    absolute_sigma: bool = False,
    nan_policy: str = "raise",
    ftol: float | None = None,
    xtol: float | None = None,
    gtol: float | None = None,
    max_nfev: int = 1000,
    cache: str = "auto",
    client: Any = None,
    progress: bool | None = None,
) -> FitResult:
    r"""Fit a nonlinear model to more rows than fit in memory, exactly.

    Minimises :math:`\tfrac12 \sum_i \left(\frac{f(x_i; \theta) - y_i}{\sigma_i}\right)^2` over all rows. The answer is
    that of a fit in memory, however the rows are cut into partitions and whoever reduces them.

    Parameters
    ----------
    model : callable or Model
        ``f(column, *parameters)`` in ``jax.numpy``, acting on each row by itself. The first argument is a column
        (or several, as an array of shape (k, rows), when `x` names several); a later argument is a column only
        when `x` names it. The other arguments are the parameters; their defaults are starting values.
    x, y : str, sequence of str, or array
        With `data`: names of columns; by default the model's first argument and ``"y"``. Without: Dask,
        Zarr or NumPy arrays, `x` of shape (n,) or (k, n), or a tuple of columns.
    data : Dask or pandas DataFrame, mapping of arrays, Zarr group, xarray Dataset, str or path
        The rows; a path or URL is read as Parquet or Zarr.
    sigma : str, array or float, optional
        Standard deviation of y; ``inf`` gives a row no weight.
    filters : list, optional
        Filters of `pyarrow.parquet`, for Parquet paths.
    storage_options : dict, optional
        Passed to fsspec, for URLs.
    p0 : mapping, sequence or FitResult, optional
        Starting values; else the defaults in the signature; else 1, which the result says.
    bounds : tuple or mapping, optional
        ``(lower, upper)`` or ``{name: (lower, upper)}``.
    absolute_sigma : bool
        Whether `sigma` is in units of y; else only its ratios matter and the covariance is scaled by
        the reduced chi-square.
    nan_policy : {"raise", "omit"}
        What to do with rows where x or y is not finite.
    ftol, xtol, gtol : float, optional
        SciPy's tests, besides the default: stop when the step that remains is far below the standard errors.
    max_nfev : int
        Most sweeps.
    cache : {"auto", "persist", "none"}
        Whether partitions stay in memory between sweeps; "auto" keeps them below half of the memory.
    client : distributed.Client, optional
        By default the open client if there is one, else threads of this process.
    progress : bool, optional
        Show a progress bar; by default on a terminal, for fits longer than a second.

    Returns
    -------
    FitResult
        Estimates, covariance, statistics, history; ``popt, pcov = result`` works as with SciPy.

    Raises
    ------
    ModelError
        The model cannot be traced, has the wrong shape, or is not finite at the start.
    DataError
        A column is missing, not numeric, not finite, or of another length; names partition and column.
    BoundsError
        A lower bound lies above its upper bound, or the start outside.
    SweepError
        The model or a read failed on a partition; the original exception is its cause.

    Notes
    -----
    Trust-region Gauss-Newton on the triangle of the whitened normal equations; see `Bates & Watts
    <https://doi.org/10.1080/00401706.1981.10486291>`_ for the test of convergence.

    Examples
    --------
    >>> import pandas as pd, dask.dataframe as dd, jax.numpy as jnp, dask_nlsq
    >>> def decay(t, amplitude, rate):
    ...     return amplitude * jnp.exp(-rate * t)
    >>> frame = pd.DataFrame({"t": [0.0, 1, 2, 3, 4], "y": [2.0, 1.22, 0.74, 0.44, 0.27]})
    >>> result = dd.from_pandas(frame, npartitions=2).nlsq.fit(decay)
    >>> result.params.round(2).to_dict()
    {'amplitude': 2.0, 'rate': 0.5}
    """
    if nan_policy not in ("raise", "omit"):
        raise DataError(f'nan_policy is {nan_policy!r}; "raise" or "omit" is needed.')
    if max_nfev < 1:
        raise NlsqError(f"max_nfev is {max_nfev}; at least one sweep is needed.")
    started = time.perf_counter()
    data, columns, bound = _roles(model, x, y, data, sigma, nan_policy, p0, (filters, storage_options))
    parameters = Parameters.of(bound, p0, bounds)
    objective = kernel.check(Objective(bound, (*columns.x, columns.y), columns.sigma is not None))
    source = open_source(data, columns, filters, storage_options)
    _warn_of_namesakes(bound, source)
    executor = _executor(client, len(source.partitions))
    shipped = ship(objective)
    if isinstance(executor, Cluster):
        shipped.bytes()  # refused here, by name, rather than by the scheduler
    partitions = _cached(source, executor, cache)
    problem = Problem(source, columns, objective, shipped, parameters, executor, partitions)
    solver = TrustRegion(
        parameters.lower,
        parameters.upper,
        absolute_sigma=absolute_sigma,
        ftol=ftol,
        xtol=xtol,
        gtol=gtol,
        max_nfev=max_nfev,
    )
    with Progress(len(partitions), progress) as bar:
        state, seconds = minimise(problem, solver, bar)
    notes = _notes(problem)
    return _result(problem, solver, state, seconds, time.perf_counter() - started, notes)


def minimise(problem: Problem, solver: TrustRegion, bar: Progress) -> tuple[State, list[float]]:
    """Run the loop to its end; return the last state and the seconds of each sweep."""
    ledger, seconds = Ledger(), []
    state = solver.init(problem.parameters.start)
    while state.status is None:
        clock = time.perf_counter()
        request = solver.request(state)
        bar.sweep(state)
        reduction = sweep(problem.executor, problem.partitions, problem.shipped, request, ledger, bar.partition)
        if not state.history:
            _first_look(problem, reduction)
        state = solver.step(state, reduction)
        seconds.append(time.perf_counter() - clock)
        last = state.history[-1]
        log.info(
            "sweep %d: cost %.10g, %.3g standard errors remain, damping %.3g, %s, %.3g s",
            last.sweep,
            last.cost,
            last.step,
            last.damping,
            "accepted" if last.accepted else "refused",
            seconds[-1],
        )
    return state, seconds


def _roles(
    model: Any, x: Any, y: Any, data: Any, sigma: Any, nan_policy: Any, p0: Any, reading: tuple[Any, Any]
) -> tuple[Any, Columns, Model]:
    """Say which data plays which role, by name whatever the form; return data, columns and the bound model."""
    if not isinstance(model, Model):
        if not callable(model):
            raise ModelError(f"model is a {type(model).__name__}; a function f(x, *parameters) is needed.")
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


def _warn_of_namesakes(model: Model, source: Source) -> None:
    """Say where a column of the data bears the name of a parameter, which is fitted all the same."""
    for name in model.parameters:
        if name in source.info.present and name not in source.info.columns:
            warnings.warn(
                f"The data has a column {name!r}, and the model a parameter of that name: the parameter is fitted, "
                f"and the column is not read. To use the column, add {name!r} to x=.",
                NlsqWarning,
                stacklevel=3,
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


def _executor(client: Any, partitions: int) -> Executor:
    if client is None:
        try:
            client = distributed.Client.current()
        except ValueError:
            return Threads() if partitions > 1 else Serial()
    if client.asynchronous:
        raise NlsqError("The client is asynchronous, and fit waits for its answers: use a synchronous Client.")
    return Cluster(client)


def _cached(source: Source, executor: Executor, cache: str) -> Sequence[Any]:
    """Hold the partitions in memory where that is asked for, or needed, or cheap."""
    if cache not in ("auto", "persist", "none"):
        raise NlsqError(f'cache is {cache!r}; "auto", "persist" or "none" is needed.')
    local = not isinstance(executor, Cluster)
    if isinstance(source.partitions[0], Block) and local:
        return source.partitions
    embedded = isinstance(source.partitions[0], Block)  # would be sent anew with every sweep
    size, room = source.info.nbytes, _memory(executor)
    fits = size is not None and size < 0.5 * room
    if source.shared or cache == "persist" or (cache == "auto" and (embedded or fits)):
        return executor.hold(source.partitions, source.shared)
    return source.partitions


def _memory(executor: Executor) -> float:
    """Return the bytes that partitions may take: those of the workers, or what this machine has free."""
    if isinstance(executor, Cluster):
        workers = executor.client.scheduler_info(n_workers=-1)["workers"].values()
        return float(sum(w["memory_limit"] or 0 for w in workers))
    return float(psutil.virtual_memory().available)


def _first_look(problem: Problem, reduction: Reduction) -> None:
    """Refuse what the first sweep shows to be hopeless."""
    p, start = problem.parameters.p, problem.parameters.start
    if reduction.rows == 0:
        raise DataError(f"There are no rows to fit ({reduction.dropped} were dropped by the NaN policy).")
    if reduction.rows < p:
        raise TooFewRows(f"There are {reduction.rows} rows for {p} parameters; at least {p} are needed.")
    if not reduction.finite:
        values = dict(zip(problem.parameters.names, start.tolist(), strict=True))
        raise ModelError(
            f"The model or its derivative is not finite at the start p0={values}, although the data are. "
            "Start elsewhere with p0=, or keep the model away from such values with bounds=."
        )


def _notes(problem: Problem) -> tuple[str, ...]:
    notes = []
    if problem.parameters.guessed:
        notes.append(f"p0 was not given for {', '.join(problem.parameters.guessed)}; 1 was tried.")
    for name, instant in problem.source.info.origins.items():
        notes.append(f"Column {name!r} holds dates; the model saw seconds since {instant}.")
    return tuple(notes)


def _result(
    problem: Problem,
    solver: TrustRegion,
    state: State,
    seconds: list[float],
    total: float,
    notes: tuple[str, ...],
) -> FitResult:
    point = state.point
    assert point is not None and state.status is not None
    parameters = problem.parameters
    theta, cost = final(state, parameters.lower, parameters.upper)
    active = np.where(theta <= parameters.lower, -1, np.where(theta >= parameters.upper, 1, 0))
    statistics = inference.statistics(point.reduction, cost, int(np.sum(active == 0)), solver.absolute_sigma)
    s2 = 1.0 if solver.absolute_sigma else statistics.redchi if statistics.dof > 0 else np.inf
    pcov = inference.covariance(point.factor, s2, active == 0)
    held = [name for name, side in zip(parameters.names, active, strict=True) if side]
    if held:
        notes += (f"{', '.join(held)} ended at a bound and was held there; it has no standard error.",)
    if np.isinf(pcov).any():
        open_ends = [n for n, v in zip(parameters.names, np.diag(pcov), strict=True) if np.isinf(v)]
        warnings.warn(
            f"The data do not determine {', '.join(open_ends)}; their variance is infinite.",
            OptimizeWarning,
            stacklevel=3,
        )
    gradient = np.where(active == 0, point.factor.gradient, 0.0)
    if state.status is Status.MAX_NFEV:
        log.warning("the fit stopped after %d sweeps without converging", state.nsweeps)
    return FitResult(
        names=parameters.names,
        popt=theta,
        pcov=pcov,
        cost=cost,
        optimality=float(np.abs(gradient).max()),
        statistics=statistics,
        n_dropped=point.reduction.dropped,
        condition_number=point.factor.condition,
        active_mask=active,
        status=state.status,
        history=_history(state, parameters.names, seconds),
        provenance=_provenance(problem, state, sum(seconds), total),
        notes=notes,
        shipped=problem.shipped,
        columns=dataclasses.replace(problem.columns, origins=problem.source.info.origins),
    )


def _history(state: State, names: Sequence[str], seconds: list[float]) -> pd.DataFrame:
    columns: dict[str, Callable[[Any], Any]] = {
        "cost": lambda r: r.cost,
        "step": lambda r: r.step,
        "damping": lambda r: r.damping,
        "radius": lambda r: r.radius,
        "accepted": lambda r: r.accepted,
    }
    table = {name: [value(r) for r in state.history] for name, value in columns.items()}
    table |= {name: [float(r.theta[i]) for r in state.history] for i, name in enumerate(names)}
    return history_frame(table | {"seconds": seconds})


def _provenance(problem: Problem, state: State, seconds: float, total: float) -> dict[str, Any]:
    assert state.point is not None
    executor = problem.executor
    return {
        "model": problem.objective.model.name,
        "data": problem.source.info.kind,
        "token": problem.source.token,
        "columns": list(problem.columns.names),
        "partitions": len(problem.partitions),
        "executor": type(executor).__name__.lower(),
        "workers": executor.workers,
        "seconds": seconds,
        "total_seconds": total,
        "rows_per_second": state.nsweeps * state.point.reduction.rows / max(seconds, 1e-9),
        "peak_memory": _peak_memory(),
        "device": jax.default_backend(),
        "finished": pd.Timestamp.now(tz="UTC").isoformat(),
        "versions": {
            "python": platform.python_version(),
            **{m.__name__: m.__version__ for m in (dask, distributed, jax, np, zarr)},
        },
    }


def _peak_memory() -> int:
    """Return the largest resident size that this process has had, in bytes."""
    if sys.platform == "win32":
        return int(psutil.Process().memory_info().peak_wset)
    unit = 1 if sys.platform == "darwin" else 1024
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * unit
