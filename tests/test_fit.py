"""fit against SciPy at tight tolerances: every store, every cut, every executor, one answer."""

import re

import dask.array as da
import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import zarr
from problems import STORES, TRUTH, decay, decay_reference, decay_rows
from scipy.optimize import curve_fit

import dask_nlsq
from dask_nlsq import Model, NlsqWarning, Status


def assert_equals_scipy(result, reference, parameters=1e-8, errors=1e-8):
    """Compare parameters in standard errors, and standard errors relatively."""
    x, cov = reference
    se = np.sqrt(np.diag(cov))
    assert result.success
    assert np.max(np.abs(result.popt - x) / se) < parameters
    np.testing.assert_allclose(result.stderr, se, rtol=errors)


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("pieces", [1, 7, 40])
@pytest.mark.parametrize("cache", ["none", "persist"])
def test_equals_scipy(store, pieces, cache, tmp_path):
    t, y = decay_rows(20_000)
    result = dask_nlsq.fit(decay, data=STORES[store](t, y, pieces, tmp_path), cache=cache)
    assert_equals_scipy(result, decay_reference(t, y), 1e-6, 1e-7)


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("where", ["threads", "cluster"])
def test_ten_million_rows_equal_scipy(where, tmp_path, request):
    """Parquet, Dask arrays and Zarr in 1, 7 and 200 partitions, here and on two processes."""
    if where == "cluster":
        request.getfixturevalue("client")
    t, y = decay_rows(10_000_000)
    reference = decay_reference(t, y)
    for store in STORES:
        for pieces in (1, 7, 200):
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
    monkeypatch.setattr("dask_nlsq._numerics.block._fit", lambda *args: copied.append(args))
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


def test_autotune_is_recorded():
    t, y = decay_rows(5000)
    ruled, tuned = (dask_nlsq.fit(decay, t, y, autotune=choice) for choice in (False, True))
    assert ruled.provenance["kernel"] == {"jacobian": "reverse", "tile": 2048, "autotuned": False}
    assert tuned.provenance["kernel"]["autotuned"] and tuned.provenance["kernel"]["tile"] in (1024, 2048, 4096, 8192)
    np.testing.assert_allclose(tuned.popt, ruled.popt, rtol=1e-10)
