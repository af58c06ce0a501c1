"""Plan: what a fit is going to do, decided from its inputs by arithmetic alone, before anything is read.

`make_plan` takes `PlanInputs` and `WorkflowConfig` and knows no clock, no file and no Dask. What it decides from is in
the plan, so that a plan can be made again, printed, sent and compared.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping
from typing import Any

from dask.utils import format_bytes, format_time

from dask_nlsq._errors import NlsqError, PlanError
from dask_nlsq._kernel import MANY_ROWS, PER_THREAD, TILE
from dask_nlsq._plan import render
from dask_nlsq._plan.decisions import Decisions, Measured, PlanInputs
from dask_nlsq._plan.memory import (
    READERS,
    SHARE,
    TaskMemory,
    standard_memory,
    takes_several,
    task_memory,
    tasks_that_fit,
)
from dask_nlsq._plan.tiers import OptimizationGoal, WorkflowTier, get_memory_tier, member, select_tier
from dask_nlsq._plan.workflow import WorkflowConfig

SWEEPS_FROM_AFAR = 8
"""Sweeps of a fit without a sample, from 5 to 15 as a rule."""

SWEEPS_FROM_NEAR = 4
"""Sweeps of a fit that begins from the fit of a sample and goes on to the rounding level."""

TASK_SECONDS = 2e-3
"""What a task costs on a cluster; a partition that takes less is better cut larger."""


@dataclasses.dataclass(frozen=True)
class Plan(Decisions):
    """What a fit is going to do, and why.

    ``print(plan)`` is a page; `explain` gives each decision with its numbers; `report` sets what was predicted beside
    what was measured, once the fit is done.

    Attributes
    ----------
    tier : WorkflowTier
        How the fit goes about the data.
    wanted : WorkflowTier
        The tier of the table, where that is another one: one that does not fit, or is not there yet.
    goal : OptimizationGoal
        What it aims at.
    cache : {"persist", "none"}
        Whether partitions stay in memory between sweeps.
    at_a_time, workers : int
        Tasks that a process runs at a time, and all processes together.
    task : TaskMemory
        Bytes of one task, part by part.
    peak : int
        Bytes of a process at its largest.
    starts : int
        From how many it begins.
    sweeps, reads : float
        Passes over the rows, and how often their bytes are read.
    read_bytes, sweep_seconds, seconds : float or None
        Bytes read in all; seconds of a sweep and of the fit, where a dry run has measured how fast things go.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> plan = dask_nlsq.plan("line", np.arange(9.0), np.arange(9.0))
    >>> str(plan.tier), plan.reads, dask_nlsq.Plan.from_dict(plan.to_dict()) == plan
    ('STANDARD', 1.0, True)
    """

    def explain(self) -> str:
        """Return every decision with its reason and its numbers."""
        return render.explain(self)

    def report(self) -> str:
        """Return what was predicted beside what was measured, as text."""
        return render.report(self)

    @property
    def facts(self) -> PlanInputs:
        """`inputs` under their old name."""
        warnings.warn("Plan.facts is now Plan.inputs.", DeprecationWarning, stacklevel=2)
        return self.inputs

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        values = dataclasses.asdict(self)
        values["facts"] = values.pop("inputs")  # as they were called when the format was made
        return values | {
            "tier": self.tier.value,
            "wanted": self.wanted.value,
            "goal": self.goal.value,
            "reasons": dict(self.reasons),
            "advice": list(self.advice),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Plan:
        """Rebuild a plan from `to_dict`."""
        values, measured = dict(values), values["measured"]
        inputs = values.pop("facts")
        return cls(
            **{
                **values,
                "inputs": PlanInputs(**inputs),
                "tier": member(WorkflowTier, "tier", values["tier"]),
                "wanted": member(WorkflowTier, "wanted", values["wanted"]),
                "goal": member(OptimizationGoal, "goal", values["goal"]),
                "task": TaskMemory(**values["task"]),
                "advice": tuple(values["advice"]),
                "measured": None if measured is None else Measured(**measured),
            }
        )

    def __str__(self) -> str:
        return render.page(self)

    def _repr_html_(self) -> str:
        """Return what a notebook shows: advice first, then the decisions with their reasons."""
        return render.fragment_of(self).html()


def make_plan(inputs: PlanInputs, config: WorkflowConfig) -> Plan:
    """Decide what a fit will do.

    Raises
    ------
    PlanError
        Something does not fit into memory; the message has both numbers and the remedy.
    NlsqError
        What was asked for is not there, or contradicts itself.
    """
    reasons: dict[str, str] = {}
    goal = _goal(config, reasons)
    tier, wanted = _tier(inputs, config, goal, reasons)
    cache = _cache(inputs, config, tier, goal, reasons)
    gathered = inputs.cluster and tier is WorkflowTier.STANDARD  # here, and not on the workers
    kept = (inputs.nbytes or 0.0) / inputs.processes if cache == "persist" and _reads_anything(inputs) else 0.0
    try:
        task, ahead, at_a_time = _tasks(inputs, 0.0 if gathered else kept, goal, reasons)
    except PlanError:
        asked = config.cache == "persist" or (tier is WorkflowTier.STANDARD and reasons["tier"] == _ASKED)
        if not kept or inputs.shared or asked:
            raise
        tier, cache, kept, gathered = WorkflowTier.CHUNKED, "none", 0.0, False
        reasons["tier"] += "; CHUNKED, for rows that are kept would leave too little for reading"
        reasons["cache"] = "rows that are kept would leave too little for reading"
        task, ahead, at_a_time = _tasks(inputs, kept, goal, reasons)
    workers = min(inputs.processes * at_a_time, max(inputs.partitions, 1))
    # What is kept passes through the tasks: the partitions that they are reading are not there twice.
    passing = inputs.row_bytes * (inputs.partition_rows or 0.0) if kept else 0.0
    growth = int(max(min(at_a_time, inputs.partitions) * (task.total - passing) + kept, task.total))
    if gathered:
        growth = int((inputs.nbytes or 0.0) + task.slab + task.tile + task.scratch)
    sweeps, reads = _reads(inputs, cache, reasons, config.starts > 1)
    if config.starts > 1:
        reasons["starts"] = "fitted to some of the rows; minima that these cannot tell apart share the sweeps over all"
    if tier.streams:
        # `goal="fast"` leaves out the sweep that certifies the end of the pass.
        sweeps = 1 if goal is OptimizationGoal.FAST else 2
        reads = round(sweeps + min(1.0, 16 / max(inputs.partitions, 1)), 3)
        reasons["reads"] = "a sample, one pass in batches" + (", one sweep that certifies" if sweeps == 2 else "")
        reasons["reads"] += "; less where the precision is reached before" if config.precision is not None else ""
    stored = inputs.encoded if inputs.encoded is not None else inputs.nbytes
    return Plan(
        inputs=inputs,
        tier=tier,
        wanted=wanted,
        goal=goal,
        cache=cache,
        ahead=ahead,
        at_a_time=at_a_time,
        workers=workers,
        task=task,
        peak=(inputs.home if gathered else inputs.held) + growth,
        growth=growth,
        sweeps=sweeps,
        reads=reads,
        read_bytes=None if stored is None or not _reads_anything(inputs) else reads * stored,
        sweep_seconds=_sweep_seconds(inputs, sweeps, reads, workers),
        seconds=(seconds := _seconds(inputs, sweeps, reads, workers)),
        reasons=reasons,
        advice=(*_advice(inputs), *_hurry(inputs, seconds)),
        starts=config.starts,
    )


_ASKED = "asked for"
_SHARED = 'Partitions that share work are computed together, and cannot be streamed; use tier="chunked".'


def _reads_anything(inputs: PlanInputs) -> bool:
    return READERS[inputs.reader].decoded > 0


def _goal(config: WorkflowConfig, reasons: dict[str, str]) -> OptimizationGoal:
    goal = member(OptimizationGoal, "goal", config.goal or OptimizationGoal.ROBUST)
    reasons["goal"] = {
        OptimizationGoal.FAST: "stops when less than 0.1 standard errors remain",
        OptimizationGoal.ROBUST: "stops when the step that remains is far below the standard errors",
        OptimizationGoal.GLOBAL: "looks for the lowest minimum from many starts",
        OptimizationGoal.QUALITY: "goes on to the rounding level, and fits again from perturbed starts",
        OptimizationGoal.MEMORY_EFFICIENT: "keeps nothing between sweeps, reads nothing ahead",
    }[goal]
    return goal


def _tier(
    inputs: PlanInputs, config: WorkflowConfig, goal: OptimizationGoal, reasons: dict[str, str]
) -> tuple[WorkflowTier, WorkflowTier]:
    """Return the tier that was asked for, or that of the table as far as it fits and is there; and the table's."""
    needed = None if inputs.rows is None else standard_memory(inputs.rows, inputs.columns)
    needed = 0 if needed is not None and not _reads_anything(inputs) else needed  # the rows are here already
    room = int(SHARE * inputs.here)
    if config.tier is not None and config.tier != "auto":
        asked = member(WorkflowTier, "tier", config.tier)
        _check_asked(inputs, config, asked, needed, room)
        reasons["tier"] = _ASKED
        return asked, asked
    chunked = WorkflowTier.CHUNKED
    if inputs.shared and config.precision is not None:
        raise NlsqError(_SHARED)
    if needed is None or inputs.shared:
        reasons["tier"] = "partitions share work" if inputs.shared else "the number of rows is not known"
        return chunked, chunked
    memory = get_memory_tier(inputs.limit * inputs.processes / 1e9)
    tier = select_tier(inputs.rows or 0, memory, goal)
    saves = f", goal {goal}" if goal is OptimizationGoal.MEMORY_EFFICIENT else ""
    reasons["tier"] = f"{inputs.rows:,.0f} rows, {memory} memory ({memory.description}){saves}"
    if config.precision is not None:
        streaming = WorkflowTier.STREAMING if config.checkpoint is None else WorkflowTier.STREAMING_CHECKPOINT
        reasons["tier"] += f"; {streaming}, for a precision was asked for"
        return streaming, tier
    why_not = None
    if tier.streams and (why_not := _why_not_stream(inputs, config, goal)):
        pass
    elif tier is WorkflowTier.STREAMING_CHECKPOINT and config.checkpoint is None:
        reasons["tier"] += f"; without checkpoint=, {tier} runs as STREAMING"
        return WorkflowTier.STREAMING, tier
    elif tier is WorkflowTier.STANDARD and config.cache == "none":
        why_not = 'keeps all rows, and cache="none" keeps none'
    elif tier is WorkflowTier.STANDARD and needed > room:
        why_not = f"counts {format_bytes(needed)}, and this process may take {format_bytes(room)} more"
    if why_not is None:
        return tier, tier
    reasons["tier"] += f"; {tier} {why_not}, and CHUNKED gives the same answer"
    return chunked, tier


def _why_not_stream(inputs: PlanInputs, config: WorkflowConfig, goal: OptimizationGoal) -> str | None:
    """Return why the rows are better left in partitions, or None."""
    if not inputs.squares:
        return "adds up squares, and this loss or covariance asks for more"
    fits, _ = _fits(inputs)
    asked = config.cache in ("persist", "none")
    keeps = config.cache == "persist" if asked else fits and goal is not OptimizationGoal.MEMORY_EFFICIENT
    if keeps or not _reads_anything(inputs):
        return "reads the rows twice, and they can be kept after the first read"
    return None


def _fits(inputs: PlanInputs) -> tuple[bool, int]:
    """Return whether all rows take less than half of the memory, and how much that is."""
    room = 0.5 * (inputs.processes * inputs.limit if inputs.cluster else min(inputs.limit, inputs.held + inputs.here))
    return inputs.nbytes is not None and inputs.nbytes < room, int(room)


def _check_asked(inputs: PlanInputs, config: WorkflowConfig, tier: WorkflowTier, needed: int | None, room: int) -> None:
    """Refuse a tier that was asked for and cannot be had."""
    if tier is WorkflowTier.STREAMING_CHECKPOINT and config.checkpoint is None:
        raise NlsqError('tier="streaming_checkpoint" needs checkpoint=; tier="streaming" does the same without one.')
    if tier.streams and inputs.shared:
        raise NlsqError(_SHARED)
    if tier.streams and config.cache == "persist" and _reads_anything(inputs):
        raise NlsqError('tier="streaming" keeps nothing, and cache="persist" keeps all rows; say one of them.')
    if config.precision is not None and not tier.streams:
        raise NlsqError(f'precision= stops a fit that streams; tier="{tier.value}" does not. Leave tier out.')
    if tier is WorkflowTier.STANDARD and needed is not None and needed > room:
        raise PlanError(
            f"STANDARD counts {format_bytes(needed)} for {inputs.rows:,.0f} rows, and this process may take "
            f'{format_bytes(room)} more. Use tier="chunked", which gives the same answer.'
        )
    if tier is WorkflowTier.STANDARD and config.cache == "none":
        raise NlsqError('tier="standard" keeps all rows, and cache="none" keeps none; say one of them.')


def _cache(
    inputs: PlanInputs, config: WorkflowConfig, tier: WorkflowTier, goal: OptimizationGoal, reasons: dict[str, str]
) -> str:
    if tier is WorkflowTier.STANDARD:
        reasons["cache"] = "STANDARD keeps all rows in this process"
        return "persist"
    if tier.streams:
        reasons["cache"] = f"{tier} keeps a few batches"
        return "persist" if not _reads_anything(inputs) else "none"
    if inputs.shared:
        reasons["cache"] = "partitions share work, and are computed once"
        return "persist"
    if config.cache in ("persist", "none"):
        reasons["cache"] = _ASKED
        return config.cache
    if not _reads_anything(inputs):
        reasons["cache"] = "the rows are in memory already"
        return "persist"
    if goal is OptimizationGoal.MEMORY_EFFICIENT:
        reasons["cache"] = f"goal {goal}"
        return "none"
    fits, room = _fits(inputs)
    rows = "an unknown number of bytes" if inputs.nbytes is None else format_bytes(int(inputs.nbytes))
    reasons["cache"] = f"{rows} {'are below' if fits else 'are not below'} half of the memory, {format_bytes(room)}"
    return "persist" if fits else "none"


def _tasks(
    inputs: PlanInputs, kept: float, goal: OptimizationGoal, reasons: dict[str, str]
) -> tuple[TaskMemory, bool, int]:
    """Return what a task holds, whether it reads ahead, and how many fit into a process; refuse where none does."""
    if inputs.partition_rows is None:
        reasons["workers"] = "one task a thread; the size of a partition is not known"
        return (
            task_memory(0, inputs.row_bytes, inputs.columns, inputs.n_params, inputs.reader, ahead=False),
            True,
            inputs.threads,
        )
    limit = inputs.limit if inputs.cluster else min(inputs.limit, inputs.held + inputs.here)

    def tried(ahead: bool) -> tuple[TaskMemory, bool, int]:
        task = task_memory(
            inputs.partition_rows or 0,
            inputs.row_bytes,
            inputs.columns,
            inputs.n_params,
            inputs.reader,
            encoded=inputs.encoded_partition,
            several=several,
            ahead=ahead,
            scratch=inputs.scratch,
        )
        return task, ahead, tasks_that_fit(inputs.threads, limit, task.total, inputs.held + kept)

    largest, threads = inputs.partition_rows * inputs.row_bytes, inputs.processes * inputs.threads
    several = takes_several(inputs.partitions, largest, threads, 1 if inputs.cluster and kept else PER_THREAD)
    task, ahead, fit = tried(several and goal is not OptimizationGoal.MEMORY_EFFICIENT)
    if fit == 0 and ahead:
        task, ahead, fit = tried(False)
    if not _reads_anything(inputs):  # the rows are here, and a slab more is no reason to refuse them
        fit = max(1, fit)
    room = SHARE * limit - inputs.held - kept
    if fit == 0:
        fixed = task.slab + task.tile + task.scratch
        bearable = int(0.99 * inputs.partition_rows * (room - fixed) / max(task.total - fixed, 1.0))
        remedy = (
            f"Cut the data into partitions of at most {bearable:,} rows"
            if bearable > TILE
            else "Give the process more memory"
        )
        raise PlanError(
            f"The largest partition, {inputs.partition_rows:,.0f} rows, needs {format_bytes(task.total)} while it is "
            f"read, and {format_bytes(int(max(room, 0)))} are free of the {format_bytes(inputs.limit)} that a process "
            f"may hold ({inputs.limit_source}). {remedy}, or use larger workers."
        )
    plural = "s" * (inputs.threads != 1)
    reasons["workers"] = (
        f"{fit} of {inputs.threads} thread{plural} a process; a task needs {format_bytes(task.total)} of "
        f"{format_bytes(int(room))}, {SHARE:g} × {format_bytes(int(limit))} ({inputs.limit_source}) less what is held"
    )
    return task, ahead, fit


def _reads(inputs: PlanInputs, cache: str, reasons: dict[str, str], search: bool = False) -> tuple[int, float]:
    """Return the sweeps that are expected, and how often all bytes are read in them."""
    many = inputs.rows is None or inputs.rows > MANY_ROWS
    sweeps = 2 if many else SWEEPS_FROM_NEAR if search else SWEEPS_FROM_AFAR
    # A sample is drawn from what is kept, unless it has to say how many rows there are.
    sampled = inputs.estimated or inputs.rows is None or ((many or search) and cache == "none")
    # A sample is drawn from 16 partitions, `PARTITIONS` of `_fit/sample.py`, which a plan may not import.
    share = min(1.0, 16 / max(inputs.partitions, 1)) if sampled and not inputs.shared else 0.0
    also = f", and a sample of {min(16, inputs.partitions)} partitions" if share else ""
    if cache == "persist":
        reasons["reads"] = f"rows stay in memory after the first read{also}"
        return sweeps, round(1 + share, 3)
    reasons["reads"] = f"{sweeps} sweeps{also}"
    return sweeps, round(sweeps + share, 3)


def _sweep_seconds(inputs: PlanInputs, sweeps: int, reads: float, workers: int) -> float | None:
    """Return the seconds of a sweep, as far as the speeds are known."""
    if inputs.rows is None or inputs.rows_per_second is None:
        return None
    return inputs.rows / inputs.rows_per_second / workers + _read_seconds(inputs, workers) * min(1.0, reads / sweeps)


def _seconds(inputs: PlanInputs, sweeps: int, reads: float, workers: int) -> float | None:
    """Return the seconds of the fit, as far as the speeds are known."""
    if inputs.rows is None or inputs.rows_per_second is None:
        return None
    reducing = inputs.rows / inputs.rows_per_second / workers
    return (inputs.compile_seconds or 0.0) + sweeps * reducing + reads * _read_seconds(inputs, workers)


def _read_seconds(inputs: PlanInputs, workers: int) -> float:
    return (inputs.nbytes or 0.0) / inputs.bytes_per_second / workers if inputs.bytes_per_second else 0.0


def with_speeds(plan: Plan, inputs: PlanInputs) -> Plan:
    """Return a plan with its seconds, once it is known how fast things go; nothing else changes."""
    seconds = _seconds(inputs, plan.sweeps, plan.reads, plan.workers)
    before = _hurry(plan.inputs, plan.seconds)
    advice = tuple(text for text in plan.advice if text not in before)
    return dataclasses.replace(
        plan,
        inputs=inputs,
        sweep_seconds=_sweep_seconds(inputs, plan.sweeps, plan.reads, plan.workers),
        seconds=seconds,
        advice=(*advice, *_hurry(inputs, seconds)),
    )


def _hurry(inputs: PlanInputs, seconds: float | None) -> tuple[str, ...]:
    """Return what to do where the job of this process ends before the fit."""
    if seconds is None or inputs.time_left is None or seconds <= inputs.time_left:
        return ()
    return (
        f"The fit takes about {format_time(seconds)}, and its job ends in {format_time(inputs.time_left)}. Give "
        "checkpoint=, from which the next job goes on (dask_nlsq.cluster.job_script writes such a job), or ask for "
        "more workers or time.",
    )


def _advice(inputs: PlanInputs) -> tuple[str, ...]:
    """Return what the user may change about the data."""
    advice = []
    if inputs.rows and inputs.partition_rows and inputs.rows_per_second:
        seconds = inputs.partition_rows / inputs.rows_per_second
        if inputs.cluster and seconds < TASK_SECONDS and inputs.partitions > 8 * inputs.processes * inputs.threads:
            # Four tasks a thread even out unlike tasks; above that, about a million rows a partition read and reduce
            # well.
            wanted = max(inputs.processes * inputs.threads * 4, math.ceil(inputs.rows / 1e6))
            advice.append(
                f"A partition takes {1e3 * seconds:.2g} ms, less than it costs to send; cut the data into about "
                f"{wanted:,} partitions."
            )
    if inputs.partitions < inputs.processes * inputs.threads and inputs.rows and inputs.rows > MANY_ROWS:
        advice.append(
            f"{inputs.partitions} partition{'s' * (inputs.partitions != 1)} cannot keep "
            f"{inputs.processes * inputs.threads} threads busy; cut the data into more."
        )
    return tuple(advice)
