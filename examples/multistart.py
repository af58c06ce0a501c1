# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The lowest of many minima
#
# The cost of a sinusoid has a minimum near each multiple of the resolution of its frequency. A fit
# from one start finds the nearest; `n_starts=` begins from many and lets all rows decide.

# %%
import dask.array as da
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import dask_nlsq


def oscillation(t, amplitude, frequency, phase, offset):
    return amplitude * jnp.sin(2 * jnp.pi * frequency * t + phase) + offset


rng = np.random.default_rng(0)
t = np.sort(rng.uniform(0, 1, 200_000))
y = 1.5 * np.sin(2 * np.pi * 13.37 * t + 0.8) + 2 + rng.normal(0, 0.5, t.size)
x, y = da.from_array(t, chunks=20_000), da.from_array(y, chunks=20_000)

# %% [markdown]
# The starts are spread over the bounds, which must be finite for every free parameter:

# %% tags=["raises-exception"]
dask_nlsq.fit(oscillation, x, y, n_starts=64)

# %%
bounds = {
    "amplitude": (0, 10),
    "frequency": (0, 20),
    "phase": (-np.pi, np.pi),
    "offset": (-10, 10),
}
result = dask_nlsq.fit(oscillation, x, y, bounds=bounds, n_starts=64)
result

# %% [markdown]
# `starts` has a row for each start: where it began, where it led, and the cost there.

# %%
result.starts[["p0_frequency", "frequency", "cost", "rows", "minimum", "status"]].query(
    "minimum >= 0"
).sort_values("minimum").head(8)

# %%
starts = result.starts.dropna(subset="frequency")
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
lowest = starts["minimum"] == 0
axes.plot("p0_frequency", "frequency", "o", data=starts[~lowest], label="other minima")
axes.plot(
    "p0_frequency", "frequency", "s", data=starts[lowest], label="the lowest minimum"
)
axes.axhline(13.37, color="0.5", linestyle="--", label="true frequency")
axes.set(xlabel="frequency at the start", ylabel="frequency of its minimum")
axes.legend()
plt.show()

# %% [markdown]
# All starts are explored on 2,048 rows, the lowest minima on a sample of 100,000, and those that
# remain on all rows in the same sweeps, so 64 starts cost little more than one. The note gives the
# number of starts that led to the lowest minimum; if only one did, use more starts or narrower
# bounds.

# %%
print(result.notes[-1])
print(result.nsweeps, "sweeps over all rows")
