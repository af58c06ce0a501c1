"""Run a study with a cache, for tests that kill it: `python studied.py DATA CACHE` prints "begun", then the bits."""

import sys

import dask_nlsq

MODELS = {"line": "a + b*t", "decay": "a*exp(-b*t)", "offset": "a*exp(-b*t) + c"}


def run(data, cache):
    """Return the study of nine variants, one after the other."""
    variants = dask_nlsq.grid(model=MODELS, loss=["linear", "soft_l1", "huber"])
    return dask_nlsq.study(variants, data=data, x="t", cache_dir=cache, max_concurrent=1, progress=False)


def bits(study):
    """Return the bits of all estimates and covariances."""
    return {name: (result.popt.tobytes().hex(), result.pcov.tobytes().hex()) for name, result in study.items()}


if __name__ == "__main__":
    print("begun", flush=True)
    print(bits(run(*sys.argv[1:])), flush=True)
