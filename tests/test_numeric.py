"""Models that JAX cannot trace are fitted by finite differences, and a Jacobian may be given."""

import dask.array as da
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from problems import STORES, decay, decay_reference, decay_rows
from scipy import special

import dask_nlsq
from dask_nlsq import Model, ModelError, NlsqWarning
from dask_nlsq._kernel import finite_difference
from dask_nlsq._kernel.block import Block
from dask_nlsq._model.objective import Objective

T, Y = decay_rows(3000)


def with_numpy(t, amplitude, rate, offset):
    return amplitude * np.exp(-rate * t) + offset


def with_branch(t, amplitude, rate, offset):
    if rate < 0:
        rate = -rate
    return amplitude * jnp.exp(-rate * t) + offset


def with_scipy(t, amplitude, rate, offset):
    return amplitude * special.exp10(-rate * t / np.log(10)) + offset


def with_assignment(t, amplitude, rate, offset):
    out = np.zeros_like(t)
    out[:] = amplitude * np.exp(-rate * t) + offset
    return out


MODELS = [with_numpy, with_branch, with_scipy, with_assignment]


@pytest.mark.parametrize("model", MODELS)
def test_untraceable_models_equal_scipy(model, tmp_path):
    with pytest.warns(NlsqWarning, match=r"cannot be traced.*test_numeric\.py:\d+.*jnp\.where"):
        result = dask_nlsq.fit(model, data=STORES["parquet"](T, Y, 3, tmp_path))
    x, cov = decay_reference(T, Y)
    np.testing.assert_allclose(result.popt, x, rtol=1e-8)
    np.testing.assert_allclose(result.pcov, cov, rtol=1e-6, atol=1e-12)
    np.testing.assert_allclose(result.predict(T), with_numpy(T, *result.popt), rtol=1e-14)


def test_columns_of_float32_are_predicted_in_float64():
    t = np.linspace(0, 100, 400, dtype="f4")
    with pytest.warns(NlsqWarning, match="cannot be traced"):
        result = dask_nlsq.fit(lambda t, a, b: a * np.exp(b * t), t, 2 * np.exp(t.astype("f8")), p0=[2.0, 1.0])
    np.testing.assert_allclose(result.predict(t), 2 * np.exp(t.astype("f8")), rtol=1e-9)


def test_an_untraceable_model_is_an_error_where_jax_is_asked_for():
    with pytest.raises(ModelError, match="cannot be traced"):
        dask_nlsq.fit(with_numpy, T, Y, jac="jax")


def test_a_model_may_vanish_where_it_is_even():
    """At the start of a the value and both neighbours say that nothing moves: the derivative is zero and not 0 / 0."""
    fitted = dask_nlsq.fit(lambda t, a, b: a**2 * t + b, T, T, p0=[0.0, 0.0], jac="3-point", fixed=["b"])
    assert fitted.success and abs(fitted.params["a"]) == pytest.approx(1.0)
    assert "other starts led to a lower cost" in fitted.notes[-1]


@pytest.mark.parametrize("jac", ["2-point", "3-point"])
def test_differences_may_be_asked_for(jac):
    np.testing.assert_allclose(dask_nlsq.fit(decay, T, Y, jac=jac).popt, decay_reference(T, Y)[0], rtol=1e-8)


def jacobian(t, amplitude, rate, offset):
    e = np.exp(-rate * t)
    return np.stack([e, -amplitude * t * e, np.ones_like(t)], axis=1)


@pytest.mark.parametrize("constraints", [{}, {"fixed": {"offset": 0.5}}, {"tied": {"offset": "amplitude / 6"}}])
def test_a_jacobian_may_be_given(constraints):
    given = dask_nlsq.fit(with_numpy, T, Y, jac=jacobian, **constraints)
    traced = dask_nlsq.fit(decay, T, Y, **constraints)
    np.testing.assert_allclose(given.popt, traced.popt, rtol=1e-8)
    np.testing.assert_allclose(given.pcov, traced.pcov, rtol=1e-6)


def test_a_jacobian_of_the_wrong_shape():
    with pytest.raises(ModelError, match=r"jac returns the shape \(3, 3000\)"):
        dask_nlsq.fit(with_numpy, T, Y, jac=lambda *a: jacobian(*a).T)


@pytest.mark.crossed
@pytest.mark.parametrize("options", [{"loss": "cauchy", "f_scale": 0.2}, {"cov_type": "sandwich"}, {"sigma": 0.3}])
def test_every_sum_is_that_of_the_kernel(options):
    one = dask_nlsq.fit(decay, T, Y, jac="3-point", **options)
    two = dask_nlsq.fit(decay, T, Y, **options)
    np.testing.assert_allclose(one.popt, two.popt, rtol=1e-8)
    np.testing.assert_allclose(one.pcov, two.pcov, rtol=1e-6)
    assert one.loglik == pytest.approx(two.loglik, rel=1e-12)
    assert one.rsquared == pytest.approx(two.rsquared, rel=1e-12)


def test_a_numpy_model_that_looks_across_rows():
    with pytest.raises(ModelError, match="looks across rows"):
        dask_nlsq.fit(lambda t, a, b: a * np.asarray(t) / np.max(t) + b, T, Y, jac="3-point")


def test_a_model_that_runs_nowhere():
    with pytest.raises(ModelError, match="neither under JAX"):
        dask_nlsq.fit(lambda t, a: a * t.no_such_method(), T, Y)


# --- steps ------------------------------------------------------------------------------------------------------------


def dip(x, center, width, depth, level):
    return level - depth * np.exp(-0.5 * ((x - center) / width) ** 2)


DIPS = {  # origin of x, width, depth, level
    "as wide as its position": (0.7, 0.5, 0.02, 1.0),
    "MJD": (57958.3, 0.05, 0.02, 1.0),
    "MJD, an hour": (57958.3, 0.01, 0.02, 1.0),
    "MJD, seconds": (57958.3, 1e-4, 1.0, 1.0),
    "a laser line in Hz": (2.8e14, 1e6, 1.0, 0.0),
    "nanometres in metres": (500e-9, 1e-12, 3.0, 0.0),
    "around zero in large units": (0.0, 8e8, 1.0, 1.0),
    "around zero in small units": (0.0, 8e-12, 1.0, 1.0),
    "on a large offset": (57958.3, 0.05, 0.1, 1e5),
}


@pytest.mark.parametrize("name", DIPS)
def test_steps_suit_the_width_of_a_dip_and_not_its_position(name):
    origin, width, depth, level = DIPS[name]
    x = origin + width * np.linspace(-8, 8, 300)
    y = dip(x, origin, width, depth, level) + 0.05 * depth * np.random.default_rng(0).normal(size=300)
    start = [origin + 0.5 * width, 1.3 * width, 0.7 * depth, level]
    traced = lambda x, center, width, depth, level: level - depth * jnp.exp(-0.5 * ((x - center) / width) ** 2)  # noqa: E731
    one, two = dask_nlsq.fit(dip, x, y, p0=start, jac="3-point"), dask_nlsq.fit(traced, x, y, p0=start)
    assert one.success
    # An offset of 1e6 depths takes six of the sixteen digits of a difference, and others leave ten.
    tolerance = 1e-3 if level > 1 else 1e-5
    assert (np.abs(one.popt - two.popt) < tolerance * two.stderr.to_numpy()).all()
    np.testing.assert_allclose(one.stderr, two.stderr, rtol=tolerance)


def test_most_columns_take_two_evaluations():
    calls = []

    def counted(t, amplitude, rate, offset):
        calls.append(len(t))
        return with_numpy(t, amplitude, rate, offset)

    objective = Objective(Model.from_function(counted).bind(["t"]), ("t", "y"), jacobian="numeric")
    finite_difference.reduce_block(objective, Block((T,), Y), np.array([3.0, 1.3, 0.5]), None)
    assert len(calls) == 1 + 2 * 3


LINES = np.random.default_rng(5).normal(1, 0.4, 150)
SINGLE = {
    "Series": lambda x, y: (pd.Series(x), pd.Series(y)),
    "Series of half": lambda x, y: (pd.Series(x).astype("float16"), pd.Series(y)),
    "array": lambda x, y: (x, y),
    "list": lambda x, y: (x.tolist(), y.tolist()),
    "JAX": lambda x, y: (jnp.asarray(x), jnp.asarray(y)),
    "Dask": lambda x, y: (da.from_array(x, chunks=50), da.from_array(y, chunks=50)),
    "frame": lambda x, y: (pd.DataFrame({"x": x}), y),
}


@pytest.mark.parametrize("kind", SINGLE)
def test_curve_fit_computes_in_float64_whatever_the_data(kind):
    x, y = np.linspace(0, 3, 150).astype("f4"), LINES.astype("f4")
    x, y = SINGLE[kind](x, y)
    line = lambda x, level, slope: level + slope * (x["x"] if kind == "frame" else x)  # noqa: E731
    wide = np.asarray(x["x"] if kind == "frame" else x, float)
    found, _ = dask_nlsq.curve_fit(line, x, y, p0=[-1, -1])
    np.testing.assert_allclose(found, np.polyfit(wide, np.asarray(y, float), 1)[::-1], rtol=1e-8)
