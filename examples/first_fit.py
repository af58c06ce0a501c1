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
# `predict` and the bands take new values of the columns. The confidence band of so many rows is narrower than the line;
# 95 % of new observations lie in the prediction band.

# %%
grid = np.linspace(0, 5, 101)
band = result.prediction_band(grid)
some = frame.sample(500, random_state=0)
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(
    some["t"], some["signal"], ".", color="0.6", markersize=3, label="500 of the rows"
)
axes.fill_between(grid, band.lower, band.upper, alpha=0.2, label="95 % prediction band")
axes.plot(grid, band.predicted, label="fit")
axes.set(xlabel="t", ylabel="signal")
axes.legend()
plt.show()

# %% [markdown]
# Is the model right? The history shows how the fit converged, and a second model that adds a
# parameter shows whether the data ask for it: the lower AIC is preferred.


# %%
def stretched(t, amplitude, rate, offset=0.0, beta=1.0):
    return amplitude * jnp.exp(-((rate * t) ** beta)) + offset


wider = ddf.nlsq.fit(stretched, y="signal", p0=result)
print(f"AIC {result.aic:.1f} without beta, {wider.aic:.1f} with it")
print(f"beta = {wider.params['beta']:.4f} ± {wider.stderr['beta']:.4f}")
result.history[["cost", "step", "accepted"]]

# %% [markdown]
# An invalid argument is refused, and the last line says what to do.

# %% tags=["raises-exception"]
ddf.nlsq.fit(decay, y="signals")
