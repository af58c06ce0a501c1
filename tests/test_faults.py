"""Fits whose workers or scheduler die give the same bits, or an error that names the loss."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import dask
import dask.dataframe as dd
import jax
import numpy as np
import pandas as pd
import pytest
from distributed import Client, KilledWorker, LocalCluster
from problems import decay, decay_rows

import dask_nlsq
from dask_nlsq import SweepError

T, Y = decay_rows(20_000)


@pytest.fixture(scope="module")
def cluster():
    """Two worker processes that come back however often they are killed."""
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "1h", "distributed.comm.timeouts.connect": "5s"}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", env={"PJRT_NPROC": "1"}) as cluster,
    ):
        yield cluster


@pytest.fixture
def client(cluster):
    with Client(cluster) as client, dask.config.set({"nlsq.tier": "chunked"}):
        client.wait_for_workers(2, timeout=60)
        yield client


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def frame(on_read, pieces=20):
    """Return the rows as partitions that call ``on_read(i)`` when they are read."""

    def read(i):
        on_read(i)
        rows = slice(i * len(T) // pieces, (i + 1) * len(T) // pieces)
        return pd.DataFrame({"t": T[rows], "y": Y[rows]})

    return dd.from_map(read, range(pieces), meta=pd.DataFrame({"t": [0.0], "y": [0.0]}))


def calling(on_call):
    """Return the decay as a model that calls ``on_call(largest t)`` for every tile of rows."""

    def call(t):
        on_call(np.max(t))
        return np.zeros(np.shape(t), np.float32)

    def model(t, amplitude, rate, offset=0.0):
        zero = jax.pure_callback(call, jax.ShapeDtypeStruct(t.shape, np.float32), t, vmap_method="broadcast_all")
        return decay(t, amplitude, rate, offset) + zero

    return model


@pytest.fixture(scope="module")
def obey(tmp_path_factory):
    """Return a function that kills its process, or the parent, where `obey.order` has told it to, once."""
    orders = tmp_path_factory.mktemp("orders")

    def obey(*_):
        for pid in (os.getpid(), os.getppid()):
            if (orders / str(pid)).exists():
                (orders / str(pid)).unlink()
                os.kill(pid, signal.SIGKILL)

    obey.order = lambda pid: (orders / str(pid)).touch()
    return obey


@pytest.fixture(scope="module")
def undisturbed(obey):
    """Return the bits of a fit in threads of this process."""
    return bits(dask_nlsq.fit(calling(obey), data=frame(obey)))


def bits(result):
    return result.popt.tobytes() + result.pcov.tobytes()


LOSSES = {
    "at the first reading": (0, "frame", "none"),
    "while reading anew": (1, "frame", "none"),
    "with what it held": (1, "frame", "persist"),
    "with arrays it held": (1, "arrays", "auto"),
}


@pytest.mark.slow
@pytest.mark.one_at_a_time
@pytest.mark.parametrize(("sweeps", "form", "cache"), LOSSES.values(), ids=LOSSES)
@pytest.mark.parametrize("worker", [0, 1])
def test_a_worker_that_dies_changes_nothing(
    undisturbed, cluster, client, obey, monkeypatch, sweeps, form, cache, worker
):
    monkeypatch.setattr("dask_nlsq._sources.in_memory.ROWS", 1000)  # partitions as those of the frame
    monkeypatch.setattr("dask_nlsq._sources.in_memory._HEAD", 0)
    data = {"t": T, "y": Y} if form == "arrays" else frame(obey)
    victim = cluster.workers[worker].pid
    if sweeps == 0:
        obey.order(victim)
    result = dask_nlsq.fit(
        calling(obey), data=data, cache=cache, callback=lambda now: obey.order(victim) if now.nfev == sweeps else None
    )
    assert cluster.workers[worker].pid != victim
    assert bits(result) == undisturbed


KILLERS = {
    "a reader": (4, "read", "none"),
    "a model": (4, "call", "none"),
    "a model on what is held": (4, "call", "persist"),
    "one of a group": (20, "call", "none"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("pieces", "on", "cache"), KILLERS.values(), ids=KILLERS)
def test_a_partition_that_always_kills_is_named(cluster, client, monkeypatch, pieces, on, cache):
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)  # so that its neighbour is suspected too
    largest = T[3 * len(T) // pieces : 4 * len(T) // pieces].max()
    data = frame(lambda i: on == "read" and i == 3 and die(), pieces)
    model = calling(lambda t: on == "call" and t == largest and die())
    with pytest.raises(SweepError, match="smaller partitions") as caught:
        dask_nlsq.fit(model, data=data, p0=[2.0, 1.0, 0.0], cache=cache)
    assert isinstance(caught.value.__cause__, KilledWorker)
    several = pieces > 4 or cache == "persist"  # of which one task takes several
    first, *last = str(caught.value.partitions if several else caught.value.partition).split(" to ")
    assert 3 in range(int(first), int((last or [first])[0]) + 1)
    if on == "call":  # a reader kills already while the sample is drawn
        assert (caught.value.sweep, caught.value.theta) == (1, "[2., 1., 0.]")


SHARED = {
    "raises": (lambda: 1 // 0, "ZeroDivisionError", ZeroDivisionError),
    "kills": (die, "smaller partitions", KilledWorker),
}


@pytest.mark.slow
@pytest.mark.parametrize(("fail", "message", "cause"), SHARED.values(), ids=SHARED)
def test_work_that_partitions_share_may_fail(cluster, client, monkeypatch, fail, message, cause):
    monkeypatch.setattr(cluster.scheduler, "allowed_failures", 0)
    rows = frame(lambda i: None, 8).shuffle("t", shuffle_method="tasks")  # the other has errors of its own
    broken = rows.map_partitions(lambda part: fail() if part["t"].eq(T[0]).any() else part, meta=rows._meta)
    with pytest.raises(SweepError, match=f"{message}.*partition") as caught:
        broken.nlsq.fit(decay)
    assert isinstance(caught.value.__cause__, cause)


@pytest.mark.slow
@pytest.mark.parametrize("x64", ["0", "1"])
def test_precision_is_not_the_workers(undisturbed, obey, x64):
    options = {"threads_per_worker": 1, "dashboard_address": ":0", "env": {"JAX_ENABLE_X64": x64}}
    with LocalCluster(1, **options) as cluster, Client(cluster) as client:
        assert client.submit(lambda: jax.config.jax_enable_x64).result() == (x64 == "1")
        assert bits(dask_nlsq.fit(calling(obey), data=frame(obey))) == undisturbed


HOST = """
import sys
from distributed import LocalCluster
with LocalCluster(2, threads_per_worker=1, dashboard_address=":0") as cluster:
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def elsewhere(cluster):
    """A scheduler in a process of its own, and a client of it."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": Path(__file__).parent}
    with (
        subprocess.Popen([sys.executable, "-c", HOST], **pipes) as host,
        Client(host.stdout.readline(), set_as_default=False) as client,  # as a default it would outlive its scheduler
    ):
        yield host, client


def kill(host, client, obey):
    host.kill()
    host.wait()


ENDS = {
    "killed between sweeps": kill,
    "killed in a sweep": lambda host, client, obey: obey.order(host.pid),
    "closed": lambda host, client, obey: client.close(),
}


@pytest.mark.slow
@pytest.mark.parametrize("end", ENDS.values(), ids=ENDS)
def test_a_lost_scheduler_ends_the_fit(elsewhere, obey, end):
    host, client = elsewhere
    with pytest.raises(SweepError, match=r"scheduler was lost.*fit again") as caught:
        dask_nlsq.fit(
            calling(obey),
            data=frame(obey),
            cache="persist",
            tier="chunked",
            client=client,
            callback=lambda now: end(host, client, obey) if now.nfev == 1 else None,
        )
    assert caught.value.__cause__ is not None
