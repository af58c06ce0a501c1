#!/usr/bin/env bash
# xarray and Zarr: measured zeros become NaN in format 2, and -9999 as the array's fill value stays data in format 3.
#
# Guess: the fill value in Zarr metadata is what unwritten cells read as; xarray masks by CF attributes, in both formats.
# What happens (zarr 3.1.6, xarray 2026.9.0): in format 2 xarray masks the metadata's fill value. zarr's default is 0, so
# counts written by zarr come back as floats with NaN for each 0. In format 3 it does not, so a fill value of -9999.0 in
# the metadata is not masked. The CF attribute `_FillValue`, set through zarr as a plain number, is overruled by that 0 in
# format 2 and raises TypeError in format 3. `missing_value` masks in both; in format 2 the zeros go as well.
# Why it matters: at low rates most counts are zero; without them the mean here is 1.25 and not 0.5, and the background
# of a fit moves with the format of the store.
# Instead: make float arrays with fill_value=NaN; read integers with mask_and_scale=False and mask them yourself.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check zarr==3.1.6 xarray==2026.9.0 numpy==2.4.6 pandas==3.1.1
cd "$dir"
venv/bin/python -W ignore - <<'PY'
import numpy as np
import xarray as xr
import zarr

print("zarr", zarr.__version__, "xarray", xr.__version__)


def write(zarr_format, name, values, attributes=None, **options):
    if zarr_format == 3:
        options["dimension_names"] = ["t"]
    values = np.asarray(values)
    path = f"{name}{zarr_format}.zarr"
    root = zarr.open_group(path, mode="w", zarr_format=zarr_format)
    a = root.create_array("y", shape=values.shape, chunks=values.shape, dtype=values.dtype, **options)
    a[:] = values
    a.attrs.update(attributes or {})
    if zarr_format == 2:
        a.attrs["_ARRAY_DIMENSIONS"] = ["t"]
    return path


def read(path):
    return xr.open_zarr(path, consolidated=False)["y"]


counts = np.array([0, 1, 0, 0, 2, 0, 1, 0, 0, 1], dtype="i4")
means = {f: float(read(write(f, "counts", counts)).mean()) for f in (2, 3)}
print("mean count, true", counts.mean(), "; format 2:", means[2], "; format 3:", means[3])
assert means == {2: 1.25, 3: 0.5}, means

y = np.array([1.0, -9999.0, 3.0])
marked = {f: read(write(f, "fill", y, fill_value=-9999.0)).values.tolist() for f in (2, 3)}
print("fill_value=-9999.0 in the metadata; format 2:", marked[2], "; format 3:", marked[3])
assert np.isnan(marked[2][1]) and marked[3][1] == -9999.0

attribute = {"_FillValue": -9999.0}
kept = read(write(2, "attribute", y, attribute)).values
print("attribute _FillValue=-9999.0, format 2:", kept)
assert kept[1] == -9999.0
try:
    read(write(3, "attribute", y, attribute))
except TypeError as error:
    print("attribute _FillValue=-9999.0, format 3: TypeError:", error)
else:
    raise SystemExit("format 3 now accepts the attribute")

y0 = np.array([0.0, -9999.0, 3.0])
named = {f: read(write(f, "named", y0, {"missing_value": -9999.0})).values for f in (2, 3)}
print("attribute missing_value=-9999.0; format 2:", named[2], "; format 3:", named[3])
assert np.isnan(named[2]).tolist() == [True, True, False] and np.isnan(named[3]).tolist() == [False, True, False]
PY
echo "as described"
