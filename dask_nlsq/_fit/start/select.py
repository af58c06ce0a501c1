"""Select: from where a fit begins, or goes on.

What was saved comes first; then the end of a pass in batches; then the best of many starts, or the fit of a sample;
then the start that was given, guessed, or reached by an optimizer.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

from dask_nlsq._fit.loop import fit_sample, fit_sample_anew, lowest_first
from dask_nlsq._fit.observer import Observer
from dask_nlsq._fit.options import FitOptions
from dask_nlsq._fit.problem import Problem, Resolved
from dask_nlsq._fit.sample import GUESS_ROWS, Sample, draw_sample, guess_start
from dask_nlsq._fit.session import SavedState, SearchState, Session
from dask_nlsq._fit.start.multistart import search
from dask_nlsq._fit.start.stream_pass import stream, target
from dask_nlsq._fit.start.warm_start import optimizer_of, warm_start, words
from dask_nlsq._kernel import autotune as tuned
from dask_nlsq._model import Parameters
from dask_nlsq._plan import SAMPLERS
from dask_nlsq._solver import State, TrustRegion, draw_starts, final
from dask_nlsq._sweep import Executor, Partial
from dask_nlsq._typing import Matrix, Vector


def find_start(
    resolved: Resolved,
    options: FitOptions,
    executor: Executor,
    groups: Sequence[Any],
    sample: Sample | None,
    saved: SavedState | None,
) -> tuple[Resolved, list[Vector], tuple[str, ...]]:
    """Return the fit with its start and its kernel chosen, other starts, and how they were found."""
    parameters, objective, partitions = resolved.parameters, resolved.objective, len(resolved.source.partitions)
    if saved is not None:
        guessed = () if resolved.model.guess_func is not None else parameters.guessed
        parameters = dataclasses.replace(parameters, start=saved.start, guessed=guessed)
        # The kernel is formed as it was, whatever the rules of this version say: another one has other bits.
        if (objective.jacobian, objective.tile) != (saved.jacobian, saved.tile):
            objective = dataclasses.replace(objective, jacobian=saved.jacobian, tile=saved.tile)
        return dataclasses.replace(resolved, parameters=parameters, objective=objective), [], ()
    if parameters.guessed and resolved.model.guess_func is not None and objective.responses is None:
        rows = sample or draw_sample(executor, groups, partitions, GUESS_ROWS)
        parameters = guess_start(resolved.model, parameters, rows.block, resolved.columns.trials is not None)
    if options.autotune:
        rows = sample or draw_sample(executor, groups, partitions)
        objective = tuned(objective, rows.block, parameters.start)
    others: list[Vector] = []
    notes: tuple[str, ...] = ()
    optimizer = optimizer_of(options.method, parameters.bounded)
    if optimizer is not None:
        rows = sample or draw_sample(executor, groups, partitions)
        end = warm_start(objective, parameters, rows.block, optimizer, options.seed)
        # The start that was given is tried where the model is not finite at the end of the descent on all rows.
        parameters, others = dataclasses.replace(parameters, start=end.theta), [parameters.start]
        notes = (words(options.method, end, rows.block),)
    return dataclasses.replace(resolved, parameters=parameters, objective=objective), others, notes


def _draw(parameters: Parameters, options: FitOptions) -> Matrix:
    """Return the starts of a search."""
    sampler, n = options.sampler or SAMPLERS[0], options.settings.starts
    return draw_starts(sampler, n, parameters.lower, parameters.upper, parameters.start, options.seed)


@dataclasses.dataclass(frozen=True)
class Route:
    """From where the loop begins, or goes on."""

    starts: list[Vector]
    begun: tuple[State, list[float]] | None = None
    candidates: tuple[State, ...] = ()
    partial: Partial | None = None
    notes: tuple[str, ...] = ()
    search: SearchState | None = None


def find_route(
    problem: Problem,
    solver: TrustRegion,
    starts: list[Vector],
    sample: Sample | None,
    options: FitOptions,
    session: Session,
    observer: Observer,
) -> Route:
    """Return where the loop begins: what a run has saved, the end of a pass, the fit of a sample, the start."""
    saved, near = session.saved, None
    searched = None if saved is None else saved.search
    if saved is not None and saved.state is not None:
        state = solver.go_on(saved.state)
        partial = None if saved.sweep is None else Partial.of(saved.sweep)
        rest = [] if saved.others is None else list(saved.others)
        seconds = [] if saved.seconds is None else saved.seconds.tolist()
        candidates = tuple(map(solver.go_on, saved.candidates))
        return Route([state.trial, *rest], (state, seconds), candidates, partial, search=saved.search)
    passing = saved is not None and saved.passing is not None
    streams = passing or problem.plan.tier.streams
    notes: tuple[str, ...] = ()
    if sample is not None and sample.block.rows and not passing and options.searches:
        draw = functools.partial(_draw, problem.parameters, options)
        searched = search(problem, solver, sample, draw, observer, None if saved is None else saved.search)
        finalists = [searched.fitted.theta[i] for i in searched.finalists]
        session.remember(problem, (*session.known["notes"], *notes), starts, searched)
        if len(finalists) > 1:
            lowest, *others = map(solver.init, finalists)
            return Route(starts, (lowest, []), tuple(others), search=searched)
        # Those behind the first are tried where the model is not finite at the first on all rows.
        starts = [*finalists, *starts]
        near = fit_sample(problem, solver, sample, starts[0]) if streams else None
    elif sample is not None and not passing and (near := fit_sample(problem, solver, sample)) is not None:
        near = fit_sample_anew(problem, solver, sample, near)
        starts = [final(near, solver.lower, solver.upper)[0], *starts]
        notes = (f"Started from a fit of {sample.block.rows:,} rows of {sample.partitions} partitions.",)
    if not streams:
        return Route(starts, notes=notes, search=searched)
    begun = saved.passing if saved is not None and saved.passing is not None else near
    if sample is None or begun is None:
        return Route(
            starts, notes=("A sample of the rows could not be fitted, so that nothing was streamed.",), search=searched
        )
    if saved is not None and saved.others is not None:
        starts = list(saved.others)
    session.remember(problem, (*session.known["notes"], *notes), starts, searched)
    aim = target(problem.parameters.free, options.precision)
    first, seconds, more_notes = stream(
        problem,
        solver,
        begun,
        sample,
        observer,
        seed=options.seed,
        ordered=options.ordered,
        target=aim,
    )
    if first is None:
        return Route(lowest_first(problem, starts), notes=(*notes, *more_notes), search=searched)
    return Route(starts, (first, seconds), notes=(*notes, *more_notes), search=searched)
