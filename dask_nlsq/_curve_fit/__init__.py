"""curve_fit: SciPy's contract in front of `fit`, for NumPy and Dask arrays."""

from dask_nlsq._curve_fit.curve_fit import curve_fit

__all__ = ["curve_fit"]
