from .api import study as study
from .result import Study as Study
from .study_file import StudyFile as StudyFile
from .variants import Variant as Variant
from .variants import grid as grid
