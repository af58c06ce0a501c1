"""Fits that are stopped and resumed give the bits of an uninterrupted run, or an error that lists the differences."""

import contextlib
import dataclasses
import errno
import functools
import http.server
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import dask.array as da
import fsspec
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import zarr
from problems import decay, decay_rows
from resumed import KINDS, bits, run

import dask_nlsq
from dask_nlsq import (
    CheckpointError,
    CheckpointMismatch,
    Checkpoints,
    FitResult,
    Interrupted,
    NlsqError,
    NlsqWarning,
    Status,
    SweepError,
)
from dask_nlsq._checkpoint import storage
from dask_nlsq._checkpoint.codec import pack, unpack
from dask_nlsq._checkpoint.lock import Lock
from dask_nlsq._fit.session import SavedState
from dask_nlsq._fit.start.stream_pass import Pass
from dask_nlsq._kernel.reduction import Reduction, fold
from dask_nlsq._model.source_hash import code
from dask_nlsq._solver import TrustRegion
from dask_nlsq._sources.file_stamps import files
from dask_nlsq._sweep.executors.local import Threads
from dask_nlsq._sweep.task import Answer
from dask_nlsq._sweep.tree import Partial
from dask_nlsq._system.signals import Interrupt

N = 20_000
T, Y = decay_rows(N)


@pytest.fixture(scope="module", params=KINDS)
def whole(request):
    """A run that nothing stops, and how it was asked for."""
    return request.param, run(None, request.param)


# --- the same bits ----------------------------------------------------------------------------------------------------


class Stop(BaseException):
    """Stands for whatever ends a process."""


def stopped_after(monkeypatch, commits):
    """Let so many commits through, and then end the fit as if the process had died."""
    commit, seen = Checkpoints.commit, []

    def counted(self, *args, **options):
        if len(seen) == commits:
            raise Stop
        seen.append(1)
        return commit(self, *args, **options)

    monkeypatch.setattr(Checkpoints, "commit", counted)


@pytest.mark.crossed
@pytest.mark.parametrize("commits", [1, 40, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 9, 70, 90))])
def test_stopped_after_any_commit_a_fit_goes_on_to_the_same_bits(whole, tmp_path, monkeypatch, commits):
    kind, result = whole
    stopped_after(monkeypatch, commits)
    ended = False
    try:
        run(tmp_path, kind, checkpoint_interval=0)
        ended = True
    except Stop:
        pass
    monkeypatch.undo()
    again = run(tmp_path, kind, resume=True)
    assert bits(again) == bits(result) and again.notes == result.notes and again.n_obs == result.n_obs
    assert ended or commits < 90


def test_a_checkpoint_changes_no_bit_and_an_ended_run_is_its_result(whole, tmp_path):
    kind, result = whole
    first = run(tmp_path, kind)
    assert bits(first) == bits(result)
    again = run(tmp_path, kind)
    assert bits(again) == bits(first) and again.notes == first.notes
    assert again.provenance["finished"] == first.provenance["finished"]
    assert again.conf_int(method="profile").equals(first.conf_int(method="profile"))
    read = FitResult.load(tmp_path)
    assert bits(read) == bits(first) and read.status is first.status


ODD = {
    "soft_l1": {"loss": "soft_l1"},
    "sandwich": {"cov_type": "sandwich"},
    "bounds": {"bounds": {"rate": (0, 1.2)}},
    "prior": {"prior": {"rate": (1.4, 0.01)}},
    "tied": {"tied": {"offset": "amplitude / 6"}},
    "fast": {"goal": "fast"},
    "quality": {"goal": "quality"},
    "adam": {"method": "adam", "p0": [20, 4, 5]},
}


@pytest.mark.crossed
@pytest.mark.one_at_a_time
@pytest.mark.parametrize(
    "empty",
    [
        pytest.param(slice(0, 400), id="first empty"),
        pytest.param(slice(8000, 8500), id="middle empty", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("options", ODD.values(), ids=ODD)
def test_options_and_empty_partitions_go_on_to_the_same_bits(tmp_path, monkeypatch, options, empty):
    y = Y.copy()
    y[empty] = np.nan
    columns = {"x": da.from_array(T, chunks=N // 80), "y": da.from_array(y, chunks=N // 80)}
    options = SAME | columns | {"tier": "chunked", "cache": "none", "nan_policy": "omit"} | options
    expected = dask_nlsq.fit(**options)
    stopped_after(monkeypatch, 5)
    with pytest.raises(Stop):
        dask_nlsq.fit(**options, checkpoint=tmp_path, checkpoint_interval=0)
    monkeypatch.undo()
    assert bits(dask_nlsq.fit(**options, checkpoint=tmp_path, resume=True)) == bits(expected)


def test_a_pass_that_is_given_up_after_a_resume_falls_back_on_the_same_starts(tmp_path, monkeypatch):
    monkeypatch.setattr(Pass, "settled", False)
    expected = run(None, "streaming")
    assert "not used" in " ".join(expected.notes)
    stopped_after(monkeypatch, 9)
    with pytest.raises(Stop):
        run(tmp_path, "streaming", checkpoint_interval=0)
    monkeypatch.undo()
    monkeypatch.setattr(Pass, "settled", False)
    assert bits(run(tmp_path, "streaming", resume=True)) == bits(expected)


def launch(folder, kind, workers=0):
    command = [sys.executable, Path(__file__).with_name("resumed.py"), folder, kind, str(workers)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(command, start_new_session=True, **pipes)
    assert process.stdout.readline() == "begun\n"
    return process


def committed(folder, more_than=0, process=None):
    """Wait until a process has committed something, or has ended."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (process is None or process.poll() is None):
        if (numbers := Checkpoints(folder).numbers()) and numbers[-1] > more_than:
            return
        time.sleep(0.02)
    assert process is not None and process.poll() is not None


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kind", "workers", "kills"), [("chunked", 0, 4), ("streaming", 0, 4), ("search", 0, 3), ("chunked", 2, 3)]
)
def test_killed_at_random_times(tmp_path, kind, workers, kills):
    """SIGKILL, again and again, to the driver, or to a worker or the driver: no run is torn, and the bits stay."""
    rng, expected, done, chain = np.random.default_rng(kills), bits(run(None, kind)), 0, 0
    while done < kills:
        folder = tmp_path / str(chain)
        process = launch(folder, kind, workers)
        before = Checkpoints(folder).numbers()
        pids = [int(p) for p in process.stdout.readline().split()[1:]] if workers else []
        committed(folder, max(before, default=0), process)
        time.sleep(rng.uniform(0, 0.8))
        if process.poll() is None:
            if pids and rng.random() < 0.5:
                os.kill(int(rng.choice(pids)), signal.SIGKILL)
                done += 1
                time.sleep(rng.uniform(0, 0.5))
            os.killpg(process.pid, signal.SIGKILL)
            done += 1
        out, _ = process.communicate()
        if "bits" in out:
            assert out.split()[-1] == expected
            chain += 1
        assert Checkpoints(folder).verify() == {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert bits(run(folder, kind, 0.02)) == expected


# --- signals ----------------------------------------------------------------------------------------------------------


@pytest.mark.crossed
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT], ids=lambda n: n.name)
def test_a_signal_commits_and_leaves(whole, tmp_path, number):
    kind, result = whole
    before = signal.getsignal(number)
    threading.Thread(target=lambda: (committed(tmp_path), os.kill(os.getpid(), number))).start()
    raised = KeyboardInterrupt if number == signal.SIGINT else Interrupted
    with pytest.raises(raised) as caught:
        run(tmp_path, kind, 0.02, checkpoint_interval=0.2)
    assert number == signal.SIGINT or caught.value.code == 75
    assert signal.getsignal(number) == before and not (tmp_path / "lock.json").exists()
    assert not Checkpoints(tmp_path).list()["finished"].iloc[-1]
    assert bits(run(tmp_path, kind, 0.02, resume=True)) == bits(result)


def second(first, then, grace=60.0):
    """Whether a second signal, or the end of the grace, ends what does not ask."""
    try:
        with Interrupt(grace):
            for number in (first, then):
                os.kill(os.getpid(), number)
            time.sleep(0.2)
    except (KeyboardInterrupt, Interrupted):
        return True
    return False


TERM, USR1, INT = signal.SIGTERM, signal.SIGUSR1, signal.SIGINT


@pytest.mark.parametrize("first", [TERM, USR1, INT], ids=lambda n: n.name)
@pytest.mark.parametrize(("then", "leaves"), [(TERM, True), (USR1, False), (INT, True)])
def test_a_second_signal_hurries_but_for_one_more_warning(first, then, leaves):
    assert second(first, then) is leaves


def test_a_warning_that_nobody_asks_for_is_late_in_the_end():
    assert second(USR1, USR1, grace=0.05)


@pytest.mark.parametrize("way", ["run", "opened"])
def test_who_is_late_does_not_wait_for_threads(way):
    """No task ends before it is told to, which is after the interrupt has left; the signal wakes nobody who waits."""
    go_on, begun, pool = threading.Event(), threading.Semaphore(0), Threads(2)

    def task(group):
        begun.release()
        return go_on.wait(60)

    def signals():
        begun.acquire()
        signal.pthread_kill(threading.get_ident(), USR1)

    def one_by_one():
        with pool.opened() as window:
            window.send("first", task, 0)
            window.receive()

    threading.Thread(target=signals).start()
    with pytest.raises(Interrupted), Interrupt(grace=0.1):
        list(pool.run(task, [0, 1, 2])) if way == "run" else one_by_one()
    assert not go_on.is_set()
    go_on.set()


@pytest.mark.slow
def test_the_command_line_leaves_with_75(tmp_path):
    pd.DataFrame({"t": T, "y": Y}).to_parquet(tmp_path / "rows.parquet", row_group_size=N // 4)
    (tmp_path / "slow.py").write_text(
        "import time, numpy as np\ndef model(t, amplitude, rate, offset):\n    time.sleep(0.05)\n"
        "    return np.asarray(amplitude) * np.exp(-rate * t) + offset\n"
    )
    command = [Path(sys.executable).with_name("dask-nlsq"), "fit", "rows.parquet", "--model", "slow:model"]
    command += ["--p0", "amplitude=2", "--checkpoint", "run", "--checkpoint-every", "1"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)
    committed(tmp_path / "run")
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 75, said
    assert len(Checkpoints(tmp_path / "run").list())


# --- what is refused --------------------------------------------------------------------------------------------------


def other_decay(t, amplitude, rate, offset=0.0):
    return amplitude * jnp.exp(-rate * t) + 2 * offset


def scaled(t):
    return 1.0 * t


def with_helper(t, amplitude, rate, offset=0.0):
    return amplitude * jnp.exp(-rate * scaled(t)) + offset


SAME = {"model": decay, "p0": [2, 1, 0.3], "x": T, "y": Y}
CHANGES = {
    "model": {"model": other_decay},
    "start": {"p0": [2, 1, 0.4]},
    "lower bounds": {"bounds": {"rate": (0, np.inf)}},
    "fixed": {"fixed": ["offset"]},
    "tied": {"tied": {"offset": "rate / 3"}},
    "prior": {"prior": {"rate": (1, 1)}},
    "loss": {"loss": "huber"},
    "f_scale": {"f_scale": 2.0},
    "sigma": {"sigma": 2.0},
    "cov_type": {"cov_type": "sandwich"},
    "absolute_sigma": {"absolute_sigma": True},
    "nan_policy": {"nan_policy": "omit"},
    "ftol": {"ftol": 1e-3},
    "goal": {"goal": "fast"},
    "seed": {"seed": 1},
    "partitions": {"x": da.from_array(T, chunks=N // 3), "y": da.from_array(Y, chunks=N // 3)},
    "bytes of a row": {"x": T.astype("float32")},
    "rows": {"x": T[:-1], "y": Y[:-1]},
}


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ended")
    dask_nlsq.fit(**SAME, checkpoint=folder)
    return folder


@pytest.mark.parametrize("what", CHANGES)
def test_another_fit_is_refused_with_what_differs(ended, what):
    with pytest.raises(CheckpointMismatch, match=f"{what}: ") as caught:
        dask_nlsq.fit(**SAME | CHANGES[what], checkpoint=ended)
    assert 'resume="force"' in str(caught.value)


def test_other_values_are_refused_by_what_partitions_held(ended):
    y = Y.copy()
    y[7] = np.nextafter(y[7], np.inf)
    with pytest.raises(CheckpointMismatch, match="other values"):
        dask_nlsq.fit(**SAME | {"y": y}, checkpoint=ended)
    assert dask_nlsq.fit(**SAME, checkpoint=ended).success


@pytest.mark.slow
def test_sets_in_filters_have_no_order(tmp_path):
    """Their order is another one in each process."""
    frame = pd.DataFrame({"t": T, "y": Y, "site": np.array(list("abcd"))[np.arange(N) % 4]})
    frame.to_parquet(tmp_path / "rows.parquet")
    code = "import sys; sys.path.insert(0, sys.argv[1]); from resumed import dask_nlsq, decay; dask_nlsq.fit(decay, "
    code += "data='rows.parquet', p0=[2, 1, 0.3], checkpoint='run', filters=[('site', 'in', {'a', 'b', 'c'})])"
    for seed in "123":
        environ = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, Path(__file__).parent], cwd=tmp_path, env=environ, check=True)


def test_a_changed_helper_is_another_model(tmp_path, monkeypatch):
    dask_nlsq.fit(**SAME | {"model": with_helper}, checkpoint=tmp_path)
    monkeypatch.setattr(sys.modules[__name__], "scaled", lambda t: 1.0000001 * t)
    with pytest.raises(CheckpointMismatch, match="something else"):
        dask_nlsq.fit(**SAME | {"model": with_helper}, checkpoint=tmp_path)


TABLE = pd.DataFrame({"k": [2.0], "name": ["two"]})
LOG = logging.getLogger("a model")


def by_numpy(t, a, b):
    LOG.debug("called")
    return a * np.exp(-b * np.asarray(t)) * TABLE["k"].iloc[0]


def test_a_model_that_jax_cannot_trace_is_known_by_its_code_and_values(tmp_path, monkeypatch):
    options = {"p0": [1, 1], "x": T[:500], "y": Y[:500], "checkpoint": tmp_path}
    for _ in range(2):
        LOG.isEnabledFor(10)  # fills a cache
        with pytest.warns(NlsqWarning, match="cannot be traced"):
            first = dask_nlsq.fit(by_numpy, **options)
    assert first.success
    monkeypatch.setattr(sys.modules[__name__], "TABLE", TABLE.assign(k=3.0))
    with pytest.warns(NlsqWarning), pytest.raises(CheckpointMismatch, match="something else"):
        dask_nlsq.fit(by_numpy, **options)


def test_files_that_have_changed_are_refused(tmp_path):
    path = tmp_path / "rows.parquet"
    pd.DataFrame({"t": T, "y": Y}).to_parquet(path)
    options = {"model": decay, "data": str(path), "checkpoint": tmp_path / "run", "p0": [2, 1, 0.3]}
    first = dask_nlsq.fit(**options)
    assert bits(dask_nlsq.fit(**options)) == bits(first)
    os.utime(path, (1, 1))
    with pytest.raises(CheckpointMismatch, match="files: "):
        dask_nlsq.fit(**options)
    with pytest.warns(NlsqWarning, match="of another fit"):
        assert dask_nlsq.fit(**options, resume="force").success


@pytest.mark.crossed
@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("runs", {"/year=2024/0.parquet", "/year=2025/0.parquet"}),
        ("runs/year=2024", {"/0.parquet"}),
        ("runs/year=2024/0.parquet", {"0.parquet"}),
        ("runs/year=2024/*.parquet", {"0.parquet"}),
        ("runs/*/0.parquet", {"year=2024/0.parquet", "year=2025/0.parquet"}),
        ("runs/**/*.parquet", {"year=2024/0.parquet", "year=2025/0.parquet"}),
    ],
)
@pytest.mark.parametrize("where", ["", "memory://"])
def test_a_file_of_many_that_is_written_anew_is_noticed(tmp_path, where, pattern, names):
    options = {
        "model": decay,
        "data": f"{where}{tmp_path}/{pattern}",
        "p0": [2, 1, 0.3],
        "checkpoint": tmp_path / "run",
    }
    for year in (2024, 2025):
        write_rows(f"{where}{tmp_path}/runs/year={year}/0.parquet", Y)
    assert files(options["data"]).keys() == names
    first = dask_nlsq.fit(**options)
    assert bits(dask_nlsq.fit(**options)) == bits(first)
    write_rows(f"{where}{tmp_path}/runs/year=2024/0.parquet", Y + 1)
    with pytest.raises(CheckpointMismatch, match="files: "):
        dask_nlsq.fit(**options)


def write_rows(url, y):
    """Write a file of Parquet."""
    fs, path = fsspec.core.url_to_fs(url)
    fs.makedirs(path.rpartition("/")[0], exist_ok=True)
    with fs.open(path, "wb") as file:
        pd.DataFrame({"t": T, "y": y}).to_parquet(file)


class Server(http.server.BaseHTTPRequestHandler):
    """Serves files, and a page for each folder, with what headers `stamp` says."""

    protocol_version = "HTTP/1.1"
    folder: Path
    stamp: str

    def do_GET(self):
        path = self.folder / self.path.strip("/")
        if path.is_dir():
            links = (f'<a href="{p.name}{"/" * p.is_dir()}"></a>' for p in path.iterdir())
            body = "".join(links).encode()
        else:
            body = path.read_bytes() if path.exists() else b""
        asked = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, stop = (int(asked[1]), int(asked[2] or len(body) - 1) + 1) if asked else (0, len(body))
        self.send_response(404 if not path.exists() else 206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{min(stop, len(body)) - 1}/{len(body)}")
        if self.stamp and path.exists():
            self.send_header(self.stamp, self.date_time_string(path.stat().st_mtime))
        self.send_header("Content-Type", "text/html" if path.is_dir() else "application/octet-stream")
        self.send_header("Content-Length", str(len(body[start:stop])))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[start:stop])

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *args):
        """Say nothing."""


@pytest.mark.crossed
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("name", ["rows.parquet", "rows.zarr"])
@pytest.mark.parametrize("stamp", ["ETag", "Last-Modified", ""])
def test_a_file_that_a_server_tells_little_of_is_not_taken_for_the_same(tmp_path, name, stamp):
    def write(y):
        if name == "rows.parquet":
            return write_rows(str(tmp_path / name), y)
        group = zarr.open_group(tmp_path / name, mode="w")
        for key, values in {"t": T, "y": y}.items():
            group.create_array(key, data=values, chunks=(N,))

    handler = type("Handler", (Server,), {"folder": tmp_path, "stamp": stamp})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/{name}"
        options = {"model": decay, "data": url, "p0": [2, 1, 0.3], "checkpoint": tmp_path / "run"}
        write(Y)
        first = dask_nlsq.fit(**options)
        assert bits(dask_nlsq.fit(**options)) == bits(first)
        if stamp == "ETag":
            assert (files(url) is None) == (name == "rows.zarr")
        write(Y[::-1])
        if name == "rows.parquet":
            os.utime(tmp_path / name, (1, 1))
        with pytest.raises(CheckpointMismatch, match=r"files: |other values"):
            dask_nlsq.fit(**options)
        server.shutdown()


def test_other_versions_are_a_warning(tmp_path, monkeypatch):
    from dask_nlsq._checkpoint import checkpoints

    real = checkpoints.versions()
    monkeypatch.setattr(checkpoints, "versions", lambda: real | {"jax": "0.1"})
    dask_nlsq.fit(**SAME, checkpoint=tmp_path)
    monkeypatch.undo()
    with pytest.warns(NlsqWarning, match=r"jax 0\.1 there"):
        assert dask_nlsq.fit(**SAME, checkpoint=tmp_path).success


OTHER = 2.0 * np.exp(-0.6 * T) + 1.5 + (Y - (3.0 * np.exp(-1.3 * T) + 0.5))
FORCED = {
    "other values": ({}, {"y": OTHER}),
    "fewer rows": ({}, {"x": T[: N // 2], "y": OTHER[: N // 2]}),
    "other bounds": ({}, {"bounds": {"rate": (0.5, 1.2)}}),
    "another model": ({}, {"model": other_decay}),
    "in the middle": ({"max_nfev": 2}, {"y": OTHER}),
    "a search": ({"n_starts": 8, "bounds": ([0, 0, -2], [9, 9, 2])}, {"y": OTHER}),
}


@pytest.mark.crossed
@pytest.mark.parametrize("case", FORCED)
def test_a_forced_fit_has_the_answer_of_its_own_data(tmp_path, case):
    first, change = FORCED[case]
    dask_nlsq.fit(**SAME | first, checkpoint=tmp_path)
    own = SAME | {k: v for k, v in first.items() if k != "max_nfev"} | change
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NlsqWarning)
        forced = dask_nlsq.fit(**own, checkpoint=tmp_path, resume="force")
    expected = dask_nlsq.fit(**own)
    assert forced.status.success and (forced.n_obs, len(forced.notes)) == (expected.n_obs, len(expected.notes))
    np.testing.assert_allclose(forced.popt, expected.popt, rtol=1e-6)
    assert bits(dask_nlsq.fit(**own, checkpoint=tmp_path)) == bits(forced)


def test_a_forced_fit_has_as_many_parameters(tmp_path):
    dask_nlsq.fit(**SAME, checkpoint=tmp_path)
    with pytest.warns(NlsqWarning), pytest.raises(CheckpointMismatch, match="has 3 free parameters, this one 2"):
        dask_nlsq.fit(**SAME, fixed=["offset"], checkpoint=tmp_path, resume="force")


@pytest.mark.parametrize("pieces", [30, 160])
def test_force_goes_on_with_other_partitions(tmp_path, monkeypatch, pieces):
    def cut(n):
        return SAME | {"x": da.from_array(T, chunks=N // n), "y": da.from_array(Y, chunks=N // n), "tier": "chunked"}

    stopped_after(monkeypatch, 12)
    with pytest.raises(Stop):
        dask_nlsq.fit(**cut(80), checkpoint=tmp_path, checkpoint_interval=0, cache="none")
    monkeypatch.undo()
    with pytest.warns(NlsqWarning, match="partitions: 80 there"):
        assert dask_nlsq.fit(**cut(pieces), checkpoint=tmp_path, resume="force").success


class Scaled:
    def __init__(self, k):
        self.k = k

    def model(self, t, a, b):
        return a * np.asarray(t) * self.k + b


class Slotted(Scaled):
    __slots__ = ("k",)


def by_parts(k, t, a, b):
    return a * np.asarray(t) * k + b


@pytest.mark.filterwarnings("ignore:The model:dask_nlsq.NlsqWarning")
@pytest.mark.parametrize(
    "make",
    [
        lambda k: Scaled(k).model,
        lambda k: Scaled((k, "knot")).model,
        lambda k: Scaled(jnp.array([k])).model,
        lambda k: Slotted(k).model,
        lambda k: functools.partial(by_parts, k),
    ],
)
def test_what_a_method_and_a_partial_hold_is_part_of_the_model(make):
    assert code(make(1.0)) == code(make(1.0)) != code(make(2.0))


def test_two_signals_in_the_middle_of_a_fold_leave_what_can_be_gone_on_from():
    leaves = [[leaf(i)] for i in range(100)]
    whole = fold([leaf(i) for i in range(100)])
    for torn in range(100):
        partial = Partial(100)
        for i in range(torn):
            partial.add(Answer((i,), np.zeros((1, 3), np.uint64), (tuple(leaves[i]),), ((0, i),)))
        finished = partial.finished()
        spoilt = dataclasses.replace(finished, done=np.zeros(100, bool))  # as if it had not been noted yet
        again = Partial.of(spoilt)
        assert (again.done == finished.done).all()
        for i in range(100):
            again.add(Answer((i,), np.zeros((1, 3), np.uint64), (tuple(leaves[i]),), ((0, i),)))
        assert again.roots()[0].cost == whole.cost and (again.roots()[0].gram == whole.gram).all()


def leaf(i):
    rng = np.random.default_rng(i)
    return Reduction(1, 0, rng.random(), rng.random((3, 3)), 1.0, 0.0, 0.0, 0.0, np.zeros(2), np.zeros(2, np.uint64))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"resume": True}, "There is no checkpoint"),
        ({"resume": "maybe"}, "resume"),
        ({"checkpoint": None, "resume": True}, "needs checkpoint="),
        ({"checkpoint": 7}, "a path, a URL or a Zarr store"),
        ({"compression": "rar"}, "gzip"),
        ({"keep": 0}, "keep"),
        ({"checkpoint_interval": -1}, "checkpoint_interval"),
        ({"tier": "streaming_checkpoint", "checkpoint": None}, "needs checkpoint="),
    ],
    ids=str,
)
def test_arguments_make_sense(tmp_path, options, match):
    with pytest.raises(NlsqError, match=match):
        dask_nlsq.fit(**SAME | {"checkpoint": tmp_path / "run"} | options)


def test_nan_in_a_state_is_refused(tmp_path):
    run(tmp_path, "chunked", checkpoint_interval=0)
    checkpoints = Checkpoints(tmp_path)
    generation, keys = checkpoints.newest()
    saved = unpack(SavedState, keys)
    state = dataclasses.replace(saved.state, trial=np.full(3, np.nan))
    from dask_nlsq._checkpoint.codec import pack

    spoilt = pack(dataclasses.replace(saved, state=state, result=None))
    checkpoints.commit(spoilt, generation.about, generation.fingerprint)
    with pytest.raises(CheckpointError, match="not finite"):
        run(tmp_path, "chunked")


# --- limits, disks, clusters ------------------------------------------------------------------------------------------


def quintic(t, a, b, c, d, e, f):
    x = t + 1000
    return a + x * (b + x * (c + x * (d + x * (e + x * f))))


@pytest.mark.crossed
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("limit", [{"max_nfev": 3}, {"max_nfev": 6}, {"max_nfev": 7}, {"time_limit": 1e-9}], ids=str)
@pytest.mark.parametrize(("model", "p0"), [(decay, [50, 9, 3]), (quintic, [1] * 6)], ids=["decay", "quintic"])
def test_a_wider_limit_goes_on_where_a_narrow_one_stopped(tmp_path, limit, model, p0):
    options = {"data": {"t": T, "y": Y}, "p0": p0, "model": model}
    free = dask_nlsq.fit(**options)
    stopped = dask_nlsq.fit(**options, checkpoint=tmp_path, **limit)
    assert stopped.nsweeps <= free.nsweeps
    assert bits(dask_nlsq.fit(**options, checkpoint=tmp_path)) == bits(free)


@pytest.mark.parametrize("strict", [False, True])
def test_a_full_disk_does_not_end_a_fit(tmp_path, monkeypatch, strict):
    run(tmp_path, "chunked", max_nfev=1)
    known = Checkpoints(tmp_path).numbers()

    def full(path):
        if path.name == "lock.json" or ".lock.json" in path.name:
            return create(path)
        raise OSError(28, "No space left on device")

    create = storage._create
    monkeypatch.setattr(storage, "_create", full)
    if strict:
        with pytest.raises(CheckpointError, match="No space"):
            run(tmp_path, "chunked", strict=True)
    else:
        with pytest.warns(NlsqWarning, match="No space"):
            result = run(tmp_path, "chunked")
        assert result.success and "No space" in result.checkpoint_errors[0]
    monkeypatch.undo()
    assert Checkpoints(tmp_path).numbers() == known and Checkpoints(tmp_path).verify() == {}


def small(folder, **options):
    return dask_nlsq.fit(decay, data={"t": T, "y": Y}, p0=[2, 1, 0.3], checkpoint=folder, **options)


@contextlib.contextmanager
def unwritable(folder, code):
    """A while in which a disk refuses every new file and folder."""

    def refuse(path, *_):
        raise OSError(code, os.strerror(code), str(path))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storage, "_create", refuse)
        patch.setattr(storage.os, "mkdir", refuse)
        yield


CODES = [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM]


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
@pytest.mark.parametrize("there", [False, True], ids=["nothing there", "goes on"])
def test_a_disk_that_takes_nothing_from_the_start_does_not_end_a_fit(tmp_path, code, there):
    if there:
        small(tmp_path / "run", max_nfev=1)
    with unwritable(tmp_path, code), pytest.warns(NlsqWarning, match="could not be written .*The fit goes on") as seen:
        result = small(tmp_path / "run", checkpoint_every=1)
    assert len(seen) == 1 and os.strerror(code) in result.checkpoint_errors[0]
    assert bits(result) == bits(small(None)) and result.provenance["checkpoint"]["commits"] == 0
    assert not (tmp_path / "run" / "lock.json").exists()


@pytest.mark.parametrize("code", CODES, ids=errno.errorcode.get)
def test_a_disk_that_takes_nothing_from_the_start_is_refused_under_strict(tmp_path, code):
    with unwritable(tmp_path, code), pytest.raises(CheckpointError, match="Nothing can be written at"):
        small(tmp_path / "run", strict=True)


def test_the_result_of_a_run_that_has_ended_is_read_from_a_disk_that_takes_nothing(tmp_path):
    result = small(tmp_path)
    with unwritable(tmp_path, errno.EROFS), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert bits(small(tmp_path)) == bits(result)


def test_a_disk_with_room_again_gets_the_next_state(tmp_path):
    stack = contextlib.ExitStack()
    stack.enter_context(unwritable(tmp_path, errno.ENOSPC))
    with stack, pytest.warns(NlsqWarning, match="No space"):
        result = small(tmp_path, checkpoint_every=1, callback=lambda _: stack.close())
    assert result.provenance["checkpoint"]["commits"] and Checkpoints(tmp_path).describe().about["finished"]
    assert bits(small(tmp_path)) == bits(result)


def test_a_disk_with_room_again_to_which_another_has_written_is_left_alone(tmp_path):
    def other(_):
        stack.close()
        small(tmp_path, max_nfev=1)

    stack = contextlib.ExitStack()
    stack.enter_context(unwritable(tmp_path, errno.ENOSPC))
    with stack, pytest.warns(NlsqWarning, match="No space"):
        result = small(tmp_path, checkpoint_every=1, callback=other)
    assert result.success and "Another process has written" in result.checkpoint_errors[-1]
    assert Checkpoints(tmp_path).describe().about["sweeps"] == 1


def test_a_living_owner_is_respected_on_a_disk_that_takes_nothing(tmp_path):
    with Lock(Checkpoints(tmp_path).place), unwritable(tmp_path, errno.EROFS), pytest.raises(CheckpointError) as caught:
        small(tmp_path)
    assert "is being written by process" in str(caught.value)


@pytest.mark.parametrize("strict", [False, True])
def test_a_read_only_store_of_zarr(strict):
    store = zarr.storage.MemoryStore(read_only=True)
    if strict:
        with pytest.raises(CheckpointError, match="read-only"):
            small(store, strict=True)
    else:
        with pytest.warns(NlsqWarning, match="read-only"):
            assert small(store).success


@pytest.fixture
def mounted(tmp_path):
    """A file system that is mounted read-only, with a checkpoint on it."""
    if os.name != "posix" or shutil.which("mount") is None:
        pytest.skip("needs mount")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path], capture_output=True).returncode:
        pytest.skip("needs the privilege to mount a file system")
    try:
        small(tmp_path / "run", max_nfev=1)
        subprocess.run(["mount", "-o", "remount,ro", tmp_path], check=True)
        yield tmp_path
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_read_only_file_system(mounted):
    for folder in (mounted / "run", mounted / "anew"):
        with pytest.warns(NlsqWarning, match="Read-only file system"):
            assert bits(small(folder)) == bits(small(None))
        with pytest.raises(CheckpointError, match="Read-only file system"):
            small(folder, strict=True)


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_path_that_is_no_folder_is_refused(tmp_path, path):
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="Nothing can be written at"):
        small(tmp_path / path)


@pytest.mark.slow
def test_a_lost_scheduler_leaves_a_checkpoint_and_another_cluster_goes_on(tmp_path):
    from distributed import Client, LocalCluster

    def cluster():
        return LocalCluster(2, threads_per_worker=1, dashboard_address=":0", env={"PJRT_NPROC": "1"})

    path = tmp_path / "rows"
    for i in range(30):
        path.mkdir(exist_ok=True)
        part = slice(i * N // 30, (i + 1) * N // 30)
        pd.DataFrame({"t": T[part], "y": Y[part]}).to_parquet(path / f"{i:02}.parquet")
    options = {"data": str(path), "p0": [2, 1, 0.3], "tier": "chunked", "cache": "none"}
    expected = dask_nlsq.fit(decay, **options)

    def lose(_):
        lost.close()

    with cluster() as lost, Client(lost, set_as_default=False) as client, pytest.raises(SweepError):
        dask_nlsq.fit(decay, **options, client=client, checkpoint=tmp_path / "run", checkpoint_every=1, callback=lose)
    with cluster() as other, Client(other, set_as_default=False) as client:
        again = dask_nlsq.fit(decay, **options, client=client, checkpoint=tmp_path / "run", resume=True)
    assert bits(again) == bits(expected)


def test_commits_are_counted_in_the_result(tmp_path):
    result = run(tmp_path, "chunked", checkpoint_interval=1000)
    about = result.provenance["checkpoint"]
    assert about["commits"] == 1 + 1 and about["seconds"] > 0  # the first answer, and the end


def test_generations_are_kept_as_asked(tmp_path):
    run(tmp_path, "chunked", checkpoint_interval=0, keep=3, compression="gzip")
    assert len(Checkpoints(tmp_path).numbers()) == 3 and Checkpoints(tmp_path).verify() == {}


def test_resume_false_starts_anew_and_keeps_what_is_there(tmp_path):
    run(tmp_path, "chunked", checkpoint_interval=1000)
    before = Checkpoints(tmp_path).numbers()
    run(tmp_path, "chunked", checkpoint_interval=1000, resume=False)
    assert set(before) < set(Checkpoints(tmp_path).numbers())


@pytest.mark.parametrize("where", ["path", "store", "url"])
def test_a_result_is_saved_and_loaded(tmp_path, where):
    result = dask_nlsq.fit(**SAME)
    target = {"path": tmp_path / "r", "store": zarr.storage.MemoryStore(), "url": "memory://result"}[where]
    result.save(target)
    assert bits(FitResult.load(target)) == bits(result)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        FitResult.load(tmp_path / "nothing")


def test_a_result_is_not_read_from_a_run_under_way(tmp_path, monkeypatch):
    stopped_after(monkeypatch, 2)
    with pytest.raises(Stop):
        run(tmp_path, "chunked", checkpoint_interval=0)
    with pytest.raises(CheckpointError, match="has not ended"):
        FitResult.load(tmp_path)


@pytest.mark.parametrize("name", ["ended", "mid-sweep", "mid-pass"])
def test_what_format_1_wrote_is_read_for_ever(tmp_path, name):
    """The stores in tests/data were written once, and are never written again."""
    shutil.unpack_archive(Path(__file__).parent / "data" / "checkpoints-format-1.zip", tmp_path)
    checkpoints = Checkpoints(tmp_path / name)
    assert checkpoints.verify() == {}
    saved = unpack(SavedState, checkpoints.newest()[1])
    assert (saved.result is not None, saved.sweep is not None, saved.passing is not None) == (
        name == "ended",
        name == "mid-sweep",
        name == "mid-pass",
    )
    t, y = np.load(tmp_path / "rows.npy")  # to the bit, on any machine
    rows = {"t": da.from_array(t, chunks=100), "y": da.from_array(y, chunks=100)}
    options = {"data": rows, "p0": [2, 1, 0.3], "tier": "chunked"}
    whole = dask_nlsq.fit(decay, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it was written elsewhere
        again = dask_nlsq.fit(decay, **options, checkpoint=tmp_path / name, resume="force")
    np.testing.assert_allclose(again.popt, whole.popt, rtol=1e-8)
    if name == "ended":
        np.testing.assert_allclose(FitResult.load(tmp_path / name).popt, whole.popt, rtol=1e-12)


EARLIER = {
    "ended": {"tier": "chunked"},
    "mid-sweep": {"tier": "chunked"},
    "mid-search": {"tier": "chunked", "n_starts": 64},
    "candidates": {"tier": "chunked", "n_starts": 16, "model": "two"},
    "mid-pass": {"tier": "streaming"},
}


@pytest.mark.crossed(2)
@pytest.mark.parametrize("name", EARLIER)
def test_a_store_of_the_release_before_goes_on(tmp_path, monkeypatch, name):
    """Fields of the state have other names since, and are stored under those that they had."""
    shutil.unpack_archive(Path(__file__).parent / "data" / "checkpoints-release-0.1.zip", tmp_path)
    generation, keys = Checkpoints(tmp_path / name).newest()
    saved = unpack(SavedState, keys)
    assert (saved.search is not None) == (name in ("mid-search", "candidates"))
    assert (saved.state is None) == (name in ("mid-search", "mid-pass")) and (len(saved.candidates) > 0) == (
        name == "candidates"
    )
    t, y = np.load(tmp_path / "rows.npy")
    rows = {"t": da.from_array(t, chunks=500), "y": da.from_array(y, chunks=500)}
    options = {"data": rows, "client": False, **EARLIER[name]}
    if options.pop("model", None):
        model, options["p0"] = TWO, [2, 1, 1, 3]
        options["bounds"] = (0.01, 20)
    else:
        model, options["p0"] = decay, [2, 1, 0.3]
        options["bounds"] = {"amplitude": (0, 10), "rate": (0.01, 20), "offset": (-5, 5)}
    whole = dask_nlsq.fit(model, **options)
    monkeypatch.setattr("dask_nlsq._fit.session.fingerprint", lambda *_: generation.fingerprint)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it was written elsewhere
        again = dask_nlsq.fit(model, **options, checkpoint=tmp_path / name, resume=True)
    np.testing.assert_allclose(again.popt, whole.popt, rtol=1e-9)
    assert again.nsweeps == whole.nsweeps


def TWO(t, a, b, c, d):  # noqa: N802
    return a * jnp.exp(-b * t) + c * jnp.exp(-d * t)


def test_fields_are_stored_under_the_names_that_they_had():
    state = TrustRegion(np.full(1, -np.inf), np.full(1, np.inf)).init(np.ones(1))
    saved = SavedState(np.ones(1), "reverse", None, digests=np.ones((2, 3), np.uint64), candidates=(state,))
    assert {"marks", "rivals"} <= {key.partition("/")[0] for key in pack(saved)}
    assert "refuge/zarr.json" in pack(dataclasses.replace(state, fallback=state))
    found = unpack(SavedState, pack(saved))
    assert (found.digests == saved.digests).all() and (found.candidates[0].trial == state.trial).all()


RENAMED = {"SILENT": Status.UNIDENTIFIABLE, "UNSETTLED": Status.NOT_SETTLED, "BEATEN": Status.PRUNED}


@pytest.mark.parametrize("name", RENAMED)
def test_an_old_name_of_a_status_warns(name):
    with pytest.warns(DeprecationWarning, match=RENAMED[name].name):
        assert getattr(Status, name) is RENAMED[name] is Status[name]
    with pytest.raises(AttributeError):
        Status.NEVER  # noqa: B018


def test_the_old_name_of_what_a_plan_is_made_from_warns():
    plan = dask_nlsq.plan(decay, T, Y)
    with pytest.warns(DeprecationWarning, match="inputs"):
        assert plan.facts is plan.inputs
    assert "facts" in plan.to_dict() and dask_nlsq.Plan.from_dict(plan.to_dict()) == plan


@pytest.mark.parametrize("options", [{"resume": "auto"}, {"max_nfev": 500}, {"callback": None}], ids=str)
def test_a_fit_that_its_callback_stopped_goes_on(options, tmp_path):
    def stop(_):
        raise StopIteration

    stopped = small(tmp_path, checkpoint_every=1, callback=stop)
    assert stopped.status.name == "CALLBACK"
    found = small(tmp_path, checkpoint_every=1, **options)
    assert bits(found) == bits(small(None)) and found.success
