"""Cluster-robust covariance, against statsmodels, NumPy's sum over groups, and the sandwich of rows that are groups."""

import dask.array as da
import dask.dataframe as dd
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from click.testing import CliRunner

import dask_nlsq
from dask_nlsq._errors import DataError, NlsqError, NlsqWarning
from dask_nlsq._sources import Columns
from dask_nlsq.cli import main

ROWS, GROUPS = 1500, 25

GRID = np.linspace(0.0, 1.0, 50)
RNG = np.random.default_rng(8)
CODES = RNG.integers(0, GROUPS, ROWS)
T = RNG.uniform(0, 4, ROWS)
FRAME = pd.DataFrame(
    {
        "t": T,
        "y": 3 * np.exp(-1.3 * T) + 0.5 + 0.1 * RNG.standard_normal(GROUPS)[CODES] + 0.1 * RNG.standard_normal(ROWS),
        "s": RNG.uniform(0.05, 0.2, ROWS),
        "g": CODES,
        "n": RNG.poisson(np.exp(2 - 0.5 * T + 0.2 * RNG.standard_normal(GROUPS)[CODES])).astype(float),
    }
)
KEYS = {
    "integers": lambda g: g,
    "unsigned bytes": lambda g: g.astype("u1"),
    "floats": lambda g: g - 0.5,
    "nullable integers": lambda g: pd.Series(g).astype("Int64"),
    "texts": lambda g: pd.Series([f"group {i}" for i in g]),
    "objects": lambda g: pd.Series([f"group {i}" for i in g]).astype(object),
    "Arrow texts": lambda g: pd.Series([f"group {i}" for i in g], dtype=pd.ArrowDtype(pa.string())),
    "categories": lambda g: pd.Series([f"group {i}" for i in g]).astype("category"),
    "categories of numbers": lambda g: pd.Series(g).astype("category"),
    "days": lambda g: pd.Series(pd.Timestamp("2020-02-27") + pd.to_timedelta(g, "D")),
    "microseconds of a zone": lambda g: pd.Series(pd.Timestamp("2020-02-27", tz="CET") + pd.to_timedelta(g, "us")),
    "dates of Python": lambda g: pd.Series(pd.Timestamp("2020-02-27") + pd.to_timedelta(g, "D")).dt.date,
    "durations": lambda g: pd.Series(pd.to_timedelta(g, "s")),
    "NumPy's texts": lambda g: np.char.add("g", g.astype(str)),
    "bytes": lambda g: np.char.add("g", g.astype(str)).astype("S"),
}


def decay(t, a, b, c):
    return a * jnp.exp(-b * t) + c


def fitted(model=decay, data=FRAME, **options):
    p0 = {} if isinstance(model, str) else {"p0": (2.0, 1.0, 0.0)}
    return dask_nlsq.fit(model, data=data, client=False, **{"cov_type": "cluster", "groups": "g"} | p0 | options)


@pytest.fixture(scope="module")
def whole():
    """The fit of all rows in memory."""
    return fitted()


@pytest.mark.parametrize("weights", [None, "s"], ids=["OLS", "WLS"])
@pytest.mark.parametrize("pieces", [1, 7])
def test_linear_models_have_what_statsmodels_has(weights, pieces):
    sm = pytest.importorskip("statsmodels.api", reason="statsmodels comes with the extra `examples`")
    x = np.stack([np.ones(ROWS), T, T**2], axis=1)
    w = np.ones(ROWS) if weights is None else FRAME["s"] ** -2.0
    theirs = sm.WLS(FRAME["y"], x, weights=w).fit(cov_type="cluster", cov_kwds={"groups": CODES}, use_t=True)
    ours = fitted("a + b*t + c*t**2", dd.from_pandas(FRAME, npartitions=pieces), sigma=weights)
    np.testing.assert_allclose(ours.pcov, theirs.cov_params(), rtol=1e-10)
    np.testing.assert_allclose(ours.conf_int(), theirs.conf_int(), rtol=1e-10)
    assert ours.n_groups == GROUPS and ours.statistics.interval_dof == theirs.df_resid_inference


def soft_l1(r):
    return 0.5 * 0.1**2 * 2 * (jnp.sqrt(1 + (r / 0.1) ** 2) - 1)


def poisson(f, y):
    return f - y * jnp.log(f)


# Options, and the cost of each row at all three parameters, of which some are free.
DENSE = {
    "plain": ({}, lambda f: 0.5 * (f - FRAME["y"].to_numpy()) ** 2),
    "weights": ({"sigma": "s"}, lambda f: 0.5 * ((f - FRAME["y"].to_numpy()) / FRAME["s"].to_numpy()) ** 2),
    "a robust loss": ({"loss": "soft_l1", "f_scale": 0.1}, lambda f: soft_l1(f - FRAME["y"].to_numpy())),
    "a bound": ({"bounds": {"c": (-9.0, 0.4)}}, lambda f: 0.5 * (f - FRAME["y"].to_numpy()) ** 2),
    "differences": ({"jac": "3-point"}, lambda f: 0.5 * (f - FRAME["y"].to_numpy()) ** 2),
    "robust differences": (
        {"jac": "3-point", "loss": "soft_l1", "f_scale": 0.1},
        lambda f: soft_l1(f - FRAME["y"].to_numpy()),
    ),
    "counts": ({"y": "n", "loss": "poisson"}, lambda f: poisson(f, FRAME["n"].to_numpy())),
}


@pytest.mark.crossed(5)
@pytest.mark.parametrize("name", DENSE)
def test_it_is_the_sum_over_groups(name):
    options, cost = DENSE[name]
    result = fitted(**options)
    free = np.flatnonzero(result.active_mask == 0)
    with jax.enable_x64(True):
        rows = np.asarray(jax.jacfwd(lambda theta: cost(decay(T, *theta)))(jnp.asarray(result.popt)))[:, free]
    scores = np.stack([rows[g == CODES].sum(axis=0) for g in range(GROUPS)])
    bread = fitted(**options, cov_type="standard", groups=None, absolute_sigma=True).pcov[np.ix_(free, free)]
    factor = GROUPS / (GROUPS - 1) * (ROWS - 1) / (ROWS - len(free))
    # The rows are evaluated one short step before the estimate; differences have some nine digits.
    expected = factor * bread @ scores.T @ scores @ bread
    np.testing.assert_allclose(result.pcov[np.ix_(free, free)], expected, rtol=1e-5, atol=1e-7 * expected.max())
    assert name != "a bound" or len(free) == 2


def test_ties_and_fixed_parameters_follow():
    tied = fitted("a*exp(-b*t) + c", p0={"a": 2.0, "b": 1.0, "c": 0.0}, tied={"c": "a / 6"}, fixed={"b": 1.3})
    alone = fitted("a*(exp(-1.3*t) + 1/6)", p0={"a": 2.0})
    np.testing.assert_allclose(tied.stderr, alone.stderr["a"] * np.array([1, 0, 1 / 6]), rtol=1e-9)


SINGLE = {
    "plain": {},
    "weights": {"sigma": "s"},
    "a robust loss": {"loss": "tukey", "f_scale": 0.5},
    "a loss of one's own": {"loss": lambda z: jnp.log1p(z), "f_scale": 0.2},
    "a bound": {"bounds": {"c": (-9.0, 0.4)}},
    "counts": {"y": "n", "loss": "poisson"},
    "errors in x": {"sigma": "s", "sigma_x": 0.02},
    "errors of each x": {"sigma": "s", "sigma_x": "s"},
    "a Jacobian": {"jac": lambda t, a, b, c: np.stack([np.exp(-b * t), -a * t * np.exp(-b * t), t**0], 1)},
    "like terms": {"model": lambda t, a, b, c: a * jnp.exp(-b * t) + c * jnp.exp(-0.01 * t), "fixed": {"c": 0.5}},
    "a shared integral": {"model": lambda t, a, b, c: a * jnp.exp(-b * t) + c * jnp.sin(c * GRID).sum() / GRID.sum()},
    "a start far away": {"p0": (20.0, 10.0, 5.0), "goal": "quality"},
}


@pytest.mark.crossed(5)
@pytest.mark.parametrize("name", SINGLE)
def test_of_groups_of_one_row_it_is_the_sandwich(name):
    rows = FRAME.assign(g=np.arange(ROWS)[::-1])
    cluster = fitted(data=rows, **SINGLE[name])
    sandwich = fitted(data=rows, **SINGLE[name], cov_type="sandwich", groups=None)
    np.testing.assert_allclose(cluster.pcov, sandwich.pcov, rtol=1e-9)
    np.testing.assert_allclose(cluster.popt, sandwich.popt, rtol=1e-10)


def test_a_prior_has_its_own_variance():
    rows, prior = FRAME.assign(g=np.arange(ROWS)), {"b": (1.3, 0.01)}
    cluster, sandwich = (
        fitted(data=rows, prior=prior, cov_type=kind, groups="g" if kind == "cluster" else None)
        for kind in ("cluster", "sandwich")
    )
    # A prior is a row, and no group.
    factor = ROWS / (ROWS - 1) * ROWS / (ROWS + 1)
    np.testing.assert_allclose(cluster.pcov, factor * sandwich.pcov, rtol=1e-9)


def twofold(t, a, b, c):
    return a * jnp.exp(-b * t) + c, c * jnp.exp(-b * t)


SIGMA = np.array([[0.02, 0.012], [0.012, 0.01]])
RESPONSES = {
    "two": lambda rows: {"data": rows, "y": ["y", "z"], "groups": "g"},
    "two with a covariance": lambda rows: {"data": rows, "y": ["y", "z"], "groups": "g", "sigma": SIGMA},
    "arrays": lambda rows: {"x": T, "y": [rows["y"].to_numpy(), rows["z"].to_numpy()], "groups": CODES, "data": None},
    "complex": lambda rows: {"x": T, "y": (rows["y"] + 1j * rows["z"]).to_numpy(), "groups": CODES, "data": None},
}


@pytest.mark.crossed(1)
@pytest.mark.parametrize("kind", RESPONSES)
def test_responses_of_a_row_are_of_its_group(kind):
    rows = FRAME.assign(z=0.5 * np.exp(-1.3 * T) + 0.1 * np.cos(99 * T) + 0.1 * (CODES % 3))
    options = RESPONSES[kind](rows)
    sigma = options.get("sigma", np.eye(2))
    data = dd.from_pandas(rows, npartitions=3) if options["data"] is not None else None
    result = fitted(twofold, **options | {"data": data})

    def costs(theta):
        r = jnp.stack(twofold(T, *theta)) - rows[["y", "z"]].to_numpy().T
        return 0.5 * jnp.einsum("ci,cd,di->i", r, np.linalg.inv(sigma), r)

    with jax.enable_x64(True):
        scores = np.asarray(jax.jacfwd(costs)(jnp.asarray(result.popt)))
    of_groups = np.stack([scores[g == CODES].sum(axis=0) for g in range(GROUPS)])
    bread = fitted(twofold, **options | {"groups": None}, cov_type="standard", absolute_sigma=True).pcov
    factor = GROUPS / (GROUPS - 1) * (2 * ROWS - 1) / (2 * ROWS - 3)
    np.testing.assert_allclose(result.pcov, factor * bread @ of_groups.T @ of_groups @ bread, rtol=1e-5, atol=1e-9)
    assert len(result._residual_summary.by_column) == 1 and result.n_groups == GROUPS


def stretched(t, a, b, c):
    return a * jnp.exp(-((t / b) ** c))  # has no derivative with respect to c at 0, and the limit 0


@pytest.mark.crossed(3)
def test_derivatives_that_are_no_numbers_are_differences_as_in_a_sweep():
    t = np.where(CODES == 3, 0.0, T)
    y = 3 * np.exp(-((t / 0.8) ** 0.7)) + 0.1 * np.cos(99 * T)
    rows = FRAME.assign(t=t, y=y, g=np.arange(ROWS))
    options = {"cluster": "g", "sandwich": None}
    cluster, sandwich = (
        fitted(stretched, rows, p0=(2.0, 1.0, 1.0), cov_type=kind, groups=groups) for kind, groups in options.items()
    )
    assert np.isfinite(sandwich.pcov).all() and any("difference" in note for note in cluster.notes)
    np.testing.assert_allclose(cluster.pcov, sandwich.pcov, rtol=1e-9)


@pytest.mark.parametrize("kind", KEYS)
def test_groups_are_told_apart_by_values_of_any_type(kind, whole):
    keys = KEYS[kind](CODES)
    result = fitted(x=T, y=FRAME["y"].to_numpy(), data=None, groups=keys)
    assert result.n_groups == GROUPS
    np.testing.assert_allclose(result.pcov, whole.pcov, rtol=1e-12)


@pytest.mark.parametrize("kind", KEYS)
def test_keys_are_the_same_in_every_partition(kind):
    keys, columns = KEYS[kind](CODES), Columns(("t",), "y", groups="g")
    rows = {"t": T, "y": T, "g": keys}
    cut = [columns.block({name: column[a : a + 500] for name, column in rows.items()}) for a in (0, 500, 1000)]
    np.testing.assert_array_equal(np.concatenate([block.x[-1] for block in cut]), columns.block(rows).x[-1])


def texts(rows):
    return rows.assign(g=KEYS["texts"](rows["g"]))


def parquet(tmp_path, rows):
    for i in range(3):
        pq.write_table(pa.Table.from_pandas(rows[i::3], preserve_index=False), tmp_path / f"{i}.parquet")
    return {"data": str(tmp_path)}


def hive(tmp_path, rows):
    dd.from_pandas(rows, npartitions=2).to_parquet(tmp_path / "hive", partition_on=["g"])
    return {"data": str(tmp_path / "hive")}


def in_zarr(tmp_path, rows):
    group = zarr.create_group(tmp_path / "rows.zarr")
    for name in ("t", "y", "g"):
        values = rows[name].to_numpy()
        group.create_array(name, data=values.astype(str) if values.dtype.kind == "O" else values, chunks=(400,))
    return {"data": str(tmp_path / "rows.zarr")}


def csv(tmp_path, rows):
    rows.to_csv(tmp_path / "rows.csv", index=False)
    return {"data": str(tmp_path / "rows.csv")}


def lazily(rows, name):
    return da.from_array(rows[name].to_numpy(), chunks=400)


def in_dask(_, rows):
    return {"data": None, "x": lazily(rows, "t"), "y": lazily(rows, "y"), "groups": lazily(rows, "g")}


def in_series(_, rows):
    frame = dd.from_pandas(rows, npartitions=4)
    return {"data": None, "x": frame["t"], "y": frame["y"], "groups": frame["g"]}


def image(_, rows):
    shape = {name: rows[name].to_numpy().reshape(30, 50) for name in ("t", "y", "g")}
    return {"data": None, "x": shape["t"], "y": shape["y"], "groups": shape["g"]}


def dictionaries(_, rows):
    table = pa.Table.from_pandas(rows)
    return {"data": table.set_column(2, "g", table["g"].cast("string").dictionary_encode())}


SOURCES = {
    "NumPy arrays": lambda _, rows: {"data": None, "x": T, "y": rows["y"].to_numpy(), "groups": rows["g"].to_numpy()},
    "a mapping": lambda _, rows: {"data": {name: rows[name].to_numpy() for name in rows}},
    "Dask arrays": in_dask,
    "Dask frame": lambda _, rows: {"data": dd.from_pandas(rows, npartitions=40)},
    "Dask Series": in_series,
    "images": image,
    "an Arrow table": lambda _, rows: {"data": pa.Table.from_pandas(rows)},
    "Arrow's dictionaries": dictionaries,
    "Parquet": parquet,
    "Parquet, filtered": lambda path, rows: {**parquet(path, rows), "filters": [("t", ">=", 0.0)]},
    "Parquet in folders": hive,
    "a frame of Parquet": lambda path, rows: {"data": dd.read_parquet(parquet(path, rows)["data"])},
    "Zarr": in_zarr,
    "CSV": csv,
}


@pytest.mark.parametrize("keys", ["integers", "texts"])
@pytest.mark.parametrize("source", SOURCES)
def test_the_covariance_is_the_same_in_every_container(source, keys, whole, tmp_path):
    rows = texts(FRAME) if keys == "texts" else FRAME
    result = fitted(**SOURCES[source](tmp_path, rows[["t", "y", "g"]]))
    assert result.n_groups == GROUPS
    np.testing.assert_allclose(result.pcov, whole.pcov, rtol=1e-8)


def test_workers_and_threads_agree_to_the_bit(client):
    frame = dd.from_pandas(texts(FRAME), npartitions=70)  # the tree has three levels
    options = {"p0": (2.0, 1.0, 0.0), "cov_type": "cluster", "groups": "g", "tier": "chunked"}
    there = dask_nlsq.fit(decay, data=frame, client=client, **options)
    threads = dask_nlsq.fit(decay, data=frame, client=False, **options, cache="none")
    assert there.provenance["executor"] != threads.provenance["executor"]
    assert there.pcov.tobytes() == threads.pcov.tobytes()


MISSING = {"nullable integers": pd.NA, "texts": None, "days": pd.NaT, "categories": None, "floats": np.nan}


@pytest.mark.parametrize("kind", MISSING)
def test_a_missing_group_is_as_a_missing_x(kind, whole):
    keys = pd.Series(KEYS[kind](CODES))
    without = FRAME[:7].assign(g=pd.Series([MISSING[kind]] * 7, dtype=keys.dtype))
    rows = pd.concat([FRAME.assign(g=keys), without], ignore_index=True)
    omitted = fitted(data=rows, nan_policy="omit")
    assert omitted.n_dropped == 7
    np.testing.assert_allclose(omitted.pcov, whole.pcov, rtol=1e-9)
    with pytest.raises(DataError, match=r"7 of 1507 cells are not finite.*column g"):
        fitted(data=rows)


def test_a_column_may_be_x_and_groups_too():
    rows = FRAME.assign(x=FRAME["g"].astype("f4"))
    named = fitted("a + b*x", rows, groups="x")
    beside = fitted("a + b*x", rows, groups="g")
    assert named.n_groups == GROUPS and named.pcov.tobytes() == beside.pcov.tobytes()


def test_what_a_result_says_of_its_groups(whole, tmp_path):
    assert "standard errors     cluster-robust, 25 groups" in str(whole) and "25 groups" in whole._repr_html_()
    assert whole.provenance["groups"] == "g" and "(J" not in str(whole.notes)
    whole.save(tmp_path / "one.zip")
    again = dask_nlsq.FitResult.load(tmp_path / "one.zip", model=decay)
    assert again == whole and again.n_groups == GROUPS and again.conf_int().equals(whole.conf_int())
    assert again.predict(FRAME[["t"]]).equals(whole.predict(FRAME[["t"]]))
    reach = whole.confidence_band(FRAME[["t"]]).eval("upper - predicted") / again.summary()["stderr"].mean()
    assert (reach > 0).all()


def test_groups_are_no_x_for_diagnostics_and_plots(whole):
    assert len(whole._residual_summary.by_column) == 1
    assert not whole.diagnostics().table.index.str.contains("g$").any()


def test_a_checkpoint_and_the_cache_give_the_same_again(tmp_path, whole):
    stored = [fitted(checkpoint=str(tmp_path / "state")) for _ in range(2)]
    kept = [fitted(cache_dir=str(tmp_path / "cache")) for _ in range(2)]
    assert stored == [whole, whole] and kept == [whole, whole] and kept[1].provenance["cache"]["hit"]
    other = fitted(data=FRAME.assign(g=CODES // 2), cache_dir=str(tmp_path / "cache"))
    assert other.n_groups == 13 and not other.provenance["cache"]["hit"]
    with pytest.raises(NlsqError, match="groups: 'g' there, 'h' here"):
        fitted(data=FRAME.assign(h=CODES), groups="h", checkpoint=str(tmp_path / "state"))


def test_the_command_line(tmp_path, whole):
    FRAME.to_parquet(tmp_path / "rows.parquet")
    options = ["--cov-type", "cluster", "--groups", "g", "--p0", "a=2,b=1,c=0", "-o", str(tmp_path / "r.zip")]
    ran = CliRunner().invoke(main, ["fit", str(tmp_path / "rows.parquet"), "-m", "a*exp(-b*t) + c", *options])
    assert ran.exit_code == 0 and "cluster-robust, 25 groups" in ran.output
    np.testing.assert_allclose(dask_nlsq.FitResult.load(tmp_path / "r.zip").pcov, whole.pcov, rtol=1e-8)


def test_variants_of_a_study(whole, tmp_path):
    variants = {"groups": {"cov_type": "cluster", "groups": "g"}, "rows": {"cov_type": "sandwich"}}
    common = {**parquet(tmp_path, FRAME), "model": "a*exp(-b*t) + c", "p0": {"a": 2.0, "b": 1.0, "c": 0.0}}
    done = dask_nlsq.study(variants, **common, cache="none")
    np.testing.assert_allclose(done["groups"].pcov, whole.pcov, rtol=1e-8)
    assert done["rows"].n_groups is None


def test_few_groups_are_told():
    with pytest.warns(NlsqWarning, match="There are 3 groups and 3 parameters.*singular"):
        result = fitted(data=FRAME.assign(g=CODES % 3))
    assert "More groups than parameters are needed" in str(result)


LARGE = np.array([2**53, 1, 2])
BAD = {
    "no groups": ({"groups": None}, NlsqError, 'cov_type="cluster" needs groups='),
    "another covariance": ({"cov_type": "sandwich"}, NlsqError, 'groups= is for cov_type="cluster"'),
    "no such covariance": ({"cov_type": "clusters"}, NlsqError, 'cov_type is .clusters.; "standard", "sandwich" or'),
    "no such column": ({"groups": "h"}, DataError, "no column 'h'"),
    "an array beside data": ({"groups": CODES}, DataError, "groups must be the name of a column; it is a ndarray"),
    "a name beside arrays": ({"x": T, "y": T, "data": None}, DataError, "groups is the name 'g'"),
    "a number": ({"x": T, "y": T, "data": None, "groups": 3}, DataError, "the group of each row is needed"),
    "two at once": ({"x": T, "y": T, "data": None, "groups": np.stack([T, T], 1)}, DataError, "shape .1500, 2."),
    "another length": ({"x": T, "y": T, "data": None, "groups": CODES[1:]}, DataError, "unlike lengths"),
    "one group": ({"data": FRAME.assign(g=1)}, DataError, "All rows are of one group"),
    "large integers": ({"data": FRAME.assign(g=CODES + 2**53)}, DataError, r"reach 2\*\*53.*astype\(str\)"),
    "nanoseconds": ({"data": FRAME.assign(g=pd.to_timedelta(CODES, "ns"))}, DataError, "fractions of a microsecond"),
    "complex": ({"data": FRAME.assign(g=CODES + 0j)}, DataError, "have dtype complex128"),
    "mixed objects": ({"data": FRAME.assign(g=[1, "a"] * 750)}, DataError, "are objects of the type 'mixed"),
    "intervals": ({"data": FRAME.assign(g=pd.cut(T, 5))}, DataError, "objects of the type 'interval'"),
    "streaming": ({"tier": "streaming"}, NlsqError, 'cov_type="standard"'),
    "a precision": ({"precision": 0.1}, NlsqError, 'cov_type="standard"'),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    options, error, message = BAD[name]
    with pytest.raises(error, match=message):
        fitted(**options)


def test_several_data_sets_are_refused():
    sets = [{"model": decay, "data": FRAME, "p0": (2.0, 1.0, 0.0)}] * 2
    with pytest.raises(NlsqError, match="cov_type= is for one data set"):
        dask_nlsq.fit(sets, cov_type="cluster", groups="g")


@pytest.mark.parametrize("method", ["profile", "conf_int"])
def test_there_is_no_profile(method, whole):
    with pytest.raises(NlsqError, match="A profile takes rows for independent"):
        whole.profile("a") if method == "profile" else whole.conf_int(method="profile")


@pytest.mark.slow
def test_intervals_cover_where_rows_of_a_group_are_alike():
    """Of 300 fits of 40 groups, 95 % cover but for three standard errors; those of independent rows do not."""
    rng, t, g = np.random.default_rng(1), np.tile(np.linspace(0, 4, 20), 40), np.repeat(np.arange(40), 20)
    hits = {"cluster": 0, "standard": 0}
    for _ in range(300):
        y = 3 * np.exp(-1.3 * t) + 0.5 + 0.2 * rng.standard_normal(40)[g] + 0.1 * rng.standard_normal(800)
        for kind in hits:
            groups = g if kind == "cluster" else None
            result = fitted(data=None, x=t, y=y, cov_type=kind, groups=groups)
            lower, upper = result.conf_int().loc["c"]
            hits[kind] += lower < 0.5 < upper
    assert abs(hits["cluster"] / 300 - 0.95) < 3 * np.sqrt(0.95 * 0.05 / 300) and hits["standard"] < 240
