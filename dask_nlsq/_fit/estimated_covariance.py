r"""Estimated covariance: several responses weighted by what their own residuals say, until both agree.

With residuals :math:`r_i` (k,) of n rows, :math:`\hat\Sigma = \tfrac1n \sum_i r_i r_i^T` at the estimate, and the
estimate minimises :math:`\sum_i r_i^T \hat\Sigma^{-1} r_i`: one is found after the other (iterated generalised least
squares). Where they agree, the likelihood of normal errors with any covariance is largest, which is where the
determinant of :math:`\sum_i r_i r_i^T` is least (Bates & Watts, chapter 4,
`doi:10.1002/9780470316757 <https://doi.org/10.1002/9780470316757>`_).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np

from dask_nlsq._errors import DataError, NlsqError, warn
from dask_nlsq._fit.options import FitOptions
from dask_nlsq._fit.problem import Problem
from dask_nlsq._fit.residual_pass import of_each_partition, readable_again
from dask_nlsq._fit.responses import given_responses
from dask_nlsq._result import FitResult
from dask_nlsq._solver import inference
from dask_nlsq._sweep import ResidualProducts, residual_products
from dask_nlsq._typing import Matrix, Vector

_MOST = 100
"""Fits after which a covariance that still changes is told."""

_AGREES = 1e-7
"""Change of the covariance, in units of the standard deviations, from one fit to the next, at which they agree."""

_SINGULAR = 1e-12
"""Least eigenvalue of the correlation of residuals, below which one response follows from the others."""


def fit_estimating_covariance(options: FitOptions, fit: Callable[[FitOptions], FitResult]) -> FitResult:
    """Fit several responses, and their covariance with them.

    Raises
    ------
    NlsqError
        There is one response, or it goes with a checkpoint or another covariance.
    DataError
        A combination of the responses leaves no residuals.
    """
    _check(options)
    k = _number_of_responses(options)
    sigma, options = np.eye(k), dataclasses.replace(options, estimate_sigma=False)
    for _ in range(_MOST):
        result = fit(dataclasses.replace(options, sigma=sigma))
        if not result.success:
            return result
        # A search and a warm start are for the first fit: the others begin where it ended.
        options = dataclasses.replace(options, p0=result, n_starts=None, method=None, config=None, workflow=None)
        problem: Problem = result.profiler.problem
        estimated = _estimate(problem, result.popt)
        scale = np.sqrt(np.diag(estimated))
        change = np.abs(estimated - sigma) / np.outer(scale, scale)
        if change.max() < _AGREES:
            return _with_parameters_of_covariance(result, k)
        sigma = estimated
    warn(f"The covariance of the responses still changed by {change.max():.2g} of their variance after {_MOST} fits.")
    return _with_parameters_of_covariance(result, k)


def _check(options: FitOptions) -> None:
    if options.sigma is not None:
        raise NlsqError("estimate_sigma=True estimates the covariance that sigma= would give; leave one out.")
    if options.loss != "linear":
        raise NlsqError(
            f"estimate_sigma=True weighs by the squares of all residuals, and loss={options.loss!r} does not count all "
            "alike: give sigma=."
        )
    if options.checkpoint is not None:
        raise NlsqError(
            "estimate_sigma=True fits several times, and a checkpoint is of one fit; cache_dir= keeps each."
        )
    if options.absolute_sigma:
        raise NlsqError(
            "estimate_sigma=True estimates the covariance from the residuals; absolute_sigma= needs sigma=."
        )


def _number_of_responses(options: FitOptions) -> int:
    """Return the number of responses, as far as y tells it; a single column must turn out to be complex."""
    given = given_responses(options)
    if (given is None and options.data is None) or (given is not None and len(given.names) == 1):
        raise NlsqError(
            "estimate_sigma=True is for several responses, or a complex y; y is one column of real numbers."
        )
    return 2 if given is None else len(given.names)


def _estimate(problem: Problem, theta: Vector) -> Matrix:
    """Return the covariance of the residuals at all parameters `theta`, in one pass over the rows."""
    problem = readable_again(problem)
    products = of_each_partition(problem, problem.source, residual_products, problem.payload, theta)
    total: ResidualProducts = functools.reduce(ResidualProducts.__add__, products)
    covariance: Matrix = total.products / total.rows
    scale = np.sqrt(np.diag(covariance))
    names = problem.columns.response_names
    if not (scale > 0).all() or np.linalg.eigvalsh(covariance / np.outer(scale, scale))[0] < _SINGULAR:
        raise DataError(
            f"The residuals of the responses {list(names)} have no covariance that could be inverted: one of them is "
            f"fitted exactly, or follows from the others, or there are too few rows ({total.rows:,})."
        )
    return covariance


def _with_parameters_of_covariance(result: FitResult, k: int) -> FitResult:
    """Return a result whose criteria count the parameters of the covariance, one of which they count already."""
    further = k * (k + 1) // 2 - 1
    statistics = inference.with_parameters(result.statistics, result.absolute_sigma, further)
    note = f"The covariance of the {k} responses was estimated with the parameters: result.response_cov."
    return dataclasses.replace(result, statistics=statistics, notes=(*result.notes, note))
