"""Studies: variants with the bits they have alone, shared reads, stages, failures as rows, cache, files, artifacts."""

import collections
import gc
import io
import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import dask
import dask.array as da
import dask.dataframe as dd
import jax.numpy as jnp
import lmfit
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner
from nist import PROBLEMS
from problems import decay, decay_rows
from scipy import stats
from scipy.optimize import OptimizeWarning
from studied import bits, run

import dask_nlsq
from dask_nlsq import NlsqError, NlsqWarning, Study, StudyFile, grid, study
from dask_nlsq._study import log as log_module
from dask_nlsq._study.log import Log
from dask_nlsq._sweep import failure
from dask_nlsq._sweep.executors import shared_pass
from dask_nlsq.cli.commands import main

T, Y = decay_rows(6_000)
Z = np.random.default_rng(1).uniform(-1, 1, len(T))
FRAME = pd.DataFrame({"t": T, "z": Z, "y": Y + 0.3 * Z})
P0 = {"a": 2.0, "b": 1.0}
MODELS = {
    "decay": "a*exp(-b*t)",
    "offset": "a*exp(-b*t) + c",
    "two columns": "a*exp(-b*t) + c + d*z",
    "other order": "d*z + c + a*exp(-b*t)",
}
COLUMNS = {"decay": ["t"], "offset": ["t"], "two columns": ["t", "z"], "other order": ["z", "t"]}


def parquet(folder, frame=FRAME, files=5):
    folder.mkdir(exist_ok=True)
    for i, rows in enumerate(np.array_split(np.arange(len(frame)), files)):
        frame.iloc[rows].to_parquet(folder / f"{i}.parquet")
    return str(folder)


DATA = {
    "path": parquet,
    "Dask frame of files": lambda folder: dd.read_parquet(parquet(folder)),
    "Dask frame": lambda _: dd.from_pandas(FRAME, npartitions=5),
    "shuffled": lambda _: dd.from_pandas(FRAME, npartitions=5).shuffle("z", shuffle_method="tasks"),
    "pandas": lambda _: FRAME,
    "arrays": lambda _: {name: da.from_array(FRAME[name].to_numpy(), chunks=1200) for name in FRAME},
}


def of_models(**more):
    return {name: {"model": text, "x": COLUMNS[name], "p0": P0, **more} for name, text in MODELS.items()}


def same(one, other):
    return np.array_equal(one.popt, other.popt) and np.array_equal(one.pcov, other.pcov, equal_nan=True)


@pytest.fixture
def reads(monkeypatch):
    """The partitions that have been read."""
    seen, original = [], failure.read_again
    monkeypatch.setattr(failure, "read_again", lambda load: (seen.append(load), original(load))[1])
    return seen


@pytest.mark.one_at_a_time
@pytest.mark.parametrize("cache", ["none", "persist"])
@pytest.mark.parametrize("kind", DATA)
def test_each_variant_has_the_bits_it_has_alone(kind, cache, tmp_path):
    data = DATA[kind](tmp_path / "data")
    done = study(of_models(), data=data, cache=cache, tier="chunked")
    assert list(done) == list(MODELS) and not done.errors
    for name, options in of_models().items():
        alone = dask_nlsq.fit(data=data, cache=cache, tier="chunked", **options)
        assert same(done[name], alone) and done[name].nsweeps == alone.nsweeps
        assert np.array_equal(done[name].predict(FRAME), alone.predict(FRAME))


OPTIONS = {
    "rows dropped": {"nan_policy": "omit"},
    "robust": {"loss": "huber"},
    "weights": {"sigma": 0.1, "absolute_sigma": True},
    "bounds": {"bounds": {"a": (0, 2.5)}},
    "search": {"n_starts": 4, "bounds": {"a": (0, 9), "b": (0, 9)}},
    "differences": {"jac": "3-point"},
    "quality": {"goal": "quality"},
    "streaming": {"tier": "streaming"},
    "precision": {"precision": 0.5},
}


@pytest.mark.crossed(4)
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_bits_with_other_options(options, tmp_path):
    data, two = parquet(tmp_path / "data"), ["decay", "offset"]
    if "n_starts" in options:
        two = ["decay"]
    given = {name: {**of_models()[name], "x": ["t"], **options} for name in two}
    done = study({**given, "plain": {"model": MODELS["two columns"]}}, data=data, cache="none")
    for name in two:
        assert same(done[name], dask_nlsq.fit(data=data, cache="none", **given[name])), done.errors


@pytest.mark.slow
def test_bits_on_a_cluster(client, tmp_path):
    data = parquet(tmp_path / "data")
    for cache in ("none", "persist"):
        done = study(of_models(), data=data, cache=cache, client=client)
        for name, options in of_models().items():
            assert same(done[name], dask_nlsq.fit(data=data, cache=cache, client=client, **options))


@pytest.mark.parametrize("count", [1, 4, 12])
def test_reads_do_not_depend_on_the_number_of_variants(count, reads, tmp_path):
    data, starts = parquet(tmp_path / "data"), np.linspace(1.0, 2.0, count)
    given = {f"{start:.3f}": {"p0": {"a": start, "b": 1.0, "c": 0.1}} for start in starts}
    done = study(given, data=data, model=MODELS["offset"], cache="none", max_nfev=3)
    sweeps = max(result.nsweeps for result in done.values())
    assert len(reads) == 5 * sweeps == 5 * len(done.passes)
    assert all(len(fits) == count for fits in done.passes["variants"].iloc[:2])


def test_batches_are_read_together(reads, tmp_path):
    done = study(of_models(), data=parquet(tmp_path / "data"), cache="none", tier="streaming")
    passes = done.passes
    assert set(passes["what"]) == {"stream", "sweep"} and passes["variants"].map(len).iloc[0] == 4
    sample = 5
    assert len(reads) == sample + 5 * len(passes)


def test_what_begins_alike_is_computed_once(monkeypatch, tmp_path):
    """Of one minimum of the sample, fits from other starts have the same bits, and share all work."""
    computed, original = [], shared_pass.distinct_shares
    spied = lambda shares: (computed.append(found := original(shares)), found)[1]  # noqa: E731
    monkeypatch.setattr(shared_pass, "distinct_shares", spied)
    starts = {f"{i}": {"a": 2 + 0.4 * i, "b": 1 + 0.2 * i, "c": 0.4} for i in range(4)}
    options = {"cache": "none", "tier": "streaming"}
    done = study(grid(p0=starts), data=parquet(tmp_path / "data"), model=MODELS["offset"], **options)
    assert {len(distinct) for distinct, _ in computed} == {1} and len({r.popt.tobytes() for r in done.values()}) == 1


def test_reads_of_models_with_other_columns_are_shared(reads, tmp_path):
    done = study(of_models(), data=parquet(tmp_path / "data"), cache="none", max_nfev=4)
    assert len(reads) == 5 * max(result.nsweeps for result in done.values())


def test_held_data_are_read_once(reads, tmp_path):
    done = study(of_models(), data=parquet(tmp_path / "data"), cache="persist", tier="chunked")
    assert len(reads) == 5 and set(done.passes["what"]) == {"hold", "sweep"}


def test_one_variant_alone_is_a_fit(reads, tmp_path):
    data = parquet(tmp_path / "data")
    done = study({"one": {}}, data=data, model=MODELS["offset"], cache="none")
    count = len(reads)
    assert same(done["one"], dask_nlsq.fit(MODELS["offset"], data=data, cache="none")) and len(reads) == 2 * count


def test_fewer_at_a_time_have_the_same_bits(tmp_path):
    data = parquet(tmp_path / "data")
    all_at_once, two = (study(of_models(), data=data, max_concurrent=most) for most in (None, 2))
    assert all(same(all_at_once[name], two[name]) for name in MODELS)
    assert max(map(len, two.passes["variants"])) == 2


def test_threads_end_with_the_study():
    study(of_models(), data=FRAME)
    assert not fitting()


def fitting():
    """The threads in which studies fit."""
    return [thread for thread in threading.enumerate() if thread.name.startswith("nlsq-study")]


def test_a_variant_begins_where_another_ended(tmp_path):
    after = {
        "start": {"model": MODELS["offset"], "after": "decay"},
        "held": {"model": MODELS["offset"], "after": {"decay": {"fixed": ["b"]}}},
        "within": {"model": MODELS["offset"], "after": {"decay": {"p0": ["a"], "bounds": 1.0}}},
        "computed": {"model": MODELS["offset"], "after": {"decay": lambda r: {"p0": {"a": 2 * r.params["a"]}}}},
        "merged": {"model": MODELS["two columns"], "after": {"start": {"p0": ["c"]}, "decay": {"fixed": ["a"]}}},
    }
    done = study({"decay": {"model": MODELS["decay"]}, **after}, data=FRAME)
    first, error = done["decay"].params, done["decay"].stderr
    assert same(done["start"], dask_nlsq.fit(MODELS["offset"], data=FRAME, p0=first.to_dict()))
    assert done["held"].params["b"] == first["b"] and done["merged"].params["a"] == first["a"]
    assert abs(done["within"].params["a"] - first["a"]) <= error["a"] * (1 + 1e-9)
    assert same(done["computed"], dask_nlsq.fit(MODELS["offset"], data=FRAME, p0={"a": 2 * first["a"]}))


def test_those_that_begin_together_read_together(reads, tmp_path):
    variants = {"decay": {"model": MODELS["decay"]}}
    variants |= {f"{i}": {"model": MODELS["offset"], "after": "decay", "p0": {"c": i / 9}} for i in range(4)}
    done = study(variants, data=parquet(tmp_path / "data"), cache="none", ftol=1e-8)
    assert len(reads) == 5 * len(done.passes)
    assert len(done.passes) == done["decay"].nsweeps + max(done[f"{i}"].nsweeps for i in range(4))


FAILING = {
    "model": ({"model": "a*log(t - 99)"}, "ModelError"),
    "column": ({"model": MODELS["decay"], "y": "absent"}, "DataError"),
    "start": ({"model": MODELS["decay"], "p0": {"q": 1.0}}, "ModelError"),
    "bounds": ({"model": MODELS["decay"], "bounds": {"a": (3, 2)}}, "BoundsError"),
    "option": ({"model": MODELS["decay"], "loss": "cubic"}, "ModelError"),
    "after": ({"model": "A*exp(-B*t)", "after": "good"}, "no parameter in common"),
    "raises": ({"model": lambda t, a: a * t / [][0]}, "Error"),
    "resources": ({"model": MODELS["decay"], "resources": {"GPU": 1}}, "NlsqError"),
    "taken bounds": ({"model": MODELS["decay"], "after": {"good": {"bounds": "x"}}}, "number of standard errors"),
    "taken start": ({"model": MODELS["decay"], "after": {"good": {"p0": 3}}}, "names of parameters are needed"),
    "nothing taken": ({"model": MODELS["decay"], "after": {"good": lambda _: None}}, "has returned None"),
    "taken option": ({"model": MODELS["decay"], "after": {"good": lambda _: {"resume": True}}}, "resume= is no option"),
}


@pytest.mark.parametrize(("bad", "error"), FAILING.values(), ids=FAILING)
def test_what_fails_is_a_row(bad, error, tmp_path):
    variants = {"bad": bad, "good": {"model": MODELS["offset"]}, "later": {"model": MODELS["offset"], "after": "bad"}}
    done = study(variants, data=parquet(tmp_path / "data"))
    assert list(done) == ["good"] and error in done.errors["bad"] and "'bad'" in done.errors["later"]
    assert done.table.loc["bad", "error"] == done.errors["bad"] and "failed" in done.report()
    with pytest.raises(KeyError, match="no result"):
        done["bad"]


def test_a_column_that_another_variant_needs_fails_that_one_alone(tmp_path):
    data = parquet(tmp_path / "data")
    FRAME.iloc[2400:3600].drop(columns="z").to_parquet(tmp_path / "data" / "2.parquet")
    done = study(
        of_models(),
        data=dd.from_map(
            pd.read_parquet,
            sorted(map(str, (tmp_path / "data").iterdir())),
            meta=FRAME.iloc[:0],
            enforce_metadata=False,
        ),
    )
    assert set(done.errors) == {"two columns", "other order"}
    assert same(done["offset"], dask_nlsq.fit(data=data, x="t", model=MODELS["offset"], p0=P0))


def test_a_fit_that_has_failed_is_not_waited_for():
    """Its generator is closed when it is collected, after it has left."""
    variants = {
        "across": {"model": lambda t, a, b: a * jnp.cumsum(t) + b, "p0": [1.0, 1.0]},
        "after": {"model": MODELS["offset"], "tier": "streaming", "after": "good"},
        "good": {"model": MODELS["decay"]},
    }
    done = study(variants, data=dd.from_pandas(FRAME, npartitions=4), x="t")
    gc.collect()
    assert set(done) == {"good", "after"}


def test_expressions_of_dask_are_opened_one_at_a_time():
    frame = dd.from_map(lambda i: FRAME.iloc[i * 1000 : (i + 1) * 1000], range(6), meta=FRAME.iloc[:0])
    assert len(study(of_models(), data=frame.assign(t=frame["t"] * 2)[frame["t"] < 3])) == len(MODELS)


def test_a_log_that_cannot_be_written_ends_no_study(tmp_path, monkeypatch, caplog):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(28, "No space left on device")

    opened = log_module.Path.open
    monkeypatch.setattr(
        log_module.Path, "open", lambda p, *a, **k: Full() if p.name == "log.jsonl" else opened(p, *a, **k)
    )
    assert not study(of_models(), data=FRAME, cache_dir=tmp_path).errors
    assert caplog.text.count("The log of the study cannot be written") == 1


def test_dask_may_be_told_to_run_several_tasks_at_once():
    with dask.config.set(chunksize=4):
        assert len(study(of_models(), data=FRAME)) == len(MODELS)


@pytest.mark.parametrize("form", [np.array, lambda ids: pa.array(ids).cast(pa.int64())], ids=["array", "expression"])
def test_long_filters_that_differ_read_other_rows(form, tmp_path):
    numbers, frame = np.arange(len(T)), FRAME.assign(id=np.arange(len(T)))
    data, every = parquet(tmp_path / "data", frame), {}
    for name, ids in {"even": numbers[::2], "odd": np.where(numbers % 2, numbers, 0)[1::2]}.items():
        ids = np.concatenate([[0], ids, [len(T) - 1]])
        every[name] = [("id", "in", form(ids))] if form is np.array else pc.field("id").isin(form(ids))
    done = study(grid(filters=every), data=data, model=MODELS["offset"], cache_dir=tmp_path / "cache")
    assert done["even"].cost != done["odd"].cost
    for name, filters in every.items():
        again = dask_nlsq.fit(MODELS["offset"], data=data, filters=filters, cache_dir=tmp_path / "cache")
        assert same(again, done[name]) and again.provenance["cache"]["hit"]


def test_held_data_are_let_go_of(tmp_path):
    done = study(of_models(), data=parquet(tmp_path / "data"), cache="persist", tier="chunked")
    reads = done["offset"].profiler.problem.reader._reads
    assert not reads._shared and not reads._once
    assert len(done["offset"].conf_int(method="profile")) == 3  # reads its data by itself


def test_names_of_parameters_and_columns_do_not_clash():
    done = study(grid(model=["aic*exp(-b*t)", "aic + status*t"], loss=["linear"]), data=FRAME)
    table = done.table
    assert table["aic (parameter)"].iloc[0] == done["aic*exp(-b*t), linear"].params["aic"]
    assert table["aic"].iloc[0] == done["aic*exp(-b*t), linear"].aic and (table["status"] == "CONVERGED").all()


def test_a_partition_that_cannot_be_read_fails_all_that_read_it(tmp_path):
    data = parquet(tmp_path / "data")
    (tmp_path / "data" / "3.parquet").write_bytes((tmp_path / "data" / "2.parquet").read_bytes()[:-3000] + b"PAR1")
    with pytest.warns(NlsqWarning, match="No variant has a result"):
        done = study(of_models(), data=data)
    assert set(done.errors) == set(MODELS) and len(done) == 0


REFUSED = {
    "nothing": (lambda: study({}, T, Y), "variants are"),
    "option": (lambda: study({"a": {"los": "huber"}}, T, Y, model="a*x"), "Did you mean 'loss'"),
    "common option": (lambda: study({"a": {}}, T, Y, model="a*x", bound=1), "Did you mean 'bounds'"),
    "of the study": (lambda: study({"a": {"checkpoint": "x"}}, T, Y, model="a*x"), "checkpoint= is no option"),
    "no model": (lambda: study({"a": {}}, T, Y), "has no model"),
    "follows none": (lambda: study({"a": {"after": "b"}}, T, Y, model="a*x"), "follows 'b'"),
    "circle": (lambda: study({"a": {"after": "b"}, "b": {"after": "a"}}, T, Y, model="a*x"), "circle"),
    "takes": (lambda: study({"a": {}, "b": {"after": {"a": "cov"}}}, T, Y, model="a*x"), "p0, fixed, bounds"),
    "record": (lambda: study({"a": {}}, T, Y, model="a*x", record=["plot"]), "cache_dir"),
    "artifact": (lambda: study({"a": {}}, T, Y, model="a*x", record=["plots"], cache_dir="x"), "Did you mean 'plot'"),
    "at a time": (lambda: study({"a": {}}, T, Y, model="a*x", max_concurrent=0), "max_concurrent"),
    "name": (lambda: study({"a": {}}, T, Y, model="a*x", name="../x"), "name of the study"),
    "axis": (lambda: grid(losses=["linear"]), "Did you mean 'loss'"),
    "values": (lambda: grid(loss="linear"), "list of values"),
    "no model has it": (lambda: study({"a": {}}, T, Y, model="a*x", p0={"q": 1}), "which no model has"),
    "twice": (lambda: grid(model=[lambda x, a: a * x, lambda x, a: a + x]), "same label"),
    "empty": (lambda: grid(loss=[]), "no values"),
    "same names": (lambda: grid(model={"x, y": "a*x", "x": "b*x"}, data={"z": 1, "y, z": 2}), "would be called"),
    "a start as axis": (lambda: grid(p0={"a": 1.0, "b": 2.0}), "an axis is a list of such mappings"),
    "names as text": (lambda: study({1: "a*x", "1": "b*x"}, T, Y), "same name as text"),
    "no text": (lambda: study({"a": "a*x"}, T, Y, name=3), "name of the study"),
    "no number": (lambda: study({"a": "a*x"}, T, Y, max_concurrent="3"), "max_concurrent is '3'"),
    "after a number": (lambda: study({"a": {"model": "a*x", "after": 3}}, T, Y), "after is 3"),
    "frames": (lambda: grid(data=[FRAME, FRAME[:9]]), "label of one line"),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(call, message):
    with pytest.raises(NlsqError, match=message):
        call()


@pytest.mark.slow
def test_what_is_said_of_all_by_name_goes_to_the_models_that_have_it():
    said = {"p0": {"a": 2.0, "c": 0.25}, "bounds": {"c": (0.2, 0.3)}, "fixed": {"d": 0.25}}
    done = study({"plain": MODELS["decay"], **grid(model=MODELS)}, data=FRAME, **said)
    assert not done.errors and done["offset"].params["c"] == 0.3 and done["two columns"].params["d"] == 0.25
    assert same(done["decay"], dask_nlsq.fit(MODELS["decay"], data=FRAME, p0={"a": 2.0})) and "plain" in done


def test_a_model_of_a_grid_brings_its_columns():
    def plane(t, z, a, b, c):
        return a + b * t + c * z

    done = study(grid(model={"plane": {"model": plane, "x": ["t", "z"]}, "line": "a + b*t"}), data=FRAME)
    assert done["plane"].names == ("a", "b", "c") and done.table["model"].tolist() == ["plane", "line"]


def test_a_grid_has_its_labels_as_columns():
    variants = grid(model={"line": "a + b*t", "decay": decay}, loss=["linear", "cauchy"], f_scale=[1.0, 0.3])
    assert len(variants) == 8 and variants["line, cauchy, 0.3"].options["f_scale"] == 0.3
    fitted = {name: variant for name, variant in variants.items() if name.endswith("linear, 1.0")}
    table = study(fitted, data=FRAME, x="t").table
    assert table.loc["decay, linear, 1.0", ["model", "loss", "f_scale"]].tolist() == ["decay", "linear", "1.0"]
    assert table.loc["decay, linear, 1.0", "rate"] > 0 and np.isnan(table.loc["line, linear, 1.0", "rate_stderr"])


@pytest.mark.parametrize("name", ["Misra1a", "Chwirut2", "DanWood"])
def test_weights_and_f_by_hand_on_certified_problems(name):
    problem = next(each for each in PROBLEMS if each.name == name)
    x, y = np.asarray(problem.x["x"]), np.asarray(problem.y)
    models = {"constant": "c + 0*x", "line": "c + d*x", "parabola": "c + d*x + e*x**2"}
    done = study(grid(model=models), x, y)
    n, k = len(y), np.array([1, 2, 3])
    chi2 = np.array([((y - np.polyval(np.polyfit(x, y, degree), x)) ** 2).sum() for degree in range(3)])
    aic = n * (np.log(2 * np.pi * chi2 / n) + 1) + 2 * (k + 1)
    aicc = aic + 2 * (k + 1) * (k + 2) / (n - k - 2)
    weight = np.exp(-(aicc - aicc.min()) / 2)
    assert done.table["delta_aic"].to_numpy() == pytest.approx(aic - aic.min(), rel=1e-7, abs=1e-7)
    assert done.table["weight"].to_numpy() == pytest.approx(weight / weight.sum(), rel=1e-6)
    tests = done.f_tests.set_index(["restricted", "full"])
    f = (chi2[1] - chi2[2]) / (chi2[2] / (n - 3))
    assert tests.loc[("line", "parabola"), "F"] == pytest.approx(f, rel=1e-7)
    assert tests.loc[("line", "parabola"), "p_value"] == pytest.approx(stats.f.sf(f, 1, n - 3), rel=1e-6)


def test_weights_as_lmfit_has_them():
    done = study(grid(model={"decay": MODELS["decay"], "offset": MODELS["offset"]}), data=FRAME)
    results = {}
    for name, function in {
        "decay": lambda t, a, b: a * np.exp(-b * t),
        "offset": lambda t, a, b, c: a * np.exp(-b * t) + c,
    }.items():
        model = lmfit.Model(function)
        results[name] = model.fit(FRAME["y"].to_numpy(), t=T, **dict.fromkeys(model.param_names, 1.0))
    difference = results["decay"].aic - results["offset"].aic
    assert done.table.loc["decay", "delta_aic"] == pytest.approx(difference, rel=1e-6)


@pytest.mark.parametrize("name", ["DanWood", "Chwirut2"])
def test_weights_and_f_as_statsmodels_has_them(name):
    sm = pytest.importorskip("statsmodels.api", reason="statsmodels comes with the extra `examples`")
    problem = next(each for each in PROBLEMS if each.name == name)
    x, y = np.asarray(problem.x["x"]), np.asarray(problem.y)
    done = study({"line": "c + d*x", "parabola": "c + d*x + e*x**2"}, x, y)
    line, parabola = (sm.OLS(y, np.vander(x, k, increasing=True)).fit() for k in (2, 3))
    # There the variance of the rows is no parameter, which adds the same to both.
    assert done.table.loc["line", "aic"] - done.table.loc["parabola", "aic"] == pytest.approx(
        line.aic - parabola.aic, rel=1e-8
    )
    f, p, _ = parabola.compare_f_test(line)
    assert done.f_tests.loc[0, ["F", "p_value"]].tolist() == pytest.approx([f, p], rel=1e-7)


def test_unlike_rows_are_not_compared():
    halves = {"early": FRAME[FRAME["t"] < 2], "late": FRAME[FRAME["t"] >= 2]}
    done = study(grid(data=halves, model={"line": "a + b*t", "decay": MODELS["decay"]}), x="t")
    assert done.table["set"].tolist() == [0, 0, 1, 1] and len(done.comparisons) == 2
    assert done.table.groupby("set")["weight"].sum().tolist() == pytest.approx([1.0, 1.0])
    robust = study(grid(loss=["linear", "huber"]), data=FRAME, model=MODELS["offset"])
    assert not robust.comparisons and np.isnan(robust.table.loc["huber", "delta_aic"])


def test_warnings_say_which_variants():
    open_ends = dict.fromkeys(("open", "too", "also", "as well"), "a*exp(-b*t) + c + d")
    with pytest.warns(OptimizeWarning, match="Variants 'open', 'too', 'also' and 1 more: The data") as warned:
        study({**open_ends, "good": MODELS["offset"]}, data=FRAME)
    assert len(warned) == 1


def test_what_is_cached_is_not_fitted_again(reads, tmp_path):
    data, cache = parquet(tmp_path / "data"), tmp_path / "cache"
    first = study(of_models(), data=data, cache_dir=cache)
    count = len(reads)
    second = study({**of_models(), "new": {"model": "a + b*t"}}, data=data, cache_dir=cache)
    assert second.table["cached"].tolist() == [True] * 4 + [False] and len(reads) > count
    assert all(same(first[name], second[name]) for name in MODELS)
    count = len(reads)
    plain = dask_nlsq.fit(data=data, cache_dir=cache, **of_models()["offset"])  # the same entry as a fit has
    assert plain.provenance["cache"]["hit"] and len(reads) == count


def test_loaded(tmp_path):
    variants = {**grid(model=MODELS), "bad": {"model": "a*log(t - 99)"}}
    done = study(variants, data=parquet(tmp_path / "data"), cache_dir=tmp_path / "cache", name="decays")
    there = Study.load(tmp_path / "cache", "decays")
    told = ["cached", "seconds", "error"]
    assert there.table.drop(columns=told).equals(done.table.drop(columns=told)) and set(there.errors) == {"bad"}
    assert there.f_tests.equals(done.f_tests) and len(there.metrics) == len(done.metrics)
    assert np.array_equal(there["offset"].predict(FRAME), done["offset"].predict(FRAME))
    with pytest.raises(NlsqError, match=r"there are \['decays'\]"):
        Study.load(tmp_path / "cache", "decay")


def test_variants_of_unlike_workflows_have_entries_of_their_own(tmp_path):
    variants = {name: {"workflow": name} for name in ("standard", "streaming", "timeseries")}
    given = {"data": parquet(tmp_path / "data"), "model": MODELS["offset"], "cache_dir": tmp_path / "cache"}
    first, second = study(variants, **given), study(variants, **given)
    assert not first.table["cached"].any() and second.table["cached"].all()
    assert [str(second[name].plan.tier) for name in variants] == ["STANDARD", "STREAMING", "CHUNKED"]
    alone = dask_nlsq.fit(workflow="streaming", **given)
    assert alone.provenance["cache"]["hit"] and same(alone, second["streaming"])


def test_loaded_with_functions_and_what_was_cached(tmp_path):
    data, cache = parquet(tmp_path / "data"), tmp_path / "cache"
    study({"function": decay}, data=data, x="t", cache_dir=cache)
    done = study({"function": decay, "line": "a + b*t"}, data=data, x="t", cache_dir=cache)
    there = Study.load(cache, models={"function": decay})
    assert there.table["cached"].tolist() == [True, False] and len(there.lines) == len(done.lines)
    assert np.array_equal(there["function"].predict(FRAME), done["function"].predict(FRAME))
    with pytest.raises(NlsqError, match="names \\['lines'\\]"):
        Study.load(cache, models={"lines": decay})
    (cache / "nlsq-studies" / "study" / "study.json").unlink()
    with pytest.raises(NlsqError, match="has not ended"):
        Study.load(cache)


def test_where_nothing_succeeds_a_warning_says_so():
    with pytest.warns(NlsqWarning, match="The first failed so: DataError"):
        study(of_models(), data=FRAME, y="absent")


def test_log_has_a_line_for_each_event(tmp_path):
    done = study(of_models(), data=parquet(tmp_path / "data"), cache_dir=tmp_path, cache="none")
    lines = [json.loads(line) for line in (tmp_path / "nlsq-studies" / "study" / "log.jsonl").read_text().splitlines()]
    assert lines == list(done.lines)
    sweeps = [line for line in lines if line["event"] == "sweep" and line["variant"] == "offset"]
    assert [line["cost"] for line in sweeps] == done["offset"].history["cost"].tolist()
    assert {line["variant"] for line in lines if line["event"] == "end"} == set(MODELS)
    passes = done.passes
    assert (passes["read_seconds"] > 0).all() and (passes["bytes"] == len(FRAME) * 24).all()
    assert all(sum(workers.values()) == 5 for workers in passes["workers"])


ARTIFACTS = {
    "table": (lambda r: r.summary(), ".parquet"),
    "array": (lambda r: r.predict(T[:5]), ".npy"),
    "figure": (lambda r: r.plot_history(), ".png"),
    "text": (lambda r: "text", ".txt"),
    "bytes": (lambda r: b"bytes", ".bin"),
    "values": (lambda r: {"chisqr": r.chisqr}, ".json"),
    "page": (lambda r: r.to_html(plots=False), ".html"),
}


def test_artifacts_are_kept_when_asked(tmp_path):
    functions = {name: function for name, (function, _) in ARTIFACTS.items()}
    given = {"data": parquet(tmp_path / "data"), "cache_dir": tmp_path / "cache", "artifacts": functions}
    two = {name: of_models()[name] for name in ("decay", "offset")}
    assert study(two, **given).recorded == {"decay": {}, "offset": {}}
    done = study(two, **given, record=list(functions))
    assert {name: path[path.rindex(".") :] for name, path in done.recorded["offset"].items()} == {
        name: ending for name, (_, ending) in ARTIFACTS.items()
    }
    assert done["offset"].provenance["cache"]["entry"] in done.recorded["offset"]["table"]
    assert np.load(done.recorded["offset"]["array"]).tolist() == done["offset"].predict(T[:5]).tolist()


def test_an_artifact_that_fails_is_told(tmp_path):
    with pytest.warns(NlsqWarning, match="'broken' of 'one' could not be made: ZeroDivisionError"):
        study(
            {"one": {}}, T, Y, model=decay, cache_dir=tmp_path, artifacts={"broken": lambda _: 1 / 0}, record="broken"
        )


def test_shown(tmp_path):
    done = study({**of_models(), "<b>": {"model": "a*log(t - 99)"}}, data=FRAME)
    html = done._repr_html_()
    assert "&lt;b&gt;" in html and "<b>" not in html and "two columns" in html and "F-tests" in html
    done.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text("utf-8").count("data:image/png") == 5  # the comparison, a, b, c, d
    assert done.plot().get_title() == "Comparison of models"
    assert [label.get_text() for label in done.plot_parameter("c").get_yticklabels()] == [*MODELS][1:]
    with pytest.raises(NlsqError, match="parameter 'cc'"):
        done.plot_parameter("cc")


STUDY = """\
data: data
y: y
options: {nan_policy: omit}
grid:
  model: {decay: "a*exp(-b*t)", offset: "a*exp(-b*t) + c"}
  filters:
    all: null
    early: [[t, "<", 2]]
variants:
  bounded:
    model: a*exp(-b*t) + c
    bounds: {a: [0, 25e-1]}
    after: {"decay, all": p0}
record: [report]
"""


def test_command_line(tmp_path, monkeypatch):
    parquet(tmp_path / "data")
    (tmp_path / "decays.yaml").write_text(STUDY)
    file = str(tmp_path / "decays.yaml")
    runs = [
        CliRunner().invoke(main, ["study", *command])
        for command in (
            ["run", file, "--html", str(tmp_path / "page.html")],
            ["run", file],
            ["show", file],
            ["show", file, "--json"],
            ["compare", file],
            ["compare", file, "--json"],
        )
    ]
    assert [run.exit_code for run in runs] == [0] * 6, [run.output for run in runs]
    assert "5 of 5 results were there" in runs[1].stdout and "decay, early" in runs[2].stdout
    shown = {row["variant"]: row for row in json.loads(runs[3].stdout)}
    assert shown["offset, all"]["b"] == StudyFile.read(file).load()["offset, all"].params["b"]  # with all its digits
    assert len(shown) == 5 and len(json.loads(runs[5].stdout)) == 2
    done = StudyFile.read(file).load()
    assert done["bounded"].params["a"] == 2.5 and set(done.recorded["bounded"]) == {"report"}
    assert done["offset, early"].n_obs == (FRAME["t"] < 2).sum()


FAULTY = {
    "no mapping": ("- a", 1, "a mapping is needed"),
    "no YAML": ("data: [", 1, "no YAML"),
    "key": (STUDY + "recrod: []\n", 15, "Did you mean 'record'"),
    "option": (STUDY.replace("nan_policy", "nan_polcy"), 3, "Did you mean 'nan_policy'"),
    "axis": (STUDY.replace("  filters:", "  filter:"), 6, "Did you mean 'filters'"),
    "variant's option": (STUDY.replace("    bounds:", "    bound:"), 12, "Did you mean 'bounds'"),
    "model": (STUDY.replace('"a*exp(-b*t)"', '"a*exp(-b*"'), 5, "a\\*exp"),
    "type": (STUDY.replace("y: y", "y: [y]"), 2, "name of a column"),
    "bounds": (STUDY.replace("[0, 25e-1]", "[0, many]"), 12, "pairs of numbers"),
    "follows": (STUDY.replace('"decay, all": p0', "decay: p0"), 13, "follows 'decay'.*Did you mean 'decay, all'"),
    "twice": (STUDY + "y: z\n", 15, "stands twice"),
    "no data": (STUDY.replace("data: data\n", ""), 1, "data: is missing"),
    "nothing": ("data: data\n", 1, "grid: or variants:"),
    "objects": ("data: !!python/object/apply:os.getcwd []\n", 1, "no YAML"),
}


@pytest.mark.parametrize(("text", "line", "message"), FAULTY.values(), ids=FAULTY)
def test_files_are_checked_line_by_line(text, line, message, tmp_path):
    (tmp_path / "study.yaml").write_text(text)
    with pytest.raises(NlsqError, match=rf"study.yaml, line {line}\b.*{message}"):
        StudyFile.read(tmp_path / "study.yaml", dask_nlsq.Model.from_expression)


def begin(data, cache):
    """Begin the study in a process of its own."""
    command = [sys.executable, str(Path(__file__).with_name("studied.py")), data, str(cache)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "begun\n"
    return process


@pytest.mark.slow
def test_killed_at_random_times(tmp_path):
    """SIGKILL, ten times: no variant that has ended is fitted again, and the bits stay."""
    data, rng, killed = parquet(tmp_path / "data"), np.random.default_rng(0), 0
    expected = bits(run(data, tmp_path / "apart"))
    for seconds in rng.uniform(0.5, 6.0, 10):
        process = begin(data, tmp_path / "cache")
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
    assert killed and bits(run(data, tmp_path / "cache")) == expected
    lines = log_module.read_log(tmp_path / "cache" / "nlsq-studies" / "study" / "log.jsonl")
    fitted = collections.Counter(line["variant"] for line in lines if line["event"] == "end" and not line["cached"])
    assert max(fitted.values()) == 1 and sum(line["event"] == "begin" for line in lines) <= 11


@pytest.mark.slow
def test_two_processes_share_a_cache(tmp_path):
    data = parquet(tmp_path / "data")
    both = [begin(data, tmp_path / "cache") for _ in range(2)]
    expected = str(bits(run(data, tmp_path / "apart")))
    assert [process.communicate()[0].strip() for process in both] == [expected] * 2
    done = run(data, tmp_path / "cache")
    assert done.table["cached"].all() and str(bits(done)) == expected


@pytest.fixture
def interruptible():
    """Ctrl-C raises, as it does but for a process that was begun in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("where", ["sweep", "end"])
@pytest.mark.usefixtures("interruptible")
def test_interrupted(where, tmp_path, monkeypatch):
    """Ctrl-C ends the study and its threads; what has ended is in the cache."""
    data, seen = parquet(tmp_path / "data"), []

    def notify(log, event, **fields):
        seen.append(event)
        if event == where and seen.count(where) == 2:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patched:
        patched.setattr(Log, "write", notify)
        with pytest.raises(KeyboardInterrupt):
            study(of_models(), data=data, cache_dir=tmp_path / "cache", max_concurrent=1)
    assert not fitting()
    done = study(of_models(), data=data, cache_dir=tmp_path / "cache")
    assert done.table["cached"].sum() >= (where == "end") and not done.errors
