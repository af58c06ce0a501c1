r"""Online Gauss-Newton: every batch of rows is linearised where it was evaluated, and the sums are solved anew.

A batch evaluated at :math:`\theta_b` has residuals r and Jacobian J there. Near it the model is linear, so about a
fixed origin :math:`\theta_0` the batch says

.. math:: \tfrac12 |J (\theta - \theta_0) + r_0|^2, \qquad r_0 = r + J (\theta_0 - \theta_b).

Such contributions add, whatever their order and wherever each was evaluated: that only shifts the points about which
the model is taken as linear. The estimate after each batch minimises their sum, and after one pass over well-posed data
it lies far closer to the minimiser of all rows than its standard errors (this is the information form of recursive
least squares; Ljung & Söderström, Theory and Practice of Recursive Identification, 1983).

With a factor :math:`\lambda < 1`, batch k of age a counts for :math:`\lambda^a`. With :math:`A = \sum \lambda^a A_k`
and :math:`B = \sum \lambda^{2a} A_k`, the covariance of the estimate is :math:`s^2 A^{-1} B A^{-1}`, and the sum of
squares has :math:`\sum \lambda^a n_k - \operatorname{tr} A^{-1} B` degrees of freedom. How fast to forget may be left
to the data (see `forgetting`).

A batch is set aside where the sums do not explain it. With its score g, its information :math:`A_b` and the information
A of those before,

.. math:: g^T (A_b + A_b A^{-1} A_b)^{-1} g / s^2

is then far above what :math:`\chi^2_p` allows. If the next batches contradict the sums in the same way, the process has
changed, and the sums begin anew with them; otherwise the batch was an outlier, and is left out.

Everything is kept in the coordinates of one fixed S, found at the start, in which the columns of JS are nearly
orthonormal, so that adding products of J costs no digits.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import scipy

from dask_nlsq._kernel import Reduction, Request, Whitening
from dask_nlsq._model import Prior
from dask_nlsq._solver import forgetting, inference
from dask_nlsq._solver.base import Solver
from dask_nlsq._solver.factor import EPS, Factor, factorise
from dask_nlsq._solver.forgetting import Bank, scaled
from dask_nlsq._solver.subproblem import gauss_newton
from dask_nlsq._typing import Matrix, Vector

_SURPRISE = 1e-6
"""Probability of a batch, were nothing to change, from which it is set aside."""

_STALE = 1e3
"""Square of an entry of JS from which the S that was found at the start no longer suits its column."""

_UNLIKE = 1e-3
"""Probability of batches of one process, from which they are taken for those of several."""

_HARDLY_SEEN = 1e-7
"""Singular value of the scaled Jacobian, relative to the largest, of a direction that later data may see far better."""

_FAINT = 0.05
"""Weight of the old sums beside a batch that contradicts them, where the next batches are compared with it."""


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
    forgotten: int = 0  # changes of the process, after which the sums were begun anew
    restarts: int = 0  # batches after which the sums were begun anew
    moved: float = float("inf")  # length of the last move, in standard errors
    # Where what is old counts for less.
    squares: float = 0.0  # rows by the square of their weight
    bank: Bank | None = None  # where the factor is chosen by the data
    # Batches that contradict the sums.
    pending: Reduction | None = None  # those that wait for the next to confirm or to contradict them
    waiting: int = 0  # their number
    set_aside: int = 0  # batches that were left out as outliers
    # How far batches are from what was known before them, as a sum of squares of so many standard normal numbers.
    contradiction: float = 0.0
    compared: int = 0

    @property
    def totals(self) -> Reduction:
        """The sums, of a state that has seen rows."""
        if self.sums is None:
            raise RuntimeError("No batch with rows has been seen yet.")
        return self.sums


@dataclasses.dataclass(frozen=True)
class Streaming(Solver[StreamState]):
    """Options of the solver; bounds are arrays of shape (p,)."""

    lower: Vector
    upper: Vector
    prior: Prior | None = None
    absolute_sigma: bool = False
    forget: float | None = 1.0  # factor of the old sums at each batch; None: chosen by the data
    compare: bool = False  # whether to sum up how far batches contradict each other
    robust: bool = False  # whether batches that contradict the sums are set aside, which None implies

    def init(self, theta: Vector, whitening: Whitening | None = None) -> StreamState:
        """Return the state before the first batch, at `theta` (p,)."""
        theta = np.asarray(theta, float)
        return StreamState(theta, theta, whitening)

    def request(self, state: StreamState) -> Request:
        """Return where the next batch is to be evaluated."""
        return Request(state.theta, state.whitening)

    def terminate(self, state: StreamState) -> bool:
        """Return False: a stream ends with its data."""
        return False

    def step(self, state: StreamState, reduction: Reduction, theta: Vector | None = None) -> StreamState:
        """Add a batch that was evaluated at `theta` (p,), by default at the estimate, and move the estimate."""
        state = dataclasses.replace(state, batches=state.batches + 1, dropped=state.dropped + reduction.dropped)
        if reduction.rows == 0:
            return state
        if not reduction.sums_finite:
            return dataclasses.replace(state, skipped=state.skipped + 1)
        theta = state.theta if theta is None else theta
        new, path = self.about_origin(state, reduction, theta), self._point(state, reduction, theta)
        state = dataclasses.replace(state, rows=state.rows + reduction.rows)
        if state.sums is not None and (self.robust or self.forget is None):
            state, held = self._gate(state, new)
            if held:
                return state
        if self.compare and state.sums is not None:
            length, known = self._contradiction(state, state.sums, new)
            length = state.contradiction + length / self.residual_std(state) ** 2
            state = dataclasses.replace(state, contradiction=length, compared=state.compared + known)
        updated = self._added(state, new, path)
        estimate = self._estimate(updated)
        moved = float(np.linalg.norm(self.factor(updated).r @ (estimate - state.theta))) / self.residual_std(updated)
        return dataclasses.replace(updated, theta=estimate, moved=moved)

    def _added(self, state: StreamState, new: Reduction, path: Matrix) -> StreamState:
        """Return the state with a batch added to its sums, about the origin, and the estimate as it was."""
        if self.forget is None:
            return self._added_to_bank(state, new, path)
        if self.forget < 1 or (state.sums is not None and state.sums.meat is not None):
            new = dataclasses.replace(new, meat=new.gram[:-1, :-1])
        sums = new if state.sums is None else scaled(state.sums, self.forget).combine(new)
        path = path if state.path is None else self.forget * state.path + path
        squares = self.forget**2 * state.squares + new.rows
        return dataclasses.replace(state, sums=sums, path=path, squares=squares)

    def _added_to_bank(self, state: StreamState, new: Reduction, path: Matrix) -> StreamState:
        prior = self._prior_gram(state)
        if state.bank is None:
            bank = forgetting.begin(new)
        else:
            bank = forgetting.advance(state.bank, new, self.residual_std(state) ** 2, prior)
        best = bank.best
        sums = dataclasses.replace(bank.members[best], meat=None)
        path = path if state.path is None else forgetting.FACTORS[best] * state.path + path
        return dataclasses.replace(state, sums=sums, path=path, squares=float(bank.squares[best]), bank=bank)

    def _estimate(self, state: StreamState) -> Vector:
        """Return the minimiser of the sums inside the bounds, or the mean of those under several factors."""
        delta = gauss_newton(self.factor(state), self.lower - state.origin, self.upper - state.origin).delta
        if state.bank is not None and not self._at_bounds(state.origin + delta):
            mixed = forgetting.mix(state.bank, self.residual_std(state) ** 2, self._prior_gram(state)).delta
            delta = mixed if state.whitening is None else state.whitening.s @ mixed
        return np.clip(state.origin + delta, self.lower, self.upper)

    def _at_bounds(self, theta: Vector) -> bool:
        return bool(((theta <= self.lower) | (theta >= self.upper)).any())

    def _prior_gram(self, state: StreamState) -> Matrix:
        """Return what the prior adds to the sums, (p + 1, p + 1)."""
        p = len(state.theta)
        if self.prior is None:
            return np.zeros((p + 1, p + 1))
        nothing = Reduction(
            0, 0, 0.0, np.zeros((p + 1, p + 1)), 0.0, 0.0, 0.0, 0.0, np.zeros(0), np.zeros(0, np.uint64)
        )
        return nothing.with_prior(self.prior, state.origin, state.whitening).gram

    # --- batches that contradict the sums -----------------------------------------------------------------------------

    def _gate(self, state: StreamState, new: Reduction) -> tuple[StreamState, bool]:
        """Compare a batch with the sums; return the state to which it is to be added, or the one that holds it back."""
        share = forgetting.FACTORS[state.bank.best] if state.bank is not None else self.forget or 1.0
        s2 = self.residual_std(state) ** 2
        if not self._surprising(state, scaled(state.totals, share), new, s2):
            return self._without_pending(state), False
        if state.pending is not None:
            faint = self._faint(state, state.pending.rows)
            if not self._surprising(state, faint.combine(state.pending), new, s2):
                pending = state.pending.combine(new)
                if pending.rows > 2 * len(state.theta):
                    return self._changed(state, self._faint(state, pending.rows).combine(state.pending)), False
                return dataclasses.replace(state, pending=pending, waiting=state.waiting + 1), True
            state = self._without_pending(state)
        return dataclasses.replace(state, pending=new, waiting=1), True

    def _without_pending(self, state: StreamState) -> StreamState:
        """Return the state with the batches that waited left out."""
        if state.pending is None:
            return state
        rows, left_out = state.rows - state.pending.rows, state.set_aside + state.waiting
        return dataclasses.replace(state, pending=None, waiting=0, set_aside=left_out, rows=rows)

    def _changed(self, state: StreamState, sums: Reduction) -> StreamState:
        """Return the state in which the process has changed, and only what came since counts."""
        if self.forget is None:
            bank = forgetting.begin(sums)
            changed = dataclasses.replace(state, bank=bank)
        else:
            changed = state
            if self.forget < 1:
                sums = dataclasses.replace(sums, meat=sums.gram[:-1, :-1])
        return dataclasses.replace(
            changed,
            sums=sums,
            path=None,
            squares=float(sums.rows),
            pending=None,
            waiting=0,
            forgotten=state.forgotten + 1,
        )

    def _faint(self, state: StreamState, rows: float) -> Reduction:
        """Return the old sums with hardly any weight beside so many rows."""
        sums = dataclasses.replace(state.totals, meat=None)
        return scaled(sums, min(1.0, _FAINT * rows / max(sums.rows, 1)))

    def _surprising(self, state: StreamState, sums: Reduction, new: Reduction, s2: float) -> bool:
        """Whether a batch is farther from what sums predict than chance allows."""
        statistic, known = self._contradiction(state, sums, new)
        return known > 0 and bool(scipy.stats.chi2.sf(statistic / s2, known) < _SURPRISE)

    def _contradiction(self, state: StreamState, sums: Reduction, new: Reduction) -> tuple[float, int]:
        """Return how far a batch is from what sums predict, times s², and the directions of which both know."""
        p, whole = len(state.theta), sums.gram + self._prior_gram(state)
        half, _ = forgetting.inverse_root(whole[:p, :p])
        step = np.append(-half @ (half.T @ whole[:p, p]), 1.0)
        score, information = (new.gram @ step)[:p], new.gram[:p, :p]
        eigenvalues, turn = np.linalg.eigh(half.T @ information @ half)
        known = eigenvalues > 1e-9 * max(float(eigenvalues[-1]), 0.0)
        length = (turn.T @ (half.T @ score))[known] ** 2 / (eigenvalues[known] + eigenvalues[known] ** 2)
        return float(length.sum()), int(known.sum())

    def unlike(self, state: StreamState) -> bool:
        """Whether batches contradict each other by more than noise: their parameters differ, or the model is wrong."""
        return state.compared > 0 and bool(scipy.stats.chi2.sf(state.contradiction, state.compared) < _UNLIKE)

    # --- several streams ----------------------------------------------------------------------------------------------

    def about(
        self, state: StreamState, target: StreamState, grams: npt.NDArray[np.float64], sign: float = 1.0
    ) -> npt.NDArray[np.float64]:
        """Return sums (..., p + 1, p + 1) of a stream about the origin and in the coordinates of another.

        The last column holds residuals, or with the sign -1, distances from the origin.
        """
        p = len(state.theta)
        turn = np.eye(p + 1)
        s = np.eye(p) if target.whitening is None else target.whitening.s
        turn[:-1, :-1] = coordinates(state.whitening, s)
        turn[:-1, -1] = sign * coordinates(state.whitening, target.origin - state.origin)
        turned: npt.NDArray[np.float64] = turn.T @ grams @ turn
        return turned

    def moved(self, state: StreamState, target: StreamState) -> StreamState:
        """Return a state about the origin and in the coordinates of another, without batches that wait."""
        state = self._without_pending(state)

        def turned(sums: Reduction) -> Reduction:
            gram, meat = self.about(state, target, sums.gram), sums.meat
            if meat is not None:
                meat = self.about(state, target, np.pad(meat, (0, 1)))[:-1, :-1]
            return dataclasses.replace(sums, gram=gram, meat=meat, cost=0.5 * float(gram[-1, -1]))

        bank = state.bank and dataclasses.replace(state.bank, members=tuple(map(turned, state.bank.members)))
        path = None if state.path is None else self.about(state, target, state.path, -1.0)
        origin, whitening = target.origin, target.whitening
        return dataclasses.replace(
            state, origin=origin, whitening=whitening, sums=turned(state.totals), path=path, bank=bank
        )

    def merge(self, left: StreamState, right: StreamState) -> StreamState:
        """Return the state of two streams together, whose sums are about one origin and in one coordinates."""
        left, right = self._without_pending(left), self._without_pending(right)
        first, second = (self._with_meat(state.totals, left, right) for state in (left, right))
        paths = [state.path for state in (left, right) if state.path is not None]
        bank = None if left.bank is None or right.bank is None else forgetting.merge(left.bank, right.bank)
        counts = ("batches", "rows", "dropped", "skipped", "forgotten", "restarts", "set_aside", "squares")
        merged = dataclasses.replace(
            left,
            sums=dataclasses.replace(bank.members[bank.best], meat=None) if bank else first.combine(second),
            path=np.add.reduce(paths) if paths else None,
            bank=bank,
            **{name: getattr(left, name) + getattr(right, name) for name in counts},
        )
        estimate = self._estimate(merged)
        moved = float(np.linalg.norm(self.factor(merged).r @ (estimate - left.theta))) / self.residual_std(merged)
        return dataclasses.replace(merged, theta=estimate, moved=moved)

    def _with_meat(self, sums: Reduction, *states: StreamState) -> Reduction:
        """Return sums with the meat that those of one of two states have."""
        if sums.meat is not None or all(state.sums is None or state.sums.meat is None for state in states):
            return sums
        return dataclasses.replace(sums, meat=sums.gram[:-1, :-1])

    # --- what is known ------------------------------------------------------------------------------------------------

    def factor(self, state: StreamState) -> Factor:
        """Return the triangle of all batches, with the residual at the origin."""
        sums = self.with_prior(state)
        return triangle(sums.gram, state.whitening, sums.rows)

    def with_prior(self, state: StreamState) -> Reduction:
        """Return the sums, with what was known beforehand."""
        if self.prior is None:
            return state.totals
        return state.totals.with_prior(self.prior, state.origin, state.whitening)

    def cost(self, state: StreamState) -> float:
        """Return the cost of all batches at the estimate, as the linear models give it."""
        sums = self.with_prior(state)
        step = np.append(coordinates(state.whitening, state.theta - state.origin), 1.0)
        return max(0.5 * float(step @ sums.gram @ step), 0.0)

    def residual_std(self, state: StreamState) -> float:
        """Return s, the residual standard deviation behind the standard errors."""
        if self.absolute_sigma:
            return 1.0
        sums, s2 = state.totals, self.residual_variance(state)
        rounding = 4.0 * EPS * float(np.sqrt(sums.weighted_sum_of_squares / max(sums.rows, 1)))
        return max(float(np.sqrt(s2)), rounding, 1e-150)

    def _taken(self, state: StreamState) -> float:
        """Return the degrees of freedom that the parameters take, of rows that count by their weights."""
        p, rows = len(state.theta), max(state.totals.rows, 1e-300)
        return p * state.squares / rows if self.forget != 1 and state.squares > 0 else float(p)

    def effective_rows(self, state: StreamState) -> float:
        """Return the number of rows of equal weight that would tell as much."""
        if self.forget == 1 or not state.squares > 0:
            return float(state.totals.rows)
        return float(state.totals.rows) ** 2 / state.squares

    def residual_variance(self, state: StreamState) -> float:
        """Return the sum of squares over its degrees of freedom."""
        return 2.0 * self.cost(state) / max(state.totals.rows - self._taken(state), 1)

    def covariance(self, state: StreamState, s2: float, free: npt.NDArray[np.bool_]) -> Matrix:
        """Return the covariance (p, p) of the estimates for the residual variance s², NaN for those not `free`."""
        factor = self.factor(state)
        if state.bank is not None and free.all() and factor.determined.all():
            mixture = forgetting.mix(state.bank, self.residual_std(state) ** 2, self._prior_gram(state)).covariance
            s = np.eye(len(free)) if state.whitening is None else state.whitening.s
            mixed: Matrix = s2 * (s @ mixture @ s.T)
            return mixed
        meat = self.with_prior(state).meat
        if meat is not None and state.whitening is not None:
            meat = state.whitening.inverse.T @ meat @ state.whitening.inverse
        return inference.covariance(factor, s2, free, meat)

    def known(self, state: StreamState) -> tuple[Vector, Vector]:
        """Return the estimates and their standard errors, infinite as long as a direction is open."""
        factor = self.factor(state)
        stderr = factor.unscaled_stderr if factor.determined.all() else np.full(factor.p, np.inf)
        return state.theta, stderr * self.residual_std(state)

    def uncertainty(self, state: StreamState) -> Matrix:
        """Return the inverse of the information (p, p) in the coordinates of the sums, zero where it is open."""
        information = self.with_prior(state).gram[:-1, :-1]
        scale = np.sqrt(np.where(np.diag(information) > 0, np.diag(information), 1.0))
        values, vectors = np.linalg.eigh(information / scale / scale[:, None])
        inverse = np.where(values > 1e-12 * max(float(values[-1]), 0.0), 1.0 / np.where(values > 0, values, 1.0), 0.0)
        covariance: Matrix = (vectors * inverse) @ vectors.T / scale / scale[:, None]
        return covariance

    def strayed(self, state: StreamState) -> float:
        r"""Return how far the estimate is from where batches were linearised: the sum of |J_b (θ − θ_b)|² / s²."""
        if state.path is None:
            return 0.0
        step = np.append(coordinates(state.whitening, state.theta - state.origin), -1.0)
        return max(float(step @ state.path @ step), 0.0) / self.residual_std(state) ** 2

    def _point(self, state: StreamState, reduction: Reduction, theta: Vector) -> Matrix:
        """Return where a batch was linearised, in the metric of its own information."""
        p = len(theta)
        frame = np.column_stack([np.eye(p), coordinates(state.whitening, theta - state.origin)])
        metric: Matrix = frame.T @ reduction.gram[:p, :p] @ frame
        return metric

    def about_origin(self, state: StreamState, reduction: Reduction, theta: Vector) -> Reduction:
        """Return a batch with its residual taken back to the origin along its Jacobian."""
        shift = np.eye(len(theta) + 1)
        shift[:-1, -1] = coordinates(state.whitening, state.origin - theta)
        gram = shift.T @ reduction.gram @ shift
        return dataclasses.replace(reduction, gram=gram, cost=0.5 * float(gram[-1, -1]))


def triangle(gram: Matrix, whitening: Whitening | None, rows: float) -> Factor:
    """Return the triangle of sums (p + 1, p + 1) over so many rows, in the coordinates of an S that may be stale.

    S was found where its columns gave JS entries of about one. Where data that came later see a direction that was
    hardly seen then, its column is scaled down first.
    """
    scale = np.ones(len(gram) - 1)
    if whitening is not None:
        squares, usual = gram.diagonal()[:-1], max(float(rows), 1.0)
        scale = np.where(squares > _STALE * usual, np.sqrt(usual / np.maximum(squares, 1e-300)), 1.0)
        whitening = Whitening(whitening.s * scale, whitening.inverse / scale[:, None])
    return factorise(gram[:-1, :-1] * scale * scale[:, None], gram[:-1, -1] * scale, whitening, settled=True)


def preconditioner(factor: Factor) -> Whitening | None:
    """Return the S in whose coordinates sums are to be kept, or None where scaling alone will do.

    Directions that are hardly seen are not stretched to unit length, since later data may see them well.
    """
    whitening = factor.whitening()
    _, sigma, vt = factor.svd
    if whitening is None or sigma[-1] > _HARDLY_SEEN * sigma[0]:
        return whitening
    sigma = np.maximum(sigma, _HARDLY_SEEN * max(sigma[0], EPS))
    return Whitening((vt.T / sigma) / factor.norms[:, None], (sigma[:, None] * vt) * factor.norms)


def coordinates(whitening: Whitening | None, delta: Vector) -> Vector:
    """Return a step in the coordinates of the sums."""
    return delta if whitening is None else whitening.inverse @ delta
