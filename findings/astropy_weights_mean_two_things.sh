#!/usr/bin/env bash
# astropy: for the same straight line and the same weights, the linear fitter rescales its errors, the nonlinear ones don't.
#
# Guess: weights=1/sigma has one meaning in one package: all fitters report the same standard deviations.
# What happens (astropy 8.0.2): LinearLSQFitter multiplies the covariance by the reduced chi-square, with weights or
# without, so that sigma cancels. LevMarLSQFitter, TRFLSQFitter, DogBoxLSQFitter and LMLSQFitter treat weights as true 1/sigma
# and do not rescale, but without weights they do. Weights of all ones and no weights are the same fit with other errors.
# Why it matters: changing the fitter from nonlinear to linear "because the model is linear" changes every error bar by
# sqrt(reduced chi-square), here a factor of 3; relative weights (1, 1, 0.5) in a nonlinear fitter give errors in no unit.
# Instead: decide yourself, from fit_info["param_cov"] and the residuals; compare curve_fit(absolute_sigma=True or False).
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check astropy==8.0.2 scipy==1.17.1 numpy==2.4.6
cd "$dir"
venv/bin/python -W ignore - <<'PY'
from importlib.metadata import version

import numpy as np
from astropy.modeling import fitting, models
from scipy.optimize import curve_fit

print({name: version(name) for name in ("astropy", "scipy", "numpy")})
x = np.linspace(0, 10, 200)
y = 2 * x + 1 + np.random.default_rng(0).normal(0, 0.3, 200)  # true scatter 0.3
sigma = np.full(200, 0.1)  # what the instrument claims


def line(x, c0, c1):
    return c0 + c1 * x


reference = {a: curve_fit(line, x, y, sigma=sigma, absolute_sigma=a)[1][1, 1] ** 0.5 for a in (True, False)}
print("scipy, slope +-", reference, "by absolute_sigma; factor", reference[False] / reference[True])
assert reference[False] / reference[True] > 2.5
ones = np.ones(200)
for name in ("LinearLSQFitter", "LevMarLSQFitter", "TRFLSQFitter", "DogBoxLSQFitter", "LMLSQFitter"):
    errors = {}
    for label, weights in (("1/sigma", 1 / sigma), ("ones", ones), ("none", None)):
        fitter = getattr(fitting, name)(calc_uncertainties=True)
        errors[label] = fitter(models.Polynomial1D(1), x, y, weights=weights).stds["c1"]
    print(name, {label: round(float(error), 5) for label, error in errors.items()})
    linear = name == "LinearLSQFitter"
    assert np.isclose(errors["1/sigma"], reference[not linear], rtol=1e-3)
    assert np.isclose(errors["none"], reference[False], rtol=1e-3)
    assert np.isclose(errors["ones"], reference[False] if linear else 10 * reference[True], rtol=1e-3)
PY
echo "as described"
