"""Additive: a traced model that is a sum, as its terms; terms of one form are one program with several parameters.

A sum of eighty peaks is the program of one peak and eighty rows of parameters. Like terms are evaluated and
differentiated side by side, each with respect to its own parameters, so that there is no more code for many than for
one. The terms are found in the program that JAX traces, where a sum of models, a formula and a function with a loop are
the same.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.extend import core

from dask_nlsq._kernel.compile_cache import once
from dask_nlsq._model import Objective

Indices = npt.NDArray[np.intp]

_TERMS = 10_000
"""Most terms: a program that doubles a value again and again has more than can be listed."""

_SHAPES = frozenset(("broadcast_in_dim", "convert_element_type", "copy", "reshape", "slice", "squeeze"))
"""Operations that hand on the one number of a row as it is."""

_CALLS = frozenset(("jit", "pjit"))
"""Operations that call a function."""


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Terms of one form."""

    term: Callable[..., jax.Array]  # of one row's columns, then the parameters of one term
    places: Indices  # (parameters of a term, terms): which of all parameters each is


@dataclasses.dataclass(frozen=True, eq=False)
class Additive:
    """A model as a sum of groups of terms."""

    groups: tuple[Group, ...]
    held: tuple[float, ...]  # values of the parameters that are not free, which come after those that are
    p: int  # free parameters

    def columns(self, theta: jax.Array, x: Sequence[jax.Array], weight: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        """Return the model, (rows,), and its derivatives times the weight, blocks (columns, rows) in their `order`."""
        everything = jnp.concatenate([theta, np.array(self.held)])
        f, alone = jnp.zeros_like(weight), []
        shared = {j: jnp.zeros_like(weight) for j in self._shared}
        for group in self.groups:
            shape = (group.places.shape[1], len(weight))
            parameters = [jnp.broadcast_to(everything[slot][:, None], shape) for slot in group.places]
            values, pull = jax.vjp(functools.partial(_each, group.term, x, shape), *parameters)
            for k in range(len(values)):  # a sum over an axis is handed to a library, which takes longer
                f = f + values[k]
            for slot, block in zip(group.places, pull(jnp.broadcast_to(weight, shape)), strict=True):
                if self._is_alone(slot):
                    alone.append(block)
                    continue
                for j in np.unique(slot[slot < self.p]).tolist():
                    shared[j] = shared[j] + jnp.sum(block[slot == j], axis=0)
        return f, [*alone, *(column[None] for column in shared.values())]

    @functools.cached_property
    def order(self) -> Indices:
        """Which parameter each column belongs to, (p,)."""
        return np.concatenate([*self._alone, np.array(self._shared, np.intp)])

    @functools.cached_property
    def _alone(self) -> list[Indices]:
        return [slot for group in self.groups for slot in group.places if self._is_alone(slot)]

    @functools.cached_property
    def _shared(self) -> list[int]:
        """Free parameters whose columns are sums over terms."""
        alone = np.concatenate([*self._alone, np.zeros(0, np.intp)])
        return [j for j in range(self.p) if j not in alone]

    def _is_alone(self, slot: Indices) -> bool:
        """Whether the derivatives with respect to one parameter of each of some terms are columns as they are."""
        return bool((slot < self.p).all() and (self._uses[slot] == 1).all())

    @functools.cached_property
    def _uses(self) -> Indices:
        """In how many terms each parameter stands."""
        return np.bincount(np.concatenate([group.places.ravel() for group in self.groups]), minlength=self.p)


def _each(
    term: Callable[..., jax.Array], x: Sequence[jax.Array], shape: tuple[int, int], *parameters: jax.Array
) -> jax.Array:
    """Return the values of like terms at each row, (terms, rows)."""
    if not parameters:
        return jnp.broadcast_to(jax.vmap(term)(*x), shape)
    k, q = len(x), len(parameters)
    rows = jax.vmap(term, (0,) * (k + q))
    values: jax.Array = jax.vmap(rows, (None,) * k + (0,) * q)(*x, *parameters)
    return values


def additive(objective: Objective) -> Additive | None:
    """Return the model as a sum in which some terms have one form; None where it is not one."""
    return once(objective, "additive", lambda: _find(objective))


def _find(objective: Objective) -> Additive | None:
    p, n = objective.n_parameters, objective.n_columns
    expansion = objective.expansion
    # Values that are held are inputs too: as constants they would tell like terms apart.
    held = {} if expansion is None else {k: v for k, v in expansion.fixed.items() if not isinstance(v, int)}

    def one_row(*arguments: jax.Array) -> jax.Array:
        x, theta = [c[None] for c in arguments[:n]], arguments[n : n + p]
        known = objective
        if expansion is not None:
            fixed: Any = {**expansion.fixed, **dict(zip(held, arguments[n + p :], strict=True))}
            known = dataclasses.replace(objective, expansion=dataclasses.replace(expansion, fixed=fixed))
        return jnp.asarray(known.evaluate(x, theta, jnp.stack), jnp.float64)[0]

    scalar = jax.ShapeDtypeStruct((), np.float64)
    with jax.enable_x64(True):
        closed = _opened(jax.make_jaxpr(one_row)(*[scalar] * (n + p + len(held))))
    if closed.effects:
        return None
    alike: dict[tuple[int, Hashable], list[tuple[core.Jaxpr, list[int]]]] = {}
    for sign, atom in _terms(closed.jaxpr):
        if isinstance(atom, core.Literal) and atom.val == 0:  # sum() begins with it
            continue
        program = _needed(closed.jaxpr, atom)
        form, used = _form(program, n)
        alike.setdefault((sign, form), []).append((program, used))
    if all(len(terms) == 1 for terms in alike.values()):
        return None
    groups = [
        Group(_term(closed, *terms[0], sign, n), np.array([used for _, used in terms], np.intp).T - n)
        for (sign, _), terms in alike.items()
    ]
    return Additive(tuple(groups), tuple(held.values()), p)


def _opened(closed: core.ClosedJaxpr) -> core.ClosedJaxpr:
    """Return a program whose value is not made by the call of one function, as that of a compiled model is."""
    while True:
        atom, made = closed.jaxpr.outvars[0], _makers(closed.jaxpr)
        while (eqn := _maker(made, atom)) is not None and _hands_on(eqn):
            atom = eqn.invars[0]
        if eqn is None or eqn.primitive.name not in _CALLS:
            return closed
        closed = _without_call(closed, eqn, eqn.outvars.index(atom))


def _without_call(closed: core.ClosedJaxpr, call: core.JaxprEqn, place: int) -> core.ClosedJaxpr:
    """Return the program of one result of a call, with the function in place of the call."""
    before = [core.jaxpr_as_fun(core.ClosedJaxpr(_needed(closed.jaxpr, a), closed.consts)) for a in call.invars]
    inside = core.jaxpr_as_fun(call.params["jaxpr"])

    def program(*arguments: jax.Array) -> jax.Array:
        return jnp.reshape(inside(*(argument(*arguments)[0] for argument in before))[place], ())

    return jax.make_jaxpr(program)(
        *(jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in closed.jaxpr.invars)
    )


def _makers(jaxpr: core.Jaxpr) -> dict[core.Var, core.JaxprEqn]:
    return {var: eqn for eqn in jaxpr.eqns for var in eqn.outvars}


def _maker(made: dict[core.Var, core.JaxprEqn], atom: core.Var | core.Literal) -> core.JaxprEqn | None:
    """Return the equation that makes a value; None for an input or a number."""
    return None if isinstance(atom, core.Literal) else made.get(atom)


def _hands_on(eqn: core.JaxprEqn) -> bool:
    """Whether an equation hands on one float64 in another shape."""
    operand: Any = eqn.invars[0].aval if eqn.invars else None
    return (
        eqn.primitive.name in _SHAPES
        and eqn.outvars[0].aval.size == operand.size == 1  # type: ignore[attr-defined]  # of every array
        and eqn.outvars[0].aval.dtype == operand.dtype == np.float64  # type: ignore[attr-defined]
    )


def _terms(jaxpr: core.Jaxpr) -> list[tuple[int, core.Var | core.Literal]]:
    """Return the terms of a program's value, each with its sign, from the left; the value itself where it is no sum."""
    made, found = _makers(jaxpr), []
    left: list[tuple[int, core.Var | core.Literal]] = [(1, jaxpr.outvars[0])]
    while left:
        sign, atom = left.pop()
        eqn = _maker(made, atom)
        name = "" if eqn is None else eqn.primitive.name
        if eqn is not None and name in ("add", "add_any", "sub"):
            left += [(-sign if name == "sub" else sign, eqn.invars[1]), (sign, eqn.invars[0])]
        elif eqn is not None and name == "neg":
            left.append((-sign, eqn.invars[0]))
        elif eqn is not None and _hands_on(eqn):
            left.append((sign, eqn.invars[0]))
        else:
            found.append((sign, atom))
        if len(found) + len(left) > _TERMS:
            return [(1, jaxpr.outvars[0])]
    return found


def _needed(jaxpr: core.Jaxpr, atom: core.Var | core.Literal) -> core.Jaxpr:
    """Return the part of a program that one of its values needs."""
    wanted, eqns = _variables([atom]), []
    for eqn in reversed(jaxpr.eqns):
        if not wanted.isdisjoint(eqn.outvars):
            eqns.append(eqn)
            wanted |= _variables(eqn.invars)
    needed: core.Jaxpr = jaxpr.replace(eqns=eqns[::-1], outvars=[atom])
    return needed


def _variables(atoms: Iterable[core.Var | core.Literal]) -> set[core.Var]:
    return {atom for atom in atoms if not isinstance(atom, core.Literal)}


def _form(jaxpr: core.Jaxpr, n: int) -> tuple[Hashable, list[int]]:
    """Return what a program is, whatever its inputs but the first n, and which of these it uses, in that order."""
    names: dict[core.Var, Hashable] = {var: ("constant", i) for i, var in enumerate(jaxpr.constvars)}
    names |= {var: ("column", i) for i, var in enumerate(jaxpr.invars[:n])}
    places = {var: i for i, var in enumerate(jaxpr.invars)}
    used: list[int] = []

    def name(atom: core.Var | core.Literal) -> Hashable:
        if isinstance(atom, core.Literal):
            return str(atom.aval), np.asarray(atom.val).tobytes()
        if atom not in names:
            names[atom] = ("parameter", len(used))
            used.append(places[atom])
        return names[atom]

    lines = []
    for k, eqn in enumerate(jaxpr.eqns):
        parameters = tuple((key, _stands_for(value)) for key, value in sorted(eqn.params.items()))
        operands = tuple(name(atom) for atom in eqn.invars)
        lines.append((eqn.primitive.name, parameters, operands, tuple(str(var.aval) for var in eqn.outvars)))
        names |= {var: (k, i) for i, var in enumerate(eqn.outvars)}
    return (tuple(lines), tuple(name(atom) for atom in jaxpr.outvars)), used


def _stands_for(value: Any) -> Hashable:
    """Return something that is equal for values that mean the same; what is not known stands for itself alone."""
    if isinstance(value, (core.ClosedJaxpr, core.Jaxpr)):
        inner: Any = getattr(value, "jaxpr", value)  # newer versions of JAX have one class for both
        return _form(inner, len(inner.invars))[0], tuple(map(id, getattr(value, "consts", ())))
    if isinstance(value, (tuple, list)):
        return tuple(map(_stands_for, value))
    try:
        hash(value)
    except TypeError:
        return id(value)
    same: Hashable = value
    return same


def _term(
    closed: core.ClosedJaxpr, program: core.Jaxpr, used: Sequence[int], sign: int, n: int
) -> Callable[..., jax.Array]:
    """Return a term as a function of the columns of a row and its own parameters."""
    run = core.jaxpr_as_fun(core.ClosedJaxpr(program, closed.consts))

    def term(*arguments: jax.Array) -> jax.Array:
        given = [*arguments[:n], *[jnp.zeros(())] * (len(program.invars) - n)]
        for place, value in zip(used, arguments[n:], strict=True):
            given[place] = value
        (value,) = run(*given)
        return sign * jnp.reshape(value, ())

    return term
