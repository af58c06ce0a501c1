#!/usr/bin/env bash
# DuckDB: WHERE isnan(x) finds nothing, and WHERE NOT isnan(x) keeps every NaN, in Parquet files of pyarrow and Polars.
#
# Guess: isnan in a WHERE clause sees the values, the same as in a SELECT list or in a FILTER.
# What happens (duckdb 2.0.1, files by pyarrow 26.0.1 and polars 2.1.0): their column statistics leave NaN out, so that
# [NaN, 5, 8] has maximum 8. DuckDB orders NaN above all numbers, infers from that maximum that there is none, and
# replaces the condition by a constant: an empty result, or no filter at all. FILTER (WHERE isnan(x)) on the same file
# is right, so is isfinite(x), and so are all of these on a file that DuckDB wrote. max(x) is 8 in pyarrow's file, else NaN.
# Why it matters: WHERE NOT isnan(x) is the obvious way to clean a column for a fit; the NaN come through, and the query
# that counts them beforehand says there are none.
# Instead: WHERE isfinite(x).
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check duckdb==2.0.1 pyarrow==26.0.1 polars==2.1.0
cd "$dir"
venv/bin/python - <<'PY'
from importlib.metadata import version
from math import isnan, nan

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

print({name: version(name) for name in ("duckdb", "pyarrow", "polars")})
table = pa.table({"x": [nan, 5.0, 6.0, nan, 8.0]})
pq.write_table(table, "pyarrow.parquet")
pl.DataFrame({"x": table["x"].to_pylist()}).write_parquet("polars.parquet")
duckdb.register("t", table)
duckdb.sql("COPY t TO 'duckdb.parquet' (FORMAT parquet)")


def ask(query):
    return duckdb.sql(query).fetchall()[0][0]


right = {"isnan": 2, "NOT isnan": 3, "isfinite": 3, "FILTER": 2, "max is NaN": True}
wrong = {"isnan": 0, "NOT isnan": 5, "isfinite": 3, "FILTER": 2, "max is NaN": False}
for writer, expected in {"duckdb": right, "pyarrow": wrong, "polars": wrong | {"max is NaN": True}}.items():
    source = f"'{writer}.parquet'"
    answer = {
        "isnan": ask(f"SELECT count(*) FROM {source} WHERE isnan(x)"),
        "NOT isnan": ask(f"SELECT count(*) FROM {source} WHERE NOT isnan(x)"),
        "isfinite": ask(f"SELECT count(*) FROM {source} WHERE isfinite(x)"),
        "FILTER": ask(f"SELECT count(*) FILTER (WHERE isnan(x)) FROM {source}"),
        "max is NaN": isnan(ask(f"SELECT max(x) FROM {source}")),
    }
    print(f"written by {writer}: {answer}")
    assert answer == expected, answer
print(duckdb.sql("EXPLAIN SELECT x FROM 'pyarrow.parquet' WHERE isnan(x)").fetchall()[0][1])
PY
echo "as described: of two NaN, WHERE isnan(x) finds none"
