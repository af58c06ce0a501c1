"""Fixtures for all tests: rows with a known result, in every container that a user may have."""

import collections
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# pytest's workers fill the cores: a BLAS with threads of its own makes each small product wait for a core.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Bytecode is kept, whatever the environment says: workers of pytest and of clusters import the same again and again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# What one process has compiled no other compiles again: workers of clusters and of pytest fit the same few models.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# What schedulers, nannies and workers look at all the time takes a tenth of a core of each cluster that waits.
os.environ.setdefault("DASK_DISTRIBUTED__WORKER__PROFILE__ENABLED", "False")
os.environ.setdefault("DASK_DISTRIBUTED__ADMIN__TICK__INTERVAL", "1s")
os.environ.setdefault("DASK_DISTRIBUTED__ADMIN__SYSTEM_MONITOR__INTERVAL", "10s")

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster


@pytest.fixture(scope="session", autouse=True)
def scratch(tmp_path_factory):
    """The folder for what Dask's shuffles and workers spill."""
    with dask.config.set({"temporary_directory": str(tmp_path_factory.mktemp("dask"))}):
        yield


@pytest.fixture(scope="session")
def cluster():
    """Two worker processes of one thread each."""
    memory = {"pause": False, "terminate": False, "monitor-interval": "1s"}
    with (
        dask.config.set({f"distributed.worker.memory.{name}": value for name, value in memory.items()}),
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", env={"PJRT_NPROC": "1"}) as cluster,
    ):
        yield cluster


@pytest.fixture
def client(cluster):
    """A client whose workers do the work, though the rows are few enough to be gathered."""
    with Client(cluster, set_as_default=True) as client, dask.config.set({"nlsq.tier": "chunked"}):
        yield client


@pytest.fixture
def rng():
    return np.random.default_rng(2026)


@pytest.hookimpl(tryfirst=True)  # before those marked slow are left out
def pytest_collection_modifyitems(config, items):
    """Leave out, of tests marked `one_at_a_time`, all cases that differ from the first in more than one argument.

    Mark slow, of tests marked `crossed(keep)`, all cases after the first `keep`.
    """
    first = {}
    left_out = [
        item
        for item in items
        if item.get_closest_marker("one_at_a_time")
        and arguments_changed(item, first.setdefault(item.nodeid.partition("[")[0], item)) > 1
    ]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in set(left_out)]
    seen = collections.Counter()
    for item in items:
        if (crossed := item.get_closest_marker("crossed")) and not item.get_closest_marker("slow"):
            test = item.nodeid.partition("[")[0]
            seen[test] += 1
            if seen[test] > (crossed.args[0] if crossed.args else 1):
                item.add_marker("slow")


def arguments_changed(item, first):
    """Count the arguments in which a case differs from the first; those of one table count once."""
    table = {name: marker.args[0] for marker in item.iter_markers("parametrize") for name in names(marker.args[0])}
    before = first.callspec.params
    return len(
        {str(table.get(name, name)) for name, value in item.callspec.params.items() if value is not before[name]}
    )


def names(argnames):
    return [name.strip() for name in argnames.split(",")] if isinstance(argnames, str) else argnames
