"""Exact nonlinear least squares on more rows than fit in memory, with Dask and JAX."""

import lazy_loader

from dask_nlsq import _accessors

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted(__all__)

_accessors.config.register()
_accessors.accessor.register()
