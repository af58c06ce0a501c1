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
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq

from dask_nlsq._errors import DataError, NlsqError, one_of, warn
from dask_nlsq._fit.group_scores import group_scores
from dask_nlsq._fit.options import FitOptions
from dask_nlsq._fit.problem import Problem, arrange, grouping
from dask_nlsq._fit.residual_pass import of_each_partition, readable_again
from dask_nlsq._model import CORRELATIONS, COUNTS
from dask_nlsq._plan import WorkflowTier
from dask_nlsq._result import FitResult
from dask_nlsq._solver import Status, inference
from dask_nlsq._sources import (
    AutoRegression,
    Correlation,
    Exchangeable,
    LastRows,
    Neighbours,
    make_independent,
    share_of_mean,
)
from dask_nlsq._sweep import NeighbourProducts, last_rows, neighbour_products
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


class Whitened(NamedTuple):
    """A correlation with what makes rows independent that have it."""

    correlation: Correlation
    log_weight: float = 0.0  # what a change of variables adds to the log-likelihood besides the weights of the rows


Deviance = Callable[[float], tuple[float, float, float, float]]
"""Returns, at a correlation, z' R⁻¹ z and the logarithm of the determinant of R, and the derivatives of both."""


@dataclasses.dataclass(frozen=True)
class ResidualSums:
    """Sums over the residuals at some estimates, from which the likelihood of any correlation follows."""

    rows: int
    lowest: float  # bound below which a correlation is none of so many rows
    deviance: Deviance
    whiten: Callable[[float], Whitened]  # returns what makes rows of a correlation independent

    def squares(self, rho: float) -> float:
        """Return z' R⁻¹ z over all groups."""
        return self.deviance(rho)[0]


def fit_correlated(options: FitOptions, fit: Callable[[FitOptions], FitResult]) -> FitResult:
    """Fit rows that are correlated inside their groups, and their correlation with them unless it is given.

    Raises
    ------
    NlsqError
        `correlation` has an unknown form, or goes with an option that does not support it.
    DataError
        No group has two rows, the residuals do not determine their correlation, or the order of the rows changes.
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
    sweeps = [result.nsweeps]

    def refit(whitened: Whitened, start: FitResult) -> FitResult:
        again = dataclasses.replace(options, correlation=whitened.correlation, p0=start)
        refitted = fit(_remaining(again, begun, sum(sweeps)))
        sweeps.append(refitted.nsweeps)
        return refitted

    if kind == "ar1" and given is not None:
        whitened = Whitened(rows.autoregression(given))
        return _with_correlation(refit(whitened, result), whitened, False, sweeps)
    sum_residuals = rows.sum_neighbours if kind == "ar1" else rows.sum_groups
    popt, steps = result.popt, list[tuple[Vector, Vector]]()
    sums = sum_residuals(popt)
    rho = _most_likely(sums, options.absolute_sigma) if given is None else given
    for _ in range(_MOST):
        whitened = sums.whiten(rho)
        result = refit(whitened, dataclasses.replace(result, popt=popt))
        if not result.success:
            break
        step = result.popt - popt
        moved = bool((np.abs(step) > _SETTLED * result.stderr.to_numpy()).any())
        if kind == "exchangeable" and moved:
            steps = [*steps[-_REMEMBERED:], (popt, step)]
            popt, sums = _accelerated(rows, sums, rho, steps)
        else:
            popt, sums = result.popt, sum_residuals(result.popt)
        previous, rho = rho, _most_likely(sums, options.absolute_sigma) if given is None else given
        agrees = abs(rho - previous) < _AGREES and not (moved and kind == "exchangeable")
        if agrees or abs(previous) > _EXTREME:
            break
    else:
        result = dataclasses.replace(result, status=Status.STALLED)
        warn(f"The estimates and the correlation of the rows did not come to agree in {_MOST} fits.")
    return _with_correlation(result, whitened, given is None, sweeps)


def _accelerated(
    rows: _Rows, sums: ResidualSums, rho: float, steps: Sequence[tuple[Vector, Vector]]
) -> tuple[Vector, ResidualSums]:
    """Return the estimates from which the next fit starts, and the sums over the residuals there.

    The mean of a group is linearised at the last estimates, so that fits converge slowly, or overshoot, where it is far
    from linear. The next estimates are those of Anderson acceleration (Anderson 1965,
    `doi:10.1145/321296.321305 <https://doi.org/10.1145/321296.321305>`_), in which the last few steps, as linear
    functions of their starts, add up to zero; if the sum of squares rises there, those of a line search along the last
    step.
    """
    (popt, step), share = steps[-1], 0.5
    ahead = popt + step
    if len(steps) > 1:
        points, moves = (np.diff(each, axis=0).T for each in zip(*steps, strict=True))
        ahead, share = rows.within_bounds(ahead - (points + moves) @ np.linalg.lstsq(moves, step)[0]), 1.0
    there = rows.sum_groups(ahead)
    while not there.squares(rho) <= sums.squares(rho) * (1 + _ROUNDING) and share > _SHORTEST:
        ahead = popt + share * step
        there, share = rows.sum_groups(ahead), share / 2
    return ahead, there


def _remaining(options: FitOptions, begun: float, sweeps: int) -> FitOptions:
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


def _with_correlation(result: FitResult, whitened: Whitened, estimated: bool, sweeps: Sequence[int]) -> FitResult:
    """Return a result whose criteria count the correlation, with a note on the fits that it took."""
    kind, rho = whitened.correlation.kind, whitened.correlation.rho
    statistics = dataclasses.replace(result.statistics, loglik=result.statistics.loglik + whitened.log_weight)
    statistics = inference.with_parameters(statistics, result.absolute_sigma, int(estimated))
    if abs(rho) > _EXTREME:
        warn(
            f"The correlation of the rows is {rho:.9g}: the residuals of a group are as good as equal, and standard "
            "errors mean little."
        )
    how = "was estimated with the parameters" if estimated else "was given"
    note = (
        f"The correlation {kind!r} of the rows of a group, {rho:.4g}, {how}; it took {len(sweeps)} fits of "
        f"{sum(sweeps)} sweeps in all."
    )
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
        return cls(problem, tuple(of_each_partition(problem, problem.source, last_rows, grouping(problem.columns))))

    def within_bounds(self, popt: Vector) -> Vector:
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

    def autoregression(self, rho: float) -> Correlation:
        """Return what makes rows independent of which each depends on the preceding one."""
        pairs = zip(self.before, self.last, strict=True)
        return Correlation("ar1", rho, tuple(AutoRegression(rho, before, last.order) for before, last in pairs))

    def sum_neighbours(self, popt: Vector) -> ResidualSums:
        """Sum the products of the residuals of neighbouring rows at all parameters."""
        problem, where = self.problem, grouping(self.problem.columns)
        whitenings = [Neighbours(before, last.order) for before, last in zip(self.before, self.last, strict=True)]
        source = make_independent(problem.source, where, whitenings, where.inputs + 4)
        products = of_each_partition(problem, source, neighbour_products, problem.payload, popt, where)
        sums = functools.reduce(NeighbourProducts.__add__, products, NeighbourProducts())
        if not sums.pairs:
            raise DataError(_NO_PAIR, column=problem.columns.groups)
        return ResidualSums(sums.rows, -1.0, sums.deviance, lambda rho: Whitened(self.autoregression(rho)))

    def sum_groups(self, popt: Vector) -> ResidualSums:
        """Sum the residuals of each group, and their derivatives, at all parameters."""
        parameters = self.problem.parameters
        theta = popt[[parameters.names.index(name) for name in parameters.free]]
        groups = arrange(self.problem.source, self.problem.reader, self.problem.plan)
        totals = group_scores(dataclasses.replace(self.problem, groups=groups), theta, rows_too=True)
        sums = GroupSums.of(totals.sums)
        if not (sums.counts > 1).any():
            raise DataError(_NO_PAIR, column=self.problem.columns.groups)

        def whiten(rho: float) -> Whitened:
            if rho <= sums.lowest:
                raise NlsqError(
                    f"correlation is {rho}; of {sums.counts.max():.0f} rows, which the largest group has, any two have "
                    f"more than {sums.lowest:.4g}."
                )
            every = Exchangeable(rho, totals.keys, sums.counts, sums.means, theta)
            whitenings = tuple(every.among(last.keys) for last in self.last)
            log_weight = float(np.log1p(-share_of_mean(rho, sums.counts)).sum())
            return Whitened(Correlation("exchangeable", rho, whitenings, tuple(theta.tolist())), log_weight)

        return ResidualSums(int(sums.counts.sum()), sums.lowest, sums.deviance, whiten)


def _most_likely(sums: ResidualSums, absolute_sigma: bool) -> float:
    """Return the correlation of maximum likelihood, at the most likely variance unless that is known."""
    rows, lowest, deviance = sums.rows, sums.lowest, sums.deviance

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
        """Return the sums and means of J, z, z² and 1, (groups, p + 3)."""
        counts = sums[:, -1]
        return cls(counts, sums[:, :-2] / counts[:, None], float(sums[:, -2].sum()))

    @property
    def lowest(self) -> float:
        """Correlation above which that of any two rows of the largest group lies."""
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
