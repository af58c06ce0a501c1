"""Starts: points from which a search begins, spread over the bounds, or over what the data suggest.

A low-discrepancy sequence covers p dimensions, and each of them alone, more evenly than independent draws do. Where
bounds of one sign span three decades and more, the logarithm is what is spread evenly: a rate between 1e-3 and
10 is as likely below 0.1 as above.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy

from dask_nlsq._errors import BoundsError
from dask_nlsq._kernel import Block
from dask_nlsq._typing import Matrix, Vector

_DECADES = 1000.0
"""Upper over lower bound from which the logarithm of a parameter is spread evenly."""


def draw_starts(sampler: str, n: int, lower: Vector, upper: Vector, first: Vector, seed: int) -> Matrix:
    """Return `n` starts inside the bounds, (n, p), the `first` among them; the sampler is a name in `qmc`."""
    # The second number keeps this stream apart from those of the warm start, 1, and of points on the scales of the
    # data, 3.
    p, rng = len(first), np.random.default_rng([seed, 2])
    if sampler == "sobol":  # in powers of 2, where it is even; the first n of them
        cube = scipy.stats.qmc.Sobol(p, seed=rng).random_base2(max(n - 2, 0).bit_length())
    else:
        cube = (scipy.stats.qmc.Halton if sampler == "halton" else scipy.stats.qmc.LatinHypercube)(p, seed=rng).random(
            n
        )
    return np.concatenate([first[None], _into(cube[: n - 1], lower, upper)])


def draw_in_units(n: int, lower: Vector, upper: Vector, start: Vector, block: Block) -> Matrix:
    """Draw points (n, p) on the scales of the data, each parameter independently.

    A parameter with two finite bounds is uniform between them. Another is of one of several kinds with equal
    probability: a position in the range of x, a width or rate on the scale of that range or of x, a number of order 1,
    or a value near the `start` (p,). Values beyond a bound are reflected at it.
    """
    rng = np.random.default_rng([0, 3])
    points = np.column_stack([_draw_values(rng, n, block, value) for value in start.tolist()])
    with np.errstate(over="ignore", invalid="ignore"):
        bounded = np.isfinite(upper - lower)
    between = rng.uniform(np.where(bounded, lower, 0.0), np.where(bounded, upper, 1.0), points.shape)
    points = np.where(bounded, between, points)
    below, above = points < lower, points > upper
    points = np.where(below, 2.0 * np.where(below, lower, 0.0) - points, points)
    points = np.where(above, 2.0 * np.where(above, upper, 0.0) - points, points)
    return np.clip(points, lower, upper)


def check_bounds(names: Sequence[str], lower: Vector, upper: Vector) -> None:
    """Refuse parameters that have no bounds to draw starts from.

    Raises
    ------
    BoundsError
        Some have not.
    """
    open_ended = [name for name, low, high in zip(names, lower, upper, strict=True) if not np.isfinite(high - low)]
    if open_ended:
        raise BoundsError(
            f"A search from many starts draws them from the bounds, and {', '.join(open_ended)} "
            f"{'has' if len(open_ended) == 1 else 'have'} none on at least one side. Give bounds={{name: (lower, "
            "upper)}, or n_starts=1."
        )


def _into(cube: Matrix, lower: Vector, upper: Vector) -> Matrix:
    """Return points of the unit cube inside the bounds, each parameter on its scale."""
    points = np.empty_like(cube)
    for j, (low, high) in enumerate(zip(lower.tolist(), upper.tolist(), strict=True)):
        near, far = sorted((abs(low), abs(high)))
        if low * high > 0 and far >= _DECADES * near:
            sign = np.sign(high)
            small, large = np.log(abs(low)), np.log(abs(high))
            points[:, j] = sign * np.exp(small + cube[:, j] * (large - small))
        else:
            points[:, j] = low + cube[:, j] * (high - low)
    return np.clip(points, lower, upper)


def _draw_values(rng: np.random.Generator, n: int, block: Block, start: float) -> Vector:
    """Draw n values of one parameter."""
    column = np.concatenate(block.x)
    column = column[np.isfinite(column)]
    low, high = (float(column.min()), float(column.max())) if len(column) else (0.0, 1.0)
    span, size = (high - low) or abs(high) or 1.0, max(abs(low), abs(high)) or 1.0
    decades = 10.0 ** rng.uniform(-2, 0.5, n)
    kinds = (
        rng.uniform(low, high, n),  # a place on the axis
        span * decades,  # a width
        10.0 ** rng.uniform(-0.5, 2, n) / span,  # a rate or a frequency
        size * 10.0 ** rng.uniform(-1, 1, n),
        10.0 ** rng.uniform(-1, 1, n) / size,
        10.0 ** rng.uniform(-1, 1, n),  # an exponent or a shape
        (start or 1.0) * 10.0 ** rng.uniform(-1, 1, n),
        start + (abs(start) or 1.0) * rng.normal(0, 1, n),
    )
    return np.stack(kinds)[rng.integers(0, len(kinds), n), np.arange(n)]
