"""FitResult: values, text, prediction, save and load."""

from dask_nlsq._result.result import FitResult

__all__ = ["FitResult"]
