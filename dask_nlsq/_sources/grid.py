"""Grid: images, spectra and cubes as columns of rows, and back.

Rows come in the order of the array, its last index first; where any of the arrays is lazy, block by block, and all are
cut into the same blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np
import numpy.typing as npt
import zarr
from dask.array.core import normalize_chunks
from dask.base import tokenize

from dask_nlsq._errors import DataError
from dask_nlsq._sources import hdf5
from dask_nlsq._sources.frame import is_series
from dask_nlsq._sources.hdf5 import is_hdf5
from dask_nlsq._sources.stored import ROWS, Stored
from dask_nlsq._sources.variables import is_variable, to_array
from dask_nlsq._sources.zarr import as_stored
from dask_nlsq._typing import AnyArray

if TYPE_CHECKING:
    import xarray

Shaped = Callable[[Any], Any]
"""Gives a column the shape of the arrays, and their coordinates, back."""


def columns_of(x: Sequence[npt.ArrayLike], y: npt.ArrayLike, sigma: npt.ArrayLike | None) -> tuple[list[Any], Any, Any]:
    """Return x, y and sigma as columns, where y has several dimensions over which the others are repeated.

    Raises
    ------
    DataError
        An array has no shape that is repeated to that of y.
    """
    given = {f"x[{i}]": a for i, a in enumerate(x)} | {"y": y} | ({} if _is_number(sigma) else {"sigma": sigma})
    columns, _ = spread(given, "y")
    return [columns[f"x[{i}]"] for i in range(len(x))], columns["y"], columns.get("sigma", sigma)


def _is_number(sigma: npt.ArrayLike | None) -> bool:
    return sigma is None or not np.ndim(sigma)


def spread(arrays: Mapping[str, Any], like: str | None = None) -> tuple[dict[str, Any], Shaped]:
    """Return arrays repeated to one shape, as columns, and what gives a column that shape back.

    Parameters
    ----------
    arrays : mapping
        Arrays of any kind, by name.
    like : str, optional
        The one to whose shape the others are repeated; by default the shape that they have together.
    """
    if any(is_variable(a) for a in arrays.values()):
        return _spread_variables(arrays, like)
    plain = {name: _lazy_or_plain(name, a) for name, a in arrays.items()}
    shape = _shape({name: a.shape for name, a in plain.items()}, like)
    if not any(isinstance(a, da.Array) for a in plain.values()) or not math.prod(shape):
        return {n: _repeat(np.asanyarray(a), shape).ravel() for n, a in plain.items()}, lambda v: v.reshape(shape)
    chunks = _chunks(plain, shape, like)
    blocks = {name: da.broadcast_to(da.asanyarray(a), shape).rechunk(chunks) for name, a in plain.items()}
    # Block by block: `da.reshape` keeps NumPy's order of all rows, and joins blocks for that.
    columns = {name: da.reshape_blockwise(a, math.prod(shape)) for name, a in blocks.items()}
    return columns, lambda values: da.reshape_blockwise(values, shape, chunks=chunks)


def _lazy_or_plain(name: str, array: npt.ArrayLike | zarr.Array[Any]) -> AnyArray | da.Array:
    """Return an array as one of NumPy or Dask; what lies in a store or file is read block by block, and decoded."""
    if isinstance(array, zarr.Array):
        return _blocks(as_stored(name, array))
    if is_hdf5(array):
        return _blocks(hdf5.as_stored(name, array))
    if is_series(array):
        raise DataError("A Series beside arrays of several dimensions is not supported; give an array.", column=name)
    plain = array if isinstance(array, da.Array) else np.asanyarray(array)
    if any(np.isnan(n) for n in plain.shape):
        raise DataError("Its chunk sizes are not known: call compute_chunk_sizes() on it.", column=name)
    return plain


def _blocks(array: Stored) -> da.Array:
    """Return a stored array as a Dask array, cut along its first dimension alone."""
    chunks = getattr(array.array, "chunks", None)
    first, row = (chunks[0] if chunks else 1), max(math.prod(array.shape[1:]), 1)
    step = first * max(1, ROWS // (first * row))
    name = f"stored-{tokenize(array.place, array.shape, step)}"
    meta = np.empty((0,) * array.ndim, array.dtype)
    blocks: da.Array = da.from_array(array, (step, *array.shape[1:]), name, meta=meta, inline_array=True)
    return blocks


def _shape(shapes: Mapping[str, tuple[int, ...]], like: str | None) -> tuple[int, ...]:
    try:
        shape = np.broadcast_shapes(*shapes.values())
    except ValueError:
        shape = None
    if shape is None or (like is not None and shape != shapes[like]):
        aim = "to one" if like is None else f"to that of {like}"
        raise DataError(
            f"The arrays have shapes that cannot be repeated {aim}: {dict(shapes)}. Give each the shape of the "
            "others, or one that NumPy broadcasts to it, as numpy.meshgrid makes."
        )
    return shape


def _repeat(array: AnyArray, shape: tuple[int, ...]) -> AnyArray:
    """Return an array of NumPy repeated to a shape, with its mask."""
    if not isinstance(array, np.ma.MaskedArray):
        return np.broadcast_to(array, shape)
    # np.broadcast_to gives the data of a masked array without its mask.
    mask = np.broadcast_to(np.ma.getmaskarray(array), shape)
    return np.ma.MaskedArray(np.broadcast_to(array.data, shape), mask)


def _chunks(arrays: Mapping[str, Any], shape: tuple[int, ...], like: str | None) -> Any:
    """Return the blocks that all arrays are cut into: those of y where it is lazy, else along the first dimension."""
    model = arrays.get(like) if like is not None else None
    if isinstance(model, da.Array):
        return model.chunks
    same = next((a.chunks for a in arrays.values() if isinstance(a, da.Array) and a.shape == shape), None)
    return same or normalize_chunks(("auto", *(-1,) * (len(shape) - 1)), shape, dtype=np.dtype("f8"))


def _spread_variables(arrays: Mapping[str, Any], like: str | None) -> tuple[dict[str, Any], Shaped]:
    """Repeat variables of xarray along their named dimensions; what has no names needs the shape of all."""
    import xarray

    if like is not None and not is_variable(arrays[like]):
        bare = {name: to_array(name, a) if is_variable(a) else a for name, a in arrays.items()}
        if unlike := [name for name, a in bare.items() if is_variable(arrays[name]) and a.shape != bare[like].shape]:
            raise DataError(
                f"It has named dimensions {arrays[unlike[0]].dims}, and {like} has none: give {like} as a DataArray.",
                column=unlike[0],
            )
        return spread(bare, like)
    whole = arrays[like] if like is not None else next(a for a in arrays.values() if is_variable(a))
    named = {name: _named(name, a, whole) for name, a in arrays.items()}
    try:
        # By default xarray keeps only those coordinates that all arrays have, and rows would be lost without a word.
        aligned = xarray.align(*named.values(), join="exact")
    except ValueError as error:
        raise DataError(f"The coordinates of the arrays differ: {str(error).splitlines()[0]}") from error
    dims = tuple(dict.fromkeys((*whole.dims, *(dim for a in aligned for dim in a.dims))))
    if like is not None and dims != tuple(whole.dims):
        dimensions = {name: a.dims for name, a in named.items()}
        beyond = next(name for name, a in named.items() if not set(a.dims) <= set(whole.dims))
        raise DataError(
            f"The variables must lie along dimensions of {like!r}; the dimensions are {dimensions}. Choose with "
            "data.isel().",
            column=beyond,
        )
    sizes = {dim: size for a in aligned for dim, size in a.sizes.items()}
    placed = {}
    for name, a in zip(named, aligned, strict=True):
        order = [dim for dim in dims if dim in a.dims]
        values = to_array(name, a.transpose(*order))
        placed[name] = values.reshape([sizes[dim] if dim in order else 1 for dim in dims])
    columns, shaped = spread(placed, like)
    template = xarray.broadcast(*(a.drop_vars([c for c in a.coords if c not in a.dims]) for a in aligned))[0]
    coordinates = {dim: template[dim] for dim in dims if dim in template.coords}
    return columns, lambda values: xarray.DataArray(shaped(values), coordinates, dims, name="predicted")


def _named(name: str, array: npt.ArrayLike, whole: xarray.Variable | xarray.DataArray) -> xarray.DataArray:
    """Return an array as a DataArray; one without names has those of `whole`, whose shape it needs."""
    import xarray

    if isinstance(array, xarray.DataArray):
        return array
    if is_variable(array):
        return xarray.DataArray(array)
    if np.ndim(array) and np.shape(array) != tuple(whole.shape):
        raise DataError(
            f"It has shape {np.shape(array)} and no named dimensions, beside a DataArray of {dict(whole.sizes)}. Give "
            "it as a DataArray too.",
            column=name,
        )
    return xarray.DataArray(_lazy_or_plain(name, array), dims=whole.dims if np.ndim(array) else ())
