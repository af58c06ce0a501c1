"""Peak memory of a fit from disk for increasing numbers of rows, each in a fresh process and including its workers.

::

    python tests/benchmarks/memory.py --rows 10000000 300000000 --folder /scratch
    python tests/benchmarks/memory.py --rows 1000000000 --folder /scratch --workers 2

Files of a million rows are written into a temporary folder inside ``--folder`` (16 bytes a row) and deleted at the end.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import psutil
from measure import cluster, machine, peak
from rows import decay, write_file

import dask_nlsq

ROWS_A_FILE = 1_000_000
PAUSE = 0.02  # seconds between two looks


def fit(folder, cache, workers, sigma_x):
    """Fit the files of a folder here; print what the parent wants to know."""
    options = {"data": folder, "cache": cache} | ({"sigma": 0.1, "sigma_x": sigma_x} if sigma_x else {})
    if workers:
        with cluster(workers) as client:
            result = dask_nlsq.fit(decay, client=client, **options)
    else:
        result = dask_nlsq.fit(decay, **options)
    seconds = result.provenance["total_seconds"]
    print(json.dumps({"rows": result.n_obs, "seconds": seconds, "sweeps": result.nsweeps, "peak": peak()}))


def resident(process):
    """Return what a process and its descendants hold, in bytes."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            total += one.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def fit_apart(folder, cache, workers, sigma_x):
    """Fit in a fresh process, and look at it and its workers until it ends."""
    command = [sys.executable, __file__, "--fit", folder, "--cache", cache, "--workers", str(workers)]
    command += ["--sigma-x", str(sigma_x)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        process, most = psutil.Process(child.pid), 0
        while child.poll() is None:
            try:
                most = max(most, resident(process))
            except psutil.NoSuchProcess:
                break
            time.sleep(PAUSE)
        out = child.stdout.read()
    if child.returncode:
        sys.exit(f"the fit ended with exit code {child.returncode}")
    found = json.loads(out.splitlines()[-1])
    return found | {"peak": max(most, found["peak"])}


def grow(folder, rows):
    """Write files until the folder holds so many rows, or up to a file more."""
    for index in range(len(list(folder.glob("*.parquet"))), -(-rows // ROWS_A_FILE)):
        write_file(folder, index, ROWS_A_FILE)


def main(args):
    """Write, fit, print a line for each number of rows."""
    counts = sorted(args.rows)
    needed, free = 17 * counts[-1], shutil.disk_usage(args.folder).free
    if needed > free:
        sys.exit(f"{counts[-1]:,} rows need {needed / 1e9:.0f} GB in {args.folder}; {free / 1e9:.0f} GB are free.")
    who = f"{args.workers} worker processes" if args.workers else "threads"
    print(f'{machine()}\n\n{who}, cache="{args.cache}"\n')
    print(f"{'rows':>14}  {'seconds':>8}  {'sweeps':>6}  {'peak, MB':>9}  {'ratio':>5}")
    first = None
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="memory-") as folder:
        for rows in counts:
            grow(Path(folder), rows)
            found = fit_apart(folder, args.cache, args.workers, args.sigma_x)
            first = first or found["peak"]
            print(
                f"{found['rows']:>14,}  {found['seconds']:>8.2f}  {found['sweeps']:>6}  {found['peak'] / 1e6:>9.0f}  "
                f"{found['peak'] / first:>5.2f}",
                flush=True,
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000_000, 300_000_000])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where files are written")
    parser.add_argument("--cache", choices=["none", "auto"], default="none")
    parser.add_argument("--workers", type=int, default=0, help="processes of a LocalCluster; 0 for threads")
    parser.add_argument("--sigma-x", type=float, default=0.0, help="standard deviation of x; 0: x is exact")
    parser.add_argument("--fit", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.fit:
        fit(args.fit, args.cache, args.workers, args.sigma_x)
    else:
        main(args)
