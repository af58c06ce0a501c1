"""Where rows come from: frames, arrays, tables, stores, files and memory; a `Block` a partition afterwards."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
