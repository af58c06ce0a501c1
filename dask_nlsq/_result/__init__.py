"""FitResult: values, text, prediction, save and load."""

from dask_nlsq._result.result import FitResult, starts_frame

__all__ = ["FitResult", "starts_frame"]
