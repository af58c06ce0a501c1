#!/usr/bin/env bash
# Dask: map_partitions over a Parquet folder makes 4 calls although npartitions says 20, and the answer changes.
#
# Guess: a frame of 20 partitions calls the function 20 times; one row per partition gives 20 rows.
# What happens (dask 2026.8.0): when few of the columns are asked for, several files are read as one partition, at compute
# time, and nothing shows it beforehand: npartitions and optimize().npartitions both say 20. Of ten columns all asked
# for, 20 calls; two or one, 4 calls. to_delayed() makes 20 pieces, too.
# Why it matters: fits or means per partition, and their spread / sqrt(npartitions) as an error bar, rest on a number of
# pieces that isn't the one used: here 0.0062 where the true error is 0.01. Asking for more columns alters the result.
# Instead: use the number of rows that came back, or to_delayed().
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check 'dask[dataframe]==2026.8.0' pandas==3.1.1 pyarrow==26.0.1 numpy==2.4.6
cd "$dir"
venv/bin/python -W ignore - <<'PY'
from importlib.metadata import version

import dask
import dask.dataframe as dd
import numpy as np
import pandas as pd

print({name: version(name) for name in ("dask", "pandas", "pyarrow", "numpy")})
rng = np.random.default_rng(0)
for i in range(20):
    pd.DataFrame({f"c{k}": rng.normal(0, 1, 500) for k in range(10)}).to_parquet(f"run{i:02}.parquet")


def mean(part):
    return pd.DataFrame({"mean": [part["c0"].mean()], "rows": [len(part)]})


frame = dd.read_parquet("run*.parquet")
pieces = {}
for name, columns in {"all columns": list(frame.columns), "two columns": ["c0", "c1"], "one column": ["c0"]}.items():
    chosen = frame[columns]
    rows = chosen.map_partitions(mean, meta={"mean": "f8", "rows": "i8"}).compute()
    pieces[name] = len(rows)
    naive = rows["mean"].std() / np.sqrt(chosen.npartitions)
    print(f"{name}: npartitions {chosen.npartitions}, after optimize() {chosen.optimize().npartitions}, calls {len(rows)},"
          f" rows per call {sorted(set(rows['rows']))}, spread / sqrt(npartitions) {naive:.4f}")
    assert chosen.npartitions == chosen.optimize().npartitions == len(chosen.to_delayed()) == 20
print("true standard error of the mean:", 1 / np.sqrt(20 * 500))
assert pieces == {"all columns": 20, "two columns": 4, "one column": 4}, pieces
parts = dask.compute(*[dask.delayed(mean)(part) for part in frame[["c0"]].to_delayed()])
print("through to_delayed:", len(parts), "calls")
assert len(parts) == 20 and all(p["rows"].item() == 500 for p in parts)
PY
echo "as described"
