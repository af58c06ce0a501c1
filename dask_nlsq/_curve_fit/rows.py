"""Rows: data that are fitted row by row, as `fit` does it, with the function called on blocks of rows.

`fit` takes columns of one dimension; what the user's function expects is an array of shape (..., rows), which is put
together again around each call. Dask arrays are fitted so whatever the function does, and arrays in memory where its
program proves that it treats each row by itself: then it is compiled once, and the sweeps are those of `fit`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import dask.array as da
import jax
import jax.numpy as jnp
import numpy as np

from dask_nlsq._curve_fit.call import Call
from dask_nlsq._curve_fit.data import Data, is_dask
from dask_nlsq._curve_fit.output import Output
from dask_nlsq._curve_fit.sigma import deviation
from dask_nlsq._errors import NotFiniteError
from dask_nlsq._kernel import validate
from dask_nlsq._typing import AnyArray


@dataclasses.dataclass(frozen=True)
class Rows:
    """A function that takes its data of shape (..., rows) from a stack of columns, (k, rows)."""

    f: Callable[..., Any]
    lead: tuple[int, ...]
    tail: tuple[int, ...] = ()  # shape of a row's value

    def __call__(self, x: jax.Array | AnyArray, *theta: Any) -> Any:
        rows = x.shape[-1:]
        value = self.f(x.reshape(*self.lead, *rows), *theta)
        # NumPy cannot broadcast what JAX traces.
        xp = jnp if isinstance(value, jax.Array) else np
        return xp.broadcast_to(value, (*rows, *self.tail))


def fit_rows(call: Call, data: Data) -> Output:
    """Fit in partitions."""
    x = data.x if is_dask(data.x) else da.asarray(data.x, dtype=float)
    y = data.y if np.ndim(data.y) else da.full(x.shape[-1], data.y, chunks=x.chunks[-1], dtype=float)
    if y.shape[0] == 0:
        raise ValueError("`ydata` must not be empty!")
    # As in SciPy: one value of ydata is broadcast against what the function returns.
    if y.shape[0] != 1:
        call.require(y.shape[0])
    sigma = deviation(data.sigma, y.shape)
    lead, columns = x.shape[:-1], _columns(x)
    jac = Rows(call.jac, lead, (call.p,)) if callable(call.jac) else call.jac
    options = {"nan_policy": "omit" if call.policy == "omit" else "raise"}
    if sigma is not None:
        options["sigma"] = abs(sigma)
    try:
        result = call.fit(Rows(call.bounded, lead), columns, y, jac, **options)
    except NotFiniteError as error:
        if call.policy == "raise":
            raise NotFiniteError(f"The input contains nan values: {error}") from error
        raise

    def fvec() -> Any:
        residual = (result.predict(columns) - y) / (1.0 if sigma is None else sigma)
        return residual[~da.isnan(residual)] if call.policy == "omit" else residual

    # SciPy counts rows of infinite sigma too; where nobody knows how many rows there are, those are left out.
    known = isinstance(y.shape[0], int)
    return Output(call, result, y.shape[0] - result.n_dropped if known else result.n_obs, fvec)


def by_itself(call: Call, x: object, y: AnyArray, sigma: AnyArray | None) -> bool:
    """Whether the function treats each row of these arrays in memory by itself, and they are such as `fit` takes."""
    if call.jac is not None or not isinstance(x, np.ndarray) or x.dtype != np.float64 or not call.known:
        return False
    n, weights = y.size, np.ones(1) if sigma is None else sigma
    if x.ndim == 0 or x.shape[-1] != n or y.ndim != 1 or n < max(call.p, 2) or weights.shape not in ((), (1,), (n,)):
        return False
    if not all(bool(np.isfinite(a).all()) for a in (x, y, weights)):
        return False
    return validate.rows_alike(call.objective(Rows(call.f, x.shape[:-1]), x.size // n))


def fit_columns(call: Call, x: AnyArray, y: AnyArray, sigma: AnyArray | None) -> Output:
    """Fit arrays in memory of which each row is treated by itself."""
    spread = deviation(sigma, y.shape)
    options = {} if spread is None else {"sigma": abs(spread)}
    columns = x if x.ndim == 1 else tuple(x.reshape(-1, y.size))
    result = call.fit(Rows(call.f, x.shape[:-1]), columns, y, None, client=False, progress=False, **options)

    def fvec() -> Any:
        with jax.enable_x64(True):
            values = np.asarray(call.f(x, *result.popt), float)
        return (values - y) / (1.0 if spread is None else spread)

    return Output(call, result, y.size, fvec)


def _columns(x: da.Array) -> tuple[da.Array, ...]:
    """Return an array of shape (..., n) as columns of shape (n,)."""
    return (x,) if x.ndim == 1 else tuple(x.reshape(-1, x.shape[-1]) if x.ndim > 2 else x)
