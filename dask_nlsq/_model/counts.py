r"""Counts: rows that are Poisson or binomial, whose likelihood is maximised as a sum of squares is minimised.

Beside it stand two sums of squares by which counts are often fitted, Neyman's and Pearson's chi-square.

A row y is expected to be :math:`\mu = f` (``poisson``), or :math:`\mu = n f` of n trials (``binomial``). It adds half
its deviance to the cost (Baker & Cousins, doi:10.1016/0167-5087(84)90016-4):

========  ===============================================================================================
poisson   :math:`\mu - y + y \log(y/\mu)`
binomial  :math:`y \log(y/\mu) + (n - y) \log\bigl((n - y)/(n - \mu)\bigr)`
neyman    :math:`(\mu - y)^2 / (2 \max(y, 1))`, which is no deviance
pearson   :math:`(\mu - y)^2 / (2 \mu)`, likewise
========  ===============================================================================================

With the variance V of y at :math:`\mu`, the Pearson residual :math:`r = (\mu - y)/\sqrt V` and its scale
:math:`w = r / (f - y)`, or :math:`r / (f - y/n)`, the gradient of the cost is :math:`\sum (w\,\partial f) r`, and
:math:`\sum (w\,\partial f)(w\,\partial f)^T` is the Fisher information: the same products as those of least squares.

Of Pearson's chi-square the scale is :math:`w^2 = (\mu + y) / (2 \mu^2)`, for the gradient to be that of the cost; it is
expected to be :math:`1/\mu`.

The log-likelihood is that of :math:`\mu = y` less half the deviance; both are accurate for any counts in the form of
Loader ("Fast and accurate computation of binomial probabilities", 2000).
"""

from __future__ import annotations

import math
from types import ModuleType
from typing import Any, NamedTuple

LIKELIHOODS = ("poisson", "binomial")
"""Losses that are the likelihood of counts."""

COUNTS = (*LIKELIHOODS, "neyman", "pearson")
"""Losses of counts, whose variance follows from their expectation."""

_NEAR = 0.1
"""Distance of μ from y, beside their sum, below which half a deviance is a series: its terms cancel."""

_SHIFT = 8
"""Counts below which Stirling's series is taken at a count that is larger by as many."""

_STIRLING = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
"""Of log Γ, by odd powers of 1/z; the next term is 1e-15 at z = 8."""


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
    elif loss == "neyman":
        valid = xp.isfinite(f)
        bend = 1.0 / xp.maximum(y, 1.0)
        scale = xp.sqrt(bend)
        cost = 0.5 * bend * (f - y) ** 2
    elif loss == "pearson":
        inside = f > 0
        mu = xp.where(inside, f, 1.0)
        scale = xp.where(inside, xp.sqrt(0.5 * (mu + y)) / mu, 0.0)
        valid = inside | ((f == 0) & (y == 0))
        cost = xp.where(inside, 0.5 * (f - y) ** 2 / mu, 0.0)
        bend = xp.where(inside, y**2 / mu**3, 0.0)
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
    """Return μ − y + y log(y/μ), which is μ for y = 0 (Loader's bd0)."""
    some = y > 0
    ratio = (mu - y) / xp.where(some & (mu > 0), mu + y, 1.0)
    near = some & (xp.abs(ratio) < _NEAR)
    v = xp.where(near, ratio, 0.0)
    # log(μ/y) = 2 artanh(v) = 2 (v + v³/3 + v⁵/5 …); the first term that is left out is 1e-17 beside the first.
    series = 0.0
    for k in range(17, 1, -2):
        series = 1.0 / k + v * v * series
    far = xp.where(near | ~some | (mu <= 0), 1.0, y / xp.where(mu > 0, mu, 1.0))
    return xp.where(near, (mu - y) * v - 2.0 * y * v**3 * series, mu - y + y * xp.log(far))


def saturated(loss: str, y: Any, trials: Any, xp: ModuleType) -> Any:
    r"""Return the log-likelihood of rows of which each has what is most likely, :math:`\mu = y`; or NaN."""
    if loss not in LIKELIHOODS:
        return xp.full_like(y, xp.nan)
    if loss == "poisson":
        return _poisson_mode(y, xp)
    return _poisson_mode(y, xp) + _poisson_mode(trials - y, xp) - _poisson_mode(trials, xp)


def _poisson_mode(y: Any, xp: ModuleType) -> Any:
    r"""Return :math:`y \log y - y - \log\Gamma(y + 1)`, to 1e-14.

    By Stirling's series at z = y, or at y + 8, with :math:`\Gamma(y + 9) = (y + 1) \dots (y + 8)\, \Gamma(y + 1)`.
    """
    few = y < _SHIFT
    small = xp.where(few, y, 0.0)
    inverse = 1.0 / xp.where(few, y + _SHIFT, y)
    rising = 1.0
    for k in range(1, _SHIFT + 1):
        rising = rising * ((small + k) * inverse)
    series = 0.0
    for term in reversed(_STIRLING):
        series = term + inverse**2 * series
    logarithms = small * xp.log(xp.where(small > 0, small * inverse, 1.0))
    logarithms = logarithms + 0.5 * xp.log(xp.where(few, rising**2, 1.0) * inverse / (2.0 * math.pi))
    return xp.where(few, float(_SHIFT), 0.0) + logarithms - inverse * series
