from .api import curve_fit as curve_fit
