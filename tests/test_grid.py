"""Images, spectra and cubes: every element is a row, x is broadcast to the shape of y, and predict restores it."""

import contextlib

import dask
import dask.array as da
import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
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


@pytest.mark.one_at_a_time
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
    with pytest.raises(DataError, match=r"cannot be repeated to that of y: \{'x\[0\]': .*'y': \(8, 30\)"):
        dask_nlsq.fit(decay, x, SPECTRA, p0=P0)


BIG = np.linspace(0, 4, 40_000).reshape(200, 200)


@pytest.mark.parametrize("lazy", ["x", "sigma", "both", "y", "one of two"])
@pytest.mark.parametrize("named", [False, True], ids=["arrays", "xarray"])
def test_blocks_of_lazy_arrays_lie_beside_the_rows_of_others(lazy, named):
    """Also where an array is cut along several dimensions."""

    def cut(a, *whose):
        if named:
            found = xr.DataArray(a, dims=("n", "k"))
            return found.chunk(n=70, k=30) if lazy in whose else found
        return da.from_array(a, chunks=(70, 30)) if lazy in whose else a

    x, y, sigma = cut(BIG, "x", "both"), cut(2 * BIG + 3, "y"), cut(1 + BIG, "sigma", "both")
    other = cut(BIG**2, "one of two")
    with dask.config.set({"array.chunk-size": "20kB"}):
        result = dask_nlsq.fit(lambda u, v, a, b: a * u + b + 0 * v, (x, other), y, sigma=sigma, p0=[1.0, 1.0])
    np.testing.assert_allclose(result.popt, [2, 3], rtol=1e-8)


@pytest.mark.parametrize("kind", ["Zarr", "Zarr with another x", "xarray", "netCDF"])
def test_encoded_arrays_of_several_dimensions_are_decoded(kind, tmp_path):
    stored = np.round(SPECTRA / 1e-4).astype("i4")
    y = xr.DataArray(stored, dims=("n", "k"), attrs={"scale_factor": 1e-4})
    x = xr.DataArray(K, dims="k")
    if kind.startswith("Zarr"):
        y = zarr.create_array(tmp_path / "y.zarr", data=stored, chunks=(3, 30), attributes={"scale_factor": 1e-4})
        x = K if kind == "Zarr" else da.from_array(K, chunks=10)
    if kind == "netCDF":
        xr.Dataset({"y": y}).to_zarr(tmp_path / "y.zarr", zarr_format=2, consolidated=False)
        y = xr.open_zarr(tmp_path / "y.zarr", chunks=None, mask_and_scale=False, consolidated=False)["y"]
    result = dask_nlsq.fit(decay, x, y, p0=P0)
    np.testing.assert_allclose(result.popt, expected(stored * 1e-4), rtol=1e-6)


def test_sigma_without_names_takes_those_of_y():
    y = xr.DataArray(np.repeat(K[:, None], 30, 1) * 2 + 3, dims=("a", "b"))
    result = dask_nlsq.fit(lambda t, a, b: a * t + b, xr.DataArray(K, dims="a"), y, sigma=np.ones((30, 30)), p0=[1, 1])
    np.testing.assert_allclose(result.popt, [2, 3], rtol=1e-8)


@pytest.mark.parametrize("shift", [0.0, 1e-9, 15.0])
def test_coordinates_must_be_the_same(shift):
    x = xr.DataArray(K, dims="k", coords={"k": K})
    y = xr.DataArray(SPECTRA, dims=("n", "k"), coords={"k": K + shift})
    with contextlib.nullcontext() if not shift else pytest.raises(DataError, match="coordinates of the arrays differ"):
        assert dask_nlsq.fit(decay, x, y, p0=P0, nan_policy="omit").n_obs == 240


def test_masked_cells_of_x_are_missing():
    x = np.ma.MaskedArray(np.broadcast_to(K, (8, 30)).copy(), np.arange(240).reshape(8, 30) % 7 == 0)
    x.data[x.mask] = 99.0
    result = dask_nlsq.fit(decay, x, SPECTRA, p0=P0, nan_policy="omit")
    assert result.n_dropped == x.mask.sum()


def test_predict_repeats_along_named_dimensions_as_fit_does():
    data = xr.Dataset({"t": ("k", K), "scale": ("n", np.linspace(0.9, 1.1, 30))})
    y = (data["scale"] * (2.5 * np.exp(-1.3 * data["t"]) + 0.5)).transpose("n", "k")
    result = dask_nlsq.fit(
        lambda t, scale, a, k, c: scale * decay(t, a, k, c), x=["t", "scale"], data=data.assign(y=y), p0=P0
    )
    found = result.predict(data)
    np.testing.assert_allclose(found.transpose(*y.dims), y, rtol=1e-6)


@pytest.mark.parametrize(
    ("x", "y", "sigma"),
    [
        (K, SPECTRA, np.ones(7)),
        (K, da.from_array(SPECTRA, chunks=3)[da.from_array(SPECTRA, chunks=3)[:, 0] > 0], None),
        (dd.from_pandas(pd.Series(K), npartitions=2), SPECTRA, None),
        (xr.DataArray(K, dims="k"), SPECTRA, None),
        (K, da.zeros((0, 30)), None),
    ],
    ids=["sigma", "unknown chunks", "a Series", "names beside none", "no rows"],
)
def test_what_cannot_be_laid_out_is_a_data_error(x, y, sigma):
    with pytest.raises(DataError):
        dask_nlsq.fit(decay, x, y, sigma=sigma, p0=P0)


@pytest.mark.parametrize("lacking", ["x", "y", "sigma"])
@pytest.mark.parametrize("missing_chunks", ["fill", "raise"])
def test_missing_chunks_of_several_dimensions_are_counted_or_refused(lacking, missing_chunks, tmp_path):
    whole = {"x": np.broadcast_to(K, (8, 30)), "y": SPECTRA, "sigma": np.ones((8, 30))}
    given = {}
    for name, values in whole.items():
        fill = {"fill_value": 1.0} if name == "sigma" else {}
        given[name] = zarr.create_array(tmp_path / name, shape=values.shape, dtype="f8", chunks=(4, 30), **fill)
        given[name][: 4 if name == lacking else 8] = values[: 4 if name == lacking else 8] * (1 + 1e-9)
    refusal = pytest.raises(DataError, match="1 of 2 chunks") if missing_chunks == "raise" else contextlib.nullcontext()
    with refusal:
        result = dask_nlsq.fit(decay, **given, p0=P0, missing_chunks=missing_chunks)
        assert any("1 of 2 chunks" in note for note in result.notes)
