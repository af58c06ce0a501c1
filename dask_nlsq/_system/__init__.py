"""What the machine and its queue say: memory, signals, forks, failing reads, the batch job that runs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
