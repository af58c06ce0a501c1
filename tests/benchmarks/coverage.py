"""Coverage of 95 % intervals, also of counts and errors in x: ``python tests/benchmarks/coverage.py --seeds 300``.

Each scenario is a function of a seed that returns which intervals cover the truth, or None if the status is not a
success and thus warns the user. `tests/test_arriving.py` runs some of them on fewer seeds.
"""

import argparse
import itertools
import time
import warnings

import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pandas as pd
from scipy import stats

import dask_nlsq
from dask_nlsq import StreamingFitter

BATCHES, ROWS, NOISE = 40, 100, 0.2
TRUTH = (2.5, 1.3, 0.5)


def decay(t, amplitude, rate, offset=0.0):
    return amplitude * jnp.exp(-rate * t) + offset


def peak(t, height, center, width):
    return height * jnp.exp(-0.5 * ((t - center) / width) ** 2)


MODELS = {
    "decay": (decay, lambda t, a, b, c: a * np.exp(-b * t) + c, TRUTH, [1.0, 1.0, 0.0]),
    "peak": (
        peak,
        lambda t, a, b, c: a * np.exp(-0.5 * ((t - b) / c) ** 2),
        (2.0, 2.2, 0.7),
        [1.5, 2.0, 1.0],
    ),
}


def covered(result, truth):
    """Return which intervals cover, or None where the status is no success."""
    if not result.success:
        return None
    reach = stats.t.ppf(0.975, max(result.dof, 1)) * np.asarray(result.stderr)
    return np.abs(np.abs(result.popt) - truth) <= reach  # a width may have either sign


def ordered(order, model="decay", batches=BATCHES, rows=ROWS, **options):
    """Return the scenario of a steady process whose rows come in some order."""
    function, plain, truth, start = MODELS[model]

    def run(seed):
        rng = np.random.default_rng(seed)
        t = rng.uniform(0, 5, batches * rows)
        y = plain(t, *truth) + rng.normal(0, NOISE, t.size)
        places = ORDERS[order](t, rng, batches)
        fitter = StreamingFitter(function, start, **options)
        for part in np.array_split(places, batches):
            fitter.partial_fit(t[part], y[part])
        return covered(fitter.result(), truth)

    return run


ORDERS = {
    "random": lambda t, rng, batches: np.arange(t.size),
    "up": lambda t, rng, batches: np.argsort(t),
    "down": lambda t, rng, batches: np.argsort(-t),
    "unlike": lambda t, rng, batches: np.concatenate(
        [np.array_split(np.argsort(t), batches)[i] for i in rng.permutation(batches)]
    ),
}


def drifting(path, batches=150, rows=100, **options):
    """Return the scenario of an offset that drifts; the truth is that of the last batch."""

    def run(seed):
        rng = np.random.default_rng(seed)
        fitter = StreamingFitter(decay, list(TRUTH), forget="auto", **options)
        for i in range(batches):
            t, now = rng.uniform(0, 5, rows), TRUTH[2] + path(i, seed)
            fitter.partial_fit(t, TRUTH[0] * np.exp(-TRUTH[1] * t) + now + rng.normal(0, NOISE, rows))
        return covered(fitter.result(), (*TRUTH[:2], now))

    return run


def partitions(how, effect=0.0, pieces=60, rows=200):
    """Return the scenario of partitions of unlike ranges, with a random effect of each on the offset."""

    def run(seed):
        rng = np.random.default_rng([seed, 1])
        t = np.sort(rng.uniform(0, 5, pieces * rows))
        own = np.repeat(rng.normal(0, effect, pieces), rows) if effect else 0.0
        y = TRUTH[0] * np.exp(-TRUTH[1] * t) + TRUTH[2] + own + rng.normal(0, NOISE, t.size)
        truth = TRUTH
        if effect:  # each partition spans the whole range; what is to be covered is the fit of all rows
            t = rng.uniform(0, 5, t.size)
            y = TRUTH[0] * np.exp(-TRUTH[1] * t) + TRUTH[2] + own + rng.normal(0, NOISE, t.size)
            truth = dask_nlsq.fit(decay, t, y, p0=list(TRUTH)).popt
        frame = dd.from_pandas(pd.DataFrame({"t": t, "y": y}), npartitions=pieces, sort=False)
        return covered(dask_nlsq.fit(decay, data=frame, p0=list(TRUTH), seed=seed, client=False, **how), truth)

    return run


def rise(t, level, slope):
    return 1 / (1 + jnp.exp(level - slope * t))


def counted(trials=None, rows=200):
    """Return the scenario of a fit of counts: Poisson ones, of 0.5 in most rows, or successes among 1 to 5 trials."""
    t = np.linspace(0, 5, rows)

    def poisson(seed):
        truth = (4.0, 1.3, 0.5)
        y = np.random.default_rng(seed).poisson(MODELS["decay"][1](t, *truth))
        return covered(dask_nlsq.fit(decay, t, y, p0=truth, loss="poisson", client=False), truth)

    def binomial(seed):
        rng, truth = np.random.default_rng(seed), (2.0, 0.8)
        n = rng.integers(1, trials, rows, endpoint=True)
        y = rng.binomial(n, 1 / (1 + np.exp(truth[0] - truth[1] * t)))
        return covered(dask_nlsq.fit(rise, t, y, p0=truth, loss="binomial", trials=n, client=False), truth)

    return poisson if trials is None else binomial


def errors_in_x(sigma_x, absolute_sigma, rows=100):
    """Return the scenario of so many rows of a decay without offset whose times have errors."""
    truth, noise = TRUTH[:2], 0.05

    def run(seed):
        rng = np.random.default_rng([seed, 2])
        t = rng.uniform(0, 4, rows)
        y = rng.normal(truth[0] * np.exp(-truth[1] * t), noise)
        options = {"sigma": noise, "sigma_x": sigma_x, "absolute_sigma": absolute_sigma, "client": False}
        return covered(dask_nlsq.fit(two_parameters, rng.normal(t, sigma_x), y, p0=[2.0, 1.0], **options), truth)

    return run


def several_responses(kind, rows=60):
    """Return the scenario of complex numbers, or of two responses whose covariance is known or estimated."""
    x, truth = np.linspace(0.2, 6.0, rows), (2.0, 0.5)
    covariance = np.array([[4.0, 3.0], [3.0, 5.0]]) * 1e-3
    mixed = np.linalg.cholesky(covariance)

    def run(seed):
        noise = np.random.default_rng([seed, 3]).normal(size=(2, rows))
        if kind == "complex":
            z = relaxation(x, *truth) + 0.05 * (noise[0] + 1j * noise[1])
            return covered(dask_nlsq.fit(relaxation, x, z, p0=truth, client=False), truth)
        y = [fall + each for fall, each in zip(reaction(x, *truth), mixed @ noise, strict=True)]
        options = {"estimate_sigma": True} if kind == "estimated" else {"sigma": covariance, "absolute_sigma": True}
        return covered(dask_nlsq.fit(reaction, x, y, p0=truth, client=False, **options), truth)

    return run


def grouped(kind, groups=30, rows=20, rho=0.6):
    """Return the scenario of groups of rows that are correlated, with the covariance or the correlation of groups."""
    t, group = np.tile(np.linspace(0, 4, rows), groups), np.repeat(np.arange(groups), rows)
    lag = np.abs(np.subtract.outer(np.arange(rows), np.arange(rows)))
    matrix = rho ** (lag if kind == "ar1" else lag > 0)
    options = {"cov_type": "cluster"} if kind == "cluster" else {"correlation": kind}

    def run(seed):
        noise = np.linalg.cholesky(matrix) @ np.random.default_rng([seed, 4]).normal(0, NOISE, (rows, groups))
        y = TRUTH[0] * np.exp(-TRUTH[1] * t) + TRUTH[2] + noise.T.ravel()
        result = dask_nlsq.fit(decay, t, y, p0=TRUTH, groups=group, client=False, **options)
        interval = result.conf_int()
        return ((interval["lower"] < TRUTH) & (interval["upper"] > TRUTH)).to_numpy() if result.success else None

    return run


def relaxation(w, level, width):
    return level / (1 + 1j * w * width)


def reaction(t, amount, rate):
    return amount * jnp.exp(-rate * t), amount * (1 - jnp.exp(-rate * t))


def two_parameters(t, amplitude, rate):
    return amplitude * jnp.exp(-rate * t)


SCENARIOS = {
    "random order": (ordered("random"), 0.92),
    "sorted up": (ordered("up"), 0.92),
    "sorted down": (ordered("down"), 0.92),
    "partitions of unlike ranges": (ordered("unlike"), 0.92),
    "random order, 30,000 rows": (ordered("random", rows=750), 0.92),
    "sorted up, 30,000 rows": (ordered("up", rows=750), 0.92),
    "sorted down, 30,000 rows": (ordered("down", rows=750), 0.92),
    "unlike ranges, 30,000 rows": (ordered("unlike", rows=750), 0.92),
    "a peak, sorted up, 30,000 rows": (ordered("up", "peak", rows=750), 0.92),
    "a peak, unlike ranges, 30,000 rows": (ordered("unlike", "peak", rows=750), 0.92),
    "forget=0.9, steady": (ordered("random", forget=0.9), 0.92),
    "forget=0.95, steady": (ordered("random", forget=0.95), 0.92),
    "forget='auto', steady": (ordered("random", forget="auto"), 0.92),
    "ramp": (drifting(lambda i, seed: 0.004 * i), 0.85),
    "sine": (drifting(lambda i, seed: 0.1 * np.sin(i / 15 + seed)), 0.85),
    "steep ramp": (drifting(lambda i, seed: 0.03 * i), 0.85),
    "fast sine": (drifting(lambda i, seed: 0.2 * np.sin(i / 5 + seed)), 0.85),
    "tier='streaming', sorted": (partitions({"tier": "streaming", "goal": "fast"}), 0.92),
    "precision=, sorted": (partitions({"precision": 0.02}), 0.92),
    "precision=, offsets that differ": (partitions({"precision": 0.02}, effect=0.1), 0.92),
    "counts, Poisson": (counted(), 0.93),
    "counts, binomial": (counted(trials=5), 0.93),
    "errors in x": (errors_in_x(0.05, absolute_sigma=True), 0.92),
    "errors in x, relative sigma": (errors_in_x(0.05, absolute_sigma=False), 0.92),
    "errors in x, large": (errors_in_x(0.2, absolute_sigma=True), 0.92),
    "complex numbers": (several_responses("complex"), 0.93),
    "responses, covariance known": (several_responses("known"), 0.93),
    "responses, covariance estimated": (several_responses("estimated"), 0.92),
    "groups, cluster-robust": (grouped("cluster"), 0.92),
    "groups, AR(1)": (grouped("ar1"), 0.93),
    "groups, exchangeable": (grouped("exchangeable"), 0.93),
}


def measure(scenario, seeds):
    """Return the share of covering intervals of each parameter where the status is a success, and that of successes."""
    found = [scenario(seed) for seed in seeds]
    told = [each for each in found if each is not None]
    return (np.mean(told, axis=0) if told else np.full(3, np.nan)), len(told) / len(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--only", default="", help="scenarios whose names contain this")
    options = parser.parse_args()
    print(f"{'scenario':36} {'coverage of each parameter':28} {'success':>8} {'seconds':>8}")
    for name, (scenario, _) in SCENARIOS.items():
        if options.only in name:
            clock = time.perf_counter()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                coverage, success = measure(scenario, itertools.islice(itertools.count(), options.seeds))
            shown = " ".join(f"{c:.3f}" for c in coverage)
            print(f"{name:36} {shown:28} {success:8.3f} {time.perf_counter() - clock:8.1f}", flush=True)


if __name__ == "__main__":
    main()
