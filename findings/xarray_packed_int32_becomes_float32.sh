#!/usr/bin/env bash
# xarray decodes packed int32 with a float32 scale_factor to float32; netCDF4-python decodes the same variable to float64.
#
# Guess: 32-bit counts need more than the 24 bits of a float32, so decoding goes to float64, in every library alike.
# What happens (xarray 2026.9.0, netCDF4 1.7.5.1.post1): the type of the *attribute* decides in xarray. scale_factor = 0.001
# written as a float gives float32, as a double float64. netCDF4-python multiplies as NumPy does and gives float64 both
# times. Above 2**24 counts the steps of the float32 are larger than one count: milliseconds since midnight, in seconds,
# move in steps of 8 ms at the end of the day.
# Why it matters: times and positions are stored like this; the phase of a 50 Hz signal fitted to such a time axis is
# smeared, and a residual of several tenths appears that is not in the data.
# Instead: open with mask_and_scale=False and multiply in float64 yourself.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check xarray==2026.9.0 netCDF4==1.7.5.1.post1 numpy==2.4.6 pandas==3.1.1 scipy==1.17.1
cd "$dir"
venv/bin/python -W ignore - <<'PY'
from importlib.metadata import version

import netCDF4
import numpy as np
import xarray as xr
from scipy.optimize import curve_fit

print({name: version(name) for name in ("xarray", "netCDF4", "numpy", "scipy")})
counts = np.arange(86_300_000, 86_310_000, 7, dtype="i4")  # milliseconds since midnight, ten seconds late in the day
with netCDF4.Dataset("day.nc", "w") as file:
    file.createDimension("row", counts.size)
    for name, kind in (("as_float", np.float32), ("as_double", np.float64)):
        variable = file.createVariable(name, "i4", ("row",))
        variable.set_auto_maskandscale(False)
        variable[:] = counts
        variable.scale_factor = kind(0.001)

t = counts * 0.001
y = np.sin(2 * np.pi * 50 * (t - t[0]) + 0.3)


def sine(t, amplitude, phase):
    return amplitude * np.sin(2 * np.pi * 50 * t + phase)


with netCDF4.Dataset("day.nc") as file:
    netcdf = {name: file[name][:] for name in ("as_float", "as_double")}
opened = xr.open_dataset("day.nc")
fitted = {}
for library, variables in {"netCDF4": netcdf, "xarray": {n: opened[n].values for n in ("as_float", "as_double")}}.items():
    for name, values in variables.items():
        seconds = np.asarray(values, "f8")
        steps = np.unique(np.round(np.diff(seconds), 4))
        popt = curve_fit(sine, seconds - seconds[0], y, (1, 0))[0]
        rms = np.std(y - sine(seconds - seconds[0], *popt))
        fitted[library, name] = values.dtype, rms
        print(f"{library} {name}: {values.dtype}, steps {steps}, amplitude {popt[0]:.3f}, rms residual {rms:.3f}")
assert {k: str(d) for k, (d, _) in fitted.items()} == {
    ("netCDF4", "as_float"): "float64",
    ("netCDF4", "as_double"): "float64",
    ("xarray", "as_float"): "float32",
    ("xarray", "as_double"): "float64",
}
assert fitted["netCDF4", "as_float"][1] < 0.05 < 0.3 < fitted["xarray", "as_float"][1]
PY
echo "as described"
