"""Saved results: as plain values, as text, and as files."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from dask_nlsq._checkpoint import Checkpoints, Text, archive, from_text, pack, to_text, unpack
from dask_nlsq._errors import CheckpointError, CheckpointMismatch, NlsqError
from dask_nlsq._plan import Plan
from dask_nlsq._result import model_record
from dask_nlsq._solver import Statistics, Status

if TYPE_CHECKING:
    from zarr.abc.store import Store

    from dask_nlsq._result.result import FitResult


def to_dict(result: FitResult) -> dict[str, Any]:
    """Return everything but the function of the model as plain Python values that JSON can hold."""
    living = result.payload is not None and result.columns is not None
    return {
        "params": result.params.to_dict(),
        "stderr": result.stderr.to_dict(),
        "cov": result.pcov.tolist(),
        "cost": result.cost,
        "optimality": result.optimality,
        "statistics": dataclasses.asdict(result.statistics),
        "n_dropped": result.n_dropped,
        "condition_number": result.condition_number,
        "active_mask": result.active_mask.tolist(),
        "success": result.success,
        "status": int(result.status),
        "message": result.message,
        "nsweeps": result.nsweeps,
        "history": {name: list(values) for name, values in result.sweeps.items()},
        "provenance": dict(result.provenance),
        "notes": list(result.notes),
        "checkpoint_errors": list(result.checkpoint_errors),
        "absolute_sigma": result.absolute_sigma,
        "plan": None if result.plan is None else result.plan.to_dict(),
        "starts": None if result.starts is None else result.starts.to_dict(orient="list"),
        "model": model_record.describe(*result._model(), result.popt) if living else result.recorded,
        "parts": {key: to_dict(part) for key, part in result.parts.items()},
    }


def to_json(result: FitResult) -> str:
    """Return `to_dict` as JSON text; infinities are written as ``Infinity``, as Python's json does."""
    return json.dumps(result.to_dict(), indent=2)


def from_dict(cls: type[FitResult], values: Mapping[str, Any], model: Any = None) -> FitResult:
    """Rebuild a result from `to_dict`.

    Parameters
    ----------
    values : mapping
    model : callable, Model, str or mapping, optional
        That was fitted; the result predicts and draws bands only with it. Of a fit of several data sets, a mapping from
        their keys to their models.

    Raises
    ------
    CheckpointMismatch
        The model has other parameters than the result, or other values at the estimates; or a mapping has other keys.
    CheckpointError
        Nothing is recorded of the model.
    """
    models = model if isinstance(model, Mapping) else {}
    model = None if isinstance(model, Mapping) else model
    parts = values.get("parts", {})
    if unknown := [key for key in models if key not in parts]:
        raise CheckpointMismatch(f"model= has the keys {unknown}, and the result is of the data sets {list(parts)}.")
    if model is not None and parts:
        raise CheckpointError(
            f"The result is of several data sets, each with a model: give model={{key: model}}, of {list(parts)}."
        )
    result = rebuild(cls, values)
    if parts:
        living = {key: from_dict(cls, part, models.get(key)) for key, part in parts.items()}
        result = dataclasses.replace(result, parts=living)
    model = model_record.formula(result.recorded) if model is None else model
    if model is None:
        return result
    payload, columns = model_record.restore(model, result.recorded, result.names, result.popt)
    return dataclasses.replace(result, payload=payload, columns=columns)


def rebuild(cls: type[FitResult], values: Mapping[str, Any]) -> FitResult:
    """Rebuild a result from `to_dict` without the model of it, which is not looked at."""
    return cls(
        names=tuple(values["params"]),
        popt=np.array(list(values["params"].values()), float),
        pcov=np.array(values["cov"], float),
        cost=values["cost"],
        optimality=values["optimality"],
        statistics=Statistics(**values["statistics"]),
        n_dropped=values["n_dropped"],
        condition_number=values["condition_number"],
        active_mask=np.array(values["active_mask"]),
        status=Status.of(values["status"]),
        sweeps={name: list(column) for name, column in values["history"].items()},
        provenance=values["provenance"],
        notes=tuple(values["notes"]),
        # Results of earlier versions lack what is looked up with a default.
        checkpoint_errors=tuple(values.get("checkpoint_errors", ())),
        absolute_sigma=values.get("absolute_sigma", False),
        plan=None if values.get("plan") is None else Plan.from_dict(values["plan"]),
        starts=None if values.get("starts") is None else starts_frame(values["starts"]),
        recorded=values.get("model"),
        parts={key: rebuild(cls, part) for key, part in values.get("parts", {}).items()},
    )


def save(
    result: FitResult,
    where: str | os.PathLike[str] | Store,
    *,
    storage_options: dict[str, Any] | None = None,
    compression: str | None = None,
) -> None:
    """Write the result, without the function of the model.

    Parameters
    ----------
    where : str, path or zarr.abc.store.Store
        A path that ends with ``.zip``: one file, a Zarr group in a zip. Otherwise a folder, an fsspec URL or a Zarr
        store, to which the result is added as the newest generation of a checkpoint; see `dask_nlsq.Checkpoints`.
    storage_options : dict, optional
        Passed to fsspec, for URLs.
    compression : {"gzip"}, optional

    Raises
    ------
    NlsqError
        A file is asked for at a URL.
    """
    written = _Written(to_text(result.to_dict()))
    if (file := _file(where)) is not None:
        archive.save(file, written, compression)
        return
    about = {"sweeps": result.nsweeps, "cost": result.cost, "status": result.status.name, "finished": True}
    # Without a fingerprint, for no fit goes on from a result alone.
    Checkpoints(where, storage_options).commit(pack(written, compression), about, {})


def load(
    cls: type[FitResult],
    where: str | os.PathLike[str] | Store,
    *,
    model: Any = None,
    storage_options: dict[str, Any] | None = None,
) -> FitResult:
    """Read a result that `save` or a fit with a checkpoint wrote.

    Parameters
    ----------
    where : str, path or zarr.abc.store.Store
        The file, folder, URL or store.
    model : callable, Model, str or mapping, optional
        That was fitted; the result predicts and draws bands only with it. Of a fit of several data sets, a mapping from
        their keys to their models, which ``parts`` then evaluate.
    storage_options : dict, optional
        Passed to fsspec, for URLs.

    Raises
    ------
    CheckpointMismatch
        The model has other parameters than the result, or other values at the estimates.
    CheckpointError
        There is no result, or the fit has not ended, or what is there does not verify; or `model` is given, and
        nothing is recorded of it.

    Examples
    --------
    >>> import numpy as np, dask_nlsq, tempfile
    >>> x = np.arange(4.0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     dask_nlsq.fit("a + b*x", x, 1 + 2 * x).save(f"{folder}/r.zip")
    ...     again = dask_nlsq.FitResult.load(f"{folder}/r.zip", model="a + b*x")
    >>> again.predict(np.array([5.0])).round(6).tolist()
    [11.0]
    """
    if (file := _file(where)) is not None:
        if not file.exists():
            raise CheckpointError(f"There is no file {str(file)!r}.")
        text, what = archive.load(_Written, file).result, str(file)
    else:
        checkpoints = Checkpoints(where, storage_options)
        newest = checkpoints.newest()
        if newest is None:
            raise CheckpointError(f"There is no checkpoint at {checkpoints.place}.")
        text, what = unpack(_Written, newest[1]).result, f"generation {newest[0].number} at {checkpoints.place}"
    if text is None:
        raise CheckpointError(
            f"The fit has not ended: {what} is on its way. Call fit with the same checkpoint to go on."
        )
    return cls.from_dict(from_text(text), model)


@dataclasses.dataclass(frozen=True)
class _Written:
    """A result as JSON; a checkpoint holds more beside it."""

    result: Text | None = None


def _file(where: object) -> Path | None:
    """Return the path of the one file that is meant, or None where it is a folder, a URL or a store."""
    if not isinstance(where, (str, os.PathLike)) or not os.fspath(where).endswith(".zip") or os.path.isdir(where):
        return None
    if "://" in os.fspath(where):
        raise NlsqError(f"{where!r} is a URL: one file is on a local disk; leave .zip away for a folder there.")
    return Path(where)


def starts_frame(columns: Mapping[str, list[Any]]) -> pd.DataFrame:
    """Return a table of starts, numbered from 0: the one that was given."""
    table = pd.DataFrame(dict(columns))
    table.index.name = "start"
    return table
