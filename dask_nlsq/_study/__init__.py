"""Study: many fits over shared reads, in stages, with a cache of their results."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
