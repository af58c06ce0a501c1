r"""Batched: fits of the same few rows from many starts, side by side in one compiled loop.

Each is Levenberg-Marquardt on the normal equations: with :math:`H = J^T J`, :math:`g = J^T r` and D² the diagonal
of H, the step solves

.. math:: (H + \lambda D^2) \delta = -g

for the parameters that no bound holds. The damping λ follows the gain of each step
(Nielsen 1999, IMM-REP-1999-05). What is wanted here is where each start leads, to a hundredth of a standard error;
digits are the business of the solver that goes on from there.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from dask_nlsq._kernel import Block, jacobian_and_residual, mend_tile, once, products
from dask_nlsq._model import Objective, Prior
from dask_nlsq._solver.factor import EPS
from dask_nlsq._solver.status import Status
from dask_nlsq._typing import Matrix, Vector

SIZES = (128, 2048)
"""Rows for which a loop is compiled; fewer are padded."""

ABREAST = 16
"""Starts for which a loop is compiled: one batch, which one core works on."""

MOST = 100
"""Steps after which a fit is left where it is."""

_NEAR = 1e-2
"""Standard errors to go at which a fit has arrived."""

_FIRST_DAMPING = 1.0

_SHARE, _CLOSE = 0.7, 1e-6
"""Share of the way to a bound that one step may go, and how close, beside the width of the bounds, it may go all the
way: an amplitude that falls to 0 at once silences its frequency and phase for good."""


UNSEEN = -128
"""Stands for a status as long as there is none."""


@dataclasses.dataclass(frozen=True)
class LocalMinima:
    """Where fits have led: a row each, in the order of their starts."""

    theta: Matrix  # (n, p)
    cost: Vector  # (n,)
    curvature: npt.NDArray[np.float64]  # (n, p, p), JᵀJ
    status: npt.NDArray[np.int64]  # (n,), of Status, or UNSEEN

    @classmethod
    def unseen(cls, n: int, p: int) -> LocalMinima:
        """Return the ends of n fits that nobody has begun."""
        nothing = np.full((n, p), np.nan)
        return cls(nothing, nothing[:, 0].copy(), np.zeros((n, p, p)), np.full(n, UNSEEN))

    def put(self, places: Sequence[int], more: LocalMinima) -> LocalMinima:
        """Return the ends with some of them filled in."""
        return LocalMinima(*(_filled(old, places, new) for old, new in zip(_fields(self), _fields(more), strict=True)))

    @property
    def seen(self) -> npt.NDArray[np.bool_]:
        """Which fits have ended."""
        seen: npt.NDArray[np.bool_] = self.status != UNSEEN
        return seen


def _fields(ends: LocalMinima) -> list[Any]:
    return [getattr(ends, field.name) for field in dataclasses.fields(ends)]


def _filled(old: Any, places: Sequence[int], new: Any) -> Any:
    found = old.copy()
    found[list(places)] = new
    return found


class _Fit(NamedTuple):
    """One fit on its way."""

    theta: Any
    cost: Any
    gradient: Any
    curvature: Any
    damping: Any
    growth: Any  # of the damping, should the next step be refused
    steps: Any
    status: Any


def fit_many(
    objective: Objective, block: Block, starts: Matrix, lower: Vector, upper: Vector, prior: Prior | None = None
) -> LocalMinima:
    """Fit a block of at most `SIZES`[-1] rows from each start (n, p).

    A start is led to the same end whatever starts are beside it, to the bit.
    """
    n, p = starts.shape
    size = next(size for size in SIZES if block.rows <= size)
    x, y, weight = _padded(block, size)
    mean, pull = (np.zeros(p), np.zeros(p)) if prior is None else (prior.mean, prior.weight)
    parts = []
    with jax.enable_x64(True):
        run = once(objective, ("many", size), functools.partial(_compile, objective, size))
        for i in range(0, n, ABREAST):
            some = starts[i : i + ABREAST]
            filled = np.concatenate([some, np.repeat(some[:1], ABREAST - len(some), axis=0)])
            fit = run(filled, x, y, weight, float(block.rows), lower, upper, mean, pull)
            parts.append([np.asarray(value)[: len(some)] for value in fit])
    theta, cost, curvature, status = (np.concatenate(part) for part in zip(*parts, strict=True))
    return LocalMinima(theta, cost, curvature, status.astype(np.int64))


def _padded(block: Block, size: int) -> tuple[tuple[Vector, ...], Vector, Vector]:
    """Return columns of `size` rows: what is missing repeats the first row with the weight 0."""
    block = block.wide()
    columns = [np.concatenate([c, np.repeat(c[:1], size - block.rows)]) for c in (*block.x, block.y)]
    own = np.ones(block.rows) if block.weight is None else block.weight
    return tuple(columns[:-1]), columns[-1], np.concatenate([own, np.zeros(size - block.rows)])


def _compile(objective: Objective, size: int) -> Any:
    p = objective.n_parameters
    column, vector = jax.ShapeDtypeStruct((size,), np.float64), jax.ShapeDtypeStruct((p,), np.float64)

    def run(starts: Any, x: Any, y: Any, weight: Any, rows: Any, *rest: Any) -> Any:
        return jax.vmap(lambda start: _fit_one(objective, start, (x, y, weight), rows, *rest))(starts)

    shapes = (
        jax.ShapeDtypeStruct((ABREAST, p), np.float64),
        (column,) * objective.n_columns,
        column,
        column,
        jax.ShapeDtypeStruct((), np.float64),
        *(vector,) * 4,
    )
    return jax.jit(run).lower(*shapes).compile()


def _fit_one(
    objective: Objective,
    start: Any,
    data: tuple[Any, Any, Any],
    rows: Any,
    lower: Any,
    upper: Any,
    mean: Any,
    pull: Any,
) -> Any:
    """Fit from one start; return theta, cost, curvature and status."""
    x, y, weight = data
    p = len(start)
    rounding = (4 * EPS) ** 2 * jnp.sum((weight * y) ** 2)

    def look(theta: Any) -> tuple[Any, Any, Any]:
        a = jacobian_and_residual(objective, theta, x, y, weight, [jnp.zeros((p + 1, len(y)))])
        a, _, flat = mend_tile(objective, theta, x, weight, a)
        found = products(objective, a, weight, None)
        toward = pull * (theta - mean)
        (gram,) = found["gram"]
        (cost,) = found.get("cost", [0.5 * gram[p, p]])
        cost = cost + 0.5 * jnp.sum(toward**2)
        gradient, curvature = gram[:p, p] + pull * toward, gram[:p, :p] + jnp.diag(pull**2)
        finite = (
            jnp.isfinite(gradient).all() & jnp.isfinite(curvature).all() & ~(flat | (weight == 0)).all(axis=1).any()
        )
        return jnp.where(finite, cost, jnp.inf), gradient, curvature

    def solve(fit: _Fit, damping: Any) -> Any:
        """Return the step, of parameters that no bound holds."""
        held = (fit.theta <= lower) & (fit.gradient > 0) | (fit.theta >= upper) & (fit.gradient < 0)
        square = jnp.diag(fit.curvature)
        unit = 1.0 / jnp.sqrt(jnp.where(square > 0, square, 1.0))
        matrix = fit.curvature * unit * unit[:, None] + damping * jnp.eye(p)
        matrix = jnp.where(held | held[:, None], jnp.eye(p), matrix)
        return unit * jnp.linalg.solve(matrix, jnp.where(held, 0.0, -fit.gradient * unit))

    def judge(fit: _Fit) -> _Fit:
        """Say whether a fit has arrived: the decrease that a free step would bring is next to nothing."""
        decrease = -jnp.dot(fit.gradient, solve(fit, 1e-13))
        square = 2.0 * fit.cost / jnp.maximum(rows - p, 1.0)
        arrived = decrease <= _NEAR**2 * square + rounding
        status = jnp.where(arrived, int(Status.CONVERGED), UNSEEN)
        status = jnp.where(fit.steps >= MOST, int(Status.MAX_NFEV), status)
        status = jnp.where((fit.damping > 1e12) & ~arrived, int(Status.STALLED), status)
        return fit._replace(status=jnp.where(jnp.isfinite(fit.cost), status, int(Status.NOT_FINITE)))

    def step(fit: _Fit) -> _Fit:
        down, up, close = lower - fit.theta, upper - fit.theta, _CLOSE * (upper - lower)
        low, high = jnp.where(-down > close, _SHARE, 1.0) * down, jnp.where(up > close, _SHARE, 1.0) * up
        move = jnp.clip(solve(fit, fit.damping), low, high)
        trial = jnp.clip(fit.theta + move, lower, upper)
        move = trial - fit.theta
        predicted = -jnp.dot(fit.gradient, move) - 0.5 * move @ fit.curvature @ move
        cost, gradient, curvature = look(trial)
        gain = (fit.cost - cost) / jnp.where(predicted > 0, predicted, jnp.inf)
        better = (cost < fit.cost) & (gain > 1e-4)
        damping = jnp.where(
            better, fit.damping * jnp.maximum(1 / 3, 1 - (2 * jnp.clip(gain, 0, 1) - 1) ** 3), fit.damping * fit.growth
        )
        following = _Fit(
            jnp.where(better, trial, fit.theta),
            jnp.where(better, cost, fit.cost),
            jnp.where(better, gradient, fit.gradient),
            jnp.where(better, curvature, fit.curvature),
            jnp.maximum(damping, 1e-12),
            jnp.where(better, 2.0, 2.0 * fit.growth),
            fit.steps + 1,
            fit.status,
        )
        return judge(following)

    cost, gradient, curvature = look(start)
    begun = _Fit(start, cost, gradient, curvature, _FIRST_DAMPING, 2.0, 0, UNSEEN)
    end = lax.while_loop(lambda fit: fit.status == UNSEEN, step, judge(begun))
    return end.theta, end.cost, end.curvature, end.status
