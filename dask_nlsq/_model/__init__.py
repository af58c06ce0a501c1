"""What is fitted: functions and expressions as models, their parameters, bounds, ties, priors and losses."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
