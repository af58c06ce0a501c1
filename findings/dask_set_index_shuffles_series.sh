#!/usr/bin/env bash
# Dask: set_index and shuffle put the rows of one key into another order each time the same frame is computed.
#
# Guess: rows of a sensor that were in the order of time stay in it, or come in one order that is always the same.
# What happens (dask 2026.8.0, threads): ten computes of one frame give ten orders. The pieces of a sensor, from
# partitions of successive days, are joined as they arrive, so that a morning may come before the evening of the day
# before. No row is lost, sums by key are right, and a sorted divisions attribute suggests that all is in order.
# Why it matters: what looks at neighbours (differences, rolling means, autocorrelations, "the last value of each
# sensor") is wrong, and another in each run: here the correlation of successive values comes out as 0.88 where it is
# 0.90, and the sum of the last values, -0.84, as anything from -22 to 21.
# Instead: sort within partitions by time after set_index, with map_partitions(lambda part: part.sort_values("time")).
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check 'dask[dataframe]==2026.8.0' pandas==3.1.1 pyarrow==26.0.1 numpy==2.4.6
cd "$dir"
venv/bin/python -W ignore - <<'PY'
from importlib.metadata import version

import dask.dataframe as dd
import numpy as np
import pandas as pd

print({name: version(name) for name in ("dask", "pandas", "pyarrow", "numpy")})
rng = np.random.default_rng(0)
values = np.zeros((2000, 20))  # by time and sensor, each with a correlation of 0.9 from one time to the next
for i in range(1, 2000):
    values[i] = 0.9 * values[i - 1] + rng.normal(0, 1, 20)
frame = pd.DataFrame({"time": np.repeat(np.arange(2000), 20), "sensor": np.tile(np.arange(20), 2000), "v": values.ravel()})
days = dd.from_pandas(frame, npartitions=40)


def successive(part):
    groups = part.groupby("sensor")["v"]
    return pd.DataFrame({"r": [part["v"].corr(groups.shift(1))], "last": [groups.last().sum()]})


def looked_at(lazy):
    """The number of orders in ten computes, correlations of successive values, and sums of each sensor's last value."""
    wholes = [lazy.compute() for _ in range(10)]
    rows = pd.concat([successive(whole) for whole in wholes])
    assert all(np.isclose(whole["v"].sum(), frame["v"].sum()) and len(whole) == len(frame) for whole in wholes)
    return len({tuple(whole["time"]) for whole in wholes}), rows["r"].round(3).tolist(), rows["last"].round(2).tolist()


truth = successive(frame)
print("truth: correlation", round(truth["r"].item(), 3), "sum of the last values", round(truth["last"].item(), 2))
for name, lazy in {"set_index": days.set_index("sensor"), "shuffle": days.shuffle("sensor")}.items():
    orders, correlations, last = looked_at(lazy)
    print(f"{name}: {orders} orders in 10 computes; correlations {sorted(set(correlations))}; last values {sorted(set(last))}")
    assert orders > 5 and len(set(last)) > 5 and max(correlations) < truth["r"].item() - 0.005
mended = days.set_index("sensor").map_partitions(lambda part: part.sort_values("time"))
orders, correlations, last = looked_at(mended)
print(f"sorted by time within partitions: {orders} order; correlation {set(correlations)}; last values {set(last)}")
assert (orders, len(set(last))) == (1, 1) and np.isclose(correlations[0], truth["r"].item(), atol=1e-3)
PY
echo "as described"
