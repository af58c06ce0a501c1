"""Labels: the names of an array's dimensions, which results take over from xarray."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from dask_nlsq._errors import DataError


@dataclasses.dataclass(frozen=True)
class Labels:
    """Dimensions of the outer shape, and coordinates that lie along them alone."""

    dims: tuple[str, ...] = ()
    coords: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    like: Any = None  # a DataArray of the outer shape

    def align(self, value: Any, what: str) -> Any:
        """Return a value of each series without names, in the order of the dimensions."""
        if not hasattr(value, "dims"):
            return value
        return value.data if self.like is None else _in_order(value, self.like, what)

    def of(self, ndim: int) -> tuple[str, ...]:
        """Return a name for each dimension."""
        return self.dims or tuple(f"dim_{i}" for i in range(ndim))


def labelled(x: Any, y: Any, sigma: Any, axis: int | str) -> tuple[Labels, Any, Any, Any, int]:
    """Return what a DataArray says of its dimensions, and x, y, sigma and the axis without names."""
    if not hasattr(y, "dims") or not hasattr(y, "coords"):
        if isinstance(axis, str):
            raise DataError(f"axis is {axis!r}; y has no named dimensions, so a number is needed.")
        if x is None or isinstance(x, str):
            raise DataError("x is needed as an array; only a DataArray has coordinates to take it from.")
        return Labels(), _bare(x), y, getattr(sigma, "data", sigma) if hasattr(sigma, "dims") else sigma, axis
    dim = y.dims[axis] if isinstance(axis, int) else axis
    if dim not in y.dims:
        raise DataError(f"axis is {axis!r}; the dimensions of y are {list(y.dims)}.")
    names = [dim] if x is None else x if isinstance(x, (tuple, list)) else [x]
    columns = [_coordinate(y, name) if isinstance(name, str) else _aligned(name, y, dim, "x") for name in names]
    coords = {name: c for name, c in y.coords.items() if dim not in c.dims}
    outer = tuple(str(d) for d in y.dims if d != dim)
    indexes = y.isel({dim: 0}, drop=True)
    return Labels(outer, coords, indexes), tuple(columns), y.data, _aligned(sigma, y, dim, "sigma"), y.dims.index(dim)


def _coordinate(y: Any, name: str) -> Any:
    if name not in y.coords:
        if name in y.dims:
            return np.arange(y.sizes[name], dtype=float)
        raise DataError(f"x is {name!r}; the coordinates of y are {sorted(map(str, y.coords))}.")
    return _aligned(y.coords[name], y, name, "x")


def _aligned(column: Any, y: Any, dim: str, what: str) -> Any:
    """Return a column without names: (points,), or in the order of the dimensions of y."""
    if not hasattr(column, "dims"):
        return column
    if column.dims in ((), (dim,)):
        _check_labels(column, y, what)
        return column.data
    return _in_order(column, y, what)


def _in_order(array: Any, like: Any, what: str) -> Any:
    """Return an array in the order of the dimensions of another, which its labels must be those of."""
    strange = [name for name in array.dims if name not in like.dims]
    if strange:
        raise DataError(f"{what} has the dimension {strange[0]!r}; there are {list(map(str, like.dims))}.")
    _check_labels(array, like, what)
    return array.broadcast_like(like).transpose(*like.dims).data


def _check_labels(array: Any, like: Any, what: str) -> None:
    """Refuse labels along a dimension that are not those of y: by their places, others would be fitted together."""
    for name in array.dims:
        if name in array.indexes and name in like.indexes and not array.indexes[name].equals(like.indexes[name]):
            raise DataError(
                f"The labels of {what} along {name!r} are not those of y; align the two, as xarray.align does."
            )


def _bare(x: Any) -> Any:
    """Return columns without names."""
    if isinstance(x, (tuple, list)) and len(x) and any(np.ndim(c) for c in x):
        return tuple(c.data if hasattr(c, "dims") else c for c in x)
    return x.data if hasattr(x, "dims") else x
