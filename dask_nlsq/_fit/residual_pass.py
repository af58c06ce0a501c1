"""One pass over the rows of a finished fit, for what its residuals say: plots and diagnostics."""

from __future__ import annotations

import dataclasses

from dask_nlsq._errors import DataError
from dask_nlsq._fit.observer import SweepBegin, TaskEnd
from dask_nlsq._fit.problem import Problem, arrange
from dask_nlsq._fit.progress import Progress
from dask_nlsq._sweep import Failure, ResidualSummary, merged, outside_pool, summarise
from dask_nlsq._typing import Vector

FEW = 5_000
"""Rows up to which they are kept one by one."""


def residual_summary(problem: Problem, theta: Vector, s: float, rows: int) -> ResidualSummary:
    """Return the summary of the residuals of all rows.

    Parameters
    ----------
    theta : ndarray
        All parameters.
    s : float
        The residual standard deviation.
    rows : int
        How many rows the fit had.

    Raises
    ------
    DataError
        A partition holds another number of rows than in the fit.
    """
    problem = dataclasses.replace(problem, groups=arrange(problem.source, problem.reader, problem.plan))
    # Merged in the order of the partitions, whatever the order of arrival: the same bits for every executor.
    arrived: dict[int, list[ResidualSummary]] = {}
    whole: list[ResidualSummary] = []
    following = 0
    with Progress(len(problem.source.partitions), None) as bar, outside_pool(problem.executor):
        bar.notify(SweepBegin("residuals"))
        for i, answer in problem.executor.run(summarise, problem.groups, problem.payload, theta, s, rows <= FEW):
            if isinstance(answer, Failure):
                raise answer.error(theta)
            arrived[i] = answer
            bar.notify(TaskEnd(sum(len(part.partitions) for part in answer)))
            while following in arrived:
                whole = merged([*whole, *arrived.pop(following)])
                following += 1
    summary = whole[0]
    seen = problem.digests.digests
    for number, now in summary.partitions[:, :2].astype(int).tolist():
        before = int(seen[number, 0]) if number < len(seen) else now
        if before != now:
            raise DataError(
                f"The partition gave {before} rows to the fit and {now} now: the data have changed. Fit again.",
                partition=number,
            )
    return summary
