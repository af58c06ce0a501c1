"""Exact sum: numbers added without rounding, so that the bits of a sum hang on no order.

Each float64 is a whole number times a power of two. It is cut into parts of 32 bits that are added to counters of 64
bits, a row of counters for each sum (a superaccumulator). Only the whole sum is rounded, once, to the nearest float64.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt

from dask_nlsq._typing import Matrix, Vector

_PART = 32
"""Bits of a part; a counter holds the sum of 2³¹ of them."""

_LEAST = 1074
"""The smallest float64 above zero is 2 to the minus this."""

_COUNTERS = (_LEAST + 1024) // _PART + 2
_CARRY = 2**20
"""Numbers that are added before counters pass on what is more than a part."""


@dataclasses.dataclass(frozen=True, eq=False)
class ExactSum:
    """The sums of the columns of a matrix, as counters (columns, parts).

    Examples
    --------
    >>> import numpy as np
    >>> from dask_nlsq._kernel import ExactSum
    >>> one, two = ExactSum.of(np.array([[1e17], [1.0]])), ExactSum.of(np.array([[-1e17]]))
    >>> (one + two).rounded().tolist()
    [1.0]
    """

    counters: npt.NDArray[np.int64]  # (columns, parts)
    finite: npt.NDArray[np.bool_]  # (columns,)

    @classmethod
    def of(cls, values: Matrix) -> ExactSum:
        """Return the sum over the rows of `values` (rows, columns)."""
        columns = values.shape[1]
        finite = np.asarray(np.isfinite(values).all(axis=0))
        counters = np.zeros(columns * _COUNTERS, np.int64)
        for some in np.split(values, range(_CARRY, len(values), _CARRY)):
            mantissa, exponent = np.frexp(np.where(np.isfinite(some), some, 0.0))
            whole, place = np.ldexp(mantissa, 53).astype(np.int64), exponent.astype(np.int64) - 53 + _LEAST
            whole = np.where(place < 0, whole >> np.maximum(-place, 0), whole)  # of a subnormal, these bits are zero
            counter, shift = np.divmod(np.maximum(place, 0), _PART)
            counter += np.arange(columns) * _COUNTERS
            sign, whole = np.sign(whole), np.abs(whole)
            low, high = (whole & (2**_PART - 1)) << shift, (whole >> _PART) << shift  # of 64 bits at most
            for part, offset in ((low, 0), (high, 1)):
                np.add.at(counters, counter + offset, sign * (part & (2**_PART - 1)))
                np.add.at(counters, counter + offset + 1, sign * (part >> _PART))
            counters = _carried(counters.reshape(columns, -1)).ravel()
        return cls(counters.reshape(columns, -1), finite)

    def __add__(self, other: ExactSum) -> ExactSum:
        return ExactSum(_carried(self.counters + other.counters), self.finite & other.finite)

    def rounded(self) -> Vector:
        """Return the sums, (columns,): NaN where a number was not finite, infinite beyond the range of float64."""
        rows = zip(self.counters, self.finite, strict=True)
        return np.array([_rounded(row) if finite else np.nan for row, finite in rows])


def _carried(counters: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the same sums with each counter but the last within a part."""
    counters = counters.copy()
    for i in range(counters.shape[1] - 1):
        carry = counters[:, i] >> _PART
        counters[:, i] -= carry << _PART
        counters[:, i + 1] += carry
    return counters


def _rounded(counters: npt.NDArray[np.int64]) -> float:
    whole = sum(int(part) << (_PART * i) for i, part in enumerate(counters))
    try:
        return float(whole / 2**_LEAST)  # of whole numbers, Python rounds to the nearest
    except OverflowError:
        return np.inf if whole > 0 else -np.inf
