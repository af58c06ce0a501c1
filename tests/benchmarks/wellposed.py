"""Fit random data of textbook models: no fit fails beside its minimum, and errors do not depend on the start.

::

    python tests/benchmarks/wellposed.py                    # 10,000 random fits, 50 starts a model: ten minutes
    python tests/benchmarks/wellposed.py --fits 500 --starts 10

A random fit takes a model, true parameters some 20 % off the textbook's, a number of rows, noise from 1e-4 to 0.1 of
the signal and a unit of y from 1e-12 to 1e12, and starts 20 % off the truth. It *fails beside its minimum* where its
status is no success although SciPy's minimum lies within 1e-4 standard errors. Problems whose Jacobian at the minimum
has a condition number above 1e8, its columns scaled, are not well-posed; they are counted separately.

Standard errors are compared between the starts of a model that end as a success at its lowest cost: the largest
relative difference of any of them is printed.
"""

import argparse
import collections
import dataclasses
import sys
import time

import numpy as np
import scipy.optimize
from battery import plain, quiet
from textbook import TEXTBOOKS

import dask_nlsq

NEAR = 1e-4
"""Standard errors within which an end is at the minimum."""

ILL = 1e8
"""Condition number of the scaled Jacobian above which a problem is not well-posed."""

ALIKE = 1e-9
"""Relative difference of two costs that is none."""


def draw(seed):
    """Return a random problem and its start."""
    rng = np.random.default_rng([seed, 21])
    model = list(TEXTBOOKS.values())[rng.integers(len(TEXTBOOKS))]
    base = plain(model)
    truth = base.truth + 0.2 * base.scale * rng.uniform(-1, 1, len(base.truth))
    rows = int(rng.integers(4 * len(truth), 400))
    x = np.sort(rng.choice(base.x, rows, replace=rows > len(base.x)))
    factor = 10.0 ** rng.uniform(-12, 12)
    powers = np.array([p.y for p in model.parameters.values()])
    with np.errstate(all="ignore"):
        signal = model.numpy(x, *truth)
        y = signal + 10.0 ** rng.uniform(-4, -1) * np.ptp(signal) * rng.standard_normal(rows)
    scale = factor**powers
    problem = dataclasses.replace(base, truth=truth * scale, scale=base.scale * scale, x=x, y=y * factor)
    return problem, problem.truth + 0.2 * problem.scale * rng.standard_normal(len(truth))


def fitted(problem, start):
    """Fit, without a word."""
    with quiet():
        return dask_nlsq.fit(problem.model.jax, problem.x, problem.y, p0=start, progress=False, client=False)


def distance(problem, theta):
    """Return how far SciPy's minimum is, in standard errors, and the condition number there."""
    with quiet():
        end = scipy.optimize.least_squares(
            problem.residuals, theta, method="lm", x_scale=problem.scale, ftol=1e-15, xtol=1e-15, gtol=1e-15
        )
        lengths = np.linalg.norm(end.jac, axis=0)
        if not np.isfinite(end.jac).all() or not lengths.all():
            return np.inf, np.inf
        _, sigma, vt = np.linalg.svd(end.jac / lengths, full_matrices=False)
        s = np.sqrt(2 * end.cost / max(len(problem.y) - len(theta), 1))
        errors = s * np.linalg.norm(vt.T / sigma, axis=1) / lengths
        return float(np.max(np.abs(end.x - theta) / errors)), float(sigma[0] / sigma[-1])


def random_fits(n, first=0):
    """Fit n random problems; return how many ended how, and those that failed beside their minimum."""
    ends, bad = collections.Counter(), []
    for seed in range(first, first + n):
        if seed > first and seed % 500 == 0:
            print(f"{seed - first:,} fits: {dict(ends.most_common())}, {len(bad)} beside the minimum", file=sys.stderr)
        problem, start = draw(seed)
        if not np.isfinite(problem.y).all() or not np.isfinite(problem.cost(start)):
            ends["not finite"] += 1
            continue
        result = fitted(problem, start)
        if result.success:
            ends["success"] += 1
            continue
        far, condition = distance(problem, result.popt)
        ends[f"{result.status.name}, {'not well-posed' if condition > ILL else 'elsewhere'}"] += 1
        if far < NEAR and condition <= ILL:
            bad.append((seed, problem.model.name, result.status.name, far))
    return ends, bad


def spread_of_errors(model, starts):
    """Return the largest relative difference of a standard error between starts, and how many there were to compare."""
    problem = plain(model)
    ends = [fitted(problem, problem.start(0.2, seed)) for seed in range(starts)]
    least = min(end.cost for end in ends)
    lowest = [end for end in ends if end.success and end.cost <= least * (1 + ALIKE)]
    # Terms may change places, and an epoch is as good a period later, where its error is another.
    order = np.array([np.sort(end.stderr) for end in lowest])
    places = np.array([np.sort(end.popt) for end in lowest])
    together = (np.abs(places - places[0]) <= order[0]).all(axis=1)
    return float(np.max(np.ptp(order[together], axis=0) / order[0])), int(together.sum())


def main(argv=None):
    """Run and print; the exit status is 1 where a fit fails beside its minimum or errors differ by 1e-6."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fits", type=int, default=10_000, help="random fits")
    parser.add_argument("--first", type=int, default=0, help="seed of the first of them, for runs in several processes")
    parser.add_argument("--starts", type=int, default=50, help="starts of each model")
    args = parser.parse_args(argv)
    began = time.perf_counter()
    ends, bad = random_fits(args.fits, args.first)
    print(f"{args.fits:,} random fits in {time.perf_counter() - began:.0f} s: {dict(ends.most_common())}")
    print(f"failures beside the minimum: {len(bad)}", *bad, sep="\n  ")
    spreads = {name: spread_of_errors(model, args.starts) for name, model in TEXTBOOKS.items()} if args.starts else {}
    for name, (spread, count) in sorted(spreads.items(), key=lambda item: -item[1][0]):
        print(f"  {name:20} standard errors of {count} ends differ by {spread:.1e}")
    return int(bool(bad) or any(spread > 1e-6 for spread, _ in spreads.values()))


if __name__ == "__main__":
    sys.exit(main())
