r"""Composition of models: sums, renamed parameters, and a start for a sum.

A sum of formulas is a formula; any other sum is a `Sum`, which hands each part its own parameters.

A start for :math:`f_1 + f_2 + \dots` comes from the guesses of the parts: each part is guessed on what the earlier ones
leave, in several orders, since which part should come first depends on the data (a wide background before a peak, a
high peak before a low one). Every such start is improved by a short least-squares fit to some hundred rows, and the
best one is kept. That fit also takes care of what guesses from leftovers get wrong.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dask_nlsq._errors import ModelError
from dask_nlsq._model.expression import CONSTANTS, Expression
from dask_nlsq._model.guess import Guess
from dask_nlsq._model.parametric_function import ParametricFunction
from dask_nlsq._typing import Vector

M = TypeVar("M", bound=ParametricFunction)

ROWS = 500
"""Rows to which the start of a sum is fitted."""

ORDERS = 24
"""Most orders in which parts are guessed: all of four parts."""

TRIALS = 4
"""Starts, the best ones, that are improved."""

STEPS = 12
"""Steps of the fit that improves a start: it only has to tell good starts from bad ones."""

_NAME = re.compile(r"(?<![\w.])[A-Za-z]\w*", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Sum:
    """A sum of functions of the same column; each part takes its parameters under its own names."""

    parts: tuple[tuple[ParametricFunction, tuple[str, ...]], ...]  # with the names of its parameters in the sum

    def __call__(self, column: npt.ArrayLike, /, **values: Any) -> Any:
        """Evaluate every part and add up."""
        # sum() would begin with the number 0, which a trace would add too.
        first, *others = (part((column,), [values[name] for name in names], np.stack) for part, names in self.parts)
        return sum(others, first)


@dataclasses.dataclass(frozen=True)
class Renamed:
    """A guess whose names have changed."""

    guess: Guess
    names: Mapping[str, str]  # old to new

    def __call__(self, x: Sequence[Vector], y: Vector) -> dict[str, float]:
        """Guess, and rename."""
        return {self.names.get(name, name): value for name, value in self.guess(x, y).items()}


@dataclasses.dataclass(frozen=True)
class SumGuess:
    """A start for a sum, from the guesses of its parts."""

    parts: tuple[ParametricFunction, ...]

    def __call__(self, x: Sequence[Vector], y: Vector) -> dict[str, float]:
        """Guess in several orders, improve the best of them, and keep the best."""
        rows = slice(None, None, max(1, len(y) // ROWS))
        few, few_y = _Columns(self.parts, [column[rows] for column in x]), y[rows]
        whole = _Columns(self.parts, x)
        orders = itertools.islice(itertools.permutations(range(len(self.parts))), ORDERS)
        starts = [self._in_order(order, whole, y) for order in orders]
        starts.sort(key=lambda start: _cost(few.total(start) - few_y))
        trials = [few.improved(start, few_y) for start in starts[:TRIALS]]
        return min(trials, key=lambda start: _cost(few.total(start) - few_y))

    def _in_order(self, order: Sequence[int], columns: _Columns, y: Vector) -> dict[str, float]:
        starts: dict[str, float] = {}
        for i in order:
            part = self.parts[i]
            # A part without a guess starts at 1, as a fit does.
            values = dict.fromkeys(part.parameters, 1.0) | dict(part.defaults)
            values |= {} if part.guess_func is None else dict(part.guess_func(columns.x, y))
            starts |= values
            y = y - columns.value(i, values)
        return {name: starts[name] for part in self.parts for name in part.parameters}


class _Columns:
    """Columns at which the parts of a sum are evaluated; NaN where they cannot be."""

    def __init__(self, parts: Sequence[ParametricFunction], x: Sequence[Vector]) -> None:
        self.parts = [_bound(part, len(x)) for part in parts]
        self.x = x

    def value(self, i: int, values: Mapping[str, float]) -> Vector:
        """Return one part, (rows,)."""
        part = self.parts[i]
        with np.errstate(all="ignore"):
            return np.asarray(part(self.x, [values[name] for name in part.parameters], np.stack), float)

    def total(self, values: Mapping[str, float]) -> Vector:
        """Return the sum, (rows,)."""
        first, *others = (self.value(i, values) for i in range(len(self.parts)))
        return sum(others, first)

    def improved(self, start: Mapping[str, float], y: Vector) -> dict[str, float]:
        """Return what a short fit makes of a start."""
        from scipy.optimize import least_squares  # workers, who import models, never guess

        first = np.array(list(start.values()))

        def residual(theta: Vector) -> Vector:
            values = self.total(dict(zip(start, theta.tolist(), strict=True)))
            # `least_squares` raises where residuals are not finite; large ones make it refuse the step.
            return np.nan_to_num(values - y, nan=1e100, posinf=1e100, neginf=-1e100)

        # SciPy's "lm" refuses fewer rows than parameters.
        if len(y) < len(first):
            return dict(start)
        evaluations = STEPS * (len(first) + 1)
        # Differences of 1e-4: a function of jax.numpy may compute in single precision here.
        steps = np.array(1e-4)
        fit = least_squares(residual, first, method="lm", x_scale="jac", diff_step=steps, max_nfev=evaluations)
        return dict(zip(start, fit.x.tolist(), strict=True))


def _bound(part: ParametricFunction, count: int) -> ParametricFunction:
    """Bind a part to so many columns, in the order of its inputs."""
    if len(part.inputs) == 1:
        return dataclasses.replace(part, columns={part.inputs[0]: tuple(range(count))})
    return dataclasses.replace(part, columns={name: (i,) for i, name in enumerate(part.inputs)})


def _cost(residual: Vector) -> float:
    with np.errstate(all="ignore"):
        cost = float(residual @ residual)
    return cost if np.isfinite(cost) else np.inf


def add(left: M, right: M) -> M:
    """Return the sum of two models of the same columns."""
    left, right = _closed(left, right), _closed(right, left)
    _check_columns(left, right)
    column = dict(zip(right.inputs, left.inputs, strict=True))
    parameters = (*left.parameters, *right.parameters)
    clash = [name for name in right.parameters if name in left.arguments]
    clash += [name for name in left.parameters if name in column.values()]
    if clash:
        raise ModelError(
            f"{left.name!r} and {right.name!r} both have the name {clash[0]!r}. Give one of them names of its own: "
            f"model.prefix('p1_') calls it 'p1_{clash[0]}'."
        )
    if isinstance(left.func, Expression) and isinstance(right.func, Expression):
        # A formula in place of a `Sum` keeps what is known of formulas: its text, and columns by name.
        func: Any = Expression(f"{_term(left.func)} + {_term(renamed(right.func, column))}")
        arguments, keywords = func.names, frozenset(func.names)
    else:
        func = Sum((_part(left), _part(right)))
        arguments, keywords = (*left.inputs, *parameters), frozenset(parameters)
    return dataclasses.replace(
        left,
        func=func,
        arguments=arguments,
        keywords=keywords,
        defaults={**left.defaults, **right.defaults},
        columns={},
        name=f"{left.name} + {right.name}",
        # A sum of sums is guessed flat, so that parts are tried in all orders.
        guess_func=SumGuess((*_guessed(left), *_guessed(right))),
        parts=(*components(left), *components(right)),
    )


def components(model: M) -> tuple[M, ...]:
    """Return the models that were added; the model itself where none were."""
    parts: tuple[Any, ...] = model.parts
    return parts or (dataclasses.replace(model, guess_func=None),)


def prefix(model: M, text: str) -> M:
    """Return the same model with every parameter's name behind a prefix."""
    if not isinstance(text, str) or not f"{text}a".isidentifier():
        raise ModelError(f"The prefix is {text!r}; letters, digits and _ are needed, such as 'p1_'.")
    model = _closed(model, model)
    names = {name: f"{text}{name}" for name in model.parameters}
    clash = [new for new in names.values() if new in model.inputs]
    if clash:
        raise ModelError(f"With the prefix {text!r} a parameter would be called {clash[0]!r}, as a column is.")
    if constant := [new for new in names.values() if new in CONSTANTS and isinstance(model.func, Expression)]:
        raise ModelError(f"With the prefix {text!r} a parameter would be called {constant[0]!r}, as a number is.")
    if isinstance(model.func, Expression):
        func: Any = renamed(model.func, names)
        keywords = frozenset(func.names)
    else:
        func = Sum(((_part(model)[0], tuple(names.values())),))
        keywords = frozenset(names.values())
    guess: Guess | None = None
    if isinstance(model.guess_func, SumGuess):
        guess = SumGuess(tuple(prefix(part, text) for part in model.guess_func.parts))
    elif model.guess_func is not None:
        guess = Renamed(model.guess_func, names)
    return dataclasses.replace(
        model,
        func=func,
        arguments=tuple(names.get(name, name) for name in model.arguments),
        keywords=keywords,
        defaults={names[name]: value for name, value in model.defaults.items()},
        columns={},
        name=f"{text}{model.name}",
        guess_func=guess,
        parts=tuple(prefix(part, text) for part in model.parts),
    )


def renamed(expression: Expression, names: Mapping[str, str]) -> Expression:
    """Return the expression with other names."""
    return Expression(_NAME.sub(lambda word: names.get(word[0], word[0]), expression.text))


def _closed(model: M, other: ParametricFunction) -> M:
    """Return a model whose columns are known, from the other one where it leaves them open."""
    if model.inputs:
        return model
    if other.inputs and set(other.inputs) <= set(model.arguments):
        return dataclasses.replace(model, inputs=other.inputs)
    raise ModelError(
        f"Which names in {model.name!r} are columns is not known, so its parameters cannot be told. Say it with "
        "columns= in Model.from_expression."
    )


def _check_columns(left: ParametricFunction, right: ParametricFunction) -> None:
    alike = len(left.inputs) == len(right.inputs) == 1 or left.inputs == right.inputs
    if not alike:
        raise ModelError(
            f"{left.name!r} takes the columns {list(left.inputs)} and {right.name!r} {list(right.inputs)}; a sum needs "
            "models of the same columns."
        )
    if len(left.inputs) > 1 and not all(isinstance(model.func, Expression) for model in (left, right)):
        raise ModelError("A function and an expression of several columns cannot be added; write one function.")


def _part(model: ParametricFunction) -> tuple[ParametricFunction, tuple[str, ...]]:
    """Return what a `Sum` holds of a model: bound to the sum's column, with its names."""
    return dataclasses.replace(model, columns={model.inputs[0]: (0,)}, guess_func=None), model.parameters


def _guessed(model: ParametricFunction) -> tuple[ParametricFunction, ...]:
    """Return the models of a sum with their guesses."""
    return model.guess_func.parts if isinstance(model.guess_func, SumGuess) else (model,)


def _term(expression: Expression) -> str:
    # A comparison binds less tightly than the + behind it.
    compares = any(sign in expression.text for sign in "<>=!")
    return f"({expression.text})" if compares else expression.text
