"""Sums of like terms: that they are found in a traced program, and that their columns are those of the whole model."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dask_nlsq import Model, models
from dask_nlsq._kernel import kernel
from dask_nlsq._kernel.additive import additive
from dask_nlsq._kernel.block import Block
from dask_nlsq._model.expression import Expression
from dask_nlsq._model.objective import Expansion, Objective


def peak(t, height, center, width):
    return height * jnp.exp(-0.5 * ((t - center) / width) ** 2)


def peaks(t, *theta):
    return sum(peak(t, *theta[k : k + 3]) for k in range(0, len(theta), 3))


@jax.jit
def compiled(t, *theta):
    return jnp.asarray(peaks(t, *theta))


def on_a_line(t, *theta):
    return theta[0] + theta[1] * t + peaks(t, *theta[2:])


def less(t, *theta):
    return peak(t, *theta[:3]) - peak(t, *theta[3:6]) - peak(t, *theta[6:])


def one_width(t, width, *theta):
    return peak(t, theta[0], theta[1], width) + peak(t, theta[2], theta[3], width) + theta[4] * jnp.exp(-width * t)


def chosen(t, *theta):
    """Peaks that are cut off: a call within a term, and a column that does not depend on t."""
    cut = [jnp.where(t > 1, peak(t, *theta[k : k + 3]), 0.0) for k in (0, 3)]
    return cut[0] + cut[1] - 2.0 * theta[6]


def constants(t, a, b):
    """Two terms whose constants tell them apart, and a third without a parameter."""
    return a * jnp.exp(-2.0 * t) + b * jnp.exp(-3.0 * t) + jnp.sin(t)


def with_numbers(t, *theta):
    """A term that is a number, and a function that is called with one."""
    return jax.jit(lambda t, level, *theta: level + peaks(t, *theta))(t, 0.5, *theta)


def product(t, scale, *theta):
    return scale * peaks(t, *theta)


def composed(kind):
    first, *others = (kind.prefix(f"p{k}_") for k in range(3))
    return sum(others, first).bind(["x"])


def function(func, p):
    return Model.from_function(func, p).bind(["t"])


SUMS = {
    "a loop": (function(peaks, 12), [4]),
    "compiled": (function(compiled, 9), [3]),
    "on a line": (function(on_a_line, 8), [1, 1, 2]),
    "differences": (function(less, 9), [1, 2]),
    "one width": (function(one_width, 6), [2, 1]),
    "calls": (function(chosen, 7), [2, 1]),
    "formulas": (composed(models.lorentzian), [3]),
    "functions": (composed(Model.from_function(peak)), [3]),
    "numbers": (function(with_numbers, 6), [1, 2]),
    "a number": (function(lambda t, a, b: a * jnp.exp(-b * t) + 0.5, 2), None),
    "constants": (function(constants, 2), None),
    "a product": (function(product, 7), None),
}
"""Models, and how many terms have each form."""


def start(p, seed=0):
    return np.random.default_rng(seed).uniform(0.5, 1.5, p)


def rows(n=3000):
    rng = np.random.default_rng(1)
    return rng.uniform(0, 3, n), rng.normal(size=n), rng.uniform(0.5, 2, n)


def by_hand(objective, theta, t, y, w):
    def values(theta):
        return objective.evaluate([t], list(theta), jnp.stack)

    with jax.enable_x64(True):
        jac, f = jax.jit(lambda theta: (jax.jacfwd(values)(theta), values(theta)))(jnp.asarray(theta))  # one program
        a = np.concatenate([np.asarray(jac).T, (np.asarray(f) - y)[None]]) * w
    return a @ a.T


def check(objective):
    """Compare the sums of a sweep, whitened and not, with those of the whole Jacobian."""
    p, (t, y, w) = objective.n_parameters, rows()
    theta, s = start(p), np.random.default_rng(2).normal(size=(p, p))
    wide = np.block([[s, np.zeros((p, 1))], [np.zeros((1, p)), np.ones((1, 1))]])
    whole = by_hand(objective, theta, t, y, w)
    for whitening, expected in ((None, whole), (s, wide.T @ whole @ wide)):
        got = kernel.reduce_block(objective, Block((t,), y, w), theta, whitening)
        np.testing.assert_allclose(got.gram, expected, rtol=1e-11, atol=1e-12 * np.abs(expected).max())


def found(name):
    """Return an objective of which terms of one form are found as they should be."""
    model, forms = SUMS[name]
    objective = Objective(model, ("t", "y"), weighted=True)
    terms = additive(objective)
    assert forms == (None if terms is None else [group.places.shape[1] for group in terms.groups])
    return objective


@pytest.mark.parametrize("name", SUMS)
def test_terms_of_one_form_are_found(name):
    found(name)


QUICK = ("one width", "numbers")


@pytest.mark.crossed(2)
@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SUMS]
)
def test_terms_of_one_form_are_found_and_summed(name):
    check(found(name))


FIRST, *OTHERS = SUMS["a loop"][0].parameters
EXPANSIONS = {
    "held": ({OTHERS[1]: 0.7, OTHERS[4]: 0.9}, {}, [4]),
    "a whole number": ({OTHERS[1]: 1}, {}, [1, 3]),
    "tied": ({}, {OTHERS[4]: OTHERS[1], OTHERS[7]: OTHERS[1]}, [4]),
    "tied by a formula": ({}, {OTHERS[4]: f"2*{OTHERS[1]}", OTHERS[7]: f"3*{OTHERS[1]}"}, [2, 1, 1]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPANSIONS)
def test_held_and_tied_parameters(name):
    fixed, tied, forms = EXPANSIONS[name]
    model = SUMS["a loop"][0]
    free = tuple(n for n in model.parameters if n not in fixed and n not in tied)
    expansion = Expansion(tuple(model.parameters), free, fixed, {k: Expression(v) for k, v in tied.items()})
    objective = Objective(model, ("t", "y"), True, expansion=expansion)
    assert sorted(forms) == sorted(group.places.shape[1] for group in additive(objective).groups)
    check(objective)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"sandwich": True}, {"loss": "soft_l1"}], ids=str)
def test_all_sums_are_in_the_order_of_the_parameters(options):
    objective = Objective(SUMS["on a line"][0], ("t", "y"), True, **options)
    t, y, w = rows()
    one, two = (
        kernel.reduce_block(o, Block((t,), y, w), start(8), None)
        for o in (objective, dataclasses.replace(objective, jacobian="forward"))
    )
    for name in ("gram", "curvature", "meat"):
        if getattr(one, name) is not None:
            np.testing.assert_allclose(getattr(one, name), getattr(two, name), rtol=1e-9, atol=1e-9)


@pytest.mark.crossed
@pytest.mark.parametrize("p", [15, 120])
def test_blocks_in_one_call_have_the_bits_they_have_alone(p):
    """A block of many columns is taken in pieces of a tile, which its checksum does not show."""
    objective, theta = Objective(function(peaks, p), ("t", "y")), start(p)
    blocks = [Block(rows(n)[:1], rows(n)[1]) for n in (5000, 1, 0, 2048, 300)]
    together = kernel.reduce_blocks(objective, blocks, theta, None)
    few = kernel.reduce_blocks(Objective(function(peaks, 3), ("t", "y")), blocks, start(3), None)
    for block, one, other in zip(blocks, together, few, strict=True):
        alone = kernel.reduce_block(objective, block, theta, None)
        np.testing.assert_array_equal(one.gram, alone.gram)
        np.testing.assert_array_equal(one.checksum, other.checksum)


def test_code_does_not_grow_with_the_terms():
    def equations(p):
        found = additive(Objective(function(peaks, p), ("t", "y")))
        with jax.enable_x64(True):
            column = jnp.ones(8)
            run = functools.partial(found.columns, x=[column], weight=column)
            return str(jax.make_jaxpr(run)(jnp.ones(p))).count("exp ")

    assert equations(6) == equations(60)
