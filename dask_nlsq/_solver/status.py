"""Why a fit stopped: SciPy's codes where SciPy has them, and a sentence for each."""

from __future__ import annotations

import enum
import warnings
from typing import Any

_RENAMED = {"BEATEN": "PRUNED", "UNSETTLED": "NOT_SETTLED", "SILENT": "UNIDENTIFIABLE"}
"""Members under the names that they had at first."""


class _Renaming(enum.EnumMeta):
    """Finds members under their old names, with a warning."""

    def __getattr__(cls, name: str) -> Any:
        if name not in _RENAMED:
            raise AttributeError(f"Status has no member {name!r}.")
        warnings.warn(f"Status.{name} is now Status.{_RENAMED[name]}.", DeprecationWarning, stacklevel=2)
        return super().__getitem__(_RENAMED[name])

    def __getitem__(cls, name: str) -> Any:
        return getattr(cls, name) if name in _RENAMED else super().__getitem__(name)


class Status(enum.IntEnum, metaclass=_Renaming):
    """Why a fit stopped; positive where a stated test holds.

    Examples
    --------
    >>> from dask_nlsq import Status
    >>> Status.CONVERGED.success, int(Status.MAX_NFEV)
    (True, 0)
    >>> print(Status.CONVERGED)
    CONVERGED
    """

    sentence: str

    def __new__(cls, code: int, sentence: str) -> Status:
        """Attach the sentence to the code."""
        member = int.__new__(cls, code)
        member._value_ = code
        member.sentence = sentence
        return member

    PRUNED = -8, "Another start led to a lower minimum."
    NOT_FINITE = -7, "The model or its derivative is not finite there."
    TOO_FEW = -9, "There are fewer finite values than free parameters."
    NOT_SETTLED = (
        -6,
        "The estimates still moved by more than a standard error, or far from where batches were linearised.",
    )
    UNIDENTIFIABLE = (
        -5,
        "The model does not respond to some parameters here, although it does elsewhere: start elsewhere.",
    )
    STALLED = (
        -4,
        "The trust region shrank to nothing, or many sweeps gained nothing, and the step that remains is not small.",
    )
    TIME_LIMIT = -3, "The time limit was reached."
    CALLBACK = -2, "The callback asked to stop."
    MAX_NFEV = 0, "The maximum number of sweeps was reached."
    GTOL = 1, "The scaled gradient is below gtol."
    FTOL = 2, "The relative reduction of the cost is below ftol."
    XTOL = 3, "The relative step is below xtol."
    BOTH = 4, "The reduction of the cost and the step are below ftol and xtol."
    CONVERGED = 5, "The step that remains is far below the standard errors."
    ROUNDING = 6, "The step that remains is at the rounding level of float64."
    PRECISION = 8, "Every standard error is as small as was asked for; what was not needed for that was not read."
    STREAMED = 7, "Every batch was seen once, and the estimates stayed where the model is linear between batches."

    def __str__(self) -> str:
        # Of an IntEnum it would be the number, from Python 3.11 on.
        return self.name

    def __format__(self, spec: str) -> str:
        return format(int(self) if spec[-1:] in tuple("bcdeEfFgGnoxX%") else self.name, spec)

    @property
    def success(self) -> bool:
        """Whether a test of convergence holds."""
        return self > 0

    @classmethod
    def of(cls, code: int) -> Status:
        """Return the member with a code."""
        return next(member for member in cls if member == code)


STOPPED = (Status.TIME_LIMIT, Status.CALLBACK)
"""Ends that came from outside, after which the same fit goes on from a checkpoint."""
