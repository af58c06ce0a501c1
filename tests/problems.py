"""Models and rows that several tests share; importable by worker processes only through cloudpickle."""

import dask.array as da
import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pandas as pd
import zarr
from scipy.optimize import least_squares

TRUTH = {"amplitude": 3.0, "rate": 1.3, "offset": 0.5}


def decay(t, amplitude, rate, offset=0.0):
    return amplitude * jnp.exp(-rate * t) + offset


def decay_rows(n, seed=0, noise=0.1):
    """Return t and y of the decay at TRUTH."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(0, 5, n)
    return t, 3.0 * np.exp(-1.3 * t) + 0.5 + rng.normal(0, noise, n)


def decay_reference(t, y, sigma=None):
    """Return SciPy's answer at tight tolerances, polished by two Gauss-Newton steps: parameters and covariance."""
    w = 1.0 if sigma is None else 1.0 / sigma

    def residual(p):
        return w * (p[0] * np.exp(-p[1] * t) + p[2] - y)

    def jacobian(p):
        e = np.exp(-p[1] * t)
        return np.stack([w * e, -p[0] * t * w * e, w * np.ones_like(t)], axis=1)

    x = least_squares(residual, [3, 1.3, 0.5], jacobian, method="lm", ftol=3e-16, xtol=3e-16, gtol=3e-16).x
    for _ in range(2):  # a cost of 1e5 hides steps below 1e-4 standard errors from SciPy; its gradient does not
        x = x - np.linalg.lstsq(jacobian(x), residual(x), rcond=None)[0]
    r, jac = residual(x), jacobian(x)
    return x, np.linalg.inv(jac.T @ jac) * (r @ r) / (len(t) - 3)


def as_parquet(t, y, pieces, path):
    """Write one file and return a Dask DataFrame of so many partitions."""
    frame = pd.DataFrame({"t": t, "y": y})
    for i, rows in enumerate(np.array_split(np.arange(len(t)), pieces)):
        frame.iloc[rows].to_parquet(path / f"{i:04}.parquet")
    return dd.read_parquet(path)


def as_arrays(t, y, pieces, path):
    """Return Dask arrays of so many chunks."""
    chunk = -(-len(t) // pieces)
    return {"t": da.from_array(t, chunks=chunk), "y": da.from_array(y, chunks=chunk)}


def as_zarr(t, y, pieces, path):
    """Write a group whose arrays have so many chunks."""
    group = zarr.create_group(path / "rows.zarr")
    for name, column in {"t": t, "y": y}.items():
        group.create_array(name, data=column, chunks=(-(-len(t) // pieces),))
    return group


STORES = {"parquet": as_parquet, "arrays": as_arrays, "zarr": as_zarr}
