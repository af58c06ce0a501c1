r"""Bands around a fitted model, and quantities that follow from its parameters, by the delta method.

With the covariance C of the estimates and the gradient g of the model at a row, the standard error of the model there
is :math:`\sqrt{g^T C g}`, and a new observation scatters about it with the variance :math:`s^2 \sigma^2` besides (Bates
& Watts, `doi:10.1002/9780470316757 <https://doi.org/10.1002/9780470316757>`_).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import dask.dataframe as dd
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
from scipy import stats

from dask_nlsq._errors import ModelError
from dask_nlsq._model import Expression
from dask_nlsq._solver import inference
from dask_nlsq._typing import Matrix, Vector


class Band(NamedTuple):
    """A curve and what lies so far below and above it that it covers with a stated probability at each row."""

    predicted: Any
    lower: Any
    upper: Any


class Derived(NamedTuple):
    """A quantity that follows from the parameters."""

    value: float
    stderr: float


def band(predicted: Any, stderr: Any, level: float, dof: int) -> Any:
    """Return a `Band` of arrays, or a frame with its columns where they are Series."""
    # Student's t has no quantile at 0 degrees of freedom.
    reach = stderr * stats.t.ppf(0.5 + level / 2, max(dof, 1))
    lower, upper = predicted - reach, predicted + reach
    if isinstance(predicted, (pd.Series, dd.Series)):
        return predicted.to_frame("predicted").assign(lower=lower, upper=upper)
    return Band(predicted, lower, upper)


def derived(text: str, names: Sequence[str], theta: Vector, cov: Matrix) -> Derived:
    """Return the value of an expression of the parameters, and its standard error; one at a bound adds nothing."""
    expression = Expression(text)
    unknown = [name for name in expression.names if name not in names]
    if unknown:
        raise ModelError(f"The expression {text!r} names {unknown}; the parameters are {list(names)}.")

    def value(theta: Any) -> Any:
        return jnp.asarray(expression(**dict(zip(names, theta, strict=True))), jnp.float64)

    with jax.enable_x64(True):
        gradient = np.asarray(jax.jacfwd(value)(jnp.asarray(theta)))
        known = np.where(np.isnan(cov), 0.0, cov)
        variance = inference.propagate(known, gradient[None])[0, 0]
        return Derived(float(value(jnp.asarray(theta))), float(np.sqrt(max(variance, 0.0))))
