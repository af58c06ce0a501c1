"""What a notebook shows of an object, as plain data that one set of templates turns into HTML; axes to draw on."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
