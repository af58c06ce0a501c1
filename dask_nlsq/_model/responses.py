r"""Responses: the real numbers that a model returns a row, where they are several.

A complex value is two, its real and its imaginary part, and a vector has as many as components. Each becomes a row of
its own, with the columns x repeated and the number of the response as one column more, so that the sum over rows

.. math:: \tfrac12 \sum_i \sum_c \left(\frac{f_c(x_i; \theta) - y_{ic}}{\sigma_{ic}}\right)^2

is one of real rows. With a covariance :math:`\Sigma` of the responses of a row, what is summed is
:math:`\tfrac12 \sum_i r_i^T \Sigma^{-1} r_i`: with its Cholesky factor, :math:`\Sigma = L L^T`, the residuals
:math:`L^{-1} r_i` are independent, and y and the model are combined by it before they are compared (generalised least
squares).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from dask_nlsq._errors import DataError, ModelError
from dask_nlsq._typing import Matrix, Vector

PARTS = (".real", ".imag")
"""What is put behind the name of a complex column for the names of its parts."""

NUMBER = "number of the response"
"""The column of a block that says which response a row is."""


@dataclasses.dataclass(frozen=True)
class Responses:
    """What several responses are called, and how they are combined."""

    names: tuple[str, ...]
    is_complex: bool = False  # the model returns one complex number a row
    mixing: tuple[tuple[float, ...], ...] = ()  # lower triangle with a diagonal of 1; none where they are independent
    only: int | None = None  # the one that is looked at; None: each row has its number

    def __len__(self) -> int:
        return len(self.names)

    def components(self, value: Any, rows: Any) -> list[Any]:
        """Return each response of what the model returns for some rows.

        Raises
        ------
        DataError
            They are the parts of complex numbers, and the model returns one real number.
        ModelError
            It does not return as many real numbers a row, as a sequence or an array (responses, rows).
        """
        shape = tuple(getattr(rows, "shape", ()))
        together = not isinstance(value, (list, tuple)) and getattr(value, "ndim", 0) != len(shape) + 1
        parts = [value] if together else list(value)
        if any(tuple(getattr(part, "shape", ())) != shape for part in parts):
            seen = [tuple(getattr(part, "shape", ())) for part in parts]
            raise ModelError(
                f"The model returns {len(parts)} arrays of the shapes {seen} for {shape[0]} rows; "
                f"{len(self)} of the shape {shape} are needed, one for each response."
            )
        split = [half for part in parts for half in ((part.real, part.imag) if _is_complex(part) else (part,))]
        if len(split) == 1 and self.names == tuple((column := self.names[0].removesuffix(PARTS[0])) + p for p in PARTS):
            raise DataError(
                "The column is complex, and the model returns one real number a row: real numbers are needed, or a "
                "model that returns complex ones.",
                column=column,
            )
        if len(split) != len(self):
            numbers = f"{len(split)} real number{'s' * (len(split) > 1)}"
            raise ModelError(f"The model returns {numbers} a row, and y has {len(self)}: {list(self.names)}.")
        return split

    def of_rows(self, value: Any, number: Any) -> Any:
        """Return of each row the response of its number, combined as y is, or the only one."""
        if self.only is not None:
            return self.components(value, number)[self.only]
        mixed = mix(self.components(value, number), self.mixing)
        where, chosen = number.__array_namespace__().where, mixed[0]  # of NumPy or JAX
        for c, each in enumerate(mixed[1:], 1):
            chosen = where(number == c, each, chosen)
        return chosen

    def alone(self, c: int) -> Responses:
        """Return one of the responses, as it is predicted."""
        return dataclasses.replace(self, mixing=(), only=c)


def mix(responses: Sequence[Any], mixing: Sequence[Sequence[float]]) -> list[Any]:
    """Return responses, or what is predicted of them, in the combinations that have independent errors."""
    if not mixing:
        return list(responses)
    return [
        sum((share * each for share, each in zip(row[:c], responses, strict=False)), responses[c])
        for c, row in enumerate(mixing)
    ]


def whitening(covariance: Sequence[Sequence[float]]) -> tuple[tuple[tuple[float, ...], ...], Vector]:
    """Return what combines responses of this covariance, and the weights of the combinations, (responses,)."""
    inverse: Matrix = np.linalg.inv(np.linalg.cholesky(np.array(covariance, float)))
    weight = np.diag(inverse).copy()
    return tuple(map(tuple, np.tril(inverse / weight[:, None]).tolist())), weight


def _is_complex(part: Any) -> bool:
    return np.dtype(getattr(part, "dtype", float)).kind == "c"
