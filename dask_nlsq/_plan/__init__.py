"""How a fit goes about its data: tiers, memory, workflows, and the plan with its reasons, by arithmetic."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
