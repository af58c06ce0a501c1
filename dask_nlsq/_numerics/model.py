"""Model: a function of columns and parameters, and which of its arguments are which.

The function's first argument is a column, or several columns when the data names several. A later
argument is a column only when the data names it; every other argument is a parameter, unless its
default is not a number (a flag, a string, ``None``), which leaves it at that default.
"""

from __future__ import annotations

import dataclasses
import inspect
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dask_nlsq._errors import ModelError

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclasses.dataclass(frozen=True)
class Model:
    r"""A model function :math:`f(x; \theta)` with named parameters.

    Parameters
    ----------
    func : callable
        ``func(column, *parameters)``, written with ``jax.numpy`` and acting on each row by itself.
    arguments : tuple of str
        Arguments in the order of the signature, options left out.
    keywords : frozenset of str
        Those of them that can only be passed by name.
    defaults : mapping of str to float
        Starting values that the signature gives.
    columns : mapping of str to tuple of int
        Which columns each column argument takes, by position; filled in by `bind`.

    Examples
    --------
    >>> from dask_nlsq import Model
    >>> def decay(t, amplitude, rate, offset=0.0):
    ...     return amplitude * 2.0 ** (-rate * t) + offset
    >>> Model.from_function(decay).parameters
    ('amplitude', 'rate', 'offset')
    """

    func: Callable[..., Any]
    arguments: tuple[str, ...]
    keywords: frozenset[str] = frozenset()
    defaults: Mapping[str, float] = dataclasses.field(default_factory=dict)
    columns: Mapping[str, tuple[int, ...]] = dataclasses.field(default_factory=dict)
    name: str = "model"

    @classmethod
    def from_function(cls, func: Callable[..., Any], n_parameters: int | None = None) -> Model:
        """Read names and starting values from a function's signature.

        Parameters
        ----------
        func : callable
            The model function.
        n_parameters : int, optional
            How many parameters ``*args`` stands for; they are named ``p1``, ``p2``, …

        Raises
        ------
        ModelError
            The object has no signature, no argument for a column, or no parameter.
        """
        name = getattr(func, "__name__", type(func).__name__)
        try:
            signature = inspect.signature(func)
        except (TypeError, ValueError) as error:
            raise ModelError(
                f"The model {name!r} has no signature that Python can read ({error}). "
                "Wrap it: def model(x, a, b): return ..."
            ) from error
        arguments: list[str] = []
        keywords: set[str] = set()
        defaults: dict[str, float] = {}
        for parameter in signature.parameters.values():
            if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
                arguments += [f"p{i + 1}" for i in range(n_parameters or 0)]
                if not arguments:
                    arguments = ["x"]
            elif parameter.kind is not inspect.Parameter.VAR_KEYWORD:
                if not _is_option(parameter.default):
                    arguments.append(parameter.name)
                    if parameter.kind not in _POSITIONAL:
                        keywords.add(parameter.name)
                    if isinstance(parameter.default, numbers.Real):
                        defaults[parameter.name] = float(parameter.default)
        model = cls(func, tuple(arguments), frozenset(keywords), defaults, {}, name)
        if not arguments or not model.parameters:
            raise ModelError(
                f"The model {name!r} takes the arguments {tuple(arguments)}; a first one for the data and at "
                "least one parameter are needed: def model(x, a, b): return ..., or give p0 for *args."
            )
        defaults.pop(arguments[0], None)
        return model

    @property
    def parameters(self) -> tuple[str, ...]:
        """Names of the parameters, in the order of the signature."""
        columns = self.columns or self.arguments[:1]
        return tuple(a for a in self.arguments if a not in columns)

    @property
    def column(self) -> str:
        """Name of the first argument, which is the column taken when none is named."""
        return self.arguments[0]

    def bind(self, names: Sequence[str]) -> Model:
        """Say which argument takes which of the columns called `names`.

        A later argument takes the column that bears its name; the first argument takes the rest, as one
        array of shape (rows,), or of shape (k, rows) when k columns are left.
        """
        later = {name: (i,) for i, name in enumerate(names) if name in self.arguments[1:]}
        taken = {i for (i,) in later.values()}
        rest = tuple(i for i in range(len(names)) if i not in taken)
        if not rest:
            raise ModelError(
                f"Every column in x={list(names)} is a later argument of {self.name!r}, and none is left for "
                f"its first argument {self.column!r}."
            )
        bound = dataclasses.replace(self, columns={self.column: rest} | later)
        if not bound.parameters:
            raise ModelError(f"x={list(names)} leaves no parameter to fit in {self.name!r}.")
        return bound

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


def _is_option(default: Any) -> bool:
    """Whether a default marks an argument as an option rather than a parameter."""
    if default is inspect.Parameter.empty:
        return False
    return isinstance(default, bool) or not isinstance(default, numbers.Real)
