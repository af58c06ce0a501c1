"""Request: what a solver wants evaluated in the next sweep."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from dask_nlsq._typing import Vector

if TYPE_CHECKING:
    from dask_nlsq._numerics.factor import Whitening


@dataclasses.dataclass(frozen=True)
class Request:
    """One parameter vector with derivatives, the preconditioner of its Jacobian, and whether this is a first look."""

    theta: Vector  # (p,)
    whitening: Whitening | None = None
    first: bool = False  # see whether the model treats each row by itself
