r"""Reduce one block: residual, Jacobian and their products in one compiled pass over cache-sized tiles.

A tile of rows is sliced out of the slab, the model is evaluated on it, and one reverse pass gives every
column of its Jacobian: the parameters are handed to the model once a row, so that the derivative with respect
to row i's copy of :math:`\theta_j` *is* :math:`J_{ij}`. The model sees one row at a time (under ``vmap``), which
makes that exact for whatever it does with its parameters. The columns are written behind one another into
a (p + 1, tile) array A, whose last row is the residual; the weight comes in as the cotangent of that pass, so that
it costs nothing, and :math:`A A^T` is added to the sum.

Rows past the end of the block repeat its first row with the weight zero, so that neither they nor their derivatives
can make a NaN. A model that cannot be differentiated in reverse (a ``while_loop``) takes one forward pass a parameter
instead. Whatever else is summed over rows is summed in lanes: XLA adds the numbers of one float64 sum one after
another, but those of many sums side by side.

Everything runs in float64 inside ``jax.enable_x64``, and takes and returns NumPy.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import gc
import math
import os
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dask_nlsq._errors import ModelError
from dask_nlsq._numerics import device, loss, numeric
from dask_nlsq._numerics.block import SLABS, TILE, TOGETHER, Block, Slab, lent, slabs
from dask_nlsq._numerics.objective import Jacobian, Objective
from dask_nlsq._numerics.reduction import Reduction, merge
from dask_nlsq._typing import Matrix, Vector

traces: collections.Counter[tuple[str, int, bool]] = collections.Counter()
"""How often each (model, slab rows, whitened) was traced in this process."""

_compiled: weakref.WeakKeyDictionary[Objective, dict[Any, Any]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()

_LANES = 256
"""Sums that are kept side by side while a block is read, and added up at its end."""

_CHAIN = np.uint64(33)
"""Multiplier that carries a checksum from tile to tile (Bernstein's): a shift and an addition, for any vector unit."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""Makes odd multipliers, one a row of the tile (golden-ratio hashing), so that swapped rows change the checksum."""

_EXPONENT, _MANTISSA, _ONE = np.uint64(52), np.uint64(2**52 - 1), np.uint64(1023 << 52)
"""A float64 is made of a sign, 11 bits of exponent counted from 1023, and 52 bits of mantissa."""


def reduce_block(objective: Objective, block: Block, theta: Vector, whitening: Matrix | None) -> Reduction:
    """Sweep one block at `theta` (p,), with the Jacobian multiplied by `whitening` (p, p) where given."""
    return reduce_blocks(objective, [block], theta, whitening)[0]


def reduce_blocks(
    objective: Objective, blocks: Sequence[Block], theta: Vector, whitening: Matrix | None
) -> list[Reduction]:
    """Sweep each of some blocks: small ones in one call, with the bits that they have by themselves."""
    with jax.enable_x64(True):
        if objective.jacobian == "numeric":
            return [numeric.reduce_block(objective, block, theta, whitening) for block in blocks]
        found: list[list[Reduction]] = [[] for _ in blocks]
        s = None if whitening is None else np.ascontiguousarray(whitening.T)
        for where, numbers, slab in device.place(blocks, objective.tile, _room(objective)):
            sums, checksums = map(np.asarray, _kernel(objective, slab, s is not None, where)(theta, s, slab))
            for i, one in zip(numbers, _reductions(objective, slab, sums, checksums), strict=True):
                found[i].append(one)
        if any(block.rows >= SLABS[1] and not block.held for block in blocks):
            del slab
            _take_back()
    return [_whole(objective, block, pieces) for block, pieces in zip(blocks, found, strict=True)]


def _take_back() -> None:
    """Wait until XLA is done with what it was lent, and JAX, which drops it when called again, has dropped it.

    A partition would otherwise be in memory until the next has been read.
    """
    for _ in range(1000):
        _call(np.zeros(1))
        if not lent():
            return
        time.sleep(1e-4)


@jax.jit
def _call(nothing: Any) -> Any:
    return nothing + nothing


def _whole(objective: Objective, block: Block, pieces: list[Reduction]) -> Reduction:
    if len(pieces) == 1 and not block.dropped and not block.rounded:
        return pieces[0]
    return merge([numeric.empty(objective, block), *pieces])


def prepare(objective: Objective) -> None:
    """Begin to compile, in threads of their own, what a first sweep of columns of float64 on a CPU needs.

    Tracing holds Python's lock and XLA does not, so the second is traced while the first is being compiled.
    """
    where = device.own()
    if objective.jacobian != "numeric" and not device.keeps(where):
        once(objective, ("prepared", where), lambda: _prepare(objective, where))


def _prepare(objective: Objective, where: Any) -> None:
    one = np.zeros(1)
    block = Block((one,) * objective.n_columns, one, one if objective.weighted else None)
    _, slab = next(slabs([block], SLABS[1], TILE, _room(objective)))
    rows = functools.partial(once, objective, "rows", functools.partial(_compile_rows, objective))
    _aside(lambda: _kernel(objective, slab, False, where, traced=lambda: _aside(rows)))


def _aside(work: Callable[[], Any]) -> None:
    """Do some work in a thread; what fails fails again, and is told, where the result is needed."""

    def quietly() -> None:
        with contextlib.suppress(Exception), jax.enable_x64(True):
            work()

    threading.Thread(target=quietly, name="nlsq-compile").start()


def _room(objective: Objective) -> int:
    """Return how many blocks may share a slab: their sums are allocated in every call, and stay below a megabyte."""
    return max(1, min(2**17 // (objective.n_parameters + 1) ** 2, TOGETHER))


def predict_block(objective: Objective, block: Block, theta: Vector) -> Vector:
    """Evaluate the model at every row of a block, with all its parameters; shape (rows,)."""
    if objective.jacobian == "numeric":
        with jax.enable_x64(True):
            return numeric.values(objective, block.x, theta.tolist())
    parts, size = [np.empty(0)], SLABS[0] if block.rows <= SLABS[0] else SLABS[1]
    with jax.enable_x64(True):
        for _, slab in slabs([block.wide()], size, TILE):
            run = once(objective, ("predict", size), functools.partial(_compile_predict, objective, size))
            parts.append(np.asarray(run(theta, slab.x))[: slab.places[0, 2]])
    return np.concatenate(parts)


def scratch(objective: Objective) -> float:
    """Return the bytes that the compiled kernels of an objective need for themselves, as the compiler says."""
    known = _compiled.get(objective, {})
    sizes = [run.memory_analysis() for kind, run in list(known.items()) if isinstance(run, jax.stages.Compiled)]
    return float(max((size.temp_size_in_bytes for size in sizes if size is not None), default=0))


def look(objective: Objective, theta: Vector) -> tuple[Objective, str | None]:
    """Return what `check` says, which is asked once for each objective."""
    found: tuple[Objective, str | None] = once(objective, "look", lambda: check(objective, theta))
    return found


def check(objective: Objective, theta: Vector) -> tuple[Objective, str | None]:
    """Look at the model without data: its shape, its dtype, and how its Jacobian can be formed.

    Returns
    -------
    Objective, str or None
        The objective with its Jacobian chosen, and what keeps JAX from tracing the model, where something does.

    Raises
    ------
    ModelError
        The model runs neither under JAX nor under NumPy, or does not return one real number a row.
    """
    name, rows = objective.model.name, 7
    column = jax.ShapeDtypeStruct((rows,), np.float64)
    scalar = jax.ShapeDtypeStruct((), np.float64)
    with jax.enable_x64(True):
        try:
            out = jax.eval_shape(
                lambda x, t: objective.evaluate(x, t, jnp.stack), [column] * objective.n_columns, [scalar] * len(theta)
            )
        except Exception as error:
            _try_numpy(objective, theta, rows, error)
            return dataclasses.replace(objective, jacobian="numeric"), _where(error)
        shape, dtype = getattr(out, "shape", None), np.dtype(getattr(out, "dtype", object))
        if shape != (rows,):
            raise ModelError(
                f"The model {name!r} returns the shape {shape} for {rows} rows; ({rows},) is needed, one number a row."
            )
        if dtype.kind not in "fiub":
            raise ModelError(f"The model {name!r} returns {dtype}; real numbers are needed.")
        if objective.jac is not None:
            return dataclasses.replace(objective, jacobian="numeric"), None
        return dataclasses.replace(objective, jacobian=_direction(objective)), None


def _direction(objective: Objective) -> Jacobian:
    """Return "reverse", or "forward" for a loop of unknown length, which has no reverse derivative."""
    try:
        jax.eval_shape(
            lambda t, x: jacobian_and_residual(dataclasses.replace(objective, jacobian="reverse"), t, x, x[0], x[0]),
            jax.ShapeDtypeStruct((objective.n_parameters,), np.float64),
            [jax.ShapeDtypeStruct((TILE,), np.float64)] * objective.n_columns,
        )
    except ValueError:
        return "forward"
    return "reverse"


def _try_numpy(objective: Objective, theta: Vector, rows: int, traced: Exception) -> None:
    """Run a model that JAX cannot trace on a few made-up rows."""
    x = tuple(np.linspace(0.5, 1.5, rows) for _ in range(objective.n_columns))
    try:
        with np.errstate(all="ignore"):
            numeric.values(objective, x, list(objective.expand(theta.tolist())))
    except ModelError:
        raise
    except Exception as error:
        shown = error if not isinstance(traced, _UNTRACEABLE) else traced
        raise ModelError(
            f"The model {objective.model.name!r} raises {type(shown).__name__}: {shown}. It runs neither under JAX "
            f"({_where(traced)}) nor under NumPy ({_where(error)})."
        ) from error


def check_rows(objective: Objective, block: Block, theta: Vector) -> None:
    """Refuse a model that looks across rows: up to 64 rows, whole and one by one, must give the same values.

    The comparison is made at `theta` (p,) and beside it, where a term that vanishes at `theta` shows.

    Raises
    ------
    ModelError
        A row's value depends on the rows beside it.
    """
    if block.rows < 2:
        return
    rows = np.linspace(0, block.rows - 1, _LOOK).astype(int)
    x = block.take(rows).wide().x
    with jax.enable_x64(True), np.errstate(all="ignore"):
        run: Callable[..., Any] = functools.partial(numeric.check_rows, objective)
        if objective.jacobian != "numeric":
            run = once(objective, "rows", functools.partial(_compile_rows, objective))
        beside = theta + 0.1 * (1.0 + np.abs(theta)) * np.cos(np.arange(len(theta)))
        for whole, single in zip(*(np.asarray(a) for a in run(x, np.stack([theta, beside]))), strict=True):
            if np.array_equal(whole, single, equal_nan=True):
                continue
            size = np.abs(single[np.isfinite(single)]).max(initial=0.0)
            apart = ~np.isclose(whole, single, rtol=1e-9, atol=1e-9 * size, equal_nan=True)
            if apart.any():
                i = int(np.argmax(apart))
                raise ModelError(
                    f"The model {objective.model.name!r} looks across rows: among {_LOOK} rows, row {i} gives "
                    f"{whole[i]:g}, and {single[i]:g} by itself. A partition does not hold all rows, so a mean, a "
                    "maximum, a cumulative sum or a length would depend on how the data are cut. Compute it "
                    "beforehand, and pass it as a column or a constant."
                )


_LOOK = 64
"""Rows on which a model is tried whole and one by one."""

_ONCE: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
"""For what runs a few times only: the compiler need not look for the fastest code."""


_UNTRACEABLE = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError, IndexError)


def _where(error: BaseException) -> str:
    """Return the line of the user's code on which tracing failed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and os.path.dirname(__file__) not in f.filename]
    last = (own or list(frames))[-1]
    return f"{type(error).__name__} at {last.filename}:{last.lineno}, {last.line!r}"


def _layout(objective: Objective) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what is summed over the rows of a block, in the order in which they lie in one array."""
    p = objective.n_parameters
    return {
        "gram": (p + 1, p + 1),
        **({"cost": (), "curvature": (p, p)} if objective.robust else {}),
        **({"meat": (p, p)} if objective.sandwich else {}),
        "moments": (4 if objective.weighted else 2,),
        "sums": (objective.n_columns,),
    }


def _reductions(objective: Objective, slab: Slab, sums: Matrix, checksums: Any) -> Iterator[Reduction]:
    """Turn the sums of each block of a slab, about its first y, into a mean and a spread."""
    n, parts, start = int(slab.blocks), {}, 0
    for name, shape in _layout(objective).items():
        end = start + math.prod(shape)
        parts[name], start = sums[:n, start:end].reshape(n, *shape), end
    costs = parts.pop("cost", 0.5 * parts["gram"][:, -1, -1]).tolist()
    moments, origins = parts.pop("moments").tolist(), sums[:n, start].tolist()
    names = (*parts, "checksum")
    for i, ((_, _, rows), (first, second, *rest)) in enumerate(zip(slab.places[:n].tolist(), moments, strict=True)):
        weight, log_weight = rest or (float(rows), 0.0)
        shift = first / weight if weight > 0 else 0.0
        yield Reduction(
            rows=rows,
            dropped=0,
            cost=costs[i],
            weight=weight,
            mean=origins[i] + shift,
            spread=max(second - shift * first, 0.0),  # NaN stays NaN: nothing is larger
            log_weight=log_weight,
            **{name: part[i] for name, part in zip(names, (*parts.values(), checksums), strict=True)},
        )


def _kernel(
    objective: Objective, slab: Slab, whitened: bool, where: Any, traced: Callable[[], None] = lambda: None
) -> Callable[..., Any]:
    """Return the executable for slabs of this shape on a device."""
    kind = (len(slab.y), len(slab.places), whitened, where, *(c.dtype.char for c in (*slab.x, slab.y)))
    run: Callable[..., Any] = once(objective, kind, lambda: _compile(objective, slab, whitened, where, traced))
    return run


def once(objective: Objective, kind: Any, compile_it: Callable[[], Any]) -> Any:
    """Return what was compiled or found for an objective: once whatever the threads, unlike kinds side by side."""
    with _lock:
        known = _compiled.setdefault(objective, {})
        lock = known.setdefault(("lock", kind), threading.RLock())
    if kind not in known:
        with lock:
            if kind not in known:
                known[kind] = compile_it()
    return known[kind]


def _compile(objective: Objective, slab: Slab, whitened: bool, where: Any, traced: Callable[[], None]) -> Any:
    p, size = objective.n_parameters, len(slab.y)
    tile = min(objective.tile or device.tile(where, size), size)

    def kernel(theta: Any, s: Any, slab: Slab) -> Any:
        traces[objective.model.name, size, whitened] += 1
        return _sweep_slab(objective, theta, s, slab, tile)

    theta, s = np.zeros(p), np.zeros((p, p)) if whitened else None
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (theta, s, slab))
    with jax.default_device(where):
        with _uncollected():
            lowered = jax.jit(kernel).lower(*shapes)
        traced()
        return lowered.compile()


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Put off Python's garbage collection.

    Tracing makes as many objects as set off a full one, which in a process that has imported JAX looks at a million
    others and takes as long as the tracing.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _compile_rows(objective: Objective) -> Any:
    """Compile the model at two points, on all rows at once and on each row as a block of its own."""

    def look(x: Any, points: Any) -> Any:
        def both(theta: Any) -> Any:
            def one_row(row: Any) -> Any:
                return jnp.asarray(objective.evaluate([c[None] for c in row], list(theta), jnp.stack), jnp.float64)[0]

            return jnp.asarray(objective.evaluate(x, list(theta), jnp.stack), jnp.float64), jax.vmap(one_row)(x)

        return lax.map(both, points)

    column = jax.ShapeDtypeStruct((_LOOK,), np.float64)
    points = jax.ShapeDtypeStruct((2, objective.n_parameters), np.float64)
    return jax.jit(look).lower((column,) * objective.n_columns, points).compile(_ONCE)


def _compile_predict(objective: Objective, rows: int) -> Any:
    def predict(theta: Any, x: Any) -> Any:
        return jnp.asarray(objective.model(x, list(theta), jnp.stack), jnp.float64)

    column = jax.ShapeDtypeStruct((rows,), np.float64)
    theta = jax.ShapeDtypeStruct((len(objective.model.parameters),), np.float64)
    return jax.jit(predict).lower(theta, (column,) * objective.n_columns).compile()


def _sweep_slab(objective: Objective, theta: Any, s: Any, slab: Slab, size: int) -> Any:
    """Loop over the blocks of a slab; return their sums, (room, sums), and checksums, (room, columns)."""
    room, columns = len(slab.places), len(slab.x) + 1 + objective.weighted
    width = sum(map(math.prod, _layout(objective).values())) + 1

    def body(k: Any, found: Any) -> Any:
        one = _sweep_block(objective, theta, s, slab, size, slab.places[k])
        return tuple(lax.dynamic_update_index_in_dim(all_, new, k, 0) for all_, new in zip(found, one, strict=True))

    return lax.fori_loop(0, slab.blocks, body, (jnp.zeros((room, width)), jnp.zeros((room, columns), jnp.uint64)))


def _sweep_block(objective: Objective, theta: Any, s: Any, slab: Slab, size: int, place: Any) -> tuple[Any, Any]:
    """Loop over the tiles, of `size` rows, of a block at its place: the first, the one past the last, and its rows."""
    first, end, rows = place
    columns = (*slab.x, slab.y) if slab.weight is None else (*slab.x, slab.y, slab.weight)
    # About a value of the data, sums keep the digits an offset would cost.
    origin = slab.y[first * size].astype(jnp.float64)

    def body(i: Any, carry: Any) -> Any:
        tile = [lax.dynamic_slice(c, (i * size,), (size,)).astype(jnp.float64) for c in columns]
        x, y = tile[: len(slab.x)], tile[len(slab.x)]
        filled = jnp.clip((i - first + 1) * size - rows, 0, size)  # rows past the end of the block
        weight = lax.dynamic_slice(real, (filled,), (size,)) if slab.weight is None else tile[-1]
        a = jacobian_and_residual(objective, theta, x, y, weight, carry.pop("a"))
        lanes = [*_moments(y - origin, slab.weight if slab.weight is None else weight), *map(_lanes, x)]
        found = products(objective, a, weight, s)
        added = {"products": {name: found[name] for name in shapes}, "lanes": lanes}
        checksum = [before * _CHAIN + _mix(c) for before, c in zip(carry.pop("checksum"), tile, strict=True)]
        return jax.tree.map(jnp.add, carry, added) | {"checksum": checksum, "a": a}

    real = jnp.concatenate([jnp.ones(size), jnp.zeros(size)])
    shapes = _layout(objective)
    lanes = shapes.pop("moments") + shapes.pop("sums")
    start = {
        "products": {name: jnp.zeros(shape) for name, shape in shapes.items()},
        "lanes": [jnp.zeros(_LANES)] * sum(lanes),
        "checksum": [jnp.zeros(size, jnp.uint64)] * len(columns),
        "a": jnp.zeros((len(theta) + 1, size)),  # written anew in every tile, in one place
    }
    found = lax.fori_loop(first, end, body, start)
    sums = [*(found["products"][name].ravel() for name in shapes), *(_total(lane)[None] for lane in found["lanes"])]
    positions = np.arange(size, dtype=np.uint64) * _GOLDEN | np.uint64(1)
    return jnp.concatenate([*sums, origin[None]]), jnp.stack([_total(c * positions) for c in found["checksum"]])


def products(objective: Objective, a: Any, weight: Any, s: Any) -> dict[str, Any]:
    """Return the cost of a tile and the products of its weighted Jacobian and residual a, (p + 1, tile)."""
    p = a.shape[0] - 1
    if s is not None:
        a = jnp.concatenate([s @ a[:p], a[p:]])
    if not objective.robust:
        gram = a @ a.T
        products = {"cost": 0.5 * gram[-1, -1], "gram": gram}
        slope: Any = 1.0
    else:
        scale = objective.f_scale
        z = (a[-1] / scale) ** 2
        rho, slope, bend = loss.evaluate(objective.loss, z)
        products = {
            "cost": 0.5 * scale**2 * jnp.sum(_lanes(jnp.where(weight > 0, rho, 0.0))),
            "gram": (a * slope) @ a.T,
            "curvature": (a[:p] * (slope + 2.0 * z * bend)) @ a[:p].T,
        }
    if objective.sandwich:
        products["meat"] = (a[:p] * (slope * a[-1]) ** 2) @ a[:p].T
    return products


def jacobian_and_residual(objective: Objective, theta: Any, x: Any, y: Any, weight: Any, a: Any = None) -> Any:
    """Return the (p + 1, tile) array of Jacobian columns and, last, the residual, each row times its weight.

    They are written over `a`, where there is one to write to.
    """

    def one_row(x_row: Any, *theta_row: Any) -> Any:
        value = objective.evaluate([c[None] for c in x_row], theta_row, jnp.stack)
        return jnp.asarray(value, jnp.float64)[0]

    rows = jax.vmap(one_row)
    parameters = [jnp.broadcast_to(t, y.shape) for t in theta]
    if objective.jacobian == "reverse":
        f, pull = jax.vjp(lambda *t: rows(x, *t), *parameters)
        jacobian = pull(weight)
    else:
        f, push = jax.linearize(lambda *t: rows(x, *t), *parameters)
        zero = jnp.zeros_like(y)
        jacobian = [push(*(weight if i == j else zero for i in range(len(theta)))) for j in range(len(theta))]
    # Written one behind another: stacking unlike columns compiles to a choice per element, and without
    # the barrier XLA may fuse the columns and evaluate the model once for each.
    if a is None:
        a = jnp.zeros((len(theta) + 1, len(y)))
    for j, column in enumerate((*jacobian, (f - y) * weight)):
        column, a = lax.optimization_barrier((column, a))
        a = lax.dynamic_update_slice(a, column[None], (j, 0))
    return a


def _moments(y: Any, weight: Any) -> list[Any]:
    """Return Σ w² y, Σ w² y², Σ w² and Σ log w over a tile, in lanes; the first two where there are no weights.

    Rows past the end have the weight 0, or y = 0, so that they do not count.
    """
    if weight is None:
        return [_lanes(y), _lanes(y * y)]
    w2 = weight**2
    return [_lanes(w2 * y), _lanes(w2 * y * y), _lanes(w2), _log_sum(jnp.where(weight > 0, weight, 1.0))]


def _log_sum(values: Any) -> Any:
    """Return the sum of the logarithms of positive values, in lanes.

    Of the mantissas, 1 to 2, eight are multiplied first; the product of a thousand would be beyond float64.
    """
    bits = lax.bitcast_convert_type(values, jnp.uint64)
    exponents = (bits >> _EXPONENT).astype(jnp.float64) - 1023.0
    mantissas = lax.bitcast_convert_type(bits & _MANTISSA | _ONE, jnp.float64)
    together = math.gcd(8, len(values) // _LANES)
    logarithms = jnp.log(jnp.prod(mantissas.reshape(-1, together, _LANES), axis=1))
    return _lanes(exponents) * np.log(2.0) + jnp.sum(logarithms, axis=0)


def _lanes(values: Any) -> Any:
    """Return the sums of every 256th value, or of fewer lanes where the values are fewer."""
    return jnp.sum(values.reshape(-1, math.gcd(_LANES, len(values))), axis=0)


def _total(values: Any) -> Any:
    """Return the sum of a tile or of lanes, in two steps.

    What XLA does of its own accord, sums of 32 and sums of these, takes longer to compile.
    """
    return jnp.sum(lax.optimization_barrier(jnp.sum(values.reshape(-1, 16, 16), axis=(0, 1))))


def _mix(column: Any) -> Any:
    """Return the bits of a column, the high ones also further down: products carry a bit upwards only."""
    bits = lax.bitcast_convert_type(column, jnp.uint64)
    return bits ^ (bits >> np.uint64(32))
