"""Predictions: the fitted model at rows, with its bands and residuals, and what follows from the parameters."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd

from dask_nlsq._errors import DataError, NlsqError
from dask_nlsq._result.bands import (
    Derived,
    band,
    beside,
    check_level,
    curve_stderr,
    derived,
    observed,
    on_one_grid,
    trials_of,
    variance_of,
)
from dask_nlsq._result.evaluate import evaluate
from dask_nlsq._result.responses import each_response, of_each, separate, together, whitened
from dask_nlsq._result.zarr_group import computing, regular, write
from dask_nlsq._sweep import predict_rows

if TYPE_CHECKING:
    from zarr.abc.store import Store

    from dask_nlsq._result.result import FitResult


def predict(
    result: FitResult,
    data: Any,
    *,
    to: str | os.PathLike[str] | Store | None = None,
    storage_options: dict[str, Any] | None = None,
) -> Any:
    """Evaluate the fitted model; lazy for Dask collections.

    Parameters
    ----------
    data : Dask or pandas DataFrame or Series, mapping of arrays, array, tuple of arrays, or number
        Where to evaluate: columns by name, or arrays in the order of the fit. They must have the same length, and
        are cut alike where some are of Dask; a number beside them stands in every row.
    to : str, path or zarr.abc.store.Store, optional
        Evaluate now, chunk by chunk, and write a Zarr group with the array "predicted", which has the shape and
        the chunks of the data, and the names of their dimensions where they have some.
    storage_options : dict, optional
        Passed to fsspec, for URLs.

    Returns
    -------
    Series for a frame or a Series, otherwise an array; of Dask where a column of `data` is
        Of several responses, a DataFrame with a column for each, or an array of shape (k, rows). With `to`, a Dask
        array of what was written.

    Raises
    ------
    DataError
        A column is missing, or columns have unlike lengths; where chunks are of unknown sizes, when it is computed.
        With `to`, the data are a frame, whose number of rows is not known before they are read.
    FileExistsError
        There is something at `to`.

    Examples
    --------
    >>> import numpy as np, dask.array as da, dask_nlsq, zarr
    >>> x = np.arange(5.0)
    >>> result = dask_nlsq.fit("a + b*x", x, 1 + 2 * x)
    >>> result.predict(np.array([10.0])).round(6).tolist()
    [21.0]
    >>> result.predict(da.arange(6.0, chunks=2), to=zarr.storage.MemoryStore()).chunks
    ((2, 2, 2),)
    """
    payload, columns = result._model()
    if each_response(result) is not None:
        predicted = of_each(result, lambda one: one.predict(data))
    else:
        predicted = evaluate(functools.partial(predict_rows, payload, result.popt), columns, data)
    if to is None:
        return predicted
    if isinstance(predicted, (pd.Series, dd.Series, pd.DataFrame, dd.DataFrame)):
        raise DataError("to= writes arrays; write a frame by frame.assign(predicted=...).to_parquet(path).")
    array = da.asarray(getattr(predicted, "data", predicted) if hasattr(predicted, "dims") else predicted)
    if np.isnan(array.size):
        raise DataError("The chunks have unknown sizes; call compute_chunk_sizes() on the data first.")
    array = regular(array, array.ndim)
    dims = getattr(predicted, "dims", [f"dim_{i}" for i in range(array.ndim)])
    with computing():
        group = write({"predicted": array}, {"predicted": dims}, to, storage_options=storage_options)
    return da.from_zarr(group["predicted"])


def residuals(result: FitResult, data: Any, y: Any = None, *, weighted: bool = False) -> Any:
    r"""Return what the fitted model leaves of the observations, :math:`y - f(x; \hat\theta)`; lazy for Dask.

    Of successes among n trials, :math:`y/n - f(x; \hat\theta)`.

    Parameters
    ----------
    data : as for `predict`
        With the column of y, unless `y` is given.
    y : array, optional
        The observations, row by row; needed where `data` has no names. Of several responses, as the model returns them.
    weighted : bool
        Divide by sigma, as the fit did; of counts, by the standard deviation that the fit expects. Under a covariance
        of the responses, their combinations :math:`L^{-1} r`, which are independent.

    Returns
    -------
    Series named "residual" for a frame, otherwise an array, in units of y

    Raises
    ------
    DataError
        A column is missing, or `y` is not as long as the rows.
    NlsqError
        The result has no model.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> x = np.arange(4.0)
    >>> result = dask_nlsq.fit("a + b*x", x, np.array([1.0, 2.9, 5.1, 7.0]))
    >>> result.residuals(x, np.array([1.0, 2.9, 5.1, 7.0])).round(2).tolist()
    [0.03, -0.09, 0.09, -0.03]
    """
    payload, columns = result._model()
    data = on_one_grid(data, columns.names)
    if (several := each_response(result)) is not None:
        given = [None] * len(several) if y is None else separate(payload.value.responses, y)
        mixed = weighted and columns.covariance
        each = [one.residuals(data, a, weighted=weighted and not mixed) for one, a in zip(several, given, strict=True)]
        return together(payload.value.responses, whitened(columns, each) if mixed else each)
    predicted = result.predict(data)
    of_rows = observed(columns, data) if y is None else beside(predicted, y, "y")
    residual = (of_rows if columns.trials is None else of_rows / trials_of(columns, data)) - predicted
    if weighted:
        residual = residual / variance_of(columns, data, predicted) ** 0.5
    return residual.rename("residual") if isinstance(residual, (pd.Series, dd.Series)) else residual


def confidence_band(result: FitResult, data: Any, level: float = 0.95) -> Any:
    r"""Return where the model's curve may lie, :math:`f \pm t_\nu \sqrt{g^T C g}`, row by row; lazy for Dask.

    C is the covariance of the estimates and g the gradient of the model with respect to them. A band of 95 % covers
    the true value with that probability at each row, and not at all rows at once.

    Parameters
    ----------
    data : as for `predict`
    level : float
        Probability to cover, at least 0.5 and below 1.

    Returns
    -------
    DataFrame with the columns ``predicted``, ``lower`` and ``upper`` for a frame, otherwise a `Band` of arrays
        Of several responses these are columns such as ``a_lower``, or of the shape (k, rows); of complex ones, the
        limits of both parts as one number. In units of y; infinite where a parameter matters that the data do not
        determine. A parameter at a bound is taken as known.

    Raises
    ------
    NlsqError
        `level` is out of range, or the result has no model.

    Examples
    --------
    >>> import numpy as np, jax.numpy as jnp, dask_nlsq
    >>> t = np.array([0.0, 1, 2, 3])
    >>> result = dask_nlsq.fit(lambda t, a, b: a * jnp.exp(-b * t), t, np.array([2.0, 1.2, 0.8, 0.4]))
    >>> result.confidence_band(np.array([0.5])).lower.round(2).tolist()
    [1.41]
    """
    check_level(level)
    if each_response(result) is not None:
        return of_each(result, lambda one: one.confidence_band(data, level))
    stderr = curve_stderr(*result._model(), result.params, result.cov, data)
    return band(result.predict(data), stderr, level, result.statistics.interval_dof)


def prediction_band(result: FitResult, data: Any, level: float = 0.95, *, sigma: Any = None) -> Any:
    r"""Return where a new observation may lie, :math:`f \pm t_\nu \sqrt{g^T C g + s^2 \sigma^2}`; lazy for Dask.

    Parameters
    ----------
    data : as for `predict`
    level : float
        Probability to cover, at least 0.5 and below 1.
    sigma : number or array, optional
        Standard deviation of each new observation, as in the fit; that of the fit where it is a number or a column
        of `data`, 1 where there was none, and of counts the one that the fit expects. Of several responses, one of
        these for all, or for each in a list.

    Returns
    -------
    As `confidence_band`; :math:`s^2` is ``redchi``, or 1 under ``absolute_sigma``

    Raises
    ------
    DataError
        `sigma` is not as long as the rows, or no numbers.
    NlsqError
        `level` is out of range, the fit had a sigma that is not in `data`, or the result has no model.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> x = np.arange(4.0)
    >>> result = dask_nlsq.fit("a + b*x", x, np.array([1.0, 2.9, 5.1, 7.0]))
    >>> result.prediction_band(np.array([1.5])).lower.round(2).tolist()
    [3.54]
    """
    check_level(level)
    if (several := each_response(result)) is not None:
        of_each = isinstance(sigma, (list, tuple)) and len(sigma) == len(several)
        each = list(sigma) if of_each else [sigma] * len(several)
        bands = [one.prediction_band(data, level, sigma=own) for one, own in zip(several, each, strict=True)]
        return together(result._model()[0].value.responses, bands)
    payload, columns = result._model()
    data = on_one_grid(data, columns.names if sigma is None else columns.x)
    predicted = result.predict(data)
    s2 = result.statistics.residual_variance(result.absolute_sigma)
    variance = variance_of(columns, data, predicted) if sigma is None else beside(predicted, sigma, "sigma") ** 2
    stderr = (curve_stderr(payload, columns, result.params, result.cov, data) ** 2 + s2 * variance) ** 0.5
    return band(predicted, stderr, level, result.statistics.interval_dof)


def eval_uncertainty(result: FitResult, expression: str) -> Derived:
    r"""Return a quantity that follows from the parameters, with its standard error :math:`\sqrt{g^T C g}`.

    Parameters
    ----------
    expression : str
        Of parameters, such as ``"amplitude / rate"``; as for ``tied=``.

    Returns
    -------
    Derived
        ``value`` and ``stderr``.

    Raises
    ------
    ModelError
        The text names what is no parameter, or holds what an expression may not.

    Examples
    --------
    >>> import numpy as np, jax.numpy as jnp, dask_nlsq
    >>> t = np.array([0.0, 1, 2, 3])
    >>> result = dask_nlsq.fit(lambda t, a, b: a * jnp.exp(-b * t), t, np.array([2.0, 1.2, 0.8, 0.4]))
    >>> half_life = result.eval_uncertainty("log(2) / b")
    >>> round(half_life.value, 2), round(half_life.stderr, 2)
    (1.39, 0.08)
    """
    return derived(expression, result.names, result.popt, result.pcov)


def uvars(result: FitResult) -> dict[str, Any]:
    """Return the estimates as numbers of the package uncertainties, whose arithmetic keeps their correlations.

    Returns
    -------
    dict of str to uncertainties.ufloat

    Raises
    ------
    NlsqError
        uncertainties is not installed, or an error is not finite; `eval_uncertainty` needs neither.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> x = np.arange(5.0)
    >>> result = dask_nlsq.fit("a + b*x", x, np.array([1.0, 2.9, 5.1, 7.0, 9.0]))
    >>> u = result.uvars()
    >>> print(f"{u['a'] / u['b']:.1u}")
    0.49+/-0.04
    """
    try:
        import uncertainties
    except ModuleNotFoundError as error:
        raise NlsqError(
            "uvars needs the package uncertainties, which is not installed: pip install uncertainties."
        ) from error
    if not np.isfinite(result.pcov).all():
        unknown = [name for name, error in result.stderr.items() if not np.isfinite(error)]
        raise NlsqError(f"{', '.join(map(str, unknown))} has no finite error, which correlated values need.")
    values = uncertainties.correlated_values(result.popt.tolist(), result.pcov.tolist())
    return dict(zip(result.names, values, strict=True))
