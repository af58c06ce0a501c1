"""Program: what a model computes, as text and numbers that are the same in every process.

A model that JAX can trace is known by its traced program and the constants in it, which sees a changed helper function
and no changed comment. One that JAX cannot trace is known by its code, its constants and what it refers to. Values at a
few fixed points stand beside, for versions of JAX or Python that write programs differently.
"""

from __future__ import annotations

import functools
import hashlib
import re
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dask_nlsq._numerics import kernel
from dask_nlsq._numerics.block import Block
from dask_nlsq._numerics.objective import Objective
from dask_nlsq._typing import Vector

_ROWS = 8

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def program(objective: Objective, theta: Vector) -> dict[str, Any]:
    """Return a hash of what is computed, and its values at a few points with free parameters theta (p,)."""
    column = jax.ShapeDtypeStruct((_ROWS,), np.float64)
    scalar = jax.ShapeDtypeStruct((), np.float64)
    arguments = ([column] * objective.n_columns, [scalar] * len(theta))

    def model(x: Any, t: Any) -> Any:
        return objective.evaluate(x, t, jnp.stack)

    digest = hashlib.sha256()
    with jax.enable_x64(True):
        try:
            closed = jax.make_jaxpr(model)(*arguments)
            digest.update(_ADDRESS.sub("", str(closed)).encode())
            for constant in closed.consts:
                digest.update(np.asarray(constant).tobytes())
            digest.update(_ADDRESS.sub("", jax.jit(model).lower(*arguments).as_text()).encode())
        except Exception:
            digest.update(code(objective.model.func).encode())
            digest.update(code(objective.expansion).encode())
    for function in (objective.jac, objective.loss):
        digest.update((code(function) if callable(function) else str(function)).encode())
    x = np.random.default_rng(0).uniform(0.1, 1.1, (objective.n_columns, _ROWS))
    with np.errstate(all="ignore"):
        every = np.array([float(v) for v in objective.expand(theta.tolist())])
        values = kernel.predict_block(objective, Block(tuple(x), x[0]), every)
    return {"program": digest.hexdigest(), "values": [float(v).hex() for v in values]}


def code(value: Any) -> str:
    """Return a hash of a function: its code, its constants, and what it refers to, functions and arrays included."""
    digest = hashlib.sha256()
    _feed(value, digest.update, set())
    return digest.hexdigest()


def _feed(value: Any, update: Callable[[bytes], None], seen: set[int]) -> None:
    update(f"<{type(value).__qualname__}>".encode())
    if isinstance(value, (int, float, complex, str, bytes, type(None))):
        update(repr(value).encode())
    elif isinstance(value, types.ModuleType):
        update(value.__name__.encode())
    elif id(value) in seen:
        return
    elif isinstance(value, types.CodeType):
        update(value.co_code)
        for part in (*value.co_names, *value.co_consts):
            _feed(part, update, seen)
    elif isinstance(value, types.FunctionType):
        seen.add(id(value))
        _feed(value.__code__, update, seen)
        names = [n for c in _codes(value.__code__) for n in c.co_names]
        cells = [c.cell_contents for c in value.__closure__ or () if c != types.CellType()]
        globe = [value.__globals__[n] for n in sorted(set(names)) if n in value.__globals__]
        for part in (value.__defaults__, value.__kwdefaults__, *cells, *globe):
            _feed(part, update, seen)
    elif hasattr(value, "__array__"):
        array = np.asarray(value)
        update(f"{array.dtype}{array.shape}".encode() + (b"" if array.dtype.hasobject else array.tobytes()))
    elif isinstance(value, (tuple, list)):
        for part in value:
            _feed(part, update, seen)
    elif isinstance(value, (set, frozenset)):
        for part in sorted(value, key=repr):
            _feed(part, update, seen)
    elif isinstance(value, functools.partial):
        _feed((value.func, value.args, value.keywords), update, seen)
    elif isinstance(value, types.MethodType):
        _feed((value.__func__, value.__self__), update, seen)
    elif isinstance(value, dict):
        for key in sorted(value, key=repr):
            _feed(key, update, seen)
            _feed(value[key], update, seen)
    elif isinstance(value, (types.BuiltinFunctionType, type)):
        update(f"{value.__module__}.{value.__qualname__}".encode())
    else:
        seen.add(id(value))
        _feed(getattr(value, "func", None), update, seen)
        for name, held in sorted(getattr(value, "__dict__", {}).items()):  # what lasts; not caches, locks and files
            if isinstance(held, (int, float, str, types.FunctionType, np.ndarray)):
                _feed((name, held), update, seen)


def _codes(code: types.CodeType) -> list[types.CodeType]:
    """Return a code object and those within."""
    return [code, *(c for part in code.co_consts if isinstance(part, types.CodeType) for c in _codes(part))]
