"""Identity: what a model computes, as text and numbers that are the same in every process.

A model that JAX can trace is known by its traced program and the constants in it, which sees a changed helper function
and no changed comment. One that JAX cannot trace is known by its code, its constants and what it refers to. Values at a
few fixed points stand beside, for versions of JAX or Python that write programs differently.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from dask_nlsq._kernel import kernel
from dask_nlsq._kernel.block import Block
from dask_nlsq._model import Objective, code
from dask_nlsq._typing import Vector

_ROWS = 8

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of a function in the text of a program; it differs from process to process


def program(objective: Objective, theta: Vector) -> dict[str, Any]:
    """Return a hash of what is computed, and its values at a few points with free parameters theta (p,)."""
    column = jax.ShapeDtypeStruct((_ROWS,), np.float64)
    scalar = jax.ShapeDtypeStruct((), np.float64)
    arguments = ([column] * objective.n_columns, [scalar] * len(theta))

    def model(x: Sequence[jax.Array], t: Sequence[jax.Array]) -> jax.Array:
        values: jax.Array = objective.evaluate(x, t, jnp.stack)
        return values

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
    if objective.responses is not None:
        x[-1] = np.arange(_ROWS) % len(objective.responses)
    with np.errstate(all="ignore"):
        every = np.array([float(v) for v in objective.expand(theta.tolist())])
        values = kernel.predict_block(objective, Block(tuple(x), x[0]), every)
    # Hexadecimal floats keep every bit through the JSON of a checkpoint.
    return {"program": digest.hexdigest(), "values": [float(v).hex() for v in values]}
