r"""Bands around a fitted model, and quantities that follow from its parameters, by the delta method.

With the covariance C of the estimates and the gradient g of the model at a row, the standard error of the model there
is :math:`\sqrt{g^T C g}`, and a new observation scatters about it with the variance :math:`s^2 \sigma^2` besides (Bates
& Watts, `doi:10.1002/9780470316757 <https://doi.org/10.1002/9780470316757>`_).
"""

from __future__ import annotations

import dataclasses
import functools
import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import dask
import dask.dataframe as dd
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import scipy

from dask_nlsq._errors import DataError, ModelError, NlsqError
from dask_nlsq._model import Expression
from dask_nlsq._result.evaluate import evaluate, names_of
from dask_nlsq._result.responses import part_named
from dask_nlsq._solver import inference
from dask_nlsq._sources import Columns
from dask_nlsq._sweep import Payload, standard_errors
from dask_nlsq._typing import Matrix, Vector


class Band(NamedTuple):
    """A curve and the limits below and above it, between which it lies with a stated probability at each row.

    Attributes
    ----------
    predicted, lower, upper : array
        In units of y, as `FitResult.confidence_band` and `FitResult.prediction_band` return them.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> x = np.arange(5.0)
    >>> result = dask_nlsq.fit("a + b*x", x, np.array([1.0, 2.9, 5.1, 7.0, 9.0]))
    >>> predicted, lower, upper = result.confidence_band(np.array([2.0]))
    >>> predicted.round(2).tolist(), (upper - lower).round(2).tolist()
    ([5.0], [0.23])
    """

    predicted: Any
    lower: Any
    upper: Any


class Derived(NamedTuple):
    """A quantity that follows from the parameters.

    Attributes
    ----------
    value : float
    stderr : float
        By the delta method, as `FitResult.eval_uncertainty` returns it.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> x = np.arange(5.0)
    >>> result = dask_nlsq.fit("a + b*x", x, np.array([1.0, 2.9, 5.1, 7.0, 9.0]))
    >>> value, stderr = result.eval_uncertainty("a / b")
    >>> round(value, 3), round(stderr, 3)
    (0.488, 0.036)
    """

    value: float
    stderr: float


def band(predicted: Any, stderr: Any, level: float, dof: int) -> Any:
    """Return a `Band` of arrays, or a frame with its columns where they are Series."""
    # Student's t has no quantile at 0 degrees of freedom.
    reach = stderr * scipy.stats.t.ppf(0.5 + level / 2, max(dof, 1))
    lower, upper = predicted - reach, predicted + reach
    if isinstance(predicted, (pd.Series, dd.Series)):
        return predicted.to_frame("predicted").assign(lower=lower, upper=upper)
    return Band(predicted, lower, upper)


def curve_stderr(payload: Payload, columns: Columns, params: pd.Series, cov: pd.DataFrame, data: Any) -> Any:
    """Return the standard error of the model at each row."""
    expansion = payload.value.expansion
    free = list(params.index if expansion is None else expansion.free)
    function = functools.partial(standard_errors, payload, params[free].to_numpy(), cov.loc[free, free].to_numpy())
    return evaluate(function, columns, data)


def on_one_grid(data: Any, names: Sequence[str]) -> Any:
    """Return the variables of an xarray Dataset with the dimensions of all of them; other data as they are."""
    if not hasattr(data, "data_vars"):
        return data
    import xarray

    there = [name for name in names if name in data.variables]
    spread = xarray.broadcast(*(xarray.DataArray(data[name].variable) for name in there))
    return dict(zip(there, spread, strict=True))


def beside(predicted: Any, values: Any, what: str) -> Any:
    """Return a number, or values that belong to the rows of a prediction one by one, whatever their index.

    Raises
    ------
    DataError
        They are not as many numbers as rows, or lie in memory where the prediction is lazy or the other way round.
    """
    if isinstance(predicted, dd.Series) or dask.is_dask_collection(values) != dask.is_dask_collection(predicted):
        if np.ndim(values) == 0 and not isinstance(values, str) and not dask.is_dask_collection(values):
            return values
        raise DataError(f"{what} lies elsewhere than the rows: give it as a column of the data.", column=what)
    if dask.is_dask_collection(values):
        return values
    try:
        array = np.asarray(values, float)
    except (TypeError, ValueError) as error:
        raise DataError(f"{what} is {values!r:.80}; numbers are needed.", column=what) from error
    if array.ndim and array.shape != predicted.shape:
        raise DataError(f"{what} has the shape {array.shape}, and there are {predicted.shape} rows.", column=what)
    return array


def observed(columns: Columns, data: Any) -> Any:
    """Return the observations among the data.

    Raises
    ------
    DataError
        There is no such column.
    """
    names = names_of(data)
    if columns.y not in names and (part := part_named(columns.y, data, names)) is not None:
        return part
    if columns.y not in names:
        raise DataError(f"There is no column {columns.y!r} among the data; give the observations as y=.", column="y")
    return _column(columns, columns.y, data)


def variance_of(columns: Columns, data: Any, predicted: Any) -> Any:
    """Return the variance of an observation in units of the fit's s²: that of sigma, or of counts of this mean.

    Raises
    ------
    NlsqError
        It hangs on a column that the data lack.
    """
    if not columns.counts:
        return sigma_of(columns, data) ** 2
    return predicted if columns.trials is None else predicted * (1.0 - predicted) / trials_of(columns, data)


def trials_of(columns: Columns, data: Any) -> Any:
    """Return the trials of observations that are binomial.

    Raises
    ------
    NlsqError
        They are a column, which the data lack.
    """
    lacking = (
        f"Of how many trials these rows are is not known: give them as a frame with the column {columns.trials!r}."
    )
    return _of_rows(columns, columns.trials, data, lacking)


def _column(columns: Columns, name: str, data: Any) -> Any:
    """Return a column of the data as numbers."""
    return evaluate(_first, dataclasses.replace(columns, x=(name,)), data)


def _first(x: tuple[Vector, ...]) -> Vector:
    return x[0].astype(np.float64)


def sigma_of(columns: Columns, data: Any) -> Any:
    """Return the standard deviations of observations, in the units of the fit's sigma; 1 where it had none.

    Raises
    ------
    NlsqError
        It had a column, which the data lack.
    """
    lacking = (
        f"The fit was weighted by sigma, {columns.sigma!r}, which these data lack: give them as a frame with that "
        "column, or the standard deviations of the observations as sigma=."
    )
    (sigma,) = columns.sigmas
    return 1.0 if sigma is None else _of_rows(columns, sigma, data, lacking)


def _of_rows(columns: Columns, given: str | float | None, data: Any, lacking: str) -> Any:
    """Return what the fit was given of each row: the column of that name among the data, or the number.

    Raises
    ------
    NlsqError
        There is no such column; `lacking` says so.
    """
    if not isinstance(given, str):
        return given
    if given not in names_of(data):
        raise NlsqError(lacking)
    return _column(columns, given, data)


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


def check_level(level: object) -> None:
    """Refuse what is no probability that an interval covers, and what is meant as the probability that it does not."""
    # Percentages get this far, and a message of their own below.
    if not isinstance(level, numbers.Real) or not 0 < float(level) < 100:
        raise NlsqError(f"level is {level!r}; a number from 0.5 to 1 is needed, such as 0.95.")
    level = float(level)
    if level < 0.5:
        raise NlsqError(
            f"level is {level}, the probability that an interval covers, and a number from 0.5 to 1 is needed. "
            f"Where {level} is the probability of error (alpha), give level={1 - level:.6g}."
        )
    if level >= 1:
        raise NlsqError(f"level is {level}; a number from 0.5 to 1 is needed. For {level:g} %, give {level / 100:g}.")
