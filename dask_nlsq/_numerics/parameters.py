"""Parameters: names, start and bounds, made exact from every form that a user may give them in."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dask_nlsq._errors import BoundsError, ModelError
from dask_nlsq._numerics.model import Model
from dask_nlsq._typing import Vector


@dataclasses.dataclass(frozen=True)
class Parameters:
    """The parameters of a fit in the order of the model's signature; every array has shape (p,)."""

    names: tuple[str, ...]
    start: Vector
    lower: Vector
    upper: Vector
    guessed: tuple[str, ...] = ()  # names whose start nobody gave

    @classmethod
    def of(cls, model: Model, p0: Any = None, bounds: Any = None) -> Parameters:
        """Bring start and bounds into one form.

        Parameters
        ----------
        model : Model
            A bound model.
        p0 : mapping, sequence or FitResult, optional
            Starting values; a mapping may leave names out. What is not given comes from the defaults in the
            signature, else it is 1, or the point of the bounds nearest to 1.
        bounds : tuple or mapping, optional
            ``(lower, upper)``, each a number or a sequence, or ``{name: (lower, upper)}``.

        Raises
        ------
        BoundsError
            A lower bound lies above its upper bound, or the start lies outside.
        ModelError
            A start is not finite, has the wrong length or a name that the model does not have.
        """
        names = model.parameters
        lower, upper = _bounds(names, bounds)
        given = dict(model.defaults) | _start(names, p0)
        nearest = np.clip(np.ones(len(names)), lower, upper)
        start = np.array([given.get(name, nearest[i]) for i, name in enumerate(names)], float)
        if not np.isfinite(start).all():
            raise ModelError(f"p0 must be finite; it is {dict(zip(names, start.tolist(), strict=True))}.")
        for name, low, value, high in zip(names, lower, start, upper, strict=True):
            if not low <= value <= high:
                raise BoundsError(f"p0 of {name!r} is {value:g}, outside its bounds [{low:g}, {high:g}].")
        return cls(names, start, lower, upper, tuple(name for name in names if name not in given))

    @property
    def p(self) -> int:
        """Number of parameters."""
        return len(self.names)


def _start(names: Sequence[str], p0: Any) -> dict[str, float]:
    if p0 is None:
        return {}
    p0 = getattr(p0, "params", p0)
    if isinstance(p0, Mapping) or hasattr(p0, "to_dict"):
        given = dict(p0)
        unknown = [name for name in given if name not in names]
        if unknown:
            raise ModelError(f"p0 names {unknown}; the parameters are {list(names)}.")
        return {name: float(value) for name, value in given.items()}
    values = np.atleast_1d(np.asarray(p0, float))
    if values.shape != (len(names),):
        raise ModelError(
            f"p0 has shape {values.shape}; the parameters are {list(names)}, so ({len(names)},) is needed."
        )
    return dict(zip(names, values.tolist(), strict=True))


def _bounds(names: Sequence[str], bounds: Any) -> tuple[Vector, Vector]:
    p = len(names)
    lower, upper = np.full(p, -np.inf), np.full(p, np.inf)
    if isinstance(bounds, Mapping):
        unknown = [name for name in bounds if name not in names]
        if unknown:
            raise BoundsError(f"bounds names {unknown}; the parameters are {list(names)}.")
        for name, (low, high) in bounds.items():
            lower[names.index(name)], upper[names.index(name)] = low, high
    elif bounds is not None:
        try:
            low, high = (bounds.lb, bounds.ub) if hasattr(bounds, "lb") else bounds
            lower, upper = (np.broadcast_to(np.asarray(b, float), (p,)).copy() for b in (low, high))
        except (TypeError, ValueError) as error:
            raise BoundsError(
                f"bounds must be (lower, upper), each a number or {p} numbers, or a mapping from names to pairs."
            ) from error
    if np.isnan(lower).any() or np.isnan(upper).any():
        raise BoundsError("A bound is NaN; leave a side open with -inf or inf.")
    for name, low, high in zip(names, lower, upper, strict=True):
        if low > high:
            raise BoundsError(f"The lower bound of {name!r} is {low:g}, above its upper bound {high:g}.")
    return lower, upper
