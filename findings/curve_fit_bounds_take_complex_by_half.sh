#!/usr/bin/env bash
# Complex data and a complex model: without bounds curve_fit raises, with bounds it fits the real part only; a real model is
# fitted to the real part either way, in lmfit and iminuit too.
#
# Guess: curve_fit refuses complex numbers whatever its bounds, and a fit of complex data to a real model is refused by all.
# What happens (scipy 1.17.1, lmfit 1.3.4, iminuit 2.33.0): method="lm" raises an error of MINPACK. With bounds="trf" the imaginary part
# of y is cast away, and that of the model does not move the estimates: they are those of the real parts alone, and the
# covariance is an array of complex numbers. A real model (the modulus) is fitted to the real part of y: by SciPy and iminuit with a
# ComplexWarning, by lmfit without a word, whose chi-square then holds the imaginary part of y as misfit.
# Why it matters: impedances and resonances are complex; a bound that keeps a resistance positive turns an error into the
# fit of half of the data, and abs() that was forgotten around y is not noticed.
# Instead: fit np.concatenate([y.real, y.imag]) with a model that returns both, or lmfit with a complex model.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check numpy==2.4.6 scipy==1.17.1 lmfit==1.3.4 iminuit==2.33.0
cd "$dir"
venv/bin/python - <<'PY'
import warnings
from importlib.metadata import version

import lmfit
import numpy as np
from iminuit import Minuit
from iminuit.cost import LeastSquares
from scipy.optimize import curve_fit

print({name: version(name) for name in ("numpy", "scipy", "lmfit", "iminuit")})
rng = np.random.default_rng(0)
w = np.linspace(0.1, 10, 400)


def impedance(w, r, c):
    return r / (1 + 1j * w * r * c)


def modulus(w, r, c):
    return r / np.sqrt(1 + (w * r * c) ** 2)


def real_part(w, r, c):
    return r / (1 + (w * r * c) ** 2)


def both_parts(w, r, c):
    return np.concatenate([impedance(w, r, c).real, impedance(w, r, c).imag])


y = impedance(w, 2.0, 0.5) + rng.normal(0, 0.01, 400) + 1j * rng.normal(0, 0.01, 400)
limits = ([0, 0], [9, 9])
warnings.simplefilter("ignore", np.exceptions.ComplexWarning)

try:
    curve_fit(impedance, w, y, (1, 1))
except Exception as error:
    print(f"without bounds:     {type(error).__name__}: {error}")
else:
    raise SystemExit("curve_fit without bounds accepted complex numbers")
bounded, pcov = curve_fit(impedance, w, y, (1, 1), bounds=limits)
half, _ = curve_fit(real_part, w, y.real, (1, 1), bounds=limits)
whole, pcov_whole = curve_fit(both_parts, w, np.concatenate([y.real, y.imag]), (1, 1), bounds=limits)
print("with bounds:       ", bounded, "+-", np.sqrt(np.diag(pcov)).round(6))
print("real parts alone:  ", half)
print("both parts:        ", whole, "+-", np.sqrt(np.diag(pcov_whole)))
assert np.allclose(bounded, half, rtol=1e-6) and not np.allclose(bounded, whole, rtol=2e-5)
assert np.iscomplexobj(pcov) and np.abs(np.diag(pcov).imag).max() > 0

of_real, _ = curve_fit(modulus, w, y.real, (1, 1))
minuit = Minuit(LeastSquares(w, y, 0.01, modulus), r=1, c=1)
minuit.migrad()
with warnings.catch_warnings():
    warnings.simplefilter("error")
    silent = lmfit.Model(modulus).fit(y, w=w, r=1, c=1)
answers = {
    "scipy": curve_fit(modulus, w, y, (1, 1))[0],
    "iminuit": np.array(minuit.values),
    "lmfit, no warning": np.array([silent.best_values["r"], silent.best_values["c"]]),
}
print("the modulus, fitted to complex y; to its real part:", of_real, "; the truth is [2, 0.5]")
for name, found in answers.items():
    print(f"    {name}: {found}")
    assert np.allclose(found, of_real, rtol=1e-3), name
assert silent.success and abs(of_real[1] - 0.5) > 0.5
print("lmfit's chi-square:", silent.chisqr, "; of the imaginary part of y alone:", (y.imag**2).sum())
assert silent.chisqr > (y.imag**2).sum()
PY
echo "as described"
