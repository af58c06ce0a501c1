"""Request: what a solver wants evaluated in the next sweep."""

from __future__ import annotations

import dataclasses

from dask_nlsq._numerics.factor import Whitening
from dask_nlsq._typing import Vector


@dataclasses.dataclass(frozen=True)
class Request:
    """One parameter vector with derivatives, and the preconditioner of its Jacobian."""

    theta: Vector  # (p,)
    whitening: Whitening | None = None
