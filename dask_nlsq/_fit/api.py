"""fit and plan: from arguments to a result, in the order in which it happens.

Arguments are resolved, the data opened, a plan decided; a sample says where to begin; the loop runs; the last state
becomes a result. The one module that knows both the numerics and the world.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from scipy.optimize import OptimizeResult

from dask_nlsq._errors import ModelError, NlsqError, check_keywords, warn
from dask_nlsq._fit.checks.identifiability import lost_sensitivity
from dask_nlsq._fit.checks.perturbed_restarts import refit_perturbed
from dask_nlsq._fit.checks.restarts import find_finite_starts, past_deadline, restart
from dask_nlsq._fit.correlation import fit_correlated
from dask_nlsq._fit.estimated_covariance import fit_estimating_covariance
from dask_nlsq._fit.joint import fit_joint, parts
from dask_nlsq._fit.loop import lowest, run_shared, stopped, verify
from dask_nlsq._fit.observer import Observer, Observers, SweepBegin
from dask_nlsq._fit.options import FitOptions
from dask_nlsq._fit.outcome import about_data, build, revive
from dask_nlsq._fit.plan_inputs import dry_run, gather_plan_inputs, speed
from dask_nlsq._fit.problem import Problem, Resolved, arrange, executor_of, resolve
from dask_nlsq._fit.progress import Progress
from dask_nlsq._fit.result_cache import cached
from dask_nlsq._fit.sample import Sample, draw_sample
from dask_nlsq._fit.session import EndedRun, Session, open_session
from dask_nlsq._fit.start.multistart import summarize_search
from dask_nlsq._fit.start.select import find_route, find_start
from dask_nlsq._fit.start.stream_pass import target
from dask_nlsq._fit.start.warm_start import optimizer_of
from dask_nlsq._kernel import MANY_ROWS, kernel, linearity
from dask_nlsq._model import Loss, Objective, Parameters
from dask_nlsq._plan import OptimizationGoal, Plan, WorkflowTier, make_plan, with_speeds
from dask_nlsq._result import FitResult, rebuild
from dask_nlsq._solver import Status, TrustRegion, check_bounds
from dask_nlsq._sources import Correlation
from dask_nlsq._sweep import Executor, group, outside_pool, serialize
from dask_nlsq._typing import Vector


@check_keywords
def fit(
    model: Any,
    x: Any = None,
    y: Any = None,
    *,
    data: Any = None,
    sigma: Any = None,
    sigma_x: Any = None,
    estimate_sigma: bool = False,
    filters: Any = None,
    storage_options: dict[str, Any] | None = None,
    version: Any = None,
    p0: Any = None,
    bounds: Any = None,
    fixed: Any = None,
    tied: Mapping[str, Any] | None = None,
    shared: str | Sequence[str] | None = None,
    prior: Mapping[str, tuple[float, float]] | None = None,
    loss: Loss = "linear",
    f_scale: float = 1.0,
    trials: Any = None,
    scale: str | None = None,
    jac: Any = None,
    absolute_sigma: bool = False,
    cov_type: str = "standard",
    groups: Any = None,
    correlation: str | Mapping[str, float] | None = None,
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
    n_starts: int | None = None,
    sampler: str | None = None,
    method: Any = None,
    ordered: bool = True,
    seed: int = 0,
    checkpoint: Any = None,
    checkpoint_interval: float | None = None,
    checkpoint_every: int | None = None,
    resume: bool | str = "auto",
    compression: str | None = None,
    keep: int | None = None,
    strict: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    autotune: bool = False,
    client: Any = None,
    progress: bool | None = None,
) -> FitResult:
    r"""Fit a nonlinear model to more rows than fit in memory, exactly.

    Minimises :math:`\tfrac12 \sum_i \left(\frac{f(x_i; \theta) - y_i}{\sigma_i}\right)^2` over all rows. The answer is
    that of a fit in memory, however the rows are cut into partitions and whoever reduces them.

    Parameters
    ----------
    model : callable, Model, str, or several data sets
        A formula such as ``"a*exp(-b*t) + c"``, the name of one of `dask_nlsq.models`, a Model, or a function
        ``f(column, *parameters)`` in ``jax.numpy``,
        acting on each row by itself. The first argument is a column
        (or several, as an array of shape (k, rows), when `x` names several); a later argument is a column only
        when `x` names it. The other arguments are the parameters; their defaults are starting values. Several data sets
        are fitted together by a list of mappings, or a mapping of them, each with its ``model`` and arguments such as
        ``x``, ``y``, ``data`` and ``sigma``; see `shared`.
    x, y : str, sequence of str, or array
        Several y, by a sequence or mapping of arrays or the names of columns, are the responses of a model that returns
        as many (an array (k, rows), or a sequence); a complex y, or ``["real", "imaginary"]``, is that of a model that
        returns complex numbers.
        With `data`: names of columns; by default the model's first argument and ``"y"``. Without: Dask,
        Zarr or NumPy arrays, `x` of shape (n,) or (k, n), or a tuple of columns. Where `y` has several dimensions, as
        an image has, each `x` has its shape or one that is broadcast to it, and every element is a row.
    data : table, mapping of arrays, Zarr group, xarray Dataset, str, path or list of paths
        The rows, in whatever holds them; a path or URL is read as Parquet, Zarr, Delta, Iceberg, Icechunk or CSV, by
        what lies there.
    sigma : str, array or float, optional
        Standard deviation of y: with `data` the name of a column, without an array; or one number for all rows.
        ``inf`` gives a row no weight. Of several responses: one of these for all, or for each in a sequence; or an
        array (k, k), the covariance of the responses of a row, or a frame of it such as ``result.response_cov``.
    sigma_x : number, str, array, sequence or mapping, optional
        Standard deviation of x, as `sigma`: of all columns, of each in a sequence, or ``{name: …}``, where None or
        what is left out is exact. Then what is minimised is the orthogonal distance: each row is moved along x, in
        units of its standard deviation, to where it fits best. `sigma` is needed too.
    estimate_sigma : bool
        Estimate the covariance of several responses from their residuals, and weight them by it, until both agree
        (iterated generalised least squares); ``result.response_cov`` has it.
    filters : list, optional
        Filters of `pyarrow.parquet`, for Parquet paths.
    storage_options : dict, optional
        Passed to fsspec, for URLs.
    version : int, str or datetime, optional
        Of a Delta table the version or its time; of an Iceberg table the snapshot, branch or tag; of an Icechunk
        repository the branch, tag or snapshot. The last by default.
    p0 : mapping, sequence or FitResult, optional
        Starting values; else the defaults in the signature; else the model's guess from a sample of the rows; else
        1. The result says which were not given.
    bounds : tuple or mapping, optional
        ``(lower, upper)`` or ``{name: (lower, upper)}``; equal bounds hold a parameter.
    fixed : mapping or sequence of str, optional
        ``{name: value}``, or names to be held at their start.
    tied : mapping, optional
        ``{name: "expression of other parameters"}``; it is substituted before differentiation.
    shared : str or sequence of str, optional
        With several data sets, parameters that are common to those whose model has them. The others belong to each, and
        are called ``NAME_KEY`` in the result, by the key of the data set or its number; ``result.parts`` has the names
        of each model.
    prior : mapping, optional
        ``{name: (mean, standard deviation)}``; each counts as one more row.
    loss : {"linear", "soft_l1", "huber", "cauchy", "arctan", "tukey", "poisson", "binomial", …} or callable
        How a large residual counts, as in `scipy.optimize.least_squares`; a callable takes z = (r / f_scale)² and
        returns ρ, or (ρ, ρ', ρ''). Where y counts events, "poisson", whose mean the model is, and "binomial", whose
        probability it is, maximise the likelihood: what is summed is half the deviance, and the covariance is the
        inverse of the Fisher information. "neyman" and "pearson" are the chi-squares of counts with the variance
        max(y, 1) and that of the model; both are biased where counts are few.
    f_scale : float
        The size of a residual, in units of sigma (of y without sigma), from which it is large.
    trials : str, array or float, optional
        With ``loss="binomial"``, of how many trials y counts the successes: as `sigma`, the name of a column, an array
        or a number.
    scale : {"pearson"}, optional
        Multiply the covariance of counts by Pearson's chi-square over the degrees of freedom, where they scatter more
        than their distribution does.
    jac : {"jax", "2-point", "3-point"} or callable, optional
        How the Jacobian is formed. By default JAX differentiates the model, and a model that JAX cannot trace is
        differentiated by central differences, with a warning; "jax" makes that an error, "3-point" (and "2-point",
        which is no cheaper here) asks for differences. A callable takes the model's arguments and returns the
        derivatives with respect to all parameters, of shape (rows, parameters).
    absolute_sigma : bool
        Whether `sigma` is in units of y; else only its ratios matter and the covariance is scaled by
        the reduced chi-square.
    cov_type : {"standard", "sandwich", "cluster"}
        The sandwich (Huber-White, HC1) holds where the spread of the residuals differs from row to row. "cluster" holds
        where the residuals of a group of rows depend on one another (`Liang & Zeger 1986
        <https://doi.org/10.1093/biomet/73.1.13>`_): it takes one more pass over the rows, and intervals have the groups
        less one as degrees of freedom.
    groups : str or array, optional
        With ``cov_type="cluster"`` or `correlation`, the group of each row: as `sigma`, the name of a column or an
        array, of integers, texts, categories, dates or booleans. More than some twenty groups are needed for clusters
        (`Cameron & Miller 2015 <https://doi.org/10.3368/jhr.50.2.317>`_).
    correlation : {"ar1", "exchangeable"} or mapping, optional
        Of the residuals of a group of rows: "ar1" is :math:`\rho^k` of two that are k rows apart, in the order of the
        rows of the group, and "exchangeable" :math:`\rho` of any two. :math:`\rho` is estimated with the parameters by
        maximum likelihood, or given, as ``{"ar1": 0.6}``; ``result.row_correlation`` has it. Without `groups` all rows
        are one series.
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
    tier : {"auto", "standard", "chunked", "streaming", "streaming_checkpoint"} or WorkflowTier
        How to go about the data: gather all rows in this process, leave them in partitions, or take them in
        mini-batches first. The answer is the same; "auto" decides from rows, memory and goal.
    goal : {"robust", "fast", "quality", "global", "memory_efficient"} or OptimizationGoal
        What matters most: "fast" stops a tenth of a standard error from the minimum; "quality" goes on to the rounding
        level and fits again from perturbed starts; "global" begins from 64 starts; "memory_efficient" keeps nothing
        between sweeps.
    workflow : str, optional
        The name of a preset of `WorkflowConfig`; "auto_global" is ``goal="global"``, and "hpc" the same with a
        checkpoint, in ``nlsq-checkpoint`` where no other is given.
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
    n_starts : int, optional
        Look for the lowest minimum from so many starts, `p0` and others spread over the bounds, which must be finite.
        All are tried on some of the rows; what these cannot decide is decided by all rows, in the same sweeps.
        ``result.starts`` says where each has led.
    sampler : {"sobol", "halton", "lhs"}
        How starts are spread, as in `scipy.stats.qmc`.
    method : {"lm", "trf", "dogbox", "adam"} or optax.GradientTransformation, optional
        SciPy's names all stand for the one solver here. An optimizer of `optax` first goes down from `p0` in
        mini-batches of a sample, for starts that are too far for Gauss-Newton, and the solver goes on from there.
    ordered : bool
        Whether a streaming fit folds batches in their order, which makes its bits those of any executor, or as they
        come, which waits for no slow worker.
    seed : int
        Of the order in which batches are drawn, and of starts.
    checkpoint : str, path or zarr.abc.store.Store, optional
        Where the fit leaves its state on the way, also inside a sweep, and goes on from there after whatever stopped
        it, with the bits of a run that nothing stopped. See `Checkpoints`.
    checkpoint_interval : float
        Seconds between two commits; 60 by default.
    checkpoint_every : int, optional
        Sweeps between two commits, besides.
    resume : {"auto", "force"} or bool
        "auto" goes on where there is something to go on from, and returns the result of a run that has ended; True asks
        that there is; False starts anew, and what is there goes as newer generations come (`keep`); "force" goes on
        although model, data or options differ.
    compression : {"gzip"}, optional
        Of the arrays in the checkpoint.
    keep : int
        Generations that are kept; 5 by default, and never fewer than 2.
    strict : bool
        Whether a checkpoint that cannot be written ends the fit; by default a warning says so, and
        ``result.checkpoint_errors``.
    cache_dir : str or path, optional
        A folder or URL in which results are kept. The same fit of the same data returns the stored result: model,
        options that decide about the answer, data and the versions of packages are compared. Data at a path are known
        by their files and not read; other data are read once. A callback is not called then.
        ``provenance["cache"]`` says whether the result was there, or in what the most similar one differs. By default
        ``nlsq.cache-dir`` of Dask's configuration.
    autotune : bool
        Time the formulations of the kernel on some rows and take the fastest, said in ``provenance["kernel"]``. The
        bits of the answer then depend on a clock; by default a rule decides.
    client : distributed.Client, optional
        By default the open client if there is one, else threads of this process.
    progress : bool, optional
        Show a progress bar; by default on a terminal and in a notebook, for fits longer than a second.

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
    CheckpointError
        A checkpoint is in use, of another fit (`CheckpointMismatch`), or damaged (`CheckpointCorrupt`).

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
    arguments = {
        "x": x,
        "y": y,
        "data": data,
        "sigma": sigma,
        "sigma_x": sigma_x,
        "estimate_sigma": estimate_sigma,
        "filters": filters,
        "storage_options": storage_options,
        "version": version,
        "p0": p0,
        "bounds": bounds,
        "fixed": fixed,
        "tied": tied,
        "shared": shared,
        "prior": prior,
        "loss": loss,
        "f_scale": f_scale,
        "trials": trials,
        "scale": scale,
        "jac": jac,
        "absolute_sigma": absolute_sigma,
        "cov_type": cov_type,
        "groups": groups,
        "correlation": correlation,
        "nan_policy": nan_policy,
        "missing_chunks": missing_chunks,
        "ftol": ftol,
        "xtol": xtol,
        "gtol": gtol,
        "max_nfev": max_nfev,
        "time_limit": time_limit,
        "callback": callback,
        "tier": tier,
        "goal": goal,
        "workflow": workflow,
        "config": config,
        "memory_limit": memory_limit,
        "cache": cache,
        "precision": precision,
        "n_starts": n_starts,
        "sampler": sampler,
        "method": method,
        "ordered": ordered,
        "seed": seed,
        "checkpoint": checkpoint,
        "checkpoint_interval": checkpoint_interval,
        "checkpoint_every": checkpoint_every,
        "resume": resume,
        "compression": compression,
        "keep": keep,
        "strict": strict,
        "cache_dir": cache_dir,
        "autotune": autotune,
        "client": client,
        "progress": progress,
    }
    if isinstance(model, (list, tuple, Mapping)):
        if estimate_sigma:
            raise NlsqError("estimate_sigma= is for one data set; fit each of several by itself to estimate its sigma.")
        common = () if shared is None else (shared,) if isinstance(shared, str) else tuple(shared)
        data_sets = parts(model, arguments)
        return fit_joint(data_sets, common, _fit_alone, functools.partial(_lay_out, sharing=len(data_sets)))
    options = FitOptions(model, **arguments)
    if correlation is not None:
        return fit_correlated(options, _fit_alone)
    return fit_estimating_covariance(options, _fit_alone) if estimate_sigma else _fit_alone(options)


def _fit_alone(options: FitOptions) -> FitResult:
    """Fit one data set."""
    started = time.perf_counter()
    return fit_resolved(resolve_fit(options), options, started)


def fit_resolved(
    resolved: Resolved, options: FitOptions, started: float, observer: Observer | None = None
) -> FitResult:
    """Fit one data set, or return its stored result; an observer is told of every task and sweep."""
    run = functools.partial(_fit, resolved, options, started=started, observer=observer or Observer())
    with outside_pool(resolved.executor):
        if options.cache_dir is not None:
            return cached(resolved, options, run)
        with open_session(resolved, options) as session:
            return run(session)


def _lay_out(options: FitOptions, sharing: int) -> Problem:
    """Return a data set as it lies for sweeps, beside others: so many share the memory."""
    resolved = resolve_fit(options)
    with outside_pool(resolved.executor):
        decided, executor, groups, _ = _gather(resolved, options, sharing=sharing)
    return _problem(
        dataclasses.replace(resolved, executor=executor), options, groups, decided, Session(), resolved.executor
    )


def _fit(resolved: Resolved, options: FitOptions, session: Session, started: float, observer: Observer) -> FitResult:
    """Fit what has been resolved, from the beginning or from where a run goes on."""
    saved, ended = session.saved, session.ended(options.max_nfev)
    if session.earlier_estimate is not None:
        resolved = dataclasses.replace(resolved, parameters=resolved.parameters.from_here(session.earlier_estimate))
    if ended is not None and session.same_files:
        problem = _problem(resolved, options, (), Plan.from_dict(ended.result["plan"]), session)
        return _again(problem, _solver(resolved.objective, resolved.parameters, options), ended)
    source, objective = resolved.source, resolved.objective
    # The kernel that is compiled ahead takes columns of float64; float32 columns have another. Compiling goes on while
    # a sample is read, for XLA does not hold Python's lock.
    a_row = 8 * (len(objective.columns) + objective.weighted)
    wide = source.info.row_bytes == a_row * resolved.columns.n_responses
    if wide and not resolved.executor.remote:
        kernel.prepare(objective)
    saved_pass = saved is not None and saved.passing is not None
    searches = options.searches and (saved is None or saved.state is None)
    with Progress(len(source.partitions), options.progress, source.info.rows) as bar:
        decided, executor, groups, sample = _gather(resolved, options, saved_pass or searches, observer=bar)
        resolved, others, notes = find_start(resolved, options, executor, groups, sample, saved)
        problem = _problem(
            dataclasses.replace(resolved, executor=executor), options, groups, decided, session, resolved.executor
        )
        solver = _solver(resolved.objective, resolved.parameters, options, decided)
        if ended is not None:
            verify(problem, ended)
            return _again(problem, solver, ended)
        # A run that goes on keeps the notes of its beginning.
        notes = _notes(problem) + notes if saved is None else saved.notes
        session.remember(problem, notes, search=None if saved is None else saved.search)
        deadline = None if options.time_limit is None else time.monotonic() + options.time_limit
        observer = Observers(bar, session, observer)
        route = find_route(problem, solver, [resolved.parameters.start, *others], sample, options, session, observer)
        notes += route.notes
        session.remember(problem, notes, search=route.search)
        begun, callback = route.begun, options.callback
        if begun is not None and saved is None and begun[0].point is not None and begun[0].status is None:
            begun = (stopped(problem, begun[0], deadline, callback), begun[1])
        first, before = begun or (solver.init(route.starts[0]), [])
        cut_short = False  # the search for starts where the model is finite

        def elsewhere(theta: Vector) -> Sequence[Vector]:
            nonlocal notes, cut_short
            finite, note = find_finite_starts(problem, solver, theta, sample, bar, deadline)
            cut_short = past_deadline(deadline)
            if note:
                warn(note)
                notes += (note,)
            if not cut_short:
                session.remember(problem, notes, search=route.search)
            return finite

        states, seconds = run_shared(
            problem,
            solver,
            [first, *route.candidates],
            route.starts[1:],
            observer,
            deadline,
            callback,
            before,
            partial=route.partial,
            elsewhere=None if options.searches or callable(problem.objective.loss) else elsewhere,
        )
        winner, starts = lowest(states), None
        state = states[winner]
        if route.search is not None:
            starts, note = summarize_search(resolved.parameters.free, route.search, states, solver, state.at.reduction)
            notes += (note,)
            if further := len(seconds) - state.nsweeps:
                notes += (f"Sweeps over all rows that only other minima needed: {further}.",)
                # The history of the result is that of the winner, and has a line for each of its sweeps.
                seconds = seconds[: state.nsweeps]
        elif not options.searches and objective.correlation is None:  # else it was looked for before
            state, more, more_notes = restart(problem, solver, state, sample, bar, deadline, callback)
            seconds += more
            notes += more_notes
        # With `precision=` the estimate rests on part of the rows, and is not certified by fits of all of them.
        whole = state.status is not None and state.status.success and state.status is not Status.PRECISION
        if decided.goal is OptimizationGoal.QUALITY and whole:
            state, more, note = refit_perturbed(problem, solver, state, sample, bar, deadline, callback)
            seconds += more
            notes += (note,)
    # Where parameters have lost their effect on the way, the gradient is zero without a minimum.
    if state.status is not None and state.status.success and lost_sensitivity(problem, state):
        state = dataclasses.replace(state, status=Status.UNIDENTIFIABLE)
    result = build(problem, solver, state, seconds, time.perf_counter() - started, notes, starts)
    if cut_short:  # with more time the fit begins anew, from the best of all starts
        state, seconds = dataclasses.replace(state, beyond=solver.init(resolved.parameters.start)), []
    states[winner] = state
    return session.finish(states, seconds, result)


def _problem(
    resolved: Resolved,
    options: FitOptions,
    groups: Sequence[Any],
    plan: Plan,
    session: Session,
    reader: Executor | None = None,
) -> Problem:
    objective = resolved.objective
    return Problem(
        resolved.source,
        resolved.columns,
        objective,
        serialize(objective),
        resolved.parameters,
        resolved.executor,
        groups,
        plan,
        reader or resolved.executor,
        session.digests(),
        options.progress,
        options.cov_type == "cluster",
        resolved.as_read,
    )


def _solver(
    objective: Objective,
    parameters: Parameters,
    options: FitOptions,
    decided: Plan | None = None,
) -> TrustRegion:
    return TrustRegion(
        parameters.lower,
        parameters.upper,
        parameters.prior,
        tolerance=None if decided is None else _TOLERANCE.get(decided.goal),
        absolute_sigma=not options.residual_variance,
        ftol=options.ftol,
        xtol=options.xtol,
        gtol=options.gtol,
        max_nfev=options.max_nfev or sys.maxsize,
        linearity=linearity(objective),
        second_order=not (objective.robust or objective.errors),
    )


def _again(problem: Problem, solver: TrustRegion, ended: EndedRun) -> FitResult:
    """Return the result of a run that has ended, with what it can do in this process."""
    return revive(problem, solver, ended.states[lowest(ended.states)], rebuild(FitResult, ended.result))


_TOLERANCE = {OptimizationGoal.FAST: 0.1, OptimizationGoal.QUALITY: 1e-8}
"""Largest step that may remain, in standard errors, where the goal says so."""


@check_keywords
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
    # Bound to the signature of `fit`, so that a name or place that it does not have is refused alike.
    asked = FitOptions(**inspect.signature(fit).bind(model, x, y, **options).arguments)
    resolved = resolve_fit(asked)
    inputs = gather_plan_inputs(resolved, asked.memory_limit)
    make_plan(inputs, asked.settings)  # refuses, before anything is read
    return make_plan(dry_run(resolved, inputs), asked.settings)


plan.__signature__ = inspect.signature(fit).replace(return_annotation=Plan)  # type: ignore[attr-defined]


def resolve_fit(options: FitOptions) -> Resolved:
    """Resolve the arguments, and refuse to stream what does not add up."""
    if options.shared is not None:
        raise NlsqError("shared= is for several data sets; fit_groups and fit_many share parameters between series.")
    if options.correlation is not None and not isinstance(options.correlation, Correlation):
        raise NlsqError("correlation= fits several times: it is an option of fit alone.")
    resolved = resolve(options)
    if options.estimate_sigma:
        raise NlsqError("estimate_sigma= fits several times: it is an option of fit alone.")
    # These three are called for what they refuse, before anything is read.
    target(resolved.parameters.free, options.precision)
    optimizer_of(options.method, resolved.parameters.bounded)
    if options.searches:
        check_bounds(resolved.parameters.free, resolved.parameters.lower, resolved.parameters.upper)
    errors = resolved.objective.errors
    if errors and resolved.objective.jacobian == "numeric":
        raise ModelError(
            f"The model {resolved.objective.model.name!r} is differentiated by "
            f"{'a function' if resolved.objective.jac is not None else 'differences'}; sigma_x= needs one that JAX "
            "differentiates, with respect to x too."
        )
    streams = options.precision is not None or (isinstance(options.tier, WorkflowTier) and options.tier.streams)
    if streams and (options.cov_type != "standard" or not resolved.objective.ordinary):
        raise NlsqError(
            'tier="streaming" and precision= add up squares: they need loss="linear" and cov_type="standard", and x '
            'without errors. Use tier="chunked".'
        )
    return resolved


def _gather(
    resolved: Resolved, options: FitOptions, sampled: bool = False, sharing: int = 1, observer: Observer | None = None
) -> tuple[Plan, Executor, Sequence[Any], Sample | None]:
    """Return the plan, the partitions in groups, held where it says so, and a sample where one is needed."""
    source, executor = resolved.source, resolved.executor
    observer = observer or Observer()
    executor.wait_for_workers()
    partitions, sample, read = len(source.partitions), None, 0.0
    inputs = gather_plan_inputs(resolved, options.memory_limit).shared_by(sharing)
    decided = (
        None if inputs.partition_rows is None else make_plan(inputs, options.settings)
    )  # may refuse, before anything is read
    if source.info.rows is None and not source.shared:
        observer.notify(SweepBegin("reading a sample of the rows", counted=False))
        started = time.perf_counter()
        sample = draw_sample(executor, group(source.partitions, float("inf"), executor.workers), partitions)
        read = time.perf_counter() - started
        inputs, decided = gather_plan_inputs(resolved, options.memory_limit, sample).shared_by(sharing), None
    decided = decided or make_plan(inputs, options.settings)
    observer.notify(
        SweepBegin(f"reading {decided.inputs.partitions:,} partitions of {source.info.kind}", counted=False)
    )
    groups = arrange(source, executor, decided)
    executor = executor_of(decided, executor)
    sampled = sampled or decided.tier.streams
    if sample is None and (sampled or inputs.rows is None or inputs.rows > MANY_ROWS):
        observer.notify(SweepBegin("reading a sample of the rows", counted=False))
        started = time.perf_counter()
        sample = draw_sample(executor, groups, partitions)
        read = time.perf_counter() - started
    if sample is None or (sample.estimated_rows <= MANY_ROWS and not sampled):
        return decided, executor, groups, None
    inputs = dataclasses.replace(inputs, **speed(resolved.objective, sample.block, resolved.parameters.start))
    # Rows that are kept were in memory when the sample was drawn, so that its seconds say nothing of reading.
    if decided.cache == "none" and read > 0:
        drawn = sample.estimated_rows / partitions * sample.partitions * inputs.row_bytes
        inputs = dataclasses.replace(inputs, bytes_per_second=drawn / read / executor.workers)
    return with_speeds(decided, inputs), executor, groups, sample


def _notes(problem: Problem) -> tuple[str, ...]:
    notes = []
    if problem.parameters.guessed:
        notes.append(f"p0 was not given for {', '.join(problem.parameters.guessed)}; 1 was tried.")
    if problem.parameters.sampled:
        names, rows = ", ".join(problem.parameters.sampled), problem.parameters.sample_rows
        notes.append(f"p0 was not given for {names}; it was guessed from {rows:,} rows.")
    return (*notes, *about_data(problem))
