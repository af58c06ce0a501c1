"""Profile-likelihood intervals: against published figures, against brute force, and without a finite limit."""

import ast
import dataclasses
import pickle
import re

import dask.dataframe as dd
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from problems import TRUTH, decay, decay_rows
from scipy import stats
from scipy.optimize import brentq, least_squares

import dask_nlsq
from dask_nlsq import Model, NlsqError, Status

# Bates & Watts (1988), table A1.3, treated; the intervals are those of R's confint on nls, which interpolates.
PUROMYCIN = {
    "conc": np.repeat([0.02, 0.06, 0.11, 0.22, 0.56, 1.1], 2),
    "y": np.array([76.0, 47, 97, 107, 123, 139, 159, 152, 191, 201, 207, 200]),
}
CONFINT = {"Vm": (197.30212848, 229.29006490), "K": (0.04692517, 0.08615995)}

T, Y = decay_rows(40, seed=3, noise=0.3)


def michaelis(conc, Vm=200.0, K=0.05):
    return Vm * conc / (K + conc)


def profile_cost(j, value):
    """Return the least cost where one parameter is held, and the others, by SciPy."""
    others = [i for i in range(3) if i != j]

    def residual(rest):
        p = np.empty(3)
        p[j], p[others] = value, rest
        return p[0] * np.exp(-p[1] * T) + p[2] - Y

    start = np.array(list(TRUTH.values()))[others]
    found = least_squares(residual, start, ftol=1e-15, xtol=1e-15, gtol=1e-15)
    return found.cost, found.x


def brute_end(result, j, side, level):
    aim = 0.5 * result.redchi * stats.t.ppf(0.5 + level / 2, result.dof) ** 2
    reach = side * 8 * result.stderr.iloc[j]
    return brentq(
        lambda v: profile_cost(j, v)[0] - result.cost - aim, result.popt[j], result.popt[j] + reach, xtol=1e-12
    )


def test_published_intervals():
    ends = dask_nlsq.fit(michaelis, data=PUROMYCIN).conf_int(method="profile")
    np.testing.assert_allclose(ends.to_numpy(), list(CONFINT.values()), rtol=2e-4)


@pytest.mark.one_at_a_time
@pytest.mark.parametrize("npartitions", [1, 7])
@pytest.mark.parametrize("level", [0.68, 0.99])
def test_ends_are_those_of_brute_force(npartitions, level):
    frame = dd.from_pandas(pd.DataFrame({"t": T, "y": Y}), npartitions=npartitions, sort=False)
    result = frame.nlsq.fit(decay)
    ends = result.conf_int(level, method="profile")
    expected = [[brute_end(result, j, side, level) for side in (-1, 1)] for j in range(3)]
    assert np.max(np.abs(ends.to_numpy() - expected) / result.stderr.to_numpy()[:, None]) < 1e-5


def test_a_limit_on_the_fit_is_none_on_its_profile():
    result = dask_nlsq.fit(decay, T, Y)
    limited = dask_nlsq.fit(decay, T, Y, p0=result, max_nfev=2)
    np.testing.assert_allclose(limited.conf_int(method="profile"), result.conf_int(method="profile"), rtol=1e-4)


def test_an_end_whose_fits_do_not_end_is_unknown():
    result = dask_nlsq.fit(decay, T, Y)
    limited = dataclasses.replace(result.profiler.solver, max_nfev=1)
    ends = dataclasses.replace(result.profiler, solver=limited).intervals(0.95)
    assert ends and np.isnan(list(ends.values())).all()


def test_a_curve_holds_one_and_fits_the_others():
    result = dask_nlsq.fit(decay, T, Y)
    curve = result.profile("rate")
    assert curve.index.name == "rate" and len(curve) == 13 and (np.diff(curve["tau"]) > 0).all()
    for value, row in curve.iterrows():
        cost, rest = profile_cost(1, value)
        assert row["cost"] == pytest.approx(cost, rel=1e-7)
        np.testing.assert_allclose(row[["amplitude", "offset"]], rest, atol=2e-3 * result.stderr.max())


@pytest.mark.parametrize("name", ["tau", "cost"])
@pytest.mark.parametrize("held", ["rate", "offset"])
def test_the_columns_of_a_curve_keep_their_names(name, held):
    named, plain = (
        dask_nlsq.fit(Model.from_expression(f"amplitude * exp(-{rate} * t) + offset", columns=["t"]), T, Y)
        for rate in (name, "rate")
    )
    found, expected = named.profile(name if held == "rate" else held), plain.profile(held)
    other = {"rate": f"{name} (parameter)"}
    expected = expected.rename(columns=other).rename_axis(other.get(held, held))
    pd.testing.assert_frame_equal(found.reset_index(), expected.reset_index(), check_like=True)


def test_all_ends_share_sweeps():
    reads = []

    def read(i):
        reads.append(i)
        return pd.DataFrame({"t": T, "y": Y})[i * 20 : i * 20 + 20]

    frame = dd.from_map(read, range(2), meta=pd.DataFrame({"t": T, "y": Y})[:0])
    result = frame.nlsq.fit(decay, cache="none", client=False)
    before = len(reads)
    result.conf_int(method="profile")
    assert len(reads) - before <= 2 * 9  # six ends, found one by one, would be some fifty


def test_what_has_no_end_says_so():
    t = np.linspace(0, 1, 30)
    hardly_bent = 12 * t / (5 + t) + 0.6 * np.cos(40 * t)  # bent either way: Vm and K may be negative
    free = dask_nlsq.fit(michaelis, t, hardly_bent, p0=[12, 5])
    assert np.isinf(free.conf_int(method="profile")).all(axis=None)
    ends = dask_nlsq.fit(michaelis, t, hardly_bent, p0=[12, 5], bounds=(0, 1e3)).conf_int(method="profile")
    assert ends.loc["Vm", "upper"] == 1e3
    assert ((ends["lower"] > 0) & (ends["lower"] < free.params)).all()


def test_an_end_is_a_bound_where_that_comes_first_and_a_fixed_value_is_its_own():
    free = dask_nlsq.fit(decay, T, Y, fixed={"offset": 0.5})
    upper = free.params["rate"] + free.stderr["rate"]
    bounded = dask_nlsq.fit(decay, T, Y, bounds={"rate": (0, upper)}, fixed={"offset": 0.5})
    ends, without = (result.conf_int(method="profile") for result in (bounded, free))
    assert ends.loc["offset"].tolist() == [0.5, 0.5]
    assert ends.loc["rate", "upper"] == upper < without.loc["rate", "upper"]
    assert ends.loc["rate", "lower"] == pytest.approx(without.loc["rate", "lower"], rel=1e-6)


def test_what_is_at_a_bound_or_tied_has_no_ends():
    bound = dask_nlsq.fit(decay, T, Y, bounds={"rate": (0, 1.2)}).conf_int(method="profile")
    tied = dask_nlsq.fit(decay, T, Y, tied={"offset": "amplitude / 6"}).conf_int(method="profile")
    for ends, none in ((bound, "rate"), (tied, "offset")):
        assert ends.loc[none].isna().all() and np.isfinite(ends.drop(index=none)).all(axis=None)


def test_a_lower_minimum_on_the_way_is_no_interval(monkeypatch):
    monkeypatch.setattr("dask_nlsq._fit.api.restart", lambda problem, solver, state, *_: (state, [], ()))
    t = np.linspace(0, 6, 60)
    wave = lambda t, k: jnp.sin(k * t)  # noqa: E731
    stuck = dask_nlsq.fit(wave, t, np.sin(2 * t), p0=[3.3])
    assert stuck.cost > 1
    with pytest.raises(NlsqError, match="local minimum"):
        stuck.profile("k", [2.0, 3.0])


@pytest.mark.slow
@pytest.mark.parametrize(
    "constraints",
    [{}, {"fixed": ["offset"]}, {"bounds": {"offset": (0.5, 0.5)}}, {"tied": {"offset": "k / 4"}}],
    ids=str,
)
def test_the_start_that_an_error_advises_leads_to_the_lower_minimum(constraints, monkeypatch):
    monkeypatch.setattr("dask_nlsq._fit.api.restart", lambda problem, solver, state, *_: (state, [], ()))
    t = np.linspace(0, 6, 60)
    wave = lambda t, k, offset: jnp.sin(k * t) + offset  # noqa: E731
    y = np.sin(2 * t) + 0.5 + 0.1 * np.cos(40 * t)
    with pytest.raises(NlsqError, match="local minimum") as error:
        dask_nlsq.fit(wave, t, y, p0=[3.3, 0.5], **constraints).profile("k", [2.0])
    p0 = ast.literal_eval(re.search(r"p0=(\{.*\})", str(error.value))[1])
    again = dask_nlsq.fit(wave, t, y, p0=p0, **constraints)
    np.testing.assert_allclose(again.popt, [2.0, 0.5], atol=0.1)


EXACT = {  # model, its parameters: data without noise, whose cost is rounding
    "line": (lambda t, a, b: a + b * t, (1.0, 2.0)),
    "large": (lambda t, a, b: a + b * t, (1e5, 2.0)),
    "decay": (decay, (2.5, 1.3, 0.5)),
    "michaelis": (michaelis, (3.0, 0.7)),
}


@pytest.mark.parametrize("n", [10, 1000])
@pytest.mark.parametrize("case", EXACT)
def test_data_without_noise_have_intervals_without_width(case, n):
    model, truth = EXACT[case]
    t = np.linspace(0.1, 10, n)
    with jax.enable_x64(True):
        y = np.asarray(model(t, *truth))
    result = dask_nlsq.fit(model, t, y, p0=np.multiply(truth, 1.1))
    ends = result.conf_int(method="profile")
    np.testing.assert_allclose(ends, np.transpose([truth, truth]), rtol=1e-9)
    assert ((ends["lower"] <= result.params) & (result.params <= ends["upper"])).all()
    tau = result.profile(result.names[0], [0.9 * truth[0], truth[0], 1.1 * truth[0]])["tau"]
    assert tau.iloc[0] < -100 and abs(tau.iloc[1]) < 1 and tau.iloc[2] > 100
    assert np.isfinite(result.profile(result.names[0])).all(axis=None)


@pytest.mark.parametrize("noise", [1e-13, 1e-11, 1e-9])
def test_ends_at_the_brink_of_rounding_are_nearly_those_of_the_linear_model(noise):
    result = dask_nlsq.fit(decay, T, 3 * np.exp(-1.3 * T) + 0.5 + noise * (Y - Y.mean()))
    found = (result.conf_int(method="profile") - result.conf_int()).div(result.stderr, axis=0)
    assert np.max(np.abs(found.to_numpy())) < 0.1


@pytest.mark.parametrize("options", [{"tier": "streaming"}, {"tier": "chunked"}], ids=str)
def test_after_a_fast_fit_ends_are_those_around_the_minimum(options):
    t, y = decay_rows(20_000, seed=3, noise=0.3)
    frame = dd.from_pandas(pd.DataFrame({"t": t, "y": y}), npartitions=40)
    exact = frame.nlsq.fit(decay)
    fast = frame.nlsq.fit(decay, goal="fast", client=False, **options)
    assert fast.status is (Status.STREAMED if options["tier"] == "streaming" else Status.CONVERGED)
    ends, expected = (result.conf_int(method="profile") for result in (fast, exact))
    np.testing.assert_allclose(((ends - expected).T / exact.stderr), 0, atol=2e-3)
    assert fast.profile("rate", [exact.params["rate"]])["tau"].abs().max() < 2e-3


def test_what_cannot_be_profiled():
    result = dask_nlsq.fit(decay, T, Y)
    with pytest.raises(NlsqError, match="no free parameter"):
        result.profile("nope")
    with pytest.raises(NlsqError, match="robust"):
        dask_nlsq.fit(decay, T, Y, loss="huber").conf_int(method="profile")
    with pytest.raises(NlsqError, match="keeps no data"):
        pickle.loads(pickle.dumps(result)).conf_int(method="profile")
    with pytest.raises(NlsqError, match="made by a StreamingFitter"):
        dask_nlsq.StreamingFitter(decay).partial_fit(T, Y).result().profile("rate")
    for arguments in ({"level": 1.5}, {"method": "bootstrap"}):
        with pytest.raises(NlsqError):
            result.conf_int(**arguments)


def stop(_):
    raise StopIteration


UNFINISHED = {
    Status.PRECISION: ({"precision": 0.5, "client": False}, "fit again without it"),
    Status.MAX_NFEV: ({"max_nfev": 2}, "p0=result"),
    Status.TIME_LIMIT: ({"time_limit": 0}, "p0=result"),
    Status.CALLBACK: ({"callback": stop}, "p0=result"),
}


@pytest.mark.parametrize("status", UNFINISHED)
def test_a_fit_that_came_to_no_minimum_of_all_rows_is_not_profiled(status):
    t, y = decay_rows(20_000)
    options, remedy = UNFINISHED[status]
    frame = dd.from_pandas(pd.DataFrame({"t": t, "y": y}), npartitions=50)
    result = frame.nlsq.fit(decay, p0=[30.0, 10.0, 5.0], **options)
    assert result.status is status
    for ask in (lambda: result.profile("rate"), lambda: result.conf_int(method="profile")):
        with pytest.raises(NlsqError, match=remedy):
            ask()


@pytest.mark.parametrize("values", [[], "x", ["x"], [1.0, np.nan], [np.inf], [None], [[1.0], [1.0, 2.0]], {}], ids=repr)
def test_values_that_are_no_numbers_are_refused(values):
    with pytest.raises(NlsqError, match="finite numbers are needed, where to hold 'rate'"):
        dask_nlsq.fit(decay, T, Y).profile("rate", values)
