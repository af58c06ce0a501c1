"""CF: the conventions by which netCDF and xarray store values as other numbers, decoded here by xarray."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import re
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from dask_nlsq._errors import DataError
from dask_nlsq._typing import AnyArray

FILLS = ("_FillValue", "missing_value")
"""Attributes that name the numbers that stand for no value."""

RANGES = ("valid_min", "valid_max", "valid_range")
"""Attributes that xarray does not apply, and netCDF4 does."""


@dataclasses.dataclass(frozen=True)
class Decoder:
    """The attributes by which the numbers of one array become its values, as ``xarray.decode_cf`` applies them."""

    name: str
    attrs: Mapping[str, Any]

    def __call__(self, stored: AnyArray) -> AnyArray:
        """Return the values of an array of any shape."""
        import xarray

        dims = [f"dim_{i}" for i in range(np.ndim(stored))]
        raw = xarray.Dataset({"values": (dims, stored, dict(self.attrs))})
        # Nanoseconds keep the digits of floats; of integers, which have none to lose, more years are reached without.
        times = xarray.coders.CFDatetimeCoder(time_unit="ns" if stored.dtype.kind == "f" else "us")
        try:
            values: AnyArray = xarray.decode_cf(raw, decode_times=times, decode_timedelta=True)["values"].to_numpy()
        except (ValueError, TypeError, OverflowError) as error:
            raise self._undefined(str(error).splitlines()[0]) from error
        if values.dtype.kind not in "fiumM":
            raise self._undefined("the decoded values are neither numbers nor dates")
        return values

    def _undefined(self, why: str) -> DataError:
        return DataError(
            f"The array is encoded ({self}), which cannot be decoded: {why}. Give its values as an array instead.",
            column=self.name,
        )

    def dtype(self, stored: np.dtype[Any]) -> np.dtype[Any]:
        """Return the type of the values."""
        if self.dates:
            return np.dtype("M8[us]")
        # Which float packed integers become depends on their width and on their codes.
        return self(np.zeros(1, stored)).dtype

    @property
    def dates(self) -> bool:
        """Whether the numbers count from a date."""
        return " since " in str(self.attrs.get("units"))

    def __str__(self) -> str:
        return ", ".join(f"{key} {value}" for key, value in self.attrs.items())


def decoder(name: str, attrs: Mapping[str, Any], dtype: np.dtype[Any], times: bool = True) -> Decoder | None:
    """Return what decodes an array of this type with these attributes, or None where its numbers are its values.

    Parameters
    ----------
    times : bool
        Whether numbers that count from a date are dates; who has opened an array without decoding them wants numbers.

    Raises
    ------
    DataError
        It must be decoded, and xarray is not installed.
    """
    attrs = {key: _scalar(value) for key, value in attrs.items()}
    # A factor of 1 and an offset of 0 change nothing, and need no xarray.
    codes = {key: attrs[key] for key, none in (("scale_factor", 1), ("add_offset", 0)) if attrs.get(key, none) != none}
    # The classic format of netCDF has no unsigned integers, and OPeNDAP no signed bytes: this attribute says what is
    # meant.
    if (dtype.kind, str(attrs.get("_Unsigned")).lower()) in (("i", "true"), ("u", "false")):
        codes["_Unsigned"] = str(attrs["_Unsigned"]).lower()
    for key in FILLS:
        if (fills := _fills(attrs.get(key), dtype)).size:
            codes[key] = fills if fills.size > 1 else fills[0]
    if times and re.search(r" since\s+[-+]?\d", str(attrs.get("units"))):  # a date, not "seconds since the trigger"
        codes |= {key: attrs[key] for key in ("units", "calendar") if key in attrs}
    # So xarray marks durations, of which the units alone, as in "seconds", do not tell that they are.
    if times and str(attrs.get("dtype")).startswith("timedelta64"):
        codes |= {key: attrs[key] for key in ("units", "dtype") if key in attrs}
    if not codes:
        return None
    decode = Decoder(name, codes)
    try:
        decode.dtype(dtype)
    except ImportError:
        raise DataError(
            f"The array is encoded ({decode}), and xarray decodes it: pip install 'dask-nlsq[xarray]'.", column=name
        ) from None
    return decode


def remarks(name: str, attrs: Mapping[str, Any]) -> list[str]:
    """Return notes on the attributes of an array that are not applied."""
    seen = ", ".join(f"{key} {_scalar(attrs[key])}" for key in RANGES if key in attrs)
    return [f"The array {name!r} has {seen}, which is not applied."] if seen else []


def _scalar(value: object) -> object:
    """Return the one value of an attribute as netCDF, HDF5 and JSON hold it, as plain Python."""
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.ravel()[0]
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.item() if isinstance(value, np.generic) else value


def _fills(value: object, dtype: np.dtype[Any]) -> AnyArray:
    """Return the numbers in an attribute that values of a type can have; xarray writes floats in Base64."""
    listed = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
    numbers = [number for each in listed if (number := _number(each)) is not None]
    return np.array([number for number in numbers if number == number and _holds(dtype, number)], dtype)


def _number(value: object) -> float | None:
    """Return a number as it is, so that large integers keep their digits; None where there is none."""
    number: Any = value.item() if isinstance(value, np.generic) else value
    if isinstance(number, (int, float)):
        return number
    with contextlib.suppress(TypeError, ValueError):
        return float(number)
    with contextlib.suppress(TypeError, ValueError, struct.error):
        decoded: float = struct.unpack("<d", base64.b64decode(number))[0]
        return decoded
    return None


def _holds(dtype: np.dtype[Any], value: float) -> bool:
    """Whether a value of a type can be this number."""
    if dtype.kind not in "iu":
        return dtype.kind == "f"
    limits = np.iinfo(dtype)
    return bool(np.isfinite(value) and int(value) == value and limits.min <= int(value) <= limits.max)
