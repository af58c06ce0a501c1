"""The accessors ``nlsq`` of frames and of xarray: they hand what they are on to `dask_nlsq.fit` and its kin."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

from dask_nlsq import _fit, _many, _plan, _result
from dask_nlsq._accessors.signature import options_of
from dask_nlsq._errors import DataError

if TYPE_CHECKING:
    import dask.dataframe as dd
    import pandas as pd
    import xarray as xr


class NlsqAccessor:
    """Nonlinear least squares on the columns of this frame.

    Examples
    --------
    >>> import pandas as pd, dask_nlsq
    >>> frame = pd.DataFrame({"x": [0.0, 1, 2, 3], "y": [1.0, 3, 5, 7]})
    >>> popt, pcov = frame.nlsq.fit(lambda x, slope, level: level + slope * x)
    >>> popt.round(6).tolist()
    [2.0, 1.0]
    """

    def __init__(self, frame: pd.DataFrame | dd.DataFrame) -> None:
        self._frame = frame

    @options_of(lambda: _fit.fit)
    def fit(
        self,
        model: Callable[..., Any] | str,
        x: str | Sequence[str] | None = None,
        y: str | None = None,
        **options: Any,
    ) -> _result.FitResult:
        """Fit `model` to this frame's columns; ``dask_nlsq.fit(model, x, y, data=frame, **options)``."""
        return _fit.fit(model, x, y, data=self._frame, **options)

    @options_of(lambda: _fit.plan)
    def plan(
        self,
        model: Callable[..., Any] | str,
        x: str | Sequence[str] | None = None,
        y: str | None = None,
        **options: Any,
    ) -> _plan.Plan:
        """Say what `fit` would do; ``dask_nlsq.plan(model, x, y, data=frame, **options)``."""
        return _fit.plan(model, x, y, data=self._frame, **options)

    @options_of(lambda: _many.fit_groups)
    def fit_groups(
        self,
        by: str | Sequence[str],
        model: Callable[..., Any] | str,
        x: str | Sequence[str] | None = None,
        y: str = "y",
        **options: Any,
    ) -> Any:
        """Fit `model` to each group of rows; ``dask_nlsq.fit_groups(frame, by, model, x, y, **options)``."""
        return _many.fit_groups(self._frame, by, model, x, y, **options)


class XarrayAccessor:
    """Nonlinear least squares on this Dataset or DataArray.

    Examples
    --------
    >>> import numpy as np, xarray as xr, jax.numpy as jnp, dask_nlsq
    >>> t = np.linspace(0, 4, 20)
    >>> image = xr.DataArray(3 * np.exp(-np.array([[0.5], [2.0]]) * t), dims=("pixel", "t"), coords={"t": t})
    >>> def decay(t, amplitude, rate):
    ...     return amplitude * jnp.exp(-rate * t)
    >>> image.nlsq.fit_many(decay, dim="t")["rate"].values.round(6).tolist()
    [0.5, 2.0]
    """

    def __init__(self, data: xr.Dataset | xr.DataArray) -> None:
        self._data = data

    @options_of(lambda: _fit.fit)
    def fit(
        self, model: Callable[..., Any] | str, x: str | Sequence[str] | None = None, y: str = "y", **options: Any
    ) -> _result.FitResult:
        """Fit `model` once to all elements; ``dask_nlsq.fit(model, x, y, data=dataset, **options)``.

        A DataArray counts as a Dataset whose one variable is called `y`.
        """
        data: Any = self._data
        return _fit.fit(model, x, y, data=data if hasattr(data, "data_vars") else data.to_dataset(name=y), **options)

    @options_of(lambda: _many.fit_many, without=("axis",))
    def fit_many(
        self,
        model: Callable[..., Any] | str,
        dim: str,
        x: Any = None,
        y: str | None = None,
        *,
        sigma: Any = None,
        layout: str = "named",
        **options: Any,
    ) -> xr.Dataset:
        """Fit `model` to every series along a dimension, each by itself; options are those of `dask_nlsq.fit_many`.

        Parameters
        ----------
        dim : str
            The dimension along which a series lies.
        x : str, array or tuple, optional
            Names of coordinates or variables, or arrays; by default the coordinate of `dim`.
        y : str, optional
            The variable of a Dataset that is fitted, where it has several.
        sigma : str, number or array, optional
            Standard deviation of y; a name is that of a variable.
        layout : {"named", "curvefit"}
            See `ManyFits.to_dataset`; "curvefit" keeps the covariance.

        Returns
        -------
        xarray.Dataset
            Lazy where the data are of Dask, else computed.
        """
        array, variables = self._response(y)
        if dim not in array.dims:
            raise DataError(f"dim is {dim!r}; the dimensions of y are {list(map(str, array.dims))}.")
        columns = x if isinstance(x, (tuple, list)) else [dim if x is None else x]
        columns = [variables[c] if isinstance(c, str) and c in variables else c for c in columns]
        if isinstance(sigma, str):
            if sigma not in variables:
                raise DataError(f"sigma is {sigma!r}; the variables are {sorted(map(str, variables))}.")
            sigma = variables[sigma]
        if layout == "curvefit":
            options.setdefault("covariance", True)
        fits = _many.fit_many(model, tuple(columns), array, axis=dim, sigma=sigma, **options)
        lazy = hasattr(array.data, "__dask_graph__")
        return (fits if lazy else fits.compute()).to_dataset(layout)

    def _response(self, y: str | None) -> tuple[xr.DataArray, dict[str, xr.DataArray]]:
        """Return the DataArray that is fitted, and all variables by name."""
        data: Any = self._data
        if not hasattr(data, "data_vars"):
            return data, {}
        variables = {str(name): array for name, array in data.data_vars.items()}
        name = next(iter(variables)) if y is None and len(variables) == 1 else y
        if name not in variables:
            raise DataError(f"y is {y!r}; name one of the variables, which are {sorted(variables)}.")
        return variables[name], variables


def register() -> None:
    """Add ``.nlsq`` to what Dask, pandas and xarray hold, now or when they are imported.

    Neither is imported for that: a worker imports what its partitions need.
    """
    for module, add in (("pandas", _add), ("dask.dataframe", _add), ("xarray", _add_to_xarray)):
        if sys.modules.get(module) is not None:
            importlib.import_module(module)  # another thread may be in the middle of it
        # pandas and Dask each have a registry of their own.
        wrapt.register_post_import_hook(add, module)


def _add(module: ModuleType) -> None:
    extensions = module.extensions if hasattr(module, "extensions") else module.api.extensions
    extensions.register_dataframe_accessor("nlsq")(NlsqAccessor)


def _add_to_xarray(module: ModuleType) -> None:
    module.register_dataset_accessor("nlsq")(XarrayAccessor)
    module.register_dataarray_accessor("nlsq")(XarrayAccessor)
