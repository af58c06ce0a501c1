"""Many: a small fit for each of many series, pixels or groups, side by side and out of core."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
