r"""The p×p subproblem: the step that minimises the linearised cost inside the trust region and the bounds.

.. math:: \min_\delta \tfrac12 |R\delta + z|^2 \quad\text{subject to}\quad
          |D\delta| \le \Delta,\; l \le \theta + \delta \le u .

Without bounds this is Moré's form of Levenberg-Marquardt (doi:10.1007/BFb0067700): the damping λ for which
:math:`|D\delta(\lambda)| = \Delta` is found on the singular values of :math:`R D^{-1}`. With bounds the same damped
problem is a bounded linear least-squares problem of p unknowns, solved by an active-set method: a parameter
stays exactly at its bound as long as its multiplier keeps its sign. Either costs nothing beside a sweep.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
from scipy.optimize import brentq, lsq_linear

from dask_nlsq._solver import lapack
from dask_nlsq._solver.factor import EPS, Factor
from dask_nlsq._typing import Vector


@dataclasses.dataclass(frozen=True)
class Step:
    """A step δ (p,), its damping λ, and the decrease of the cost that the linear model predicts."""

    delta: Vector
    damping: float
    predicted: float
    length: float  # |Rδ|
    recentres: bool = False  # whether only the linear parameters move, to their best


def solve(factor: Factor, newton: Step, scale: Vector, radius: float, lower: Vector, upper: Vector) -> Step:
    """Shorten the undamped step to the trust region.

    Parameters
    ----------
    newton : Step
        What `gauss_newton` says of the factor and the bounds.
    scale : ndarray of shape (p,)
        The scaling D.
    radius : float
        The radius Δ.
    lower, upper : ndarray of shape (p,)
        Bounds, counted from the current point.
    """
    reach = lapack.norm(scale * newton.delta)
    # A tenth beyond the radius is near enough, as in Moré's algorithm.
    if reach <= 1.1 * radius:
        return newton
    u, sigma, vt = lapack.svd(factor.r / scale)
    seen = sigma > 64 * factor.p * EPS * max(sigma[0], EPS)
    part, sigma = np.where(seen, sigma * (u.T @ factor.z), 0.0), np.where(seen, sigma, 1.0)
    bounded = bool((np.isfinite(lower) | np.isfinite(upper)).any())

    def damped(damping: float) -> Vector:
        """Return δ(λ) inside the bounds; without any, D δ(λ) turned by Vᵀ, which leaves its length."""
        turned: Vector = -part / (sigma * sigma + damping)
        if not bounded:
            return turned
        delta: Vector = vt.T @ turned / scale
        inside = (lower <= delta) & (delta <= upper)
        return delta if inside.all() else _bounded(factor, scale, damping, lower, upper)

    def excess(log_damping: float) -> float:
        step = damped(np.exp(log_damping))
        return lapack.norm(scale * step if bounded else step) / radius - 1.0

    # |D δ(λ)| ≤ |σ·b| / λ brackets the root from above; a hundredth of the radius is close enough.
    high = np.log(max(lapack.norm(part) / radius, 1e-290))
    low = high - 10.0
    while excess(low) < 0 and low > high - 300:
        low = high - 2 * (high - low)
    if excess(low) < 0:
        return newton
    while excess(high) > 0:
        high += 2.0
    damping = float(np.exp(brentq(excess, low, high, xtol=0.01, rtol=1e-3)))
    step = damped(damping)
    return measure(factor, step if bounded else vt.T @ step / scale, damping)


def gauss_newton(factor: Factor, lower: Vector, upper: Vector) -> Step:
    """Return the undamped step inside the bounds, of minimum norm where the data leaves directions open.

    Bounds, (p,), are counted from the current point.
    """
    u, sigma, vt = factor.svd
    keep = factor.determined
    parts = np.divide(u.T @ factor.z, sigma, out=np.zeros(factor.p), where=keep)
    delta = -(vt.T @ parts) / factor.norms
    if np.count_nonzero((delta < lower) | (delta > upper)):
        damping = 0.0 if keep.all() else float((1e-8 * sigma[0]) ** 2)
        delta = _bounded(factor, factor.norms, damping, lower, upper)
    return measure(factor, delta, 0.0)


def measure(factor: Factor, delta: Vector, damping: float) -> Step:
    """Attach to a step what the linear model says of it."""
    image = factor.r @ delta
    square = float(image @ image)
    return Step(delta, damping, -float(image @ factor.z) - 0.5 * square, math.sqrt(square))


def _bounded(factor: Factor, scale: Vector, damping: float, lower: Vector, upper: Vector) -> Vector:
    """Solve the damped problem inside the bounds, in units of the scaling."""
    p = factor.p
    a = factor.r / scale
    b = -factor.z
    if damping > 0:
        a = np.concatenate([a, np.sqrt(damping) * np.eye(p)])
        b = np.concatenate([b, np.zeros(p)])
    low, high = np.minimum(lower * scale, 0.0), np.maximum(upper * scale, 0.0)
    free = low < high
    delta = np.zeros(p)
    if free.any():
        scaled = lsq_linear(a[:, free], b, (low[free], high[free]), method="bvls", tol=1e-14).x
        nearly = 1.0 - 8 * EPS  # what reaches a bound beside another may stop a rounding before it
        at_low, at_high = scaled <= nearly * low[free], scaled >= nearly * high[free]
        exact = np.where(at_low, lower[free], np.where(at_high, upper[free], scaled / scale[free]))
        delta[free] = exact
    return delta
