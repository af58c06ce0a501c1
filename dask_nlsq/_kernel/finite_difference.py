r"""Reduce one block of a model that JAX cannot trace: NumPy, with central differences or the user's Jacobian.

The sums are those of the compiled kernel. Column j of the Jacobian is

.. math:: J_{ij} \approx \frac{f(x_i; \theta + h_j e_j) - f(x_i; \theta - h_j e_j)}{2 h_j}.

The step belongs to the model and not to the value of the parameter: a position of 57958 may be that of a line with the
width 0.05. With the norms over the rows of f, of the first difference :math:`d_1 = |f_+ - f_-|` and of the second
:math:`d_2 = |f_+ - 2 f + f_-|`, the slope is :math:`g = d_1 / 2 h` and the length over which it changes
:math:`L = h d_1 / 2 d_2`. Rounding makes the relative error :math:`\epsilon |f| / g h` in the slope, and the third
derivative, about :math:`g / L^2`, the error :math:`h^2 / 6 L^2`. Their sum is least at

.. math:: h^* = \left(\frac{3 \epsilon |f| L^2}{g}\right)^{1/3},

to about ten digits (Press et al., Numerical Recipes, section 5.7). The first step is :math:`\epsilon^{1/3} |\theta_j|`,
or :math:`\epsilon^{1/3}` at zero, which suits most parameters: it is kept where the model is nearly straight within it
and rounding leaves six digits. Else it is replaced by :math:`h^*`, a thousandth of it at the least, for as long as
it leaps over what the model does the norms say no more than that. Each costs two evaluations. Where one side is not
finite, the other side is taken alone. Rows are taken in pieces, so that memory stays at a few columns of a piece, and
each piece has its own steps: they depend on its rows and the parameters alone.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_nlsq._errors import ModelError
from dask_nlsq._kernel import safeguarded_difference
from dask_nlsq._kernel.block import Block
from dask_nlsq._kernel.reduction import Reduction, differences
from dask_nlsq._model import Objective, loss, saturated
from dask_nlsq._typing import Matrix, Vector

PIECE = 65_536
"""Rows evaluated at a time."""

_EPS = sys.float_info.epsilon
_STEP: float = _EPS ** (1 / 3)

_BENT = 1e-4
"""Second difference over the first from which a step is too long: the error of central differences goes with its
square."""

_BENT_ONCE = 1e-2
"""Relative change of a slope of one side, when its step is halved, from which the step is too long."""

_DROWNED = 1e-9
"""First difference, relative to f, below which a step is too short: rounding takes more than six of its digits."""

_BEND = 1e-4
"""Relative change of the model by a step for differences of the Jacobian."""

_TRIES = 8
"""Steps tried for one column."""

_ROUNDING = 8.0 * _EPS
"""A second difference, relative to f, that is rounding."""

_NEAR = 8.0
"""Factor of the best step that makes hardly a difference."""

_FARTHEST = 1e3
"""By what a step is lengthened or shortened at most, for its differences say little of farther ones."""

_SHORTER = 1e-3
"""By what a step is shortened that leads to where the model is not finite, or bends on the one side that is."""


def reduce_block(
    objective: Objective, block: Block, theta: Vector, whitening: Matrix | None, second: bool = False
) -> Reduction:
    """Sweep one block at `theta` (p,), with the Jacobian multiplied by `whitening` (p, p) where given.

    With `second`, the curvature holds the second derivatives of the model too, as differences of the Jacobian.
    """
    total = empty(objective, block)
    for start in range(0, block.rows, PIECE):
        piece = block.take(slice(start, start + PIECE)).wide()
        with np.errstate(all="ignore"):
            total = total.combine(_reduce_piece(objective, piece, theta, whitening, second).placed(row=start))
    return total


def empty(objective: Objective, block: Block) -> Reduction:
    """Return the reduction of no rows of a block, with what is known of it before its rows are seen."""
    p, columns = objective.n_parameters, objective.n_columns + 1
    gram, sums = np.zeros((p + 1, p + 1)), np.zeros(objective.n_columns)
    checksum = np.zeros(columns + objective.weighted, np.uint64)
    rounded = frozenset(block.rounded)
    return Reduction(0, block.dropped, 0.0, gram, 0.0, 0.0, 0.0, 0.0, sums, checksum, rounded)


def values(objective: Objective, x: tuple[Vector, ...], everything: list[float]) -> Vector:
    """Evaluate the model at all its parameters; shape (rows,)."""
    # Python's floats have complex powers where NumPy's have NaN.
    scalars = [np.float64(value) if isinstance(value, float) else value for value in everything]
    f = np.asarray(objective.values(x, scalars, np.stack))
    if f.shape != x[0].shape:
        raise ModelError(
            f"The model {objective.model.name!r} returns the shape {f.shape} for {len(x[0])} rows; ({len(x[0])},) is "
            "needed, one number a row."
        )
    if f.dtype.kind not in "fiub":
        raise ModelError(f"The model {objective.model.name!r} returns {f.dtype}; real numbers are needed.")
    return f.astype(float)


def check_rows(objective: Objective, x: tuple[Vector, ...], points: Matrix) -> tuple[Matrix, Matrix]:
    """Evaluate the rows of `x` at each point, (points, p), whole and one by one.

    A function that says it is ``row_wise`` is not looked at.
    """
    if getattr(objective.model.func, "row_wise", False):
        return np.empty((0, 0)), np.empty((0, 0))
    whole, single = [], []
    for theta in points.tolist():
        everything = list(objective.expand(theta))
        whole.append(values(objective, x, everything))
        single.append([values(objective, tuple(c[i : i + 1] for c in x), everything)[0] for i in range(len(x[0]))])
    return np.array(whole), np.array(single)


def _reduce_piece(
    objective: Objective, block: Block, theta: Vector, whitening: Matrix | None, second: bool
) -> Reduction:
    p = len(theta)
    f = values(objective, block.x, list(objective.expand(theta.tolist())))
    w = block.weights
    residual, log_weight, of_y = f - block.y, np.log(w[w > 0]), w**2
    if objective.counts:
        rows = objective.count_rows(f, block.y, w, np)
        log_weight = saturated(str(objective.loss), block.y, w, np)
        residual, w, of_y = rows.residual, rows.scale, 1.0 / np.maximum(block.y, 1.0)
    jac, taken = whole_jacobian(objective, block.x, theta, f, w)  # each (p, rows)
    flat = (taken & (jac == 0)).sum(axis=1)
    bends = second_derivatives(objective, block.x, theta, f, jac, w**2 * residual) if second else None
    if whitening is not None:
        jac = whitening.T @ jac
    w2 = w**2
    a = np.concatenate([jac, residual[None]])
    slope, curvature = np.ones(block.rows), None
    if objective.robust:
        z = w2 * residual**2 / objective.f_scale**2
        rho, slope, bend = (np.asarray(part) for part in loss.evaluate(objective.loss, z))
        cost = 0.5 * objective.f_scale**2 * float(np.sum(np.where(w2 > 0, rho, 0.0)))
        curvature = (jac * (w2 * loss.curvature(z, slope, bend))) @ jac.T
    gram = (a * (w2 * slope)) @ a.T
    if objective.quadratic:
        cost = 0.5 * float(gram[p, p])
    elif objective.counts:
        cost = float(rows.cost.sum())
    if bends is not None:
        bent = (jac * (w2 * rows.bend)) @ jac.T if objective.counts else gram[:p, :p]
        curvature = bent + (bends if whitening is None else whitening.T @ bends @ whitening)
    columns = (*block.x, block.y) if block.weight is None else (*block.x, block.y, block.weight)
    weight = float(of_y.sum())
    mean = float((of_y * block.y).sum() / weight) if weight > 0 else 0.0
    return Reduction(
        rows=block.rows,
        dropped=0,
        cost=cost,
        gram=gram,
        weight=weight,
        mean=mean,
        response_sum_of_squares=float((of_y * (block.y - mean) ** 2).sum()),
        log_weight=float(log_weight.sum()),
        sums=np.array([c.sum() for c in block.x]),
        checksum=np.array([_hash(c) for c in columns]),
        curvature=curvature,
        meat=(jac * (w2 * slope * residual) ** 2) @ jac.T if objective.sandwich else None,
        differences=differences(taken.sum(axis=1), taken.argmax(axis=1), flat),
    )


def scores(objective: Objective, block: Block, theta: Vector) -> Matrix:
    """Return the score of each row, (rows, p); see `scores.evaluate_scores`."""
    parts = [np.empty((0, len(theta)))]
    for start in range(0, block.rows, PIECE):
        piece = block.take(slice(start, start + PIECE)).wide()
        f, w = values(objective, piece.x, list(objective.expand(theta.tolist()))), piece.weights
        residual = f - piece.y
        if objective.counts:
            rows = objective.count_rows(f, piece.y, w, np)
            residual, w = rows.residual, rows.scale
        score = w**2 * residual
        if objective.robust:
            score = score * np.asarray(loss.evaluate(objective.loss, (w * residual / objective.f_scale) ** 2)[1])
        jac, _ = whole_jacobian(objective, piece.x, theta, f, w)
        parts.append((jac * score).T)
    return np.concatenate(parts)


def whole_jacobian(
    objective: Objective, x: tuple[Vector, ...], theta: Vector, f: Vector, w: Vector
) -> tuple[Matrix, npt.NDArray[np.bool_]]:
    """Return the Jacobian, and which entries of one that is given are differences, for they were not finite."""
    jac = _jacobian(objective, x, theta, f)
    if objective.jac is None or np.isfinite(jac).all():
        return jac, np.zeros(jac.shape, bool)
    # NaN times the weight 0 would still be NaN in the sums.
    jac = np.where((w == 0) & ~np.isfinite(jac), 0.0, jac)

    def evaluate(theta: Vector) -> Vector:
        return values(objective, x, list(objective.expand(theta.tolist())))

    mended = safeguarded_difference.mend(evaluate, theta, f, jac)
    return mended, np.isfinite(mended) & ~np.isfinite(jac)


def second_derivatives(
    objective: Objective, x: tuple[Vector, ...], theta: Vector, f: Vector, jac: Matrix, residual: Vector
) -> Matrix | None:
    """Return the sum over rows of the second derivatives of the model times the `residual` (rows,); shape (p, p).

    They are central differences of the Jacobian; None where those are not finite.
    """
    reach = np.linalg.norm(f) / np.where(jac.any(axis=1), np.linalg.norm(jac, axis=1), np.inf)
    hessian = np.empty((len(theta), len(theta)))
    for j, value in enumerate(theta):
        ends = theta + np.array([[-1.0], [1.0]]) * np.where(np.arange(len(theta)) == j, _BEND * reach[j], 0.0)
        # The column is zero, or the step is lost in the rounding of the parameter: step as for a first derivative.
        if ends[1, j] == ends[0, j]:
            ends[:, j] += (-_STEP * (abs(value) or 1.0), _STEP * (abs(value) or 1.0))
        behind, ahead = (
            _jacobian(objective, x, end, values(objective, x, list(objective.expand(end.tolist())))) for end in ends
        )
        hessian[j] = (ahead - behind) @ residual / (ends[1, j] - ends[0, j])
    # Each mixed derivative was formed twice, and differs by the errors of the two differences.
    return 0.5 * (hessian + hessian.T) if np.isfinite(hessian).all() else None


def _jacobian(objective: Objective, x: tuple[Vector, ...], theta: Vector, f: Vector) -> Matrix:
    """Return the derivative of the model with respect to the free parameters, (p, rows)."""
    if objective.jac is not None:
        return _given(objective, objective.jac, x, theta, len(f))
    jac = np.empty((len(theta), len(f)))
    for j, value in enumerate(theta):
        h = _STEP * (abs(value) or 1.0)
        for _ in range(_TRIES):
            jac[j], better = _difference(objective, x, theta, f, j, h)
            if better == h:
                break
            h = better
    return jac


def _difference(
    objective: Objective, x: tuple[Vector, ...], theta: Vector, f: Vector, j: int, h: float
) -> tuple[Vector, float]:
    """Return column j by central differences with the step h, (rows,), and the step that suits it better."""
    ahead, behind = theta.copy(), theta.copy()
    ahead[j] += h
    behind[j] -= h
    up, down = (values(objective, x, list(objective.expand(t.tolist()))) for t in (ahead, behind))
    # Divided by the distance of the two points as float64 holds them, which differs from 2 h by rounding of the
    # parameter.
    both = (up - down) / (ahead[j] - behind[j])
    one_sided = np.where(np.isfinite(up), (up - f) / (ahead[j] - theta[j]), (f - down) / (theta[j] - behind[j]))
    seen = np.isfinite(both) | ~np.isfinite(f)
    if not seen.all():
        return np.where(seen, both, one_sided), _shorter(objective, x, theta, f, j, h, one_sided, ~seen)
    first, second, size = (float(np.sqrt(np.sum(d * d, where=seen))) for d in (up - down, up - 2 * f + down, f))
    return both, h * _stretch(first, second, size, h, theta[j])


def _stretch(first: float, second: float, size: float, h: float, value: float) -> float:
    """Return the factor of a step that suits a column better, 1 where it suits, from norms of the differences."""
    if first <= _ROUNDING * size:
        if second > _ROUNDING * size:  # a leap to two sides that are alike
            return 1.0 / _FARTHEST
        if value == 0:  # its units are not known
            return _FARTHEST if h < _STEP * _FARTHEST**4 else 1.0
        return max(_STEP / h, 1.0)
    if first > _DROWNED * size and second <= max(_BENT * first, 1e3 * _EPS * size):
        return 1.0
    straight = first / max(second, _ROUNDING * size)
    # h*/h by the formula at the top, with g = d₁ / 2h and L = h d₁ / 2d₂.
    best: float = (1.5 * _EPS * size / first * straight**2) ** (1 / 3)
    if 1.0 / _NEAR <= best <= _NEAR:
        return 1.0
    return min(max(best, 1.0 / _FARTHEST), _FARTHEST)


def _shorter(
    objective: Objective,
    x: tuple[Vector, ...],
    theta: Vector,
    f: Vector,
    j: int,
    h: float,
    slope: Vector,
    rows: npt.NDArray[np.bool_],
) -> float:
    """Return the step that suits differences of one side better, which some rows have the slope of."""
    slope, size, half = slope[rows], float(np.linalg.norm(f[rows])), []
    if not np.isfinite(slope).all():
        return _SHORTER * h
    if h * np.linalg.norm(slope) <= _DROWNED * size:
        return h
    for side in (0.5, -0.5):
        near = theta.copy()
        near[j] += side * h
        half.append((values(objective, x, list(objective.expand(near.tolist()))) - f) / (near[j] - theta[j]))
    there = np.where(np.isfinite(half[0]), *half)[rows]
    return h if np.linalg.norm(there - slope) <= _BENT_ONCE * np.linalg.norm(there) else _SHORTER * h


def _given(
    objective: Objective, function: Callable[..., Any], x: tuple[Vector, ...], theta: Vector, rows: int
) -> Matrix:
    """Return the user's Jacobian, taken through what is fixed and tied."""
    everything = list(objective.expand(theta.tolist()))
    jac = np.asarray(objective.model.replace(function)(x, everything, np.stack), float)
    if jac.shape != (rows, len(everything)):
        raise ModelError(f"jac returns the shape {jac.shape}; (rows, parameters) = {rows, len(everything)} is needed.")
    if objective.expansion is None:
        return jac.T
    return (jac @ objective.expansion.jacobian(theta)).T


def _hash(column: Vector) -> np.uint64:
    position = np.arange(len(column), dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) | np.uint64(1)
    # An odd multiplier can be inverted modulo 2⁶⁴, so that a change of any single value changes the sum.
    bits = np.ascontiguousarray(column).view(np.uint64)
    return np.uint64(((bits ^ (bits >> np.uint64(32))) * position).sum())
