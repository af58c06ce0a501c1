# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Streaming until the errors are small enough
#
# Often a part of the rows is sufficient. With `precision=`, a fit draws partitions at random and
# stops reading when the standard errors are as small as asked for. Rows that arrive one batch at a
# time are fitted by `StreamingFitter`.

# %%
import dask.dataframe as dd
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import dask_nlsq


def decay(t, amplitude, rate, offset=0.0):
    return amplitude * jnp.exp(-rate * t) + offset


def detector(seed, rows=5_000):
    rng = np.random.default_rng(seed)
    t = rng.uniform(0, 5, rows)
    return pd.DataFrame(
        {"t": t, "signal": rng.normal(2.5 * np.exp(-1.3 * t) + 0.5, 0.2)}
    )


# %% [markdown]
# ## Rows that lie still
#
# A million rows, sorted by time as a recorder writes them, in 200 partitions. Two percent is enough
# for every parameter:

# %%
rows = pd.concat([detector(seed) for seed in range(200)]).sort_values(
    "t", ignore_index=True
)
stored = dd.from_pandas(rows, npartitions=200)
enough = stored.nlsq.fit(decay, y="signal", precision=0.02)
enough

# %% [markdown]
# The intervals are those of the rows that were read. The fit of all rows lies within them, and its
# own are narrower:

# %%
everything = stored.nlsq.fit(decay, y="signal")
print(f"read {enough.n_obs:,} of {everything.n_obs:,} rows")
pd.DataFrame(
    {
        "2 % asked for": enough.stderr / enough.params,
        "all rows": everything.stderr / everything.params,
        "distance in standard errors": (enough.params - everything.params)
        / enough.stderr,
    }
)

# %% [markdown]
# ## Rows that arrive
#
# A `StreamingFitter` uses each batch once and has an estimate at any time.

# %%
fitter = dask_nlsq.StreamingFitter(
    decay, p0={"amplitude": 1.0, "rate": 1.0}, y="signal"
)
for seed in range(60):
    fitter.partial_fit(detector(seed, rows=200))
fitter.result()

# %%
history = fitter.history
figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
axes.errorbar(
    history["rows"], history["rate"], history["rate stderr"], fmt=".", capsize=2
)
axes.axhline(1.3, color="0.5", linestyle="--", label="true value")
axes.set(xlabel="rows", ylabel="rate")
axes.legend()
plt.show()

# %% [markdown]
# A batch that cannot be used changes nothing, and says why.

# %% tags=["raises-exception"]
fitter.partial_fit(detector(60, rows=200).assign(signal=np.nan))

# %% [markdown]
# `save` writes the state to one file, from which `StreamingFitter.load` continues with the same bits. The guide to
# streaming describes processes that drift, outliers and many sensors.
