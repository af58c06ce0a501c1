"""Build a result from the last state of a fit: estimates, covariance, statistics, history, provenance."""

from __future__ import annotations

import dataclasses
import datetime
import functools
import importlib.metadata
import itertools
import logging
import platform
import time
from collections.abc import Mapping, Sequence
from typing import Any

import dask
import distributed
import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pandas as pd
import zarr
from scipy.optimize import OptimizeWarning

from dask_nlsq._errors import warn
from dask_nlsq._fit.checks.identifiability import identifiable_factor
from dask_nlsq._fit.group_scores import group_scores, meat, small_sample_factor, with_groups
from dask_nlsq._fit.problem import Problem
from dask_nlsq._fit.profile import Profiler
from dask_nlsq._kernel import SLABS, Reduction, device
from dask_nlsq._model import Objective, Parameters, side_of_bounds
from dask_nlsq._plan import Measured, Plan
from dask_nlsq._result import FitResult, columns_of
from dask_nlsq._solver import Factor, Point, State, Status, TrustRegion, final, inference
from dask_nlsq._system import peak_memory, source_commit
from dask_nlsq._typing import Matrix, Vector

log = logging.getLogger("dask_nlsq")


def build(
    problem: Problem,
    solver: TrustRegion,
    state: State,
    seconds: list[float],
    total: float,
    notes: tuple[str, ...],
    starts: pd.DataFrame | None = None,
) -> FitResult:
    point, status = state.at, state.ending
    parameters = problem.parameters
    theta, cost = final(state, parameters.lower, parameters.upper)
    side = parameters.side(theta)
    free = side == 0
    statistics = _statistics(
        solver,
        point.reduction,
        theta,
        cost,
        int(free.sum()),
        counts=problem.objective.counts,
        errors_in_x=bool(problem.objective.errors),
        several=problem.objective.responses is not None,
    )
    if problem.objective.correlation is not None:
        statistics = statistics.without_spread()
    notes += _scaled(statistics, solver)
    factor = identifiable_factor(problem, solver, state)
    if not problem.clustered:
        pcov = _covariance(point, factor, statistics, free, solver.absolute_sigma)
    else:
        begun = time.perf_counter()
        scores = group_scores(problem, point.theta)
        total += time.perf_counter() - begun
        statistics, few = with_groups(statistics, len(scores.keys), int(free.sum()))
        notes += few
        pcov = inference.covariance(factor, small_sample_factor(statistics), free, meat(scores, solver.prior))
    notes += reservations(parameters.free, side, inference.entangled(factor, theta, pcov, free))
    notes += differences_taken(parameters.free, point.reduction)
    # At a bound the gradient need not vanish at a minimum.
    gradient = np.where(free, point.factor.gradient, 0.0)
    theta, pcov, active = expand(parameters, problem.objective, theta, pcov, side)
    warn_of_open_ends(parameters.names, pcov)
    if status is Status.MAX_NFEV:
        log.warning("the fit stopped after %d sweeps without converging", state.nsweeps)
    peak = peak_memory()
    return FitResult(
        names=parameters.names,
        popt=theta,
        pcov=pcov,
        cost=cost,
        optimality=float(np.abs(gradient).max()),
        statistics=statistics,
        n_dropped=point.reduction.dropped,
        condition_number=factor.condition,
        active_mask=active,
        status=status,
        sweeps=history_columns(state, parameters.free, seconds),
        provenance=_provenance(problem, state, sum(seconds), total, peak),
        notes=notes,
        plan=_measured(problem, state, seconds, total, peak),
        starts=starts,
        absolute_sigma=solver.absolute_sigma,
        **_living(problem, solver, state, statistics),
    )


def build_combined(
    names: tuple[str, ...],
    solver: TrustRegion,
    state: State,
    reduction: Reduction,
    seconds: list[float],
    total: float,
    notes: tuple[str, ...],
    provenance: Mapping[str, Any],
    n_eliminated: int = 0,
    counts: bool = False,
    errors_in_x: bool = False,
    several: bool = False,
) -> FitResult:
    """Return the result of several data sets, or of many series, that one solver has fitted together.

    Parameters
    ----------
    names : tuple of str
        Of the free parameters, which are all.
    reduction : Reduction
        Of the accepted point, with all rows that count.
    n_eliminated : int
        Parameters besides, that each series has eliminated.
    counts : bool
        Whether the cost is half the deviance of counts.
    errors_in_x : bool
        Whether some of the residuals are orthogonal distances.
    several : bool
        Whether a model returns several responses.
    """
    theta, cost = final(state, solver.lower, solver.upper)
    side = side_of_bounds(theta, solver.lower, solver.upper)
    free, factor = side == 0, state.at.factor
    p = n_eliminated + int(free.sum())
    statistics = _statistics(solver, reduction, theta, cost, p, counts=counts, errors_in_x=errors_in_x, several=several)
    notes += _scaled(statistics, solver)
    pcov = inference.covariance(factor, statistics.residual_variance(solver.absolute_sigma), free)
    if not state.ending.success:
        some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        warn(f"The fit of {some} has not converged: {state.ending.sentence}")
    warn_of_open_ends(names, pcov)
    return FitResult(
        names=names,
        popt=theta,
        pcov=pcov,
        cost=cost,
        optimality=float(np.abs(np.where(free, factor.gradient, 0.0)).max()),
        statistics=statistics,
        n_dropped=reduction.dropped,
        condition_number=factor.condition,
        active_mask=side,
        status=state.ending,
        sweeps=history_columns(state, names, seconds),
        provenance={
            **provenance,
            "seconds": sum(seconds),
            "total_seconds": total,
            "rows_per_second": state.nsweeps * reduction.rows / max(sum(seconds), 1e-9),
            "peak_memory": peak_memory(),
        },
        notes=(*reservations(names, side, inference.entangled(factor, theta, pcov, free)), *notes),
        absolute_sigma=solver.absolute_sigma,
        factor=factor,
    )


def about_data(problem: Problem) -> tuple[str, ...]:
    """Say what is worth knowing of how the columns were read."""
    info = problem.source.info
    seen = {name: at for name, at in info.origins.items() if name in problem.columns.numbers.names}
    notes = [f"Column {name!r} holds dates; the model saw seconds since {at}." for name, at in seen.items()]
    notes += [f"{text[0].upper()}{text[1:]}." for text in info.absent.values()]
    if (responses := problem.objective.responses) is not None:
        notes.append(f"Each row of the data counts {len(responses)} times, for {' and '.join(responses.names)}.")
    return (*notes, *info.notes)


def reservations(names: Sequence[str], side: npt.NDArray[np.int64], vague: npt.NDArray[np.bool_]) -> tuple[str, ...]:
    """Say which free parameters ended at a bound, and which the data hardly determine, with what may help."""
    notes: tuple[str, ...] = ()
    if side.any():
        at_bounds = ", ".join(itertools.compress(names, side))
        notes += (f"{at_bounds} ended at a bound and was held there; it has no standard error.",)
    if vague.any():
        notes += (
            f"Hardly determined by these data: {', '.join(itertools.compress(names, vague))}. Within three standard "
            "errors of zero, with errors over 10,000 times what they would be were the other parameters known. Where x "
            "is far from zero, count it from its middle; or hold a parameter, or take a model with fewer. Where the "
            "model is not linear, another start may lead elsewhere.",
        )
    return notes


def differences_taken(names: Sequence[str], reduction: Reduction, part: str = "partition") -> tuple[str, ...]:
    """Say for which free parameters, and where, derivatives are differences; partitions may be called otherwise."""
    if reduction.differences is None:
        return ()
    alike: dict[tuple[int, int, int], list[str]] = {}
    for name, (count, partition, row, _) in zip(names, reduction.differences.tolist(), strict=True):
        if count:
            alike.setdefault((count, partition, row), []).append(repr(name))
    return tuple(
        f"The derivative with respect to {' and '.join(some)} is not finite in {count:,} row{'s' * (count > 1)} (the "
        f"first: row {row} of {part} {partition}), although the model is; it was taken by a difference there."
        for (count, partition, row), some in alike.items()
    )


def _statistics(
    solver: TrustRegion,
    reduction: Reduction,
    theta: Vector,
    cost: float,
    p: int,
    *,
    counts: bool,
    errors_in_x: bool,
    several: bool,
) -> inference.Statistics:
    """Return the statistics of a fit of p free parameters; `several` responses have no one mean for R²."""
    believed = 0.0 if solver.prior is None else solver.prior.chisqr(theta)
    if counts:
        beliefs = 0 if solver.prior is None else int(np.count_nonzero(solver.prior.weight))
        return inference.count_statistics(reduction, cost, p, believed, beliefs)
    statistics = inference.statistics(reduction, cost, p, solver.absolute_sigma, believed)
    if errors_in_x:
        return statistics.without_spread()
    return dataclasses.replace(statistics, rsquared=float("nan")) if several else statistics


def _scaled(statistics: inference.Statistics, solver: TrustRegion) -> tuple[str, ...]:
    """Return a note where the standard errors of counts are scaled."""
    if statistics.pearson_chisqr is None or solver.absolute_sigma:
        return ()
    return (f"Standard errors are scaled by the dispersion of the counts, {statistics.dispersion:.4g}.",)


class UndeterminedWarning(OptimizeWarning):
    """The data do not determine some parameters."""


def warn_of_open_ends(names: Sequence[str], pcov: Matrix) -> None:
    """Warn of parameters that the data do not determine."""
    if open_ends := ", ".join(itertools.compress(names, np.isinf(np.diag(pcov)))):
        warn(f"The data do not determine {open_ends}; their variance is infinite.", UndeterminedWarning)


def revive(problem: Problem, solver: TrustRegion, state: State, result: FitResult) -> FitResult:
    """Return a result that was read from a checkpoint with what it needs to predict and to profile."""
    return dataclasses.replace(result, **_living(problem, solver, state, result.statistics))


def _living(problem: Problem, solver: TrustRegion, state: State, statistics: inference.Statistics) -> dict[str, Any]:
    """Return what of a result lives in the process of the fit."""
    return {
        "payload": problem.uncorrelated().payload,
        "columns": dataclasses.replace(problem.columns, origins=problem.source.info.origins),
        "factor": state.at.factor,
        "profiler": Profiler.of(problem, solver, state, statistics),
    }


def _measured(problem: Problem, state: State, seconds: list[float], total: float, peak: int) -> Plan:
    """Return the plan with what the fit came to."""
    plan, executor = problem.plan, problem.executor
    inputs = dataclasses.replace(
        plan.inputs, rows=float(state.at.reduction.rows + state.at.reduction.dropped), estimated=False
    )
    stored = inputs.encoded if inputs.encoded is not None else inputs.nbytes
    passes = 1.0 if plan.cache == "persist" else state.nsweeps + plan.reads - plan.sweeps
    passes += problem.clustered and plan.cache != "persist"  # for the scores of the groups
    early = state.status is Status.PRECISION  # of all rows no more is known than of those that were read
    measured = Measured(
        sweeps=state.nsweeps,
        sweep_seconds=sum(seconds) / max(len(seconds), 1),
        seconds=total,
        read_bytes=None if plan.read_bytes is None or stored is None or early else passes * stored,
        peak=executor.peak() if executor.remote else peak,
    )
    return dataclasses.replace(plan, measured=measured)


def _covariance(
    point: Point, factor: Factor, statistics: inference.Statistics, free: npt.NDArray[np.bool_], absolute_sigma: bool
) -> Matrix:
    """Return the covariance of the free parameters, (p, p)."""
    dof = statistics.dof
    if point.reduction.meat is None:
        return inference.covariance(factor, statistics.residual_variance(absolute_sigma), free)
    inverse = np.eye(len(free)) if point.whitening is None else point.whitening.inverse
    # The sums are in the coordinates of the S of their sweep.
    meat = inverse.T @ point.reduction.meat @ inverse
    return inference.covariance(factor, statistics.n_obs / dof if dof > 0 else np.inf, free, meat)


def expand(
    parameters: Parameters, objective: Objective, theta: Vector, pcov: Matrix, side: npt.NDArray[np.int64]
) -> tuple[Vector, Matrix, npt.NDArray[np.int64]]:
    """Return all parameters, their covariance by the delta method, and which are at a bound."""
    if parameters.expansion is None:
        return theta, pcov, side
    everything, jacobian = all_parameters(parameters, objective, theta)
    active = np.zeros(len(parameters.names), int)
    active[[parameters.names.index(name) for name in parameters.free]] = side
    return everything, inference.propagate(pcov, jacobian), active


def all_parameters(parameters: Parameters, objective: Objective, theta: Vector) -> tuple[Vector, Matrix]:
    """Return all parameters, and their derivatives with respect to the free ones."""
    if parameters.expansion is None:
        return theta, np.eye(len(theta))
    every = objective.expand
    with jax.enable_x64(True):
        everything = np.array([float(v) for v in every([float(t) for t in theta])])
        jacobian = np.asarray(jax.jacfwd(lambda t: jnp.stack([jnp.asarray(v, float) for v in every(list(t))]))(theta))
    return everything, jacobian


def history_columns(state: State, names: Sequence[str], seconds: list[float]) -> dict[str, list[Any]]:
    """Return the columns of the history."""
    recorded = {name: [getattr(record, name) for record in state.history] for name in _TOLD}
    labels = columns_of(names, ("sweep", *_TOLD, "seconds"))
    thetas = {label: [float(record.theta[i]) for record in state.history] for i, label in enumerate(labels)}
    return recorded | thetas | {"seconds": seconds}


_TOLD = ("cost", "step", "damping", "radius", "accepted")
"""What the history has of each sweep, beside the parameters and the seconds."""


def _provenance(problem: Problem, state: State, seconds: float, total: float, peak: int) -> dict[str, Any]:
    executor = problem.executor
    return {
        "model": problem.objective.model.name,
        "loss": problem.objective.loss_name,
        "data": problem.source.info.kind,
        "token": problem.source.token,
        "columns": list(problem.columns.names),
        **({} if problem.columns.groups is None else {"groups": problem.columns.groups}),
        **({} if problem.objective.correlation is None else {"correlation": problem.objective.correlation}),
        "partitions": len(problem.source.partitions),
        "executor": executor.name,
        "workers": executor.workers,
        "seconds": seconds,
        "total_seconds": total,
        "rows_per_second": state.nsweeps * state.at.reduction.rows / max(seconds, 1e-9),
        "peak_memory": peak,
        "device": jax.default_backend(),
        "kernel": {
            "jacobian": problem.objective.jacobian,
            "tile": problem.objective.tile or device.tile(device.own(), SLABS[1]),
            "autotuned": problem.objective.tile is not None,
        },
        "platform": _platform(),
        "source": source_commit(problem.objective.model.func),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(),
        "versions": dict(_versions()),
    }


@functools.cache
def _platform() -> str:
    """Return the system and the processor, in words."""
    return platform.platform()


@functools.cache
def _versions() -> dict[str, str]:
    """Return the versions of what the answer may depend on, which do not change in a process."""
    packages = {m.__name__: m.__version__ for m in (dask, distributed, jax, np, zarr)}
    return {"python": platform.python_version(), "dask_nlsq": importlib.metadata.version("dask-nlsq"), **packages}
