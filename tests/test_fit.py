"""`fit` agrees with SciPy at tight tolerances for every store, partitioning and executor."""

import dataclasses
import inspect
import json
import re

import dask.array as da
import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import xarray as xr
import zarr
from problems import STORES, TRUTH, decay, decay_reference, decay_rows
from scipy.optimize import curve_fit

import dask_nlsq
from dask_nlsq import DataError, Model, NlsqWarning, Status
from dask_nlsq._fit.options import FitOptions


def assert_equals_scipy(result, reference, parameters=1e-8, errors=1e-8):
    """Compare parameters in standard errors, and standard errors relatively."""
    x, cov = reference
    se = np.sqrt(np.diag(cov))
    assert result.success
    assert np.max(np.abs(result.popt - x) / se) < parameters
    np.testing.assert_allclose(result.stderr, se, rtol=errors)


@pytest.mark.crossed(2)
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("pieces", [7, 1, 40])
@pytest.mark.parametrize("cache", ["none", "persist"])
def test_equals_scipy(store, pieces, cache, tmp_path):
    t, y = decay_rows(20_000)
    result = dask_nlsq.fit(decay, data=STORES[store](t, y, pieces, tmp_path), cache=cache)
    assert_equals_scipy(result, decay_reference(t, y), 1e-6, 1e-7)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("where", ["threads", "cluster"])
def test_ten_million_rows_equal_scipy(where, tmp_path, request):
    """Parquet in 1 and 200 partitions, Dask arrays and Zarr in 7, here and on two processes."""
    if where == "cluster":
        request.getfixturevalue("client")
    t, y = decay_rows(10_000_000)
    reference = decay_reference(t, y)
    for store, pieces in (("parquet", 1), ("parquet", 200), ("arrays", 7), ("zarr", 7)):
        path = tmp_path / f"{store}{pieces}"
        path.mkdir()
        result = dask_nlsq.fit(decay, data=STORES[store](t, y, pieces, path))
        assert_equals_scipy(result, reference, 1e-6, 1e-5)


@pytest.mark.parametrize("pieces", [1, 5])
def test_executors_give_the_same_bits(pieces, tmp_path, client):
    data = STORES["parquet"](*decay_rows(3000), pieces, tmp_path)
    far = [dask_nlsq.fit(decay, data=data, client=client, cache=cache) for cache in ("none", "persist")]
    near = [dask_nlsq.fit(decay, data=data.repartition(npartitions=pieces), client=client)]
    for other in far[1:] + near:
        assert other.popt.tobytes() == far[0].popt.tobytes()
        assert other.pcov.tobytes() == far[0].pcov.tobytes()
        pd.testing.assert_frame_equal(other.history.drop(columns="seconds"), far[0].history.drop(columns="seconds"))


@pytest.mark.parametrize("absolute_sigma", [False, True])
@pytest.mark.parametrize("form", ["column", "array", "scalar"])
def test_sigma(absolute_sigma, form):
    t, y = decay_rows(500)
    sigma = 0.2 if form == "scalar" else np.linspace(0.05, 0.3, 500)
    if form == "column":
        frame = dd.from_pandas(pd.DataFrame({"t": t, "y": y, "s": sigma}), npartitions=3)
        result = frame.nlsq.fit(decay, sigma="s", absolute_sigma=absolute_sigma)
    else:
        result = dask_nlsq.fit(decay, t, y, sigma=sigma, absolute_sigma=absolute_sigma)
    numpy_decay = lambda t, a, b, c: a * np.exp(-b * t) + c  # noqa: E731
    popt, pcov = curve_fit(
        numpy_decay, t, y, [3, 1, 0.5], sigma=np.broadcast_to(sigma, 500), absolute_sigma=absolute_sigma,
        ftol=1e-15, xtol=1e-15, gtol=1e-15,
    )  # fmt: skip
    np.testing.assert_allclose(result.popt, popt, rtol=1e-6)
    np.testing.assert_allclose(result.pcov, pcov, rtol=1e-5)


def test_rows_of_infinite_sigma_weigh_nothing():
    t, y = decay_rows(500)
    extra = np.r_[np.ones(500), np.full(10, np.inf)]
    with_them = dask_nlsq.fit(decay, np.r_[t, t[:10]], np.r_[y, np.full(10, 99.0)], sigma=extra)
    np.testing.assert_allclose(with_them.popt, dask_nlsq.fit(decay, t, y).popt, rtol=1e-10)


def test_omit_equals_removing_by_hand():
    t, y = decay_rows(500)
    holes, sigma = y.copy(), np.linspace(1, 2, 500)
    holes[[3, 77, 499]] = np.nan, np.inf, np.nan
    keep = np.isfinite(holes)
    frame = dd.from_pandas(pd.DataFrame({"t": t, "y": holes, "s": sigma}), npartitions=4)
    result = frame.nlsq.fit(decay, sigma="s", nan_policy="omit")
    by_hand = dask_nlsq.fit(decay, t[keep], y[keep], sigma=sigma[keep])
    assert (result.n_obs, result.n_dropped) == (497, 3)
    np.testing.assert_allclose(result.popt, by_hand.popt, rtol=1e-10)
    np.testing.assert_allclose(result.pcov, by_hand.pcov, rtol=1e-8)


@pytest.mark.parametrize(
    "start", [{"amplitude": 2}, [2, 1, 0], np.array([2.0, 1, 0]), (2, 1, 0), pd.Series({"rate": 1.5}), None]
)
def test_every_form_of_p0(start):
    t, y = decay_rows(300)
    result = dask_nlsq.fit(decay, t, y, p0=start)
    np.testing.assert_allclose(result.popt, decay_reference(t, y)[0], rtol=1e-7)
    again = dask_nlsq.fit(decay, t, y, p0=result)
    assert again.nsweeps <= 2


def test_a_guessed_start_is_said():
    t, y = decay_rows(300)
    assert "amplitude, rate" in " ".join(dask_nlsq.fit(decay, t, y).notes)
    assert not dask_nlsq.fit(decay, t, y, p0=TRUTH).notes


def plane(x, slope_t, slope_u, level):
    return slope_t * x[0] + slope_u * x[1] + level


def named_plane(t, slope_t, u, slope_u, level):
    return slope_t * t + slope_u * u + level


@pytest.mark.slow
def test_several_columns_in_every_form(rng):
    t, u = rng.normal(size=(2, 400))
    y = 2 * t - u + 0.5 + rng.normal(0, 0.01, 400)
    frame = pd.DataFrame({"t": t, "u": u, "y": y})
    expected = np.linalg.lstsq(np.stack([t, u, np.ones(400)], 1), y, rcond=None)[0]
    for result in (
        frame.nlsq.fit(plane, ["t", "u"]),
        frame.nlsq.fit(named_plane, ["t", "u"]),
        dask_nlsq.fit(plane, np.stack([t, u]), y),
        dask_nlsq.fit(plane, (t, u), y),
        dask_nlsq.fit(plane, [t, u], y),
        dask_nlsq.fit(plane, da.from_array(np.stack([t, u]), chunks=(1, 100)), da.from_array(y, chunks=90)),
        dask_nlsq.fit(named_plane, {"t": t, "u": u}, y),
    ):
        np.testing.assert_allclose(result.popt, expected, rtol=1e-9)


def test_dates_become_seconds_and_the_result_says_so(tmp_path):
    t, y = decay_rows(400)
    t = np.sort(t)
    y = 3 * np.exp(-1.3 * t)
    when = pd.Timestamp("2026-05-01") + pd.to_timedelta(t, unit="s")
    frame = pd.DataFrame({"t": when, "y": y})
    expected = dask_nlsq.fit(decay, np.asarray((when - when[0]) / pd.Timedelta(1, "s")), y)
    for data in (frame, dd.from_pandas(frame, npartitions=3)):
        result = data.nlsq.fit(decay)
        np.testing.assert_allclose(result.popt, expected.popt, rtol=1e-9, atol=1e-12)
        assert "seconds since 2026-05-01" in result.notes[-1]
        np.testing.assert_allclose(result.predict(frame), y, atol=1e-6)


def test_bounds_hold_a_parameter_exactly():
    t, y = decay_rows(500)
    result = dask_nlsq.fit(decay, t, y, bounds={"rate": (0, 1)})
    e = np.exp(-t)
    amplitude, offset = np.linalg.lstsq(np.stack([e, np.ones_like(t)], 1), y, rcond=None)[0]
    assert result.params["rate"] == 1.0
    assert result.active_mask.tolist() == [0, 1, 0]
    np.testing.assert_allclose(result.popt, [amplitude, 1.0, offset], rtol=1e-8)


def test_a_parameter_at_its_bound_is_held_and_named():
    t, y = decay_rows(500)
    result = dask_nlsq.fit(decay, t, y, bounds={"rate": (0, 1)})
    held = dask_nlsq.fit(lambda t, amplitude, offset: amplitude * jnp.exp(-t) + offset, t, y)
    assert np.isnan(result.stderr["rate"])
    assert result.dof == held.dof == 498
    np.testing.assert_allclose(result.stderr[["amplitude", "offset"]], held.stderr, rtol=1e-8)
    assert "rate ended at a bound" in result.notes[-1]


@pytest.mark.parametrize("upper", [(1.0, 5.0), (1.0, 2.0)], ids=["one", "all"])
def test_all_parameters_may_end_at_their_bounds(upper):
    x = np.linspace(0, 1, 200)
    result = dask_nlsq.fit(lambda x, a, b: a * x + b, x, 2 * x + 3, bounds=((0, 0), upper))
    assert result.popt[0] == 1.0 and result.active_mask[0] == 1
    assert np.isnan(result.stderr["b"]) == (result.params["b"] == 2.0 == upper[1])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The data do not determine")
@pytest.mark.parametrize(("bend", "named"), [(1e-7, ["a, b"]), (1e-2, []), (0.0, [])])
@pytest.mark.parametrize("upper", [np.inf, 1.99])
def test_parameters_that_are_hardly_told_apart_are_named(rng, bend, named, upper):
    def model(x, a, b, c, wave):
        return a * x + b * (x + bend * x**2) + c + wave * jnp.sin(9 * x)

    x = rng.uniform(0, 1, 500)
    y = rng.normal(2 * x + 3 + 2 * np.sin(9 * x), 0.1)
    notes = dask_nlsq.fit(model, x, y, bounds={"wave": (0, upper)}).notes
    assert re.findall(r"Hardly determined by these data: (.*?)\.", " ".join(notes)) == named


@pytest.mark.parametrize("npartitions", [1, 3])
def test_the_first_date_may_be_missing(npartitions):
    when = pd.Series(pd.date_range("2026-01-01", periods=90, freq="s"))
    when[:40] = pd.NaT
    frame = pd.DataFrame({"t": when, "y": np.arange(90.0)})
    result = dd.from_pandas(frame, npartitions=npartitions).nlsq.fit(
        lambda t, level, slope: level + slope * t, nan_policy="omit"
    )
    np.testing.assert_allclose(result.popt, [40, 1], rtol=1e-9)
    assert result.n_dropped == 40


def test_budget_exhausted_is_a_status():
    t, y = decay_rows(500)
    result = dask_nlsq.fit(decay, t, y, p0=[1, 1, 0], max_nfev=2)
    assert (result.success, result.status, result.nsweeps) == (False, Status.MAX_NFEV, 2)
    with pytest.raises(dask_nlsq.NlsqError, match="maximum number"):
        result.check()


@pytest.mark.parametrize("form", ["frame", "pandas", "path", "zarr"])
def test_a_column_that_bears_a_parameters_name(form, tmp_path):
    t, y = decay_rows(100)
    frame = pd.DataFrame({"t": t, "y": y, "rate": 7.0})
    frame.to_parquet(tmp_path / "a.parquet")
    group = zarr.create_group(tmp_path / "a.zarr")
    for name in frame:
        group.create_array(name, data=frame[name].to_numpy())
    data = {"frame": dd.from_pandas(frame), "pandas": frame, "path": tmp_path / "a.parquet", "zarr": group}[form]
    with pytest.warns(NlsqWarning, match="column 'rate'.*x="):
        assert "rate" in dask_nlsq.fit(decay, data=data).params


def test_statistics_and_result(tmp_path):
    t, y = decay_rows(400)
    frame = pd.DataFrame({"t": t, "y": y})
    result = frame.nlsq.fit(decay)
    r = 3 * 0 + result.predict(frame) - y
    chisqr = float(r @ r)
    expected = {
        "chisqr": chisqr,
        "redchi": chisqr / 397,
        "rsquared": 1 - chisqr / np.sum((y - y.mean()) ** 2),
        "rmse": np.sqrt(chisqr / 400),
        "loglik": -200 * (np.log(2 * np.pi * chisqr / 400) + 1),
        "aic": 8 + 400 * (np.log(2 * np.pi * chisqr / 400) + 1),
        "bic": 4 * np.log(400) + 400 * (np.log(2 * np.pi * chisqr / 400) + 1),
    }
    for name, value in expected.items():
        assert getattr(result, name) == pytest.approx(value, rel=1e-10), name
    popt, pcov = result
    assert popt is result.popt
    assert pcov.shape == (3, 3)
    assert "400" in str(result)
    assert "rate" in str(result)
    np.testing.assert_allclose(np.diag(result.correlation), 1)
    lower, upper = result.conf_int()["lower"], result.conf_int()["upper"]
    assert ((lower < result.params) & (result.params < upper)).all()
    written = result.to_dict()
    again = dask_nlsq.FitResult.from_dict(written)
    written["history"]["cost"].clear()  # theirs, and nobody else's
    assert again.to_json() == result.to_json()
    assert len(again.history) == result.nsweeps > 0


def test_results_are_equal_where_their_numbers_are():
    t, y = decay_rows(100)
    result, again = (dask_nlsq.fit(decay, t, y, p0=TRUTH) for _ in range(2))
    assert result == again and hash(result) == hash(again) and result in [again]
    assert result == dask_nlsq.FitResult.from_dict(json.loads(result.to_json()))
    bound = dask_nlsq.fit(decay, t, y, bounds={"rate": (0, 1.2)})
    assert bound == dask_nlsq.FitResult.from_dict(bound.to_dict()) != result
    assert result != 3 and "rate" in result and "rat" not in result and result.popt not in result


@pytest.mark.parametrize(
    ("form", "text"), [("{}", "CONVERGED"), ("{:>10}", " CONVERGED"), ("{:d}", "5"), ("{!s}", "CONVERGED")]
)
def test_a_status_prints_as_a_word(form, text):
    assert form.format(Status.CONVERGED) == text and Status.CONVERGED == 5


@pytest.mark.parametrize("name", ["cost", "radius", "seconds", "sweep"])
def test_the_columns_of_the_history_keep_their_names(name):
    t, y = decay_rows(100)
    named, plain = (
        dask_nlsq.fit(Model.from_expression(f"amplitude * exp(-{rate} * t) + offset", columns=["t"]), t, y).history
        for rate in (name, "rate")
    )
    expected = plain.rename(columns={"rate": f"{name} (parameter)"})
    pd.testing.assert_frame_equal(named.drop(columns="seconds"), expected.drop(columns="seconds"), check_like=True)
    assert (named["seconds"] > 0).all() and named.reset_index()["sweep"].tolist() == named.index.tolist()


@pytest.mark.parametrize("n", [100, 2500, 10_000])
@pytest.mark.parametrize("gathered", [False, True])
def test_no_sweep_copies_few_rows_that_are_in_memory(n, gathered, monkeypatch, request):
    client = request.getfixturevalue("client") if gathered else False
    t, y = decay_rows(n)
    dask_nlsq.fit(decay, t, y, client=client, tier="standard")  # compiled
    copied = []
    monkeypatch.setattr("dask_nlsq._fit.checks.restarts.noise_pvalue", lambda *args: 1.0)  # it cuts the rows into runs
    monkeypatch.setattr("dask_nlsq._kernel.block._fit", lambda *args: copied.append(args))
    result = dask_nlsq.fit(decay, t, y, client=client, tier="standard")
    assert result.success and not copied
    assert result.profiler.problem.source.partitions[0].memory is None  # what is laid out is not kept


def test_predict_is_lazy_where_the_data_are(tmp_path):
    t, y = decay_rows(1000)
    frame = STORES["parquet"](t, y, 4, tmp_path)
    result = frame.nlsq.fit(decay)
    a, b, c = result.popt
    expected = a * np.exp(-b * t) + c
    lazy = frame.assign(model=result.predict(frame))
    assert isinstance(lazy, dd.DataFrame)
    np.testing.assert_allclose(lazy["model"].compute(), expected, rtol=1e-14)
    array = result.predict(da.from_array(t, chunks=300))
    assert isinstance(array, da.Array)
    np.testing.assert_allclose(array.compute(), expected, rtol=1e-14)
    np.testing.assert_allclose(result.predict(t), expected, rtol=1e-14)
    np.testing.assert_allclose(result.predict({"t": t}), expected, rtol=1e-14)


def surface(t, u, a, b):
    return a * t + b * jnp.square(u)


ONE, TWO = np.random.default_rng(0).uniform(0, 3, (2, 5000))
PAIR = dd.from_pandas(pd.DataFrame({"t": ONE, "u": TWO}), npartitions=3)


@pytest.fixture(scope="module")
def two_columns():
    return dask_nlsq.fit(surface, x=("t", "u"), data={"t": ONE, "u": TWO, "y": 2 * ONE + 3 * TWO**2}, p0=[1, 1])


def cut(column, *chunks):
    return da.from_array(column, chunks=(chunks,) if len(chunks) > 1 else chunks)


ALIKE = {
    "Dask beside NumPy": (cut(ONE, 1000), TWO, da.Array),
    "NumPy beside Dask": (ONE, cut(TWO, 1000), da.Array),
    "five chunks beside one": (cut(ONE, 1000), cut(TWO, 5000), da.Array),
    "one chunk beside five": (cut(ONE, 5000), cut(TWO, 1000), da.Array),
    "as many chunks, cut elsewhere": (cut(ONE, 1000), cut(TWO, 900, 1100, 1000, 1000, 1000), da.Array),
    "halves": (cut(ONE, 1000), cut(TWO, 500), da.Array),
    "Dask beside nullable": (cut(ONE, 1000), pd.array(TWO, dtype="Float64"), da.Array),
    "Dask beside Zarr": (cut(ONE, 1000), zarr.array(TWO, chunks=(700,)), da.Array),
    "Dask beside xarray": (cut(ONE, 1000), xr.DataArray(TWO), da.Array),
    "Zarr": (zarr.array(ONE, chunks=(900,)), zarr.array(TWO, chunks=(700,)), np.ndarray),
    "xarray": (xr.DataArray(ONE), xr.DataArray(TWO), np.ndarray),
    "xarray in chunks": (xr.DataArray(ONE), xr.DataArray(TWO).chunk(1000), da.Array),
    "Series": (PAIR["t"], PAIR["u"], da.Array),
    "a Series beside NumPy": (PAIR["t"], TWO, da.Array),
    "a Series beside Dask": (PAIR["t"], cut(TWO, 100), da.Array),
    "of unknown sizes": (PAIR["t"].values, PAIR["u"].values, da.Array),
    "of unknown sizes beside known": (PAIR["t"].values, cut(TWO, 1667), da.Array),
    "Dask beside a number": (cut(ONE, 1000), 3.0, da.Array),
    "a number beside Dask": (3, cut(TWO, 4000), da.Array),
    "NumPy beside a number": (ONE, np.float32(3), np.ndarray),
    "of unknown sizes beside a number": (PAIR["t"].values, np.array(3.0), da.Array),
    "Dask beside its mean": (cut(ONE, 1000), cut(TWO, 1000).mean(), da.Array),
    "numbers": (2.0, 3.0, np.ndarray),
}


@pytest.mark.parametrize("form", [lambda t, u: {"u": u, "t": t}, lambda t, u: (t, u)], ids=["mapping", "tuple"])
@pytest.mark.parametrize(("t", "u", "kind"), ALIKE.values(), ids=ALIKE)
def test_predict_aligns_its_columns(t, u, kind, form, two_columns):
    found = two_columns.predict(form(t, u))
    assert isinstance(found, kind)
    np.testing.assert_allclose(found, np.atleast_1d(2 * np.asarray(t) + 3 * np.asarray(u) ** 2), rtol=1e-12)


FRAME = pd.DataFrame({"t": ONE, "u": TWO})
UNALIKE = {
    "NumPy": ({"t": ONE, "u": TWO[:4000]}, r"lengths: \{'t': 5000, 'u': 4000\}"),
    "one row": ({"t": ONE, "u": TWO[:1]}, r"lengths: \{'t': 5000, 'u': 1\}"),
    "Dask": ({"t": cut(ONE, 1000), "u": cut(TWO[:4000], 1000)}, r"length; they have \{'t': 5000, 'u': 4000\}"),
    "Dask beside NumPy": ((cut(ONE, 1000), TWO[:4000]), r"length; they have \{'t': 5000, 'u': 4000\}"),
    "blocks": ((PAIR["t"].values, cut(TWO, 1000, 3000, 1000)), r"lengths: \{'t': 166\d, 'u': \d000\}"),
    "unknown beside NumPy": ((PAIR["t"].values, TWO), "compute_chunk_sizes"),
    "a matrix": ((ONE, TWO.reshape(50, 100)), "shapes that cannot be repeated to one: .*(50, 100)"),
    "another name": (
        {"time": ONE, "u": TWO},
        "no column 't'; the data has 'time', 'u'.*names that they had in the fit",
    ),
    "a row of other names": (pd.Series({"a": 1.0, "b": 2.0}), "no column 't', 'u'; the data has 'a', 'b'"),
    "a frame without": (FRAME[["u"]], "no column 't'; the data has 'u'"),
    "a name twice": (FRAME.assign(v=0.0).set_axis(["t", "u", "t"], axis=1), "2 columns are called 't'; rename them"),
    "a number": (np.float64(2), r"1 arrays were given; the model takes \['t', 'u'\]"),
    "a Series": (PAIR["t"], "1 arrays were given"),
}


@pytest.mark.parametrize(("data", "said"), UNALIKE.values(), ids=UNALIKE)
def test_predict_says_what_its_columns_lack(data, said, two_columns):
    with pytest.raises(DataError, match=said):
        np.asarray(two_columns.predict(data))


def test_predict_takes_a_row_by_name(two_columns):
    np.testing.assert_allclose(two_columns.predict(pd.Series({"u": 3.0, "t": 2.0})), [2 * 2 + 3 * 3**2])


def test_predict_decodes_what_zarr_holds_encoded(two_columns):
    coded = zarr.array(TWO)
    coded.attrs["scale_factor"] = 0.5
    expected = two_columns.predict({"t": ONE, "u": 0.5 * TWO})
    np.testing.assert_allclose(two_columns.predict({"t": ONE, "u": coded}), expected)


SINGLES = {
    "a Dask Series": (PAIR["t"], ONE, dd.Series),
    "a pandas Series": (FRAME["t"].iloc[::-1], ONE[::-1], pd.Series),
    "a Series of another name": (PAIR["u"], TWO, dd.Series),
    "an array in a list": ([ONE], ONE, np.ndarray),
    "an xarray": (xr.DataArray(ONE), ONE, np.ndarray),
    "a coordinate": (xr.Dataset(coords={"t": ("t", ONE)}), ONE, np.ndarray),
    "masked": (np.ma.masked_array([1.0, 2.0], [False, True]), [1.0, np.nan], np.ndarray),
    "a number": (2.0, [2.0], np.ndarray),
    "a NumPy number": (np.float64(2.0), [2.0], np.ndarray),
    "an array of no dimension": (np.array(2.0), [2.0], np.ndarray),
    "a number by name": ({"t": 2.0}, [2.0], np.ndarray),
}


@pytest.mark.parametrize(("data", "t", "kind"), SINGLES.values(), ids=SINGLES)
def test_predict_gives_back_the_kind_that_it_took(data, t, kind):
    found = dask_nlsq.fit(lambda t, a: a * t, ONE, 2 * ONE).predict(data)
    assert isinstance(found, kind)
    np.testing.assert_allclose(found, 2 * np.asarray(t), rtol=1e-14)
    if kind in (dd.Series, pd.Series):
        pd.testing.assert_index_equal(pd.Index(found.index), pd.Index(data.index))


CLOCK = pd.Series(pd.date_range("2026-03-29", periods=400, freq="min", unit="us"), name="t")
ZONES = {
    "UTC": CLOCK.dt.tz_localize("UTC"),
    "Berlin": CLOCK.dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin"),
    "arrow": CLOCK.astype("timestamp[us][pyarrow]"),
    "arrow in UTC": CLOCK.dt.tz_localize("UTC").astype("timestamp[us, tz=UTC][pyarrow]"),
}
FORMS = {
    "pandas": lambda when: when.to_frame(),
    "Dask": lambda when: dd.from_pandas(when.to_frame(), npartitions=3),
    "Dask Series": lambda when: dd.from_pandas(when, npartitions=3),
    "mapping": lambda when: {"t": when},
    "mapping of Dask": lambda when: {"t": dd.from_pandas(when, npartitions=3)},
    "array": lambda when: when.array,
    "index": lambda when: pd.Index(when),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("when", ZONES.values(), ids=ZONES)
def test_predict_counts_from_the_instant_of_the_fit(when, form):
    seconds = 60.0 * np.arange(400)
    result = dask_nlsq.fit(lambda t, a: a * t, data=pd.DataFrame({"t": when, "y": 2 * seconds}))
    np.testing.assert_allclose(result.predict(form(when[100:])), 2 * seconds[100:])
    np.testing.assert_allclose(result.predict(form(when.where(seconds != 0))), [np.nan, *2 * seconds[1:]])
    np.testing.assert_allclose(result.predict(when[100]), 2 * seconds[[100]])


@pytest.mark.parametrize("dtype", ["Int64", "Float64", "int64[pyarrow]", "double[pyarrow]"])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_predict_is_nan_where_a_cell_is_missing(dtype, form):
    result = dask_nlsq.fit(lambda t, a: a * t, ONE, 2 * ONE)
    found = result.predict(form(pd.Series([1, None, 3], dtype=dtype, name="t")))
    np.testing.assert_allclose(np.asarray(found, float), [2, np.nan, 6])


@pytest.mark.slow
def test_autotune_is_recorded():
    t, y = decay_rows(5000)
    ruled, tuned = (dask_nlsq.fit(decay, t, y, autotune=choice) for choice in (False, True))
    assert ruled.provenance["kernel"] == {"jacobian": "reverse", "tile": 2048, "autotuned": False}
    assert tuned.provenance["kernel"]["autotuned"] and tuned.provenance["kernel"]["tile"] in (1024, 2048, 4096, 8192)
    np.testing.assert_allclose(tuned.popt, ruled.popt, rtol=1e-10)


TABLES = {
    "pyarrow": lambda frame: pa.Table.from_pandas(frame),
    "a reader": lambda frame: pa.Table.from_pandas(frame).to_reader(),
    "records": lambda frame: frame.to_records(index=False),
    "polars": lambda frame: pytest.importorskip("polars").from_pandas(frame),
    "a lazy frame": lambda frame: pytest.importorskip("polars").from_pandas(frame).lazy(),
    "DuckDB": lambda frame: pytest.importorskip("duckdb").from_df(frame),
}


@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.parametrize("rows", [2, 5])
def test_predict_takes_tables_by_name(kind, rows, two_columns):
    frame = pd.DataFrame({"other": 0.0, "u": TWO[:rows], "t": ONE[:rows]})
    expected = 2 * ONE[:rows] + 3 * TWO[:rows] ** 2
    np.testing.assert_allclose(two_columns.predict(TABLES[kind](frame)), expected, rtol=1e-12)


@pytest.mark.parametrize("data", ["rows.parquet", ["a.parquet", "b.parquet"]])
def test_predict_refuses_paths(data, two_columns):
    with pytest.raises(DataError, match="predict takes rows"):
        two_columns.predict(data)


def test_the_options_are_the_arguments_of_fit():
    arguments = inspect.signature(dask_nlsq.fit).parameters.values()
    fields = [f for f in dataclasses.fields(FitOptions) if f.init]
    empty = inspect.Parameter.empty
    assert [(a.name, a.default) for a in arguments] == [
        (f.name, empty if f.default is dataclasses.MISSING else f.default) for f in fields
    ]


@pytest.mark.parametrize("ask", [dask_nlsq.fit, dask_nlsq.plan])
def test_an_argument_that_there_is_not_is_named(ask):
    with pytest.raises(TypeError, match="an unexpected keyword argument 'sigmas'") as caught:
        ask(decay, *decay_rows(10), sigmas=1.0)
    assert "FitOptions" not in str(caught.value)
