"""Models as users write them: constants, settings, whole numbers, shared work, missing derivatives."""

import dataclasses
import importlib.util
import sys
import warnings
from functools import partial

import dask.array as da
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from scipy.optimize import OptimizeWarning
from scipy.optimize import curve_fit as scipy_curve_fit

import dask_nlsq
from dask_nlsq import DataError, Model, ModelError, NlsqError, NlsqWarning
from dask_nlsq._fit.fingerprints import differences
from dask_nlsq._kernel import kernel, traced, validate
from dask_nlsq._kernel.block import Block
from dask_nlsq._model.objective import Objective
from dask_nlsq._model.source_hash import settings

T = np.linspace(0, 5, 400)
NOISE = 0.01 * np.cos(90 * T)


@pytest.fixture(params=["threads", "cluster"])
def where(request):
    """Run here, and on two processes."""
    if request.param == "cluster":
        request.getfixturevalue("client")


def objective(func):
    return Objective(Model.from_function(func).bind(["t"]), ("t", "y"))


def look(func):
    start = np.ones(objective(func).n_parameters)
    return validate.check(objective(func), start)


# Constants in float32


with jax.enable_x64(False):
    EPOCH = jnp.asarray(1_700_000_123.0)
    TENTHS = jnp.asarray([0.1, 0.2])
    WHOLE, HALVES = jnp.arange(5.0), jnp.asarray([0.5, -1.25, jnp.inf])
    LARGE = jnp.asarray(2.0**24)


class Holder:
    epoch = EPOCH

    def __call__(self, t, a):
        return a * (t - self.epoch)


@jax.jit
def since(t):
    return t - EPOCH


def by_closure(constant):
    return lambda t, a: a * t + constant[0]


def by_loop(t, a):
    return jax.lax.fori_loop(0, 3, lambda i, s: s + a * (t - EPOCH), jnp.zeros_like(t))


SINGLE = {
    "global": lambda t, a: a * (t - EPOCH),
    "array": lambda t, a: a * t + TENTHS[1],
    "closure": by_closure(TENTHS),
    "default": lambda t, a, epoch=EPOCH: a * (t - epoch),
    "partial": partial(lambda t, a, epoch: a * (t - epoch), epoch=EPOCH),
    "class attribute": Holder(),
    "function under jit": lambda t, a: a * since(t),
    "model under jit": jax.jit(lambda t, a: a * (t - EPOCH)),
    "loop": by_loop,
    "a large whole number": lambda t, a: a * t + LARGE,
    "for NumPy only": lambda t, a: np.asarray(a * t + EPOCH),
}

HARMLESS = {
    "whole numbers": lambda t, a: a * t + WHOLE[3],
    "binary fractions": lambda t, a: a * t + HALVES[0],
    "NumPy": lambda t, a: a * (t - np.float64(1.7e9)) + np.asarray([0.1], np.float32)[0],
    "inside the model": lambda t, a: a * t + jnp.asarray([0.1, 0.2])[1],
    "jnp.pi": lambda t, a: a * t + jnp.pi,
}


@pytest.mark.parametrize("model", SINGLE.values(), ids=SINGLE)
def test_a_constant_that_float32_has_rounded_is_told(model):
    assert len(look(model).single) == 1


@pytest.mark.parametrize("model", HARMLESS.values(), ids=HARMLESS)
def test_a_constant_that_is_as_meant_is_not(model):
    assert look(model).single == ()


@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("pieces", [1, 4])
def test_every_fit_warns_of_float32_constants(pieces):
    x = da.from_array(T, chunks=len(T) // pieces)
    for _ in range(2):
        with pytest.warns(NlsqWarning, match=r"float32 constants \(1\.70000013e\+09\).*Make them with NumPy"):
            dask_nlsq.fit(lambda t, a, b: a * t + b + 0 * EPOCH, x, 2 * x + 1)


def test_curve_fit_warns_of_float32_constants():
    with pytest.warns(NlsqWarning, match="float32 constants"):
        dask_nlsq.curve_fit(lambda t, a, b: a * t + b + 0 * EPOCH, T, 2 * T + NOISE)


# Settings that change between two fits


MODULE = """
import collections, dataclasses, types
import jax.numpy as jnp
D = {"scale": 1.0}; DEEP = {"a": [{"scale": 1.0}]}; L = [1.0]; S = {1.0}
NS = types.SimpleNamespace(scale=1.0)
DEFAULTS = collections.defaultdict(float, scale=1.0)
@dataclasses.dataclass
class Inner:
    scale: float = 1.0
@dataclasses.dataclass
class Outer:
    inner: Inner
O = Outer(Inner())
class Slots:
    __slots__ = ("scale",)
P = Slots(); P.scale = 1.0
class Model:
    options = {"scale": 1.0}
    def __call__(self, t, a, k): return a * jnp.exp(-k * self.options["scale"] * t)
model = Model()
def helper(): return D["scale"]
def by_dict(t, a, k): return a * jnp.exp(-k * D["scale"] * t)
def by_deep(t, a, k): return a * jnp.exp(-k * DEEP["a"][0]["scale"] * t)
def by_list(t, a, k): return a * jnp.exp(-k * L[0] * t)
def by_set(t, a, k): return a * jnp.exp(-k * max(S) * t)
def by_namespace(t, a, k): return a * jnp.exp(-k * NS.scale * t)
def by_default(t, a, k): return a * jnp.exp(-k * DEFAULTS["scale"] * t)
def by_object(t, a, k): return a * jnp.exp(-k * O.inner.scale * t)
def by_slots(t, a, k): return a * jnp.exp(-k * P.scale * t)
def by_helper(t, a, k): return a * jnp.exp(-k * helper() * t)
def by_numpy(t, a, k): import numpy; return numpy.asarray(a * numpy.exp(-k * D["scale"] * t))
"""

CHANGES = {
    "by_dict": "D['scale'] = 2.0",
    "by_deep": "DEEP['a'][0]['scale'] = 2.0",
    "by_list": "L[0] = 2.0",
    "by_set": "S.add(2.0)",
    "by_namespace": "NS.scale = 2.0",
    "by_default": "DEFAULTS['scale'] = 2.0",
    "by_object": "O.inner.scale = 2.0",
    "by_slots": "P.scale = 2.0",
    "by_helper": "D['scale'] = 2.0",
    "by_numpy": "D['scale'] = 2.0",
    "model": "Model.options['scale'] = 2.0",
}


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module of the user's."""
    path = tmp_path / "written_settings.py"
    path.write_text(MODULE)
    spec = importlib.util.spec_from_file_location("written_settings", path)
    found = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "written_settings", found)
    spec.loader.exec_module(found)
    return found


@pytest.mark.slow
@pytest.mark.one_at_a_time
@pytest.mark.filterwarnings("ignore:The model")
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("chunks", [400, 100])
def test_settings_count_as_they_are(name, chunks, module):
    x, y = (da.from_array(a, chunks=chunks) for a in (T, 2 * np.exp(-1.3 * T) + NOISE))
    before = dask_nlsq.fit(getattr(module, name), x, y)
    exec(CHANGES[name], vars(module))
    after = dask_nlsq.fit(getattr(module, name), x, y)
    np.testing.assert_allclose(after.params["k"], before.params["k"] / 2, rtol=1e-6)


def test_what_has_not_changed_is_compiled_once(module):
    y = 2 * np.exp(-1.3 * T) + NOISE
    dask_nlsq.fit(module.by_object, T, y)
    kernel.traces.clear()
    dask_nlsq.fit(module.by_object, T, y)
    assert not kernel.traces


def test_settings_are_looked_at_within_limits():
    many = [{"a": i} for i in range(50_000)]
    with pytest.raises(ValueError, match="more than"):
        settings(lambda t, a: a * t + many[0]["a"])
    held = {}
    held["itself"] = held
    assert settings(lambda t: held) == settings(lambda t: held)


# Whole numbers


def series(t, a, k, n_terms=3):
    return sum(a * jnp.exp(-k * (i + 1) * t) for i in range(n_terms))


def powers(t, a, k, degree=3.0):
    return a * jnp.sum(k ** jnp.arange(int(degree))) * jnp.exp(-k * t) + jnp.zeros((degree, len(t)))[0]


def quadrature(t, a, k, nodes=3):
    at, weights = np.polynomial.legendre.leggauss(nodes)
    return a * sum(w * jnp.exp(-k * (1 + s) * t) for s, w in zip(at, weights, strict=True))


def by_numpy(t, a, k, n=3):
    return np.asarray(sum(a * np.exp(-k * (i + 1) * t) for i in range(n)))


WHOLE_NUMBERS = {"loop": series, "shape": powers, "quadrature": quadrature, "for NumPy only": by_numpy}
TRUE = [2.0, 0.7]


@pytest.mark.crossed
@pytest.mark.one_at_a_time
@pytest.mark.filterwarnings("ignore:The model .* cannot be traced")
@pytest.mark.parametrize("form", ["mapping", "names", "float", "partial"])
@pytest.mark.parametrize("model", WHOLE_NUMBERS.values(), ids=WHOLE_NUMBERS)
def test_what_is_fixed_may_be_a_whole_number(model, form):
    name = list(Model.from_function(model).parameters)[-1]
    fixed = {"mapping": {name: 3}, "names": [name], "float": {name: 3.0}, "partial": None}[form]
    used = partial(model, **{name: 3}) if form == "partial" else model
    with jax.enable_x64(True):
        y = np.asarray(partial(model, **{name: 3})(T, *TRUE)) + NOISE
    result = dask_nlsq.fit(used, T, y, p0={"a": 1, "k": 1}, fixed=fixed)
    with jax.enable_x64(True):
        expected, _ = scipy_curve_fit(lambda t, a, k: np.asarray(model(t, a, k, **{name: 3})), T, y, [1, 1])
    np.testing.assert_allclose(result.popt[:2], expected, rtol=1e-5)
    np.testing.assert_allclose(result.predict(T), y, atol=0.02)


@pytest.mark.usefixtures("client")
def test_whole_numbers_on_a_cluster():
    x = da.from_array(T, chunks=100)
    result = dask_nlsq.fit(series, x, np.asarray(series(T, *TRUE)) + NOISE, p0={"a": 1, "k": 1}, fixed={"n_terms": 3})
    np.testing.assert_allclose(result.popt[:2], TRUE, rtol=1e-2)
    assert result.params["n_terms"] == 3


@pytest.mark.parametrize("model", WHOLE_NUMBERS.values(), ids=WHOLE_NUMBERS)
def test_a_free_parameter_is_no_whole_number(model):
    with pytest.raises(ModelError, match=r"fixed=\{\"\w+\": 3\}, or functools\.partial"):
        dask_nlsq.fit(model, T, T)


def test_a_number_that_is_not_whole_stays_one():
    with pytest.raises(ModelError, match=r"functools\.partial"):
        dask_nlsq.fit(series, T, T, fixed={"n_terms": 2.5})


# Work that rows share


def integral(t, a, k, m):
    grid = jnp.linspace(0, 5, 500)
    h = jnp.exp(-k * grid) * (1 + m * grid)
    area = jnp.concatenate([jnp.zeros(1), jnp.cumsum((h[1:] + h[:-1]) / 2 * (grid[1] - grid[0]))])
    return a * jnp.interp(t, grid, area)


def integral_by_numpy(t, a, k, m):
    grid = np.linspace(0, 5, 500)
    h = np.exp(-k * grid) * (1 + m * grid)
    return a * np.interp(t, grid, np.append(0, np.cumsum((h[1:] + h[:-1]) / 2 * (grid[1] - grid[0]))))


def by_scan(t, a, k):
    def step(y, _):
        return y - 0.01 * k * y, y

    return jnp.interp(t, jnp.linspace(0, 5, 500), jax.lax.scan(step, a, None, length=500)[1])


def by_while(t, a, k):
    root = jax.lax.while_loop(lambda s: s[0] < 30, lambda s: (s[0] + 1, jnp.tanh(s[1]) + 0.1 * a), (0, k))[1]
    return a * t + root * t**2


def by_matrix(t, a, k):
    decays = jax.scipy.linalg.expm(
        -k * jnp.asarray([[1.0, 0.5, 0, 0], [0.2, 1, 0.1, 0], [0, 0, 1, 0.3], [0, 0.1, 0, 1]])
    )
    return a * jnp.exp(-decays[0, 0] * t) + decays[0, 1]


def normalised(t, a, k):
    grid = jnp.linspace(0, 5, 300)
    return a * jnp.exp(-k * t) / jnp.sum(jnp.exp(-k * grid))


def plain(t, a, k):
    return a * jnp.exp(-k * t)


def stacked(t, a, b, c, d):
    return jnp.polyval(jnp.stack([a, b, c, d]), t)


def per_row(t, a, k):
    return a * jnp.sum(jnp.exp(-k * jnp.linspace(0, 1, 50)[:, None] * t), axis=0)


def stepped(t, a, k):
    return jax.lax.fori_loop(0, 100, lambda i, y: y - 0.01 * k * t * y, a * jnp.ones_like(t))


SHARED = [integral, jax.jit(integral), by_scan, by_while, by_matrix, normalised]
EACH = {plain: "reverse", stacked: "reverse", per_row: "reverse", stepped: "reverse"}


@pytest.mark.parametrize("model", SHARED, ids=lambda f: f.__name__)
def test_what_depends_on_no_column_is_shared(model):
    assert look(model).objective.jacobian == "shared"


@pytest.mark.parametrize("model", EACH, ids=lambda f: f.__name__)
def test_other_models_are_differentiated_as_before(model):
    assert look(model).objective.jacobian == EACH[model]


@pytest.mark.slow
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("rows", [100, 1, 5000])
@pytest.mark.parametrize("model", SHARED, ids=lambda f: f.__name__)
def test_shared_work_gives_the_same_sums(model, rows):
    x = np.random.default_rng(0).uniform(0, 5, rows)
    theta = np.linspace(0.8, 0.3, objective(model).n_parameters)
    shared = look(model).objective
    other = dataclasses.replace(shared, jacobian="forward")
    found, expected = (kernel.reduce_block(o, Block((x,), np.cos(x)), theta, None).gram for o in (shared, other))
    np.testing.assert_allclose(found, expected, rtol=1e-11, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [1, 7])
def test_shared_work_fits_as_scipy_does(pieces):
    y = integral_by_numpy(T, 2.0, 0.5, 0.3) + NOISE
    popt, _ = scipy_curve_fit(integral_by_numpy, T, y, [1, 1, 0])
    x = da.from_array(T, chunks=-(-len(T) // pieces))
    result = dask_nlsq.fit(integral, x, y, p0=[1, 1, 0])
    assert result.provenance["kernel"]["jacobian"] == "shared"
    np.testing.assert_allclose(result.popt, popt, rtol=1e-4)
    np.testing.assert_allclose(result.predict(T), integral_by_numpy(T, *result.popt), rtol=1e-12)


def test_work_is_counted_by_what_it_depends_on():
    counted = traced.work(traced.trace(objective(by_scan))[0], 1)
    assert counted.shared >= 1000
    assert counted.rows < 300


@pytest.mark.parametrize(("one", "two", "same"), [("reverse", "shared", True), ("reverse", "numeric", False)])
def test_a_checkpoint_of_another_direction_goes_on(one, two, same):
    assert (differences({"jac": one}, {"jac": two}, strict=True) == {}) is same


# Models without a derivative in JAX


def callback(f):
    def model(t, a, k):
        like = jax.ShapeDtypeStruct(jnp.shape(k * t), jnp.result_type(float))
        return a * jax.pure_callback(lambda v: f(np.asarray(v)), like, k * t, vmap_method="expand_dims")

    return model


def looped_callback(t, a, k):
    return jax.lax.fori_loop(0, 2, lambda i, s: s + callback(np.tanh)(t, a, k) / 2, jnp.zeros_like(t))


NO_RULE = {
    "j0": (callback(scipy.special.j0), [2.0, 1.5], "callback"),
    "float32 callback": (callback(lambda v: np.sin(v)), [2.0, 0.9], "callback"),
    "loop": (looped_callback, [2.0, 0.5], "callback"),
    "jit": (jax.jit(callback(np.cos)), [2.0, 0.9], "callback"),
    "betainc": (lambda t, a, k: jax.scipy.special.betainc(a, k, t / 6), [2.0, 3.0], "Betainc"),
}


@pytest.mark.crossed
@pytest.mark.one_at_a_time
@pytest.mark.usefixtures("where")
@pytest.mark.parametrize(("model", "true", "what"), NO_RULE.values(), ids=NO_RULE)
def test_a_model_without_a_derivative_takes_differences(model, true, what):
    x = da.from_array(T, chunks=100)
    with jax.enable_x64(True):
        y = np.asarray(model(T, *true)) + NOISE
    start = 0.9 * np.array(true)
    with pytest.warns(NlsqWarning, match=rf"no derivative in JAX.*{what}.*3-point") as told:
        result = dask_nlsq.fit(model, x, y, p0=start)
    assert len(told) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = dask_nlsq.fit(model, x, y, p0=start, jac="3-point")
    np.testing.assert_array_equal(result.popt, expected.popt)
    with pytest.raises(ModelError, match=rf"no derivative in JAX.*{what}"):
        dask_nlsq.fit(model, x, y, p0=start, jac="jax")


@pytest.mark.slow
def test_curve_fit_takes_differences_without_a_word():
    model, true, _ = NO_RULE["j0"]
    with jax.enable_x64(True):
        y = np.asarray(model(T, *true)) + NOISE
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        popts = [dask_nlsq.curve_fit(model, x, y, [1.8, 1.4])[0] for x in (T, da.from_array(T, chunks=100))]
    np.testing.assert_allclose(*popts, rtol=1e-8)


# Random numbers


RANDOM = {
    "np.random": lambda t, a, k: a * jnp.exp(-k * t) + 0.01 * np.random.normal(),  # noqa: NPY002
    "Generator": lambda t, a, k: a * jnp.exp(-k * t) + 0.01 * np.random.default_rng().normal(),
    "jax.random": lambda t, a, k: a * jnp.exp(-k * t) + 0.01 * jax.random.normal(jax.random.key(0), t.shape),
    "jax.random under jit": jax.jit(lambda t, a, k: a * t + k * jax.random.uniform(jax.random.key(1), t.shape)),
    "for NumPy only": lambda t, a, k: np.asarray(a * np.exp(-k * t)) + 0.01 * np.random.normal(size=len(t)),  # noqa: NPY002
    "old key": lambda t, a, k: a * t + k * jax.random.normal(jax.random.PRNGKey(0), t.shape),
}


@pytest.mark.crossed
@pytest.mark.one_at_a_time
@pytest.mark.usefixtures("where")
@pytest.mark.filterwarnings("ignore:The model .* cannot be traced")
@pytest.mark.parametrize("model", RANDOM.values(), ids=RANDOM)
def test_random_numbers_are_called_so(model):
    with pytest.raises(ModelError, match=r"draws random numbers.*as a column or a constant"):
        dask_nlsq.fit(model, da.from_array(T, chunks=100), T)


# curve_fit: sigma and masks


def line(x, a, b):
    return a + b * x


forms = pytest.mark.parametrize("cut", [np.asarray, lambda a: da.from_array(a, chunks=100)], ids=["numpy", "dask"])


@forms
@pytest.mark.parametrize(("row", "value"), [(4, 0.0), (0, np.nan), (399, -0.0), (250, 0.0)])
def test_curve_fit_blames_sigma(cut, row, value):
    sigma = np.full(400, 0.1)
    sigma[row] = value
    with pytest.raises(DataError, match=rf"sigma must be positive.*row {row % 100 if cut is not np.asarray else row}"):
        dask_nlsq.curve_fit(line, cut(T), cut(1 + 2 * T), sigma=cut(sigma))


@pytest.mark.parametrize(("sigma", "message"), [(0.0, "sigma is 0.0"), (np.diag(np.full(400, np.nan)), "covariance")])
def test_curve_fit_blames_other_sigmas(sigma, message):
    with pytest.raises(ValueError, match=message):
        dask_nlsq.curve_fit(line, T, 1 + 2 * T, sigma=sigma)


def test_a_row_that_is_left_out_may_have_any_sigma():
    y, sigma = 1 + 2 * T, np.full(400, 0.1)
    y[7], sigma[7] = np.nan, 0.0
    np.testing.assert_allclose(dask_nlsq.curve_fit(line, T, y, sigma=sigma, nan_policy="omit")[0], [1, 2], rtol=1e-8)


def masked(a, rows):
    return np.ma.masked_array(a, mask=np.isin(np.arange(len(a)), rows))


def spoilt(a, row):
    return np.where(np.arange(len(a)) == row, 1e6, a)


MASKED = {
    "y": lambda: (T, masked(spoilt(1 + 2 * T, 5), [5])),
    "x": lambda: (masked(spoilt(T, 3), [3]), 1 + 2 * T),
    "integers": lambda: (np.arange(9), masked(np.array([1, 3, 5, 99, 9, 11, 13, 15, 17]), [3])),
    "both": lambda: (masked(spoilt(T, 3), [3]), masked(spoilt(1 + 2 * T, 5), [5])),
}


@pytest.mark.parametrize("data", MASKED.values(), ids=MASKED)
def test_masked_cells_are_missing(data):
    x, y = data()
    with pytest.raises(DataError, match=r'is masked in 1 of .*nan_policy="omit"'):
        dask_nlsq.curve_fit(line, x, y)
    np.testing.assert_allclose(dask_nlsq.curve_fit(line, x, y, nan_policy="omit")[0], [1, 2], rtol=1e-7)


def test_a_mask_of_nothing_changes_nothing():
    np.testing.assert_allclose(dask_nlsq.curve_fit(line, masked(T, []), masked(1 + 2 * T, []))[0], [1, 2], rtol=1e-8)


def test_masked_columns_of_several():
    x = [masked(spoilt(T, 3), [3]), T**2]
    popt, _ = dask_nlsq.curve_fit(lambda x, a, b: a * x[0] + b * x[1], x, 2 * T + 3 * T**2, nan_policy="omit")
    np.testing.assert_allclose(popt, [2, 3], rtol=1e-7)


# Results of fits that did not converge, and levels


def stop(_):
    raise StopIteration


@pytest.mark.parametrize(
    ("options", "name"),
    [({"max_nfev": 1}, "MAX_NFEV"), ({"time_limit": 0.0}, "TIME_LIMIT"), ({"callback": stop}, "CALLBACK")],
)
def test_a_fit_that_did_not_converge_is_told(options, name):
    result = dask_nlsq.fit(plain, T, 2 * np.exp(-1.3 * T) + NOISE, p0=[9, 3], **options)
    with pytest.warns(OptimizeWarning, match=rf"did not converge \({name}\)"):
        popt, _ = result
    np.testing.assert_array_equal(popt, result.popt)
    with pytest.raises(NlsqError, match=rf"did not converge \({name}\)"):
        result.check()


@pytest.fixture(scope="module")
def fitted():
    return dask_nlsq.fit(line, T, 1 + 2 * T + NOISE)


@pytest.mark.parametrize("status", dask_nlsq.Status)
def test_every_status_is_checked(status, fitted):
    result = dataclasses.replace(fitted, status=status)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        _, _ = result
    assert bool(told) is not status.success
    if status.success:
        assert result.check() is result
    else:
        with pytest.raises(NlsqError, match=status.name):
            result.check()


@pytest.mark.parametrize("method", ["t", "profile"])
@pytest.mark.parametrize(
    ("level", "message"),
    [
        (0.05, r"alpha\), give level=0\.95"),
        (0.01, r"level=0\.99"),
        (0.3173, r"level=0\.6827"),
        (95, r"For 95 %, give 0\.95"),
        (0, "such as 0.95"),
        (1.0, "from 0.5 to 1"),
        (-0.95, "such as 0.95"),
        ("95%", "such as 0.95"),
        (np.nan, "such as 0.95"),
    ],
)
def test_levels_that_are_none(level, message, method, fitted):
    with pytest.raises(NlsqError, match=message):
        fitted.conf_int(level, method=method)
