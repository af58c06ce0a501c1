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
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

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
from dask_nlsq._solver import Status, inference
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
"""Fits after which the correlation and the estimates have not come to agree."""

_AGREES = 1e-8
"""Change of the correlation from one fit to the next at which they agree."""

_SETTLED = 1e-6
"""Change of the estimates, in standard errors, at which the means of groups are those of the estimate."""

_EXTREME = 1 - 1e-6
"""Correlation from which on neighbours are as good as equal."""

_EXACT = 1e-22
"""Share of the spread of y below which residuals are those of rounding."""

_ROUNDING = 1e-12
"""Relative rise of a sum of squares that is none."""

_REMEMBERED = 5
"""Steps that say where the next would be zero, besides the last."""

_SHORTEST = 1e-6
"""Share of a step below which it is not shortened further."""

_GRID = 200
"""Correlations that are tried, between the neighbours of the best of which the most likely lies."""

_NO_PAIR = "No group has two rows, and nothing is known of their correlation."


class Found(NamedTuple):
    """What makes the rows independent, by what a pass over them has said."""

    correlation: Correlation
    log_weight: float = 0.0  # that the rows have together besides their weights


class Seen(Protocol):
    """What a pass over the rows says of their correlation at some estimates."""

    def most_likely(self, absolute_sigma: bool) -> float:
        """Return the most likely correlation."""

    def squares(self, rho: float) -> float:
        """Return z' R⁻¹ z over all groups."""

    def found(self, rho: float) -> Found:
        """Return what makes the rows independent."""


def fit_correlated(options: FitOptions, fit: Callable[[FitOptions], FitResult]) -> FitResult:
    """Fit rows that are correlated inside their groups, and their correlation with them unless it is given.

    Raises
    ------
    NlsqError
        It is none of those that are possible, or goes with something else that was asked for.
    DataError
        No group has two rows, the residuals do not tell of their correlation, or rows come in another order each time.
    """
    kind, given = _kind_and_rho(options.correlation)
    _check(options, kind)
    begun = time.monotonic()
    result = fit(dataclasses.replace(options, correlation=Correlation(kind)))
    if not result.success:
        note = f"The fit ended before the correlation {kind!r} was taken into account."
        columns = None if result.columns is None else dataclasses.replace(result.columns, correlation=None)
        return dataclasses.replace(result, columns=columns, notes=(*result.notes, note))
    if given is None and 1 - result.rsquared <= _EXACT:
        raise DataError("The model meets the rows to rounding, and nothing is known of the correlation of residuals.")
    rows = _Rows.of(result)
    # A search and a warm start are for the first fit: the others begin where it ended.
    options = dataclasses.replace(options, n_starts=None, method=None, config=None, workflow=None)

    def again(found: Found, start: FitResult, sweeps: int) -> FitResult:
        return fit(_left(dataclasses.replace(options, correlation=found.correlation, p0=start), begun, sweeps))

    if kind == "ar1" and given is not None:
        found = Found(rows.neighbours(given))
        return _finished(again(found, result, result.nsweeps), found, estimated=False)
    look: Callable[[Vector], Seen] = rows.look_at_neighbours if kind == "ar1" else rows.look_at_groups
    popt, sweeps, steps = result.popt, result.nsweeps, list[tuple[Vector, Vector]]()
    seen = look(popt)
    rho = seen.most_likely(options.absolute_sigma) if given is None else given
    for _ in range(_MOST):
        found = seen.found(rho)
        result = again(found, dataclasses.replace(result, popt=popt), sweeps)
        sweeps += result.nsweeps
        if not result.success:
            break
        step = result.popt - popt
        moved = bool((np.abs(step) > _SETTLED * result.stderr.to_numpy()).any())
        last = rho
        if kind == "exchangeable" and moved:
            steps = [*steps[-_REMEMBERED:], (popt, step)]
            popt, seen = _next(rows, look, seen, rho, steps)
        else:
            popt, seen = result.popt, look(result.popt)
        rho = seen.most_likely(options.absolute_sigma) if given is None else given
        agrees = abs(rho - last) < _AGREES and not (moved and kind == "exchangeable")
        if agrees or abs(last) > _EXTREME:
            break
    else:
        result = dataclasses.replace(result, status=Status.STALLED)
        warn(f"The estimates and the correlation of the rows did not come to agree in {_MOST} fits.")
    return _finished(result, found, estimated=given is None)


def _next(
    rows: _Rows,
    look: Callable[[Vector], Seen],
    seen: Seen,
    rho: float,
    steps: Sequence[tuple[Vector, Vector]],
) -> tuple[Vector, Seen]:
    """Return the estimates from which to go on, and what is seen there.

    About the last estimates the mean of a group is linear, so that a step may lead too far, or on by a little only. The
    next are those at which the last few steps, taken as linear in where they begin, would be zero (Anderson 1965,
    `doi:10.1145/321296.321305 <https://doi.org/10.1145/321296.321305>`_); or as much of the last step as lowers the sum
    of squares.
    """
    (popt, step), share = steps[-1], 0.5
    ahead = popt + step
    if len(steps) > 1:
        points, moves = (np.diff(each, axis=0).T for each in zip(*steps, strict=True))
        ahead, share = rows.within(ahead - (points + moves) @ np.linalg.lstsq(moves, step)[0]), 1.0
    found = look(ahead)
    while not found.squares(rho) <= seen.squares(rho) * (1 + _ROUNDING) and share > _SHORTEST:
        ahead = popt + share * step
        found, share = look(ahead), share / 2
    return ahead, found


def _left(options: FitOptions, begun: float, sweeps: int) -> FitOptions:
    """Return the options with what is left of the limits after so many sweeps."""
    limit, most = options.time_limit, options.max_nfev
    return dataclasses.replace(
        options,
        time_limit=None if limit is None else max(limit - (time.monotonic() - begun), 1e-6),
        max_nfev=None if most is None else max(most - sweeps, 1),
    )


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
        'a robust loss (loss="linear" does)': not (options.loss == "linear" or options.loss in COUNTS),
        f"counts (loss={options.loss!r})": options.loss in COUNTS,
        "sigma_x=": options.sigma_x is not None,
        "estimate_sigma=": options.estimate_sigma,
        "several data sets": isinstance(options.model, (list, tuple, Mapping)),
        "a function as jac=": callable(options.jac),
        "precision=": options.precision is not None,
        "checkpoint=, which is of one fit (cache_dir= keeps each)": options.checkpoint is not None,
        'cov_type="sandwich", of independent rows (cov_type="cluster" does)': options.cov_type == "sandwich",
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

    def within(self, popt: Vector) -> Vector:
        """Return all parameters with the free ones inside their bounds."""
        parameters, inside = self.problem.parameters, popt.copy()
        free = [parameters.names.index(name) for name in parameters.free]
        inside[free] = np.clip(popt[free], parameters.lower, parameters.upper)
        return inside

    @functools.cached_property
    def before(self) -> tuple[LastRows, ...]:
        """Of each partition, the last rows of its groups in the partitions before."""
        nothing = self.last[0].among(np.empty(0))
        every = itertools.accumulate(self.last, LastRows.followed_by, initial=nothing)
        return tuple(one.among(last.keys) for one, last in zip(every, self.last, strict=False))

    def neighbours(self, rho: float) -> Correlation:
        """Return what makes rows independent of which each depends on the one before."""
        pairs = zip(self.before, self.last, strict=True)
        return Correlation("ar1", rho, tuple(AutoRegression(rho, before, last.order) for before, last in pairs))

    def look_at_neighbours(self, popt: Vector) -> _SeenNeighbours:
        """Return what the residuals of neighbours have in common at all parameters."""
        problem, where = self.problem, grouping(self.problem.columns)
        whitenings = [Neighbours(before, last.order) for before, last in zip(self.before, self.last, strict=True)]
        source = make_independent(problem.source, where, whitenings, where.inputs + 4)
        groups = arrange(source, problem.reader, problem.plan)
        answers = _run(problem, neighbour_products, groups, problem.payload, popt, where)
        # Partition by partition, so that the bits are the same however they are grouped.
        sums = functools.reduce(NeighbourProducts.__add__, itertools.chain(*answers), NeighbourProducts())
        if not sums.pairs:
            raise DataError(_NO_PAIR, column=problem.columns.groups)
        return _SeenNeighbours(self, sums)

    def look_at_groups(self, popt: Vector) -> _SeenGroups:
        """Return the sums over the rows of each group at all parameters."""
        parameters = self.problem.parameters
        theta = popt[[parameters.names.index(name) for name in parameters.free]]
        groups = arrange(self.problem.source, self.problem.reader, self.problem.plan)
        totals = group_scores(dataclasses.replace(self.problem, groups=groups), theta, rows_too=True)
        if not (totals.sums[:, -1] > 1).any():
            raise DataError(_NO_PAIR, column=self.problem.columns.groups)
        return _SeenGroups(self, theta, totals.keys, GroupSums.of(totals.sums))


@dataclasses.dataclass(frozen=True)
class _SeenNeighbours:
    """Sums over neighbouring rows."""

    rows: _Rows
    sums: NeighbourProducts

    def most_likely(self, absolute_sigma: bool) -> float:
        return _most_likely(self.sums.deviance, self.sums.rows, -1.0, absolute_sigma)

    def squares(self, rho: float) -> float:
        return self.sums.deviance(rho)[0]

    def found(self, rho: float) -> Found:
        return Found(self.rows.neighbours(rho))


@dataclasses.dataclass(frozen=True)
class _SeenGroups:
    """Sums over the rows of each group at the free parameters."""

    rows: _Rows
    theta: Vector
    keys: Vector
    sums: GroupSums

    def most_likely(self, absolute_sigma: bool) -> float:
        return _most_likely(self.sums.deviance, self.sums.rows, self.sums.lowest, absolute_sigma)

    def squares(self, rho: float) -> float:
        return self.sums.deviance(rho)[0]

    def found(self, rho: float) -> Found:
        if rho <= self.sums.lowest:
            raise NlsqError(
                f"correlation is {rho}; of {self.sums.counts.max():.0f} rows, which the largest group has, any two "
                f"have more than {self.sums.lowest:.4g}."
            )
        every = Exchange(rho, self.keys, self.sums.counts, self.sums.means, self.theta)
        whitenings = tuple(every.among(last.keys) for last in self.rows.last)
        log_weight = float(np.log1p(-share_of_mean(rho, self.sums.counts)).sum())
        return Found(Correlation("exchangeable", rho, whitenings, tuple(self.theta.tolist())), log_weight)


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
        raise DataError(
            f"The likelihood of the correlation has no maximum between {lowest:.4g} and 1: the residuals of each group "
            "add up to zero, as those of rows less the mean of their group do, or are all equal. Give the correlation."
        )
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

    @property
    def lowest(self) -> float:
        """What any two rows of the largest group have more than."""
        return -1 / (float(self.counts.max()) - 1)

    def deviance(self, rho: float) -> tuple[float, float, float, float]:
        """See `Deviance`."""
        n, total = self.counts, (self.counts * self.means[:, -1]) ** 2
        width = 1 + (n - 1) * rho
        squares = float(self.squares - (rho / width * total).sum()) / (1 - rho)
        determinant = float(((n - 1) * np.log1p(-rho) + np.log(width)).sum())
        by_squares = (squares - float((total / width**2).sum())) / (1 - rho)
        by_determinant = float(((n - 1) * (1 / width - 1 / (1 - rho))).sum())
        return squares, determinant, by_squares, by_determinant
