"""Fits on clusters whose workers are killed, paused, removed and added at random: the bits of an undisturbed fit."""

import concurrent.futures
import contextlib
import random
import signal
import threading
import time

import dask
import dask.array as da
import numpy as np
import psutil
import pytest
from distributed import Client, LocalCluster
from problems import decay, decay_rows

import dask_nlsq

FITS = 5
T, Y = decay_rows(40_000)


def workers(cluster):
    """Return the processes of the workers."""
    pids = [nanny.pid for nanny in list(cluster.workers.values()) if getattr(nanny, "pid", None)]
    return [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]


def kill(cluster, rng):
    for process in workers(cluster)[: rng.choice([1, 9])]:  # one, or all
        process.send_signal(signal.SIGKILL)


def pause(cluster, rng):
    for process in workers(cluster)[:1]:
        process.send_signal(signal.SIGSTOP)
        time.sleep(rng.uniform(0.1, 0.8))
        process.send_signal(signal.SIGCONT)


def to_zero_and_back(cluster, rng):
    cluster.scale(0)
    time.sleep(rng.uniform(0.1, 0.8))
    cluster.scale(2)


def add(cluster, rng):
    cluster.scale(3)
    time.sleep(rng.uniform(0.1, 0.8))
    cluster.scale(2)


EVENTS = [kill, kill, pause, to_zero_and_back, add]


def disturb(cluster, rng, over):
    """Let something happen to the workers once or twice, while the fit is under way."""
    for _ in range(rng.choice([1, 1, 2])):
        if not over.wait(rng.uniform(0.0, 1.0)):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has died meanwhile
                rng.choice(EVENTS)(cluster, rng)


def fit(client=None, cache="persist", partitions=16):
    def slowly(_):
        time.sleep(0.2)  # else it were over before anything happens

    size = len(T) // partitions
    x, y = da.from_array(T, size), da.from_array(Y, size)
    options = {"tier": "chunked", "p0": [2.0, 1.0, 0.0], "progress": False, "cache": cache, "callback": slowly}
    result = dask_nlsq.fit(decay, x, y, client=client, **options)
    return result.popt.tobytes() + result.pcov.tobytes()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_random_ends_of_workers_change_nothing():
    rng, quiet = random.Random(2026), fit(False)
    settings = {"distributed.deploy.lost-worker-timeout": "1h", "distributed.scheduler.allowed-failures": 100}
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "env": {"PJRT_NPROC": "1"}}
    with (
        dask.config.set(settings),
        LocalCluster(**options) as cluster,
        Client(cluster, set_as_default=False) as client,
        concurrent.futures.ThreadPoolExecutor(2) as pool,
    ):
        for number in range(FITS):
            over = threading.Event()
            trouble = pool.submit(disturb, cluster, random.Random(rng.random()), over)
            try:
                found = pool.submit(fit, client, rng.choice(["persist", "none"])).result(timeout=60)
            except concurrent.futures.TimeoutError:
                client.close()  # so that it ends
                pytest.fail(f"fit {number} hangs; workers: {list(cluster.scheduler.workers)}")
            finally:
                over.set()
                trouble.result(timeout=60)
            assert found == quiet, number


def many(client, shared):
    """Return the bits of many small fits, of which each chunk takes a while to read."""

    def slowly(block):
        time.sleep(0.3)
        return block

    t, rates = np.linspace(0, 4, 32), np.linspace(0.5, 2, 400)
    y = da.from_array(3 * np.exp(-rates[:, None] * t) + 0.01 * np.cos(np.arange(400 * 32)).reshape(400, 32), (25, -1))
    options = {"p0": [2.0, 1.0, 0.0], "shared": "offset"} if shared else {"p0": [2.0, 1.0, 0.0]}
    with client.as_current() if client else contextlib.nullcontext():
        return dask_nlsq.fit_many(decay, t, y.map_blocks(slowly), client=client, **options).compute().figures.tobytes()


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("shared", [False, True])
def test_a_worker_that_is_killed_changes_no_bit_of_many_fits(shared):
    quiet = many(None, shared)
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None, "env": {"PJRT_NPROC": "1"}}
    with (
        LocalCluster(**options) as cluster,
        Client(cluster, set_as_default=False) as client,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        many(client, shared)  # so that all is compiled, and the next is under way when a worker ends
        found = pool.submit(many, client, shared)
        for _ in range(2):
            time.sleep(1.0)
            assert not found.done()
            kill(cluster, random.Random(0))
        assert found.result(timeout=300) == quiet
