r"""Errors in x: each row moved to the point of the curve that is nearest to it, in standard deviations.

A row whose columns x have errors of standard deviation s adds

.. math:: \tfrac12 \min_u \left[ w^2 (f(x + s u; \theta) - y)^2 + |u|^2 \right]

to the cost (orthogonal distance regression; Boggs, Byrd & Schnabel, doi:10.1137/0908085). With
:math:`r = w (f - y)` and :math:`g = w s\, \partial f/\partial x` at the minimum, where :math:`u = -r g`, the residual
:math:`r \sqrt{1 + |g|^2}` and the Jacobian :math:`w\, \partial f / \partial\theta / \sqrt{1 + |g|^2}` have the square
of that minimum, its gradient, and the Gauss-Newton matrix in which u is eliminated (the Schur complement of its
block). So the displacements of no row are ever kept: those of a sweep follow from its parameters.

A row is moved by Newton's method from u = 0; a step that does not lower the sum is shortened.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from dask_nlsq._kernel.lanes import Triangle, cholesky, choose, substitute, substitute_back
from dask_nlsq._model import Objective

_LAST = 1e-6
"""Newton step, beside 1 and the displacement, after which a row is where it belongs to the last digits."""

_SHORTER = 0.25
"""By what a step is shortened that does not lower the sum of squares."""

_PIECE = 512
"""Rows that are moved together: as many steps are taken as the last of them needs."""

_MOST = 100
"""Steps after which a row has no nearest point that is found: its residual is NaN, and the point is refused."""


class Nearest(NamedTuple):
    """Rows at the points of the curve that are nearest, each (rows,)."""

    x: tuple[jax.Array, ...]  # all columns, moved where they have errors
    weight: jax.Array  # w / √(1 + |g|²), NaN where no nearest point was found
    stretch: jax.Array  # 1 + |g|²: so much more than the distance along y is that residual, in units of that weight


class _Search(NamedTuple):
    u: tuple[jax.Array, ...]  # the best so far
    step: tuple[jax.Array, ...]  # that is tried next, 0 where the row has ended
    cost: jax.Array


Evaluate: TypeAlias = Callable[[Sequence[jax.Array], Sequence[jax.Array]], jax.Array]
"""The model at columns x, each (rows,), and parameters, each () or (rows,)."""


def nearest(
    objective: Objective,
    evaluate: Evaluate,
    theta: Sequence[jax.Array],
    x: Sequence[jax.Array],
    y: jax.Array,
    weight: jax.Array,
) -> Nearest:
    """Move rows to the points of the curve that are nearest to them."""
    size = math.gcd(_PIECE, len(y))
    own = [j for j, t in enumerate(theta) if jnp.ndim(t)]  # parameters that each row has for itself

    def piece(rows: tuple[list[jax.Array], ...]) -> Nearest:
        x, (y, weight), parameters = rows
        of_rows = dict(zip(own, parameters, strict=True))
        return _nearest(
            objective, lambda x: evaluate(x, [of_rows.get(j, t) for j, t in enumerate(theta)]), x, y, weight
        )

    rows = (list(x), [y, weight], [theta[j] for j in own])
    found = lax.map(piece, jax.tree.map(lambda column: column.reshape(-1, size), rows))
    whole: Nearest = jax.tree.map(jnp.ravel, found)
    return whole


def _nearest(
    objective: Objective,
    evaluate: Callable[[Sequence[jax.Array]], jax.Array],
    x: Sequence[jax.Array],
    y: jax.Array,
    weight: jax.Array,
) -> Nearest:
    errors = objective.errors
    sigma = [x[each.sigma] if isinstance(each.sigma, int) else jnp.full_like(y, each.sigma) for each in errors]

    def moved(u: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        columns = list(x)
        for each, s, displacement in zip(errors, sigma, u, strict=True):
            columns[each.place] = x[each.place] + s * displacement
        return tuple(columns)

    def residual(*u: jax.Array) -> jax.Array:
        return (evaluate(moved(u)) - y) * weight

    def search(carry: tuple[_Search, jax.Array]) -> tuple[_Search, jax.Array]:
        (best, step, least), tried = carry
        u = tuple(map(jnp.add, best, step))
        # Each part of the state is computed by itself, and would evaluate the model by itself.
        r, g, bends = lax.optimization_barrier(_derivatives(residual, u))
        cost = r * r + sum(each * each for each in u)
        better = cost <= least
        best = _where(better, u, best)
        step = _where(better, _newton_step(r, u, g, bends), [_SHORTER * each for each in step])
        last = jnp.stack([abs(s) <= _LAST * (1.0 + abs(b)) for s, b in zip(step, best, strict=True)]).all(axis=0)
        best, step = lax.optimization_barrier(
            (_where(last, map(jnp.add, best, step), best), _where(last, map(jnp.zeros_like, step), step))
        )
        return _Search(best, step, jnp.where(better, cost, least)), tried + 1

    def more(carry: tuple[_Search, jax.Array]) -> jax.Array:
        (_, step, _), tried = carry
        return jnp.stack(step).any() & (tried < _MOST)

    none = tuple(jnp.zeros_like(y) for _ in errors)
    start = search((_Search(none, none, jnp.full_like(y, jnp.inf)), jnp.zeros((), int)))
    (u, step, _), _ = lax.while_loop(more, search, start)
    _, g, _ = lax.optimization_barrier(_derivatives(residual, u))
    stretch = jnp.ones_like(y) + sum(each * each for each in g)
    lost = jnp.stack(step).any(axis=0)
    return Nearest(moved(u), jnp.where(lost, jnp.nan, weight / jnp.sqrt(stretch)), stretch)


def _where(wanted: jax.Array, new: Iterable[jax.Array], old: Iterable[jax.Array]) -> tuple[jax.Array, ...]:
    return tuple(jnp.where(wanted, a, b) for a, b in zip(new, old, strict=True))


def _derivatives(
    residual: Callable[..., jax.Array], u: Sequence[jax.Array]
) -> tuple[jax.Array, list[jax.Array], Triangle]:
    """Return the residual, its first derivatives, and the lower triangle of its second ones, row by row."""
    ones, zeros, k = jnp.ones_like(u[0]), jnp.zeros_like(u[0]), len(u)
    tangents = [tuple(ones if i == j else zeros for j in range(k)) for i in range(k)]

    def first(*u: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        values = [jax.jvp(residual, u, tangent) for tangent in tangents]
        return values[0][0], [slope for _, slope in values]

    # The values come with the derivatives: evaluated by themselves, they would take as long again.
    seen = [jax.jvp(first, tuple(u), tangent) for tangent in tangents]
    (r, g), _ = seen[0]
    return r, g, [bends[: i + 1] for i, (_, (_, bends)) in enumerate(seen)]


def _newton_step(
    r: jax.Array, u: Sequence[jax.Array], g: Sequence[jax.Array], bends: Triangle
) -> tuple[jax.Array, ...]:
    """Return the step to the minimum of ½ (r² + |u|²), without the second derivatives where these hold none."""
    plain = [[g[i] * g[j] + (1.0 if i == j else 0.0) for j in range(i + 1)] for i in range(len(u))]
    full = [[a + r * b for a, b in zip(*rows, strict=True)] for rows in zip(plain, bends, strict=True)]
    gradient = [displacement + r * each for displacement, each in zip(u, g, strict=True)]
    if len(u) == 1:
        return (-gradient[0] / jnp.where(full[0][0] > 0, full[0][0], plain[0][0]),)
    _, least = cholesky(full)
    root, _ = cholesky(choose(least > 0, full, plain))
    return tuple(-each for each in substitute_back(root, substitute(root, gradient)))
