"""Classification of a function's arguments as columns and parameters, and their starting values."""

import dataclasses
import pickle
from functools import partial

import dask.array as da
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import dask_nlsq
from dask_nlsq import BoundsError, DataError, Model, ModelError, models
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


def decay(t, amplitude, rate, offset=0.0):
    return amplitude * jnp.exp(-rate * t) + offset


def numpy_decay(t, amplitude, rate, offset=0.0):
    values = np.zeros(len(t))
    values[t >= 0] = amplitude * np.exp(-rate * t[t >= 0]) + offset
    return values


FORMULA = "amplitude*exp(-rate*t) + offset"


@pytest.mark.parametrize(
    ("model", "same", "text"),
    [
        (Model(decay), Model.from_function(decay), "Model(decay(t; amplitude, rate, offset=0))"),
        (Model(decay, defaults={"rate": 2}), None, "Model(decay(t; amplitude, rate=2, offset=0))"),
        (Model(decay, name="fall"), None, "Model(fall(t; amplitude, rate, offset=0))"),
        (Model(FORMULA), Model.from_expression(FORMULA), f"Model('{FORMULA}')"),
        (Model("a*t", columns=["t"]), Model.from_expression("a*t", ["t"]), "Model('a*t', columns=['t'])"),
        (Model(models.line), models.line, "Model(line(x; intercept, slope))"),
        (models.line + models.gaussian.prefix("g"), None, None),
        (Model(lambda x, a: a * x), None, "Model((<lambda>)(x; a))"),
    ],
    ids=str,
)
def test_a_model_is_made_shown_and_compared(model, same, text):
    assert text is None or repr(model) == text
    assert same is None or (model == same and hash(model) == hash(same))
    assert model == Model(model) and model in [model] and model in {model: 1}
    assert model != models.sinusoid and model != 3 and model.parameters[0] in model.parameters


def test_models_of_functions_with_arrays_compare():
    @dataclasses.dataclass
    class Weighted:
        weights: np.ndarray

        def __call__(self, x, a):
            return a * x

    one, other = (Model(Weighted(np.ones(3))) for _ in range(2))
    assert one == Model(one) and one != other


def test_a_model_is_pickled():
    again = pickle.loads(pickle.dumps(Model(decay)))
    assert again == Model(decay) and again.eval(0.0, amplitude=2, rate=1) == 2


@pytest.mark.parametrize(
    ("args", "options", "message"),
    [
        (["gaussian"], {}, "no formula"),
        ([3], {}, "func is a int"),
        ([decay], {"columns": ["t"]}, "columns="),
        ([decay], {"defaults": {"rat": 1}}, "rat"),
        (["a*x"], {"defaults": {"b": 1}}, "'b'"),
        ([decay], {"inputs": ("t",)}, "arguments="),
    ],
)
def test_what_is_no_model_is_refused(args, options, message):
    with pytest.raises(ModelError, match=message):
        Model(*args, **options)


TIMES = np.linspace(0, 1, 5)


@pytest.mark.parametrize("func", [decay, numpy_decay, FORMULA])
@pytest.mark.parametrize("x", [TIMES, list(TIMES), TIMES.reshape(1, 5), pd.Series(TIMES), {"t": TIMES}, 0.25], ids=str)
def test_a_model_is_evaluated_in_float64(func, x):
    values = Model(func).eval(x, amplitude=2, rate=1.3, offset=0.1)
    expected = 2 * np.exp(-1.3 * np.asarray(x["t"] if isinstance(x, dict) else x)) + 0.1
    np.testing.assert_allclose(values, expected.ravel() if np.ndim(x) else expected, rtol=1e-14)
    assert isinstance(values, np.ndarray if np.ndim(expected) else float)


@pytest.mark.parametrize(
    "x", [(TIMES, 2 * TIMES), {"u": 2 * TIMES, "t": TIMES}, pd.DataFrame({"t": TIMES, "u": 2 * TIMES})]
)
def test_a_model_of_two_columns_is_evaluated(x):
    assert Model(two_columns).eval(x, a=3).tolist() == (6 * TIMES**2).tolist()
    assert Model("a*t*u", columns=["t", "u"]).eval(x, a=3).tolist() == (6 * TIMES**2).tolist()


@pytest.mark.parametrize(
    ("x", "params", "error", "message"),
    [
        (TIMES, {"amplitude": 1}, ModelError, "No value of 'rate'"),
        (TIMES, {"amplitude": 1, "rates": 1}, ModelError, "Did you mean 'rate'"),
        (["a"], {"amplitude": 1, "rate": 1}, DataError, "numbers"),
        (np.array(["2026"], "M8[s]"), {"amplitude": 1, "rate": 1}, DataError, "dates"),
        (1j * TIMES, {"amplitude": 1, "rate": 1}, DataError, "complex"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(x, params, error, message):
    with pytest.raises(error, match=message):
        Model(decay).eval(x, **params)


def test_dask_is_sent_to_map_blocks():
    x = da.from_array(TIMES)
    with pytest.raises(DataError, match="map_blocks"):
        models.line.eval(x, intercept=1, slope=2)
    assert x.map_blocks(models.line.eval, dtype=float, intercept=1, slope=2).compute()[-1] == 3


@pytest.mark.parametrize(
    "model", [models.gaussian, models.gaussian + models.line, Model(decay), Model(decay, defaults={"rate": 3})]
)
def test_a_fit_starts_from_the_guess(model):
    x = np.linspace(-1, 1, 200)
    y = 3 * np.exp(-(((x - 0.2) / 0.1) ** 2)) + np.where(x > 0.9, np.nan, 0.0)
    result = dask_nlsq.fit(model, x, y, max_nfev=1, nan_policy="omit")
    start = result.history.iloc[0][list(model.parameters)].to_dict()
    assert model.guess(x, y) == pytest.approx(start, rel=1e-12)


def test_a_guess_refuses_unequal_lengths():
    with pytest.raises(DataError, match="equally long"):
        models.line.guess([1.0, 2.0], [1.0])


def test_a_model_is_drawn():
    ax = Model(decay).plot([1.0, 0.0], amplitude=2, rate=1)
    (line,) = ax.lines
    assert line.get_xdata().tolist() == [0, 1] and line.get_ydata()[0] == 2 and ax.get_xlabel() == "t"
    assert Model(decay).plot(TIMES, amplitude=1, rate=1, ax=ax) is ax and len(ax.lines) == 2
    with pytest.raises(ModelError, match="over one"):
        Model(two_columns).plot((TIMES, TIMES), a=1)
