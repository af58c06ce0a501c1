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

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from dask_nlsq._kernel.lanes import Triangle, cholesky, substitute, substitute_back
from dask_nlsq._model import Objective

_LAST = 1e-6
"""Newton step, beside 1 and the displacement, after which a row is where it belongs to the last digits."""

_SHORTER = 0.25
"""By what a step is shortened that does not lower the sum of squares."""

_MOST = 100
"""Steps after which a row has no nearest point that is found: its residual is NaN, and the point is refused."""


class Nearest(NamedTuple):
    """Rows at the points of the curve that are nearest, each (rows,)."""

    x: tuple[jax.Array, ...]  # all columns, moved where they have errors
    weight: jax.Array  # w / √(1 + |g|²), NaN where no nearest point was found
    stretch: jax.Array  # 1 + |g|²: so much more than the distance along y is that residual, in units of that weight


class _Search(NamedTuple):
    u: tuple[jax.Array, ...]  # the best so far
    step: tuple[jax.Array, ...]  # that is tried next
    cost: jax.Array
    open: jax.Array  # rows that go on
    tried: jax.Array


def nearest(
    objective: Objective,
    evaluate: Callable[[Sequence[jax.Array]], jax.Array],
    x: Sequence[jax.Array],
    y: jax.Array,
    weight: jax.Array,
) -> Nearest:
    """Move rows to the nearest points of the curve ``evaluate(x)``, whose parameters are constants here."""
    errors = objective.errors
    sigma = [x[each.sigma] if isinstance(each.sigma, int) else jnp.full_like(y, each.sigma) for each in errors]

    def moved(u: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
        columns = list(x)
        for each, s, displacement in zip(errors, sigma, u, strict=True):
            columns[each.place] = x[each.place] + s * displacement
        return tuple(columns)

    def residual(*u: jax.Array) -> jax.Array:
        return (evaluate(moved(u)) - y) * weight

    def search(state: _Search) -> _Search:
        u = tuple(a + b for a, b in zip(state.u, state.step, strict=True))
        r, g, bends = _derivatives(residual, u)
        cost = r * r + sum(each * each for each in u)
        better = cost <= state.cost
        newton = _newton_step(r, u, g, bends)
        step = tuple(jnp.where(better, new, _SHORTER * old) for new, old in zip(newton, state.step, strict=True))
        best = tuple(jnp.where(better, new, old) for new, old in zip(u, state.u, strict=True))
        small = jnp.stack([abs(s) <= _LAST * (1.0 + abs(b)) for s, b in zip(step, best, strict=True)]).all(axis=0)
        going = state.open & ~small
        # Rows that have ended keep what they ended with, whatever the others of the tile still need.
        kept = state._replace(
            u=_where(state.open, best, state.u),
            step=_where(state.open, step, state.step),
            cost=jnp.where(state.open & better, cost, state.cost),
        )
        return kept._replace(open=going, tried=state.tried + 1)

    none = tuple(jnp.zeros_like(y) for _ in errors)
    start = _Search(none, none, jnp.full_like(y, jnp.inf), weight > 0, jnp.zeros((), int))
    found = lax.while_loop(lambda state: state.open.any() & (state.tried < _MOST), search, start)
    u = tuple(a + b for a, b in zip(found.u, found.step, strict=True))
    _, g, _ = _derivatives(residual, u)
    stretch = jnp.ones_like(y) + sum(each * each for each in g)
    return Nearest(moved(u), jnp.where(found.open, jnp.nan, weight / jnp.sqrt(stretch)), stretch)


def _where(wanted: jax.Array, new: Sequence[jax.Array], old: Sequence[jax.Array]) -> tuple[jax.Array, ...]:
    return tuple(jnp.where(wanted, a, b) for a, b in zip(new, old, strict=True))


def _derivatives(
    residual: Callable[..., jax.Array], u: Sequence[jax.Array]
) -> tuple[jax.Array, list[jax.Array], Triangle]:
    """Return the residual, its first derivatives, and the lower triangle of its second ones, row by row."""
    ones, zeros = jnp.ones_like(u[0]), jnp.zeros_like(u[0])

    def tangent(i: int) -> list[jax.Array]:
        return [ones if i == j else zeros for j in range(len(u))]

    def slope(i: int) -> Callable[..., jax.Array]:
        return lambda *u: jax.jvp(residual, u, tuple(tangent(i)))[1]

    first = [slope(i)(*u) for i in range(len(u))]
    second = [[jax.jvp(slope(i), tuple(u), tuple(tangent(j)))[1] for j in range(i + 1)] for i in range(len(u))]
    return residual(*u), first, second


def _newton_step(
    r: jax.Array, u: Sequence[jax.Array], g: Sequence[jax.Array], bends: Triangle
) -> tuple[jax.Array, ...]:
    """Return the step to the minimum of ½ (r² + |u|²), without the second derivatives where these hold none."""
    plain = [[g[i] * g[j] + (1.0 if i == j else 0.0) for j in range(i + 1)] for i in range(len(u))]
    full = [[a + r * b for a, b in zip(*rows, strict=True)] for rows in zip(plain, bends, strict=True)]
    _, least = cholesky(full)
    holds = (least > 0) & jnp.stack([row[-1] > 0 for row in full]).all(axis=0)
    root, _ = cholesky(
        [[jnp.where(holds, a, b) for a, b in zip(*rows, strict=True)] for rows in zip(full, plain, strict=True)]
    )
    gradient = [displacement + r * each for displacement, each in zip(u, g, strict=True)]
    return tuple(-each for each in substitute_back(root, substitute(root, gradient)))
