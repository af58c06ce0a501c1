"""Sums over a tile against NumPy, for any number of parts of its matrix."""

import functools

import jax
import numpy as np
import pytest

from dask_nlsq import models
from dask_nlsq._kernel import device, tile
from dask_nlsq._model import loss
from dask_nlsq._model.objective import Objective

CPU = jax.devices("cpu")[0]
ROWS = 64
PARAMETERS = [1, 12, 19, 34]  # in one part, in two, and in three, most of them filled up with rows of 0


@pytest.mark.parametrize("p", [*range(1, 60), 98, 99, 100, 240, 400])
def test_parts_hold_the_columns_and_the_residual_lies_in_the_last(p):
    *others, last = device.parts(CPU, p + 1)
    size = 16 if p < 100 else 32
    assert set(others) <= {size}
    assert last % 4 == 0 and 0 < last <= size
    assert 0 <= sum(others) + last - (p + 1) <= 3


@pytest.mark.parametrize(("columns", "rows"), [(4, 2048), (16, 1024), (61, 1024), (100, 512), (121, 256), (401, 256)])
def test_rows_are_so_many_that_the_cache_and_one_thread_suffice(columns, rows):
    assert device.rows(CPU, 2048, columns) == rows
    assert rows * max(device.parts(CPU, columns)) ** 2 <= 2**18


def tile_of(p, rng):
    """Return a tile of a polynomial: t, y, weight, theta, and A as NumPy forms it."""
    t, y, weight, theta = rng.uniform(-1, 1, ROWS), rng.normal(size=ROWS), rng.uniform(0.5, 2, ROWS), rng.normal(size=p)
    powers = t ** np.arange(p)[:, None]
    return t, y, weight, theta, np.stack([*powers, theta @ powers - y]) * weight


def summed(p, t, y, weight, theta, s=None, **kind):
    """Return what the tile sums, assembled to matrices of its p parameters and residual."""
    objective = Objective(models.polynomial(p - 1).bind(["x"]), ("x", "y"), True, **kind)

    def run(theta, t, y, weight, s):
        a = [jax.numpy.zeros((n, ROWS)) for n in device.parts(CPU, p + 1)]
        found = tile.products(objective, tile.jacobian_and_residual(objective, theta, [t], y, weight, a), s)
        return {name: tile.assemble(blocks, () if name == "cost" else (p + 1, p + 1)) for name, blocks in found.items()}

    with jax.enable_x64(True):
        return {name: np.asarray(value) for name, value in jax.jit(run)(theta, t, y, weight, s).items()}


@pytest.mark.crossed(2)
@pytest.mark.parametrize("p", PARAMETERS)
def test_products_are_those_of_the_whole_matrix(p, rng):
    *data, a = tile_of(p, rng)
    found = summed(p, *data, sandwich=True)
    np.testing.assert_allclose(found["gram"], a @ a.T, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found["meat"][:p, :p], (a * a[p] ** 2 @ a.T)[:p, :p], rtol=1e-12, atol=1e-12)


@pytest.mark.crossed(2)
@pytest.mark.parametrize("p", PARAMETERS)
def test_whitening_leaves_the_residual(p, rng):
    *data, a = tile_of(p, rng)
    s = rng.normal(size=(p, p))
    white = np.concatenate([s @ a[:p], a[p:]])
    np.testing.assert_allclose(summed(p, *data, s)["gram"], white @ white.T, rtol=1e-11, atol=1e-11)


def test_whitening_leaves_the_cost_finite_where_a_derivative_is_not():
    a = np.ones((4, ROWS))
    a[0, 3] = np.nan
    objective = Objective(models.polynomial(2).bind(["x"]), ("x", "y"))
    with jax.enable_x64(True):
        rows = tile.Evaluated([jax.numpy.asarray(a)], [], jax.numpy.ones(ROWS))
        gram = np.asarray(tile.products(objective, rows, np.eye(3))["gram"][0])
    assert gram[3, 3] == ROWS
    assert np.isnan(gram[0, 0])


@pytest.mark.crossed(2)
@pytest.mark.parametrize("p", PARAMETERS)
def test_robust_products_are_those_of_the_whole_matrix(p, rng):
    *data, a = tile_of(p, rng)
    found = summed(p, *data, loss="soft_l1", f_scale=0.5)
    z = (a[p] / 0.5) ** 2
    with jax.enable_x64(True):
        rho, slope, bend = map(np.asarray, jax.jit(functools.partial(loss.evaluate, "soft_l1"))(z))
    np.testing.assert_allclose(found["cost"], 0.5 * 0.25 * rho.sum(), rtol=1e-12)
    np.testing.assert_allclose(found["gram"], a * slope @ a.T, rtol=1e-11, atol=1e-11)
    curvature = (a * (slope + 2 * z * bend) @ a.T)[:p, :p]
    np.testing.assert_allclose(found["curvature"][:p, :p], curvature, rtol=1e-11, atol=1e-11)
