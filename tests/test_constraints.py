"""Fixed, tied and bounded parameters, priors, robust losses, the sandwich covariance, and early stopping."""

import dataclasses

import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from problems import decay, decay_rows
from scipy.optimize import least_squares

import dask_nlsq
from dask_nlsq import BoundsError, ModelError, Status
from dask_nlsq._checkpoint.codec import pack, unpack
from dask_nlsq._fit.loop import fitted, run_searches
from dask_nlsq._fit.problem import arrange
from dask_nlsq._kernel.reduction import Reduction
from dask_nlsq._solver.factor import Factor, factorise
from dask_nlsq._solver.subproblem import gauss_newton, solve
from dask_nlsq._solver.trust_region import TrustRegion, final, stop

T, Y = decay_rows(2000)
OUTLIERS = np.where(np.random.default_rng(5).random(2000) < 0.05, Y + np.random.default_rng(6).normal(0, 3, 2000), Y)
START = [2.0, 1.0, 0.1]


def rows(y=Y, npartitions=5):
    return dd.from_pandas(pd.DataFrame({"t": T, "y": y}), npartitions=npartitions)


def residual(p, y):
    return p[0] * np.exp(-p[1] * T) + p[2] - y


def scipy_minimum(y, start=START, **options):
    """Return SciPy's minimiser at tight tolerances, with its analytic Jacobian."""
    jacobian = lambda p, y: np.stack([np.exp(-p[1] * T), -p[0] * T * np.exp(-p[1] * T), np.ones_like(T)], 1)  # noqa: E731
    return least_squares(residual, start, jacobian, args=(y,), ftol=1e-15, xtol=1e-15, gtol=1e-15, **options)


def test_fixed_parameters_leave_the_problem():
    by_value = rows().nlsq.fit(decay, fixed={"offset": 0.5})
    by_name = rows().nlsq.fit(decay, p0={"offset": 0.5}, fixed=["offset"])
    by_bounds = rows().nlsq.fit(decay, bounds={"offset": (0.5, 0.5)})
    direct = rows().nlsq.fit(lambda t, amplitude, rate: amplitude * jnp.exp(-rate * t) + 0.5)
    for result in (by_value, by_name, by_bounds):
        np.testing.assert_allclose(result.popt[:2], direct.popt, rtol=1e-10)
        np.testing.assert_allclose(result.stderr[:2], direct.stderr, rtol=1e-8)
        assert (result.params["offset"], result.stderr["offset"], result.dof) == (0.5, 0.0, 1998)
        np.testing.assert_allclose(result.predict(T), residual(result.popt, 0.0), rtol=1e-12)


def test_tied_parameters_get_the_delta_method():
    tied = rows().nlsq.fit(decay, tied={"offset": "amplitude / 6"})
    direct = rows().nlsq.fit(lambda t, amplitude, rate: amplitude * (jnp.exp(-rate * t) + 1 / 6))
    np.testing.assert_allclose(tied.popt[:2], direct.popt, rtol=1e-10)
    assert tied.params["offset"] == pytest.approx(tied.params["amplitude"] / 6)
    assert tied.stderr["offset"] == pytest.approx(direct.stderr["amplitude"] / 6, rel=1e-8)
    assert tied.dof == 1998


@pytest.mark.slow
def test_two_bounds_for_all_are_for_those_that_are_free():
    free = rows().nlsq.fit(decay, fixed={"offset": -0.5}, p0=START)
    assert rows().nlsq.fit(decay, fixed={"offset": -0.5}, p0=START, bounds=(0, np.inf)).popt == pytest.approx(free.popt)
    assert rows().nlsq.fit(decay, tied={"offset": "amplitude / 6"}, bounds=(0, np.inf)).success


def test_ties_may_depend_on_ties_and_on_fixed():
    result = rows().nlsq.fit(decay, fixed={"rate": 1.3}, tied={"offset": "amplitude / 6 + 0 * rate"})
    assert result.dof == 1999
    assert result.stderr["rate"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"fixed": {"nope": 1}}, "nope"),
        ({"fixed": {"rate": np.nan}}, "finite"),
        ({"fixed": {"rate": 2.0}, "bounds": {"rate": (0, 1)}}, "fixed at 2, outside its bounds"),
        ({"tied": {"offset": "rate"}, "bounds": {"offset": (0, np.inf)}}, "tied and has the bounds"),
        ({"fixed": ["amplitude", "rate", "offset"]}, "nothing is left"),
        ({"tied": {"offset": "nope + 1"}}, "nope"),
        ({"tied": {"offset": "rate", "rate": "offset"}}, "circle"),
        ({"tied": {"offset": "__import__('os')"}}, "allowed"),
        ({"tied": {"offset": "rate"}, "fixed": {"offset": 1}}, "fixed as well as tied"),
        ({"prior": {"rate": (1, 0)}}, "positive sd"),
        ({"prior": {"nope": (1, 1)}}, "nope"),
        ({"loss": "square"}, "soft_l1"),
        ({"f_scale": 0.0}, "positive"),
    ],
)
def test_unusable_constraints(arguments, message):
    with pytest.raises((ModelError, BoundsError), match=message):
        rows().nlsq.fit(decay, **arguments)


@pytest.mark.crossed
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("npartitions", [7, 1, 200])
@pytest.mark.parametrize("loss", ["soft_l1", "huber", "cauchy", "arctan"])
def test_robust_losses_have_scipys_minimiser(loss, npartitions):
    result = rows(OUTLIERS, npartitions).nlsq.fit(decay, p0=START, loss=loss, f_scale=0.2)
    expected = scipy_minimum(OUTLIERS, loss=loss, f_scale=0.2)
    assert result.success
    np.testing.assert_allclose(result.popt, expected.x, rtol=1e-7)
    assert result.cost == pytest.approx(expected.cost, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["huber", "tukey"])
def test_a_large_scale_is_linear(loss):
    result = rows().nlsq.fit(decay, loss=loss, f_scale=1e6)
    np.testing.assert_allclose(result.popt, rows().nlsq.fit(decay).popt, rtol=1e-7)


@pytest.mark.slow
def test_tukey_forgets_what_is_far():
    far = np.where(np.arange(2000) % 50 == 0, 1e3, Y)
    clean = rows().nlsq.fit(decay)
    result = rows(far).nlsq.fit(decay, p0=clean, loss="tukey", f_scale=0.6)
    assert (abs(result.params - clean.params) < clean.stderr).all()


def cauchy_by_hand(z):
    return jnp.log1p(z), 1 / (1 + z), -1 / (1 + z) ** 2


@pytest.mark.slow
@pytest.mark.parametrize("loss", [cauchy_by_hand, lambda z: jnp.log1p(z)])
def test_a_loss_may_be_a_function(loss, client):
    named = rows(OUTLIERS).nlsq.fit(decay, p0=START, loss="cauchy", f_scale=0.2)
    np.testing.assert_allclose(
        rows(OUTLIERS).nlsq.fit(decay, p0=START, loss=loss, f_scale=0.2).popt, named.popt, rtol=1e-9
    )


@pytest.mark.crossed
@pytest.mark.parametrize("jac", [None, "3-point"])
def test_a_residual_of_zero_weighs_no_more_than_others(jac):
    """Where ρ' is infinite there, the fit is refused, or would end at that row; where only ρ'' is, nothing happens."""
    y = np.round(2 * T + 1.0, 1)
    y[0] = 1.0 + T[0]
    options = {"p0": [1.0, 1.0], "f_scale": 0.1, "jac": jac}
    line = lambda t, a, b: a * t + b  # noqa: E731
    with pytest.raises(ModelError, match="the loss or its derivative is not finite"):
        dask_nlsq.fit(line, T, y, loss=lambda z: z**0.75, **options)
    found = dask_nlsq.fit(line, T, y, loss=lambda z: z**1.5, **options)
    np.testing.assert_allclose(found.popt, [2.0, 1.0], atol=0.05)


@pytest.mark.crossed
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("power", [0.75, 1.5])
@pytest.mark.parametrize("npartitions", [1, 7])
def test_a_loss_may_have_infinite_derivatives_at_zero(power, npartitions):
    """Rows past the end of a block have a residual of exactly zero."""
    options = {"p0": START, "loss": lambda z: z**power, "f_scale": 0.2}
    traced, stepped = (rows(OUTLIERS, npartitions).nlsq.fit(decay, jac=jac, **options) for jac in (None, "3-point"))
    assert traced.success and stepped.success
    np.testing.assert_allclose(traced.popt, stepped.popt, rtol=1e-5)
    np.testing.assert_allclose(traced.stderr, stepped.stderr, rtol=1e-4)


def test_ftol_does_not_take_a_poor_step_for_an_end():
    """SciPy asks for a quarter of the decrease that was predicted, and ends at a cost of 1.57."""
    rng, x = np.random.default_rng(1), np.linspace(0, 3, 30)
    y = 2.5 * np.exp(-1.3 * x) + 0.5 + 0.05 * rng.normal(size=30)
    assert dask_nlsq.fit(decay, x, y, p0=[0.103, -1.848, 2.174], ftol=1e-2).cost < 1.6


@pytest.mark.crossed(2)
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("npartitions", [7, 1, 200])
@pytest.mark.parametrize("loss", ["soft_l1", "linear", "cauchy"])
@pytest.mark.parametrize("upper", [1.0, 1.2, 5.0])
def test_bounds_equal_scipy(loss, upper, npartitions):
    bounds = np.array([[0, 0, -1], [10, upper, 10]], float)
    result = rows(OUTLIERS, npartitions).nlsq.fit(decay, p0=START, bounds=tuple(bounds), loss=loss, f_scale=0.2)
    active = upper < 1.25
    if active:  # SciPy stays inside its bounds; held by hand, the parameter is where it belongs
        bounds[:, 1] = upper - 1e-15, upper
    start = [2.0, upper - 5e-16 if active else 1.0, 0.1]
    expected = scipy_minimum(OUTLIERS, start, bounds=bounds, loss=loss, f_scale=0.2)
    np.testing.assert_allclose(result.popt, expected.x, rtol=1e-7)
    assert result.cost <= expected.cost * (1 + 1e-12)
    assert (result.params["rate"] == upper) == active


def random_factor(seed, p):
    """Return the factor of 3 p rows."""
    a = np.random.default_rng(seed).normal(size=(3 * p, p + 1)) * np.logspace(-2, 2, p + 1)
    return factorise(a[:, :p].T @ a[:, :p], a[:, :p].T @ a[:, p], None)


def damped(factor, radius, room):
    """Return the step inside a trust region, no parameter moving farther than its room."""
    return solve(factor, gauss_newton(factor, -room, room), factor.norms, radius, -room, room)


@pytest.mark.parametrize("p", [1, 3, 8])
def test_a_damped_step_ends_at_a_bound_exactly(p):
    at_bounds = 0
    for seed in range(30):
        factor = random_factor(seed, p)
        newton = gauss_newton(factor, np.full(p, -np.inf), np.full(p, np.inf)).delta
        room = 0.1 * np.abs(newton)
        step = damped(factor, 0.2 * np.linalg.norm(factor.norms * newton), room).delta
        near = np.abs(np.abs(step) - room) < 1e-9 * room
        assert np.array_equal(np.abs(step[near]), room[near])
        at_bounds += near.sum()
    assert at_bounds > 20


@pytest.mark.parametrize("p", [1, 5, 15])
def test_a_factor_that_was_written_down_takes_the_same_step(p):
    for seed in range(20):
        factor = random_factor(seed, p)
        again = unpack(Factor, pack(factor))
        one, two = (damped(f, 0.3 * np.linalg.norm(factor.z), np.full(p, np.inf)) for f in (factor, again))
        assert (one.delta.tobytes(), one.damping, one.predicted) == (two.delta.tobytes(), two.damping, two.predicted)


@pytest.mark.crossed
@pytest.mark.parametrize(
    "options",
    [
        {"bounds": {"rate": (0, 1.2)}},
        {"bounds": ([0, 0, 0.502], [2.998, 9, 9]), "p0": [2, 1, 0.7]},
        {"loss": "cauchy", "f_scale": 0.1},
        {"loss": "cauchy", "f_scale": 0.2},
        {"loss": "soft_l1", "f_scale": 0.1},
        {"loss": "huber", "f_scale": 0.1},
    ],
    ids=str,
)
def test_two_sweeps_suffice_after_a_sample(options):
    """With 5 % of outliers, and where a bound is active."""
    t, y = decay_rows(1_200_000)
    rng = np.random.default_rng(5)
    y = np.where(rng.random(len(y)) < 0.05, y + rng.normal(0, 3, len(y)), y) if "loss" in options else y
    result = dask_nlsq.fit(decay, t, y, **{"p0": START} | options)
    assert (result.status, result.nsweeps) == (Status.CONVERGED, 2)
    assert np.max(np.abs(result.popt - gone_on(result))[result.active_mask == 0] / result.stderr.min()) < 1e-4


def gone_on(result):
    """Return where the same solver ends when it goes on to rounding level."""
    profiler = result.profiler
    groups = arrange(profiler.problem.source, profiler.problem.reader, profiler.problem.plan)
    search = fitted(dataclasses.replace(profiler.solver, tolerance=1e-9), result.popt)
    (state,) = run_searches(dataclasses.replace(profiler.problem, groups=groups), [search])
    return final(state, profiler.solver.lower, profiler.solver.upper)[0]


def test_a_prior_is_one_more_row():
    result = rows().nlsq.fit(decay, prior={"rate": (1.0, 0.01)}, sigma=0.1, absolute_sigma=True)

    def augmented(p):
        return np.r_[residual(p, Y) / 0.1, (p[1] - 1.0) / 0.01]

    expected = least_squares(augmented, START, method="lm", ftol=1e-15, xtol=1e-15, gtol=1e-15)
    np.testing.assert_allclose(result.popt, expected.x, rtol=1e-7)
    np.testing.assert_allclose(result.pcov, np.linalg.inv(expected.jac.T @ expected.jac), rtol=1e-4)


def with_one_more_row(t, amplitude, rate, offset=0.0):
    return jnp.where(t < 0, offset, decay(t, amplitude, rate, offset))


@pytest.mark.parametrize("absolute", [True, False])
def test_a_prior_counts_in_the_statistics_as_a_row_does(absolute):
    known = {"p0": START, "absolute_sigma": absolute}
    prior = dask_nlsq.fit(decay, T, Y, sigma=np.full(2000, 0.1), prior={"offset": (0.5, 0.001)}, **known)
    row = dask_nlsq.fit(with_one_more_row, np.r_[T, -1], np.r_[Y, 0.5], sigma=np.r_[np.full(2000, 0.1), 0.001], **known)
    np.testing.assert_allclose(prior.pcov, row.pcov, rtol=1e-6)
    for name in ("n_obs", "dof", "chisqr", "loglik", "aic", "bic"):
        assert getattr(prior, name) == pytest.approx(getattr(row, name), rel=1e-9), name
    left = residual(prior.popt, Y)
    assert prior.rmse == pytest.approx(np.sqrt(np.mean(left**2)))
    assert prior.rsquared == pytest.approx(1 - np.sum(left**2) / np.sum((Y - Y.mean()) ** 2))


@pytest.mark.slow
def test_a_prior_has_its_own_variance_in_the_sandwich():
    """All that is known of b comes from the prior, whose one residual is zero."""
    model = lambda t, a, b: a * t + 0 * b  # noqa: E731
    result = dask_nlsq.fit(model, T, 2 * T + Y, p0=[1, 1], prior={"b": (1.0, 0.5)}, cov_type="sandwich")
    assert result.stderr["b"] == pytest.approx(0.5 * np.sqrt(2001 / 1999))


def test_the_sandwich():
    spread = np.random.default_rng(1).normal(0, 0.02 + 0.2 * (T > 2.5))
    y = 3 * np.exp(-1.3 * T) + 0.5 + spread
    result = rows(y).nlsq.fit(decay, cov_type="sandwich")
    a, b, _ = result.popt
    jac = np.stack([np.exp(-b * T), -a * T * np.exp(-b * T), np.ones_like(T)], 1)
    r = residual(result.popt, y)
    bread = np.linalg.inv(jac.T @ jac)
    np.testing.assert_allclose(result.pcov, 2000 / 1997 * bread @ (jac.T * r**2) @ jac @ bread, rtol=1e-8)


def test_the_callback_sees_every_sweep_and_may_stop():
    seen = []

    def watch(intermediate_result):
        seen.append(intermediate_result)
        if len(seen) == 2:
            raise StopIteration

    result = rows().nlsq.fit(decay, p0=START, callback=watch)
    assert (result.status, result.success, result.nsweeps) == (Status.CALLBACK, False, 2)
    assert seen[1].cost <= seen[0].cost
    assert set(seen[0].params) == {"amplitude", "rate", "offset"}


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_the_callback_sees_the_last_sweep(noise):
    seen = []
    result = dask_nlsq.fit("line", T, 1 + 2 * T + noise * np.cos(30 * T), callback=lambda now: seen.append(now.nfev))
    assert seen == list(range(1, result.nsweeps + 1))


def test_a_time_limit_is_a_status():
    result = rows().nlsq.fit(decay, p0=START, time_limit=0.0)
    assert (result.status, result.nsweeps) == (Status.TIME_LIMIT, 1)


def test_what_creeps_has_stalled():
    """Each sweep lowers the cost, by next to nothing, and the remaining step stays as it is."""
    solver = TrustRegion(np.array([-np.inf]), np.array([np.inf]), max_nfev=10_000)
    state = solver.init(np.array([1.0]))
    while state.status is None:
        cost = 1.0 - 1e-9 * state.nsweeps
        gram = np.array([[1.0, 1.0], [1.0, 2.0 * cost]])
        state = solver.step(
            state, Reduction(100, 0, cost, gram, 100.0, 0.0, 1.0, 0.0, np.zeros(1), np.zeros(2, np.uint64))
        )
    assert state.status is Status.STALLED
    assert 100 < state.nsweeps < 200


EDGES = {
    "root": lambda t, a, d: a + jnp.sqrt(d) * t,
    "decay": lambda t, a, d: a * np.exp(-1e9 * d * t),
    "pole": lambda t, a, d: a / (1 + 1e9 * d * t),
}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "d0", "high"), [("root", 0.04, 1.0), ("decay", 1e-10, 5e-9), ("pole", 0.0, 1e-7)])
def test_an_optimum_on_a_bound_is_found_or_the_fit_says_that_it_was_not(name, d0, high):
    """Beyond the bound, or on it, a model or its derivative is not finite; the parameter may be in small units."""
    t = np.linspace(0, 1, 500)
    y = 1 + 0.02 * t + np.random.default_rng(0).normal(0, 0.01, 500)
    y -= (0.04 if name == "root" else 0.0) * t
    found = dask_nlsq.fit(EDGES[name], t, y, p0=[1, d0], bounds=([0, 0], [2, high]), client=False)
    expected = np.mean(y)
    assert not found.success or abs(found.popt[0] - expected) < 0.1 * found.stderr["a"], found
    assert found.success or name == "root"


def test_a_jacobian_of_the_wrong_sign_finds_no_minimum():
    t, y = decay_rows(500)
    wrong = lambda t, amplitude, rate, offset: np.stack(  # noqa: E731
        [-np.exp(-rate * t), amplitude * t * np.exp(-rate * t), -np.ones_like(t)], axis=1
    )
    assert not dask_nlsq.fit(decay, t, y, p0=[2, 1, 0.3], jac=wrong).success


def saturating(x, a, b, c):
    return a * x**c / (b + x**c)


@pytest.mark.slow
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("p0", [[0.30416473, 1.15760169, 2.80459963], [0.93447513, 0.43902446, 1.43033727]])
@pytest.mark.parametrize("stopped_after", [None, 180, 300])
def test_of_two_attempts_the_lower_is_the_answer(p0, stopped_after):
    """The data grow without bound: a minimum lies nowhere, and far from it is a flat place that looks like one."""
    x = np.linspace(0.1, 5, 200)
    y = np.exp(0.8 * x) + np.random.default_rng(0).normal(0, 0.2, 200)

    def callback(state):
        if state.nfev == stopped_after:
            raise StopIteration

    result = dask_nlsq.fit(saturating, x, y, p0=p0, callback=callback, client=False)
    assert result.cost <= 1.01 * result.history["cost"].min()


def test_a_time_limit_ends_a_second_look(monkeypatch):
    monkeypatch.setattr("dask_nlsq._fit.checks.perturbed_restarts.past_deadline", lambda _: True)
    monkeypatch.setattr(
        "dask_nlsq._fit.checks.perturbed_restarts.fitted", lambda solver, start, _: fitted(solver, start, -np.inf)
    )
    result = rows().nlsq.fit(decay, p0=START, goal="quality", time_limit=3600.0)
    assert result.success and result.notes[-1] == "The time limit ended the look from perturbed starts."


def test_a_time_limit_in_a_second_attempt_forgets_neither():
    solver = TrustRegion(np.array([-np.inf]), np.array([np.inf]))
    start = Reduction(
        100, 0, 50.0, np.array([[1.0, 1.0], [1.0, 100.0]]), 100.0, 0.0, 1.0, 0.0, np.zeros(1), np.zeros(2)
    )
    first = solver.step(solver.init(np.array([1.0])), start)
    low = dataclasses.replace(start, cost=40.0)
    fallback = dataclasses.replace(solver.step(first, low), status=Status.STALLED)
    second = dataclasses.replace(first, fallback=fallback, history=fallback.history)
    ended = stop(second, Status.TIME_LIMIT)
    assert (ended.status, ended.point.reduction.cost) == (Status.TIME_LIMIT, 40.0)
    assert solver.go_on(ended) is second
    assert solver.go_on(stop(second, Status.CALLBACK)) is second
    assert stop(fallback, Status.TIME_LIMIT).point is fallback.point


@pytest.mark.parametrize(("cost", "answer"), [(50.0, "first"), (40.5, "second"), (30.0, "second")])
def test_a_second_attempt_that_converged_is_the_answer_unless_it_lies_higher(cost, answer):
    """s² is 0.8; what converges within it is as low."""
    solver = TrustRegion(np.array([-np.inf]), np.array([np.inf]))
    states = {}
    for name, height, gradient in (("first", 40.0, 1.0), ("second", cost, 0.0)):
        gram = np.array([[1.0, gradient], [gradient, 2 * height]])
        found = Reduction(100, 0, height, gram, 100.0, 0.0, 1.0, 0.0, np.zeros(1), np.zeros(2))
        state = solver.init(np.array([1.0]))
        if name == "second":
            fallback = dataclasses.replace(states["first"], status=Status.STALLED)
            state = dataclasses.replace(state, fallback=fallback)
        states[name] = solver.step(state, found)
    assert states["second"].point.reduction.cost == {"first": 40.0, "second": cost}[answer]
    assert states["second"].status is {"first": Status.STALLED, "second": Status.CONVERGED}[answer]
