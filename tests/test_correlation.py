"""Correlated rows: generalised least squares and maximum likelihood against dense matrices, statsmodels, any layout."""

from itertools import pairwise

import dask.array as da
import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import zarr
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import dask_nlsq
from dask_nlsq._errors import DataError, NlsqError
from dask_nlsq._kernel import Block
from dask_nlsq._sources import Grouping, LastRows, Neighbours
from dask_nlsq.cli import main

KINDS = ("ar1", "exchangeable")
RNG = np.random.default_rng(4)
SIZES = RNG.integers(1, 15, 40)
GROUP = np.repeat(np.arange(40), SIZES)
ROWS = len(GROUP)


def matrix(kind, rho, n):
    i = np.arange(n)
    return rho ** np.abs(i[:, None] - i) if kind == "ar1" else (1 - rho) * np.eye(n) + rho


def noise(kind, rho, rng=RNG):
    return np.concatenate([np.linalg.cholesky(matrix(kind, rho, n)) @ rng.standard_normal(n) for n in SIZES])


def decay(t, a, b, c):
    return a * jnp.exp(-b * t) + c


def values(theta, t):
    a, b, c = theta
    return a * np.exp(-b * t) + c


T = RNG.uniform(0, 4, ROWS)
SIGMA = RNG.uniform(0.05, 0.2, ROWS)
TRUTH = (3.0, 1.3, 0.5)
FRAMES = {
    kind: pd.DataFrame({"t": T, "y": values(TRUTH, T) + SIGMA * noise(kind, 0.6), "s": SIGMA, "g": GROUP})
    for kind in KINDS
}


def fitted(kind, data=None, **options):
    data = FRAMES[kind] if data is None else data
    options = {"groups": "g", "p0": (2.0, 1.0, 0.0), "sigma": "s", "client": False} | options
    return dask_nlsq.fit(options.pop("model", decay), data=data, **options)


def whitened(kind, rho, frame, theta):
    z = (values(theta, frame["t"].to_numpy()) - frame["y"].to_numpy()) / frame["s"].to_numpy()
    pieces = np.split(z, np.cumsum(SIZES)[:-1])
    return np.concatenate([np.linalg.solve(np.linalg.cholesky(matrix(kind, rho, len(r))), r) for r in pieces])


@pytest.mark.crossed(4)
@pytest.mark.parametrize("absolute_sigma", [False, True])
@pytest.mark.parametrize("rho", [0.6, -0.05])
@pytest.mark.parametrize("kind", KINDS)
def test_with_a_known_correlation_it_is_least_squares_of_whitened_rows(kind, rho, absolute_sigma):
    ours = fitted(kind, correlation={kind: rho}, absolute_sigma=absolute_sigma)
    theirs = scipy.optimize.least_squares(
        lambda theta: whitened(kind, rho, FRAMES[kind], theta), TRUTH, xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    s2 = 1.0 if absolute_sigma else 2 * theirs.cost / (ROWS - 3)
    covariance = s2 * np.linalg.inv(theirs.jac.T @ theirs.jac)
    np.testing.assert_allclose(ours.popt, theirs.x, atol=1e-6 * np.sqrt(np.diag(covariance)).min())
    np.testing.assert_allclose(ours.pcov, covariance, rtol=1e-6)
    assert ours.chisqr == pytest.approx(2 * theirs.cost, rel=1e-9) and ours.row_correlation == {kind: rho}


def deviance(kind, absolute_sigma, v):
    """Return -2 log L at the parameters, the correlation and the logarithm of the factor of sigma."""
    rho, scale = np.tanh(v[3]), 1.0 if absolute_sigma else np.exp(v[4])
    e = whitened(kind, rho, FRAMES[kind], v[:3]) / scale
    determinants = sum(np.linalg.slogdet(matrix(kind, rho, n))[1] for n in SIZES)
    return e @ e + determinants + 2 * np.log(scale * SIGMA).sum() + ROWS * np.log(2 * np.pi)


@pytest.mark.parametrize("absolute_sigma", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_estimated_with_the_parameters_it_is_that_of_maximum_likelihood(kind, absolute_sigma):
    ours = fitted(kind, correlation=kind, absolute_sigma=absolute_sigma)
    start = [*TRUTH, np.arctanh(0.6), *([] if absolute_sigma else [0.0])]
    theirs = scipy.optimize.minimize(lambda v: deviance(kind, absolute_sigma, v), start, options={"gtol": 1e-6})
    np.testing.assert_allclose(ours.popt, theirs.x[:3], atol=1e-5)
    assert ours.row_correlation[kind] == pytest.approx(np.tanh(theirs.x[3]), abs=1e-5)
    assert -2 * ours.loglik == pytest.approx(theirs.fun, rel=1e-9)
    assert ours.aic == pytest.approx(theirs.fun + 2 * len(start), rel=1e-9)


def test_a_linear_trend_in_one_series_has_what_statsmodels_finds():
    api = pytest.importorskip("statsmodels.tsa.api", reason="statsmodels comes with the extra `examples`")
    rng = np.random.default_rng(0)
    t, e = np.linspace(0, 1, 300), np.zeros(300)
    for i in range(1, 300):
        e[i] = 0.7 * e[i - 1] + rng.standard_normal()
    y = 1 + 2 * t + e
    theirs = api.SARIMAX(y, np.stack([np.ones(300), t], 1), order=(1, 0, 0))
    ours = dask_nlsq.fit("a + b*t", {"t": t}, y, correlation="ar1", client=False)
    rho = ours.row_correlation["ar1"]
    at_ours = [*ours.popt, rho, ours.chisqr / 300 * (1 - rho**2)]
    assert theirs.loglike(at_ours) == pytest.approx(ours.loglik, rel=1e-12)
    assert np.abs(theirs.score(at_ours)).max() < 1e-4


def test_a_random_intercept_has_what_statsmodels_finds():
    mixed = pytest.importorskip("statsmodels.api", reason="statsmodels comes with the extra `examples`").MixedLM
    frame = FRAMES["exchangeable"].assign(y=1 + 2 * T + noise("exchangeable", 0.6, np.random.default_rng(1)))
    theirs = mixed(frame["y"], np.stack([np.ones(ROWS), T], 1), groups=GROUP).fit(reml=False)
    ours = fitted("exchangeable", frame, model="a + b*t", p0=None, sigma=None, correlation="exchangeable")
    between = float(np.squeeze(theirs.cov_re))
    assert ours.row_correlation["exchangeable"] == pytest.approx(between / (between + theirs.scale), rel=1e-3)
    assert ours.loglik == pytest.approx(theirs.llf, abs=1e-5)
    np.testing.assert_allclose(ours.popt, theirs.fe_params, rtol=1e-4)


def interleaved(frame):
    """The rows of all groups in one order, those of each in theirs."""
    order = np.argsort(np.random.default_rng(1).uniform(size=len(frame)))
    kept = np.empty(len(frame), int)
    kept[order] = np.argsort(frame["g"].to_numpy()[order], kind="stable")
    shuffled = frame["g"].to_numpy()[order]
    rows = {g: iter(np.flatnonzero(frame["g"] == g)) for g in np.unique(shuffled)}
    return frame.iloc[[next(rows[g]) for g in shuffled]].reset_index(drop=True)


LAYOUTS = {
    "pandas, in seven partitions": lambda frame, path: dd.from_pandas(frame, npartitions=7),
    "interleaved": lambda frame, path: interleaved(frame),
    "interleaved, in partitions": lambda frame, path: dd.from_pandas(interleaved(frame), npartitions=5),
    "texts": lambda frame, path: frame.assign(g="group " + frame["g"].astype(str)),
    "Parquet": lambda frame, path: dd.from_pandas(frame, npartitions=4).to_parquet(path) or str(path),
    "shuffled by Dask": lambda frame, path: (
        dd.from_pandas(frame, npartitions=3).set_index("g", sorted=True).reset_index()
    ),
}


@pytest.fixture(scope="module")
def whole():
    """The fits of all rows in memory."""
    return {kind: fitted(kind, correlation=kind) for kind in KINDS}


@pytest.mark.crossed(6)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_partitions_and_the_order_of_groups_do_not_matter(layout, kind, whole, tmp_path):
    result = fitted(kind, LAYOUTS[layout](FRAMES[kind], tmp_path), correlation=kind)
    np.testing.assert_allclose(result.popt, whole[kind].popt, rtol=1e-8)
    np.testing.assert_allclose(result.pcov, whole[kind].pcov, rtol=1e-6)
    assert result.row_correlation[kind] == pytest.approx(whole[kind].row_correlation[kind], abs=1e-8)


ARRAYS = {
    "NumPy": lambda a: a,
    "Dask": lambda a: da.from_array(a, chunks=100),
    "Zarr": lambda a: zarr.array(a, chunks=(100,)),
}


@pytest.mark.crossed(2)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("container", ARRAYS)
def test_arrays_hold_groups_beside_x_and_y(container, kind, whole):
    t, y, s, g = (ARRAYS[container](FRAMES[kind][name].to_numpy()) for name in ("t", "y", "s", "g"))
    result = dask_nlsq.fit(decay, t, y, sigma=s, groups=g, p0=(2.0, 1.0, 0.0), correlation=kind, client=False)
    np.testing.assert_allclose(result.popt, whole[kind].popt, rtol=1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cluster_finds_the_bits_of_this_process(kind, client):
    frame = dd.from_pandas(FRAMES[kind], npartitions=5)
    there, here = (fitted(kind, frame, correlation=kind, client=where) for where in (client, False))
    assert there.popt.tobytes() == here.popt.tobytes() and there.pcov.tobytes() == here.pcov.tobytes()


@given(st.lists(st.integers(0, 3), min_size=1, max_size=30), st.data())
def test_each_row_has_the_one_before_it_in_its_group(keys, data):
    cuts = sorted(data.draw(st.sets(st.integers(0, len(keys)))) | {0, len(keys)})
    block, grouping = (
        Block((np.arange(len(keys)) + 0.0, np.array(keys, float)), np.arange(len(keys)) + 0.0),
        Grouping(1, 1),
    )
    seen, found = LastRows.of(block.take(slice(0, 0)), grouping), []
    for start, stop in pairwise(cuts):
        piece = block.take(slice(start, stop))
        rows = Neighbours(seen, LastRows.of(piece, grouping).order).whitened(piece, grouping)
        found += [int(before) if linked else None for before, linked in zip(rows.x[2], rows.x[-1], strict=True)]
        seen = seen.followed_by(LastRows.of(piece, grouping))
    expected = [next((j for j in range(i - 1, -1, -1) if keys[j] == keys[i]), None) for i in range(len(keys))]
    assert found == expected


OPTIONS = {
    "a bound": {"bounds": {"c": (-9.0, 0.45)}},
    "a fixed parameter": {"fixed": {"c": 0.5}},
    "a tie": {"model": "a*exp(-b*t) + c", "p0": {"a": 2.0, "b": 1.0, "c": 0.0}, "tied": {"c": "a / 6"}},
    "several starts": {"n_starts": 4, "bounds": ([0, 0, -1], [9, 9, 1])},
    "streaming": {"goal": "memory_efficient"},
    "clusters": {"cov_type": "cluster"},
}


@pytest.mark.crossed(4)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OPTIONS)
def test_it_goes_with_other_options(name, kind):
    result = fitted(kind, correlation=kind, **OPTIONS[name])
    assert result.success and 0.4 < result.row_correlation[kind] < 0.8
    np.testing.assert_allclose(result.popt, TRUTH, atol=0.15)


def test_differences_find_what_derivatives_find():
    ours, differences = (fitted("ar1", correlation="ar1", jac=jac) for jac in ("jax", "3-point"))
    np.testing.assert_allclose(differences.popt, ours.popt, rtol=1e-6)
    np.testing.assert_allclose(differences.pcov, ours.pcov, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_result_predicts_and_is_saved_as_any_other(kind, whole, tmp_path):
    result, frame = whole[kind], FRAMES[kind]
    np.testing.assert_allclose(result.predict(frame), values(result.popt, T), rtol=1e-12)
    np.testing.assert_allclose(result.residuals(frame), frame["y"] - values(result.popt, T), atol=1e-12)
    result.save(tmp_path / "result")
    read = dask_nlsq.FitResult.load(tmp_path / "result", model=decay)
    assert read.row_correlation == result.row_correlation and "correlation" in result.report()


def test_a_profile_is_that_of_the_correlation_found(whole):
    half = whole["ar1"].conf_int(method="profile")["upper"] - whole["ar1"].popt
    np.testing.assert_allclose(half, whole["ar1"].conf_int()["upper"] - whole["ar1"].popt, rtol=0.05)
    with pytest.raises(NlsqError, match="A profile leaves the estimates"):
        whole["exchangeable"].conf_int(method="profile")


def test_the_residuals_that_are_drawn_are_those_of_the_rows(whole):
    checks = whole["ar1"].diagnostics().table
    assert checks.loc["autocorrelation", "statistic"] > 0.3 and not checks.loc["autocorrelation", "finding"]


def test_each_round_is_kept(tmp_path):
    first, second = (fitted("exchangeable", correlation="exchangeable", cache_dir=tmp_path) for _ in range(2))
    assert second.provenance["cache"]["hit"] and second.popt.tobytes() == first.popt.tobytes()


def with_cell(column, value):
    frame = FRAMES["ar1"].copy()
    frame[column] = frame[column].astype(float)
    frame.loc[7, column] = value
    return frame


REFUSED = {
    "an unknown kind": ({"correlation": "ar2"}, "correlation is 'ar2'"),
    "two kinds": ({"correlation": {"ar1": 0.1, "exchangeable": 0.1}}, "one kind with its number"),
    "one that is no number": ({"correlation": {"ar1": "much"}}, "a number between -1 and 1"),
    "one of 1": ({"correlation": {"ar1": 1.0}}, "a number between -1 and 1"),
    "one that so many rows cannot have": ({"correlation": {"exchangeable": -0.9}}, "any two have more than"),
    "no groups": ({"correlation": "exchangeable", "groups": None}, "needs groups="),
    "groups of one row": ({"correlation": "exchangeable", "groups": "t"}, "No group has two rows"),
    "neighbours of nobody": ({"groups": "t"}, "No group has two rows"),
    "a robust loss": ({"loss": "huber"}, "a robust loss"),
    "counts": ({"loss": "poisson", "sigma": None}, "counts"),
    "errors in x": ({"sigma_x": 0.1}, "sigma_x="),
    "the sandwich": ({"cov_type": "sandwich"}, "sandwich"),
    "gaps": ({"nan_policy": "omit"}, "no neighbours"),
    "a stream": ({"tier": "streaming"}, "streaming"),
    "a checkpoint": ({"checkpoint": "somewhere"}, "checkpoint="),
    "a function": ({"jac": lambda t, a, b, c: 0}, "a function as jac="),
    "several columns of y": (
        {"model": lambda t, a, b, c: (a * t, b * t), "y": ["y", "s"], "sigma": None},
        "several responses",
    ),
    "rows without weight": ({"data": with_cell("s", np.inf)}, "would leave gaps"),
    "a row without a group": ({"data": with_cell("g", np.nan)}, "not finite"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_with_it_is_refused(name):
    options, message = REFUSED[name]
    with pytest.raises((NlsqError, DataError), match=message):
        fitted("ar1", **{"correlation": "ar1"} | options)


ELSEWHERE = {
    "plan": lambda: dask_nlsq.plan("a + b*t", {"t": T}, T, correlation="ar1"),
    "several data sets": lambda: dask_nlsq.fit([{"model": "a + b*t", "x": {"t": T}, "y": T}] * 2, correlation="ar1"),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_only_fit_takes_it(name):
    with pytest.raises(NlsqError, match="correlation= "):
        ELSEWHERE[name]()


def test_a_step_that_leads_too_far_is_shortened():
    """A restricted model leaves means of groups that bend with its parameters."""
    rng = np.random.default_rng(5)
    g, t = np.repeat(np.arange(15), 10), rng.uniform(0, 4, 150)
    y = 3 * np.exp(-t) + 0.5 + 0.2 * rng.standard_normal(150)

    def squares(theta, rho):
        z = (theta[0] * np.exp(-theta[1] * t) - y).reshape(15, 10)
        return (np.linalg.solve(np.linalg.cholesky(matrix("exchangeable", rho, 10)), z.T) ** 2).sum()

    for rho in (0.2, 0.5, 0.8):
        ours = dask_nlsq.fit("a*exp(-b*t)", {"t": t}, y, groups=g, correlation={"exchangeable": rho}, client=False)
        theirs = scipy.optimize.minimize(squares, ours.popt, args=(rho,), method="Nelder-Mead")
        assert ours.success and ours.chisqr == pytest.approx(squares(ours.popt, rho), rel=1e-9)
        assert ours.chisqr <= theirs.fun * (1 + 1e-7)


@pytest.mark.parametrize("exact", [True, False], ids=["no noise", "rows less their means"])
def test_residuals_that_tell_of_no_correlation_are_refused(exact):
    frame = FRAMES["exchangeable"][: ROWS // 4 * 4].assign(g=lambda rows: np.arange(len(rows)) // 4)
    left = frame["y"] - frame.groupby("g")["y"].transform("mean")
    frame, model = frame.assign(y=values(TRUTH, frame["t"]) if exact else left), decay if exact else "a + 0*t"
    message = "meets the rows to rounding" if exact else "The likelihood of the correlation has no maximum"
    with pytest.raises(DataError, match=message):
        fitted(
            "exchangeable",
            frame,
            model=model,
            p0=(2.0, 1.0, 0.0)[: 3 if exact else 1],
            sigma=None,
            correlation="exchangeable",
        )


class Restless:
    """Rows that come in another order each time."""

    def __init__(self, frame):
        self.frame, self.count = frame, 0

    def __call__(self, _):
        self.count += 1
        return self.frame.sample(frac=1.0, random_state=self.count)


def test_rows_that_come_in_another_order_each_time_are_refused():
    moving = dd.from_map(Restless(FRAMES["ar1"]), [0], meta=FRAMES["ar1"])
    with pytest.raises(DataError, match="another order each time"):
        fitted("ar1", moving, correlation="ar1", goal="memory_efficient")


@pytest.mark.parametrize("limit", [{"max_nfev": 2}, {"time_limit": 1e-9}], ids=str)
@pytest.mark.parametrize("given", ["ar1", {"exchangeable": 0.5}], ids=str)
def test_a_fit_that_ends_before_says_so(given, limit):
    kind = given if isinstance(given, str) else "exchangeable"
    result = fitted(kind, correlation=given, p0=(20.0, 10.0, 5.0), **limit)
    assert not result.success and "before the correlation" in result.report()
    with pytest.raises(NlsqError, match="took rows as independent"):
        _ = result.row_correlation


def test_limits_are_those_of_all_rounds():
    calls = []
    fitted("exchangeable", correlation="exchangeable", max_nfev=8, callback=calls.append)
    assert len(calls) <= 9


def test_models_are_compared_with_and_without(whole):
    plain = fitted("ar1", groups=None)
    smaller = fitted("ar1", model=lambda t, a, b: a * jnp.exp(-b * t), p0=(2.0, 1.0), correlation="ar1")
    table = dask_nlsq.compare(plain, whole["ar1"], smaller, names=["plain", "correlated", "smaller"]).table
    assert table.index[0] == "correlated" and table.loc["plain", "delta_aicc"] > 10


@pytest.mark.parametrize("jac", ["3-point", "NumPy"])
def test_means_of_groups_need_derivatives(jac):
    model = decay if jac == "3-point" else lambda t, a, b, c: a * np.exp(-b * np.asarray(t)) + c
    with pytest.raises((NlsqError, DataError), match="needs one that JAX differentiates"):
        fitted("exchangeable", model=model, correlation="exchangeable", jac=None if jac == "NumPy" else jac)


@pytest.mark.parametrize("text", ["ar1", "ar1=0.6"])
def test_the_command_line_takes_it(text, tmp_path):
    FRAMES["ar1"].to_parquet(tmp_path / "rows.parquet")
    arguments = ["fit", tmp_path / "rows.parquet", "-m", "a*exp(-b*t) + c", "-x", "t", "-y", "y", "--sigma", "s"]
    done = CliRunner().invoke(
        main, [*map(str, arguments), "--groups", "g", "--correlation", text], catch_exceptions=False
    )
    assert done.exit_code == 0 and "'ar1' of the rows of a group" in done.output
