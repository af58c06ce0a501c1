"""Responses as they are given: y in several columns or of complex numbers, with a sigma for each, or a covariance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from dask_nlsq._errors import DataError, NlsqError
from dask_nlsq._fit.options import FitOptions
from dask_nlsq._model import COUNTS, PARTS
from dask_nlsq._typing import Matrix


class Given(NamedTuple):
    """What was given for several responses."""

    names: tuple[str, ...]  # of the responses
    arrays: tuple[Any, ...]  # that lie beside x; one where y is complex, none where y names columns
    is_complex: bool  # whether y is known to be complex
    sigmas: Sequence[Any]  # of each response, none where there is none
    covariance: tuple[tuple[float, ...], ...]


def given_responses(options: FitOptions) -> Given | None:
    """Return the responses, or None where y is one column of numbers, as far as that is known before it is read.

    Raises
    ------
    DataError
        sigma does not belong to them.
    NlsqError
        They do not go with the loss, or with errors in x.
    """
    y, named = options.y, options.data is not None
    several = _several(y, named)
    is_complex = not several and np.dtype(_dtype(y)).kind == "c"
    by_part = named and not several and _of_two_parts(options.sigma)
    if not (several or is_complex or by_part):
        return None
    _check_goes_along(options)
    if several:
        names = tuple(y) if named or isinstance(y, Mapping) else tuple(f"y[{c}]" for c in range(len(y)))
        arrays = () if named else tuple(y.values() if isinstance(y, Mapping) else y)
        if len(set(names)) < len(names):
            raise DataError(f"y names a column twice: {list(names)}.")
    else:
        names, arrays = tuple(f"{y if named else 'y'}{part}" for part in PARTS), () if named else (y,)
    shape = None if not arrays else getattr(arrays[0], "shape", None)
    covariance = _covariance(_in_order(options.sigma, names), names, shape)
    if covariance is not None and len(names) == 1:
        raise DataError(f"sigma is a covariance {np.shape(options.sigma)}, and y is one column: give its root instead.")
    sigmas = () if covariance is not None or options.sigma is None else _each(options.sigma, names, _length(arrays))
    return Given(names, arrays, is_complex or by_part, sigmas, () if covariance is None else covariance)


def _of_two_parts(sigma: Any) -> bool:
    """Whether sigma, beside one named column, can only be that of the parts of complex numbers."""
    if isinstance(sigma, (np.ndarray, pd.DataFrame)):
        return bool(sigma.shape == (2, 2))
    return isinstance(sigma, (list, tuple)) and len(sigma) == 2


def _length(arrays: Sequence[Any]) -> int | None:
    """Return the length of the first array, where that is known."""
    shape = getattr(arrays[0], "shape", None) if arrays else None
    return shape[0] if shape else len(arrays[0]) if arrays and isinstance(arrays[0], (list, tuple)) else None


def _several(y: Any, named: bool) -> bool:
    """Whether y is a sequence of columns, by their names or as arrays."""
    if isinstance(y, Mapping):
        return not named
    if not isinstance(y, (list, tuple)) or not len(y):
        return False
    return all(isinstance(each, str) for each in y) if named else all(getattr(e, "ndim", 0) >= 1 for e in y)


def _dtype(y: Any) -> Any:
    """Return the type of an array, and that of a list of complex numbers."""
    if isinstance(y, (list, tuple)) and any(isinstance(value, complex) for value in y[:100]):
        return complex
    dtype = getattr(y, "dtype", float)
    return dtype if isinstance(dtype, np.dtype) else float


def _check_goes_along(options: FitOptions) -> None:
    """Refuse what is of one real response alone."""
    if options.sigma_x is not None:
        raise NlsqError("sigma_x= goes with one real y; several responses, or complex ones, have none here.")
    if options.trials is not None or options.loss in COUNTS:
        raise NlsqError(f"loss={options.loss!r} is of counts, one a row; y has several responses, or complex ones.")


def _in_order(sigma: Any, names: Sequence[str]) -> Any:
    """Return a covariance whose rows and columns have the names of responses as an array in their order."""
    if not isinstance(sigma, pd.DataFrame):
        return sigma
    if not set(names) == set(sigma.index) == set(sigma.columns) or sigma.shape != (len(names), len(names)):
        raise DataError(
            f"sigma is a frame with the labels {list(sigma.index)} and {list(sigma.columns)}; as a covariance it needs "
            f"{list(names)} for both, or give its array."
        )
    return sigma.loc[list(names), list(names)].to_numpy()


def _covariance(
    sigma: Any, names: Sequence[str], shape: tuple[int, ...] | None
) -> tuple[tuple[float, ...], ...] | None:
    """Return sigma where it is a matrix, which is the covariance of the responses of a row."""
    if isinstance(sigma, (list, tuple)) and not all(isinstance(row, (list, tuple)) for row in sigma):
        return None
    if not isinstance(sigma, (list, tuple, np.ndarray)) or np.ndim(sigma) != 2:
        return None
    matrix: Matrix = np.asarray(sigma)
    k = len(names)
    if shape is not None and matrix.shape == shape != (k, k):
        return None  # of every element of an image
    if matrix.shape != (k, k):
        raise DataError(
            f"sigma has the shape {matrix.shape}; for the {k} responses {list(names)}, the covariance has ({k}, {k}). "
            "Standard deviations row by row are given as a sequence of columns, one for each response."
        )
    if matrix.dtype.kind not in "fiu" or not np.isfinite(matrix).all():
        raise DataError(f"sigma is a covariance, and not all of it are finite real numbers: {matrix.tolist()}.")
    matrix = matrix.astype(float)
    if not np.allclose(matrix, matrix.T, rtol=1e-12, atol=0.0):
        raise DataError(f"sigma is a covariance, and must be symmetric: {matrix.tolist()}.")
    scale = np.sqrt(np.abs(matrix.diagonal()))
    least = np.linalg.eigvalsh(matrix / np.outer(scale, scale))[0] if scale.all() else 0.0
    if not (matrix.diagonal() > 0).all() or not least > 1e-14:
        raise DataError(f"sigma is a covariance, and must be positive definite: {matrix.tolist()}.")
    return tuple(map(tuple, matrix.tolist()))


def _each(sigma: Any, names: Sequence[str], rows: int | None) -> list[Any]:
    """Return the sigma of each response: one for all, or one for each; a list of numbers may be one of so many rows."""
    if isinstance(sigma, Mapping):
        unknown = [name for name in sigma if name not in names]
        if unknown or len(sigma) != len(names):
            raise DataError(f"sigma is of {list(sigma)}; the responses are {list(names)}.")
        return [sigma[name] for name in names]
    of_rows = isinstance(sigma, (list, tuple)) and len(sigma) == rows != len(names) and np.ndim(sigma[0]) == 0
    if isinstance(sigma, (list, tuple)) and not of_rows:
        if len(sigma) != len(names):
            raise DataError(f"sigma has {len(sigma)} entries, and there are {len(names)} responses: {list(names)}.")
        if any(each is None for each in sigma):
            raise DataError("sigma lacks a response; give every one its standard deviation, or none.")
        return list(sigma)
    return [sigma] * len(names)
