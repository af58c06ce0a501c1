"""Traced: what the program that JAX traces of a model tells, without running it.

Every equation of the program is walked once, those of inner functions and loops included, with what it depends on: the
parameters, the columns, both or neither. From that follow how the Jacobian is best formed, which constants have
float32 digits only, whether random numbers are drawn, and of most models that each row is treated by itself.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax.extend import core

from dask_nlsq._model import Objective

ROWS = 7
"""Rows for which a model is traced; an array that is as long as that holds something of each row."""

_NOTICEABLE = 16
"""Values that depend on the parameters and on no column, from which it matters how often they are computed."""

_OTHER_ROWS = 11
"""Rows for which a model is traced again, to see whether its numbers depend on how many there are."""

_ELEMENTWISE = {
    *("abs", "acos", "acosh", "add", "and", "asin", "asinh", "atan", "atan2", "atanh", "bessel_i0e"),
    *("bessel_i1e", "cbrt", "ceil", "clamp", "convert_element_type", "copy", "cos", "cosh", "digamma", "div"),
    *("eq", "erf", "erf_inv", "erfc", "exp", "exp2", "expm1", "floor", "ge", "gt", "igamma", "igammac"),
    *("imag", "integer_pow", "is_finite", "le", "lgamma", "log", "log1p", "logistic", "lt", "max", "min"),
    *("mul", "ne", "neg", "nextafter", "not", "or", "pow", "real", "regularized_incomplete_beta", "rem"),
    *("round", "rsqrt", "select_n", "sign", "sin", "sinh", "sqrt", "square", "stop_gradient", "sub", "tan"),
    *("tanh", "xor", "zeta"),
}
"""Operations that treat every element by itself."""

_REDUCTIONS = {"reduce_and", "reduce_max", "reduce_min", "reduce_or", "reduce_prod", "reduce_sum"}
"""Operations along axes, which are those of no row where the last axis is not among them."""

_RESHAPES = {"concatenate", "dynamic_slice", "expand_dims", "reshape", "slice", "squeeze", "stack"}
"""Operations that leave each row what it was where the last axis is as long after them as before."""

_NUMBERS = r"(?<=[\[(,\s]){}(?=[\]),])"
"""A length, in the text of a program: in brackets of either kind."""

_TURNS = 100
"""Passes through a loop of unknown length that are reckoned with."""

_PARAMETERS, _COLUMNS = 1, 2

_EXACT = 2**24
"""Float32 holds every whole number up to this."""

_SINGLE = (np.dtype(np.float32), np.dtype(np.complex64))


def trace(objective: Objective, rows: int = ROWS) -> tuple[core.ClosedJaxpr, Any]:
    """Return the program of a model and what it returns, as shapes.

    Its inputs are the columns, each (rows,), then the free parameters.
    """
    column, scalar = jax.ShapeDtypeStruct((rows,), np.float64), jax.ShapeDtypeStruct((), np.float64)

    def model(x: Sequence[jax.Array], theta: Sequence[jax.Array]) -> Any:
        return objective.evaluate(x, theta, jnp.stack)

    with jax.enable_x64(True):
        program, out = jax.make_jaxpr(model, return_shape=True)(
            [column] * objective.n_columns, [scalar] * objective.n_parameters
        )
    return program, out


@dataclasses.dataclass
class Work:
    """Values that a program computes: from parameters alone, and for all rows together."""

    shared: float = 0.0
    rows: float = 0.0

    def add(self, depends: int, values: float) -> None:
        """Count some values by what they depend on; constants do not count."""
        if depends & _COLUMNS:
            self.rows += values
        elif depends:
            self.shared += values


def work(program: core.ClosedJaxpr, columns: int) -> Work:
    """Return how much of a program is done once for all rows and how much for each, in values per row."""
    counted = Work()
    depends = [_COLUMNS] * columns + [_PARAMETERS] * (len(program.jaxpr.invars) - columns)
    _walk(program.jaxpr, depends, 1.0, counted)
    return dataclasses.replace(counted, rows=counted.rows / ROWS)


def shares(program: core.ClosedJaxpr, columns: int) -> bool:
    r"""Whether the rows of a tile should share what depends on the parameters alone.

    A reverse pass costs about three evaluations, in which each row computes it anew; p forward passes and an evaluation
    in which a tile computes it once cost p + 1 times what is left. With R values per row that depend on columns and S
    that do not, the latter is better where :math:`3 (R + S) > (p + 1) R`, and clearly so with 2 in place of 3.
    """
    counted, p = work(program, columns), len(program.jaxpr.invars) - columns
    return counted.shared > _NOTICEABLE and 2.0 * (counted.rows + counted.shared) > (p + 1) * counted.rows


def _walk(jaxpr: core.Jaxpr, depends: Sequence[int], times: float, counted: Work) -> list[int]:
    """Count the values of each equation, `times` over; return what each output depends on."""
    known = dict(zip(jaxpr.invars, depends, strict=True))

    def of(atom: core.Var | core.Literal) -> int:
        return 0 if isinstance(atom, core.Literal) else known.get(atom, 0)

    for equation in jaxpr.eqns:
        outputs = _equation(equation, list(map(of, equation.invars)), times, counted)
        known.update(zip(equation.outvars, outputs, strict=True))
    return list(map(of, jaxpr.outvars))


def _equation(equation: core.JaxprEqn, depends: list[int], times: float, counted: Work) -> list[int]:
    together = 0
    for dependence in depends:
        together |= dependence
    inner = list(_inner(equation))
    if not inner:
        shapes = [getattr(out.aval, "shape", ()) for out in equation.outvars]
        outputs = [together | (_COLUMNS if together and ROWS in shape else 0) for shape in shapes]
        for dependence, shape in zip(outputs, shapes, strict=True):
            counted.add(dependence, times * math.prod(shape))
        return outputs
    if equation.primitive.name == "scan":
        return _scan(equation, inner[0], depends, times, counted)
    outputs, turns = [0] * len(equation.outvars), _TURNS if equation.primitive.name == "while" else 1
    for jaxpr in inner:
        more = len(depends) - len(jaxpr.invars)  # a branch is not given what chooses it
        exact = turns == 1 and more in (0, 1)
        given = depends[more:] if exact else [together] * len(jaxpr.invars)
        ends = _walk(jaxpr, given, times * turns, counted)
        ends = ends if exact and more == 0 and len(ends) == len(outputs) else [together] * len(outputs)
        outputs = [a | b for a, b in zip(outputs, ends, strict=True)]
    return outputs


def _scan(equation: core.JaxprEqn, jaxpr: core.Jaxpr, depends: list[int], times: float, counted: Work) -> list[int]:
    """Count a loop of known length; what it carries depends on all that any pass puts there.

    Its inputs are constants, what it carries, and what it takes one by one, which has a dimension more outside; its
    outputs are what it carries, and what it stacks.
    """
    carried = sum(map(_as_deep, equation.outvars, jaxpr.outvars))
    first = sum(map(_as_deep, equation.invars, jaxpr.invars)) - carried
    while True:
        ends = _walk(jaxpr, depends, times, Work())
        carry = [a | b for a, b in zip(depends[first : first + carried], ends[:carried], strict=True)]
        if carry == depends[first : first + carried]:
            break
        depends = [*depends[:first], *carry, *depends[first + carried :]]
    return _walk(jaxpr, depends, times * equation.params["length"], counted)


def _as_deep(outside: core.Var | core.Literal, inside: core.Var | core.Literal) -> bool:
    """Whether a value has as many dimensions in a loop as around it."""
    return len(getattr(outside.aval, "shape", ())) == len(getattr(inside.aval, "shape", ()))


def treats_rows_alike(objective: Objective) -> bool:
    """Whether the program of a model proves that the value of each row depends on that row alone.

    There are models that do and whose program does not prove it; those are tried on some rows.
    """
    try:
        (program, out), (other, _) = trace(objective), trace(objective, _OTHER_ROWS)
    except Exception:  # whatever the user's function raises
        return False
    texts = [re.sub(_NUMBERS.format(rows), "n", str(p)) for rows, p in ((ROWS, program), (_OTHER_ROWS, other))]
    held = zip(constants(program), constants(other), strict=False)
    if texts[0] != texts[1] or not all(np.array_equal(a, b, equal_nan=True) for a, b in held):
        return False
    inputs = program.jaxpr.invars
    marks = _rows_apart(program.jaxpr, [i < objective.n_columns for i in range(len(inputs))])
    return marks == [True] and out.shape == (ROWS,)


def _rows_apart(jaxpr: core.Jaxpr, marks: Sequence[bool]) -> list[bool] | None:
    """Return which outputs have rows along their last axis, each computed from that row alone; None where unknown.

    The same of the inputs is in `marks`.
    """
    known = dict(zip(jaxpr.invars, marks, strict=True))

    def has_rows(atom: core.Var | core.Literal) -> bool:
        return not isinstance(atom, core.Literal) and known.get(atom, False)

    for equation in jaxpr.eqns:
        outputs = _rows_of(equation, list(map(has_rows, equation.invars)))
        if outputs is None or not all(map(_are_rows_only, equation.outvars, outputs)):
            return None
        known.update(zip(equation.outvars, outputs, strict=True))
    return list(map(has_rows, jaxpr.outvars))


def _are_rows_only(atom: core.Var, has_rows: bool) -> bool:
    """Whether no axis of a value is as long as there are rows, but for the last one of rows: no other may be summed."""
    shape = tuple(getattr(atom.aval, "shape", ()))
    return ROWS not in (shape[:-1] if has_rows else shape)


def _rows_of(equation: core.JaxprEqn, marks: list[bool]) -> list[bool] | None:
    """Return which outputs of an equation have rows along their last axis; None where that cannot be told."""
    name, inner = equation.primitive.name, list(_inner(equation))
    if inner:
        (jaxpr, *more), given = inner, len(equation.invars)
        plain = not more and name not in ("scan", "while", "cond")
        ends = _rows_apart(jaxpr, marks) if plain and len(jaxpr.invars) == given else None
        return ends if ends is not None and len(ends) == len(equation.outvars) else None
    shapes = [tuple(getattr(atom.aval, "shape", ())) for atom in equation.invars]
    sizes = [tuple(getattr(out.aval, "shape", ())) for out in equation.outvars]
    if name == "broadcast_in_dim":
        kept = equation.params["broadcast_dimensions"]
        along = bool(shapes[0]) and shapes[0][-1] == ROWS and len(kept) > 0 and kept[-1] == len(sizes[0]) - 1
        return [along] if marks[0] and along else None if marks[0] or along else [sizes[0][-1:] == (ROWS,)]
    if not any(marks):
        random = name.startswith(("random_", "threefry", "rng_")) or "callback" in name
        return None if random or equation.effects else [False] * len(sizes)
    if name in _ELEMENTWISE:
        # Beside rows, what has a last axis of its own would be others for each row.
        fits = all(mark or not shape for mark, shape in zip(marks, shapes, strict=True))
        return [True] * len(sizes) if fits else None
    last = all(shape[-1:] == (ROWS,) for mark, shape in zip(marks, shapes, strict=True) if mark)
    if name in _REDUCTIONS:
        return [True] if last and len(shapes[0]) - 1 not in equation.params["axes"] else None
    if name in _RESHAPES and last:
        across = equation.params.get("dimension", equation.params.get("axis")) == len(sizes[0]) - 1
        fits = all(mark or not shape for mark, shape in zip(marks, shapes, strict=True))
        return [True] if fits and not across and sizes[0][-1:] == (ROWS,) else None
    return None


def _inner(equation: core.JaxprEqn) -> Iterator[core.Jaxpr]:
    """Yield the programs that an equation holds: of a function, a loop, or branches."""
    for part in _held(equation):
        if isinstance(part, (core.ClosedJaxpr, core.Jaxpr)):
            yield part.jaxpr if isinstance(part, core.ClosedJaxpr) else part


def _closed(equation: core.JaxprEqn) -> list[core.ClosedJaxpr]:
    return [part for part in _held(equation) if isinstance(part, core.ClosedJaxpr)]


def _held(equation: core.JaxprEqn) -> list[object]:
    values = equation.params.values()
    return [part for value in values for part in (value if isinstance(value, (tuple, list)) else (value,))]


def _equations(jaxpr: core.Jaxpr) -> Iterator[core.JaxprEqn]:
    for equation in jaxpr.eqns:
        yield equation
        for part in _inner(equation):
            yield from _equations(part)


def draws(program: core.ClosedJaxpr) -> bool:
    """Whether a program draws random numbers."""
    return any(e.primitive.name.startswith(("random_", "threefry", "rng_")) for e in _equations(program.jaxpr))


def constants(program: core.ClosedJaxpr) -> list[Any]:
    """Return the arrays that a program holds, those of inner functions included."""
    held = [program, *(part for e in _equations(program.jaxpr) for part in _closed(e))]
    return [constant for part in held for constant in part.consts]


def single(constants: Iterable[object]) -> list[jax.Array]:
    """Return which constants are arrays of JAX with float32 digits only, where that may have cost some.

    Whole numbers up to 2**24, and numbers that float32 writes as they are, such as 0.5, have lost nothing. An array of
    NumPy is in float32 because somebody said so.
    """
    return [c for c in constants if isinstance(c, jax.Array) and c.dtype in _SINGLE and not _as_meant(np.asarray(c))]


def _as_meant(values: npt.NDArray[Any]) -> bool:
    """Whether every number is what its shortest decimal says: 0.5 is, and 0.1 of float32 is not."""
    parts = np.unique(np.stack([values.real, values.imag]) if values.dtype.kind == "c" else values)
    if (np.abs(parts[np.isfinite(parts)]) >= _EXACT).any():
        return False
    whole = parts == np.trunc(parts)
    return all(float(str(value)) == float(value) for value in parts[~whole & np.isfinite(parts)])
