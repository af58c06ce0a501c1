"""A second fit of the same model traces, compiles and pickles nothing, and a model that has changed is another."""

import functools
import json
import os
import subprocess
import sys
import types

import dask
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import dask_nlsq
from dask_nlsq._kernel import compile_cache, traced
from dask_nlsq._model import Model, Objective, key
from dask_nlsq._sweep import payload

T = np.linspace(0, 4, 60)
Y = 2.5 * np.exp(-1.3 * T) + 0.5 + 0.01 * np.sin(40 * T)
X = np.stack([T, T**2])
P0 = [2.0, 1.0, 1.0]


def decay(t, a, b, c):
    return a * jnp.exp(-b * t) + c


def surface(x, a, b, c):
    return a * jnp.exp(-b * x[0]) + c * x[1]


def across(t, a, b):
    values = a * jnp.exp(-b * t)
    return values - values[0]


def scaled(scale):
    return lambda t, a, b, c: scale * a * jnp.exp(-b * t) + c


CALLS = {
    "arrays": lambda: dask_nlsq.fit(decay, T, Y, p0=P0),
    "frame": lambda: pd.DataFrame({"t": T, "y": Y}).nlsq.fit(decay, p0=P0),
    "a new function of the same text": lambda: dask_nlsq.fit(scaled(2.0), T, Y, p0=P0),
    "sigma, bounds and a fixed parameter": lambda: dask_nlsq.fit(
        decay, T, Y, p0=P0, sigma=0.1, bounds=([0, 0, 0], [9, 9, 9]), fixed=["c"]
    ),
    "formula": lambda: dask_nlsq.fit("a*exp(-b*t) + c", T, Y, p0=P0),
    "model of the library": lambda: dask_nlsq.fit("exponential_decay", T, Y),
    "robust loss": lambda: dask_nlsq.fit(decay, T, Y, p0=P0, loss="soft_l1"),
    "curve_fit": lambda: dask_nlsq.curve_fit(decay, T, Y, P0),
    "curve_fit, a new function": lambda: dask_nlsq.curve_fit(scaled(2.0), T, Y, P0, sigma=np.full(60, 0.1)),
    "curve_fit, jax.jit": lambda: dask_nlsq.curve_fit(jax.jit(decay), T, Y, P0, bounds=(0, 9)),
    "curve_fit, rows beside one another": lambda: dask_nlsq.curve_fit(across, T, Y - Y[0], P0[:2]),
    "curve_fit, two columns": lambda: dask_nlsq.curve_fit(surface, X, Y, P0),
}


@pytest.mark.crossed(8)
@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_a_second_call_traces_compiles_and_pickles_nothing(call, monkeypatch):
    def refuse(*args, **options):
        raise AssertionError("made again")

    call()
    for owner, name in ((traced, "trace"), (jax.stages.Lowered, "compile"), (payload._Pickler, "dump")):
        monkeypatch.setattr(owner, name, refuse)
    call()


SCALE = 1.0
HELD = {"scale": 1.0}
SETTINGS = types.SimpleNamespace(scale=1.0)


def of_global(x, a):
    return SCALE * a * x


def of_container(x, a):
    return HELD["scale"] * a * x


def of_object(x, a):
    return SETTINGS.scale * a * x


def of_attribute(x, a):
    return of_attribute.scale * a * x


def of_default(x, a, *, scale=(1.0,)):
    return scale[0] * a * x


def of_function(x, a):
    return of_global(x, a)


def of_closure():
    scale = 1.0

    def model(x, a):
        return scale * a * x

    return model


of_cell = of_closure()
CHANGES = {
    of_global: lambda value: globals().update(SCALE=value),
    of_container: lambda value: HELD.update(scale=value),
    of_object: lambda value: setattr(SETTINGS, "scale", value),
    of_attribute: lambda value: setattr(of_attribute, "scale", value),
    of_default: lambda value: of_default.__kwdefaults__.update(scale=(value,)),
    of_function: lambda value: globals().update(SCALE=value),
    of_cell: lambda value: setattr(of_cell.__closure__[0], "cell_contents", value),
}


@pytest.mark.one_at_a_time
@pytest.mark.parametrize("fit", [lambda f: dask_nlsq.fit(f, T, T).popt, lambda f: dask_nlsq.curve_fit(f, T, T)[0]])
@pytest.mark.parametrize(("model", "change"), CHANGES.items(), ids=[model.__name__ for model in CHANGES])
def test_what_a_function_refers_to_may_change_between_two_calls(fit, model, change):
    for scale in (1.0, 2.0, 1.0, 4.0):
        change(scale)
        np.testing.assert_allclose(fit(model), 1.0 / scale)
    change(1.0)


def power(n):
    return lambda x, a: a * x**n


class Held:
    """An object of the user's."""


ALIKE = {
    "function": (power, 2, 2, True),
    "whole number and real": (power, 2, 2.0, False),
    "true and one": (power, True, 1, False),
    "not a number": (power, np.nan, np.nan, True),
    "zeros": (power, 0.0, -0.0, False),
    "arrays": (power, np.ones(3), np.ones(3), True),
    "arrays of other types": (power, np.ones(3), np.ones(3, np.float32), False),
    "arrays of other shapes": (power, np.ones((1, 3)), np.ones(3), False),
    "lists": (power, [1, {"a": 2}], [1, {"a": 2}], True),
    "a list and a tuple": (power, [1], (1,), False),
    "sets": (power, {1, 2}, {2, 1}, True),
    "partial": (lambda n: functools.partial(power(3), a=n), 1.0, 2.0, False),
    "objective": (lambda n: Objective(Model.from_function(power(n)).bind(["x"]), ("x", "y")), 2, 2, True),
    "moments of other units": (power, np.datetime64(1, "s"), np.datetime64(1, "D"), False),
    "formula": (lambda n: Model(f"a*x**{n}"), 2, 2, True),
    "formulas": (lambda n: Model(f"a*x**{n}"), 2, 3, False),
}


@pytest.mark.parametrize(("make", "one", "two", "same"), ALIKE.values(), ids=list(ALIKE))
def test_keys_are_equal_where_values_do_the_same(make, one, two, same):
    first, second = key(make(one)), key(make(two))
    assert first is not None and second is not None
    assert (first.parts == second.parts) == same


HOLDING = {
    "method of a container": {"scale": 1.0}.get,
    "object": Held(),
    "class": Held,
    "iterator": iter([1]),
    "set": {Held()},
    "array": np.array([Held()]),
    "function of JAX with a derivative of its own": jax.nn.relu,
}


@pytest.mark.parametrize("name", HOLDING)
def test_no_key_is_made_of_what_may_hold_more(name):
    assert key(power(HOLDING[name])) is None


def test_a_key_holds_what_it_refers_to_by_address():
    one = functools.partial(power, 2)()
    assert any(each is one.__code__ for each in key(one).held)


# --- models that treat each row by itself -----------------------------------------------------------------------------

SEVEN, SIXTY = np.linspace(0, 1, traced.ROWS), np.linspace(0, 1, 60)
ROWWISE = {
    "decay": decay,
    "branches": lambda t, a, b: jnp.where(t > a, t * b, 0.0),
    "special functions": lambda t, a, b: jax.scipy.special.erf(a * t) + jnp.sinc(b * t) + jnp.clip(t, 0, 1) ** b,
    "a sum of parts": lambda t, a, b: sum(a * jnp.exp(-((t - i * b) ** 2)) for i in range(5)),
    "jax.jit": jax.jit(decay),
    "a constant": lambda t, a: a + 0 * t,
}
ACROSS = {
    "mean": lambda t, a: a * (t - t.mean()),
    "largest": lambda t, a: a * t / t.max(),
    "running sum": lambda t, a: a * jnp.cumsum(t),
    "length": lambda t, a: a * t / len(t),
    "shape": lambda t, a: a * t * t.shape[0],
    "numbers of rows": lambda t, a: a * t + jnp.arange(len(t)),
    "mean of the numbers": lambda t, a: a * t + np.arange(len(t)).mean(),
    "as many constants": lambda t, a: a * t * SEVEN,
    "more constants": lambda t, a: a * t * SIXTY,
    "first row": lambda t, a: a * t - t[0],
    "neighbours": lambda t, a: a * jnp.roll(t, 1),
    "in turn": lambda t, a: a * t[::-1],
    "cut and joined": lambda t, a: jnp.concatenate([t[1:], t[:1]]) * a,
    "each with each": lambda t, a: jnp.sum(t[:, None] * t[None, :], axis=0) * a,
    "matrix": lambda t, a: jnp.diag(t * a) @ t,
    "largest number": lambda t, a: a * t + jnp.arange(len(t)).max(),
    "trace": lambda t, a: a * t + jnp.eye(len(t)).sum(),
    "two for each row": lambda t, a: a * t + jnp.ones((len(t), 2)).sum(),
    "ones for each pair": lambda t, a: a * t + jnp.ones((len(t), len(t))).sum(0)[0],
    "last number": lambda t, a: a * t + jnp.argmax(jnp.arange(len(t))),
    "random": lambda t, a: a * t + jax.random.normal(jax.random.key(0), t.shape),
}


def by_column(model):
    return Objective(Model.from_function(model).bind(["t"]), ("t", "y"))


@pytest.mark.parametrize(("models", "alike"), [(ROWWISE, True), (ACROSS, False)])
def test_programs_prove_that_rows_are_treated_by_themselves(models, alike):
    proved = {name: traced.treats_rows_alike(by_column(model)) for name, model in models.items()}
    assert proved == dict.fromkeys(models, alike)


@pytest.mark.parametrize("name", ["mean", "length", "more constants", "in turn", "numbers of rows"])
def test_curve_fit_hands_all_rows_to_a_function_that_looks_across_them(name):
    model = ACROSS[name]
    with jax.enable_x64(True):
        y = np.asarray(model(SIXTY, 1.7), float)
    np.testing.assert_allclose(dask_nlsq.curve_fit(model, SIXTY, y)[0], [1.7], rtol=1e-7)


# --- a cache on disk --------------------------------------------------------------------------------------------------

FIRST_FIT = """
import collections, jax, json, numpy as np, sys, dask_nlsq
told = collections.Counter()
jax.monitoring.register_event_listener(lambda event, **_: told.update([event.rpartition("/")[2]]))
t = np.linspace(0, 4, 60)
dask_nlsq.fit("a*exp(-b*t) + c", t, np.exp(-t) + np.cos(9 * t), p0=[1, 1, 1])
told["imported"] = [name for name in ("scipy.stats", "matplotlib", "sklearn") if name in sys.modules]
json.dump(told, sys.stdout)
"""


@pytest.mark.slow
def test_a_second_process_compiles_nothing_and_imports_no_more_than_it_needs(tmp_path):
    environ = {name: value for name, value in os.environ.items() if not name.startswith("JAX_")}
    environ |= {"DASK_NLSQ__COMPILATION_CACHE": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    told = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-c", FIRST_FIT], env=environ, capture_output=True, text=True, check=True
        )
        told.append(json.loads(done.stdout))
    assert told[0]["cache_misses"] and not told[1].get("cache_misses")
    assert told[1]["cache_hits"] == told[0]["cache_misses"]
    assert not told[0]["imported"]
    assert [path.name for path in tmp_path.iterdir()] == [compile_cache.environment()]


@pytest.mark.parametrize("other", ["machine", "processor"])
def test_another_processor_has_another_folder(other, monkeypatch):
    here = compile_cache.environment()
    monkeypatch.setattr(compile_cache.platform, other, lambda: "another")
    assert compile_cache.environment.__wrapped__() != here


def test_a_folder_that_cannot_be_made_is_warned_of(tmp_path):
    (tmp_path / "file").touch()
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    with pytest.warns(dask_nlsq.NlsqWarning, match="What is compiled is not kept"):
        compile_cache.persist.__wrapped__(str(tmp_path / "file"))
    jax.config.update("jax_compilation_cache_dir", before)


def test_no_folder_is_made_of_a_number():
    with dask.config.set({"nlsq.compilation-cache": 3}), pytest.raises(dask_nlsq.NlsqError, match="a folder is needed"):
        dask_nlsq.fit(decay, T, Y, p0=P0)
