"""Artifacts: files that named functions make of a result, kept with the fit that they are of.

::

    cache/
      nlsq-fits/
        8d1c…/                  one fit
          artifacts/
            residuals.png       what a function of that name has returned
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from typing import Any

import fsspec
import numpy as np
import pandas as pd

from dask_nlsq._errors import NlsqError, nearest
from dask_nlsq._fit import entry_folder
from dask_nlsq._result import FitResult

Artifact = Callable[[FitResult], Any]
"""Makes a figure or axes, a table, an array, text, bytes or plain values of a result."""

BUILT_IN: Mapping[str, Artifact] = {
    "plot": lambda result: result.plot(),
    "residuals": lambda result: result.plot_residuals(),
    "history": lambda result: result.plot_history(),
    "page": lambda result: result.to_html(),
    "report": lambda result: result.report(),
}
"""What can be recorded under its name alone."""


def check_artifacts(artifacts: Mapping[str, Artifact], record: tuple[str, ...]) -> dict[str, Artifact]:
    """Return all that can be recorded; refuse names that are none."""
    known = {**BUILT_IN, **artifacts}
    for name, function in artifacts.items():
        if not callable(function):
            raise NlsqError(f"The artifact {name!r} is a {type(function).__name__}; a function of a result is needed.")
        if not name or any(sign in name for sign in "/\\:") or name.startswith("."):
            raise NlsqError(f"{name!r} is no name of an artifact: it is that of a file.")
    for name in record:
        if name not in known:
            raise NlsqError(f"{name!r} is no artifact; there are {', '.join(known)}.{nearest(name, known)}")
    return known


def record(result: FitResult, name: str, function: Artifact) -> str:
    """Write what a function makes of a result beside the fit in the cache; return the path or URL of the file."""
    where = folder_of(result)
    ending, content = encoded(name, function(result))
    fs, root = fsspec.core.url_to_fs(where)
    fs.makedirs(root, exist_ok=True)
    place = f"{root}/{name}{ending}"
    with fs.transaction, fs.open(place, "wb") as file:  # whole or not at all
        file.write(content)
    return place if "://" not in where else f"{where}/{name}{ending}"


def recorded(result: FitResult) -> dict[str, str]:
    """Return the artifacts that there are of a result: paths or URLs by name."""
    where = folder_of(result)
    fs, root = fsspec.core.url_to_fs(where)
    if not fs.exists(root):
        return {}
    names = sorted(str(path).rsplit("/", 1)[-1] for path in fs.ls(root, detail=False))
    base = where if "://" in where else root
    return {name.rsplit(".", 1)[0]: f"{base}/{name}" for name in names}


def folder_of(result: FitResult) -> str:
    """Return where the artifacts of a result lie."""
    cache = result.provenance.get("cache")
    if cache is None:
        raise NlsqError("Artifacts are kept with the fit in the cache: give cache_dir= to the study.")
    return entry_folder(cache["where"], cache["entry"]) + "/artifacts"


def encoded(name: str, value: Any) -> tuple[str, bytes]:
    """Return the ending of a file and its content."""
    drawn = np.ravel(np.asarray(value, object))  # axes may come in an array
    figure = getattr(drawn[0], "figure", value) if len(drawn) else value
    if hasattr(figure, "savefig"):
        figure.savefig(image := io.BytesIO(), format="png", dpi=120)
        return ".png", image.getvalue()
    if isinstance(value, (pd.DataFrame, pd.Series)):
        frame = value.to_frame() if isinstance(value, pd.Series) else value
        frame.to_parquet(table := io.BytesIO())
        return ".parquet", table.getvalue()
    if hasattr(value, "__dask_graph__"):
        value = value.compute()
    if isinstance(value, np.ndarray):
        np.save(array := io.BytesIO(), value, allow_pickle=False)
        return ".npy", array.getvalue()
    if isinstance(value, bytes):
        return ".bin", value
    if isinstance(value, str):
        return (".html" if value.lstrip().lower().startswith("<!doctype html") else ".txt"), value.encode()
    try:
        return ".json", json.dumps(value, indent=1).encode()
    except TypeError as error:
        raise NlsqError(
            f"The artifact {name!r} is a {type(value).__name__}; a figure, a table, an array, text, bytes or plain "
            "values can be kept."
        ) from error
