"""Model record: what is written of the model of a fit, and the model again from the user's function and that.

The function itself is not written. Its values at a few fixed points are, so that another one is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dask_nlsq._errors import CheckpointError, CheckpointMismatch, warn
from dask_nlsq._kernel import validate
from dask_nlsq._model import Expansion, Expression, Model, Objective, named
from dask_nlsq._sources import Columns
from dask_nlsq._sweep import Payload, predict_rows, serialize
from dask_nlsq._typing import Vector

_ROWS = 8
"""Points at which the model is evaluated."""

_CLOSE = 1e-9
"""Relative difference of values that another version of JAX may make."""


def describe(payload: Payload, columns: Columns, popt: Vector) -> dict[str, Any]:
    """Return what is written of a model, as plain values that JSON can hold."""
    expansion = payload.value.expansion
    origins = {name: [str(at), np.datetime_data(at)[0]] for name, at in columns.origins.items()}
    return {
        "columns": dataclasses.asdict(columns) | {"x": list(columns.x), "origins": origins},
        "fixed": {} if expansion is None else dict(expansion.fixed),
        "tied": {} if expansion is None else {name: tie.text for name, tie in expansion.tied.items()},
        "formula": getattr(payload.value.model.func, "text", None),
        "values": _values(payload, columns, popt).tolist(),
    }


def formula(recorded: Mapping[str, Any] | None) -> str | None:
    """Return the formula of a model that is one."""
    return None if recorded is None else recorded.get("formula")


def restore(
    model: Any, recorded: Mapping[str, Any] | None, names: Sequence[str], popt: Vector
) -> tuple[Payload, Columns]:
    """Return what evaluates a model, which must be that of the record.

    Raises
    ------
    CheckpointError
        Nothing is recorded of the model.
    CheckpointMismatch
        The model has other parameters, or other values.
    """
    if recorded is None or "columns" not in recorded:
        raise CheckpointError(
            "What was read says nothing of the model: it is of an earlier version, or of several fits together. Load "
            "it without model=, and evaluate the model at params."
        )
    given = recorded["columns"]
    origins = {name: np.datetime64(at, unit) for name, (at, unit) in given["origins"].items()}
    tuples = {name: _as_tuple(value) for name, value in given.items() if isinstance(value, (list, tuple))}
    columns = Columns(**{**given, **tuples, "origins": origins})
    if isinstance(model, str):
        model = named(model)
    bound = (model if isinstance(model, Model) else Model.from_function(model, len(names))).bind(columns.x)
    if bound.parameters != tuple(names):
        raise CheckpointMismatch(
            f"The result has the parameters {list(names)}, and {bound.name!r} has {list(bound.parameters)} with the "
            f"columns {list(columns.x)}. Give the model that was fitted."
        )
    fixed, tied = recorded["fixed"], {name: Expression(text) for name, text in recorded["tied"].items()}
    free = tuple(name for name in names if name not in fixed and name not in tied)
    objective = Objective(
        dataclasses.replace(bound, guess_func=None),
        (*columns.x, *columns.appended, columns.y),
        columns.sigma is not None,
        expansion=Expansion(tuple(names), free, fixed, tied) if fixed or tied else None,
        responses=columns.several,
    )
    theta = popt[[names.index(name) for name in free]]
    payload = serialize(validate.check(serialize(objective).value, theta).objective)
    values, there = _values(payload, columns, popt), np.array(recorded["values"], float)
    if not np.isfinite(there).any():
        warn(f"Whether {bound.name!r} is the model that was fitted is not known: it has no value where that is seen.")
    size = np.abs(there[np.isfinite(there)]).max(initial=0.0)
    if not np.allclose(values, there, rtol=_CLOSE, atol=_CLOSE * size, equal_nan=True):
        raise CheckpointMismatch(
            f"{bound.name!r} is another model than the one that was fitted: at the same points and parameters its "
            f"values are {values[:3]}, and were {there[:3]}."
        )
    return payload, columns


def _values(payload: Payload, columns: Columns, popt: Vector) -> Vector:
    """Return the values of a model at some points."""
    x = tuple(np.random.default_rng(0).uniform(0.1, 1.1, (len(columns.x), _ROWS)))
    responses = payload.value.responses
    with np.errstate(all="ignore"):
        if responses is None:
            return predict_rows(payload, popt, x)
        alone = [serialize(payload.value.of_response(c)) for c in range(len(responses))]
        return np.concatenate([predict_rows(each, popt, x) for each in alone])


def _as_tuple(value: Any) -> Any:
    """Return a sequence as a tuple, and those in it too."""
    return tuple(map(_as_tuple, value)) if isinstance(value, (list, tuple)) else value
