"""Signature: what help and completion show of a method that hands its options on to a function."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, Generic, ParamSpec, TypeVar

from dask_nlsq._errors import check_keywords

P = ParamSpec("P")
R = TypeVar("R")

_SECTION = re.compile(r"^(\w[\w ]*)\n-{3,}$", re.MULTILINE)
_ENTRY = re.compile(r"^(?=\S)", re.MULTILINE)


class Method(Generic[P, R]):
    """A method whose signature and docstring have the options of a function in the place of ``**options``.

    The function is asked for when the method is first looked at, because it needs JAX.

    Parameters
    ----------
    method : callable
        The method, which ends with ``**options``.
    function : callable
        Returns the function that takes them.
    without : sequence of str
        Arguments of the function that the method gives itself.
    """

    def __init__(
        self,
        method: Callable[P, R],
        function: Callable[[], Callable[..., Any]],
        without: Sequence[str],
    ) -> None:
        self._method, self._function, self._without = method, function, without

    def __get__(self, accessor: object, owner: type) -> Callable[..., R]:
        shown: Callable[..., R] = self._shown if accessor is None else self._shown.__get__(accessor, owner)
        return shown

    @functools.cached_property
    def _shown(self) -> Any:
        function = self._function()
        own = inspect.signature(self._method)
        *first, _ = own.parameters.values()
        theirs = inspect.signature(function).parameters.values()
        options = [p for p in theirs if p.name not in (*own.parameters, *self._without) and p.kind is p.KEYWORD_ONLY]
        shown = check_keywords(self._method)
        shown.__doc__ = _document(self._method.__doc__, function.__doc__, [p.name for p in (*first, *options)])
        shown.__signature__ = own.replace(parameters=[*first, *options])  # type: ignore[attr-defined]
        return shown


def options_of(
    function: Callable[[], Callable[..., Any]], without: Sequence[str] = ("data",)
) -> Callable[[Callable[P, R]], Method[P, R]]:
    """Show the options of a function with a method; see `Method`."""
    return lambda method: Method(method, function, without)


def _document(method: str | None, function: str | None, names: Sequence[str]) -> str:
    """Return a docstring with the sections of both, the method's where both have one, and the parameters `names`."""
    own, theirs = _sections(method), _sections(function)
    entries = {name: entry for text in (theirs, own) for name, entry in _entries(text.get("Parameters", "")).items()}
    parameters = "".join(dict.fromkeys(entries[name] for name in names if name in entries))
    sections = theirs | own | {"Parameters": parameters}
    parts = [f"{title}\n{'-' * len(title)}\n{text.strip()}" for title, text in sections.items() if title]
    return "\n\n".join([own[""].strip(), *parts])


def _sections(doc: str | None) -> dict[str, str]:
    """Return the text of each section of a docstring by its title; what stands before them all has none."""
    before, *rest = _SECTION.split(inspect.cleandoc(doc or ""))
    return {"": before} | dict(zip(rest[::2], rest[1::2], strict=True))


def _entries(parameters: str) -> dict[str, str]:
    """Return the entry of each parameter; several may have one entry."""
    entries = [entry.strip() + "\n" for entry in _ENTRY.split(parameters) if entry.strip()]
    return {name: entry for entry in entries for name in re.split(r", ", re.split(r" :|\n", entry)[0])}
