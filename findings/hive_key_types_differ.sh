#!/usr/bin/env bash
# Hive folders: temp=0.5, run=007 and run=20240701120000 are numbers in some readers and strings in others.
#
# Guess: pyarrow, Polars and DuckDB infer the same type for a partition key: a float for 0.5, an integer for 1 and 2.
# What happens (pyarrow 26.0.1, pandas 3.1.1, polars 2.1.0, duckdb 2.0.1): only Polars makes 0.5 a float; to DuckDB and pyarrow
# it is a string, to pandas a category of strings. One folder temp=0.5 among integers turns all of them into strings.
# pyarrow knows only 32-bit integers: 14-digit run numbers are strings. 007 is 7 to pyarrow and Polars, '007' to DuckDB.
# A missing key that pandas wrote is read by Polars and pyarrow, and raises ArrowInvalid in pandas.
# Why it matters: the control variable of an experiment is often the folder name. filters=[("temp", ">", "9")] compares
# text and loses 10 and 20, and a program that works with integer keys breaks when a folder temp=0.5 is added.
# Instead: name the types: pyarrow.dataset.partitioning(schema, flavor="hive"), hive_schema=, hive_types=.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check pyarrow==26.0.1 pandas==3.1.1 polars==2.1.0 duckdb==2.0.1 numpy==2.4.6
cd "$dir"
venv/bin/python -W ignore - <<'PY'
from importlib.metadata import version

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds

print({name: version(name) for name in ("pyarrow", "pandas", "polars", "duckdb")})


def types(folder, keys, column):
    pd.DataFrame({column: keys, "y": 1.0}).to_parquet(folder, partition_cols=[column])
    described = duckdb.sql(f"DESCRIBE SELECT {column} FROM read_parquet('{folder}/*/*.parquet')").fetchall()
    found = {
        "pyarrow": str(ds.dataset(folder, partitioning="hive").schema.field(column).type),
        "polars": str(pl.read_parquet(f"{folder}/").schema[column]),
        "duckdb": described[0][1],
    }
    print(f"{column} = {list(keys)}: {found}")
    return tuple(found.values())


assert types("whole", [1, 2, 10], "temp") == ("int32", "Int64", "BIGINT")
assert types("half", [0.5, 1, 9.5, 10, 20], "temp") == ("string", "Float64", "VARCHAR")
assert types("long", [20240701120000, 20240701130000], "run") == ("string", "Int64", "BIGINT")
assert types("zeros", ["007", "010"], "run") == ("int32", "Int64", "VARCHAR")

warm = pd.read_parquet("half", filters=[("temp", ">", "9")])["temp"].tolist()
print("pandas, temp > '9':", warm)
assert warm == ["9.5"]
try:
    pd.read_parquet("half", filters=[("temp", ">", 9.0)])
except pa.ArrowNotImplementedError as error:
    print("pandas, temp > 9.0: ArrowNotImplementedError:", error)
else:
    raise SystemExit("pandas now compares temp with a number")

pd.DataFrame({"temp": [1, 2, None], "y": 1.0}).to_parquet("missing", partition_cols=["temp"])
assert sorted(pl.read_parquet("missing/")["temp"].to_list(), key=str) == [1, 2, None]
assert sorted(ds.dataset("missing", partitioning="hive").to_table()["temp"].to_pylist(), key=str) == [1, 2, None]
try:
    pd.read_parquet("missing")
except pa.ArrowInvalid as error:
    print("pandas, a missing key that it wrote: ArrowInvalid:", error)
else:
    raise SystemExit("pandas now reads the missing key")

named = ds.partitioning(pa.schema([("temp", pa.float64())]), flavor="hive")
assert str(ds.dataset("half", partitioning=named).schema.field("temp").type) == "double"
named = duckdb.sql("SELECT typeof(temp) FROM read_parquet('half/*/*.parquet', hive_types={'temp': DOUBLE}) LIMIT 1").fetchall()
assert named == [("DOUBLE",)] and pl.read_parquet("long/", hive_schema={"run": pl.String})["run"].dtype == pl.String
PY
echo "as described"
