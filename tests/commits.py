"""Commits of recorded states without JAX: `python commits.py FOLDER STEP` kills one at every STEP-th event.

An event is a change of a folder: a file opened for writing, a link, a rename, a new folder, a removal.
"""

import dataclasses
import os
import signal
import sys
import warnings
from pathlib import Path

import numpy as np

from dask_nlsq._checkpoint.checkpoints import Checkpoints
from dask_nlsq._checkpoint.codec import pack, unpack
from dask_nlsq._checkpoint.lock import Lock

EVENTS = {"os.link", "os.rename", "os.mkdir", "os.remove", "os.rmdir"}


@dataclasses.dataclass(frozen=True)
class Point:
    theta: np.ndarray
    gram: np.ndarray
    cost: float
    inner: "Point | None" = None


@dataclasses.dataclass(frozen=True)
class Recorded:
    theta: np.ndarray
    history: tuple[Point, ...]
    point: Point
    name: str


def recorded(number):
    rng = np.random.default_rng(number)
    points = [Point(rng.random(3), rng.random((3, 3)), float(rng.random())) for _ in range(4)]
    inner = Point(rng.random(4), np.asfortranarray(rng.random((4, 4))), -0.0, points[0])
    return Recorded(rng.random(3), tuple(points), inner, f"state {number}")


def same(one, two):
    return pack(one) == pack(two)


def commit(folder, number, keep=2):
    checkpoints = Checkpoints(folder)
    with Lock(checkpoints.place):
        return checkpoints.commit(pack(recorded(number)), {"sweeps": number}, {"of": "commits.py"}, keep)


def newest(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = Checkpoints(folder).newest()
    return None if found is None else unpack(Recorded, found[1])


def writes(event, args):
    return event in EVENTS or (event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR))


def count_events(action):
    """Return how many events an action has, in a process of its own."""
    reader, writer = os.pipe()
    if os.fork() == 0:
        seen = [0]
        sys.addaudithook(lambda event, args: seen.__setitem__(0, seen[0] + bool(writes(event, args))))
        action()
        os.write(writer, str(seen[0]).encode())
        os._exit(0)
    os.wait()
    return int(os.read(reader, 20))


def killed_at(n, action):
    """Run an action in a process that is killed before its n-th event."""
    if os.fork() == 0:
        seen = [0]

        def hook(event, args):
            if writes(event, args):
                seen[0] += 1
                if seen[0] == n:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)
        action()
        os._exit(0)
    _, status = os.wait()
    return os.WIFSIGNALED(status)


def main(folder, step):
    os.environ["PYTHONWARNINGS"] = "ignore"
    warnings.simplefilter("ignore")
    first = Path(folder) / "count"
    for number in (1, 2):
        commit(first, number)
    events = count_events(lambda: commit(first, 3))
    kills = 0
    for n in range(1, events + 1, step):
        run = Path(folder) / str(n)
        for number in (1, 2):
            commit(run, number)
        kills += killed_at(n, lambda run=run: commit(run, 3))
        found = newest(run)
        assert found is not None and any(same(found, recorded(k)) for k in (2, 3)), n
        third = commit(run, 4)  # whatever was torn is no hindrance, and is cleared away
        assert same(newest(run), recorded(4)) and Checkpoints(run).verify() == {}, n
        folders = [name for name in os.listdir(run / "state.zarr") if name != "zarr.json"]
        assert len(folders) == 2 and not list(run.glob("commits/.*")) and not (run / "lock.json").exists(), (n, third)
    print(f"{kills} kills in {events} events")
    assert "jax" not in sys.modules


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
