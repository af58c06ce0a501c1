"""Fit with a checkpoint, for tests that kill it: `python resumed.py RUN KIND` prints "begun", then the bits."""

import functools
import hashlib
import sys
import time

import jax.numpy as jnp
import numpy as np

import dask_nlsq

PIECES = 60
KINDS = {"chunked": {"tier": "chunked", "cache": "none"}, "streaming": {"tier": "streaming"}}
SEARCH = {
    "search": {
        "tier": "chunked",
        "cache": "none",
        "n_starts": 640,
        "bounds": {"amplitude": (0, 10), "rate": (0.01, 20), "offset": (-5, 5)},
    }
}


def decay(t, amplitude, rate, offset=0.0):
    return amplitude * jnp.exp(-rate * t) + offset


def rows(i, pause):
    time.sleep(pause)
    return made(i)


@functools.cache
def made(i):
    import pandas as pd

    rng = np.random.default_rng(i)
    t = np.sort(rng.uniform(5 * i / PIECES, 5 * (i + 1) / PIECES, 20_000))
    return pd.DataFrame({"t": t, "y": rng.normal(3.0 * np.exp(-1.3 * t) + 0.5, 0.1)})


def bits(result):
    history = result.history.drop(columns="seconds").to_numpy(float)
    return hashlib.sha256(result.popt.tobytes() + result.pcov.tobytes() + history.tobytes()).hexdigest()


def run(checkpoint, kind, pause=0.0, **options):
    import dask.dataframe as dd
    import pandas as pd

    frame = dd.from_map(rows, range(PIECES), pause=pause, meta=pd.DataFrame({"t": [0.0], "y": [0.0]}))
    options = {"p0": [2.0, 1.0, 0.3], "checkpoint_interval": 0.1} | (KINDS | SEARCH)[kind] | options
    return dask_nlsq.fit(decay, data=frame, checkpoint=checkpoint, **options)


def main(checkpoint, kind, workers):
    if workers == "0":
        return run(checkpoint, kind, 0.02)
    from distributed import Client, LocalCluster

    options = {"threads_per_worker": 1, "dashboard_address": ":0", "env": {"PJRT_NPROC": "1"}}
    with LocalCluster(int(workers), **options) as cluster, Client(cluster):
        print("pids", *(worker.pid for worker in cluster.workers.values()), flush=True)
        return run(checkpoint, kind, 0.02)


if __name__ == "__main__":
    print("begun", flush=True)
    print("bits", bits(main(*sys.argv[1:])), flush=True)
