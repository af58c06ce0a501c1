"""Classification of a function's arguments as columns and parameters, and their starting values."""

from functools import partial

import jax
import numpy as np
import pytest

from dask_nlsq import BoundsError, Model, ModelError
from dask_nlsq._fit.problem import to_model
from dask_nlsq._model.parameters import Parameters


def plain(t, a, b=2.0):
    return a + b * t


def two_columns(t, u, a):
    return a * t * u


def options(t, a, *, b=1.0, log=False, kind="x", scale=None):
    return a + b * t


def options_between(t, a, log=False, b=1.0, kind="x", c=0.5):
    return a + b * t + c * t**2 + (100 if log else 0)


def variadic(x, *p):
    return p[0] + p[1] * x


def half_variadic(x, a, *p):
    return a + p[0] * x


@pytest.mark.parametrize(
    ("func", "x", "parameters", "defaults"),
    [
        (plain, ["t"], ("a", "b"), {"b": 2.0}),
        (plain, ["time"], ("a", "b"), {"b": 2.0}),
        (two_columns, ["t"], ("u", "a"), {}),
        (two_columns, ["t", "u"], ("a",), {}),
        (two_columns, ["u", "time"], ("a",), {}),
        (options, ["t"], ("a", "b"), {"b": 1.0}),
        (options_between, ["t"], ("a", "b", "c"), {"b": 1.0, "c": 0.5}),
        (partial(plain, b=0.5), ["t"], ("a",), {}),
        (partial(plain, a=0.5), ["t"], ("b",), {"b": 2.0}),
        (partial(two_columns, t=0.5), ["u"], ("a",), {}),
        (partial(two_columns, 0.5), ["u"], ("a",), {}),
        (partial(partial(options_between, b=2.0), c=0), ["t"], ("a",), {}),
        (partial(options, log=True), ["t"], ("a", "b"), {"b": 1.0}),
        (jax.jit(partial(plain, b=0.5)), ["t"], ("a",), {}),
        (partial(jax.jit(partial(options_between, b=2.0)), c=3.0), ["t"], ("a",), {}),
    ],
)
def test_signature(func, x, parameters, defaults):
    model = Model.from_function(func).bind(x)
    assert model.parameters == parameters
    assert model.defaults == defaults


@pytest.mark.parametrize(
    ("func", "value"),
    [(partial(plain, a=3.0), 7.0), (partial(plain, b=3.0), 8.0)],
)
def test_what_a_partial_holds_it_keeps(func, value):
    model = Model.from_function(func, 1).bind(["t"])
    assert model([np.array([2.0])], [2.0] * len(model.parameters), np.stack).tolist() == [value]


def test_several_columns_come_stacked_or_by_name():
    x = [np.array([1.0, 2.0]), np.array([3.0, 5.0])]
    assert Model.from_function(two_columns).bind(["t", "u"])(x, [2.0], np.stack).tolist() == [6.0, 20.0]
    stacked = Model.from_function(lambda x, a: a * x[0] * x[1]).bind(["p", "q"])
    assert stacked(x, [2.0], np.stack).tolist() == [6.0, 20.0]


@pytest.mark.parametrize(
    ("func", "names"), [(variadic, ("p1", "p2")), (half_variadic, ("a", "p1")), (lambda *p: p[0], ("p1", "p2"))]
)
@pytest.mark.parametrize("p0", [[1.0, 2.0], {"p1": 1.0, "a": 2.0}], ids=["list", "dict"])
def test_variadic_parameters_are_counted_by_p0(func, names, p0):
    assert to_model(func, p0).parameters == names


def test_parameters_behind_an_option_do_not_take_its_place():
    x = [np.array([1.0, 2.0])]
    assert Model.from_function(options_between).bind(["t"])(x, [2.0, 3.0, 4.0], np.stack).tolist() == [9.0, 24.0]


@pytest.mark.parametrize(
    "func", [lambda: 1, lambda t: t, dict.fromkeys, lambda t, a, log=False, *p: t, lambda t, a, log=False, b=1.0, /: t]
)
def test_not_a_model(func):
    with pytest.raises(ModelError):
        Model.from_function(func)


MODEL = Model.from_function(plain).bind(["t"])


@pytest.mark.parametrize(
    ("p0", "bounds", "start", "guessed"),
    [
        (None, None, [1, 2], ("a",)),
        ({"a": 5}, None, [5, 2], ()),
        ([5, 6], None, [5, 6], ()),
        (None, {"a": (3, 4)}, [3.5, 2], ("a",)),
        (None, {"a": (1, 4)}, [2.5, 2], ("a",)),
        (None, {"a": (-3, 4)}, [1, 2], ("a",)),
        (None, {"a": (3, np.inf)}, [4, 2], ("a",)),
        (None, (-np.inf, [0.5, np.inf]), [-0.5, 2], ("a",)),
        ((1, 2), ([1, 2], [1, 3]), [2], ()),
    ],
)
def test_start(p0, bounds, start, guessed):
    parameters = Parameters.of(MODEL, p0, bounds)
    assert parameters.start.tolist() == start
    assert parameters.guessed == guessed


@pytest.mark.parametrize(
    ("p0", "bounds", "error"),
    [
        ([1, 2, 3], None, ModelError),
        ({"c": 1}, None, ModelError),
        ([np.nan, 1], None, ModelError),
        ([9, 1], {"a": (0, 5)}, BoundsError),
        (None, {"a": (5, 0)}, BoundsError),
        (None, {"c": (0, 1)}, BoundsError),
        (None, (0, [1, 2, 3]), BoundsError),
        (None, (np.nan, 1), BoundsError),
    ],
)
def test_unusable_starts_and_bounds(p0, bounds, error):
    with pytest.raises(error):
        Parameters.of(MODEL, p0, bounds)
