"""Files of a `StreamingFitter`: what they hold, and what must be the same for one to be gone on from."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from dask_nlsq._checkpoint import Text, archive, from_text, to_text, versions
from dask_nlsq._errors import CheckpointCorrupt, NlsqError
from dask_nlsq._fit import differences, other_writers
from dask_nlsq._kernel import Block, once, program
from dask_nlsq._model import Objective, Parameters
from dask_nlsq._solver import Streaming, StreamState, begin
from dask_nlsq._sources import Columns
from dask_nlsq._streaming.relinearise import Slices
from dask_nlsq._streaming.reservoir import Drawn
from dask_nlsq._typing import Matrix, Vector

_FORMATS = (2, 3)
"""Formats that are read; the last one is written."""


@dataclasses.dataclass(frozen=True)
class Rows:
    """Rows that wait for the first estimate."""

    columns: Matrix  # (columns, rows): x, y, and the weight where there is one
    dropped: int

    @classmethod
    def of(cls, block: Block) -> Rows:
        """Return the rows of a block."""
        return cls(np.stack(block.wide().columns), block.dropped)

    def block(self, weighted: bool) -> Block:
        """Return the rows as a block."""
        *x, y = self.columns[:-1] if weighted else self.columns
        return Block(tuple(x), y, self.columns[-1] if weighted else None, self.dropped)


@dataclasses.dataclass(frozen=True)
class SavedFitter:
    """What a file holds."""

    identity: Text  # what must be the same for it to be gone on from
    weighted: bool
    start: Vector  # which may have been guessed
    waiting: Rows | None
    sample: Drawn
    state: StreamState | None
    history: Matrix  # (updates, columns)
    seconds: float
    slices: Slices | None = None  # which files of format 2 lack


def identify(parameters: Parameters, objective: Objective, columns: Columns, solver: Streaming) -> dict[str, Any]:
    """Return what must be the same for a file to be gone on from."""
    prior, start = parameters.prior, parameters.start
    computes = functools.partial(program, objective, start)
    return {
        "format": _FORMATS[-1],
        "parameters": list(parameters.names),
        "free": list(parameters.free),
        "fixed": dict(parameters.fixed),
        "tied": {name: tie.text for name, tie in parameters.tied.items()},
        "prior": None if prior is None else [prior.mean.tolist(), prior.weight.tolist()],
        "nan_policy": columns.nan_policy,
        "columns": [*columns.x, columns.y],
        "lower": parameters.lower.tolist(),
        "upper": parameters.upper.tolist(),
        "absolute_sigma": solver.absolute_sigma,
        "forget": solver.forget,
        "robust": solver.robust,
        "model": once(objective, ("program", start.tobytes()), computes),
    }


def seal(identity: Mapping[str, Any]) -> Text:
    """Return what must be the same, with the versions that wrote it, as a file holds it."""
    return to_text({**identity, "versions": versions()})


def write(path: str | os.PathLike[str], saved: SavedFitter) -> None:
    """Write a file, complete, or leave the old one as it is."""
    archive.save(path, saved)


def read(path: str | os.PathLike[str]) -> tuple[SavedFitter, dict[str, Any]]:
    """Return what a file holds, in the present format, and what it says must be the same.

    Raises
    ------
    CheckpointCorrupt
        The file is damaged.
    """
    try:
        saved = archive.load(SavedFitter, path)
        there = dict(from_text(saved.identity))
        saved = _upgraded(saved, there.get("forget"))
    except (CheckpointCorrupt, TypeError, ValueError, IndexError) as error:
        raise CheckpointCorrupt(f"{str(path)!r} is no whole file of a StreamingFitter: {error}") from error
    if there.get("format") in _FORMATS:
        there["format"] = _FORMATS[-1]
        there.setdefault("robust", False)
    return saved, there


def check(path: str | os.PathLike[str], there: dict[str, Any], here: dict[str, Any]) -> None:
    """Refuse a file of another model or other options.

    Raises
    ------
    NlsqError
        What differs is listed.
    """
    strict = not other_writers(there.pop("versions", {}))
    if "model" not in there:  # which files had not at first
        del here["model"]
    if text := differing(there, here, strict):
        raise NlsqError(
            f"{str(path)!r} is of another fit. {text}. Load it with the model and options that it was saved with."
        )


def differing(there: Mapping[str, Any], here: Mapping[str, Any], strict: bool = True) -> str:
    """Return what differs between two fitters, as text."""
    return "; ".join(f"{name}: {text}" for name, text in differences(there, here, strict).items())


def _upgraded(saved: SavedFitter, forget: float | None) -> SavedFitter:
    """Return what a file of format 2 holds with what it lacks, as if all rows had been linearised as one batch."""
    state = saved.state
    if state is None or saved.slices is not None or state.sums is None:
        return saved
    sums, share = state.sums, state.rows / max(state.sums.rows, 1)
    slices = Slices(share * sums.gram[None], *[np.array([float(state.rows)])] * 2)
    count = len(saved.sample.rows)
    sample = dataclasses.replace(saved.sample, place=np.zeros(count), theta=np.tile(state.theta, (count, 1)))
    if forget is None:
        state = dataclasses.replace(state, bank=begin(sums), squares=float(sums.rows))
    elif forget < 1:  # in the long run, with batches of like information
        settled = dataclasses.replace(sums, meat=sums.gram[:-1, :-1] / (1.0 + forget))
        state = dataclasses.replace(state, sums=settled, squares=sums.rows / (1.0 + forget))
    return dataclasses.replace(saved, slices=slices, sample=sample, state=state)
