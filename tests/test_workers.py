"""Workers that leave and join, differ from the driver, or run fits themselves; the data a sweep sends to them."""

import concurrent.futures
import logging
import os
import signal
import threading
import time
import warnings

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster, get_client, wait
from problems import STORES, decay, decay_rows

import dask_nlsq
from dask_nlsq import Model, NlsqError, NlsqWarning, SweepError
from dask_nlsq._kernel.block import Block
from dask_nlsq._kernel.request import Request
from dask_nlsq._model.objective import Objective
from dask_nlsq._sweep.driver import sweep_each
from dask_nlsq._sweep.executors import versions, waiting
from dask_nlsq._sweep.executors.distributed import Cluster
from dask_nlsq._sweep.groups import group
from dask_nlsq._sweep.payload import serialize

T, Y = decay_rows(8000)
HERE = {"n_workers": 0, "threads_per_worker": 1, "processes": False, "dashboard_address": None}


def fit(client=None, **options):
    """Fit the rows in chunks; what hangs is given up."""
    x, y = da.from_array(T, 1000), da.from_array(Y, 1000)
    options = {"tier": "chunked", "p0": [2.0, 1.0, 0.0], "progress": False} | options
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(dask_nlsq.fit, decay, x, y, client=client, **options).result(timeout=120)


def bits(result):
    return result.popt.tobytes() + result.pcov.tobytes()


@pytest.fixture(scope="module")
def quiet():
    return bits(fit())


@pytest.fixture(scope="module")
def alone():
    """A cluster of one process."""
    lost = {"distributed.deploy.lost-worker-timeout": "1h"}
    with dask.config.set(lost), LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster:
        yield cluster


def kill(cluster, client):
    os.kill(*client.run(os.getpid).values(), signal.SIGKILL)


def go_and_come(cluster, client):
    cluster.scale(0)
    while client.nthreads():
        time.sleep(0.05)
    threading.Timer(1.0, cluster.scale, [1]).start()


@pytest.mark.slow
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("cache", ["persist", "none"])
@pytest.mark.parametrize("event", [kill, go_and_come])
def test_the_last_worker_goes_and_another_comes(alone, quiet, event, cache):
    with Client(alone, set_as_default=False) as client:
        client.wait_for_workers(1, timeout=60)
        result = fit(client, cache=cache, callback=lambda now: event(alone, client) if now.nfev == 2 else None)
    assert bits(result) == quiet


def late(cluster):
    threading.Timer(0.5, cluster.scale, [1]).start()


def adaptive(cluster):
    cluster.adapt(minimum=0, maximum=1, interval="100ms")


@pytest.mark.parametrize("cache", ["persist", "none"])
@pytest.mark.parametrize("start", [late, adaptive])
def test_a_fit_waits_for_the_first_worker_and_says_so(quiet, start, cache, monkeypatch, caplog):
    monkeypatch.setattr(waiting, "INTERVAL", 0.02)
    with LocalCluster(**HERE) as cluster, Client(cluster, set_as_default=False) as client:
        start(cluster)
        assert bits(fit(client, cache=cache)) == quiet
    said = [r.message for r in caplog.records if r.name == "dask_nlsq" and r.levelno == logging.WARNING]
    assert "has no worker; the fit waits" in said[0] and "the fit goes on" in said[1]


def never(cluster, client):
    return None


def leave(cluster, client):
    cluster.scale(1)
    client.wait_for_workers(1)
    return lambda now: cluster.scale(0) if now.nfev == 2 else None


@pytest.mark.parametrize(
    ("event", "options"),
    [(never, {}), (never, {"tier": "streaming"}), (leave, {}), (leave, {"cache": "none"})],
)
def test_the_wait_for_workers_may_have_a_limit(event, options, monkeypatch):
    monkeypatch.setattr(waiting, "INTERVAL", 0.05)
    with LocalCluster(**HERE) as cluster, Client(cluster, set_as_default=False) as client:
        callback = event(cluster, client)
        with (
            dask.config.set({"nlsq.worker-timeout": "500ms"}),
            pytest.raises(SweepError, match=r"no worker for .*scale\(2\)"),
        ):
            fit(client, callback=callback, **options)


def test_workers_that_declare_no_gpu_are_no_workers(monkeypatch):
    monkeypatch.setattr(waiting, "INTERVAL", 0.05)
    with LocalCluster(**HERE) as cluster, Client(cluster, set_as_default=False) as client:
        cluster.scale(1)
        client.wait_for_workers(1)
        executor = Cluster(client)
        executor._resources = {"GPU": 1}  # as if one that declares some had gone
        with dask.config.set({"nlsq.worker-timeout": 0.2}), pytest.raises(SweepError, match="declares a GPU"):
            executor.wait_for_workers()


@pytest.mark.slow
def test_what_was_persisted_is_gone_with_a_restart(alone):
    frame = dd.from_pandas(pd.DataFrame({"t": T, "y": Y}), npartitions=4)
    with Client(alone) as client:
        kept = frame.persist()
        wait(kept)
        client.restart()
        for _ in range(2):
            with pytest.raises(SweepError, match=r"cancelled what the fit needs.*persist"):
                kept.nlsq.fit(decay, p0=[2.0, 1.0, 0.0], tier="chunked")
        assert frame.persist().nlsq.fit(decay, p0=[2.0, 1.0, 0.0], tier="chunked").success


def fit_here(seed):
    return bits(dd.from_pandas(pd.DataFrame({"t": T, "y": Y}), npartitions=8).nlsq.fit(decay, tier="chunked"))


def fit_in_tasks(seed):
    """Fit in two tasks of this task's own, which it waits for as Dask says."""
    client = get_client()
    futures = client.map(fit_here, range(2), pure=False)
    with waiting.seceded():
        return client.gather(futures)[0]


@pytest.mark.crossed(2)
@pytest.mark.parametrize("task", [fit_here, fit_in_tasks])
@pytest.mark.parametrize(("workers", "threads"), [(1, 1), (1, 2), (2, 1)])
def test_a_fit_inside_a_task_waits_for_no_thread_that_waits_for_it(task, workers, threads):
    options = HERE | {"n_workers": workers, "threads_per_worker": threads}
    with LocalCluster(**options) as cluster, Client(cluster) as client:
        futures = client.map(task, range(workers * threads + 1), pure=False)
        found = client.submit(list, futures).result(timeout=120)
    assert len(set(found)) == 1


@pytest.mark.slow
def test_a_task_in_a_process_fits_on_its_cluster(alone):
    with Client(alone) as client:
        before = client.submit(fit_here, 0, pure=False).result(timeout=120)
        assert before == fit_here(0)


class Seen:
    """Partitions that note in how many threads, and how many at a time, they are read."""

    def __init__(self):
        self.now, self.most, self.threads, self.lock = 0, 0, set(), threading.Lock()

    def __reduce__(self):
        return "SEEN"

    def __call__(self, part):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
            self.threads.add(threading.get_ident())
        time.sleep(0.01)
        with self.lock:
            self.now -= 1
        return part


SEEN = Seen()
POOL = concurrent.futures.ThreadPoolExecutor(3, "theirs")
SCHEDULERS = {
    "synchronous": ({"scheduler": "synchronous"}, 1),
    "single-threaded": ({"scheduler": "single-threaded"}, 1),
    "get": ({"scheduler": dask.get}, 1),
    "threads": ({"scheduler": "threads", "num_workers": 2}, 2),
    "pool": ({"pool": POOL}, 3),
    "executor": ({"scheduler": POOL}, 3),
}


@pytest.mark.crossed(3)
@pytest.mark.one_at_a_time
@pytest.mark.parametrize(
    ("shared", "tier", "cache"),
    [
        (False, "chunked", "none"),
        (False, "chunked", "auto"),
        (False, "standard", "auto"),
        (False, "streaming", "none"),
        (True, "auto", "auto"),
    ],
)
@pytest.mark.parametrize(("config", "most"), SCHEDULERS.values(), ids=SCHEDULERS)
def test_the_scheduler_of_dask_is_obeyed(config, most, shared, tier, cache):
    frame = dd.from_pandas(pd.DataFrame({"t": T, "y": Y}), npartitions=12)
    frame = frame.map_partitions(SEEN, meta=frame._meta)
    frame = frame.shuffle("t", shuffle_method="tasks", npartitions=12) if shared else frame
    SEEN.__init__()
    with dask.config.set(config):
        frame.nlsq.fit(decay, p0=[2.0, 1.0, 0.0], tier=tier, cache=cache)
    ahead = 0 if most == 1 or shared else most  # a thread of its own reads ahead for each
    assert SEEN.most <= most + ahead and (most > 1 or len(SEEN.threads) == 1)


@pytest.mark.parametrize("scheduler", ["processes", concurrent.futures.ProcessPoolExecutor])
def test_processes_are_a_matter_of_clusters(scheduler, quiet):
    scheduler = scheduler if isinstance(scheduler, str) else scheduler(1)
    with dask.config.set(scheduler=scheduler), pytest.warns(NlsqWarning, match="open a Client"):
        assert bits(fit()) == quiet


@pytest.mark.parametrize("scheduler", ["nobody", 3])
def test_a_scheduler_that_is_none_is_refused(scheduler):
    with dask.config.set(scheduler=scheduler), pytest.raises(NlsqError, match="scheduler of Dask's configuration"):
        fit()


def test_a_client_may_be_the_scheduler(quiet):
    with LocalCluster(**HERE | {"n_workers": 1}) as cluster, Client(cluster, set_as_default=False) as client:
        for scheduler in (client, client.get):
            with dask.config.set(scheduler=scheduler):
                result = fit()
            assert bits(result) == quiet and result.provenance["executor"] == "cluster"


OTHERS = {
    "Python": (("Python", "3.9"),),
    "jax": (("jax", "0.1"), ("jaxlib", "0.1")),
    "numpy": (("numpy", "1.26"),),
    "dask_nlsq": (("dask_nlsq", "0.0.9"),),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_workers_with_other_versions_are_refused(other):
    there = tuple((dict(versions.own()) | dict(other)).items())
    with pytest.raises(SweepError, match="environment of the driver") as caught:
        versions.check_survey({"tcp://one": (None, versions.own()), "tcp://other": (None, there)})
    here = ", ".join(f"{name} {dict(versions.own())[name]}" for name, _ in other)
    assert f"tcp://other has {', '.join(map(' '.join, other))}, and the driver {here}:" in str(caught.value)


def test_a_worker_without_the_package_is_refused():
    answers = {"tcp://one": ModuleNotFoundError("No module named 'dask_nlsq'")}
    with pytest.raises(SweepError, match=r"tcp://one cannot run tasks of dask_nlsq.*Install it there"):
        versions.check_survey(answers)


def pretend(numpy):
    """Let this process say that it has another NumPy."""
    found = tuple((dict(versions.own()) | {"numpy": numpy}).items())
    versions.own = lambda: found


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "between"])
def test_other_versions_are_noticed_on_workers_also_later(when):
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        if when == "before":
            client.run(pretend, "1.26")
        with pytest.raises(SweepError, match=r"worker tcp://.* has numpy 1.26, and the driver numpy 2"):
            fit(client, callback=lambda now: client.run(pretend, "1.26") if now.nfev == 2 else None)


def test_a_module_that_workers_lack_comes_with_a_remedy(alone, tmp_path, monkeypatch):
    text = "def line(t, a, b):\n    return a + b * t\n\ndef same(part):\n    return part\n"
    (tmp_path / "only_here.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    import only_here

    frame = dd.from_pandas(pd.DataFrame({"t": T, "y": Y}), npartitions=4)
    with Client(alone, set_as_default=False) as client:
        options = {"client": client, "tier": "chunked", "p0": [2.0, 1.0]}
        with pytest.raises(SweepError, match=r"upload_file\('only_here.py'\).*register_pickle_by_value\(only_here\)"):
            frame.nlsq.fit(only_here.line, **options)
        mapped = frame.map_partitions(only_here.same, meta=frame._meta)
        with pytest.raises(SweepError, match=r"upload_file\('only_here.py'\)"):
            mapped.nlsq.fit(lambda t, a, b: a + b * t, **options)
        client.upload_file(str(tmp_path / "only_here.py"))
        assert frame.nlsq.fit(only_here.line, **options).success


class Described:
    """A partition with a description as long as that of a Parquet file."""

    def __init__(self, number):
        self.text = f"{number:08}" * 100

    def load(self):
        t, y = decay_rows(10, seed=int(self.text[:8]))
        return Block((t,), y)


@pytest.fixture
def sent(monkeypatch):
    """A client, and a function that returns the bytes that it has sent since the last call."""
    with LocalCluster(**HERE | {"n_workers": 1}, protocol="tcp://") as cluster, Client(cluster) as client:
        comm, counts = client.scheduler_comm.comm, []
        write = comm.write

        async def counted(*args, **options):
            counts.append(await write(*args, **options))
            return counts[-1]

        def since():
            time.sleep(0.05)  # what is given up is told in a while
            total = sum(counts)
            counts.clear()
            return total

        monkeypatch.setattr(comm, "write", counted)
        yield client, since


def test_partitions_are_described_once(sent):
    client, since = sent
    objective = serialize(Objective(Model.from_function(decay).bind(["t"]), ("t", "y")))
    executor, told = Cluster(client), {}
    for count in (10, 500):
        groups = executor.describe(group([Described(i) for i in range(count)], 0.0, 2))
        told[count] = []
        for _ in range(3):
            sweep_each(executor, groups, objective, [Request(np.ones(3))])
            told[count].append(since())
    assert told[500][0] > 500 * 800
    assert max(told[500][1:]) < 1.2 * min(told[10][1:]) < 20_000


@pytest.mark.slow
def test_a_fit_that_holds_nothing_describes_its_files_once(sent, tmp_path):
    client, since = sent
    told = []
    for count in (8, 160):
        (tmp_path / str(count)).mkdir()
        frame = STORES["parquet"](T, Y, count, tmp_path / str(count))
        seen = []
        frame.nlsq.fit(
            decay, client=client, tier="chunked", cache="none", callback=lambda _, seen=seen: seen.append(since())
        )
        told.append(max(seen[1:]))
    assert told[1] < 1.2 * told[0]


@pytest.mark.slow
def test_descriptions_survive_their_holder(quiet):
    with LocalCluster(**HERE | {"n_workers": 2}) as cluster, Client(cluster, set_as_default=False) as client:

        def lose(now):
            if now.nfev == 2:
                client.retire_workers([next(iter(client.nthreads()))], close_workers=True)

        with warnings.catch_warnings():
            assert bits(fit(client, cache="none", callback=lose)) == quiet
