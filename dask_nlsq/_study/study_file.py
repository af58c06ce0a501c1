"""Study files: a study written in YAML, checked line by line.

::

    name: air time
    data: flights.parquet
    y: air_time
    cache_dir: cache
    options: {nan_policy: omit}
    grid:
      model: {line: a + b*distance, root: a + b*sqrt(distance)}
      filters: {all: null, long: [[distance, ">", 1000]]}
    variants:
      refined: {model: a + b*distance + c*sqrt(distance), after: {"line, all": p0}}
    record: [plot]
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from dask_nlsq._errors import NlsqError, nearest
from dask_nlsq._study.api import study
from dask_nlsq._study.result import Study
from dask_nlsq._study.variants import OPTIONS, Variant, grid

_KEYS = ("name", "data", "x", "y", "model", "cache_dir", "options", "grid", "variants", "record", "max_concurrent")

_VARIANT_KEYS = (*OPTIONS, "after", "resources", "priority")

_TYPES: Mapping[str, tuple[type | tuple[type, ...], str]] = {
    "name": (str, "a text"),
    "y": (str, "the name of a column"),
    "x": ((str, list), "the name of a column, or a list of names"),
    "data": ((str, list), "a path or URL, or a list of them"),
    "cache_dir": (str, "a path or URL"),
    "options": (dict, "a mapping of options of fit"),
    "grid": (dict, "a mapping from options of fit to their values"),
    "variants": (dict, "a mapping from names to options of fit"),
    "record": ((list, str), "a name, or a list of names"),
    "max_concurrent": (int, "a whole number"),
}


@dataclasses.dataclass(frozen=True)
class StudyFile:
    """A study as a file of YAML describes it.

    Attributes
    ----------
    variants : mapping
        As `study` takes them.
    arguments : mapping
        The other arguments of `study`. Paths are relative to the file; ``cache_dir`` is ``cache`` beside it by default,
        and the name that of the file.

    Examples
    --------
    >>> import pathlib, tempfile, dask_nlsq
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "decay.yaml"
    >>> _ = path.write_text("{data: runs.parquet, grid: {model: [a*exp(-b*t), a + b*t]}}")
    >>> list(dask_nlsq.StudyFile.read(path).variants)
    ['a*exp(-b*t)', 'a + b*t']
    """

    variants: Mapping[str, Variant]
    arguments: Mapping[str, Any]

    @classmethod
    def read(cls, path: str | os.PathLike[str], load_model: Callable[[str], Any] = lambda text: text) -> StudyFile:
        """Read a study.

        Parameters
        ----------
        path : str or path
        load_model : callable
            Makes a model of its text; by default `fit` does, for which it is a formula or a name of the library.

        Raises
        ------
        NlsqError
            The file is no YAML, or says what no study can have; the message begins with the path and the line.
        """
        return _read(Path(path), load_model)

    def run(self, client: Any = None, progress: bool | None = None) -> Study:
        """Run the study."""
        return study(self.variants, client=client, progress=progress, **self.arguments)

    def load(self) -> Study:
        """Return what the study came to when it was last run."""
        return Study.load(self.arguments["cache_dir"], self.arguments["name"])


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # PyYAML has no types
    """Makes plain values only, and refuses a key that stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (str, int)) and key in seen:
                raise _Fault(f"{key!r} stands twice", key_node.start_mark.line + 1)
            seen |= {key} if isinstance(key, (str, int)) else set()
        return dict(super().construct_mapping(node, deep))


# YAML 1.1, which PyYAML reads, takes 1e5 for a text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class _Fault(Exception):
    """What is wrong, and in which line."""

    def __init__(self, what: str, line: int) -> None:
        super().__init__(what if what.endswith((".", "?")) else f"{what}.")
        self.line = line


def _read(path: Path, load_model: Callable[[str], Any]) -> StudyFile:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise NlsqError(f"{path} cannot be read: {error}") from error
    try:
        root = yaml.compose(text, Loader=_Loader)
        if not isinstance(root, yaml.MappingNode):
            raise _Fault("a mapping is needed, with variants: or grid:", 1)
        lines = _lines(root)
        return _study(yaml.load(text, Loader=_Loader), lines, path, load_model)
    except _Fault as fault:
        raise NlsqError(f"{path}, line {fault.line}: {fault}") from fault.__cause__
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        raise NlsqError(f"{path}{where} is no YAML: {getattr(error, 'problem', None) or error}.") from error


def _lines(node: yaml.Node, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], int]:
    """Return the line of each key, by the keys that lead to it."""
    lines = {path: node.start_mark.line + 1}
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inside = (*path, str(key.value))
            lines |= _lines(value, inside) | {inside: key.start_mark.line + 1}
    return lines


def _study(
    given: dict[str, Any], lines: Mapping[tuple[str, ...], int], path: Path, load_model: Callable[[str], Any]
) -> StudyFile:
    for key, value in given.items():
        if key not in _KEYS:
            there = f"there are {', '.join(_KEYS)}.{nearest(key, _KEYS)}"
            raise _Fault(f"{key!r} is no key of a study; {there}", _at(lines, key))
        if key in _TYPES and (not isinstance(value, _TYPES[key][0]) or isinstance(value, bool)):
            raise _Fault(f"{key} is {value!r}; {_TYPES[key][1]} is needed", _at(lines, key))
    if "data" not in given:
        raise _Fault("data: is missing, the path or URL of a table", 1)
    if not given.get("grid") and not given.get("variants"):
        raise _Fault("grid: or variants: is missing", 1)

    def checked(options: Mapping[str, Any], known: tuple[str, ...], *keys: str) -> dict[str, Any]:
        for name in options:
            if name not in known:
                line = _at(lines, *keys, str(name))
                raise _Fault(f"{name!r} is no option of fit.{nearest(name, known)}", line)
        return {name: option(name, value, *keys, name) for name, value in options.items()}

    def option(name: str, value: Any, *keys: str) -> Any:
        try:
            return _option(name, value)
        except (TypeError, ValueError) as error:
            what = f"{name} has {value!r}; pairs of numbers are needed, with .inf or -.inf for a side that is open"
            raise _Fault(what, _at(lines, *keys)) from error

    def model(text: Any, *keys: str) -> Any:
        if not isinstance(text, str):
            raise _Fault(f"the model is {text!r}; a formula, a name or module:function is needed", _at(lines, *keys))
        try:
            return load_model(text)
        except NlsqError as error:
            raise _Fault(str(error), _at(lines, *keys)) from error

    axes: dict[str, Any] = {}
    for name, values in checked(given.get("grid", {}), OPTIONS, "grid").items():
        if not isinstance(values, (list, dict)) or not values:
            raise _Fault(
                f"{name} is {values!r}; a list of values is needed, or a mapping from labels to them",
                _at(lines, "grid", name),
            )
        labelled = values if isinstance(values, dict) else {str(value): value for value in values}
        made = {str(label): option(name, value, "grid", name, str(label)) for label, value in labelled.items()}
        axes[name] = (
            {label: model(text, "grid", name, label) for label, text in made.items()} if name == "model" else made
        )
    variants = grid(**axes) if axes else {}
    for name, options in given.get("variants", {}).items():
        if isinstance(options, str):
            options = {"model": options}
        if not isinstance(options, dict):
            raise _Fault(f"the variant {name!r} is {options!r}; a mapping is needed", _at(lines, "variants", str(name)))
        own = checked(options, _VARIANT_KEYS, "variants", str(name))
        if "model" in own:
            own["model"] = model(own["model"], "variants", str(name), "model")
        if str(name) in variants:
            raise _Fault(f"{name!r} is a variant of the grid already", _at(lines, "variants", str(name)))
        apart = {key: own.pop(key) for key in ("after", "resources", "priority") if key in own}
        variants[str(name)] = Variant(own, **apart)
    for name, variant in variants.items():
        if absent := [other for other in variant.follows if other not in variants]:
            line = _at(lines, "variants", name, "after")
            raise _Fault(f"{name!r} follows {absent[0]!r}, which is no variant.{nearest(absent[0], variants)}", line)
    arguments: dict[str, Any] = {
        key: given[key] for key in ("data", "x", "y", "record", "max_concurrent") if key in given
    }
    arguments |= checked(given.get("options", {}), OPTIONS, "options")
    if "model" in given:
        arguments["model"] = model(given["model"], "model")
    here = path.absolute().parent
    arguments |= {"name": given.get("name", path.stem), "cache_dir": _beside(here, given.get("cache_dir", "cache"))}
    data = given["data"]
    arguments["data"] = _beside(here, data) if isinstance(data, str) else [_beside(here, each) for each in data]
    return StudyFile(variants, arguments)


def _at(lines: Mapping[tuple[str, ...], int], *keys: str) -> int:
    """Return the line of a key, or of the nearest above it."""
    return next(lines[keys[:i]] for i in range(len(keys), -1, -1) if keys[:i] in lines)


def _option(name: str, value: Any) -> Any:
    """Return an option in the form that `fit` takes: filters as tuples, bounds and priors as pairs of numbers."""
    if name == "filters" and isinstance(value, list):
        return [tuple(each) if isinstance(each, list) and each and isinstance(each[0], str) else each for each in value]
    if name in ("bounds", "prior") and isinstance(value, dict):
        return {key: tuple(map(float, pair)) if isinstance(pair, list) else pair for key, pair in value.items()}
    return value


def _beside(folder: Path, place: str) -> str:
    """Return a path that is relative to the file of the study, or a URL, as one of its own."""
    return place if "://" in place else str(folder / place)
