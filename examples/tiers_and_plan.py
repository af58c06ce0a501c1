# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Tiers and the plan
#
# A fit decides before it reads: load the rows into this process, or leave them where they are. The
# plan says what will be done and what it will need, and the result is the same for every tier.

# %%
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd

import dask_nlsq

folder = tempfile.TemporaryDirectory()
rng = np.random.default_rng(0)
for number in range(8):
    t = rng.uniform(0, 5, 50_000)
    rows = pd.DataFrame(
        {"t": t, "signal": rng.normal(2.5 * np.exp(-1.3 * t) + 0.5, 0.2)}
    )
    rows.to_parquet(Path(folder.name) / f"{number}.parquet")


def decay(t, amplitude, rate, offset=0.0):
    return amplitude * jnp.exp(-rate * t) + offset


# %% [markdown]
# `plan` takes the arguments of `fit`. It reads the footers of the files and one partition.

# %%
plan = dask_nlsq.plan(decay, y="signal", data=folder.name)
plan

# %% [markdown]
# Each decision has a reason.

# %%
print(plan.explain())

# %% [markdown]
# With less memory, or at another size, the plan is another one. This is the choice for 50 million
# rows with the memory of a laptop and of a server, in gigabytes:

# %%
for memory in (8, 100):
    print(
        memory,
        dask_nlsq.auto_select_workflow(50_000_000, n_params=3, memory=memory).tier,
    )

# %% [markdown]
# Memory that does not suffice is an error before anything is read. The message has both numbers and
# the remedy.

# %% tags=["raises-exception"]
dask_nlsq.fit(decay, y="signal", data=folder.name, memory_limit="300 MB")

# %% [markdown]
# The tier changes neither the estimates nor their errors, up to rounding:

# %%
tiers = {
    tier: dask_nlsq.fit(decay, y="signal", data=folder.name, tier=tier)
    for tier in ("standard", "chunked", "streaming")
}
pd.DataFrame(
    {
        tier: {
            "rate": f"{fit.params['rate']:.9f}",
            "stderr": f"{fit.stderr['rate']:.9f}",
            "sweeps": fit.nsweeps,
        }
        for tier, fit in tiers.items()
    }
)

# %% [markdown]
# Afterwards, the report sets what was predicted beside what was measured.

# %%
print(tiers["chunked"].plan.report())

# %%
folder.cleanup()
