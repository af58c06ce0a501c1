"""The contract of every solver: `init`, `request`, `step`, `terminate` with an immutable state."""

import copy
import pickle

import numpy as np
import pytest

from dask_nlsq._kernel import Block, kernel
from dask_nlsq._model import Model, Objective
from dask_nlsq._solver import FirstOrder, Streaming, TrustRegion
from dask_nlsq._solver.base import Solver

T = np.linspace(0, 4, 2048)
BLOCK = Block((T,), 3.0 * np.exp(-1.3 * T) + 0.01 * np.sin(40 * T))
OBJECTIVE = Objective(Model.from_expression("a*exp(-b*t)").bind(("t",)), ("t", "y"), False)
OPEN = np.full(2, -np.inf), np.full(2, np.inf)
BOUNDS = np.array([0.0, 0.0]), np.array([10.0, 10.0])
START = np.array([2.5, 1.1])


class Halving:
    """An optimizer of half a step along the gradient, for want of optax."""

    def init(self, params):
        return np.zeros(1)

    def update(self, gradient, memory, params, **_):
        return -0.5 * gradient, memory + 1


SOLVERS = {
    "trust region": lambda lower, upper: TrustRegion(lower, upper),
    "streaming": lambda lower, upper: Streaming(lower, upper),
    "forgetting": lambda lower, upper: Streaming(lower, upper, forget=0.9),
    "first order": lambda lower, upper: FirstOrder(lower, upper, Halving()),
}


def states(solver, most=6):
    """The states of a fit, from the first on."""
    found = [solver.init(START)]
    while len(found) <= most and not solver.terminate(found[-1]):
        request = solver.request(found[-1])
        whitening = None if request.whitening is None else request.whitening.s
        found.append(solver.step(found[-1], kernel.reduce_block(OBJECTIVE, BLOCK, request.theta, whitening)))
    return found


def same(one, two):
    return pickle.dumps(one) == pickle.dumps(two)


@pytest.mark.parametrize("bounds", [OPEN, BOUNDS], ids=["open", "bounded"])
@pytest.mark.parametrize("make", SOLVERS.values(), ids=SOLVERS)
class TestEverySolver:
    def test_is_one(self, make, bounds):
        assert isinstance(make(*bounds), Solver)

    def test_begins_at_its_start(self, make, bounds):
        solver = make(*bounds)
        np.testing.assert_array_equal(solver.request(solver.init(START)).theta, START)
        assert not solver.terminate(solver.init(START))

    def test_asks_within_the_bounds(self, make, bounds):
        solver = make(*bounds)
        for state in states(solver):
            theta = solver.request(state).theta
            assert theta.shape == START.shape and ((bounds[0] <= theta) & (theta <= bounds[1])).all()

    def test_comes_nearer(self, make, bounds):
        solver = make(*bounds)
        costs = [kernel.reduce_block(OBJECTIVE, BLOCK, solver.request(s).theta, None).cost for s in states(solver)]
        assert costs[-1] < 0.5 * costs[0]

    def test_leaves_a_state_as_it_was(self, make, bounds):
        solver = make(*bounds)
        before = states(solver, 2)[-1]
        kept = copy.deepcopy(before)
        request = solver.request(before)
        whitening = None if request.whitening is None else request.whitening.s
        reduction = kernel.reduce_block(OBJECTIVE, BLOCK, request.theta, whitening)
        one, two = solver.step(before, reduction), solver.step(before, reduction)
        assert same(before, kept) and same(one, two)
