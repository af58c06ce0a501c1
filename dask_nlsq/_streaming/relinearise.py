r"""Relinearise the sums of a stream at another estimate, by means of a sample of its rows.

A stream adds up batches that were linearised where the estimate stood when they came. With the gradient
:math:`g_i(\theta)` of row i and :math:`l_i(\theta)` what its linearisation says of it, the sums are
:math:`L(\theta) = \sum_i l_i(\theta)`, and the gradient of all rows is

.. math:: G(\theta) = L(\theta) + \sum_i d_i(\theta), \qquad d_i = g_i - l_i .

The second sum is estimated from an even sample of m of the n rows: the linear model is a control variate (Cochran,
Sampling Techniques, 1977, section 7). Where batches were linearised near the estimate, :math:`d_i` is next to nothing
and no information is lost. Where they were not, the estimate of G has the sampling covariance

.. math:: V = \frac{n (n - m)}{m} \operatorname{Cov}(d),

and that of the parameters is :math:`A^{-1} (s^2 A + V) A^{-1}`. This is done slice by slice of the stream. In slices
where the linear model explains less than nothing, which is where the variance of :math:`g_i` is below that of
:math:`d_i`, the rows of the sample stand alone (:math:`l_i = 0`).
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
from scipy import stats

from dask_nlsq._kernel import Block, evaluate_rows
from dask_nlsq._model import Objective
from dask_nlsq._solver import Factor, Streaming, StreamState, coordinates, gauss_newton, inverse_root, triangle
from dask_nlsq._streaming.reservoir import Drawn
from dask_nlsq._typing import Matrix, Vector

SLICES = 64
"""Slices that are kept; beyond that, the two neighbours with the fewest rows become one."""

_FEWEST = 30
"""Rows of the sample in a slice, from which their covariance is estimated."""

_NEGLIGIBLE = 0.01
"""Variance that relinearising adds, relative to that of the sums, below which it need not be done."""

_CHANCE = 1e-4
"""Probability of sampling noise that is taken for a sign of poor linearisation."""

_POSITIVE = 0.25
"""Information of sums and sample, relative to that of the sample alone, below which, or above the inverse of which,
only the latter is used."""

_NEARER = 0.25
"""Variance that a linear model leaves, relative to what there is without it, below which the model is used."""

_ALIKE = 2.0
"""Ratio of the information in the linear model of a slice to that at the estimate, or of the sums to those of the
sample, up to which the model is used."""

_LOST = 1e-6
"""Probability of a rise of the cost of the sample, along a step, that is not taken."""

_HALVINGS = 6
"""Times that such a step is halved, less one, before it is given up."""

_SMALL, _TINY = 0.25, 0.02
"""Shift of the estimate, in standard errors, for which relinearising is not worth the noise that it adds; and where it
adds none."""

_STEPS = 10
"""Gauss-Newton steps at most; a few are needed."""


@dataclasses.dataclass(frozen=True)
class Slices:
    """Sums of consecutive batches, about the origin of the stream and in its coordinates."""

    gram: npt.NDArray[np.float64]  # (slices, p + 1, p + 1)
    rows: Vector  # (slices,)
    last: Vector  # (slices,), rows of the stream up to the end of each

    @classmethod
    def empty(cls, p: int) -> Slices:
        """Return no slices, of p parameters."""
        return cls(np.empty((0, p + 1, p + 1)), np.empty(0), np.empty(0))

    @property
    def total(self) -> float:
        """Rows of all slices."""
        return float(self.rows.sum())

    def add(self, gram: npt.NDArray[np.float64], rows: Vector, last: Vector) -> Slices:
        """Return these slices and later ones, of which neighbours are merged beyond `SLICES`."""
        slices = Slices(*map(np.concatenate, ((self.gram, gram), (self.rows, rows), (self.last, last))))
        while len(slices.rows) > SLICES:
            i = int(np.argmin(slices.rows[:-1] + slices.rows[1:]))
            slices = slices.merged(np.delete(np.arange(len(slices.rows)), i + 1))
        return slices

    def merged(self, starts: npt.NDArray[np.int64]) -> Slices:
        """Return fewer slices, which begin at these."""
        ends = np.append(starts[1:], len(self.rows)) - 1
        return Slices(np.add.reduceat(self.gram, starts), np.add.reduceat(self.rows, starts), self.last[ends])


@dataclasses.dataclass(frozen=True)
class _Rows:
    """A sample: rows (m,), each in a slice, with its linearisation about the origin of the stream."""

    objective: Objective
    block: Block
    state: StreamState
    slices: Slices
    which: npt.NDArray[np.int64]  # (m,), the slice of each row
    linear: Matrix  # (m, p + 1), Jacobian and residual at the origin

    @property
    def counts(self) -> Vector:
        """Rows of the sample in each slice."""
        return np.bincount(self.which, minlength=len(self.slices.rows)).astype(float)

    def at(self, theta: Vector) -> Matrix:
        """Return Jacobian and residual at `theta` (p,), in the coordinates of the sums."""
        rows = evaluate_rows(self.objective, self.block, np.tile(theta, (self.block.rows, 1)))
        return _in_coordinates(self.state, rows)


@dataclasses.dataclass(frozen=True)
class _Sums:
    """The gradient of all rows at an estimate, as the sums and the sample have it."""

    gram: Matrix  # (p + 1, p + 1), of Jacobian and residual there
    noise: Matrix  # (p, p), covariance of the gradient's sampling error
    shift: Vector  # (p,), what the sample adds to the gradient of the sums
    cost: float


@dataclasses.dataclass(frozen=True)
class Relinearised:
    """The state of a stream after relinearising, and whether Gauss-Newton has converged on the way."""

    state: StreamState
    converged: bool
    changed: bool  # whether the sums had to be changed


def relinearise(
    objective: Objective, solver: Streaming, state: StreamState, drawn: Drawn, slices: Slices, start: Vector | None
) -> Relinearised:
    """Return the estimate of all rows, with the covariance that the sample leaves.

    Parameters
    ----------
    objective : Objective
        What is fitted.
    solver : Streaming
        Bounds, prior and the rest.
    state : StreamState
        The sums of the stream.
    drawn : Drawn
        An even sample of its rows.
    slices : Slices
        Its sums, slice by slice.
    start : ndarray of shape (p,), optional
        Where to begin, which says that the sums are not to be used as they are.
    """
    with np.errstate(all="ignore"):
        try:
            return _relinearise(objective, solver, state, drawn, slices, start)
        except np.linalg.LinAlgError:  # sums that are beyond float64
            return Relinearised(state, False, False)


def _relinearise(
    objective: Objective, solver: Streaming, state: StreamState, drawn: Drawn, slices: Slices, start: Vector | None
) -> Relinearised:
    rows = _sample(objective, state, drawn, slices)
    theta = state.theta if start is None else start
    there = rows.at(theta)
    if not np.isfinite(there).all():
        # The estimate may lie where the model is not finite on all of the sample.
        return Relinearised(state, False, False)
    if start is None and state.restarts == 0:
        everywhere = np.ones(len(rows.slices.rows), bool)
        if _is_negligible(solver, state, _estimate(rows, there, theta, everywhere)):
            return Relinearised(state, True, False)
    used = _choose(rows, there, theta)
    step = np.inf
    for _ in range(_STEPS):
        sums = _estimate(rows, there, theta, used)
        s = _spread(solver, slices, sums, theta)
        factor = _factor(solver, state, rows, there, theta, sums)
        move = gauss_newton(factor, solver.lower - theta, solver.upper - theta)
        ahead = _shortened(solver, rows, theta, there, move.delta, s)
        if ahead is None:
            break
        (theta, there), step = ahead, move.length / s
        if step < 1e-6:
            break
    sums = _estimate(rows, there, theta, used)
    after = _restated(solver, state, rows, there, theta, sums)
    totals = after.totals
    finite = bool(np.isfinite(totals.gram).all() and (totals.meat is None or np.isfinite(totals.meat).all()))
    return Relinearised(after if finite else state, finite and bool(step < 1e-2), finite)


def _shortened(
    solver: Streaming, rows: _Rows, theta: Vector, there: Matrix, delta: Vector, s: float
) -> tuple[Vector, Matrix] | None:
    """Return the estimate after a step, halved until the sample allows it, and the rows there."""
    allowed = _cost(solver, theta, there) + 0.5 * s**2 * float(stats.chi2.isf(_LOST, len(theta)))
    for share in 0.5 ** np.arange(_HALVINGS):
        trial = np.clip(theta + share * delta, solver.lower, solver.upper)
        ahead = rows.at(trial)
        if np.isfinite(ahead).all() and _cost(solver, trial, ahead) <= allowed:
            return trial, ahead
    return None


def _cost(solver: Streaming, theta: Vector, there: Matrix) -> float:
    """Return the cost of the sample and of the prior."""
    prior = 0.0 if solver.prior is None else solver.prior.chisqr(theta)
    return 0.5 * (float(there[:, -1] @ there[:, -1]) + prior)


def _sample(objective: Objective, state: StreamState, drawn: Drawn, slices: Slices) -> _Rows:
    """Return the finite rows of a sample, and slices of which each holds enough of them."""
    block = drawn.block()
    linear = evaluate_rows(objective, block, drawn.thetas)
    linear[:, -1] += np.einsum("ij,ij->i", linear[:, :-1], state.origin - drawn.thetas)
    keep: npt.NDArray[np.bool_] = np.asarray(np.isfinite(linear).all(axis=1))
    which = np.minimum(np.searchsorted(slices.last, drawn.places), len(slices.last) - 1)[keep]
    starts = _starts(np.bincount(which, minlength=len(slices.rows)))
    which = np.searchsorted(starts, which, side="right") - 1
    return _Rows(objective, block.take(keep), state, slices.merged(starts), which, _in_coordinates(state, linear[keep]))


def _starts(counts: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the first of each run of slices that holds `_FEWEST` rows of the sample; the last run takes the rest."""
    starts, held = [0], 0
    for i, count in enumerate(counts):
        if held >= _FEWEST and counts[i:].sum() >= _FEWEST:
            starts.append(i)
            held = 0
        held += int(count)
    return np.array(starts)


def _in_coordinates(state: StreamState, rows: Matrix) -> Matrix:
    """Return rows of Jacobian and residual with the Jacobian in the coordinates of the sums."""
    if state.whitening is None:
        return rows
    return np.column_stack([rows[:, :-1] @ state.whitening.s, rows[:, -1]])


def _predicted(rows: _Rows, theta: Vector) -> Matrix:
    """Return the Jacobian and residual at `theta` that the linearisation of each row gives."""
    step = coordinates(rows.state.whitening, theta - rows.state.origin)
    return np.column_stack([rows.linear[:, :-1], rows.linear[:, -1] + rows.linear[:, :-1] @ step])


def _choose(rows: _Rows, there: Matrix, theta: Vector) -> npt.NDArray[np.bool_]:
    """Return in which slices the linear model leaves less variance than there is without it."""
    jacobian, residual = there[:, :-1], there[:, -1:]
    with np.errstate(all="ignore"):
        linear = _predicted(rows, theta)
        information = jacobian.T @ jacobian
        half, _ = inverse_root(information)
        scores = (jacobian * residual) @ half
        left = scores - (linear[:, :-1] * linear[:, -1:]) @ half
        plain, controlled = (_variance(rows, each) for each in (scores, left))
        present, sampled = (_lengths(rows, each @ half) for each in (jacobian, linear[:, :-1]))
        summed = np.einsum("ji,kjl,li->k", half, rows.slices.gram[:, :-1, :-1], half)
    found: npt.NDArray[np.bool_] = _partial(rows) & (controlled < _NEARER * plain)
    return found & _alike(sampled, present) & _alike(summed, sampled)


def _lengths(rows: _Rows, values: Matrix) -> Vector:
    """Return the squares of some values of the rows, added up over each slice for all of its rows."""
    sums = np.bincount(rows.which, np.square(values).sum(axis=1), len(rows.slices.rows))
    lengths: Vector = sums * rows.slices.rows / np.maximum(rows.counts, 1.0)
    return lengths


def _alike(first: Vector, second: Vector) -> npt.NDArray[np.bool_]:
    """Return which of two sums of squares differ by less than `_ALIKE` times."""
    alike: npt.NDArray[np.bool_] = (first < _ALIKE * second) & (second < _ALIKE * first)
    return alike


def _partial(rows: _Rows) -> npt.NDArray[np.bool_]:
    """Return of which slices the sample holds only some rows."""
    partial: npt.NDArray[np.bool_] = rows.counts < rows.slices.rows
    return partial


def _variance(rows: _Rows, values: Matrix) -> Vector:
    """Return the variance of some values of the rows in each slice, added over their columns."""
    counts = rows.counts
    away = np.square(values - _means(rows, values)[rows.which]).sum(axis=1)
    variance: Vector = np.bincount(rows.which, away, len(counts)).astype(float)
    return variance


def _means(rows: _Rows, values: Matrix) -> Matrix:
    """Return the means of some values of the rows, slice by slice."""
    counts = np.maximum(rows.counts, 1.0)
    sums = [np.bincount(rows.which, column, len(counts)).astype(float) for column in values.T]
    return np.stack(sums, axis=1) / counts[:, None]


def _estimate(rows: _Rows, there: Matrix, theta: Vector, used: npt.NDArray[np.bool_]) -> _Sums:
    """Return the sums at `theta`, from the linear models of the slices that are `used` and from the sample."""
    counts, p = rows.counts, len(theta)
    weight = rows.slices.rows / np.maximum(counts, 1.0)
    linear = _predicted(rows, theta) * used[rows.which][:, None]
    shift = np.eye(p + 1)
    shift[:-1, -1] = coordinates(rows.state.whitening, theta - rows.state.origin)
    of_slices = shift.T @ rows.slices.gram[used].sum(axis=0) @ shift
    w = weight[rows.which][:, None]
    gram = of_slices + (there * w).T @ there - (linear * w).T @ linear
    scores = there[:, :-1] * there[:, -1:] - linear[:, :-1] * linear[:, -1:]
    # n (n - m) / m of the V above, over m - 1, for V is summed from the rows and not from their covariance.
    factor = weight * np.maximum(weight - 1.0, 0.0) * counts / np.maximum(counts - 1.0, 1.0)
    away = scores - _means(rows, scores)[rows.which]
    noise = (away * factor[rows.which][:, None]).T @ away
    cost = 0.5 * float(gram[-1, -1])
    # A difference of sums may come out negative, which the sample alone cannot.
    if not cost > 0:
        cost = 0.5 * float((w[:, 0] * there[:, -1] ** 2).sum())
    return _Sums(gram, noise, (scores * w).sum(axis=0), cost)


def _spread(solver: Streaming, slices: Slices, sums: _Sums, theta: Vector) -> float:
    """Return the residual standard deviation."""
    if solver.absolute_sigma:
        return 1.0
    # Not zero, for data without noise: the square of the least is a float still.
    return max(float(np.sqrt(2.0 * sums.cost / max(slices.rows.sum() - len(theta), 1.0))), 1e-150)


def _is_negligible(solver: Streaming, state: StreamState, sums: _Sums) -> bool:
    """Whether the sums are as good as relinearised: what the sample adds is noise, and hardly any."""
    information = solver.with_prior(state).gram[:-1, :-1] * solver.residual_std(state) ** 2
    half, _ = inverse_root(information)
    noise, shift = half.T @ sums.noise @ half, half.T @ sums.shift
    eigenvalues, turn = np.linalg.eigh(noise)
    if eigenvalues[-1] > _NEGLIGIBLE:
        return False
    # What is smaller, relative to the largest, is rounding.
    known = eigenvalues > 1e-12 * max(float(eigenvalues[-1]), 1e-300)
    statistic = float(((turn.T @ shift)[known] ** 2 / eigenvalues[known]).sum())
    small = float(shift @ shift) < (_SMALL if eigenvalues.sum() > 1e-8 else _TINY) ** 2
    return small or (bool(known.any()) and statistic <= stats.chi2.isf(_CHANCE, int(known.sum())))


def _information(rows: _Rows, there: Matrix, sums: _Sums) -> Matrix:
    """Return the information (p, p) of all rows; that of the sample alone where both together are not positive."""
    weight = (rows.slices.rows / np.maximum(rows.counts, 1.0))[rows.which]
    alone = (there[:, :-1] * weight[:, None]).T @ there[:, :-1]
    both = sums.gram[:-1, :-1]
    half, _ = inverse_root(alone)
    if not (np.linalg.norm(half, axis=0) > 0).all() or not np.isfinite(both).all():
        return alone
    ratio = np.linalg.eigvalsh(half.T @ both @ half)
    return both if ratio[0] > _POSITIVE and ratio[-1] < 1.0 / _POSITIVE else alone


def _factor(solver: Streaming, state: StreamState, rows: _Rows, there: Matrix, theta: Vector, sums: _Sums) -> Factor:
    """Return the triangle of all rows at `theta`, with the prior."""
    gram = sums.gram.copy()
    gram[:-1, :-1] = _information(rows, there, sums)
    totals = dataclasses.replace(state.totals, gram=gram)
    if solver.prior is not None:
        totals = dataclasses.replace(totals, meat=None).with_prior(solver.prior, theta, state.whitening)
    return triangle(totals.gram, state.whitening, rows.slices.total)


def _restated(
    solver: Streaming, state: StreamState, rows: _Rows, there: Matrix, theta: Vector, sums: _Sums
) -> StreamState:
    """Return the state of a stream whose batches were all linearised at `theta`, its origin; noise is in the meat."""
    information = _information(rows, there, sums)
    gram = np.block([[information, sums.gram[:-1, -1:]], [sums.gram[-1:, :-1], np.array([[2.0 * sums.cost]])]])
    totals = dataclasses.replace(
        state.totals,
        rows=int(rows.slices.total),
        gram=gram,
        cost=sums.cost,
        # The covariance at the top with s² taken out: A⁻¹ (A + V / s²) A⁻¹.
        meat=information + sums.noise / _spread(solver, rows.slices, sums, theta) ** 2,
    )
    path = np.pad(information, (0, 1))
    return dataclasses.replace(state, theta=theta, origin=theta, sums=totals, path=path)
