"""FitResult: values, text, prediction, save and load."""

from dask_nlsq._result.result import FitResult, history_frame, starts_frame

__all__ = ["FitResult", "history_frame", "starts_frame"]
