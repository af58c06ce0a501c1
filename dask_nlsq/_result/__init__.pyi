from .bands import Band as Band
from .bands import Derived as Derived
from .bands import curve_stderr as curve_stderr
from .diagnostics import Diagnostics as Diagnostics
from .html import fragment_of as fragment_of
from .labels import columns_of as columns_of
from .result import FitResult as FitResult
from .result import starts_frame as starts_frame
