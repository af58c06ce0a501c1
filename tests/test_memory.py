"""Measured memory: a fit in a process of its own uses what its plan predicts, within its limit."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from dask_nlsq._kernel.block import SLABS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's record of the peak"),
]

CHILD = """
import gc, json, os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
import dask, numpy as np, psutil
import dask_nlsq
from dask_nlsq._system import peak_memory

path, columns, p, options = json.loads(sys.argv[1])
x = [f"x{i}" for i in range(columns - 1)]
terms = " + ".join(f"t{k} * x[{k % len(x)}] ** {1 + k // len(x)}" for k in range(p))
names = ", ".join(f"t{k}" for k in range(p))
exec(f"def model(x, {names}):\\n    x = x if x.ndim > 1 else x[None]\\n    return {terms}")
few = {name: np.random.default_rng(0).random(5000) for name in (*x, "y")}
dask_nlsq.fit(model, x, "y", data=few, p0=[1.0] * p)  # what is imported and compiled is there already
gc.collect()
open("/proc/self/clear_refs", "w").write("5")  # forget the peak
before = psutil.Process().memory_info().rss
print(before, flush=True)
sys.stdin.readline()
with dask.config.set(num_workers=1):  # two would not be at their peaks at the same time
    result = dask_nlsq.fit(model, x, "y", data=path, p0=[1.0] * p, max_nfev=2, **options)
print(json.dumps([peak_memory() - before, result.plan.growth, result.plan.cache, result.n_obs]))
"""


def start(path, columns, p, **options):
    command = [sys.executable, "-c", CHILD, json.dumps([str(path), columns, p, options])]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return child, int(child.stdout.readline())


def write(folder, kind, rows, partitions, columns):
    """Write partitions of so many rows, made of noise, which no codec makes smaller."""
    rng = np.random.default_rng(0)
    names = [f"x{i}" for i in range(columns - 1)] + ["y"]
    path = folder / f"rows.{kind}"
    if kind == "zarr":
        group = zarr.create_group(path)
        for name in names:
            array = group.create_array(name, shape=(rows * partitions,), chunks=(rows,), dtype="f8")
            for i in range(partitions):
                array[i * rows : (i + 1) * rows] = rng.random(rows)
        return path
    with pq.ParquetWriter(path, pa.schema([(name, "f8") for name in names])) as writer:
        for _ in range(partitions):
            writer.write_table(pa.table({name: rng.random(rows) for name in names}), row_group_size=rows)
    return path


def growth(path, columns, p, **options):
    child, _ = start(path, columns, p, **options)
    out, _ = child.communicate("go\n", timeout=280)
    return json.loads(out)


@pytest.mark.parametrize(
    ("kind", "rows", "partitions", "columns", "p"),
    [("zarr", 20 * SLABS[1], 3, 2, 3), ("parquet", 4_600_000, 2, 13, 30)],
    ids=["few", "many"],
)
def test_growth_is_as_predicted(tmp_path, kind, rows, partitions, columns, p):
    """Chunks above 32 MB, compressed too: of what is smaller the C library keeps some for later, now more, now less.

    Of the few columns every slab is a view of what was read, and is lent to XLA as it is.
    """
    path = write(tmp_path, kind, rows, partitions, columns)
    for options in ({"tier": "chunked", "cache": "none"}, {"tier": "streaming"}, {"tier": "standard"}):
        measured, predicted, cache, n_obs = growth(path, columns, p, **options)
        assert n_obs == partitions * rows and cache == ("persist" if options["tier"] == "standard" else "none")
        assert measured > 200e6 and abs(predicted - measured) < 0.3 * measured, (options, measured, predicted)


def test_a_table_larger_than_memory_fits_under_a_watchdog(tmp_path):
    """1.2 GB on disk, 600 MB to grow; the resident size is read every 10 ms."""
    path = write(tmp_path, "parquet", 1_000_000, 75, 2)
    assert path.stat().st_size > 1.15e9
    probe, held = start(path, 2, 3)
    probe.kill()
    probe.communicate()
    child, before = start(path, 2, 3, memory_limit=int((held + 600e6) / 0.8))
    process = psutil.Process(child.pid)
    child.stdin.write("go\n")
    child.stdin.flush()
    most = 0
    while child.poll() is None:
        try:
            most = max(most, process.memory_info().rss - before)
        except psutil.NoSuchProcess:
            break
        if most > 600e6:
            child.kill()
            pytest.fail(f"It grew by {most / 1e6:.0f} MB.")
        time.sleep(0.01)
    *_, cache, n_obs = json.loads(child.stdout.read())
    assert n_obs == 75_000_000 and cache == "none" and most > 50e6


MANY = """
import gc, json, os, sys
os.environ["JAX_PLATFORMS"] = "cpu"
import jax.numpy as jnp, numpy as np, psutil
import dask_nlsq

x = np.linspace(0.1, 1, 50)
y = 2 * np.exp(-3 * x) + np.random.default_rng(0).normal(0, 0.001, x.size)
count = int(sys.argv[1])
sizes, results = [], []
for k in range(count):
    space = {"jnp": jnp}
    exec(f"def model(x, a, b): return a * jnp.exp(-b * x) + {k} * 1e-6 * x", space)
    if k % 2:
        results.append(dask_nlsq.fit(space["model"], x, y, p0=[1.0, 1.0], progress=False))
    else:
        dask_nlsq.curve_fit(space["model"], x, y, [1.0, 1.0])
    if k + 1 in (count // 2, count):
        gc.collect()
        sizes.append(psutil.Process().memory_info().rss)
print(json.dumps(sizes))
"""


@pytest.mark.timeout(900)
def test_a_process_that_fits_many_models_does_not_grow():
    """100 models, in turns by `fit` and by `curve_fit`, take no more than 50 do, to 10 %; so did 500 beside 100."""
    child = subprocess.run([sys.executable, "-c", MANY, "100"], stdout=subprocess.PIPE, check=True)
    half, whole = json.loads(child.stdout)
    assert whole < 1.1 * half
