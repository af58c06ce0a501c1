r"""Robust losses: how much a residual counts once it is large.

The cost is :math:`\tfrac12 C^2 \sum_i \rho(z_i)` with :math:`z_i = (w_i r_i / C)^2` and C = ``f_scale``, as in
`scipy.optimize.least_squares`; see Triggs et al. (doi:10.1007/3-540-44480-7_21) for what follows from it. A sweep
sums the products of the Jacobian twice: with :math:`\rho'`, which is never negative, and with
:math:`\rho' + 2 z \rho''`, which is the curvature of the loss and gives the faster step where its sum is
positive definite.

==========  ==========================================  =========================================
name        ρ(z)                                        for residuals that
==========  ==========================================  =========================================
linear      z                                           are Gaussian
soft_l1     2 (√(1 + z) − 1)                            have longer tails
huber       z, from z = 1 on 2 √z − 1                   are Gaussian with some far away
cauchy      log(1 + z)                                  hold outliers; several minima are possible
arctan      arctan z                                    hold outliers without bound; the same
tukey       (1 − (1 − z)³)/3, from z = 1 on 1/3         hold outliers that should not count at all
==========  ==========================================  =========================================
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from dask_nlsq._errors import ModelError
from dask_nlsq._model.counts import COUNTS

if TYPE_CHECKING:
    import jax

A = TypeVar("A", np.ndarray, "jax.Array")

Loss: TypeAlias = str | Callable[[Any], Any]
"""A name in the table above, or a function of z that returns (ρ, ρ', ρ''), or ρ alone for JAX to differentiate."""

NAMES = ("linear", "soft_l1", "huber", "cauchy", "arctan", "tukey")
"""Losses of residuals; those of `counts` are likelihoods."""


def check_loss(loss: object, f_scale: float | str | None) -> None:
    """Refuse a loss that is not known.

    Raises
    ------
    ModelError
        The name is not in the table, or the scale is not positive.
    """
    if not callable(loss) and loss not in (*NAMES, *COUNTS):
        raise ModelError(
            f"loss is {loss!r}; one of {', '.join((*NAMES, *COUNTS))} or a function of z = (r / f_scale)² is needed."
        )
    if isinstance(f_scale, str) or f_scale is None or np.ndim(f_scale) or not f_scale > 0:
        raise ModelError(f"f_scale is {f_scale!r}; a positive number is needed.")


def evaluate(loss: Loss, z: A) -> tuple[Any, Any, Any]:
    """Return ρ, ρ' and ρ'' at z, each of z's shape."""
    if callable(loss):
        result = loss(z)
        # A callable of `scipy.optimize.least_squares` returns an array of shape (3, rows).
        if isinstance(result, (tuple, list)) or getattr(result, "ndim", 1) == 2:
            rho, first, second = result
            return rho, first, second
        return _differentiate(loss, z)
    return _differentiate(functools.partial(_rho, loss), z)


def curvature(z: A, slope: A, bend: A) -> A:
    """Return ρ' + 2 z ρ'', which is ρ' at z = 0 however large ρ'' is there."""
    # JAX is imported where it is needed, for `import dask_nlsq` must not import it.
    jnp = importlib.import_module("jax.numpy") if not isinstance(z, np.ndarray) else np
    curved: A = slope + jnp.where(z > 0, 2.0 * z * bend, 0.0)
    return curved


def _differentiate(rho: Callable[[Any], Any], z: np.ndarray | jax.Array) -> tuple[Any, Any, Any]:
    jvp, jnp = importlib.import_module("jax").jvp, importlib.import_module("jax.numpy")
    # ρ acts on each value by itself, so that one tangent of ones gives ρ' of all of them.
    ones = jnp.ones_like(z)
    first = lambda v: jvp(rho, (v,), (ones,))[1]  # noqa: E731
    return (rho(z), *jvp(first, (z,), (ones,)))


def _rho(name: str, z: A) -> Any:
    jnp = importlib.import_module("jax.numpy")
    near = jnp.minimum(z, 1.0)
    far = jnp.maximum(z, 1.0)  # keeps the square root's slope finite where it is not taken
    return {
        "soft_l1": lambda: 2.0 * z / (1.0 + jnp.sqrt(1.0 + z)),  # no cancellation at small z
        "huber": lambda: jnp.where(z <= 1.0, z, 2.0 * jnp.sqrt(far) - 1.0),
        "cauchy": lambda: jnp.log1p(z),
        "arctan": lambda: jnp.arctan(z),
        "tukey": lambda: near * (1.0 - near + near**2 / 3.0),
    }[name]()
