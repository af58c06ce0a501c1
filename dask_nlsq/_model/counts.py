r"""Counts: rows that are Poisson or binomial, whose likelihood is maximised as a sum of squares is minimised.

A row y is expected to be :math:`\mu = f` (``poisson``), or :math:`\mu = n f` of n trials (``binomial``). It adds half
its deviance to the cost (Baker & Cousins, doi:10.1016/0167-5087(84)90016-4):

========  ===============================================================================================
poisson   :math:`\mu - y + y \log(y/\mu)`
binomial  :math:`y \log(y/\mu) + (n - y) \log\bigl((n - y)/(n - \mu)\bigr)`
========  ===============================================================================================

With the variance V of y at :math:`\mu`, the Pearson residual :math:`r = (\mu - y)/\sqrt V` and its scale
:math:`w = r / (f - y)`, or :math:`r / (f - y/n)`, the gradient of the cost is :math:`\sum (w\,\partial f) r`, and
:math:`\sum (w\,\partial f)(w\,\partial f)^T` is the Fisher information: the same products as those of least squares.
"""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

COUNTS = ("poisson", "binomial")
"""Losses that are the likelihood of counts."""

_NEAR = 1e-2
"""Relative distance of μ from y below which half a deviance is a series: its terms cancel."""


class CountRows(NamedTuple):
    """What rows of counts are at the values of the model, each (rows,); NaN where these are no rate or probability."""

    residual: Any  # f - y, or f - y/n
    scale: Any  # w, what residual and derivatives are multiplied by
    cost: Any  # half the deviance
    bend: Any  # second derivative of the cost with respect to f, beside its expectation w²


def count_rows(loss: str, f: Any, y: Any, weight: Any, xp: ModuleType) -> CountRows:
    """Evaluate rows at the model's values `f`, with NumPy or jax.numpy.

    Rows of no `weight` do not count; for the binomial it is the number of trials.
    """
    counts = weight > 0
    if loss == "poisson":
        # Nothing is expected and nothing was seen: such a row says nothing, as in the tail of a peak.
        inside = f > 0
        scale = xp.where(inside, 1.0 / xp.sqrt(xp.where(inside, f, 1.0)), 0.0)
        valid = inside | ((f == 0) & (y == 0))
        cost = _half_deviance(f, y, xp)
        bend = y * scale**2
    else:
        n = xp.where(counts, weight, 1.0)
        inside = (f > 0) & (f < 1)
        p = xp.where(inside, f, 0.5)
        scale = xp.where(inside, xp.sqrt(n / (p * (1.0 - p))), 0.0)
        valid = inside | ((f == 0) & (y == 0)) | ((f == 1) & (y == n))
        cost = _half_deviance(n * f, y, xp) + _half_deviance(n * (1.0 - f), n - y, xp)
        bend = xp.where(inside, (y * (1.0 - p) / p + (n - y) * p / (1.0 - p)) / n, 0.0)
        y = y / n
    scale, cost, bend = (xp.where(counts, each, 0.0) for each in (scale, xp.where(valid, cost, xp.nan), bend))
    return CountRows(xp.where(valid | ~counts, f - y, xp.nan), scale, cost, bend)


def _half_deviance(mu: Any, y: Any, xp: ModuleType) -> Any:
    """Return μ − y + y log(y/μ), which is μ for y = 0."""
    some = y > 0
    u = (mu - y) / xp.where(some, y, 1.0)
    near = xp.abs(u) < _NEAR
    series = xp.where(near, u, 0.0)
    # u − log(1 + u) = u² (1/2 − u/3 + u²/4 …), of which the first term that is left out is 1e-17 beside the first.
    total = 0.0
    for k in range(9, 1, -1):
        total = (-1.0) ** k / k + series * total
    far = xp.where(near | ~some | (u < -1.0), 1.0, u)
    return xp.where(some, y * xp.where(near, series**2 * total, far - xp.log1p(far)), mu)


def saturated(loss: str, y: Any, trials: Any, lgamma: Any, xp: ModuleType) -> Any:
    r"""Return the log-likelihood of rows where each has what is most likely, :math:`\mu = y`; `lgamma` is log Γ."""
    if loss == "poisson":
        return _y_log_y(y, xp) - y - lgamma(y + 1.0)
    rest = trials - y
    whole = _y_log_y(y, xp) + _y_log_y(rest, xp) - _y_log_y(trials, xp)
    return whole + lgamma(trials + 1.0) - lgamma(y + 1.0) - lgamma(rest + 1.0)


def _y_log_y(y: Any, xp: ModuleType) -> Any:
    return y * xp.log(xp.where(y > 0, y, 1.0))
