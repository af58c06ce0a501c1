"""Measurement of a comparison: times, peak memory, separate processes, and a one-line description of the machine."""

import importlib.metadata
import os
import platform
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import psutil
from distributed import Client, LocalCluster

PACKAGES = (
    *("dask-nlsq", "dask", "distributed", "jax", "numpy", "pandas", "pyarrow", "scipy", "zarr"),
    *("astropy", "hyperspy", "nlsq", "statsmodels", "xarray"),
)


class Missing(Exception):
    """A comparison cannot be made here; the message says what is not installed."""


def clock(run):
    """Return the seconds that a call takes, or what it measured itself where it returns a float."""
    started = time.perf_counter()
    value = run()
    return value if isinstance(value, float) else time.perf_counter() - started


def settled(run, longest=2.0):
    """Let the threads of this process come to rest, then `clock` a call.

    Threads of XLA give back the memory of a call after it has returned; on one core the next call would pay for that.
    """
    for _ in range(int(longest / 0.02)):
        before = time.process_time()
        time.sleep(0.02)
        if time.process_time() - before < 0.002:
            break
    return clock(run)


def apart(function, *args, one_core=False):
    """Call a function in a fresh process, on one core if asked; processes, threads and XLA inherit the affinity."""
    with _pinned(one_core), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


@contextmanager
def _pinned(one_core):
    if not one_core:
        yield
        return
    if not hasattr(os, "sched_setaffinity"):
        raise Missing("os.sched_setaffinity, to stay on one core")
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


@contextmanager
def changed(environ):
    """Set variables of the environment for processes that begin meanwhile, which else have no compilation cache."""
    names = {"DASK_NLSQ__COMPILATION_CACHE", "JAX_COMPILATION_CACHE_DIR", *environ}
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ.update(environ)
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextmanager
def cluster(workers):
    """Open a client of worker processes of one thread each, each bound to a core, as a job queue would bind it."""
    with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            env={"PJRT_NPROC": "1"},
        ) as local,
        Client(local) as client,
    ):
        own = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        for core, worker in zip(own, client.nthreads(), strict=False):
            client.run(_bind, core, workers=[worker])
        yield client


def _bind(core):
    """Bind all threads of this process to a core; threads that they start inherit it."""
    for thread in psutil.Process().threads():
        os.sched_setaffinity(thread.id, {core})


def peak():
    """Return the largest resident size that this process has had, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent held when it forked
        return 1024 * int(status.read_text().split("VmHWM:")[1].split()[0])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if platform.system() == "Darwin" else 1024)


def cores():
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def machine():
    """Return the machine and the versions in two lines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    memory = psutil.virtual_memory().total / 2**30
    system = f"{name}, {cores()} cores, {memory:.0f} GiB, {platform.system()} {platform.release()}"
    versions = ", ".join(f"{name} {version}" for name in PACKAGES if (version := _version(name)))
    return f"{system}, load {psutil.getloadavg()[0]:.1f} before\nPython {platform.python_version()}, {versions}"


def _version(name):
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
