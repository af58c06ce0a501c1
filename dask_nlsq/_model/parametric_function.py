"""Parametric function: a function whose arguments are columns and named parameters, evaluated at both."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from dask_nlsq._model.guess import Guess


@dataclasses.dataclass(frozen=True)
class ParametricFunction:
    """What a `Model` holds, and what the sum of several models is made of."""

    func: Callable[..., Any]
    arguments: tuple[str, ...]
    inputs: tuple[str, ...]
    keywords: frozenset[str] = frozenset()
    defaults: Mapping[str, float] = dataclasses.field(default_factory=dict)
    columns: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    name: str = "model"
    guess_func: Guess | None = None
    parts: tuple[Self, ...] = ()  # of a sum, what was added, under the names of the sum; without guesses

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of the signature or of the text.

        Of an expression that leaves its columns to the data, these are all names until the data is there.
        """
        columns = self.columns or self.inputs
        return tuple([a for a in self.arguments if a not in columns])

    def replace(self, func: Callable[..., Any]) -> Self:
        """Return a model that hands the same arguments to another function."""
        return dataclasses.replace(self, func=func)

    def __call__(self, x: Sequence[Any], theta: Sequence[Any], stack: Callable[..., Any]) -> Any:
        """Evaluate at columns `x`, each of shape (rows,), and parameters `theta`, each a scalar."""
        values = iter(theta)
        args, kwargs = [], {}
        for argument in self.arguments:
            taken = self.columns.get(argument)
            if taken is None:
                value = next(values)
            else:
                value = x[taken[0]] if len(taken) == 1 else stack([x[i] for i in taken])
            if argument in self.keywords:
                kwargs[argument] = value
            else:
                args.append(value)
        return self.func(*args, **kwargs)
