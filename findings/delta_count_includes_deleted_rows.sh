#!/usr/bin/env bash
# Delta: DeltaTable.count() includes rows that a deletion vector has deleted, and so do the files; a scan omits them.
#
# Guess: all ways of one library to ask for the rows agree; count(), by its docstring, is the true number or less.
# What happens (deltalake 1.6.6, polars 2.1.0): a table with 1000 rows, 300 of them deleted as Spark deletes, by a deletion
# vector in the log. scan(), QueryBuilder and Polars see 700. count() and num_records of get_add_actions say 1000;
# pyarrow or pandas on file_uris() read 1000; to_pandas, to_pyarrow_table and to_pyarrow_dataset raise DeltaProtocolError.
# Why it matters: rows are deleted because they are invalid or withdrawn. A user who gets the error from to_pandas and
# reads the list of current files instead fits the deleted rows too, and count(), used as a check, agrees.
# Instead: read through DeltaTable.scan, QueryBuilder or polars.scan_delta; run a REORG/PURGE where the table is written.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check deltalake==1.6.6 polars==2.1.0 pyarrow==26.0.1 pandas==3.1.1 pyroaring==1.2.0 numpy==2.4.6
cd "$dir"
venv/bin/python -W ignore - <<'PY'
import json
import struct
import time
from importlib.metadata import version
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
from deltalake import DeltaTable, QueryBuilder, write_deltalake
from deltalake.exceptions import DeltaProtocolError
from pyroaring import BitMap

print({name: version(name) for name in ("deltalake", "polars", "pyarrow", "pandas")})
write_deltalake("run", pa.table({"i": range(1000)}), configuration={"delta.enableDeletionVectors": "true"})

# The commit that a writer with deletion vectors makes for DELETE WHERE i < 300: an inline vector, as the protocol has it.
DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"  # Z85


def z85(data):
    data += bytes(-len(data) % 4)
    words = [int.from_bytes(data[k : k + 4], "big") for k in range(0, len(data), 4)]
    return "".join(DIGITS[word // 85**power % 85] for word in words for power in (4, 3, 2, 1, 0))


log = Path("run/_delta_log")
first = [json.loads(line) for line in (log / f"{0:020}.json").read_text().splitlines()]
add = next(action["add"] for action in first if "add" in action)
vector = struct.pack("<iqi", 1681511377, 1, 0) + BitMap(range(300)).serialize()
inline = {"storageType": "i", "pathOrInlineDv": z85(vector), "sizeInBytes": len(vector), "cardinality": 300}
stats = json.dumps({**json.loads(add["stats"]), "tightBounds": False})
now = int(time.time() * 1000)
remove = {"path": add["path"], "dataChange": True, "deletionTimestamp": now}
second = [{"commitInfo": {"operation": "DELETE"}}, {"remove": remove}, {"add": {**add, "stats": stats, "deletionVector": inline}}]
(log / f"{1:020}.json").write_text("".join(json.dumps(action) + "\n" for action in second))

table = DeltaTable("run")
selected = pa.table(QueryBuilder().register("run", table).execute("SELECT count(*) AS n FROM run"))["n"][0].as_py()
rows = {
    "scan": pa.table(table.scan()).num_rows,
    "QueryBuilder": selected,
    "polars.read_delta": pl.read_delta("run").height,
    "count": table.count(),
    "get_add_actions": pa.table(table.get_add_actions(flatten=True))["num_records"][0].as_py(),
    "pandas on file_uris": len(pd.read_parquet(table.file_uris())),
}
print(rows)
assert list(rows.values()) == [700, 700, 700, 1000, 1000, 1000], rows
for method in ("to_pandas", "to_pyarrow_table", "to_pyarrow_dataset"):
    try:
        getattr(table, method)()
    except DeltaProtocolError as error:
        print(f"{method}: DeltaProtocolError: {error}")
    else:
        raise SystemExit(f"{method} now reads the table")
PY
echo "as described"
