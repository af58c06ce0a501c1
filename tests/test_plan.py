"""The plan: tables for the tier and the workers, limits, precedence of settings, and fits that follow their plan."""

import dataclasses
import json
import threading
import time
import uuid
from pathlib import Path
from types import SimpleNamespace

import dask
import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from distributed import Client, LocalCluster
from problems import decay, decay_rows

import dask_nlsq
from dask_nlsq import (
    DatasetSizeTier,
    MemoryTier,
    NlsqError,
    OptimizationGoal,
    Plan,
    PlanError,
    WorkflowConfig,
    WorkflowTier,
    auto_select_workflow,
    get_memory_tier,
)
from dask_nlsq._plan.limits import memory_limit
from dask_nlsq._plan.memory import IMPORTS, SHARE, takes_several, tasks_that_fit, workers_that_fit
from dask_nlsq._plan.plan import PlanInputs, make_plan, with_speeds
from dask_nlsq._plan.tiers import RULES
from dask_nlsq._plan.workflow import PRESETS, merge_config
from dask_nlsq._sweep.groups import group
from dask_nlsq._system import once_a_second

GB, MB, MIB = 10**9, 10**6, 2**20

# --- tables -----------------------------------------------------------------------------------------------------------

SELECTION = {  # rows: the tiers for 8, 32, 100 and 200 GB, and for 200 GB under MEMORY_EFFICIENT
    9_999: "S S S S S",
    10_000: "C S S S C",
    9_999_999: "C S S S C",
    10_000_000: "T T C C T",
    99_999_999: "T T C C T",
    100_000_000: "K K K K K",
    10**12: "K K K K K",
}
LETTERS = dict(zip("SCTK", WorkflowTier, strict=True))


@pytest.mark.parametrize("rows", SELECTION)
def test_selection(rows):
    memories = [(8, None), (32, None), (100, None), (200, None), (200, "memory_efficient")]
    chosen = [auto_select_workflow(rows, 3, memory=gb, goal=goal).tier for gb, goal in memories]
    assert chosen == [LETTERS[letter] for letter in SELECTION[rows].split()]


@pytest.mark.parametrize(
    ("gb", "tier"),
    [(0, "LOW"), (15.9, "LOW"), (16, "MEDIUM"), (64, "MEDIUM"), (64.1, "HIGH"), (128, "HIGH"), (129, "VERY_HIGH")],
)
def test_memory_tiers(gb, tier):
    assert get_memory_tier(gb) is MemoryTier[tier]


def test_tolerances_stay_far_below_a_standard_error():
    """A step of e standard errors changes the cost of n rows by e²/n of itself."""
    for size in DatasetSizeTier:
        rows = min(size.max_points, 1e9)
        assert np.sqrt(size.tolerance * rows) <= 0.01 + 1e-12
        assert DatasetSizeTier.of(rows - 1) is size or size is DatasetSizeTier.MASSIVE


WORKERS = [  # cores, available, a task, partitions: workers
    (8, 16 * GB, 100 * MB, 1000, 8),
    (8, 16 * GB, 2 * GB, 1000, 6),
    (8, 4 * GB, 500 * MB, 1000, 6),
    (16, 8 * GB, 500 * MB, 1000, 12),
    (4, 32 * GB, 2 * GB, 1000, 4),
    (8, 16 * GB, 100 * MB, 3, 3),
    (8, 1 * GB, 2 * GB, 1000, 1),
]


@pytest.mark.parametrize(("cores", "available", "task", "partitions", "workers"), WORKERS)
def test_workers(cores, available, task, partitions, workers):
    assert workers_that_fit(cores, available, task, partitions) == workers


AMORSIZE = [  # GB of RAM, cores, GB a task, workers: a table of another system, where half of the RAM is available
    (16, 8, 0.1, 8),
    (16, 8, 1.0, 8),
    (16, 8, 2.0, 4),
    (8, 16, 0.5, 8),
    (4, 8, 0.5, 4),
    (32, 4, 2.0, 4),
]


@pytest.mark.parametrize(("ram", "cores", "task", "workers"), AMORSIZE)
def test_workers_of_another_table(ram, cores, task, workers):
    """With available = RAM / 2 and all of it used, the same formula gives that table."""
    assert workers_that_fit(cores, ram / 2 * GB / SHARE * (1 + 1e-12), task * GB, 10**6) == workers


@pytest.mark.parametrize(
    ("threads", "limit", "task", "fit"),
    [(4, 4 * GB, 100 * MB, 4), (4, 2 * GB, 500 * MB, 2), (4, 2 * GB, 400 * MB, 3), (4, 1 * GB, 500 * MB, 0)],
)
def test_tasks_that_fit(threads, limit, task, fit):
    assert tasks_that_fit(threads, limit, task, IMPORTS) == fit


@pytest.mark.parametrize("partitions", [1, 8, 9, 100, 999])
@pytest.mark.parametrize("nbytes", [MIB, 64 * MIB, 65 * MIB])
@pytest.mark.parametrize("per_thread", [1, 4])
def test_reading_ahead_is_planned_where_groups_do_it(partitions, nbytes, per_thread):
    longest = max(len(g.partitions) for g in group(range(partitions), partitions * nbytes, 2, per_thread))
    assert takes_several(partitions, nbytes, 2, per_thread) == (longest > 1)


# --- limits -----------------------------------------------------------------------------------------------------------

GROUPS = {
    "v2": ("0::/job/step\n", {"job/memory.max": "2000000000", "job/step/memory.max": "max"}, "cgroup v2"),
    "v2, the inner one": (
        "0::/job/step\n",
        {"job/memory.max": "max", "job/step/memory.max": "2000000000"},
        "cgroup v2",
    ),
    "v2, a namespace": ("0::/\n", {"memory.max": "2000000000"}, "cgroup v2"),
    "v2, not in ASCII": ("0::/jöb\n", {"jöb/memory.max": "2000000000"}, "cgroup v2"),
    "v1": ("7:memory:/job\n0::/\n", {"memory/job/memory.limit_in_bytes": "2000000000"}, "cgroup v1"),
    "v1, from around": (
        "3:cpu,cpuacct:/job\n7:memory:/job\n",
        {
            "memory/memory.limit_in_bytes": "2000000000",
            "memory/job/memory.limit_in_bytes": str(2**63 - 4096),
        },
        "cgroup v1",
    ),
}


@pytest.mark.parametrize(("listing", "files", "source"), GROUPS.values(), ids=GROUPS)
def test_the_limit_of_a_control_group_counts(tmp_path, monkeypatch, listing, files, source):
    tree = {"proc/self/cgroup": listing} | {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    for name, text in tree.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    found = memory_limit(tmp_path)
    assert (found.limit, found.source) == (2_000_000_000, source)
    monkeypatch.setattr("dask_nlsq._fit.plan_inputs.memory_limit", lambda: memory_limit(tmp_path))
    t, y = decay_rows(1000)
    assert f"of 1.86 GiB a process ({source})" in str(dask_nlsq.plan(decay, t, y))


@pytest.mark.parametrize("listing", [None, "0::/job\n", "nonsense:memory:/\n"])
def test_without_a_limit_it_is_the_machine(tmp_path, listing):
    if listing is not None:
        (tmp_path / "proc" / "self").mkdir(parents=True)
        (tmp_path / "proc" / "self" / "cgroup").write_text(listing)
    assert memory_limit(tmp_path).source == "physical memory"


@pytest.mark.parametrize(("seconds", "calls"), [((0.0, 0.2, 0.9), 1), ((0.9, 1.0, 1.1), 2), ((0.0, 1.0, 3.5), 3)])
def test_the_system_is_asked_once_a_second(monkeypatch, seconds, calls):
    asked = []
    ask = once_a_second(lambda what: asked.append(what) or len(asked))
    for second in seconds:
        monkeypatch.setattr("dask_nlsq._system.throttle.time", SimpleNamespace(monotonic=lambda now=second: now))
        assert ask("memory") == len(asked)
    assert len(asked) == calls


# --- decisions --------------------------------------------------------------------------------------------------------

FACTS = PlanInputs(
    model="decay(a, b)",
    n_params=2,
    kind="Parquet",
    reader="Parquet",
    rows=50e6,
    estimated=False,
    columns=2,
    row_bytes=16,
    partitions=50,
    partition_rows=1e6,
    encoded=8e8,
    encoded_partition=16e6,
    threads=4,
    cores=4,
    limit=32 * GB,
    limit_source="physical memory",
    held=400 * MB,
    here=30 * GB,
)


def decide(config=None, **inputs):
    return make_plan(dataclasses.replace(FACTS, **inputs), config or WorkflowConfig())


@pytest.mark.parametrize(
    ("left", "says"),
    [(None, False), (101.0, False), (99.0, True), (0.0, True)],
)
def test_a_job_that_ends_before_the_fit_is_said(left, says):
    speeds = {"rows_per_second": 125_000.0, "compile_seconds": 0.0, "time_left": left}  # four threads, two sweeps
    plan = decide(WorkflowConfig(tier="chunked"), **speeds)
    assert plan.seconds == pytest.approx(200.0)
    again = with_speeds(plan, dataclasses.replace(plan.inputs, rows_per_second=250_000.0))
    assert again.seconds == pytest.approx(100.0)
    said = [advice for advice in again.advice if "job ends in" in advice]
    assert len(said) == says and all("100.0" in text and "checkpoint=" in text for text in said)
    assert not says or said[0] in str(again)


def test_a_plan_of_before_jobs_were_known_is_read():
    values = decide().to_dict()
    del values["facts"]["time_left"]
    assert Plan.from_dict(values) == decide()


FEW = {"rows": 5e6, "partitions": 5, "encoded": 8e7}
WORKERS_OF_ONE_GB = {"rows": 6e7, "partitions": 600, "partition_rows": 1e5, "encoded_partition": 1.6e6} | {
    "cluster": True,
    "processes": 1,
    "limit": GB,
    "held": IMPORTS,
}
DECISIONS = [
    ({}, {}, ("CHUNKED", "persist", 4, 1)),
    ({}, {"tier": "streaming"}, ("STREAMING", "none", 4, 2.32)),
    (FEW, {"precision": 0.01}, ("STREAMING", "none", 4, 3)),
    ({"rows": 5e6, "partitions": 5}, {}, ("STANDARD", "persist", 4, 1)),
    ({"rows": 5e6, "partitions": 5}, {"cache": "none"}, ("CHUNKED", "none", 4, 3)),
    (FEW | {"here": 205 * MB, "limit": GB}, {}, ("CHUNKED", "none", 1, 3)),
    (FEW | {"here": 280 * MB, "limit": GB}, {}, ("CHUNKED", "persist", 1, 1)),
    ({"here": GB, "limit": GB}, {}, ("STREAMING", "none", 4, 2.32)),
    ({"here": GB, "limit": GB, "squares": False}, {}, ("CHUNKED", "none", 4, 2.32)),
    ({"here": 310 * MB, "limit": GB}, {}, ("STREAMING", "none", 2, 2.32)),
    ({}, {"cache": "none"}, ("STREAMING", "none", 4, 2.32)),
    ({"rows": 5e9}, {"checkpoint": "run"}, ("STREAMING_CHECKPOINT", "none", 4, 2.32)),
    ({"rows": 5e9}, {}, ("STREAMING", "none", 4, 2.32)),
    ({}, {"goal": "memory_efficient"}, ("STREAMING", "none", 4, 2.32)),
    ({"rows": None, "partition_rows": None}, {}, ("CHUNKED", "none", 4, 2.32)),
    ({"shared": True}, {}, ("CHUNKED", "persist", 4, 1)),
    ({"cluster": True, "processes": 3, "limit": 2 * GB, "held": IMPORTS}, {}, ("CHUNKED", "persist", 4, 1)),
    ({"rows": 500.0, "partitions": 1, "partition_rows": 500}, {}, ("STANDARD", "persist", 4, 1)),
    (FEW | {"here": 205 * MB, "limit": GB}, {"tier": "chunked"}, ("CHUNKED", "none", 1, 3)),
    (FEW | {"reader": "memory", "here": 0, "limit": 300 * MB}, {"tier": "standard"}, ("STANDARD", "persist", 1, 1)),
    (WORKERS_OF_ONE_GB, {"tier": "standard"}, ("STANDARD", "persist", 4, 1)),
    (WORKERS_OF_ONE_GB | {"reader": "sent", "rows": 5e8}, {}, ("STREAMING", "none", 4, 2.027)),
    ({"rows": 5e5, "estimated": True}, {"tier": "chunked"}, ("CHUNKED", "persist", 4, 1.32)),
]


@pytest.mark.parametrize(("inputs", "config", "expected"), DECISIONS)
def test_decisions(inputs, config, expected):
    plan = decide(WorkflowConfig(**config), **inputs)
    assert (plan.tier.name, plan.cache, plan.at_a_time, plan.reads) == expected
    assert Plan.from_dict(json.loads(json.dumps(plan.to_dict()))) == plan
    assert set(plan.reasons) >= {"tier", "goal", "workers", "cache", "reads"}


def test_seconds_change_no_decision():
    slow, fast = (decide(rows_per_second=s, compile_seconds=1.0, bytes_per_second=s) for s in (1e4, 1e9))
    same = {"sweep_seconds", "seconds", "inputs"}
    assert {k: v for k, v in vars(slow).items() if k not in same} == {
        k: v for k, v in vars(fast).items() if k not in same
    }
    assert slow.seconds > 1000 * fast.sweep_seconds
    assert (slow.n_workers, decide(rows_per_second=1e12).n_workers) == (4, 1)


REFUSED = [
    ({"tier": "streaming_checkpoint"}, {}, NlsqError, "needs checkpoint="),
    ({"tier": "streaming"}, {"shared": True}, NlsqError, "share work"),
    ({"tier": "chunked", "precision": 0.1}, {}, NlsqError, "Leave tier out"),
    ({"tier": "standard", "cache": "none"}, {}, NlsqError, "say one of them"),
    ({"tier": "standard"}, {"here": GB}, PlanError, r"2\.24 GiB.*762\.94 MiB.*chunked"),
    ({}, {"limit": GB, "here": 500 * MB, "partition_rows": 50e6, "partitions": 1}, PlanError, "partitions of at most"),
    ({}, {"limit": 410 * MB, "here": 9 * MB, "rows": 2e7}, PlanError, "more memory"),
]


@pytest.mark.parametrize(("config", "inputs", "error", "match"), REFUSED)
def test_refusals(config, inputs, error, match):
    with pytest.raises(error, match=match):
        decide(WorkflowConfig(**config), **inputs)


def test_a_refused_partition_is_cut_as_the_remedy_says():
    def cut(rows):
        data = {"partition_rows": rows, "encoded_partition": 16 * rows, "partitions": -(-50_000_000 // rows)}
        return decide(limit=GB, here=500 * MB, **data)

    with pytest.raises(MemoryError) as caught:
        cut(50_000_000)
    assert cut(int(str(caught.value).split("at most ")[1].split(" rows")[0].replace(",", ""))).at_a_time >= 1


# --- settings ---------------------------------------------------------------------------------------------------------


def test_an_argument_counts_before_config_before_workflow_before_dask():
    with dask.config.set({"nlsq.max-nfev": 4, "nlsq.cache": "none", "nlsq.goal": "fast", "nlsq.ftol": 1e-3}):
        found = merge_config(WorkflowConfig(max_nfev=1), {"max_nfev": 2, "cache": "persist"}, "quality")
    assert (found.max_nfev, found.cache, found.goal, found.ftol) == (1, "persist", OptimizationGoal.QUALITY, 1e-3)


def test_presets_are_settings():
    assert PRESETS.keys() >= {"standard", "fast", "robust", "quality", "large_robust", "streaming", "streaming_large"}
    assert PRESETS.keys() >= {"memory_efficient", "hpc_distributed", "global", "spectroscopy", "timeseries"}
    for name, config in PRESETS.items():
        assert WorkflowConfig.from_preset(name) == WorkflowConfig.from_dict(config.to_dict())


@pytest.mark.slow
def test_numbers_of_numpy_are_numbers():
    t, y = decay_rows(200)
    options = {"p0": [2, 1, 0.3], "bounds": ([0, 0, -2], [9, 9, 2]), "n_starts": 4, "seed": 3, "max_nfev": 50}
    one = dask_nlsq.fit(decay, t, y, **options)
    two = dask_nlsq.fit(decay, t, y, **{name: np.array(value) for name, value in options.items()})
    assert (one.popt == two.popt).all() and one.notes == two.notes
    assert WorkflowConfig(time_limit=np.float32(0.5)) == WorkflowConfig(time_limit=0.5)
    dask_nlsq.fit(decay, t, y, p0=[2, 1, 0.3], precision=np.float32(0.5), client=False)


UNKNOWN = [
    (lambda: WorkflowConfig(tier="cnked"), "chunked"),
    (lambda: WorkflowConfig.from_dict({"teir": 1}), "teir"),
    (lambda: WorkflowConfig.from_preset("quick"), "fast"),
    (lambda: WorkflowConfig(cache="disk"), "persist"),
    (lambda: WorkflowConfig(memory_limit="much"), "4 GB"),
    (lambda: WorkflowConfig(memory_limit=[1]), "4 GB"),
    (lambda: WorkflowConfig(max_nfev=0), "max_nfev is 0; 1 is the least"),
    (lambda: WorkflowConfig(max_nfev="5"), "max_nfev is '5'; a whole number"),
    (lambda: WorkflowConfig(n_starts=4.5), "n_starts is 4.5; a whole number"),
    (lambda: WorkflowConfig(time_limit="soon"), "time_limit is 'soon'; a number"),
    (lambda: WorkflowConfig(ftol=np.nan), "ftol is nan; a number"),
    (lambda: dask_nlsq.fit(decay, [1.0], [1.0], config=3), "mapping"),
    (lambda: dask_nlsq.fit(decay, [1.0], [1.0], workflow="hpc"), "have none on at least one side"),
    (lambda: dask_nlsq.fit(decay, [1.0], [1.0], cache="disk"), "persist"),
    (lambda: get_memory_tier(-1), "negative"),
    (lambda: auto_select_workflow(-1, 2), "negative"),
    (lambda: dask_nlsq.estimate_memory(10, 2, reader="tape"), "Parquet"),
]


@pytest.mark.parametrize(("call", "match"), UNKNOWN)
def test_what_is_not_known_is_refused(call, match):
    with pytest.raises(NlsqError, match=match):
        call()


# --- what fits do -----------------------------------------------------------------------------------------------------


class Counted:
    """Reads a partition of some rows, and notes how many are being read at a time."""

    lock = threading.Lock()
    now = most = 0

    def __init__(self, pieces):
        self.pieces = pieces

    def __dask_tokenize__(self):
        return uuid.uuid4().hex

    def __call__(self, i):
        with self.lock:
            Counted.now += 1
            Counted.most = max(Counted.most, Counted.now)
        time.sleep(0.02)
        with self.lock:
            Counted.now -= 1
        t, y = decay_rows(4000)
        return pd.DataFrame({"t": t[i :: self.pieces], "y": y[i :: self.pieces]})


def counted(pieces):
    return dd.from_map(Counted(pieces), range(pieces), meta=pd.DataFrame({"t": [0.0], "y": [0.0]}))


@pytest.mark.crossed
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("where", ["threads", "workers"])
@pytest.mark.parametrize("most", [2, 3])
def test_few_tasks_run_at_a_time_where_memory_says_so(where, most, monkeypatch):
    monkeypatch.setattr("dask_nlsq._plan.plan.tasks_that_fit", lambda threads, *_: min(threads, most))
    frame, how = counted(12), {"p0": [2, 1, 0.3], "tier": "chunked", "cache": "none", "callback": forget}
    if where == "threads":
        with dask.config.set(num_workers=4):
            dask_nlsq.fit(decay, data=frame, **how)
    else:
        options = {"n_workers": 1, "threads_per_worker": 4, "processes": False, "dashboard_address": ":0"}
        with LocalCluster(**options) as cluster, Client(cluster):
            dask_nlsq.fit(decay, data=frame, **how)
    assert Counted.most == most


def forget(now):
    """Forget what the sample has shown, for which nobody knew the size of a partition."""
    if now.nfev == 1:
        Counted.most = 0


T2, Y2 = decay_rows(2_000_000)


@pytest.fixture(scope="module")
def two_million(tmp_path_factory):
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pd.DataFrame({"t": T2, "y": Y2}).to_parquet(path, row_group_size=100_000)
    return str(path)


@pytest.mark.slow
@pytest.mark.parametrize("goal", ["robust", "fast", "quality", "memory_efficient"])
def test_all_tiers_give_the_same_answer(two_million, goal, client):
    ways = [{"tier": tier, "client": c} for tier in ("standard", "chunked") for c in (None, False)]
    fits = [dask_nlsq.fit(decay, data=two_million, goal=goal, **way) for way in ways]
    assert [f.plan.tier.value for f in fits] == ["standard", "standard", "chunked", "chunked"]
    assert [f.provenance["executor"] for f in fits] == ["threads", "serial", "cluster", "serial"]
    reference = dask_nlsq.fit(decay, data=two_million, goal="quality")
    away = {"robust": 1e-4, "fast": 0.1, "quality": 1e-6, "memory_efficient": 1e-4}[goal]
    for one in fits:
        assert (abs(one.popt - reference.popt) < away * reference.stderr).all()
        if goal == "quality":
            np.testing.assert_allclose(one.popt, reference.popt, rtol=1e-8)
            assert one.notes[-1].startswith("8 of 8 perturbed starts")


def test_standard_reads_once_and_chunked_as_often_as_it_sweeps():
    t, y = decay_rows(4000)
    reads = []
    frame = dd.from_map(
        lambda i: (reads.append(i), pd.DataFrame({"t": t[i::4], "y": y[i::4]}))[1],
        range(4),
        meta=pd.DataFrame({"t": [0.0], "y": [0.0]}),
    )
    for tier, cache, expected in (("standard", None, lambda n: 4), ("chunked", "none", lambda n: 4 * n)):
        reads.clear()
        result = dask_nlsq.fit(decay, data=frame, tier=tier, cache=cache, p0=[2, 1, 0.3], client=False)
        assert len(reads) - 4 == expected(result.nsweeps)  # four for the sample, which says how many rows there are
        assert result.plan.measured.sweeps == result.nsweeps


@pytest.mark.slow
def test_quality_finds_a_lower_minimum(monkeypatch):
    monkeypatch.setattr("dask_nlsq._fit.api.restart", lambda problem, solver, state, *_: (state, [], ()))
    x = np.linspace(0, 20, 400)
    y = np.sin(2.0 * x) + 0.05 * np.cos(31 * x)
    stuck, freed = (dask_nlsq.fit(wave, x, y, p0=[1.0, 2.4], goal=goal) for goal in ("robust", "quality"))
    assert freed.cost < 0.5 * stuck.cost and "lower minimum" in freed.notes[-1]
    assert abs(freed.params["w"] - 2.0) < 0.01 < abs(stuck.params["w"] - 2.0)


def wave(x, a, w):
    return a * jnp.sin(w * x)


def test_a_plan_of_an_unknown_number_of_rows_is_an_estimate():
    plan = counted(8).nlsq.plan(decay)
    assert plan.inputs.estimated and plan.inputs.rows == 4000
    assert "4,000 rows (estimated) in 8 partitions" in str(plan)
    assert "<table>" in plan._repr_html_() and "dry run" in plan.explain()


def test_a_partition_that_does_not_fit_is_refused_unread(tmp_path, monkeypatch):
    path = str(tmp_path / "rows.parquet")
    pd.DataFrame({"t": np.arange(2e6), "y": np.arange(2e6)}).to_parquet(path)
    monkeypatch.setattr("dask_nlsq._sources.parquet.ParquetPartition.read", lambda *_: pytest.fail("it was read"))
    limit = 30_000_000 + int(1.25 * _rss())
    for call in (dask_nlsq.fit, dask_nlsq.plan):
        with pytest.raises(PlanError, match=r"partitions of at most|more memory"):
            call(decay, data=path, memory_limit=limit)


@pytest.mark.parametrize("limit", ["200 MB", 200_000_000])
def test_rows_that_are_here_are_not_refused(limit):
    t, y = decay_rows(1000)
    assert dask_nlsq.fit(decay, t, y, p0=[2, 1, 0.3], memory_limit=limit).plan.tier is WorkflowTier.STANDARD


def test_filters_change_no_size(tmp_path):
    """What is read to be filtered takes its memory, and the plan is that of the fit."""
    path = str(tmp_path / "rows.parquet")
    t, y = decay_rows(400_000)
    pd.DataFrame({"t": t, "y": y, "kept": np.arange(t.size) % 1000 == 0}).to_parquet(path, row_group_size=100_000)
    how = {"data": path, "filters": [("kept", "==", True)], "p0": [2, 1, 0.3]}
    planned, done = dask_nlsq.plan(decay, **how), dask_nlsq.fit(decay, **how).plan
    assert planned.task.encoded == done.task.encoded < 10e6
    assert done.inputs.partition_rows == planned.inputs.partition_rows == 400_000


def test_a_second_look_never_ends_higher(monkeypatch):
    t, y = decay_rows(2000)
    plain = dask_nlsq.fit(decay, t, y, p0=[2, 1, 0.3])
    for theta in ([1e3, 50.0, 9.0], [np.inf, 1.0, 1.0]):
        found = lambda *_, start=theta: (np.array(start), "")  # noqa: E731
        monkeypatch.setattr("dask_nlsq._fit.checks.perturbed_restarts.look_again", found)
        tried = dask_nlsq.fit(decay, t, y, p0=[2, 1, 0.3], goal="quality")
        np.testing.assert_allclose(tried.popt, plain.popt, rtol=1e-8)
        assert tried.success and tried.nsweeps == len(tried.history)


def test_workers_without_a_limit_share_that_of_their_host():
    t, y = decay_rows(1000)
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "memory_limit": 0}
    with LocalCluster(**options, dashboard_address=":0") as cluster, Client(cluster):
        inputs = dask_nlsq.plan(decay, t, y).inputs
    assert (inputs.processes, inputs.limit) == (2, memory_limit().limit // 2)


def test_no_rows_at_all(tmp_path):
    import zarr

    group = zarr.create_group(tmp_path / "none.zarr")
    for name in "ty":
        group.create_array(name, shape=(0,), chunks=(10,), dtype="f8")
    for call in (dask_nlsq.fit, dask_nlsq.plan):
        with pytest.raises(dask_nlsq.DataError, match="no rows"):
            call(decay, data=str(tmp_path / "none.zarr"))


def _rss():
    import psutil

    return psutil.Process().memory_info().rss


def test_figures_are_drawn_from_the_tables():
    tiers, memory = dask_nlsq.plot_tiers(), dask_nlsq.plot_memory(threads=2)
    said = " ".join(text.get_text() for text in tiers.texts)
    assert {tier.name.replace("_", "\n") for tier in WorkflowTier} <= {text.get_text() for text in tiers.texts}
    assert "below 10,000" in said and "from 100,000,000" in said
    standard, chunked = memory.get_lines()[:2]
    assert standard.get_ydata()[-1] == pytest.approx(48) and chunked.get_ydata()[-1] < 0.2


# --- the documents ----------------------------------------------------------------------------------------------------

DOCUMENT = Path(__file__).parents[1] / "docs" / "plan.md"


def selection_table():
    """Return the table of tiers as the documents print it, from the one that decides."""
    head = ["rows", *(f"{tier} ({tier.description})" for tier in MemoryTier)]
    body = [[f"< {below:,.0f}" if below < 1e12 else "more", *map(str, tiers)] for below, tiers in RULES]
    return markdown([head, *body])


def worker_table():
    """Return some counts of workers as the documents print them."""
    head = ["cores", "available", "a task", "partitions", "workers"]
    body = [
        [
            str(cores),
            f"{available / GB:g} GB",
            f"{task / GB:g} GB",
            f"{n:,}",
            str(workers_that_fit(cores, available, task, n)),
        ]
        for cores, available, task, n, _ in WORKERS
    ]
    return markdown([head, *body])


def markdown(rows):
    head, *body = (f"| {' | '.join(row)} |" for row in rows)
    return "\n".join([head, f"|{'---|' * len(rows[0])}", *body])


def pages():
    """Return the pages of four plans: of a Parquet table on a laptop of 16 GB and 8 cores."""
    laptop = {"threads": 8, "cores": 8, "limit": 16 * GB, "held": 450 * MB, "here": 12 * GB}
    speeds = {
        "compile_seconds": 0.4,
        "rows_per_second": 1e8,
        "bytes_per_second": 1e9,
        "model": "decay(amplitude, rate)",
    }
    for rows in (1e3, 1e6, 5e7, 1e9):
        partitions = max(1, int(rows / 1e6))
        data = {"rows": rows, "partitions": partitions, "partition_rows": rows / partitions}
        data |= {"encoded": 16 * rows, "encoded_partition": min(16 * rows, 2 * 2**20)}  # through a buffer a column
        yield str(decide(**laptop, **speeds, **data))


@pytest.mark.parametrize("text", [selection_table, worker_table, *pages()])
def test_the_documents_print_the_same(text):
    assert (text if isinstance(text, str) else text()) in DOCUMENT.read_text("utf-8")
