"""Parameters: names, start and bounds, resolved from every form that a user may give them in."""

from __future__ import annotations

import dataclasses
import graphlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from dask_nlsq._errors import BoundsError, ModelError
from dask_nlsq._model.expression import Expression
from dask_nlsq._model.model import Model
from dask_nlsq._model.objective import Expansion
from dask_nlsq._model.prior import Prior
from dask_nlsq._typing import Vector


@runtime_checkable
class _Sides(Protocol):
    """Bounds as `scipy.optimize.Bounds` holds them; SciPy's optimizers are not imported for them."""

    @property
    def lb(self) -> npt.ArrayLike: ...

    @property
    def ub(self) -> npt.ArrayLike: ...


Bounds: TypeAlias = Mapping[str, Iterable[float]] | Iterable[npt.ArrayLike] | _Sides | None
"""Bounds by name, or those of all parameters, below and above."""


@dataclasses.dataclass(frozen=True)
class Parameters:
    """The parameters of a fit in the order of the model's signature; arrays are of the free ones, shape (p,)."""

    names: tuple[str, ...]  # all
    free: tuple[str, ...]
    start: Vector
    lower: Vector
    upper: Vector
    prior: Prior | None = None
    fixed: Mapping[str, float] = dataclasses.field(default_factory=dict)
    tied: Mapping[str, Expression] = dataclasses.field(default_factory=dict)
    guessed: tuple[str, ...] = ()  # names whose start nobody gave
    sampled: tuple[str, ...] = ()  # names whose start was guessed from rows of the data
    sample_rows: int = 0

    @property
    def bounded(self) -> bool:
        """Whether any free parameter has a bound."""
        return bool(np.isfinite([self.lower, self.upper]).any())

    @classmethod
    def of(
        cls,
        model: Model,
        p0: object = None,
        bounds: Bounds = None,
        fixed: object = None,
        tied: Mapping[str, object] | None = None,
        prior: Mapping[str, Iterable[float]] | None = None,
    ) -> Parameters:
        """Bring start, bounds and constraints into one form.

        Parameters
        ----------
        model : Model
            A bound model.
        p0 : mapping, sequence or FitResult, optional
            Starting values; a mapping may leave names out. What is not given comes from the defaults in the
            signature, else it is 1. Where 1 is not within the bounds it is their middle, or 1 away from a single one.
        bounds : tuple or mapping, optional
            ``(lower, upper)``, each a number or a sequence, or ``{name: (lower, upper)}``. Equal bounds fix a
            parameter.
        fixed : mapping or sequence of str, optional
            ``{name: value}``, or names to be fixed at their start.
        tied : mapping, optional
            ``{name: "expression of other parameters"}``.
        prior : mapping, optional
            ``{name: (mean, standard deviation)}`` of free parameters.

        Raises
        ------
        BoundsError
            A lower bound lies above its upper bound, or the start lies outside.
        ModelError
            A start is not finite, has the wrong length or a name that the model does not have; an expression
            names what is no parameter, or its own result; nothing is left to fit.
        """
        names = model.parameters
        lower, upper = _bounds(names, bounds)
        given = dict(model.defaults) | _start(names, p0)
        values = {name: given[name] for name in names if name in given}
        if len(values) < len(names):
            ordinary = make_feasible(np.ones(len(names)), lower, upper)
            values = dict(zip(names, ordinary.tolist(), strict=True)) | values
        ties = _ties(names, tied or {})
        constants = _fixed_values(names, fixed, values)
        constants |= {
            n: low
            for n, low, high in zip(names, lower.tolist(), upper.tolist(), strict=True)
            if low == high and n not in constants
        }
        both = [name for name in ties if name in constants]
        if both:
            raise ModelError(f"{both} are fixed as well as tied; say one of the two.")
        meant = _meant(names, bounds)
        for name, low, high in zip(names, lower.tolist(), upper.tolist(), strict=True):
            if name not in meant:
                continue
            if name in ties and (low, high) != (-np.inf, np.inf):
                raise BoundsError(
                    f"{name!r} is tied and has the bounds [{low:g}, {high:g}], which would not be kept. Bound the "
                    "parameters that it follows from."
                )
            if name in constants and not low <= constants[name] <= high:
                raise BoundsError(f"{name!r} is fixed at {constants[name]:g}, outside its bounds [{low:g}, {high:g}].")
        free = tuple(name for name in names if name not in constants and name not in ties)
        if not free:
            raise ModelError(f"All parameters of {model.name!r} are fixed or tied; nothing is left to fit.")
        start = np.array([values[name] for name in free])
        if not np.isfinite(start).all():
            raise ModelError(f"p0 must be finite; it is {dict(zip(free, start.tolist(), strict=True))}.")
        place = [names.index(name) for name in free]
        for name, low, value, high in zip(free, lower[place], start, upper[place], strict=True):
            if not low <= value <= high:
                raise BoundsError(f"p0 of {name!r} is {value:g}, outside its bounds [{low:g}, {high:g}].")
        guessed = tuple(name for name in free if name not in given)
        believed = _prior(free, prior) if prior else None
        return cls(names, free, start, lower[place], upper[place], believed, constants, ties, guessed)

    def with_guess(self, guess: Mapping[str, float], rows: int) -> Parameters:
        """Take starts guessed from so many rows, inside the bounds, for those that nobody gave."""
        taken = {name: float(guess[name]) for name in self.guessed if np.isfinite(guess.get(name, np.nan))}
        start = np.array([taken.get(name, value) for name, value in zip(self.free, self.start.tolist(), strict=True)])
        left = tuple(name for name in self.guessed if name not in taken)
        guessed = np.isin(self.free, list(taken))
        start = np.where(guessed, make_feasible(start, self.lower, self.upper), start)
        return dataclasses.replace(self, start=start, guessed=left, sampled=tuple(taken), sample_rows=rows)

    def from_here(self, theta: Vector) -> Parameters:
        """Take a start (p,), as far as the bounds allow."""
        return dataclasses.replace(self, start=np.clip(theta, self.lower, self.upper), guessed=())

    @property
    def p(self) -> int:
        """Number of free parameters."""
        return len(self.free)

    @property
    def fewest_rows(self) -> int:
        """Rows without which there is no fit: one a free parameter, of which a prior is one; at least 1."""
        return max(self.p - (0 if self.prior is None else int(np.count_nonzero(self.prior.weight))), 1)

    def with_shared_last(self, shared: Sequence[str]) -> Parameters:
        """Put the free parameters that many series share behind the others.

        Raises
        ------
        ModelError
            A name is not that of a free parameter, or no parameter is left for each series.
        """
        if len(set(shared)) < len(shared):
            raise ModelError(f"shared names a parameter twice: {list(shared)}.")
        for name in shared:
            if name not in self.free:
                why = "is fixed" if name in self.fixed else "is tied" if name in self.tied else "is no parameter"
                raise ModelError(f"shared names {name!r}, which {why}; the free parameters are {list(self.free)}.")
        remaining = [name for name in self.free if name not in shared]
        if not remaining:
            raise ModelError("All free parameters are shared, so that there is one fit of all rows: use fit.")
        free = (*remaining, *shared)
        order = [self.free.index(name) for name in free]
        start, lower, upper = (values[order] for values in (self.start, self.lower, self.upper))
        return dataclasses.replace(self, free=free, start=start, lower=lower, upper=upper)

    def side(self, theta: Vector) -> npt.NDArray[np.int64]:
        """Return at which bound each free parameter is, (p,): -1, 1, or 0 for none."""
        return side_of_bounds(theta, self.lower, self.upper)

    @property
    def expansion(self) -> Expansion | None:
        """How all parameters follow from the free ones; None where these are all, in their order."""
        return None if self.free == self.names else Expansion(self.names, self.free, self.fixed, self.tied)


def _fixed_values(names: Sequence[str], fixed: object, starts: Mapping[str, float]) -> dict[str, float]:
    """Return the value of each fixed parameter."""
    if fixed is None:
        return {}
    # A text is a sequence of letters to Python.
    fixed = [fixed] if isinstance(fixed, str) else fixed
    if not isinstance(fixed, Iterable):
        raise ModelError(f"fixed is {fixed!r}; {{name: value}} or a list of names is needed.")
    values = dict(fixed) if isinstance(fixed, Mapping) else {name: starts.get(name, np.nan) for name in fixed}
    _known(names, values, "fixed")
    try:
        values = {name: float(value) for name, value in values.items()}
    except (TypeError, ValueError) as error:
        raise ModelError(f"Fixed parameters must be numbers; they are {values}.") from error
    if not np.isfinite(list(values.values())).all():
        raise ModelError(f"Fixed parameters must be finite; they are {values}.")
    return values


def _ties(names: Sequence[str], tied: Mapping[str, object]) -> dict[str, Expression]:
    """Return the expressions of tied parameters in an order in which each needs only earlier ones."""
    if not hasattr(tied, "items"):
        raise ModelError(f'tied is {tied!r}; {{name: "expression"}} is needed.')
    _known(names, tied, "tied")
    ties = {name: text if isinstance(text, Expression) else Expression(str(text)) for name, text in tied.items()}
    for name, expression in ties.items():
        _known(names, expression.names, f"The expression of {name!r}")
    try:
        order = list(graphlib.TopologicalSorter({name: tie.names for name, tie in ties.items()}).static_order())
    except graphlib.CycleError as error:
        raise ModelError(f"Tied parameters depend on one another in a circle: {' → '.join(error.args[1])}.") from error
    return {name: ties[name] for name in order if name in ties}


def _prior(free: Sequence[str], prior: Mapping[str, Iterable[float]]) -> Prior:
    if not hasattr(prior, "items"):
        raise ModelError(f"prior is {prior!r}; {{name: (mean, standard deviation)}} is needed.")
    _known(free, prior, "prior")
    mean, weight = np.zeros(len(free)), np.zeros(len(free))
    for name, pair in prior.items():
        try:
            centre, sd = map(float, pair)
        except (TypeError, ValueError) as error:
            raise ModelError(f"The prior of {name!r} is {pair!r}; a mean and a deviation are needed.") from error
        if not (np.isfinite(centre) and sd > 0):
            raise ModelError(f"The prior of {name!r} is ({centre}, {sd}); a finite mean and a positive sd are needed.")
        mean[free.index(name)], weight[free.index(name)] = centre, 1.0 / sd
    return Prior(mean, weight)


def _known(names: Sequence[str], used: Iterable[str], what: str) -> None:
    unknown = [name for name in used if name not in names]
    if unknown:
        raise ModelError(f"{what} names {unknown}; the parameters are {list(names)}.")


def _start(names: Sequence[str], p0: object) -> dict[str, float]:
    if p0 is None:
        return {}
    # A FitResult, or what has `params` by name as one has.
    starts: Any = getattr(p0, "params", p0)
    if isinstance(starts, Mapping) or hasattr(starts, "to_dict"):
        given = dict(starts)
        unknown = [name for name in given if name not in names]
        if unknown:
            raise ModelError(f"p0 names {unknown}; the parameters are {list(names)}.")
        return dict(zip(given, _real(list(given.values())).tolist(), strict=True))
    values = np.atleast_1d(_real(starts))
    if values.shape != (len(names),):
        raise ModelError(
            f"p0 has shape {values.shape}; the parameters are {list(names)}, so ({len(names)},) is needed."
        )
    return dict(zip(names, values.tolist(), strict=True))


def _real(p0: npt.ArrayLike) -> Vector:
    """Return starting values as float64; NumPy would drop an imaginary part."""
    try:
        if np.iscomplexobj(p0):
            raise TypeError("complex numbers")
        return np.asarray(p0, float)
    except (TypeError, ValueError) as error:
        raise ModelError(f"p0 must be real numbers; it is {p0!r}.") from error


def _meant(names: Sequence[str], bounds: Bounds) -> Sequence[str]:
    """Return the parameters whose bounds somebody has said: two numbers for all are for those that are free."""
    if bounds is None or isinstance(bounds, Mapping):
        return list(bounds or ())
    return names if any(np.ndim(side) for side in _sides(bounds)) else []


def _sides(bounds: Iterable[npt.ArrayLike] | _Sides) -> Iterable[npt.ArrayLike]:
    """Return the bounds below and above."""
    return (bounds.lb, bounds.ub) if isinstance(bounds, _Sides) else bounds


def _bounds(names: Sequence[str], bounds: Bounds) -> tuple[Vector, Vector]:
    p = len(names)
    lower, upper = np.full(p, -np.inf), np.full(p, np.inf)
    if isinstance(bounds, Mapping):
        unknown = [name for name in bounds if name not in names]
        if unknown:
            raise BoundsError(f"bounds names {unknown}; the parameters are {list(names)}.")
        for name, pair in bounds.items():
            try:
                low, high = pair
                lower[names.index(name)], upper[names.index(name)] = low, high
            except (TypeError, ValueError) as error:
                raise BoundsError(f"The bounds of {name!r} are {pair!r}; a pair (lower, upper) is needed.") from error
    elif bounds is not None:
        try:
            low, high = _sides(bounds)
            lower, upper = (np.broadcast_to(np.asarray(b, float), (p,)).copy() for b in (low, high))
        except (TypeError, ValueError) as error:
            raise BoundsError(
                f"bounds must be (lower, upper), each a number or {p} numbers, or a mapping from names to pairs."
            ) from error
    if np.isnan(lower).any() or np.isnan(upper).any():
        raise BoundsError("A bound is NaN; leave a side open with -inf or inf.")
    for name, low, high in zip(names, lower.tolist(), upper.tolist(), strict=True):
        if low == high and np.isinf(low):
            raise BoundsError(f"Both bounds of {name!r} are {low:g}, which leaves no value.")
        if low > high:
            raise BoundsError(f"The lower bound of {name!r} is {low:g}, above its upper bound {high:g}.")
    return lower, upper


def side_of_bounds(theta: Vector, lower: Vector, upper: Vector) -> npt.NDArray[np.int64]:
    """Return at which bound each parameter is, (p,): -1, 1, or 0 for none."""
    return np.where(theta <= lower, -1, np.where(theta >= upper, 1, 0))


def make_feasible(start: Vector, lower: Vector, upper: Vector) -> Vector:
    """Return a start (p,) that lies strictly within the bounds.

    A parameter that does not is moved to where SciPy's `curve_fit` starts: to the middle of two finite bounds, else to
    a distance of 1 from the finite one.
    """
    with np.errstate(invalid="ignore"):
        # Halved first, for the sum of two large bounds may overflow; −inf + inf is NaN, and is looked for below.
        middle = 0.5 * lower + 0.5 * upper
    beside = np.where(np.isfinite(lower), lower + 1.0, np.where(np.isfinite(upper), upper - 1.0, start))
    well = np.where(np.isfinite(middle), middle, beside)
    return np.where((lower < start) & (start < upper), start, well)
