"""Compare the bits of two checkouts: parameters, covariance and history of every kind of fit.

    python tests/same_bits.py PATH_OF_ONE PATH_OF_THE_OTHER

runs the same fits with the package of each, in a process of its own and on the same rows, and prints a table. The exit
code is 0 where all are the same.
"""

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np

ROWS = 60_000
STORES = ("parquet", "zarr", "dask arrays", "frame", "numpy")
START = {"amplitude": 2.0, "rate": 1.0, "offset": 0.3}
BOUNDS = {"amplitude": (0.0, 10.0), "rate": (0.01, 20.0), "offset": (-5.0, 5.0)}


def decay(t, amplitude, rate, offset):
    import jax.numpy as jnp

    return amplitude * jnp.exp(-rate * t) + offset


def digest(*parts):
    return hashlib.sha256(b"".join(np.asarray(part).tobytes() for part in parts)).hexdigest()[:16]


def bits(result):
    return digest(result.popt, result.pcov, result.history.drop(columns="seconds").to_numpy(float))


def nist():
    """NIST's 27 problems from both starts."""
    import pandas as pd
    from nist import PROBLEMS

    import dask_nlsq

    for problem in PROBLEMS:
        rows = pd.DataFrame(problem.x | {"y": problem.y})
        for start in problem.starts:
            p0 = dict(zip(problem.parameters, start, strict=True))
            model = dask_nlsq.Model.from_expression(problem.expression)
            yield f"{problem.name} from {start[0]:g}", bits(rows.nlsq.fit(model, p0=p0))


def stored(folder):
    """The same rows in every kind of container, as arguments of `fit`."""
    import dask.array as da
    import dask.dataframe as dd
    import pandas as pd
    import zarr

    rng = np.random.default_rng(5)
    t = np.sort(rng.uniform(0, 5, ROWS))
    y = rng.normal(3.0 * np.exp(-1.3 * t) + 0.5, 0.1)
    frame = dd.from_pandas(pd.DataFrame({"t": t, "y": y}), npartitions=12)
    if not (folder / "rows").exists():
        frame.to_parquet(folder / "rows")
        group = zarr.open_group(folder / "rows.zarr", mode="w")
        for name, values in (("t", t), ("y", y)):
            group.create_array(name, shape=values.shape, chunks=(5000,), dtype=values.dtype)[:] = values
    return {
        "parquet": {"data": str(folder / "rows")},
        "zarr": {"data": str(folder / "rows.zarr")},
        "dask arrays": {"x": da.from_array(t, chunks=5000), "y": da.from_array(y, chunks=5000)},
        "frame": {"data": frame},
        "numpy": {"x": t, "y": y},
    }


def containers(folder):
    """Fits of what `stored` returns, with threads and on two workers."""
    import distributed

    import dask_nlsq

    for where in ("threads", "two workers"):
        with contextlib.ExitStack() as stack:
            if where == "two workers":
                env = {"PYTHONPATH": os.environ["PYTHONPATH"]}
                cluster = distributed.LocalCluster(2, threads_per_worker=1, dashboard_address=":0", env=env)
                stack.enter_context(distributed.Client(stack.enter_context(cluster)))
            for name, rows in stored(folder).items():
                yield f"{name}, {where}", bits(dask_nlsq.fit(decay, **rows, p0=START, tier="chunked"))


def loops(folder):
    """The loops beside that of a plain fit."""
    import dask_nlsq

    rows = stored(folder)["parquet"] | {"p0": START, "client": False}
    whole = dask_nlsq.fit(decay, **rows)
    yield (
        "robust loss, bounds, sandwich",
        bits(dask_nlsq.fit(decay, **rows, loss="huber", f_scale=0.1, bounds=BOUNDS, cov_type="sandwich")),
    )
    yield "a stream", bits(dask_nlsq.fit(decay, **rows, tier="streaming"))
    yield "a stream to a precision", bits(dask_nlsq.fit(decay, **rows, tier="streaming", precision=0.01))
    yield "a search", bits(dask_nlsq.fit(decay, **rows, bounds=BOUNDS, n_starts=32, seed=3))
    yield "perturbed starts", bits(dask_nlsq.fit(decay, **rows, goal="quality"))
    yield "a profile", digest(whole.profile("rate").to_numpy(float), whole.conf_int(method="profile").to_numpy(float))
    resumed = dask_nlsq.fit(decay, **rows, checkpoint=str(folder / "run"), checkpoint_every=1, callback=stop_after(2))
    resumed = dask_nlsq.fit(decay, **rows, checkpoint=str(folder / "run"))
    yield "a resumed checkpoint", bits(resumed)
    fitter = dask_nlsq.StreamingFitter(decay, p0=START)
    numpy = stored(folder)["numpy"]
    for x, y in zip(np.array_split(numpy["x"], 20), np.array_split(numpy["y"], 20), strict=True):
        fitter.partial_fit(x, y)
    yield "a StreamingFitter", bits(fitter.result())
    popt, pcov = dask_nlsq.curve_fit(decay, numpy["x"], numpy["y"], list(START.values()))
    yield "curve_fit", digest(popt, pcov)


def stop_after(sweeps):
    """Return a callback that ends a fit."""

    def callback(intermediate_result):
        if intermediate_result.nfev >= sweeps:
            raise StopIteration

    return callback


def record():
    """Run everything with the package that Python finds, and print the digests as JSON."""
    import dask_nlsq

    assert Path(os.environ["PYTHONPATH"]) in Path(dask_nlsq.__file__).parents
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        found = dict(nist()) | dict(containers(Path(folder))) | dict(loops(Path(folder)))
    print(json.dumps(found))


def main(paths):
    """Compare two checkouts; return whether they agree."""
    found = []
    for path in paths:
        env = os.environ | {"PYTHONPATH": str(Path(path).resolve())}
        said = subprocess.run([sys.executable, __file__], env=env, check=True, stdout=subprocess.PIPE, text=True)
        found.append(json.loads(said.stdout.splitlines()[-1]))
    one, two = found
    for name in one | two:
        a, b = one.get(name, "missing"), two.get(name, "missing")
        print(f"{name:36} {a:16} {'the same' if a == b else b}")
    same = sum(one.get(name) == two.get(name) for name in one | two)
    print(f"{same} of {len(one | two)} are the same")
    return one == two


if __name__ == "__main__":
    if len(sys.argv) == 1:
        record()
    else:
        sys.exit(not main(sys.argv[1:]))
