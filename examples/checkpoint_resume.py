# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Checkpoint and resume
#
# A long fit may meet a wall time or a power failure. With `checkpoint=` it saves its state, and the
# same call resumes it, with the bits of a run that nothing interrupted.

# %%
import tempfile
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import dask_nlsq

folder = tempfile.TemporaryDirectory()
data, run = str(Path(folder.name) / "rows.parquet"), str(Path(folder.name) / "run")
rng = np.random.default_rng(0)
t = rng.uniform(0, 5, 200_000)
rows = pd.DataFrame({"t": t, "signal": rng.normal(2.5 * np.exp(-1.3 * t) + 0.5, 0.2)})
rows.to_parquet(data, row_group_size=20_000)


def decay(t, amplitude, rate, offset=0.0):
    return amplitude * jnp.exp(-rate * t) + offset


options = {"y": "signal", "data": data, "p0": [1, 1, 0], "tier": "chunked"}

# %% [markdown]
# A callback ends this fit after three sweeps, as a signal of a batch queue would.


# %%
def stop_after_three(intermediate_result):
    if intermediate_result.nfev == 3:
        raise StopIteration


stopped = dask_nlsq.fit(decay, checkpoint=run, callback=stop_after_three, **options)
print(stopped.success, stopped.message)

# %% [markdown]
# The folder contains a generation for each commit. Each is a Zarr group with a record of sizes and
# hashes.

# %%
checkpoints = dask_nlsq.Checkpoints(run)
assert checkpoints.verify() == {}
checkpoints.list()

# %% [markdown]
# The same call resumes the fit. Its history continues where it was interrupted, and its bits are
# those of a fit that ran through.

# %%
resumed = dask_nlsq.fit(decay, checkpoint=run, **options)
through = dask_nlsq.fit(decay, **options)
assert (resumed.popt == through.popt).all() and (resumed.pcov == through.pcov).all()
resumed

# %%
axes = resumed.plot_history("cost")
axes.axvline(3, color="0.5", linestyle="--", label="interrupted")
axes.legend()
plt.show()

# %% [markdown]
# A checkpoint of another fit is refused, with the differences and what can be done:

# %% tags=["raises-exception"]
dask_nlsq.fit(decay, checkpoint=run, bounds={"rate": (0, 9)}, **options)

# %%
folder.cleanup()
