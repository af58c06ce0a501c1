"""Fingerprints: what must be the same for a fit to go on from a checkpoint, and what differs where it is not.

Data at a path are known by their files. Other data are known by what each partition held, which the next sweep checks.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from dask_nlsq._checkpoint import Generation, versions
from dask_nlsq._errors import CheckpointMismatch, warn
from dask_nlsq._fit.options import FitOptions
from dask_nlsq._fit.problem import Resolved
from dask_nlsq._kernel import once, program
from dask_nlsq._model import code
from dask_nlsq._sources import are_paths, files

_BY_JAX = ("reverse", "forward", "shared")
"""Ways in which JAX forms a Jacobian."""

_CLOSE = 1e-9
"""Relative difference of the values of a model that another version of JAX may make."""


def fingerprint(resolved: Resolved, options: FitOptions) -> dict[str, Any]:
    """Return what decides about the answer of a fit, as plain values that JSON holds."""
    parameters, objective, info = resolved.parameters, resolved.objective, resolved.source.info
    prior = parameters.prior
    path = options.data if are_paths(options.data) else None
    values = {
        "parameters": list(parameters.names),
        "free": list(parameters.free),
        "start": parameters.start.tolist(),
        "lower bounds": parameters.lower.tolist(),
        "upper bounds": parameters.upper.tolist(),
        "fixed": dict(parameters.fixed),
        "tied": {name: tie.text for name, tie in parameters.tied.items()},
        "prior": None if prior is None else [prior.mean.tolist(), prior.weight.tolist()],
        "columns": list(resolved.columns.names),
        "sigma": resolved.columns.weight,
        "groups": resolved.columns.groups,
        "sigma_x": list(resolved.columns.sigma_x) or None,
        "responses": list(resolved.columns.responses) or None,
        "nan_policy": resolved.columns.nan_policy,
        "loss": code(objective.loss) if callable(objective.loss) else objective.loss,
        "f_scale": objective.f_scale,
        "jac": "a function" if objective.jac is not None else objective.jacobian,
        **options.fingerprint(),
        "kind of data": info.kind,
        "partitions": len(resolved.source.partitions),
        "bytes of a row": info.row_bytes,  # tells float32 from float64
        "rows": info.rows,
        "files": info.identity or (None if path is None else files(path, options.storage_options)),
        # Once in a process for a model and a start: to trace it is most of what a stored result takes to be found.
        "model": once(
            objective,
            ("program", parameters.start.tobytes()),
            functools.partial(program, objective, parameters.start),
        ),
    }
    # As a checkpoint will give it back: tuples are lists there, and keys are texts.
    return dict(json.loads(json.dumps(_plain(values))))


def _plain(value: object) -> Any:
    """Return a value with numbers that are not finite as texts."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else str(value)
    return value if isinstance(value, (int, str, type(None))) else str(value)


def compare(generation: Generation, current: Mapping[str, Any], *, force: bool = False) -> bool:
    """Refuse a generation of another fit, and warn where its bits may differ here; return whether it is the same fit.

    Raises
    ------
    CheckpointMismatch
        What differs is listed.
    """
    there, here = generation.versions, versions()
    writers = other_writers(there)
    if differs := differences(generation.fingerprint, current, strict=not writers):
        what = "; ".join(f"{name}: {text}" for name, text in differs.items())
        if not force:
            raise CheckpointMismatch(
                f"Generation {generation.number} of the checkpoint is of another fit. {what}. Use another checkpoint, "
                'resume=False to start anew, or resume="force" to go on from it all the same.'
            )
        warn(f"The fit goes on from a checkpoint of another fit. {what}.")
    if writers:
        listed = ", ".join(f"{name} {there.get(name)} there and {here[name]} here" for name in writers)
        warn(f"The checkpoint was written elsewhere ({listed}); the last bits of the answer may differ.")
    return not differs


def other_writers(there: Mapping[str, str]) -> list[str]:
    """Return of what the bits of a model depend on what was of another version there."""
    return [name for name, version in versions().items() if there.get(name) != version and name != "dask-nlsq"]


def differences(there: Mapping[str, Any], here: Mapping[str, Any], strict: bool) -> dict[str, str]:
    """Return what differs between two fits, in words; models may be other programs of the same values if not strict."""
    differing = {}
    for name in sorted(set(there) | set(here)):
        stored, current = there.get(name), here.get(name)
        if stored == current or (name == "model" and _same_model(stored, current, strict)):
            continue
        if name == "model" and _told_otherwise(there, here):
            continue
        if name == "jac" and {stored, current} <= set(_BY_JAX):  # which of them is by rule, and goes on as it was
            continue
        if name == "model":
            differing[name] = "it computes something else"
        elif isinstance(stored, Mapping) and isinstance(current, Mapping):
            keys = sorted(k for k in set(stored) | set(current) if stored.get(k) != current.get(k))
            more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
            differing[name] = ", ".join(f"{k} ({stored.get(k)} there, {current.get(k)} here)" for k in keys[:3]) + more
        else:
            differing[name] = f"{_short(stored)} there, {_short(current)} here"
    return differing


def _told_otherwise(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    """Whether what is written of two models differs for what is named apart: the start, the loss, what is held."""
    a, b = there.get("model"), here.get("model")
    if not isinstance(a, Mapping) or not isinstance(b, Mapping):
        return False
    unlike = {name for name in ("start", "loss", "fixed", "tied") if there.get(name) != here.get(name)}
    same_program = a.get("program") == b.get("program") or bool(unlike & {"loss", "fixed", "tied"})
    same_values = a.get("values") == b.get("values") or bool(unlike & {"start", "fixed", "tied"})
    return bool(unlike) and same_program and same_values


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _same_model(stored: object, current: object, strict: bool) -> bool:
    """Whether two models compute the same: the same program, or, of other versions, the same values."""
    if not isinstance(stored, Mapping) or not isinstance(current, Mapping) or strict:
        return bool(stored == current)
    a, b = (np.array([float.fromhex(v) for v in model["values"]]) for model in (stored, current))
    return a.shape == b.shape and bool(np.allclose(a, b, rtol=_CLOSE, atol=0.0, equal_nan=True))
