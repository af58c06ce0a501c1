"""The kernel against NumPy, for blocks of every shape, and how often it is traced."""

import itertools
import pickle
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from problems import decay, decay_rows

from dask_nlsq import Model
from dask_nlsq._kernel import evaluate_rows, kernel, tile, validate
from dask_nlsq._kernel.block import ALIGNMENT, SLABS, TILE, TOGETHER, Block, lay, pack, slabs
from dask_nlsq._kernel.reduction import fold
from dask_nlsq._model.objective import Objective

THETA = np.array([2.5, 1.1, 0.2])


def objective(func=decay, weighted=False, jacobian="reverse"):
    return Objective(Model.from_function(func).bind(["t"]), ("t", "y"), weighted, jacobian)


def by_hand(t, y, w):
    e = np.exp(-THETA[1] * t)
    a = np.stack([e, -THETA[0] * t * e, np.ones_like(t), THETA[0] * e + THETA[2] - y]) * w
    return a @ a.T


PLAIN = objective(), objective(weighted=True)


@pytest.mark.parametrize("rows", [1, 2, TILE - 1, TILE, TILE + 1, SLABS[0], SLABS[0] + 1, SLABS[1] + 7])
@pytest.mark.parametrize("weighted", [False, True])
def test_sums_equal_numpy(rows, weighted):
    t, y = decay_rows(rows)
    w = np.linspace(0.5, 2, rows) if weighted else None
    got = kernel.reduce_block(PLAIN[weighted], Block((t,), y, w), THETA, None)
    w = np.ones(rows) if w is None else w
    np.testing.assert_allclose(got.gram, by_hand(t, y, w), rtol=1e-12)
    mean = np.average(y, weights=w**2)
    np.testing.assert_allclose(
        [got.weight, got.mean, got.response_sum_of_squares, got.log_weight],
        [np.sum(w**2), mean, np.sum(w**2 * (y - mean) ** 2), np.sum(np.log(w))],
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("single", [np.float64, np.float32])
def test_blocks_in_one_call_have_the_bits_they_have_alone(weighted, single, rng):
    lengths = [10, 0, TILE, 1, SLABS[1] + 3, *rng.integers(0, 3 * TILE, 90), SLABS[1]]
    blocks = []
    for seed, rows in enumerate(lengths):
        t, y = (c.astype(single if seed % 7 else np.float64) for c in decay_rows(rows, seed))
        blocks.append(Block((t,), y, np.linspace(0.5, 2, rows) if weighted else None))
    together = kernel.reduce_blocks(PLAIN[weighted], blocks, THETA, None)
    for block, reduction in zip(blocks, together, strict=True):
        alone = kernel.reduce_block(PLAIN[weighted], block, THETA, None)
        for name, value in vars(alone).items():
            np.testing.assert_array_equal(getattr(reduction, name), value, err_msg=name)


def test_whitening_multiplies_the_jacobian():
    t, y = decay_rows(5000)
    s = np.random.default_rng(0).normal(size=(3, 3))
    wide = np.block([[s, np.zeros((3, 1))], [np.zeros((1, 3)), np.ones((1, 1))]])
    got = kernel.reduce_block(PLAIN[0], Block((t,), y), THETA, s).gram
    np.testing.assert_allclose(got, wide.T @ by_hand(t, y, 1.0) @ wide, rtol=1e-12, atol=1e-9)


def newton_root(t, a, b):
    """Return the cube root of a + b t by a loop whose length is not known: no reverse derivative."""
    step = lambda z: z - (z**3 - a - b * t) / (3 * z**2)  # noqa: E731
    return jax.lax.while_loop(lambda z: jnp.any(jnp.abs(z**3 - a - b * t) > 1e-13), step, jnp.ones_like(t) + 0 * a)


@pytest.mark.slow
def test_a_loop_takes_forward_passes():
    looped, plain = objective(newton_root), objective(lambda t, a, b: jnp.cbrt(a + b * t))
    start = np.ones(2)
    assert validate.check(looped, start)[0].jacobian == "forward"
    assert validate.check(plain, start)[0].jacobian == "reverse"
    t, y = decay_rows(100)
    grams = [
        kernel.reduce_block(validate.check(o, start)[0], Block((t,), y), np.array([1.5, 0.7]), None).gram
        for o in (looped, plain)
    ]
    np.testing.assert_allclose(*grams, rtol=1e-9)


@given(cuts=st.lists(st.integers(0, 3000), max_size=6), offset=st.sampled_from([0.0, 1e9]))
@settings(max_examples=25, deadline=None)
def test_cuts_change_only_rounding(cuts, offset):
    t, y = decay_rows(3000)
    whole = kernel.reduce_block(PLAIN[0], Block((t,), y + offset), THETA, None)
    edges = [0, *sorted(cuts), 3000]
    parts = [Block((t[a:b],), y[a:b] + offset) for a, b in itertools.pairwise(edges)]
    folded = fold([kernel.reduce_block(PLAIN[0], part, THETA, None) for part in parts])
    assert folded.rows == whole.rows
    np.testing.assert_allclose(folded.gram, whole.gram, rtol=1e-12)
    np.testing.assert_allclose(
        [folded.mean, folded.response_sum_of_squares],
        [whole.mean, whole.response_sum_of_squares],
        rtol=1e-6 if offset else 1e-12,
    )


def test_checksum_sees_order_and_single_bits():
    t, y = decay_rows(100)
    sums = lambda t, y: kernel.reduce_block(PLAIN[0], Block((t,), y), THETA, None).checksum.tolist()  # noqa: E731
    assert sums(t, y) == sums(t.copy(), y.copy())
    assert sums(t[::-1].copy(), y)[0] != sums(t, y)[0]
    assert sums(t, np.nextafter(y, 9))[1] != sums(t, y)[1]


@pytest.mark.parametrize("rows", [1, TILE, 2 * TILE, SLABS[0], SLABS[0] + 2 * TILE])
def test_checksum_sees_signs_that_change_in_every_row(rows):
    sums = lambda y: kernel.reduce_block(PLAIN[0], Block((y,), y), THETA, None).checksum.tolist()  # noqa: E731
    y = np.linspace(1, 2, rows)
    assert len({*sums(y)} & {*sums(-y)}) == 0
    assert sums(2 * y) != sums(y)


def test_one_trace_whatever_the_lengths():
    kernel.traces.clear()
    one = objective(lambda t, a, b, c: a * jnp.exp(-b * t) + c)
    for rows in (10, 500, TILE, SLABS[0]):
        kernel.reduce_block(one, Block(decay_rows(rows)[:1], decay_rows(rows)[1]), THETA, None)
    assert sum(kernel.traces.values()) == 1


def test_float64_even_where_it_is_switched_off():
    with jax.enable_x64(False):
        got = kernel.reduce_block(
            PLAIN[0], Block((np.array([1.0]),), np.array([1e-12])), np.array([1.0, 0.0, 0.0]), None
        )
    assert got.gram[-1, -1] == (1 - 1e-12) ** 2


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("lengths", [[10_000] * 40, [1900, 0, 4096, 300_000], [500_000]], ids=str)
def test_held_blocks_keep_their_bits_and_are_not_copied(lengths, weighted):
    data = [decay_rows(n, seed=n) for n in lengths]
    blocks = [Block((t,), y, t + 1 if weighted else None) for t, y in data]
    held = pack(blocks)
    before, after = (kernel.reduce_blocks(PLAIN[weighted], some, THETA, None) for some in (blocks, held))
    assert pickle.dumps(before) == pickle.dumps(after)
    for numbers, slab in slabs(held, SLABS[1], TILE, TOGETHER):
        assert all(np.shares_memory(slab.y, held[i].y) for i in numbers)
    assert pickle.loads(pickle.dumps(held[0])).memory is None


@pytest.mark.parametrize("lengths", [[10] * 50, [], [0], [SLABS[1]], [10_000] * 7, [SLABS[1] + 5000]], ids=str)
def test_blocks_that_gain_nothing_stay_where_they_are(lengths):
    blocks = [Block((aligned(n),), aligned(n)) for n in lengths]
    assert [(b.y is a.y, b.held, b.memory) for a, b in zip(blocks, pack(blocks), strict=True)] == [
        (True, True, None) for _ in lengths
    ]


def aligned(n):
    """Return zeros that begin where XLA takes them as they are."""
    return np.array(jnp.zeros(n), copy=False)


@pytest.mark.parametrize("rows", [SLABS[1], 2 * SLABS[1], 2 * SLABS[1] + 10])
def test_no_column_outlives_its_sweep(rows):
    """XLA takes slabs where they lie, and JAX holds on to them until it is called again."""
    x, y = aligned(rows)[:], aligned(rows)[:]
    kept = [weakref.ref(column.base) for column in (x, y)]
    block = Block((x,), y)
    kernel.reduce_block(objective(), block, THETA, None)
    del block, x, y
    assert [ref() for ref in kept] == [None, None]


@pytest.mark.parametrize("weighted", [False, True])
def test_what_is_prepared_is_what_a_sweep_needs(weighted, monkeypatch):
    monkeypatch.setattr(kernel, "_aside", lambda work: jax.enable_x64(True)(work)())
    one = objective(lambda t, a, b, c: a * jnp.exp(-b * t) - c, weighted)
    kernel.prepare(one)
    kernel.traces.clear()
    t, y = decay_rows(10)
    kernel.reduce_block(one, Block((t,), y, t + 1 if weighted else None), THETA, None)
    assert not kernel.traces


@pytest.mark.parametrize("rows", [1024, TILE, SLABS[1]])
def test_logarithms_of_many_weights_stay_in_range(rows):
    values = np.full(rows, 1.9)
    with jax.enable_x64(True):
        found = np.sum(jax.jit(tile.log_sum)(values))
    np.testing.assert_allclose(found, np.log(values).sum(), rtol=1e-12)


def smoothed(t, amplitude, rate, width):
    """An exponential decay under a window: an integral on a grid, which all rows share."""
    grid = jnp.linspace(-1.0, 1.0, 201) * width
    window = jnp.exp(-0.5 * (grid / width) ** 2) / jnp.sum(jnp.exp(-0.5 * (grid / width) ** 2))
    return amplitude * jnp.exp(-rate * t) * jnp.sum(window * jnp.exp(rate * grid))


def test_rows_of_a_model_with_shared_work_are_evaluated_each_at_its_parameters():
    shared = validate.check(objective(smoothed), np.ones(3)).objective
    assert shared.jacobian == "shared"
    t, thetas = np.linspace(0, 2, 7), np.linspace(0.5, 1.5, 21).reshape(7, 3)
    found = evaluate_rows(shared, Block((t,), np.zeros(7)), thetas)
    with jax.enable_x64(True):
        one = jax.jit(jax.value_and_grad(smoothed, (1, 2, 3)))
        each = [np.append(*one(x, *theta)[::-1]) for x, theta in zip(t, thetas, strict=True)]
    assert np.allclose(found, each, rtol=1e-12)


@pytest.mark.parametrize("rows", [200, TILE, SLABS[1] - 5])  # few rows, and many, are laid out in memory of two kinds
def test_rows_are_laid_out_as_xla_takes_them(rows):
    column = np.arange(float(rows))
    (block,) = lay([Block((column + 3.0,), column)])
    x, y = block.memory.columns
    assert len(x) == len(y) == SLABS[1] and x.ctypes.data % ALIGNMENT == y.ctypes.data % ALIGNMENT == 0
    np.testing.assert_array_equal(block.y, column)
    assert (x[rows : -(-rows // TILE) * TILE] == 3.0).all()  # the first row fills up its last tile
