"""Diagnostics: what is found where something is wrong, nothing where nothing is, and the numbers behind it."""

import functools

import dask.dataframe as dd
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import dask_nlsq
from dask_nlsq import NlsqError

RNG = np.random.default_rng(5)
N = 4_000
X = np.sort(RNG.uniform(0, 4, N))
NOISE = RNG.normal(0, 0.1, N)
RIGHT = 2 * np.exp(-X) + 0.5
MODEL, P0 = "a * exp(-b*x) + c", {"a": 1.0, "b": 0.5, "c": 0.0}


def walk(noise, share):
    """Noise whose neighbours are alike."""
    out = np.empty_like(noise)
    last = 0.0
    for i, value in enumerate(noise):
        last = out[i] = share * last + value
    return out


FAULTS = {
    "nothing": (RIGHT + NOISE, {}, []),
    "another curve": (RIGHT + 0.2 * np.sin(3 * X) + NOISE, {}, ["mean against x", "mean against the fit"]),
    "noise that grows": (RIGHT + NOISE * (0.2 + X), {}, ["spread against x", "spread against the fit", "normality"]),
    "neighbours alike": (RIGHT + walk(NOISE, 0.7), {}, ["autocorrelation"]),
    "no convergence": (RIGHT + NOISE, {"max_nfev": 1}, ["convergence"]),
    "a sigma too small": (RIGHT + NOISE, {"sigma": 0.03, "absolute_sigma": True}, ["chi-square"]),
    "outliers": (RIGHT + NOISE + (np.arange(N) % 97 == 0) * 2.0, {}, ["normality"]),
    "a bound": (RIGHT + NOISE, {"bounds": {"c": (-1.0, 0.4)}}, ["bound of c"]),
}


@functools.cache
def diagnosed(name):
    y, options, _ = FAULTS[name]
    frame = dd.from_pandas(pd.DataFrame({"x": X, "y": y}), npartitions=4)
    return frame.nlsq.fit(MODEL, y="y", p0=P0, **options).diagnostics()


@pytest.mark.parametrize("name", FAULTS)
def test_what_is_wrong_is_found(name):
    found = diagnosed(name).table["finding"]
    assert set(FAULTS[name][2]) <= set(found.index[found != ""])


def test_nothing_is_found_where_nothing_is_wrong():
    assert diagnosed("nothing").findings == []
    assert "nothing out of the ordinary" in str(diagnosed("nothing"))


def test_what_is_found_is_printed():
    assert 'cov_type="sandwich"' in str(diagnosed("noise that grows"))
    assert "1 with a finding" in repr(diagnosed("outliers")) or "findings" in repr(diagnosed("outliers"))


SIZES = {"few": 4_900, "many": 5_100}
"""Of few rows each is kept, of many their counts."""


def findings_of(rows, change):
    x = np.random.default_rng(1).uniform(0, 4, rows)
    noise = np.random.default_rng(2).normal(0, 0.1, rows)
    y, options = change(x, noise)
    frame = dd.from_pandas(pd.DataFrame({"x": x, "y": y}), npartitions=5)
    found = frame.nlsq.fit("a + b*x", y="y", **options).diagnostics().table["finding"]
    return set(found.index[found != ""])


EDGES = {
    "noise": lambda x, e: (1 + 2 * x + e, {}),
    "outliers": lambda x, e: (1 + 2 * x + e + 500 * (np.arange(len(x)) % 1000 == 7), {}),
    "no noise": lambda x, e: (1 + 2 * x, {}),
    "nothing": lambda x, e: (0 * x, {}),
    "a sigma 100 times too small": lambda x, e: (1 + 2 * x + e, {"sigma": 0.001, "absolute_sigma": True}),
    "a sigma 200 times too large": lambda x, e: (1 + 2 * x + e, {"sigma": 20.0, "absolute_sigma": True}),
}


@pytest.mark.crossed(2)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", EDGES)
def test_the_same_is_found_in_few_rows_and_in_many(name):
    few, many = (findings_of(rows, EDGES[name]) for rows in SIZES.values())
    assert few == many


def test_an_unlike_partition_is_named():
    frame = pd.DataFrame({"x": X, "y": RIGHT + NOISE * np.where((np.arange(N) // 1000) == 2, 2.0, 1.0)})
    result = dd.from_pandas(frame, npartitions=4).nlsq.fit(MODEL, y="y", p0=P0)
    assert "partition 2" in result.diagnostics().table.loc["outlying partition", "finding"]


def test_numbers_are_those_of_all_rows():
    frame = pd.DataFrame({"x": X, "y": RIGHT + NOISE})
    result = dask_nlsq.fit(MODEL, data=frame, y="y", p0=P0)
    table, z = result.diagnostics().table, result.residuals(frame).to_numpy() / result.redchi**0.5
    assert np.isclose(table.loc["autocorrelation", "statistic"], (z[1:] @ z[:-1]) / (N - 1) / np.mean(z**2), rtol=1e-6)
    assert np.isclose(table.loc["normality", "statistic"], stats.jarque_bera(z).statistic, rtol=1e-6)


@pytest.mark.slow
def test_two_exponentials_that_are_hardly_two():
    x = np.linspace(0, 4, 400)
    y = 2 * np.exp(-x) + np.exp(-1.4 * x) + np.random.default_rng(0).normal(0, 0.02, 400)
    result = dask_nlsq.fit("a*exp(-b*x) + c*exp(-d*x)", x, y, p0={"a": 1.0, "b": 1.0, "c": 1.0, "d": 2.0})
    table = result.diagnostics().table
    assert {"correlation", "skewness"} <= set(table.index[table["finding"] != ""])


def test_a_redundant_pair_is_named():
    x = np.linspace(0, 1, 50)
    with pytest.warns(match="do not determine"):
        result = dask_nlsq.fit("a * b * x + c", x, 2 * x + 1, p0={"a": 1.0, "b": 1.0, "c": 0.0})
    assert "do not determine a, b" in str(result.diagnostics())


CURVES = {
    "decay": (lambda x, p: p[0] * jnp.exp(-p[1] * x) + p[2], "a * exp(-b*x) + c", P0, [2.5, 1.3, 0.5]),
    "growth": (lambda x, p: p[0] * x / (p[1] + x), "v * x / (k + x)", {"v": 1.0, "k": 1.0}, [2.0, 0.7]),
    "line": (lambda x, p: p[0] + p[1] * x, "a + b*x", {"a": 0.0, "b": 1.0}, [1.0, 2.0]),
}


@pytest.mark.crossed
@pytest.mark.parametrize("name", CURVES)
def test_skewness_is_that_of_second_derivatives(name):
    """Hougaard's sum over the rows, with the Hessian of the model from JAX."""
    function, text, p0, truth = CURVES[name]
    x = np.linspace(0.1, 4, 20)
    y = np.asarray(function(x, truth)) + np.random.default_rng(3).normal(0, 0.1, 20)
    result = dask_nlsq.fit(text, x, y, p0=p0)
    with jax.enable_x64(True):
        theta = jnp.asarray(result.popt)
        jac = np.asarray(jax.jit(jax.jacfwd(lambda p: function(x, p)))(theta))
        second = np.asarray(jax.jit(jax.hessian(lambda p: function(x, p)))(theta))
    inverse = np.linalg.inv(jac.T @ jac)
    w = np.einsum("mj,mkl->jkl", jac, second)
    third = -(result.redchi**2) * 3 * np.einsum("ij,ik,il,jkl->i", inverse, inverse, inverse, w)
    expected = third / (result.redchi * np.diag(inverse)) ** 1.5
    assert np.allclose(result.skewness(), expected, rtol=1e-4, atol=1e-7)


NO_SKEWNESS = {
    "a robust loss": {"loss": "huber"},
    "an early stop": {"max_nfev": 1},
}


@pytest.mark.parametrize("name", NO_SKEWNESS)
def test_skewness_is_refused(name):
    result = dask_nlsq.fit(MODEL, X, RIGHT + NOISE, p0=P0, **NO_SKEWNESS[name])
    with pytest.raises(NlsqError):
        result.skewness()
    assert "skewness" not in result.diagnostics().table.index


@pytest.mark.slow
def test_probabilities_are_those_of_noise():
    """Of 200 fits to noise, a p-value lies below 0.1 in about 20."""
    low = []
    for seed in range(200):
        x = np.random.default_rng(seed).uniform(0, 4, 800)
        y = 2 * np.exp(-x) + 0.5 + np.random.default_rng(seed + 1000).normal(0, 0.1, 800)
        frame = dd.from_pandas(pd.DataFrame({"x": x, "y": y}), npartitions=3)
        low.append(frame.nlsq.fit(MODEL, y="y", p0=P0).diagnostics().table["pvalue"].dropna() < 0.1)
    share = pd.concat(low, axis=1).mean(axis=1)
    # A binomial share of 200 spreads by 0.021; cells take away a few degrees of freedom that the fit has used.
    assert ((share > 0.01) & (share < 0.2)).all(), share
