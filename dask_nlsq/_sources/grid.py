"""Grid: images, spectra and cubes as columns of rows, and back.

Rows come in the order of the array, its last index first; where it is a Dask array, block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dask.array as da
import numpy as np

from dask_nlsq._errors import DataError


def broadcast(variables: Mapping[str, Any], y: str) -> dict[str, Any]:
    """Return variables of xarray as columns, repeated over the dimensions of y that they lack."""
    import xarray

    dims = variables[y].dims
    if beyond := [name for name, a in variables.items() if not set(a.dims) <= set(dims)]:
        said = {name: a.dims for name, a in variables.items()}
        raise DataError(
            f"The variables must lie along dimensions of {y!r}; the dimensions are {said}. Choose with data.isel().",
            column=beyond[0],
        )
    chunks = None if variables[y].chunks is None else dict(zip(dims, variables[y].chunks, strict=True))
    whole = xarray.broadcast(*variables.values())
    found = {}
    for name, array in zip(variables, whole, strict=True):
        lazy = chunks or not getattr(variables[name].variable, "_in_memory", True)
        array = array.transpose(*dims)
        found[name] = flat((array.chunk(chunks or {}) if lazy else array).data)
    return found


def flat(array: Any) -> Any:
    """Return an array of several dimensions as a column; of a Dask array the blocks stay as they are."""
    if not isinstance(array, da.Array):
        return np.ravel(array)
    return da.reshape_blockwise(array, int(array.size)) if array.ndim > 1 else array


def columns_of(x: Sequence[Any], y: Any, sigma: Any) -> tuple[list[Any], Any, Any]:
    """Return x, y and sigma as columns, where y has several dimensions over which each x is repeated.

    Raises
    ------
    DataError
        An x has no shape that is repeated to that of y.
    """
    if all(_is_variable(a) for a in (*x, y)) and (_is_variable(sigma) or not np.ndim(sigma)):
        given = {str(i): a for i, a in enumerate(x)} | {"y": y} | ({"sigma": sigma} if np.ndim(sigma) else {})
        found = broadcast(given, "y")
        return [found[str(i)] for i in range(len(x))], found["y"], found.get("sigma", sigma)
    shape = tuple(y.shape)
    chunks = y.chunks if isinstance(y, da.Array) else None
    for i, a in enumerate(x):
        try:
            fits = np.broadcast_shapes(np.shape(a), shape) == shape
        except ValueError:
            fits = False
        if not fits:
            raise DataError(
                f"y has shape {shape}, and the {i + 1}. x shape {np.shape(a)}, which cannot be repeated to it. "
                "Give each x with the shape of y, or one that NumPy broadcasts to it, as numpy.meshgrid makes."
            )
    spread = [_spread(a, shape, chunks) for a in x]
    weights = _spread(sigma, shape, chunks) if np.ndim(sigma) else sigma
    return spread, flat(y), weights


def _spread(array: Any, shape: tuple[int, ...], chunks: Any) -> Any:
    """Return an array repeated to a shape, as a column."""
    if chunks is None and not isinstance(array, da.Array):
        return flat(np.broadcast_to(np.asarray(array), shape))
    repeated = da.broadcast_to(da.asarray(array), shape)
    return flat(repeated.rechunk(chunks or "auto"))


def spread(raw: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    """Return arrays repeated to one shape, as columns, and what gives a column that shape and its coordinates."""
    named = {name: a for name, a in raw.items() if _is_variable(a)}
    if len(named) == len(raw):
        return _spread_named(named)
    arrays = {name: a if isinstance(a, da.Array) else np.asarray(a) for name, a in raw.items()}
    try:
        shape = np.broadcast_shapes(*(a.shape for a in arrays.values()))
    except ValueError:
        said = {name: a.shape for name, a in arrays.items()}
        raise DataError(f"Columns have shapes that cannot be repeated to one: {said}.") from None
    lazily = next((a for a in arrays.values() if isinstance(a, da.Array)), None)
    if lazily is None:
        return {name: _spread(a, shape, None) for name, a in arrays.items()}, lambda values: values.reshape(shape)
    chunks = da.broadcast_to(lazily, shape).chunks
    columns = {name: _spread(a, shape, chunks) for name, a in arrays.items()}
    return columns, lambda values: da.reshape_blockwise(values, shape, chunks=chunks)


def _spread_named(variables: Mapping[str, Any]) -> tuple[dict[str, Any], Callable[[Any], Any]]:
    import xarray

    first, *others = xarray.broadcast(*variables.values())
    whole = [first, *(a.transpose(*first.dims) for a in others)]
    columns, shaped = spread({name: a.data for name, a in zip(variables, whole, strict=True)})
    return columns, lambda values: first.copy(data=shaped(values)).rename("predicted")


def _is_variable(data: Any) -> bool:
    """Whether this is a variable of xarray, whose dimensions have names."""
    return hasattr(data, "dims") and hasattr(data, "encoding")
