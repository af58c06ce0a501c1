# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Robust losses
#
# Three in a hundred of these rows are outliers. With a robust loss they have less influence on the
# fit.

# %%
import dask.dataframe as dd
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import dask_nlsq  # adds .nlsq to frames


def decay(t, amplitude, rate, offset=0.0):
    return amplitude * jnp.exp(-rate * t) + offset


rng = np.random.default_rng(0)
t = rng.uniform(0, 5, 20_000)
clean = rng.normal(2.5 * np.exp(-1.3 * t) + 0.5, 0.1)
signal = np.where(rng.random(t.size) < 0.03, clean + rng.normal(3, 1, t.size), clean)
frame = dd.from_pandas(pd.DataFrame({"t": t, "signal": signal}), npartitions=4)

# %% [markdown]
# `f_scale` is the residual, in units of sigma (here of the signal), above which a residual counts as large: a few times
# the noise of the good rows. Losses that ignore distant points, such as `"tukey"`, are started from
# the result of a gentler one.

# %%
fits = {"linear": frame.nlsq.fit(decay, y="signal")}
fits["soft_l1"] = frame.nlsq.fit(decay, y="signal", loss="soft_l1", f_scale=0.2)
fits["huber"] = frame.nlsq.fit(decay, y="signal", loss="huber", f_scale=0.2)
for loss in ("cauchy", "tukey"):
    fits[loss] = frame.nlsq.fit(
        decay, y="signal", loss=loss, f_scale=0.4, p0=fits["huber"]
    )
table = pd.DataFrame({loss: fit.params for loss, fit in fits.items()})
table.assign(true=[2.5, 1.3, 0.5]).round(4)

# %%
grid = np.linspace(0, 5, 101)
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(
    t[:2000], signal[:2000], ".", color="0.7", markersize=3, label="2,000 of the rows"
)
axes.plot(
    grid,
    2.5 * np.exp(-1.3 * grid) + 0.5,
    color="black",
    linewidth=4,
    alpha=0.3,
    label="true curve",
)
for loss in ("linear", "huber", "tukey"):
    axes.plot(grid, fits[loss].predict(grid), label=loss)
axes.set(xlabel="t", ylabel="signal", ylim=(0, 6))
axes.legend()
plt.show()

# %% [markdown]
# The report of the last one. Its standard errors come from the curvature of the robust cost; its
# likelihood is not that of a Gaussian.

# %%
fits["tukey"]

# %% [markdown]
# If the variance of the residuals differs between rows and there are no outliers, the estimates of
# the linear loss are fine and only its standard errors are not: `cov_type="sandwich"` corrects
# these.

# %%
uneven = frame.assign(
    signal=0.5 + 2.5 * np.exp(-1.3 * frame["t"]) * (1 + 0.2 * np.sin(900 * frame["t"]))
)
standard, sandwich = (
    uneven.nlsq.fit(decay, y="signal", cov_type=kind)
    for kind in ("standard", "sandwich")
)
pd.DataFrame({"standard": standard.stderr, "sandwich": sandwich.stderr})

# %% [markdown]
# A loss that does not exist is refused, with the list of those that do.

# %% tags=["raises-exception"]
frame.nlsq.fit(decay, y="signal", loss="hubert")
