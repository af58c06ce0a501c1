"""Starts: points from which a search begins, spread over the bounds so that none lies far from all of them.

A low-discrepancy sequence covers p dimensions, and each of them alone, more evenly than independent draws do. Where
bounds of one sign span three decades and more, the logarithm is what is spread evenly: a rate between 1e-3 and
10 is as likely below 0.1 as above.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import qmc

from dask_nlsq._errors import BoundsError
from dask_nlsq._typing import Matrix, Vector

_DECADES = 1000.0
"""Upper over lower bound from which the logarithm of a parameter is spread evenly."""


def draw_starts(sampler: str, n: int, lower: Vector, upper: Vector, first: Vector, seed: int) -> Matrix:
    """Return `n` starts inside the bounds, (n, p), the `first` among them; the sampler is a name in `qmc`."""
    p, rng = len(first), np.random.default_rng([seed, 2])
    if sampler == "sobol":  # in powers of 2, where it is even; the first n of them
        cube = qmc.Sobol(p, seed=rng).random_base2(max(n - 2, 0).bit_length())
    else:
        cube = (qmc.Halton if sampler == "halton" else qmc.LatinHypercube)(p, seed=rng).random(n)
    return np.concatenate([first[None], _into(cube[: n - 1], lower, upper)])


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
