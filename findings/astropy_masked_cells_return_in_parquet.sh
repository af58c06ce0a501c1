#!/usr/bin/env bash
# astropy: pandas, Polars and h5py read the masked values of a table written to Parquet or HDF5 as valid ones.
#
# Guess: masked cells become nulls in Parquet, which has nulls, and NaN in HDF5.
# What happens (astropy 8.0.2): Table.write stores the number below the mask as an ordinary value and the mask as a second
# column, "y.mask". Only astropy combines them again. The Parquet column has a null count of 0. to_pandas() and FITS,
# of the same table, do make the cell missing.
# Why it matters: values are masked because they are invalid. Other software, such as a fit on Dask, sees a complete
# column and uses the invalid values, here 1e9 in a mean of 2.
# Instead: table.to_pandas().to_parquet(...), or table["y"].filled(np.nan) before writing.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check astropy==8.0.2 numpy==2.4.6 pandas==3.1.1 pyarrow==26.0.1 polars==2.1.0 h5py==3.16.0
cd "$dir"
venv/bin/python -W ignore - <<'PY'
from importlib.metadata import version

import h5py
import numpy as np
import pandas as pd
import polars as pl
import pyarrow.parquet as pq
from astropy.table import MaskedColumn, Table

print({name: version(name) for name in ("astropy", "pandas", "polars", "pyarrow", "h5py")})
table = Table({"x": [0.0, 1.0, 2.0], "y": MaskedColumn([1.0, 1e9, 3.0], mask=[False, True, False])})
table.write("run.parquet")
table.write("run.h5", path="run", serialize_meta=True)
table.write("run.fits")
read = {
    "pandas, Parquet": pd.read_parquet("run.parquet")["y"].to_numpy(),
    "polars, Parquet": pl.read_parquet("run.parquet")["y"].to_numpy(),
    "h5py, HDF5": h5py.File("run.h5")["run"]["y"],
}
print("mean of y in astropy:", table["y"].mean())
for name, y in read.items():
    print(f"mean of y in {name}: {np.mean(y)}")
    assert y.tolist() == [1.0, 1e9, 3.0], name
parquet = pq.read_table("run.parquet")
print("columns:", parquet.column_names, "nulls in y:", parquet["y"].null_count)
assert parquet.column_names == ["x", "y", "y.mask"] and parquet["y"].null_count == 0
assert Table.read("run.parquet")["y"].mask.tolist() == [False, True, False]
assert table.to_pandas()["y"].isna().tolist() == [False, True, False]
assert np.ma.getmaskarray(Table.read("run.fits")["y"]).tolist() == [False, True, False]
PY
echo "as described"
