#!/usr/bin/env bash
# netCDF4-python returns masked arrays; SciPy, lmfit and iminuit fit the masked cells too, as if they were measured.
#
# Guess: cells that a masked array marks as missing are left out of a fit, or the fit refuses them as it refuses NaN.
# What happens (netCDF4 1.7.5.1.post1, scipy 1.17.1, lmfit 1.3.4, iminuit 2.33.0, astropy 8.0.2): the mask is lost on the way
# and the number below it is used. For a reading outside valid_range that is the rejected reading itself, for a cell never
# written 9.97e36, with which curve_fit gives back its start values. Nothing is reported. In astropy the linear fitter
# honours the mask; two nonlinear ones give a third and a fourth answer.
# Why it matters: f["y"][:] and curve_fit is the shortest way from a netCDF file to a fit; 8 rejected readings of 400 turn
# a rate of 0.50 into 0.38.
# Instead: keep = ~np.ma.getmaskarray(y); curve_fit(f, x[keep], y.compressed()), or y.filled(np.nan) to be refused.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check netCDF4==1.7.5.1.post1 numpy==2.4.6 scipy==1.17.1 lmfit==1.3.4 \
    iminuit==2.33.0 astropy==8.0.2
cd "$dir"
venv/bin/python -W ignore - <<'PY'
from importlib.metadata import version

import lmfit
import netCDF4
import numpy as np
from astropy.modeling import fitting, models
from iminuit import Minuit
from iminuit.cost import LeastSquares
from scipy.optimize import curve_fit

print({name: version(name) for name in ("netCDF4", "numpy", "scipy", "lmfit", "iminuit", "astropy")})


def decay(t, a, b):
    return a * np.exp(-b * t)


t = np.linspace(0, 10, 400)
y = decay(t, 3.0, 0.5) + np.random.default_rng(0).normal(0, 0.3, 400)
y[::50] += 20  # a lamp flashes
with netCDF4.Dataset("run.nc", "w") as file:
    file.createDimension("t", 400)
    variable = file.createVariable("y", "f8", ("t",))
    variable.valid_range = np.array([-5.0, 10.0])
    variable[:] = y
    unwritten = file.createVariable("half", "f8", ("t",))
    unwritten[:200] = y[:200]
with netCDF4.Dataset("run.nc") as file:
    y, half = file["y"][:], file["half"][:]
print(type(y).__name__, "with", int(y.mask.sum()), "of 400 cells masked")

keep = ~y.mask
truth, pcov = curve_fit(decay, t[keep], y.compressed(), (1, 1))
print("rate, masked cells left out:", truth[1], "+-", pcov[1, 1] ** 0.5)
assert abs(truth[1] - 0.5) < 0.05

cost = Minuit(LeastSquares(t, y, np.full(400, 0.3), decay), a=1, b=1)
cost.migrad()
exponential = models.custom_model(lambda t, a=1.0, b=1.0: a * np.exp(-b * t))
rates = {
    "scipy": curve_fit(decay, t, y, (1, 1))[0][1],
    "lmfit": lmfit.Model(decay).fit(y, t=t, a=1, b=1).best_values["b"],
    "iminuit": cost.values["b"],
    "astropy LevMarLSQFitter": fitting.LevMarLSQFitter()(exponential(), t, y).b.value,
    "astropy TRFLSQFitter": fitting.TRFLSQFitter()(exponential(), t, y).b.value,
}
unmasked = curve_fit(decay, t, y.data, (1, 1))[0][1]
print("rate, mask taken off by hand:", unmasked, "; the masked array given to:")
for name, rate in rates.items():
    print(f"    {name}: {rate:.6f}")
for name in ("scipy", "lmfit", "iminuit"):
    assert abs(rates[name] - unmasked) < 1e-3, name
assert abs(unmasked - truth[1]) > 0.1 and cost.valid
for name in ("astropy LevMarLSQFitter", "astropy TRFLSQFitter"):
    assert abs(rates[name] - truth[1]) > 0.01 and abs(rates[name] - unmasked) > 0.01, name

line = fitting.LinearLSQFitter()(models.Polynomial1D(1), t, y).parameters
assert np.allclose(line, np.polyfit(t[keep], y.compressed(), 1)[::-1])
popt = curve_fit(decay, t, half, (1, 1))[0]
print("half of the cells never written, scipy:", popt, "from the start (1, 1)")
assert popt.tolist() == [1, 1]
PY
echo "as described"
