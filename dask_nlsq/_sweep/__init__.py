"""One pass over the data: groups of partitions, reduced and folded in a fixed tree, whatever runs the tasks."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
