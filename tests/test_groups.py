"""A fit for each group of rows: the rows may lie anywhere, and the keys may be anything."""

import functools

import dask
import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from scipy.optimize import curve_fit

import dask_nlsq
from dask_nlsq import BoundsError, DataError, ModelError, NlsqError

P0 = [2.0, 1.0, 0.0]
GROUPS = 60


def decay(t, amplitude, rate, offset):
    return amplitude * jnp.exp(-rate * t) + offset


def rows(seed=0):
    """Ragged groups of 5 to 90 rows, under keys of several types."""
    rng = np.random.default_rng(seed)
    number = np.repeat(np.arange(GROUPS), rng.integers(5, 90, GROUPS))
    t = rng.uniform(0, 4, len(number))
    a, b, c = (rng.uniform(*r, GROUPS)[number] for r in ((2, 4), (0.5, 2), (0.5, 1)))
    frame = pd.DataFrame({"number": number, "t": t, "y": a * np.exp(-b * t) + c + rng.normal(0, 0.05, len(t))})
    frame["name"] = [f"detector {n:02}" for n in number]
    frame["half"] = frame["number"] % 2
    frame["day"] = pd.Timestamp("2024-01-01") + pd.to_timedelta(frame["number"], unit="D")
    frame["kind"] = pd.Categorical(frame["name"])
    frame["s"] = rng.uniform(0.5, 2, len(t))
    return frame


FRAME = rows()


@functools.cache
def plain():
    return dask_nlsq.fit_groups(FRAME, "number", decay, y="y", p0=P0)


def figures():
    return list(plain().columns[1:-1])


def shuffled():
    return FRAME.sample(frac=1, random_state=1).reset_index(drop=True)


def by_number(table):
    return table.sort_values(list(table.columns[:1])).reset_index(drop=True)


@pytest.mark.crossed
@pytest.mark.parametrize("sigma", [None, "s", 0.05])
def test_each_group_has_the_answer_of_fit(sigma):
    table = FRAME.nlsq.fit_groups("number", decay, p0=P0, sigma=sigma, absolute_sigma=sigma == 0.05)
    for number in (0, 17, 59):
        one = FRAME[FRAME["number"] == number].nlsq.fit(
            decay, p0=P0, sigma=sigma, absolute_sigma=sigma == 0.05, client=False
        )
        row = table.set_index("number").loc[number]
        np.testing.assert_allclose(row[list(one.names)].astype(float), one.popt, rtol=1e-6)
        np.testing.assert_allclose(row[[f"{n}_stderr" for n in one.names]].astype(float), one.stderr, rtol=1e-6)
        assert row["n_obs"] == one.n_obs and row["status"] == "CONVERGED"
        np.testing.assert_allclose([row["redchi"], row["rsquared"]], [one.redchi, one.rsquared], rtol=1e-6)


@pytest.mark.parametrize("keys", ["number", "name", "day", "kind", ["half", "number"]], ids=str)
def test_keys_of_any_type_keep_it(keys):
    names = [keys] if isinstance(keys, str) else keys
    lazy = dd.from_pandas(shuffled(), npartitions=4).nlsq.fit_groups(keys, decay, p0=P0)
    table = lazy.compute()
    assert list(table.columns[: len(names)]) == names and len(table) == GROUPS
    assert [lazy.dtypes[name] for name in names] == [table.dtypes[name] for name in names]
    expected = FRAME.groupby(names, observed=True)["number"].first()
    order = table.set_index(names).index.map(expected.to_dict())
    assert np.array_equal(table.iloc[np.argsort(order)][figures()].to_numpy(), plain()[figures()].to_numpy())


@pytest.mark.parametrize("npartitions", [1, 3, 8])
@pytest.mark.parametrize("order", ["sorted", "shuffled"])
def test_rows_in_any_order_and_partitions_have_the_same_bits(npartitions, order):
    frame = FRAME if order == "sorted" else shuffled()
    table = dd.from_pandas(frame, npartitions=npartitions, sort=False).nlsq.fit_groups("number", decay, p0=P0)
    pd.testing.assert_frame_equal(by_number(table.compute()), plain(), check_exact=True)


@functools.cache
def many_rows():
    """Two million rows of 50,000 ragged groups under keys of three types, in random order."""
    rng = np.random.default_rng(0)
    number = np.repeat(np.arange(50_000), rng.integers(10, 71, 50_000))[:2_000_000]
    a, b, c = (rng.uniform(*r, 50_000)[number] for r in ((2, 4), (0.5, 2), (0.5, 1)))
    t = rng.uniform(0, 4, len(number))
    frame = pd.DataFrame({"number": number, "t": t, "y": a * np.exp(-b * t) + c + rng.normal(0, 0.05, len(t))})
    frame["name"] = pd.array(frame["number"].map("sensor {:05}".format), dtype="string[pyarrow]")
    return frame.assign(half=frame["number"] % 2, rest=frame["number"] // 2).sample(frac=1, random_state=1)


def by_scipy(rows):
    popt, pcov = curve_fit(
        lambda t, a, b, c: a * np.exp(-b * t) + c, rows["t"], rows["y"], P0, ftol=1e-14, xtol=1e-14, gtol=1e-14
    )
    return np.r_[popt, np.sqrt(np.diag(pcov))]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("key", ["number", "sorted number", "name", "half rest"])
def test_two_million_rows_of_fifty_thousand_groups(key):
    frame, keys = many_rows(), key.removeprefix("sorted ").split()
    frame = frame.sort_values(keys) if key.startswith("sorted") else frame
    table = dd.from_pandas(frame, npartitions=8, sort=False).nlsq.fit_groups(keys, decay, p0=P0).compute()
    assert len(table) == 50_000 and (table["status"] == "CONVERGED").mean() > 0.99
    table = table.set_index(keys)
    figures = [*table.columns[:6]]
    number = np.random.default_rng(0).choice(50_000, 200, replace=False)
    sample = frame[frame["number"].isin(number)]
    for which, rows in sample.groupby(keys):
        row = table.loc[which if len(keys) > 1 else which[0]]
        if row["status"] == "CONVERGED":
            np.testing.assert_allclose(row[figures].astype(float), by_scipy(rows), rtol=1e-6)


@pytest.mark.slow
def test_a_cluster_has_the_bits_of_threads(client):
    table = dd.from_pandas(shuffled(), npartitions=5).nlsq.fit_groups("number", decay, p0=P0)
    pd.testing.assert_frame_equal(by_number(table.compute()), plain(), check_exact=True)


def test_an_index_with_known_divisions_needs_no_shuffle():
    frame = dd.from_pandas(FRAME.set_index("number"), npartitions=4)
    table = frame.nlsq.fit_groups("number", decay, p0=P0)
    assert not any("shuffle" in str(key) for key in table.dask)
    pd.testing.assert_frame_equal(by_number(table.compute()), plain(), check_exact=True)


def test_partitions_may_be_said_to_hold_whole_groups(tmp_path):
    FRAME.to_parquet(tmp_path / "hive", partition_cols=["half"])
    frame = dd.read_parquet(tmp_path / "hive")
    whole = frame.nlsq.fit_groups(["number", "half"], decay, p0=P0, within_partitions=True).compute()
    assert sorted(whole["half"].astype(int).unique()) == [0, 1]
    np.testing.assert_array_equal(whole.sort_values("number")[figures()], plain()[figures()])


def test_groups_that_fail_are_rows():
    frame = FRAME.copy()
    frame.loc[frame["number"] == 3, "y"] = np.nan
    frame.loc[frame["number"] == 4, "t"] = np.inf
    frame.loc[FRAME.index[FRAME["number"] == 5][:2], "y"] = np.nan
    table = frame.nlsq.fit_groups("number", decay, p0=P0)
    assert table["status"].tolist()[3:5] == ["TOO_FEW"] * 2 and table.loc[[3, 4], "rate"].isna().all()
    assert table.loc[5, "n_obs"] == plain().loc[5, "n_obs"] - 2
    pd.testing.assert_frame_equal(table.iloc[6:], plain().iloc[6:], check_exact=True)
    with pytest.raises(DataError, match=r"'number': 4"):
        frame.nlsq.fit_groups("number", decay, p0=P0, nan_policy="raise")


@pytest.mark.slow
def test_the_model_guesses_for_each_group():
    x = np.tile(np.linspace(-5, 5, 40), 3)
    centers = np.repeat([-2.0, 0.5, 2.5], 40)
    frame = pd.DataFrame({"g": centers, "x": x, "y": 3 * np.exp(-0.5 * ((x - centers) / 0.4) ** 2)})
    table = frame.nlsq.fit_groups("g", "gaussian")
    np.testing.assert_allclose(table["center"], table["g"], rtol=1e-9)


def test_no_rows_have_no_groups():
    empty = FRAME.iloc[:0].nlsq.fit_groups("number", decay, p0=P0)
    assert len(empty) == 0 and list(empty.columns) == list(plain().columns)


REFUSED = {
    "a key that is not there": (lambda: FRAME.nlsq.fit_groups("place", decay), DataError, "place"),
    "a key that is fitted": (lambda: FRAME.nlsq.fit_groups("y", decay), DataError, "one of the two"),
    "a key called as a parameter": (
        lambda: FRAME.rename(columns={"number": "rate"}).nlsq.fit_groups("rate", decay),
        ModelError,
        "two columns 'rate'",
    ),
    "a sigma that is missing": (
        lambda: FRAME.assign(s=np.nan).nlsq.fit_groups("number", decay, sigma="s", nan_policy="raise"),
        DataError,
        "'s'",
    ),
    "text for y": (lambda: FRAME.nlsq.fit_groups("number", decay, y="name"), DataError, "dtype"),
    "text of digits for y": (
        lambda: FRAME.assign(y=FRAME["y"].astype(str)).nlsq.fit_groups("number", decay),
        DataError,
        "dtype",
    ),
    "categories of digits": (
        lambda: FRAME.assign(y=FRAME["y"].round().astype(str).astype("category")).nlsq.fit_groups("number", decay),
        DataError,
        "dtype",
    ),
    "text among numbers": (
        lambda: FRAME.assign(y=["1", *FRAME["y"][1:]]).nlsq.fit_groups("number", decay),
        DataError,
        "dtype",
    ),
    "counts": (lambda: FRAME.nlsq.fit_groups("number", decay, loss="poisson"), NlsqError, "is for dask_nlsq.fit"),
    "a path": (lambda: dask_nlsq.fit_groups("rows.parquet", "number", decay), DataError, "DataFrame"),
    "a model of nothing": (lambda: FRAME.nlsq.fit_groups("number", lambda t: t), ModelError, "parameter"),
    "a sigma of zero": (lambda: FRAME.assign(s=0.0).nlsq.fit_groups("number", decay, sigma="s"), DataError, "positive"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name):
    call, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        call()


T = np.linspace(0, 4, 20)
IMAGE = xr.DataArray(
    np.random.default_rng(0).normal(np.exp(-T), 0.01, (2, 3, 20)), dims=("y", "x", "t"), coords={"t": T}, name="image"
)


def test_xarray_has_the_layout_of_curvefit():
    ours = IMAGE.nlsq.fit_many(decay, "t", p0=[1.0, 1.0, 0.0], layout="curvefit")
    theirs = IMAGE.curvefit("t", lambda t, amplitude, rate, offset: amplitude * np.exp(-rate * t) + offset)
    assert ours.sizes == theirs.sizes and ours["param"].values.tolist() == theirs["param"].values.tolist()
    for name in ("curvefit_coefficients", "curvefit_covariance"):
        assert ours[name].dims == theirs[name].dims
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_xarray_is_as_lazy_as_its_data_and_takes_variables_by_name():
    dataset = IMAGE.to_dataset().assign(s=("t", np.linspace(0.5, 2, 20)))
    eager = dataset.nlsq.fit_many(decay, "t", y="image", sigma="s", p0=[1.0, 1.0, 0.0])
    lazy = dataset.chunk({"x": 1}).nlsq.fit_many(decay, "t", y="image", sigma="s", p0=[1.0, 1.0, 0.0])
    assert dask.is_dask_collection(lazy) and not dask.is_dask_collection(eager)
    xr.testing.assert_identical(lazy.compute(), eager)
    with pytest.raises(DataError, match="variables"):
        dataset.nlsq.fit_many(decay, "t")


def test_xarray_fits_all_elements_at_once():
    result = IMAGE.nlsq.fit(decay, "t", p0=[1.0, 1.0, 0.0])
    assert result.n_obs == IMAGE.size and abs(result.params["rate"] - 1) < 0.02


EACH = {
    "p0": {"p0": {"amplitude": "amplitude_known", "rate": "rate_known", "offset": 0.0}},
    "bounds": {
        "p0": {"amplitude": 2.0, "rate": "rate_known", "offset": 0.0},
        "bounds": {"rate": ("low", "high"), "offset": (0, 5.0)},
    },
    "fixed": {"p0": {"amplitude": 2.0}, "fixed": {"offset": "offset_known"}},
    "p0 of some": {"p0": {"rate": "rate_some"}},
}


def known(kind):
    estimates = plain().set_index("number")[["amplitude", "rate", "offset"]].add_suffix("_known")
    frame = FRAME.merge(estimates, on="number")
    rate = frame["rate_known"]
    frame = frame.assign(low=rate - 0.2, high=rate + 0.1, rate_some=rate.where(frame["number"] > 3))
    return frame if kind == "pandas" else dd.from_pandas(frame.sample(frac=1, random_state=2), npartitions=3)


@pytest.mark.crossed
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("kind", ["pandas", "Dask"])
@pytest.mark.parametrize("name", EACH)
def test_columns_hold_values_of_each_group(name, kind):
    table = known(kind).nlsq.fit_groups("number", decay, **EACH[name])
    table = by_number(table if kind == "pandas" else table.compute()).set_index("number")
    frame, options = known("pandas"), EACH[name]
    for number in (2, 33):
        rows = frame[frame["number"] == number]

        def own(value, rows=rows):
            return value if not isinstance(value, str) else float(rows[value].iloc[0])

        given = {what: options[what] for what in options if what != "bounds"}
        given = {k: {n: own(v) for n, v in values.items() if own(v) == own(v)} for k, values in given.items()}
        limits = {n: (own(low), own(high)) for n, (low, high) in options.get("bounds", {}).items()}
        one = rows.nlsq.fit(decay, client=False, **given, **({"bounds": limits} if limits else {}))
        row = table.loc[number]
        np.testing.assert_allclose(row[list(one.names)].astype(float), one.popt, rtol=1e-6)
        np.testing.assert_allclose(row[[f"{n}_stderr" for n in one.names]].astype(float), one.stderr, rtol=1e-5)


@pytest.mark.slow
def test_a_shared_parameter_beside_values_of_each_group():
    options = {"shared": "offset", "p0": {"offset": 0.7, "amplitude": 3.0, "rate": 1.0}}
    same = dask_nlsq.fit_groups(known("pandas"), "number", decay, **options)
    options["p0"] = options["p0"] | {"rate": "rate_known"}
    each = dask_nlsq.fit_groups(known("pandas"), "number", decay, **options)
    np.testing.assert_allclose(each["rate"], same["rate"], rtol=1e-6)


EACH_REFUSED = {
    "no such column": ({"p0": {"rate": "rates"}}, DataError, "rates"),
    "no such parameter": ({"p0": {"rat": "rate_known"}}, ModelError, "rat"),
    "texts": ({"p0": {"rate": "name"}}, DataError, "name"),
    "several values": ({"p0": {"rate": "t"}}, DataError, "several values in 60 of 60 groups"),
    "no value of bounds": ({"bounds": {"rate": (0, "rate_some")}}, DataError, "no value in 4 of 60 .*'number': 0"),
    "no value of fixed": ({"fixed": {"rate": "rate_some"}}, DataError, "no value in 4"),
    "bounds that cross": ({"bounds": {"rate": ("high", "low")}}, BoundsError, "above its upper"),
    "of a fixed parameter": ({"p0": {"rate": "rate_known"}, "fixed": ["rate"]}, ModelError, "fixed="),
    "of a shared parameter": ({"p0": {"rate": "rate_known"}, "shared": "rate"}, DataError, "shared"),
    "no pair": ({"bounds": {"rate": "low"}}, BoundsError, "a pair"),
}


@pytest.mark.parametrize("name", EACH_REFUSED)
def test_columns_that_do_not_do_are_refused(name):
    options, error, words = EACH_REFUSED[name]
    with pytest.raises(error, match=words):
        known("pandas").nlsq.fit_groups("number", decay, **options)


@pytest.mark.parametrize("npartitions", [0, 3])
@pytest.mark.parametrize("dtype", ["f8", "f4", "Float64"])
def test_both_zeros_are_one_group(dtype, npartitions):
    few = FRAME.iloc[::40]
    half = np.where(few["half"] == 0, np.where(few["number"] % 4 == 0, 0.0, -0.0), 1.0)
    frame = few.assign(half=pd.array(half, dtype=dtype)).sample(frac=1, random_state=0)
    data = dd.from_pandas(frame, npartitions=npartitions) if npartitions else frame
    table = data.nlsq.fit_groups("half", decay, p0=P0)
    table = table.compute() if npartitions else table
    assert sorted(table["half"]) == [0.0, 1.0] and not np.signbit(table["half"].astype(float)).any()
    assert table["half"].dtype == frame["half"].dtype and table["n_obs"].sum() == len(few)
