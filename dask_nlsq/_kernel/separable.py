r"""Separable: in which parameters a model is linear while the others stand still.

Most models are a sum :math:`f(x; \alpha, \beta) = \phi_0(x; \alpha) + \sum_k \beta_k \phi_k(x; \alpha)` with
amplitudes and levels :math:`\beta`. Which parameters those are follows from the traced program: each operation says
which second derivatives of its result with respect to the parameters may differ from zero. An operation that is not
known here counts as nonlinear in all that enters it, so that nothing is called linear that is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.extend import core

from dask_nlsq._kernel.compile_cache import once
from dask_nlsq._model import Objective

Flags = npt.NDArray[np.bool_]

_ROWS = 8

_LINEAR = frozenset(
    [
        "add",
        "add_any",
        "broadcast_in_dim",
        "concatenate",
        "copy",
        "cumsum",
        "expand_dims",
        "neg",
        "pad",
        "real",
        "imag",
        "reduce_sum",
        "reshape",
        "rev",
        "slice",
        "split",
        "squeeze",
        "stack",
        "sub",
        "tile",
        "transpose",
        "unstack",
    ]
)
"""Operations that are linear in all their operands together."""

_BILINEAR = frozenset(("mul", "dot_general", "conv_general_dilated"))

_INDEXED = frozenset(("gather", "dynamic_slice"))
"""Operations that are linear in the first operand; the others say which of its elements are taken."""

_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
"""Names under which an operation that calls a program holds it."""

# One walk through their programs would miss what an iteration feeds back, and which branch is taken.
_CONTROL = frozenset(("while", "scan", "cond"))


class Linearity(NamedTuple):
    """What is known of each parameter, (p,)."""

    linear: Flags  # the model is linear in all of these together
    coupled: Flags  # those of them that scale the derivative with respect to another parameter


class _Value(NamedTuple):
    """What a value in the program depends on."""

    first: Flags  # (p,), parameters that it depends on
    second: Flags  # (p, p), pairs with respect to which its second derivative may differ from zero


def linearity(objective: Objective) -> Linearity:
    """Return the parameters in which the model is linear, from its traced program; none where it cannot be traced."""
    return once(objective, "linearity", lambda: _find(objective))


def none_linear(p: int) -> Linearity:
    """Return what is said of a model of which nothing is known."""
    return Linearity(np.zeros(p, bool), np.zeros(p, bool))


def _find(objective: Objective) -> Linearity:
    p = objective.n_parameters
    if not objective.ordinary:
        return none_linear(p)
    if objective.jacobian == "numeric":
        known = getattr(objective.model.func, "linearity", None)
        return none_linear(p) if known is None or objective.expansion is not None else known
    column = jax.ShapeDtypeStruct((_ROWS,), np.float64)
    return find(lambda t, *x: objective.evaluate(x, t, jnp.stack), p, [column] * objective.n_columns)


def find(evaluate: Callable[..., Any], p: int, columns: Sequence[jax.ShapeDtypeStruct] = ()) -> Linearity:
    """Return the parameters in which ``evaluate(parameters, *columns)`` is linear, from its traced program."""
    scalars = [jax.ShapeDtypeStruct((), np.float64)] * p
    with jax.enable_x64(True):
        closed = jax.make_jaxpr(evaluate)(scalars, *columns)
    arguments = [_parameter(j, p) for j in range(p)] + [_constant(p)] * len(columns)
    (value,) = _walk(closed.jaxpr, arguments, p)
    return _choose(value.second)


def _choose(second: Flags) -> Linearity:
    """Return parameters of which no two have a second derivative; those that stand in the way of few come first."""
    candidates = [j for j in range(len(second)) if not second[j, j]]
    clashes = {j: int(second[j, candidates].sum()) for j in candidates}
    linear = np.zeros(len(second), bool)
    for j in sorted(candidates, key=lambda j: (clashes[j], j)):
        linear[j] = not second[j, linear].any()
    return Linearity(linear, linear & second[:, ~linear].any(axis=1))


def _parameter(j: int, p: int) -> _Value:
    return _Value(np.arange(p) == j, np.zeros((p, p), bool))


def _constant(p: int) -> _Value:
    return _Value(np.zeros(p, bool), np.zeros((p, p), bool))


def _walk(jaxpr: core.Jaxpr, arguments: Sequence[_Value], p: int) -> list[_Value]:
    """Return what the results of a program depend on, given what its arguments do."""
    known: dict[core.Var, _Value] = {var: _constant(p) for var in jaxpr.constvars}
    known |= dict(zip(jaxpr.invars, arguments, strict=True))

    def of(atom: core.Var | core.Literal) -> _Value:
        return _constant(p) if isinstance(atom, core.Literal) else known[atom]

    for eqn in jaxpr.eqns:
        results = _apply(eqn.primitive.name, eqn.params, [of(atom) for atom in eqn.invars], len(eqn.outvars), p)
        known |= dict(zip(eqn.outvars, results, strict=True))
    return [of(atom) for atom in jaxpr.outvars]


def _apply(name: str, params: Mapping[str, Any], operands: Sequence[_Value], results: int, p: int) -> list[_Value]:
    """Return what the results of an operation depend on."""
    if not any(value.first.any() for value in operands):
        return [_constant(p)] * results
    called = next((params[key] for key in _CALLS if key in params), None)
    if called is not None and name not in _CONTROL:
        inner = getattr(called, "jaxpr", called)
        if hasattr(inner, "eqns") and len(inner.invars) == len(operands):
            return _walk(inner, operands, p)
    return [_result(name, params, operands, p)] * results


def _result(name: str, params: Mapping[str, Any], operands: Sequence[_Value], p: int) -> _Value:
    first = np.logical_or.reduce([value.first for value in operands])
    second = np.logical_or.reduce([value.second for value in operands])
    # Conversion to an integer is a step function, and so not linear.
    if name in _LINEAR or (name == "convert_element_type" and np.dtype(params["new_dtype"]).kind in "fc"):
        return _Value(first, second)
    if name in _BILINEAR:
        return _Value(first, second | _pairs(*(value.first for value in operands)))
    if name == "div":
        above, below = (value.first for value in operands)
        return _Value(first, second | _pairs(above, below) | _pairs(below, below))
    if name == "select_n":
        # Which case is selected may depend on a parameter too.
        return _Value(first, second | _pairs(operands[0].first, first))
    if name in _INDEXED:
        chosen = np.logical_or.reduce([value.first for value in operands[1:]])
        return _Value(first, second | _pairs(chosen, first))
    if name == "integer_pow" and params["y"] == 1:
        return _Value(first, second)
    return _Value(first, second | _pairs(first, first))


def _pairs(left: Flags, right: Flags) -> Flags:
    both: Flags = np.outer(left, right)
    return both | both.T
