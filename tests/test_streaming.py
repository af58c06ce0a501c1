"""One pass over batches against the fit of all rows; unusual batches; resuming from files."""

import dataclasses
import io
import zipfile
from fractions import Fraction

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import zarr
from problems import decay, decay_rows
from scipy.optimize import OptimizeWarning
from zarr.storage import ZipStore

import dask_nlsq
from dask_nlsq import CheckpointCorrupt, DataError, ModelError, NlsqError, Status, StreamingFitter, TooFewRows
from dask_nlsq._checkpoint import archive
from dask_nlsq._checkpoint.codec import from_text, to_text
from dask_nlsq._streaming import fitter as module

N = 200_000
T, Y = decay_rows(N)
SIGMA = np.random.default_rng(7).uniform(0.5, 2.0, N)


def batches(count=100, order=None, *columns):
    rows = np.arange(N) if order is None else order
    return [[c[part] for c in (columns or (T, Y))] for part in np.array_split(rows, count)]


def bits(fitter):
    result = fitter.result()
    return result.popt.tobytes() + result.pcov.tobytes() + fitter.history.to_numpy().tobytes()


OPTIONS = {
    "plain": ({}, {}),
    "absolute sigma": ({"absolute_sigma": True}, {"absolute_sigma": True}),
    "an active bound": ({"bounds": {"rate": (0, 1.2)}}, {"bounds": {"rate": (0, 1.2)}}),
    "fixed": ({"fixed": {"offset": 0.5}}, {"fixed": {"offset": 0.5}}),
    "tied": ({"tied": {"offset": "amplitude / 6"}}, {"tied": {"offset": "amplitude / 6"}}),
    "prior": ({"prior": {"rate": (1.4, 0.001)}}, {"prior": {"rate": (1.4, 0.001)}}),
}


@pytest.mark.crossed
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("sigma", [False, True])
@pytest.mark.parametrize(("streamed", "fitted"), OPTIONS.values(), ids=OPTIONS)
def test_one_pass_ends_at_the_fit_of_all_rows(streamed, fitted, sigma):
    """A probe had 0.0002 to 0.009 standard errors; the points of linearisation are noise."""
    if sigma or "absolute_sigma" not in streamed:
        y = T * 0 + Y if not sigma else Y + np.random.default_rng(8).normal(0, 0.1, N) * (SIGMA - 0.5)
        fitter = StreamingFitter(decay, [2.0, 1.0, 0.5], **streamed)
        for batch in batches(100, None, T, y, *([SIGMA] if sigma else [])):
            fitter.partial_fit(*batch)
        found = fitter.result()
        whole = dask_nlsq.fit(decay, T, y, sigma=SIGMA if sigma else None, p0=[2.0, 1.0, 0.5], goal="quality", **fitted)
        free = whole.stderr > 0
        assert (abs(found.popt - whole.popt)[free] < 0.05 * whole.stderr[free]).all()
        np.testing.assert_allclose(found.stderr[free], whole.stderr[free], rtol=2e-3)
        assert found.active_mask.tolist() == whole.active_mask.tolist()
        np.testing.assert_allclose(found.chisqr, whole.chisqr, rtol=1e-4)
        assert (found.status, found.n_obs) == (Status.STREAMED, whole.n_obs)


def two(t, a, b, c, d):
    return a * jnp.exp(-b * t) + c * jnp.exp(-d * t)


@pytest.mark.slow
def test_a_badly_conditioned_model_keeps_its_digits():
    y = 2 * np.exp(-1.0 * T) + np.exp(-1.2 * T) + (Y - 3 * np.exp(-1.3 * T) - 0.5) * 1e-5
    start = [2.01, 1.001, 0.99, 1.201]
    fitter = StreamingFitter(two, start)
    for batch in batches(100, None, T, y):
        fitter.partial_fit(*batch)
    whole = dask_nlsq.fit(two, T, y, p0=start, goal="quality")
    assert whole.condition_number > 1e3
    assert (abs(fitter.params - whole.params) < 0.1 * whole.stderr).all()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2))])
@pytest.mark.parametrize("order", ["sorted", "blocks of the sorted"])
def test_rows_in_the_order_of_x_do_not_lead_astray(order, seed):
    """What is lost is said: the truth lies within the standard errors, which are larger than those of all rows."""
    t, y = decay_rows(N, seed=seed)
    rows = np.argsort(t)
    if order != "sorted":
        rows = np.concatenate([np.array_split(rows, 200)[k] for k in np.random.default_rng(seed).permutation(200)])
    fitter = StreamingFitter(decay, [1.0, 1.0, 0.0])
    for part in np.array_split(rows, 200):
        fitter.partial_fit(t[part], y[part])
    found = fitter.result()
    assert (abs(found.popt - [3.0, 1.3, 0.5]) < 4.5 * found.stderr).all()
    assert found.success and any("begun anew from a sample" in note for note in found.notes)


@pytest.mark.crossed
@pytest.mark.parametrize("count", [1, 3, 2000])
def test_the_number_of_batches_matters_little(count):
    fitter = StreamingFitter(decay, [2.0, 1.0, 0.5])
    for batch in batches(count):
        fitter.partial_fit(*batch)
    whole = dask_nlsq.fit(decay, T, Y, p0=[2.0, 1.0, 0.5])
    assert (abs(fitter.params - whole.params) < 0.1 * whole.stderr).all()


def test_what_is_known_is_told_at_any_time():
    fitter = StreamingFitter(decay, [2.0, 1.0, 0.5])
    with pytest.raises(TooFewRows, match="0 rows have come, for 3"):
        fitter.result()
    fitter.partial_fit(T[:90], Y[:90])
    early = fitter.result()
    fitter.partial_fit(T[90:400], Y[90:400])
    assert early.n_obs == 90 and fitter.result().n_obs == 400
    assert (fitter.stderr < early.stderr).all() and fitter.history["rows"].tolist() == [90, 400]
    assert "seen once" in str(fitter.result())
    np.testing.assert_allclose(fitter.result().predict(T[:5]), decay(T[:5], *fitter.params))


@pytest.mark.crossed
@pytest.mark.parametrize("forget", ["auto", 0.9])
def test_a_process_that_changes_is_followed(forget):
    fitter = StreamingFitter(decay, [2.0, 1.0, 0.5], forget=forget)
    late = 2.0 * np.exp(-0.8 * T) + 0.7 + (Y - 3.0 * np.exp(-1.3 * T) - 0.5)
    for i, (t, y, changed) in enumerate(batches(100, None, T, Y, late)):
        fitter.partial_fit(t, y if i < 50 else changed)
    found = fitter.result()
    assert (abs(found.popt - [2.0, 0.8, 0.7]) < 5 * found.stderr).all()
    assert found.n_obs <= N // 2 + 4000
    steady = StreamingFitter(decay, [2.0, 1.0, 0.5], forget="auto")
    for batch in batches(100):
        steady.partial_fit(*batch)
    assert steady.result().n_obs == N  # nothing was forgotten where nothing changes


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", ["f8", "f4"])
def test_a_loop_may_refill_its_arrays(dtype, weighted):
    """Batches of 40 rows, of which four are gathered before the first estimate."""
    one, other = StreamingFitter(decay, [2.0, 1.0, 0.5]), StreamingFitter(decay, [2.0, 1.0, 0.5])
    held = [np.empty(40, dtype) for _ in range(3 if weighted else 2)]
    for i in range(0, 400, 40):
        fresh = [c[i : i + 40].astype(dtype) for c in (T, Y, SIGMA)[: len(held)]]
        for column, values in zip(held, fresh, strict=True):
            column[:] = values
        one.partial_fit(*held)
        other.partial_fit(*fresh)
    assert bits(one) == bits(other)


@pytest.mark.parametrize("told", [lambda f: f.result().popt, lambda f: f.params, lambda f: f.history])
def test_what_is_told_is_the_callers_own(told):
    fitter = StreamingFitter(decay, [2.0, 1.0, 0.5]).partial_fit(T[:900], Y[:900])
    before, found = bits(fitter), told(fitter)
    found *= 2
    assert bits(fitter) == before


def wave(t, amplitude, rate):
    return amplitude * jnp.exp(-rate * t)


def square(t, a, b):
    return a**2 * t + b


OPEN = {  # model, shift of t, start and options, as fit and the stream are to see them
    "epoch seconds": (wave, 1.7e9, [1.0, 1.0], {}),
    "epoch seconds at a bound": (wave, 1.7e9, [1.0, 1.0], {"bounds": {"rate": (0.5, 1.0)}}),
    "epoch seconds under a prior": (wave, 1.7e9, [1.0, 1.0], {"prior": {"rate": (1.0, 0.1)}}),
    "a product of zeros": (lambda t, a, b: a * b * t, 0.0, [0.0, 0.0], {}),
    "unused": (lambda t, a, b: a + 0 * t, 0.0, [0.0, 0.0], {}),
    "a sum": (lambda t, a, b: a + b + 0 * t, 0.0, [0.0, 0.0], {}),
}


@pytest.mark.slow
@pytest.mark.parametrize(("model", "shift", "p0", "options"), OPEN.values(), ids=OPEN)
def test_what_the_data_leave_open_is_told_as_fit_tells_it(model, shift, p0, options):
    t, y = T[:2000] + shift, Y[:2000]
    fitter = StreamingFitter(model, p0, **options)
    for part in np.array_split(np.arange(2000), 20):
        fitter.partial_fit(t[part], y[part])
    with pytest.warns(OptimizeWarning, match="do not determine") as there:
        whole = dask_nlsq.fit(model, t, y, p0=p0, **options)
    with pytest.warns(OptimizeWarning, match="do not determine") as here:
        found = fitter.result()
    assert (found.status is Status.UNIDENTIFIABLE, found.success) == (
        whole.status is Status.UNIDENTIFIABLE,
        whole.success,
    )
    assert [str(w.message) for w in here] == [str(w.message) for w in there]
    open_ends = fitter.history[[f"{name} stderr" for name in found.names]].iloc[-1]
    np.testing.assert_array_equal(np.isinf(open_ends), np.isinf(whole.stderr))
    assert {note for note in whole.notes if "bound" in note} <= set(found.notes)


@pytest.mark.slow
def test_a_narrow_peak_that_the_sample_misses_is_no_silence():
    def peak(t, height, base):
        return jnp.where(t > 0, height, 0.0) + base

    t = -np.ones(N)
    t[:10] = 1.0
    fitter = StreamingFitter(peak, [1.0, 0.0])
    for part in np.array_split(np.arange(N), 10):
        fitter.partial_fit(t[part], 2.0 * (t[part] > 0) + Y[part] - decay(T[part], 3.0, 1.3, 0.5))
    assert not (fitter._sample.drawn.block().x[0] > 0).any()
    assert fitter.result().status is Status.STREAMED and np.isfinite(fitter.stderr).all()


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_a_leap_to_where_the_model_is_another_is_no_success(seed):
    """Where the best square is zero, its derivative is next to nothing, and the linear model leads thousands away."""
    rng = np.random.default_rng(seed)
    t, y = rng.uniform(0, 5, 2000), rng.normal(1, 0.1, 2000)
    fitter = StreamingFitter(square, [1.0, 0.0])
    for part in np.array_split(np.arange(2000), 8):
        found = fitter.partial_fit(t[part], y[part]).result()
        assert not found.success or abs(found.popt[0]) < 1


HELD = {
    "a bound": (decay, Y, {"bounds": {"rate": (0, 1.2)}}, "rate ended at a bound and was held there"),
    "two that are hardly told apart": (
        lambda t, a, b: a * (1e6 + t) + b * 1e6,
        0.0 * Y + 1e-3 * (Y - decay(T, 3.0, 1.3, 0.5)),
        {},
        "Hardly determined by these data: a, b",
    ),
}


@pytest.mark.crossed
@pytest.mark.parametrize(("model", "y", "options", "note"), HELD.values(), ids=HELD)
def test_a_note_says_what_has_no_error_or_one_that_is_large(model, y, options, note):
    fitter = StreamingFitter(model, [1.0, 1.0, 0.5][: 3 if model is decay else 2], **options)
    for part in np.array_split(np.arange(9000), 9):
        fitter.partial_fit(T[part], np.asarray(y)[part])
    assert any(said.startswith(note) for said in fitter.result().notes)


@pytest.mark.parametrize("own", ["rows", "moved", "batch"])
def test_the_history_keeps_its_own_columns(own):
    model = dask_nlsq.Model.from_expression(f"{own} * t + b")
    fitter = StreamingFitter(model, {own: 1.0, "b": 1.0}, x="t")
    history = fitter.partial_fit({"t": T[:900], "y": 2 * T[:900] + 1}).history
    assert history.columns.tolist() == ["rows", "moved", f"{own} (parameter)", "b", f"{own} stderr", "b stderr"]
    assert history["rows"].tolist() == [900] and history[f"{own} (parameter)"].iloc[0] == pytest.approx(2)


FEW = {
    "a prior": ({"prior": {"rate": (1.3, 0.1)}}, 2, None),
    "priors for all": ({"prior": dict.fromkeys(["amplitude", "rate", "offset"], (1, 0.1))}, 0, "0 rows .* at least 1"),
    "too few": ({"prior": {"rate": (1.3, 0.1)}}, 1, "1 rows .* 3 parameters; at least 2"),
    "none": ({}, 2, "2 rows .* at least 3"),
}


@pytest.mark.parametrize(("options", "rows", "refused"), FEW.values(), ids=FEW)
def test_a_prior_counts_as_a_row(options, rows, refused):
    fitter = StreamingFitter(decay, [2.0, 1.0, 0.5], absolute_sigma=True, **options)
    fitter.partial_fit(T[:rows], Y[:rows], 0.1)
    if refused:
        with pytest.raises(TooFewRows, match=refused):
            fitter.result()
    else:
        whole = dask_nlsq.fit(decay, T[:rows], Y[:rows], sigma=0.1, p0=[2, 1, 0.5], absolute_sigma=True, **options)
        np.testing.assert_allclose(fitter.params, whole.params, rtol=1e-9)
        np.testing.assert_allclose(fitter.stderr, whole.stderr, rtol=1e-9)


# --- odd batches ------------------------------------------------------------------------------------------------------


def with_hole(y):
    y = y.copy()
    y[5] = np.nan
    return y


REFUSED = {
    "NaN": (lambda t, y: (t, with_hole(y)), "not finite"),
    "unlike lengths": (lambda t, y: (t[:-1], y), "unlike lengths"),
    "text": (lambda t, y: (t.astype(str), y), "numbers are needed"),
    "dates": (lambda t, y: (t.astype("datetime64[s]"), y), "dates"),
    "sigma suddenly": (lambda t, y: (t, y, np.ones_like(y)), "every batch or with none"),
    "negative sigma": (lambda t, y: (t, y, -np.ones_like(y)), "positive"),
    "no y": (lambda t, y: (t,), "x and y"),
    "two columns": (lambda t, y: ((t, t), y), "2 columns"),
    "a frame without y": (lambda t, y: (pd.DataFrame({"t": t}),), "no column 'y'"),
    "y beside a frame": (lambda t, y: (frame(t, y), y), "read from the frame"),
    "a name of y beside a frame": (
        lambda t, y: (frame(t, y), "t"),
        r"read from the frame.*StreamingFitter\(y=\.\.\.\)",
    ),
    "a frame without sigma": (lambda t, y: (frame(t, y), None, "s"), "no column 's'"),
    "a sigma of text": (lambda t, y: (t, y, "s"), "numbers are needed"),
}


def frame(t, y):
    return pd.DataFrame({"t": t, "y": y})


for name, sigma, match in [
    ("negative", lambda y: -0.1, "sigma is -0.1; it must be positive"),
    ("zero", lambda y: 0, "sigma is 0.0; it must be positive"),
    ("NaN", lambda y: np.float32("nan"), "sigma is nan; it must be positive"),
    ("of negative", lambda y: -np.ones_like(y), "sigma must be positive"),
    ("of zeros", lambda y: np.zeros_like(y), "sigma must be positive"),
    ("short", lambda y: np.ones(len(y) - 1), "unlike lengths"),
    ("suddenly a list", lambda y: [1.0] * len(y), "every batch or with none"),
]:
    REFUSED[f"a sigma {name}"] = (lambda t, y, sigma=sigma: (t, y, sigma(y)), match)
    REFUSED[f"a sigma {name} beside a frame"] = (lambda t, y, sigma=sigma: (frame(t, y), None, sigma(y)), match)


@pytest.mark.parametrize(("odd", "match"), REFUSED.values(), ids=REFUSED)
def test_a_batch_that_is_refused_changes_nothing(odd, match):
    good, first, *rest = batches(10)
    fitters = StreamingFitter(decay, [2.0, 1.0, 0.5]), StreamingFitter(decay, [2.0, 1.0, 0.5])
    for i, fitter in enumerate(fitters):
        fitter.partial_fit(*good)
        if i:
            with pytest.raises(DataError, match=match):
                fitter.partial_fit(*odd(*first))
        fitter.partial_fit(*rest[0])
    assert bits(fitters[0]) == bits(fitters[1])


def test_rows_that_are_omitted_are_counted_and_empty_batches_change_nothing():
    one, other = (StreamingFitter(decay, [2.0, 1.0, 0.5], nan_policy="omit") for _ in range(2))
    hole = Y.copy()
    hole[::10] = np.nan
    for t, y in batches(10, None, T, hole):
        one.partial_fit(t, y).partial_fit(t[:0], y[:0])
        keep = np.isfinite(y)
        other.partial_fit(t[keep], y[keep])
    assert one.result().popt.tobytes() == other.result().popt.tobytes()
    assert (one.result().n_dropped, one.result().n_obs) == (N // 10, 9 * N // 10)


@pytest.mark.parametrize("form", ["float32", "int", "list", "frame", "mapping", "pandas"])
def test_batches_in_every_form(form):
    t, y = np.round(T[:9000], 3), np.round(Y[:9000], 3)
    fitter, plain = StreamingFitter(decay, [2.0, 1.0, 0.5]), StreamingFitter(decay, [2.0, 1.0, 0.5])
    if form == "int":
        t = np.round(t).astype(int)
    for part in np.array_split(np.arange(9000), 9):
        a, b = t[part], y[part]
        batch = {
            "float32": (a.astype("f4"), b.astype("f4")),
            "int": (a, b),
            "list": (a.tolist(), b.tolist()),
            "frame": (pd.DataFrame({"t": a, "y": b, "more": b}),),
            "mapping": ({"t": a, "y": b},),
            "pandas": (pd.Series(a), pd.Series(b)),
        }[form]
        fitter.partial_fit(*batch)
        plain.partial_fit(a, b)
    np.testing.assert_allclose(fitter.params, plain.params, rtol=1e-5 if form == "float32" else 0)


SIGMAS = {
    "a number": (lambda f, s: (f, None, 0.5), False),
    "an integer beside arrays": (lambda f, s: (f["t"], f["y"], np.int64(2)), False),
    "an array": (lambda f, s: (f, None, s), True),
    "a series": (lambda f, s: (f, None, pd.Series(s)), True),
    "a list": (lambda f, s: (f.to_dict("series"), None, s.tolist()), True),
    "a column": (lambda f, s: (f.assign(s=s), None, "s"), True),
}


@pytest.mark.parametrize(("batch", "array"), SIGMAS.values(), ids=SIGMAS)
def test_sigma_in_every_form(batch, array):
    one, other = StreamingFitter(decay, [2.0, 1.0, 0.5]), StreamingFitter(decay, [2.0, 1.0, 0.5])
    for part in np.array_split(np.arange(900), 3):
        given = batch(frame(T[part], Y[part]), SIGMA[part])
        one.partial_fit(*given)
        other.partial_fit(T[part], Y[part], SIGMA[part] if array else np.full(len(part), float(given[2])))
    assert bits(one) == bits(other)


def test_a_column_of_the_model_may_be_called_as_the_response_is():
    def plane(x, a, b):
        return a * x[0] + b * x[1]

    x = np.stack([T[:900], SIGMA[:900]])
    fitter = StreamingFitter(plane, [1.0, 1.0], x=["x", "y"]).partial_fit(x, 2 * x[0] + 3 * x[1])
    np.testing.assert_allclose(fitter.params, [2, 3])


def test_a_batch_on_which_the_model_is_not_finite_is_left_out():
    def root(t, a, b):
        return a * jnp.sqrt(t - b)

    t = np.random.default_rng(0).uniform(1, 5, 20_000)
    y = 2 * np.sqrt(t - 0.5) + np.random.default_rng(1).normal(0, 0.05, t.size)
    fitter = StreamingFitter(root, [1.0, 0.2])
    for i, part in enumerate(np.array_split(np.arange(t.size), 10)):
        if i == 5:
            with pytest.warns(dask_nlsq.NlsqWarning, match="not finite on batch 6"):
                fitter.partial_fit(0 * t[part], y[part])
        fitter.partial_fit(t[part], y[part])
    found = fitter.result()
    assert found.n_obs == t.size and "left out" in found.notes[1]
    assert (abs(found.popt - [2.0, 0.5]) < 5 * found.stderr).all()


def guessing(guess):
    return dask_nlsq.Model(decay, guess_func=guess)


@pytest.mark.parametrize("forget", [np.float32(0.5), np.float64(0.5), Fraction(1, 2)])
def test_forget_is_any_real_number(forget):
    one, other = StreamingFitter(decay, [2.0, 1.0, 0.5], forget=forget), StreamingFitter(decay, [2, 1, 0.5], forget=0.5)
    for batch in batches(10):
        one.partial_fit(*batch)
        other.partial_fit(*batch)
    assert bits(one) == bits(other)


WRONG = {
    "forget": (lambda: StreamingFitter(decay, forget=1.5), NlsqError, "up to 1"),
    "forget that is no number": (lambda: StreamingFitter(decay, forget=np.array([0.5, 0.9])), NlsqError, "up to 1"),
    "forget that is NaN": (lambda: StreamingFitter(decay, forget=np.float32("nan")), NlsqError, "up to 1"),
    "a guess that fails": (
        lambda: StreamingFitter(guessing(lambda x, y: 1 / 0)).partial_fit(T, Y),
        ModelError,
        "The guess of 'decay' failed on 10000 rows .ZeroDivisionError",
    ),
    "nan_policy": (lambda: StreamingFitter(decay, nan_policy="drop"), DataError, "omit"),
    "an expression": (lambda: StreamingFitter(dask_nlsq.Model.from_expression("a*t")), ModelError, "columns"),
    "across rows": (
        lambda: StreamingFitter(lambda t, a: a * t / t.max(), [1.0]).partial_fit(T, Y),
        ModelError,
        "across rows",
    ),
    "not finite at the start": (
        lambda: StreamingFitter(lambda t, a: jnp.log(a - t), [1.0]).partial_fit(T, Y),
        ModelError,
        "start p0",
    ),
}


@pytest.mark.parametrize(("call", "error", "match"), WRONG.values(), ids=WRONG)
def test_wrong_uses_are_refused(call, error, match):
    with pytest.raises(error, match=match):
        call()


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("stop", [*(pytest.param(n, marks=pytest.mark.slow) for n in (0, 1)), 500])
@pytest.mark.parametrize("options", [{}, {"forget": "auto", "fixed": {"offset": 0.5}}])
def test_a_saved_fitter_goes_on_as_if_nothing_had_happened(tmp_path, stop, options):
    """A thousand batches of 60 rows, of which the first two are gathered."""
    rows = [[c[60 * i : 60 * (i + 1)] for c in (T, Y)] for i in range(1000)]
    whole = StreamingFitter(decay, [2.0, 1.0, 0.5], **options)
    for batch in rows:
        whole.partial_fit(*batch)
    first = StreamingFitter(decay, [2.0, 1.0, 0.5], **options)
    for batch in rows[:stop]:
        first.partial_fit(*batch)
    first.save(tmp_path / "stream.zip")
    second = StreamingFitter.load(tmp_path / "stream.zip", decay, p0=[2.0, 1.0, 0.5], **options)
    for batch in rows[stop:]:
        second.partial_fit(*batch)
    assert bits(second) == bits(whole) and len(list(tmp_path.iterdir())) == 1


def fit_of(path):
    return StreamingFitter.load(path, decay, p0=[2.0, 1.0, 0.5])


@pytest.fixture
def saved(tmp_path):
    fitter = StreamingFitter(decay, [2.0, 1.0, 0.5])
    for batch in batches(10, None, T[:N], Y[:N], SIGMA):
        fitter.partial_fit(*batch)
    fitter.save(tmp_path / "stream.zip")
    return tmp_path / "stream.zip"


@pytest.mark.parametrize(
    "damage", ["truncated", "empty", "flipped", "zeroed", "compressed", "another zip", "another identity", "a pickle"]
)
def test_a_damaged_file_is_refused(saved, damage):
    raw = bytearray(saved.read_bytes())
    if damage == "flipped":
        for at in range(200, len(raw) - 200, max(1, len(raw) // 23)):
            broken = raw.copy()
            broken[at] ^= 0x10
            saved.write_bytes(broken)
            try:
                again = fit_of(saved)
            except NlsqError:
                continue
            saved.write_bytes(raw)  # it hit what nobody reads, such as the name's length in the directory
            assert bits(again) == bits(fit_of(saved))
        return
    others = {"truncated": raw[:-100], "empty": b"", "zeroed": bytes(len(raw)), "a pickle": b"\x80\x04N."}
    if damage in others:
        saved.write_bytes(others[damage])
    elif damage == "compressed":
        with zipfile.ZipFile(io.BytesIO(raw)) as held, zipfile.ZipFile(saved, "w", zipfile.ZIP_DEFLATED) as file:
            for key in held.namelist():
                file.writestr(key, held.read(key))
    elif damage == "another zip":
        with saved.open("wb") as file:
            np.savez(file, theta=np.ones(3))
    else:
        archive.save(saved, dataclasses.replace(archive.load(module._Saved, saved), identity=to_text(["decay"])))
    with pytest.raises(CheckpointCorrupt, match="no whole file"):
        fit_of(saved)


def test_a_file_is_a_store_that_zarr_reads(saved):
    with ZipStore(saved, mode="r") as store:
        group = zarr.open_group(store, mode="r")
        np.testing.assert_array_equal(group["state/theta"][:], fit_of(saved).result().popt)


def test_data_without_noise_are_no_fault():
    x = np.linspace(0, 1, 1000)
    fitter = StreamingFitter("line", x="x", p0=[1.0, 2.0])
    for part in np.array_split(np.arange(1000), 5):
        fitter.partial_fit(x[part], 1 + 2 * x[part])
    np.testing.assert_allclose(fitter.params, [1, 2], rtol=1e-9)
    two_rows = StreamingFitter("line", x="x").partial_fit(x[:2], 1 + 2 * x[:2])
    with pytest.warns(OptimizeWarning, match="do not determine intercept, slope"):
        np.testing.assert_allclose(two_rows.result().popt, [1, 2], rtol=1e-6)


def test_a_start_that_is_refused_loses_no_rows():
    def root(t, a, b):
        return a * jnp.sqrt(t - b)

    t = np.linspace(1, 5, 400)
    fitter = StreamingFitter(root, [1.0, 1.5])
    with pytest.raises(ModelError, match="start p0"):
        fitter.partial_fit(t, 2 * np.sqrt(t - 0.5))
    assert sum(block.rows for block in fitter._waiting) == 400


@pytest.mark.slow
@pytest.mark.parametrize("forget", [0.99, 0.9])
def test_the_rows_that_count_follow_the_weights(forget):
    fitter = StreamingFitter(decay, [2.0, 1.0, 0.5], forget=forget)
    fitter.partial_fit(T[:500], Y[:500])
    for i in range(500, 2500):
        fitter.partial_fit(T[i : i + 1], Y[i : i + 1])
    sums = fitter._state.sums
    assert sums.rows == pytest.approx(sums.weight) == pytest.approx(1 / (1 - forget), rel=0.01)


OTHER = [
    (decay, {"prior": {"rate": (1.4, 0.1)}}, "prior"),
    (decay, {"nan_policy": "omit"}, "nan_policy"),
    (decay, {"tied": {"offset": "amplitude / 6"}}, "tied"),
    (decay, {"fixed": {"offset": 0.5}}, "free"),
    (decay, {"bounds": {"rate": (0, 9)}}, "lower"),
    (decay, {"forget": 0.5}, "forget: 1.0 there, 0.5 here"),
    (decay, {"y": "signal"}, "columns"),
    (two, {"p0": [1, 2, 3, 4]}, "parameters"),
    (lambda t, amplitude, rate, offset=0.0: amplitude * jnp.exp(rate * t) + offset, {}, "model: it computes something"),
]


@pytest.mark.parametrize(("model", "options", "match"), OTHER)
def test_a_file_of_another_fit_is_refused(saved, model, options, match):
    with pytest.raises(NlsqError, match=match):
        StreamingFitter.load(saved, model, **{"p0": None if "p0" in options else [2.0, 1.0, 0.5]} | options)


def grow(t, amplitude, rate, offset=0.0):
    return amplitude * jnp.exp(rate * t) + offset


ELSEWHERE = {  # what the file says, the model that it is loaded with, and whether that is accepted
    "no model": (lambda there: [there.pop("model"), there.pop("versions")], grow, True),
    "another JAX": (lambda there: other_jax(there), decay, True),
    "another JAX and model": (lambda there: other_jax(there), grow, False),
    "another program": (lambda there: there["model"].update(program="0"), decay, False),
    "another package": (lambda there: there["versions"].update({"dask-nlsq": "0"}), grow, False),
}


def other_jax(there):
    there["versions"]["jax"] = "0"
    there["model"]["program"] = "0"


@pytest.mark.parametrize(("change", "model", "accepted"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_file_of_other_versions_is_known_by_what_its_model_computes(saved, change, model, accepted):
    held = archive.load(module._Saved, saved)
    there = dict(from_text(held.identity))
    change(there)
    archive.save(saved, dataclasses.replace(held, identity=to_text(there)))
    if accepted:
        StreamingFitter.load(saved, model, p0=[2.0, 1.0, 0.5])
    else:
        with pytest.raises(NlsqError, match=r"model: it computes something else.*Load it with the model and"):
            StreamingFitter.load(saved, model, p0=[2.0, 1.0, 0.5])


@pytest.mark.parametrize("rows", [60, 900])
def test_a_file_knows_its_model_wherever_the_start_is(tmp_path, rows):
    """The start may have been guessed by then, and another be given."""
    model = guessing(lambda x, y: {"amplitude": 2.0, "rate": 1.0})
    StreamingFitter(model).partial_fit(T[:rows], Y[:rows]).save(tmp_path / "stream.zip")
    again = StreamingFitter.load(tmp_path / "stream.zip", model, p0={"rate": 5.0})
    assert again.partial_fit(T[rows:9000], Y[rows:9000]).result().success


def test_what_is_held_does_not_grow(monkeypatch):
    monkeypatch.setattr(module, "HISTORY", 100)
    fitter = StreamingFitter(decay, [2.0, 1.0, 0.5])
    for batch in batches(300):
        fitter.partial_fit(*batch)
    history = fitter.history
    assert len(history) <= 100 and history.index[-1] == 300 and (np.diff(history.index) > 0).all()
    assert len(fitter._sample.drawn.rows) == module.SAMPLE and not fitter._waiting
