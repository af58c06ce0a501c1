"""The lock of a checkpoint: a living owner keeps it whatever the clock, container and host; a dead one does not."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest

from dask_nlsq import CheckpointError, Checkpoints, NlsqWarning
from dask_nlsq._checkpoint import owner
from dask_nlsq._checkpoint.lock import Lock
from dask_nlsq._checkpoint.owner import Life, identify, life

HEARTBEAT = 0.1
NEW = ("boot", "namespaces", "start_ticks", "run")
"""What a record of the first release lacks."""

needs_proc = pytest.mark.skipif(owner._boot_id() is None, reason="needs Linux's /proc")

HOLD = """
import sys, time
from dask_nlsq import Checkpoints
from dask_nlsq._checkpoint import Lock
with Lock(Checkpoints(sys.argv[1]).place, heartbeat=float(sys.argv[2])):
    print("held", flush=True)
    time.sleep(120)
"""


def started(*command, heartbeat=3600.0):
    """Another process that holds the lock of a folder and is not heard of."""
    return subprocess.Popen([*command[1:], sys.executable, "-c", HOLD, str(command[0]), str(heartbeat)], stdout=-1)


@contextlib.contextmanager
def holding(*command, **options):
    process = started(*command, **options)
    assert process.stdout.readline() == b"held\n"
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """What the locks of a living process and of a dead one say."""
    folders = [tmp_path_factory.mktemp(name) for name in ("alive", "dead")]
    with holding(folders[0]):
        with holding(folders[1]):
            pass
        yield [json.loads((folder / "lock.json").read_text()) for folder in folders]


def lock_of(folder):
    return Lock(Checkpoints(folder).place, heartbeat=HEARTBEAT)


def outcome(folder):
    """What becomes of an attempt to take the lock: taken at once, refused at once, or after a wait."""
    begun = time.monotonic()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NlsqWarning)
        try:
            with lock_of(folder) as lock:
                word = "taken" if lock.mine() else "lost"
        except CheckpointError as error:
            word = "refused" if "is being written by process" in str(error) else str(error)
    return word, time.monotonic() - begun >= 3 * HEARTBEAT


def altered(record, change):
    """A record as another owner, another kernel or another release would have written it."""
    changes = {
        "none": {},
        "pid reused": {"start_ticks": record["start_ticks"] - 1, "started": record["started"] - 0.01},
        "clock stepped": {"started": record["started"] - 5},
        "other pid namespace": {"namespaces": ["pid:[1]", record["namespaces"][1]]},
        "other time namespace": {"namespaces": [record["namespaces"][0], "time:[1]"]},
        "other boot": {"boot": "0" * 36},
        "other host": {"boot": "0" * 36, "host": "elsewhere"},
        "no /proc": {"boot": None, "namespaces": None, "start_ticks": None},
    }
    if change.startswith("old record"):
        shift = {"old record": 0, "old record, clock stepped": 5, "old record, other host": 0}[change]
        old = {name: value for name, value in record.items() if name not in NEW} | {
            "started": record["started"] - shift
        }
        return old | ({"host": "elsewhere"} if change.endswith("host") else {})
    return record | changes[change]


TABLE = [  # the change, what becomes of the lock of a living owner, and of that of a dead one
    ("none", "refused", "taken"),
    ("pid reused", "taken", "taken"),
    ("clock stepped", "refused", "taken"),
    ("other pid namespace", "waits", "waits"),
    ("other time namespace", "waits", "waits"),
    ("other boot", "waits", "waits"),
    ("other host", "waits", "waits"),
    ("no /proc", "refused", "waits"),
    ("old record", "refused", "waits"),
    ("old record, clock stepped", "waits", "waits"),
    ("old record, other host", "waits", "waits"),
]


@needs_proc
@pytest.mark.parametrize("dead", [False, True], ids=["alive", "dead"])
@pytest.mark.parametrize(("change", "alive_word", "dead_word"), TABLE, ids=[row[0] for row in TABLE])
def test_who_gets_the_lock(tmp_path, records, change, alive_word, dead_word, dead):
    record, word = altered(records[dead], change), dead_word if dead else alive_word
    (tmp_path / "lock.json").write_text(json.dumps(record))
    assert outcome(tmp_path) == ("taken" if word == "waits" else word, word == "waits")


@needs_proc
@pytest.mark.parametrize("change", [row[0] for row in TABLE if row[1] == "waits"])
def test_an_owner_that_beats_is_never_taken_over(tmp_path, records, change):
    record, ended = altered(records[0], change), threading.Event()

    def beat():
        for count in range(1, 10**6):
            Checkpoints(tmp_path).place.replace("lock.json", json.dumps(record | {"beat": count}).encode())
            if ended.wait(HEARTBEAT):
                return

    with background(beat, ended):
        assert outcome(tmp_path)[0] == "refused"


@contextlib.contextmanager
def background(work, ended):
    thread = threading.Thread(target=work)
    thread.start()
    while not thread.is_alive():
        time.sleep(0.01)
    time.sleep(HEARTBEAT / 2)
    try:
        yield
    finally:
        ended.set()
        thread.join()


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"x"', "{}", '{"pid": 1e9}', '{"pid": -1, "boot": 0}'])
def test_a_damaged_record_is_given_three_heartbeats(tmp_path, text):
    (tmp_path / "lock.json").write_text(text)
    assert outcome(tmp_path) == ("taken", True)


@needs_proc
@pytest.mark.parametrize("pid", [None, "1", 0, -1, 2**31, 2**80, 1.5, [1]])
def test_what_is_no_process_number_is_not_known_to_be_dead(pid):
    assert life(identify() | {"pid": pid}, identify()) is Life.UNKNOWN


@needs_proc
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("_own_proc", lambda: False, Life.UNKNOWN),  # of a namespace that has not mounted its own
        ("_stat", lambda pid: None, Life.UNKNOWN),  # hidden from other users
        ("_stat", lambda pid: ("Z", 1, 7), Life.DEAD),  # nobody has asked how it ended
        ("_stat", lambda pid: ("Z", 2, 7), Life.ALIVE),  # its first thread has ended
        ("_stat", lambda pid: ("S", 1, 7), Life.ALIVE),
        ("_stat", lambda pid: ("S", 1, 8), Life.DEAD),
    ],
)
def test_what_proc_shows(monkeypatch, name, value, expected):
    record = identify() | {"start_ticks": 7}
    monkeypatch.setattr(owner, name, value)
    assert life(record, record) is expected


@needs_proc
def test_a_process_knows_itself_whatever_the_clock(monkeypatch):
    record = identify()
    monkeypatch.setattr("psutil._pslinux.boot_time", lambda: 0.0)
    now = identify()
    assert life(record, now) is life(now, record) is Life.ALIVE
    assert {name: now[name] for name in NEW[:3]} == {name: record[name] for name in NEW[:3]}


@needs_proc
def test_without_proc_a_process_is_never_known_to_be_dead(monkeypatch, records):
    alive, dead = records
    here = identify() | {"boot": None, "namespaces": None, "start_ticks": None}
    assert [life(record, here) for record in (alive, dead)] == [Life.ALIVE, Life.UNKNOWN]


@pytest.mark.parametrize(
    ("count", "changes", "expected"),
    [
        ("1", {"run": "0"}, ("taken", False)),
        ("1", {"run": "0", "host": "elsewhere"}, ("taken", False)),
        (None, {"run": "0", "host": "elsewhere"}, ("taken", True)),  # two tasks of one run
        ("1", {"host": "elsewhere"}, ("taken", False)),
        ("1", {}, ("taken", True)),
        ("1", {"run": "0", "job": "slurm:4712", "host": "elsewhere"}, ("taken", True)),
    ],
)
def test_another_run_of_a_job_takes_the_lock_at_once(tmp_path, monkeypatch, count, changes, expected):
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    if count is not None:
        monkeypatch.setenv("SLURM_RESTART_COUNT", count)
    record = {"owner": "x", "host": identify()["host"], "pid": 1, "started": 0.0, "job": "slurm:4711", "beat": 0}
    (tmp_path / "lock.json").write_text(json.dumps(record | changes))
    assert outcome(tmp_path) == expected


def test_a_lock_given_back_during_the_wait_is_created_and_not_replaced(tmp_path, monkeypatch):
    place = Checkpoints(tmp_path).place
    place.replace("lock.json", b'{"host": "elsewhere", "pid": 1}')
    monkeypatch.setattr(place, "replace", lambda *_: pytest.fail("it was replaced"))
    threading.Timer(HEARTBEAT, place.remove, ["lock.json"]).start()
    lock = Lock(place, heartbeat=HEARTBEAT)
    lock.acquire()
    assert lock.mine()


def test_a_pause_of_the_machine_is_not_taken_for_silence(tmp_path, monkeypatch):
    """The clock of a machine that stood still has gone on, and the owner in it has not beaten meanwhile."""
    looks, place = [], Checkpoints(tmp_path).place
    place.replace("lock.json", b'{"host": "elsewhere", "pid": 1}')
    monkeypatch.setattr(place, "read", lambda name, most, read=place.read: looks.append(1) or read(name, most))
    monkeypatch.setattr(time, "monotonic", lambda clock=time.monotonic: clock() + 3600 * len(looks))
    with pytest.warns(NlsqWarning, match="heartbeats have stopped"):
        Lock(place, heartbeat=HEARTBEAT).acquire()
    assert len(looks) >= 12


UNSHARE = {
    "with its own /proc": ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"],
    "with the /proc of its host": ["unshare", "--pid", "--fork", "--kill-child"],
}


@pytest.fixture(params=UNSHARE)
def apart(request):
    """The start of a command in another PID namespace under the same host name."""
    command = UNSHARE[request.param]
    with contextlib.suppress(OSError):
        if subprocess.run([*command, "true"], capture_output=True).returncode == 0:
            return command
    pytest.skip("needs the privilege to unshare a PID namespace")


@pytest.mark.slow
@needs_proc
@pytest.mark.parametrize("inside", [False, True], ids=["outside", "inside"])
def test_a_container_of_the_same_host_name_is_another_host(tmp_path, apart, inside):
    """Whichever of both is inside: an owner that beats keeps its lock, one that does not loses it after a wait."""
    with holding(tmp_path, *(apart if inside else []), heartbeat=HEARTBEAT) as process:
        assert attempt(tmp_path, [] if inside else apart) == "refused True"
        process.kill()
    assert attempt(tmp_path, [] if inside else apart) == "taken True"


def attempt(folder, prefix):
    code = "import sys, test_lock; print(*test_lock.waited(sys.argv[1]))"
    found = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])}
    command = [*prefix, sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | found)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def waited(folder):
    """The outcome of an attempt and whether anything had to be waited for."""
    said = []
    owner_of = Lock._misses_heartbeats
    Lock._misses_heartbeats = lambda *args: said.append(1) or owner_of(*args)
    return outcome(folder)[0], bool(said)
