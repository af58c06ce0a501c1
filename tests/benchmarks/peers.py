"""Alternatives for comparison: a loop in C, JAX written by hand, SciPy, NLSQ, a tree of dask.delayed."""

import contextlib
import ctypes
import functools
import importlib.util
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from dask import delayed
from measure import Missing, peak
from rows import decay, decay_jacobian, decay_numpy

import dask_nlsq
from dask_nlsq._kernel.reduction import FAN_IN, fold
from dask_nlsq._sweep.task import reduce_partition

START = (1.0, 1.0, 0.0)
GCC = ["-O3", "-march=native", "-ffast-math", "-shared", "-fPIC"]


def c_loop(folder, weighted):
    """Compile sums.c here; return a function of (t, y, weight, theta) that gives its 10 sums."""
    gcc = shutil.which("gcc")
    if gcc is None:
        raise Missing("gcc")
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "sums.so"
    subprocess.run([gcc, *GCC, "-o", library, Path(__file__).with_name("sums.c"), "-lm"], check=True)
    if b"_ZGV" not in library.read_bytes():  # the names of libmvec's functions
        raise Missing("a gcc and a C library that vectorise exp")
    run = getattr(ctypes.CDLL(str(library)), "weighted" if weighted else "plain")
    run.restype = None
    out = np.empty(10)

    def sums(t, y, weight, theta):
        address = [None if a is None else a.ctypes.data_as(ctypes.c_void_p) for a in (t, y, weight, theta, out)]
        run(*address[:3], ctypes.c_long(len(t)), *address[3:])
        return out.copy()

    return sums


def gram(sums):
    """Return (p + 1, p + 1) sums of products, residual last, from the 10 of the loop in C."""
    cost, gradient, curvature = sums[0], sums[1:4], np.zeros((3, 3))
    curvature[np.triu_indices(3)] = sums[4:]
    curvature += np.triu(curvature, 1).T
    return np.block([[curvature, gradient[:, None]], [gradient[None], np.array([[2 * cost]])]])


def whole_array(model):
    """Return a jitted function of (theta, x, y): cost, gradient and curvature from one Jacobian of all rows."""

    @jax.jit
    def sums(theta, x, y):
        r, jac = model(x, *theta) - y, jax.jacfwd(lambda t: model(x, *t))(theta)
        return 0.5 * r @ r, jac.T @ r, jac.T @ jac

    def run(theta, x, y):
        with jax.enable_x64(True):
            return [np.asarray(a) for a in sums(theta, x, y)]

    return run


def levenberg_marquardt(model, rtol=1e-10, most=100):
    """Return a Levenberg-Marquardt fit of (x, y, start) in one jitted loop: estimates and covariance."""

    def normal(theta, x, y):
        r, jac = model(x, *theta) - y, jax.jacfwd(lambda t: model(x, *t))(theta)
        return 0.5 * r @ r, jac.T @ r, jac.T @ jac

    @jax.jit
    def run(x, y, start):
        def step(state):
            theta, (cost, g, h), damping, _, count = state
            delta = -jnp.linalg.solve(h + damping * jnp.diag(jnp.diag(h)), g)
            trial = normal(theta + delta, x, y)
            better = trial[0] <= cost
            theta, now = jax.tree.map(
                lambda a, b: jnp.where(better, a, b), (theta + delta, trial), (theta, (cost, g, h))
            )
            done = jnp.linalg.norm(delta) <= rtol * jnp.linalg.norm(theta)
            return theta, now, jnp.where(better, damping / 10, damping * 10), done, count + 1

        state = (start, normal(start, x, y), 1e-3, False, 0)
        theta, (cost, _, h), *_ = jax.lax.while_loop(lambda s: ~s[3] & (s[4] < most), step, state)
        return theta, jnp.linalg.inv(h) * 2 * cost / (len(y) - len(start))

    def fit(x, y, start):
        with jax.enable_x64(True):
            return [np.asarray(a) for a in run(x, y, np.asarray(start, float))]

    return fit


def delayed_tree(blocks, payload, request):
    """Sweep blocks held by workers in a tree of dask.delayed, with our kernel and our combine."""
    leaf = delayed(functools.partial(reduce_partition, payload=payload, request=request), pure=False)
    node = delayed(fold, pure=False)
    level = [leaf(block) for block in blocks]
    while len(level) > 1:
        level = [node(level[i : i + FAN_IN]) for i in range(0, len(level), FAN_IN)]
    return level[0].compute()


def tight(t, y):
    """Return the estimates and standard errors of one series by MINPACK, at tolerances near rounding."""

    def residual(theta):
        return decay_numpy(t, *theta) - y

    found = scipy.optimize.least_squares(
        residual, START, lambda theta: decay_jacobian(t, *theta), method="lm", xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    inverse = np.linalg.inv(np.linalg.qr(decay_jacobian(t, *found.x), mode="r"))
    return found.x, np.sqrt(np.sum(inverse**2, axis=1) * 2 * found.cost / (len(t) - len(START)))


def series_by_scipy(t, y):
    """Fit each series in a loop of `scipy.optimize.curve_fit`; return the estimates (n, 3)."""
    return np.array([scipy.optimize.curve_fit(decay_numpy, t, row, p0=START)[0] for row in y])


def series_by_xarray(t, y):
    """Fit each series by `xarray.DataArray.curvefit`."""
    import xarray as xr

    cube = xr.DataArray(y, dims=("series", "t"), coords={"t": t})
    start = dict(zip(("amplitude", "rate", "offset"), START, strict=True))
    return cube.curvefit("t", decay_numpy, p0=start)["curvefit_coefficients"].values


def series_by_astropy(t, y):
    """Fit each series by `astropy.modeling.fitting.parallel_fit_dask`, in this thread."""
    from astropy.modeling import custom_model, fitting

    kind = custom_model(lambda t, amplitude=1.0, rate=1.0, offset=0.0: decay_numpy(t, amplitude, rate, offset))
    found = fitting.parallel_fit_dask(
        model=kind(*START),
        fitter=fitting.LMLSQFitter(),
        data=y,
        fitting_axes=1,
        world=(t,),
        scheduler="synchronous",
    )
    return found.parameters.reshape(3, -1).T


def series_by_hyperspy(t, y):
    """Fit each series by hyperspy's `multifit`, with MINPACK."""
    import hyperspy.api as hs

    signal = hs.signals.Signal1D(y)
    axis = signal.axes_manager.signal_axes[0]
    axis.scale, axis.offset = t[1] - t[0], t[0]
    model = signal.create_model()
    start = dict(zip(("amplitude", "rate", "offset"), START, strict=True))
    decay = hs.model.components1D.Expression("amplitude * exp(-rate * x) + offset", name="decay", **start)
    model.append(decay)
    model.multifit(optimizer="lm", show_progressbar=False)
    return np.stack([getattr(decay, name).map["values"] for name in start], axis=1)


def by_odrpack(t, y, sigma_x, sigma):
    """Fit the decay to rows with errors in t by ODRPACK, with its own tolerances; return the estimates."""
    import odrpack

    found = odrpack.odr_fit(
        lambda t, theta: decay_numpy(t, *theta), t, y, np.array(START), weight_x=sigma_x**-2, weight_y=sigma**-2
    )
    return found.beta


def _ours():
    fit = dask_nlsq.fit
    return lambda t, y: fit(decay, t, y).popt


def _ours_streaming():
    fit = dask_nlsq.fit
    return lambda t, y: fit(decay, t, y, tier="streaming").popt


def _scipy():
    return lambda t, y: scipy.optimize.curve_fit(decay_numpy, t, y, p0=START)[0]


def _nlsq_large():
    import nlsq

    return lambda t, y: nlsq.curve_fit_large(decay, t, y, p0=np.array(START), memory_limit_gb=0.2)[0]


def _nlsq_streaming():
    from nlsq.streaming.adaptive_hybrid import AdaptiveHybridStreamingOptimizer

    return lambda t, y: AdaptiveHybridStreamingOptimizer().fit((t, y), decay, jnp.array(START), verbose=0)["x"]


SOLVERS = {
    "ours": _ours,
    "ours streaming": _ours_streaming,
    "scipy": _scipy,
    "nlsq large": _nlsq_large,
    "nlsq streaming": _nlsq_streaming,
}
"""Each imports what it needs and returns a function of (t, y) that gives the estimates."""


def need(package):
    """Raise Missing unless a package is installed."""
    if importlib.util.find_spec(package) is None:
        raise Missing(package)


def first_fit(solver, folder):
    """Return seconds, growth of the peak in bytes, and estimates of the first fit of this process."""
    run = SOLVERS[solver]()
    t, y = np.load(folder / "t.npy"), np.load(folder / "y.npy")
    before, started = peak(), time.perf_counter()
    with contextlib.redirect_stdout(sys.stderr):  # NLSQ talks
        popt = np.asarray(run(t, y))
    return time.perf_counter() - started, float(peak() - before), popt
