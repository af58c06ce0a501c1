"""Convergence from ordinary starts: tables of apparently simple problems, each kind with several variants."""

import json

import dask.array as da
import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import scipy.optimize
from click.testing import CliRunner

import dask_nlsq
from dask_nlsq.cli import main

pytestmark = [
    pytest.mark.filterwarnings("ignore::scipy.optimize.OptimizeWarning"),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),
]

T = np.linspace(0, 10, 201)
NOISE = np.random.default_rng(5).normal(size=201)


def decay(t, height, rate, level, xp=jnp):
    return height * xp.exp(-rate * t) + level


def lifetime(t, height, tau, level, xp=jnp):
    return height * xp.exp(-t / tau) + level


def gaussian(t, height, centre, width, level, xp=jnp):
    return height * xp.exp(-0.5 * ((t - centre) / width) ** 2) + level


def lorentzian(t, height, centre, width, level, xp=jnp):
    return height / (1 + ((t - centre) / width) ** 2) + level


def wave(t, s, c, frequency, level, xp=jnp):
    return s * xp.sin(2 * np.pi * frequency * t) + c * xp.cos(2 * np.pi * frequency * t) + level


def turning(t, size, frequency, phase):
    return size * jnp.sin(frequency * t + phase)


def edge(t, low, high, place, width, xp=jnp):
    return low + (high - low) / (1 + xp.exp(-(t - place) / width))


def hyperbola(t, a, b, xp=jnp):
    return a / (b + t)


def saturation(t, top, half, xp=jnp):
    return top * t / (half + t)


def rational(t, a, b, c, xp=jnp):
    return (a + b * t) / (1 + c * t)


def by_numpy(model):
    return lambda t, *theta: model(t, *theta, xp=np)


def rows(model, x, truth, noise=0.02):
    signal = model(x, *truth, xp=np)
    return signal + noise * np.ptp(signal) * NOISE[: len(x)]


def best(model, x, y, near):
    """Return where SciPy's Levenberg-Marquardt leads from a point near the minimum."""
    scale = np.abs(near) + (np.asarray(near) == 0)
    return scipy.optimize.least_squares(lambda p: model(x, *p, xp=np) - y, near, method="lm", x_scale=scale).x


# --- A large part that is easy: a pedestal, positions far from zero, units --------------------------------------------

FAR = {  # model, x, true parameters, start
    "a decay on 1000": (decay, T, [2, 0.5, 1000], [2, 0.5, 880]),
    "a decay on 1000, too high": (decay, T, [2, 0.5, 1000], [1.5, 0.8, 1200]),
    "a lifetime on -1e4": (lifetime, 50 * T, [2, 55, -1e4], [2, 40, -8e3]),
    "a peak on 1e4": (gaussian, T, [3, 4, 0.8, 1e4], [2, 4.5, 1, 1.1e4]),
    "a peak on 1e6": (lorentzian, T, [3, 4, 0.8, 1e6], [2, 4.5, 1, 9e5]),
    "a wave on 1e3": (wave, T, [1, 2, 0.31, 1e3], [1, 1, 0.3, 900]),
    "a wave over Julian dates": (wave, 2459800.25 + T, [1, 2, 0.31, 8], [1, 0.1, 0.315, 8]),
    "a wave over seconds since 1970": (wave, 1.7e9 + T, [1, 2, 0.31, 0], [0.1, 1, 0.305, 1]),
    "a peak at MJD 57958": (gaussian, 57958 + T / 100, [3, 57958.05, 0.01, 2], [2, 57958.04, 0.02, 1]),
    "an edge in kelvin": (edge, 273.15 + T, [1, 4, 278, 0.5], [0, 3, 277, 1]),
    "units of 1e-30": (decay, T, [2e-30, 0.5, 1e-30], [1e-30, 1, 2e-30]),
    "units of 1e30": (gaussian, T, [3e30, 4, 0.8, 1e30], [1e30, 5, 1, 3e30]),
    "seconds of 1e-12": (decay, 1e-12 * T, [2, 0.5e12, 1], [1, 1e12, 2]),
    "columns of 1e12": (lorentzian, 1e12 * T, [3, 4e12, 0.8e12, 1], [2, 5e12, 1e12, 2]),
}


SLOW = pytest.mark.slow
WAYS = ["memory", "threads", pytest.param("path", marks=SLOW), pytest.param("client", marks=SLOW), "curve_fit"]


@pytest.fixture(params=WAYS)
def solve(request, tmp_path):
    """Fit in one of the ways in which users do; returns the parameters and whether it was a success."""

    def fit(model, x, y, start):
        way, frame = request.param, pd.DataFrame({"t": x, "y": y})
        if way == "curve_fit":
            return dask_nlsq.curve_fit(model, x, y, start)[0], True  # what is no success is raised
        if way == "path":
            frame.to_parquet(tmp_path / "rows.parquet")
            result = dask_nlsq.fit(model, x="t", y="y", data=tmp_path / "rows.parquet", p0=start)
        elif way == "client":
            rows = dd.from_pandas(frame, npartitions=3)
            result = rows.nlsq.fit(model, p0=start, client=request.getfixturevalue("client"))
        elif way == "threads":
            result = dask_nlsq.fit(model, da.from_array(x, chunks=50), da.from_array(y, chunks=50), p0=start)
        else:
            result = dask_nlsq.fit(model, x, y, p0=start)
        return result.popt, result.success

    return fit


def cost_of(model, x, y, theta):
    return 0.5 * float(np.sum((model(x, *theta, xp=np) - y) ** 2))


def assert_lowest(model, x, y, found, near):
    """The cost is that of SciPy's minimum from `near`, to what rounding of y allows."""
    popt, success = found
    least = min(cost_of(model, x, y, theta) for theta in (near, best(model, x, y, near)))
    rounding = 1e-15 * np.abs(y).max() * np.sqrt(len(y))
    assert success
    assert cost_of(model, x, y, popt) <= least * (1 + 1e-6) + rounding * (np.sqrt(2 * least) + rounding)


@pytest.mark.slow
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("name", FAR)
def test_a_large_part_that_is_easy_bends_no_step(name, solve):
    model, x, truth, start = FAR[name]
    y = rows(model, x, truth)
    assert_lowest(model, x, y, solve(model, x, y, start), truth)


# --- False successes ---------------------------------------------------------------------------------------------

MISLED = {  # model, x, true parameters, start
    "a peak that is elsewhere": (gaussian, 500 + 10 * T, [40, 562, 5, 1], [1, 1, 1, 1]),
    "no height": (lorentzian, T, [2, 6, 0.8, 0], [0, 4, 0.5, 0]),
    "no amplitude": (wave, T, [1, 2, 0.31, 1], [0, 0, 0.1, 0]),
    "a peak beside the data": (gaussian, T, [3, 4, 0.8, 1], [3, 30, 0.8, 1]),
    "a peak without width": (lorentzian, T, [3, 4, 0.8, 1], [1, 9, 1e-3, 1]),
    "another frequency": (wave, T, [1, 2, 0.31, 1], [1, 1, 1.7, 1]),
    "a rate beyond the rows": (decay, T, [2, 0.5, 1], [1, 500, 1]),
    "an edge beside the data": (edge, T, [1, 4, 5, 0.5], [1, 4, 70, 0.5]),
    "across a pole": (hyperbola, 0.1 + T[::10], [60, 0.2], [1, 1]),
    "across a pole, from below": (hyperbola, 0.1 + T[::10], [60, 0.2], [60, -3]),
    "a pole among the data": (saturation, T, [5, 2], [5, -4]),
    "a pole of a rational": (rational, T, [1, 2, 0.7], [1, 1, -0.3]),
}


@pytest.mark.slow
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("name", MISLED)
def test_a_misleading_start_is_replaced(name, solve):
    model, x, truth, start = MISLED[name]
    y = rows(model, x, truth)
    assert_lowest(model, x, y, solve(model, x, y, start), truth)


@pytest.mark.crossed
@pytest.mark.parametrize("name", ["a peak that is elsewhere", "another frequency", "an edge beside the data"])
def test_a_note_tells_of_other_starts(name):
    model, x, truth, start = MISLED[name]
    notes = dask_nlsq.fit(model, x, rows(model, x, truth), p0=start).notes
    assert any("other starts led to a lower cost and was used" in note for note in notes)


@pytest.mark.crossed(3)
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("n", [8, 12, 20, 25])
@pytest.mark.parametrize(
    ("model", "truth", "start"),
    [(gaussian, [5, 6, 0.9, 1], [1, 2, 1, 0]), (lorentzian, [5, 6, 0.9, 1], [1, 1, 1, 1])],
)
def test_few_rows_give_no_false_success(model, truth, start, n):
    x = np.linspace(0, 10, n)
    y = rows(model, x, truth, noise=0.003)
    result = dask_nlsq.fit(model, x, y, p0=start)
    assert not result.success or np.isinf(result.stderr).any() or result.rsquared > 0.99


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_wave_within_bounds_is_found(seed):
    t, rng = np.linspace(0, 20, 250), np.random.default_rng(seed)
    y = 2 * np.sin(3.3 * t + 0.5) + rng.normal(0, 0.2, 250)
    bounds = {"size": (0, 10), "frequency": (0.1, 20), "phase": (-np.pi, np.pi)}
    result = dask_nlsq.fit(turning, t, y, p0=[1, 1, 0], bounds=bounds)
    assert result.success and abs(result.params["frequency"] - 3.3) < 0.02


def refuses_negative_rates(t, height, rate):
    if rate < 0:
        raise ValueError("no such rate")
    return height * np.exp(-rate * t)


@pytest.mark.parametrize("start", [[1, 1], [3, 0.5]], ids=str)
def test_a_model_that_raises_at_other_starts_is_fitted(start):
    y = 2 * np.exp(-0.7 * T) + 0.3 * np.sin(6 * T)  # what it leaves has structure
    result = dask_nlsq.fit(refuses_negative_rates, T, y, p0=start, jac="3-point")
    assert result.success and 0.4 < result.params["rate"] < 1.2


def test_bounds_that_span_float64_are_bounds():
    result = dask_nlsq.fit(lambda t, a, k: a * jnp.exp(-k * t), T, np.cos(T), p0=[1, 1], bounds=(-1.7e308, 1.7e308))
    assert np.isfinite(result.popt).all()


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 3, 6])
def test_a_fit_with_other_starts_resumes(after, tmp_path):
    y = 2 * np.sin(5.3 * T + 0.4) + 0.15 * T + 0.05 * NOISE
    whole = dask_nlsq.fit(turning, T, y)

    def interrupt(intermediate):
        if intermediate.nfev == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dask_nlsq.fit(turning, T, y, checkpoint=tmp_path / "ck", checkpoint_every=1, callback=interrupt)
    resumed = dask_nlsq.fit(turning, T, y, checkpoint=tmp_path / "ck")
    np.testing.assert_array_equal(resumed.popt, whole.popt)


@pytest.mark.parametrize("stops", ["time_limit", "callback"])
def test_a_stop_while_other_starts_are_tried_is_reported(stops, monkeypatch):
    y = 2 * np.sin(5.3 * T + 0.4) + 0.05 * NOISE
    plain = dask_nlsq.fit(turning, T, y)
    first = len(plain.history) - 3

    def stop(intermediate):
        seen.append(intermediate)
        if len(seen) > first:
            raise StopIteration

    seen = []
    if stops == "callback":
        result = dask_nlsq.fit(turning, T, y, callback=stop)
        assert result.status is dask_nlsq.Status.CALLBACK and len(result.history) > first
        assert result.cost == result.history["cost"].min() and "was stopped" in result.notes[-1]
        return
    monkeypatch.setattr("dask_nlsq._fit.checks.restarts.past_deadline", lambda deadline: True)
    notes = dask_nlsq.fit(turning, T, y, time_limit=1e6).notes
    assert any("the time limit was reached before other starts" in note for note in notes)


@pytest.mark.slow
def test_a_prior_determines_what_the_data_do_not():
    y = 1 + 0.1 * NOISE
    options = {"sigma": 0.1, "absolute_sigma": True}
    square = dask_nlsq.fit(lambda t, a, b: a + b * b * t, T / 10, y, prior={"b": (0, 0.05)}, p0=[1, 0.01], **options)
    product = dask_nlsq.fit(
        lambda t, a, b, c: a + b * c * t, T / 10, y, prior={"b": (0, 0.1), "c": (0, 0.1)}, p0=[1, 0.01, 0.01], **options
    )
    assert np.isfinite(square.stderr).all() and np.isfinite(product.stderr).all()


def step(t, low, high, place):
    return jnp.where(t < place, low, high)


@pytest.mark.crossed
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("unit", [1e-9, 1.0, 1e12])
@pytest.mark.parametrize("bounded", [False, True])
def test_what_no_derivative_sees_is_no_success(unit, bounded):
    y = np.where(T < 6.3, 1.0, 4.0) + 0.1 * NOISE
    bounds = {"place": (2 * unit, 9 * unit)} if bounded else None
    for place in (2, 5, 9):
        result = dask_nlsq.fit(step, T * unit, y, p0={"low": 1, "high": 4, "place": place * unit}, bounds=bounds)
        assert not result.success or abs(result.params["place"] / unit - 6.3) < 0.06


@pytest.mark.slow
def test_a_model_that_explains_nothing_says_so():
    result = dask_nlsq.fit(hyperbola, 1 + T, 5 + NOISE, p0=[1, 1])
    assert result.rsquared < 0.05
    assert any("explains no more than a constant" in note for note in result.notes) or not result.success


# --- False failures ---------------------------------------------------------------------------------------------

COINCIDE = {  # two terms that are one at the minimum
    "gaussians": lambda t, a, b, xp=jnp: xp.exp(-((t - a) ** 2)) + xp.exp(-((t - b) ** 2)),
    "lorentzians": lambda t, a, b, xp=jnp: 1 / (1 + (t - a) ** 2) + 1 / (1 + (t - b) ** 2),
    "lorentzians squared": lambda t, a, b, xp=jnp: 1 / (1 + (t - a) ** 2) ** 2 + 1 / (1 + (t - b) ** 2) ** 2,
    "hyperbolic secants": lambda t, a, b, xp=jnp: 1 / xp.cosh(2 * (t - a)) + 1 / xp.cosh(2 * (t - b)),
}


@pytest.mark.slow
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("name", COINCIDE)
@pytest.mark.parametrize("way", ["memory", "curve_fit", "numpy"])
def test_two_terms_that_coincide(name, way):
    model, t = COINCIDE[name], T - 5
    y = 2 * np.exp(-2 * (t - 0.3) ** 2) + 0.02 * NOISE
    if way == "curve_fit":
        popt, pcov = dask_nlsq.curve_fit(model, t, y, [-0.5, 1.0])
        assert abs(popt[0] - popt[1]) < 1e-4 and (np.diag(pcov) > 1e6).all()
        return
    model = model if way == "memory" else lambda t, a, b: COINCIDE[name](np.asarray(t), a, b, xp=np)
    result = dask_nlsq.fit(model, t, y, p0=[-0.5, 1.0], jac=None if way == "memory" else "3-point")
    assert result.success and result.nsweeps < 60
    assert abs(result.popt[0] - result.popt[1]) < 1e-4 and np.isinf(result.stderr).all()


@pytest.mark.crossed(4)
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("origin", [0.0, 57958.0, 2459800.25, 1.7e9])
@pytest.mark.parametrize("seed", range(5))
def test_a_wave_far_from_zero_converges(origin, seed):
    rng = np.random.default_rng(100 + seed)
    t = origin + np.sort(rng.uniform(0, 30, 60))
    v = 0.15 * np.sin(2 * np.pi * (t - t[0]) / 0.61 + 1.0) + 8.0 + rng.normal(0, 0.05, t.size)
    result = dask_nlsq.fit(dask_nlsq.models.sinusoid + dask_nlsq.models.constant, t, v)
    assert result.success and result.rsquared > 0.5


# --- The last step ----------------------------------------------------------------------------------------------------

LARGE = {  # models whose best residuals are as large as the signal: model, x, y, start
    "a square below": (lambda t, a, b: (a - 3 * t + b * jnp.sin(5 * t)) ** 2, T / 10, -40 + 5 * NOISE, [2.0, 1.0]),
    "a valley": (
        lambda t, a, b, c: jnp.cosh(a - b * t) + (c - jnp.log(t)) ** 2,
        0.05 + T[::2] / 2,
        -10 + NOISE[::2] / 2,
        [1.0, 1.0, 1.0],
    ),
    "a square of a wave": (lambda t, a, b: (a + jnp.sin(b * t)) ** 2, T, -5 + NOISE, [1.0, 1.0]),
    "an exponential below": (lambda t, a, b: jnp.exp(a - b * t), T / 5, -3 + NOISE, [1.0, 0.5]),
    "squares of both": (lambda t, a, b: a**2 + (b * t) ** 2 + a * b, T / 10, -8 + NOISE, [2.0, -1.0]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_no_answer_costs_more_than_a_point_that_was_swept(name):
    model, x, y, start = LARGE[name]
    result = dask_nlsq.fit(model, x, y, p0=start)
    cost = 0.5 * float(np.sum((result.predict(x) - y) ** 2))
    assert cost <= result.history["cost"].min() * (1 + 1e-12)
    assert result.nsweeps < 300


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a square below", "a valley", "a square of a wave", "squares of both"])
def test_second_derivatives_end_what_creeps(name):
    model, x, y, start = LARGE[name]
    result = dask_nlsq.fit(model, x, y, p0=start)
    least = scipy.optimize.least_squares(
        lambda p: np.asarray(model(x, *p)) - y, result.popt, x_scale="jac", xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    assert result.success and result.cost <= least.cost * (1 + 1e-6)


# --- What the data determine does not depend on the way ---------------------------------------------------------------

ALIKE = {  # model, x, true parameters
    "a decay": (decay, T, [2, 0.5, 1]),
    "a decay on 1000": (decay, T, [2, 0.5, 1000]),
    "a peak": (gaussian, T, [3, 4, 0.8, 1]),
    "a wave": (wave, T, [1, 2, 0.31, 1]),
    "a saturation": (saturation, T, [5, 2]),
    "an edge": (edge, T, [1, 4, 5, 0.5]),
    "few rows": (decay, T[::40], [2, 0.5, 1]),
}


@pytest.mark.crossed(2)
@pytest.mark.parametrize("name", ALIKE)
def test_standard_errors_do_not_depend_on_the_start(name):
    model, x, truth = ALIKE[name]
    y, rng = rows(model, x, truth), np.random.default_rng(0)
    ends = [dask_nlsq.fit(model, x, y, p0=np.array(truth) * rng.uniform(0.8, 1.2, len(truth))) for _ in range(10)]
    least = min(end.cost for end in ends)
    alike = [end.stderr.to_numpy() for end in ends if end.success and end.cost < least * (1 + 1e-9)]
    assert len(alike) > 7
    np.testing.assert_allclose(alike, np.broadcast_to(alike[0], np.shape(alike)), rtol=1e-6)


def touching(t, size, turns, phase, level):
    return size * jnp.sin(2 * jnp.pi * turns * t + phase) + level


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_bound_that_was_touched_freezes_nothing(seed):
    x, rng = np.linspace(-3.2, 3.2, 21), np.random.default_rng(seed)
    y = 1.1 + 0.45 * np.cos(x + rng.uniform(-0.2, 0.2)) + rng.normal(0, 0.03, x.size)
    bounds = {"size": (0, np.inf)}
    least = dask_nlsq.fit(touching, x, y, p0=[0.45, 0.16, 1.6, 1.1], bounds=bounds)
    result = dask_nlsq.fit(touching, x, y, p0=[0.8, 0.16, -1.1, 0.9], bounds=bounds)
    assert not result.success or result.cost <= 1.001 * least.cost
    assert np.isfinite(result.stderr["level"])


REDUNDANT = {  # one parameter written twice
    "a sum": lambda t, a, b, level, xp=jnp: xp.exp(-(a + b) * t) + level,
    "a difference": lambda t, a, b, level, xp=jnp: xp.exp(-(3 * a - b) * t) + level,
    "a product": lambda t, a, b, level, xp=jnp: a * b * xp.exp(-0.5 * t) + level,
    "a ratio": lambda t, a, b, level, xp=jnp: a / b * xp.exp(-0.5 * t) + level,
    "a height and an onset": lambda t, a, b, level, xp=jnp: a * xp.exp(-0.5 * (t - b)) + level,
    "a power": lambda t, a, b, level, xp=jnp: a**b * xp.exp(-0.5 * t) + level,
}


@pytest.mark.slow
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("name", REDUNDANT)
@pytest.mark.parametrize("way", ["jax", "numpy"])
@pytest.mark.parametrize(
    ("start", "scale"), [([1.2, 0.8, 0.1], 1.0), ([1.2, 0.8, 0.1], 1e6), ([2.0, 1.5, 1.0], 1e-6)], ids=str
)
def test_a_redundant_pair_has_no_errors_and_a_level_has(name, way, start, scale):
    def model(t, a, b, level):
        return REDUNDANT[name](t, a, b, level / scale, xp=jnp if way == "jax" else np)

    y = np.exp(-0.5 * T) + 0.3 + 0.01 * NOISE
    options = {} if way == "jax" else {"jac": "3-point"}
    result = dask_nlsq.fit(model, T, y, p0=[*start[:2], start[2] * scale], **options)
    assert result.success
    assert np.isinf(result.stderr[["a", "b"]]).all()
    assert 1e-4 < result.stderr["level"] / scale < 1e-2


# --- From the command line --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("formula", "start", "truth"),
    [
        ("height * exp(-rate * t) + level", {"height": 2, "rate": 0.5, "level": 880}, (decay, [2, 0.5, 1000])),
        (
            "height / (1 + ((t - centre) / width)**2) + level",
            {"height": 0, "centre": 4, "width": 0.5, "level": 0},
            (lorentzian, [2, 6, 0.8, 0]),
        ),
    ],
)
def test_from_the_command_line(formula, start, truth, tmp_path):
    model, theta = truth
    y = rows(model, T, theta)
    pd.DataFrame({"t": T, "y": y}).to_parquet(tmp_path / "rows.parquet")
    p0 = ",".join(f"{name}={value}" for name, value in start.items())
    said = ["fit", str(tmp_path / "rows.parquet"), "--model", formula, "--p0", p0, "-o", str(tmp_path / "result.json")]
    assert CliRunner().invoke(main, said).exit_code == 0
    result = dask_nlsq.FitResult.from_dict(json.loads((tmp_path / "result.json").read_text("utf-8")))
    assert_lowest(model, T, y, (result.params[list(start)].to_numpy(), result.success), theta)
