"""Solution of an initial value problem: the model function that is given by its differential equations.

All rows of a tile are in one solve, whatever their order; the derivatives with respect to parameters are those of the
solve itself, by a forward pass each. `diffrax <https://docs.kidger.site/diffrax>`_ solves, with steps that it adapts.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import numbers
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from dask_nlsq._errors import ModelError, NlsqError

_FIRST = 2
"""Arguments of a right-hand side that are no parameters: the time and the state."""


@dataclasses.dataclass(frozen=True)
class Solution:
    """Values of a solution at given times, as a function of the parameters."""

    row_wise: ClassVar[bool] = True  # a row's value does not hang on the others, though all are in one solve
    needs_jax: ClassVar[str] = (
        "Its equations rhs(t, y, *parameters), in this order, and observe(y) are written with jax.numpy, without an if "
        "on the state or a parameter; rhs returns a slope for each state, and a solver is one of diffrax."
    )

    rhs: Callable[..., Any]
    y0: float | str | tuple[float | str, ...]  # a text is the name of a parameter
    t0: float
    t1: float
    observe: int | Callable[[Any], Any] | None
    rtol: float
    atol: float
    solver: Any
    max_steps: int

    def __post_init__(self) -> None:
        if not self.t0 < self.t1:
            raise ModelError(f"t0 is {self.t0} and t1 {self.t1}; the equations are solved from t0 to a later t1.")
        states = len(self.y0) if isinstance(self.y0, tuple) else 1
        if self.observe is None and states > 1:
            raise ModelError(f"y0 has {states} states; say with observe= which are the rows: its place, or a function.")
        place = isinstance(self.observe, int) and -states <= self.observe < states
        if not (self.observe is None or place or callable(self.observe)):
            raise ModelError(f"observe is {self.observe!r}; a place among {states} states or a function is needed.")
        if "t" in self.parameters:
            raise ModelError("A parameter is called 't', as the time is; give it another name.")
        if not self.parameters:
            raise ModelError(
                f"{self.__name__!r} has no parameter; a right-hand side rhs(t, y, *parameters) with one at least is "
                "needed, or a parameter in y0."
            )

    @property
    def __name__(self) -> str:
        """What reports call it."""
        return getattr(self.rhs, "__name__", type(self.rhs).__name__)

    @property
    def not_finite(self) -> str:
        """Why the solution may have no value at a row."""
        return (
            f"The equations are solved from t0={self.t0:g} to t1={self.t1:g}, and a row outside has no value; nor has "
            f"one that {self.max_steps:,} steps (max_steps) do not reach."
        )

    @functools.cached_property
    def _of_rhs(self) -> Mapping[str, inspect.Parameter]:
        """The parameters of the right-hand side."""
        taken = list(inspect.signature(self.rhs).parameters.items())
        if any(each.kind is inspect.Parameter.VAR_POSITIONAL for _, each in taken):
            raise ModelError(f"{self.__name__!r} takes *args; name its parameters, rhs(t, y, a, b).")
        return dict(taken[_FIRST:])

    @functools.cached_property
    def parameters(self) -> tuple[str, ...]:
        """Those of the right-hand side, and then those of the initial state that are not among them."""
        initial = self.y0 if isinstance(self.y0, tuple) else (self.y0,)
        return tuple(dict.fromkeys((*self._of_rhs, *(name for name in initial if isinstance(name, str)))))

    @property
    def __signature__(self) -> inspect.Signature:
        """The time, and the parameters with the starts that the right-hand side gives them."""
        starts = {name: each.default for name, each in self._of_rhs.items()}
        # By name only, for one that has a start may stand before one that has none.
        others = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=starts.get(name, inspect.Parameter.empty))
            for name in self.parameters
        ]
        return inspect.Signature([inspect.Parameter("t", inspect.Parameter.POSITIONAL_OR_KEYWORD), *others])

    def __call__(self, t: Any, **values: Any) -> Any:
        """Return what is observed at times t (rows,); NaN before t0 and after t1."""
        diffrax, jnp = _diffrax(), importlib.import_module("jax.numpy")
        arguments = [values[name] for name in self._of_rhs]
        several = isinstance(self.y0, tuple)
        states = self.y0 if isinstance(self.y0, tuple) else (self.y0,)
        initial = jnp.stack([jnp.asarray(values[y] if isinstance(y, str) else y, float) for y in states])

        def slope(t: Any, y: Any, _: Any) -> Any:
            found = self.rhs(t, y if several else y[0], *arguments)
            slopes = jnp.stack([jnp.asarray(each, float) for each in (found if several else [found])])
            if slopes.shape != y.shape:
                raise ModelError(
                    f"{self.__name__!r} returns {slopes.shape} slopes for {len(y)} states; one each is needed."
                )
            return slopes

        t = jnp.asarray(t, float)
        order = jnp.argsort(t)
        solved = diffrax.diffeqsolve(
            diffrax.ODETerm(slope),
            diffrax.Tsit5() if self.solver is None else self.solver,
            self.t0,
            self.t1,
            None,
            initial,
            saveat=diffrax.SaveAt(ts=jnp.clip(t[order], self.t0, self.t1)),
            stepsize_controller=diffrax.PIDController(rtol=self.rtol, atol=self.atol),
            adjoint=diffrax.ForwardMode(),
            max_steps=self.max_steps,
            throw=False,  # what is not reached is not finite, and the fit takes another step
        )
        seen = self._observed(solved.ys)
        inside = (t >= self.t0) & (t <= self.t1)
        return jnp.where(inside, jnp.zeros_like(t).at[order].set(seen), jnp.nan)

    def _observed(self, states: Any) -> Any:
        """Return what is observed of states (rows, k)."""
        if callable(self.observe):
            return importlib.import_module("jax").vmap(self.observe)(states)
        return states[:, self.observe or 0]


def _diffrax() -> Any:
    try:
        return importlib.import_module("diffrax")
    except ImportError as error:
        raise NlsqError(
            "Model.from_ode needs diffrax, which is not installed: pip install 'dask-nlsq[ode]'."
        ) from error


def solution(
    rhs: Callable[..., Any],
    y0: Any,
    t0: float,
    t1: float,
    observe: int | Callable[[Any], Any] | None,
    rtol: float,
    atol: float,
    solver: Any,
    max_steps: int,
) -> Solution:
    """Return the model function of an initial value problem, with its arguments checked.

    Raises
    ------
    ModelError
        An initial state is neither a number nor a name, or an argument is not possible.
    """
    states = tuple(y0) if isinstance(y0, (list, tuple)) or getattr(y0, "ndim", 0) == 1 else y0
    for each in states if isinstance(states, tuple) else (states,):
        if not isinstance(each, (str, numbers.Real)):
            raise ModelError(f"y0 holds {each!r}; each state begins at a number, or at a parameter that it names.")
    return Solution(rhs, states, float(t0), float(t1), observe, float(rtol), float(atol), solver, int(max_steps))
