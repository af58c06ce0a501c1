from .fitter import StreamingFitter as StreamingFitter
