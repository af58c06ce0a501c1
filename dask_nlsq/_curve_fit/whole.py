"""Whole: arrays in memory, fitted as SciPy does, with the function called on all of them at once.

What `fit` is given is the number of each row, and a model that picks those rows out of the whole. That is row-wise
whatever the function does with its data, a covariance between rows included.
"""

from __future__ import annotations

import collections
import contextlib
import functools
from collections.abc import Callable
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from dask_nlsq._curve_fit.call import Call
from dask_nlsq._curve_fit.data import Data, check
from dask_nlsq._curve_fit.output import Output
from dask_nlsq._curve_fit.rows import by_itself, fit_columns
from dask_nlsq._curve_fit.sigma import whitener
from dask_nlsq._errors import ModelError, SweepError
from dask_nlsq._kernel import Linearity, find, once
from dask_nlsq._typing import AnyArray, Vector


class Whole:
    """A function of all the data, (n, ...), as one of row numbers: it picks those rows out of the whole."""

    # Says so to `fit`, which else tries whether a row depends on its neighbours.
    row_wise = True

    def __init__(self, evaluate: Callable[[Vector], AnyArray], linearity: Linearity | None = None) -> None:
        self.evaluate = evaluate
        self.linearity = linearity
        self.known: collections.OrderedDict[tuple[float, ...], AnyArray] = collections.OrderedDict()

    def __call__(self, rows: Vector, *theta: Any) -> AnyArray:
        picked: AnyArray = self.at(tuple(float(t) for t in theta))[np.asarray(rows, int)]
        return picked

    def at(self, theta: tuple[float, ...]) -> AnyArray:
        """Return all values; the latest are remembered, for the pieces in which rows are asked for."""
        if theta not in self.known:
            self.known[theta] = self.evaluate(np.array(theta))
            # Central differences ask for 2 p points around one, and for all of them with each piece of the rows.
            if len(self.known) > 2 * len(theta) + 2:
                self.known.popitem(last=False)
        return self.known[theta]

    def __reduce__(self) -> Any:
        # A model that cannot be pickled stays in this process, and is not copied with its data.
        raise TypeError("data in memory stay in their process")


def fit_whole(call: Call, data: Data) -> Output:
    """Fit with the function called on all the data."""
    x, y, sigma = check(data, call.policy)
    if y.size != 1:
        call.require(y.size)
    if by_itself(call, x, y, sigma):
        return fit_columns(call, x, y, sigma)
    whiten = whitener(sigma, y.size)
    first = _precise(call.f, x, call.p0)
    shape = _shape(first, y)
    call.require(shape[0])

    def column(value: npt.ArrayLike) -> AnyArray:
        return _padded(whiten(np.broadcast_to(np.asarray(value, float), shape)), call.p)

    model = Whole(lambda theta: column(_precise(call.bounded, x, theta)), _linearity(call, x, first))
    model.known[tuple(call.p0.tolist())] = column(first)
    derivative = _traced(call, x, first, shape) if call.jac is None else call.jac

    def jacobian(derivative: Callable[..., Any], theta: Vector) -> AnyArray:
        return _padded(whiten(np.asarray(_precise(derivative, x, theta), float)), call.p)

    jac = Whole(functools.partial(jacobian, derivative)) if callable(derivative) else "3-point"
    target = column(y)
    try:
        result = call.fit(model, np.arange(float(len(target))), target, jac, client=False, progress=False)
    except SweepError as error:
        # What the function raises reaches the caller as it does from SciPy.
        raise error.__cause__ or error from None
    fvec = (model.at(tuple(result.popt.tolist())) - target)[: shape[0]]
    return Output(call, result, shape[0], lambda: fvec)


def _precise(f: Callable[..., Any], x: object, theta: Vector) -> Any:
    """Call a user's function with JAX at double precision."""
    with jax.enable_x64(True):
        return f(x, *theta)


def _shape(value: npt.ArrayLike, y: Vector) -> tuple[int, ...]:
    """Return the shape of the residuals: what the function gives, broadcast against the data."""
    shape = np.broadcast_shapes(np.shape(value), y.shape)
    if len(shape) > 1:
        raise ModelError(
            f"f returns the shape {np.shape(value)} for ydata of shape {y.shape}; one number a row is needed."
        )
    if np.iscomplexobj(value):
        raise ModelError(f"f returns {np.asarray(value).dtype}; real numbers are needed.")
    return shape or (1,)


def _padded(a: AnyArray, p: int) -> AnyArray:
    """Add rows of zeros up to p of them: they change nothing, and the solver wants as many as parameters."""
    return np.concatenate([a, np.zeros((p - len(a), *a.shape[1:]))]) if len(a) < p else a


def _linearity(call: Call, x: object, first: object) -> Linearity | None:
    """Return in which parameters a function that gives `first` at the start is linear, where JAX can say so."""
    if not isinstance(first, jax.Array):
        return None

    def look() -> Linearity:
        return find(lambda theta: call.f(x, *theta), call.p)

    def look_once(x: AnyArray) -> Linearity:
        # A function that asks what its data are may be another for others, and raises here.
        jax.eval_shape(lambda x, theta: call.f(x, *theta), x, call.p0)
        return look()

    if _is_plain(x) and call.known:
        with contextlib.suppress(Exception), jax.enable_x64(True):
            return once(call.objective(call.f, 1), ("whole", x.shape), lambda: look_once(x))
    try:
        return look()
    except Exception:  # whatever tracing the user's function may raise
        return None


def _traced(call: Call, x: object, first: object, shape: tuple[int, ...]) -> Callable[..., Any] | None:
    """Return JAX's derivative of a function that gives `first` at the start, or None where there is none."""
    if not isinstance(first, jax.Array):
        return None
    if _is_plain(x) and call.known:
        # Compiled once for arrays of one shape; a function that computes with NumPy from its data cannot be.
        with contextlib.suppress(Exception), jax.enable_x64(True):
            known = call.objective(call.f, 1)
            again = once(known, ("whole", x.shape, shape), lambda: _compile(call, (x,), shape))
            return lambda _, *theta: again(np.array(theta), x)
    try:
        with jax.enable_x64(True):
            # Compiled here and not at the first call, so that what tracing raises is caught.
            run = _compile(call, (), shape, x)
    except Exception:  # whatever tracing the user's function may raise: SciPy does not trace
        return None
    return lambda _, *theta: run(np.array(theta))


def _compile(call: Call, given: tuple[AnyArray, ...], shape: tuple[int, ...], *held: object) -> jax.stages.Compiled:
    """Compile the Jacobian of a function of the data that it is given at each call, or of those that are held."""
    jacobian = jax.jacfwd(lambda theta, *x: jnp.broadcast_to(call.f(*x, *held, *theta), shape))
    return jax.jit(jacobian).lower(call.p0, *given).compile()


def _is_plain(x: object) -> TypeGuard[AnyArray]:
    return isinstance(x, np.ndarray) and x.dtype == np.float64
