"""Fragment: what a notebook shows of an object, as a title, warnings, and tables and texts below them.

An object says what it shows; how it looks is decided in ``templates/`` for all of them::

    fragment = Fragment("decay(t; amplitude, rate)", [Table([["amplitude", "2.5"]]), Fold("History", [Text("…")])])
    fragment.html()          # for a cell of a notebook
    page(fragment, figures)  # a file of its own

All text is escaped. Colours are those of the surrounding text and translucent ones, for a notebook's theme need not be
that of the browser.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, TypeAlias

if TYPE_CHECKING:
    import jinja2


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; the first cell of each row is its heading."""

    rows: Sequence[Sequence[object]]
    header: Sequence[str] = ()
    align: str = ""  # of the columns, as in LaTeX: "lr"; numbers are at the right, and text at the left, beyond it
    shades: Sequence[Sequence[float]] = ()  # of each cell after the heading, from -1 (blue) to 1 (red)

    kind: ClassVar[str] = "table"


@dataclasses.dataclass(frozen=True)
class Text:
    """Text whose lines and spaces remain."""

    text: str

    kind: ClassVar[str] = "text"


@dataclasses.dataclass(frozen=True)
class Fold:
    """Parts that are shown when their heading is clicked."""

    heading: str
    parts: Sequence[Part]

    kind: ClassVar[str] = "fold"


_LONG = 25
"""Characters of a cell above which it is broken into lines."""

Part: TypeAlias = str | Table | Text | Fold
"""A paragraph, or one of these."""


@dataclasses.dataclass(frozen=True)
class Fragment:
    """What is shown of an object.

    Examples
    --------
    >>> from dask_nlsq._display import Fragment
    >>> "a &lt; b" in Fragment("a < b").html()
    True
    """

    title: str
    parts: Sequence[Part] = ()
    status: str = ""  # beside the title
    failure: str = ""  # before all else
    notes: Sequence[str] = ()  # before the parts

    def html(self) -> str:
        """Return the HTML, without a document around it."""
        return _templates().get_template("fragment.html").render(fragment=self)


def page(fragment: Fragment, figures: Sequence[tuple[str, bytes]] = ()) -> str:
    """Return a document of HTML that needs no other file, with a fragment and figures, PNG or SVG, by title."""
    return _templates().get_template("page.html").render(fragment=fragment, figures=figures)


@functools.cache
def _templates() -> jinja2.Environment:
    import jinja2  # workers import models, and show nothing

    loader = jinja2.PackageLoader("dask_nlsq._display")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"cell": _cell, "side": _side, "shade": _shade, "data_uri": _data_uri}
    return environment


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _side(value: object, align: str, column: int) -> str:
    """Return the class of a cell."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if (align[column] if column < len(align) else "r" if number else "l") == "r":
        return "right"
    return "long" if len(_cell(value)) > _LONG else "left"


def _shade(value: float) -> str:
    """Return a translucent colour, or none for NaN."""
    if not math.isfinite(value):
        return "transparent"
    return f"hsla({10 if value > 0 else 220}, 80%, 50%, {0.6 * abs(value):.2f})"


def _data_uri(image: bytes) -> str:
    kind = "png" if image.startswith(b"\x89PNG") else "svg+xml"
    return f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
