from .api import fit_many as fit_many
from .result import ManyFits as ManyFits
