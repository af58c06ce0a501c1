"""Bands around the curve, residuals, and quantities that follow from the parameters."""

import functools

import dask
import dask.array as da
import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xarray as xr
import zarr
from scipy import stats
from scipy.optimize import OptimizeWarning, curve_fit

import dask_nlsq
from dask_nlsq import DataError, FitResult, ModelError, NlsqError

T = np.linspace(0, 4, 40)
X = np.array([0.0, 0.7, 3.3, 9.0])
TRUTH = (2.5, 1.3, 0.5)


def decay(t, amplitude, rate, offset):
    return amplitude * jnp.exp(-rate * t) + offset


def plain(t, amplitude, rate, offset):
    return amplitude * np.exp(-rate * t) + offset


def gradient(t, amplitude, rate, offset):
    e = np.exp(-rate * t)
    return np.stack([e, -amplitude * t * e, np.ones_like(t)], axis=1)


SIGMA = np.random.default_rng(1).uniform(0.05, 0.2, T.size)
Y = plain(T, *TRUTH) + SIGMA * np.random.default_rng(0).normal(size=T.size)
FRAME = pd.DataFrame({"t": T, "y": Y, "s": SIGMA}, index=np.arange(7, 7 + T.size))


@functools.cache
def result(**options):
    return dask_nlsq.fit(decay, data=FRAME, p0=[2, 1, 0.4], **options)


OPTIONS = {
    "unweighted": {},
    "weighted": {"sigma": "s"},
    "absolute": {"sigma": "s", "absolute_sigma": True},
    "one sigma": {"sigma": 0.2},
}


WRITTEN = {
    "NumPy": (T, (T.size,)),
    "Dask": (da.from_array(T, chunks=(7, 20, 13)), (20,)),
    "two dimensions": (da.from_array(T.reshape(5, 8), chunks=(2, 8)), (2, 8)),
    "xarray": (xr.DataArray(T.reshape(5, 8), dims=("pixel", "time")).chunk({"pixel": 3}), (3, 8)),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_predictions_are_written_beside_the_data(name, tmp_path):
    data, chunks = WRITTEN[name]
    lazy = result().predict({"t": data}, to=tmp_path / "p.zarr")
    stored = zarr.open_group(tmp_path / "p.zarr", mode="r")["predicted"]
    assert stored.chunks == chunks and stored.shape == data.shape == lazy.shape
    assert np.array_equal(stored[...].ravel(), result().predict(T)) and np.array_equal(lazy.compute(), stored[...])
    assert tuple(stored.metadata.dimension_names) == getattr(data, "dims", ("dim_0", "dim_1")[: data.ndim])
    with pytest.raises(FileExistsError):
        result().predict({"t": data}, to=tmp_path / "p.zarr")


def test_a_frame_is_not_written_as_an_array(tmp_path):
    with pytest.raises(DataError, match="to_parquet"):
        result().predict(FRAME, to=tmp_path / "p.zarr")


@pytest.mark.parametrize("name", OPTIONS)
def test_correlated_values_are_the_delta_method(name):
    u = result(**OPTIONS[name]).uvars()
    ratio, expected = u["amplitude"] / u["rate"], result(**OPTIONS[name]).eval_uncertainty("amplitude / rate")
    assert np.allclose([ratio.nominal_value, ratio.std_dev], expected, rtol=1e-7)


@pytest.mark.parametrize("level", [0.68, 0.95])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_band_is_the_delta_method_by_hand(name, level):
    options = OPTIONS[name]
    fitted, absolute = result(**options), "absolute_sigma" in options
    sigma = SIGMA if options.get("sigma") == "s" else options.get("sigma", 1.0) * np.ones(T.size)
    popt, pcov = curve_fit(plain, T, Y, [2, 1, 0.4], sigma, absolute, ftol=1e-14, xtol=1e-14)
    g, reach = gradient(T, *popt), stats.t.ppf(0.5 + level / 2, T.size - 3)
    variance = np.einsum("ni,ij,nj->n", g, pcov, g)
    s2 = 1.0 if absolute else (((Y - plain(T, *popt)) / sigma) ** 2).sum() / (T.size - 3)
    for band, added in ((fitted.confidence_band, 0.0), (fitted.prediction_band, s2 * sigma**2)):
        found, half = band(FRAME, level), reach * np.sqrt(variance + added)
        np.testing.assert_allclose(found["predicted"], plain(T, *popt), rtol=1e-6)
        np.testing.assert_allclose(found["upper"] - found["predicted"], half, rtol=1e-5)
        np.testing.assert_allclose(found["predicted"] - found["lower"], half, rtol=1e-5)


CONTAINERS = {
    "frame": lambda x: pd.DataFrame({"t": x}),
    "Dask frame": lambda x: dd.from_pandas(pd.DataFrame({"t": x}), npartitions=2),
    "array": lambda x: x,
    "Dask array": lambda x: da.from_array(x, chunks=3),
    "mapping": lambda x: {"t": x},
    "list": list,
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("band", ["confidence_band", "prediction_band"])
def test_a_band_has_the_shape_of_what_is_asked(container, band):
    found = getattr(result(), band)(CONTAINERS[container](X))
    lazy = container.startswith("Dask")
    assert isinstance(found, pd.DataFrame if container == "frame" else dd.DataFrame if "frame" in container else tuple)
    assert all(dask.is_dask_collection(part) == lazy for part in (found if isinstance(found, tuple) else [found]))
    (found,) = dask.compute(found)
    columns = found if isinstance(found, tuple) else [found[c] for c in ("predicted", "lower", "upper")]
    for column, expected in zip(columns, getattr(result(), band)(X), strict=True):
        np.testing.assert_allclose(column, expected, rtol=1e-14)


def test_a_grid_keeps_its_dimensions():
    data = xr.Dataset({"t": (("a", "b"), X.reshape(2, 2))})
    band = result().confidence_band(data)
    assert band.upper.dims == ("a", "b")
    np.testing.assert_allclose(np.ravel(band.upper), result().confidence_band(X).upper)


@pytest.mark.slow
def test_fixed_tied_and_bounded_parameters_are_taken_as_the_covariance_has_them():
    fixed = dask_nlsq.fit(decay, data=FRAME, p0=TRUTH, fixed={"offset": 0.5})
    popt, pcov = curve_fit(lambda t, a, b: plain(t, a, b, 0.5), T, Y, TRUTH[:2], ftol=1e-14)
    g = gradient(X, *popt, 0.5)[:, :2]
    half = stats.t.ppf(0.975, T.size - 2) * np.sqrt(np.einsum("ni,ij,nj->n", g, pcov, g))
    np.testing.assert_allclose(fixed.confidence_band(X).upper - fixed.predict(X), half, rtol=1e-5)
    bound = dask_nlsq.fit(decay, data=FRAME, p0=[2, 1, 0.2], bounds={"offset": (-1, 0.3)})
    assert bound.active_mask.any() and np.isfinite(bound.confidence_band(X).upper).all()
    tied = dask_nlsq.fit(decay, data=FRAME, p0=TRUTH, tied={"offset": "amplitude / 5"})
    g = gradient(X, *tied.popt)
    g = np.stack([g[:, 0] + g[:, 2] / 5, g[:, 1]], axis=1)
    half = stats.t.ppf(0.975, T.size - 2) * np.sqrt(np.einsum("ni,ij,nj->n", g, tied.pcov[:2, :2], g))
    np.testing.assert_allclose(tied.confidence_band(X).upper - tied.predict(X), half, rtol=1e-6)


def test_what_the_data_do_not_determine_makes_a_band_without_end_where_it_matters():
    t = np.zeros(20)
    with pytest.warns(OptimizeWarning):
        flat = dask_nlsq.fit(lambda t, a, b: a + b * t, t, np.random.default_rng(0).normal(size=20), p0=[0, 1])
    upper = flat.confidence_band(np.array([0.0, 1.0])).upper
    assert np.isfinite(upper[0]) and np.isinf(upper[1])


@pytest.mark.parametrize("jac", ["jax", "3-point"])
def test_residuals_are_what_the_model_leaves(jac):
    fitted = dask_nlsq.fit(decay, data=FRAME, p0=TRUTH, sigma="s", jac=jac)
    expected = Y - plain(T, *fitted.popt)
    residual = fitted.residuals(FRAME)
    assert residual.name == "residual" and residual.index.equals(FRAME.index)
    np.testing.assert_allclose(residual, expected, rtol=1e-9, atol=1e-12)
    lazy = fitted.residuals(dd.from_pandas(FRAME, npartitions=3), weighted=True)
    assert isinstance(lazy, dd.Series) and (lazy.compute() ** 2).sum() == pytest.approx(fitted.chisqr)
    np.testing.assert_allclose(fitted.residuals(T, Y), expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(fitted.residuals({"t": T, "y": Y}), expected, rtol=1e-9, atol=1e-12)


def test_residuals_belong_to_their_rows_and_not_to_an_index():
    fitted = result()
    y = pd.Series(Y, index=np.arange(100, 100 + T.size))
    np.testing.assert_array_equal(fitted.residuals(FRAME, y), fitted.residuals(FRAME))
    sigma = pd.Series(SIGMA, index=y.index)
    assert np.isfinite(result(sigma="s").prediction_band(FRAME[["t"]], sigma=sigma)).all(axis=None)


@pytest.mark.parametrize("columns", [4, 6])
def test_residuals_of_a_grid_whose_x_has_fewer_dimensions(columns):
    x, noise = np.arange(4.0), 0.01 * np.random.default_rng(0).normal(size=(4, columns))
    data = xr.Dataset({"y": (("i", "j"), (3 + 2 * x)[:, None] + noise), "s": ("j", np.ones(columns))}, {"x": ("i", x)})
    fitted = dask_nlsq.fit("a+b*x", data=data, x="x", y="y", sigma="s")
    residual = fitted.residuals(data, weighted=True)
    assert residual.dims == ("i", "j") and float((residual**2).sum()) == pytest.approx(fitted.chisqr)
    assert fitted.prediction_band(data).upper.dims == ("i", "j")


def test_a_band_is_finite_where_a_derivative_is_not():
    x = np.arange(20.0)
    fitted = dask_nlsq.fit("c + sqrt(b*x)", x, 2 * np.sqrt(x) + 1 + np.random.default_rng(0).normal(0, 0.1, 20))
    band = fitted.confidence_band(x)
    assert band.upper[0] - band.predicted[0] == pytest.approx(stats.t.ppf(0.975, 18) * fitted.stderr["c"], rel=1e-6)


NAMED = {
    "Arrow": lambda: pa.Table.from_pandas(FRAME),
    "structured": lambda: FRAME.to_records(index=False),
    "mapping": lambda: {name: FRAME[name].to_numpy() for name in FRAME},
}


@pytest.mark.parametrize("container", NAMED)
def test_a_sigma_among_the_data_is_found(container):
    expected = result(sigma="s").prediction_band(FRAME)
    np.testing.assert_allclose(result(sigma="s").prediction_band(NAMED[container]()).upper, expected["upper"])


def test_a_derived_quantity_is_the_delta_method_by_hand():
    fitted = result()
    a, b, _ = fitted.popt
    g = np.array([1 / b, -a / b**2, 0.0])
    area = fitted.eval_uncertainty("amplitude / rate")
    assert area.value == pytest.approx(a / b, rel=1e-14)
    assert area.stderr == pytest.approx(np.sqrt(g @ fitted.pcov @ g), rel=1e-10)
    drawn = np.random.default_rng(0).multivariate_normal(fitted.popt, fitted.pcov, 100_000)
    assert area.stderr == pytest.approx((drawn[:, 0] / drawn[:, 1]).std(), rel=0.02)


def test_a_result_from_a_file_has_derived_quantities_and_no_bands():
    read = FitResult.from_dict(result(**OPTIONS["absolute"]).to_dict())
    assert read.absolute_sigma and read.eval_uncertainty("2*rate") == result(**OPTIONS["absolute"]).eval_uncertainty(
        "2*rate"
    )
    with pytest.raises(NlsqError, match="no model"):
        read.confidence_band(X)


REFUSED = {
    "a name": (lambda: result().eval_uncertainty("amplitude / speed"), ModelError, "speed"),
    "code": (lambda: result().eval_uncertainty("__import__('os')"), ModelError, "not allowed"),
    "a level": (lambda: result().confidence_band(X, 95), NlsqError, "0.95"),
    "a sigma that is not there": (lambda: result(sigma="s").prediction_band(X), NlsqError, "sigma="),
    "a column that is not there": (lambda: result().residuals(FRAME[["t"]]), DataError, "observations as y="),
    "x alone": (lambda: result().residuals(T), DataError, "observations as y="),
    "too few observations": (lambda: result().residuals(T, Y[1:]), DataError, "39"),
    "a sigma that is a name": (lambda: result().prediction_band(T, sigma="s"), DataError, "numbers are needed"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name):
    call, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        call()


MODELS = {
    "decay": (plain, decay, TRUTH),
    "line": (lambda t, a, b: a + b * t, lambda t, a, b: a + b * t, (1.0, -0.4)),
    "peak": (
        lambda t, h, c, w: h * np.exp(-(((t - c) / w) ** 2)),
        lambda t, h, c, w: h * jnp.exp(-(((t - c) / w) ** 2)),
        (3.0, 1.8, 0.7),
    ),
    "saturation": (lambda t, v, k: v * t / (k + t), lambda t, v, k: v * t / (k + t), (2.0, 0.6)),
    "wave": (
        lambda t, a, w, p: a * np.sin(w * t + p),
        lambda t, a, w, p: a * jnp.sin(w * t + p),
        (1.5, 2.2, 0.3),
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_bands_cover_as_often_as_they_say(name):
    function, model, truth = MODELS[name]
    expected, curve, new = function(T, *truth), [], []
    for seed in range(200):
        rng = np.random.default_rng(seed)
        y, again = expected + 0.1 * rng.normal(size=(2, T.size))
        fitted = dask_nlsq.fit(model, T, y, p0=truth)
        lower, upper = fitted.confidence_band(T)[1:]
        curve.append((lower <= expected) & (expected <= upper))
        lower, upper = fitted.prediction_band(T)[1:]
        new.append((lower <= again) & (again <= upper))
    assert 0.92 < np.mean(curve) < 0.98 and 0.92 < np.mean(new) < 0.98
