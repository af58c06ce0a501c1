"""Criteria, weights and F-tests of several models, against a computation by hand."""

import functools

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy import stats

import dask_nlsq
from dask_nlsq import DataError, FitResult, NlsqError, NlsqWarning, compare

N = 40
X = np.linspace(0, 2, N)
SIGMA = np.random.default_rng(1).uniform(0.05, 0.2, N)
Y = 1 + 2 * X + 0.3 * X**2 + SIGMA * np.random.default_rng(0).normal(size=N)
FRAME = pd.DataFrame({"x": X, "y": Y, "s": SIGMA, "s2": SIGMA[::-1], "other": Y + X})
DEGREES = {"line": 1, "parabola": 2, "cubic": 3}


@functools.cache
def polynomial(degree, **options):
    return dask_nlsq.fit(dask_nlsq.models.polynomial(degree), data=FRAME, x="x", **options)


def by_hand(degree, sigma, absolute):
    """n, k, χ², log L of a polynomial by linear least squares."""
    design = np.vander(X, degree + 1, increasing=True) / sigma[:, None]
    chisqr = float(np.linalg.lstsq(design, Y / sigma, rcond=None)[1][0])
    if absolute:
        return degree + 1, chisqr, stats.norm.logpdf(np.sqrt(chisqr / N), 0, 1) * N - np.log(sigma).sum()
    spread = np.sqrt(chisqr / N)
    return degree + 2, chisqr, N * stats.norm.logpdf(spread, 0, spread) - np.log(sigma).sum()


@pytest.mark.crossed(2)
@pytest.mark.parametrize(
    ("options", "sigma", "absolute"),
    [
        ({}, np.ones(N), False),
        ({"sigma": "s"}, SIGMA, False),
        ({"sigma": "s", "absolute_sigma": True}, SIGMA, True),
        ({"sigma": 0.1}, np.full(N, 0.1), False),
    ],
    ids=["unweighted", "weighted", "absolute", "one sigma"],
)
def test_the_table_is_that_of_the_textbook(options, sigma, absolute):
    table = compare(*(polynomial(d, **options) for d in DEGREES.values()), names=list(DEGREES)).table
    assert table["aicc"].is_monotonic_increasing and table["weight"].sum() == pytest.approx(1)
    for name, degree in DEGREES.items():
        k, chisqr, loglik = by_hand(degree, sigma, absolute)
        aic = 2 * k - 2 * loglik
        expected = [degree + 1, N, chisqr, chisqr / (N - degree - 1), aic, aic + 2 * k * (k + 1) / (N - k - 1)]
        expected.append(k * np.log(N) - 2 * loglik)
        np.testing.assert_allclose(table.loc[name].iloc[:7].astype(float), expected, rtol=1e-9)
    delta = table["aicc"] - table["aicc"].min()
    np.testing.assert_allclose(table["delta_aicc"], delta)
    np.testing.assert_allclose(table["weight"], np.exp(-delta / 2) / np.exp(-delta / 2).sum())


def test_nested_models_are_tested_by_f():
    tests = compare(*(polynomial(d, sigma="s") for d in (1, 2, 3)), names=list(DEGREES)).f_tests
    assert tests[["restricted", "full"]].values.tolist() == [
        ["line", "parabola"], ["line", "cubic"], ["parabola", "cubic"]
    ]  # fmt: skip
    (_, one, _), (_, other, _) = by_hand(1, SIGMA, False), by_hand(3, SIGMA, False)
    value = (one - other) / 2 / (other / (N - 4))
    row = tests.iloc[1]
    assert row["F"] == pytest.approx(value, rel=1e-9) and (row["dof"], row["dof_full"]) == (2, N - 4)
    assert row["p_value"] == pytest.approx(stats.f.sf(value, 2, N - 4), rel=1e-9)


HELD = {"fixed": ({"fixed": {"c2": 0.0}}, 1), "tied": ({"tied": {"c2": "c1/10"}}, 1), "other": ({}, 0)}


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("name", HELD)
def test_a_model_with_a_parameter_held_is_nested_in_itself(name, read, tmp_path):
    options, pairs = HELD[name]
    results = [polynomial(2), dask_nlsq.fit(dask_nlsq.models.polynomial(2), data=FRAME, x="x", **options)]
    if read:
        results = [FitResult.from_dict(result.to_dict()) for result in results]
    comparison = compare(*results)
    assert len(comparison.f_tests) == pairs and set(comparison.table.index) == {"polynomial(2)", "polynomial(2) (2)"}
    assert results[1].free == (("c0", "c1") if pairs else ("c0", "c1", "c2"))


def test_it_is_shown_as_tables():
    shown = compare(polynomial(1), polynomial(2))
    assert "aicc" in repr(shown) and "F-tests" in repr(shown) and shown._repr_html_().count("<table") == 2
    table, tests = shown
    assert len(table) == 2 and len(tests) == 1


def joint(shared):
    part = {"model": "line", "data": FRAME, "x": "x"}
    return dask_nlsq.fit([part, part | {"y": "other"}], shared=shared)


def test_joint_fits_are_compared():
    table = compare(joint(None), joint("intercept"), names=["apart", "shared"]).table
    assert table["n_parameters"].to_dict() == {"apart": 4, "shared": 3} and (table["n_obs"] == 2 * N).all()


REFUSED = {
    "rows": (lambda: dask_nlsq.fit("line", data=FRAME[1:], x="x"), DataError, "39"),
    "y": (lambda: dask_nlsq.fit("line", data=FRAME, x="x", y="other"), DataError, "observations"),
    "weights": (lambda: polynomial(1, sigma="s"), DataError, "weights"),
    "absolute": (lambda: polynomial(1, absolute_sigma=True), NlsqError, "absolute_sigma"),
    "loss": (lambda: polynomial(1, loss="huber"), NlsqError, "huber"),
    "function": (lambda: polynomial(1, loss=jnp.log1p, f_scale=0.1), NlsqError, "a function"),
    "no result": (lambda: 3, NlsqError, "int"),
}


@pytest.mark.filterwarnings("ignore:The loss")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_compared_is_refused(name):
    make, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        compare(polynomial(2), make())


@pytest.mark.parametrize("names", [["a"], ["a", "a"], ["a", "b", "c"]])
def test_names_are_as_many_as_results(names):
    with pytest.raises(NlsqError, match="2 are needed"):
        compare(polynomial(1), polynomial(2), names=names)


def test_other_weights_of_the_same_sum_are_refused():
    with pytest.raises(DataError, match="weights"):
        compare(polynomial(1, sigma="s"), polynomial(1, sigma="s2"))


def test_a_full_model_that_fits_worse_is_said():
    line, waves = (dask_nlsq.fit(f, X, Y) for f in ("a + c*x", "a*sin(40*x) + b*cos(40*x) + c*cos(60*x)"))
    with pytest.warns(NlsqWarning, match="fits worse"):
        tests = compare(line, waves).f_tests
    assert tests["F"].isna().all()


def test_too_few_rows_for_the_correction_leave_a_weight():
    x, y = X[:6], Y[:6]
    fits = [dask_nlsq.fit(dask_nlsq.models.polynomial(d), x, y) for d in (1, 4)]
    table = compare(*fits).table
    assert table["weight"].tolist() == [1.0, 0.0] and np.isinf(table["aicc"].iloc[1])
