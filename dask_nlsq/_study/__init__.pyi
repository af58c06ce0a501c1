from .api import study as study
from .study import Study as Study
from .variants import Variant as Variant
from .variants import grid as grid
