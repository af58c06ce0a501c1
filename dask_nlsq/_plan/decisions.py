"""Decisions: what is known before a fit, what was decided from it, and what the fit came to, as plain records."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from dask_nlsq._plan.memory import IMPORTS, TaskMemory, workers_that_fit
from dask_nlsq._plan.tiers import OptimizationGoal, WorkflowTier

SERIAL_SECONDS = 0.05
"""Seconds of a sweep below which a second worker costs more than it gains."""


@dataclasses.dataclass(frozen=True)
class PlanInputs:
    """What is known before a fit."""

    # The model.
    model: str
    n_params: int
    # The data.
    kind: str
    reader: str  # of READERS
    rows: float | None  # None: not known
    estimated: bool  # rows were estimated from a sample of the partitions
    columns: int
    row_bytes: float  # decoded
    partitions: int
    partition_rows: float | None  # of the largest
    encoded: float | None = None  # bytes stored, of the columns that are read
    encoded_partition: float | None = None  # that are in memory as stored while a partition is read, at most
    shared: bool = False  # partitions share work, and are computed together
    squares: bool = True  # the fit adds up squares and nothing else, as streaming does
    # Who computes.
    cluster: bool = False
    processes: int = 1
    threads: int = 1  # of each process
    cores: int = 1
    limit: int = 0  # bytes that each process may hold
    limit_source: str = ""
    held: int = 0  # bytes that each process holds already
    home: int = 0  # bytes that this process holds
    here: int = 0  # bytes that it may still take
    time_left: float | None = None  # seconds until a queue ends the job of this process
    # Measured, where something was run.
    compile_seconds: float | None = None
    rows_per_second: float | None = None  # of one thread
    bytes_per_second: float | None = None  # decoded, of one thread
    scratch: float = 0.0  # bytes that the compiled kernel needs for itself

    @property
    def nbytes(self) -> float | None:
        """Bytes of all rows once they are decoded."""
        return None if self.rows is None else self.rows * self.row_bytes

    def shared_by(self, fits: int) -> PlanInputs:
        """Return what one of several fits knows, which share the memory."""
        return self if fits == 1 else dataclasses.replace(self, limit=self.limit // fits, here=self.here // fits)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What a fit came to, to stand beside what was predicted."""

    sweeps: int
    sweep_seconds: float
    seconds: float
    read_bytes: float | None
    peak: int


@dataclasses.dataclass(frozen=True)
class Decisions:
    """What a plan holds; `Plan` decides it and shows it."""

    inputs: PlanInputs
    tier: WorkflowTier
    wanted: WorkflowTier
    goal: OptimizationGoal
    cache: str
    ahead: bool
    at_a_time: int
    workers: int
    task: TaskMemory
    peak: int
    growth: int
    sweeps: int
    reads: float
    read_bytes: float | None
    sweep_seconds: float | None
    seconds: float | None
    reasons: Mapping[str, str]
    advice: tuple[str, ...] = ()
    starts: int = 1
    measured: Measured | None = None

    @property
    def n_workers(self) -> int:
        """How many workers of one thread suit it on this machine: `local_cluster` starts as many, from one to all."""
        inputs = self.inputs
        if self.sweep_seconds is not None and self.sweep_seconds * self.workers < SERIAL_SECONDS:
            return 1
        # Each worker is a process of its own, whose imports count beside its one task.
        return workers_that_fit(inputs.cores, float(inputs.here), self.task.total + IMPORTS, inputs.partitions)
