"""Result cache: fits that have ended, each under a hash of all that decides about its answer.

An entry is the checkpoint of a run that has ended. What finds it again is the fingerprint that guards a checkpoint, the
token of the data, and the versions of the packages on which bits depend::

    cache/
      nlsq-fits/
        8d1c…/          one fit: state.zarr, commits, as `Checkpoints` reads them

A hit is a run that "goes on" from its end: data at a path, whose files are compared, are not read; other data are read
once and compared with what each partition held.

A hit takes no lock. A generation never changes once its record is there, so that the newest one can be read, and each
of its files hashed, beside a process that writes another. Where that is not the end of the fit, or does not verify, or
is removed meanwhile, the lock is taken and the entry looked at again: a damaged one is fitted again, and beside a
process that writes it this one fits without the cache. A local cache is bounded, least recently used first.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import dask
from dask.base import tokenize
from dask.utils import parse_bytes

from dask_nlsq._checkpoint import Checkpoints, Generation, from_text, unpack, versions
from dask_nlsq._errors import CheckpointCorrupt, CheckpointError, CheckpointMismatch, NlsqError, warn
from dask_nlsq._fit.fingerprints import differences, fingerprint, other_writers
from dask_nlsq._fit.options import FitOptions
from dask_nlsq._fit.problem import Resolved
from dask_nlsq._fit.session import SavedState, Session, open_ended, open_session
from dask_nlsq._kernel import Block
from dask_nlsq._result import FitResult

log = logging.getLogger("dask_nlsq")

_FITS = "nlsq-fits"
"""The folder of the entries, so that nothing else that lies in the cache's folder is taken for one."""

_KEY = re.compile("[0-9a-f]{32}")

_COMPARED = 50
"""Entries, the latest ones, that a miss is compared with to say what differs."""

_ALIKE = 6
"""Differences up to which another fit is a variant of this one."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """The place of a fit in a cache, and whether its result was there."""

    folder: str
    key: str
    fingerprint: Mapping[str, Any]
    session: Session
    hit: bool

    def labelled(self, result: FitResult) -> FitResult:
        """Return the result with what the cache did; on a miss, in what the most alike entry differs."""
        about: dict[str, Any] = {"where": self.folder, "entry": self.key, "hit": self.hit}
        if not self.hit and (nearest := _nearest(self.folder, self.key, self.fingerprint)):
            about["differs"] = nearest
            log.info("the result cache has another fit: %s", nearest)
        provenance = {name: value for name, value in result.provenance.items() if name != "checkpoint"}
        return dataclasses.replace(result, provenance={**provenance, "cache": about})


def cached(resolved: Resolved, options: FitOptions, run: Callable[[Session], FitResult]) -> FitResult:
    """Return the stored result of a fit, or run it and store what comes of it.

    Raises
    ------
    NlsqError
        A checkpoint was asked for as well; or no folder can be made there.
    """
    if options.checkpoint is not None:
        raise NlsqError("cache_dir= and checkpoint= both keep the state of a fit; give one of them.")
    try:
        most = int(parse_bytes(dask.config.get("nlsq.cache-dir-bytes")))
    except (TypeError, ValueError) as error:
        raise NlsqError(f'nlsq.cache-dir-bytes: {error}; give a size such as "1 GiB".') from error
    if "://" not in (folder := os.fspath(options.cache_dir)):
        try:
            (Path(folder) / _FITS).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise NlsqError(f"cache_dir is {folder!r}, where no folder can be made: {error}.") from error
    try:
        with _open_entry(resolved, options, most) as entry:
            return entry.labelled(run(entry.session))
    except CheckpointMismatch as other:
        # Rows in no files, under a name that they had before.
        log.info("the data of an entry of the result cache have changed: %s", other)
        with _open_entry(resolved, options, most, resume=False) as entry:
            return entry.labelled(run(entry.session))


def entry_folder(folder: str, key: str) -> str:
    """Return the path or URL of an entry of a cache."""
    return f"{folder.rstrip('/')}/{_FITS}/{key}"


def stored_result(folder: str, key: str, model: Any = None) -> FitResult:
    """Return the result of an entry, by its key, whatever fit it is of; a model that is given evaluates it.

    Raises
    ------
    CheckpointError
        There is none, or it is damaged.
    """
    newest = Checkpoints(entry_folder(folder, key)).newest()
    saved = None if newest is None else unpack(SavedState, newest[1])
    if saved is None or saved.result is None:
        raise CheckpointError(f"The cache {folder!r} has no result {key!r} any more: it makes room for others.")
    about = {"where": folder, "entry": key, "hit": True}
    result = FitResult.from_dict(from_text(saved.result), model)
    return dataclasses.replace(result, provenance={**result.provenance, "cache": about})


@contextlib.contextmanager
def _open_entry(resolved: Resolved, options: FitOptions, most: int, resume: str | bool = "auto") -> Iterator[Entry]:
    """Open the entry of a fit, as a session that goes on from its end where the result is there."""
    folder, current = os.fspath(options.cache_dir), {**fingerprint(resolved, options), **options.layout()}
    # Rows in memory are told apart by what they hold; others by files, or by what Dask calls them.
    rows = [p.columns for p in resolved.source.partitions if isinstance(p, Block)]
    identity = json.dumps([current, resolved.source.token, tokenize(rows), versions()], sort_keys=True)
    key = hashlib.sha256(identity.encode()).hexdigest()[:32]
    where = entry_folder(folder, key)
    with contextlib.ExitStack() as stack:
        session: Session | None = open_ended(resolved, options, where, current) if resume else None
        session = session or _opened(stack, resolved, _kept(options, where, resume), current)
        entry = Entry(folder, key, current, session, session.ended(options.max_nfev) is not None)
        yield entry
    if "://" not in folder:
        with contextlib.suppress(OSError):  # another process may remove what is looked at
            os.utime(where)
            if not entry.hit:  # which has added nothing
                _bound(Path(folder), most)


def _kept(options: FitOptions, where: str, resume: str | bool) -> FitOptions:
    """Return the options of a fit that leaves its end in an entry."""
    # Written at the end alone; what a killed run has left would be gone on from all the same.
    return dataclasses.replace(
        options, checkpoint=where, checkpoint_interval=float("inf"), checkpoint_every=None, resume=resume
    )


def _opened(
    stack: contextlib.ExitStack, resolved: Resolved, options: FitOptions, current: Mapping[str, Any]
) -> Session:
    try:
        return stack.enter_context(open_session(resolved, options, current))
    except CheckpointCorrupt as damage:
        warn(f"The result cache has a damaged entry, and the fit is made again: {damage}")
        return stack.enter_context(open_session(resolved, dataclasses.replace(options, resume=False), current))
    except CheckpointError as error:  # another process writes this entry
        log.info("the result cache is left aside: %s", error)
        return Session()


def _bound(folder: Path, most: int) -> None:
    """Remove the entries that were used least recently, until the others fit."""
    entries = sorted(_entries(folder), key=_used, reverse=True)
    total = 0
    for i, entry in enumerate(entries):
        total += sum(path.stat().st_size for path in entry.rglob("*") if path.is_file())
        if total > most and i:  # never the one that was just used
            # Records go first, lest somebody who reads it meanwhile takes it for damaged.
            for path in (entry / "commits", entry):
                shutil.rmtree(path, ignore_errors=True)


def _nearest(folder: str, key: str, current: Mapping[str, Any]) -> dict[str, str]:
    """Return in what the entry that is most alike differs; nothing where there is no other."""
    if "://" in folder:
        return {}
    found = []
    for entry in sorted(_entries(Path(folder)), key=_used, reverse=True)[:_COMPARED]:
        if entry.name != key:
            with contextlib.suppress(CheckpointError, OSError):
                there = Checkpoints(entry).describe()
                found.append(_differing(there, current))
    nearest = min(found, key=len, default={})
    return nearest if len(nearest) <= _ALIKE else {}


def _differing(there: Generation, current: Mapping[str, Any]) -> dict[str, str]:
    """Return in what another entry differs: of rows in no files there is nothing else to tell them apart."""
    here = versions()
    listed = {name: f"{there.versions.get(name)} there, {here[name]} here" for name in other_writers(there.versions)}
    return differences(there.fingerprint, current, strict=True) | listed or {"data": "other values"}


def _entries(folder: Path) -> list[Path]:
    fits = folder / _FITS
    return [path for path in fits.iterdir() if _KEY.fullmatch(path.name)] if fits.is_dir() else []


def _used(entry: Path) -> float:
    try:
        return entry.stat().st_mtime
    except OSError:  # another process has removed it
        return 0.0
