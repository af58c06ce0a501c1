"""Array and shape aliases."""

from __future__ import annotations

from types import EllipsisType
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Vector: TypeAlias = npt.NDArray[np.float64]
"""A float64 array of one dimension; its length stands beside it as ``(p,)`` or ``(rows,)``."""

Matrix: TypeAlias = npt.NDArray[np.float64]
"""A float64 array of two dimensions."""

AnyArray: TypeAlias = npt.NDArray[Any]
"""An array of any dtype, as it comes from a reader."""

Index: TypeAlias = int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]
"""What an array in a store or a file is asked for."""
