#!/usr/bin/env bash
# JAX: a pickled float64 array is loaded as float32 in another process, and the integer 2**40 + 1 as 1.
#
# Guess: a pickled array keeps its dtype and its bits, or loading it raises.
# What happens (jax 0.10.2): the pickle holds the float64 bits, but loading goes through jax.numpy, which rounds to 32 bits
# unless jax_enable_x64 is set in the process that loads. Nothing is raised and no warning is given; int64 loses its upper half.
# Why it matters: process pools, Dask workers, joblib caches and checkpoints all pickle. The start process sets x64, a
# worker doesn't: times in nanoseconds become meaningless, Julian dates move by up to an eighth of a day, and a fit that
# starts from the loaded parameters has seven digits.
# Instead: pickle np.asarray(a), which stays float64 anywhere; set JAX_ENABLE_X64=1 in the environment, not in the program.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check jax==0.10.2 jaxlib==0.10.2 numpy==2.4.6
cd "$dir"
export JAX_PLATFORMS=cpu
JAX_ENABLE_X64=1 venv/bin/python - <<'PY'
import pickle

import jax
import jax.numpy as jnp
import numpy as np

print("jax", jax.__version__, "numpy", np.__version__)
day, tick = jnp.array([2460310.625]), jnp.array([2**40 + 1])
print("pickled:      ", day.dtype, day[0], tick.dtype, tick[0])
with open("jax.pickle", "wb") as file:
    pickle.dump((day, tick), file)
with open("numpy.pickle", "wb") as file:
    pickle.dump((np.asarray(day), np.asarray(tick)), file)
PY
venv/bin/python - <<'PY'
import pickle
import warnings

import jax
import numpy as np

with warnings.catch_warnings(record=True) as caught, open("jax.pickle", "rb") as file:
    warnings.simplefilter("always")
    day, tick = pickle.load(file)
print("loaded:       ", day.dtype, float(day[0]), tick.dtype, int(tick[0]), "; warnings:", caught)
assert isinstance(day, jax.Array) and day.dtype == np.float32 and tick.dtype == np.int32
assert float(day[0]) != 2460310.625 and int(tick[0]) == 1 and not caught
with open("numpy.pickle", "rb") as file:
    day, tick = pickle.load(file)
print("NumPy, loaded:", day.dtype, day[0], tick.dtype, tick[0])
assert day[0] == 2460310.625 and tick[0] == 2**40 + 1
PY
JAX_ENABLE_X64=1 venv/bin/python - <<'PY'
import pickle

with open("jax.pickle", "rb") as file:
    day, tick = pickle.load(file)
print("with x64:     ", day.dtype, day[0], tick.dtype, tick[0])
assert day[0] == 2460310.625 and tick[0] == 2**40 + 1
PY
echo "as described"
