"""Checkpoints: generations of a fit's state, each committed by a record that is written last.

::

    run/
      state.zarr/                      a Zarr group of groups
        gen-00000012-9f3c0a71/         one whole generation, never overwritten
      commits/00000012.json            its record: size and hash of every file, fingerprint, versions
      lock.json                        who writes

A generation counts once its record is there and everything in it hashes to what the record says. The newest that does
is read; what is damaged is named and left alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from dask_nlsq._checkpoint.codec import GROUP, TOTAL_BYTES, CheckedKeys, Keys, check_group, check_key
from dask_nlsq._checkpoint.storage import Place, open_place
from dask_nlsq._display import Fold, Fragment, Table
from dask_nlsq._errors import CheckpointCorrupt, CheckpointError, NlsqError, warn

if TYPE_CHECKING:
    from zarr.abc.store import Store

log = logging.getLogger("dask_nlsq")

FORMAT = 1
"""Of what is written; older ones are read for ever."""

KEEP = 5
"""Generations that are kept by default."""

_TRIES = 10
# What is read of a checkpoint that a stranger may have made, at most.
_RECORD_BYTES = 2**24
_FILES = 100_000
_ROOT = json.dumps(GROUP).encode()
_COMMIT = re.compile(r"(\d{8})\.json")
_GENERATION = re.compile(r"gen-(\d{8})-[0-9a-f]{8}")
# What `Folder` writes beside the place of a file, and cannot remove where its process is killed.
_HALF = re.compile(r"\.(\d{8}|lock)\.json\.[0-9a-f]{8}")
_PACKAGES = ("dask-nlsq", "jax", "jaxlib", "numpy", "dask", "zarr")


@dataclasses.dataclass(frozen=True)
class Generation:
    """One committed generation: what its record says.

    Attributes
    ----------
    number : int
        Counted from 1.
    created : str
        When, in UTC.
    about : mapping
        What the fit said of itself: sweeps, cost, status, whether it is finished.
    fingerprint : mapping
        What must be the same for a fit to go on from here.
    versions : mapping
        Of Python and packages.
    files : mapping
        Size and SHA-256 of every file.
    """

    number: int
    folder: str
    created: str
    about: Mapping[str, Any]
    fingerprint: Mapping[str, Any]
    versions: Mapping[str, Any]
    files: Mapping[str, tuple[int, str]]

    @property
    def nbytes(self) -> int:
        """Bytes of all files."""
        return sum(size for size, _ in self.files.values())


class _Gone(CheckpointError):
    """A generation that was listed has been removed."""


class Checkpoints:
    """The checkpoints that a fit left at a path, a URL or in a Zarr store.

    Parameters
    ----------
    where : str, path or zarr.abc.store.Store
        As given to ``fit(checkpoint=...)``.
    storage_options : dict, optional
        Passed to fsspec, for URLs.

    Examples
    --------
    >>> import tempfile, numpy as np, dask_nlsq
    >>> run = tempfile.mkdtemp() + "/run"
    >>> x = np.linspace(0, 1, 100)
    >>> _ = dask_nlsq.fit("line", x, 1 + 2 * x, checkpoint=run)
    >>> checkpoints = dask_nlsq.Checkpoints(run)
    >>> bool(checkpoints.list()["finished"].iloc[-1]), checkpoints.verify()
    (True, {})
    """

    def __init__(self, where: str | os.PathLike[str] | Store, storage_options: dict[str, Any] | None = None) -> None:
        self.place: Place = open_place(where, storage_options)

    # --- reading ------------------------------------------------------------------------------------------------------

    def numbers(self) -> list[int]:
        """Return the numbers of the generations whose record is there."""
        matches = (_COMMIT.fullmatch(name) for name in self.place.names("commits"))
        return [int(match[1]) for match in matches if match]

    def __iter__(self) -> Iterator[Generation]:
        for number in self.numbers():
            try:
                with self._listed(number):
                    generation = self.describe(number)
            except _Gone:
                continue
            yield generation

    def describe(self, number: int | None = None) -> Generation:
        """Return what the record of a generation says, by default of the newest.

        Raises
        ------
        CheckpointCorrupt
            The record does not hash to what it says, or is none.
        CheckpointError
            There is no such generation.
        """
        if number is None:
            numbers = self.numbers()
            if not numbers:
                raise CheckpointError(f"There is no checkpoint at {self.place}.")
            number = numbers[-1]
        name = f"commits/{number:08d}.json"
        data = self.place.read(name, _RECORD_BYTES)
        if data is None:
            raise CheckpointError(f"There is no generation {number} at {self.place}; there are {self.numbers()}.")
        try:
            record = json.loads(data)
            # The record is a text within JSON: written again, what was parsed need not have the same bytes, or the same
            # hash.
            text, digest = record["record"], record["sha256"]
            whole = isinstance(text, str) and hashlib.sha256(text.encode()).hexdigest() == digest
            contents = json.loads(text) if whole else {}
        # JSON that is nested deeply enough raises RecursionError.
        except (ValueError, KeyError, TypeError, RecursionError, AttributeError) as error:
            raise CheckpointCorrupt(f"{name} is no record of a commit.") from error
        if not whole or set(record) != {"record", "sha256"}:
            raise CheckpointCorrupt(f"{name} does not hash to what it says.")
        return _generation(contents, number, name)

    def read(self, generation: Generation) -> CheckedKeys:
        """Return the files of a generation, each hashed, and none decoded.

        Raises
        ------
        CheckpointCorrupt
            A file is missing, changed or unknown, or is nothing that a checkpoint holds.
        """
        keys, folder = {}, f"state.zarr/{generation.folder}"
        found = self.place.read_all({f"{folder}/{key}": size for key, (size, _) in generation.files.items()})
        for key, (size, digest) in generation.files.items():
            data = found[name := f"{folder}/{key}"]
            if data is None:
                raise CheckpointCorrupt(f"{name} is missing.")
            if len(data) != size or hashlib.sha256(data).hexdigest() != digest:
                raise CheckpointCorrupt(f"{name} is not what was written.")
            keys[key] = data
        return check_group(keys)

    def newest(self) -> tuple[Generation, CheckedKeys] | None:
        """Return the newest generation that verifies, with a warning where it is not the last; None if there is none.

        Raises
        ------
        CheckpointCorrupt
            There are generations, and none of them verifies.
        CheckpointError
            A fit removes them faster than they are read.
        """
        for _ in range(_TRIES):
            with contextlib.suppress(_Gone):  # a newer one is there
                return self._newest()
        raise CheckpointError(
            f"The generations of the checkpoint {self.place} go faster than they are read; wait for the fit that "
            "writes there, or give it a longer checkpoint_interval."
        )

    def peek(self) -> tuple[Generation, CheckedKeys] | None:
        """Return the newest committed generation if it verifies, without a word where there is none or it does not.

        This needs no lock: what is committed never changes, and what another process is still writing has no record. A
        generation that a writer removes while it is read is none; `newest`, under the lock, says what is wrong.
        """
        with contextlib.suppress(Exception):  # whatever a file system or a service raises
            if numbers := self.numbers():
                generation = self.describe(numbers[-1])
                return generation, self.read(generation)
        return None

    def _newest(self) -> tuple[Generation, CheckedKeys] | None:
        faults = []
        for number in reversed(self.numbers()):
            try:
                with self._listed(number):
                    generation = self.describe(number)
                    keys = self.read(generation)
            except CheckpointCorrupt as error:
                faults.append(f"generation {number}: {error}")
                continue
            # Where a record was damaged, the faults say so already.
            torn = [n for n in self._torn() if n > number]
            if torn and not faults:
                faults.append(f"generation {max(torn)} was not committed")
            if faults:
                warn(f"The checkpoint {self.place} goes on from generation {number}. Not used: {'; '.join(faults)}.")
            return generation, keys
        # A first generation without a record is a fit that was stopped before its first commit; later ones had a record
        # before them.
        if faults or any(number > 1 for number in self._torn()):
            contents = "; ".join(faults) or "the records of its commits are missing"
            raise CheckpointCorrupt(
                f"No generation of the checkpoint {self.place} can be used: {contents}. resume=False starts anew."
            )
        if self._torn():
            warn(f"The first generation of the checkpoint {self.place} was not committed; the fit starts anew.")
        return None

    @contextlib.contextmanager
    def _listed(self, number: int) -> Iterator[None]:
        """Tell a generation that a fit has removed since it was listed, whose record went first, from a damaged one."""
        try:
            yield
        except CheckpointError as error:
            if number in self.numbers():
                raise
            raise _Gone(f"Generation {number} at {self.place} was removed meanwhile.") from error

    def _torn(self) -> list[int]:
        """Return the numbers of generations that have no record."""
        matches = [_GENERATION.fullmatch(name) for name in self.place.names("state.zarr")]
        numbers = set(self.numbers())
        return [int(match[1]) for match in matches if match and int(match[1]) not in numbers]

    def list(self) -> pd.DataFrame:
        """Return a table of the generations: when, how many sweeps, cost, status, bytes; damaged records are named."""
        rows: dict[int, dict[str, Any]] = {}
        for number in self.numbers():
            try:
                with self._listed(number):
                    generation = self.describe(number)
                rows[number] = {
                    "created": generation.created,
                    **generation.about,
                    "bytes": generation.nbytes,
                    "fault": "",
                }
            except _Gone:
                continue
            except CheckpointCorrupt as error:
                rows[number] = {"fault": str(error)}
        columns = ["created", "sweeps", "cost", "status", "finished", "bytes", "fault"]
        table = pd.DataFrame([*rows.values()], index=pd.Index([*rows], name="generation"))
        return table.reindex(columns=columns + [c for c in table.columns if c not in columns])

    def __repr__(self) -> str:
        return f"<Checkpoints at {self.place}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: damaged records, and the table of `list`, the newest generation first."""
        table = self.list().iloc[::-1]
        faults = table.pop("fault")
        cells = table.astype(object).where(table.notna(), "").reset_index().to_dict("split")
        newest, older = (Table(rows, cells["columns"]) for rows in (cells["data"][:KEEP], cells["data"][KEEP:]))
        return Fragment(
            title=f"Checkpoints at {self.place}",
            notes=[f"generation {number}: {fault}" for number, fault in faults.items() if fault],
            parts=[
                newest if newest.rows else "There is no generation.",
                *([Fold(f"{len(older.rows):,} older", [older])] if older.rows else []),
            ],
        ).html()

    def verify(self) -> dict[int, str]:
        """Hash every file of every generation; return what is wrong with which."""
        faults = {}
        for number in self.numbers():
            try:
                with self._listed(number):
                    self.read(self.describe(number))
            except _Gone:
                continue
            except CheckpointCorrupt as error:
                faults[number] = str(error)
        return faults

    # --- writing ------------------------------------------------------------------------------------------------------

    def commit(self, keys: Keys, about: Mapping[str, Any], fingerprint: Mapping[str, Any], keep: int = KEEP) -> int:
        """Write a generation, and its record last; then remove those that are too many. Return its number.

        Raises
        ------
        Exception
            It could not be written; those before it are as they were. A file system raises an OSError, a service what
            it likes.
        """
        # A number that was torn is not used again, so that no folder is written twice.
        number = max([*self.numbers(), *self._torn(), 0]) + 1
        folder = f"gen-{number:08d}-{uuid.uuid4().hex[:8]}"
        if self.place.read("state.zarr/zarr.json", len(_ROOT)) is None:
            self.place.write({"state.zarr/zarr.json": _ROOT})
        try:
            self.place.write({f"state.zarr/{folder}/{key}": data for key, data in keys.items()})
            record = {
                "format": FORMAT,
                "generation": number,
                "folder": folder,
                "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "about": dict(about),
                "fingerprint": dict(fingerprint),
                "versions": versions(),
                "files": {key: [len(data), hashlib.sha256(data).hexdigest()] for key, data in keys.items()},
            }
            text = json.dumps(record)
            sealed = {"record": text, "sha256": hashlib.sha256(text.encode()).hexdigest()}
            # Created and not replaced: of two processes that both take the lock for theirs, the second fails here.
            self.place.create(f"commits/{number:08d}.json", json.dumps(sealed, indent=1).encode())
        except Exception:
            self._discard(number, folder)
            raise
        try:
            self.prune(keep)
        except Exception as error:  # the next commit will try again
            log.info("old generations at %s could not be removed: %s", self.place, error)
        return number

    def _discard(self, number: int, folder: str) -> None:
        """Remove what has no record, unless only the answer was lost and the record is there."""
        with contextlib.suppress(Exception):  # without a record it counts for nothing
            record = self.place.read(f"commits/{number:08d}.json", _RECORD_BYTES)
            if record is None or folder.encode() not in record:
                self.place.remove(f"state.zarr/{folder}")

    def prune(self, keep: int = KEEP) -> tuple[int, ...]:
        """Remove all generations but the newest so many, at least two, and what was never committed.

        Returns
        -------
        tuple of int
            The numbers of the generations that were removed.
        """
        numbers = self.numbers()
        # Where the newest does not verify, the one before it is read.
        old = numbers[: max(0, len(numbers) - max(keep, 2))]
        # Records go first: a folder without a record is no generation, and a record without its folder would be a
        # damaged one.
        for number in old:
            self.place.remove(f"commits/{number:08d}.json")
        kept = set(numbers) - set(old)
        for name in self.place.names("state.zarr"):
            match = _GENERATION.fullmatch(name)
            if match and int(match[1]) not in kept:
                self.place.remove(f"state.zarr/{name}")
        for folder in ("", "commits/"):
            for name in self.place.names(folder.rstrip("/")):
                if _HALF.fullmatch(name):
                    self.place.remove(folder + name)
        return tuple(old)

    def export(
        self,
        where: str | os.PathLike[str] | Store,
        number: int | None = None,
        storage_options: dict[str, Any] | None = None,
    ) -> None:
        """Copy a generation that verifies, by default the newest, to another place, where it is the first one.

        Raises
        ------
        CheckpointError
            Something is there already.
        """
        target = Checkpoints(where, storage_options)
        if target.numbers():
            raise CheckpointError(f"There are checkpoints at {target.place} already.")
        if number is None:
            newest = self.newest()
            if newest is None:
                raise CheckpointError(f"There is no checkpoint at {self.place}.")
            generation, keys = newest
        else:
            generation = self.describe(number)
            keys = self.read(generation)
        target.commit(keys, generation.about, generation.fingerprint)


def versions() -> dict[str, str]:
    """Return what the bits of a fit depend on, beside what it was asked."""
    return {"python": platform.python_version(), "machine": machine(), **_packages()}


@functools.cache
def _packages() -> dict[str, str]:
    """Return the versions of packages, which do not change in a process."""
    return {name: importlib.metadata.version(name) for name in _PACKAGES}


@functools.cache
def machine() -> str:
    """Return the instruction set of this machine, as far as it decides about bits."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return platform.machine()
    # XLA and BLAS choose their vector instructions by these, and with them the order of sums.
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    wide = {"avx512f", "avx2", "fma", "avx", "sse4_2", "asimd", "sve"} & set(flags[1].split() if flags else ())
    return " ".join([platform.machine(), *sorted(wide)])


def _generation(contents: Mapping[str, Any], number: int, name: str) -> Generation:
    """Return what a record says, or refuse what no record would say."""
    try:
        if contents["format"] > FORMAT:
            raise CheckpointError(f"{name} is of format {contents['format']}; this version reads up to {FORMAT}.")
        folder, files = contents["folder"], contents["files"]
        match = _GENERATION.fullmatch(folder)
        if not match or int(match[1]) != number or contents["generation"] != number:
            raise CheckpointCorrupt(f"{name} is of another generation.")
        sizes = {key: (size, digest) for key, (size, digest) in files.items()}
        sane = all(type(s) is int and s >= 0 and isinstance(d, str) for s, d in sizes.values())
        if not sane or len(sizes) > _FILES or sum(s for s, _ in sizes.values()) > TOTAL_BYTES:
            raise CheckpointCorrupt(f"{name} lists more than a checkpoint holds.")
        for key in sizes:
            check_key(key)
        about, fingerprint, made_by = contents["about"], contents["fingerprint"], contents["versions"]
        if not all(isinstance(part, dict) for part in (about, fingerprint, made_by)):
            raise CheckpointCorrupt(f"{name} is no record of a commit.")
        return Generation(number, folder, str(contents["created"]), about, fingerprint, made_by, sizes)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, NlsqError):
            raise
        raise CheckpointCorrupt(f"{name} is no record of a commit.") from error
