"""Streams of rows that are sorted, drift, contain outliers, arrive as messages or belong to many sensors."""

import importlib.util
from pathlib import Path

import dask.dataframe as dd
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from problems import decay

import dask_nlsq
from dask_nlsq import NlsqError, Status, StreamingFitter

TRUTH = [2.5, 1.3, 0.5]
START = [2.0, 1.0, 0.3]

_spec = importlib.util.spec_from_file_location("coverage_", Path(__file__).parent / "benchmarks" / "coverage.py")
coverage = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(coverage)


def rows(n, seed=0, noise=0.2):
    rng = np.random.default_rng(seed)
    t = rng.uniform(0, 5, n)
    return t, 2.5 * np.exp(-1.3 * t) + 0.5 + rng.normal(0, noise, n)


def fed(fitter, t, y, count):
    for part in np.array_split(np.arange(len(t)), count):
        fitter.partial_fit(t[part], y[part])
    return fitter


# --- rows in an order -------------------------------------------------------------------------------------------------


def peak(t, height, center, width):
    return height * jnp.exp(-0.5 * ((t - center) / width) ** 2)


def saturation(t, top, half):
    return top * t / (half + t)


MODELS = {  # model, start, truth, unit of t, dtype
    "decay": (decay, START, TRUTH, 1.0, "f8"),
    "decay in single precision": (decay, START, TRUTH, 1.0, "f4"),
    "decay in milliseconds": (decay, [2.0, 1e-3, 0.3], [2.5, 1.3e-3, 0.5], 1e3, "f8"),
    "peak": (peak, [1.5, 2.0, 1.0], [2.0, 2.2, 0.7], 1.0, "f8"),
    "saturation": (saturation, [1.0, 1.0], [2.0, 0.8], 1.0, "f8"),
}


@pytest.mark.crossed(2)
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("order", ["up", "down", "unlike"])
@pytest.mark.parametrize(("model", "start", "truth", "unit", "dtype"), MODELS.values(), ids=MODELS)
def test_rows_in_an_order_end_within_the_errors_that_are_stated(model, start, truth, unit, dtype, order):
    rng = np.random.default_rng(3)
    t = unit * rng.uniform(0, 5, 12_000)
    y = np.asarray(model(t, *truth)) + rng.normal(0, 0.2, t.size)
    places = coverage.ORDERS[order](t, rng, 60)
    found = fed(StreamingFitter(model, start), t[places].astype(dtype), y[places].astype(dtype), 60).result()
    assert not found.success or (abs(found.popt - truth) < 4.5 * found.stderr).all()
    assert found.n_obs == t.size


@pytest.mark.crossed
@pytest.mark.parametrize("order", ["up", "down", "random"])
def test_a_sample_that_holds_all_rows_gives_the_exact_fit(order):
    t, y = rows(3500)
    places = coverage.ORDERS[order](t, np.random.default_rng(0), 20)
    found = fed(StreamingFitter(decay, START), t[places], y[places], 20).result()
    whole = dask_nlsq.fit(decay, t, y, p0=START)
    assert not found.success or (abs(found.popt - whole.popt) < 0.03 * whole.stderr).all()


def root(t, a, b):
    return a * jnp.sqrt(t - b)


@pytest.mark.slow
def test_a_batch_that_is_not_finite_at_the_estimate_is_kept_where_another_is_safer():
    rng = np.random.default_rng(0)
    t = rng.uniform(1, 5, 4000)
    y = 2 * np.sqrt(t - 0.5) + rng.normal(0, 0.05, t.size)
    fitter = fed(StreamingFitter(root, [1.0, 0.2]), t, y, 8)
    fitter._state = fitter._solver.moved(fitter._state, fitter._state)
    object.__setattr__(fitter._state, "theta", np.array([2.0, 4.0]))  # where most rows are not defined
    found = fitter.partial_fit(t[:100], y[:100]).result()
    assert found.n_obs == 4100 and not any("left out" in note for note in found.notes)


# --- processes that change, and outliers ------------------------------------------------------------------------------

OUTLIERS = {  # options, rows of a batch, size in standard deviations
    "auto, one row": ({"forget": "auto"}, 1, 15.0),
    "auto, one row below": ({"forget": "auto"}, 1, -15.0),
    "robust, one row": ({"robust": True}, 1, 15.0),
    "robust, ten rows": ({"robust": True}, 10, 8.0),
    "forgetting and robust": ({"forget": 0.999, "robust": True}, 1, 20.0),
}


@pytest.mark.crossed
@pytest.mark.parametrize(("options", "size", "sigmas"), OUTLIERS.values(), ids=OUTLIERS)
def test_an_outlier_moves_nothing_and_is_counted(options, size, sigmas):
    t, y = rows(600)
    y[400 : 400 + size] += 0.2 * sigmas
    fitter = StreamingFitter(decay, START, **options)
    fed(fitter, t[:400], y[:400], 400 // size)
    before = fitter.result()
    fitter.partial_fit(t[400 : 400 + size], y[400 : 400 + size])
    assert fitter.result().status is Status.NOT_SETTLED
    np.testing.assert_allclose(fitter.params, before.params, rtol=1e-9)
    fitter.partial_fit(t[400 + size :], y[400 + size :])
    assert any("1 batches contradicted the others and were set aside" in note for note in fitter.result().notes)


@pytest.mark.parametrize("options", [{"forget": "auto"}, {"robust": True}, {"forget": 0.99, "robust": True}], ids=str)
def test_outliers_that_the_next_batches_confirm_are_a_change(options):
    t, y = rows(6000)
    y[3000:] += 1.0
    found = fed(StreamingFitter(decay, START, **options), t, y, 60).result()
    assert abs(found.params["offset"] - 1.5) < 4.5 * found.stderr["offset"] and found.n_obs < 3200
    assert any("The process changed 1 times" in note for note in found.notes)


@pytest.mark.parametrize("forget", [0.99, 0.9, 0.7])
def test_the_covariance_is_that_of_exponentially_weighted_least_squares(forget):
    """A straight line, of which the estimate is known; the first rows come as one batch."""
    t, y = rows(3000)
    fitter = fed(StreamingFitter("line", x="x", p0=[1.0, 0.0], forget=forget), t, y, 30)
    weight = np.repeat(forget ** np.arange(29, -1, -1.0), 100)
    jac = np.column_stack([np.ones_like(t), t])
    a, b = ((jac * w[:, None]).T @ jac for w in (weight, weight**2))
    theta = np.linalg.solve(a, (jac * weight[:, None]).T @ y)
    dof = weight.sum() - np.trace(np.linalg.solve(a, b))
    s2 = weight @ (y - jac @ theta) ** 2 / dof
    np.testing.assert_allclose(fitter.params, theta, rtol=1e-8)
    expected = np.sqrt(np.diag(s2 * np.linalg.solve(a, b) @ np.linalg.inv(a)))
    np.testing.assert_allclose(fitter.stderr, expected, rtol=5e-3)  # the trace is taken as p times a ratio of rows


# --- messages ---------------------------------------------------------------------------------------------------------

FORMS = {
    "mapping of numbers": lambda f: [{"t": float(f["t"][i]), "y": float(f["y"][i])} for i in range(len(f))],
    "mapping of 0-d arrays": lambda f: [{"t": np.array(f["t"][i]), "y": np.array(f["y"][i])} for i in range(len(f))],
    "list of mappings": lambda f: [f.to_dict("records")],
    "structured array": lambda f: [np.array([tuple(row) for row in f.to_numpy()], [("t", "f8"), ("y", "f8")])],
    "record array": lambda f: [f.to_records(index=False)],
    "one record": lambda f: list(f.to_records(index=False)),
    "Arrow table": lambda f: [pa.Table.from_pandas(f)],
    "Arrow record batch": lambda f: [pa.RecordBatch.from_pandas(f)],
    "Dask frame": lambda f: [dd.from_pandas(f, npartitions=3)],
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_messages_in_every_form_tell_the_same(form):
    table = pd.DataFrame(dict(zip("ty", rows(300), strict=True)))
    one, other = StreamingFitter(decay, START), StreamingFitter(decay, START).partial_fit(table)
    for batch in form(table):
        one.partial_fit(batch)
    assert one.result().n_obs == 300
    np.testing.assert_allclose(one.params, other.params, rtol=1e-3)


@pytest.mark.parametrize("batch", [[{"t": 1.0}], {"t": 1.0}, pa.table({"t": [1.0]})], ids=["list", "mapping", "Arrow"])
def test_messages_without_the_response_are_refused(batch):
    with pytest.raises(dask_nlsq.DataError, match="no column 'y'"):
        StreamingFitter(decay, START).partial_fit(batch)


# --- many sensors -----------------------------------------------------------------------------------------------------

PAIRS = {  # options, rows of each
    "plain": ({}, 6000, 9000),
    "absolute sigma": ({"absolute_sigma": True}, 6000, 9000),
    "a bound": ({"bounds": {"rate": (0, 1.2)}}, 6000, 9000),
    "forgetting": ({"forget": 0.999}, 6000, 9000),
    "auto": ({"forget": "auto"}, 6000, 9000),
    "one that waits": ({}, 6000, 60),
    "the other waits": ({}, 60, 6000),
    "both wait": ({}, 60, 70),
}


@pytest.mark.parametrize(("options", "n", "m"), PAIRS.values(), ids=PAIRS)
def test_two_fitters_add_up_to_one_of_all_rows(options, n, m):
    t, y = rows(n + m)
    one, two = (StreamingFitter(decay, START, **options) for _ in range(2))
    fed(one, t[:n], y[:n], 10 if n > 100 else 1)
    fed(two, t[n:], y[n:], 10 if m > 100 else 1)
    before, both = one.result().popt, (one + two).result()
    whole = dask_nlsq.fit(decay, t, y, p0=START, **{k: v for k, v in options.items() if k != "forget"})
    free = whole.stderr > 0
    assert (abs(both.popt - whole.popt)[free] < 0.3 * whole.stderr[free]).all()
    assert one.result().popt.tolist() == before.tolist()


def test_fitters_of_unlike_options_do_not_add_up():
    with pytest.raises(NlsqError, match="forget"):
        StreamingFitter(decay, START) + StreamingFitter(decay, START, forget=0.9)


def test_further_fitters_of_a_model_compile_nothing(monkeypatch):
    t, y = rows(1000)
    for _ in range(2):
        StreamingFitter(decay, START).partial_fit(t, y)
    compiled = []
    monkeypatch.setattr(jax.stages.Lowered, "compile", lambda self, *_: compiled.append(self))
    StreamingFitter(decay, START).partial_fit(t, y)
    assert not compiled


def test_a_copy_goes_its_own_way():
    t, y = rows(2000)
    one = StreamingFitter(decay, START).partial_fit(t[:1000], y[:1000])
    two = one.copy().partial_fit(t[1000:], y[1000:])
    assert (one.result().n_obs, two.result().n_obs) == (1000, 2000) and len(one.history) == 1


def test_a_file_of_format_2_is_gone_on_from():
    """Six batches of 60 rows, and the estimates that were written with them."""
    path = Path(__file__).parent / "data" / "stream-format-2.zip"
    fitter = StreamingFitter.load(path, decay, p0=[2.0, 1.0, 0.5])
    np.testing.assert_allclose(fitter.params, [2.979293312698648, 1.2990125680030695, 0.5001351639431522], atol=1e-3)
    t, y = rows(600)
    assert fitter.partial_fit(t, y + 0.5 * np.exp(-1.3 * t)).result().n_obs == 960


# --- coverage ---------------------------------------------------------------------------------------------------------

ALIKE = {  # other sizes or models of what is tried as well; the benchmark measures them all
    "random order, 30,000 rows",
    "sorted up, 30,000 rows",
    "sorted down, 30,000 rows",
    "unlike ranges, 30,000 rows",
    "a peak, sorted up, 30,000 rows",
    "forget=0.9, steady",
    "forget=0.95, steady",
    "ramp",
    "sine",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in coverage.SCENARIOS if name not in ALIKE])
def test_intervals_cover_the_truth_or_the_status_tells(name):
    """Of 20 seeds, 0.15 is three standard deviations of a coverage of 0.95."""
    scenario, least = coverage.SCENARIOS[name]
    found, success = coverage.measure(scenario, range(20))
    assert success < 0.2 or (found > least - 0.15).all()
