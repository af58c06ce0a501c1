#!/usr/bin/env bash
# Parquet folders: files with local clock times and files with UTC instants are merged into one column, hours apart.
#
# Guess: timestamp[us] without a zone and timestamp[us, tz] are different types, so that a folder with both is refused.
# What happens (pyarrow 26.0.1, pandas 3.1.1, duckdb 2.0.1, polars 2.1.0): pyarrow, pandas and DuckDB take the type of the file
# whose name comes first and use the 64-bit integers of the others as they are. A logger's local 12:00 counts as 12:00 UTC.
# If the file without a zone comes first, the zone of the others is dropped and their times are UTC figures. Polars
# raises for a zone such as America/New_York, and merges silently only if the zone is UTC.
# Why it matters: after an update of a logger the series has a jump of the UTC offset, four hours here; a daily cycle
# fitted to it has a phase that belongs to neither half and a smaller amplitude.
# Instead: compare the schema of every file (pyarrow.parquet.read_schema) and localize the old ones before merging.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check pyarrow==26.0.1 pandas==3.1.1 duckdb==2.0.1 polars==2.1.0 numpy==2.4.6
cd "$dir"
venv/bin/python -W ignore - <<'PY'
from importlib.metadata import version
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

print({name: version(name) for name in ("pyarrow", "pandas", "duckdb", "polars", "numpy")})
zone = "America/New_York"
local = pd.date_range("2024-07-01", periods=480, freq="h", unit="us")  # the wall clock, over 20 days
y = np.cos(2 * np.pi * (local.hour.to_numpy() - 15) / 24)  # warmest at 15:00 on the wall clock
halves = {
    "without": pa.table({"t": local[:240], "y": y[:240]}),
    "with": pa.table({"t": local[240:].tz_localize(zone), "y": y[240:]}),
}


def cycle(times):
    hours = pd.DatetimeIndex(times).tz_localize(None).to_numpy().astype("M8[us]").astype("i8") / 3.6e9
    angle = 2 * np.pi * hours / 24
    a, b = np.linalg.lstsq(np.stack([np.cos(angle), np.sin(angle)], 1), values)[0]
    return np.arctan2(b, a) * 24 / (2 * np.pi) % 24, np.hypot(a, b)


for order in (("without", "with"), ("with", "without")):
    folder = Path("_".join(order))
    folder.mkdir()
    for k, name in enumerate(order):
        pq.write_table(halves[name], folder / f"{k}.parquet")
    merged = ds.dataset(folder).to_table()
    frame = pd.read_parquet(folder)
    values = frame["y"].to_numpy()
    instants = merged["t"].cast(pa.int64()).to_numpy()
    assert (instants == frame["t"].astype("int64").to_numpy()).all()
    epochs = duckdb.sql(f"SELECT epoch_us(t) FROM read_parquet('{folder}/*.parquet')").fetchall()
    assert sorted(e for (e,) in epochs) == sorted(instants.tolist())
    print(f"first the file {order[0]} a zone: type {merged.schema.field('t').type}, pandas {frame['t'].dtype}")
    hour, amplitude = cycle(frame["t"])
    print(f"    daily cycle on that clock: warmest at {hour:.2f} h, amplitude {amplitude:.3f} (true 15.00 h and 1)")
    assert merged.schema.field("t").type == halves[order[0]].schema.field("t").type
    assert abs(hour - 15) > 1.5 and amplitude < 0.9
    try:
        pl.read_parquet(f"{folder}/*.parquet")
    except pl.exceptions.SchemaError as error:
        print("    Polars: SchemaError:", str(error)[:70])
    else:
        raise SystemExit("Polars now merges the two types")
PY
echo "as described"
