"""fit: the loop, and the one module that knows both the numerics and the world.

::

    state = solver.init(start)
    while state.status is None:
        state = solver.step(state, sweep(source, solver.request(state)))

Everything before that makes friendly arguments exact; everything after turns the last state into a result.
"""

from __future__ import annotations

import dataclasses
import inspect
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.optimize import OptimizeResult

from dask_nlsq._autotune import autotune as tuned
from dask_nlsq._errors import DataError, ModelError, NlsqError, TooFewRows, warn
from dask_nlsq._facts import dry_run, gather_facts, speed
from dask_nlsq._numerics import kernel
from dask_nlsq._numerics.block import MANY_ROWS, Block
from dask_nlsq._numerics.loss import Loss
from dask_nlsq._numerics.reduction import Reduction
from dask_nlsq._numerics.solver.streaming import Streaming
from dask_nlsq._numerics.solver.trust_region import State, TrustRegion, final
from dask_nlsq._numerics.status import Status
from dask_nlsq._outcome import build
from dask_nlsq._plan import OptimizationGoal, Plan, WorkflowConfig, WorkflowTier, make_plan, settle, with_speeds
from dask_nlsq._problem import Draft, Problem, arrange, draft, executor_of
from dask_nlsq._progress import Progress
from dask_nlsq._result import FitResult
from dask_nlsq._sample import GUESS_ROWS, Sample, draw_sample, guess_start
from dask_nlsq._second_look import look_again
from dask_nlsq._stream import BATCHES, at_estimate, one_pass, precise
from dask_nlsq._sweep import Cluster, Executor, Group, Ledger, Serial, group, ship, sweep
from dask_nlsq._typing import Vector

log = logging.getLogger("dask_nlsq")


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
    fixed: Any = None,
    tied: Mapping[str, Any] | None = None,
    prior: Mapping[str, tuple[float, float]] | None = None,
    loss: Loss = "linear",
    f_scale: float = 1.0,
    jac: Any = None,
    absolute_sigma: bool = False,
    cov_type: str = "standard",
    nan_policy: str = "raise",
    missing_chunks: str = "fill",
    ftol: float | None = None,
    xtol: float | None = None,
    gtol: float | None = None,
    max_nfev: int | None = None,
    time_limit: float | None = None,
    callback: Callable[[OptimizeResult], Any] | None = None,
    tier: Any = None,
    goal: Any = None,
    workflow: str | None = None,
    config: Any = None,
    memory_limit: int | str | None = None,
    cache: str | None = None,
    precision: float | Mapping[str, float] | None = None,
    seed: int = 0,
    autotune: bool = False,
    client: Any = None,
    progress: bool | None = None,
) -> FitResult:
    r"""Fit a nonlinear model to more rows than fit in memory, exactly.

    Minimises :math:`\tfrac12 \sum_i \left(\frac{f(x_i; \theta) - y_i}{\sigma_i}\right)^2` over all rows. The answer is
    that of a fit in memory, however the rows are cut into partitions and whoever reduces them.

    Parameters
    ----------
    model : callable, Model or str
        The name of one of `dask_nlsq.models`, a Model, or a function ``f(column, *parameters)`` in ``jax.numpy``,
        acting on each row by itself. The first argument is a column
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
        Starting values; else the defaults in the signature; else the model's guess from a sample of the rows; else
        1. The result says which were not given.
    bounds : tuple or mapping, optional
        ``(lower, upper)`` or ``{name: (lower, upper)}``; equal bounds hold a parameter.
    fixed : mapping or sequence of str, optional
        ``{name: value}``, or names to be held at their start.
    tied : mapping, optional
        ``{name: "expression of other parameters"}``; it is substituted before differentiation.
    prior : mapping, optional
        ``{name: (mean, standard deviation)}``; each counts as one more row.
    loss : {"linear", "soft_l1", "huber", "cauchy", "arctan", "tukey"} or callable
        How a large residual counts, as in `scipy.optimize.least_squares`; a callable takes z = (r / f_scale)² and
        returns ρ, or (ρ, ρ', ρ'').
    f_scale : float
        The size of a residual, in units of sigma (of y without sigma), from which it is large.
    jac : {"jax", "2-point", "3-point"} or callable, optional
        How the Jacobian is formed. By default JAX differentiates the model, and a model that JAX cannot trace is
        differentiated by central differences, with a warning; "jax" makes that an error, "3-point" (and "2-point",
        which is no cheaper here) asks for differences. A callable takes the model's arguments and returns the
        derivatives with respect to all parameters, of shape (rows, parameters).
    absolute_sigma : bool
        Whether `sigma` is in units of y; else only its ratios matter and the covariance is scaled by
        the reduced chi-square.
    cov_type : {"standard", "sandwich"}
        The sandwich (Huber-White, HC1) holds where the spread of the residuals differs from row to row.
    nan_policy : {"raise", "omit"}
        What to do with rows where x or y is not finite.
    missing_chunks : {"fill", "raise"}
        What to do where a Zarr store lacks chunks, as it rightly does where all values are the fill value: read them as
        that value and say in the result how many there were, or refuse them.
    ftol, xtol, gtol : float, optional
        SciPy's tests, besides the default: stop when the step that remains is far below the standard errors.
    max_nfev : int
        Most sweeps; 1000 by default.
    time_limit : float, optional
        Seconds after which no further sweep is begun.
    callback : callable, optional
        Called after every sweep with an `OptimizeResult` of ``x``, ``cost``, ``nfev`` and ``params``; raising
        StopIteration ends the fit.
    tier : {"auto", "standard", "chunked", "streaming"} or WorkflowTier
        How to go about the data: gather all rows in this process, leave them in partitions, or take them in
        mini-batches first. The answer is the same; "auto" decides from rows, memory and goal.
    goal : {"robust", "fast", "quality", "memory_efficient"} or OptimizationGoal
        What matters most: "fast" stops a tenth of a standard error from the minimum; "quality" goes on to the rounding
        level and fits again from perturbed starts; "memory_efficient" keeps nothing between sweeps.
    workflow : str, optional
        The name of a preset of `WorkflowConfig`.
    config : WorkflowConfig or mapping, optional
        Settings that are kept together. What an argument says counts before them, then what they say, then `workflow`,
        then Dask's configuration ``nlsq.*``, then the default.
    memory_limit : int or str, optional
        Bytes that a process may hold, or a text such as "4 GB"; by default the limit of the workers, of the control
        group or of the machine.
    cache : {"auto", "persist", "none"}
        Whether partitions stay in memory between sweeps; "auto" keeps them below half of the memory.
    precision : float or mapping, optional
        Stop reading as soon as every standard error is below this fraction of its parameter, or below ``{name:
        value}``; the fit streams, and its answer rests on what it has read.
    seed : int
        Of the order in which batches are drawn.
    autotune : bool
        Time the formulations of the kernel on some rows and take the fastest, said in ``provenance["kernel"]``. The
        bits of the answer then depend on a clock; by default a rule decides.
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
    PlanError
        A partition does not fit into memory.

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
    said = locals()
    started = time.perf_counter()
    config = _settle(said)
    exact = draft(**said)
    source, bound, parameters, objective = exact.source, exact.model, exact.parameters, exact.objective
    wide = source.info.row_bytes == 8 * (len(objective.columns) + objective.weighted)
    if wide and not isinstance(exact.executor, Cluster):
        kernel.prepare(objective)
    decided, executor, groups, sample = _gather(exact, config)
    if parameters.guessed and bound.guess is not None:
        rows = sample or draw_sample(executor, groups, len(source.partitions), GUESS_ROWS)
        parameters = guess_start(bound, parameters, rows.block)
    if autotune:
        rows = sample or draw_sample(executor, groups, len(source.partitions))
        objective = tuned(objective, rows.block, parameters.start)
    problem = Problem(
        source, exact.columns, objective, ship(objective), parameters, executor, groups, decided, exact.executor
    )
    solver = TrustRegion(
        parameters.lower,
        parameters.upper,
        parameters.prior,
        tolerance=_TOLERANCE.get(decided.goal),
        absolute_sigma=absolute_sigma,
        ftol=config.ftol,
        xtol=config.xtol,
        gtol=config.gtol,
        max_nfev=config.max_nfev or sys.maxsize,
    )
    notes = _notes(problem)
    starts, begun = [parameters.start], None
    with Progress(len(source.partitions), progress) as bar:
        if sample is not None and (near := _fit_sample(problem, solver, sample)) is not None:
            starts.insert(0, final(near, solver.lower, solver.upper)[0])
            notes += (f"Started from a fit of {sample.block.rows:,} rows of {sample.partitions} partitions.",)
            if decided.tier is WorkflowTier.STREAMING:
                begun = _stream(problem, solver, near, sample, seed, _target(problem, config.precision), bar)
                notes += begun[2]
        state, seconds = minimise(problem, solver, starts, bar, config.time_limit, callback, begun and begun[:2])
        if decided.goal is OptimizationGoal.QUALITY and state.status is not None and state.status.success:
            state, more, note = _second_look(problem, solver, state, sample, bar, callback)
            seconds += more
            notes += (note,)
    if state.status is not None and state.status.success and _went_silent(problem, state):
        state = dataclasses.replace(state, status=Status.SILENT)
    return build(problem, solver, state, seconds, time.perf_counter() - started, notes)


_TOLERANCE = {OptimizationGoal.FAST: 0.1, OptimizationGoal.QUALITY: 1e-8}
"""Largest step that may remain, in standard errors, where the goal says so."""


def _stream(
    problem: Problem,
    solver: TrustRegion,
    near: State,
    sample: Sample,
    seed: int,
    target: Callable[[Vector, Vector], bool] | None,
    bar: Progress,
) -> tuple[State, list[float], tuple[str, ...]]:
    """Pass over the data in batches; return the state that certifies next, or the last one where nothing is left to do.

    The sums of the pass are those of a sweep at the estimate of the sample, but linearised nearer to the end.
    """
    clock = time.perf_counter()
    assert near.point is not None
    online = Streaming(solver.lower, solver.upper, solver.prior, solver.absolute_sigma)
    origin, whitening = final(near, solver.lower, solver.upper)[0], near.point.factor.whitening()
    bar.begin("batches")
    start = (origin, whitening, sample.block)
    own = one_pass(problem, online, start, seed=seed, precision=target, on_answer=bar.answer)
    if own.sums is None:
        raise DataError(f"There are no rows to fit ({own.dropped} were dropped by the NaN policy).")
    _first_look(problem, own.sums)
    read = own.batches / min(len(problem.source.partitions), BATCHES)
    fast = problem.plan.goal is OptimizationGoal.FAST
    reached = (target is not None and read < 1) or (target is not None and precise(online, own, target))
    if reached or fast:
        last = solver.step(dataclasses.replace(solver.init(own.theta), whitening=whitening), at_estimate(online, own))
        last = dataclasses.replace(last, status=Status.PRECISION if reached else Status.STREAMED)
        return last, [time.perf_counter() - clock], (f"{100 * read:.3g} % of the data was read.",)
    state = solver.step(dataclasses.replace(solver.init(origin), whitening=whitening), own.sums)
    left = ("The precision was not reached by reading everything once.",) if target is not None else ()
    return state, [time.perf_counter() - clock], (f"One pass in {own.batches} batches came first.", *left)


def _target(problem: Problem, precision: Any) -> Callable[[Vector, Vector], bool] | None:
    """Return whether estimates (p,) and standard errors (p,) are as precise as was asked for."""
    if precision is None:
        return None
    names = problem.parameters.free
    if isinstance(precision, Mapping):
        if unknown := [name for name in precision if name not in names]:
            raise NlsqError(f"precision names {unknown}; the free parameters are {list(names)}.")
        absolute = np.array([float(precision.get(name, np.inf)) for name in names])
        return lambda _, error: bool((error <= absolute).all())
    if not float(precision) > 0:
        raise NlsqError(f"precision is {precision}; a number above 0 is needed.")
    return lambda theta, error: bool((error <= float(precision) * np.abs(theta)).all())


def _second_look(
    problem: Problem,
    solver: TrustRegion,
    state: State,
    sample: Sample | None,
    bar: Progress,
    callback: Callable[[OptimizeResult], Any] | None,
) -> tuple[State, list[float], str]:
    """Try the answer from perturbed starts, and go on from a lower minimum where all rows agree that it is lower."""
    better, note = look_again(problem, solver, state, None if sample is None else sample.block, bar)
    if better is None:
        return state, [], note
    assert state.point is not None
    try:
        second, seconds = minimise(problem, solver, [better], bar, None, callback)
    except NlsqError as error:
        return state, [], f"A perturbed start led lower on a sample, but not on all rows: {error}"
    history = (*state.history, *second.history)
    lower = second.point is not None and second.point.reduction.cost < state.point.reduction.cost
    if second.status is None or not second.status.success or not lower:
        note = "A perturbed start led lower on a sample, but not on all rows."
        return dataclasses.replace(state, history=history), seconds, note
    return dataclasses.replace(second, history=history), seconds, note


def plan(model: Any, x: Any = None, y: Any = None, **options: Any) -> Plan:
    """Say what `fit` would do with the same arguments, before it does anything.

    Nothing is read but what describes the data, and one partition, on which a dry run measures how fast reading and
    reducing go.

    Parameters
    ----------
    model, x, y, **options
        As for `fit`.

    Returns
    -------
    Plan
        Tier, workers, memory, reads and seconds, each with its reason.

    Raises
    ------
    PlanError
        A partition does not fit into memory; it is not read then.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> x = np.linspace(0, 1, 1000)
    >>> plan = dask_nlsq.plan("line", x, 1 + 2 * x, memory_limit="8 GB")
    >>> print(plan)  # doctest: +ELLIPSIS
    Plan: line(intercept, slope) on arrays in memory, 1,000 rows in 1 partition
      tier     STANDARD, all rows in memory at a time
      goal     ROBUST
      workers  1 task at a time in this process
      memory   ... of 7.45 GiB a process (memory_limit)
      cache    partitions stay in memory
      sweeps   about 8
      time     about ... a sweep, ... in all
    """
    bound = inspect.signature(fit).bind(model, x, y, **options)
    bound.apply_defaults()
    said = bound.arguments
    config = _settle(said)
    exact = draft(**said)
    facts = gather_facts(exact, config.memory_limit)
    make_plan(facts, config)  # refuses, before anything is read
    return make_plan(dry_run(exact, facts), config)


def _settle(said: Mapping[str, Any]) -> WorkflowConfig:
    """Return the settings that count, of the arguments of a fit and what stands behind them."""
    own = {field.name: said[field.name] for field in dataclasses.fields(WorkflowConfig)}
    return settle(WorkflowConfig(**own), said["config"], said["workflow"])


def _gather(exact: Draft, config: WorkflowConfig) -> tuple[Plan, Executor, Sequence[Any], Sample | None]:
    """Return the plan, the partitions in groups, held where it says so, and a sample where another sweep is dear."""
    source, executor = exact.source, exact.executor
    partitions, sample, read = len(source.partitions), None, 0.0
    if source.info.partition_rows is not None:
        make_plan(gather_facts(exact, config.memory_limit), config)  # refuses, before anything is read
    started = time.perf_counter()
    if source.info.rows is None and not source.shared:
        sample = draw_sample(executor, group(source.partitions, float("inf"), executor.workers), partitions)
        read = time.perf_counter() - started
    facts = gather_facts(exact, config.memory_limit, sample)
    decided = make_plan(facts, config)
    groups = arrange(source, executor, decided)
    executor = executor_of(decided, executor)
    streams = decided.tier is WorkflowTier.STREAMING
    if sample is None and (streams or facts.rows is None or facts.rows > MANY_ROWS):
        started = time.perf_counter()
        sample = draw_sample(executor, groups, partitions)
        read = time.perf_counter() - started
    if sample is None or (sample.estimated_rows <= MANY_ROWS and not streams):
        return decided, executor, groups, None
    facts = dataclasses.replace(facts, **speed(exact.objective, sample.block, exact.parameters.start))
    if decided.cache == "none" and read > 0:
        drawn = sample.estimated_rows / partitions * sample.partitions * facts.row_bytes
        facts = dataclasses.replace(facts, bytes_per_second=drawn / read / executor.workers)
    return with_speeds(decided, facts), executor, groups, sample


def _fit_sample(problem: Problem, solver: TrustRegion, sample: Sample) -> State | None:
    """Return how a fit of the sample in this process ends, or None where it leads nowhere."""
    small = dataclasses.replace(problem, executor=Serial(), groups=[Group(0, (sample.block,))], ledger=Ledger())
    solver = dataclasses.replace(solver, ftol=None, xtol=None, gtol=None, max_nfev=1000)
    try:
        state, _ = minimise(small, solver, [problem.parameters.start])
    except NlsqError as error:
        log.info("the sample could not be fitted: %s", error)
        return None
    return state if state.status is not None and state.status.success else None


def minimise(
    problem: Problem,
    solver: TrustRegion,
    starts: Sequence[Vector],
    bar: Progress | None = None,
    time_limit: float | None = None,
    callback: Callable[[OptimizeResult], Any] | None = None,
    begun: tuple[State, list[float]] | None = None,
) -> tuple[State, list[float]]:
    """Run the loop to its end from the first start at which the model is finite, or go on from a state.

    Returns
    -------
    State, list of float
        The last state and the seconds of each sweep.
    """
    started, others = time.monotonic(), list(starts[1:])
    bar = bar or Progress(0, show=False)
    state, seconds = begun or (solver.init(starts[0]), [])
    while state.status is None:
        clock = time.perf_counter()
        request = solver.request(state)
        bar.sweep(state)
        try:
            reduction = sweep(
                problem.executor, problem.groups, problem.shipped, request, ledger=problem.ledger, on_answer=bar.answer
            )
        except NlsqError as error:
            raise error.at(sweep=state.nsweeps + 1) from error.__cause__
        if not state.history and not reduction.finite and others:
            state = solver.init(others.pop(0))
            continue
        if not state.history:
            _first_look(problem, reduction)
        state = solver.step(state, reduction)
        seconds.append(time.perf_counter() - clock)
        _tell(state, seconds[-1])
        if state.status is None:
            state = dataclasses.replace(state, status=_asked_to_stop(problem, state, callback))
        if state.status is None and time_limit is not None and time.monotonic() - started > time_limit:
            state = dataclasses.replace(state, status=Status.TIME_LIMIT)
    return state, seconds


def _went_silent(problem: Problem, state: State) -> bool:
    """Whether parameters that move nothing where the fit ended would do so elsewhere.

    A parameter that the model does not use moves nothing anywhere; its variance is infinite, and the fit is none
    the worse for it. Where others silence it (a product of two zeros, the exponential of a large number), the
    gradient is zero and the end is no answer.
    """
    assert state.point is not None
    theta, parameters = state.point.theta, problem.parameters
    silent = ~state.point.factor.r.any(axis=0)
    if not silent.any():
        return False
    block = draw_sample(problem.executor, problem.groups, len(problem.source.partitions), 1024).block
    here = _evaluate(problem, block, theta)
    noise = 1e-9 * np.abs(here[np.isfinite(here)]).max(initial=0.0)
    for values in np.random.default_rng(0).choice([0.0, 1e-9, -1e-9, 1.0, -1.0], (64, len(theta))):
        there = np.where(silent, np.clip(values, parameters.lower, parameters.upper), theta)
        found = _evaluate(problem, block, there)
        if (np.isfinite(found) & (np.abs(found - here) > noise)).any():
            return True
    return False


def _evaluate(problem: Problem, block: Block, theta: Vector) -> Vector:
    """Return the model at some rows, from the free parameters."""
    with np.errstate(all="ignore"):
        return kernel.predict_block(problem.objective, block, np.array(problem.objective.expand(theta.tolist()), float))


def _tell(state: State, seconds: float) -> None:
    last = state.history[-1]
    log.info(
        "sweep %d: cost %.10g, %.3g standard errors remain, damping %.3g, %s, %.3g s",
        last.sweep,
        last.cost,
        last.step,
        last.damping,
        "accepted" if last.accepted else "refused",
        seconds,
    )


def _asked_to_stop(problem: Problem, state: State, callback: Callable[[OptimizeResult], Any] | None) -> Status | None:
    if callback is None or state.point is None:
        return None
    x = np.array([float(v) for v in problem.objective.expand(list(state.point.theta))])
    params = dict(zip(problem.parameters.names, x.tolist(), strict=True))
    intermediate = OptimizeResult()
    intermediate.update(x=x, cost=state.point.reduction.cost, nfev=state.nsweeps, params=params)
    try:
        callback(intermediate)
    except StopIteration:
        return Status.CALLBACK
    return None


def _first_look(problem: Problem, reduction: Reduction) -> None:
    """Refuse what the first sweep shows to be hopeless, and warn of what it shows to be rounded."""
    for name in sorted(reduction.rounded):
        warn(f"Column {name!r} holds integers beyond 2**53, which float64 rounds.")
    p, start = problem.parameters.p, problem.parameters.start
    if reduction.rows == 0:
        raise DataError(f"There are no rows to fit ({reduction.dropped} were dropped by the NaN policy).")
    p -= 0 if problem.parameters.prior is None else int(np.count_nonzero(problem.parameters.prior.weight))
    if reduction.rows < p:
        raise TooFewRows(f"There are {reduction.rows} rows for {p} parameters; at least {p} are needed.")
    if not _squares_in_range(problem, reduction):
        raise DataError(
            "The squares of y / sigma lie outside the range of float64, about 1e-290 to 1e290. Rescale y, and sigma "
            "with it.",
            column=problem.columns.y,
        )
    if not reduction.finite:
        values = dict(zip(problem.parameters.free, start.tolist(), strict=True))
        raise ModelError(
            f"The model or its derivative is not finite at the start p0={values}, although the data are. "
            "Start elsewhere with p0=, or keep the model away from such values with bounds=."
        )


def _squares_in_range(problem: Problem, reduction: Reduction) -> bool:
    """Whether neither y nor a weight is so large or small that its square has lost digits."""
    y = abs(float(reduction.sums[len(problem.columns.x)]))  # Σ y over the first sweep
    with np.errstate(all="ignore"):
        square = reduction.spread + reduction.weight * np.float64(reduction.mean) ** 2  # Σ w² y²
        weight = reduction.weight / reduction.rows
    return bool(1e-290 < weight < 1e290 and square < 1e290 and (square > 1e-280 or y == 0))


def _notes(problem: Problem) -> tuple[str, ...]:
    notes = []
    if problem.parameters.guessed:
        notes.append(f"p0 was not given for {', '.join(problem.parameters.guessed)}; 1 was tried.")
    if problem.parameters.sampled:
        names, rows = ", ".join(problem.parameters.sampled), problem.parameters.sample_rows
        notes.append(f"p0 was not given for {names}; it was guessed from {rows:,} rows.")
    for name, instant in problem.source.info.origins.items():
        notes.append(f"Column {name!r} holds dates; the model saw seconds since {instant}.")
    notes += [f"{text}; they were read as that value." for text in problem.source.info.absent.values()]
    return tuple(notes)
