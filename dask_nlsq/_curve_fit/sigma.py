"""Sigma: the standard deviation of ydata, or its covariance.

`fit_rows` needs one number a row, `fit_whole` a map that makes errors independent and of size 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import dask.array as da
import numpy as np
import numpy.typing as npt
from scipy import linalg

from dask_nlsq._errors import DataError
from dask_nlsq._typing import AnyArray

_SHAPE = "`sigma` has incorrect shape."


def deviation(sigma: npt.ArrayLike | da.Array | None, shape: tuple[float, ...]) -> float | AnyArray | da.Array | None:
    """Return the standard deviation as a number or as an array of this shape."""
    if sigma is None:
        return None
    sigma = sigma if isinstance(sigma, da.Array) else np.asarray(sigma, float)
    if sigma.size == 1:
        return float(np.asarray(sigma).ravel()[0])
    if len(sigma.shape) != 1 or (sigma.shape != shape and not np.isnan([*sigma.shape, *shape]).any()):
        raise ValueError(_SHAPE)
    return sigma


def check_sigma(sigma: AnyArray | None, used: npt.NDArray[np.bool_]) -> None:
    """Refuse a standard deviation that is zero or NaN in a row that is `used`, and a covariance that is not finite.

    The sign of a standard deviation does not matter, as in SciPy.
    """
    if sigma is None:
        return
    if sigma.ndim == 2:
        if not np.isfinite(sigma).all():
            raise DataError("sigma, a covariance, holds NaN or infinity; finite numbers are needed.")
        return
    bad = np.isnan(sigma) | (sigma == 0)
    if sigma.size == 1 and bad.any():
        raise DataError(f"sigma is {sigma.item()}; it must be positive.")
    # A row that is left out for its NaN needs no sigma.
    bad = bad & used if bad.shape == np.shape(used) else bad
    if bad.any():
        first = int(np.argmax(bad))
        raise DataError(
            f"sigma must be positive (inf gives a row no weight); {int(bad.sum())} of {bad.size} rows are not, "
            f"the first is row {first} with {sigma[first]}."
        )


def whitener(sigma: AnyArray | None, n: int) -> Callable[[Any], Any]:
    """Return the map that makes errors independent and of size 1, for arrays of shape (n,) or (n, p)."""
    if sigma is None:
        return lambda a: a
    if sigma.size == 1 or sigma.shape == (n,):
        with np.errstate(divide="ignore"):
            weight = 1.0 / sigma.ravel()
        return lambda a: (weight * a.T).T
    if sigma.shape != (n, n):
        raise ValueError(_SHAPE)
    try:
        triangle = linalg.cholesky(sigma, lower=True)
    except linalg.LinAlgError as error:
        raise ValueError("`sigma` must be positive definite.") from error
    return lambda a: linalg.solve_triangular(triangle, a, lower=True, check_finite=False)
