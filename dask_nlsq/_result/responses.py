"""Responses of a fitted model: the result as one of them sees it, and what is found of each put together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import zarr

from dask_nlsq._errors import DataError, NlsqError
from dask_nlsq._model import PARTS, Responses, mix, whitening
from dask_nlsq._sources import Columns
from dask_nlsq._sweep import serialize

if TYPE_CHECKING:
    from dask_nlsq._result.result import FitResult


def response(result: FitResult, name: str) -> FitResult:
    """Return the result as one of several responses has it: what it predicts, leaves and draws is of that one.

    The estimates, their errors and the statistics are those of the whole fit.

    Parameters
    ----------
    name : str
        A column of y; of complex numbers ``"y.real"`` or ``"y.imag"``, with the name of their column.

    Returns
    -------
    FitResult

    Raises
    ------
    NlsqError
        The fit has no such response, or the result has no model.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> w = np.linspace(0.1, 10, 50)
    >>> result = dask_nlsq.fit(lambda w, r, c: r / (1 + 1j * w * r * c), w, 2 / (1 + 1j * w), p0=[1, 1])
    >>> result.response("y.imag").predict(np.array([1.0])).round(6).tolist()
    [-1.0]
    """
    payload, columns = result._model()
    names = () if payload.value.responses is None else payload.value.responses.names
    if name not in names or columns.n_responses == 1:
        known = f"the responses are {list(columns.response_names)}"
        raise NlsqError(f"There is no response {name!r}; {known}.")
    c = names.index(name)
    alone = serialize(payload.value.of_response(c))
    return dataclasses.replace(result, payload=alone, columns=columns.of_response(c), response_number=c)


def each_response(result: FitResult) -> list[FitResult] | None:
    """Return the result as each of several responses has it; None where there is one."""
    payload, columns = result._model()
    if payload.value.responses is None or columns.n_responses == 1:
        return None
    return [response(result, name) for name in payload.value.responses.names]


def of_each(result: FitResult, function: Callable[[FitResult], Any]) -> Any:
    """Return what a function finds of each of several responses, as the model returns them."""
    several = each_response(result)
    assert several is not None
    return together(result._model()[0].value.responses, [function(one) for one in several])


def together(responses: Responses, values: Sequence[Any]) -> Any:
    """Return values of each response as complex numbers, columns of a frame, or an array of one dimension more."""
    first = values[0]
    if isinstance(first, tuple):  # a band
        return type(first)(*(together(responses, fields) for fields in zip(*values, strict=True)))
    if responses.is_complex:
        return first + 1j * values[1]
    if isinstance(first, (pd.DataFrame, dd.DataFrame)):
        columns = [(f"{n}_{name}", v[name]) for n, v in zip(responses.names, values, strict=True) for name in v.columns]
        return columns[0][1].to_frame(columns[0][0]).assign(**dict(columns[1:]))
    if isinstance(first, (pd.Series, dd.Series)):
        return first.to_frame(responses.names[0]).assign(**dict(zip(responses.names[1:], values[1:], strict=True)))
    if hasattr(first, "dims"):
        import xarray

        return xarray.concat(values, pd.Index(responses.names, name="response"))
    return da.stack(values) if isinstance(first, da.Array) else np.stack(values)


def separate(responses: Responses, y: Any) -> list[Any]:
    """Return each response of observations that are given as the model returns its values.

    Raises
    ------
    DataError
        They are not as many.
    """
    parts = [y] if getattr(y, "ndim", 1) == 1 and not isinstance(y, (list, tuple)) else list(y)
    split = [half for each in parts for half in ((part_of(each, 0), part_of(each, 1)) if _complex(each) else (each,))]
    if len(split) != len(responses):
        raise DataError(f"y holds {len(split)} real numbers a row; the model returns {len(responses)}.", column="y")
    return split


def part_named(name: str, data: Any, names: Sequence[str]) -> Any:
    """Return the part of a complex column of the data that a response is; None where there is no such column."""
    for c, part in enumerate(PARTS):
        stem = name.removesuffix(part)
        if stem != name and stem in names:
            return part_of(data[stem], c)
    return None


def part_of(column: Any, c: int) -> Any:
    """Return the real (0) or imaginary (1) part of a column of complex numbers."""
    take = np.imag if c else np.real
    if isinstance(column, dd.Series):
        return column.map_partitions(part_of, c, meta=pd.Series([], dtype="float64", name=column.name))
    if isinstance(column, pd.Series):
        return pd.Series(take(column.to_numpy()), column.index, name=column.name)
    if isinstance(column, zarr.Array):
        column = column[:]
    return column.imag if c else column.real


def whitened(columns: Columns, residuals: Sequence[Any]) -> list[Any]:
    """Return residuals of the responses of a covariance in the combinations that are independent, of variance 1."""
    shares, weight = whitening(columns.covariance)
    return [each * w for each, w in zip(mix(residuals, shares), weight.tolist(), strict=True)]


def _complex(column: Any) -> bool:
    return np.dtype(getattr(column, "dtype", float)).kind == "c"
