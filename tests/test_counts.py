"""Counts: Poisson and binomial rows, against likelihoods and generalised linear models written out in NumPy."""

import decimal
import functools
import math

import dask
import dask.array as da
import dask.dataframe as dd
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.optimize
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

import dask_nlsq
from dask_nlsq._errors import DataError, NlsqError
from dask_nlsq._model.counts import count_rows, saturated

ROWS = 300
RNG = np.random.default_rng(0)
T = np.sort(RNG.uniform(0.0, 10.0, ROWS))
N = RNG.integers(0, 30, ROWS).astype(float)


def peak(t, base, height, centre, width):
    return base + height * jnp.exp(-0.5 * ((t - centre) / width) ** 2)


def log_linear(t, a, b):
    return jnp.exp(a + b * t)


def logistic(t, a, b):
    return 1 / (1 + jnp.exp(-(a + b * t)))


def chance(t, low, high, middle):
    return low + (high - low) / (1 + jnp.exp(-(t - middle)))


def values(model, theta, t=T):
    with jax.enable_x64(True):
        return np.asarray(model(jnp.asarray(t), *map(float, theta)))


def drawn(model, theta, trials=None):
    mean = values(model, theta)
    rng = np.random.default_rng(1)
    return (rng.poisson(mean) if trials is None else rng.binomial(trials.astype(int), mean)).astype(float)


CASES = {
    "few counts": (peak, (0.2, 3.0, 5.0, 0.4), (1.0, 1.0, 4.5, 0.5), None),
    "many counts": (peak, (2e3, 1e5, 5.0, 0.4), (1e3, 1e5, 4.5, 0.5), None),
    "log-linear": (log_linear, (0.5, -0.3), (0.0, 0.0), None),
    "logistic": (logistic, (-3.0, 0.6), (0.0, 0.0), N),
    "a rise": (chance, (0.1, 0.9, 5.0), (0.2, 0.8, 4.0), N),
    "single trials": (logistic, (-3.0, 0.6), (0.0, 0.0), 1.0),
}
LINEAR = ("log-linear", "logistic")


def case(name):
    model, theta, start, trials = CASES[name]
    each = None if trials is None else np.broadcast_to(trials, ROWS)
    return model, drawn(model, theta, each), start, trials


def fitted(name, **options):
    model, y, start, trials = case(name)
    loss = "poisson" if trials is None else "binomial"
    return dask_nlsq.fit(model, T, y, loss=loss, trials=trials, **{"p0": start, "client": False, **options})


plain = functools.cache(fitted)


def log_likelihood(name, theta):
    model, y, _, trials = case(name)
    mean = values(model, theta)
    return (scipy.stats.poisson.logpmf(y, mean) if trials is None else scipy.stats.binom.logpmf(y, trials, mean)).sum()


def irls(y, trials=None):
    """Fit the generalised linear model of the canonical link by iterated weighted least squares."""
    x, beta = np.column_stack([np.ones(ROWS), T]), np.zeros(2)
    for _ in range(50):
        eta = x @ beta
        mean = np.exp(eta) if trials is None else trials / (1 + np.exp(-eta))
        variance = mean if trials is None else mean * (1 - mean / np.where(trials > 0, trials, 1))
        information = (x * variance[:, None]).T @ x
        beta = beta + np.linalg.solve(information, x.T @ (y - mean))
    return beta, np.linalg.inv(information)


@pytest.mark.crossed
@pytest.mark.parametrize("name", LINEAR)
def test_a_linear_predictor_is_fitted_as_a_generalised_linear_model_is(name):
    _, y, _, trials = case(name)
    beta, cov = irls(y, trials)
    result = plain(name)
    np.testing.assert_allclose(result.popt, beta, rtol=1e-10)
    np.testing.assert_allclose(result.pcov, cov, rtol=1e-8)  # to the digits of the last step


@pytest.mark.crossed(2)
@pytest.mark.parametrize("name", CASES)
def test_the_likelihood_is_at_its_maximum_and_is_what_the_result_says(name):
    result = plain(name)
    assert result.success
    assert result.loglik == pytest.approx(log_likelihood(name, result.popt), rel=1e-11)
    for side in (-0.1, 0.1):
        for j, error in enumerate(result.stderr):
            assert log_likelihood(name, result.popt + side * error * np.eye(len(result.popt))[j]) < result.loglik


@pytest.mark.crossed(4)
@pytest.mark.parametrize("name", CASES)
def test_the_covariance_is_the_inverse_of_the_fisher_information(name):
    model, _, _, trials = case(name)
    result = plain(name)
    steps = 1e-4 * np.diag(result.stderr)
    slopes = [(values(model, result.popt + h) - values(model, result.popt - h)) / (2 * h.sum()) for h in steps]
    slopes, mean = np.array(slopes), values(model, result.popt)
    weight = 1 / mean if trials is None else trials / (mean * (1 - mean))
    np.testing.assert_allclose(result.pcov, np.linalg.inv((slopes * weight) @ slopes.T), rtol=1e-5)


@pytest.mark.parametrize("name", LINEAR)
def test_the_statistics_are_those_of_statsmodels(name):
    sm = pytest.importorskip("statsmodels.api", reason="statsmodels comes with the extra `examples`")
    _, y, _, n = case(name)
    some = np.full(ROWS, True) if n is None else n > 0
    x, family = sm.add_constant(T[some]), sm.families.Poisson() if n is None else sm.families.Binomial()
    seen = y[some] if n is None else np.column_stack([y, n - y])[some]
    glm, result = sm.GLM(seen, x, family=family).fit(tol=1e-14, maxiter=100), plain(name)
    ours = [*result.popt, *result.stderr, result.chisqr, result.pearson_chisqr, result.loglik, result.aic]
    theirs = [*glm.params, *glm.bse, glm.deviance, glm.pearson_chi2, glm.llf, glm.aic]
    assert ours == pytest.approx(theirs, rel=1e-8)
    # Its own scale "X2" leaves the trials out.
    scaled = np.sqrt(np.diag(glm.cov_params(scale=glm.pearson_chi2 / glm.df_resid)))
    assert fitted(name, scale="pearson").stderr.to_numpy() == pytest.approx(scaled, rel=1e-8)


EDGES = np.linspace(0.0, 10.0, 61)


def in_bins(low, high, background, total, centre, width):
    cdf = jax.scipy.special.ndtr
    return background * (high - low) + total * (cdf((high - centre) / width) - cdf((low - centre) / width))


def cumulative(x, background, total, centre, width):
    return background * x + total * scipy.stats.norm.cdf(x, centre, width)


def cumulative_slopes(x, background, total, centre, width):
    z = (x - centre) / width
    density = scipy.stats.norm.pdf(z) * total / width
    return np.array([x, scipy.stats.norm.cdf(z), -density, -density * z])


@pytest.mark.parametrize("noise", [True, False])
def test_a_peak_on_a_background_is_that_of_iminuit(noise):
    iminuit = pytest.importorskip("iminuit", reason="iminuit is no dependency")
    from iminuit import cost

    y = np.diff(cumulative(EDGES, 8.0, 60.0, 5.0, 0.6))
    y = np.random.default_rng(3).poisson(y).astype(float) if noise else y
    result = dask_nlsq.fit(in_bins, (EDGES[:-1], EDGES[1:]), y, p0=(5.0, 50.0, 4.8, 0.5), loss="poisson", client=False)
    likelihood = cost.ExtendedBinnedNLL(y, EDGES, cumulative, grad=cumulative_slopes)
    minuit = iminuit.Minuit(likelihood, *(1.02 * result.popt))
    minuit.strategy, minuit.tol = 2, 1e-10
    minuit.migrad().migrad().hesse()
    assert (abs(np.array(minuit.values) - result.popt) < 1e-6 * result.stderr).all()
    assert minuit.fval == pytest.approx(result.chisqr, rel=1e-11, abs=1e-11)
    # Its errors are those of the curvature that was seen, ours of the expected one; without noise both are the same.
    assert np.array(minuit.errors) == pytest.approx(result.stderr.to_numpy(), rel=0.2 if noise else 1e-3)


def frame(name):
    _, y, _, trials = case(name)
    return pd.DataFrame({"t": T, "y": y} | ({} if trials is None else {"n": np.broadcast_to(trials, ROWS)}))


CONTAINERS = {
    "frame": lambda rows: rows,
    "Dask frame": lambda rows: dd.from_pandas(rows, npartitions=7),
    "arrays": lambda rows: {name: da.from_array(rows[name].to_numpy(), chunks=50) for name in rows},
}


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", ["few counts", "a rise"])
def test_the_answer_is_the_same_in_every_container(name, container):
    model, _, start, trials = case(name)
    loss, n = ("poisson", None) if trials is None else ("binomial", "n")
    data = CONTAINERS[container](frame(name))
    result = dask_nlsq.fit(model, data=data, p0=start, loss=loss, trials=n)
    whole = plain(name)
    np.testing.assert_allclose(result.popt, whole.popt, rtol=1e-9)
    for one in ("chisqr", "pearson_chisqr", "loglik", "aic"):
        assert getattr(result, one) == pytest.approx(getattr(whole, one), rel=1e-9)


@pytest.mark.parametrize("name", ["few counts", "a rise"])
def test_differences_lead_to_the_same(name):
    exact, result = plain(name), fitted(name, jac="3-point")
    np.testing.assert_allclose(result.popt, exact.popt, rtol=1e-7)
    np.testing.assert_allclose(result.pcov, exact.pcov, rtol=1e-5)
    assert result.loglik == pytest.approx(exact.loglik, rel=1e-12)


def test_starts_are_searched_by_the_likelihood():
    bounds = {"base": (0.01, 5.0), "height": (0.01, 20.0), "centre": (0.0, 10.0), "width": (0.05, 3.0)}
    result = fitted("few counts", bounds=bounds, n_starts=8, p0=(1.0, 1.0, 9.0, 0.5))
    np.testing.assert_allclose(result.popt, plain("few counts").popt, rtol=1e-6)


def test_a_dispersion_scales_the_covariance():
    one, scaled = plain("few counts"), fitted("few counts", scale="pearson")
    dispersion = one.pearson_chisqr / one.dof
    np.testing.assert_allclose(scaled.pcov, one.pcov * dispersion, rtol=1e-12)
    assert scaled.loglik == one.loglik and one.absolute_sigma and not scaled.absolute_sigma


def test_data_sets_are_fitted_together_by_their_likelihoods():
    name, whole = "few counts", plain("few counts")
    model, y, start, _ = case(name)
    sets = [{"model": model, "x": T[k::2], "y": y[k::2]} for k in (0, 1)]
    joint = dask_nlsq.fit(sets, shared=whole.names, p0=dict(zip(whole.names, start, strict=True)), loss="poisson")
    np.testing.assert_allclose(joint.popt, whole.popt, rtol=1e-9)
    np.testing.assert_allclose(joint.pcov, whole.pcov, rtol=1e-6)  # to the digits of the last step
    for one in ("chisqr", "pearson_chisqr", "loglik", "aic", "bic"):
        assert getattr(joint, one) == pytest.approx(getattr(whole, one), rel=1e-9)
    assert "the deviance" in joint.parts["0"].notes[-1]


def test_a_prior_counts_as_a_normal_observation():
    result = fitted("few counts", prior={"centre": (5.0, 0.1)})
    expected = log_likelihood("few counts", result.popt) + scipy.stats.norm.logpdf(result.params["centre"], 5.0, 0.1)
    assert result.loglik == pytest.approx(expected, rel=1e-11)


def test_the_profile_follows_the_likelihood():
    name, result = "few counts", plain("few counts")
    low, high = result.conf_int(method="profile").loc["centre"]
    start = np.delete(result.popt, 2)
    for end in (low, high):
        at = scipy.optimize.minimize(
            lambda rest, end=end: -log_likelihood(name, np.insert(rest, 2, end)), start, method="Nelder-Mead",
            options={"xatol": 1e-8, "fatol": 1e-10},
        )  # fmt: skip
        fall = 2 * (result.loglik + at.fun)
        assert fall == pytest.approx(scipy.stats.t.ppf(0.975, result.dof) ** 2, rel=1e-3)


def test_models_of_one_distribution_are_compared():
    comparison = dask_nlsq.compare(plain("log-linear"), fitted("log-linear", fixed=["b"]), names=["slope", "level"])
    assert comparison.table.index[0] == "slope"
    linear = dask_nlsq.fit(log_linear, T, case("log-linear")[1], p0=(0.0, 0.0), client=False)
    with pytest.raises(NlsqError, match="unlike distributions"):
        dask_nlsq.compare(plain("log-linear"), linear)


@pytest.mark.slow
def test_a_study_in_a_file_compares_models_of_counts(tmp_path):
    frame("logistic").to_parquet(tmp_path / "rows.parquet")
    (tmp_path / "study.yaml").write_text(
        f"data: {tmp_path / 'rows.parquet'}\n"
        "options: {loss: binomial, trials: n}\n"
        "variants:\n"
        "  slope: {model: 1/(1 + exp(-(a + b*t))), p0: {a: 0, b: 0}}\n"
        "  level: {model: a + 0*t, p0: {a: 0.5}}\n"
    )
    done = dask_nlsq.StudyFile.read(tmp_path / "study.yaml").run()
    assert done.table.loc["slope", "aic"] == pytest.approx(plain("logistic").aic, rel=1e-9)
    assert len(done.comparisons) == 1 and done.f_tests.loc[0, "restricted"] == "level"


def test_residuals_are_those_of_pearson_and_divided_by_trials():
    result, rows = plain("a rise"), frame("a rise").assign(sigma=0.0)
    rows = rows[rows["n"] > 0]
    dask_result = dask_nlsq.fit(chance, data=rows, p0=(0.2, 0.8, 4.0), loss="binomial", trials="n", client=False)
    np.testing.assert_allclose(dask_result.popt, result.popt, rtol=1e-9)
    residual, weighted = (dask_result.residuals(rows, weighted=each) for each in (False, True))
    p = values(chance, dask_result.popt, rows["t"])
    np.testing.assert_allclose(residual, rows["y"] / rows["n"] - p, atol=1e-12)
    assert (weighted**2).sum() == pytest.approx(dask_result.pearson_chisqr, rel=1e-6)


def test_the_band_of_new_counts_holds_them():
    result = plain("many counts")
    band = result.prediction_band(T)
    y = case("many counts")[1]
    assert 0.9 < np.mean((band.lower < y) & (y < band.upper)) < 0.99


BAD = {
    "negative counts": ({"y": -1.0}, {}, DataError, "Counts must not be negative; 1 of 300"),
    "more than the trials": (
        {"y": 99.0},
        {"loss": "binomial", "trials": "n"},
        DataError,
        "y counts some of the trials",
    ),
    "trials below zero": ({"n": -1.0}, {"loss": "binomial", "trials": "n"}, DataError, "trials must be finite and not"),
    "trials that are NaN": ({"n": np.nan}, {"loss": "binomial", "trials": "n"}, DataError, "trials must be finite"),
    "no trials": ({}, {"loss": "binomial"}, NlsqError, "needs trials="),
    "trials for nothing": ({}, {"trials": "n"}, NlsqError, 'is for loss="binomial"'),
    "trials of a wrong kind": ({}, {"loss": "binomial", "trials": np.ones(3)}, DataError, "trials must be the name"),
    "a number of trials": ({}, {"loss": "binomial", "trials": -2}, DataError, "trials is -2.0; it must be positive"),
    "a sigma": ({}, {"sigma": "n"}, NlsqError, "the variance of counts follows from the model"),
    "a scale": ({}, {"scale": "huber"}, NlsqError, "scale is 'huber'"),
    "a scale of what are no counts": ({}, {"loss": "linear", "scale": "pearson"}, NlsqError, "scale='pearson' is for"),
    "a size of residuals": ({}, {"f_scale": 2.0}, NlsqError, "f_scale=2.0 is for robust losses"),
    "a scale of a sandwich": ({}, {"scale": "pearson", "cov_type": "sandwich"}, NlsqError, "has no scale"),
    "two scales": ({}, {"scale": "pearson", "absolute_sigma": True}, NlsqError, "give one"),
    "a stream": ({}, {"tier": "streaming"}, NlsqError, "add up squares"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_refused(name):
    cells, options, error, message = BAD[name]
    rows = pd.DataFrame({"t": T, "y": np.minimum(case("few counts")[1], N), "n": N})
    for column, value in cells.items():
        rows.loc[7, column] = value
    with pytest.raises(error, match=message):
        dask_nlsq.fit(peak, data=rows, p0=CASES["few counts"][2], client=False, **{"loss": "poisson", **options})


@pytest.mark.crossed
@pytest.mark.parametrize(("loss", "needed"), [("poisson", "positive"), ("binomial", "between 0 and 1")])
def test_a_start_without_a_distribution_is_told_or_left_for_another(loss, needed):
    options = {"loss": loss, "trials": 9.0 if loss == "binomial" else None, "client": False}
    with pytest.warns(dask_nlsq.NlsqWarning, match=f"has to be {needed}.*in 300 rows; the first is row 0"):
        result = dask_nlsq.fit("a + 0*t", T, np.ones(ROWS), p0={"a": -1.0}, **options)
    assert result.success and result.params["a"] == pytest.approx(1.0 if loss == "poisson" else 1 / 9)


def test_rows_that_expect_nothing_and_saw_nothing_say_nothing():
    y = drawn(lambda t, a, c, s: a * jnp.exp(-0.5 * ((t - c) / s) ** 2), (40.0, 5.0, 0.1))
    result = dask_nlsq.fit(
        "a*exp(-0.5*((t - c)/s)**2)", T, y, p0={"a": 30.0, "c": 5.1, "s": 0.2}, loss="poisson", client=False
    )
    assert result.success and np.isfinite(result.stderr).all() and np.isfinite(result.loglik)


PI = decimal.Decimal("3.14159265358979323846264338327950288419716939937510582097494459")
mean = st.floats(1e-6, 1e6)


ratios = st.one_of(st.just(0.0), st.floats(0.5, 2.0), st.floats(1 - 1e-6, 1 + 1e-6), st.floats(1e-250, 1e3))


@given(f=mean, ratio=ratios)
@settings(max_examples=200, deadline=None)
def test_half_the_deviance_is_the_fall_of_the_likelihood(f, ratio):
    y = f * ratio
    with decimal.localcontext(prec=60):
        mu, seen = decimal.Decimal(f), decimal.Decimal(y)
        exact = mu - seen + (seen * (seen / mu).ln() if seen else 0)
    one = np.ones(1)
    found = float(count_rows("poisson", f * one, y * one, one, np).cost[0])
    assert found == pytest.approx(float(exact), rel=1e-9, abs=1e-25 * f)


def test_a_saturated_model_has_the_likelihood_of_scipy():
    y, n = np.arange(9.0), np.full(9, 8.0)
    poisson, binomial = scipy.stats.poisson.logpmf(y, y), scipy.stats.binom.logpmf(y, n, y / n)
    np.testing.assert_allclose(saturated("poisson", y, n, np), poisson, atol=1e-14)
    np.testing.assert_allclose(saturated("binomial", y, n, np), binomial, atol=1e-14)


@pytest.mark.parametrize("half", [0, 1])
def test_the_mode_of_a_count_is_exact_to_rounding(half):
    counts = [*range(40), 100, 1000]
    with decimal.localcontext(prec=60):
        y = [n + decimal.Decimal(half) / 2 for n in counts]
        odd = [math.prod(range(1, 2 * n + 2, 2)) if half else 1 for n in counts]  # Γ(n + 3/2) = (2n + 1)!! √π / 2ⁿ⁺¹
        root = (PI.sqrt() / 2).ln() if half else 0
        gamma = [
            root + (decimal.Decimal(k) / 2**n).ln() if half else decimal.Decimal(math.factorial(n)).ln()
            for n, k in zip(counts, odd, strict=True)
        ]
        exact = [float((each * each.ln() if each else 0) - each - g) for each, g in zip(y, gamma, strict=True)]
    values = saturated("poisson", np.array(y, float), np.ones(len(y)), np)
    np.testing.assert_allclose(values, exact, atol=1e-14)


def test_the_report_names_the_distribution():
    text = str(plain("few counts"))
    assert text.startswith("Maximum likelihood, Poisson") and "Pearson chi-square" in text and "R²" not in text


@pytest.mark.slow
def test_workers_agree_to_the_bit(client):
    data = dd.from_pandas(frame("a rise"), npartitions=5)
    options = {"data": data, "p0": CASES["a rise"][2], "loss": "binomial", "trials": "n", "tier": "chunked"}
    there = dask_nlsq.fit(chance, **options, client=client)
    with dask.config.set(scheduler="threads"):
        here = dask_nlsq.fit(chance, **options)
    assert there.popt.tobytes() == here.popt.tobytes() and there.loglik == here.loglik


def test_as_many_rows_as_parameters_leave_no_dispersion():
    result = dask_nlsq.fit("a*exp(-b*x)", np.array([0.5, 2.0]), np.array([9.0, 4.0]), loss="poisson", p0=[9, 1])
    assert np.isnan(result.statistics.dispersion) and "Pearson" in str(result) and np.isfinite(result.stderr).all()


def test_a_guess_sees_proportions():
    seen = []

    def guess(x, y):
        seen.append(float(np.max(y)))
        return {"a": 0.5}

    rows = frame("a rise")
    model = dask_nlsq.Model.from_expression("a + 0*t", columns=["t"], guess=guess)
    result = dask_nlsq.fit(model, data=rows, loss="binomial", trials="n", client=False)
    assert result.params["a"] == pytest.approx(rows["y"].sum() / rows["n"].sum()) and max(seen) <= 1.0


@pytest.mark.crossed
@pytest.mark.parametrize("trials", [None, 10.0], ids=["poisson", "binomial"])
def test_a_start_that_misleads_is_left_for_another(trials):
    rng, t = np.random.default_rng(0), np.linspace(0.0, 20.0, 2000)
    mean = 1.5 + 6.0 * np.exp(-0.5 * ((t - 4.0) / 0.8) ** 2)
    y = rng.poisson(mean) if trials is None else rng.binomial(10, mean / 10)
    size = 1.0 if trials is None else 0.1
    loss = "poisson" if trials is None else "binomial"
    options = {"p0": [size, 5 * size, 15.0, 1.0], "loss": loss, "trials": trials, "client": False}
    result = dask_nlsq.fit(peak, t, y.astype(float), **options)
    assert result.success and result.params["centre"] == pytest.approx(4.0, abs=0.2)
    assert any("other starts" in note for note in result.notes)


def test_few_counts_are_no_structure():
    t = np.linspace(0.0, 10.0, 3000)
    for seed in range(5):
        y = np.random.default_rng(seed).poisson(0.1 * np.exp(-0.2 * t)).astype(float)
        result = dask_nlsq.fit(log_linear, t, y, p0=[-2.0, -0.1], loss="poisson", client=False)
        assert result.success and not result.notes


CHI_SQUARES = {"neyman": lambda f, y: np.maximum(y, 1.0), "pearson": lambda f, y: f}


@pytest.mark.crossed(2)
@pytest.mark.parametrize("name", ["few counts", "many counts", "log-linear"])
@pytest.mark.parametrize("loss", CHI_SQUARES)
def test_the_chi_squares_of_counts_are_at_their_minima(loss, name):
    model, y, start, _ = case(name)

    def chisqr(theta):
        f = values(model, theta)
        return ((f - y) ** 2 / CHI_SQUARES[loss](f, y)).sum()

    ours = dask_nlsq.fit(model, T, y, loss=loss, p0=start, client=False)
    theirs = scipy.optimize.minimize(chisqr, ours.popt, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-9})
    assert ours.success and ours.chisqr == pytest.approx(chisqr(ours.popt), rel=1e-10) and ours.redchi > 0
    assert ours.chisqr <= theirs.fun * (1 + 1e-9) and ours.pearson_chisqr == ours.chisqr
    with jax.enable_x64(True):
        jac = np.asarray(jax.jacfwd(lambda theta: model(jnp.asarray(T), *theta))(jnp.asarray(ours.popt)))
    f = values(model, ours.popt)
    variance = y.clip(1) if loss == "neyman" else 2 * f**2 / (f + y)
    np.testing.assert_allclose(ours.pcov, np.linalg.inv((jac.T / variance) @ jac), rtol=1e-5)
    assert np.isnan(ours.loglik) and "AIC" not in ours.report()


def test_a_constant_has_the_means_that_the_chi_squares_are_known_for():
    y = np.random.default_rng(0).poisson(5.0, 4000).astype(float)
    low, right, high = (
        float(dask_nlsq.fit("a + 0*x", {"x": y}, y, loss=loss, p0={"a": 4.0}, client=False).params["a"])
        for loss in ("neyman", "poisson", "pearson")
    )
    assert low == pytest.approx((y / y.clip(1)).sum() / (1 / y.clip(1)).sum(), rel=1e-6) and low < right - 0.7
    assert right == pytest.approx(y.mean(), rel=1e-6)
    assert high == pytest.approx(np.sqrt((y**2).mean()), rel=1e-6) and high > right + 0.4


def test_chi_squares_are_no_likelihood_to_compare():
    fits = [dask_nlsq.fit(log_linear, T, case("log-linear")[1], loss="pearson", client=False) for _ in range(2)]
    with pytest.raises(NlsqError, match="whose cost is no likelihood"):
        dask_nlsq.compare(*fits)
