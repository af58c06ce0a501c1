"""Call: a call of `curve_fit` with every argument but the data resolved.

`curve_fit` makes one; `fit_rows` and `fit_whole` hand it the function and the data in the form that `fit` takes.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import numpy.typing as npt

from dask_nlsq._curve_fit import arguments
from dask_nlsq._errors import DifferencesWarning
from dask_nlsq._fit import UndeterminedWarning, fit
from dask_nlsq._model import Model, Objective, key
from dask_nlsq._result import FitResult
from dask_nlsq._sweep import serialize
from dask_nlsq._typing import AnyArray, Vector

if TYPE_CHECKING:
    import dask.array as da
    from scipy.optimize import Bounds


@dataclasses.dataclass(frozen=True)
class Bounded:
    """A function within its bounds; outside it is NaN and is not called, as SciPy promises."""

    f: Callable[..., Any]
    lower: Vector
    upper: Vector

    def __call__(self, x: object, *theta: Any) -> Any:
        traced = any(isinstance(t, jax.core.Tracer) for t in theta)  # JAX needs no points beside the one it is given
        inside = traced or bool(((self.lower <= theta) & (theta <= self.upper)).all())
        return self.f(x, *theta) if inside else np.nan


@dataclasses.dataclass(frozen=True)
class Call:
    """A call with every argument but the data checked."""

    f: Callable[..., Any]
    jac: Callable[..., Any] | str | None
    names: tuple[str, ...]  # of the first argument, then of the parameters
    p0: Vector
    lower: Vector
    upper: Vector
    lm: bool
    absolute_sigma: bool
    policy: str | None
    options: dict[str, Any]  # for fit

    @classmethod
    def of(
        cls,
        f: Callable[..., Any],
        p0: npt.ArrayLike | None,
        bounds: tuple[npt.ArrayLike, npt.ArrayLike] | Bounds,
        method: str | None,
        jac: Callable[..., Any] | str | None,
        absolute_sigma: bool,
        nan_policy: str | None,
        check_finite: bool | None,
        kwargs: dict[str, Any],
    ) -> Call:
        """Check all arguments but the data, in SciPy's order."""
        names = arguments.read_names(f, None if p0 is None else np.size(p0))
        lower, upper = arguments.read_bounds(bounds, len(names) - 1)
        bounded = bool((lower > -np.inf).any() or (upper < np.inf).any())
        method = arguments.choose_method(method, bounded)
        start = arguments.choose_start(p0, lower, upper)
        jac = arguments.choose_jacobian(jac, bool(kwargs.get("col_deriv")))
        options = arguments.read_options(kwargs, method)
        policy = arguments.choose_policy(nan_policy, check_finite)
        return cls(f, jac, names, start, lower, upper, method == "lm", absolute_sigma, policy, options)

    @property
    def p(self) -> int:
        """Number of parameters."""
        return len(self.p0)

    @property
    def bounded(self) -> Bounded:
        """The function within the bounds."""
        return Bounded(self.f, self.lower, self.upper)

    def require(self, n: float) -> None:
        """Refuse fewer rows than parameters, under "lm"."""
        if self.lm and self.p > n:
            raise TypeError(f"The number of func parameters={self.p} must not exceed the number of data points={n}")

    @functools.cached_property
    def known(self) -> bool:
        """Whether all that the function refers to is seen, so that what was compiled of it holds until that changes."""
        return key(self.f) is not None

    def model(self, func: Callable[..., Any]) -> Model:
        """Return a function of the arguments `names` as a model."""
        return Model(func, self.names, self.names[:1], name=getattr(self.f, "__name__", type(self.f).__name__))

    def objective(self, func: Callable[..., Any], columns: int) -> Objective:
        """Return what is known in this process of a function that takes so many columns: the same at every call."""
        names = self.model(func).array_names(columns)
        objective: Objective = serialize(Objective(self.model(func).bind(names), (*names, "y"))).value
        return objective

    def fit(
        self,
        func: Callable[..., Any],
        x: AnyArray | tuple[AnyArray | da.Array, ...],
        y: AnyArray | da.Array,
        jac: Callable[..., Any] | str | None,
        **options: Any,
    ) -> FitResult:
        """Hand a function of the arguments `names` to `fit`."""
        options |= self.options | {"absolute_sigma": self.absolute_sigma}
        with _quiet():
            return fit(self.model(func), x, y, p0=self.p0, bounds=(self.lower, self.upper), jac=jac, **options)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence two warnings of `fit`: SciPy differentiates without a word, and has its own for the covariance."""
    with warnings.catch_warnings():
        for category in (DifferencesWarning, UndeterminedWarning):
            warnings.simplefilter("ignore", category)
        yield
