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
"""The last column of a block, which says which response a row is."""


@dataclasses.dataclass(frozen=True)
class Responses:
    """What several responses are called, and how they are combined."""

    names: tuple[str, ...]
    is_complex: bool = False  # the model returns one complex number a row
    mixed: bool = False  # whether a row is a combination of responses, whose shares are columns before its number
    only: int | None = None  # the one that is looked at; None: each row has its number

    def __len__(self) -> int:
        return len(self.names)

    @property
    def appended(self) -> tuple[str, ...]:
        """The columns of a block behind those that are read."""
        return (*(f"share of {name}" for name in self.names if self.mixed), NUMBER)

    def shares(self, x: Sequence[Any]) -> Sequence[Any]:
        """Return the share of each response in rows with the columns x, where they are mixed."""
        return x[-1 - len(self) : -1]

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
                "y is taken for complex numbers (so say its type, two entries of sigma, or estimate_sigma=), and the "
                "model returns one a row that is real: real numbers are needed, or a model that returns complex ones.",
                column=column,
            )
        if len(split) != len(self):
            numbers = f"{len(split)} real number{'s' * (len(split) > 1)}"
            raise ModelError(f"The model returns {numbers} a row, and y has {len(self)}: {list(self.names)}.")
        return split

    def of_rows(self, value: Any, x: Sequence[Any]) -> Any:
        """Return of rows with the columns x the response of each, the only one, or its combination as that of y."""
        number = x[-1]
        components = self.components(value, number)
        if self.only is not None:
            return components[self.only]
        if self.mixed:
            return sum(share * each for share, each in zip(self.shares(x), components, strict=True))
        where, chosen = number.__array_namespace__().where, components[0]  # of NumPy or JAX
        for c, each in enumerate(components[1:], 1):
            chosen = where(number == c, each, chosen)
        return chosen

    def alone(self, c: int) -> Responses:
        """Return one of the responses, as it is predicted."""
        return dataclasses.replace(self, mixed=False, only=c)


def whitening(covariance: Sequence[Sequence[float]]) -> tuple[Matrix, Vector]:
    """Return the shares of responses in combinations that are independent, (k, k), and the weights of these, (k,)."""
    inverse: Matrix = np.linalg.inv(np.linalg.cholesky(np.array(covariance, float)))
    weight = np.diag(inverse).copy()
    return np.tril(inverse / weight[:, None]), weight


def mix(responses: Sequence[Any], shares: Matrix) -> list[Any]:
    """Return combinations of responses, whose shares are (combinations, responses)."""
    return [sum(share * each for share, each in zip(row, responses, strict=True) if share) for row in shares.tolist()]


def _is_complex(part: Any) -> bool:
    return np.dtype(getattr(part, "dtype", float)).kind == "c"
