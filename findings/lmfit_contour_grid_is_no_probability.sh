#!/usr/bin/env bash
# lmfit: the grid of conf_interval2d is called a probability of shape (nx, ny); it holds sqrt of the rise of chi-square,
# of shape (ny, nx), and its contour at 1 holds both true values in 39 % of cases, not in 68 %.
#
# Guess: the grid holds probabilities from 0 to 1, so that the contour at 0.95 is the joint region of 95 %.
# What happens (lmfit 1.3.4): each value is sqrt((chi2 - min) / redchi), a distance in standard errors of a single
# parameter, up to several units. For two parameters together a distance of d covers 1 - exp(-d**2 / 2).
# Why it matters: a contour drawn at 0.95, as the documentation of the returned value suggests, covers 36 %; one drawn
# at "2 sigma" covers 86 %, not 95 %.
# Instead: chi2_out=True, and the quantile of F: levels at min + 2 redchi F(0.95; 2, n - p).
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check lmfit==1.3.4 scipy==1.17.1 numpy==2.4.6
cd "$dir"
venv/bin/python -W ignore - <<'PY'
from importlib.metadata import version

import lmfit
import numpy as np

print({name: version(name) for name in ("lmfit", "scipy", "numpy")})
x, truth = np.linspace(0, 1, 200), (1.0, 2.0)


def fit(y):
    minimizer = lmfit.Minimizer(lambda p: p["a"] + p["b"] * x - y, lmfit.create_params(a=0.0, b=0.0))
    return minimizer, minimizer.minimize()


rng = np.random.default_rng(0)
minimizer, best = fit(truth[0] + truth[1] * x + rng.normal(0, 0.1, x.size))
a, b, grid = lmfit.conf_interval2d(minimizer, best, "a", "b", nx=5, ny=7, nsigma=4)
_, _, chi2 = lmfit.conf_interval2d(minimizer, best, "a", "b", nx=5, ny=7, nsigma=4, chi2_out=True)
print(f"nx 5, ny 7: shape {grid.shape}; largest value {grid.max():.2f}")
assert grid.shape == (7, 5) and grid.max() > 1
assert np.allclose(grid, np.sqrt((chi2 - best.chisqr) / best.redchi), atol=1e-6)

inside = {0.95: 0, 1.0: 0, 2.0: 0}
runs = 2000
for seed in range(runs):
    minimizer, best = fit(truth[0] + truth[1] * x + np.random.default_rng(seed + 1).normal(0, 0.1, x.size))
    # The grid's value at the true parameters, from two points of which the last is there.
    limits = ((truth[0], truth[0] - 1), (truth[1], truth[1] - 1))
    value = lmfit.conf_interval2d(minimizer, best, "a", "b", nx=2, ny=2, limits=limits, chi2_out=True)[2][-1, -1]
    distance = np.sqrt((value - best.chisqr) / best.redchi)
    for level in inside:
        inside[level] += distance < level
shares = {level: count / runs for level, count in inside.items()}
print("share of runs in which the contour holds both true values:", shares)
expected = {level: 1 - np.exp(-(level**2) / 2) for level in shares}
print("1 - exp(-d^2/2):", {level: round(value, 3) for level, value in expected.items()})
assert all(abs(shares[level] - expected[level]) < 0.04 for level in shares)
PY
echo "as described: the grid is no probability, and its axes are (y, x)"
