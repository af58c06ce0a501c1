"""Measure the kernel, the solver and many small fits on the device that JAX picks, and check every answer on the CPU.

::

    python tests/benchmarks/gpu.py            # at full size: a GPU, and less than four minutes
    python tests/benchmarks/gpu.py --small    # seconds, on any processor

It needs JAX, which brings NumPy and SciPy, and this checkout; nothing else has to be installed. The kernel and the
solvers are called directly, for `fit` and `fit_many`, which drive them, import Dask. Where Dask is installed, `fit` of
arrays in memory (STANDARD) is measured too. The answers on the CPU come from a process of its own. The exit code is 1
where one disagrees.
"""

import argparse
import ast
import functools
import importlib.util
import os
import statistics
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

ROOT = Path(__file__).resolve().parents[2]


ABSENT = ("dask", "distributed", "pandas", "psutil", "yaml", "lazy_loader")
"""What the package needs elsewhere, and does without here."""


def is_bare():
    """Whether Dask is not installed, or is to be left aside."""
    return "--bare" in sys.argv or importlib.util.find_spec("dask") is None


def prepare():
    """Make the package's folders importable without its front, which needs Dask, and without lazy_loader."""
    sys.modules.update(dict.fromkeys(ABSENT))
    sys.modules["lazy_loader"] = types.ModuleType("lazy_loader")
    sys.modules["lazy_loader"].attach_stub = attach_stub
    sys.modules["dask_nlsq"] = types.ModuleType("dask_nlsq")
    sys.modules["dask_nlsq"].__path__ = [str(ROOT / "dask_nlsq")]


def attach_stub(package, filename):
    """Return `__getattr__`, `__dir__` and `__all__` of a package that imports what its stub says at the first use."""
    imports = ast.parse(Path(filename).with_suffix(".pyi").read_text("utf-8")).body
    places = {a.asname or a.name: (n.module, a.name) for n in imports for a in n.names}

    def get(name):
        if name not in places:
            raise AttributeError(name)
        module, attribute = places[name]
        if module is None:
            return importlib.import_module(f"{package}.{attribute}")
        return getattr(importlib.import_module(f"{package}.{module}"), attribute)

    return get, lambda: sorted(places), list(places)


sys.path.insert(0, str(ROOT))
BARE = is_bare()
if BARE:
    prepare()

from dask_nlsq._kernel.block import Block  # noqa: E402
from dask_nlsq._kernel.kernel import reduce_blocks  # noqa: E402
from dask_nlsq._kernel.reduction import fold  # noqa: E402
from dask_nlsq._kernel.separable import linearity  # noqa: E402
from dask_nlsq._kernel.validate import check  # noqa: E402
from dask_nlsq._model.model import Model  # noqa: E402
from dask_nlsq._model.objective import Objective  # noqa: E402
from dask_nlsq._solver.batched import Series, Tolerance, minimise  # noqa: E402
from dask_nlsq._solver.trust_region import TrustRegion, final, residual_std  # noqa: E402

PIECE = 2**19
"""Rows of a block: one slab of the kernel."""

GRAM, ERRORS = 1e-10, 1e-4
"""Largest differences from the CPU: of sums, beside their columns' lengths, and of estimates, in standard errors."""


def decay(t, amplitude=1.0, rate=1.0, offset=0.0):
    """A three-parameter exponential."""
    return amplitude * jnp.exp(-rate * t) + offset


def peaks(t, *theta):
    """Five Gaussians: a height, a place and a width each."""
    return sum(a * jnp.exp(-(((t - m) / s) ** 2)) for a, m, s in zip(*(theta[k::3] for k in range(3)), strict=True))


TRUTH = {
    "3 parameters": np.array([3.0, 1.3, 0.5]),
    "3 parameters, with sigma": np.array([3.0, 1.3, 0.5]),
    "15 parameters": np.array([[1 + k, 0.5 + k, 0.3] for k in range(5)]).ravel(),
}
"""By problem, the parameters of which its rows are made."""


def problem(name, rows):
    """Return an objective and blocks of so many rows, held in memory."""
    truth = TRUTH[name]
    model = decay if len(truth) == 3 else peaks
    weighted = "sigma" in name
    rng = np.random.default_rng(0)
    t = rng.uniform(0, 5, rows)
    with jax.enable_x64(True):
        y = np.asarray(jax.jit(model)(t, *truth)) + rng.normal(0, 0.1, rows)
    weight = rng.uniform(5, 20, rows) if weighted else None
    objective = Objective(Model.from_function(model, len(truth)).bind(["t"]), ("t", "y"), weighted)
    cuts = [slice(i, i + PIECE) for i in range(0, rows, PIECE)]
    blocks = [Block((t[c],), y[c], None if weight is None else weight[c], held=True) for c in cuts]
    return check(objective, truth)[0], blocks


def series(count, points=64):
    """Return decays (count, points), where to start from, and the objective."""
    rng = np.random.default_rng(0)
    t = np.linspace(0, 5, points)
    amplitude, rate, offset = (rng.uniform(*limits, (count, 1)) for limits in ((2, 4), (0.5, 2), (0.2, 0.8)))
    y = amplitude * np.exp(-rate * t) + offset + rng.normal(0, 0.05, (count, points))
    objective = Objective(Model.from_function(decay, 3).bind(["t"]), ("t", "y"))
    rows = Series((t[None],), y, np.ones((1, points)), (True, False, True))
    return check(objective, np.ones(3))[0], rows, np.tile([2.5, 1.0, 0.3], (count, 1))


def sweep(objective, blocks, theta, whitening=None):
    """Return the sums over all blocks."""
    return fold(reduce_blocks(objective, [block], theta, whitening)[0] for block in blocks)


def solve(objective, blocks, start):
    """Return estimates, standard errors and the number of sweeps, as the trust region of `fit` finds them."""
    p = len(start)
    solver = TrustRegion(np.full(p, -np.inf), np.full(p, np.inf), linearity=linearity(objective))
    state = solver.init(start)
    while not solver.terminate(state):
        request = solver.request(state)
        s = None if request.whitening is None else request.whitening.s
        state = solver.step(state, sweep(objective, blocks, request.theta, s))
    if not state.status.success:
        raise SystemExit(f"The fit did not converge: {state.status}")
    errors = residual_std(state.at.reduction, p, False) * state.at.factor.unscaled_stderr
    return final(state, solver.lower, solver.upper)[0], errors, len(state.history)


def many(objective, rows, starts):
    """Fit every series."""
    unbounded = np.full((1, 3), np.inf)
    return minimise(objective, rows, starts, -unbounded, unbounded, tolerance=Tolerance())


def answers(rows, count):
    """Return what is compared, by name."""
    results = {}
    for name, truth in TRUTH.items():
        objective, blocks = problem(name, rows)
        results[f"gram: {name}"] = sweep(objective, blocks, 1.05 * truth).gram
        estimates, errors, _ = solve(objective, blocks, 1.05 * truth)
        results[f"estimates: {name}"], results[f"errors: {name}"] = estimates, errors
    fits = many(*series(count))
    return results | {"many": fits.theta, "converged": fits.status > 0, "costs": fits.cost}


def on_the_cpu(rows, count):
    """Return the answers of a process that has no other device."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "answers.npz"
        command = [sys.executable, __file__, "--answers", str(file), str(rows), str(count)]
        command += ["--bare"] if BARE else []
        subprocess.run(command, check=True, env=os.environ | {"JAX_PLATFORMS": "cpu"})
        return dict(np.load(file))


def disagreements(ours, theirs):
    """Yield a sentence for each answer that is not that of the CPU."""
    for name, truth in TRUTH.items():
        gram, expected = ours[f"gram: {name}"], theirs[f"gram: {name}"]
        lengths = np.sqrt(np.diag(expected))
        if (worst := np.abs((gram - expected) / np.outer(lengths, lengths)).max()) > GRAM:
            yield f"The sums of {name} differ by {worst:.1e} of their columns' lengths; at most {GRAM:g} is right."
        errors = theirs[f"errors: {name}"]
        off = np.abs(ours[f"estimates: {name}"] - theirs[f"estimates: {name}"]) / errors
        if off.max() > ERRORS or not np.allclose(ours[f"errors: {name}"], errors, rtol=1e-5):
            yield f"The estimates of {name} differ by {off.max():.1e} standard errors, or the errors themselves."
        if (far := np.abs(theirs[f"estimates: {name}"] - truth) / errors).max() > 6:
            yield f"The estimates of {name} are {far.max():.1f} standard errors from what the rows were made of."
    if (ours["converged"] != theirs["converged"]).any():
        yield f"Other series converge: {int((ours['converged'] != theirs['converged']).sum())} of {len(ours['many'])}."
    # The spread of the estimates over all series is a yardstick of the size of a parameter.
    off = np.abs(ours["many"] - theirs["many"])[theirs["converged"]] / theirs["many"].std(axis=0)
    if off.max() > 1e-6 or not np.allclose(ours["costs"], theirs["costs"], rtol=1e-8):
        yield f"The estimates of some series differ by {off.max():.1e} of their spread; at most 1e-6 is right."


def seconds(call, repeat=5):
    """Return the median time of a call, which has been made once before."""
    call()
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def copied(nbytes):
    """Return the bytes a second that a copy on the device reads and writes."""
    with jax.enable_x64(True):
        array = jnp.zeros(nbytes // 8)
        copy = jax.jit(jnp.copy)
        return 2 * array.nbytes / seconds(lambda: copy(array).block_until_ready())


def measured(rows, count):
    """Yield what was measured, its figure, and what it is beside."""
    bandwidth = copied(16 * rows)
    yield "copy on the device, read and written", f"{bandwidth / 1e9:.3g} GB/s", ""
    for name, truth in TRUTH.items():
        objective, blocks = problem(name, rows)
        theta = 1.05 * truth
        took, nbytes = seconds(lambda o=objective, b=blocks, x=theta: sweep(o, b, x)), sum(b.nbytes for b in blocks)
        share = f"{nbytes / took / 1e9:.3g} GB/s, {nbytes / took / bandwidth:.1%} of the copy"
        yield f"kernel, {name}, rows on the device", f"{rows / took:.3g} rows/s", share
        sent = [Block(b.x, b.y, b.weight) for b in blocks]
        took = seconds(lambda o=objective, b=sent, x=theta: sweep(o, b, x), 2)
        yield f"kernel, {name}, rows sent each time", f"{rows / took:.3g} rows/s", f"{nbytes / took / 1e9:.3g} GB/s"
        took = seconds(lambda o=objective, b=blocks, x=theta: solve(o, b, x), 2)
        sweeps = solve(objective, blocks, theta)[2]
        yield f"solver, {name}", f"{took:.3g} s", f"{sweeps} sweeps, {rows * sweeps / took:.3g} rows/s"
    took = seconds(functools.partial(many, *series(count)), 2)
    yield f"many fits, {count} of 64 points", f"{count / took:.3g} fits/s", ""
    if not BARE:
        import dask_nlsq

        _, blocks = problem("3 parameters", min(rows, 2_000_000))
        data = {"t": np.concatenate([b.x[0] for b in blocks]), "y": np.concatenate([b.y for b in blocks])}
        took = seconds(lambda: dask_nlsq.fit(decay, data=data, p0=[2.5, 1.0, 0.3], tier="standard"), 2)
        yield "fit of arrays in memory, 3 parameters", f"{took:.3g} s", f"{len(data['y'])} rows"


def main():
    """Compare, then measure; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="seconds on any processor")
    parser.add_argument("--bare", action="store_true", help="as where Dask is not installed")
    parser.add_argument("--answers", nargs=3, metavar=("FILE", "ROWS", "SERIES"), help="write the answers and end")
    args = parser.parse_args()
    if args.answers:
        file, rows, count = args.answers
        np.savez(file, **answers(int(rows), int(count)))
        return 0
    started = time.perf_counter()
    rows, count = (50_000, 500) if args.small else (2**24, 200_000)
    device = jax.devices()[0]
    print(f"{device.device_kind} ({device.platform}), jax {jax.__version__}, {'without' if BARE else 'with'} Dask")
    wrong = list(disagreements(answers(rows, count), on_the_cpu(rows, count)))
    print(f"every answer compared with the CPU's after {time.perf_counter() - started:.0f} s: {len(wrong)} disagree")
    print("\n".join(wrong), end="\n" if wrong else "")
    for what, figure, beside in measured(rows, count):
        print(f"{what:54} {figure:16} {beside}", flush=True)
    print(f"{time.perf_counter() - started:.0f} s in all")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
