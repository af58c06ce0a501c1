"""Every invalid input raises a typed error that names the place and the remedy."""

import math
import pickle
import warnings
from fractions import Fraction

import dask
import dask.array as da
import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from problems import decay, decay_rows
from scipy.optimize import OptimizeWarning

import dask_nlsq
from dask_nlsq import DataError, ModelError, NlsqError, NotFiniteError, SweepError, TooFewRows


@pytest.fixture(params=["threads", "cluster"])
def where(request):
    """Run here, and on two processes."""
    if request.param == "cluster":
        request.getfixturevalue("client")


def frame(npartitions=4, **changes):
    t, y = decay_rows(400)
    table = pd.DataFrame({"t": t, "y": y, "s": np.ones(400)})
    for column, (row, value) in changes.items():
        table.loc[row, column] = value
    return dd.from_pandas(table, npartitions=npartitions)


@pytest.mark.usefixtures("where")
class TestData:
    """What the rows can get wrong."""

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("column", ["t", "y"])
    def test_one_cell_of_the_last_partition(self, column, value):
        with pytest.raises(NotFiniteError, match=r'1 of 100 cells.*row 99.*nan_policy="omit"') as caught:
            frame(**{column: (399, value)}).nlsq.fit(decay)
        assert (caught.value.partition, caught.value.column) == (3, column)

    @pytest.mark.parametrize("value", [np.nan, 0.0, -1.0])
    @pytest.mark.parametrize("nan_policy", ["raise", "omit"])
    def test_sigma(self, value, nan_policy):
        with pytest.raises(DataError, match="sigma must be positive") as caught:
            frame(s=(250, value)).nlsq.fit(decay, sigma="s", nan_policy=nan_policy)
        assert (caught.value.partition, caught.value.column) == (2, "s")

    def test_work_that_partitions_share_may_be_wrong(self):
        with pytest.raises(DataError, match="sigma must be positive"):
            frame(8).shuffle("t").assign(s=0.0).nlsq.fit(decay, sigma="s")

    def test_no_rows(self):
        with pytest.raises(DataError, match="no rows"):
            frame().query("t > 99").nlsq.fit(decay)

    def test_all_rows_omitted(self):
        with pytest.raises(DataError, match="400 were dropped"):
            frame().assign(y=np.nan).nlsq.fit(decay, nan_policy="omit")

    def test_empty_partitions_change_nothing(self):
        rows = frame()
        holes = dd.concat([rows.partitions[0:2], rows.partitions[0].query("t > 99"), rows.partitions[2:4]])
        assert holes.npartitions == 5
        np.testing.assert_array_equal(holes.nlsq.fit(decay).popt, rows.nlsq.fit(decay).popt)


@pytest.mark.usefixtures("where")
class TestModel:
    """What the model can get wrong while it runs."""

    def test_not_finite_at_the_start(self):
        with pytest.raises(ModelError, match=r"not finite at the start.*'power': 0\.5"):
            frame().nlsq.fit(lambda t, scale, power=0.5: scale * (t - 6) ** power)

    def test_not_finite_on_the_way_is_a_refused_step(self):
        t = np.linspace(0.1, 5, 400)
        rows = dd.from_pandas(pd.DataFrame({"t": t, "y": np.log(t + 0.01)}), npartitions=3)
        result = rows.nlsq.fit(lambda t, shift=5.0, scale=30.0: scale * jnp.log(t + shift))
        assert not result.history["accepted"].all()
        np.testing.assert_allclose(result.popt, [0.01, 1], rtol=1e-6)

    def test_a_model_that_raises_on_a_worker(self):
        import jax

        def boom(t):
            raise ZeroDivisionError("boom")

        def model(t, a, b):
            return jax.pure_callback(boom, jax.ShapeDtypeStruct(t.shape, t.dtype), t, vmap_method="sequential") + a * b

        with pytest.raises(SweepError, match=r"boom.*partition \d.*theta \[1") as caught:
            frame().nlsq.fit(model)
        assert caught.value.__cause__ is not None


ACROSS_ROWS = {
    "mean": lambda t, a, b: a * (t - t.mean()) + b,
    "maximum": lambda t, a, b: a * t / t.max() + b,
    "cumulative sum": lambda t, a, b: a * jnp.cumsum(t) + b,
    "length": lambda t, a, b: a * t / len(t) + b,
    "position": lambda t, a, b: a * t + b * jnp.arange(len(t)),
    "neighbour": lambda t, a, b: a * t + b * jnp.roll(t, 1),
    "sort": lambda t, a, b: a * jnp.sort(t) + b,
    "a term that vanishes at the start": lambda t, a, b=0.0: a * t + b * t.mean(),
}


@pytest.mark.crossed(3)
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("model", ACROSS_ROWS.values(), ids=ACROSS_ROWS)
@pytest.mark.parametrize("pieces", [1, 4])
def test_a_model_that_looks_across_rows(model, pieces):
    with pytest.raises(ModelError, match=r"looks across rows.*as a column or a constant"):
        frame(pieces).nlsq.fit(model)


def by_row(f):
    """A model for NumPy only, which calls `f` for every row."""
    return lambda t, a, tau: a * np.array([f(float(v), float(tau)) for v in t])


@pytest.mark.parametrize("f", [lambda v, tau: math.exp(-v * math.sqrt(tau)), lambda v, tau: v + [tau][int(tau < 0)]])
@pytest.mark.filterwarnings("ignore:The model")
def test_a_model_need_not_run_beside_its_start(f):
    options = {"p0": [1.0, 0.05], "bounds": ([0, 1e-3], [9, 1])}
    t = np.linspace(0, 3, 50)
    result = dask_nlsq.fit(by_row(f), t, [2.0 * f(v, 0.1) for v in t], **options)
    np.testing.assert_allclose(result.popt, [2.0, 0.1], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:The model")
@pytest.mark.parametrize(
    "call",
    [
        lambda model, rows: dask_nlsq.fit(model, data=rows),
        lambda model, rows: dask_nlsq.fit(model, data=rows, n_starts=4, bounds=(0.5, 2)),
        lambda model, rows: dask_nlsq.plan(model, data=rows),
    ],
    ids=["fit", "starts", "plan"],
)
def test_a_model_that_raises_on_real_rows(call):
    with pytest.raises(SweepError, match=r"IndexError while evaluating the model.*theta \[") as caught:
        call(by_row(lambda v, tau: tau * [1.0, 2.0][int(v)]), frame())
    assert isinstance(caught.value.__cause__, IndexError)


def test_a_read_that_fails_names_the_partition(tmp_path):
    rows = frame()
    rows.to_parquet(tmp_path)
    broken = dd.read_parquet(tmp_path)
    (tmp_path / "part.2.parquet").write_bytes(b"not parquet")
    with pytest.raises(SweepError, match="reading the data") as caught:
        broken.nlsq.fit(decay)
    assert caught.value.partition == 2
    assert caught.value.__cause__ is not None


@pytest.mark.parametrize("form", ["frame", "arrays"])
@pytest.mark.parametrize(("errors", "partition"), [([KeyError("gone")], 0), ([None, OSError("busy")], None)])
def test_a_read_of_dates_fails_as_any_other(form, errors, partition):
    start = pd.Timestamp("2026-01-01")
    found = iter(errors)

    def read(i):
        if (error := next(found, None)) is not None:
            raise error
        return pd.DataFrame({"t": start + pd.to_timedelta(np.arange(9.0) + i, "s"), "y": np.arange(9.0) + i})

    rows = dd.from_map(read, range(3), meta=pd.DataFrame({"t": [start], "y": [0.0]}))
    options = {"data": rows} if form == "frame" else {"x": rows["t"].values, "y": rows["y"].values}
    if partition is None:
        assert dask_nlsq.fit(lambda t, a: a * t, **options).n_obs == 27
        return
    with pytest.raises(SweepError, match="KeyError while reading the data") as caught:
        dask_nlsq.fit(lambda t, a: a * t, **options)
    assert caught.value.partition == partition and isinstance(caught.value.__cause__, KeyError)


def test_a_read_is_tried_again(tmp_path):
    t, y = decay_rows(400)
    fails = iter([OSError("busy"), OSError("busy")])

    def read(i):
        for error in fails:
            raise error
        return pd.DataFrame({"t": t[i::4], "y": y[i::4]})

    rows = dd.from_map(read, range(4), meta=pd.DataFrame({"t": [0.0], "y": [0.0]}))
    assert rows.nlsq.fit(decay, cache="none").n_obs == 400


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda t, a, b: a, r"returns the shape \(\)"),
        (lambda t, a, b: (a * t)[:-1], r"returns the shape \(6,\) for 7 rows"),
        (lambda t, a, b: jnp.stack([a * t, b * t]), r"returns the shape \(2, 7\)"),
        (lambda t, a, b: a * t + missing, "raises NameError"),  # noqa: F821
        ("gaussian?", "gaussian"),
    ],
)
def test_a_model_is_looked_at_before_the_data(model, message):
    def never_read(i):
        raise AssertionError("the data were read")

    rows = dd.from_map(never_read, range(2), meta=pd.DataFrame({"t": [0.0], "y": [0.0]}))
    with pytest.raises(ModelError, match=message):
        rows.nlsq.fit(model)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"y": "nope"}, r"no column 'nope'; the data has 't', 'y', 's'.*y="),
        ({"x": "nope"}, "no column 'nope'"),
        ({"sigma": "nope"}, "no column 'nope'"),
        ({"sigma": -1.0}, "positive"),
        ({"nan_policy": "drop"}, '"omit"'),
        ({"filters": [("y", ">", 0)]}, "path or URL of Parquet"),
    ],
)
def test_arguments(arguments, message):
    with pytest.raises(DataError, match=message):
        frame().nlsq.fit(decay, **arguments)


@pytest.mark.parametrize("npartitions", [0, 2])  # 0: a pandas frame
@pytest.mark.parametrize(
    ("sigma", "message"),
    [
        (-np.ones(400), r"name of a column or a number; it is a ndarray of shape \(400,\)\. Add it"),
        (np.ones(400), r"shape \(400,\)"),
        (np.ones(3), r"shape \(3,\)"),
        (np.eye(400), r"shape \(400, 400\)"),
        (pd.Series(np.ones(400)), r"a Series of shape \(400,\)"),
        ([1.0] * 400, r"it is a list\."),
        (1j, "it is a complex"),
        (np.array(-1.0), "sigma is -1.0; it must be positive"),
        (np.float32(0), "positive"),
        (jnp.float32(np.nan), "sigma is nan; it must be positive"),
    ],
)
def test_sigma_beside_named_columns(sigma, message, npartitions):
    rows = frame(npartitions) if npartitions else frame().compute()
    with pytest.raises(DataError, match=message):
        rows.nlsq.fit(decay, sigma=sigma)


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("number", [np.array(0.5), np.float32(0.5), jnp.float32(0.5), jnp.array(0.5), Fraction(1, 2)])
def test_every_number_may_be_sigma(number, named):
    rows = frame().compute()
    found, expected = (
        dask_nlsq.fit(decay, data=rows, sigma=s) if named else dask_nlsq.fit(decay, rows["t"], rows["y"], sigma=s)
        for s in (number, 0.5)
    )
    np.testing.assert_array_equal(found.popt, expected.popt)
    assert found.aic == expected.aic


SMALL = pd.DataFrame({"t": np.arange(20.0), "y": 1 + 2 * np.arange(20.0)})
LAZY = dd.from_pandas(SMALL, npartitions=2)
PAIR = np.ones((20, 2))


@pytest.mark.parametrize(
    ("x", "y", "options", "error", "message"),
    [
        (SMALL[["t"]], SMALL["y"], {}, DataError, "x is a DataFrame; give data=frame"),
        (LAZY[["t"]], LAZY["y"], {}, DataError, "x is a DataFrame; give data=frame"),
        (0, "y", {"data": SMALL}, DataError, "name of a column or a list of names; it is a int"),
        (PAIR[:, 0], "y", {"data": SMALL}, DataError, r"it is a ndarray of shape \(20,\)"),
        ("t", "y", {}, DataError, "data= with x and y as the names"),
        (PAIR, PAIR[:, 0], {}, DataError, r"shape \(20, 2\), and y 20 rows; .*give x\.T"),
        (da.from_array(PAIR), [1.0] * 20, {}, DataError, r"give x\.T"),
        (da.ones(20), da.from_array(np.array(1.0)), {}, DataError, r"shape \(\); one dimension"),
        ("t", "y", {"data": SMALL, "f_scale": "1"}, ModelError, "f_scale is '1'; a positive number"),
        ("t", "y", {"data": SMALL, "f_scale": None}, ModelError, "f_scale is None"),
        ("t", "y", {"data": SMALL, "fixed": 1}, ModelError, "fixed is 1; {name: value} or"),
        ("t", "y", {"data": SMALL, "tied": ["a"]}, ModelError, "tied is .*expression"),
        ("t", "y", {"data": SMALL, "prior": ["a"]}, ModelError, "prior is .*deviation"),
    ],
)
def test_arguments_of_other_kinds(x, y, options, error, message):
    with pytest.raises(error, match=message):
        dask_nlsq.fit(lambda t, a, b: a * t + b, x, y, **options)


def test_no_data():
    with pytest.raises(DataError, match="data="):
        dask_nlsq.fit(decay)
    with pytest.raises(DataError, match="a Dask, pandas, polars or Arrow table"):
        dask_nlsq.fit(decay, data=object())


@pytest.mark.parametrize("path", ["gone.parquet", "gone.zarr", "foo://bar", "text.parquet"])
def test_paths_that_cannot_be_read(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.parquet").write_text("no table")
    with pytest.raises(DataError, match="cannot be read: "):
        dask_nlsq.fit(decay, data=path)


def test_text_is_refused_by_column():
    rows = frame().assign(t="word")
    with pytest.raises(DataError) as caught:
        rows.nlsq.fit(decay)
    assert caught.value.column == "t"


def test_fewer_rows_than_parameters():
    with pytest.raises(TooFewRows, match="2 rows for 3 parameters"):
        dask_nlsq.fit(decay, np.array([1.0, 2]), np.array([1.0, 2]))


def test_as_many_rows_as_parameters():
    t = np.array([0.0, 1, 3])
    with pytest.warns(OptimizeWarning):
        result = dask_nlsq.fit(decay, t, 3 * np.exp(-1.3 * t) + 0.5)
    np.testing.assert_allclose(result.popt, [3, 1.3, 0.5], rtol=1e-6)
    assert np.isinf(result.pcov).all()


@pytest.mark.slow
@pytest.mark.parametrize("model", [lambda t, a, b, c: a + b * t, lambda t, a, b, c: a + b * t + 0 * c])
def test_an_unused_parameter_has_infinite_variance(model):
    t, y = decay_rows(200)
    with pytest.warns(OptimizeWarning, match="do not determine c"):
        result = dask_nlsq.fit(model, t, y)
    np.testing.assert_allclose(result.popt[:2], np.polyfit(t, y, 1)[::-1], rtol=1e-8)
    assert np.isinf(result.stderr["c"])
    assert np.isfinite(result.stderr[["a", "b"]]).all()


@pytest.mark.slow
def test_a_collinear_pair_has_infinite_variance():
    t, y = decay_rows(200)
    with pytest.warns(OptimizeWarning, match="do not determine a, b"):
        result = dask_nlsq.fit(lambda t, a, b, c: (a + b) * t + c, t, y)
    assert result.params["a"] + result.params["b"] == pytest.approx(np.polyfit(t, y, 1)[0], rel=1e-8)
    assert np.isfinite(result.stderr["c"])


def test_errors_travel_with_what_they_know():
    error = pickle.loads(pickle.dumps(DataError("bad", column="t").at(partition=3)))
    assert (error.partition, error.column) == (3, "t")
    assert str(error) == "bad [partition 3, column t]"
    assert isinstance(error, NlsqError)
    assert not hasattr(error, "sweep")


def test_nothing_is_said_of_a_clean_fit():
    with warnings.catch_warnings(), dask.config.set(scheduler="sync"):
        warnings.simplefilter("error")
        dask_nlsq.fit(decay, *decay_rows(200))


FRAME = pd.DataFrame({"t": [0.0, 1, 2, 3], "y": [1.0, 2, 3, 4]})
DOORS = {
    "fit": lambda model: dask_nlsq.fit(model, data=FRAME),
    "accessor": lambda model: FRAME.nlsq.fit(model),
    "curve_fit": lambda model: dask_nlsq.curve_fit(model, FRAME["t"].to_numpy(), FRAME["y"].to_numpy()),
}


@pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)
def test_a_warning_points_at_the_line_of_the_user(door):
    with pytest.warns(UserWarning, match="do not determine|could not be estimated") as caught:
        door(lambda t, a, b: a * t)
    assert {w.filename for w in caught} == {__file__}
