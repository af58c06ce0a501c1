"""Variables of xarray: the arrays inside of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol, TypeGuard

import dask.array as da
import numpy as np

from dask_nlsq._sources.array import decoded
from dask_nlsq._sources.cf import decoder
from dask_nlsq._typing import AnyArray

if TYPE_CHECKING:
    import xarray


class Variables(Protocol):
    """What holds variables by name: a Dataset, or a node of a DataTree."""

    @property
    def data_vars(self) -> Iterable[Any]:
        """Names of the variables."""

    @property
    def coords(self) -> Iterable[Any]:
        """Names of the coordinates."""

    def __getitem__(self, name: str) -> Any:
        """Return a variable or a coordinate."""


def is_dataset(data: object) -> TypeGuard[Variables]:
    """Whether this is a Dataset of xarray, or a node of a DataTree."""
    return hasattr(data, "data_vars")


def is_variable(data: object) -> TypeGuard[xarray.Variable | xarray.DataArray]:
    """Whether this is a Variable or DataArray of xarray, whose dimensions have names."""
    return hasattr(data, "dims") and hasattr(data, "encoding")


def stored_rows(variable: xarray.Variable | xarray.DataArray) -> int | None:
    """Return the length of the stored chunks along the first dimension, where the variable comes from a store."""
    lengths = variable.encoding.get("preferred_chunks", {}).get(variable.dims[0])
    return None if lengths is None else int(np.max(lengths))


def to_array(name: str, variable: xarray.Variable | xarray.DataArray, rows: int | None = None) -> AnyArray | da.Array:
    """Return the array inside of a variable, decoded; one that is not loaded as a Dask array.

    Parameters
    ----------
    rows : int, optional
        Length of its blocks along the first dimension; by default that of the stored chunks. Others are not cut.
    """
    inner = getattr(variable, "variable", variable)
    # xarray has no public way to ask whether the values are loaded.
    if inner.ndim and inner.chunks is None and not getattr(inner, "_in_memory", True):
        first, *others = inner.dims
        sizes = {first: rows or stored_rows(variable) or "auto"} | dict.fromkeys(others, -1)
        # Inline, for an array that was a task of its own would be work that all partitions share.
        inner = inner.chunk(sizes, inline_array=True)
    numbers = isinstance(inner.dtype, np.dtype) and inner.dtype.kind in "fiu"
    decode = decoder(name, variable.attrs, inner.dtype, times=False) if numbers else None
    return inner.data if decode is None else decoded(inner.data, decode)
