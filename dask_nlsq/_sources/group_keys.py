"""Group keys: what tells the groups of rows apart, as float64 numbers that are the same in every partition.

Integers, floats and booleans are keys as they are, dates count microseconds from 1970. Of a text the key is 53 bits of
the hash that pandas makes of it, the same in every process: that any two of G texts share one has a probability of
:math:`G^2 / 2^{54}`, which is 6e-9 for 10,000 of them; two in one partition are refused.
"""

from __future__ import annotations

import importlib

import numpy as np

from dask_nlsq._errors import DataError
from dask_nlsq._typing import AnyArray, Vector

_WHOLE = 2.0**53
"""From here on float64 does not hold every whole number."""

_SPARE = np.uint64(11)
"""Bits of a hash of 64 that float64 has no room for."""

_NUMBERS = ("integer", "floating", "mixed-integer-float", "decimal", "boolean", "empty")
"""What pandas calls objects that are numbers, or all missing."""


def to_keys(name: str, array: AnyArray) -> Vector:
    """Return the key of the group of each row, (rows,); NaN where it is missing.

    Raises
    ------
    DataError
        The values are of no type that tells groups apart, or their keys would be those of others.
    """
    if array.ndim != 1:
        raise DataError(f"groups has shape {array.shape}; one group for each row is needed.", column=name)
    array = _of_one_type(name, array) if array.dtype.kind == "O" else array
    kind = array.dtype.kind
    if kind in "OUST":
        return _of_texts(name, array.astype(object))
    if kind not in "biufmM" or (kind == "m" and np.datetime_data(array.dtype)[0] in ("Y", "M")):
        raise _refused(name, f"have dtype {array.dtype}")
    keys = _of_times(name, array) if kind in "mM" else np.array(array, float)
    if (np.abs(keys) >= _WHOLE).any():
        raise _refused(name, "reach 2**53, from where on float64 does not hold every whole number")
    return keys


def _of_one_type(name: str, array: AnyArray) -> AnyArray:
    """Return objects as an array of their type; texts stay as they are."""
    pd = importlib.import_module("pandas")  # at its first use: a worker that reads Zarr does without
    kind = pd.api.types.infer_dtype(array, skipna=True)
    if kind in ("string", "bytes"):
        return array
    if kind not in (*_NUMBERS, "date"):
        raise _refused(name, f"are objects of the type {kind!r}")
    values, missing = array.tolist(), pd.isna(array).tolist()
    if kind == "date":
        dates = ["NaT" if absent else value for value, absent in zip(values, missing, strict=True)]
        return np.array(dates, "M8[D]")
    return np.array([np.nan if absent else float(value) for value, absent in zip(values, missing, strict=True)], float)


def _of_texts(name: str, array: AnyArray) -> Vector:
    pd = importlib.import_module("pandas")  # at its first use: a worker that reads Zarr does without
    codes, texts = pd.factorize(array)
    hashes = pd.util.hash_array(np.asarray(texts, object), categorize=False) >> _SPARE
    if len(np.unique(hashes)) < len(texts):
        raise DataError("Two groups are texts that have the same hash; number them before the fit.", column=name)
    keys: Vector = np.append(hashes.astype(float), np.nan)[codes]  # the code of a missing text is -1
    return keys


def _of_times(name: str, array: AnyArray) -> Vector:
    """Return instants, or durations, in microseconds."""
    missing = np.isnat(array)
    ticks = array.astype(f"{array.dtype.kind}8[us]")
    if ((ticks != array) & ~missing).any():
        raise _refused(name, "have fractions of a microsecond")
    return np.where(missing, np.nan, ticks.astype(np.int64).astype(float))


def _refused(name: str, why: str) -> DataError:
    return DataError(
        f"The groups {why}. Integers below 2**53, texts, categories, dates or booleans are needed; "
        f"data[{name!r}].astype(str) makes texts of them.",
        column=name,
    )
