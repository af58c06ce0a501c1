"""Session: a fit that leaves its state in a checkpoint on its way, and goes on from there.

The loop tells the session after every task and every sweep what there is to be written down; the session writes it when
it is due, when a signal comes, and when the fit fails. A session without a checkpoint does nothing of that.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_nlsq._checkpoint import KEEP, Checkpoints, Lock, Text, from_text, pack, to_text, unpack
from dask_nlsq._errors import (
    CheckpointCorrupt,
    CheckpointError,
    CheckpointMismatch,
    Interrupted,
    SweepError,
    warn,
)
from dask_nlsq._fit.fingerprints import compare, fingerprint
from dask_nlsq._fit.observer import Event, Observer, SweepEnd, TaskEnd
from dask_nlsq._fit.options import FitOptions
from dask_nlsq._fit.problem import Problem, Resolved
from dask_nlsq._model import Jacobian
from dask_nlsq._result import FitResult
from dask_nlsq._solver import STOPPED, LocalMinima, State, StreamState
from dask_nlsq._sweep import Finished, PartitionDigests
from dask_nlsq._system import Interrupt
from dask_nlsq._typing import Matrix, Vector

log = logging.getLogger("dask_nlsq")

_UNWRITABLE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}  # a full disk, a full quota, a file system that is read-only

INTERVAL = 60.0
"""Seconds between two commits, where nobody says."""


@dataclasses.dataclass(frozen=True)
class PassState:
    """Where a pass in batches stands: its sums, those with the sample, and the batches that are under way."""

    own: StreamState
    ahead: StreamState
    staleness: int
    expected: float
    numbers: npt.NDArray[np.int64]  # (under way,)
    stood: npt.NDArray[np.int64]  # updates that each estimate knew
    thetas: Matrix  # (under way, p)
    uncertainties: npt.NDArray[np.float64]  # (under way, p, p)


@dataclasses.dataclass(frozen=True)
class SearchState:
    """Every start of a search and where it has led, as far as that is known."""

    starts: Matrix  # (n, p)
    rows: int  # on which all of them were fitted
    screened: LocalMinima  # of each
    chosen: npt.NDArray[np.int64]  # starts whose ends were fitted on the sample; empty before
    sample_rows: int
    fitted: LocalMinima  # of each that was chosen
    finalists: npt.NDArray[np.int64]  # of those, the minima that all rows decide between, the lowest first


@dataclasses.dataclass(frozen=True)
class SavedState:
    """All that a fit must know to go on as if nothing had happened."""

    start: Vector  # (p,)
    jacobian: Jacobian  # how the kernel is formed
    tile: int | None
    notes: tuple[str, ...] = ()
    digests: npt.NDArray[np.uint64] | None = dataclasses.field(default=None, metadata={"stored": "marks"})
    # The loop.
    state: State | None = None
    others: Matrix | None = None  # starts that have not been tried
    # States that share its sweeps.
    candidates: tuple[State, ...] = dataclasses.field(default=(), metadata={"stored": "rivals"})
    seconds: Vector | None = None  # of each sweep
    sweep: Finished | None = None
    # The search from many starts.
    search: SearchState | None = None
    # The pass.
    passing: PassState | None = None
    # The end.
    result: Text | None = None


@dataclasses.dataclass(frozen=True)
class EndedRun:
    """A run that has ended: the states that shared its last sweep, and its result as plain values."""

    states: tuple[State, ...]
    text: Text

    @functools.cached_property
    def result(self) -> Mapping[str, Any]:
        """The result, which is parsed where it is asked for."""
        values: Mapping[str, Any] = from_text(self.text)
        return values


class Session(Observer):
    """A fit under way, without a checkpoint: it begins at its beginning, and writes nothing down."""

    saved: SavedState | None = None
    earlier_estimate: Vector | None = None  # (p,), where another fit had come, from which this one begins

    def __init__(self) -> None:
        self.known: dict[str, Any] = {}
        self._digests = PartitionDigests()

    def ended(self, max_nfev: int | None) -> EndedRun | None:
        """Return what was saved where that is the end, which no wider limit would move."""
        if self.saved is None or self.saved.result is None or self.saved.state is None:
            return None
        states = (self.saved.state, *self.saved.candidates)
        farther = (state.beyond is not None and (max_nfev is None or max_nfev > state.nsweeps) for state in states)
        if any(farther) or any(state.status in STOPPED for state in states):
            return None
        return EndedRun(states, self.saved.result)

    @property
    def same_files(self) -> bool:
        """Whether it is known without reading that the data are those of what was saved."""
        return False

    def digests(self) -> PartitionDigests:
        """Return what partitions are known to hold."""
        return self._digests

    def remember(
        self,
        problem: Problem,
        notes: tuple[str, ...],
        starts: Sequence[Vector] = (),
        search: SearchState | None = None,
    ) -> None:
        """Take down what does not change on the way, and the starts that a pass falls back on."""
        objective = problem.objective
        self.known = {
            "start": problem.parameters.start,
            "jacobian": objective.jacobian,
            "tile": objective.tile,
            "notes": notes,
            "others": np.array(starts, float) if len(starts) else None,
            "search": search,
        }

    def finish(self, states: Sequence[State], seconds: list[float], result: FitResult) -> FitResult:
        """Write down the end, and return the result."""
        return result


class EndedSession(Session):
    """A session of a run that has ended, which is read and never written, so that it needs no lock."""

    def __init__(self, saved: SavedState, same_files: bool) -> None:
        super().__init__()
        self.saved, self._same_files = saved, same_files
        if saved.digests is not None:
            self._digests = PartitionDigests(saved.digests)

    @property
    def same_files(self) -> bool:
        """Whether the data lie in files, which have been compared."""
        return self._same_files


class CheckpointSession(Session):
    """A session with a checkpoint."""

    def __init__(
        self,
        checkpoints: Checkpoints,
        lock: Lock,
        interrupt: Interrupt,
        options: FitOptions,
        fingerprint: Mapping[str, Any],
        saved: SavedState | None,
    ) -> None:
        super().__init__()
        self.saved = saved
        if saved is not None and saved.digests is not None:
            self._digests = PartitionDigests(saved.digests)
        self._checkpoints, self._lock, self._interrupt = checkpoints, lock, interrupt
        self._options, self._fingerprint = options, fingerprint
        # A function that makes the state, which costs something, where it is to be written down.
        self._latest: Callable[[], Mapping[str, Any]] | None = None
        # Where the lock could not be written, what others have written meanwhile is told by the numbers of generations.
        self._numbers = [] if lock.held else checkpoints.numbers()
        # The first state is written at once, unless none is wanted before the end.
        self._due = float("inf") if options.checkpoint_interval == float("inf") else 0.0
        self._sweeps = 0
        self.commits, self.seconds, self.errors = 0, 0.0, list[str]()

    @property
    def same_files(self) -> bool:
        """Whether the data lie in files, which have been compared."""
        return self._fingerprint["files"] is not None

    def notify(self, event: Event) -> None:
        """Commit where an interval has passed or sweeps enough, and leave where a signal has come."""
        if not isinstance(event, (TaskEnd, SweepEnd)) or event.saved is None:
            return
        # Kept also where nothing is due, for a signal or an error that comes before the next event.
        self._latest = event.saved
        self._sweeps += isinstance(event, SweepEnd)
        every = self._options.checkpoint_every
        due = time.monotonic() >= self._due or (every is not None and self._sweeps >= every)
        if due:
            self.write()
        self._interrupt.check()

    def write(self) -> None:
        """Commit the latest state; what fails is warned of once, and the fit goes on."""
        if self._latest is not None:
            made = self._latest()
            # A signal that comes meanwhile waits, so that what it leaves is a whole generation.
            self._interrupt.held(lambda: self._commit(made))

    def _commit(self, made: Mapping[str, Any], about: Mapping[str, Any] | None = None) -> None:
        clock = time.perf_counter()
        digests = self._digests.digests
        saved = SavedState(**{**self.known, "digests": digests if len(digests) else None, **made})
        state = saved.state
        point = None if state is None else state.point
        summary = {
            "sweeps": 0 if state is None else state.nsweeps,
            "cost": None if point is None or not np.isfinite(point.reduction.cost) else float(point.reduction.cost),
            "status": None if state is None or state.status is None else state.status.name,
            "finished": False,
            **({} if saved.sweep is None else {"partitions of the next sweep": int(saved.sweep.done.sum())}),
            **({} if saved.passing is None else {"batches": saved.passing.own.batches}),
            **(about or {}),
        }
        try:
            self._check_lock()
            keys = pack(saved, self._options.compression)
            keep = KEEP if self._options.keep is None else self._options.keep
            number = self._checkpoints.commit(keys, summary, self._fingerprint, keep)
            log.info("committed generation %d at %s", number, self._checkpoints.place)
            self.commits += 1
        except Exception as error:  # whatever a file system or a service raises
            text = f"{type(error).__name__}: {error}"
            self.errors.append(text)
            if self._options.strict:
                if isinstance(error, CheckpointError):
                    raise
                raise CheckpointError(f"The checkpoint could not be written: {text}") from error
            # One warning is enough; all are in `result.checkpoint_errors`.
            if len(self.errors) == 1:
                warn(
                    f"The checkpoint {self._checkpoints.place} could not be written ({text}). The fit goes on; older "
                    "generations are as they were."
                )
        self.seconds += time.perf_counter() - clock
        interval = INTERVAL if self._options.checkpoint_interval is None else self._options.checkpoint_interval
        # Counted from the end of a commit, so that a slow place does not take all of the time.
        self._due = time.monotonic() + interval
        self._sweeps = 0

    def _check_lock(self) -> None:
        """Refuse to write what others write by now; take the lock where that could not be written before."""
        if not self._lock.held:
            if self._checkpoints.numbers() != self._numbers:
                raise CheckpointError("Another process has written to the checkpoint meanwhile; this one does not.")
            self._lock.acquire()
        if not self._lock.mine():
            raise CheckpointError("Another process has taken the checkpoint over; this one writes no more.")

    def finish(self, states: Sequence[State], seconds: list[float], result: FitResult) -> FitResult:
        """Commit the end, and return the result with what the checkpoint has cost."""
        # Written with what the commits before have cost, and returned with the cost of this one too.
        result = self._told(result)
        made = {
            "state": states[0],
            "candidates": tuple(states[1:]),
            "seconds": np.array(seconds, float),
            "result": to_text(result.to_dict()),
        }
        about = {"finished": True, "sweeps": result.nsweeps, "cost": result.cost, "status": result.status.name}
        self._interrupt.held(lambda: self._commit(made, about))
        return self._told(result)

    def _told(self, result: FitResult) -> FitResult:
        about = {"where": str(self._checkpoints.place), "commits": self.commits, "seconds": self.seconds}
        provenance = {**result.provenance, "checkpoint": about}
        return dataclasses.replace(result, provenance=provenance, checkpoint_errors=tuple(self.errors))


@contextlib.contextmanager
def open_session(
    resolved: Resolved, options: FitOptions, current: Mapping[str, Any] | None = None
) -> Iterator[Session]:
    """Open the session of a fit: take the lock, and find where to go on from.

    Parameters
    ----------
    current : mapping, optional
        The fingerprint of the fit, where it is known already.

    Raises
    ------
    CheckpointError
        Another process writes there; nothing can be written and `strict` is True; or `resume` is True and there is
        nothing.
    CheckpointMismatch
        What is there is of another fit.
    CheckpointCorrupt
        Nothing that is there verifies.
    """
    resume, strict = options.resume, options.strict
    if options.checkpoint is None:
        if resume is True:
            raise CheckpointError("resume=True needs checkpoint=, where to go on from.")
        yield Session()
        return
    checkpoints = _checkpoints(options.checkpoint, options)
    current = fingerprint(resolved, options) if current is None else current
    with _locked(checkpoints, strict) as lock, Interrupt() as interrupt:
        newest = None if resume is False else checkpoints.newest()
        if newest is None and resume is True:
            raise CheckpointError(f"There is no checkpoint at {checkpoints.place}, and resume=True asks for one.")
        saved: SavedState | None = None
        estimate = None
        if newest is not None:
            generation, keys = newest
            same = compare(generation, current, force=resume == "force")
            there, p = unpack(SavedState, keys), resolved.parameters.p
            if same and (resume != "force" or current["files"] is not None):
                saved = _sane(there, p)
            else:  # no fingerprint tells rows in no files from others
                estimate = _last_estimate(there)
                if len(estimate) != p:
                    raise CheckpointMismatch(
                        f"The fit in the checkpoint has {len(estimate)} free parameters, this one {p}; resume=False "
                        "starts anew."
                    )
                _sane(there, p)
            log.info("going on from generation %d at %s", generation.number, checkpoints.place)
        session = CheckpointSession(checkpoints, lock, interrupt, options, current, saved)
        session.earlier_estimate = estimate
        try:
            yield session
        except (KeyboardInterrupt, Interrupted, SweepError):
            session.write()
            raise
        interrupt.check()  # one that came too late to interrupt anything is not lost


def open_ended(resolved: Resolved, options: FitOptions, where: str, current: Mapping[str, Any]) -> EndedSession | None:
    """Return the session of a run that has ended, read beside whoever writes there.

    None where the newest generation is not the end of this fit, or does not verify, or vanishes while it is read:
    `open_session` finds out under the lock what there is.

    Parameters
    ----------
    where : str
        The path or URL of the checkpoint.
    current : mapping
        The fingerprint of the fit.
    """
    if (newest := _checkpoints(where, options).peek()) is None:
        return None
    generation, keys = newest
    try:
        compare(generation, current)
        session = EndedSession(_sane(unpack(SavedState, keys), resolved.parameters.p), current["files"] is not None)
    except CheckpointError:
        return None
    return None if session.ended(options.max_nfev) is None else session


def _checkpoints(where: Any, options: FitOptions) -> Checkpoints:
    remote = "://" in str(where)
    # The options of fsspec may be those of the data; a local folder takes none.
    return Checkpoints(where, options.storage_options if remote else None)


@contextlib.contextmanager
def _locked(checkpoints: Checkpoints, strict: bool = False) -> Iterator[Lock]:
    """Hold the lock; on a full or read-only disk go on without, and every commit tries again and says what failed."""
    lock = Lock(checkpoints.place)
    try:
        lock.acquire()
    except CheckpointError:
        raise
    except Exception as error:  # whatever a file system or a service raises
        if not strict and _unwritable(error):
            log.info("the lock of %s could not be written (%s)", checkpoints.place, error)
        else:
            raise CheckpointError(
                f"Nothing can be written at {checkpoints.place}: {type(error).__name__}: {error}"
            ) from error
    try:
        yield lock
    finally:
        lock.release()


def _unwritable(error: Exception) -> bool:
    """Return whether a disk is full or may not be written, and there is no other fault in how it was named."""
    return isinstance(error, PermissionError) or getattr(error, "errno", None) in _UNWRITABLE


def _last_estimate(saved: SavedState) -> Vector:
    """Return where a fit had come: of another fit nothing else holds."""
    if saved.state is None:
        return saved.start if saved.passing is None else saved.passing.own.theta
    return saved.state.trial if saved.state.point is None else saved.state.point.theta


def _sane(saved: SavedState, p: int) -> SavedState:
    """Refuse a state that no fit of p parameters has: one whose next evaluation is not at finite numbers."""
    state = saved.state
    points = [saved.start]
    points += [] if state is None else [state.trial, *([] if state.point is None else [state.point.theta])]
    points += [rival.trial for rival in saved.candidates]
    points += [] if saved.passing is None else [saved.passing.own.theta, *saved.passing.thetas]
    points += [] if saved.search is None else [*saved.search.starts]
    if not all(isinstance(x, np.ndarray) and x.shape == (p,) and np.isfinite(x).all() for x in points):
        raise CheckpointCorrupt(f"The state in the checkpoint is not finite, or not one of {p} parameters.")
    return saved
