#!/usr/bin/env bash
# pyarrow, pandas, pyiceberg: how many NaN rows a filter on Parquet keeps depends on the size of the row groups.
#
# Guess: a filter is a condition on rows: NaN != 5 is true, so NaN rows stay, however the file is cut.
# What happens (pyarrow 26.0.1, pandas 3.1.1, pyiceberg 0.12.0): row groups are first dropped by their minimum and maximum,
# which leave NaN out. A group of [NaN, 5] counts as "all 5" and goes with `!= 5`; one of [6, NaN] counts as "all above
# 5.5" and goes with ~(x > 5.5), NaN and all. The same column rewritten with other row groups (a compaction is enough)
# gives another number of rows. Polars 2.1.0 keeps the same rows each time.
# Why it matters: `x != sentinel` is how bad readings are taken out before a fit. The rows that go with them lack only x
# and are good in the other columns: N, and every estimate from those columns, follows the layout of the file.
# Instead: say what NaN should do, as in (x != 5) & ~is_nan(x), or filter in memory.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check pyarrow==26.0.1 pandas==3.1.1 numpy==2.4.6 polars==2.1.0 \
    'pyiceberg[sql-sqlite]==0.12.0'
cd "$dir"
venv/bin/python -W ignore - <<'PY'
from importlib.metadata import version
from math import nan
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyiceberg.catalog.sql import SqlCatalog

print({name: version(name) for name in ("pyarrow", "pandas", "pyiceberg", "polars")})
x = [nan, 5.0, 5.0, nan, 6.0, 7.0, nan, 8.0]
table = pa.table({"x": x})
field = pc.field("x")
conditions = {"x != 5": field != 5.0, "~(x > 5.5)": ~(field > 5.5), "~(x < 7.5)": ~(field < 7.5)}
print("rows kept in memory:", in_memory := {name: table.filter(c).num_rows for name, c in conditions.items()})
assert in_memory == {"x != 5": 6, "~(x > 5.5)": 5, "~(x < 7.5)": 4}

expected = {8: (6, 5, 4), 4: (4, 4, 2), 2: (4, 4, 2)}
for size, rows in expected.items():
    path = f"{size}.parquet"
    pq.write_table(table, path, row_group_size=size)
    kept = tuple(pq.read_table(path, filters=c).num_rows for c in conditions.values())
    print(f"row groups of {size}: pyarrow keeps {dict(zip(conditions, kept))}")
    assert kept == rows, kept
    assert len(pd.read_parquet(path, filters=[("x", "!=", 5.0)])) == rows[0]
    assert pl.scan_parquet(path).filter(pl.col("x") != 5.0).collect().height == 6

catalog = SqlCatalog("c", uri="sqlite:///catalog.db", warehouse=f"file://{Path.cwd()}")
catalog.create_namespace("lab")
found = {}
for name, parts in {"one file": [x], "two files": [x[:4], x[4:]]}.items():
    t = catalog.create_table("lab." + name.replace(" ", "_"), schema=table.schema)
    for part in parts:
        t.append(pa.table({"x": part}))
    found[name] = t.scan(row_filter="x != 5.0").to_arrow().num_rows
print("pyiceberg, x != 5.0:", found)
assert found == {"one file": 6, "two files": 4}, found
PY
echo "as described: 6 rows or 4, by the row groups"
