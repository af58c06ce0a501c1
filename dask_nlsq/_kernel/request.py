"""Request: what a solver wants evaluated in the next sweep. It travels to the workers, and imports nothing heavy."""

from __future__ import annotations

import dataclasses

from dask_nlsq._typing import Matrix, Vector


@dataclasses.dataclass(frozen=True)
class Whitening:
    """A p×p preconditioner S and its inverse."""

    s: Matrix
    inverse: Matrix


@dataclasses.dataclass(frozen=True)
class Request:
    """One parameter vector with derivatives, the preconditioner of its Jacobian, and whether this is a first look."""

    theta: Vector  # (p,)
    whitening: Whitening | None = None
    first: bool = False  # see whether the model treats each row by itself
    second: bool = False  # sum the second derivatives of the model too
