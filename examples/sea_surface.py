"""When is the sea warmest? The annual cycle of the surface temperature at each point of a map of the tropics.

The data are monthly means that combine satellites and buoys (OSTIA, April 2006 to September 2010), at 18 × 432 points
around the equator. The model is ``mean + amplitude * cos(2π (year - warmest)) + trend * (year - 2008.5)``, with its own
parameters at each point. Points on land have no values; their status is ``TOO_FEW``::

    pip install iris-sample-data xarray h5netcdf matplotlib
    python examples/sea_surface.py
    python examples/sea_surface.py --output map.png
"""

import argparse
from pathlib import Path

import jax.numpy as jnp
import numpy as np

import dask_nlsq

MIDDLE = 2008.5


def cycle(year, mean, amplitude, warmest, trend):
    """Temperature (K): its mean, half of its annual range, the part of a year where it is warmest, its trend a year."""
    return mean + amplitude * jnp.cos(2 * jnp.pi * (year - warmest)) + trend * (year - MIDDLE)


def read():
    """Open the data as chunks of Dask, with the time in years beside that in dates."""
    try:
        import iris_sample_data
        import xarray as xr
    except ImportError:
        raise SystemExit("The data come with a package: pip install iris-sample-data xarray h5netcdf") from None
    path = Path(iris_sample_data.path) / "ostia_monthly.nc"
    sea = xr.open_dataset(path, engine="h5netcdf")["surface_temperature"].chunk(latitude=6)
    days = (sea["time"].values - np.datetime64("2006-01-01")) / np.timedelta64(1, "D")
    return sea.assign_coords(year=("time", 2006 + days / 365.2425))


def fit(sea):
    """Fit the cycle at each point, in one pass over the data; each fit starts from the month that is warmest there."""
    known = sea.notnull().any("time").compute()
    month = sea.where(known, 0).argmax("time").compute()
    start = {
        "mean": sea.mean("time").data,
        "amplitude": 1.0,
        "warmest": sea["year"].values[month.values] % 1,
        "trend": 0.0,
    }
    return sea.nlsq.fit_many(cycle, dim="time", x="year", p0=start).compute()


def fold(maps):
    """Return maps in which each amplitude is positive, and each time of the maximum lies within one year."""
    negative = maps["amplitude"] < 0
    return maps.assign(amplitude=abs(maps["amplitude"]), warmest=(maps["warmest"] + 0.5 * negative) % 1)


def draw(maps, output):
    """Draw two maps, without the points where the cycle is too small to have a time of its maximum."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    clear = maps["warmest_stderr"] < 0.05
    figure, axes = plt.subplots(2, 1, figsize=(12, 4), sharex=True, layout="constrained")
    maps["amplitude"].plot(ax=axes[0], cbar_kwargs={"label": "amplitude (K)"})
    phase = {"cmap": "twilight", "vmin": 0, "vmax": 1, "cbar_kwargs": {"label": "warmest (year)"}}
    maps["warmest"].where(clear).plot(ax=axes[1], **phase)
    for axis in axes:
        axis.set(title="", xlabel="", facecolor="tan")
    figure.savefig(output, dpi=100)


def main(output: Path | None) -> None:
    """Read, fit, report, draw."""
    maps = fold(fit(read()))
    for code, count in zip(*np.unique(maps["status"], return_counts=True), strict=True):
        print(f"{dask_nlsq.Status.of(code).name:10} {count:,} points")
    for name, latitude, longitude in (("Gulf of Guinea", 0, 5), ("Eastern Pacific", 0, 265)):
        place = maps.sel(latitude=latitude, longitude=longitude, method="nearest")
        day = np.datetime64("2010-01-01") + int(365 * float(place["warmest"]))
        print(f"{name:16} ± {float(place['amplitude']):.2f} K, warmest on {day.astype(object):%d %B}", end="")
        print(f" ± {365 * float(place['warmest_stderr']):.0f} days")
    if output is not None:
        draw(maps, output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="a file for the maps, as PNG or PDF")
    main(parser.parse_args().output)
