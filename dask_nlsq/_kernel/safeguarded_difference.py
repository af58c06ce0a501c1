r"""Differences in place of single derivatives that are not finite although the model is.

A derivative may be NaN or infinite in a row where the model has a value: :math:`(t/\tau)^\beta` at t = 0, an
exponential that overflows below a fraction bar, a square root at zero, the branch of ``where`` that is not taken. For
such an entry alone, the slopes

.. math:: D_k = \frac{f(\theta + h_k e_j) - f(\theta - h_k e_j)}{2 h_k}, \qquad h_k = 10^{-k} h_0,

are formed one after another, of one side only where the other side is not finite, and each is extrapolated with the
one before it (Ridders, Adv. Eng. Software 4:75-76, 1982). The change of the extrapolated value, plus what rounding
makes of the slope, is its error. The search begins with steps that are long beside the parameter, or beside 1 for a
small parameter, so that it depends neither on the units of the model nor on the rows beside this one:

- It ends where the error is below 1e-9 of the value.
- It ends with exactly 0 where three steps in a row change nothing in the model.
- Of two values that contradict each other, each of a small error, the one of the shorter step is taken, for a long
  step may leap over what the model does nearby.
- A kink that is symmetric, as of :math:`\sqrt{|u|}` at u = 0, has the central slope 0.
- Where the slopes do not settle, the derivative is infinite, as that of :math:`\sqrt{u}` at the end of its domain:
  the entry stays as it is, and the point is refused.
- A parameter that has no derivative in any row, where each would be 0, is one that the model stops using beyond the
  end of its domain, as in ``sqrt(maximum(b, 0))`` at b < 0: that point is refused too (`Reduction.finite`).

The same rule serves NumPy and JAX: `refine` is handed the array module.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from dask_nlsq._model import Objective
from dask_nlsq._typing import Matrix, Vector

A = TypeVar("A", npt.NDArray[Any], jax.Array)

EPS = float(np.finfo(float).eps)

_LONG, _SHORT = 12, 8
"""Steps tried from a tenth of the parameter, or of 1 if that is larger, and then from a tenth of a parameter below 1,
which may be in small units."""

_GRAIN = 4.0 * EPS
"""Relative change of the model that is rounding."""

_FLAT = 3
"""Steps that must change nothing for a derivative to be 0."""

_SETTLED, _ACCEPTED = 1e-9, 1e-4
"""Relative errors at which a search ends, and up to which its result is a derivative: a slope that grows as
:math:`h^{-a}` changes by far more from step to step."""


class Search(NamedTuple, Generic[A]):
    """What is known of some derivatives, each (rows,), after some steps."""

    slope: A  # of the last step
    value: A  # extrapolated from it
    best: A
    error: A  # of the best
    grain: A  # what rounding makes of the best
    flat: A  # steps in a row that changed nothing
    open: A  # whether more steps are needed

    @property
    def accepted(self) -> A:
        """Whether the best is a derivative."""
        size = abs(self.best)
        return (self.error <= _ACCEPTED * size) | (self.error <= 1e3 * self.grain)


_Carry: TypeAlias = tuple[int | jax.Array, Search[jax.Array]]
"""Number of steps that were tried, and the search, in a loop of JAX."""


def begin(xp: ModuleType, wanted: A) -> Search[A]:
    """Return the search for the derivatives that are wanted, (rows,)."""
    nothing, far = xp.full(wanted.shape, xp.nan), xp.full(wanted.shape, xp.inf)
    return Search(nothing, nothing, nothing, far, xp.zeros(wanted.shape), xp.zeros(wanted.shape, int), wanted)


def refine(xp: ModuleType, search: Search[A], f: A, up: A, down: A, ahead: float | A, behind: float | A) -> Search[A]:
    """Return the search after one more step.

    Parameters
    ----------
    f, up, down : array (rows,)
        The model at the parameter, and `ahead` and `behind` of it.
    """
    right, left = xp.isfinite(up), xp.isfinite(down)
    up, down = xp.where(right, up, f), xp.where(left, down, f)
    width = xp.where(right, ahead, 0.0) + xp.where(left, behind, 0.0)
    width = xp.where(width > 0, width, xp.nan)
    slope = (up - down) / width
    # Richardson's extrapolation for steps that shrink by 10: the error of a central slope goes as h², which gives 10² −
    # 1, that of a slope of one side as h, which gives 10 − 1.
    value = slope + (slope - search.slope) / xp.where(right & left, 99.0, 9.0)
    grain = _GRAIN * xp.maximum(abs(f), xp.maximum(abs(up), abs(down))) / width
    error = abs(value - search.value) + grain
    other = (error <= _ACCEPTED * abs(value)) & (abs(value - search.best) > 10.0 * (error + search.error))
    better = search.open & ((error <= search.error) | other)
    best, least, rounding = (
        xp.where(better, new, old) for new, old in ((value, search.best), (error, search.error), (grain, search.grain))
    )
    still = xp.maximum(abs(up - f), abs(down - f)) <= _GRAIN * abs(f)
    flat = xp.where(still & (width > 0), search.flat + 1, 0)
    zero = search.open & (flat >= _FLAT) & ~(least <= _ACCEPTED * abs(best))
    best, least = xp.where(zero, 0.0, best), xp.where(zero, 0.0, least)
    settled = zero | (better & (error <= _SETTLED * abs(value)))
    return Search(slope, value, best, least, rounding, flat, search.open & ~settled)


def steps(xp: ModuleType, value: float | A) -> A:
    """Return the steps to be tried from a parameter of this value, the longest first."""
    size = abs(value)
    long = xp.maximum(size, 1.0) * np.logspace(-1, -_LONG, _LONG)
    tried: A = xp.concatenate([long, xp.minimum(size, 1.0) * np.logspace(-1, -_SHORT, _SHORT)])
    return tried


def filled(xp: ModuleType, search: Search[A], column: A) -> A:
    """Return a column of the Jacobian with the derivatives that were found."""
    # A slope that is all rounding is 0, and not a small number of either sign.
    derivative = xp.where(abs(search.best) <= search.grain, 0.0, search.best)
    mended: A = xp.where(xp.isfinite(column) | ~search.accepted, column, derivative)
    return mended


def mend(evaluate: Callable[[Vector], Vector], theta: Vector, f: Vector, jac: Matrix) -> Matrix:
    """Return the Jacobian (p, rows) of a NumPy model with differences where it is not finite though f (rows,) is."""
    jac = jac.copy()
    wanted = ~np.isfinite(jac) & np.isfinite(f)
    for j in np.flatnonzero(wanted.any(axis=1)):
        search = begin(np, wanted[j])
        for h in steps(np, theta[j]):
            if not search.open.any():
                break
            ahead, behind = theta.copy(), theta.copy()
            ahead[j], behind[j] = theta[j] + h, theta[j] - h
            search = refine(np, search, f, evaluate(ahead), evaluate(behind), ahead[j] - theta[j], theta[j] - behind[j])
        jac[j] = np.where(wanted[j], filled(np, search, jac[j]), jac[j])
    return jac


def mend_tile(
    objective: Objective, theta: jax.Array, x: Sequence[jax.Array], weight: jax.Array, a: Sequence[jax.Array]
) -> tuple[list[jax.Array], jax.Array, jax.Array]:
    """Do to the parts of A what `mend` does to a Jacobian, as JAX traces it.

    Rows of weight 0, those that fill up a tile among them, have the derivative 0.

    Returns
    -------
    list of array, array (p, rows), array (p, rows)
        The parts of A, which derivatives are differences, and which of those are 0.
    """
    p, sizes = objective.n_parameters, np.cumsum([len(part) for part in a])

    def at(theta: jax.Array) -> jax.Array:
        return values(objective, theta, x)

    whole, f = jnp.concatenate(a), at(theta)
    bad = ~jnp.isfinite(whole[:p])
    jac = jnp.where(bad & (weight == 0), 0.0, whole[:p])
    wanted = bad & jnp.isfinite(f) & (weight > 0)

    def column(j: jax.Array, jac: jax.Array) -> jax.Array:
        tried = steps(jnp, theta[j])

        def step(carry: _Carry) -> _Carry:
            k, search = carry
            up, down = theta.at[j].add(tried[k]), theta.at[j].add(-tried[k])
            return k + 1, refine(jnp, search, f, at(up), at(down), up[j] - theta[j], theta[j] - down[j])

        def more(carry: _Carry) -> jax.Array | bool:
            return (carry[0] < len(tried)) & carry[1].open.any()

        start: _Carry = 0, begin(jnp, wanted[j])
        _, search = lax.while_loop(more, step, start)
        # The columns of A are weighted already, and the search works on the model itself.
        derivative = filled(jnp, search, jac[j] / jnp.where(weight > 0, weight, 1.0)) * weight
        return jac.at[j].set(jnp.where(wanted[j], derivative, jac[j]))

    jac = lax.fori_loop(0, p, column, jac)
    return jnp.split(whole.at[:p].set(jac), sizes[:-1]), wanted & jnp.isfinite(jac), wanted & (jac == 0)


def values(objective: Objective, theta: jax.Array, x: Sequence[jax.Array]) -> jax.Array:
    """Return the model at the rows of a tile, each row by itself, as JAX traces it."""

    def one_row(x_row: Sequence[jax.Array]) -> jax.Array:
        value = objective.evaluate([c[None] for c in x_row], list(theta), jnp.stack)
        return jnp.asarray(value, jnp.float64)[0]

    return jax.vmap(one_row)(x)
