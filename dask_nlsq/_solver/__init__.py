"""Where to evaluate next: pure state machines that see reductions, and no data, files or clocks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
