"""Checks: what is asked of the end of a fit before it becomes a result."""

from dask_nlsq._fit.checks.identifiability import identifiable_factor, lost_sensitivity, responds_elsewhere
from dask_nlsq._fit.checks.perturbed_restarts import refit_perturbed
from dask_nlsq._fit.checks.restarts import find_finite_starts, restart

__all__ = [
    "find_finite_starts",
    "identifiable_factor",
    "lost_sensitivity",
    "refit_perturbed",
    "responds_elsewhere",
    "restart",
]
