"""Parameters that many series share: the answer of one dense fit of all of them, wherever they lie."""

import fractions
import functools
import math

import dask
import dask.array as da
import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import OptimizeWarning, least_squares

import dask_nlsq
from dask_nlsq import DataError, ModelError, NlsqError, NlsqWarning, Status
from dask_nlsq._kernel import ExactSum

GROUPS, POINTS = 7, 25
T = np.linspace(0, 4, POINTS)
NAMES = ("amplitude", "rate", "offset")
P0 = [2.0, 1.0, 0.7]


def decay(t, amplitude, rate, offset):
    return amplitude * jnp.exp(-rate * t) + offset


def series(seed=0, offset=None):
    rng = np.random.default_rng(seed)
    amplitude, own = rng.uniform(2, 5, (GROUPS, 1)), rng.uniform(0.5, 1, (GROUPS, 1))
    noise = 0.05 * rng.standard_t(4, (GROUPS, POINTS))
    return amplitude * np.exp(-1.3 * T) + (own if offset is None else offset) + noise


Y = series()
SIGMA = np.random.default_rng(1).uniform(0.5, 2, Y.shape)


class Dense:
    """All series in one SciPy fit, whose Jacobian has a column for each own parameter of each series."""

    def __init__(self, y, shared, sigma=1.0, bounds=None, **options):
        own = [name for name in NAMES if name not in shared]
        self.place = np.array(
            [[shared.index(n) if n in shared else len(shared) + own.index(n) * len(y) + g for n in NAMES]
             for g in range(len(y))]
        )  # fmt: skip
        self.y, self.sigma, self.used = y, np.broadcast_to(sigma, y.shape), np.isfinite(y)
        start, limits = np.empty(self.place.max() + 1), np.full((2, self.place.max() + 1), [[-np.inf], [np.inf]])
        for i, name in enumerate(NAMES):
            start[self.place[:, i]] = P0[i]
            limits[:, self.place[:, i]] = np.array((bounds or {}).get(name, (-np.inf, np.inf)))[:, None]
        tight = dict.fromkeys(("ftol", "xtol", "gtol"), 1e-15)
        absolute = options.pop("absolute_sigma", False)
        found = least_squares(self.residuals, start, self.jacobian, limits, **tight, **options, max_nfev=1000)
        self.cost, dof = found.cost, self.used.sum() - len(start)
        at_bound = np.abs(found.x - limits).min(axis=0) < 1e-9
        free = ~at_bound
        cov = np.full((len(start), len(start)), np.nan)
        cov[np.ix_(free, free)] = np.linalg.inv(found.jac[:, free].T @ found.jac[:, free])
        cov *= 1.0 if absolute else 2 * found.cost / (dof + at_bound.sum())
        self.values = found.x[self.place]
        self.cov = np.stack([cov[np.ix_(i, i)] for i in self.place])

    def residuals(self, theta):
        a, b, c = theta[self.place].T[..., None]
        return ((a * np.exp(-b * T) + c - self.y) / self.sigma)[self.used]

    def jacobian(self, theta):
        a, b, _ = theta[self.place].T[..., None]
        e = np.exp(-b * T)
        whole = np.zeros((*self.y.shape, len(theta)))
        for g, place in enumerate(self.place):
            whole[g, :, place] = np.stack([e[g], -a[g] * T * e[g], np.ones(POINTS)]) / self.sigma[g]
        return whole[self.used]


def holed(y):
    y = y.copy()
    y[2, 3:9] = np.nan
    return y


OPTIONS = {
    "robust, missing points": (holed(Y), {"shared": ["rate"], "loss": "soft_l1", "f_scale": 0.1, "sigma": SIGMA}),
    "one, weighted": (Y, {"shared": ["rate"], "sigma": SIGMA, "absolute_sigma": True}),
    "two, in another order": (series(offset=0.5), {"shared": ["offset", "rate"]}),
    "an own one at a bound": (Y, {"shared": ["rate"], "bounds": {"offset": (0.6, 5.0)}}),
    "robust, an own one at a bound": (
        Y,
        {"shared": ["rate"], "loss": "soft_l1", "f_scale": 0.1, "bounds": {"offset": (0.6, 5.0)}},
    ),
    "a series that says nothing of what is shared": (
        1e-3 * np.concatenate([Y, 1.0 - Y[:1]]),
        {"shared": ["rate"], "bounds": {"amplitude": (0.0, 10.0)}},
    ),
    "a shared one at a bound": (Y, {"shared": ["rate"], "bounds": {"rate": (0.1, 1.2)}}),
}


@pytest.mark.crossed
@pytest.mark.parametrize("name", OPTIONS)
def test_the_answer_is_that_of_a_dense_fit(name):
    y, options = OPTIONS[name]
    result = dask_nlsq.fit_many(decay, T, y, p0=P0, covariance=True, **options).compute()
    dense = Dense(y, **options)
    assert result.success.all() and result.shared.success
    found, errors = (np.stack([each[n] for n in NAMES], axis=1) for each in (result.params, result.stderr))
    expected = np.sqrt(np.einsum("gii->gi", dense.cov))
    np.testing.assert_allclose(found, dense.values, atol=1e-8 * np.abs(dense.values).max())
    np.testing.assert_allclose(errors, expected, rtol=1e-7)  # to the digits that both stop with
    np.testing.assert_allclose(result.cov, dense.cov, atol=1e-7 * np.nanmax(dense.cov))
    shared = result.shared
    assert list(shared.names) == options["shared"] and shared.cost == pytest.approx(dense.cost, rel=1e-9)
    np.testing.assert_allclose(shared.stderr, [errors[0, NAMES.index(n)] for n in shared.names], rtol=1e-9)
    assert shared.n_obs == dense.used.sum() and "took part" in str(shared)


@functools.cache
def expected():
    return dask_nlsq.fit_many(decay, T, Y, p0=P0, shared="rate").compute()


def same(result):
    return np.array_equal(result.compute().figures, expected().figures, equal_nan=True)


@pytest.mark.parametrize("chunks", [1, 3, (4, 1, 2)], ids=str)
def test_chunks_and_threads_change_no_bit(chunks):
    cut = da.from_array(Y, chunks=(chunks, -1))
    assert same(dask_nlsq.fit_many(decay, T, cut, p0=P0, shared="rate"))
    with dask.config.set(scheduler="sync"):
        assert same(dask_nlsq.fit_many(decay, T, cut[::-1][::-1], p0=P0, shared="rate"))


@pytest.mark.slow
def test_a_cluster_changes_no_bit(client):
    expected()  # in this process
    assert same(dask_nlsq.fit_many(decay, T, da.from_array(Y, chunks=(2, -1)), p0=P0, shared="rate", client=client))


def frame(y=Y):
    rows = pd.DataFrame({"run": np.repeat(np.arange(len(y)), POINTS), "t": np.tile(T, len(y)), "y": y.ravel()})
    return rows.sample(frac=0.9, random_state=0)  # ragged, in any order


@pytest.mark.slow
@pytest.mark.parametrize("npartitions", [1, 4])
def test_groups_have_the_bits_of_any_partitions(npartitions):
    options = {"p0": P0, "shared": "rate", "covariance": True}
    one = frame().nlsq.fit_groups("run", decay, **options)
    many = dd.from_pandas(frame(), npartitions=npartitions, sort=False).nlsq.fit_groups("run", decay, **options)
    many = many.compute().sort_values("run", ignore_index=True)
    pd.testing.assert_frame_equal(many, one, check_exact=True)
    assert one["rate"].nunique() == 1 and (one["status"] == "CONVERGED").all()
    wide = frame().pivot_table(index="run", columns="t", values="y").to_numpy()
    dense = Dense(wide, ["rate"])
    np.testing.assert_allclose(one[list(NAMES)], dense.values, rtol=1e-7)
    np.testing.assert_allclose(one["amplitude_rate_cov"], dense.cov[:, 0, 1], rtol=1e-6)


@pytest.mark.crossed
@pytest.mark.parametrize(
    "of", [lambda f: dd.from_pandas(f, npartitions=3, sort=False), lambda f: f], ids=["Dask", "pandas"]
)
def test_groups_return_the_fit_of_what_they_share(of):
    options = {"p0": P0, "shared": "rate", "covariance": True}
    table, together = of(frame()).nlsq.fit_groups("run", decay, **options, full_output=True)
    first = table.head(1, **({"npartitions": -1} if hasattr(table, "dask") else {})).iloc[0]
    assert together.names == ("rate",) and together.success
    assert (together.params["rate"], together.stderr["rate"]) == (first["rate"], first["rate_stderr"])
    with pytest.raises(NlsqError, match="shared= names none"):
        of(frame()).nlsq.fit_groups("run", decay, p0=P0, full_output=True)


def test_series_along_the_first_axis_have_the_same_bits():
    for chunks in (-1, 1):
        assert same(dask_nlsq.fit_many(decay, T, da.from_array(Y.T, chunks=(-1, chunks)), axis=0, p0=P0, shared="rate"))


@pytest.mark.slow
def test_values_at_which_a_series_has_no_model_are_refused():
    def root(x, height, edge):
        return height * jnp.sqrt(x - edge)

    x = np.linspace(1, 2, 20)
    y = np.array([[2.0], [3.0]]) * np.sqrt(x - 0.999) + 0.001 * np.cos(9 * x)
    result = dask_nlsq.fit_many(root, x, y, p0={"height": 0.1, "edge": -9.0}, shared="edge").compute()
    assert result.success.all() and abs(result["edge"][0] - 0.999) < 0.01
    assert not result.shared.history["accepted"].all()


def edged(t, height, edge):
    return height * jnp.sqrt(t - edge)


@pytest.mark.slow
def test_series_that_have_no_model_at_the_start_take_part_once_they_have_one():
    t = np.stack([np.linspace(low, 3, 30) for low in (1.0, 1.0, 0.5)])
    y = np.array([[1.0], [2.0], [3.0]]) * np.sqrt(t - 0.2) + 0.02 * np.random.default_rng(0).normal(size=t.shape)
    late, early = (dask_nlsq.fit_many(edged, t, y, p0=[1, edge], shared="edge").compute() for edge in (0.7, 0.0))
    assert "3 series" in late.shared.notes[-1]
    np.testing.assert_allclose(late["edge"], early["edge"], rtol=1e-9)
    np.testing.assert_allclose(late.stderr["edge"], early.stderr["edge"], rtol=1e-6)
    t[2] -= 5
    with pytest.warns(NlsqWarning, match="1 series take no part in the fit of edge"):
        assert not dask_nlsq.fit_many(edged, t, y, p0=[1, 0.7], shared="edge").compute().success.all()


@pytest.mark.slow
def test_a_fit_that_went_well_is_not_lost_to_series_that_have_no_model():
    t = np.stack([np.linspace(1, 4, 40)] * 3 + [np.linspace(0.5, 4, 40)])
    u = np.array([[-0.6], [-0.5], [-0.7], [-0.8]])
    y = np.sqrt(t - u - 1.2) + 1.2 * t**2 + 0.001 * np.random.default_rng(0).normal(size=t.shape)
    result = dask_nlsq.fit_many(
        lambda t, u, s: jnp.sqrt(t - u - s) + s * t * t, t, y, p0={"u": 0.3, "s": 0.3}, shared="s"
    ).compute()
    assert result.success[:3].all() and result.shared.params["s"] == pytest.approx(1.2, abs=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("error::dask_nlsq.NlsqWarning")
def test_series_that_are_not_to_be_fitted_are_not_missed():
    fixed = np.r_[np.full(GROUPS - 1, 0.7), np.nan]
    result = dask_nlsq.fit_many(decay, T, Y, p0=P0, shared="rate", fixed={"offset": fixed}).compute()
    assert result.success[:-1].all() and not result.success[-1]


TWICE = {
    "another offset": (lambda t, a, b, c: a * t + b + c, "c", ("a",)),
    "another amplitude": (lambda t, a, s, k: a * s * jnp.exp(-k * t), ("s", "k"), ("k",)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TWICE)
def test_what_own_parameters_can_replace_is_not_determined_and_spoils_nothing_else(name):
    model, shared, known = TWICE[name]
    y = np.array([[1.0], [2.0], [3.0]]) * np.exp(-1.3 * T) + 0.01 * np.random.default_rng(0).normal(size=(3, POINTS))
    with pytest.warns(OptimizeWarning, match="do not determine"):
        result = dask_nlsq.fit_many(model, T, y, shared=shared).compute()
    assert result.success.all() and abs(result.shared.popt).max() < 10
    for parameter, errors in result.stderr.items():
        assert np.isfinite(errors).all() if parameter in known else np.isinf(errors).all()


def test_moments_keep_their_digits_at_an_offset():
    level = dask_nlsq.fit_many(decay, T, Y + 1e7, p0=[*P0[:2], 1e7], shared="rate")
    assert level.shared.rsquared == pytest.approx(expected().shared.rsquared, rel=1e-6)


@pytest.mark.slow
def test_a_result_of_each_series_is_a_start():
    alone = dask_nlsq.fit_many(decay, T, Y, p0=P0)
    again = dask_nlsq.fit_many(decay, T, Y, p0=alone, shared="rate")
    assert again.shared.nsweeps < expected().shared.nsweeps


def test_series_that_fail_take_no_part():
    y = np.concatenate([Y, np.full((1, POINTS), np.nan)])
    y[-1, :1] = 1.0
    result = dask_nlsq.fit_many(decay, T, y, p0=P0, shared="rate").compute()
    assert np.array_equal(result.figures[:-1], expected().figures)
    assert result.status[-1] == Status.TOO_FEW and np.isnan(result["rate"][-1])
    with pytest.raises(DataError, match="None of the series"):
        dask_nlsq.fit_many(decay, T, y[-1:], p0=P0, shared="rate")


@pytest.mark.slow
def test_without_a_start_it_begins_at_the_mean_of_the_series():
    x, center = np.linspace(500, 600, 60), np.linspace(530, 570, 5)[:, None]
    y = 3 * np.exp(-0.5 * ((x - center) / 6) ** 2) + 0.01 * np.cos(np.arange(300)).reshape(5, 60)
    result = dask_nlsq.fit_many("gaussian", x, y, shared="sigma").compute()
    assert result.success.all() and abs(result["sigma"][0] - 6) < 0.05 and result.shared.nsweeps < 5


@pytest.mark.slow
def test_fixed_and_tied_parameters_stay_so_and_an_earlier_result_is_a_start():
    fixed = dask_nlsq.fit_many(decay, T, Y, p0=P0, shared="rate", fixed={"offset": np.full(GROUPS, 0.7)}).compute()
    assert (fixed["offset"] == 0.7).all() and fixed.success.all()
    tied = dask_nlsq.fit_many(decay, T, Y, p0=P0, shared="rate", tied={"offset": "rate/2"}).compute()
    assert (tied["offset"] == tied["rate"] / 2).all()
    np.testing.assert_allclose(tied.stderr["offset"], tied.stderr["rate"] / 2)
    again = dask_nlsq.fit_many(decay, T, Y, p0=tied, shared="rate", tied={"offset": "rate/2"})
    assert again.shared.nsweeps < tied.shared.nsweeps


def test_xarray_keeps_its_names():
    cube = xr.DataArray(Y, dims=("run", "t"), coords={"t": T})
    maps = cube.nlsq.fit_many(decay, dim="t", p0=P0, shared="rate")
    assert np.array_equal(maps["rate"], expected()["rate"])


REFUSED = {
    "an unknown name": ({"shared": "tau"}, ModelError, "is no parameter; the free"),
    "one that is fixed": ({"shared": "rate", "fixed": {"rate": 1.0}}, ModelError, "is fixed"),
    "one that is tied": ({"shared": "rate", "tied": {"rate": "offset"}}, ModelError, "is tied"),
    "one name twice": ({"shared": ("rate", "rate")}, ModelError, "twice"),
    "all of them": ({"shared": NAMES}, ModelError, "use fit"),
    "neighbours": ({"shared": "rate", "start": "neighbours"}, NlsqError, "by itself"),
    "a start of each series": ({"shared": "rate", "p0": {"rate": np.ones(GROUPS)}}, DataError, "values of each"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name):
    options, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        dask_nlsq.fit_many(decay, T, Y, **{"p0": P0} | options)


# --- sums -------------------------------------------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(arrays(float, st.integers(0, 40), elements=st.floats(allow_nan=False, allow_infinity=False)), st.randoms())
def test_a_sum_is_exact_in_any_order_and_parts(values, random):
    shuffled = values.copy()
    random.shuffle(shuffled)
    cut = random.randint(0, len(values))
    total = ExactSum.of(shuffled[:cut, None]) + ExactSum.of(shuffled[cut:, None])
    try:
        expected = math.fsum(values)
    except OverflowError:  # on the way, although the sum may be in range
        assert total.rounded()[0] == rounded(sum(map(fractions.Fraction, values)))
    else:
        assert total.rounded()[0] == expected


def rounded(whole):
    try:
        return float(whole)
    except OverflowError:
        return math.inf if whole > 0 else -math.inf


def test_what_is_not_finite_makes_a_sum_of_nan():
    assert np.isnan(ExactSum.of(np.array([[np.inf, 1.0], [1.0, 2.0]])).rounded()).tolist() == [True, False]
