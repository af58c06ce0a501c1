"""Objective: all that a task must know of a fit besides the rows and the parameters.

It is the model with its arguments bound to columns, the parameters that are held, and how residuals are
weighed. It is sent to a process once, opened once, and compiled once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

from dask_nlsq._numerics.model import Model

Jacobian = Literal["reverse", "forward"]


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity: compiled kernels hang on it
class Objective:
    """A model bound to columns, with the rule by which its Jacobian is formed."""

    model: Model
    columns: tuple[str, ...]  # names of the columns of x, then of y
    weighted: bool = False
    jacobian: Jacobian = "reverse"

    @property
    def n_columns(self) -> int:
        """Number of columns of x."""
        return len(self.columns) - 1

    @property
    def n_parameters(self) -> int:
        """Number of free parameters, p."""
        return len(self.model.parameters)

    def evaluate(self, x: Sequence[Any], theta: Sequence[Any], stack: Callable[..., Any]) -> Any:
        """Evaluate the model at columns `x` (each (rows,)) and free parameters `theta` (each a scalar)."""
        return self.model(x, theta, stack)
