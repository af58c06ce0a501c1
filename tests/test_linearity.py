"""Detection of the parameters in which a model is linear, and the reduced problem without them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dask_nlsq
from dask_nlsq import Model
from dask_nlsq._kernel.separable import linearity
from dask_nlsq._model.objective import Objective
from dask_nlsq._solver.factor import factorise
from dask_nlsq._solver.projection import project


@jax.jit
def compiled(t, a, k):
    return a * jnp.exp(-k * t)


def scanned(t, a, k):
    return jax.lax.scan(lambda y, _: (y - 0.1 * k * y, y), a * jnp.ones_like(t), None, length=3)[0]


def branched(t, a, b, x0):
    return jnp.where(t < x0, a, a + b * (t - x0))


MODELS = {  # model, in which it is linear, which of those scale other derivatives
    "a line": (lambda t, a, b: a + b * t, "a b", ""),
    "a decay": (lambda t, a, k, c: a * jnp.exp(-k * t) + c, "a c", "a"),
    "a compiled decay": (compiled, "a", "a"),
    "a decay over a rate": (lambda t, a, k: a * jnp.exp(-k * t) / k, "a", "a"),
    "a lifetime": (lambda t, a, tau: a * jnp.exp(-t / tau), "a", "a"),
    "a ratio": (lambda t, a, b: a / (b + t), "a", "a"),
    "a rational": (lambda t, p0, p1, q: (p0 + p1 * t) / (1 + q * t), "p0 p1", "p0 p1"),
    "two exponentials": (lambda t, a, j, b, k: a * jnp.exp(-j * t) + b * jnp.exp(-k * t), "a b", "a b"),
    "a sinusoid": (lambda t, s, c, f, m: s * jnp.sin(f * t) + c * jnp.cos(f * t) + m, "s c m", "s c"),
    "a peak": (lambda t, h, x0, w, m, s: h * jnp.exp(-(((t - x0) / w) ** 2)) + m + s * t, "h m s", "h"),
    "a stack": (lambda t, a, b: jnp.sum(jnp.stack([a * t, b * t**2, a + b + 0 * t]), axis=0), "a b", ""),
    "a cumulative sum": (lambda t, a, b, k: a * jnp.cumsum(jnp.exp(-k * jnp.linspace(0, 1, 9)))[3] * t + b, "a b", "a"),
    "a mean": (lambda t, a, b, k: a * jnp.mean(jnp.exp(-k * jnp.linspace(0, 1, 9))) * t + b, "a b", "a"),
    "a product of two": (lambda t, a, b: a * b * t, "a", "a"),
    "a square": (lambda t, a, b: a**2 * t + b, "b", ""),
    "a first power": (lambda t, a, b: a**1 * t + b, "a b", ""),
    "an absolute value": (lambda t, a, b: jnp.abs(a) * t + b, "b", ""),
    "a bound of a kind": (lambda t, a, b: jnp.maximum(a * t, b), "", ""),
    "a branch of a column": (lambda t, a, b: jnp.where(t < 2, a, b * t), "a b", ""),
    "a branch of a parameter": (branched, "a b", "a b"),
    "an interpolation": (
        lambda t, a, b, c: jnp.interp(t, jnp.arange(3.0), jnp.stack([a, b, c])),
        "a b c",
        "",
    ),  # although it is
    "an unpacked stack": (lambda t, a, b: sum(jnp.stack([a * t, b + 0 * t])), "a b", ""),
    "pieces": (lambda t, a, b: jnp.concatenate(jnp.split(a * t + b, [2])), "a b", ""),
    "a loop": (scanned, "", ""),
    "a logarithm": (lambda t, a, b: jnp.log(a * t + b), "", ""),
    "a rounded parameter": (lambda t, a, b: jnp.round(a) * t + b, "b", ""),
    "a parameter that is not used": (lambda t, a, b: b * t, "a b", ""),
}


def objective(model, **options):
    return Objective(Model.from_function(model).bind(["t"]), ("t", "y"), **options)


@pytest.mark.parametrize("name", MODELS)
def test_which_parameters_are_linear(name):
    model, linear, coupled = MODELS[name]
    it = objective(model)
    found, names = linearity(it), np.array(it.model.parameters)
    assert " ".join(names[found.linear]) == linear
    assert " ".join(names[found.coupled]) == coupled


@pytest.mark.parametrize("name", MODELS)
def test_what_is_called_linear_has_no_second_derivative(name):
    it = objective(MODELS[name][0])
    linear = linearity(it).linear
    with jax.enable_x64(True):
        t = np.linspace(0.1, 1.9, 7)
        bend = jax.jit(jax.jacfwd(jax.jacfwd(lambda theta: it.evaluate((t,), list(theta), jnp.stack))))
        for theta in np.random.default_rng(0).uniform(0.5, 1.5, (3, len(linear))):
            np.testing.assert_array_equal(np.asarray(bend(theta))[:, linear][:, :, linear], 0)


@pytest.mark.parametrize("options", [{"jacobian": "numeric"}, {"loss": "soft_l1"}], ids=str)
def test_nothing_is_said_of_models_that_are_not_traced_and_of_robust_losses(options):
    assert not linearity(objective(MODELS["a line"][0], **options)).linear.any()


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(1, 6), st.booleans())
def test_a_projected_step_is_that_of_all_parameters(seed, p, q, dependent):
    rng, q = np.random.default_rng(seed), min(q, p - 1)
    jac, residual = rng.normal(size=(3 * p, p)) * 10.0 ** rng.uniform(-6, 6, p), rng.normal(size=3 * p)
    linear = np.arange(p) < q
    if dependent and q > 1:
        jac[:, 1] = 2 * jac[:, 0]
    projection = project(factorise(jac.T @ jac, jac.T @ residual, None), linear)
    step = rng.normal(size=p - q) / np.linalg.norm(jac[:, ~linear], axis=0)
    scale = np.linalg.norm(jac[:, linear], axis=0)
    best = -np.linalg.lstsq(jac[:, linear] / scale, residual + jac[:, ~linear] @ step, rcond=1e-7)[0]
    left, least = (residual + jac @ d for d in (projection.lift(step), np.concatenate([best / scale, step])))
    np.testing.assert_allclose(left @ left, least @ least, rtol=1e-6)
    alone = residual + jac[:, linear] @ projection.best
    np.testing.assert_allclose(0.5 * residual @ residual - projection.explained, 0.5 * alone @ alone, rtol=1e-6)


@pytest.mark.crossed(2)
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("name", ["a line", "a stack", "a cumulative sum", "a branch of a column", "a mean"])
@pytest.mark.parametrize("far", [1.0, 1e6, 1e12])
def test_linear_models_take_few_sweeps_from_any_start(name, far):
    """One sweep leads to the minimum; the others bring its last digits."""
    model, t = MODELS[name][0], np.linspace(0.1, 2.9, 200)
    it = objective(model)
    truth = np.linspace(1, 2, it.n_parameters)
    with jax.enable_x64(True):
        y = jax.jit(lambda theta: it.evaluate((t,), list(theta), jnp.stack))(truth)
    y = np.asarray(y) + 0.01 * np.random.default_rng(0).normal(size=200)
    held = {"k": 1.0} if "k" in it.model.parameters else None
    result = dask_nlsq.fit(model, t, y, p0=far * truth, fixed=held)
    assert result.success and result.nsweeps <= 4
