# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Many fits of an image cube: when is the sea warmest?
#
# The annual cycle of the surface temperature at each point of a map of the tropics. The data are
# monthly means that combine satellites and buoys (OSTIA, April 2006 to September 2010), at 18 × 432
# points around the equator; they come with the package `iris-sample-data`. The model is fitted at
# each point, with its own parameters:
#
# ```text
# mean + amplitude * cos(2π (year - warmest)) + trend * (year - 2008.5)
# ```

# %%
from pathlib import Path

import iris_sample_data
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr

import dask_nlsq

# %% [markdown]
# The data are opened as chunks of Dask, with the time in years beside that in dates.

# %%
path = Path(iris_sample_data.path) / "ostia_monthly.nc"
sea = xr.open_dataset(path, engine="h5netcdf")["surface_temperature"].chunk(latitude=6)
days = (sea["time"].values - np.datetime64("2006-01-01")) / np.timedelta64(1, "D")
sea = sea.assign_coords(year=("time", 2006 + days / 365.2425))
sea


# %%
def cycle(year, mean, amplitude, warmest, trend):
    """Temperature (K): mean, half of the annual range, warmest time of year, trend."""
    return (
        mean
        + amplitude * jnp.cos(2 * jnp.pi * (year - warmest))
        + trend * (year - 2008.5)
    )


# %% [markdown]
# Each fit starts from the mean and from the month that is warmest at its point: a starting value is
# a number for all points, or an array of the shape of the map.

# %%
known = sea.notnull().any("time").compute()
month = sea.where(known, 0).argmax("time").compute()
start = {
    "mean": sea.mean("time").data,
    "amplitude": 1.0,
    "warmest": sea["year"].values[month.values] % 1,
    "trend": 0.0,
}
maps = sea.nlsq.fit_many(cycle, dim="time", x="year", p0=start).compute()
maps

# %% [markdown]
# Points on land have no values. They do not stop the others; their status says why they were not
# fitted.

# %%
codes, counts = np.unique(maps["status"], return_counts=True)
pd.Series(counts, [dask_nlsq.Status.of(code).name for code in codes], name="points")

# %% [markdown]
# A negative amplitude with a warmest time half a year later is the same curve, so the signs are
# made equal before the maps are drawn. The time of the maximum is left out where the cycle is too
# small to have one.

# %%
negative = maps["amplitude"] < 0
maps = maps.assign(
    amplitude=abs(maps["amplitude"]), warmest=(maps["warmest"] + 0.5 * negative) % 1
)

figure, axes = plt.subplots(2, 1, figsize=(10, 3.6), sharex=True, layout="constrained")
maps["amplitude"].plot(ax=axes[0], cbar_kwargs={"label": "amplitude (K)"})
phase = {
    "cmap": "twilight",
    "vmin": 0,
    "vmax": 1,
    "cbar_kwargs": {"label": "warmest (year)"},
}
maps["warmest"].where(maps["warmest_stderr"] < 0.05).plot(ax=axes[1], **phase)
for panel in axes:
    panel.set(title="", xlabel="", facecolor="tan")
axes[1].set_xlabel("longitude (°)")
plt.show()

# %%
for name, latitude, longitude in (
    ("Gulf of Guinea", 0, 5),
    ("Eastern Pacific", 0, 265),
):
    place = maps.sel(latitude=latitude, longitude=longitude, method="nearest")
    day = np.datetime64("2010-01-01") + np.timedelta64(
        int(365 * float(place["warmest"])), "D"
    )
    print(
        f"{name:16} ± {float(place['amplitude']):.2f} K, warmest on {day.astype(object):%d %B}",
        end="",
    )
    print(f" ± {365 * float(place['warmest_stderr']):.0f} days")

# %% [markdown]
# A dimension that does not exist is refused, with those that do.

# %% tags=["raises-exception"]
sea.nlsq.fit_many(cycle, dim="month", x="year", p0=start)
