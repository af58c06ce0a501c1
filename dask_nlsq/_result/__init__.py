"""FitResult: values, text, prediction, save and load."""

from dask_nlsq._result.labels import columns_of
from dask_nlsq._result.result import FitResult, starts_frame

__all__ = ["FitResult", "columns_of", "starts_frame"]
