"""Measure every comparison side by side on this machine, and print a table.

::

    python tests/benchmarks/table.py                        # all, at full size: 2 GB of disk, 8 GB of memory
    python tests/benchmarks/table.py --small --check        # minutes in all; fails where a ratio is past its threshold
    python tests/benchmarks/table.py --only parquet --only zarr --json figures.json
    python tests/benchmarks/table.py --from figures.json --markdown
    python tests/benchmarks/table.py --only fit-200 --against ../v1  # beside another checkout of the package

The two sides of a comparison alternate in a process of its own; figures are medians, and a ratio is the median of the
ratios of neighbouring runs. Packages that are not installed are skipped by name.
"""

import argparse
import json
import operator
import statistics
import sys
import tempfile
from pathlib import Path

from against import alternate, row
from comparisons import COMPARISONS, RATIOS, measure_apart
from measure import Missing, machine

THRESHOLDS = json.loads(Path(__file__).with_name("thresholds.json").read_text("utf-8"))
HEAD = ("name", "what", "ours", "against", "theirs", "ratio", "threshold")
PHRASE = {
    ("faster", "s"): "{:.3g} times as fast",
    ("times", "s"): "{:.3g} times the time",
    ("times", "B"): "{:.3g} times the memory",
    ("more", "s"): "{:+.1f} ms",
}


def run(name, small, folder):
    """Return what a comparison measured, or why it did not."""
    print(f"{name} …", end=" ", file=sys.stderr, flush=True)
    try:
        result = measure_apart(name, small, folder)
    except Missing as missing:
        result = {"skipped": str(missing)}
    except Exception as error:  # one that fails is told at the end, and the others are measured all the same
        result = {"failed": f"{type(error).__name__}: {error}"}
    print(cells(name, result, "small" if small else "full")[5], file=sys.stderr, flush=True)
    return result


def ratio(name, result):
    """Return the median of the ratios of neighbouring runs."""
    of, _ = RATIOS[COMPARISONS[name].kind]
    return statistics.median(map(of, result["ours"], result["peer"]))


def figure(values, unit):
    """Return a median in words."""
    value = statistics.median(values)
    if unit == "B":
        return f"{value / 1e6:.0f} MB"
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"


def cells(name, result, size):
    """Return one row of the table."""
    c = COMPARISONS[name]
    limit = THRESHOLDS[size].get(name)
    if "ours" not in result:
        why = " ".join(f"{key}: {reason}" for key, reason in result.items())
        return [name, c.what, "", c.against, "", why.splitlines()[0], ""]
    scale = 1e3 if c.kind == "more" else 1.0
    said = PHRASE[c.kind, c.unit].format(scale * ratio(name, result))
    side = "" if limit is None else f"{'≥' if RATIOS[c.kind][1] == '>=' else '≤'} {scale * limit:g}"
    return [name, c.what, figure(result["ours"], c.unit), c.against, figure(result["peer"], c.unit), said, side]


def table(results, size, markdown=False):
    """Return the table as text in columns, or as Markdown."""
    body = [cells(name, result, size) for name, result in results.items()]
    if markdown:
        lines = [HEAD, ["---"] * len(HEAD), *body]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
    widths = [max(len(line[k]) for line in (HEAD, *body)) for k in range(len(HEAD))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in (HEAD, *body))


def regressions(results, size):
    """Yield a sentence for each comparison that failed or is past its threshold."""
    for name, result in results.items():
        c, limit = COMPARISONS[name], THRESHOLDS[size].get(name)
        if "failed" in result:
            yield f"{name} failed: {result['failed']}"
        elif "ours" in result and limit is not None:
            side = RATIOS[c.kind][1]
            if not {">=": operator.ge, "<=": operator.le}[side](ratio(name, result), limit):
                *_, said, allowed = cells(name, result, size)
                yield f"{name} ({c.what}) is {said} beside {c.against}; {allowed} is needed."


def measured(args):
    """Measure what was asked for."""
    names = args.only or COMPARISONS
    head = machine()
    print(head, file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="benchmarks-") as temporary:
        folder = args.folder if args.keep else Path(temporary)
        results = {name: run(name, args.small, folder) for name in names}
    for name, result in results.items():
        if "ours" in result:
            result["ratio"] = ratio(name, result)
    return {"machine": head, "size": "small" if args.small else "full", "results": results}


def beside(args):
    """Print our side of what was asked for with this checkout and another: medians, and how many times as fast."""
    checkouts = Path(__file__).parents[2], args.against
    print(f"{machine()}\n\n{'name':18} {'this':>13} {'other':>13}  other / this")
    with tempfile.TemporaryDirectory(dir=args.folder, prefix="benchmarks-") as folder:
        for name in args.only or COMPARISONS:
            c = COMPARISONS[name]
            print(row(name, c.what, alternate(name, checkouts, args.small, folder, c.repeat), c.unit), flush=True)


def main(argv=None):
    """Measure or read, print, write, check; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="fewer rows: minutes in all")
    parser.add_argument("--only", action="append", choices=COMPARISONS, metavar="NAME", help=", ".join(COMPARISONS))
    parser.add_argument("--folder", type=Path, help="where to write rows; by default a temporary folder")
    parser.add_argument("--keep", action="store_true", help="leave the rows in --folder, and use those that are there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure")
    parser.add_argument("--from", type=Path, metavar="FILE", dest="source", help="read figures instead of measuring")
    parser.add_argument("--markdown", action="store_true", help="print the table as Markdown")
    parser.add_argument("--against", type=Path, metavar="PATH", help="compare with another checkout, in turns")
    parser.add_argument("--check", action="store_true", help="exit with 1 where a ratio is past its threshold")
    args = parser.parse_args(argv)
    if args.keep and args.folder is None:
        parser.error("--keep needs --folder")
    if args.against:
        beside(args)
        return 0
    figures = json.loads(args.source.read_text("utf-8")) if args.source else measured(args)
    print(f"{figures['machine']}\n\n{table(figures['results'], figures['size'], args.markdown)}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1) + "\n", "utf-8")
    sentences = list(regressions(figures["results"], figures["size"])) if args.check else []
    print("".join(f"\n{sentence}" for sentence in sentences), end="\n" if sentences else "")
    return 1 if sentences else 0


if __name__ == "__main__":
    sys.exit(main())
