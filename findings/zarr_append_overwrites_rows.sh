#!/usr/bin/env bash
# Zarr: a second append through a group overwrites the rows of the first, without a warning.
#
# Guess: after `zarr.open_group(path)["y"].append(rows)`, opening the group again shows the longer array, and a second
# append goes behind the first.
# What happens (zarr 3.1.6, xarray 2026.9.0): xarray leaves consolidated metadata at the root. An append through the group
# changes the array's own metadata and not that copy, and open_group uses the copy. The next process to open the group sees
# the old length; its append starts there, writes over the rows that are already stored, and then sets a shorter length.
# xarray.open_zarr never sees any of the appended rows.
# Why it matters: an instrument that appends one block per hour keeps the first block and the last; a fit to the store
# runs without complaint on a fraction of the measurements.
# Instead: append with Dataset.to_zarr(append_dim=...), or open with use_consolidated=False to write, call
# zarr.consolidate_metadata(path) afterwards, or never write consolidated metadata to a store that grows.
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
for zarr_format in (2, 3):
    path = f"run{zarr_format}.zarr"
    xr.Dataset({"y": ("t", np.array([1.0, 1.0]))}).to_zarr(path, zarr_format=zarr_format, consolidated=True)
    for block in (2.0, 3.0, 4.0):  # three visits, two rows each
        y = zarr.open_group(path, mode="r+")["y"]
        print(f"format {zarr_format}: length seen {y.shape[0]}, appending two rows of {block}")
        y.append(np.full(2, block))
    stored = zarr.open_array(f"{path}/y", mode="r")[:]
    seen = xr.open_zarr(path)["y"].values
    print("rows written: 8; rows stored:", stored, "; rows xarray shows:", seen)
    assert stored.tolist() == [1, 1, 4, 4], stored
    assert seen.tolist() == [1, 1], seen

    y = zarr.open_group(path, mode="r+", use_consolidated=False)["y"]
    y.append(np.full(2, 5.0))
    assert zarr.open_group(path, mode="r", use_consolidated=False)["y"][:].tolist() == [1, 1, 4, 4, 5, 5]
PY
echo "as described: of three appends only the last is left"
