r"""Multi-start: from many starts to the few minima that deserve to be fitted to all rows.

Every start is fitted to a couple of thousand rows. Ends that lie within a standard error of one another are one
minimum; the lowest few minima are fitted to the sample. Which of those may be the lowest over all rows is decided by
the differences :math:`d_i` of their costs row by row: one is out of the question where
:math:`\sum d_i > 5 \sqrt{n} \, s_d` (Vuong 1989, doi:10.2307/1912557), a test that holds whether the model is right
or not. What is left goes over all rows in the same sweeps.

Starts are explored by tasks, a batch each, and every end is written down as it comes, so that none is explored twice.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import numpy.typing as npt
import pandas as pd

from dask_nlsq._errors import SweepError
from dask_nlsq._fit.loop import fitted, lowest, run_in_memory
from dask_nlsq._fit.observer import Observer, SweepBegin, TaskEnd
from dask_nlsq._fit.problem import Problem
from dask_nlsq._fit.sample import Sample
from dask_nlsq._fit.session import SearchState
from dask_nlsq._kernel import Block, Reduction, kernel
from dask_nlsq._model import Objective, loss
from dask_nlsq._result import columns_of, starts_frame
from dask_nlsq._solver import ABREAST, EPS, MOST_ROWS, LocalMinima, State, Status, TrustRegion, final, screen
from dask_nlsq._sweep import Executor, Failure, Payload, explore, serialize
from dask_nlsq._typing import Matrix, Vector

SURVIVORS = 8
"""Distinct minima that are fitted to the sample."""

FINALISTS = 4
"""Minima that go over all rows at most."""

_DOUBT = 5.0
"""Standard deviations by which a minimum must be higher on the sample to be left out."""

_ALIKE = 1e-6
"""Relative difference of two costs on the sample that is none, given how far fits of the sample go."""

_ROUNDING = 1e-6
"""Residual beside the scatter of y that is none, where a model fits without noise."""

_MOST = 200
"""Steps after which a fit of the sample is left where it is."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some starts by their numbers: what one task explores."""

    indices: tuple[int, ...]
    starts: Matrix  # (starts, p)


@dataclasses.dataclass(frozen=True)
class Explorer:
    """Fits some rows from the starts of a batch; it travels to the workers."""

    objective: Payload
    solver: TrustRegion
    abreast: bool

    def __call__(self, batch: Batch, block: Block) -> LocalMinima:
        """Return where each start leads."""
        objective: Objective = self.objective.value
        if self.abreast:
            solver = self.solver
            return screen(objective, block, batch.starts, solver.lower, solver.upper, solver.prior)
        ends = LocalMinima.unseen(*batch.starts.shape)
        for i, start in enumerate(batch.starts):
            end = run_in_memory(objective, block, fitted(self.solver, start))
            ends = ends.put([i], local_minima([end], self.solver))
        return ends


def search(
    problem: Problem,
    solver: TrustRegion,
    sample: Sample,
    draw: Callable[[], Matrix],
    observer: Observer,
    begun: SearchState | None = None,
) -> SearchState:
    """Explore all starts, but for those that `begun` has explored; `draw` makes them, (n, p), where there are none."""
    few = _few(sample.block)
    if begun is None:
        starts = draw()
        nothing, p = np.empty(0, np.int64), starts.shape[1]
        screened = LocalMinima.unseen(*starts.shape)
        begun = SearchState(starts, few.rows, screened, nothing, sample.block.rows, LocalMinima.unseen(0, p), nothing)
    now, p = begun, begun.starts.shape[1]
    # The tolerances of the user are for the answer; these fits only have to tell minima apart.
    solver = dataclasses.replace(solver, tolerance=1e-3, ftol=None, xtol=None, gtol=None, max_nfev=_MOST)
    floor = _floor(kernel.reduce_block(problem.objective, sample.block, problem.parameters.start, None))
    screening = Explorer(problem.payload, solver, abreast=problem.objective.jacobian != "numeric")
    for minima in _explore(problem.executor, screening, few, now.starts, now.screened, observer):
        now = dataclasses.replace(now, screened=minima)
        observer.notify(TaskEnd(saved=functools.partial(dict, search=now)))
    if not len(now.chosen):
        chosen = np.array([group[0] for group in distinct(now.screened, now.rows, floor)[:SURVIVORS]], np.int64)
        now = dataclasses.replace(now, chosen=chosen, fitted=LocalMinima.unseen(len(chosen), p))
    follow = dataclasses.replace(screening, abreast=False)
    starts = now.screened.theta[now.chosen]
    for minima in _explore(problem.executor, follow, sample.block, starts, now.fitted, observer):
        now = dataclasses.replace(now, fitted=minima)
        observer.notify(TaskEnd(saved=functools.partial(dict, search=now)))
    finalists = np.array(_finalists(problem.objective, sample.block, now, floor), np.int64)
    return dataclasses.replace(now, finalists=finalists)


def _explore(
    executor: Executor, explorer: Explorer, block: Block, starts: Matrix, known: LocalMinima, observer: Observer
) -> Iterator[LocalMinima]:
    """Explore the starts whose ends are not known; yield all ends whenever there are more."""
    left = np.flatnonzero(~known.seen).tolist()
    size = ABREAST if explorer.abreast else 1
    batches = [Batch(tuple(left[i : i + size]), starts[left[i : i + size]]) for i in range(0, len(left), size)]
    if not batches:
        return
    observer.notify(SweepBegin(f"{len(starts)} starts on {block.rows:,} rows", counted=False))
    for i, more in executor.run(explore, batches, serialize(explorer), block):
        if isinstance(more, Failure):
            numbers = ", ".join(map(str, batches[i].indices))
            raise SweepError(f"Exploring the starts {numbers} failed: {more.exception}") from more.exception
        known = known.put(batches[i].indices, more)
        yield known


def _few(block: Block) -> Block:
    """Return as many rows of a sample as are fitted from every start."""
    if block.rows <= MOST_ROWS:
        return block
    # A fixed seed, so that a search that goes on sees the rows that it began with.
    return block.take(np.sort(np.random.default_rng(0).choice(block.rows, MOST_ROWS, replace=False)))


def local_minima(states: Sequence[State | None], solver: TrustRegion) -> LocalMinima:
    """Return where fits have led, None being one whose start is not finite."""
    p = len(solver.lower)
    minima = LocalMinima.unseen(len(states), p)
    for i, state in enumerate(states):
        if state is None or state.point is None or state.status is None:
            minima.cost[i], minima.status[i] = np.inf, Status.NOT_FINITE
            continue
        minima.theta[i], minima.cost[i] = final(state, solver.lower, solver.upper)
        minima.curvature[i] = state.point.factor.r.T @ state.point.factor.r
        minima.status[i] = state.status
    return minima


def distinct(ends: LocalMinima, rows: int, floor: float = 0.0) -> list[list[int]]:
    """Put together the ends that are one minimum, the lowest minimum and its lowest end first.

    Two are one where they lie within a standard error of each other in the metric of the lower, or nowhere apart by
    more than a millionth of their size. Ends that are not finite are in no minimum. No s² is less than `floor`.
    """
    p = ends.theta.shape[1]
    minima: list[list[int]] = []
    # Stable, so that of ends with equal costs that of the earliest start stands for the minimum.
    order = np.argsort(ends.cost, kind="stable")
    for i in order[np.isfinite(ends.cost[order])].tolist():
        for group in minima:
            if apart(ends, group[0], ends.theta[i], rows - p, floor) <= 1.0:
                group.append(i)
                break
        else:
            minima.append([i])
    return minima


def apart(ends: LocalMinima, i: int, theta: Vector, dof: int, floor: float = 0.0) -> float:
    """Return how many standard errors `theta` (p,) lies away from an end; 0 where they differ by rounding only."""
    move = theta - ends.theta[i]
    if (np.abs(move) <= 1e-6 * np.maximum(np.abs(theta), np.abs(ends.theta[i]))).all():
        return 0.0
    square = float(move @ ends.curvature[i] @ move)
    unit = max(2.0 * float(ends.cost[i]) / max(dof, 1), floor)
    return float(np.sqrt(max(square, 0.0) / unit)) if unit > 0 else np.inf


def _floor(reduction: Reduction) -> float:
    """Return the least s² that tells two minima apart: that of residuals which are rounding beside y."""
    square = _ROUNDING**2 * reduction.response_sum_of_squares + (4.0 * EPS * reduction.mean) ** 2 * reduction.weight
    return float(square) / max(reduction.rows, 1)


def _finalists(objective: Objective, block: Block, searched: SearchState, floor: float) -> list[int]:
    """Return the places of the fitted minima that may be the lowest over all rows."""
    minima = [group[0] for group in distinct(searched.fitted, searched.sample_rows, floor)]
    if not minima:
        return []
    cost = searched.fitted.cost
    few = _leaders(searched.screened, searched.rows, floor).tolist()
    alike = [i for i in minima if cost[i] <= (1.0 + _ALIKE) * cost[minima[0]]]
    alike.sort(key=lambda i: few.index(searched.chosen[i]))  # of equal ones that to which the earliest start leads
    least = row_costs(objective, block, searched.fitted.theta[alike[0]])
    kept = alike
    for i in minima[len(alike) :]:
        more = row_costs(objective, block, searched.fitted.theta[i]) - least
        if more.sum() <= _DOUBT * np.sqrt(len(more)) * more.std():
            kept.append(i)
    return kept[:FINALISTS]


def row_costs(objective: Objective, block: Block, theta: Vector) -> Vector:
    """Return what each row adds to the cost, (rows,)."""
    block = block.wide()
    # JAX would compute the loss in float32 outside.
    with np.errstate(all="ignore"), jax.enable_x64(True):
        everything = np.array([float(v) for v in objective.expand(theta.tolist())])
        residual = kernel.predict_block(objective, block, everything) - block.y
        if objective.counts:
            return np.asarray(objective.count_rows(residual + block.y, block.y, block.weights, np).cost)
        weighted = residual if block.weight is None else residual * block.weight
        if not objective.robust:
            return 0.5 * weighted**2
        rho = loss.evaluate(objective.loss, (weighted / objective.f_scale) ** 2)[0]
        return 0.5 * objective.f_scale**2 * np.asarray(rho, float)


def summarize_search(
    names: Sequence[str], searched: SearchState, states: Sequence[State], solver: TrustRegion, reduction: Reduction
) -> tuple[pd.DataFrame, str]:
    """Return a table of where every start has led, and a sentence, given how the minima ended on all rows."""
    finalists = searched.finalists.tolist()[: len(states)]  # all of them, but for what older versions have written
    last = local_minima([None if state.point is None else state for state in states], solver)
    stages = ((searched.screened, searched.rows), (searched.fitted, searched.sample_rows), (last, reduction.rows))
    floor = _floor(reduction)
    few, sample, every = (_leaders(ends, count, floor) for ends, count in stages)
    place = {int(start): i for i, start in enumerate(searched.chosen)}
    ways: list[list[tuple[int, int]]] = []  # of each start: its minimum among few rows, on the sample, on all rows
    for leader in few.tolist():
        way = [(0, leader)] if leader >= 0 else []
        if leader in place and (on_sample := int(sample[place[leader]])) >= 0:
            way.append((1, on_sample))
            if on_sample in finalists and (on_all := int(every[finalists.index(on_sample)])) >= 0:
                way.append((2, on_all))
        ways.append(way)
    answer = (2, int(every[lowest(states)]))
    minima = sorted({way[-1] for way in ways if way}, key=lambda m: (m != answer, -m[0], stages[m[0]][0].cost[m[1]]))
    begun, lines = [f"p0_{name}" for name in names], []
    labels = columns_of(names, ("start", *begun, "cost", "rows", "minimum", "status"))
    for i, (start, way) in enumerate(zip(searched.starts, ways, strict=True)):
        stage, at = way[-1] if way else (0, i)
        ends, count = stages[stage]
        line: dict[str, Any] = dict(zip(begun, start.tolist(), strict=True))
        line |= dict(zip(labels, ends.theta[at].tolist(), strict=True))
        line |= {"cost": float(ends.cost[at]), "rows": count, "minimum": minima.index(way[-1]) if way else -1}
        lines.append(line | {"status": Status.of(int(ends.status[at])).name})
    sentence = _sentence(ways, minima, stages, floor) if minima else f"None of {len(ways)} starts led anywhere."
    return starts_frame({name: [line[name] for line in lines] for name in lines[0]}), sentence


def _leaders(ends: LocalMinima, rows: int, floor: float) -> npt.NDArray[np.int64]:
    """Return the number of the lowest end of each end's minimum; -1 for none."""
    leaders = np.full(len(ends.cost), -1)
    for group in distinct(ends, rows, floor):
        leaders[group] = group[0]
    return leaders


def _sentence(
    ways: Sequence[Sequence[tuple[int, int]]],
    minima: Sequence[tuple[int, int]],
    stages: Sequence[tuple[LocalMinima, int]],
    floor: float,
) -> str:
    """Say how often the lowest minimum was found, and how far the next is."""
    mine = [way for way in ways if way and way[-1] == minima[0]]
    sentence = f"{len(mine)} of {len(ways)} starts led to this minimum"
    if len(minima) == 1:
        return f"{sentence}, and none to another."
    (stage, at), (lead_stage, lead) = minima[1], minima[0]
    ends, (lead_ends, rows) = stages[stage][0], stages[lead_stage]
    least = min(ends.cost[way[stage][1]] for way in mine)
    ratio = float(ends.cost[at] / least) if least > 0 else np.inf
    distance = apart(lead_ends, lead, ends.theta[at], rows - lead_ends.theta.shape[1], floor)
    cost = "the same cost" if ratio < 1 + 1e-9 else f"{ratio:.4g} times the cost"
    return f"{sentence}; the next lies {distance:.3g} standard errors away, at {cost}."
