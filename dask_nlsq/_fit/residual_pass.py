"""One pass over the rows of a finished fit, for what its residuals say: plots and diagnostics."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from dask_nlsq._errors import DataError, NlsqError
from dask_nlsq._fit.observer import SweepBegin, TaskEnd
from dask_nlsq._fit.problem import Problem, arrange
from dask_nlsq._fit.progress import Progress
from dask_nlsq._sources import Source
from dask_nlsq._sweep import Failure, ResidualSummary, merged, outside_pool, summarise
from dask_nlsq._typing import Vector

FEW = 5_000
"""Rows up to which they are kept one by one."""


def readable_again(problem: Problem) -> Problem:
    """Return a problem whose rows can be read again, in this process where the client that read them is closed.

    Raises
    ------
    NlsqError
        It was fitted by a client that is closed.
    """
    if not problem.reader.closed:
        return problem
    if problem.executor.remote:
        raise NlsqError(
            "The client of this fit is closed, and what you ask for reads the data again: do so before it closes, or "
            "fit again from p0=result."
        )
    return dataclasses.replace(problem, reader=problem.executor)


def of_each_partition(problem: Problem, source: Source, task: Any, *args: Any) -> list[Any]:
    """Return what a task returns for each partition of a source, in their order, in one pass.

    What is added up in this order has the same bits however the partitions are grouped.
    """
    groups = arrange(source, problem.reader, problem.plan)
    arrived: dict[int, list[Any]] = {}
    with outside_pool(problem.executor):
        for i, answer in problem.executor.run(task, groups, *args):
            if isinstance(answer, Failure):
                raise answer.error()
            arrived[i] = answer
    return [each for i in sorted(arrived) for each in arrived[i]]


def check_rows(before: Mapping[int, int], now: Mapping[int, int]) -> None:
    """Refuse partitions whose numbers of rows are not those of the fit."""
    for number, rows in before.items():
        if now.get(number, 0) != rows:
            raise DataError(
                f"The partition gave {rows} rows to the fit and {now.get(number, 0)} now: the data have changed. Fit "
                "again.",
                partition=number,
            )


def residual_summary(problem: Problem, theta: Vector, s: float, response: int | None = None) -> ResidualSummary:
    """Return the summary of the residuals of all rows.

    Parameters
    ----------
    theta : ndarray
        All parameters.
    s : float
        What residuals are divided by.
    response : int, optional
        The one of several that is looked at.

    Raises
    ------
    DataError
        A partition holds another number of rows than in the fit.
    """
    problem = problem.uncorrelated()
    problem = dataclasses.replace(problem, groups=arrange(problem.source, problem.reader, problem.plan))
    before = problem.digests.rows
    # Of a partition that the fit has not read, as many rows as any may be there.
    few = bool(before) and len(before) == len(problem.source.partitions) and sum(before.values()) <= FEW
    # Merged in the order of the groups, whatever the order of arrival.
    arrived: dict[int, list[ResidualSummary]] = {}
    whole: list[ResidualSummary] = []
    following = 0
    with Progress(len(problem.source.partitions), problem.progress) as bar, outside_pool(problem.executor):
        bar.notify(SweepBegin("residuals"))
        for i, answer in problem.executor.run(summarise, problem.groups, problem.payload, theta, s, few, response):
            if isinstance(answer, Failure):
                raise answer.error(theta)
            arrived[i] = answer
            bar.notify(TaskEnd(sum(len(part.partitions) for part in answer)))
            while following in arrived:
                whole = merged([*whole, *arrived.pop(following)])
                following += 1
    now = {int(number): int(rows) for number, rows, _ in (whole[0].partitions if whole else ())}
    if response is None:
        check_rows(before, now)
    if not whole:
        raise DataError("There are no rows any more: the data have changed.")
    return whole[0]
