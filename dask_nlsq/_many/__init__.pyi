from .api import fit_many as fit_many
from .groups import fit_groups as fit_groups
from .labels import Labels as Labels
from .result import ManyFits as ManyFits
