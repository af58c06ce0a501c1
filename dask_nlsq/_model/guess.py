r"""How the library guesses a start from rows in any order.

Every model of the library is linear in its amplitude. For given other parameters the best amplitude is a ratio of two
sums, :math:`a = \sum b_i y_i / \sum b_i^2` with the model's values :math:`b_i` at amplitude 1, and it lowers the cost
by :math:`(\sum b_i y_i)^2 / \sum b_i^2`. A `Scan` therefore tries a grid of the other parameters and takes the
one that lowers the cost most (variable projection, Golub & Pereyra, https://doi.org/10.1137/0710036): noise and missing
stretches of x cannot mislead it as they do differences of neighbouring rows.

Peaks are too narrow for grids, and periods too many: `peak` looks at a smoothed curve, `frequencies` at a
periodogram.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from dask_nlsq._model.expression import Expression
from dask_nlsq._typing import Matrix, Vector

Guess: TypeAlias = Callable[[Sequence[Vector], Vector], Mapping[str, float]]
"""Starting values from columns of x and from y, each (rows,)."""

POINTS = 400
"""Most points of a smoothed curve."""

ROWS = 10
"""Rows averaged for a point of it, where there are enough."""

WINDOW = 5
"""Points of a moving average, before the highest one is looked for."""

PERIODOGRAM = 16
"""Cells of x for each row in a periodogram; what rounds x to them is a sixteenth of the shortest period."""

Grids = Callable[[Vector], Mapping[str, Vector]]
"""Values to try of each parameter but the amplitude, for a sorted x."""


@dataclasses.dataclass(frozen=True)
class Scan:
    """A guess that tries a grid of all parameters but the amplitude."""

    formula: Expression
    amplitude: str
    grids: Grids

    def __call__(self, x: Sequence[Vector], y: Vector) -> dict[str, float]:
        """Return the best point of the grid with its amplitude."""
        t, v = curve(x[0], y)
        if not len(t):
            return {}
        grids = self.grids(t)
        mesh = np.meshgrid(*grids.values(), indexing="ij")
        # As columns, so that the formula is evaluated at all candidates and rows in one call.
        points = {name: axis.reshape(-1, 1) for name, axis in zip(grids, mesh, strict=True)}
        gain, amplitude = projection(self.formula(x=t, **{self.amplitude: 1.0}, **points), v)
        best = int(np.argmax(gain))
        if not np.isfinite(gain[best]):
            return {}
        return {self.amplitude: float(amplitude[best])} | {n: float(p[best, 0]) for n, p in points.items()}


def projection(basis: Matrix, y: Vector) -> tuple[Vector, Vector]:
    """Return by how much the best multiple of each row lowers the sum of squares, and that multiple.

    Parameters
    ----------
    basis : array, shape (candidates, rows)
        Rows that are not finite are of no use: they lower it by minus infinity.
    y : array, shape (rows,)
        What is to be explained.
    """
    with np.errstate(all="ignore"):
        # Squares of a basis in small or large units would leave the range of float64.
        scale = np.abs(basis).max(axis=1)
        basis = basis / scale[:, None]
        size, along = np.square(basis).sum(axis=1), basis @ y
        amplitude = along / size / scale
        good = np.isfinite(amplitude) & np.isfinite(size)
        return np.where(good, along**2 / size, -np.inf), amplitude


def ordered(x: Vector, y: Vector) -> tuple[Vector, Vector]:
    """Return the rows that are finite, sorted by x."""
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    order = np.argsort(x, kind="stable")
    return x[order], y[order]


def curve(x: Vector, y: Vector) -> tuple[Vector, Vector]:
    """Return a curve of at most `POINTS` points, each the mean of equally many neighbouring rows."""
    x, y = ordered(x, y)
    points = int(np.clip(len(x) // ROWS, min(len(x), 50), POINTS))
    if points == len(x):
        return x, y
    cuts = np.linspace(0, len(x), points + 1).astype(int)
    size = np.diff(cuts)
    return np.add.reduceat(x, cuts[:-1]) / size, np.add.reduceat(y, cuts[:-1]) / size


def peak(x: Vector, y: Vector) -> tuple[float, float, float] | None:
    """Return height, place and half width at half height of what stands out most, above or below zero."""
    t, v = curve(x, y)
    if len(t) < 3:
        return None
    wide = min(WINDOW, len(t))
    # Divided by the number of points in the window, which is smaller at both ends.
    smooth = np.convolve(v, np.ones(wide), "same") / np.convolve(np.ones(len(v)), np.ones(wide), "same")
    top = int(np.argmax(np.abs(smooth)))
    height = float(smooth[top])
    below = np.flatnonzero(smooth / height < 0.5) if height else np.array([], int)
    sides = [abs(float(t[i] - t[top])) for i in (*below[below < top][-1:], *below[below > top][:1])]
    span = float(t[-1] - t[0]) or 1.0
    width = min(sides) if sides else span / 2
    # A peak is no narrower than rows are apart, or none of them would show it.
    return height or 1.0, float(t[top]), max(width, span / len(x))


def decades(low: float, high: float, count: int) -> Vector:
    """Return values from low to high in equal ratios."""
    return np.geomspace(low, high, count)


def span(x: Vector) -> float:
    """Return the length of a sorted x; 1 where it has none."""
    return float(x[-1] - x[0]) or 1.0


def frequencies(x: Vector, y: Vector) -> Vector:
    """Return frequencies near the highest peak of the periodogram of rows at any places, sorted x.

    Rows are counted into a fine grid of cells, whose Fourier transform is that of the rows up to frequencies far
    beyond one in two rows. Of aliases that rows at equal distances cannot tell apart, the lowest is meant.
    """
    length, y = span(x), y - y.mean()
    cells = PERIODOGRAM * int(2 ** np.ceil(np.log2(len(x))))
    place = np.minimum(((x - x[0]) / length * cells).round().astype(int), cells - 1)
    # Zeros behind the cells sample the spectrum four times as finely, so that no peak is missed between two
    # frequencies.
    padded = 4 * cells
    power = np.abs(np.fft.rfft(np.bincount(place, y, cells), padded)) ** 2
    power = power[1 : 2 * cells // PERIODOGRAM * 2]
    # Aliases are equally high but for noise and rounding; the first of them is the lowest frequency.
    highest = int(np.flatnonzero(power >= 0.98 * power.max())[0]) + 1
    return np.maximum((highest + np.linspace(-4, 4, 33)) * cells / padded / length, 0.01 / length)


def wave(x: Vector, y: Vector, starts: Iterable[Vector], rates: Vector) -> dict[str, float]:
    r"""Return the best amplitude, rate, frequency and phase of :math:`a e^{-rt} \sin(2\pi f t + \phi)`.

    Sine and cosine are both linear, so every rate and frequency is judged by a system of two equations.

    Parameters
    ----------
    x, y : array, shape (rows,)
        Rows sorted by x.
    starts : iterable of array
        Frequencies to try.
    rates : array
        Rates to try.
    """
    t = x - x[0]
    f = np.concatenate([*starts])
    angle = 2 * np.pi * np.outer(f, t)
    s, c, e = np.sin(angle), np.cos(angle), np.exp(-np.outer(t, rates))
    ss, sc, cc = s**2 @ e**2, (s * c) @ e**2, c**2 @ e**2
    sy, cy = (s * y) @ e, (c * y) @ e
    det = ss * cc - sc**2
    # Where sine and cosine are nearly one curve on these rows, no pair of amplitudes is determined: they are given
    # none.
    det = np.where(det > 1e-9 * ss * cc, det, np.inf)
    a, b = (cc * sy - sc * cy) / det, (ss * cy - sc * sy) / det  # of sine and cosine, (frequencies, rates)
    i, j = np.unravel_index(int(np.argmax(a * sy + b * cy)), a.shape)
    frequency, rate = float(f[i]), float(rates[j])
    phase = np.arctan2(b[i, j], a[i, j]) - 2 * np.pi * frequency * x[0]
    growth = np.exp(np.clip(rate * x[0], -700, 700))  # exp overflows from 710 on
    return {
        "amplitude": float(np.hypot(a[i, j], b[i, j]) * growth),
        "rate": rate,
        "frequency": frequency,
        "phase": float(np.angle(np.exp(1j * phase))),  # in −π to π
    }


def robust_line(x: Vector, y: Vector) -> Vector:
    """Return intercept and slope of the line with the least sum of absolute residuals, nearly."""
    design = np.stack([np.ones_like(x), x], axis=1)
    weight: Vector = np.ones_like(y)
    line: Vector = np.zeros(2)
    for _ in range(20):
        line = np.asarray(np.linalg.lstsq(design * weight[:, None], y * weight, rcond=None)[0], float)
        distance = np.abs(y - design @ line)
        # Least squares with the weights 1/√|r| minimise Σ |r|; the floor keeps a row that the line meets from taking
        # all weight.
        weight = 1 / np.sqrt(np.maximum(distance, 1e-3 * distance.mean() + 1e-300))
    return line
