#!/usr/bin/env bash
# lmfit: a start value exactly on a bound can freeze the whole fit, every parameter at its start, with "Fit succeeded".
#
# Guess: a parameter that starts on its bound moves inwards, or stays there while the others are fitted.
# What happens (lmfit 1.3.4): a bound is a change of variable whose slope is zero on the bound itself. From there leastsq
# may end after a dozen evaluations with none of the parameters moved, success=True and "Fit succeeded.", whether the best
# value is inside the bound (the line below) or outside (the decay). A millionth inside the bound, or with
# method="least_squares", the same fit converges.
# Why it matters: an offset of 0 with max=0 is a natural start; among many fits the frozen ones look converged, and the
# values in the table are the starting values.
# Instead: start strictly inside, or use method="least_squares"; treat a result equal to its start as a failure.
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
x = np.linspace(0, 10, 300)
noise = np.random.default_rng(1).normal(0, 0.05, 300)


def decay(x, a, b, c):
    return a * np.exp(-b * x) + c


def line(x, m, c):
    return m * x + c


cases = {
    "decay, c <= 0, data with c = 0.5": (decay, (3, 0.5, 0.5), {"a": 1, "b": 1}, {"max": 0}, -1e-6),
    "line, c <= 0, data with c = -1": (line, (2, -1), {"m": 1}, {"max": 0}, -1e-6),
}
for name, (f, truth, start, bound, inside) in cases.items():
    y = f(x, *truth) + noise
    fits = {}
    for label, c0, method in (("on", 0.0, "leastsq"), ("inside", inside, "leastsq"), ("on, trf", 0.0, "least_squares")):
        parameters = lmfit.Model(f).make_params(**start, c=c0)
        parameters["c"].set(**bound)
        fits[label] = r = lmfit.Model(f).fit(y, parameters, x=x, method=method)
        values = {k: round(v, 4) for k, v in r.best_values.items()}
        errors = {k: None if p.stderr is None else round(p.stderr, 4) for k, p in r.params.items()}
        print(f"{name}; start {label}: {values} +- {errors}, chi2 {r.chisqr:.1f}, {r.success}, nfev {r.nfev}, {r.message}")
    assert fits["on"].success and fits["on"].best_values == {**start, "c": 0.0}, fits["on"].best_values
    assert fits["inside"].chisqr < 0.9 * fits["on"].chisqr
    assert np.isclose(fits["on, trf"].chisqr, fits["inside"].chisqr, rtol=0.05)
PY
echo "as described: on the bound nothing moves, just inside everything does"
