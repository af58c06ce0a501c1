from . import models as models
from ._curve_fit import curve_fit as curve_fit
from ._errors import BoundsError as BoundsError
from ._errors import DataError as DataError
from ._errors import ModelError as ModelError
from ._errors import ModelNotPicklable as ModelNotPicklable
from ._errors import NlsqError as NlsqError
from ._errors import NlsqWarning as NlsqWarning
from ._errors import SweepError as SweepError
from ._errors import TooFewRows as TooFewRows
from ._fit import fit as fit
from ._numerics.model import Model as Model
from ._numerics.status import Status as Status
from ._result import FitResult as FitResult

__version__: str
