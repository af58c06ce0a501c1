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

    def of(self, ndim: int) -> tuple[str, ...]:
        """Return a name for each dimension."""
        return self.dims or tuple(f"dim_{i}" for i in range(ndim))


def labelled(x: Any, y: Any, axis: int | str) -> tuple[Labels, Any, Any, int]:
    """Return what a DataArray says of its dimensions, and x, y and the axis without names."""
    if not hasattr(y, "dims") or not hasattr(y, "coords"):
        if isinstance(axis, str):
            raise DataError(f"axis is {axis!r}; y has no named dimensions, so a number is needed.")
        if x is None or isinstance(x, str):
            raise DataError("x is needed as an array; only a DataArray has coordinates to take it from.")
        return Labels(), _bare(x), y, axis
    dim = y.dims[axis] if isinstance(axis, int) else axis
    if dim not in y.dims:
        raise DataError(f"axis is {axis!r}; the dimensions of y are {list(y.dims)}.")
    names = [dim] if x is None else x if isinstance(x, (tuple, list)) else [x]
    columns = [_coordinate(y, name) if isinstance(name, str) else _aligned(name, y, dim) for name in names]
    coords = {name: c for name, c in y.coords.items() if dim not in c.dims}
    outer = tuple(str(d) for d in y.dims if d != dim)
    return Labels(outer, coords), tuple(columns), y.data, y.dims.index(dim)


def _coordinate(y: Any, name: str) -> Any:
    if name not in y.coords:
        if name in y.dims:
            return np.arange(y.sizes[name], dtype=float)
        raise DataError(f"x is {name!r}; the coordinates of y are {sorted(map(str, y.coords))}.")
    return _aligned(y.coords[name], y, name)


def _aligned(column: Any, y: Any, dim: str) -> Any:
    """Return an array as it is, and a DataArray of several dimensions in the order of those of y."""
    if not hasattr(column, "dims"):
        return column
    if column.ndim > 1:
        return column.broadcast_like(y).transpose(*y.dims).data
    return column.data


def _bare(x: Any) -> Any:
    """Return columns without names."""
    if isinstance(x, (tuple, list)) and len(x) and any(np.ndim(c) for c in x):
        return tuple(getattr(c, "data", c) if hasattr(c, "dims") else c for c in x)
    return x.data if hasattr(x, "dims") else x
