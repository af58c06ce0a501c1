"""What the package adds to others: accessors of frames, defaults in Dask's configuration."""

from dask_nlsq._accessors import accessor, config

__all__ = ["accessor", "config"]
