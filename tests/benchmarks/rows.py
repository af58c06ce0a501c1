"""Rows and models of the comparisons, generated from a seed, in memory or on disk."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import zarr

TRUTH = (3.0, 1.3, 0.5)
FILES = 50


def decay(t, amplitude=1.0, rate=1.0, offset=0.0):
    """The three-parameter exponential, in jax.numpy."""
    return amplitude * jnp.exp(-rate * t) + offset


def decay_numpy(t, amplitude, rate, offset):
    """The same for SciPy."""
    return amplitude * np.exp(-rate * t) + offset


def peaks(t, *theta):
    """A sum of Gaussians: a height, a place and a width each."""
    return sum(a * jnp.exp(-(((t - m) / s) ** 2)) for a, m, s in zip(*(theta[k::3] for k in range(3)), strict=True))


def decay_rows(n, seed=0):
    """Return t and y of the decay at TRUTH, with noise of 0.1."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(0, 5, n)
    return t, rng.normal(decay_numpy(t, *TRUTH), 0.1)


def count_rows(n, seed=0):
    """Return t and Poisson counts of the decay at TRUTH."""
    rng = np.random.default_rng(seed)
    t = rng.uniform(0, 5, n)
    return t, rng.poisson(decay_numpy(t, *TRUTH)).astype(float)


def moved_rows(n, sigma_x=0.1, seed=0):
    """Return t and y of the decay, where t has errors of this standard deviation."""
    t, y = decay_rows(n, seed)
    return np.random.default_rng([seed, 1]).normal(t, sigma_x), y


def resonance(w, loss=1.0, width=1.0, level=0.0):
    """A complex resonance of three real parameters, in jax.numpy or NumPy."""
    return level + loss / (1.0 + 1j * width * w)


def magnitude(w, loss=1.0, width=1.0, level=0.0):
    """A real resonance of as many parameters: the real part of the complex one."""
    return level + loss / (1.0 + (width * w) ** 2)


def resonance_rows(n, seed=0):
    """Return w and the complex resonance, with noise of 0.1 in both parts."""
    rng = np.random.default_rng(seed)
    w = rng.uniform(0.1, 5, n)
    return w, resonance(w, 3.0, 1.3, 0.5) + rng.normal(0, 0.1, n) + 1j * rng.normal(0, 0.1, n)


def three_decays(t, amplitude=1.0, rate=1.0, offset=0.0):
    """Three responses of the parameters of the decay."""
    fall = jnp.exp(-rate * t)
    return amplitude * fall + offset, amplitude * (1 - fall), offset * fall


def decay_jacobian(t, amplitude, rate, offset):
    """Its derivatives, for SciPy."""
    fall = np.exp(-rate * t)
    return np.stack([fall, -amplitude * t * fall, np.ones_like(t)], axis=1)


def decay_series(n, points=64, seed=0):
    """Return t (points,) and y (n, points): a decay of each series, with noise of 0.05."""
    rng = np.random.default_rng(seed)
    t = np.linspace(0, 5, points)
    amplitude, rate, offset = (rng.uniform(*limits, (n, 1)) for limits in ((2, 4), (0.5, 2), (0.2, 0.8)))
    return t, rng.normal(decay_numpy(t, amplitude, rate, offset), 0.05)


def _once(path, write):
    """Return a folder, written unless it is there already; one that was left half done is written anew."""
    if not path.exists():
        half = path.with_name(path.name + ".half")
        shutil.rmtree(half, ignore_errors=True)
        half.mkdir(parents=True)
        write(half)
        half.rename(path)
    return path


def write_file(folder, index, rows):
    """Write one file of Parquet (snappy)."""
    t, y = decay_rows(rows, seed=index)
    pq.write_table(pa.table({"t": t, "y": y}), folder / f"{index:05}.parquet")


def parquet(folder, rows, files=FILES):
    """Return a folder of so many rows in 50 files, or more."""

    def write(path):
        for index in range(files):
            write_file(path, index, rows // files)

    return _once(folder / f"{rows}-parquet-{files}", write)


def many_files(folder, count):
    """Return a folder of so many files of 2,000 rows."""
    return parquet(folder, 2_000 * count, count)


def read_files(path):
    """Read both columns of every file in a folder, one after the other."""
    for file in sorted(path.iterdir()):
        pq.ParquetFile(file).read(columns=["t", "y"], use_threads=False)


def zarr_group(folder, rows, chunk):
    """Return a group of two uncompressed arrays."""

    def write(path):
        group = zarr.create_group(path)
        arrays = [
            group.create_array(name, shape=(rows,), chunks=(chunk,), dtype="f8", compressors=None) for name in "ty"
        ]
        for index, start in enumerate(range(0, rows, chunk)):
            for array, column in zip(arrays, decay_rows(min(chunk, rows - start), seed=index), strict=True):
                array[start : start + chunk] = column

    return _once(folder / f"{rows}.zarr", write)


def read_chunks(path):
    """Return every chunk of an uncompressed group as an array, read by a thread a core."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(np.fromfile, sorted(Path(path).glob("*/c/*"))))


def arrays(folder, rows):
    """Return a folder with t.npy and y.npy, so that a process can hold the rows without having made them."""

    def write(path):
        for name, column in zip("ty", decay_rows(rows), strict=True):
            np.save(path / name, column)

    return _once(folder / f"{rows}-npy", write)


def make_frame(index, rows):
    """Return one partition of `frame`."""
    return pd.DataFrame(dict(zip("ty", decay_rows(rows, seed=index), strict=True)))


def frame(partitions, rows):
    """Return a Dask DataFrame whose partitions make their rows when they are loaded."""
    return dd.from_map(make_frame, range(partitions), rows=rows, meta=make_frame(0, 1))
