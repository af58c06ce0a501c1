"""Many small fits: each series has the answer of `fit`, whatever is beside it, and whatever holds or fits it."""

import dataclasses
from pathlib import Path

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
import zarr
from nist import PROBLEMS

import dask_nlsq
from dask_nlsq import BoundsError, DataError, Model, ModelError, NlsqError, Status
from dask_nlsq._many.task import as_float

T = np.linspace(0, 4, 24)
P0 = {"amplitude": 2.0, "rate": 1.0, "offset": 0.0}


def decay(t, amplitude, rate, offset):
    return amplitude * jnp.exp(-rate * t) + offset


def cube(shape=(4, 5), seed=0, noise=0.05):
    rng = np.random.default_rng(seed)
    amplitude, rate, offset = (rng.uniform(*r, (*shape, 1)) for r in ((2, 4), (0.5, 2), (0.5, 1)))
    return amplitude * np.exp(-rate * T) + offset + rng.normal(0, noise, (*shape, len(T)))


IMAGE = cube()
SIGMA = np.linspace(0.5, 2.0, len(T))


def each(result, image, **options):
    """Compare every series with `fit`."""
    for place in np.ndindex(image.shape[:-1]):
        one = dask_nlsq.fit(decay, T, image[place], client=False, **options)
        found = np.array([result[n][place] for n in one.names]), np.array([result.stderr[n][place] for n in one.names])
        np.testing.assert_allclose(found[0], one.popt, rtol=1e-6)
        np.testing.assert_allclose(found[1], one.stderr, rtol=1e-6)
        np.testing.assert_allclose(result.redchi[place], one.redchi, rtol=1e-6)
        np.testing.assert_allclose(result.rsquared[place], one.rsquared, rtol=1e-6)


OPTIONS = {
    "plain": {},
    "weights": {"sigma": SIGMA},
    "absolute weights": {"sigma": 0.05, "absolute_sigma": True},
    "bounds, one of them met": {"bounds": {"offset": (0.8, 2.0), "rate": (0.0, 3.0)}},
    "fixed": {"fixed": {"offset": 0.75}},
    "soft_l1": {"loss": "soft_l1", "f_scale": 0.05},
    "fixed at its start": {"p0": P0 | {"offset": 0.7}, "fixed": ["offset"]},
    "tied": {"tied": {"offset": "amplitude/4"}},
    "huber": {"loss": "huber", "f_scale": 0.05},
}


@pytest.mark.crossed(3)
@pytest.mark.parametrize("name", OPTIONS)
def test_each_series_has_the_answer_of_fit(name):
    options = {"p0": P0 | {"offset": 0.9}} | OPTIONS[name]
    image = IMAGE[:2, :2]
    result = dask_nlsq.fit_many(decay, T, image, **options).compute()
    assert result.success.all()
    if np.ndim(options.get("sigma", 0)) == 0:
        return each(result, image, **options)
    sigma = options.pop("sigma")
    for place in np.ndindex(image.shape[:-1]):
        one = dask_nlsq.fit(decay, T, image[place], sigma=sigma, client=False, **options)
        np.testing.assert_allclose([result[n][place] for n in one.names], one.popt, rtol=1e-6)


def as_zarr(image, path):
    array = zarr.create_array(path / "image.zarr", shape=image.shape, dtype=float, chunks=(2, 2, 7))
    array[:] = image
    return array


CONTAINERS = {
    "numpy": lambda image, path: image,
    "float32": lambda image, path: image.astype(np.float32),
    "dask": lambda image, path: da.from_array(image, chunks=(3, 2, 24)),
    "dask, series in pieces": lambda image, path: da.from_array(image, chunks=(4, 5, 5)),
    "zarr": as_zarr,
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_every_container_has_the_same_bits(name, tmp_path):
    held = CONTAINERS[name](IMAGE, tmp_path)
    plain = dask_nlsq.fit_many(decay, T, np.asarray(held, float), p0=P0, covariance=True).compute()
    result = dask_nlsq.fit_many(decay, T, held, p0=P0, covariance=True)
    assert isinstance(result["rate"], da.Array) and not result.computed
    assert np.array_equal(result.compute().figures, plain.figures)


def test_the_axis_may_be_any():
    plain = dask_nlsq.fit_many(decay, T, IMAGE, p0=P0).compute()
    first = dask_nlsq.fit_many(decay, T, np.moveaxis(IMAGE, -1, 0), axis=0, p0=P0).compute()
    assert np.array_equal(first.figures, plain.figures)


def test_a_single_series_takes_the_loop_of_many(monkeypatch):
    dask_nlsq.fit_many(decay, T, IMAGE, p0=P0).compute()
    for module in ("batched", "evaluation"):
        monkeypatch.setattr(f"dask_nlsq._solver.{module}._compile", lambda *_: pytest.fail("It was compiled anew."))
    assert dask_nlsq.fit_many(decay, T, IMAGE[1, 2], p0=P0).compute().success


def test_a_single_series_has_figures_without_dimensions():
    result = dask_nlsq.fit_many(decay, T, IMAGE[1, 2], p0=P0).compute()
    assert result.shape == () and result["rate"] == dask_nlsq.fit_many(decay, T, IMAGE, p0=P0).compute()["rate"][1, 2]


@pytest.mark.parametrize("chunks", [(1, 1), (3, 2), (2, 5)])
def test_a_cluster_has_the_bits_of_threads(client, chunks):
    image = da.from_array(IMAGE, chunks=(*chunks, -1))
    plain = dask_nlsq.fit_many(decay, T, IMAGE, p0=P0).compute()
    assert np.array_equal(dask_nlsq.fit_many(decay, T, image, p0=P0, client=client).compute().figures, plain.figures)


def broken(image, hopeless):
    """An image of which some series are of no use; those that are hopeless are fitted once more in other ways."""
    image = image.copy()
    image[0, 0] = np.nan
    image[0, 1, 2:] = np.nan
    image[0, 2, ::3] = np.inf
    if hopeless:
        image[1, 0] = 1.0
        image[1, 1] = np.sign(np.sin(3 * T))
    return image


@pytest.mark.parametrize("hopeless", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_series_that_fails_stops_no_other_and_is_mapped(hopeless):
    result = dask_nlsq.fit_many(decay, T, broken(IMAGE, hopeless), p0=P0).compute()
    plain = dask_nlsq.fit_many(decay, T, IMAGE, p0=P0).compute()
    untouched = np.ones((4, 5), bool)
    untouched[0, :3], untouched[1, :2] = False, not hopeless
    assert np.array_equal(result.figures[untouched], plain.figures[untouched])
    assert result.status[0, 0] == result.status[0, 1] == Status.TOO_FEW
    assert result.success[0, 2] and result.n_obs[0, 2] == 16
    assert np.isnan(result["rate"][~result.success]).all() and np.isfinite(result["rate"][result.success]).all()
    failures = result.failures()
    assert len(failures) == (~result.success).sum() and tuple(failures.columns[:2]) == ("dim_0", "dim_1")
    assert "TOO_FEW" in repr(result) and result.counts().sum() == 20


@pytest.mark.slow
def test_a_constant_series_does_not_determine_a_rate():
    image = IMAGE.copy()
    image[0, 0], image[0, 1] = 5.0, 0.0
    result = dask_nlsq.fit_many(decay, T, image, p0=P0).compute()
    assert result.status[0, :3].tolist() == [Status.UNIDENTIFIABLE] * 2 + [Status.CONVERGED]


def test_no_series_have_no_figures():
    result = dask_nlsq.fit_many(decay, T, np.empty((0, 3, 24)), p0=P0).compute()
    assert result.shape == (0, 3) and result["rate"].shape == (0, 3) and not len(result.failures())


def test_points_of_unlike_series_may_be_missing():
    image = IMAGE.copy()
    image[np.random.default_rng(1).random(image.shape) < 0.2] = np.nan
    result = dask_nlsq.fit_many(decay, T, image, p0=P0).compute()
    for place in ((0, 0), (3, 4)):
        there = np.isfinite(image[place])
        one = dask_nlsq.fit(decay, T[there], image[place][there], p0=P0, client=False)
        np.testing.assert_allclose([result[n][place] for n in one.names], one.popt, rtol=1e-6)
    with pytest.raises(DataError, match="omit"):
        dask_nlsq.fit_many(decay, T, image, p0=P0, nan_policy="raise").compute()


@pytest.mark.slow
def test_x_sigma_start_bounds_and_fixed_may_belong_to_the_series():
    rng = np.random.default_rng(3)
    x = T + rng.uniform(0, 0.1, IMAGE.shape)
    sigma = rng.uniform(0.5, 2, IMAGE.shape)
    offset = rng.uniform(0.4, 0.9, IMAGE.shape[:-1])
    y = IMAGE
    options = {"p0": {"amplitude": 2.0, "rate": offset + 0.5, "offset": offset}, "fixed": {"offset": offset}}
    low = {"rate": (np.zeros_like(offset), 5.0)}
    result = dask_nlsq.fit_many(decay, x, y, sigma=sigma, bounds=low, **options).compute()
    assert np.array_equal(result["offset"], offset) and (result.stderr["offset"] == 0).all()
    for place in ((0, 0), (2, 3)):
        one = dask_nlsq.fit(
            decay, x[place], y[place], sigma=sigma[place], p0=P0, fixed={"offset": offset[place]}, client=False
        )
        np.testing.assert_allclose([result[n][place] for n in one.names], one.popt, rtol=1e-6)
        np.testing.assert_allclose(result.stderr["rate"][place], one.stderr["rate"], rtol=1e-6)


@pytest.mark.slow
def test_the_model_guesses_for_each_series():
    x = np.linspace(-5, 5, 60)
    centers = np.array([-2.0, 0.5, 2.5])
    y = 3 * np.exp(-0.5 * ((x - centers[:, None]) / 0.4) ** 2)
    result = dask_nlsq.fit_many("gaussian", x, y).compute()
    np.testing.assert_allclose(result["center"], centers, rtol=1e-9)


@pytest.mark.slow
def test_a_start_that_is_given_for_a_series_counts_before_a_guess():
    x = np.linspace(-5, 5, 60)
    y = np.exp(-0.5 * ((x + 2) / 0.4) ** 2) + 2 * np.exp(-0.5 * ((x - 2.5) / 0.4) ** 2)
    starts = {"center": np.array([-2.1, np.nan])}
    result = dask_nlsq.fit_many("gaussian", x, np.stack([y, y]), p0=starts).compute()
    np.testing.assert_allclose(result["center"], [-2.0, 2.5], atol=0.1)


def test_a_point_without_y_or_sigma_is_left_out():
    sigma, y = np.ones((2, 24)), IMAGE[0, :2].copy()
    sigma[0, 3], y[0, 3], sigma[1, 5] = 0.0, np.nan, np.nan
    result = dask_nlsq.fit_many(decay, T, y, sigma=sigma, p0=P0).compute()
    assert result.success.all() and result.n_obs.tolist() == [23, 23]


def stretched(t, tau, beta):
    return jnp.exp(-((t / tau) ** beta))


@pytest.mark.parametrize("first", [[0.0, 0.1], pytest.param([0.0, 0.0], marks=pytest.mark.slow)], ids=["one", "all"])
def test_a_derivative_that_is_not_finite_is_a_difference(first):
    """It is not at t = 0: in one of the series alone, or in all."""
    t = np.tile(T, (2, 1))
    t[:, 0] = first
    result = dask_nlsq.fit_many(stretched, t, np.exp(-((t / [[1.0], [2.0]]) ** 0.7)), p0=[1.5, 0.9]).compute()
    np.testing.assert_allclose(result["tau"], [1.0, 2.0], rtol=1e-8)


@pytest.mark.slow
def test_a_queue_may_end_with_one_series():
    y = np.tile(IMAGE[0, 0], (4097, 1))
    assert dask_nlsq.fit_many(decay, T, da.from_array(y, chunks=-1), p0=P0).compute().success.all()


@pytest.mark.slow
def test_redundant_parameters_have_infinite_errors_and_others_keep_theirs():
    def twice(t, a, b, level):
        return (a + b) * jnp.exp(-t) + level

    result = dask_nlsq.fit_many(twice, T, 2 * np.exp(-T) + 1 + 0.01 * np.cos(9 * T), p0=[1.0, 1.0, 0.0]).compute()
    assert np.isinf(result.stderr["a"]) and np.isinf(result.stderr["b"]) and np.isfinite(result.stderr["level"])


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.name)
def test_nist_as_series(problem):
    """Both starts side by side; Lanczos1 has three digits of its errors in float64, MGH10 is found from one start."""
    columns = list(problem.x)
    model = Model.from_expression(problem.expression, columns=columns)
    y = np.stack([problem.y] * 2)
    starts = {name: np.array([s[i] for s in problem.starts]) for i, name in enumerate(problem.parameters)}
    x = tuple(np.array(c) for c in problem.x.values())
    result = dask_nlsq.fit_many(model, x, y, p0=starts, max_nfev=500).compute()
    good = result.success
    assert good.all() or (problem.name == "MGH10" and good[1])
    for name, value, error in zip(problem.parameters, problem.params, problem.stderr, strict=True):
        np.testing.assert_allclose(result[name][good], value, rtol=1e-6)
        if problem.name != "Lanczos1":
            np.testing.assert_allclose(result.stderr[name][good], error, rtol=1e-5)


def test_predictions_and_residuals_are_lazy_until_the_fits_are_computed():
    result = dask_nlsq.fit_many(decay, T, da.from_array(IMAGE, chunks=(2, 2, -1)), p0=P0)
    assert isinstance(result.predict(), da.Array) and isinstance(result.residuals(), da.Array)
    done = result.compute()
    theta = np.array([done[n][1, 2] for n in done.names])
    expected = theta[0] * np.exp(-theta[1] * T) + theta[2]
    np.testing.assert_allclose(done.predict()[1, 2], expected, rtol=1e-12)
    np.testing.assert_allclose(np.asarray(result.residuals())[1, 2], expected - IMAGE[1, 2], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(done.predict(np.array([0.0]))[1, 2], theta[0] + theta[2], rtol=1e-12)


def test_a_zarr_group_and_a_dataset_hold_every_figure(tmp_path):
    result = dask_nlsq.fit_many(decay, T, da.from_array(IMAGE, chunks=(2, 5, -1)), p0=P0, covariance=True)
    result.to_zarr(tmp_path / "fits.zarr")
    done, group = result.compute(), zarr.open_group(tmp_path / "fits.zarr", mode="r")
    assert np.array_equal(group["rate"][:], done["rate"]) and np.array_equal(group["status"][:], done.status)
    dataset = xr.open_zarr(tmp_path / "fits.zarr", consolidated=False)
    assert dataset["cov"].dims == ("dim_0", "dim_1", "cov_i", "cov_j")
    assert np.array_equal(done.to_dataset()["rate_stderr"], done.stderr["rate"])


def test_a_single_series_has_a_store_as_well(tmp_path):
    dask_nlsq.fit_many(decay, T, IMAGE[1, 2], p0=P0).to_zarr(tmp_path / "fits.zarr")
    assert zarr.open_array(tmp_path / "fits.zarr" / "status", mode="r")[()] > 0


@pytest.mark.slow
def test_columns_may_have_names():
    def plane(t, u, level, slope_t, slope_u):
        return level + slope_t * t + slope_u * u

    u = np.cos(T)
    result = dask_nlsq.fit_many(plane, {"t": T, "u": u}, 1 + 2 * T + 3 * u, p0={"level": 0.0}).compute()
    np.testing.assert_allclose([result[name] for name in result.names], [1, 2, 3], rtol=1e-9)


def test_a_data_array_keeps_its_names():
    image = xr.DataArray(IMAGE, dims=("y", "x", "time"), coords={"time": T, "y": [10, 20, 30, 40], "label": "a"})
    result = dask_nlsq.fit_many(decay, None, image, axis="time", p0=P0).compute()
    dataset = result.to_dataset()
    assert dataset["rate"].dims == ("y", "x") and dataset["y"].values.tolist() == [10, 20, 30, 40]
    assert np.array_equal(dataset["rate"], dask_nlsq.fit_many(decay, T, IMAGE, p0=P0).compute()["rate"])


@pytest.mark.parametrize("held", ["numpy", "dask"])
def test_a_masked_point_is_left_out(held):
    image = np.ma.masked_array(IMAGE[:2, :2].copy(), mask=False)
    image[0, 1, 5] = 999.0
    image[0, 1, 5] = np.ma.masked
    result = dask_nlsq.fit_many(decay, T, da.from_array(image) if held == "dask" else image, p0=P0).compute()
    plain = dask_nlsq.fit_many(decay, T, np.ma.filled(image, np.nan), p0=P0).compute()
    assert result.n_obs[0, 1] == 23 and np.array_equal(result.figures, plain.figures)


@pytest.mark.slow
def test_bounds_of_other_series_change_no_bit():
    starts = {"rate": np.where(np.arange(20) % 3 == 0, 60.0, 1.0).reshape(4, 5)}
    bounds = {"offset": (np.full((4, 5), -np.inf), np.inf)}
    bounds["offset"][0][3, 4] = -5.0
    whole = dask_nlsq.fit_many(decay, T, IMAGE, p0=P0 | starts, bounds=bounds).compute()
    cut = dask_nlsq.fit_many(decay, T, da.from_array(IMAGE, chunks=(1, 5, -1)), p0=P0 | starts, bounds=bounds)
    assert whole.success.all() and np.array_equal(whole.figures, cut.compute().figures)


@pytest.mark.slow
def test_a_chunk_of_one_series_has_its_bits_under_bounds_of_its_own():
    bounds = {"offset": (np.full((4, 5), -np.inf), np.inf)}
    whole = dask_nlsq.fit_many(decay, T, IMAGE, p0=P0, bounds=bounds).compute()
    cut = dask_nlsq.fit_many(decay, T, da.from_array(IMAGE, chunks=(1, 1, -1)), p0=P0, bounds=bounds)
    assert np.array_equal(whole.figures, cut.compute().figures)


@pytest.mark.slow
def test_a_bound_of_each_series_keeps_it():
    lower = np.full((4, 5), 0.9)
    result = dask_nlsq.fit_many(decay, T, IMAGE, p0=P0 | {"offset": 1.0}, bounds={"offset": (lower, 2.0)}).compute()
    assert (result["offset"] >= 0.9).all() and np.isnan(result.stderr["offset"][result["offset"] == 0.9]).all()
    with pytest.raises(BoundsError, match="above"):
        dask_nlsq.fit_many(decay, T, IMAGE, p0=P0, bounds={"offset": (lower, lower - 1)}).compute()


@pytest.mark.slow
def test_a_series_whose_fixed_value_is_missing_fails():
    values = np.array([0.7, np.nan])
    result = dask_nlsq.fit_many(decay, T, IMAGE[0, :2], p0=P0, fixed={"offset": values}).compute()
    assert result.status.tolist() == [Status.CONVERGED, Status.NOT_FINITE]


def test_series_that_lie_across_chunks_are_not_joined_to_one():
    image = da.zeros((64, 1500, 1500), chunks=(1, 1500, 1500))
    result = dask_nlsq.fit_many(decay, np.linspace(0, 4, 64), image, axis=0, p0=P0)
    assert np.prod(result.y.chunksize) * 8 <= 2**24 and result.shape == (1500, 1500)


def test_dates_and_what_is_no_time_are_seconds_or_missing():
    dates = np.array(["2024-01-01", "NaT"], "datetime64[s]")
    np.testing.assert_array_equal(as_float(dates), [1704067200.0, np.nan])
    np.testing.assert_array_equal(as_float(dates - dates[0]), [0.0, np.nan])


@pytest.mark.slow
def test_dates_are_seconds_wherever_they_stand():
    x = np.datetime64("2024-01-01") + (T * 1e9).astype("timedelta64[ns]")
    x[3] = np.datetime64("NaT", "ns")

    def late(t, amplitude, rate, offset):
        return decay(t - 1704067200.0, amplitude, rate, offset)

    shared = dask_nlsq.fit_many(late, x, IMAGE[0, :2], p0=P0).compute()
    own = dask_nlsq.fit_many(late, np.stack([x, x]), IMAGE[0, :2], p0=P0).compute()
    assert shared.n_obs.tolist() == [23, 23] and np.array_equal(shared.figures, own.figures)
    for predicted in (shared.predict(x), shared.predict(), own.predict()):
        np.testing.assert_allclose(np.asarray(predicted)[0, :3], IMAGE[0, 0, :3], atol=0.2)


def test_a_guess_that_raises_stops_nothing():
    def guess(x, y):
        raise RuntimeError("too few points")

    model = Model.from_expression("amplitude*exp(-rate*t) + offset", columns=["t"], guess=guess)
    assert dask_nlsq.fit_many(model, T, IMAGE[0]).compute().success.all()


def test_an_earlier_result_is_a_start_whatever_was_fixed():
    options = {"p0": P0, "tied": {"offset": "amplitude/4"}}
    first = dask_nlsq.fit_many(decay, T, IMAGE, **options).compute()
    again = dask_nlsq.fit_many(decay, T, IMAGE, **(options | {"p0": first})).compute()
    np.testing.assert_allclose(again["rate"], first["rate"], rtol=1e-7)


def test_data_arrays_are_taken_by_their_dimensions():
    rng = np.random.default_rng(5)
    square = cube((4, 4), seed=7)
    image = xr.DataArray(square, dims=("y", "x", "time"), coords={"time": T, "x": list("abcd")})
    sigma = xr.DataArray(rng.uniform(0.5, 2, square.shape), dims=image.dims, coords={"x": list("abcd")})
    offset = xr.DataArray(rng.uniform(0.4, 0.9, (4, 4)), dims=("y", "x"))
    plain = dask_nlsq.fit_many(decay, T, square, p0=P0, sigma=sigma.values, fixed={"offset": offset.values}).compute()
    turned = {"sigma": sigma.transpose("time", "x", "y"), "fixed": {"offset": offset.T}}
    named = dask_nlsq.fit_many(decay, None, image, axis="time", p0=P0, **turned).compute()
    assert np.array_equal(named.figures, plain.figures)


def test_data_arrays_of_other_labels_or_dimensions_are_refused():
    image = xr.DataArray(IMAGE, dims=("y", "x", "time"), coords={"time": T, "x": list("abcde")})
    with pytest.raises(DataError, match="labels of sigma"):
        dask_nlsq.fit_many(decay, None, image, axis="time", sigma=image.assign_coords(x=list("bacde")))
    with pytest.raises(DataError, match="dimension 'z'"):
        dask_nlsq.fit_many(decay, None, image, axis="time", p0={"offset": image[..., 0].rename(x="z")})


@pytest.mark.parametrize("labelled", [False, True])
def test_irregular_chunks_are_written_whole(tmp_path, labelled):
    image = da.from_array(cube((20, 3)), chunks=((3, 7, 5, 5), 3, -1))
    options = {"p0": P0, "axis": -1}
    if labelled:
        image, options["axis"] = xr.DataArray(image, dims=("y", "x", "t"), coords={"y": np.arange(20)}), "t"
    result = dask_nlsq.fit_many(decay, T, image, **options).persist()
    result.to_zarr(tmp_path / "fits.zarr")
    written = zarr.open_group(tmp_path / "fits.zarr", mode="r")
    assert np.array_equal(written["rate"][:], np.asarray(result["rate"])) and ("y" in written) == labelled
    with pytest.raises(FileExistsError):
        result.to_zarr(tmp_path / "fits.zarr")
    result.to_zarr(tmp_path / "fits.zarr", overwrite=True)


SOURCES = {
    "a path": lambda path: path / "cube.zarr",
    "a text": lambda path: str(path / "cube.zarr"),
    "a URL": lambda path: f"file://{path}/cube.zarr",
    "a link": lambda path: (path / "link").symlink_to(path / "cube.zarr") or path / "link",
    "a store of a path": lambda path: zarr.storage.LocalStore(path / "cube.zarr"),
    "a store in memory": lambda path: zarr.storage.MemoryStore(),
}


OF_URLS = {"auto_mkdir": True}
"""Options of a file system at a URL of this machine's disk."""


def lazily(place, shape=(6, 3)):
    """Write a cube to a store, and return its fits, which read from there."""
    if isinstance(place, (str, Path)):
        place = Path(str(place).removeprefix("file://")).resolve()
    group = zarr.open_group(place, mode="w")
    series = group.create_array("series", data=cube(shape), chunks=(2, 3, len(T)))
    return dask_nlsq.fit_many(decay, T, series, p0=P0)


@pytest.mark.parametrize("labelled", [False, True])
@pytest.mark.parametrize("kind", SOURCES)
def test_fits_may_take_the_place_of_what_they_are_fitted_to(kind, labelled, tmp_path):
    (tmp_path / "cube.zarr").mkdir()
    place, options = SOURCES[kind](tmp_path), {"storage_options": OF_URLS} if kind == "a URL" else {}
    fits = lazily(place)
    if labelled:
        image = xr.DataArray(fits.y, dims=("y", "x", "t"), coords={"y": np.arange(6), "t": T})
        fits = dask_nlsq.fit_many(decay, None, image, axis="t", p0=P0)
    expected = np.asarray(fits["rate"])
    fits.to_zarr(place, overwrite=True, **options)
    written = zarr.open_group(place, mode="r", **options)
    assert np.array_equal(written["rate"][:], expected) and np.isfinite(expected).all() and "series" not in written
    assert {each.name for each in tmp_path.iterdir()} <= {"cube.zarr", "link"}


@pytest.mark.parametrize("kind", ["a path", "a URL"])
def test_what_is_there_stays_where_fits_fail(kind, tmp_path):
    place, options = SOURCES[kind](tmp_path), {"storage_options": OF_URLS} if kind == "a URL" else {}
    fits = lazily(place)
    broken = dataclasses.replace(fits, figures=fits.figures.map_blocks(lambda block: 1 / 0, meta=np.empty((0, 0, 0))))
    with pytest.raises(ZeroDivisionError):
        broken.to_zarr(place, overwrite=True, **options)
    assert list(zarr.open_group(tmp_path / "cube.zarr", mode="r")) == ["series"] and len(list(tmp_path.iterdir())) == 1


WRONG_AXES = {
    "an array": (lambda y: dask_nlsq.fit_many(decay, T, y, p0=P0), "axis=0 of y"),
    "an array of three": (lambda y: dask_nlsq.fit_many(decay, T, y[:, None], axis=2, p0=P0), "axis=0 of y"),
    "names": (lambda y: named(y).nlsq.fit_many(decay, dim="pixel", x=T, p0=P0), "'t' of y"),
    "names, by fit_many": (lambda y: dask_nlsq.fit_many(decay, "t", named(y), axis="pixel", p0=P0), "'t' of y"),
}


def named(y):
    return xr.DataArray(y, dims=("t", "pixel"), coords={"t": T})


@pytest.mark.parametrize("name", WRONG_AXES)
def test_a_transposed_y_is_told(name):
    call, words = WRONG_AXES[name]
    with pytest.raises(DataError, match=f"each series has 5 points. Along {words} there are {len(T)}"):
        call(cube((5,)).T)


def test_the_accessor_says_dim():
    with pytest.raises(DataError, match=r"dim is 'time'; the dimensions of y are \['t', 'pixel'\]"):
        named(cube((5,)).T).nlsq.fit_many(decay, dim="time")


def front(shape):
    """Series of a root whose argument is positive only near the parameter that each of them has, and rings of pixels.

    From a start at -0.5 the model is NaN but in the corner, and from the answer of a pixel beside it is not.
    """
    ring = np.max(np.indices(shape), axis=0).astype(float)
    x = np.linspace(0, 2, 12) - ring[..., None]
    return x, 2 * np.sqrt(x + ring[..., None] + 1.5) + 0.01 * np.cos(9 * x), ring


def root(x, height, edge):
    return height * jnp.sqrt(x - edge)


ROOT = {"p0": {"height": 1.0, "edge": -0.5}, "start": "neighbours"}


@pytest.mark.crossed
@pytest.mark.parametrize("shape", [(6, 6), (6,), (5, 2, 3)])
def test_estimates_spread_to_neighbours_round_by_round(shape):
    x, y, ring = front(shape)
    alone = dask_nlsq.fit_many(root, x, y, p0=ROOT["p0"]).compute()
    assert np.array_equal(alone.success, ring == 0)
    result = dask_nlsq.fit_many(root, x, y, **ROOT).compute()
    assert np.array_equal(result.success, ring <= 3)
    np.testing.assert_allclose(result["edge"][ring <= 3], -ring[ring <= 3] - 1.5, atol=0.1)
    assert np.array_equal(result.figures[ring == 0], alone.figures[ring == 0])
    assert np.array_equal(result.status[ring > 3], alone.status[ring > 3])


@pytest.mark.slow
@pytest.mark.parametrize("chunks", [(1, 1), (2, 3), (5, 6), (6, 1)])
@pytest.mark.parametrize("own", [False, True])
def test_neighbours_are_the_same_bits_for_all_chunks(chunks, own):
    x, y, ring = front((6, 6))
    y[2, 3] = np.nan
    y[4, 4] = np.where(np.arange(12) % 2, np.inf, y[4, 4])
    options = {"covariance": True, "fixed": {"height": 2 + 0.01 * ring}} if own else {"bounds": {"height": (0, 9)}}
    whole = dask_nlsq.fit_many(root, x, y, **ROOT, **options).compute()
    cut = dask_nlsq.fit_many(root, x, da.from_array(y, chunks=(*chunks, 5)), **ROOT, **options)
    assert cut.figures.chunks[:-1] == da.from_array(y, chunks=(*chunks, 5)).chunks[:-1]
    assert np.array_equal(cut.compute().figures, whole.figures, equal_nan=True)
    assert whole.success.sum() == 15 and whole.status[2, 3] == Status.TOO_FEW
    assert not own or np.array_equal(whole["height"][whole.success], options["fixed"]["height"][whole.success])


REFUSED = {
    "x of another length": (lambda: dask_nlsq.fit_many(decay, T[:-1], IMAGE, p0=P0), DataError, "23 values"),
    "y of text": (lambda: dask_nlsq.fit_many(decay, T, np.array([["a"] * 24])), DataError, "dtype"),
    "an axis too many": (lambda: dask_nlsq.fit_many(decay, T, IMAGE, axis=3), DataError, "axis is 3"),
    "a name for an axis": (lambda: dask_nlsq.fit_many(decay, T, IMAGE, axis="t"), DataError, "no named dimensions"),
    "an unknown parameter": (lambda: dask_nlsq.fit_many(decay, T, IMAGE, p0={"tau": 1.0}), ModelError, "tau"),
    "p0 of another shape": (lambda: dask_nlsq.fit_many(decay, T, IMAGE, p0={"rate": np.ones(3)}), DataError, "shape"),
    "bounds that cross": (lambda: dask_nlsq.fit_many(decay, T, IMAGE, bounds={"rate": (2, 1)}), BoundsError, "above"),
    "a sigma of zero": (lambda: dask_nlsq.fit_many(decay, T, IMAGE, sigma=0 * T).compute(), DataError, "positive"),
    "a policy": (lambda: dask_nlsq.fit_many(decay, T, IMAGE, nan_policy="drop"), DataError, "omit"),
    "a NumPy model": (lambda: dask_nlsq.fit_many(lambda t, a: a * np.exp(t), T, IMAGE), ModelError, "jax.numpy"),
    "a start": (lambda: dask_nlsq.fit_many(decay, T, IMAGE, p0=P0, start="best"), NlsqError, "neighbours"),
    "no points": (lambda: dask_nlsq.fit_many(decay, T[:0], IMAGE[..., :0]), DataError, "no points"),
    "a parameter called cost": (lambda: dask_nlsq.fit_many(lambda t, cost: cost * t, T, IMAGE), ModelError, "cost"),
    "a complex sigma": (lambda: dask_nlsq.fit_many(decay, T, IMAGE, sigma=IMAGE * 1j), DataError, "complex"),
    "an axis of 1.5": (lambda: dask_nlsq.fit_many(decay, T, IMAGE, axis=1.5), DataError, "axis is 1.5"),
    "the covariance": (lambda: dask_nlsq.fit_many(decay, T, IMAGE, p0=P0).cov, NlsqError, "covariance=True"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name):
    call, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        call()


@pytest.mark.slow
@pytest.mark.parametrize("missing", [False, True])
def test_statistics_have_the_bits_of_any_chunks_with_a_sigma_of_each_point(missing):
    rng = np.random.default_rng(0)
    x, sigma = np.linspace(0, 3, 37), rng.uniform(0.5, 2, 37)
    y = rng.uniform(1, 3, (40, 1)) * np.exp(-1.1 * x) + rng.normal(0, 0.05, (40, 37))
    y[3, 5] = np.nan if missing else y[3, 5]
    figures = [
        np.asarray(
            dask_nlsq.fit_many("a*exp(-b*x)", x, da.from_array(y, chunks=(size, -1)), p0=[1, 1], sigma=sigma).figures
        )
        for size in (40, 7, 1)
    ]
    assert all(np.array_equal(each, figures[0]) for each in figures[1:])
