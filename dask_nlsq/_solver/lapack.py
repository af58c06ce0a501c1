"""Linear algebra of a few parameters, by LAPACK, where NumPy's wrappers take three times as long as what they wrap.

A fit of few rows spends much of its time here: each step needs one eigendecomposition, one triangle and one or two
singular value decompositions. Arrays are returned in C order, which writing down and reading again preserves: the
last bit of a product may depend on it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

from dask_nlsq._typing import Matrix, Vector


def eigh(a: Matrix) -> tuple[Vector, Matrix]:
    """Return the eigenvalues of a symmetric matrix, smallest first, and its eigenvectors as columns."""
    values, vectors = _call(lapack.dsyevd, a, lower=1)
    return values, np.ascontiguousarray(vectors)


def svd(a: Matrix) -> tuple[Matrix, Vector, Matrix]:
    """Return U, σ and Vᵀ of a square matrix, the largest σ first."""
    u, sigma, vt = _call(lapack.dgesdd, a)
    return np.ascontiguousarray(u), sigma, np.ascontiguousarray(vt)


def thin_svd(a: Matrix) -> tuple[Matrix, Vector, Matrix]:
    """Return U, σ and Vᵀ of a matrix, U and Vᵀ with as many columns and rows as there are singular values.

    U is in Fortran order, as some of its columns alone would be.
    """
    u, sigma, vt = _call(lapack.dgesdd, a, full_matrices=0)
    return u, sigma, np.ascontiguousarray(vt)


def qr(a: Matrix) -> tuple[Matrix, Matrix]:
    """Return Q and R of a matrix of at least as many rows as columns, (n, q) and (q, q)."""
    size = a.shape[1]
    folded, scales, _ = _call(lapack.dgeqrf, a)
    q, _ = _call(lapack.dorgqr, folded, scales)
    return np.ascontiguousarray(q), np.ascontiguousarray(np.where(_upper(size), folded[:size], 0.0))


def triangle(a: Matrix, b: Vector) -> tuple[Matrix, Vector]:
    """Return R and Qᵀb of the QR decomposition of a square matrix."""
    both = np.empty((len(a), len(a) + 1), order="F")
    both[:, :-1], both[:, -1] = a, b
    folded, *_ = _call(lapack.dgeqrf, both)
    return np.ascontiguousarray(np.where(_upper(len(a)), folded[:, :-1], 0.0)), folded[:, -1].copy()


@functools.lru_cache(16)
def _upper(p: int) -> npt.NDArray[np.bool_]:
    return np.triu(np.ones((p, p), bool))


def norm(v: Vector) -> float:
    """Return the length of a vector, to the bit that of `numpy.linalg.norm`; one that overflows is no warning."""
    return math.sqrt(v.dot(v))


def column_norms(a: Matrix) -> Vector:
    """Return the lengths of the columns of a matrix, to the bit those of `numpy.linalg.norm`."""
    lengths: Vector = np.sqrt(np.add.reduce(a * a, axis=0))
    return lengths


def _call(routine: Callable[..., Any], *arrays: Any, **options: Any) -> Any:
    *results, info = routine(*arrays, **options)
    if info:
        raise np.linalg.LinAlgError(f"LAPACK's {routine.__name__} ended with {info}.")
    return results
