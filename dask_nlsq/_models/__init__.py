"""The library of named models; `dask_nlsq.models` is its public name."""

from dask_nlsq._models.library import LIBRARY, named

__all__ = ["LIBRARY", "named"]
