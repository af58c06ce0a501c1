"""Render: a plan as a page that a person reads, as decisions with reasons, as HTML, and beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator

from dask.utils import format_bytes, format_time

from dask_nlsq._display import Fold, Fragment, Table
from dask_nlsq._plan.decisions import Decisions
from dask_nlsq._plan.memory import READERS
from dask_nlsq._plan.tiers import WorkflowTier


def page(plan: Decisions) -> str:
    """Return the plan as a page of text."""
    return "\n".join([f"Plan: {plan.inputs.model} on {_data(plan)}", *_columns(_lines(plan))])


def explain(plan: Decisions) -> str:
    """Return every decision with its reason, and what a task holds part by part."""
    rows = [(name, f"{value}: {plan.reasons[name]}" if name in plan.reasons else value) for name, value in _lines(plan)]
    return "\n".join([page(plan).splitlines()[0], *_columns([*rows, *_details(plan)])])


def report(plan: Decisions) -> str:
    """Return what was predicted beside what was measured."""
    return "\n".join(f"{name:<16}  {before:>12}  {after:>12}" for name, before, after in _comparison(plan))


def fragment_of(plan: Decisions) -> Fragment:
    """Return the advice, the decisions with their reasons, and folded the details and what was measured."""
    rows = [(name, value, plan.reasons.get(name, "")) for name, value in _lines(plan) if name != "advice"]
    header, *figures = _comparison(plan)
    measured = [Fold("Predicted and measured", [Table(figures, header, align="lrr")])] if plan.measured else []
    return Fragment(
        title=page(plan).splitlines()[0],
        notes=plan.advice,
        parts=[Table(rows, header=("", "decision", "reason")), *measured, Fold("Details", [Table(_details(plan))])],
    )


def _lines(plan: Decisions) -> Iterator[tuple[str, str]]:
    inputs = plan.inputs
    other = "" if plan.wanted is plan.tier else f"; the table says {plan.wanted}"
    alone = plan.wanted is WorkflowTier.STREAMING_CHECKPOINT and plan.tier is WorkflowTier.STREAMING
    other += ", which needs checkpoint=" if alone else ""
    yield "tier", f"{plan.tier}, {plan.tier.memory} in memory at a time{other}"
    yield "goal", str(plan.goal)
    if plan.starts > 1:
        yield "starts", f"{plan.starts:,}"
    where = f"{inputs.processes} worker{'s' * (inputs.processes != 1)}" if inputs.cluster else "this process"
    gathered = inputs.cluster and plan.tier is WorkflowTier.STANDARD
    then = ", which read; then in this process" if gathered else ""
    yield "workers", f"{plan.workers} task{'s' * (plan.workers != 1)} at a time in {where}{then}"
    of = "in this process" if gathered else f"of {format_bytes(inputs.limit)} a process ({inputs.limit_source})"
    yield "memory", f"{format_bytes(plan.peak)} {of}"
    yield "cache", "partitions stay in memory" if plan.cache == "persist" else "nothing is kept between sweeps"
    if READERS[inputs.reader].decoded:
        size = "" if plan.read_bytes is None else f", {format_bytes(int(plan.read_bytes))} in all"
        yield "reads", f"the data {_times(plan.reads)}{size}"
    yield "sweeps", f"about {plan.sweeps}"
    if plan.seconds is not None:
        yield "time", f"about {_time(plan.sweep_seconds)} a sweep, {_time(plan.seconds)} in all"
    for advice in plan.advice:
        yield "advice", advice


def _details(plan: Decisions) -> list[tuple[str, str]]:
    """Return what a task holds, how many workers suit the plan, and what a dry run has measured."""
    parts = {
        "encoded": plan.task.encoded,
        "decoded": plan.task.decoded,
        "the partition before": plan.task.before,
        "slab": plan.task.slab,
        "tile": plan.task.tile,
        "scratch": plan.task.scratch,
    }
    held = " + ".join(f"{name} {format_bytes(int(value))}" for name, value in parts.items() if value)
    inputs = plan.inputs
    rows = [
        ("task", f"{held} = {format_bytes(plan.task.total)}"),
        ("cluster", f"local_cluster(plan) would start {plan.n_workers} of {inputs.cores} possible workers"),
    ]
    if inputs.rows_per_second is not None:
        speed = f"compiled in {_time(inputs.compile_seconds)}, {inputs.rows_per_second:,.0f} rows a second and thread"
        reading = inputs.bytes_per_second
        rows.append(("dry run", speed + (f", {_bytes(reading)} read a second and thread" if reading else "")))
    return rows


def _comparison(plan: Decisions) -> list[tuple[str, str, str]]:
    """Return a row of headings, and one for each figure."""
    now = plan.measured
    table = [
        ("", "predicted", "measured"),
        ("sweeps", f"{plan.sweeps}", now and f"{now.sweeps}"),
        ("seconds a sweep", _time(plan.sweep_seconds), now and _time(now.sweep_seconds)),
        ("seconds in all", _time(plan.seconds), now and _time(now.seconds)),
        ("bytes read", _bytes(plan.read_bytes), now and _bytes(now.read_bytes)),
        ("peak memory", _bytes(plan.peak), now and _bytes(now.peak)),
    ]
    return [(name, before, after or "-") for name, before, after in table]


def _data(plan: Decisions) -> str:
    inputs = plan.inputs
    rows = "rows of an unknown number" if inputs.rows is None else f"{inputs.rows:,.0f} rows"
    about = " (estimated)" if inputs.estimated else ""
    return f"{inputs.kind}, {rows}{about} in {inputs.partitions:,} partition{'s' * (inputs.partitions != 1)}"


def _columns(rows: Iterator[tuple[str, str]] | list[tuple[str, str]]) -> list[str]:
    return [f"  {name:<8} {value}" for name, value in rows]


def _times(reads: float) -> str:
    return "once" if reads == 1 else f"{reads:.3g} times"


def _time(seconds: float | None) -> str:
    return "-" if seconds is None else str(format_time(seconds))


def _bytes(count: float | None) -> str:
    return "-" if count is None else str(format_bytes(int(count)))
