from .figure import axes as axes
from .figure import pyplot as pyplot
from .fragment import Fold as Fold
from .fragment import Fragment as Fragment
from .fragment import Part as Part
from .fragment import Table as Table
from .fragment import Text as Text
from .fragment import page as page
