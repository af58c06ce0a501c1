"""Data: xdata, ydata and sigma as they stand, and where they are.

`curve_fit` asks whether they are to be taken row by row, and brings them into memory where a covariance between rows
needs all of them; `fit_whole` asks for the checks that SciPy makes of arrays in memory.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

import dask.array as da
import jax
import numpy as np
import numpy.typing as npt
import pandas as pd

from dask_nlsq._curve_fit.sigma import check_sigma
from dask_nlsq._errors import DataError
from dask_nlsq._system import available_memory

_SHARE = 0.25
"""Part of the free memory that a covariance may take: its blocks, its factor and a copy come beside it."""


class Data(NamedTuple):
    """What the user gave, with a Dask Series as a Dask array."""

    x: Any
    y: Any
    sigma: Any

    @classmethod
    def of(cls, *given: Any) -> Data:
        return cls(*(a.to_dask_array() if hasattr(a, "to_dask_array") else a for a in given))


def is_dask(a: object) -> TypeGuard[da.Array]:
    return isinstance(a, da.Array)


def by_rows(data: Data) -> bool:
    """Whether the data can be taken row by row, and some of it is a Dask array."""
    if not (is_dask(data.x) or is_dask(data.y)) or np.ndim(data.sigma) == 2:
        return False
    x = np.asarray(data.x, float) if isinstance(data.x, (list, tuple)) else data.x
    if not isinstance(x, (np.ndarray, da.Array)) or x.ndim == 0:
        return False
    # NaN is the length of Dask arrays whose chunks are not known; those are compared partition by partition.
    rows = x.shape[-1], np.shape(data.y)[0] if np.ndim(data.y) else x.shape[-1]
    return rows[0] == rows[1] or bool(np.isnan(rows).any())


def in_memory(data: Data) -> Data:
    """Compute what is a Dask array; refuse xdata of other rows than ydata, and a covariance that may not fit."""
    if is_dask(data.x) and np.ndim(data.sigma) != 2:
        raise DataError(f"xdata has the shape {data.x.shape}; its last axis must be as long as ydata.")
    if is_dask(data.sigma) and data.sigma.ndim == 2:
        fits = data.sigma.nbytes < _SHARE * available_memory()  # False where the size is not known
        if not fits:
            raise DataError(
                f"sigma is a Dask array of shape {data.sigma.shape}; a covariance between rows must fit in memory, "
                "several times over: sigma.compute() if it does, or the standard deviation of each row."
            )
    return Data(*(a.compute() if is_dask(a) else a for a in data))


def check(data: Data, policy: str | None) -> Data:
    """Return data in memory as SciPy hands them on, without the rows that are to be omitted."""
    data = Data(*(_without_mask(name, a, policy) for name, a in zip(("xdata", "ydata", "sigma"), data, strict=True)))
    if np.iscomplexobj(data.y):
        raise DataError(
            "ydata is complex, and curve_fit is for real numbers as in SciPy: dask_nlsq.fit takes both parts."
        )
    convert = np.asarray_chkfinite if policy == "finite" else np.asarray
    y = convert(data.y, float)
    # As in SciPy: only sequences and arrays are converted, any other object is for the function alone.
    x = convert(data.x, float) if isinstance(data.x, (list, tuple, np.ndarray)) else _widened(data.x)
    if y.size == 0:
        raise ValueError("`ydata` must not be empty!")
    if y.ndim > 1:
        raise DataError(f"ydata has the shape {y.shape}; one dimension is needed.")
    data = Data(x, y, None if data.sigma is None else np.asarray(data.sigma, float))
    missing = _missing(data) if policy in ("raise", "omit") else np.zeros(y.shape, bool)
    if policy == "raise" and missing.any():
        raise DataError("The input contains nan values")
    check_sigma(data.sigma, ~missing)
    return _without(data, missing) if missing.any() else data


def _without_mask(name: str, a: object, policy: str | None) -> Any:
    """Return an array with NaN where it is masked: a masked cell is a missing one."""
    if isinstance(a, (list, tuple)) and any(isinstance(part, np.ma.MaskedArray) for part in a):
        # np.asarray would take what lies under the masks of a list.
        a = np.ma.stack(a)
    if not isinstance(a, np.ma.MaskedArray):
        return a
    masked = int(np.ma.getmaskarray(a).sum())
    if masked and policy != "omit":
        raise DataError(
            f'{name} is masked in {masked} of {a.size} cells. nan_policy="omit" leaves such rows out, as those with '
            "NaN; a.compressed() gives what is not masked."
        )
    return np.where(np.ma.getmaskarray(a), np.nan, np.asarray(a.data, float)) if masked else a.data


def _widened(x: object) -> object:
    """Return a Series, a frame or an array of another library with its short floats as float64.

    In float32 a model would be computed in float32, too coarse for differences.
    """
    if isinstance(x, pd.DataFrame):
        short = {name: np.float64 for name, dtype in x.dtypes.items() if _is_short(dtype)}
        return x.astype(short) if short else x
    if not _is_short(getattr(x, "dtype", None)) or not hasattr(x, "astype"):
        return x
    # JAX has no float64 outside of this context, and its arrays come here too.
    with jax.enable_x64(True):
        return x.astype(np.float64)


def _is_short(dtype: object) -> bool:
    return getattr(dtype, "kind", "") == "f" and getattr(dtype, "itemsize", 8) < 8


def _missing(data: Data) -> npt.NDArray[np.bool_]:
    """Say which rows hold NaN in y, or in an x that is an array."""
    x = data.x if isinstance(data.x, np.ndarray) else np.zeros(1)
    missing: npt.NDArray[np.bool_] = np.isnan(x).any(axis=tuple(range(x.ndim - 1))) | np.isnan(data.y)
    return missing


def _without(data: Data, missing: npt.NDArray[np.bool_]) -> Data:
    """Drop rows, of a covariance rows and columns."""
    x, y, sigma = data
    if sigma is not None and sigma.shape == missing.shape:
        sigma = sigma[~missing]
    elif sigma is not None and sigma.ndim == 2:
        sigma = sigma[np.ix_(~missing, ~missing)]
    return Data(x[..., ~missing] if isinstance(x, np.ndarray) else x, y[~missing], sigma)
