"""One block of rows at one parameter vector: residuals and Jacobian, tile by tile, summed to a reduction."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
