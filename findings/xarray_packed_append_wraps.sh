#!/usr/bin/env bash
# xarray: values appended to a store of packed integers wrap around, 1000 to -310.72, without a warning.
#
# Guess: a value outside the packed range raises, or at least warns, or becomes the fill value.
# What happens (xarray 2026.9.0, zarr 3.1.6): to_zarr(append_dim=...) takes scale_factor and int16 from the store, whatever
# the new data are, rounds them to the store's step (pi becomes 3.14) and casts without checking the range. A value
# that is rounded to the integer of _FillValue is read as NaN. A dataset that was read from such a file and given new
# values with .values[:] is written back in the same way to netCDF; arithmetic loses the packing, and is safe.
# Why it matters: the range is fixed by the first batch; the first large event of a later batch turns into a plausible
# negative number, and a robust or weighted fit has no way to know.
# Instead: before appending, compare with (iinfo.min, iinfo.max) * scale_factor + add_offset; drop .encoding before writing.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check xarray==2026.9.0 zarr==3.1.6 numpy==2.4.6 pandas==3.1.1 h5netcdf==1.8.2 h5py==3.16.0
cd "$dir"
venv/bin/python - <<'PY'
import warnings
from importlib.metadata import version

import numpy as np
import xarray as xr

print({name: version(name) for name in ("xarray", "zarr", "numpy", "h5netcdf")})
packed = {"y": {"dtype": "i2", "scale_factor": 0.01, "_FillValue": -32768}}


def series(*values):
    return xr.Dataset({"y": ("t", np.array(values))})


with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    series(1.0, 2.0).to_zarr("run.zarr", encoding=packed, zarr_format=2)
    series(1000.0, np.pi, 327.68).to_zarr("run.zarr", append_dim="t")
    zarr_back = xr.open_zarr("run.zarr").y.values
    series(1.0, 2.0, 3.0).to_netcdf("run.nc", encoding=packed, engine="h5netcdf")
    again = xr.load_dataset("run.nc", engine="h5netcdf")
    again.y.values[:] = [1000.0, np.pi, 327.68]
    again.to_netcdf("again.nc", engine="h5netcdf")
    netcdf_back = xr.load_dataset("again.nc", engine="h5netcdf").y.values
    (again * 1.0).to_netcdf("product.nc", engine="h5netcdf")
    product = xr.load_dataset("product.nc", engine="h5netcdf").y.values
print("written [1000, pi, 327.68]")
print("    appended to Zarr:", zarr_back[2:])
print("    netCDF, values changed in place:", netcdf_back)
print("    netCDF, product with 1.0:", product)
print("warnings:", [str(w.message) for w in caught])
for back in (zarr_back[2:], netcdf_back):
    assert np.allclose(back, [-310.72, 3.14, np.nan], equal_nan=True), back
assert product.tolist() == [1000.0, np.pi, 327.68]
assert not caught
PY
echo "as described"
