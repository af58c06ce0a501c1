"""ManyFits: what fit_many returns, lazily: an array for each parameter and statistic."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING, Any, Literal

import dask
import dask.array as da
import numpy as np
import pandas as pd

from dask_nlsq._errors import NlsqError
from dask_nlsq._many import maps
from dask_nlsq._many.html import fragment_of
from dask_nlsq._many.labels import Labels
from dask_nlsq._many.task import STATISTICS, as_float, indices, predict
from dask_nlsq._result import FitResult, computing, regular, replacing, write
from dask_nlsq._solver import Status
from dask_nlsq._sweep import Payload

if TYPE_CHECKING:
    import xarray as xr
    from distributed import Client


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class ManyFits:
    """Estimates and statistics of many fits, as arrays of the outer shape.

    Arrays are of Dask until `compute` or `persist` returns fits whose arrays are of NumPy or in the memory of the
    workers. All of them come from one pass over the data.

    Parameters
    ----------
    names : tuple of str
        The parameters.
    figures : array of shape ``(*outer, width)``
        For each series its parameters, their standard errors, the statistics and the covariance if it was asked for.
    shared : FitResult or None
        What is known of the parameters that all series share; its statistics are those of all series together.

    Examples
    --------
    >>> import numpy as np, jax.numpy as jnp, dask_nlsq
    >>> t = np.linspace(0, 4, 20)
    >>> y = np.stack([3 * np.exp(-0.5 * t), np.full(20, np.nan)])
    >>> result = dask_nlsq.fit_many(lambda t, amplitude, rate: amplitude * jnp.exp(-rate * t), t, y).compute()
    >>> result["rate"].round(6).tolist(), result.success.tolist()
    ([0.5, nan], [True, False])
    >>> result.failures()[["dim_0", "status"]].to_dict("list")
    {'dim_0': [1], 'status': ['TOO_FEW']}
    """

    names: tuple[str, ...]
    figures: Any
    has_covariance: bool = False
    labels: Labels = dataclasses.field(default_factory=Labels)
    shared: FitResult | None = None
    payload: Payload | None = None
    x: tuple[Any, ...] = ()
    y: Any = None
    client: Client | None = None
    progress: bool | None = None

    def __getitem__(self, name: str) -> Any:
        """Return the estimates of a parameter, an array of the outer shape."""
        if name not in self.names:
            raise KeyError(f"{name!r}; the parameters are {list(self.names)}.")
        return self.figures[..., self.names.index(name)]

    @property
    def params(self) -> dict[str, Any]:
        """The estimates, an array of the outer shape for each parameter."""
        return {name: self.figures[..., i] for i, name in enumerate(self.names)}

    @property
    def stderr(self) -> dict[str, Any]:
        """The standard errors: NaN at a bound, infinite where the data do not determine the parameter."""
        return {name: self.figures[..., len(self.names) + i] for i, name in enumerate(self.names)}

    @property
    def cov(self) -> Any:
        """The covariance of each series, of shape ``(*outer, p, p)``, if it was asked for."""
        if not self.has_covariance:
            raise NlsqError("The covariance was not kept; ask for it with fit_many(..., covariance=True).")
        k = len(self.names)
        return self.figures[..., 2 * k + len(STATISTICS) :].reshape(*self.shape, k, k)

    def _statistic(self, name: str) -> Any:
        return self.figures[..., indices(self.names)[name]]

    @property
    def cost(self) -> Any:
        """Half the sum of squares, or of the loss."""
        return self._statistic("cost")

    @property
    def redchi(self) -> Any:
        """The reduced chi-square, NaN without degrees of freedom."""
        return self._statistic("redchi")

    @property
    def rsquared(self) -> Any:
        """The share of the weighted spread of y that the model explains."""
        return self._statistic("rsquared")

    @property
    def n_obs(self) -> Any:
        """How many points of the series counted."""
        return self._statistic("n_obs").astype(np.int64)

    @property
    def nfev(self) -> Any:
        """Steps, of all attempts."""
        return self._statistic("nfev").astype(np.int64)

    @property
    def status(self) -> Any:
        """Why each fit stopped, as a code of `Status`."""
        return self._statistic("status").astype(np.int64)

    @property
    def success(self) -> Any:
        """Whether each fit has converged."""
        return self._statistic("status") > 0

    @property
    def shape(self) -> tuple[int, ...]:
        """The outer shape."""
        return tuple(self.figures.shape[:-1])

    @property
    def computed(self) -> bool:
        """Whether the arrays are of NumPy."""
        return isinstance(self.figures, np.ndarray)

    def compute(self) -> ManyFits:
        """Fit all series and return the result with NumPy arrays."""
        if self.computed:
            return self
        with self._computing():
            (figures,) = dask.compute(self.figures)
        return dataclasses.replace(self, figures=figures)

    def persist(self) -> ManyFits:
        """Fit all series and keep the figures in the memory of the workers."""
        with self._computing():
            (figures,) = dask.persist(self.figures)
        return dataclasses.replace(self, figures=figures)

    def _computing(self) -> contextlib.AbstractContextManager[None]:
        return computing(self.client, self.progress)

    def counts(self) -> pd.Series:
        """Return how many series ended with each status."""
        codes, counts = np.unique(np.asarray(self.compute().status), return_counts=True)
        table = {Status.of(int(code)).name: int(count) for code, count in zip(codes, counts, strict=True)}
        return pd.Series(table, name="series", dtype=np.int64).sort_values(ascending=False)

    def failures(self) -> pd.DataFrame:
        """Return which series failed: a row for each, with its index in the outer shape and why it stopped."""
        status = np.asarray(self.compute().status)
        places = np.argwhere(status <= 0)
        table = pd.DataFrame(places, columns=list(self.labels.of(len(self.shape))))
        codes = status[status <= 0]
        table["status"] = [Status.of(int(code)).name for code in codes]
        table["message"] = [Status.of(int(code)).sentence for code in codes]
        return table

    def predict(self, x: Any = None) -> Any:
        """Return the model at the points of each series, or at other points, of shape ``(*outer, points)``, lazily.

        Parameters
        ----------
        x : array, tuple of arrays, optional
            Columns (points,) that all series share.
        """
        columns = self.x if x is None else tuple(as_float(np.asarray(c)) for c in (x if isinstance(x, tuple) else (x,)))
        return _predicted(self, columns)

    def residuals(self) -> Any:
        """Return the model minus y at every point, of shape ``(*outer, points)``, lazily."""
        if self.y is None:
            raise NlsqError("This result keeps no data: fit again for its residuals.")
        return self.predict() - self.y

    def to_zarr(self, path: Any, *, overwrite: bool = False, storage_options: dict[str, Any] | None = None) -> None:
        """Fit all series, chunk by chunk, and write a Zarr group with an array for each variable of `to_dataset`.

        Parameters
        ----------
        path : str, path or zarr.abc.store.Store
            Where the group is made.
        overwrite : bool
            Whether what is there is replaced; else it is an error. What is at a path or URL stays until all has been
            written beside it. A store that is an object is emptied first, after the fits have been computed in memory.
        storage_options : dict, optional
            Passed to fsspec, for URLs.

        Raises
        ------
        FileExistsError
            There is something already, and `overwrite` is False.
        """
        with self._computing(), replacing(path, overwrite, storage_options) as place:
            figures = da.asarray(self.figures)
            if overwrite and not isinstance(place, (str, os.PathLike)):  # which may be what the series are read from
                figures = figures.persist()
            self._write(regular(figures, len(self.shape)), place, overwrite, storage_options)

    def _write(self, figures: da.Array, place: Any, overwrite: bool, storage_options: dict[str, Any] | None) -> None:
        fits = dataclasses.replace(self, figures=figures)
        if self.labels.coords:  # which xarray writes as it reads them
            mode: Literal["w", "w-"] = "w" if overwrite else "w-"
            fits.to_dataset().to_zarr(place, mode=mode, consolidated=False, storage_options=storage_options)
            return
        names = self.labels.of(len(self.shape))
        arrays = fits._arrays(figures)
        dims = {name: (*names, *("cov_i", "cov_j")[: array.ndim - len(names)]) for name, array in arrays.items()}
        group = write(arrays, dims, place, overwrite=overwrite, storage_options=storage_options)
        group.attrs["param"] = list(self.names)

    def _arrays(self, figures: Any) -> dict[str, Any]:
        """Return all arrays by name."""
        fits = dataclasses.replace(self, figures=figures)
        arrays = dict(fits.params) | {f"{name}_stderr": array for name, array in fits.stderr.items()}
        arrays |= {name: getattr(fits, name) for name in STATISTICS}
        return arrays | ({"cov": fits.cov} if self.has_covariance else {})

    def computed_arrays(self) -> dict[str, Any]:
        """Return all arrays by name, computed together."""
        return self._arrays(self.compute().figures)

    plot = maps.plot

    def to_dataset(self, layout: str = "named") -> xr.Dataset:
        """Return an xarray Dataset, of Dask arrays as long as the fits are not computed.

        Parameters
        ----------
        layout : {"named", "curvefit"}
            "named" has a variable for each parameter, its standard error as ``NAME_stderr`` and each statistic;
            "curvefit" has ``curvefit_coefficients`` along ``param`` and, where the covariance was kept,
            ``curvefit_covariance`` along ``cov_i`` and ``cov_j``, as `xarray.Dataset.curvefit` has them.
        """
        import xarray as xr

        if layout not in ("named", "curvefit"):
            raise NlsqError(f'layout is {layout!r}; "named" or "curvefit" is needed.')
        dims = self.labels.of(len(self.shape))
        coords: dict[str, Any] = dict(self.labels.coords)
        arrays = self._arrays(self.figures)
        ends: tuple[str, ...] = ("cov_i", "cov_j")
        if layout == "curvefit":
            cov = {"curvefit_covariance": arrays["cov"]} if self.has_covariance else {}
            arrays = {"curvefit_coefficients": self.figures[..., : len(self.names)]} | cov
            coords["param"] = list(self.names)
        if self.has_covariance:
            coords |= {"cov_i": list(self.names), "cov_j": list(self.names)}
        variables = {}
        for name, array in arrays.items():
            extra = array.ndim - len(dims)
            variables[name] = ((*dims, *(("param",) if extra == 1 else ends[:extra])), array)
        return xr.Dataset(variables, coords=coords)

    @property
    def title(self) -> str:
        """How many series and which parameters."""
        size = " × ".join(map(str, self.shape)) or "1"
        return f"ManyFits of {size} series: {', '.join(self.names)}"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: how many series ended how, and the parameters; nothing is computed for it."""
        return fragment_of(self).html()

    def __repr__(self) -> str:
        head = f"<{self.title}>"
        if not self.computed:
            return f"{head}\nNot computed yet: compute(), to_zarr(path) or to_dataset()."
        counts = self.counts()
        width = max((len(str(name)) for name in counts.index), default=0)
        return "\n".join([head, *(f"{name:{width}}  {count:,}" for name, count in counts.items())])


def _predicted(fits: ManyFits, columns: tuple[Any, ...]) -> Any:
    """Return the model of every series as a Dask array."""
    if fits.payload is None:
        raise NlsqError("This result was read from a file and has no model.")
    k, outer = len(fits.names), tuple(range(len(fits.shape)))
    theta = da.asarray(fits.figures[..., :k])
    theta = theta.rechunk({len(outer): -1})
    parameters, points = len(outer), len(outer) + 1
    arguments: list[Any] = [theta, (*outer, parameters)]
    for column in columns:
        arguments += [column, (*outer, points) if column.ndim > 1 else None]
    lazy: da.Array = da.blockwise(
        _predict_block,
        (*outer, points),
        *arguments,
        payload=fits.payload,
        new_axes={} if any(c.ndim > 1 for c in columns) else {points: columns[0].shape[-1]},
        concatenate=True,
        dtype=np.float64,
        meta=np.empty((0,) * (len(outer) + 1)),
    )
    return lazy


def _predict_block(theta: Any, *columns: Any, payload: Payload) -> Any:
    """Evaluate the model of each series of a chunk."""
    return predict(payload.value, np.asarray(theta, float), columns)
