# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Carbon dioxide at Mauna Loa: a trend and a season
#
# Weekly means of the concentration of CO₂ in the air over Hawaii from 1958 to 2001, as they come
# with statsmodels. The model is a parabola with a yearly cycle of two harmonics whose size grows
# with time.

# %%
import dask.dataframe as dd
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import statsmodels.api as sm

import dask_nlsq  # adds .nlsq to frames

weekly = sm.datasets.co2.load_pandas().data
frame = pd.DataFrame({"co2": weekly["co2"].to_numpy(), "date": weekly.index})
start_of_year = frame["date"].dt.to_period("Y").dt.start_time
frame["year"] = frame["date"].dt.year + (frame["date"] - start_of_year) / pd.Timedelta(
    days=365.2425
)
ddf = dd.from_pandas(frame, npartitions=4)
frame.describe().loc[["count", "min", "max"], ["co2", "year"]]

# %% [markdown]
# A date as x would be converted to seconds. Years are the better unit here, counted from the middle
# of the record, so that the coefficients of the parabola are not strongly correlated.


# %%
def season(year, amplitude, peak, second, second_peak, growth):
    """A yearly cycle (ppm), the time of its peak, a harmonic of half a year, growth."""
    cycle = amplitude * jnp.cos(2 * jnp.pi * (year - peak)) + second * jnp.cos(
        4 * jnp.pi * (year - second_peak)
    )
    return cycle * (1 + growth * (year - 1980))


def trend(year, level, slope, curvature):
    """The concentration without the season (ppm), its slope (ppm a year) and its curvature."""
    return level + slope * (year - 1980) + curvature * (year - 1980) ** 2


def carbon_dioxide(
    year, level, slope, curvature, amplitude, peak, second, second_peak, growth
):
    return trend(year, level, slope, curvature) + season(
        year, amplitude, peak, second, second_peak, growth
    )


# %% [markdown]
# Fifty-nine weeks have no value: `nan_policy="omit"` drops and counts them.

# %%
start = {"level": 340, "slope": 1.3, "curvature": 0, "amplitude": 3, "peak": 0.4}
start |= {"second": 0.5, "second_peak": 0.45, "growth": 0}
result = ddf.nlsq.fit(carbon_dioxide, x="year", y="co2", p0=start, nan_policy="omit")
result

# %% [markdown]
# The estimates in words, with errors of derived quantities by the delta method:

# %%
rise = result.eval_uncertainty("slope + 2 * curvature * 20")
print(f"In 2000 it rose by {rise.value:.3f} ± {rise.stderr:.3f} ppm a year.")
size = result.eval_uncertainty("amplitude * growth * 10")
print(
    f"The yearly cycle grew by {size.value:.3f} ± {size.stderr:.3f} ppm in ten years."
)

# %%
p = result.params
fitted = frame.dropna().assign(fit=lambda f: result.predict(f))
fitted["trend"] = np.asarray(
    trend(fitted["year"].to_numpy(), p["level"], p["slope"], p["curvature"])
)
figure, axes = plt.subplots(
    2, 1, figsize=(8, 6), sharex=True, height_ratios=[2, 1], layout="constrained"
)
axes[0].plot(
    fitted["year"], fitted["co2"], ".", color="0.6", markersize=2, label="weekly means"
)
axes[0].plot(fitted["year"], fitted["fit"], linewidth=0.8, label="fit")
axes[0].plot(fitted["year"], fitted["trend"], label="trend")
axes[0].set(ylabel="CO₂ (ppm)")
axes[0].legend()
axes[1].plot(fitted["year"], fitted["co2"] - fitted["fit"], ".", markersize=2)
axes[1].axhline(0, color="0.5")
axes[1].set(xlabel="year", ylabel="residual (ppm)")
plt.show()

# %% [markdown]
# ## Are these residuals noise?
#
# The diagnostics say that they are not: they drift over years, which a parabola cannot follow, and
# neighbouring weeks resemble one another.

# %%
print(result.diagnostics())

# %% [markdown]
# There are fewer independent observations than rows, so the standard errors above are too small. The
# correlation of neighbours says by how much; for an autoregressive process of first order, errors of
# slow terms grow by about √((1 + r) / (1 - r)).

# %%
residual = (fitted["co2"] - fitted["fit"]).to_numpy()
r = np.corrcoef(residual[:-1], residual[1:])[0, 1]
factor = np.sqrt((1 + r) / (1 - r))
print(
    f"correlation of neighbours {r:.2f}; errors of the trend about {factor:.1f} times as large"
)
print(
    f"slope in 1980: {p['slope']:.3f} ± {factor * result.stderr['slope']:.3f} ppm a year"
)

# %% [markdown]
# A column that the data do not have is refused, with those that they have:

# %% tags=["raises-exception"]
ddf.nlsq.fit(carbon_dioxide, x="years", y="co2", p0=start, nan_policy="omit")
