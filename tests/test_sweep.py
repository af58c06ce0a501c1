"""Every executor gives the bits of a plain loop; a model is traced once per process; failures name their place."""

import dataclasses
import gc
import importlib
import itertools
import json
import pickle
import queue
import subprocess
import sys
import threading
import time
import types
import weakref

import cloudpickle
import dask
import jax.numpy as jnp
import numpy as np
import pytest
from distributed import Client, LocalCluster, Scheduler, SpecCluster, Worker, wait
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import STORES, decay, decay_rows

import dask_nlsq
from dask_nlsq import DataError, Model, ModelNotPicklable, NlsqError
from dask_nlsq._kernel.block import SLABS, Block
from dask_nlsq._kernel.reduction import Reduction, fold, merge
from dask_nlsq._kernel.request import Request, Whitening
from dask_nlsq._model.objective import Objective
from dask_nlsq._sources.columns import Columns
from dask_nlsq._sources.open import open_source
from dask_nlsq._sweep.driver import PartitionDigests, sweep_each
from dask_nlsq._sweep.executors.distributed import Cluster
from dask_nlsq._sweep.executors.local import Serial, Threads
from dask_nlsq._sweep.groups import Group, group
from dask_nlsq._sweep.payload import serialize
from dask_nlsq._sweep.task import Answer, draw, reduce_group, reduce_partition
from dask_nlsq._sweep.tree import Partial

THETA = np.array([2.5, 1.1, 0.2])
REQUESTS = {"plain": Request(THETA), "whitened": Request(THETA, Whitening(np.diag([1.0, 2, 3]), np.eye(3)))}


def sweep(executor, groups, payload, request, **options):
    """The sum of all partitions for one request."""
    return sweep_each(executor, groups, payload, [request], **options)[0]


def payload(func=decay):
    return serialize(Objective(Model.from_function(func).bind(["t"]), ("t", "y")))


def bits(reduction):
    return [v if isinstance(v, frozenset) else np.asarray(v).tobytes() for v in vars(reduction).values()]


@pytest.mark.crossed(3)
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(("pieces", "nbytes"), [(7, float("inf")), (1, 0.0), (70, 0.0)])
def test_every_executor_gives_the_bits_of_the_loop(store, pieces, nbytes, request_, tmp_path, client):
    source = open_source(STORES[store](*decay_rows(7000), pieces, tmp_path), Columns(("t",), "y"))
    objective = payload()
    loop = fold([reduce_partition(p, objective, request_) for p in source.partitions])
    for executor in (Serial(), Threads(3), Cluster(client)):
        groups = group(source.partitions, nbytes, executor.workers)
        for cut in (groups, executor.hold(groups)):
            assert bits(sweep(executor, cut, objective, request_)) == bits(loop)


@pytest.mark.parametrize(
    ("partitions", "nbytes", "threads", "lengths"),
    [
        (3, 0, 1, {1}),
        (80, 0, 2, {10}),
        (100, 0, 2, {12, 13}),
        (999, 0, 2, {124, 125}),
        (200, 0, 500, {1}),
        (999, 999 << 20, 2, {124, 125}),
        (999, 9999 << 20, 2, {11, 12}),
    ],
)
def test_groups_are_even_and_small_enough(partitions, nbytes, threads, lengths):
    groups = group(list(range(partitions)), nbytes, threads)
    assert [p for g in groups for p in g.partitions] == list(range(partitions))
    assert {len(g.partitions) for g in groups} == lengths
    assert all(g.start == g.partitions[0] for g in groups)
    assert {len(g.partitions) for g in group(list(range(partitions)), float("inf"), threads)} == {1}


@given(cuts=st.sets(st.integers(1, 99)))
@settings(max_examples=30, deadline=None)
def test_nodes_of_groups_however_they_are_cut_make_the_tree(cuts):
    leaves = [fake(i) for i in range(100)]
    partial = Partial(100)
    for start, stop in itertools.pairwise([0, *sorted(cuts), 100]):
        one = Group(start, tuple(range(start, stop)))
        assert [i for level, at in one.nodes for i in range(at * 32**level, (at + 1) * 32**level)] == [*one.indices]
        parts = tuple(merge(leaves[at * 32**level : (at + 1) * 32**level]) for level, at in one.nodes)
        partial.add(Answer(one.indices, np.zeros((stop - start, 3), np.uint64), (parts,), one.nodes))
    assert bits(partial.roots()[0]) == bits(fold(leaves))


def fake(seed):
    """Return sums that no addition leaves as they are."""
    numbers = np.random.default_rng(seed).normal(size=20)
    gram, sums, checksum = numbers[:16].reshape(4, 4), numbers[16:17], np.array([seed, 7], np.uint64)
    return Reduction(3, 0, numbers[17], gram, 1.0 + seed, numbers[18], abs(numbers[19]), 0.1, sums, checksum)


class Large:
    """A partition that fills a slab, and notes how many of its kind are in memory as it is read."""

    def __init__(self):
        self.alive, self.others = weakref.WeakSet(), []

    def load(self):
        time.sleep(0.02)  # what is done with is forgotten meanwhile
        self.others.append(len(self.alive))
        t, y = decay_rows(SLABS[1])
        self.alive.add(block := Block((t,), y))
        return block


@pytest.mark.parametrize(
    ("task", "others"),
    [
        (lambda g: reduce_group(g, payload(), [REQUESTS["plain"]]), [0, 1, 1, 1]),
        (lambda g: reduce_group(dataclasses.replace(g, ahead=False), payload(), [REQUESTS["plain"]]), [0, 0, 0, 0]),
        (lambda g: draw(g, range(4), 10, 0), [0, 0, 0, 0]),
    ],
    ids=["reading ahead", "not ahead", "sample"],
)
def test_no_more_is_in_memory_than_is_worked_on_and_read(task, others):
    partition = Large()
    assert task(Group(0, 4 * (partition,)))
    assert all(seen <= most for seen, most in zip(partition.others, others, strict=True))


def test_a_run_that_nobody_has_ended_may_be_collected_in_one_of_its_tasks():
    """Its tasks are waited for where it ends, and the one that runs there would wait for itself."""
    runs, closed = queue.Queue(), threading.Event()

    def task(i):
        if i == 1:
            runs.get(timeout=10).close()
            closed.set()

    run = Threads(2).run(task, [0, 1])
    assert next(run) == (0, None)
    runs.put(run)
    assert closed.wait(10)


def test_few_tasks_are_sent_without_a_question(client, monkeypatch):
    executor = Cluster(client)
    monkeypatch.setattr(Cluster, "workers", property(lambda _: pytest.fail("the scheduler was asked")))
    assert sorted(executor.run(pow, [2, 3], 2)) == [(0, 4), (1, 9)]


def test_what_is_spent_is_given_up_a_few_at_a_time(tmp_path, client):
    source = open_source(STORES["parquet"](*decay_rows(700), 70, tmp_path), Columns(("t",), "y"))
    executor = Cluster(client)
    held, kept = executor.hold(group(source.partitions, 0.0, 2)[:2]), []
    for _ in range(6):
        assert len(list(executor.run(id, held))) == 2
        kept.append(len(executor._spent))
    assert kept == [2, 4, 6, 2, 4, 6]


def test_what_is_held_lies_evenly_on_the_workers(tmp_path, client):
    source = open_source(STORES["parquet"](*decay_rows(700), 70, tmp_path), Columns(("t",), "y"))
    held = Cluster(client).hold(group(source.partitions, 0.0, 2))
    futures = [h.future for h in held]
    wait(futures)
    ours = {future.key for future in futures}  # what other tests have held may not be gone yet
    counts = [len(ours.intersection(keys)) for keys in client.has_what().values()]
    assert sum(counts) == 8 and min(counts) >= 3  # a worker that idles may steal one
    assert [len(g.partitions) for g in group(source.partitions, 0.0, 2, per_thread=1)] == [35, 35]


@pytest.mark.parametrize("groups", [2, 4])
def test_what_is_held_is_swept_where_it_lies_however_often(groups, tmp_path, client):
    source = open_source(STORES["parquet"](*decay_rows(700), 70, tmp_path), Columns(("t",), "y"))
    executor, objective = Cluster(client), payload()
    held = executor.hold(group(source.partitions, 0.0, groups, per_thread=1))
    futures = [h.future for h in held]
    wait(futures)
    for _ in range(12):
        sweep(executor, held, objective, REQUESTS["plain"])
    assert [len(workers) for workers in client.who_has(futures).values()] == [1] * groups


@pytest.mark.parametrize("store", ["parquet", "arrays"])
def test_data_that_were_persisted(store, tmp_path, client):
    t, y = decay_rows(4000)
    lazy = STORES[store](t, y, 40, tmp_path)
    kept = {k: a.persist() for k, a in lazy.items()} if store == "arrays" else lazy.persist()
    lazily, persisted = (dask_nlsq.fit(decay, data=data, p0=THETA) for data in (lazy, kept))
    assert bits(persisted.statistics) == bits(lazily.statistics)
    assert persisted.popt.tobytes() == lazily.popt.tobytes()


def test_requests_share_a_sweep(tmp_path, client):
    source = open_source(STORES["parquet"](*decay_rows(700), 40, tmp_path), Columns(("t",), "y"))
    requests, objective = [Request(THETA), REQUESTS["whitened"], Request(2 * THETA)], payload()
    for executor in (Serial(), Cluster(client)):
        groups = group(source.partitions, 0.0, executor.workers)
        together = sweep_each(executor, groups, objective, requests)
        assert [bits(r) for r in together] == [bits(sweep(executor, groups, objective, r)) for r in requests]


def count_traces():
    from dask_nlsq._kernel import kernel

    return sum(kernel.traces.values())


NOTEBOOK = """
import jax.numpy as jnp
def model(t, a, b):
    return a * jnp.exp(-b * t)
"""


@pytest.mark.slow
@pytest.mark.parametrize("origin", ["imported", pytest.param("notebook", marks=pytest.mark.slow)])
@pytest.mark.parametrize("processes", [True, False])
def test_one_trace_a_process_and_kind(origin, processes, tmp_path):
    """Over a whole fit with map, and over tasks sent one by one; a model of ``__main__`` travels by value."""
    space = {"__name__": "__main__"}
    exec(NOTEBOOK, space)
    model = decay if origin == "imported" else space["model"]
    frame = STORES["parquet"](*decay_rows(4000), 20, tmp_path)
    with (
        LocalCluster(n_workers=2, threads_per_worker=2, processes=processes, dashboard_address=":0") as cluster,
        Client(cluster),
    ):
        client = Client.current()
        before = client.run(count_traces)
        result = frame.nlsq.fit(model, cache="none")
        assert result.nsweeps > 2
        one = serialize(Objective(Model.from_function(model).bind(["t"]), ("t", "y")))
        parts = open_source(frame, Columns(("t",), "y")).partitions
        theta = np.ones(len(result.popt))
        client.gather([client.submit(reduce_partition, p, one, Request(theta), pure=False) for p in parts])
        after = client.run(count_traces)
        grown = [after[w] - before[w] for w in after]
        assert max(grown) == 1 if processes else max(grown) <= 1  # this process may have known the model before


@pytest.mark.slow
@pytest.mark.one_at_a_time
@pytest.mark.parametrize(
    ("store", "needs"),
    [("path", {"pandas"}), ("zarr", {"zarr"}), ("arrays", {"dask.array", "pandas", "scipy"}), ("memory", set())],
)
@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
def test_a_process_imports_what_its_task_needs(store, needs, request_, tmp_path):
    """A scheduler unpickles tasks too, and must not start XLA; a worker reads one kind of source, and opens none."""
    t, y = decay_rows(100)
    data = {"t": t, "y": y} if store == "memory" else STORES["parquet" if store == "path" else store](t, y, 1, tmp_path)
    parts = open_source(tmp_path if store == "path" else data, Columns(("t",), "y")).partitions
    model = Model.from_expression("amplitude * exp(-rate * t) + offset").bind(["t"])
    task = (reduce_group, group(parts, 0.0, 1)[0], serialize(Objective(model, ("t", "y"))), [request_])
    code = f"""if True:
        import json, pickle, sys
        def heavy():
            return sorted({{"dask.array", "dask.dataframe", "jax", "pandas", "scipy", "zarr"}} & sys.modules.keys())
        task, *arguments = pickle.loads({cloudpickle.dumps(task)!r})
        before = heavy()
        task(*arguments).parts
        print(json.dumps([before, heavy()]))
    """
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    before, after = map(set, json.loads(run.stdout))
    assert before <= needs and after == needs | {"jax"}


@pytest.mark.parametrize("p", [3, 100])
@pytest.mark.parametrize("protocol", [2, 5])
def test_an_answer_travels_whole_and_a_large_one_without_a_copy(p, protocol):
    block = Block((np.arange(8.0),), np.arange(8.0))
    leaf = dataclasses.replace(reduce_partition(block, payload(), REQUESTS["plain"]), gram=np.eye(p + 1))
    answer, buffers = Answer((0,), np.ones((1, 4), np.uint64), ((leaf,),), ((0, 0),)), []
    sent = pickle.dumps(answer, protocol, buffer_callback=buffers.append if protocol == 5 else None)
    found = pickle.loads(sent, buffers=buffers)
    assert (found.numbers, found.nodes) == (answer.numbers, answer.nodes) and (found.digests == answer.digests).all()
    assert bits(found.parts[0][0]) == bits(leaf)
    assert (len(buffers) > 0) is (p == 100 and protocol == 5)


def test_a_model_that_cannot_travel_still_fits_here(client):
    lock = threading.Lock()

    def guarded(t, a, b):
        with lock:
            return a + b * t

    t, y = decay_rows(100)
    with pytest.raises(ModelNotPicklable, match="lock"):
        dask_nlsq.fit(guarded, t, y, client=client)
    source = open_source({"t": t, "y": y}, Columns(("t",), "y"))
    groups = group(source.partitions, 0.0, 1)
    assert sweep(Threads(), groups, payload(guarded), Request(np.ones(2))).rows == 100


def test_data_that_change_are_noticed(tmp_path):
    source = open_source(STORES["parquet"](*decay_rows(100), 3, tmp_path), Columns(("t",), "y"))
    groups, digests, objective = group(source.partitions, 0.0, 1), PartitionDigests(), payload()
    sweep(Serial(), groups, objective, Request(THETA), digests=digests)
    sweep(Threads(), groups, objective, Request(THETA), digests=digests)
    STORES["parquet"](*decay_rows(100, seed=1), 3, tmp_path)
    with pytest.raises(DataError, match="first sweep") as caught:
        sweep(Serial(), groups, objective, Request(THETA), digests=digests)
    assert caught.value.partition == 0


@pytest.mark.parametrize("models", [1, 3, 32])
def test_a_registry_forgets_the_oldest(models):
    from dask_nlsq._sweep import payload as module

    with dask.config.set({"nlsq.compiled-models": models}):
        kept = [serialize(("value", models, i)) for i in range(models + 5)]
        assert list(module._registry) == [each.token for each in kept[-models:]]


@pytest.mark.parametrize(
    ("name", "value"),
    [("models", 0), ("models", "many"), ("models", None), ("models-bytes", None), ("models-bytes", "much")],
)
def test_limits_that_are_none_are_refused(name, value):
    with dask.config.set({f"nlsq.compiled-{name}": value}), pytest.raises(NlsqError, match=f"compiled-{name} is"):
        serialize(("value", name, value))


def numbered(k):
    """A model unlike all others."""
    space = {"jnp": jnp}
    exec(f"def model(t, a, b): return a * jnp.exp(-b * t) + {k} * 1e-6", space)
    return space["model"]


@pytest.mark.slow
@pytest.mark.parametrize("kept", [True, False], ids=["results kept", "results dropped"])
def test_compiled_models_are_bounded(kept):
    from dask_nlsq._kernel import compile_cache

    t, y = decay_rows(50)
    results, models = [], weakref.WeakSet()
    with dask.config.set({"nlsq.compiled-models": 2}):
        for k in range(8):
            models.add(model := numbered(k))
            results.append(dask_nlsq.fit(model, t, y, p0=[2.0, 1.0], progress=False))
            del model, results[: 0 if kept else len(results)]
        gc.collect()
        # Two models: four objectives, whether a fit made one for its model or two.
        assert len(compile_cache._compiled) <= 4 and (len(models) == 8 if kept else len(models) <= 4)
        assert all(np.allclose(result.predict(t), results[0].predict(t), atol=1e-3) for result in results)
        assert len(compile_cache._compiled) <= 4


def test_what_was_wrapped_is_not_pickled_again(monkeypatch):
    module = sys.modules["dask_nlsq._sweep.payload"]
    one = Objective(Model.from_function(decay).bind(("t",)), ("t", "y"))
    payload = serialize(one)
    module.intern("unopened", b"")
    assert serialize(None).value is None  # and not what nobody has opened yet
    del module._registry["unopened"]
    monkeypatch.setattr(module, "_Pickler", None)
    assert serialize(payload.value) is payload


def test_a_module_loaded_again_has_another_model(tmp_path, monkeypatch):
    """Sent by name, both have the same bytes."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    t, y = decay_rows(200)
    found = []
    for factor in (1, 2):
        (tmp_path / "edited_model.py").write_text(f"def line(t, a, b):\n    return a + {factor} * b * t\n")
        importlib.invalidate_caches()
        module = importlib.reload(importlib.import_module("edited_model"))
        found.append(dask_nlsq.fit(module.line, t, y, client=False).params["b"])
    assert found[0] == pytest.approx(2 * found[1])


EDITED = "import jax, jax.numpy as jnp, edited_scale\nC = {c}\ndef helper(t, b):\n    return {factor} * b * t\n"
EDITED += "{decorator}\ndef line(t, a, b):\n    return a + helper(t, b) * C * edited_scale.S\n"


@pytest.mark.crossed
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("decorator", ["", "@jax.jit"])
@pytest.mark.parametrize("change", [{"c": 2}, {"factor": 2}, {"scale": 2}], ids=str)
def test_what_a_model_refers_to_is_part_of_it(tmp_path, monkeypatch, change, decorator):
    """A constant, a helper function, the attribute of another module; the model itself is as it was."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    t, y = decay_rows(200)
    found = []
    for said in ({}, change, {}):
        said = {"c": 1, "factor": 1, "scale": 1, "decorator": decorator} | said
        (tmp_path / "edited_scale.py").write_text(f"S = {said['scale']}\n")
        (tmp_path / "edited_line.py").write_text(EDITED.format(**said))
        importlib.invalidate_caches()
        importlib.reload(importlib.import_module("edited_scale"))
        module = importlib.reload(importlib.import_module("edited_line"))
        found.append(dask_nlsq.fit(module.line, t, y, client=False).params["b"])
    assert found == pytest.approx([found[0], found[0] / 2, found[0]])


SENT = {
    "plain": "C = 1.0\ndef model(t, a, b):\n    return a + b * t * C\n",
    "helper": "def half(t, *, k=1):\n    return k * t / 2\ndef model(t, a, b):\n    return a + b * half(t)\n",
    "class": "class M:\n    K = 1.0\n    def __call__(self, t, a, b):\n        return a + b * t * self.K\nmodel = M()",
    "counts": "N, s = 0, []\ndef model(t, a, b):\n    global N\n    N += 1\n    s.append(N)\n    return a + b * t\n",
}
OPENS = "import sys, cloudpickle; sys.path.append(''); cloudpickle.loads(sys.stdin.buffer.read())"


@pytest.mark.crossed
@pytest.mark.parametrize(
    ("kind", "edit"),
    [
        ("plain", ("a +", "a -")),
        ("plain", ("C = 1.0", "C = 2.0")),
        ("helper", ("t / 2", "t / 3")),
        ("helper", ("k=1", "k=2")),
        ("class", ("a +", "a -")),
        ("class", ("K = 1.0", "K = 2.0")),
        *((kind, None) for kind in SENT),
    ],
    ids=str,
)
def test_a_process_that_has_another_text_of_a_module_says_so(tmp_path, monkeypatch, kind, edit):
    """What a process has counted and kept since does not matter."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    file = tmp_path / f"sent_{kind}.py"
    file.write_text(SENT[kind] if edit is None else SENT[kind].replace(*edit))
    importlib.invalidate_caches()
    module = importlib.reload(importlib.import_module(file.stem))
    module.model(1.0, 2.0, 3.0)
    file.write_text(SENT[kind])
    process = [sys.executable, "-c", OPENS]
    done = subprocess.run(process, input=serialize((module.model,)).bytes(), cwd=tmp_path, capture_output=True)
    assert (done.returncode == 0) == (edit is None), done.stderr.decode()
    assert edit is None or (b"ModelError: " in done.stderr and b"client.restart()" in done.stderr)


def test_functions_alike_that_see_unlike_values_later_are_two():
    t, y = decay_rows(200)
    spaces, results = [{"C": 1.0}, {"C": 1.0}], []
    for space in spaces:
        exec("def line(t, a, b):\n    return a + b * t * C", space)
        results.append(dask_nlsq.fit(space["line"], t, y, client=False))
    spaces[0].clear()
    assert np.isfinite(results[1].predict(t)).all()


def test_what_a_model_refers_to_is_read_once():
    """A table that many functions share, and one that holds itself."""

    class Table:
        reads = 0

        def __array__(self, *args, **options):
            Table.reads += 1
            return np.zeros(3)

    loop = {"k": 1.0}
    loop["self"] = loop
    space = {"__name__": "by_name", "table": Table(), "loop": loop, "f0": lambda x: x}
    module = types.ModuleType("by_name")
    module.__dict__.update(space)
    for i in range(20):
        exec(f"def f{i + 1}(x): return f{i}(x) + 0 * table[0] * loop['k']", module.__dict__)
    sys.modules["by_name"] = module
    try:
        tokens = {serialize((module.f20,)).token for _ in range(2)}
    finally:
        del sys.modules["by_name"]
    assert len(tokens) == 1 and Table.reads == 2


def test_models_that_hold_much_are_not_kept():
    from dask_nlsq._sweep import payload as module

    with dask.config.set({"nlsq.compiled-models-bytes": "10 kB"}):
        for i in range(4):
            serialize({"table": np.full(600, float(i))})
        assert 0 < sum(each.nbytes for each in module._registry.values()) <= 10_000


@pytest.mark.crossed
@pytest.mark.parametrize(("size", "crowded"), [({}, True), ({"env": {"PJRT_NPROC": "1"}}, False)])
def test_processes_whose_threads_hinder_one_another_are_told_of(size, crowded):
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", **size) as cluster,
        Client(cluster) as client,
    ):
        said = Cluster(client).check_workers()
        assert (said is not None and "PJRT_NPROC=1" in said) == crowded


def test_workers_that_declare_gpus_get_the_tasks():
    """The GPU is one in name only: what is shown is where the tasks go."""
    options = [{"resources": {"GPU": 1}, "nthreads": 2}, {"nthreads": 2}]
    spec = {i: {"cls": Worker, "options": o | {"dashboard_address": None}} for i, o in enumerate(options)}
    scheduler = {"cls": Scheduler, "options": {"dashboard_address": ":0"}}
    with SpecCluster(spec, scheduler=scheduler) as cluster, Client(cluster) as client:
        assert Cluster(client).workers == 1
        t, y = decay_rows(4000)
        source = open_source(STORES["arrays"](t, y, 8, None), Columns(("t",), "y"))
        kept = Cluster(client).hold(group(source.partitions, 0.0, 1))
        wait([h.future for h in kept])
        lying = {w: len(keys) for w, keys in client.has_what().items()}
        gpu = next(w for w, i in client.scheduler_info()["workers"].items() if i["resources"])
        assert lying == {w: len(kept) if w == gpu else 0 for w in lying}
        assert sweep(Cluster(client), kept, payload(), Request(THETA)).rows == 4000
