#!/usr/bin/env bash
# Polars: arithmetic on decimal columns rounds to the column's two places: 0.10 / 3 is 0.03 and 0.05 * 0.05 is 0.00.
#
# Guess: a quotient of decimals is a float, as in DuckDB, or has more places; a product has the places of both factors.
# What happens (polars 2.1.0, duckdb 2.0.1): the result is decimal(38, 2), with two places as the column had. DuckDB gives
# 0.0333... and 0.0025 for the same file. In Polars a float in the expression makes a float, so that x * 0.1 is right
# and x * x is not.
# Why it matters: prices, volumes and meter readings come from databases as decimal(10, 2). A square or a ratio made
# before a fit is off by up to all of its value; here a coefficient of exactly 4 comes out as 4.095 from data without noise.
# Instead: cast to pl.Float64 directly after reading.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check polars==2.1.0 duckdb==2.0.1 pyarrow==26.0.1 numpy==2.4.6
cd "$dir"
venv/bin/python -W ignore - <<'PY'
from decimal import Decimal
from importlib.metadata import version

import duckdb
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

print({name: version(name) for name in ("polars", "duckdb", "pyarrow", "numpy")})
values = [Decimal("0.05"), Decimal("0.10"), Decimal("0.15"), Decimal("0.20")]
pq.write_table(pa.table({"x": pa.array(values, pa.decimal128(10, 2))}), "meter.parquet")
x = pl.col("x")
frame = pl.read_parquet("meter.parquet").select(x, third=x / 3, square=x * x, tenth=x * 0.1)
print(frame)
print(duckdb.sql("SELECT x, x / 3 AS third, x * x AS square FROM 'meter.parquet'"))
assert frame["third"].to_list() == [Decimal(s) for s in ("0.02", "0.03", "0.05", "0.07")]
assert frame["square"].to_list() == [Decimal(s) for s in ("0.00", "0.01", "0.02", "0.04")]
assert frame["tenth"].dtype == pl.Float64 and np.isclose(frame["tenth"][3], 0.02)
right = duckdb.sql("SELECT x / 3, x * x FROM 'meter.parquet'").fetchall()
assert np.isclose(float(right[1][0]), 0.1 / 3) and float(right[0][1]) == 0.0025

exact = frame["x"].cast(pl.Float64).to_numpy() ** 2
y = 4 * exact
coefficients = []
for square in (frame["square"].cast(pl.Float64).to_numpy(), exact):
    coefficients.append(float(np.linalg.lstsq(square[:, None], y)[0][0]))
print("coefficient of x * x, true 4:", coefficients[0], "; after a cast to float:", coefficients[1])
assert np.isclose(coefficients[0], 4.0952, atol=1e-4) and np.isclose(coefficients[1], 4)
PY
echo "as described"
