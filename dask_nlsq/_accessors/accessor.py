"""The accessors ``ddf.nlsq`` and ``df.nlsq``: they hand the frame to `dask_nlsq.fit`."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import wrapt

from dask_nlsq import _fit, _plan, _result

if TYPE_CHECKING:
    import dask.dataframe as dd
    import pandas as pd


class NlsqAccessor:
    """Nonlinear least squares on the columns of this frame.

    Examples
    --------
    >>> import pandas as pd, dask_nlsq
    >>> frame = pd.DataFrame({"x": [0.0, 1, 2, 3], "y": [1.0, 3, 5, 7]})
    >>> popt, pcov = frame.nlsq.fit(lambda x, slope, level: level + slope * x)
    >>> popt.round(6).tolist()
    [2.0, 1.0]
    """

    def __init__(self, frame: pd.DataFrame | dd.DataFrame) -> None:
        self._frame = frame

    def fit(
        self,
        model: Callable[..., Any] | str,
        x: str | Sequence[str] | None = None,
        y: str | None = None,
        **options: Any,
    ) -> _result.FitResult:
        """Fit `model` to this frame's columns; ``dask_nlsq.fit(model, x, y, data=frame, **options)``."""
        return _fit.fit(model, x, y, data=self._frame, **options)

    def plan(
        self,
        model: Callable[..., Any] | str,
        x: str | Sequence[str] | None = None,
        y: str | None = None,
        **options: Any,
    ) -> _plan.Plan:
        """Say what `fit` would do; ``dask_nlsq.plan(model, x, y, data=frame, **options)``."""
        return _fit.plan(model, x, y, data=self._frame, **options)


def register() -> None:
    """Add ``.nlsq`` to Dask's and pandas' frames, now or when they are imported.

    Neither is imported for that: a worker imports what its partitions need.
    """
    for module in ("pandas", "dask.dataframe"):
        if sys.modules.get(module) is not None:
            importlib.import_module(module)  # another thread may be in the middle of it
        # pandas and Dask each have a registry of their own.
        wrapt.register_post_import_hook(_add, module)


def _add(module: ModuleType) -> None:
    extensions = module.extensions if hasattr(module, "extensions") else module.api.extensions
    extensions.register_dataframe_accessor("nlsq")(NlsqAccessor)
