"""Screening: where many starts lead on the same few rows, to a hundredth of a standard error."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from dask_nlsq._kernel import Block
from dask_nlsq._model import Objective, Prior
from dask_nlsq._solver.batched import UNSEEN, Series, Shape, Tolerance, Way, minimise, square
from dask_nlsq._typing import Matrix, Vector

MOST_ROWS = 2048
"""Rows on which starts are tried at most."""

ABREAST = 16
"""Starts that are tried side by side: one batch, which one core works on."""

_TOLERANCE = Tolerance(step=1e-2, most=100, damping=1.0)
"""Where each start leads is all that is wanted; another solver goes on from there."""

A = TypeVar("A", bound=np.generic)


@dataclasses.dataclass(frozen=True)
class LocalMinima:
    """Where fits have led: a row each, in the order of their starts."""

    theta: Matrix  # (n, p)
    cost: Vector  # (n,)
    curvature: npt.NDArray[np.float64]  # (n, p, p), JᵀJ
    status: npt.NDArray[np.int64]  # (n,), of Status, or UNSEEN

    @classmethod
    def unseen(cls, n: int, p: int) -> LocalMinima:
        """Return the ends of n fits that nobody has begun."""
        nothing = np.full((n, p), np.nan)
        return cls(nothing, nothing[:, 0].copy(), np.zeros((n, p, p)), np.full(n, UNSEEN))

    def put(self, places: Sequence[int], more: LocalMinima) -> LocalMinima:
        """Return the ends with some of them filled in."""
        return LocalMinima(
            _filled(self.theta, places, more.theta),
            _filled(self.cost, places, more.cost),
            _filled(self.curvature, places, more.curvature),
            _filled(self.status, places, more.status),
        )

    @property
    def seen(self) -> npt.NDArray[np.bool_]:
        """Which fits have ended."""
        seen: npt.NDArray[np.bool_] = self.status != UNSEEN
        return seen


def _filled(old: npt.NDArray[A], places: Sequence[int], new: npt.NDArray[A]) -> npt.NDArray[A]:
    filled = old.copy()
    filled[list(places)] = new
    return filled


def screen(
    objective: Objective, block: Block, starts: Matrix, lower: Vector, upper: Vector, prior: Prior | None = None
) -> LocalMinima:
    """Fit a block of at most `MOST_ROWS` rows from each start (n, p).

    A start is led to the same end whatever starts are beside it, to the bit.
    """
    block = block.wide()
    weight = block.weights
    rows = Series(tuple(c[None] for c in block.x), block.y[None], weight[None], (True,) * (len(block.x) + 2))
    pull = None if prior is None else (prior.mean, prior.weight)
    way = Way(bounded=bool(np.isfinite([lower, upper]).any()))
    tolerance = dataclasses.replace(_TOLERANCE, way=way)
    fits = minimise(objective, rows, starts, lower[None], upper[None], pull, tolerance, Shape.of(block.rows, ABREAST))
    return LocalMinima(fits.theta, fits.cost, square(fits.curvature), fits.status)
