"""Look at a model before it is fitted: what it returns, how its Jacobian is formed, whether it looks across rows."""

from __future__ import annotations

import dataclasses
import functools
import os
import traceback
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dask_nlsq._errors import ModelError
from dask_nlsq._numerics import numeric, tile
from dask_nlsq._numerics.block import TILE, Block
from dask_nlsq._numerics.compiled import once
from dask_nlsq._numerics.objective import Jacobian, Objective
from dask_nlsq._typing import Vector

_LOOK = 64
"""Rows on which a model is tried whole and one by one."""

_ONCE: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
"""For what runs a few times only: the compiler need not look for the fastest code."""

_UNTRACEABLE = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError, IndexError)


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
            lambda t, x, a: tile.jacobian_and_residual(
                dataclasses.replace(objective, jacobian="reverse"), t, x, x[0], x[0], [a]
            ),
            jax.ShapeDtypeStruct((objective.n_parameters,), np.float64),
            [jax.ShapeDtypeStruct((TILE,), np.float64)] * objective.n_columns,
            jax.ShapeDtypeStruct((objective.n_parameters + 1, TILE), np.float64),
        )
    except ValueError:
        return "forward"
    return "reverse"


def _try_numpy(objective: Objective, theta: Vector, rows: int, traced: Exception) -> None:
    """Run a model that JAX cannot trace on a few made-up rows, unless it picks its rows from some that it has."""
    if getattr(objective.model.func, "row_wise", False):
        return
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

    The comparison is made at `theta` (p,) and beside it, where a term that vanishes at `theta` shows. Beside it may be
    out of the model's reach: where it raises there, a point that is nearer and of like signs is taken, else none.

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
            run = compiled_rows(objective)
        away = 0.1 * np.cos(np.arange(len(theta)))
        for beside in (theta + (1.0 + np.abs(theta)) * away, theta * (1.0 + away), theta):
            try:
                found = [np.asarray(a) for a in run(x, np.stack([theta, beside]))]
                break
            except Exception:
                if beside is theta:
                    raise
        for whole, single in zip(*found, strict=True):
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


def _where(error: BaseException) -> str:
    """Return the line of the user's code on which tracing failed."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and os.path.dirname(__file__) not in f.filename]
    last = (own or list(frames))[-1]
    return f"{type(error).__name__} at {last.filename}:{last.lineno}, {last.line!r}"


def compiled_rows(objective: Objective) -> Any:
    """Return the compiled model at two points, on all rows at once and on each row as a block of its own."""
    return once(objective, "rows", functools.partial(_compile_rows, objective))


def _compile_rows(objective: Objective) -> Any:
    def look(x: Any, points: Any) -> Any:
        def both(theta: Any) -> Any:
            def one_row(row: Any) -> Any:
                return jnp.asarray(objective.evaluate([c[None] for c in row], list(theta), jnp.stack), jnp.float64)[0]

            return jnp.asarray(objective.evaluate(x, list(theta), jnp.stack), jnp.float64), jax.vmap(one_row)(x)

        return lax.map(both, points)

    column = jax.ShapeDtypeStruct((_LOOK,), np.float64)
    points = jax.ShapeDtypeStruct((2, objective.n_parameters), np.float64)
    return jax.jit(look).lower((column,) * objective.n_columns, points).compile(_ONCE)
