r"""Correlated rows: generalised least squares with a correlation inside each group of rows, known or estimated.

Fits of rows that have been made independent (see `dask_nlsq._model.correlation`) alternate with passes that say how the
residuals depend on one another, until both agree. The correlation :math:`\rho` is the most likely one for normal errors
of these residuals, at the most likely variance unless sigma is absolute; where it agrees with the estimates, both are
those of maximum likelihood (Pinheiro & Bates, chapter 5, `doi:10.1007/b98882 <https://doi.org/10.1007/b98882>`_).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq

from dask_nlsq._errors import DataError, NlsqError, one_of, warn
from dask_nlsq._fit.group_scores import group_scores
from dask_nlsq._fit.options import FitOptions
from dask_nlsq._fit.problem import Problem, arrange, grouping
from dask_nlsq._fit.residual_pass import readable_again
from dask_nlsq._model import CORRELATIONS, COUNTS
from dask_nlsq._plan import WorkflowTier
from dask_nlsq._result import FitResult
from dask_nlsq._solver import inference
from dask_nlsq._sources import (
    AutoRegression,
    Correlation,
    Exchange,
    LastRows,
    Neighbours,
    make_independent,
    share_of_mean,
)
from dask_nlsq._sweep import Failure, NeighbourProducts, last_rows, neighbour_products, outside_pool
from dask_nlsq._typing import Matrix, Vector

_MOST = 100
"""Fits after which a correlation that still changes is told."""

_AGREES = 1e-8
"""Change of the correlation from one fit to the next at which they agree."""

_SETTLED = 1e-6
"""Change of the estimates, in standard errors, at which the means of groups are those of the estimate."""

_EXTREME = 1 - 1e-6
"""Correlation from which on neighbours are as good as equal."""

_GRID = 200
"""Correlations that are tried, between the neighbours of the best of which the most likely lies."""

_NO_PAIR = "No group has two rows, and nothing is known of their correlation."


class Found(NamedTuple):
    """What makes the rows independent, by what a pass over them has said."""

    correlation: Correlation
    log_weight: float = 0.0  # that the rows have together besides their weights


def fit_correlated(options: FitOptions, fit: Callable[[FitOptions], FitResult]) -> FitResult:
    """Fit rows that are correlated inside their groups, and their correlation with them unless it is given.

    Raises
    ------
    NlsqError
        It is none of those that are possible, or goes with something else that was asked for.
    DataError
        No group has two rows.
    """
    kind, given = _kind_and_rho(options.correlation)
    _check(options, kind)
    result = fit(dataclasses.replace(options, correlation=Correlation(kind)))
    if not result.success:
        return result
    rows = _Rows.of(result)
    look = rows.neighbours(given) if kind == "ar1" else rows.exchangeable(given)
    # A search and a warm start are for the first fit: the others begin where it ended.
    options = dataclasses.replace(options, n_starts=None, method=None, config=None, workflow=None)
    found = look(result)
    for _ in range(_MOST):
        before, result = result, fit(dataclasses.replace(options, correlation=found.correlation, p0=result))
        if not result.success:
            return result
        if kind == "ar1" and given is not None:
            return _finished(result, found, estimated=False)
        moved = np.abs(result.popt - before.popt)
        last, found = found, look(result)
        change, rho = abs(found.correlation.rho - last.correlation.rho), last.correlation.rho
        settled = kind == "ar1" or not (moved > _SETTLED * result.stderr.to_numpy()).any()
        if (change < _AGREES and settled) or abs(rho) > _EXTREME:
            return _finished(result, last, estimated=given is None)
    warn(f"The correlation of the rows still changed by {change:.2g} after {_MOST} fits.")
    return _finished(result, last, estimated=given is None)


def _kind_and_rho(given: Any) -> tuple[str, float | None]:
    """Return the kind of correlation, and its number where that is given."""
    if isinstance(given, Mapping):
        if len(given) != 1:
            raise NlsqError(
                f"correlation is {dict(given)!r:.80}; one kind with its number is needed, as {{'ar1': 0.6}}."
            )
        ((kind, rho),) = given.items()
        one_of("correlation", kind, *CORRELATIONS)
        if isinstance(rho, bool) or not isinstance(rho, (int, float, np.number)) or not -1 < rho < 1:
            raise NlsqError(f"correlation {kind!r} is {rho!r:.40}; a number between -1 and 1 is needed.")
        return kind, float(rho)
    one_of("correlation", given, *CORRELATIONS)
    return given, None


def _check(options: FitOptions, kind: str) -> None:
    """Refuse what does not go with correlated rows."""
    by_order = kind == "ar1"
    refused = {
        'a robust loss; loss="linear"': not (options.loss == "linear" or options.loss in COUNTS),
        f"counts (loss={options.loss!r})": options.loss in COUNTS,
        "sigma_x=": options.sigma_x is not None,
        "estimate_sigma=": options.estimate_sigma,
        "several data sets": isinstance(options.model, (list, tuple, Mapping)),
        "a function as jac=": callable(options.jac),
        "precision=": options.precision is not None,
        "checkpoint=, which is of one fit; cache_dir= keeps each": options.checkpoint is not None,
        'cov_type="sandwich", which takes rows as independent; cov_type="cluster"': options.cov_type == "sandwich",
        'tier="streaming"': isinstance(options.tier, WorkflowTier) and options.tier.streams,
        'nan_policy="omit", which would join rows that are no neighbours': options.nan_policy == "omit" and by_order,
    }
    for what, present in refused.items():
        if present:
            raise NlsqError(f"correlation={kind!r} does not go with {what}.")
    if kind == "exchangeable" and options.groups is None:
        raise NlsqError('correlation="exchangeable" needs groups=, a column or an array: the group of each row.')


def _finished(result: FitResult, found: Found, estimated: bool) -> FitResult:
    """Return a result whose criteria count the correlation."""
    correlation = found.correlation
    statistics = dataclasses.replace(result.statistics, loglik=result.statistics.loglik + found.log_weight)
    statistics = inference.with_parameters(statistics, result.absolute_sigma, int(estimated))
    if abs(correlation.rho) > _EXTREME:
        warn(
            f"The correlation of the rows is {correlation.rho:.9g}: the residuals of a group are as good as equal, and "
            "standard errors mean little."
        )
    how = "was estimated with the parameters" if estimated else "was given"
    note = f"The correlation {correlation.kind!r} of the rows of a group, {correlation.rho:.4g}, {how}."
    return dataclasses.replace(result, statistics=statistics, notes=(*result.notes, note))


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Rows as they are read, and the last of each group in each partition."""

    problem: Problem
    last: tuple[LastRows, ...]

    @classmethod
    def of(cls, result: FitResult) -> _Rows:
        """Look once at the rows of a result."""
        problem = readable_again(result.profiler.problem)
        groups = arrange(problem.source, problem.reader, problem.plan)
        arrived: dict[int, LastRows] = {}
        for answer in _run(problem, last_rows, groups, grouping(problem.columns)):
            arrived |= answer
        return cls(problem, tuple(last for _, last in sorted(arrived.items())))

    def neighbours(self, given: float | None) -> Callable[[FitResult], Found]:
        """Return what finds the correlation of neighbours at the estimates of a result."""
        nothing = self.last[0].among(np.empty(0))
        every = itertools.accumulate(self.last, LastRows.followed_by, initial=nothing)
        before = [one.among(last.keys) for one, last in zip(every, self.last, strict=False)]

        def found(result: FitResult) -> Found:
            rho = given if given is not None else self._of_neighbours(before, result)
            return Found(Correlation("ar1", rho, tuple(AutoRegression(rho, each) for each in before)))

        return found

    def _of_neighbours(self, before: Sequence[LastRows], result: FitResult) -> float:
        problem, where = self.problem, grouping(self.problem.columns)
        source = make_independent(problem.source, where, [Neighbours(each) for each in before], where.inputs + 4)
        groups = arrange(source, problem.reader, problem.plan)
        answers = _run(problem, neighbour_products, groups, problem.payload, result.popt, where)
        sums: NeighbourProducts = functools.reduce(NeighbourProducts.__add__, answers)
        if not sums.pairs:
            raise DataError(_NO_PAIR, column=problem.columns.groups)
        return _most_likely(sums.deviance, sums.rows, -1.0, result.absolute_sigma)

    def exchangeable(self, given: float | None) -> Callable[[FitResult], Found]:
        """Return what finds the correlation of any two rows of a group at the estimates of a result."""

        def found(result: FitResult) -> Found:
            parameters = self.problem.parameters
            theta = result.popt[[parameters.names.index(name) for name in parameters.free]]
            groups = arrange(self.problem.source, self.problem.reader, self.problem.plan)
            totals = group_scores(dataclasses.replace(self.problem, groups=groups), theta, rows_too=True)
            sums = GroupSums.of(totals.sums)
            if not (sums.counts > 1).any():
                raise DataError(_NO_PAIR, column=self.problem.columns.groups)
            lowest = -1 / (sums.counts.max() - 1)
            if given is not None and given <= lowest:
                raise NlsqError(
                    f"correlation is {given}; of {sums.counts.max():.0f} rows, which the largest group has, any two "
                    f"have more than {lowest:.4g}."
                )
            rho = given if given is not None else _most_likely(sums.deviance, sums.rows, lowest, result.absolute_sigma)
            every = Exchange(rho, totals.keys, sums.counts, sums.means, theta)
            whitenings = tuple(every.among(last.keys) for last in self.last)
            log_weight = float(np.log1p(-share_of_mean(rho, sums.counts)).sum())
            return Found(Correlation("exchangeable", rho, whitenings, tuple(theta.tolist())), log_weight)

        return found


def _run(problem: Problem, task: Any, groups: Any, *args: Any) -> list[Any]:
    """Return the answers of a task, in the order of the groups of partitions."""
    arrived = {}
    with outside_pool(problem.executor):
        for i, answer in problem.executor.run(task, groups, *args):
            if isinstance(answer, Failure):
                raise answer.error()
            arrived[i] = answer
    return [arrived[i] for i in sorted(arrived)]


Deviance = Callable[[float], tuple[float, float, float, float]]
"""Returns, at a correlation, z' R^-1 z and the logarithm of the determinant of R, and the derivatives of both."""


def _most_likely(deviance: Deviance, rows: int, lowest: float, absolute_sigma: bool) -> float:
    """Return the most likely correlation above the `lowest`, at the most likely variance unless that is known."""

    def slope(rho: float) -> float:
        squares, _, by_squares, by_determinant = deviance(rho)
        if not absolute_sigma:
            by_squares *= rows / squares if squares > 0 else 0.0
        return by_squares + by_determinant

    def value(rho: float) -> float:
        squares, determinant, _, _ = deviance(rho)
        return (squares if absolute_sigma else rows * np.log(squares)) + determinant if squares > 0 else np.inf

    grid = lowest + (1 - lowest) * np.linspace(0, 1, _GRID + 2)[1:-1]
    best = int(np.argmin([value(rho) for rho in grid]))
    ends = np.array([lowest + 1e-12 * (1 - lowest), *grid, 1 - 1e-12])
    below, above = ends[best], ends[best + 2]
    if not slope(below) < 0 < slope(above):
        return float(grid[best])
    return float(brentq(slope, below, above, xtol=1e-14, rtol=1e-14))


@dataclasses.dataclass(frozen=True)
class GroupSums:
    """Sums over the rows of each group of their weighted residuals z."""

    counts: Vector  # (groups,)
    means: Matrix  # (groups, p + 1), of the weighted Jacobian and of z
    squares: float  # of all z

    @classmethod
    def of(cls, sums: Matrix) -> GroupSums:
        """Return them from the sums of J, z, z² and 1, (groups, p + 3)."""
        counts = sums[:, -1]
        return cls(counts, sums[:, :-2] / counts[:, None], float(sums[:, -2].sum()))

    @property
    def rows(self) -> int:
        """Number of rows."""
        return int(self.counts.sum())

    def deviance(self, rho: float) -> tuple[float, float, float, float]:
        """See `Deviance`."""
        n, total = self.counts, (self.counts * self.means[:, -1]) ** 2
        width = 1 + (n - 1) * rho
        squares = float(self.squares - (rho / width * total).sum()) / (1 - rho)
        determinant = float(((n - 1) * np.log1p(-rho) + np.log(width)).sum())
        by_squares = (squares - float((total / width**2).sum())) / (1 - rho)
        by_determinant = float(((n - 1) * (1 / width - 1 / (1 - rho))).sum())
        return squares, determinant, by_squares, by_determinant
