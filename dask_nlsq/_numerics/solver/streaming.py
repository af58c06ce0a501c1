r"""Online Gauss-Newton: every batch of rows is linearised where it was evaluated, and the sums are solved anew.

A batch evaluated at :math:`\theta_b` has residuals r and Jacobian J there. Near it the model is linear, so about a
fixed origin :math:`\theta_0` the batch says

.. math:: \tfrac12 |J (\theta - \theta_0) + r_0|^2, \qquad r_0 = r + J (\theta_0 - \theta_b).

Such contributions add, whatever their order and wherever each was evaluated: that only shifts the points about which
the model is taken as linear. The estimate after each batch minimises their sum, and after one pass over well-posed data
it lies far closer to the minimiser of all rows than its standard errors (this is the information form of recursive
least squares; Ljung & Söderström, Theory and Practice of Recursive Identification, 1983).

A batch that the sums so far do not explain says that the process has changed, or that early batches were linearised
too far away. With the score g of the batch and its information :math:`A_b`, beside A of those before,

.. math:: g^T (A_b + A_b A^{-1} A_b)^{-1} g / s^2

is then far above what :math:`\chi^2_p` allows, and the old sums are scaled down to the weight of the batch.

Everything is kept in the coordinates of one fixed S, found at the start, in which the columns of JS are nearly
orthonormal, so that adding products of J costs no digits.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy import stats

from dask_nlsq._numerics.factor import EPS, Factor, factorise
from dask_nlsq._numerics.prior import Prior
from dask_nlsq._numerics.reduction import Reduction
from dask_nlsq._numerics.request import Request, Whitening
from dask_nlsq._numerics.trust_region import gauss_newton
from dask_nlsq._typing import Matrix, Vector

_SURPRISE = 1e-6
"""Probability of a batch, were nothing to change, from which the old sums are forgotten."""


@dataclasses.dataclass(frozen=True)
class StreamState:
    """All that a stream has taught; what is not here does not matter."""

    theta: Vector  # (p,), the estimate
    origin: Vector  # (p,), about which the sums are taken
    whitening: Whitening | None  # in whose coordinates they are
    # The sums; their gram holds J and the residual that the linear model gives at the origin.
    sums: Reduction | None = None
    path: Matrix | None = None  # (p + 1, p + 1), sums of [J, J (θ_b − θ₀)]ᵀ [J, J (θ_b − θ₀)]
    # What came by.
    batches: int = 0
    rows: int = 0
    dropped: int = 0
    skipped: int = 0  # batches on which the model was not finite
    forgotten: int = 0  # batches that the sums before them did not explain
    restarts: int = 0  # batches after which the sums were begun anew
    moved: float = float("inf")  # length of the last move, in standard errors


@dataclasses.dataclass(frozen=True)
class Streaming:
    """Options of the solver; bounds are arrays of shape (p,)."""

    lower: Vector
    upper: Vector
    prior: Prior | None = None
    absolute_sigma: bool = False
    forget: float | None = 1.0  # factor of the old sums at each batch; None: only where a batch is a surprise

    def init(self, theta: Vector, whitening: Whitening | None = None) -> StreamState:
        """Return the state before the first batch, at `theta` (p,)."""
        theta = np.asarray(theta, float)
        return StreamState(theta, theta, whitening)

    def request(self, state: StreamState) -> Request:
        """Return where the next batch is to be evaluated."""
        return Request(state.theta, state.whitening)

    def step(self, state: StreamState, reduction: Reduction, theta: Vector | None = None) -> StreamState:
        """Add a batch that was evaluated at `theta` (p,), by default at the estimate, and move the estimate."""
        state = dataclasses.replace(state, batches=state.batches + 1, dropped=state.dropped + reduction.dropped)
        if reduction.rows == 0:
            return state
        if not reduction.sums_finite:
            return dataclasses.replace(state, skipped=state.skipped + 1)
        new = self._about_origin(state, reduction, state.theta if theta is None else theta)
        share, surprise = self._share(state, new)
        path = self._point(state, reduction, state.theta if theta is None else theta)
        sums = new if state.sums is None else scaled(state.sums, share).combine(new)
        path = path if state.path is None else share * state.path + path
        rows = state.rows + reduction.rows
        found = dataclasses.replace(state, sums=sums, path=path, rows=rows, forgotten=state.forgotten + surprise)
        factor = self.factor(found)
        delta = gauss_newton(factor, self.lower - state.origin, self.upper - state.origin).delta
        estimate = np.clip(state.origin + delta, self.lower, self.upper)
        moved = float(np.linalg.norm(factor.r @ (estimate - state.theta))) / self.spread(found)
        return dataclasses.replace(found, theta=estimate, moved=moved)

    def factor(self, state: StreamState) -> Factor:
        """Return the triangle of all batches, with the residual at the origin."""
        sums = self.with_prior(state)
        p = len(state.theta)
        return factorise(sums.gram[:p, :p], sums.gram[:p, p], state.whitening, settled=True)

    def with_prior(self, state: StreamState) -> Reduction:
        """Return the sums, with what was known beforehand."""
        assert state.sums is not None
        if self.prior is None:
            return state.sums
        return self.prior.add_to(state.sums, state.origin, state.whitening)

    def cost(self, state: StreamState) -> float:
        """Return the cost of all batches at the estimate, as the linear models give it."""
        sums = self.with_prior(state)
        step = np.append(_coordinates(state.whitening, state.theta - state.origin), 1.0)
        return max(0.5 * float(step @ sums.gram @ step), 0.0)

    def spread(self, state: StreamState) -> float:
        """Return s, the residual standard deviation behind the standard errors."""
        assert state.sums is not None
        if self.absolute_sigma:
            return 1.0
        sums = state.sums
        s2 = 2.0 * self.cost(state) / max(sums.rows - len(state.theta), 1)
        rounding = 4.0 * EPS * float(np.sqrt((sums.spread + sums.weight * sums.mean**2) / max(sums.rows, 1)))
        return max(float(np.sqrt(s2)), rounding, 1e-150)

    def known(self, state: StreamState) -> tuple[Vector, Vector]:
        """Return the estimates and their standard errors, infinite as long as a direction is open."""
        factor = self.factor(state)
        return state.theta, (factor.spread if factor.determined.all() else np.full(factor.p, np.inf)) * self.spread(
            state
        )

    def uncertainty(self, state: StreamState) -> Matrix:
        """Return the inverse of the information (p, p) in the coordinates of the sums, zero where it is open."""
        assert state.sums is not None
        information = self.with_prior(state).gram[:-1, :-1]
        scale = np.sqrt(np.where(np.diag(information) > 0, np.diag(information), 1.0))
        values, vectors = np.linalg.eigh(information / scale / scale[:, None])
        inverse = np.where(values > 1e-12 * max(float(values[-1]), 0.0), 1.0 / np.where(values > 0, values, 1.0), 0.0)
        found: Matrix = (vectors * inverse) @ vectors.T / scale / scale[:, None]
        return found

    def strayed(self, state: StreamState) -> float:
        r"""Return how far the estimate is from where batches were linearised: the sum of |J_b (θ − θ_b)|² / s²."""
        if state.path is None:
            return 0.0
        step = np.append(_coordinates(state.whitening, state.theta - state.origin), -1.0)
        return max(float(step @ state.path @ step), 0.0) / self.spread(state) ** 2

    def _point(self, state: StreamState, reduction: Reduction, theta: Vector) -> Matrix:
        """Return where a batch was linearised, in the metric of its own information."""
        p = len(theta)
        frame = np.column_stack([np.eye(p), _coordinates(state.whitening, theta - state.origin)])
        found: Matrix = frame.T @ reduction.gram[:p, :p] @ frame
        return found

    def _about_origin(self, state: StreamState, reduction: Reduction, theta: Vector) -> Reduction:
        """Return a batch with its residual taken back to the origin along its Jacobian."""
        shift = np.eye(len(theta) + 1)
        shift[:-1, -1] = _coordinates(state.whitening, state.origin - theta)
        gram = shift.T @ reduction.gram @ shift
        return dataclasses.replace(reduction, gram=gram, cost=0.5 * float(gram[-1, -1]))

    def _share(self, state: StreamState, new: Reduction) -> tuple[float, bool]:
        """Return the factor of the old sums, and whether the batch was a surprise."""
        if state.sums is None:
            return 1.0, False
        if self.forget is not None:
            return self.forget, False
        p = len(state.theta)
        step = np.append(_coordinates(state.whitening, state.theta - state.origin), 1.0)
        score, information = (new.gram @ step)[:p], new.gram[:p, :p]
        values, vectors = np.linalg.eigh(state.sums.gram[:p, :p])
        seen = values > 1e-12 * max(float(values[-1]), 0.0)
        half = vectors[:, seen] / np.sqrt(values[seen])
        own, turn = np.linalg.eigh(half.T @ information @ half)
        known = own > 1e-9 * max(float(own[-1]), 0.0)
        if not known.any():
            return 1.0, False
        length = (turn.T @ (half.T @ score))[known] ** 2 / (own[known] + own[known] ** 2)
        statistic = float(length.sum()) / self.spread(state) ** 2
        if stats.chi2.sf(statistic, int(known.sum())) > _SURPRISE:
            return 1.0, False
        return min(1.0, new.rows / max(state.sums.rows, 1)), True


def scaled(sums: Reduction, share: float) -> Reduction:
    """Return sums as if each row counted for a share."""
    if share == 1.0:
        return sums
    return dataclasses.replace(
        sums,
        rows=share * sums.rows,  # type: ignore[arg-type]  # a number of rows that count, which need not be whole
        cost=share * sums.cost,
        gram=share * sums.gram,
        weight=share * sums.weight,
        spread=share * sums.spread,
        log_weight=share * sums.log_weight,
    )


def _coordinates(whitening: Whitening | None, delta: Vector) -> Vector:
    """Return a step in the coordinates of the sums."""
    return delta if whitening is None else whitening.inverse @ delta
