"""Ten million rows on disk, fitted without ever holding more than a few partitions in memory.

Writes the rows to Parquet, fits an exponential decay from there, and prints the report::

    python examples/quickstart.py
    python examples/quickstart.py --rows 200000 --folder runs
    python examples/quickstart.py --plot fit.png  # with matplotlib, the extra "plot"
"""

import argparse
import tempfile
from pathlib import Path

import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import dask_nlsq  # adds .nlsq to Dask and pandas frames

TRUTH = {"amplitude": 2.5, "rate": 1.3, "offset": 0.5}
NOISE = 0.2
ROWS_A_FILE = 500_000


def decay(t, amplitude=1.0, rate=1.0, offset=0.0):
    """The model: a column first, then the parameters; their defaults are where the fit starts."""
    return amplitude * jnp.exp(-rate * t) + offset


def write(folder: Path, rows: int) -> list[Path]:
    """Write noisy decays to Parquet, one file at a time, so that memory holds one file at most."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for start in range(0, rows, ROWS_A_FILE):
        rng = np.random.default_rng([0, start])
        t = rng.uniform(0.0, 5.0, min(ROWS_A_FILE, rows - start))
        clean = TRUTH["amplitude"] * np.exp(-TRUTH["rate"] * t) + TRUTH["offset"]
        table = pa.table({"t": t, "signal": rng.normal(clean, NOISE)})
        paths.append(folder / f"decay-{len(paths):04d}.parquet")
        pq.write_table(table, paths[-1])
    return paths


def main(rows: int, folder: Path, picture: Path | None = None) -> None:
    """Write, fit, report, draw."""
    paths = write(folder, rows)
    print(
        f"{rows:,} rows, {sum(p.stat().st_size for p in paths) / 1e6:,.0f} MB of Parquet in {folder}\n"
    )

    ddf = dd.read_parquet(paths)
    # cache="none" reads the files again in every sweep, as it has to be where they do not fit in memory.
    result = ddf.nlsq.fit(decay, y="signal", cache="none")
    print(result)

    print(
        "\nThe data were made with these values; the last column is how many standard errors away they lie.\n"
    )
    for name, true in TRUTH.items():
        away = (result.params[name] - true) / result.stderr[name]
        print(f"  {name:<9}  {true:>5}  {away:+.2f}")

    if picture is not None:
        # One more pass counts the rows in cells; the bands are there, and too narrow to be seen.
        figure = result.plot().figure
        figure.set_size_inches(7, 4)
        figure.savefig(picture, dpi=110)
        print(f"\nDrawn in {picture}.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument(
        "--folder",
        type=Path,
        help="where to write and keep the files; by default a temporary folder",
    )
    parser.add_argument("--plot", type=Path, help="where to draw the fit")
    args = parser.parse_args()
    if args.folder is not None:
        main(args.rows, args.folder, args.plot)
    else:
        with tempfile.TemporaryDirectory() as temporary:
            main(args.rows, Path(temporary), args.plot)
