r"""Cluster-robust covariance: one pass over the rows of a fit that has ended, for the scores of its groups.

With :math:`s_g` the sum of the scores of the rows of group g, of G groups, n rows and p free parameters, the covariance
is that of Liang and Zeger, doi:10.1093/biomet/73.1.13,

.. math:: \frac{G}{G-1} \frac{n-1}{n-p} (J^T J)^{-1} \Big(\sum_g s_g s_g^T\Big) (J^T J)^{-1},

with the factor for few groups of Cameron and Miller, doi:10.3368/jhr.50.2.317, which statsmodels has, too.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from dask_nlsq._errors import DataError, warn
from dask_nlsq._fit.observer import SweepBegin, TaskEnd
from dask_nlsq._fit.problem import Problem
from dask_nlsq._fit.progress import Progress
from dask_nlsq._fit.residual_pass import check_rows
from dask_nlsq._model import Prior
from dask_nlsq._solver import Statistics
from dask_nlsq._sweep import Failure, GroupScores, Partial, merge_scores, outside_pool, sum_scores
from dask_nlsq._typing import Matrix, Vector


def group_scores(problem: Problem, theta: Vector, rows_too: bool = False) -> GroupScores:
    """Return the scores of the groups of all rows at `theta` (p,), the free parameters; see `sum_scores`.

    Raises
    ------
    DataError
        All rows are of one group, or a partition holds another number of rows than in the fit.
    """
    partitions = len(problem.source.partitions)
    partial, now = Partial(partitions, merge=merge_scores), dict[int, int]()
    with Progress(partitions, problem.progress) as bar, outside_pool(problem.executor):
        bar.notify(SweepBegin("scores of groups"))
        for _, answer in problem.executor.run(sum_scores, problem.groups, problem.payload, theta, rows_too):
            if isinstance(answer, Failure):
                raise answer.error(theta)
            partial.add(answer)
            now |= answer.rows
            bar.notify(TaskEnd(len(answer.rows)))
    check_rows(problem.digests.rows, now)
    scores: GroupScores = partial.roots()[0]
    if len(scores.keys) < 2:
        if rows_too:
            raise DataError(
                'All rows are of one group; correlation="exchangeable" needs two or more, of which each deviates by '
                "itself.",
                column=problem.columns.groups,
            )
        raise DataError(
            'All rows are of one group. cov_type="cluster" needs two or more, and is of use from some twenty on; '
            'cov_type="sandwich" takes each row for itself.',
            column=problem.columns.groups,
        )
    return scores


def with_groups(statistics: Statistics, count: int, p: int) -> tuple[Statistics, tuple[str, ...]]:
    """Return the statistics with the number of groups, and a note, which is a warning too, where they are too few.

    At a minimum the scores of all groups add up to zero, so that G groups tell of G - 1 directions.
    """
    statistics = dataclasses.replace(statistics, n_groups=count)
    if count > p:
        return statistics, ()
    note = (
        f"There are {count} groups and {p} parameters: the cluster-robust covariance is singular, and its standard "
        "errors cannot be trusted. More groups than parameters are needed."
    )
    warn(note)
    return statistics, (note,)


def meat(scores: GroupScores, prior: Prior | None) -> Matrix:
    """Return the sum over groups of the squares of their scores, and the information of a prior, (p, p)."""
    # Without the threads of BLAS, whose number may decide about the last bits.
    squares: Matrix = np.einsum("gi,gj->ij", scores.sums, scores.sums)
    return squares if prior is None else squares + np.diag(prior.weight**2)


def small_sample_factor(statistics: Statistics) -> float:
    """Return the factor for few groups and rows; infinity without degrees of freedom."""
    groups = statistics.n_groups or 0
    if statistics.dof <= 0:
        return np.inf
    return groups / (groups - 1) * (statistics.n_obs - 1) / statistics.dof
