"""Fit textbook models from scattered starts with every method, and count how often each finds the lowest minimum.

::

    python tests/benchmarks/battery.py                                     # 50 starts a model, minutes
    python tests/benchmarks/battery.py --models hill fano --starts 5 --fail-list
    python tests/benchmarks/battery.py --variants pedestal offset units --methods ours lm
    python tests/benchmarks/battery.py --json runs.json

Starts scatter by 20 % and by 120 % of the true parameters, or of a length where a parameter is a position. A fit is
*right* where its cost is the lowest that any method finds from any start, to a part in a million. It is a *false
success* where the method reports success and finite standard errors at a higher cost. A method that raises is neither.
OMP_NUM_THREADS=1 makes the seconds comparable. Methods that are not installed are skipped by name.
"""

import argparse
import collections
import contextlib
import dataclasses
import functools
import importlib.util
import io
import itertools
import json
import logging
import os
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np
import scipy.optimize
from textbook import TEXTBOOKS, Textbook

import dask_nlsq

SCATTERS = (0.2, 1.2)
RTOL = 1e-6
"""How far above the lowest cost a fit may end and be right."""


# --- problems ---------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, eq=False)
class Problem:
    """A model with rows, true parameters and the scale by which starts scatter."""

    model: Textbook
    variant: str
    truth: np.ndarray  # (p,)
    scale: np.ndarray  # (p,)
    x: np.ndarray  # (rows,)
    y: np.ndarray  # (rows,)

    @property
    def name(self):
        """Model and variant."""
        return self.model.name if self.variant == "plain" else f"{self.model.name}, {self.variant}"

    def start(self, scatter, seed):
        """Return the start of a scatter and a seed: the truth plus so many scales times normal deviates."""
        rng = np.random.default_rng([zlib.crc32(self.model.name.encode()), round(100 * scatter), seed])
        return self.truth + self.scale * (scatter * rng.standard_normal(len(self.truth)))

    def residuals(self, theta):
        """Return the residuals, by NumPy."""
        with np.errstate(all="ignore"):
            return self.model.numpy(self.x, *theta) - self.y

    def cost(self, theta):
        """Return half the sum of squares; infinity where it is not finite."""
        with np.errstate(all="ignore"):
            cost = 0.5 * np.sum(self.residuals(theta) ** 2)
        return float(cost) if np.isfinite(cost) else np.inf

    def allowance(self, cost):
        """Return by how much rounding of the model may change a cost."""
        rounding = 4 * np.finfo(float).eps * np.abs(self.y).max() * np.sqrt(self.y.size)
        return rounding * (np.sqrt(2 * cost) + rounding)


def rows(model, truth, x):
    """Return the signal with its noise, from the model's own seed."""
    with np.errstate(over="ignore"):  # an exponential that overflows in a denominator
        signal = model.numpy(x, *truth)
    deviates = np.random.default_rng(zlib.crc32(model.name.encode())).standard_normal(len(x))
    return signal + model.noise * np.ptp(signal) * deviates


def plain(model, variant="plain"):
    """Return the problem as the textbook has it."""
    truth = np.array([p.value for p in model.parameters.values()])
    scale = np.array([abs(p.value) if p.scatter is None else p.scatter for p in model.parameters.values()])
    return Problem(model, variant, truth, scale, model.x, rows(model, truth, model.x))


def pedestal(model, ratio):
    """Return a problem whose signal stands on a level so many times its range; that level starts 10 % off."""
    base, raised = plain(model), plain(model.raised)
    which = list(raised.model.parameters).index(raised.model.level)
    raised.truth[which] += ratio * np.ptp(base.y)
    raised.scale[which] = raised.truth[which]
    raised = dataclasses.replace(raised, variant=f"on {ratio:g}", y=rows(raised.model, raised.truth, raised.x))
    return OffLevel(**vars(raised), which=which)


@dataclasses.dataclass(frozen=True, eq=False)
class OffLevel(Problem):
    """A problem of which one parameter starts 10 % off."""

    which: int = 0

    def start(self, scatter, seed):
        """Return the start of a scatter and a seed."""
        start = super().start(scatter, seed)
        start[self.which] = self.truth[self.which] * (1.1 if seed % 2 else 0.9)
        return start


def offset(model, by):
    """Return a problem whose column begins elsewhere, and its positions with it."""
    base = plain(model, f"x + {by:.12g}")
    moves = np.array([p.position for p in model.parameters.values()])
    return moved(base, x=base.x + by, truth=base.truth + by * moves, scale=base.scale)


def units(model, x_unit, y_unit):
    """Return a problem whose column and response are multiplied by a number each."""
    base = plain(model, f"x × {x_unit:g}" if y_unit == 1 else f"y × {y_unit:g}")
    factor = np.array([x_unit**p.x * y_unit**p.y for p in model.parameters.values()])
    return moved(base, x=base.x * x_unit, truth=base.truth * factor, scale=base.scale * factor)


def moved(problem, **changes):
    """Return a problem with another column and parameters, and its rows made anew."""
    return dataclasses.replace(problem, **changes, y=rows(problem.model, changes["truth"], changes["x"]))


VARIANTS = {
    "plain": lambda m: [plain(m)],
    "pedestal": lambda m: [pedestal(m, ratio) for ratio in (1e2, 1e4)] if m.pedestal else [],
    # kelvin, a modified Julian date, a Julian date, seconds since 1970
    "offset": lambda m: [offset(m, by) for by in (273.15, 57958.0, 2459800.25, 1.7e9)] if m.positions else [],
    "units": lambda m: (
        [units(m, 1.0, y) for y in (1e-30, 1e-12, 1e12, 1e30)]
        + ([units(m, x, 1.0) for x in (1e-12, 1e12)] if m.x_units else [])
    ),
}
"""Each makes its problems from a model."""


# --- methods ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Ending:
    """How a fit ended."""

    theta: np.ndarray | None
    success: bool
    finite: bool  # whether every standard error is
    status: str
    sweeps: int = 0


def ours(problem, start):
    """Fit with `dask_nlsq.fit`."""
    result = dask_nlsq.fit(problem.model.jax, problem.x, problem.y, p0=start, progress=False, client=False)
    finite = bool(np.isfinite(result.stderr).all())
    return Ending(result.popt, result.success, finite, result.status.name, result.nsweeps)


def scipy_curve_fit(**options):
    """Return a fit with `scipy.optimize.curve_fit`."""

    def fit(problem, start):
        popt, pcov, info, _, code = scipy.optimize.curve_fit(
            problem.model.numpy, problem.x, problem.y, p0=start, full_output=True, **options
        )
        return Ending(popt, True, bool(np.isfinite(np.diag(pcov)).all()), str(code), info["nfev"])

    return fit


@functools.cache
def nlsq_fitter(model, rows):
    """Return NLSQ's object that keeps what it has compiled for a model; `nlsq.curve_fit` would compile in each fit."""
    import nlsq

    return nlsq.CurveFit(flength=rows)


def nlsq(problem, start):
    """Fit with `nlsq.CurveFit`."""
    fitter = nlsq_fitter(problem.model, len(problem.x))
    popt, pcov = fitter.curve_fit(problem.model.jax, problem.x, problem.y, p0=start)
    return Ending(np.asarray(popt), True, bool(np.isfinite(np.diag(pcov)).all()), "returned")


METHODS = {
    "ours": ours,
    "lm": scipy_curve_fit(method="lm"),
    "trf": scipy_curve_fit(method="trf"),
    "trf-jac": scipy_curve_fit(method="trf", x_scale="jac"),
    "nlsq": nlsq,
}
"""Each is a function of a problem and a start."""

NEEDS = {"nlsq": "nlsq"}
"""Packages that need not be installed, by method."""


@contextlib.contextmanager
def quiet():
    """Keep warnings, logs and what is printed to ourselves."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(logging.NOTSET)


def attempt(method: Callable, problem: Problem, start):
    """Return how a method ends from a start, with the cost there and the seconds it took."""
    began = time.perf_counter()
    try:
        with quiet():
            end = method(problem, start.copy())
    except Exception as error:  # a method that raises has not answered; the others go on
        end = Ending(None, False, False, f"{type(error).__name__}: {error}".splitlines()[0][:100])
    seconds = time.perf_counter() - began
    cost = np.inf if end.theta is None else problem.cost(end.theta)
    return {"cost": cost, "answered": end.theta is not None, "success": bool(end.success), "finite": end.finite,
            "status": end.status, "sweeps": int(end.sweeps), "seconds": seconds}  # fmt: skip


# --- scores -----------------------------------------------------------------------------------------------------------


def polish(problem):
    """Return the cost to which SciPy's Levenberg-Marquardt leads from the truth, to the last digits."""
    with quiet():
        end = scipy.optimize.least_squares(
            problem.residuals, problem.truth, method="lm", x_scale=problem.scale, ftol=1e-15, xtol=1e-15, gtol=1e-15
        )
    return min(problem.cost(end.x), problem.cost(problem.truth))


def run(problem, methods, starts):
    """Fit a problem from all starts with all methods; return its runs with their scores."""
    each = itertools.product(methods, SCATTERS, range(starts))
    runs = [
        {"method": name, "scatter": scatter, "seed": seed}
        | attempt(METHODS[name], problem, problem.start(scatter, seed))
        for name, scatter, seed in each
    ]
    best = min([polish(problem), *(r["cost"] for r in runs)])
    return {"model": problem.model.name, "problem": problem.name, "best": best, "runs": score(problem, best, runs)}


def score(problem, best, runs):
    """Return runs, each with whether it is right and whether it is a false success."""
    limit = best * (1 + RTOL) + problem.allowance(best)
    return [
        {
            **r,
            "ratio": r["cost"] / best if best else 1.0,
            "right": bool(r["answered"] and r["cost"] <= limit),
            "false": bool(r["answered"] and r["success"] and r["finite"] and not r["cost"] <= limit),
        }
        for r in runs
    ]


def tally(results, method):
    """Return the counts of a method over results."""
    runs = [r for result in results for r in result["runs"] if r["method"] == method]
    return {
        "runs": len(runs),
        "right": sum(r["right"] for r in runs),
        "false": sum(r["false"] for r in runs),
        "raised": sum(not r["answered"] for r in runs),
        "sweeps": sum(r["sweeps"] for r in runs),
        "seconds": sum(r["seconds"] for r in runs),
        **{f"{100 * s:g} %": sum(r["right"] for r in runs if r["scatter"] == s) for s in SCATTERS},
    }


# --- tables -----------------------------------------------------------------------------------------------------------


def columns(lines):
    """Return lines of cells as text, the first column to the left."""
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines
    )


def standing(counts):
    """Return whether ours is right as often as the best peer, in a word."""
    peers = [right for name, right in counts.items() if name != "ours"]
    if "ours" not in counts or not peers:
        return ""
    return "yes" if counts["ours"] >= max(peers) else f"−{max(peers) - counts['ours']}"


def row(result, methods):
    """Return the table's row of a problem: right answers, false successes in parentheses."""
    tallies = {name: tally([result], name) for name in methods}
    cells = [f"{t['right']}" + (f" ({t['false']})" if t["false"] else "") for t in tallies.values()]
    return [result["problem"], *cells, standing({name: t["right"] for name, t in tallies.items()})]


def table(results, methods):
    """Return the table of right answers and false successes by problem."""
    return columns([["right (false)", *methods, "ours ≥ best"], *(row(result, methods) for result in results)])


def totals(results, methods):
    """Return the table of totals by method."""
    head = ["", "right", "%", *(f"{100 * s:g} %" for s in SCATTERS), "false", "raised", "sweeps a fit", "ms a fit"]
    lines = [head]
    for name in methods:
        t = tally(results, name)
        n = max(t["runs"], 1)
        shares = [f"{100 * t[f'{100 * s:g} %'] / (n / len(SCATTERS)):.1f}" for s in SCATTERS]
        lines.append([name, f"{t['right']} of {t['runs']}", f"{100 * t['right'] / n:.2f}", *shares, str(t["false"]),
                      str(t["raised"]), f"{t['sweeps'] / n:.1f}", f"{1e3 * t['seconds'] / n:.1f}"])  # fmt: skip
    return columns(lines)


def failures(results):
    """Yield (problem, scatter, seed, status, cost over the lowest, who was right) where ours was not and a peer was."""
    for result in results:
        right = collections.defaultdict(list)
        for r in result["runs"]:
            if r["right"]:
                right[r["scatter"], r["seed"]].append(r["method"])
        for r in result["runs"]:
            peers = right[r["scatter"], r["seed"]]
            if r["method"] == "ours" and not r["right"] and peers:
                yield result["problem"], r["scatter"], r["seed"], r["status"], r["ratio"], peers


def measured(args):
    """Run what was asked for, and return its results."""
    results = []
    for name in args.models or TEXTBOOKS:
        for variant in args.variants:
            for problem in VARIANTS[variant](TEXTBOOKS[name]):
                results.append(run(problem, args.methods, args.starts))
                print("  ".join(row(results[-1], args.methods)), file=sys.stderr, flush=True)
    return results


def installed(methods):
    """Return the methods whose packages are installed, and say which are left out."""
    missing = [name for name in methods if name in NEEDS and importlib.util.find_spec(NEEDS[name]) is None]
    for name in missing:
        print(f"{name} is left out: the package {NEEDS[name]} is not installed.")
    return [name for name in methods if name not in missing]


def main(argv=None):
    """Run, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=TEXTBOOKS, metavar="NAME", help=", ".join(TEXTBOOKS))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=["plain"])
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--starts", type=int, default=25, help="starts of each scatter")
    parser.add_argument("--fail-list", action="store_true", help="print each start from which only a peer was right")
    parser.add_argument("--json", type=Path, help="where to write every run")
    args = parser.parse_args(argv)
    args.methods = installed(args.methods)
    began = time.perf_counter()
    results = measured(args)
    print(f"{table(results, args.methods)}\n\n{totals(results, args.methods)}")
    print(f"\n{len(results)} problems in {time.perf_counter() - began:.0f} s")
    if args.fail_list:
        for problem, scatter, seed, status, ratio, peers in failures(results):
            print(
                f"{problem}  {100 * scatter:g} %  seed {seed}  {status}  cost × {ratio:.6g}  right: {' '.join(peers)}"
            )
    if args.json:
        args.json.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
