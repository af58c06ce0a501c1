"""Reduce one block: residual, Jacobian and their products in one compiled pass over cache-sized tiles.

A tile of rows is sliced out of the slab, and what `tile` makes of it is added to the sums of its block. Rows past the
end of a block repeat its first row with the weight zero, so that neither they nor their derivatives can make a NaN.

Where the sums of a block show that derivatives are not finite although the model is, that block is swept again by a
second kernel, compiled at its first use, which takes such derivatives by differences (see
`safeguarded_difference`).

Everything runs in float64 inside ``jax.enable_x64``, and takes and returns NumPy.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import gc
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from dask_nlsq._kernel import device, finite_difference, safeguarded_difference, validate
from dask_nlsq._kernel.additive import Additive, additive
from dask_nlsq._kernel.block import SLABS, TILE, TOGETHER, Block, Slab, lent, slabs
from dask_nlsq._kernel.compile_cache import once
from dask_nlsq._kernel.reduction import Reduction, differences, merge
from dask_nlsq._kernel.tile import (
    LANES,
    assemble,
    blocks,
    chain,
    checksum,
    count_moments,
    in_lanes,
    jacobian_and_residual,
    moments,
    products,
    second_derivatives,
    total,
)
from dask_nlsq._model import Objective
from dask_nlsq._typing import Matrix, Vector

traces: collections.Counter[tuple[str, int, bool]] = collections.Counter()
"""How often each (model, slab rows, whitened) was traced in this process."""


def reduce_block(objective: Objective, block: Block, theta: Vector, whitening: Matrix | None) -> Reduction:
    """Sweep one block at `theta` (p,), with the Jacobian multiplied by `whitening` (p, p) where given."""
    return reduce_blocks(objective, [block], theta, whitening)[0]


def reduce_blocks(
    objective: Objective, blocks: Sequence[Block], theta: Vector, whitening: Matrix | None, second: bool = False
) -> list[Reduction]:
    """Sweep each of some blocks: small ones in one call, with the bits that they have by themselves.

    With `second`, the sums hold the curvature with the second derivatives of the model too.
    """
    # The one curvature of a reduction holds that of the loss then.
    second = second and not (objective.robust or objective.errors)
    if second and objective.jacobian != "numeric":
        objective = once(objective, "second", lambda: dataclasses.replace(objective, second=True))
    # The setting is of the thread, so that every task enters it. Outside, JAX makes float32 of float64 without a word.
    with jax.enable_x64(True):
        if objective.jacobian == "numeric":
            return [finite_difference.reduce_block(objective, block, theta, whitening, second) for block in blocks]
        reductions: list[list[Reduction]] = [[] for _ in blocks]
        # The columns of J are rows of A, so that S comes in from the left, transposed.
        s = None if whitening is None else np.ascontiguousarray(whitening.T)
        for where, numbers, slab in device.place(blocks, objective.tile, _room(objective)):
            sums, checksums = map(np.asarray, _kernel(objective, slab, s is not None, where)(theta, s, slab))
            pieces = list(_reductions(objective, slab, sums, checksums, whitening))
            if not all(piece.finite for piece in pieces):
                pieces = _mend(objective, theta, whitening, slab, where, pieces)
            for i, piece in zip(numbers, pieces, strict=True):
                reductions[i].append(piece.placed(row=sum(before.rows for before in reductions[i])))
        # A block of a whole slab is lent to XLA without a copy, and so is not released before XLA has dropped it.
        if any(block.rows >= SLABS[1] and not block.held for block in blocks):
            del slab
            _take_back()
    return [_whole(objective, block, pieces) for block, pieces in zip(blocks, reductions, strict=True)]


def grams(objective: Objective, block: Block, thetas: Matrix) -> Matrix:
    """Return the Gram matrices of (J, r) of a block at many points (k, p), shape (k, p + 1, p + 1).

    The block is laid out once. The loss has to be linear and the model traced; derivatives that are not finite are not
    replaced by differences.
    """
    size = objective.n_parameters + 1
    matrices = np.zeros((len(thetas), size, size))
    with jax.enable_x64(True):
        for where, _, slab in device.place([block], objective.tile, _room(objective)):
            run = _kernel(objective, slab, False, where)
            for total, theta in zip(matrices, thetas, strict=True):
                total += np.asarray(run(theta, None, slab)[0])[0, : size * size].reshape(size, size)
    return matrices


def _mend(
    objective: Objective,
    theta: Vector,
    whitening: Matrix | None,
    slab: Slab,
    where: jax.Device,
    pieces: list[Reduction],
) -> list[Reduction]:
    """Sweep the pieces of a slab again whose derivatives alone are not finite, with differences in their stead."""
    bad = [i for i, piece in enumerate(pieces) if piece.model_finite and not piece.finite]
    if not bad:
        return pieces
    s = None if whitening is None else np.ascontiguousarray(whitening.T)
    places = np.zeros_like(slab.places)
    places[: len(bad)] = slab.places[bad]
    some = slab._replace(places=places, blocks=np.int64(len(bad)))
    sums, checksums = map(np.asarray, _kernel(objective, some, s is not None, where, mended=True)(theta, s, some))
    replaced = list(pieces)
    for i, piece in zip(bad, _reductions(objective, some, sums, checksums, whitening), strict=True):
        replaced[i] = piece
    return replaced


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
def _call(nothing: jax.Array) -> jax.Array:
    return nothing + nothing


def _whole(objective: Objective, block: Block, pieces: list[Reduction]) -> Reduction:
    if len(pieces) == 1 and not block.dropped and not block.rounded:
        return pieces[0]
    return merge([finite_difference.empty(objective, block), *pieces])


def prepare(objective: Objective) -> None:
    """Begin to compile, in threads of their own, what a first sweep of columns of float64 on a CPU needs.

    Tracing holds Python's lock and XLA does not, so the second is traced while the first is being compiled.
    """
    where = device.own()
    if objective.jacobian != "numeric" and not device.keeps(where):
        once(objective, ("prepared", where), lambda: _prepare(objective, where))


def _prepare(objective: Objective, where: jax.Device) -> None:
    row = np.zeros(1)
    block = Block((row,) * objective.n_columns, row, row if objective.weighted else None)
    _, slab = next(slabs([block], SLABS[1], TILE, _room(objective)))
    rows = functools.partial(validate.prepare_rows, objective)
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
            return finite_difference.values(objective, block.wide().x, objective.with_whole(theta.tolist()))
    parts, size = [np.empty(0)], SLABS[0] if block.rows <= SLABS[0] else SLABS[1]
    with jax.enable_x64(True):
        for _, slab in slabs([block.wide()], size, TILE):
            # Where rows are predicted, the standard deviations of x need not be there.
            k = len(slab.x)
            run = once(objective, ("predict", size, k), functools.partial(_compile_predict, objective, size, k))
            parts.append(np.asarray(run(theta, slab.x))[: slab.places[0, 2]])
    return np.concatenate(parts)


def _layout(objective: Objective) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what is summed over the rows of a block, in the order in which they lie in one array."""
    p = objective.n_parameters
    return {
        "gram": (p + 1, p + 1),
        **({} if objective.quadratic else {"cost": ()}),
        **({"curvature": (p, p)} if objective.robust or (objective.counts and objective.second) else {}),
        **({"meat": (p, p)} if objective.sandwich else {}),
        **({"second": (p, p)} if objective.second else {}),
        "moments": (4 if objective.weighted or objective.counts else 2,),
        "sums": (objective.n_columns,),
    }


def _reductions(
    objective: Objective, slab: Slab, sums: Matrix, checksums: npt.NDArray[np.uint64], whitening: Matrix | None
) -> Iterator[Reduction]:
    """Turn the sums of each block of a slab, about its first y, into a mean and a spread."""
    n, start = int(slab.blocks), 0
    sums, parts = sums[:n], dict[str, Any]()
    for name, shape in _layout(objective).items():
        end = start + math.prod(shape)
        parts[name], start = sums[:, start:end].reshape(n, *shape), end
    costs = parts.pop("cost", 0.5 * parts["gram"][:, -1, -1]).tolist()
    if objective.second:
        residual = parts.pop("second")
        residual = residual if whitening is None else whitening.T @ residual @ whitening
        curvature = (parts["curvature"] if objective.counts else parts["gram"][:, :-1, :-1]) + residual
        parts["curvature"] = [c if np.isfinite(c).all() else None for c in curvature]  # without it, the fit goes on
    moments, origins = parts.pop("moments").tolist(), sums[:, start].tolist()
    names = (*parts, "checksum")
    for i, ((_, _, rows), (first, second, *rest)) in enumerate(zip(slab.places[:n].tolist(), moments, strict=True)):
        # Without weights each row counts 1, whose logarithm is 0.
        weight, log_weight = rest or (float(rows), 0.0)
        shift = first / weight if weight > 0 else 0.0
        tally = sums[i, start + 1 :]  # of the second kernel, see `_tally`
        yield Reduction(
            rows=rows,
            dropped=0,
            cost=costs[i],
            weight=weight,
            mean=origins[i] + shift,
            response_sum_of_squares=max(second - shift * first, 0.0),  # NaN stays NaN: nothing is larger
            log_weight=log_weight,
            differences=differences(*np.split(tally, 3)) if len(tally) else None,
            **{name: part[i] for name, part in zip(names, (*parts.values(), checksums), strict=True)},
        )


def _kernel(
    objective: Objective,
    slab: Slab,
    whitened: bool,
    where: jax.Device,
    traced: Callable[[], None] = lambda: None,
    mended: bool = False,
) -> jax.stages.Compiled:
    """Return the executable for slabs of this shape on a device, or the one that mends derivatives."""
    # All that a compiled program is specialised on: it takes no other shapes, types or device.
    kind = (len(slab.y), len(slab.places), whitened, where, mended, *(c.dtype.char for c in (*slab.x, slab.y)))
    return once(objective, kind, lambda: _compile(objective, slab, whitened, where, traced, mended))


class _Plan(NamedTuple):
    """How the rows of a slab are taken."""

    tile: int  # rows by which blocks are laid out, and over which a checksum runs
    rows: int  # taken at a time, which divide a tile
    parts: Sequence[int]  # of the matrix of columns
    terms: Additive | None  # of a model that is a sum of like ones

    @property
    def order(self) -> npt.NDArray[np.intp] | None:
        """Which parameter a column belongs to; None where that is the one of its number."""
        return None if self.terms is None else self.terms.order


def _compile(
    objective: Objective, slab: Slab, whitened: bool, where: jax.Device, traced: Callable[[], None], mended: bool
) -> jax.stages.Compiled:
    p, size = objective.n_parameters, len(slab.y)
    tile = min(objective.tile or device.tile(where, size), size)
    plan = _Plan(
        tile,
        tile if objective.tile else device.rows(where, tile, p + 1),
        device.parts(where, p + 1),
        # Differences take the place of columns in the order of the parameters.
        additive(objective) if objective.jacobian == "reverse" and not mended else None,
    )

    def kernel(theta: jax.Array, s: jax.Array | None, slab: Slab) -> tuple[jax.Array, jax.Array]:
        traces[objective.model.name, size, whitened] += 1
        return _sweep_slab(objective, theta, s, slab, plan, mended)

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


def _compile_predict(objective: Objective, rows: int, columns: int) -> jax.stages.Compiled:
    def predict(theta: jax.Array, x: Sequence[jax.Array]) -> jax.Array:
        return jnp.asarray(objective.values(x, objective.with_whole(list(theta)), jnp.stack), jnp.float64)

    column = jax.ShapeDtypeStruct((rows,), np.float64)
    theta = jax.ShapeDtypeStruct((len(objective.model.parameters),), np.float64)
    return jax.jit(predict).lower(theta, (column,) * columns).compile()


def _sweep_slab(
    objective: Objective,
    theta: jax.Array,
    s: jax.Array | None,
    slab: Slab,
    plan: _Plan,
    mended: bool,
) -> tuple[jax.Array, jax.Array]:
    """Loop over the blocks of a slab; return their sums, (room, sums), and checksums, (room, columns)."""
    room, columns = len(slab.places), len(slab.x) + 1 + objective.weighted
    width = sum(map(math.prod, _layout(objective).values())) + 1 + 3 * objective.n_parameters * mended
    if s is not None and plan.order is not None:
        s = s[np.ix_(plan.order, plan.order)]

    def body(k: jax.Array, carry: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        block_sums = _sweep_block(objective, theta, s, slab, plan, slab.places[k], mended)
        return tuple(
            lax.dynamic_update_index_in_dim(slab_sums, new, k, 0)
            for slab_sums, new in zip(carry, block_sums, strict=True)
        )

    start = jnp.zeros((room, width)), jnp.zeros((room, columns), jnp.uint64)
    sums: tuple[jax.Array, jax.Array] = lax.fori_loop(0, slab.blocks, body, start)
    return sums


def _sweep_block(
    objective: Objective,
    theta: jax.Array,
    s: jax.Array | None,
    slab: Slab,
    plan: _Plan,
    place: jax.Array,
    mended: bool,
) -> tuple[jax.Array, jax.Array]:
    """Loop over the tiles of a block at its place: the first, the one past the last, and its rows."""
    tile, size = plan.tile, plan.rows
    steps = tile // size
    first, end, rows = place[0] * steps, place[1] * steps, place[2]
    columns = (*slab.x, slab.y) if slab.weight is None else (*slab.x, slab.y, slab.weight)
    # About a value of the data, sums keep the digits an offset would cost.
    origin = slab.y[first * size].astype(jnp.float64)

    def body(i: jax.Array, carry: dict[str, Any]) -> dict[str, Any]:
        taken = [lax.dynamic_slice(c, (i * size,), (size,)).astype(jnp.float64) for c in columns]
        x, y = taken[: len(slab.x)], taken[len(slab.x)]
        filled = jnp.clip((i - first + 1) * size - rows, 0, size)  # rows past the end of the block
        weight = lax.dynamic_slice(real, (filled,), (size,)) if slab.weight is None else taken[-1]
        evaluated = jacobian_and_residual(objective, theta, x, y, weight, carry.pop("a"), plan.terms)
        tally = {}
        if mended:
            a, replaced, flat = safeguarded_difference.mend_tile(
                objective, theta, evaluated.x, evaluated.weight, evaluated.a
            )
            evaluated = evaluated._replace(a=a)
            tally = {"tally": _tally(carry.pop("tally"), replaced, flat, (i - first) * size)}
        if objective.counts:
            of_y = count_moments(str(objective.loss), y, origin, weight)
        else:
            of_y = moments(y - origin, slab.weight if slab.weight is None else weight)
        lanes = [*of_y, *map(in_lanes, x)]
        terms = products(objective, evaluated, s)
        if objective.second:
            terms["second"] = [second_derivatives(objective, theta, x, y, weight)]
        added = {"products": terms, "lanes": lanes}
        chained = [chain(before, column, i % steps) for before, column in zip(carry.pop("chained"), taken, strict=True)]
        sums: dict[str, Any] = jax.tree.map(jnp.add, carry, added)
        return sums | {"chained": chained, "a": evaluated.a} | tally

    real = jnp.concatenate([jnp.ones(size), jnp.zeros(size)])
    shapes = _layout(objective)

    def pieces(name: str) -> list[tuple[int, ...]]:
        return [shapes[name]] if name == "second" else blocks(shapes[name], plan.parts)

    lanes = shapes.pop("moments") + shapes.pop("sums")
    start = {
        "products": {name: [jnp.zeros(block) for block in pieces(name)] for name in shapes},
        "lanes": [jnp.zeros(LANES)] * sum(lanes),
        "chained": [jnp.zeros(tile, jnp.uint64)] * len(columns),
        "a": [jnp.zeros((n, size)) for n in plan.parts],  # written anew in every tile, in one place
    }
    if mended:
        none = jnp.zeros(objective.n_parameters)
        start["tally"] = (none, none + jnp.inf, none)
    # Not `lax.scan` over tiles, which copies its inputs and reduces half as many rows a second (jax 0.10, one core).
    totals = lax.fori_loop(first, end, body, start)
    sums = [
        (
            totals["products"][name][0] if name == "second" else assemble(totals["products"][name], shape, plan.order)
        ).ravel()
        for name, shape in shapes.items()
    ]
    sums += [total(lane)[None] for lane in totals["lanes"]]
    sums += [origin[None], *totals.get("tally", ())]
    return jnp.concatenate(sums), jnp.stack([checksum(chained) for chained in totals["chained"]])


def _tally(
    tally: tuple[jax.Array, jax.Array, jax.Array], taken: jax.Array, flat: jax.Array, start: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Add a tile to how many derivatives are differences, the first row where one is, and how many are 0, each (p,)."""
    rows = start + jnp.arange(taken.shape[1])
    first = jnp.min(jnp.where(taken, rows.astype(jnp.float64), jnp.inf), axis=1)
    return tally[0] + jnp.sum(taken, axis=1), jnp.minimum(tally[1], first), tally[2] + jnp.sum(flat, axis=1)
