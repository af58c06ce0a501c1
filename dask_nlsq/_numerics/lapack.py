"""LAPACK for matrices of a few parameters, where NumPy's wrappers take three times as long as what they wrap.

A fit of few rows spends much of its time here: each step needs one eigendecomposition, one triangle and one or two
singular value decompositions.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.linalg import lapack

from dask_nlsq._typing import Matrix, Vector


def eigh(a: Matrix) -> tuple[Vector, Matrix]:
    """Return the eigenvalues of a symmetric matrix, smallest first, and its eigenvectors as columns."""
    values, vectors = _call(lapack.dsyevd, a, lower=1)
    return values, vectors


def svd(a: Matrix) -> tuple[Matrix, Vector, Matrix]:
    """Return U, σ and Vᵀ of a square matrix, the largest σ first."""
    u, sigma, vt = _call(lapack.dgesdd, a)
    return u, sigma, vt


def triangle(a: Matrix) -> Matrix:
    """Return R of the QR decomposition of a matrix that has no more rows than columns."""
    folded, *_ = _call(lapack.dgeqrf, a)
    r: Matrix = np.triu(folded)
    return r


def _call(routine: Callable[..., Any], a: Matrix, **options: Any) -> Any:
    *found, info = routine(a, **options)
    if info:
        raise np.linalg.LinAlgError(f"LAPACK's {routine.__name__} ended with {info}.")
    return found
