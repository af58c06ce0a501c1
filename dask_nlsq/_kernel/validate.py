"""Check a model before it is fitted: what it returns, how its Jacobian is formed, whether it looks across rows."""

from __future__ import annotations

import dataclasses
import functools
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from dask_nlsq._errors import ModelError, NlsqError
from dask_nlsq._kernel import finite_difference, tile, traced
from dask_nlsq._kernel.block import TILE, Block
from dask_nlsq._kernel.compile_cache import once
from dask_nlsq._model import NUMBER, PARTS, Jacobian, Objective, Responses, reached
from dask_nlsq._typing import Vector

_LOOK = 64
"""Rows on which a model is tried whole and one by one."""

_ALIKE = 1e-4
"""Relative difference of values that may be that of two solves of one differential equation."""

_ONCE: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
"""For what runs a few times only: the compiler need not look for the fastest code."""

_UNTRACEABLE = (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError, IndexError)


class Checked(NamedTuple):
    """What is known of a model before it sees data."""

    objective: Objective  # with its Jacobian chosen
    obstacle: str | None = None  # what keeps JAX from it, to be read behind the model's name
    single: tuple[str, ...] = ()  # constants that have float32 digits only
    traceable: bool = True


def check(objective: Objective, theta: Vector) -> Checked:
    """Check the model without data, once: its shape, its dtype, its constants, and how its Jacobian can be formed.

    Raises
    ------
    ModelError
        The model runs neither under JAX nor under NumPy, or does not return one real number a row.
    """
    return once(objective, "check", lambda: _check(objective, theta))


def _check(objective: Objective, theta: Vector) -> Checked:
    name, rows = objective.model.name, traced.ROWS
    with jax.enable_x64(True):
        try:
            program, out = traced.trace(objective)
        except NlsqError:
            raise
        except Exception as error:
            if (advice := getattr(objective.model.func, "needs_jax", None)) is not None:
                said = str(error).partition("\n")[0]
                raise ModelError(
                    f"The model {name!r} cannot be traced by JAX: {_where(error)}: {said} {advice}"
                ) from error
            return _check_numpy(objective, theta, error)
        # A model may return anything, such as a list or None, and is told so below.
        shape, dtype = getattr(out, "shape", None), np.dtype(getattr(out, "dtype", object))
        if shape != (rows,):
            several = isinstance(out, (list, tuple)) or (shape is not None and len(shape) == 2 and shape[1] == rows)
            hint = ' Where it returns several, y= names as many columns: y=["a", "b"].' if several else ""
            what = f"a {type(out).__name__}" if shape is None else f"the shape {shape}"
            raise ModelError(
                f"The model {name!r} returns {what} for {rows} rows; ({rows},) is needed, one number a row.{hint}"
            )
        if dtype.kind == "c" and objective.responses is None:
            return _check(_in_parts(objective), theta)
        if dtype.kind not in "fiub":
            raise ModelError(f"The model {name!r} returns {dtype}; real numbers are needed.")
        single = tuple(map(_said, traced.single(traced.constants(program))))
        if objective.responses is not None and _returns_complex(objective):
            responses = dataclasses.replace(objective.responses, is_complex=True)
            objective = dataclasses.replace(objective, responses=responses)
        if objective.jac is not None:
            return Checked(dataclasses.replace(objective, jacobian="numeric"), None, single)
        shared = _row_wise(objective) or traced.shares(program, objective.n_columns)
        jacobian, obstacle = _direction(objective, ("shared", "forward") if shared else ("reverse", "forward"))
        if jacobian != objective.jacobian:  # else it is the very objective that is known already
            objective = dataclasses.replace(objective, jacobian=jacobian)
        if obstacle is None:
            return Checked(objective, None, single)
        if (failed := _under_numpy(objective, theta)) is not None:
            raise ModelError(
                f"The model {name!r} has no derivative in JAX ({_where(obstacle)}), and raises "
                f"{type(failed).__name__} under NumPy: {failed}."
            ) from failed
        return Checked(_compiled(objective), f"has no derivative in JAX: {obstacle} ({_where(obstacle)})", single)


def _in_parts(objective: Objective) -> Objective:
    """Return the objective of a complex model, whose real and imaginary parts are two responses."""
    *columns, y = objective.columns
    names = tuple(y + part for part in PARTS)
    return dataclasses.replace(objective, columns=(*columns, NUMBER, y), responses=Responses(names))


def _returns_complex(objective: Objective) -> bool:
    """Whether a model returns one complex number a row."""
    column, scalar = jax.ShapeDtypeStruct((traced.ROWS,), np.float64), jax.ShapeDtypeStruct((), np.float64)
    value = jax.eval_shape(
        lambda x, theta: objective.model(x, objective.expand(theta), jnp.stack),
        [column] * objective.n_columns,
        [scalar] * objective.n_parameters,
    )
    return not isinstance(value, (list, tuple)) and value.dtype.kind == "c" and value.ndim == 1


@dataclasses.dataclass(frozen=True, eq=False)
class Compiled:
    """A function that XLA compiles once for each length of its columns; alone, each call would compile again."""

    func: Callable[..., Any]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._run(*args, **kwargs)

    @functools.cached_property
    def _run(self) -> Callable[..., Any]:
        return jax.jit(lambda *args, **kwargs: self.func(*args, **kwargs))  # an object of the user's may have no hash

    def __getstate__(self) -> dict[str, Any]:
        return {"func": self.func}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _compiled(objective: Objective) -> Objective:
    """Return the objective with its model compiled, unless that takes whole numbers, which must not be traced."""
    fixed = {} if objective.expansion is None else objective.expansion.fixed
    if any(isinstance(value, int) for value in fixed.values()):
        return objective
    return dataclasses.replace(objective, model=objective.model.replace(Compiled(objective.model.func)))


def _direction(objective: Objective, directions: Sequence[Jacobian]) -> tuple[Jacobian, Exception | None]:
    """Return the first direction in which the model can be differentiated, else "numeric" and what is in the way.

    A loop of unknown length has no reverse derivative; a callback, and some special functions, have none at all.
    """
    for direction in directions:
        try:
            jax.eval_shape(
                lambda t, x, a, kind=direction: tile.jacobian_and_residual(
                    dataclasses.replace(objective, jacobian=kind), t, x, x[0], x[0], [a]
                ),
                jax.ShapeDtypeStruct((objective.n_parameters,), np.float64),
                [jax.ShapeDtypeStruct((TILE,), np.float64)] * objective.n_columns,
                jax.ShapeDtypeStruct((objective.n_parameters + 1, TILE), np.float64),
            )
        except Exception as error:
            obstacle = error
        else:
            return direction, None
    return "numeric", obstacle


def _said(constant: jax.Array) -> str:
    """Describe a constant by its shape, or its value if it is a single one."""
    return f"{float(constant):.9g}" if constant.size == 1 and constant.dtype.kind == "f" else f"shape {constant.shape}"


def _check_numpy(objective: Objective, theta: Vector, error: Exception) -> Checked:
    """Check a model that JAX cannot trace; what is fixed at a whole number may have to be one."""
    failed = _under_numpy(objective, theta)
    if failed is None:
        objective, single = (
            dataclasses.replace(objective, jacobian="numeric"),
            traced.single(reached(objective.model.func)),
        )
        return Checked(objective, f"cannot be traced by JAX: {_where(error)}", tuple(map(_said, single)), False)
    needs_integers = any(isinstance(e, (TypeError, IndexError)) and "integer" in str(e) for e in (error, failed))
    if needs_integers and (whole := _whole(objective)) is not None:
        return _check(whole, theta)
    shown = failed if not isinstance(error, _UNTRACEABLE) else error
    raise ModelError(
        f"The model {objective.model.name!r} raises {type(shown).__name__}: {shown}. It runs neither under JAX "
        f"({_where(error)}) nor under NumPy ({_where(failed)}).{_advice(objective) if needs_integers else ''}"
    ) from failed


def _whole(objective: Objective) -> Objective | None:
    """Return an objective that hands on whole numbers as such, where parameters are fixed at some."""
    expansion = objective.expansion
    fixed = {} if expansion is None else expansion.fixed
    whole = {name: int(v) for name, v in fixed.items() if isinstance(v, float) and v.is_integer()}
    if expansion is None or not whole:
        return None
    return dataclasses.replace(objective, expansion=dataclasses.replace(expansion, fixed={**fixed, **whole}))


def _advice(objective: Objective) -> str:
    """Say how an argument is given that must be a whole number."""
    defaults = {name: int(v) for name, v in objective.model.defaults.items() if float(v).is_integer()}
    name, value = next(iter(defaults.items()), ("n", 3))
    return (
        " A parameter is a real number. Hold an argument that must be a whole number, such as the length of a loop: "
        f'fixed={{"{name}": {value}}}, or functools.partial({objective.model.name}, {name}={value}).'
    )


def _under_numpy(objective: Objective, theta: Vector) -> Exception | None:
    """Run a model on a few made-up rows, unless it picks its rows from some that it has; return what it raises.

    Raises
    ------
    ModelError
        It does not return one real number a row.
    """
    if _row_wise(objective):
        return None
    x = tuple(np.linspace(0.5, 1.5, traced.ROWS) for _ in range(objective.n_columns))
    try:
        with np.errstate(all="ignore"):
            finite_difference.values(objective, x, list(objective.expand(theta.tolist())))
    except ModelError:
        raise
    except Exception as error:
        return error
    return None


def check_rows(objective: Objective, block: Block, theta: Vector) -> None:
    """Refuse a model that looks across rows: up to 64 rows, whole and one by one, must give the same values.

    One whose program proves that it does not is not tried.

    The comparison is made at `theta` (p,) and beside it, where a term that vanishes at `theta` shows. Beside it may be
    out of the model's reach: where it raises there, a point that is nearer and of like signs is taken, else none.

    Raises
    ------
    ModelError
        A row's value depends on the rows beside it.
    """
    if block.rows < 2 or rows_alike(objective):
        return
    rows = np.linspace(0, block.rows - 1, _LOOK).astype(int)
    x = block.take(rows).wide().x
    with jax.enable_x64(True), np.errstate(all="ignore"):
        run: Callable[..., Any] = functools.partial(finite_difference.check_rows, objective)
        if objective.jacobian != "numeric":
            run = compiled_rows(objective)
        away = 0.1 * np.cos(np.arange(len(theta)))
        for beside in (theta + (1.0 + np.abs(theta)) * away, theta * (1.0 + away), theta):
            try:
                values = [np.asarray(a) for a in run(x, np.stack([theta, beside]))]
                break
            except Exception:
                if beside is theta:
                    raise
        for whole, single in zip(*values, strict=True):
            if np.array_equal(whole, single, equal_nan=True):
                continue
            size = np.abs(single[np.isfinite(single)]).max(initial=0.0)
            # XLA may compile one row to other instructions than many, so that the last bits differ for a model that is
            # right.
            apart = ~np.isclose(whole, single, rtol=1e-9, atol=1e-9 * size, equal_nan=True)
            if apart.any():
                i = int(np.argmax(apart))
                if _random(objective, x, theta):
                    raise ModelError(
                        f"The model {objective.model.name!r} draws random numbers: row {i} of {_LOOK} gives "
                        f"{whole[i]:.17g} beside others, and {single[i]:.17g} by itself, so that two evaluations of "
                        "the same rows differ. Draw them beforehand, and pass them as a column or a constant."
                    )
                digits = "g" if f"{whole[i]:g}" != f"{single[i]:g}" else ".17g"
                hint = ""
                if np.isclose(whole, single, rtol=_ALIKE, atol=_ALIKE * size, equal_nan=True).all():
                    hint = (
                        " Where they differ that little, a solver of differential equations may have taken other steps "
                        "for other rows: Model.from_ode makes a model of such equations."
                    )
                raise ModelError(
                    f"The model {objective.model.name!r} looks across rows: among {_LOOK} rows, row {i} gives "
                    f"{whole[i]:{digits}}, and {single[i]:{digits}} by itself. A partition does not hold all rows, so "
                    "a mean, a maximum, a cumulative sum or a length would depend on how the data are cut. Compute it "
                    f"beforehand, and pass it as a column or a constant.{hint}"
                )


def _random(objective: Objective, x: tuple[Vector, ...], theta: Vector) -> bool:
    """Whether a model draws random numbers: its program says so, or two evaluations differ."""
    if objective.jacobian == "numeric":
        everything = list(objective.expand(theta.tolist()))
        first, second = (finite_difference.values(objective, x, everything) for _ in range(2))
        return not np.array_equal(first, second, equal_nan=True)
    (program, _), (again, _) = traced.trace(objective), traced.trace(objective)
    values = zip(traced.constants(program), traced.constants(again), strict=False)
    return (
        traced.draws(program)
        or str(program) != str(again)
        or not all(np.array_equal(a, b, equal_nan=True) for a, b in values)
    )


def _where(error: BaseException) -> str:
    """Return the line of the user's code on which tracing failed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = str(Path(__file__).parents[1])
    user_frames = [f for f in frames if "site-packages" not in f.filename and not f.filename.startswith(ours)]
    last = (user_frames or list(frames))[-1]
    return f"{type(error).__name__} at {last.filename}:{last.lineno}, {last.line!r}"


def rows_alike(objective: Objective) -> bool:
    """Whether the program of a model proves that it treats each row by itself, or the model says so."""
    if objective.jacobian == "numeric":
        return False
    return _row_wise(objective) or once(objective, "rows alike", functools.partial(traced.treats_rows_alike, objective))


def _row_wise(objective: Objective) -> bool:
    """Whether a model says that it treats each row by itself, and is meant to see many of them at once."""
    return bool(getattr(objective.model.func, "row_wise", False))


def prepare_rows(objective: Objective) -> None:
    """Compile what `check_rows` runs, where it will."""
    if not rows_alike(objective):
        compiled_rows(objective)


def compiled_rows(objective: Objective) -> jax.stages.Compiled:
    """Return the compiled model at two points, on all rows at once and on each row as a block of its own."""
    return once(objective, "rows", functools.partial(_compile_rows, objective))


def _compile_rows(objective: Objective) -> jax.stages.Compiled:
    def look(x: Sequence[jax.Array], points: jax.Array) -> tuple[jax.Array, jax.Array]:
        def both(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
            def one_row(row: Sequence[jax.Array]) -> jax.Array:
                return jnp.asarray(objective.evaluate([c[None] for c in row], list(theta), jnp.stack), jnp.float64)[0]

            return jnp.asarray(objective.evaluate(x, list(theta), jnp.stack), jnp.float64), jax.vmap(one_row)(x)

        values: tuple[jax.Array, jax.Array] = lax.map(both, points)
        return values

    column = jax.ShapeDtypeStruct((_LOOK,), np.float64)
    points = jax.ShapeDtypeStruct((2, objective.n_parameters), np.float64)
    return jax.jit(look).lower((column,) * objective.n_columns, points).compile(_ONCE)
