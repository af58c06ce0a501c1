"""Images, spectra and cubes: every element is a row, x is repeated to the shape of y, and predict gives it back."""

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
from problems import decay

import dask_nlsq
from dask_nlsq import DataError

K = np.linspace(0, 4, 30)
SCALE = np.linspace(0.9, 1.1, 8)
SPECTRA = SCALE[:, None] * (2.5 * np.exp(-1.3 * K) + 0.5)  # (8, 30)
CUBE = np.stack([SPECTRA, SPECTRA + 0.01])
P0 = [2.0, 1.0, 0.3]


def expected(y):
    t = np.broadcast_to(K, y.shape)
    return dask_nlsq.fit(decay, t.ravel().copy(), y.ravel(), p0=P0).popt


FORMS = {
    "x shared": lambda y: (K, y),
    "x per row": lambda y: (np.broadcast_to(K, y.shape), y),
    "x of one more dimension": lambda y: (K[None], y),
    "Dask y": lambda y: (K, da.from_array(y, chunks=(*(1,) * (y.ndim - 2), 3, 10))),
    "Dask x": lambda y: (da.from_array(K, chunks=7), y),
    "both": lambda y: (da.from_array(K, chunks=7), da.from_array(y, chunks=y.shape)),
    "xarray, the first axis": lambda y: (
        xr.DataArray(K, dims="k"),
        xr.DataArray(np.moveaxis(y, -1, 0), dims=("k", "n", "c")[: y.ndim]),
    ),
    "xarray": lambda y: (xr.DataArray(K, dims="k"), xr.DataArray(y, dims=("c", "n", "k")[-y.ndim :])),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("y", [SPECTRA, CUBE], ids=["spectra", "cube"])
def test_the_answer_is_that_of_the_rows(form, y):
    x, given = FORMS[form](y)
    result = dask_nlsq.fit(decay, x, given, p0=P0)
    assert result.n_obs == y.size
    np.testing.assert_allclose(result.popt, expected(y), rtol=1e-8)


@pytest.mark.parametrize("form", FORMS)
def test_predict_gives_shape_and_coordinates_back(form):
    x, y = FORMS[form](SPECTRA)
    result = dask_nlsq.fit(decay, x, y, p0=P0)
    whole = xr.broadcast(x, y)[0].transpose(*y.dims) if "xarray" in form else np.broadcast_to(np.asarray(x), y.shape)
    found = result.predict(whole)
    curve = np.asarray(result.predict(K))
    same = np.repeat(curve[None], 8, axis=0)
    np.testing.assert_allclose(np.asarray(found), same.T if "first" in form else same)
    assert not isinstance(whole, xr.DataArray) or (found.dims == whole.dims and found.name == "predicted")


def plane(u, v, a, b, c):
    return a * u + b * v + c * jnp.sin(u)


U, V = np.meshgrid(np.arange(12.0), np.arange(9.0), indexing="ij")
PLANE = 2 * U - V + 0.5 * np.sin(U)


@pytest.mark.parametrize(
    "x",
    [(U, V), [U, V], np.stack([U, V]), (np.arange(12.0)[:, None], np.arange(9.0)), (da.from_array(U, chunks=5), V)],
    ids=["tuple", "list", "stack", "axes", "Dask"],
)
@pytest.mark.parametrize("sigma", [None, 2.0, np.full(PLANE.shape, 3.0)], ids=["none", "number", "array"])
def test_several_x_of_an_image(x, sigma):
    result = dask_nlsq.fit(plane, x, PLANE, sigma=sigma, p0=[1, 1, 1])
    np.testing.assert_allclose(result.popt, [2, -1, 0.5], rtol=1e-8)
    np.testing.assert_allclose(np.asarray(result.predict(x)), PLANE, atol=1e-8)


@pytest.mark.parametrize("lazy", [False, True])
def test_variables_of_a_dataset_are_repeated_along_their_dimensions(lazy):
    data = xr.Dataset({"y": (("n", "k"), SPECTRA), "scale": ("n", SCALE)}, {"t": ("k", K)})
    data = data.chunk(n=3, k=10) if lazy else data
    result = dask_nlsq.fit(lambda t, scale, a, k, c: scale * decay(t, a, k, c), x=["t", "scale"], data=data, p0=P0)
    np.testing.assert_allclose(result.popt, [2.5, 1.3, 0.5], rtol=1e-8)


@pytest.mark.parametrize("x", [K[:-1], SCALE, CUBE[:, :, :7]], ids=["short", "the other axis", "a cube"])
def test_an_x_that_cannot_be_repeated_is_refused(x):
    with pytest.raises(DataError, match=r"y has shape \(8, 30\), and the 1. x shape"):
        dask_nlsq.fit(decay, x, SPECTRA, p0=P0)
