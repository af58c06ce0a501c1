"""The result cache: what is found again, what is not and why, and what two writers or damage do."""

import importlib
import logging
import shutil
import subprocess
import sys
import types
from pathlib import Path

import dask
import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from problems import decay, decay_rows

import dask_nlsq
from dask_nlsq import NlsqError, NlsqWarning
from dask_nlsq._checkpoint import Checkpoints, Lock, checkpoints
from dask_nlsq._checkpoint.storage import Folder
from dask_nlsq._fit import FitOptions, fingerprints, result_cache
from dask_nlsq._sweep import failure

P0 = [2.0, 1.0, 0.4]
T, Y = decay_rows(3_000)


def parquet(folder, y=Y):
    folder.mkdir(exist_ok=True)
    for i, rows in enumerate(np.array_split(np.arange(len(T)), 3)):
        pd.DataFrame({"t": T[rows], "y": y[rows]}).to_parquet(folder / f"{i}.parquet")
    return str(folder)


DATA = {
    "path": parquet,
    "Dask frame of files": lambda folder: dd.read_parquet(parquet(folder)),
    "Dask frame": lambda _: dd.from_pandas(pd.DataFrame({"t": T, "y": Y}), npartitions=3),
    "pandas": lambda _: pd.DataFrame({"t": T, "y": Y}),
}


@pytest.fixture
def fit(tmp_path):
    """A fit with a cache in a temporary folder."""
    return lambda data, **options: dask_nlsq.fit(
        decay, data=data, cache_dir=tmp_path / "cache", **{"p0": P0, **options}
    )


@pytest.fixture
def reads(monkeypatch):
    """The partitions that have been read."""
    seen, original = [], failure.read_again
    monkeypatch.setattr(failure, "read_again", lambda load: (seen.append(load), original(load))[1])
    return seen


def hit(result):
    return result.provenance["cache"]["hit"]


@pytest.mark.parametrize("kind", DATA)
def test_the_same_fit_is_found_again(kind, fit, tmp_path):
    data = DATA[kind](tmp_path / "data")
    first, second = fit(data), fit(data)
    assert (hit(first), hit(second)) == (False, True)
    assert np.array_equal(first.popt, second.popt) and np.array_equal(first.pcov, second.pcov)
    assert first.history.equals(second.history) and second.provenance["finished"] == first.provenance["finished"]
    assert np.array_equal(second.predict(T), first.predict(T))


def test_files_are_not_read_again(fit, reads, tmp_path):
    path = parquet(tmp_path / "data")
    fit(path)
    count = len(reads)
    assert hit(fit(path)) and len(reads) == count > 0


@pytest.fixture
def calls(monkeypatch):
    """The names of what has been called, of what a stored result needs once, or not at all."""
    seen = []
    for place in ("_sources.open.find_rows", "_kernel.validate._check", "_kernel.kernel.predict_block"):
        module, _, name = place.rpartition(".")
        original = getattr(importlib.import_module(f"dask_nlsq.{module}"), name)
        monkeypatch.setattr(f"dask_nlsq.{place}", lambda *a, f=original, name=name: (seen.append(name), f(*a))[1])
    return seen


def test_files_of_a_formula_are_listed_once_and_its_model_is_not_traced_again(calls, tmp_path):
    options = {"model": "offset + size*exp(-rate*t)", "data": parquet(tmp_path / "data"), "cache_dir": tmp_path}
    first = dask_nlsq.fit(p0={"rate": 1.0}, **options)
    calls.clear()
    found = dask_nlsq.fit(p0={"rate": 1.0}, **options)
    assert hit(found) and calls == ["find_rows"] and np.array_equal(found.predict(T), first.predict(T))


OTHER = {
    "bounds": ({"bounds": {"rate": (0.0, 9.0)}}, "lower bounds"),
    "start": ({"p0": [1.0, 1.0, 0.0]}, "start"),
    "fixed": ({"fixed": {"offset": 0.5}}, "fixed"),
    "loss": ({"loss": "huber"}, "loss"),
    "seed": ({"seed": 3}, "seed"),
    "covariance": ({"cov_type": "sandwich"}, "cov_type"),
    "absolute": ({"absolute_sigma": True}, "absolute_sigma"),
    "goal": ({"goal": "quality"}, "goal"),
    "tier": ({"tier": "chunked"}, "tier"),
    "memory": ({"memory_limit": "1 GiB"}, "memory_limit"),
    "what is kept": ({"cache": "none"}, "cache"),
    "workflow that streams": ({"workflow": "streaming"}, "tier"),
    "workflow of a goal": ({"workflow": "fast"}, "goal"),
    "autotune": ({"autotune": True}, "autotune"),
    "config": ({"config": {"tier": "standard"}}, "tier"),
}


@pytest.mark.parametrize("name", OTHER)
def test_another_option_is_another_fit(name, fit):
    options, differing = OTHER[name]
    frame = pd.DataFrame({"t": T, "y": Y})
    fit(frame)
    result = fit(frame, **options)
    differs = result.provenance["cache"]["differs"]
    assert not hit(result) and differing in differs and "model" not in differs
    assert hit(fit(frame, **options)) and hit(fit(frame))


def stop(intermediate):
    raise StopIteration


STOPS = {
    "TIME_LIMIT": {"time_limit": 0.0},
    "CALLBACK": {"callback": stop},
    "MAX_NFEV": {"max_nfev": 1},
}


@pytest.mark.parametrize("status", STOPS)
def test_what_was_stopped_answers_no_fit_that_has_more_time(status, fit):
    frame = pd.DataFrame({"t": T, "y": Y})
    whole = dask_nlsq.fit(decay, data=frame, p0=P0)
    assert fit(frame, **STOPS[status]).status.name == status
    later = fit(frame)
    assert not hit(later) and later.success and np.array_equal(later.popt, whole.popt)
    assert hit(fit(frame))


def sine(t, size, rate):
    return size * jnp.sin(rate * t)


def logarithm(t, size, place):
    return size * jnp.log(t - place)


LATE = types.SimpleNamespace(monotonic=lambda: np.inf)
"""A clock that is past every deadline."""

CHECKS = {
    "perturbed restarts": (decay, Y, P0, {"goal": "quality"}),
    "other starts": (sine, 2 * np.sin(5.3 * T), [1.0, 1.0], {}),
    "starts where it is finite": (logarithm, np.log(T + 9.0), [1.0, 3.0], {}),
}


@pytest.mark.filterwarnings("ignore:The model is not finite")
@pytest.mark.parametrize("name", CHECKS)
def test_a_check_that_the_time_limit_ended_is_made_by_the_next_fit(name, tmp_path, monkeypatch):
    model, y, p0, options = CHECKS[name]
    options = {"model": model, "data": pd.DataFrame({"t": T, "y": y}), "p0": p0, **options}
    whole = dask_nlsq.fit(**options)
    with monkeypatch.context() as late:
        late.setattr("dask_nlsq._fit.checks.restarts.time", LATE)
        dask_nlsq.fit(**options, cache_dir=tmp_path, time_limit=1e6)
    later, again = (dask_nlsq.fit(**options, cache_dir=tmp_path) for _ in range(2))
    assert (hit(later), hit(again)) == (False, True)
    assert np.array_equal(later.popt, whole.popt) and later.notes == whole.notes
    assert np.array_equal(later.history["cost"], whole.history["cost"])


FREE = {
    "threads": {"client": False},
    "no bar": {"progress": False},
    "commits": {"checkpoint_interval": 1.0},
    "a workflow of defaults": {"workflow": "auto"},
    "the default goal": {"workflow": "robust", "cache": "auto"},
}


@pytest.mark.parametrize("name", FREE)
def test_where_a_fit_runs_makes_no_other(name, fit):
    frame = pd.DataFrame({"t": T, "y": Y})
    fit(frame)
    assert hit(fit(frame, **FREE[name]))


SAME = {
    "tier": ({"workflow": "standard"}, {"tier": "STANDARD"}),
    "memory": ({"memory_limit": "1 kB"}, {"config": {"memory_limit": 1000}}),
    "kept": ({"config": {"cache": "none"}}, {"cache": "none"}),
}


@pytest.mark.parametrize("name", SAME)
def test_settings_are_known_by_what_they_resolve_to(name):
    one, other = (FitOptions(decay, **options) for options in SAME[name])
    assert one.layout() == other.layout() != FitOptions(decay).layout()


@pytest.mark.parametrize("kind", DATA)
def test_a_changed_number_is_other_data(kind, fit, tmp_path, monkeypatch):
    fit(DATA[kind](tmp_path / "data"))
    monkeypatch.setitem(globals(), "Y", np.where(np.arange(len(Y)) == 7, Y + 1e-9, Y))
    parquet(tmp_path / "data", Y)
    changed = fit(DATA[kind](tmp_path / "data"))
    assert not hit(changed)


WRITTEN = """
import jax.numpy as jnp
RATE = 1.0
def shape(t, rate):
    return jnp.exp(-rate * t)
def model(t, amplitude, rate, offset):
    factor = amplitude * shape(t, RATE * rate)
    return factor + offset
"""
REWRITTEN = {  # what is changed, and whether the stored result still counts
    "nothing": ("", "", True),
    "a constant": ("RATE = 1.0", "RATE = 1.5", False),
    "a helper": ("exp(-rate * t)", "exp(-rate * t) * 1.1", False),
    "the name of a local variable": ("factor", "scaled", True),
    "the name of the helper": ("shape", "falling", True),
    "a comment": ("RATE = 1.0", "RATE = 1.0  # per second", True),
}


@pytest.mark.crossed(3)
@pytest.mark.parametrize("change", REWRITTEN)
def test_a_model_is_known_by_what_it_computes(change, tmp_path):
    old, new, kept = REWRITTEN[change]
    results = []
    for text in (WRITTEN, WRITTEN.replace(old, new)):
        exec(text, space := {"__name__": "written"})
        frame = pd.DataFrame({"t": T, "y": Y})
        results.append(dask_nlsq.fit(space["model"], data=frame, p0=P0, cache_dir=tmp_path))
    assert hit(results[1]) is kept
    assert kept or results[1].provenance["cache"]["differs"] == {"model": "it computes something else"}


def test_other_data_and_versions_are_named(fit, monkeypatch):
    frame = pd.DataFrame({"t": T, "y": Y})
    fit(frame)
    other = fit(frame.assign(y=Y + 1e-9))
    assert not hit(other) and other.provenance["cache"]["differs"] == {"data": "other values"}
    newer = dict(checkpoints.versions(), jax="99.0")
    for module in (checkpoints, result_cache, fingerprints):
        monkeypatch.setattr(module, "versions", lambda: newer)
    later = fit(frame)
    assert not hit(later) and later.provenance["cache"]["differs"]["jax"].endswith("99.0 here")


def test_a_damaged_entry_is_fitted_again(fit, tmp_path):
    frame = pd.DataFrame({"t": T, "y": Y})
    first = fit(frame)
    chunk = max((tmp_path / "cache").rglob("c/0"), key=lambda path: path.stat().st_size)
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"?")
    with pytest.warns(NlsqWarning, match="damaged"):
        again = fit(frame)
    assert not hit(again) and np.array_equal(again.popt, first.popt)
    assert hit(fit(frame))


HOLD = "import sys; from dask_nlsq._checkpoint import Lock; from dask_nlsq._checkpoint.storage import open_place; "
HOLD += "Lock(open_place(sys.argv[1])).acquire(); print('held', flush=True); sys.stdin.read()"


def entry_of(result):
    about = result.provenance["cache"]
    return Path(about["where"]) / "nlsq-fits" / about["entry"]


def contents(entry):
    return {path: path.read_bytes() for path in entry.rglob("*") if path.is_file() and path.name != "lock.json"}


@pytest.mark.parametrize("committed", [True, False])
def test_what_another_process_writes_is_left_alone(committed, fit, caplog):
    """Beside the owner of the lock, what is committed is read, and nothing is written; without that the fit is made."""
    frame = pd.DataFrame({"t": T, "y": Y})
    entry = entry_of(first := fit(frame))
    if not committed:
        shutil.rmtree(entry)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(entry)], **pipes) as other:
        assert other.stdout.readline() == b"held\n"
        before = contents(entry)
        with caplog.at_level(logging.INFO, "dask_nlsq"):
            result = fit(frame)
        assert contents(entry) == before and (entry / "lock.json").exists()
        other.stdin.close()
    assert hit(result) is committed and ("left aside" in caplog.text) is not committed
    assert np.array_equal(result.popt, first.popt)


@pytest.mark.parametrize("kind", DATA)
def test_a_hit_takes_no_lock(kind, fit, tmp_path, monkeypatch):
    data = DATA[kind](tmp_path / "data")
    before = contents(entry_of(fit(data)))
    monkeypatch.setattr(Lock, "acquire", lambda _: pytest.fail("the lock is taken"))
    assert contents(entry_of(result := fit(data))) == before and hit(result)


def leave(entry):
    """Remove an entry, as a process does that makes room for another."""
    shutil.rmtree(entry)


def go_on(entry):
    """Commit the same once more, and remove the generation before."""
    there = Checkpoints(entry)
    generation, keys = there.newest()
    there.commit(keys, generation.about, generation.fingerprint)
    there.place.remove(f"commits/{generation.number:08d}.json")
    there.place.remove(f"state.zarr/{generation.folder}")


MEANWHILE = {"the entry goes": (leave, False), "a newer generation comes": (go_on, True)}


@pytest.mark.parametrize("what", MEANWHILE)
def test_what_vanishes_while_it_is_read_is_looked_for_under_the_lock(what, fit, monkeypatch, recwarn):
    """A reader without the lock that loses its generation says nothing, and looks again as a writer."""
    frame, (change, found), read = pd.DataFrame({"t": T, "y": Y}), MEANWHILE[what], Folder.read_all
    first, locked = fit(frame), []

    def read_all(self, most):
        monkeypatch.setattr(Folder, "read_all", read)
        monkeypatch.setattr(Lock, "acquire", lambda lock, take=Lock.acquire: (locked.append(lock), take(lock)))
        change(entry_of(first))
        return read(self, most)

    monkeypatch.setattr(Folder, "read_all", read_all)
    again = fit(frame)
    assert hit(again) is found and len(locked) == 1 and not recwarn.list
    assert np.array_equal(again.popt, first.popt) and hit(fit(frame))


def test_what_is_read_without_the_lock_is_verified(tmp_path, fit):
    entry = entry_of(fit(pd.DataFrame({"t": T, "y": Y})))
    assert Checkpoints(entry).peek()[0].number == 1 and Checkpoints(tmp_path / "none").peek() is None
    for path, data in contents(entry).items():
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        used = path.parent.name == "commits" or "gen-" in str(path)
        assert (Checkpoints(entry).peek() is None) is used, path
        path.write_bytes(data)


def test_the_oldest_go_first(fit, tmp_path):
    frame = pd.DataFrame({"t": T, "y": Y})
    with dask.config.set({"nlsq.cache-dir-bytes": "1 kB"}):
        entries = [fit(frame, seed=seed).provenance["cache"]["entry"] for seed in range(3)]
    assert [path.name for path in (tmp_path / "cache" / "nlsq-fits").iterdir()] == entries[-1:]


def test_what_else_lies_in_the_folder_stays(fit, tmp_path):
    frame = pd.DataFrame({"t": T, "y": Y})
    saved, run = tmp_path / "cache" / "saved", tmp_path / "cache" / "run"
    dask_nlsq.fit(decay, data=frame, p0=P0, checkpoint=run).save(saved)
    with dask.config.set({"nlsq.cache-dir-bytes": "1 kB"}):
        fit(frame)
    assert dask_nlsq.FitResult.load(saved) == dask_nlsq.FitResult.load(run)


UNUSABLE = {
    "a file": ({}, lambda folder: (folder / "cache").write_text(""), "no folder can be made"),
    "no size": ({"nlsq.cache-dir-bytes": "much"}, lambda _: None, "cache-dir-bytes"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_what_cannot_be_used_is_refused(name, fit, tmp_path):
    config, prepare, words = UNUSABLE[name]
    prepare(tmp_path)
    with dask.config.set(config), pytest.raises(NlsqError, match=words):
        fit(pd.DataFrame({"t": T, "y": Y}))


def test_the_configuration_names_the_folder(tmp_path):
    frame = pd.DataFrame({"t": T, "y": Y})
    with dask.config.set({"nlsq.cache-dir": str(tmp_path / "cache")}):
        results = [dask_nlsq.fit(decay, data=frame, p0=P0) for _ in range(2)]
        checkpointed = dask_nlsq.fit(decay, data=frame, p0=P0, checkpoint=tmp_path / "run")
    assert [hit(result) for result in results] == [False, True]
    assert "cache" not in checkpointed.provenance


def test_a_checkpoint_besides_is_refused(fit, tmp_path):
    with pytest.raises(NlsqError, match="give one"):
        fit(pd.DataFrame({"t": T, "y": Y}), checkpoint=tmp_path / "run")


@pytest.mark.slow
def test_a_cluster_finds_what_threads_have_stored(fit, client, tmp_path):
    path = parquet(tmp_path / "data")
    here, there = fit(path, client=False), fit(path, client=client)
    assert hit(there) and np.array_equal(here.popt, there.popt)
    assert Path(there.provenance["cache"]["where"]) == tmp_path / "cache"
