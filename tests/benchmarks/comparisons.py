"""The comparisons: each prepares two computations of the same result, `ours` and `peer`, and describes them.

A comparison is a generator over a `Size` that yields the pair of calls. A call is timed, unless it returns a float,
which is then its own measurement, in a process or a cluster of its own. The first line of the docstring is its row
of the table.
"""

import dataclasses
import functools
import hashlib
import os
import statistics
import tempfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import dask.dataframe as dd
import numpy as np
import pyarrow.dataset as ds
import rows
import scipy.optimize
from measure import Missing, apart, changed, clock, cluster, settled
from peers import (
    START,
    by_odrpack,
    c_loop,
    delayed_tree,
    first_fit,
    gram,
    levenberg_marquardt,
    need,
    series_by_astropy,
    series_by_hyperspy,
    series_by_scipy,
    series_by_xarray,
    tight,
    whole_array,
)
from rows import TRUTH, decay, decay_numpy, decay_rows, decay_series, moved_rows, peaks

import dask_nlsq
from dask_nlsq._fit.problem import arrange
from dask_nlsq._fit.residual_pass import residual_summary
from dask_nlsq._kernel import kernel as kernels
from dask_nlsq._kernel import validate
from dask_nlsq._kernel.block import Block
from dask_nlsq._kernel.request import Request
from dask_nlsq._model.model import Model
from dask_nlsq._model.objective import Objective
from dask_nlsq._sweep.payload import serialize

RATIOS = {
    "faster": (lambda ours, peer: peer / ours, ">="),  # how many times as fast ours is
    "times": (lambda ours, peer: ours / peer, "<="),  # how many times as long ours takes, or as much
    "more": (lambda ours, peer: ours - peer, "<="),  # how much longer
}
"""What a ratio means, and on which side of the target it belongs."""


@dataclasses.dataclass(frozen=True)
class Size:
    """Small or full, and where files may be written."""

    small: bool
    folder: Path

    def __call__(self, small, full):
        return small if self.small else full


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two ways to the same end."""

    name: str
    what: str
    against: str
    kind: str  # of RATIOS
    prepare: Callable
    unit: str = "s"
    one_core: bool = False
    warm: bool = True  # call each once beforehand: compile, open, fill caches
    repeat: int = 7
    full_only: bool = False


COMPARISONS = {}


def comparison(name, against, kind, **options):
    """Register a generator of (ours, peer)."""

    def register(prepare):
        what = prepare.__doc__.splitlines()[0].rstrip(".")
        COMPARISONS[name] = Comparison(name, what, against, kind, contextmanager(prepare), **options)
        return prepare

    return register


def measure(name, small, folder):
    """Measure a comparison here: a list of figures for ours and one for the peer, taken in turns."""
    chosen = COMPARISONS[name]
    if small and chosen.full_only:
        raise Missing("at small size")
    with chosen.prepare(Size(small, Path(folder))) as (ours, peer):
        if chosen.warm:
            ours(), peer()
        timed = settled if chosen.one_core else clock
        pairs = [(timed(ours), timed(peer)) for _ in range(chosen.repeat)]
    return {"ours": [a for a, _ in pairs], "peer": [b for _, b in pairs]}


def measure_apart(name, small, folder):
    """Measure a comparison in a process of its own."""
    return apart(measure, name, small, folder, one_core=COMPARISONS[name].one_core)


def agree(one, two, rtol=1e-6):
    """Refuse to compare two ways that do not lead to the same end."""
    one, two = np.asarray(one), np.asarray(two)
    if not np.allclose(one, two, rtol=rtol, atol=rtol * np.abs(two).max()):
        raise ValueError(f"The two sides disagree: {one} and {two}.")


# --- the kernel -------------------------------------------------------------------------------------------------------


def bound(model, p, weighted=False):
    """Return an objective as `fit` makes it."""
    objective = Objective(Model.from_function(model, p).bind(["t"]), ("t", "y"), weighted)
    return validate.check(objective, np.ones(p))[0]


def beside_c(size, weighted=False, s=None):
    """Yield the kernel and the loop in C on the same four million rows."""
    t, y = decay_rows(4_000_000)
    weight = np.random.default_rng(1).uniform(1, 2, len(t)) if weighted else None
    objective, block, theta = bound(decay, 3, weighted), Block((t,), y, weight), np.array([2.5, 1.1, 0.2])
    loop, both = c_loop(size.folder, weighted), np.eye(4)
    both[:3, :3] = np.eye(3) if s is None else s
    agree(kernels.reduce_block(objective, block, theta, s).gram, both.T @ gram(loop(t, y, weight, theta)) @ both)
    yield lambda: kernels.reduce_block(objective, block, theta, s), lambda: loop(t, y, weight, theta)


C_LOOP = "a loop in C, gcc -O3 -march=native -ffast-math"


@comparison("kernel", C_LOOP, "faster", one_core=True, repeat=15)
def kernel(size):
    """One core, 3 parameters."""
    yield from beside_c(size)


@comparison("kernel-sigma", C_LOOP, "faster", one_core=True, repeat=15)
def kernel_sigma(size):
    """One core, 3 parameters, with sigma."""
    yield from beside_c(size, weighted=True)


@comparison("kernel-whitened", C_LOOP, "faster", one_core=True, repeat=15)
def kernel_whitened(size):
    """One core, 3 parameters, each tile multiplied by a full matrix."""
    yield from beside_c(size, s=np.array([[1.0, 0.2, 0.1], [0.0, 1.5, 0.3], [0.0, 0.0, 0.8]]))


def beside_whole_array(count, n):
    """Yield the kernel and the Jacobian of all rows, for a sum of so many Gaussians and n rows."""
    theta = np.array([[1 + k, 0.5 + 5 * k / count, 1.5 / count] for k in range(count)]).ravel()
    t = np.random.default_rng(0).uniform(0, 5, n)
    y = np.asarray(peaks(t, *theta)) + np.random.default_rng(1).normal(0, 0.1, n)
    objective, block, whole = bound(peaks, 3 * count), Block((t,), y), whole_array(peaks)
    theta = 1.05 * theta
    agree(kernels.reduce_block(objective, block, theta, None).gram[:-1, :-1], whole(theta, t, y)[2])
    yield lambda: kernels.reduce_block(objective, block, theta, None), lambda: whole(theta, t, y)


WHOLE_ARRAY = "the Jacobian of all rows, jax.jit(jax.jacfwd), then JᵀJ"


@comparison("kernel-15", WHOLE_ARRAY, "faster", one_core=True)
def kernel_15(size):
    """One core, 15 parameters (five Gaussians)."""
    yield from beside_whole_array(5, 1_000_000)


@comparison("kernel-60", WHOLE_ARRAY, "faster", one_core=True)
def kernel_60(size):
    """One core, 60 parameters (twenty Gaussians)."""
    yield from beside_whole_array(20, size(100_000, 400_000))


@comparison("counts", "the same by squares", "times", one_core=True, repeat=15)
def counts(size):
    """One core, 3 parameters, a sweep over counts by their likelihood."""
    t, y = rows.count_rows(4_000_000)
    squares, block, theta = bound(decay, 3), Block((t,), y), np.array([2.5, 1.1, 0.8])
    poisson = dataclasses.replace(squares, loss="poisson")
    yield (
        lambda: kernels.reduce_block(poisson, block, theta, None),
        lambda: kernels.reduce_block(squares, block, theta, None),
    )


# --- whole fits from disk ---------------------------------------------------------------------------------------------


def two_sweeps(result):
    """Return a fit that took exactly two sweeps."""
    if len(result.history) != 2:
        raise ValueError(f"The fit took {len(result.history)} sweeps; two are compared.")
    return result


ARROW = "a bare pyarrow.dataset read of both columns into memory"


def beside_arrow(size, fit):
    """Yield a fit of the files and a read of them."""
    path = rows.parquet(size.folder, size(2_000_000, 50_000_000))
    yield lambda: two_sweeps(fit(path)), lambda: ds.dataset(path, format="parquet").to_table(columns=["t", "y"])


@comparison("parquet", ARROW, "times")
def parquet(size):
    """A fit of a path of Parquet."""
    yield from beside_arrow(size, lambda path: dask_nlsq.fit(decay, data=path))


@comparison("parquet-reread", ARROW, "times")
def parquet_reread(size):
    """The same, read again in each sweep (cache="none")."""
    yield from beside_arrow(size, lambda path: dask_nlsq.fit(decay, data=path, cache="none"))


@comparison("frame", ARROW, "times")
def frame(size):
    """A fit of dd.read_parquet(path) through the accessor."""
    yield from beside_arrow(size, lambda path: dd.read_parquet(path).nlsq.fit(decay))


@comparison("files", "a bare read of both columns, file by file, pyarrow.parquet.ParquetFile", "times")
def files(size):
    """A fit of dd.read_parquet(path) through the accessor, of files of 2,000 rows."""
    path = rows.many_files(size.folder, size(1_000, 5_000))
    yield lambda: two_sweeps(dd.read_parquet(path).nlsq.fit(decay)), lambda: rows.read_files(path)


@comparison("plot", "a sweep of the fit", "times")
def plot(size):
    """The pass over a path of Parquet that plots and diagnostics take, read again."""
    result = dask_nlsq.fit(decay, data=rows.parquet(size.folder, size(2_000_000, 50_000_000)), cache="none")
    problem = result.profiler.problem
    problem = dataclasses.replace(problem, groups=arrange(problem.source, problem.reader, problem.plan))
    yield (
        lambda: residual_summary(problem, result.popt, result.rmse),
        lambda: problem.sweep([Request(result.popt)]),
    )


@comparison("zarr", "a bare read of all chunks into memory, np.fromfile, a thread a core", "times")
def zarr(size):
    """A fit of a path of Zarr, uncompressed."""
    path = rows.zarr_group(size.folder, size(2_000_000, 50_000_000), size(100_000, 1_000_000))
    yield lambda: two_sweeps(dask_nlsq.fit(decay, data=path)), lambda: rows.read_chunks(path)


@comparison("search", "the same fit from one start", "times", repeat=5)
def search(size):
    """A fit of a path of Parquet from 64 starts, compile not counted."""
    path = rows.parquet(size.folder, size(2_000_000, 10_000_000))
    options = {"data": path, "p0": START, "bounds": ([0, 0.01, -10], [10, 20, 10])}
    agree(dask_nlsq.fit(decay, n_starts=64, **options).popt, dask_nlsq.fit(decay, **options).popt, rtol=1e-5)
    yield lambda: dask_nlsq.fit(decay, n_starts=64, **options), lambda: dask_nlsq.fit(decay, **options)


VARIANTS = dask_nlsq.grid(
    model={"decay": "a*exp(-b*t) + c", "slope": "a*exp(-b*t) + c + d*t", "stretched": "a*exp(-(b*t)**k) + c"},
    p0={f"start {i}": {"a": 2.0 + 0.5 * i, "b": 1.0 + 0.2 * i, "c": 0.3} for i in range(4)},
)
"""Twelve variants: three models, from four starts each."""


def of_twelve(size):
    """Return data for studies, and a fit of the last variant."""
    path = rows.parquet(size.folder, size(2_000_000, 10_000_000))
    options = VARIANTS["stretched, start 0"].options
    return path, lambda: dask_nlsq.fit(data=path, cache="none", **options)


@comparison("study", "the dearest of the twelve fits, alone", "times", repeat=5)
def study(size):
    """A study of three models from four starts on a path of Parquet, compile not counted."""
    path, one = of_twelve(size)
    yield lambda: dask_nlsq.study(VARIANTS, data=path, cache="none"), one


@comparison("study-apart", "its twelve fits, one after the other", "faster", repeat=3)
def study_apart(size):
    """The same study."""
    path, _ = of_twelve(size)
    each = [variant.options for variant in VARIANTS.values()]
    yield (
        lambda: dask_nlsq.study(VARIANTS, data=path, cache="none"),
        lambda: [dask_nlsq.fit(data=path, cache="none", **options) for options in each],
    )


@comparison("study-one", "the same fit without a study", "times", repeat=9)
def study_one(size):
    """A study of one variant on a path of Parquet, compile not counted."""
    path, one = of_twelve(size)
    single = {"one": VARIANTS["stretched, start 0"]}
    yield lambda: dask_nlsq.study(single, data=path, cache="none"), one


def cold_fit(path, options):
    """Return the seconds of a fit of a path whose result is kept in a new cache: for a fresh process."""
    with tempfile.TemporaryDirectory() as where:
        return clock(lambda: dask_nlsq.fit(data=path, cache_dir=where, **options))


def beside_cold(size, files):
    """Yield a fit of so many files of Parquet whose result is in the cache, and the first fit of a process."""
    path = rows.parquet(size.folder, size(2_000_000, 10_000_000), files)
    options, where = VARIANTS["stretched, start 0"].options, size.folder / f"results-{files}"
    yield lambda: dask_nlsq.fit(data=path, cache_dir=where, **options), lambda: apart(cold_fit, path, options)


@comparison("cached", "the same, as the first fit of a process", "faster", repeat=5)
def cached(size):
    """A fit of 50 files of Parquet whose result is in the cache."""
    yield from beside_cold(size, rows.FILES)


@comparison("cached-one-file", "the same, as the first fit of a process", "faster", repeat=5)
def cached_one_file(size):
    """A fit of one file of Parquet whose result is in the cache."""
    yield from beside_cold(size, 1)


# --- rows in memory ---------------------------------------------------------------------------------------------------

SCIPY = "scipy.optimize.curve_fit"


def fresh(size, solver, figure, ours="ours", n=None):
    """Yield a figure of our first fit in a fresh process, and of another's: 0 for seconds, 1 for bytes."""
    folder = rows.arrays(size.folder, n or size(1_000_000, 10_000_000))

    def run(name):
        *figures, popt = apart(first_fit, name, folder)
        agree(popt, TRUTH, rtol=0.01)
        return figures[figure]

    yield lambda: run(ours), lambda: run(solver)


@comparison("scipy-first", SCIPY, "faster", warm=False, repeat=3)
def scipy_first(size):
    """Arrays in memory, the first fit of a process, compile counted."""
    yield from fresh(size, "scipy", 0)


@comparison("scipy-again", SCIPY, "faster")
def scipy_again(size):
    """Arrays in memory, compile not counted."""
    t, y = decay_rows(size(1_000_000, 10_000_000))
    agree(dask_nlsq.fit(decay, t, y).popt, scipy.optimize.curve_fit(decay_numpy, t, y, p0=START)[0], rtol=1e-5)
    yield lambda: dask_nlsq.fit(decay, t, y), lambda: scipy.optimize.curve_fit(decay_numpy, t, y, p0=START)


@comparison("scipy-memory", SCIPY, "times", unit="B", warm=False, repeat=3)
def scipy_memory(size):
    """Arrays in memory, growth of the peak resident size."""
    yield from fresh(size, "scipy", 1)


@comparison("nlsq-large", "NLSQ curve_fit_large", "faster", warm=False, repeat=3, full_only=True)
def nlsq_large(size):
    """Arrays in memory, the first fit of a process, compile counted."""
    need("nlsq")
    yield from fresh(size, "nlsq large", 0)


@comparison("nlsq-streaming", "NLSQ AdaptiveHybridStreaming", "faster", warm=False, repeat=1, full_only=True)
def nlsq_streaming(size):
    """Arrays in memory, the first fit of a process, compile counted."""
    need("nlsq")
    yield from fresh(size, "nlsq streaming", 0)


@comparison("streaming", "NLSQ AdaptiveHybridStreaming", "faster", warm=False, repeat=1, full_only=True)
def streaming(size):
    """A million rows in memory by tier="streaming", the first fit of a process, compile counted."""
    need("nlsq")
    yield from fresh(size, "nlsq streaming", 0, ours="ours streaming", n=1_000_000)


@comparison("streaming-memory", "NLSQ AdaptiveHybridStreaming", "times", unit="B", warm=False, repeat=1, full_only=True)
def streaming_memory(size):
    """A million rows in memory by tier="streaming", growth of the peak resident size."""
    need("nlsq")
    yield from fresh(size, "nlsq streaming", 1, ours="ours streaming", n=1_000_000)


@comparison("standard", "Levenberg-Marquardt on whole arrays, jax.jit by hand", "more", repeat=31)
def standard(size):
    """10,000 rows in memory, after the first call."""
    t, y = decay_rows(10_000)
    by_hand = levenberg_marquardt(decay)
    agree(dask_nlsq.fit(decay, t, y).popt, by_hand(t, y, START)[0])
    yield lambda: dask_nlsq.fit(decay, t, y), lambda: by_hand(t, y, START)


@comparison("counts-glm", "statsmodels GLM", "faster", repeat=3)
def counts_glm(size):
    """Counts in memory, a log-linear model of 2 parameters, compile not counted."""
    need("statsmodels")
    import statsmodels.api as sm

    t = np.random.default_rng(0).uniform(0, 5, size(200_000, 1_000_000))
    y, x = np.random.default_rng(1).poisson(np.exp(1.0 - 0.5 * t)), sm.add_constant(t)

    def ours():
        return dask_nlsq.fit("exp(a + b*t)", t, y, p0=[0.0, 0.0], loss="poisson")

    def glm():
        return sm.GLM(y, x, family=sm.families.Poisson()).fit()

    agree(ours().popt, glm().params)
    yield ours, glm


LMFIT = "lmfit.Model.fit, written with NumPy"


def beside_lmfit(n, fit):
    """Yield a fit of few rows and that of lmfit."""
    need("lmfit")
    import lmfit

    (t, y), model = decay_rows(n), lmfit.Model(decay_numpy)
    start = dict(zip(("amplitude", "rate", "offset"), START, strict=True))
    agree(fit(t, y), list(model.fit(y, t=t, **start).best_values.values()), rtol=1e-4)
    yield lambda: fit(t, y), lambda: model.fit(y, t=t, **start)


@comparison("fit-200", LMFIT, "times", repeat=101)
def fit_200(size):
    """200 rows in memory, after the first call."""
    yield from beside_lmfit(200, lambda t, y: dask_nlsq.fit(decay, t, y, p0=START).popt)


@comparison("curve-fit-200", LMFIT, "times", repeat=101)
def curve_fit_200(size):
    """curve_fit of 200 rows, after the first call."""
    yield from beside_lmfit(200, lambda t, y: dask_nlsq.curve_fit(decay, t, y, p0=START)[0])


@comparison("curve-fit-2000", LMFIT, "times", repeat=101)
def curve_fit_2000(size):
    """curve_fit of 2,000 rows, after the first call."""
    yield from beside_lmfit(2000, lambda t, y: dask_nlsq.curve_fit(decay, t, y, p0=START)[0])


@comparison("curve-fit-200000", "fit of the same", "times", repeat=15)
def curve_fit_200000(size):
    """curve_fit of 200,000 rows, after the first call."""
    t, y = decay_rows(200_000)
    yield lambda: dask_nlsq.curve_fit(decay, t, y, p0=START), lambda: dask_nlsq.fit(decay, t, y, p0=START)


@comparison("second-process", "the same without", "faster", repeat=5)
def second_process(size):
    """200 rows, the first fit of a second process, with a compilation cache."""
    folder = rows.arrays(size.folder, 200)

    def run(environ):
        with changed(environ):
            return apart(first_fit, "ours", folder)[0]

    yield lambda: run({"DASK_NLSQ__COMPILATION_CACHE": str(size.folder / "compiled")}), lambda: run({})


# --- errors in x ------------------------------------------------------------------------------------------------------

ERRORS = {"sigma": 0.1, "sigma_x": 0.1}


def sweeping(result):
    """Return what sweeps the rows of a fit once more."""
    problem, request = result.profiler.problem, Request(result.popt)
    problem = dataclasses.replace(problem, groups=arrange(problem.source, problem.reader, problem.plan))
    return lambda: problem.sweep([request])


@comparison("errors-in-x", "a sweep of the plain fit", "times", repeat=9)
def errors_in_x(size):
    """A sweep over rows in memory, 3 parameters, with errors in x."""
    t, y = moved_rows(size(500_000, 4_000_000))
    yield sweeping(dask_nlsq.fit(decay, t, y, **ERRORS)), sweeping(dask_nlsq.fit(decay, t, y, sigma=0.1))


@comparison("errors-in-x-odrpack", "odrpack.odr_fit, with its own tolerances", "faster", repeat=3)
def errors_in_x_odrpack(size):
    """Arrays in memory, 3 parameters, with errors in x, compile not counted."""
    need("odrpack")
    t, y = moved_rows(size(20_000, 1_000_000))
    # With its own tolerances odrpack stops some parts in 1e5 before the minimum.
    agree(dask_nlsq.fit(decay, t, y, **ERRORS).popt, by_odrpack(t, y, **ERRORS), rtol=1e-3)
    yield lambda: dask_nlsq.fit(decay, t, y, **ERRORS), lambda: by_odrpack(t, y, **ERRORS)


# --- several responses ------------------------------------------------------------------------------------------------


@comparison("complex", "a sweep of its real part alone", "times", repeat=9)
def complex_y(size):
    """A sweep over complex numbers in memory, 3 parameters."""
    w, z = rows.resonance_rows(size(500_000, 4_000_000))
    real = z.real.copy()
    yield sweeping(dask_nlsq.fit(rows.resonance, w, z)), sweeping(dask_nlsq.fit(rows.magnitude, w, real))


@comparison("complex-lmfit", LMFIT, "faster", repeat=3)
def complex_lmfit(size):
    """Complex numbers in memory, 3 parameters, compile not counted."""
    need("lmfit")
    import lmfit

    w, z = rows.resonance_rows(size(50_000, 1_000_000))
    model = lmfit.Model(rows.resonance)
    start = {"loss": 1.0, "width": 1.0, "level": 0.0}
    agree(dask_nlsq.fit(rows.resonance, w, z).popt, list(model.fit(z, w=w, **start).best_values.values()), rtol=1e-4)
    yield lambda: dask_nlsq.fit(rows.resonance, w, z), lambda: model.fit(z, w=w, **start)


@comparison("vector", "a sweep of one of them", "times", repeat=9)
def vector_y(size):
    """A sweep over three responses in memory, 3 parameters."""
    t, y = decay_rows(size(500_000, 2_000_000))
    several = dask_nlsq.fit(rows.three_decays, t, [y, 3.5 - y, y / 6], p0=START)
    yield sweeping(several), sweeping(dask_nlsq.fit(decay, t, y))


# --- many small fits --------------------------------------------------------------------------------------------------


def beside_series(size, fit, rtol):
    """Yield fits of all series, and the seconds that another would take, from those for a sample of the series."""
    t, y = decay_series(size(5_000, 100_000))
    sample = y[:: len(y) // size(200, 500)]
    result = dask_nlsq.fit_many(decay, t, y, p0=START).compute()
    if not result.success.all():
        raise ValueError(f"Of the series, {len(result.failures()):,} have failed.")
    own = dask_nlsq.fit_many(decay, t, sample, p0=START).compute()
    theta, stderr = (np.stack(list(columns.values()), axis=1) for columns in (own.params, own.stderr))
    for found, expected in zip((theta, stderr), zip(*(tight(t, row) for row in sample), strict=True), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-6)
    agree(fit(t, sample), theta, rtol=rtol)
    scale = len(y) / len(sample)
    yield lambda: dask_nlsq.fit_many(decay, t, y, p0=START).compute(), lambda: scale * clock(lambda: fit(t, sample))


MANY = {"kind": "faster", "one_core": True, "repeat": 5}


@comparison("many", "a loop of scipy.optimize.curve_fit, from a sample of the series", **MANY)
def many(size):
    """One core, a fit of each of many series of 64 points, 3 parameters, compile not counted."""
    yield from beside_series(size, series_by_scipy, 1e-5)


@comparison("many-xarray", "xarray's curvefit, from a sample of the series", **MANY)
def many_xarray(size):
    """One core, a fit of each of many series of 64 points, 3 parameters, compile not counted."""
    need("xarray")
    yield from beside_series(size, series_by_xarray, 1e-5)


@comparison("many-astropy", "astropy's parallel_fit_dask, from a sample of the series", **MANY)
def many_astropy(size):
    """One core, a fit of each of many series of 64 points, 3 parameters, compile not counted."""
    need("astropy")
    yield from beside_series(size, series_by_astropy, 1e-4)


@comparison("many-hyperspy", "hyperspy's multifit, from a sample of the series", **MANY)
def many_hyperspy(size):
    """One core, a fit of each of many series of 64 points, 3 parameters, compile not counted."""
    need("hyperspy")
    yield from beside_series(size, series_by_hyperspy, 1e-4)


# --- a cluster --------------------------------------------------------------------------------------------------------


def make_block(index, n):
    """Return one partition of `rows.frame` as a worker holds it."""
    t, y = decay_rows(n, seed=index)
    return Block((t,), y)


def last_sweep(frame, client):
    """Return the seconds of the second sweep of a fit whose partitions are held by the workers."""
    result = frame.nlsq.fit(decay, cache="persist", client=client)
    return float(result.history["seconds"].iloc[-1])


@comparison("sweep", "the same kernel and combine, a tree of dask.delayed", "times", repeat=5)
def sweep(size):
    """A sweep over partitions of 10,000 rows held by two workers."""
    partitions, n = size(200, 1000), 10_000
    with cluster(2) as client:
        blocks = client.map(make_block, range(partitions), n=n)
        payload, request = serialize(bound(decay, 3)), Request(np.array(TRUTH))
        if delayed_tree(blocks, payload, request).rows != partitions * n:
            raise ValueError("The tree has lost rows.")
        frame = rows.frame(partitions, n)
        yield lambda: last_sweep(frame, client), lambda: delayed_tree(blocks, payload, request)


def alone(run, workers):
    """Return the median seconds of some calls of ``run(client)``, in a cluster that has the machine to itself.

    Another beside it, though idle, takes 3 % of two cores for its event loops and their profiler.
    """
    with cluster(workers) as client:
        run(client)
        return statistics.median(clock(lambda: run(client)) for _ in range(3))


@comparison("workers", "one worker", "faster", repeat=5)
def workers(size):
    """A sweep over partitions of 10,000 rows held by two workers."""
    run = functools.partial(last_sweep, rows.frame(size(200, 1000), 10_000))
    yield lambda: alone(run, 2), lambda: alone(run, 1)


@comparison("workers-large", "one worker", "faster", repeat=3)
def workers_large(size):
    """A sweep over partitions of 500,000 rows held by two workers."""
    run = functools.partial(last_sweep, rows.frame(size(20, 100), 500_000))
    yield lambda: alone(run, 2), lambda: alone(run, 1)


def hashed(_, times, size):
    """Compute outside Python's lock, and return some bytes."""
    hashlib.pbkdf2_hmac("sha256", b"", b"", times)
    return bytes(size)


def bare_tasks(client, times):
    """Let Dask run two tasks, of which each returns as many bytes as one of `workers`."""
    client.gather(client.map(hashed, range(2), times=times, size=30_000, pure=False))


@comparison("workers-bare", "one worker", "faster", repeat=5)
def workers_bare(size):
    """Two tasks of bare Dask, which hash for some 50 ms each, on two workers."""
    times = int(100_000 * 0.05 / min(clock(lambda: hashed(0, 100_000, 0)) for _ in range(3)))
    run = functools.partial(bare_tasks, times=times)
    yield lambda: alone(run, 2), lambda: alone(run, 1)
