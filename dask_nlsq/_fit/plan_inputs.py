"""Plan inputs: what a plan is made from, looked up in the metadata and measured where something was run."""

from __future__ import annotations

import collections
import dataclasses
import functools
import os
import time
from collections.abc import Sequence
from typing import Any

import psutil
from dask.system import CPU_COUNT
from dask.utils import parse_bytes

from dask_nlsq._fit.problem import Resolved
from dask_nlsq._fit.sample import Sample
from dask_nlsq._kernel import SLABS, Block, compile_cache, kernel
from dask_nlsq._model import Objective
from dask_nlsq._plan import IMPORTS, READERS, MemoryLimit, PlanInputs, memory_limit
from dask_nlsq._sweep import Executor, Failure, load
from dask_nlsq._system import available_memory, time_left
from dask_nlsq._typing import Vector


def gather_plan_inputs(resolved: Resolved, limit: int | str | None, sample: Sample | None = None) -> PlanInputs:
    """Look up what is known before the data are read, or after a sample of them was.

    Parameters
    ----------
    limit : int or str, optional
        Bytes that a process may hold, where the user says so.
    """
    info, executor = resolved.source.info, resolved.executor
    process_limit = memory_limit()
    home = _process(os.getpid()).memory_info().rss
    cluster = executor.remote
    processes, threads, allowed = _who(executor, process_limit)
    if limit is not None:
        allowed = MemoryLimit(int(parse_bytes(limit)), "memory_limit")
        process_limit = min(process_limit, allowed, key=lambda each: each.limit)
    rows = info.rows if sample is None or info.rows is not None else sample.estimated_rows
    largest = info.partition_rows if sample is None or info.partition_rows is not None else sample.largest
    # Rows that are in this process already are not read, but sent to workers.
    embedded = isinstance(resolved.source.partitions[0], Block)
    reader = info.reader
    if reader is None or embedded:
        reader = "sent" if cluster else "memory"
    return PlanInputs(
        model=f"{resolved.objective.model.name}({', '.join(resolved.parameters.names)})",
        n_params=resolved.parameters.p,
        kind=info.kind,
        reader=reader,
        rows=rows,
        estimated=info.rows is None and rows is not None,
        columns=len(resolved.objective.columns) + resolved.objective.weighted,
        row_bytes=info.row_bytes,
        partitions=len(resolved.source.partitions),
        partition_rows=largest,
        encoded=info.encoded,
        encoded_partition=info.encoded_partition,
        shared=resolved.source.shared,
        squares=resolved.objective.ordinary and not resolved.objective.sandwich and resolved.columns.groups is None,
        cluster=cluster,
        processes=processes,
        threads=threads,
        cores=CPU_COUNT,
        limit=allowed.limit,
        limit_source=allowed.source,
        # Workers are not asked what they hold: before the first fit that is their imports.
        held=IMPORTS if cluster else home,
        home=home,
        # What the limit leaves may be more than the machine has.
        here=int(max(0, min(process_limit.limit - home, available_memory()))),
        time_left=time_left(),
    )


@functools.cache
def _process(pid: int) -> psutil.Process:
    """Return this process, which a fork may have made another."""
    return psutil.Process(pid)


def _who(executor: Executor, process_limit: MemoryLimit) -> tuple[int, int, MemoryLimit]:
    """Return processes, tasks of each at a time, and what each may hold; what workers do not say they are asked."""
    processes, threads, limit = executor.capacity()
    if limit:
        return processes, threads, MemoryLimit(limit, "memory limit of a worker")
    if not executor.remote:
        return processes, threads, process_limit
    answers = executor.ask(memory_limit)
    # Workers of one host share its memory.
    sharing = collections.Counter(host for host, _ in answers)
    shares = [MemoryLimit(worker_limit.limit // sharing[host], worker_limit.source) for host, worker_limit in answers]
    return processes, threads, min(shares, key=lambda each: each.limit, default=process_limit)


def dry_run(resolved: Resolved, inputs: PlanInputs) -> PlanInputs:
    """Read one partition and reduce some of its rows: how fast both go, and how many rows there may be."""
    if inputs.shared:
        return inputs
    block, seconds = _read(resolved.source.partitions)
    measured: dict[str, Any] = {}
    if inputs.rows is None:
        measured |= {"rows": float(block.rows * inputs.partitions), "estimated": True}
    if inputs.partition_rows is None:
        measured["partition_rows"] = block.rows
    if READERS[inputs.reader].decoded and block.rows:
        measured["bytes_per_second"] = block.nbytes / max(seconds, 1e-9)
    return dataclasses.replace(inputs, **measured, **speed(resolved.objective, block, resolved.parameters.start))


def _read(partitions: Sequence[Any]) -> tuple[Block, float]:
    """Read the first partition that has rows, of those at the beginning; return it, and the seconds it took."""
    first, *more = partitions[:16]
    started = time.perf_counter()
    block = load(first)
    seconds = time.perf_counter() - started
    if isinstance(block, Failure):
        raise block.error()
    return _read(more) if more and not block.rows else (block, seconds)


def speed(objective: Objective, block: Block, theta: Vector) -> dict[str, Any]:
    """Return how long the kernel takes to compile, the rows that a thread then reduces in a second, and its memory."""
    if not block.rows:
        return {}
    # At most a slab, which is what one call of the kernel takes.
    some = block.take(slice(0, SLABS[1]))
    # The first call compiles, and the second is timed.
    times = []
    for _ in range(2):
        started = time.perf_counter()
        try:
            kernel.reduce_block(objective, some, theta, None)
        except Exception as error:
            raise Failure.of("evaluating the model", error).error(theta) from error
        times.append(time.perf_counter() - started)
    return {
        "compile_seconds": max(0.0, times[0] - times[1]),
        "rows_per_second": some.rows / max(times[1], 1e-9),
        "scratch": compile_cache.scratch(objective),
    }
