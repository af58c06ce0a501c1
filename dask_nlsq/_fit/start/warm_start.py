"""Warm start: an optimizer goes down from a start that is too far for Gauss-Newton, on a sample of the rows."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from dask_nlsq._errors import BoundsError, NlsqError, one_of
from dask_nlsq._kernel import Block, kernel
from dask_nlsq._model import Objective, Parameters
from dask_nlsq._solver import FirstOrder, FirstOrderState, GradientTransformation

ROWS = 1024
"""Rows of a mini-batch."""

LEARNING_RATE = 0.05
"""Of ``method="adam"``: in a thousand steps a parameter moves by fifty times what would account for the residuals."""

_SECOND_ORDER = ("lm", "trf", "dogbox")


def optimizer_of(method: object, bounded: bool) -> GradientTransformation | None:
    """Return the optimizer that a method stands for; None where it stands for the trust region alone.

    Raises
    ------
    NlsqError
        It is no method.
    BoundsError
        It is "lm", which in SciPy knows no bounds.
    """
    if method is None or (isinstance(method, str) and method in _SECOND_ORDER):
        if method == "lm" and bounded:
            raise BoundsError('method="lm" knows no bounds, as in SciPy; leave method out.')
        return None
    is_optimizer = hasattr(method, "init") and hasattr(method, "update")
    if not is_optimizer:
        if callable(method):
            raise NlsqError("method is a function; optax's optimizers are made by a call, such as optax.adam(0.05).")
        one_of("method", method, *_SECOND_ORDER, "adam")
    try:
        import optax
    except ImportError as error:
        raise NlsqError('method="adam" needs optax: pip install "dask-nlsq[optax]".') from error
    # An optimizer that takes the cost as `value=` gets it; another is left as it is.
    optimizer: GradientTransformation = optax.with_extra_args_support(
        method if is_optimizer else optax.adam(LEARNING_RATE)
    )
    return optimizer


def words(method: object, end: FirstOrderState, block: Block) -> str:
    """Return how a descent went."""
    name = method if isinstance(method, str) else "the optimizer"
    return f"From p0, {name} went down on {block.rows:,} rows for {end.steps} steps: {end.status}."


def warm_start(
    objective: Objective, parameters: Parameters, block: Block, optimizer: GradientTransformation, seed: int
) -> FirstOrderState:
    """Go down from the start of the parameters, in mini-batches drawn from some rows: a function of the seed.

    Raises
    ------
    NlsqError
        The optimizer wants to know more than gradients and cost.
    """
    solver = FirstOrder(parameters.lower, parameters.upper, _compiled(optimizer))
    # The second number keeps this stream apart from that of the starts of a search, 2.
    rng = np.random.default_rng([seed, 1])
    state = solver.init(parameters.start)
    with jax.enable_x64(True):  # for the optimizer; the kernel sees to itself
        while not solver.terminate(state):
            some = block.take(np.sort(rng.integers(0, block.rows, min(ROWS, block.rows))))
            reduction = kernel.reduce_block(objective, some, solver.request(state).theta, None)
            try:
                state = solver.step(state, reduction)
            except TypeError as error:
                raise NlsqError(f"The optimizer cannot be driven by gradients alone: {error}.") from error
    return state if state.best is None else dataclasses.replace(state, theta=state.best)


def _compiled(optimizer: GradientTransformation) -> GradientTransformation:
    """Return the optimizer with its update as one program, or as it is where JAX cannot trace it."""
    update = jax.jit(optimizer.update)

    def run(*args: Any, **kwargs: Any) -> Any:
        nonlocal update
        try:
            return update(*args, **kwargs)
        except TypeError:
            update = optimizer.update
            return update(*args, **kwargs)

    return _Pair(optimizer.init, run)


@dataclasses.dataclass
class _Pair:
    init: Any
    update: Any
