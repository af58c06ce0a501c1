# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A spectrum of few counts: the lines of copper
#
# An X-ray spectrum of a reference material (EDS-TM002 of BAM), measured for 20 seconds in an electron
# microscope of 10 kV: photons in channels of 10 eV. It is a file of the package `exspy`, which need
# not be imported to read it. The K lines of copper lie where the continuum runs out.

# %%
import importlib.util
from pathlib import Path

import h5py
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import dask_nlsq  # adds .nlsq to frames

package = importlib.util.find_spec("exspy").submodule_search_locations[0]
with h5py.File(Path(package) / "data" / "EDS_SEM_TM002.hspy") as file:
    counts = file["Experiments/EDS SEM Spectrum/data"][:]
energy = np.round(0.01 * np.arange(len(counts)) - 0.1, 2)  # in keV
spectrum = pd.DataFrame({"energy": energy, "counts": counts.astype(float)})
frame = spectrum[spectrum["energy"].between(7.6, 10.11)]
frame["counts"].describe().round(1)

# %% [markdown]
# The model is the expected count of a channel: two Gaussian lines, whose width grows as the root of
# the energy, the continuum of electrons of 10 keV by the law of Kramers, and a floor. `alpha` and
# `beta` are the photons in each line.

# %%
CHANNEL, BEAM = 0.01, 10.0  # keV
SPLIT = 0.858  # from K alpha to K beta of copper, in keV


def line(energy, area, center, width):
    width = width * jnp.sqrt(center / 8.04)
    shape = jnp.exp(-0.5 * ((energy - center) / width) ** 2)
    return CHANNEL * area * shape / (width * np.sqrt(2 * np.pi))


def expected(energy, alpha, beta, center, width, continuum, floor):
    lines = line(energy, alpha, center, width)
    lines += line(energy, beta, center + SPLIT, width)
    return lines + continuum * jnp.maximum(BEAM - energy, 0) / energy + floor


start = {
    "alpha": 1500,
    "beta": 200,
    "center": 8.04,
    "width": 0.07,
    "continuum": 300,
    "floor": 3,
}
result = frame.nlsq.fit(expected, y="counts", p0=start, loss="poisson")
result

# %%
print("K beta / K alpha:", result.eval_uncertainty("beta / alpha"))

# %% [markdown]
# The usual least squares take the root of each count for its standard deviation. A channel that
# happens to be low gets a small one, and pulls the curve down.

# %%
neyman = frame.assign(error=np.sqrt(frame["counts"])).nlsq.fit(
    expected, y="counts", p0=start, sigma="error", absolute_sigma=True
)
figure, (top, bottom) = plt.subplots(
    2, sharex=True, figsize=(7, 5), height_ratios=[3, 1], layout="constrained"
)
fitted = result.predict(frame)
top.plot(frame["energy"], frame["counts"], ".", color="0.6", label="counts")
top.plot(frame["energy"], fitted, label="Poisson")
top.plot(frame["energy"], neyman.predict(frame), "--", label="root of the counts")
top.set(yscale="log", ylabel="counts a channel")
top.legend()
bottom.plot(
    frame["energy"], (frame["counts"] - fitted) / np.sqrt(fitted), ".", color="0.4"
)
bottom.axhline(0, linewidth=0.8)
bottom.set(xlabel="energy (keV)", ylabel="residual / σ")
plt.show()

# %% [markdown]
# The sum of the Poisson fit is that of the counts. The other misses about one photon a channel, and
# with them a third of the floor.

# %%
pd.DataFrame(
    {
        "Poisson": [*result.params, result.predict(frame).sum()],
        "standard error": [*result.stderr, np.sqrt(frame["counts"].sum())],
        "root of the counts": [*neyman.params, neyman.predict(frame).sum()],
    },
    index=[*result.params.index, "sum (counted: {:.0f})".format(frame["counts"].sum())],
).round(3)

# %% [markdown]
# ## One second of it
#
# To keep each photon with a probability of 1/20 makes the spectrum one of a single second, for counts
# that are thinned are Poisson again. A fifth of its channels is empty. An empty channel has no root
# to be weighted by:

# %%
rng = np.random.default_rng(1)


def thinned():
    kept = rng.binomial(frame["counts"].astype(int), 1 / 20)
    return frame.assign(counts=kept.astype(float))


second = thinned()
print(f"{(second['counts'] == 0).sum()} of {len(second)} channels are empty")

# %% tags=["raises-exception"]
second.assign(error=np.sqrt(second["counts"])).nlsq.fit(
    expected, y="counts", p0=start, sigma="error"
)

# %% [markdown]
# So the empty channels are left out, or get an error of 1. Fifty such seconds, fitted both ways and by
# the likelihood, beside a twentieth of the full spectrum:

# %%
scaled = [name for name in start if name not in ("center", "width")]
known = result.params[["center", "width"]].to_dict()
p0 = (result.params[scaled] / 20).to_dict()


def fit(rows, **options):
    found = rows.nlsq.fit(expected, y="counts", p0=p0, fixed=known, **options)
    return 20 * found.params[scaled]


def root(rows):
    rows = rows.assign(error=np.sqrt(rows["counts"].clip(lower=1)))
    return fit(rows, sigma="error", absolute_sigma=True)


seconds = [thinned() for _ in range(50)]
ways = {
    "Poisson": [fit(rows, loss="poisson") for rows in seconds],
    "empty left out": [root(rows[rows["counts"] > 0]) for rows in seconds],
    "empty with error 1": [root(rows) for rows in seconds],
}
means = pd.DataFrame({way: pd.DataFrame(found).mean() for way, found in ways.items()})
means.insert(0, "20 seconds", result.params[scaled])
means["error of a mean"] = pd.DataFrame(ways["Poisson"]).std() / np.sqrt(50)
means.round(2)

# %% [markdown]
# The means of the likelihood agree with the full spectrum to about two of their errors. Where the
# empty channels are left out, almost half of the continuum moves into the floor; with an error of 1
# for them, a third of it is lost, and in both a good part of the weaker line.
