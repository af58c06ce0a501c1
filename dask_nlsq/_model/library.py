"""The models of the library, each a formula and a guess.

None has a background of its own: add `constant` or `line`. An amplitude is a height, never an area.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import SupportsIndex

import numpy as np

from dask_nlsq._errors import ModelError
from dask_nlsq._model.expression import Expression
from dask_nlsq._model.guess import (
    POINTS,
    Grids,
    Guess,
    Scan,
    curve,
    decades,
    frequencies,
    ordered,
    peak,
    robust_line,
    span,
    wave,
)
from dask_nlsq._model.model import Model
from dask_nlsq._typing import Vector

WAVE_ROWS = 4000
"""Rows on which frequencies and rates are tried one by one."""

DEGREE = 100
"""Highest degree of a polynomial."""


def _model(name: str, formula: str, guess: Guess) -> Model:
    return Model.from_expression(formula, columns=["x"], name=name, guess=guess)


def _scanned(name: str, formula: str, grids: Grids) -> Model:
    """Make a model whose guess is a scan; its first parameter is the amplitude."""
    expression = Expression(formula)
    return _model(name, formula, Scan(expression, expression.names[0], grids))


def _constant(x: Sequence[Vector], y: Vector) -> dict[str, float]:
    return {"offset": float(np.median(y))}  # unlike the mean, outliers hardly move it


def _line(x: Sequence[Vector], y: Vector) -> dict[str, float]:
    intercept, slope = robust_line(*curve(x[0], y))
    return {"intercept": float(intercept), "slope": float(slope)}


def _polynomial(x: Sequence[Vector], y: Vector, degree: int) -> dict[str, float]:
    coefficients = np.polynomial.Polynomial.fit(*ordered(x[0], y), degree).convert().coef
    return {f"c{i}": float(c) for i, c in enumerate(coefficients)}


def _peak(x: Sequence[Vector], y: Vector, width: str, factor: float = 1.0, **others: float) -> dict[str, float]:
    """Guess a peak; `factor` is what the width parameter is of the half width at half height."""
    extremum = peak(x[0], y)
    if extremum is None:
        return {}
    height, center, half = extremum
    return {"amplitude": height, "center": center, width: float(factor * half)} | others


def _sinusoid(x: Sequence[Vector], y: Vector) -> dict[str, float]:
    t, v = _few(*ordered(x[0], y))
    parameters = wave(t, v, [_slow(t), frequencies(t, v)], np.zeros(1))
    return {name: value for name, value in parameters.items() if name != "rate"}


def _damped_sinusoid(x: Sequence[Vector], y: Vector) -> dict[str, float]:
    t, v = _few(*ordered(x[0], y))
    begins = [t <= t[0] + span(t) / part for part in (1, 4, 16)]  # later there may be noise alone
    starts = [frequencies(t[rows], v[rows]) for rows in begins if rows.sum() > 8]
    return wave(t, v, [_slow(t), *starts], np.concatenate([[0.0], decades(0.1, 200, 34)]) / span(t))


def _few(x: Vector, y: Vector) -> tuple[Vector, Vector]:
    """Thin out evenly, by places drawn from a fixed seed: equal steps would make aliases."""
    if len(x) <= WAVE_ROWS:
        return x, y
    rows = np.sort(np.random.default_rng(0).choice(len(x), WAVE_ROWS, replace=False))
    return x[rows], y[rows]


def _slow(x: Vector) -> Vector:
    """Return frequencies of so few periods that a periodogram cannot tell them from a constant."""
    return decades(0.05, 3, 40) / span(x)


def _rates(x: Vector) -> Vector:
    rates = decades(0.01, 1000, 120) / span(x)
    return np.concatenate([-rates[:60], rates])


def _positive(x: Vector) -> Vector:
    return x[x > 0] if (x > 0).any() else np.ones(1)


def _halves(x: Vector) -> Vector:
    positive = _positive(x)
    return decades(max(positive[0], positive[-1] * 1e-4) / 3, 10 * positive[-1], 80)


def _edges(x: Vector, name: str, widths: Vector) -> dict[str, Vector]:
    return {name: widths, "center": np.linspace(x[0], x[-1], 60)}


def _widths(x: Vector) -> Vector:
    widths = decades(1 / POINTS, 1, 12) * span(x)
    return np.concatenate([-widths, widths])


# `0*x` makes the number a column, for a model returns one value a row.
constant = _model("constant", "offset + 0*x", _constant)
line = _model("line", "intercept + slope*x", _line)

# A Gaussian's half width at half height is σ √(2 log 2).
gaussian = _model(
    "gaussian",
    "amplitude*exp(-((x - center)/sigma)**2/2)",
    functools.partial(_peak, width="sigma", factor=1 / np.sqrt(2 * np.log(2))),
)
lorentzian = _model(
    "lorentzian",
    "amplitude/(1 + ((x - center)/gamma)**2)",
    functools.partial(_peak, width="gamma"),
)
pseudo_voigt = _model(
    "pseudo_voigt",
    "amplitude*((1 - fraction)*exp(-log(2)*((x - center)/gamma)**2) + fraction/(1 + ((x - center)/gamma)**2))",
    functools.partial(_peak, width="gamma", fraction=0.5),
)

exponential_decay = _scanned("exponential_decay", "amplitude*exp(-rate*x)", lambda x: {"rate": _rates(x)})
exponential_growth = _scanned("exponential_growth", "amplitude*exp(rate*x)", lambda x: {"rate": _rates(x)})
power_law = _scanned("power_law", "amplitude*x**exponent", lambda x: {"exponent": np.linspace(-6, 6, 241)})
michaelis_menten = _scanned("michaelis_menten", "vmax*x/(km + x)", lambda x: {"km": _halves(x)})
hill = _scanned(
    "hill",
    "amplitude*x**n/(half**n + x**n)",
    lambda x: {"n": np.concatenate([-decades(0.3, 12, 12), decades(0.3, 12, 12)]), "half": _halves(x)},
)

# tanh and not exp, whose overflow far from the center would make the derivative NaN
logistic = _scanned(
    "logistic",
    "amplitude*(1 + tanh(rate*(x - center)/2))/2",
    lambda x: _edges(x, "rate", 4 / _widths(x)),
)
step = _scanned(
    "step",
    "amplitude*(1 + erf((x - center)/(sqrt(2)*sigma)))/2",
    lambda x: _edges(x, "sigma", _widths(x)),
)
step_arctan = _scanned(
    "step_arctan",
    "amplitude*(1/2 + arctan((x - center)/gamma)/pi)",
    lambda x: _edges(x, "gamma", _widths(x)),
)

sinusoid = _model("sinusoid", "amplitude*sin(2*pi*frequency*x + phase)", _sinusoid)
damped_sinusoid = _model("damped_sinusoid", "amplitude*exp(-rate*x)*sin(2*pi*frequency*x + phase)", _damped_sinusoid)

LIBRARY: Mapping[str, Model] = {
    model.name: model
    for model in (
        constant,
        line,
        exponential_decay,
        exponential_growth,
        power_law,
        gaussian,
        lorentzian,
        pseudo_voigt,
        logistic,
        step,
        step_arctan,
        michaelis_menten,
        hill,
        sinusoid,
        damped_sinusoid,
    )
}
"""Every model by its name."""


def polynomial(degree: SupportsIndex) -> Model:
    """Make a polynomial with the coefficients c0, c1, …, of rising powers.

    Examples
    --------
    >>> from dask_nlsq import models
    >>> models.polynomial(2).name, models.polynomial(2).parameters
    ('polynomial(2)', ('c0', 'c1', 'c2'))
    """
    highest = operator.index(degree)
    if not 0 <= highest <= DEGREE:
        raise ModelError(f"The degree of a polynomial is {highest}; 0 to {DEGREE} is possible.")
    text = " + ".join(["c0", *(f"c{i}*x**{i}" for i in range(1, highest + 1))]) if highest else "c0 + 0*x"
    return _model(f"polynomial({highest})", text, functools.partial(_polynomial, degree=highest))


def named(text: str) -> Model:
    """Return the library's model of this name, or the model that a formula is.

    Raises
    ------
    ModelError
        It is neither.
    """
    if any(sign in text for sign in "+-*/(<>="):  # as in every formula but a bare name, and in no name
        return Model.from_expression(text)
    if text not in LIBRARY:
        raise ModelError(
            f"The library has no model {text!r}; it has {', '.join(LIBRARY)}. A formula, such as "
            "'a*exp(-b*t) + c', is a model too."
        )
    return LIBRARY[text]
