"""Models that are solutions of differential equations, against SciPy's solve_ivp with tight tolerances."""

import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import curve_fit

import dask_nlsq
from dask_nlsq import Model
from dask_nlsq._errors import ModelError

diffrax = pytest.importorskip("diffrax", reason="diffrax comes with the extra `ode`")

END = 5.0
T = np.random.default_rng(0).uniform(0.0, END, 400)  # in no order


def first_order(t, y, k):
    return -k * y


def logistic(t, y, rate, capacity):
    return rate * y * (1 - y / capacity)


def reversible(t, y, forth, back):
    return [-forth * y[0] + back * y[1], forth * y[0] - back * y[1]]


def consecutive(t, y, k1, k2):
    return [-k1 * y[0], k1 * y[0] - k2 * y[1], k2 * y[1]]


def michaelis_menten(t, y, vmax, km):
    return -vmax * y / (km + y)


# The equations, y0, what is observed, the true parameters and the start.
KINETICS = {
    "first order": (first_order, "start", None, (1.3, 2.0), (1.0, 1.0)),
    "logistic growth": (logistic, "start", None, (1.5, 5.0, 0.5), (1.0, 4.0, 1.0)),
    "reversible": (reversible, (2.0, 0.0), 1, (1.2, 0.4), (1.0, 1.0)),
    "consecutive": (consecutive, (3.0, 0.0, 0.0), 1, (1.5, 0.6), (1.0, 1.1)),
    "Michaelis-Menten": (michaelis_menten, "start", None, (2.0, 0.7, 4.0), (1.0, 1.0, 3.0)),
}


def model(name, **options):
    rhs, y0, observe, *_ = KINETICS[name]
    return Model.from_ode(rhs, y0, t1=END, observe=observe, **options)


def scipys(name):
    rhs, y0, observe, *_ = KINETICS[name]

    def values(t, *theta):
        k = len(theta) - isinstance(y0, str)
        initial = theta[k:] if isinstance(y0, str) else y0

        def slope(t, y):
            return [rhs(t, y[0], *theta[:k])] if isinstance(y0, str) else rhs(t, y, *theta[:k])

        solved = solve_ivp(slope, (0.0, END), initial, "DOP853", rtol=1e-12, atol=1e-13, dense_output=True)
        return solved.sol(t)[observe or 0]

    return values


def observed(name):
    y = scipys(name)(T, *KINETICS[name][3])
    return y + 0.01 * np.abs(y).max() * np.random.default_rng(1).standard_normal(len(T))


@pytest.mark.crossed(2)
@pytest.mark.parametrize("name", KINETICS)
def test_kinetics_are_those_of_scipy(name):
    y, start = observed(name), KINETICS[name][4]
    result = dask_nlsq.fit(model(name), T, y, p0=start, client=False)
    popt, pcov = curve_fit(scipys(name), T, y, start, ftol=1e-14, xtol=1e-14, gtol=1e-14)
    assert result.success
    np.testing.assert_allclose(result.popt, popt, rtol=1e-6)
    np.testing.assert_allclose(result.stderr, np.sqrt(np.diag(pcov)), rtol=1e-4)  # curve_fit differentiates by steps


def test_rows_may_come_in_any_order_and_partition():
    rows, start = pd.DataFrame({"t": T, "y": observed("first order")}), KINETICS["first order"][4]
    whole = dask_nlsq.fit(model("first order"), data=rows, p0=start, client=False)
    ordered = dask_nlsq.fit(model("first order"), data=rows.sort_values("t"), p0=start, client=False)
    cut = dask_nlsq.fit(model("first order"), data=dd.from_pandas(rows, npartitions=3), p0=start)
    for other in (ordered, cut):
        np.testing.assert_allclose(other.popt, whole.popt, rtol=1e-12)


def test_a_stiff_problem_takes_its_own_solver():
    def relaxation(t, y, rate):
        return -rate * (y - jnp.cos(t))

    one = Model.from_ode(relaxation, 0.0, t1=END, solver=diffrax.Kvaerno5(), rtol=1e-6, atol=1e-8, max_steps=10_000)
    y = np.cos(T - 1e-3) * (1 - np.exp(-1e3 * T))
    result = dask_nlsq.fit(one, T, y, p0={"rate": 800.0}, bounds={"rate": (100.0, 1e4)}, client=False)
    assert result.params["rate"] == pytest.approx(1e3, rel=1e-2)


def test_what_is_observed_may_be_a_function_and_starts_have_defaults():
    def decay(t, y, k=1.0):
        return [-k * y[0], k * y[0]]

    one = Model.from_ode(decay, ("start", 0.0), t1=END, observe=lambda y: y[0] + 2 * y[1], name="two states")
    assert one.parameters == ("k", "start") and one.defaults == {"k": 1.0} and one.name == "two states"
    np.testing.assert_allclose(one.eval(T, k=1.3, start=2.0), 4.0 - 2.0 * np.exp(-1.3 * T), rtol=1e-7)


def test_a_solver_inside_a_function_is_told_of_models_of_equations():
    def solved(t, start, k):
        term, to = diffrax.ODETerm(lambda t, y, _: -k * y * (1 - y / 5)), diffrax.PIDController(rtol=1e-5, atol=1e-7)
        saved = diffrax.SaveAt(ts=t)
        return diffrax.diffeqsolve(
            term, diffrax.Tsit5(), 0.0, t[-1], None, start, saveat=saved, stepsize_controller=to
        ).ys

    with pytest.raises(dask_nlsq.NlsqError, match=r"looks across rows: .*Model.from_ode"):
        dask_nlsq.fit(solved, np.sort(T), np.exp(-np.sort(T)), p0=(1.0, 1.0), client=False)


def test_rows_beyond_the_end_are_told():
    with pytest.raises(ModelError, match=r"from t0=0 to t1=5.* not finite .* in 1 row.*t=5.5"):
        dask_nlsq.fit(model("first order"), np.append(T, 5.5), np.ones(len(T) + 1), p0=(1.0, 1.0), client=False)


def with_numpy(t, y, k):
    return -k * np.sqrt(float(y))


def with_an_if(t, y, k):
    return -k * y if y > 1 else -k


WRITTEN = {"NumPy": with_numpy, "an if": with_an_if, "no slope": lambda t, y, k: None}


@pytest.mark.parametrize("name", WRITTEN)
def test_equations_that_jax_cannot_trace_are_refused(name):
    with pytest.raises(ModelError, match=r"cannot be traced by JAX: .* written with jax.numpy"):
        dask_nlsq.fit(Model.from_ode(WRITTEN[name], 2.0, t1=END), T, np.ones(len(T)), p0=(1.0,), client=False)


def test_slopes_are_as_many_as_states():
    one = Model.from_ode(lambda t, y, a: jnp.array([-a * y[0]]), (1.0, 0.0), t1=END, observe=0)
    with pytest.raises(ModelError, match=r"returns \(1,\) slopes for 2 states"):
        dask_nlsq.fit(one, T, np.ones(len(T)), p0=(1.0,), client=False)


def nothing(t, y):
    return -y


BAD = {
    "no parameter": ({"rhs": nothing, "y0": 1.0}, "has no parameter"),
    "an end before the start": ({"t1": -1.0}, "to a later t1"),
    "several states": ({"y0": (1.0, 2.0)}, "say with observe="),
    "a place that is none": ({"y0": (1.0, 2.0), "observe": 2}, "a place among 2 states"),
    "a place of a single state": ({"observe": 1}, "a place among 1 states"),
    "a place by name": ({"observe": "a"}, "a place among 1 states"),
    "the time among the parameters": ({"y0": "t"}, "A parameter is called 't'"),
    "no state": ({"y0": None}, "y0 holds None"),
    "any number of parameters": ({"rhs": lambda t, y, *theta: y}, "name its parameters"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_is_refused(name):
    options, message = BAD[name]
    options = {"rhs": first_order, "y0": 1.0, "t1": END} | options
    with pytest.raises(ModelError, match=message):
        Model.from_ode(options.pop("rhs"), options.pop("y0"), **options)
