"""What a notebook shows of an object: parts as plain data, which one set of templates turns into HTML."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
