#!/usr/bin/env bash
# NLSQ: above its size threshold the answer depends on chunk_size and on the order of the rows, by two or three error bars.
#
# Guess: a fit in chunks gives the estimates of one fit to all rows, to rounding, whatever the chunk and the order.
# What happens (nlsq 0.7.6): curve_fit_large fits chunk after chunk and combines the estimates. Without chunks it agrees with
# SciPy to six digits. With 100 chunks of 1000 rows the width of a peak moves by more than two standard errors, the
# same rows in another order give yet another width, and the standard error that is reported gets smaller, not larger.
# Why it matters: chunk size is set from the memory that is free: the same data and program give another width on
# another computer, and the difference looks like one between the data.
# Instead: raise size_threshold and memory so that one chunk holds all rows, or take a method that adds up over all rows.
# (NLSQ needs Python 3.12 or newer: this tries python3, python3.13, python3.12; PYTHON names another.)
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
for python in "${PYTHON:-python3}" python3.13 python3.12 ~/.pyenv/versions/3.1[23].*/bin/python; do
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && break
done
"$python" -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check nlsq==0.7.6 scipy==1.17.1 numpy==2.4.6 jax==0.10.2 jaxlib==0.10.2
cd "$dir"
JAX_PLATFORMS=cpu venv/bin/python -W ignore - 2>errors <<'PY' || { cat errors; exit 1; }
from importlib.metadata import version

import numpy as np
from nlsq import curve_fit_large
import jax.numpy as jnp
from scipy.optimize import curve_fit

print({name: version(name) for name in ("nlsq", "scipy", "jax", "numpy")})
n = 100_000
x = np.linspace(0, 100, n)
start = np.array([0.8, 41.8, 0.6, 0.1])


def peak(x, height, centre, width, ground, np=np):
    return height * np.exp(-0.5 * ((x - centre) / width) ** 2) + ground


def jax_peak(x, height, centre, width, ground):
    return peak(x, height, centre, width, ground, jnp)


y = peak(x, 1.0, 42.0, 0.5, 0.2) + np.random.default_rng(0).normal(0, 0.3, n)
popt, pcov = curve_fit(peak, x, y, start)
width, error = popt[2], pcov[2, 2] ** 0.5
print(f"scipy, all rows: width {width:.4f} +- {error:.4f}")
orders = {"sorted": np.arange(n), "shuffled": np.random.default_rng(1).permutation(n)}
found = {}
for label, options in {"one chunk": {}, "chunks of 1000": {"size_threshold": 1000, "chunk_size": 1000}}.items():
    for order, rows in orders.items():
        p, c = curve_fit_large(jax_peak, x[rows], y[rows], p0=start, **options)
        found[label, order] = p, c = float(p[2]), float(np.sqrt(c[2, 2]))
        print(f"nlsq, {label}, {order}: width {p:.4f} +- {c:.4f}, off by {(p - width) / error:+.2f} standard errors")
for order in orders:
    assert abs(found["one chunk", order][0] - width) < 1e-3 * error
    assert abs(found["chunks of 1000", order][0] - width) > 2 * error
    assert found["chunks of 1000", order][1] < error
assert abs(found["chunks of 1000", "sorted"][0] - found["chunks of 1000", "shuffled"][0]) > 0.5 * error
PY
echo "as described"
