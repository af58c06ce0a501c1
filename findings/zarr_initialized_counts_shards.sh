#!/usr/bin/env bash
# Zarr: nchunks_initialized equals nchunks although nine tenths of the chunks were never written.
#
# Guess: with chunks inside shards, nchunks_initialized counts the chunks that hold data, as nchunks counts all of them,
# so that their ratio says how much of an array has been filled.
# What happens (zarr 3.1.6): a shard that exists counts for all chunks that would fit in it. One chunk written in each
# shard is enough for 80 of 80, while without shards the same writes give 8 of 80. The other chunks read as the fill value.
# Why it matters: a job that waits for all chunks before it fits, or a progress bar of a simulation, treats an array
# as complete of which 90 % is fill value; with a fill value of 0 the fit then takes those rows for measured zeros.
# Instead: count what is not the fill value (choose NaN), or let each writer record what it has written.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check zarr==3.1.6 numpy==2.4.6
cd "$dir"
venv/bin/python - <<'PY'
import numpy as np
import zarr

print("zarr", zarr.__version__)
counts = {}
for shards in (None, (1000,)):
    a = zarr.create_array(f"{shards}.zarr", shape=(8000,), chunks=(100,), shards=shards, dtype="f8", fill_value=np.nan)
    for start in range(0, 8000, 1000):
        a[start : start + 100] = 1.0
    written = int(np.isfinite(a[:]).sum()) // 100
    counts[shards] = (a.nchunks_initialized, a.nchunks)
    print(f"shards={shards}: chunks written {written}, nchunks_initialized {a.nchunks_initialized} of nchunks {a.nchunks}")
    assert written == 8
assert counts == {None: (8, 80), (1000,): (80, 80)}, counts
PY
echo "as described: 8 of 80 chunks written, 80 counted"
