# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A first fit
#
# An exponential decay, fitted to a column of a frame: write the model, name the columns, read the
# result.

# %%
import dask.dataframe as dd
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import dask_nlsq  # adds .nlsq to frames

# %% [markdown]
# The data are 100,000 noisy observations of a signal that decays. They are in a Dask frame of four
# partitions; files of Parquet or arrays would do as well.

# %%
rng = np.random.default_rng(0)
t = rng.uniform(0, 5, 100_000)
frame = pd.DataFrame({"t": t, "signal": rng.normal(2.5 * np.exp(-1.3 * t) + 0.5, 0.2)})
ddf = dd.from_pandas(frame, npartitions=4)

# %% [markdown]
# The model is a Python function in `jax.numpy`. Its first argument is a column, and the others are
# the parameters. A default is a starting value.


# %%
def decay(t, amplitude, rate, offset=0.0):
    return amplitude * jnp.exp(-rate * t) + offset


result = ddf.nlsq.fit(decay, y="signal")
result

# %% [markdown]
# Everything in the report is an attribute.

# %%
print(f"rate = {result.params['rate']:.4f} ± {result.stderr['rate']:.4f}")
print(f"half-life = {result.eval_uncertainty('log(2) / rate').value:.4f}")
result.conf_int(0.95)

# %% [markdown]
# `plot` shows the data, the fit, its bands and the residuals. So many rows are drawn as a density, which
# takes one pass over them, and the confidence band is narrower than the line.

# %%
result.plot()
plt.show()

# %% [markdown]
# `predict` and the bands take new values of the columns: 95 % of new observations lie in the
# prediction band.

# %%
result.prediction_band(pd.DataFrame({"t": np.linspace(0, 5, 6)}))

# %% [markdown]
# Is the model right? `diagnostics` says in words what does not look right, here nothing. A second
# model that adds a parameter shows whether the data ask for it: the smaller AICc is preferred.

# %%
print(result.diagnostics())


# %%
def stretched(t, amplitude, rate, offset=0.0, beta=1.0):
    return amplitude * jnp.exp(-((rate * t) ** beta)) + offset


wider = ddf.nlsq.fit(stretched, y="signal", p0=result)
print(dask_nlsq.compare(result, wider, names=["without beta", "with beta"]))
print(f"beta = {wider.params['beta']:.4f} ± {wider.stderr['beta']:.4f}")
result.history[["cost", "step", "accepted"]]

# %% [markdown]
# An invalid argument is refused, and the last line says what to do.

# %% tags=["raises-exception"]
ddf.nlsq.fit(decay, y="signals")
