"""Variables of xarray: the arrays inside of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from dask_nlsq._sources.array import decoded
from dask_nlsq._sources.cf import decoder


def is_variable(data: Any) -> bool:
    """Whether this is a Variable or DataArray of xarray, whose dimensions have names."""
    return hasattr(data, "dims") and hasattr(data, "encoding")


def stored_rows(variable: Any) -> int | None:
    """Return the length of the stored chunks along the first dimension, where the variable comes from a store."""
    found = variable.encoding.get("preferred_chunks", {}).get(variable.dims[0])
    return None if found is None else int(np.max(found))


def to_array(name: str, variable: Any, rows: int | None = None) -> Any:
    """Return the array inside of a variable, decoded; one that is not loaded as a Dask array.

    Parameters
    ----------
    rows : int, optional
        Length of its blocks along the first dimension; by default that of the stored chunks. Others are not cut.
    """
    inner = getattr(variable, "variable", variable)
    if inner.ndim and inner.chunks is None and not getattr(inner, "_in_memory", True):
        first, *others = inner.dims
        sizes = {first: rows or stored_rows(variable) or "auto"} | dict.fromkeys(others, -1)
        inner = inner.chunk(sizes, inline_array=True)
    numbers = isinstance(inner.dtype, np.dtype) and inner.dtype.kind in "fiu"
    decode = decoder(name, variable.attrs, inner.dtype, times=False) if numbers else None
    return inner.data if decode is None else decoded(inner.data, decode)
