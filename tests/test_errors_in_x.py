"""Errors in x: orthogonal distances, against SciPy's least squares of all displacements, York's line, and ODRPACK."""

import dask.array as da
import dask.dataframe as dd
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares

import dask_nlsq
from dask_nlsq._errors import DataError, NlsqError
from dask_nlsq.sklearn import NLSQRegressor

ROWS = 80


def decay(x, a, b):
    return a * jnp.exp(-b * x)


def peak(x, a, c, s):
    return a * jnp.exp(-0.5 * ((x - c) / s) ** 2)


def wave(x, a, b):
    return a * jnp.sin(b * x)


def surface(u, v, a, b, c):
    return a * jnp.exp(-b * u) + c * v**2


# The model, its true parameters, the start, and the standard deviations of each x and of y.
CASES = {
    "a decay": (decay, (3.0, 1.3), (2.0, 1.0), (0.1,), 0.05),
    "a peak": (peak, (3.0, 2.0, 0.4), (2.0, 1.9, 0.5), (0.1,), 0.1),
    "a wave": (wave, (1.0, 3.0), (1.0, 2.9), (0.05,), 0.1),
    "a surface": (surface, (2.0, 1.0, 0.5), (1.0, 1.0, 1.0), (0.05, 0.1), 0.05),
    "a surface of which one x is exact": (surface, (2.0, 1.0, 0.5), (1.0, 1.0, 1.0), (None, 0.1), 0.05),
    "errors of each row": (decay, (3.0, 1.3), (2.0, 1.0), ("rows",), 0.05),
}


def values(model, theta, x):
    with jax.enable_x64(True):
        return np.asarray(model(*map(jnp.asarray, x), *map(float, theta)))


def drawn(name):
    """Return columns x (k, rows), y, and the standard deviations of x (k, rows), 0 where it is exact, and of y."""
    model, theta, _, sigma_x, sigma = CASES[name]
    rng = np.random.default_rng(3)
    x = rng.uniform(0.1, 4.0 if len(sigma_x) == 1 else 2.0, (len(sigma_x), ROWS))
    y = values(model, theta, x) + sigma * rng.standard_normal(ROWS)
    s = np.array([rng.uniform(0.02, 0.2, ROWS) if s == "rows" else np.full(ROWS, s or 0.0) for s in sigma_x])
    return x + s * rng.standard_normal(x.shape), y, s, sigma


def given_sigma(name, s):
    return [s[j] if each == "rows" else each for j, each in enumerate(CASES[name][3])]


def fitted(name, **options):
    model, _, start, _, _ = CASES[name]
    x, y, s, sigma = drawn(name)
    options = {"sigma": sigma, "sigma_x": given_sigma(name, s), "p0": start, "absolute_sigma": True} | options
    return dask_nlsq.fit(model, tuple(x), y, client=False, **options)


def whole(name):
    """Return the parameters, their covariance and χ² of one fit of parameters and all displacements by SciPy."""
    model, _, start, _, _ = CASES[name]
    x, y, s, sigma = drawn(name)
    moves = s > 0

    def residuals(point):
        moved = x.copy()
        moved[moves] += s[moves] * point[len(start) :]
        return np.concatenate([(values(model, point[: len(start)], moved) - y) / sigma, point[len(start) :]])

    found = least_squares(
        residuals, np.concatenate([start, np.zeros(moves.sum())]), "3-point", method="trf", ftol=1e-15, xtol=1e-15,
        gtol=1e-15, x_scale="jac",
    )  # fmt: skip
    p = len(start)
    return found.x[:p], np.linalg.inv(found.jac.T @ found.jac)[:p, :p], 2 * found.cost


@pytest.mark.crossed
@pytest.mark.parametrize("name", CASES)
def test_the_answer_is_that_of_a_fit_of_all_displacements(name):
    result, (theta, cov, chisqr) = fitted(name), whole(name)
    assert result.success and result.chisqr == pytest.approx(chisqr, rel=1e-10)
    np.testing.assert_allclose(result.popt, theta, rtol=2e-7)
    np.testing.assert_allclose(result.pcov, cov, rtol=2e-6, atol=1e-6 * np.abs(cov).max())  # of differences


@pytest.mark.slow
def test_the_line_of_york():
    """Pearson's data with York's weights (doi:10.1139/p66-090), and the line that is known of them to nine digits."""
    x = np.array([0.0, 0.9, 1.8, 2.6, 3.3, 4.4, 5.2, 6.1, 6.5, 7.4])
    y = np.array([5.9, 5.4, 4.4, 4.6, 3.5, 3.7, 2.8, 2.8, 2.4, 1.5])
    of_x = np.array([1000.0, 1000.0, 500.0, 800.0, 200.0, 80.0, 60.0, 20.0, 1.8, 1.0])
    of_y = np.array([1.0, 1.8, 4.0, 8.0, 20.0, 20.0, 70.0, 70.0, 100.0, 500.0])
    result = dask_nlsq.fit(
        "a + b*x",
        x,
        y,
        sigma=of_y**-0.5,
        sigma_x=of_x**-0.5,
        p0={"a": 5.0, "b": -0.5},
        absolute_sigma=True,
        client=False,
    )
    np.testing.assert_allclose(result.popt, [5.47991022, -0.480533407], rtol=2e-9)
    np.testing.assert_allclose(result.stderr, [0.295, 0.058], rtol=2e-3)
    assert result.chisqr == pytest.approx(11.8663532, rel=1e-8)


def frame(name):
    x, y, s, _ = drawn(name)
    return pd.DataFrame({"x": x[0], "y": y, "sx": s[0]})


CONTAINERS = {
    "frame": lambda rows: {"data": rows, "sigma_x": "sx"},
    "Dask frame": lambda rows: {"data": dd.from_pandas(rows, npartitions=7), "sigma_x": {"x": "sx"}},
    "arrays": lambda rows: {
        "x": da.from_array(rows["x"].to_numpy(), chunks=30),
        "y": da.from_array(rows["y"].to_numpy(), chunks=30),
        "sigma_x": da.from_array(rows["sx"].to_numpy(), chunks=30),
    },
}


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_answer_is_the_same_in_every_container(container):
    name = "errors of each row"
    result = dask_nlsq.fit(decay, **CONTAINERS[container](frame(name)), sigma=0.05, p0=(2.0, 1.0), absolute_sigma=True)
    expected = fitted(name)
    np.testing.assert_allclose(result.popt, expected.popt, rtol=1e-10)
    np.testing.assert_allclose(result.pcov, expected.pcov, rtol=1e-8)


@pytest.mark.slow
def test_vanishing_errors_are_those_of_the_plain_fit():
    x, y, _, sigma = drawn("a decay")
    plain = dask_nlsq.fit(decay, x[0], y, sigma=sigma, p0=(2.0, 1.0), client=False)
    result = fitted("a decay", sigma_x=1e-9, absolute_sigma=False)
    np.testing.assert_allclose(result.popt, plain.popt, rtol=1e-9)
    np.testing.assert_allclose(result.pcov, plain.pcov, rtol=1e-8)


OPTIONS = {
    "a robust loss": {"loss": "soft_l1"},
    "a sandwich": {"cov_type": "sandwich"},
    "a bound that holds": {"bounds": {"c": (0.0, 1.95)}},
    "a fixed parameter": {"fixed": {"a": 3.0}},
    "a prior": {"prior": {"s": (0.5, 0.05)}},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", OPTIONS)
def test_the_cost_is_at_its_minimum_with_other_options(name):
    options, result = OPTIONS[name], fitted("a peak", **OPTIONS[name])
    assert result.success
    believed = [name in options.get("prior", {}) for name in result.names]  # and so must stay free
    j = int(np.flatnonzero((result.stderr > 0) & (result.active_mask == 0) & ~np.array(believed))[-1])
    for side in (-0.1, 0.1):
        beside = result.params.iloc[j] + side * result.stderr.iloc[j]
        fixed = options.get("fixed", {}) | {result.names[j]: beside}
        assert fitted("a peak", **options | {"fixed": fixed}).cost > result.cost


def test_the_result_predicts_without_errors_of_x_and_shows_its_residuals(tmp_path):
    name = "errors of each row"
    rows = frame(name)
    result = dask_nlsq.fit(decay, data=rows, sigma=0.05, sigma_x="sx", p0=(2.0, 1.0), client=False)
    np.testing.assert_allclose(result.predict(rows[["x"]]), values(decay, result.popt, [rows["x"]]), rtol=1e-12)
    assert result.confidence_band(rows[["x"]])["lower"].notna().all()
    summary = result._residual_summary
    assert summary.chisqr * result._residual_std**2 == pytest.approx(result.chisqr, rel=1e-9)
    assert len(summary.by_column) == 1 and "R²" not in str(result)
    result.save(tmp_path / "one.json")
    again = dask_nlsq.FitResult.load(tmp_path / "one.json", model=decay)
    np.testing.assert_allclose(again.predict(rows[["x"]]), result.predict(rows[["x"]]), rtol=1e-12)


BAD = {
    "no sigma": ({"sigma": None}, NlsqError, "sigma_x= needs sigma="),
    "zero": ({"sigma_x": 0.0}, DataError, "sigma_x is 0.0; it must be positive"),
    "infinite": ({"sigma_x": np.inf}, DataError, "it must be finite"),
    "a column with a zero": ({"sigma_x": "zero"}, DataError, "sigma_x must be positive and finite; 1 of 80 rows"),
    "a column with a NaN": ({"sigma_x": "missing"}, DataError, "sigma_x must be positive and finite; 1 of 80 rows"),
    "no such column": ({"sigma_x": "nothing"}, DataError, "nothing"),
    "an unknown x": ({"sigma_x": {"z": 0.1}}, DataError, "sigma_x has .'z'.; the columns of x are"),
    "too many": ({"sigma_x": [0.1, 0.2]}, DataError, "sigma_x has 2 entries, and there are 1 columns"),
    "none": ({"sigma_x": {}}, DataError, "names no column that has errors"),
    "complex": ({"sigma_x": 1j}, DataError, "sigma_x must be the name of a column or a number"),
    "counts": ({"loss": "poisson", "sigma": None}, NlsqError, "counts"),
    "many starts": ({"n_starts": 4, "bounds": ([0, 0], [9, 9])}, NlsqError, "goes with one start"),
    "a stream": ({"tier": "streaming"}, NlsqError, "without errors"),
    "derivatives": ({"jac": lambda x, a, b: x}, dask_nlsq.ModelError, "is differentiated by a function"),
    "differences": ({"jac": "3-point"}, dask_nlsq.ModelError, "needs one that JAX differentiates"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_refused(name):
    options, error, message = BAD[name]
    rows = frame("a decay").assign(zero=1.0, missing=1.0)
    rows.loc[5, ["zero", "missing"]] = 0.0, np.nan
    with pytest.raises(error, match=message):
        dask_nlsq.fit(decay, data=rows, p0=(2.0, 1.0), client=False, **{"sigma": 0.05, "sigma_x": 0.1} | options)


def test_a_study_reads_the_errors_of_x():
    rows = frame("errors of each row")
    options = {"data": rows, "p0": {"a": 2.0, "b": 1.0}, "sigma": 0.05, "progress": False}
    variants = {"plain": {}, "of each row": {"sigma_x": "sx"}, "alike": {"sigma_x": 0.1}}
    done = dask_nlsq.study({name: {"model": decay, **more} for name, more in variants.items()}, **options)
    for name, more in variants.items():
        alone = dask_nlsq.fit(decay, **options, **more)
        assert done[name].popt.tobytes() == alone.popt.tobytes()


@pytest.mark.parametrize("seed", range(3))
def test_rows_of_a_right_model_leave_no_doubt(seed):
    """Sorted by x as measured, which holds a part of it, the orthogonal distance would be correlated."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(0, 4, 300)
    x, y = rng.normal(t, 0.1), rng.normal(3 * np.exp(-t), 0.05)
    assert dask_nlsq.fit(decay, x, y, sigma=0.05, sigma_x=0.1, p0=(2.0, 1.0), client=False).notes == ()


@pytest.mark.crossed
@pytest.mark.parametrize("other", [None, 0.2])
def test_other_errors_in_x_are_not_compared(other):
    with pytest.raises(NlsqError, match="compare fits with the same sigma_x"):
        dask_nlsq.compare(fitted("a decay"), fitted("a decay", sigma_x=other))


INTERFACES = {
    "curve_fit": (lambda x, y: dask_nlsq.curve_fit(decay, x, y, sigma_x=0.1), TypeError),
    "fit_many": (lambda x, y: dask_nlsq.fit_many(decay, x, y, sigma_x=0.1), TypeError),
    "StreamingFitter": (lambda x, y: dask_nlsq.StreamingFitter(decay, sigma_x=0.1), TypeError),
    "an estimator without weights": (
        lambda x, y: NLSQRegressor(decay, options={"sigma_x": 0.1}).fit(x[:, None], y),
        NlsqError,
    ),
}


@pytest.mark.parametrize("name", INTERFACES)
def test_interfaces_without_errors_in_x_say_so(name):
    call, error = INTERFACES[name]
    x, y, _, _ = drawn("a decay")
    with pytest.raises(error, match="sigma_x"):
        call(x[0], y)


def test_accessors_and_estimators_pass_the_errors_on():
    rows = frame("a decay").rename(columns={"sx": "dx"})
    options = {"p0": (2.0, 1.0), "absolute_sigma": True}
    expected = fitted("a decay").popt
    weights = np.full(len(rows), 0.05**-2)
    estimator = NLSQRegressor(decay, **options, options={"sigma_x": {"x": 0.1}}).fit(rows[["x"]], rows["y"], weights)
    for container in (rows, rows.to_xarray()):
        result = container.nlsq.fit(decay, sigma=0.05, sigma_x="dx", **options)
        np.testing.assert_allclose(result.popt, expected, rtol=1e-12)
    np.testing.assert_allclose(estimator.result_.popt, expected, rtol=1e-10)


@pytest.mark.slow
def test_two_data_sets_share_a_parameter():
    """The joint answer is at the minimum of the sum of both costs, with the covariance of their common curvature."""
    sets = {}
    for key, name in {"one": "a decay", "two": "errors of each row"}.items():
        x, y, s, sigma = drawn(name)
        sigma_x = {"x": s[0]} if key == "two" else 0.1
        sets[key] = {"model": decay, "x": x[0] + 0.0, "y": y, "sigma": sigma, "sigma_x": sigma_x, "p0": (2.0, 1.0)}
    joint = dask_nlsq.fit(sets, shared="b", absolute_sigma=True, client=False)
    assert joint.success and np.isnan(joint.rsquared) and "R²" not in str(joint)
    at = {key: joint.params[[f"a_{key}", "b"]].to_numpy() for key in sets}

    def cost(key, fixed):
        return dask_nlsq.fit(**sets[key], fixed=fixed, absolute_sigma=True, client=False)

    profiles = [[cost(key, {"b": at[key][1] + step}) for key in sets] for step in (-0.01, 0.0, 0.01)]
    below, here, above = (sum(each.cost for each in row) for row in profiles)
    assert joint.cost == pytest.approx(here, rel=1e-10) and min(below, above) > here
    alone = [dask_nlsq.fit(**each, absolute_sigma=True, client=False) for each in sets.values()]
    weights = [each.stderr["b"] ** -2 for each in alone]
    mean = np.average([each.params["b"] for each in alone], weights=weights)
    assert abs(joint.params["b"] - mean) < 0.1 * joint.stderr["b"]  # the costs are nearly parabolas
    assert joint.stderr["b"] == pytest.approx(sum(weights) ** -0.5, rel=0.02)


def by_odrpack(model, x, y, start, s, sigma):
    """Return the parameters of ODRPACK, their standard errors under `absolute_sigma`, and χ²."""
    odrpack = pytest.importorskip("odrpack", reason="odrpack comes with the extra `examples`")
    several = len(x) > 1
    found = odrpack.odr_fit(
        lambda x, b: values(model, b, np.atleast_2d(x)), x if several else x[0], y, np.array(start),
        weight_x=s**-2 if several else s[0] ** -2, weight_y=sigma**-2, diff_scheme="central", maxit=500,
        sstol=1e-15, partol=1e-14,
    )  # fmt: skip
    return found.beta, np.sqrt(np.diag(found.cov_beta)), found.sum_square


@pytest.mark.parametrize("name", ["a decay", "a peak", "a surface"])
def test_odrpack_finds_the_same(name):
    x, y, s, sigma = drawn(name)
    theta, stderr, _ = by_odrpack(CASES[name][0], x, y, CASES[name][2], s, sigma)
    result = fitted(name)
    np.testing.assert_allclose(result.popt, theta, rtol=1e-6)
    np.testing.assert_allclose(result.stderr, stderr, rtol=1e-6)


# The true parameters are uniform between these limits, and the start lies within a tenth of them.
RANDOM = {
    "a decay": (decay, [(1.0, 4.0), (0.5, 2.0)], 1),
    "a peak": (peak, [(2.0, 4.0), (1.5, 2.5), (0.4, 0.8)], 1),
    "a surface": (surface, [(1.0, 3.0), (0.5, 2.0), (0.3, 1.0)], 2),
}


def differences_from_odrpack(name, seed, n=60):
    """Return how far apart the parameters and standard errors of a random problem are, relative to both."""
    model, limits, k = RANDOM[name]
    rng = np.random.default_rng(seed)
    truth = rng.uniform(*zip(*limits, strict=True))
    x = rng.uniform(0.1, 4.0 / k, (k, n))
    s, sigma = np.full((k, n), 0.05), 0.05
    y = rng.normal(values(model, truth, x), sigma)
    x, start = rng.normal(x, s), truth * rng.uniform(0.9, 1.1, len(truth))
    result = dask_nlsq.fit(model, tuple(x), y, sigma=sigma, sigma_x=0.05, p0=start, absolute_sigma=True, client=False)
    *expected, chisqr = by_odrpack(model, x, y, start, s, sigma)
    if chisqr > result.chisqr * (1 + 1e-9):  # a row of few was moved to the wrong side of the peak: a higher minimum
        *expected, chisqr = by_odrpack(model, x, y, result.popt, s, sigma)
    assert result.chisqr == pytest.approx(chisqr, rel=1e-9)
    pairs = zip((result.popt, result.stderr.to_numpy()), expected, strict=True)
    return [np.max(abs(ours / theirs - 1)) for ours, theirs in pairs]


@pytest.mark.slow
@pytest.mark.parametrize("name", RANDOM)
def test_odrpack_finds_the_same_of_random_problems(name):
    apart = np.array([differences_from_odrpack(name, seed) for seed in range(100)])
    assert (apart < 1e-6).all()


@pytest.mark.slow
def test_a_right_model_leaves_no_findings():
    rng = np.random.default_rng(5)
    x, n = rng.uniform(0.1, 4.0, 20_000), 20_000
    y = values(decay, (3.0, 1.3), [x]) + 0.05 * rng.standard_normal(n)
    result = dask_nlsq.fit(
        decay, x + 0.05 * rng.standard_normal(n), y, sigma=0.05, sigma_x=0.05, p0=(2.0, 1.0), client=False
    )
    assert not [words for words in result.diagnostics().findings if "residual" in words]


@pytest.mark.slow
def test_a_study_of_arrays_tells_their_errors_apart():
    rows = frame("errors of each row")
    x, y = (da.from_array(rows[name].to_numpy(), chunks=30) for name in ("x", "y"))
    unlike = {str(s): {"sigma_x": da.full(ROWS, s, chunks=30)} for s in (0.2, 0.01)}
    options = {"model": decay, "sigma": 0.05, "p0": {"a": 2.0, "b": 1.0}, "progress": False}
    done = dask_nlsq.study(unlike, x, y, **options)
    for s in unlike:
        alone = dask_nlsq.fit(options["model"], x, y, sigma_x=float(s), sigma=0.05, p0=options["p0"])
        np.testing.assert_allclose(done[s].popt, alone.popt, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("sigma_x", [{"u": 1.0}, {"u": "v"}, {"v": 2}], ids=str)
def test_places_of_columns_are_no_standard_deviations(sigma_x):
    rng = np.random.default_rng(6)
    rows = pd.DataFrame({"u": rng.uniform(0.0, 2.0, 200), "v": rng.uniform(0.5, 2.0, 200)})
    rows["y"] = 2 * np.exp(-rows["u"]) + rows["v"] + 0.1 * rng.standard_normal(200)
    result = dask_nlsq.fit("a*exp(-b*u) + v", data=rows, x=["u", "v"], sigma=1.0, sigma_x=sigma_x, p0=[2, 1])
    assert len(result._residual_summary.by_column) == 2
    assert result._residual_summary.chisqr * result._residual_std**2 == pytest.approx(result.chisqr, rel=1e-9)


def test_a_checkpoint_without_errors_in_x_says_nothing_of_them():
    from dask_nlsq._fit.api import resolve_fit
    from dask_nlsq._fit.fingerprints import fingerprint
    from dask_nlsq._fit.options import FitOptions

    x, y, _, _ = drawn("a decay")
    options = FitOptions(decay, x[0], y, p0=(2.0, 1.0), client=False)
    assert fingerprint(resolve_fit(options), options)["sigma_x"] is None  # as in stores that have no such entry


@pytest.mark.parametrize("role", ["sigma", "sigma_x"])
def test_a_name_beside_arrays_is_refused(role):
    x, y, _, _ = drawn("a decay")
    options = {"sigma": 0.05, "sigma_x": 0.1} | {role: "dy"}
    with pytest.raises(DataError, match=f"{role} is the name 'dy', and x and y are arrays"):
        dask_nlsq.fit(decay, x[0], y, p0=(2.0, 1.0), client=False, **options)
