"""The commit protocol: order, kills at every event, damage to every file, untrusted folders, locks, stores."""

import contextlib
import dataclasses
import errno
import functools
import gzip
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import s3fs
import xarray as xr
import zarr
from click.testing import CliRunner
from commits import Point, Recorded, commit, newest, recorded, same
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from moto import server as moto
from zarr.buffer.cpu import Buffer

from dask_nlsq import CheckpointCorrupt, CheckpointError, Checkpoints, NlsqError, NlsqWarning
from dask_nlsq._checkpoint import codec, storage
from dask_nlsq._checkpoint.checkpoints import _ROOT
from dask_nlsq._checkpoint.codec import pack, unpack
from dask_nlsq._checkpoint.lock import Lock, job
from dask_nlsq._fit.session import _locked
from dask_nlsq.cli import main

# --- states as keys ---------------------------------------------------------------------------------------------------

FLOATS = st.floats(allow_nan=False)


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(float, hnp.array_shapes(max_dims=3, max_side=4), elements=FLOATS), st.floats(), st.booleans())
def test_what_is_written_is_read_to_the_bit(array, number, fortran):
    array = np.asfortranarray(array) if fortran else array
    state = Recorded(array, (Point(array, array, number),) * 3, Point(array, array, number), "ä\n")
    found = unpack(Recorded, pack(state))
    assert same(found, state) and found.theta.strides == state.theta.strides
    assert np.float64(found.point.cost).tobytes() == np.float64(number).tobytes() or number != number


def test_compression_changes_the_bytes_alone():
    state = dataclasses.replace(recorded(1), theta=np.zeros(5000))
    plain, small = pack(state), pack(state, "gzip")
    assert sum(map(len, small.values())) < sum(map(len, plain.values())) / 2
    assert same(unpack(Recorded, small), state)
    with pytest.raises(NlsqError, match="gzip"):
        pack(state, "rar")


@dataclasses.dataclass
class Holding:
    """An array of any kind."""

    array: np.ndarray


@pytest.mark.parametrize("compression", [None, "gzip"])
@pytest.mark.parametrize("shape", [(), (3,), (0, 2), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", codec._DTYPES)
def test_zarr_reads_the_same(dtype, shape, compression):
    array = np.arange(-1, math.prod(shape) - 1).astype(dtype).reshape(shape)
    keys = pack(Holding(array), compression)
    store = zarr.storage.MemoryStore({key: Buffer.from_bytes(data) for key, data in keys.items()})
    theirs, ours = np.asarray(zarr.open_group(store, mode="r")["array"][...]), unpack(Holding, keys).array
    assert ours.dtype == theirs.dtype == array.dtype and ours.shape == theirs.shape == shape
    assert ours.tobytes() == theirs.tobytes() == array.tobytes()


@pytest.mark.parametrize(
    "spoil",
    [lambda chunk: chunk + gzip.compress(bytes(10**6)), lambda chunk: chunk[:-8], lambda chunk: chunk + b"x"],
    ids=["two files in one", "no trailer", "more behind the end"],
)
def test_a_compressed_chunk_is_one_whole_file_of_gzip(spoil):
    keys = pack(Holding(np.ones(2)), "gzip")
    keys["array/c/0"] = spoil(keys["array/c/0"])
    with pytest.raises(CheckpointCorrupt):
        unpack(Holding, keys)


@dataclasses.dataclass
class Pair:
    """A row without arrays."""

    a: float | None
    b: float | None


@dataclasses.dataclass
class Table:
    """A table of rows."""

    rows: tuple[Pair, ...]


@pytest.mark.parametrize(("length", "shape"), [(10**9, None), (2, [10**9, 0])], ids=["said", "shaped"])
def test_a_table_of_a_billion_empty_rows_is_refused(length, shape):
    keys = pack(Table((Pair(None, 1.0),) * 2))
    about = json.loads(keys["rows/zarr.json"])
    about["attributes"]["table rows"] = length
    keys["rows/zarr.json"] = json.dumps(about).encode()
    if shape:
        about = json.loads(keys["rows/b/zarr.json"]) | {"shape": shape}
        about["chunk_grid"]["configuration"]["chunk_shape"] = [max(n, 1) for n in shape]
        keys["rows/b/zarr.json"] = json.dumps(about).encode()
        del keys["rows/b/c/0"]
    with pytest.raises(CheckpointCorrupt, match=r"rows|length"):
        unpack(Table, keys)


@pytest.mark.parametrize("dtype", ["float16", "complex128", "U3", "O"])
def test_an_array_that_no_checkpoint_has_is_not_written(dtype):
    with pytest.raises(TypeError, match="no part of a state"):
        pack(Holding(np.zeros(2, dtype)))


# --- the protocol -----------------------------------------------------------------------------------------------------


def run_commits(folder, step):
    command = [sys.executable, Path(__file__).with_name("commits.py"), folder, str(step)]
    return subprocess.run(command, capture_output=True, text=True, timeout=280)


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.slow)])
def test_killed_at_an_event_nothing_is_torn(tmp_path, step):
    done = run_commits(tmp_path, step)
    assert done.returncode == 0, done.stderr
    kills, events = (int(word) for word in done.stdout.split() if word.isdigit())
    assert events > 80 and kills == len(range(1, events + 1, step))


def test_the_order_of_writes_and_syncs(tmp_path, monkeypatch):
    """Files, then the folders that name them, then the record beside its place, then its name, then what is old."""
    log = []
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda n: (log.append(("sync", os.readlink(f"/proc/self/fd/{n}"))), fsync(n)))
    for name in ("link", "rename", "replace", "unlink", "rmdir"):
        monkeypatch.setattr(os, name, _logged(name, getattr(os, name), log))
    for number in (1, 2, 3):
        log.clear()
        assert commit(tmp_path, number) == number
    run = str(tmp_path.resolve())
    (folder,) = {name for name in os.listdir(tmp_path / "state.zarr") if name.startswith("gen-00000003")}
    mine = f"{run}/state.zarr/{folder}"
    linked = log.index(("link", f"{run}/commits/00000003.json"))
    synced = {where for what, where in log[:linked] if what == "sync"}
    files = {str(path) for path in Path(mine).rglob("*") if path.is_file()}
    folders = {str(path) for path in Path(mine).rglob("*") if path.is_dir()}
    assert files | folders | {mine, f"{run}/state.zarr"} <= synced
    half = log[linked - 1]
    assert half[0] == "sync" and half[1].startswith(f"{run}/commits/.00000003.json")
    after = log[linked + 1 :]
    assert ("sync", f"{run}/commits") in after
    removed = [i for i, (what, where) in enumerate(log) if what in ("unlink", "rmdir") and "gen-00000001" in where]
    assert removed and min(removed) > linked + after.index(("sync", f"{run}/commits"))


def _logged(name, function, log):
    def wrapper(*args, **options):
        log.append((name, str(args[-1] if name in ("link", "rename", "replace") else args[0])))
        return function(*args, **options)

    return wrapper


def test_generations_are_kept_and_pruned(tmp_path):
    for number in range(1, 8):
        commit(tmp_path, number, keep=5)
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.numbers() == [3, 4, 5, 6, 7]
    assert checkpoints.list()["sweeps"].tolist() == [3, 4, 5, 6, 7]
    assert checkpoints.prune(1) == (3, 4, 5) and checkpoints.numbers() == [6, 7]
    assert len(os.listdir(tmp_path / "state.zarr")) == 3


def meanwhile(there, n, commits):
    """Let another driver commit at the n-th call of a place; return the calls that are made."""
    seen = []

    def counted(verb):
        real = getattr(there, verb)

        def call(*arguments):
            seen.append(verb)
            if len(seen) == n:
                commits()
            return real(*arguments)

        return call

    there.names, there.read = counted("names"), counted("read")
    return seen


READING = {
    "list": lambda run: set(run.list()["fault"]) <= {""},
    "verify": lambda run: run.verify() == {},
    "newest": lambda run: run.newest()[1] == KEYS,
    "iterate": lambda run: all(each.about["sweeps"] for each in run),
}
KEYS = pack(recorded(1))


@pytest.mark.crossed
@pytest.mark.parametrize("how", READING)
def test_a_commit_meanwhile_is_no_damage(how):
    """Two generations, of which others take the place at any moment while they are read."""
    n, seen = 0, []
    while n <= len(seen):
        store = zarr.storage.MemoryStore()
        run, driver = Checkpoints(store), Checkpoints(store)

        def commits(count, driver=driver):
            for _ in range(count):
                driver.commit(KEYS, {"sweeps": 1}, {}, 2)

        commits(2)
        n += 1
        seen = meanwhile(run.place, n, functools.partial(commits, n % 3 + 1))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert READING[how](run), (n, seen)
    assert n > 3


def test_generations_that_go_faster_than_they_are_read_end_in_an_error(tmp_path, monkeypatch):
    commit(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path)
    numbers = iter(range(1000))
    monkeypatch.setattr(checkpoints, "numbers", lambda: [100 + next(numbers)])
    with pytest.raises(CheckpointError, match="faster than they are read"):
        checkpoints.newest()


def test_a_generation_is_exported(tmp_path):
    for number in (1, 2):
        commit(tmp_path / "run", number)
    Checkpoints(tmp_path / "run").export(tmp_path / "copy", 1)
    assert same(newest(tmp_path / "copy"), recorded(1))
    with pytest.raises(CheckpointError, match="already"):
        Checkpoints(tmp_path / "run").export(tmp_path / "copy")


# --- damage -----------------------------------------------------------------------------------------------------------


def flip(data, place):
    return data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]


DAMAGE = {
    "truncated": lambda data: data[: len(data) // 2],
    "flipped": lambda data: data[:-1] + bytes([data[-1] ^ 1]) if data else b"\1",
    "flipped in the middle": lambda data: flip(data, len(data) // 2),
    "zeroed": lambda data: bytes(len(data)) or b"\0",
    "appended": lambda data: data + b"\0",
    "deleted": lambda data: None,
}


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    """Three generations, and all their files."""
    folder = tmp_path_factory.mktemp("intact")
    for number in (1, 2, 3):
        commit(folder, number, keep=3)
    return folder


@pytest.mark.parametrize("how", DAMAGE)
def test_damage_to_any_file_is_noticed(intact, tmp_path, how):
    """An older generation with a warning, or an error; never a wrong state and never silence."""
    run = tmp_path / "run"
    shutil.copytree(intact, run)
    whole = {number: Checkpoints(run).read(Checkpoints(run).describe(number)) for number in (1, 2, 3)}
    for path in sorted(p for p in run.rglob("*") if p.is_file()):
        before = path.read_bytes()
        damaged = DAMAGE[how](before)
        path.unlink() if damaged is None else path.write_bytes(damaged)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            generation, keys = Checkpoints(run).newest()
        assert keys == whole[generation.number], path
        newest_hit = "gen-00000003" in str(path) or path.name == "00000003.json"
        assert generation.number == (2 if newest_hit else 3), path
        assert bool(said) == newest_hit, path
        if not newest_hit and path.name != "zarr.json" and damaged is not None:
            assert Checkpoints(run).verify(), path
        path.write_bytes(before)


@pytest.mark.parametrize("how", DAMAGE)
def test_where_nothing_verifies_there_is_no_fresh_start(intact, tmp_path, how):
    run = tmp_path / "run"
    shutil.copytree(intact, run)
    for path in run.glob("commits/*"):
        damaged = DAMAGE[how](path.read_bytes())
        path.unlink() if damaged is None else path.write_bytes(damaged)
    with pytest.raises(CheckpointCorrupt, match="resume=False"):
        Checkpoints(run).newest()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_flipped_bit_is_noticed(intact, data):
    checkpoints = Checkpoints(intact)
    generation = checkpoints.describe(3)
    name = data.draw(st.sampled_from(sorted(generation.files)))
    path = intact / "state.zarr" / generation.folder / name
    before = path.read_bytes()
    bit = data.draw(st.integers(0, 8 * len(before) - 1))
    try:
        path.write_bytes(before[: bit // 8] + bytes([before[bit // 8] ^ 1 << bit % 8]) + before[bit // 8 + 1 :])
        with pytest.raises(CheckpointCorrupt):
            checkpoints.read(generation)
    finally:
        path.write_bytes(before)


# --- hostile folders --------------------------------------------------------------------------------------------------


def seal(run, change, keys=None):
    """Write generation 1 of a run with a record that hashes, after a change to what it says."""
    keys = keys or pack(recorded(1))
    folder = "gen-00000001-00000000"
    record = {"format": 1, "generation": 1, "folder": folder, "created": "now", "about": {}, "fingerprint": {}}
    record |= {"versions": {}, "files": {k: [len(v), _sha(v)] for k, v in keys.items()}}
    change(record, keys)
    for key, value in keys.items():
        path = run / "state.zarr" / folder / key
        with contextlib.suppress(OSError, ValueError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(value)
    (run / "commits").mkdir(parents=True, exist_ok=True)
    text = json.dumps(record) if isinstance(record, dict) else record
    (run / "commits" / "00000001.json").write_text(json.dumps({"record": text, "sha256": _sha(text.encode())}))


def _sha(data):
    import hashlib

    return hashlib.sha256(data).hexdigest()


def meta(name, **changes):
    """A change to the metadata of an array, with its hash made right again."""

    def change(record, keys):
        about = json.loads(keys[name]) | changes
        keys[name] = json.dumps(about).encode()
        record["files"][name] = [len(keys[name]), _sha(keys[name])]

    return change


def put(name, data):
    def change(record, keys):
        keys[name] = data
        record["files"][name] = [len(data), _sha(data)]

    return change


def bomb():
    import gzip

    def change(record, keys):
        about = json.loads(keys["theta/zarr.json"])
        about["codecs"].append({"name": "gzip", "configuration": {"level": 9}})
        put("theta/zarr.json", json.dumps(about).encode())(record, keys)
        put("theta/c/0", gzip.compress(bytes(200_000_000)))(record, keys)

    return change


HOSTILE = {
    "pickle for a chunk": put("theta/c/0", b"cos\nsystem\n(S'touch /tmp/pwned'\ntR."),
    "object dtype": meta("theta/zarr.json", data_type="object"),
    "variable strings": meta("theta/zarr.json", data_type="string"),
    "structured dtype": meta("theta/zarr.json", data_type={"name": "struct", "configuration": {}}),
    "pickle codec": meta("theta/zarr.json", codecs=[{"name": "numcodecs.pickle", "configuration": {}}]),
    "unknown codec": meta("theta/zarr.json", codecs=[{"name": "bytes"}, {"name": "https://example.org/codec"}]),
    "storage transformer": meta("theta/zarr.json", storage_transformers=[{"name": "indirection"}]),
    "huge shape": meta("theta/zarr.json", shape=[10**18]),
    "huge chunks": meta("theta/zarr.json", chunk_grid={"name": "regular", "configuration": {"chunk_shape": [10**12]}}),
    "negative shape": meta("theta/zarr.json", shape=[-1]),
    "shape of truths": meta("theta/zarr.json", shape=[True]),
    "many dimensions": meta("theta/zarr.json", shape=[1] * 60),
    "no array at all": meta("theta/zarr.json", node_type="pipe"),
    "metadata of another kind": put("theta/zarr.json", b"[1, 2]"),
    "deep metadata": put("theta/zarr.json", b"[" * 200_000 + b"]" * 200_000),
    "large metadata": put("theta/zarr.json", b" " * 2_000_000),
    "compressed bomb": bomb(),
    "a way up": put("../../../escaped", b"x"),
    "an absolute path": lambda record, keys: put(f"{Path.cwd()}/escaped", b"x")(record, keys),
    "a way up inside": put("theta/../../../lock", b"x"),
    "a name with a null": put("theta/\0", b"x"),
    "an unknown file": put("theta/more", b"x"),
    "folder elsewhere": lambda record, keys: record.update(folder="../../elsewhere"),
    "sizes that are none": lambda record, keys: record.update(files={"theta/c/0": ["a lot", "x"]}),
    "sizes beyond all": lambda record, keys: record.update(files={"theta/c/0": [10**15, "x"]}),
    "another generation": lambda record, keys: record.update(generation=2),
    "no files": lambda record, keys: record.update(files={}),
}


@pytest.mark.parametrize("how", HOSTILE)
def test_a_hostile_folder_is_refused_unread(tmp_path, how, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    seal(run, HOSTILE[how])
    opened = []
    real = os.open
    monkeypatch.setattr(os, "open", lambda path, *a: (opened.append(os.path.realpath(path)), real(path, *a))[1])
    monkeypatch.setattr(codec, "_open", lambda _: pytest.fail("an array was read"))
    with pytest.raises(CheckpointCorrupt):
        unpack(Recorded, Checkpoints(run).newest()[1])
    assert all(path.startswith(str(run.resolve())) for path in opened)
    assert not Path("/tmp/pwned").exists()


@pytest.mark.parametrize("what", ["file", "folder", "pipe", "record"])
def test_links_and_pipes_are_not_followed(tmp_path, what):
    run = tmp_path / "run"
    seal(run, lambda record, keys: None)
    target = run / "state.zarr/gen-00000001-00000000/theta/c/0"
    target = {"folder": target.parent.parent, "record": run / "commits/00000001.json"}.get(what, target)
    elsewhere = tmp_path / "elsewhere"
    shutil.move(target, elsewhere)
    os.mkfifo(target) if what == "pipe" else target.symlink_to(elsewhere)
    with pytest.raises(CheckpointCorrupt):
        Checkpoints(run).newest()


def test_a_deep_record_and_a_newer_format(tmp_path):
    (tmp_path / "commits").mkdir()
    (tmp_path / "commits/00000001.json").write_bytes(b"[" * 300_000)
    with pytest.raises(CheckpointCorrupt):
        Checkpoints(tmp_path).newest()
    seal(tmp_path / "newer", lambda record, keys: record.update(format=99))
    with pytest.raises(CheckpointError, match="format 99"):
        Checkpoints(tmp_path / "newer").newest()


# --- a disk that is full, a store that cannot be reached --------------------------------------------------------------


class Outage(Exception):
    """What botocore raises where a store cannot be reached: no OSError."""


@contextlib.contextmanager
def outage(there, *verbs):
    """A while in which some verbs of a place fail."""

    def fails(*_):
        raise Outage("no route")

    with pytest.MonkeyPatch.context() as patch:
        for verb in verbs:
            patch.setattr(there, verb, fails)
        yield


@pytest.mark.parametrize("n", [1, 5, 20])
def test_a_full_disk_leaves_what_was_there(tmp_path, monkeypatch, n):
    commit(tmp_path, 1)
    create, seen = storage._create, []

    def full(path):
        seen.append(path)
        if len(seen) >= n:
            raise OSError(errno.ENOSPC, "No space left on device")
        return create(path)

    monkeypatch.setattr(storage, "_create", full)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(OSError, match="No space"):
        checkpoints.commit(pack(recorded(2)), {}, {})
    monkeypatch.undo()
    assert same(newest(tmp_path), recorded(1)) and checkpoints.verify() == {}
    assert commit(tmp_path, 2) == 2 and len(os.listdir(tmp_path / "state.zarr")) == 3


@pytest.mark.parametrize(("verbs", "folders"), [(["create"], 1), (["create", "remove"], 2)])
def test_what_an_outage_interrupts_is_discarded_where_that_can_be_done(tmp_path, verbs, folders):
    commit(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path)
    with outage(checkpoints.place, *verbs), pytest.raises(Outage):
        checkpoints.commit(pack(recorded(2)), {}, {})
    assert len(list(tmp_path.glob("state.zarr/gen-*"))) == folders and same(newest(tmp_path), recorded(1))


def test_what_is_committed_counts_though_older_ones_cannot_be_removed(tmp_path):
    for number in (1, 2):
        commit(tmp_path, number)
    checkpoints = Checkpoints(tmp_path)
    with outage(checkpoints.place, "remove"):
        assert checkpoints.commit(pack(recorded(3)), {}, {}, 2) == 3
    assert same(newest(tmp_path), recorded(3)) and checkpoints.numbers() == [1, 2, 3]


def test_a_record_that_arrived_though_its_answer_did_not_keeps_its_files(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    create = checkpoints.place.create

    def lost(name, data):
        create(name, data)
        raise Outage(name)

    monkeypatch.setattr(checkpoints.place, "create", lost)
    with pytest.raises(Outage):
        checkpoints.commit(pack(recorded(1)), {}, {})
    assert same(newest(tmp_path), recorded(1)) and checkpoints.verify() == {}


# --- the lock ---------------------------------------------------------------------------------------------------------


HOLD = """
import sys
from dask_nlsq import Checkpoints
from dask_nlsq._checkpoint.lock import Lock
with Lock(Checkpoints(sys.argv[1]).place):
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE)
    while not (tmp_path / "lock.json").exists():
        time.sleep(0.05)
    yield process
    process.kill()
    process.communicate()


def test_a_second_driver_is_refused_and_a_dead_one_taken_over(tmp_path, holder):
    with pytest.raises(CheckpointError, match=f"process {holder.pid}"):
        Lock(Checkpoints(tmp_path).place).acquire()
    holder.kill()
    holder.wait()
    with pytest.warns(NlsqWarning, match="gone"), Lock(Checkpoints(tmp_path).place) as lock:
        assert lock.mine()
    assert not (tmp_path / "lock.json").exists()


def elsewhere(folder, **changes):
    """A lock that a process of another host holds."""
    own = {"owner": "x", "host": "elsewhere", "pid": 1, "started": 0.0, "job": None, "beat": 0} | changes
    Checkpoints(folder).place.replace("lock.json", json.dumps(own).encode())


def test_another_host_is_given_three_heartbeats(tmp_path):
    elsewhere(tmp_path)
    started = time.monotonic()
    with pytest.warns(NlsqWarning, match="stopped"), Lock(Checkpoints(tmp_path).place, heartbeat=0.1) as lock:
        assert lock.mine() and time.monotonic() - started >= 0.3


@pytest.mark.slow
def test_another_host_whose_heart_beats_is_left_alone(tmp_path):
    elsewhere(tmp_path)
    context = multiprocessing.get_context("spawn")
    beating = context.Process(target=beat, args=(tmp_path,))
    beating.start()
    with pytest.raises(CheckpointError, match="elsewhere"):
        Lock(Checkpoints(tmp_path).place, heartbeat=10.0).acquire()
    beating.kill()


def beat(folder):
    for n in range(1, 1000):
        elsewhere(folder, beat=n)
        time.sleep(0.05)


def test_a_requeued_job_takes_the_lock_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    elsewhere(tmp_path, job=job())
    with Lock(Checkpoints(tmp_path).place, heartbeat=1e6) as lock:  # of which it would wait for three
        assert lock.mine()
    assert job() == "slurm:4711"


def test_an_owner_that_was_taken_over_writes_no_more(tmp_path):
    with Lock(Checkpoints(tmp_path).place) as lock:
        elsewhere(tmp_path)
        assert not lock.mine()
    assert (tmp_path / "lock.json").exists()


@pytest.mark.parametrize("verb", ["read", "replace"])
def test_a_heart_beats_on_after_an_outage(tmp_path, verb):
    there = Checkpoints(tmp_path).place
    with Lock(there, heartbeat=0.05):
        with outage(there, verb):
            time.sleep(0.3)
        before, deadline = there.read("lock.json", 1000), time.monotonic() + 5
        while there.read("lock.json", 1000) == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    assert there.read("lock.json", 1000) is None


@pytest.mark.parametrize("verb", ["read", "remove"])
def test_a_lock_that_cannot_be_given_back_is_no_error(tmp_path, verb):
    there = Checkpoints(tmp_path).place
    lock = Lock(there)
    lock.acquire()
    with outage(there, verb):
        lock.release()
    assert there.read("lock.json", 1000) is not None


@pytest.mark.parametrize("verb", ["create", "read"])
def test_a_place_that_cannot_be_reached_is_no_checkpoint(tmp_path, verb):
    elsewhere(tmp_path)
    checkpoints = Checkpoints(tmp_path)
    said = f"Nothing can be written at {checkpoints.place}: Outage: no route"
    with outage(checkpoints.place, verb), pytest.raises(CheckpointError, match=said), _locked(checkpoints):
        pytest.fail("it was locked")


# --- other places -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", "local", "url"])
def test_any_store_of_zarr_and_any_url(tmp_path, kind):
    where = {
        "memory": lambda: zarr.storage.MemoryStore(),
        "local": lambda: zarr.storage.LocalStore(tmp_path / "store"),
        "url": lambda: "memory://run",
    }[kind]()
    for number in range(1, 5):
        commit(where, number)
    assert same(newest(where), recorded(4)) and Checkpoints(where).verify() == {}
    assert Checkpoints(where).numbers() == [3, 4]
    Checkpoints(where).export(tmp_path / "copy")
    assert same(newest(tmp_path / "copy"), recorded(4))


PLACES = {
    "folder": lambda tmp_path: tmp_path,
    "store": lambda _: zarr.storage.MemoryStore(),
    "url": lambda tmp_path: f"memory://{tmp_path}",
}


@pytest.mark.parametrize("kind", PLACES)
def test_many_files_are_read_as_each_is(kind, tmp_path):
    place = storage.open_place(PLACES[kind](tmp_path))
    files = {"some/a": b"12345", "some/empty": b"", "b": b"1"}
    place.write(files)
    sizes = {"some/a": 5, "some/empty": 0, "some/none": 3, "none": 0, "b": 9}
    expected = {"some/a": b"12345", "some/empty": b"", "some/none": None, "none": None, "b": b"1"}
    assert place.read_all(sizes) == expected == {name: place.read(name, most) for name, most in sizes.items()}
    with pytest.raises(CheckpointCorrupt):
        place.read_all({"b": 1, "some/a": 4})


@pytest.mark.parametrize("linked", ["state", "state/folder", "state/folder/file"])
def test_no_link_is_followed_among_many_files(linked, tmp_path):
    place = storage.open_place(tmp_path / "run")
    place.write({f"state/folder/{name}": b"1" for name in ("file", "other")})
    path = tmp_path / "run" / linked
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointCorrupt, match="is a link"):
        place.read_all({"state/folder/other": 1, "state/folder/file": 1})


class Killed(Exception):
    """Stands for the death of the driver: after it no request comes through."""


@pytest.fixture(scope="module")
def bucket():
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "key", "secret": "secret", "endpoint_url": f"http://{host}:{port}"}
    s3fs.S3FileSystem(**options).mkdir("runs")
    yield options
    server.stop()


@pytest.mark.slow
@pytest.mark.parametrize("step", [4])
def test_killed_at_a_request_to_a_bucket_nothing_is_torn(bucket, monkeypatch, step):
    call = s3fs.S3FileSystem._call_s3
    keys = {number: pack(recorded(number)) for number in (1, 2, 3)}
    seen, limit = [0], [10**9]

    async def counted(self, method, *args, **options):
        seen[0] += method in ("put_object", "delete_objects")
        if seen[0] >= limit[0]:
            raise Killed
        return await call(self, method, *args, **options)

    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", counted)
    n = 1
    while True:
        run = Checkpoints(f"s3://runs/{step}/{n}", bucket)
        limit[0] = 10**9
        for number in (1, 2):
            run.commit(keys[number], {}, {}, 2)
        seen[0], limit[0] = 0, n
        with contextlib.suppress(Killed):
            run.commit(keys[3], {}, {}, 2)
        reached = seen[0] >= n
        limit[0] = 10**9
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            generation, found = run.newest()
        assert found == keys[generation.number] and generation.number in (2, 3)
        assert run.commit(keys[1], {}, {}, 2) > generation.number and run.verify() == {}
        if not reached:
            break
        n += step
    assert n > 20


@pytest.mark.slow
def test_damage_in_a_bucket_is_noticed(bucket):
    run, fs = Checkpoints("s3://runs/damaged", bucket), s3fs.S3FileSystem(**bucket)
    for number in (1, 2):
        run.commit(pack(recorded(number)), {}, {})
    for name in fs.find(f"runs/damaged/state.zarr/{run.describe(2).folder}")[::5]:
        data = fs.cat_file(name)
        fs.pipe_file(name, data[:-1] + bytes([data[-1] ^ 1]))
        with pytest.warns(NlsqWarning, match="generation 1"):
            assert run.newest()[0].number == 1
        fs.pipe_file(name, data)
    assert run.verify() == {}


def test_a_record_in_a_bucket_is_written_on_a_condition(bucket):
    run = Checkpoints("s3://runs/twice", bucket)
    run.place.create("commits/00000001.json", b"one")
    with pytest.raises(FileExistsError):
        run.place.create("commits/00000001.json", b"two")
    run.place.fs.exists = lambda path: False  # as another driver would see it that was faster
    with pytest.raises(FileExistsError):
        run.place.create("commits/00000001.json", b"two")
    assert run.place.read("commits/00000001.json", 10) == b"one"


# --- anyone's tools ---------------------------------------------------------------------------------------------------


def test_zarr_and_xarray_open_it_without_a_warning(tmp_path):
    commit(tmp_path, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        group = zarr.open_group(tmp_path / "state.zarr", mode="r")
        (name,) = group.group_keys()
        assert (group[name]["theta"][:] == recorded(1).theta).all()
        table = xr.open_zarr(tmp_path / "state.zarr", group=f"{name}/history", consolidated=False)
    assert table["cost"].dims == ("row",) and table["cost"].shape == (4,)
    assert table["cost"].values.tolist() == [p.cost for p in recorded(1).history]
    assert (tmp_path / "state.zarr/zarr.json").read_bytes() == _ROOT


COMMANDS = {  # arguments, exit status, and a part of the output
    "list": (["list", "run"], 0, "generation"),
    "list, JSON": (["list", "run", "--json"], 0, '"generation":3'),
    "list, nothing there": (["list", "elsewhere"], 0, "There is no checkpoint"),
    "show": (["show", "run"], 0, "generation: 3"),
    "show, JSON": (["show", "run", "--json", "--generation", "2"], 0, '"generation": 2'),
    "verify": (["verify", "run"], 0, "3: verified"),
    "verify, JSON": (["verify", "run", "--json"], 0, '"faults": {}'),
    "verify, nothing there": (["verify", "elsewhere"], 1, "There is no checkpoint"),
    "prune": (["prune", "run"], 0, "2 are left"),
    "export": (["export", "run", "copy"], 0, "Copied to copy."),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_checkpoints_from_the_command_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in (1, 2, 3):
        Checkpoints("run").commit(pack(recorded(number)), {}, {})
    arguments, status, said = COMMANDS[name]
    seen = CliRunner().invoke(main, ["checkpoints", *arguments])
    assert seen.exit_code == status and said in seen.output, seen.output


def test_damage_is_an_exit_status(tmp_path):
    Checkpoints(tmp_path).commit(pack(recorded(1)), {}, {})
    next(tmp_path.glob("state.zarr/gen-*/theta/c/0")).write_bytes(b"")
    seen = CliRunner().invoke(main, ["checkpoints", "verify", str(tmp_path)])
    assert seen.exit_code == 1 and seen.output.startswith("1: ") and "verified" not in seen.output
