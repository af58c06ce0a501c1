"""Objective: all that a task must know of a fit besides the rows and the parameters.

It is the model with its arguments bound to columns, the parameters that are held, and how residuals are
weighed. It is sent to a process once, opened once, and compiled once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Literal

import numpy as np

from dask_nlsq._model.counts import COUNTS, CountRows, count_rows
from dask_nlsq._model.loss import Loss
from dask_nlsq._model.model import Model
from dask_nlsq._model.responses import Responses
from dask_nlsq._typing import Matrix, Vector

Jacobian = Literal["reverse", "forward", "shared", "numeric"]
"""One reverse pass; one forward pass a parameter; such passes in which the rows of a tile share what depends on no
column; NumPy, by differences or the user's function."""


@dataclasses.dataclass(frozen=True)
class Expansion:
    """How all parameters follow from the free ones: some are held, some are tied by an expression."""

    names: tuple[str, ...]  # all, in the order of the model
    free: tuple[str, ...]
    fixed: Mapping[str, float] = dataclasses.field(default_factory=dict)  # an int where the model needs one
    tied: Mapping[str, Callable[..., Any]] = dataclasses.field(default_factory=dict)  # in an order that resolves

    def __call__(self, theta: Sequence[Any]) -> list[Any]:
        """Return all parameters, each a scalar, from the free ones."""
        known: dict[str, Any] = dict(zip(self.free, theta, strict=True)) | dict(self.fixed)
        for name, expression in self.tied.items():
            known[name] = expression(**{n: known[n] for n in expression.names})  # type: ignore[attr-defined]
        return [known[name] for name in self.names]

    def jacobian(self, theta: Vector) -> Matrix:
        """Return the derivative of all parameters with respect to the free ones, (all, p)."""
        columns = []
        for j, value in enumerate(theta):
            h = 6e-6 * (abs(value) or 1.0)  # the cube root of the rounding level
            ahead, behind = theta.copy(), theta.copy()
            ahead[j], behind[j] = value + h, value - h
            up, down = (np.array(self(t.tolist()), float) for t in (ahead, behind))
            # Divided by the distance of the points as float64 holds them, not by 2 h.
            columns.append((up - down) / (ahead[j] - behind[j]))
        return np.stack(columns, axis=1)


@dataclasses.dataclass(frozen=True)
class ErrorInX:
    """A column of x that has errors: its place, and their standard deviation or the place of the column of it."""

    place: int
    sigma: float | int  # an int is a place


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity: compiled kernels hang on it
class Objective:
    """A model bound to columns, with the rule by which its Jacobian is formed."""

    model: Model
    columns: tuple[
        str, ...
    ]  # names of the columns of x, of the standard deviations of x, of groups, those that responses append, and y
    weighted: bool = False  # by 1 / sigma, or by the number of trials
    jacobian: Jacobian = "reverse"
    jac: Callable[..., Any] | None = None  # the user's, (rows, all parameters)
    loss: Loss = "linear"
    f_scale: float = 1.0
    sandwich: bool = False  # also sum what the Huber-White covariance needs
    second: bool = False  # also sum the second derivatives of the model, each times its residual
    expansion: Expansion | None = None  # None: every parameter is free
    tile: int | None = None  # rows of a tile; None: what suits the device
    errors: tuple[ErrorInX, ...] = ()  # of x
    responses: Responses | None = None  # None: the model returns one real number a row
    correlation: str | None = None  # of the rows of a group, which bring along what they need of one another

    @property
    def n_columns(self) -> int:
        """Number of columns beside y and its weight."""
        return len(self.columns) - 1

    @property
    def n_inputs(self) -> int:
        """Number of columns that the model takes; behind them are those of `errors`, groups and `responses`."""
        return sum(map(len, self.model.columns.values()))

    @property
    def n_appended(self) -> int:
        """Number of columns that are not read, of `responses` and `correlation`; they are the last."""
        if self.correlation is not None:
            return self.n_inputs + 1 if self.correlation == "ar1" else self.n_parameters
        return 0 if self.responses is None else len(self.responses.appended)

    @property
    def n_parameters(self) -> int:
        """Number of free parameters, p."""
        return len(self.model.parameters if self.expansion is None else self.expansion.free)

    @property
    def quadratic(self) -> bool:
        """Whether the cost is half the sum of squared residuals."""
        return self.loss == "linear"

    @property
    def counts(self) -> bool:
        """Whether rows are counts, and the cost is half their deviance."""
        return self.loss in COUNTS

    @property
    def ordinary(self) -> bool:
        """Whether the fit is one of ordinary least squares: half the squares of distances along y are the cost."""
        return self.quadratic and not self.errors and self.correlation is None

    @property
    def robust(self) -> bool:
        """Whether large residuals count for less."""
        return not (self.quadratic or self.counts)

    @property
    def loss_name(self) -> str:
        """What the loss is called in a result."""
        return self.loss if isinstance(self.loss, str) else "a function"

    def count_rows(self, f: Any, y: Any, weight: Any, xp: ModuleType) -> CountRows:
        """Evaluate rows of counts at the model's values `f`; see `counts.count_rows`."""
        return count_rows(str(self.loss), f, y, weight, xp)

    def expand(self, theta: Sequence[Any]) -> Sequence[Any]:
        """Return all parameters of the model from the free ones."""
        return theta if self.expansion is None else self.expansion(theta)

    def with_whole(self, everything: Sequence[Any]) -> list[Any]:
        """Return all parameters, those held that the model takes as whole numbers as such."""
        fixed = {} if self.expansion is None else self.expansion.fixed
        values = zip(self.model.parameters, everything, strict=True)
        return [fixed[name] if isinstance(fixed.get(name), int) else value for name, value in values]

    def evaluate(self, x: Sequence[Any], theta: Sequence[Any], stack: Callable[..., Any]) -> Any:
        """Evaluate the model at columns `x` (each (rows,)) and free parameters `theta` (each a scalar)."""
        value = self.values(x, self.expand(theta), stack)
        if self.correlation == "exchangeable":  # the mean of the group, about where its derivative was taken
            for t, slope in zip(theta, x[-len(theta) :], strict=True):
                value = value - t * slope
        return value

    def uncorrelated(self) -> Objective:
        """Return the objective that takes each row for itself."""
        if self.correlation is None:
            return self
        columns = (*self.columns[: -1 - self.n_appended], self.columns[-1])
        return dataclasses.replace(self, columns=columns, correlation=None)

    def of_response(self, c: int) -> Objective:
        """Return the model of one of several responses, which takes no number of it."""
        assert self.responses is not None
        *columns, y = self.columns
        columns = columns[: -self.n_appended]
        return dataclasses.replace(self, columns=(*columns, y), responses=self.responses.alone(c))

    def values(self, x: Sequence[Any], everything: Sequence[Any], stack: Callable[..., Any]) -> Any:
        """Evaluate the model at columns `x` (each (rows,)) and all its parameters, one real number a row."""
        value = self.model(x, everything, stack)
        if self.correlation == "ar1":
            *_, share = x
            before = x[-1 - self.n_inputs : -1]
            return value - share * self.model(before, everything, stack)
        return value if self.responses is None else self.responses.of_rows(value, x)
