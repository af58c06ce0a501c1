r"""Batched: many small fits side by side in one compiled loop, a series of points in each lane.

Each fit is Levenberg-Marquardt on the normal equations: with :math:`H = J^T J`, :math:`g = J^T r` and D² the diagonal
of H, the step solves

.. math:: (H + \lambda D^2) \delta = -g

for the parameters that no bound holds. The damping λ follows the gain of each step (Nielsen 1999, IMM-REP-1999-05), and
falls faster where the step did what was predicted. A fit has converged where the step that remains, in standard errors
(the relative offset of Bates & Watts, doi:10.1080/00401706.1981.10486291), is below a tolerance, or at the rounding
level of the residuals.

Fits take unlike numbers of steps. When a quarter of the lanes has ended, the next fits of the queue take their places,
and the few that are left at the end of a queue go on beside those of the next, so that no lane waits for the slowest.

The normal equations hold half of the digits of an ill-conditioned Jacobian; `batched_newton` brings the others.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import Array, lax

from dask_nlsq._kernel import lanes, once
from dask_nlsq._model import Objective
from dask_nlsq._solver.factor import EPS
from dask_nlsq._solver.status import Status
from dask_nlsq._typing import Matrix, Vector

_LANES, _FEW_LANES, _LONG = 384, 16, 4096
"""Fits that are worked on at a time: vectors of 3 KiB, long beside what starting an operation costs. Series of
more than so many points are tiles by themselves, of which a few at a time take less memory."""

_QUEUE, _ELEMENTS = 4096, 2**20
"""Fits in one call, or fewer where the series are long: the most elements of a column of all of them."""

_LEFT, _REFILL = 8, 4
"""Parts of the lanes: of which one, still at work, is left to the next call, and of which one has to end before the
next fits take their places: their points have to be copied."""

MOST = 200
"""Steps after which a fit is left where it is."""

UNSEEN, DIFFERENCES = -128, -127
"""Stand for a status: of a fit that has not ended, and of one whose derivatives are not finite though its model is."""

_FALL = 0.1
"""Factor of the damping after a step whose gain was as predicted: a third, as Nielsen has it, keeps a damping that
slows the last steps down."""

A = TypeVar("A", bound=np.generic)

_SHARE, _CLOSE = 0.7, 1e-3
"""Share of the way to a bound that one step may go, and from how close, in standard errors with the others known, it
may go all the way: at an amplitude of 0, the model no longer responds to its frequency and phase."""

_LEAST_CURVATURE = 0.1
"""Share of the curvature without its negative part that the full one must keep in every direction to be used."""

_RATIO = 0.1
"""Least ratio of two steps that is expected to hold for the next: far from the end, one step may be much better."""

_DISTINCT = 0.05
"""Share of a linear parameter's column that the others must leave over, for a fit to begin with these parameters."""

_TINY = 1e-13
"""Damping of a step that counts as undamped; it keeps the factor of a singular H."""


@dataclasses.dataclass(frozen=True)
class Way:
    """How a point is evaluated; a loop is compiled for each."""

    mended: bool = False  # whether derivatives that are not finite are replaced by differences
    linear: tuple[bool, ...] = ()  # parameters that are brought to their best at every trial (variable projection)
    bounded: bool = True  # whether any parameter has a bound, or is fixed for each series by equal ones
    first: tuple[bool, ...] = ()  # parameters that the first step alone moves: those in which the model is linear


@dataclasses.dataclass(frozen=True)
class Tolerance:
    """When a fit has converged, and how it begins."""

    step: float = 1e-6  # standard errors that are expected to remain after the last step
    most: int = MOST
    damping: float = 1e-2
    way: Way = Way()


class Fits(NamedTuple):
    """Fits on their way or ended, a row each."""

    theta: Matrix  # (n, p)
    cost: Vector  # (n,)
    damping: Vector  # (n,)
    growth: Vector  # (n,), of the damping, should the next step be refused
    length: Vector  # (n,), of the undamped step, in standard errors; 0 before the first
    steps: npt.NDArray[np.int64]  # (n,)
    status: npt.NDArray[np.int64]  # (n,), of Status, or UNSEEN
    curvature: Matrix  # (n, p (p + 1) / 2), JᵀJ, the rows of its lower triangle

    @classmethod
    def begin(cls, starts: Matrix, damping: float) -> Fits:
        """Return the fits before their first step."""
        n, p = starts.shape
        counts, curvature = np.zeros(n, np.int64), np.zeros((n, p * (p + 1) // 2))
        cost, growth, length = np.full(n, np.inf), np.full(n, 2.0), np.zeros(n)
        return cls(starts.copy(), cost, np.full(n, damping), growth, length, counts, counts + UNSEEN, curvature)


class _Lane(NamedTuple):
    """The fits at work, (lanes,) each."""

    number: Array  # of the fit in the queue; one beyond the last for a lane that has none
    theta: list[Array]
    cost: Array
    gradient: list[Array]
    curvature: lanes.Triangle
    damping: Array
    growth: Array
    length: Array
    steps: Array
    status: Array
    # What is evaluated next.
    trial: list[Array]
    predicted: Array
    # What belongs to the series.
    data: lanes.Data
    lower: list[Array]
    upper: list[Array]
    dof: Array
    response: Array  # Σ (w y)²


@dataclasses.dataclass(frozen=True)
class Series:
    """Points of many series; what all of them share has one row.

    A missing point has the weight 0, and finite values.
    """

    x: tuple[Matrix, ...]  # (n or 1, points) each
    y: Matrix  # (n or 1, points)
    weight: Matrix  # (n or 1, points)
    shared: tuple[bool, ...]  # which of x, y and weight all series share; a loop is compiled for each choice

    def take(self, rows: npt.NDArray[np.int64]) -> Series:
        """Return some of the series, without a copy where they lie together."""
        columns = *self.x, self.y, self.weight
        if len(rows) == max(map(len, columns)) and _together(rows):
            return self
        *x, y, weight = (_take(c, rows) for c in columns)
        return dataclasses.replace(self, x=tuple(x), y=y, weight=weight)

    def padded(self, shape: Shape) -> Series:
        """Return as many points as a shape has; those added repeat the last point and have the weight 0."""
        more = shape.points - self.y.shape[1]
        if not more:
            return self
        wide = [np.concatenate([c, np.repeat(c[:, -1:], more, axis=1)], axis=1) for c in (*self.x, self.y)]
        weight = np.concatenate([self.weight, np.zeros((len(self.weight), more))], axis=1)
        return dataclasses.replace(self, x=tuple(wide[:-1]), y=wide[-1], weight=weight)


@dataclasses.dataclass(frozen=True)
class Shape:
    """Sizes for which a loop is compiled."""

    points: int
    lanes: int
    queue: int

    @classmethod
    def of(cls, points: int, lanes_: int | None = None) -> Shape:
        """Return the shape for series of so many points: it hangs on nothing else, so that their bits do not either.

        There are at most an eighth more points, in steps that keep the number of shapes small.
        """
        lanes_ = lanes_ or (_LANES if points <= _LONG else _FEW_LANES)
        step = max(lanes.tile(lanes_), 1 << max(points.bit_length() - 4, 0))
        padded = -(-points // step) * step
        queue = max(min(_QUEUE, _ELEMENTS // padded) // lanes_, 1) * lanes_
        return cls(padded, lanes_, queue)


def _take(rows: Matrix, which: npt.NDArray[np.int64]) -> Matrix:
    if len(rows) == 1:
        return rows
    return rows[which[0] : which[-1] + 1] if _together(which) else rows[which]


def _together(which: npt.NDArray[np.int64]) -> bool:
    """Whether these are neighbours in their order."""
    return len(which) > 0 and which[-1] - which[0] == len(which) - 1 and bool((np.diff(which) == 1).all())


def square(packed: Matrix) -> npt.NDArray[np.float64]:
    """Return symmetric matrices (n, p, p) from the rows of their lower triangles, (n, p (p + 1) / 2)."""
    p = int(np.sqrt(2 * packed.shape[1]))
    matrices = np.zeros((len(packed), p, p))
    i, j = np.tril_indices(p)
    matrices[:, i, j] = matrices[:, j, i] = packed
    return matrices


def minimise(
    objective: Objective,
    series: Series,
    starts: Matrix,
    lower: Matrix,
    upper: Matrix,
    pull: tuple[Vector, Vector] | None = None,
    tolerance: Tolerance = Tolerance(),
    shape: Shape | None = None,
) -> Fits:
    """Fit each series from its start (n, p) within its bounds (n or 1, p).

    A fit ends in the same place whatever fits are beside it, to the bit.

    Parameters
    ----------
    pull : tuple of ndarray (p,), optional
        Means and weights of a prior.
    """
    shape = shape or Shape.of(series.y.shape[1])
    fits, series = Fits.begin(starts, tolerance.damping), series.padded(shape)
    with jax.enable_x64(True):
        for mended in (False, True):
            way = dataclasses.replace(tolerance.way, mended=mended)
            _finish(objective, series, fits, lower, upper, pull, tolerance, way, shape)
            again = fits.status == DIFFERENCES
            if not again.any():
                break
            for column, begun in zip(fits, Fits.begin(starts, tolerance.damping), strict=True):
                column[again] = begun[again]
    return fits


def _finish(
    objective: Objective,
    series: Series,
    fits: Fits,
    lower: Matrix,
    upper: Matrix,
    pull: tuple[Vector, Vector] | None,
    tolerance: Tolerance,
    way: Way,
    shape: Shape,
) -> None:
    """Go on with the fits that have not ended, and write how they end in their place."""
    p = fits.theta.shape[1]
    prior = (np.zeros(p), np.zeros(p)) if pull is None else pull
    shared = (*series.shared, len(lower) == 1)
    run = once(
        objective,
        ("lanes", shape, shared, pull is None, way),
        functools.partial(_compile, objective, shape, shared, pull is not None, way),
    )
    waiting = np.flatnonzero(fits.status == UNSEEN)
    left = waiting[:0]
    while len(waiting) or len(left):
        take = np.concatenate([left, waiting[: shape.queue - len(left)]])
        waiting = waiting[shape.queue - len(left) :]
        part = series.take(take)
        some = [fill(column[take], shape.queue) for column in fits]
        columns = as_queue((*part.x, part.y, part.weight), shape.queue, shared)
        bounds = as_queue([_take(c, take) for c in (lower, upper)], shape.queue, (len(lower) == 1,) * 2)
        fewest = shape.lanes // _LEFT if len(waiting) else 0
        limits = tiles_of(part, shape), len(take), fewest, tolerance.step, tolerance.most
        ended = run(some, columns, bounds, list(prior), *limits)
        for column, values in zip(fits, ended, strict=True):
            column[take] = np.asarray(values)[: len(take)]
        left = take[fits.status[take] == UNSEEN]


def tiles_of(series: Series, shape: Shape) -> int:
    """Return the tiles behind which no point of any series counts."""
    counts = np.flatnonzero((series.weight > 0).any(axis=0))
    return -(-int(counts[-1] + 1) // lanes.tile(shape.lanes)) if len(counts) else 0


def as_queue(columns: Sequence[Matrix], queue: int, shared: Sequence[bool]) -> list[Matrix]:
    """Return as many rows of each column as a queue has, or the one of a column that all series share."""
    return [rows if one else fill(rows, queue) for rows, one in zip(columns, shared, strict=False)]


def fill(rows: npt.NDArray[A], queue: int) -> npt.NDArray[A]:
    """Return so many rows as a queue has; nobody looks at those added."""
    return rows if len(rows) == queue else np.concatenate([rows, np.repeat(rows[:1], queue - len(rows), axis=0)])


def _compile(
    objective: Objective, shape: Shape, shared: Sequence[bool], prior: bool, way: Way
) -> Callable[..., Sequence[Array]]:
    p = objective.n_parameters
    real = functools.partial(jax.ShapeDtypeStruct, dtype=np.float64)
    whole = functools.partial(jax.ShapeDtypeStruct, dtype=np.int64)
    n = shape.queue
    rows = [1 if one else n for one in shared]
    vector, curvature = real((n,)), real((n, p * (p + 1) // 2))
    fits = [real((n, p)), vector, vector, vector, vector, whole((n,)), whole((n,)), curvature]
    columns = [real((rows_, shape.points)) for rows_ in rows[:-1]]
    bounds = [real((rows[-1], p))] * 2
    limits = [whole(()), whole(()), whole(()), real(()), whole(())]
    run = functools.partial(_run, objective, prior, way, shape.lanes)
    return jax.jit(run).lower(fits, columns, bounds, [real((p,))] * 2, *limits).compile()


def _run(
    objective: Objective,
    prior: bool,
    way: Way,
    abreast: int,
    fits: list[Array],
    columns: list[Array],
    bounds: list[Array],
    pull: list[Array],
    tiles: Array,
    n: Array,
    fewest: Array,
    tolerance: Array,
    most: Array,
) -> list[Array]:
    """Work through a queue of `n` fits until at most `fewest` are at work; return what has become of each."""
    p, queue = objective.n_parameters, len(fits[0])
    ending = functools.partial(_status, tolerance=tolerance, most=most)
    known = _known(columns, bounds, queue)

    def refill(carry: tuple[_Lane, Array, list[Array]]) -> tuple[_Lane, Array, list[Array]]:
        lane, following, found = carry
        found = _write(found, lane)
        ended = lane.status != UNSEEN
        number = jnp.where(ended, following + jnp.cumsum(ended) - 1, lane.number)
        number = jnp.where(number < n, number, queue)
        fresh = ended & (number < queue)
        new = _load(p, found, columns, bounds, known, number)

        def mix(new: Array, old: Array) -> Array:
            return new if new.shape[-1] == 1 else jnp.where(fresh, new, old)

        lane = jax.tree.map(mix, new, lane)
        lane = lane._replace(number=number, status=jnp.where(number < queue, lane.status, int(Status.MAX_NFEV)))
        return lane, jnp.minimum(following + jnp.sum(ended), n), found

    def busy(lane: _Lane) -> Array:
        return jnp.sum(lane.status == UNSEEN)

    def work(carry: tuple[_Lane, Array, list[Array]]) -> tuple[_Lane, Array, list[Array]]:
        lane, following, found = refill(carry)
        # With an empty queue, there is nothing to stop for before few are left.
        floor = jnp.where(following < n, abreast - abreast // _REFILL, fewest)

        def step(lane: _Lane) -> _Lane:
            return _step(objective, lane, tiles, pull if prior else None, way, ending)

        return lax.while_loop(lambda lane: busy(lane) > floor, step, lane), following, found

    def more(carry: tuple[_Lane, Array, list[Array]]) -> Array:
        lane, following, _ = carry
        return (following < n) | (busy(lane) > fewest)

    shapes = jax.eval_shape(lambda number: _load(p, fits, columns, bounds, known, number), jnp.arange(abreast))
    nobody: _Lane = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    nobody = nobody._replace(number=jnp.full(abreast, queue), status=jnp.full(abreast, int(Status.MAX_NFEV)))
    lane, _, found = lax.while_loop(more, work, (nobody, jnp.zeros((), jnp.int64), fits))
    return _write(found, lane)


def _write(found: list[Array], lane: _Lane) -> list[Array]:
    """Write what is known of the fits at work into the queue; a lane that has none writes beyond its end."""
    curvature = jnp.stack([entry for row in lane.curvature for entry in row], axis=1)
    figures = lane.cost, lane.damping, lane.growth, lane.length, lane.steps, lane.status
    values = [jnp.stack(lane.theta, axis=1), *figures, curvature]
    return [column.at[lane.number].set(new, mode="drop") for column, new in zip(found, values, strict=True)]


def _known(columns: list[Array], bounds: list[Array], queue: int) -> tuple[Array, Array]:
    """Return the degrees of freedom of each fit of the queue and its Σ (w y)², (queue,)."""
    y, weight = columns[-2:]
    response = jnp.broadcast_to(jnp.sum((weight * y) ** 2, axis=1), (queue,))
    dof = jnp.sum(weight > 0, axis=1) - jnp.sum(bounds[0] < bounds[1], axis=1)
    return jnp.maximum(jnp.broadcast_to(dof, (queue,)), 1).astype(jnp.float64), response


def pick(rows: Array, place: Array) -> Array:
    """Return rows of a queue as lanes, (points, lanes), or (points, 1) where all share one."""
    n, points = rows.shape
    if n == 1:
        return rows.T
    # A gather of whole rows takes five times as long as one of single elements by their places.
    return rows.ravel().at[place * points + jnp.arange(points)[:, None]].get(mode="promise_in_bounds")


def _load(
    p: int,
    fits: list[Array],
    columns: list[Array],
    bounds: list[Array],
    known: tuple[Array, Array],
    number: Array,
) -> _Lane:
    """Return lanes with the fits of these numbers, as they stand in the queue."""
    place = jnp.minimum(number, len(fits[0]) - 1)

    def spread(rows: Array) -> list[Array]:
        return [jnp.broadcast_to(row, number.shape) for row in pick(rows, place)]

    theta = spread(fits[0])
    vectors = [column.at[place].get(mode="promise_in_bounds") for column in (*fits[2:-1], *known)]
    damping, growth, length, steps, status, dof, response = vectors
    *x, y, weight = [pick(rows, place) for rows in columns]
    lower, upper = spread(bounds[0]), spread(bounds[1])
    nothing = jnp.zeros(number.shape)
    return _Lane(
        number=number,
        theta=theta,
        cost=nothing + jnp.inf,
        gradient=[nothing] * p,
        curvature=[[nothing] * (i + 1) for i in range(p)],
        damping=damping,
        growth=growth,
        length=length,
        steps=steps,
        status=status,
        trial=theta,
        predicted=nothing + 1.0,
        data=lanes.Data(tuple(x), y, weight),
        lower=lower,
        upper=upper,
        dof=dof,
        response=response,
    )


def _step(
    objective: Objective,
    lane: _Lane,
    tiles: Array,
    pull: list[Array] | None,
    way: Way,
    ending: Callable[[_Lane, list[Array]], tuple[Array, Array]],
) -> _Lane:
    """Evaluate the trial of each lane, accept or refuse it, and propose the next."""
    tiny = jnp.full_like(lane.cost, _TINY)
    sums = lanes.evaluate(objective, lane.trial, lane.data, tiles, mended=way.mended)
    if any(way.linear):
        others = [jnp.full(tiny.shape, not linear) for linear in way.linear]
        best = _solve(lane._replace(curvature=sums.gram, gradient=sums.gradient), others, tiny)
        # A fit that goes on in another call was at its best already.
        begun = jnp.isinf(lane.cost) & (lane.length > 0)
        best = [jnp.where(begun, 0.0, move) for move in best]
        trial = [t + move if linear else t for t, move, linear in zip(lane.trial, best, way.linear, strict=True)]
        lane = lane._replace(trial=trial)
        sums = lanes.evaluate(objective, trial, lane.data, tiles, mended=way.mended)
    curvature = convex(sums) if objective.robust else sums.gram
    cost, gradient = sums.cost, sums.gradient
    if pull is not None:
        away = [w * (t - m) for t, m, w in zip(lane.trial, *pull, strict=True)]
        cost = cost + 0.5 * lanes.dot(away, away)
        gradient = [g + w * a for g, w, a in zip(gradient, pull[1], away, strict=True)]
        curvature = [[*row[:-1], row[-1] + w * w] for row, w in zip(curvature, pull[1], strict=True)]
    known = sums.finite & jnp.isfinite(cost)
    differentiable = functools.reduce(
        jnp.logical_and, map(jnp.isfinite, [*gradient, *(e for row in curvature for e in row)])
    )
    working = lane.status == UNSEEN
    first = jnp.isinf(lane.cost)
    gain = (lane.cost - cost) / jnp.where(lane.predicted > 0, lane.predicted, jnp.inf)
    # Near the minimum a step changes the cost by less than its rounding, and is still a step towards it.
    noise = 16 * EPS * lane.cost + _rounding(lane) * jnp.sqrt(2.0 * lane.cost)
    slight = (lane.predicted <= noise) & (cost <= lane.cost + noise)
    better = working & known & differentiable & (slight | (cost < lane.cost) & (gain > 1e-4))

    def choose(new: Array, old: Array) -> Array:
        return jnp.where(better, new, old)

    fall = jnp.where(slight | (gain > 0.9), _FALL, jnp.maximum(1 / 3, 1 - (2 * jnp.clip(gain, 0, 1) - 1) ** 3))
    moved = lane._replace(
        theta=jax.tree.map(choose, lane.trial, lane.theta),
        cost=choose(cost, lane.cost),
        gradient=jax.tree.map(choose, gradient, lane.gradient),
        curvature=jax.tree.map(choose, curvature, lane.curvature),
        damping=jnp.where(first & better, lane.damping, jnp.maximum(lane.damping * choose(fall, lane.growth), 1e-12)),
        growth=jnp.where(first & better, lane.growth, choose(jnp.full_like(cost, 2.0), 2.0 * lane.growth)),
        steps=lane.steps + (working & ~first),  # a fit that goes on evaluates the point where it stands once more
    )
    at_bound = _at_bound(moved) if way.bounded else None
    newton = _solve(moved, at_bound, tiny)
    status, length = ending(moved, newton)
    if not way.mended:
        status = jnp.where(known & ~differentiable, DIFFERENCES, status)
    status = jnp.where(working, status, lane.status)
    step = _solve(moved, at_bound, moved.damping, way.linear)
    if any(way.first):
        step = _begin(moved, step, at_bound, first & better, way.first)
    trial, predicted = _propose(moved, step, way.bounded)
    # The last step is not evaluated here: what comes after the loop evaluates its end.
    last = working & (status == int(Status.CONVERGED))
    final, _ = _propose(moved, newton, way.bounded)
    theta = [jnp.where(last, new, old) for new, old in zip(final, moved.theta, strict=True)]
    length = jnp.where(working, length, lane.length)
    return moved._replace(theta=theta, length=length, status=status, trial=trial, predicted=predicted)


def _begin(
    lane: _Lane, step: list[Array], at_bound: Sequence[Array] | None, begins: Array, linear: Sequence[bool]
) -> list[Array]:
    """Return the step, that to the best of the linear parameters alone where a fit begins and they are distinct."""
    moves = [jnp.full(begins.shape, float(free)) for free in linear]
    if at_bound is not None:
        moves = [jnp.where(b, 0.0, move) for b, move in zip(at_bound, moves, strict=True)]
    matrix = lanes.only(lane.curvature, moves)
    against = [-g * move for g, move in zip(lane.gradient, moves, strict=True)]
    root, least = lanes.cholesky(matrix)
    alone = lanes.substitute_back(root, lanes.substitute(root, against))
    wanted = begins & (least > _DISTINCT)
    return [jnp.where(wanted, a, b) for a, b in zip(alone, step, strict=True)]


def _at_bound(lane: _Lane) -> list[Array]:
    """Return which parameters a bound holds, or two equal ones."""
    sides = zip(lane.theta, lane.lower, lane.upper, lane.gradient, strict=True)
    return [(t <= low) & (g > 0) | (t >= high) & (g < 0) | (low == high) for t, low, high, g in sides]


def convex(sums: lanes.Sums) -> lanes.Triangle:
    """Return the curvature of a robust loss where it holds a step, else that without its negative part.

    It holds one where it keeps a tenth of the other in every direction, as in the fit of one series.
    """
    return lanes.choose(holds_step(sums, len(sums.gram)), sums.curvature, sums.gram)


def holds_step(sums: lanes.Sums, first: int) -> Array:
    """Return whether the curvature of a robust loss holds a step of the first parameters, (lanes,)."""
    rows = zip(sums.curvature[:first], sums.gram[:first], strict=True)
    excess = [[full - _LEAST_CURVATURE * gram for full, gram in zip(*row, strict=True)] for row in rows]
    return lanes.cholesky(excess)[1] > 0


def _solve(
    lane: _Lane, at_bound: Sequence[Array] | None, damping: Array, undamped: Sequence[bool] | None = None
) -> list[Array]:
    """Return the damped step of the parameters that no bound holds; those in which the model is linear need none."""
    p = len(lane.theta)
    some = [_TINY if linear else damping for linear in undamped or [False] * p]
    damped = [jnp.where(row[-1] > 0, (1.0 + d) * row[-1], 1.0) for row, d in zip(lane.curvature, some, strict=True)]
    matrix = [[*row[:-1], diagonal] for row, diagonal in zip(lane.curvature, damped, strict=True)]
    against = [-g for g in lane.gradient]
    if at_bound is not None:
        matrix = [
            [jnp.where(at_bound[i] | at_bound[j], float(i == j), entry) for j, entry in enumerate(row)]
            for i, row in enumerate(matrix)
        ]
        against = [jnp.where(b, 0.0, g) for b, g in zip(at_bound, against, strict=True)]
    root, _ = lanes.cholesky(matrix)
    return lanes.substitute_back(root, lanes.substitute(root, against))


def _status(lane: _Lane, newton: list[Array], tolerance: Array, most: Array) -> tuple[Array, Array]:
    r"""Return the status of each lane and the length of its undamped step in standard errors.

    After two such steps the next is about :math:`e_k \min(1, e_k / e_{k-1})` long.
    """
    decrease = -lanes.dot(lane.gradient, newton)
    s2 = 2.0 * lane.cost / lane.dof
    length = jnp.sqrt(jnp.maximum(decrease, 0.0) / jnp.where(s2 > 0, s2, 1.0))
    ratio = jnp.where(lane.length > 0, jnp.clip(length / lane.length, _RATIO, 1.0), 1.0)
    arrived = (length * ratio <= tolerance) | (decrease <= _rounding(lane) ** 2)
    status = jnp.where(arrived, int(Status.CONVERGED), UNSEEN)
    status = jnp.where((lane.steps >= most) & ~arrived, int(Status.MAX_NFEV), status)
    status = jnp.where((lane.damping > 1e12) & ~arrived, int(Status.STALLED), status)
    return jnp.where(jnp.isfinite(lane.cost), status, int(Status.NOT_FINITE)), length


def _rounding(lane: _Lane) -> Array:
    """Return what rounding leaves uncertain in the residuals, as the length of their vector."""
    size = sum(row[-1] * t * t for row, t in zip(lane.curvature, lane.theta, strict=True))
    return 4 * EPS * jnp.sqrt(lane.response + size)


def _propose(lane: _Lane, step: list[Array], bounded: bool) -> tuple[list[Array], Array]:
    """Return the trial within the bounds, and the decrease of the cost that is predicted there."""
    trial = []
    s2 = 2.0 * lane.cost / lane.dof
    for i, (t, length, low, high) in enumerate(zip(lane.theta, step, lane.lower, lane.upper, strict=True)):
        if not bounded:
            trial.append(t + length)
            continue
        square = lane.curvature[i][i]
        close = jnp.where(square > 0, _CLOSE * jnp.sqrt(s2 / jnp.where(square > 0, square, 1.0)), jnp.inf)
        down, up = low - t, high - t
        least = jnp.where(-down > close, _SHARE, 1.0) * down
        largest = jnp.where(up > close, _SHARE, 1.0) * up
        trial.append(jnp.clip(t + jnp.clip(length, least, largest), low, high))
    move = [new - old for new, old in zip(trial, lane.theta, strict=True)]
    return trial, -lanes.dot(lane.gradient, move) - 0.5 * lanes.quadratic(lane.curvature, move)
