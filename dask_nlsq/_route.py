"""Route: from where a fit begins, or goes on.

What was saved comes first; then the end of a pass in batches; then the fit of a sample; then the start that was given,
guessed, or reached by an optimizer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from dask_nlsq._autotune import autotune as tuned
from dask_nlsq._descent import descend, optimizer_of, words
from dask_nlsq._minimise import fit_sample, lowest_first
from dask_nlsq._numerics.solver.trust_region import State, TrustRegion, final
from dask_nlsq._plan import WorkflowConfig
from dask_nlsq._problem import Draft, Problem
from dask_nlsq._progress import Progress
from dask_nlsq._run import Run, Saved
from dask_nlsq._sample import GUESS_ROWS, Sample, draw_sample, guess_start
from dask_nlsq._stream import stream, target
from dask_nlsq._sweep import Executor, Partial
from dask_nlsq._typing import Vector


def find_start(
    exact: Draft,
    said: Mapping[str, Any],
    executor: Executor,
    groups: Sequence[Any],
    sample: Sample | None,
    saved: Saved | None,
) -> tuple[Draft, list[Vector], tuple[str, ...]]:
    """Return the draft with its start and its kernel settled, other starts, and how they were found."""
    parameters, objective, partitions = exact.parameters, exact.objective, len(exact.source.partitions)
    if saved is not None:
        parameters = dataclasses.replace(parameters, start=saved.start, guessed=())
        if (objective.jacobian, objective.tile) != (saved.jacobian, saved.tile):
            objective = dataclasses.replace(objective, jacobian=saved.jacobian, tile=saved.tile)
        return dataclasses.replace(exact, parameters=parameters, objective=objective), [], ()
    if parameters.guessed and exact.model.guess is not None:
        rows = sample or draw_sample(executor, groups, partitions, GUESS_ROWS)
        parameters = guess_start(exact.model, parameters, rows.block)
    if said["autotune"]:
        rows = sample or draw_sample(executor, groups, partitions)
        objective = tuned(objective, rows.block, parameters.start)
    others: list[Vector] = []
    notes: tuple[str, ...] = ()
    optimizer = optimizer_of(said["method"], parameters.bounded)
    if optimizer is not None:
        rows = sample or draw_sample(executor, groups, partitions)
        end = descend(objective, parameters, rows.block, optimizer, said["seed"])
        parameters, others = dataclasses.replace(parameters, start=end.theta), [parameters.start]
        notes = (words(said["method"], end, rows.block),)
    return dataclasses.replace(exact, parameters=parameters, objective=objective), others, notes


@dataclasses.dataclass(frozen=True)
class Route:
    """From where the loop begins, or goes on."""

    starts: list[Vector]
    begun: tuple[State, list[float]] | None = None
    partial: Partial | None = None
    notes: tuple[str, ...] = ()


def find_route(
    problem: Problem,
    solver: TrustRegion,
    starts: list[Vector],
    sample: Sample | None,
    said: Mapping[str, Any],
    config: WorkflowConfig,
    run: Run,
    bar: Progress,
) -> Route:
    """Return where the loop begins: what a run has saved, the end of a pass, the fit of a sample, the start."""
    saved, near = run.saved, None
    if saved is not None and saved.state is not None:
        state = solver.go_on(saved.state)
        partial = None if saved.sweep is None else Partial.of(saved.sweep)
        rest = [] if saved.others is None else list(saved.others)
        return Route([state.trial, *rest], (state, [] if saved.seconds is None else saved.seconds.tolist()), partial)
    passing = saved is not None and saved.passing is not None
    streams = passing or problem.plan.tier.streams
    notes: tuple[str, ...] = ()
    if sample is not None and not passing and (near := fit_sample(problem, solver, sample)) is not None:
        starts = [final(near, solver.lower, solver.upper)[0], *starts]
        notes = (f"Started from a fit of {sample.block.rows:,} rows of {sample.partitions} partitions.",)
    if not streams:
        return Route(starts, notes=notes)
    if sample is None or (near is None and not passing):
        return Route(starts, notes=("A sample of the rows could not be fitted, so that nothing was streamed.",))
    if saved is not None and saved.others is not None:
        starts = list(saved.others)
    run.know(problem, (*run.known["notes"], *notes), starts)
    aim = target(problem.parameters.free, config.precision)
    first, seconds, told = stream(
        problem, solver, near, sample, bar, seed=said["seed"], ordered=said["ordered"], target=aim, run=run
    )
    if first is None:
        return Route(lowest_first(problem, starts), notes=(*notes, *told))
    return Route(starts, (first, seconds), notes=(*notes, *told))
