"""Checkpoints: generations of state in a Zarr store, one writer at a time."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
