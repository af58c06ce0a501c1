"""Key: what tells one value from another in this process, found in microseconds where a pickle takes a millisecond.

It follows a function into its code, its defaults, its closure and the globals that it names, as `source_hash` does, and
takes what it finds there by its value. What it does not know it refuses, so that a key never leaves anything out.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import hashlib
import sys
import types
from collections.abc import Hashable
from typing import Any, NamedTuple

import numpy as np

from dask_nlsq._model.source_hash import attributes, foreign, installed, names

MOST = 2000
"""Values beyond which a key would take as long as a pickle."""

_SCALARS = (bool, int, str, bytes, type(None))


class Key(NamedTuple):
    """A hashable value, and the objects whose addresses stand in it: to be kept as long as the key is."""

    parts: Hashable
    held: list[Any]


class _Unknown(Exception):
    """There is something that a key cannot be made of."""


def key(value: object) -> Key | None:
    """Return what is equal for two values that do the same; None where that cannot be told without pickling them."""
    reader = _Reader()
    try:
        return Key(reader.read(value), reader.held)
    except Exception:  # whatever objects of the user's raise when they are looked at
        return None


class _Reader:
    def __init__(self) -> None:
        self._places: dict[int, tuple[int, Any]] = {}

    @property
    def held(self) -> list[Any]:
        """What was read: as long as it is kept, nothing else takes its place in memory."""
        return [value for _, value in self._places.values()]

    def read(self, value: Any) -> Hashable:
        """Return what stands for a value in a key."""
        kind = type(value)
        if kind in _SCALARS:
            return kind, value
        if kind is float:
            return kind, value.hex()  # NaN is equal to itself, and -0.0 is not 0.0
        if id(value) in self._places:
            return "again", self._places[id(value)][0]
        self._keep(value)
        if len(self._places) > MOST:
            raise _Unknown
        return self._read(value, kind)

    def _keep(self, value: object) -> None:
        self._places.setdefault(id(value), (len(self._places), value))

    def _read(self, value: Any, kind: type) -> Hashable:
        if kind in (tuple, list):
            return kind, *map(self.read, value)
        if kind in (dict, types.MappingProxyType):
            return kind, *((self.read(name), self.read(part)) for name, part in value.items())
        if kind in (set, frozenset):
            return kind, frozenset((type(part), part) for part in value if type(part) in _SCALARS or _refuse())
        if kind is types.FunctionType:
            return self._function(value)
        if kind is functools.partial:
            return kind, self.read(value.func), self.read(value.args), self.read(value.keywords)
        if kind is types.MethodType:
            return kind, self.read(value.__func__), self.read(value.__self__)
        if kind is np.ndarray and not value.dtype.hasobject:
            return (
                kind,
                repr(value.dtype.descr),
                value.shape,
                hashlib.blake2b(np.ascontiguousarray(value).data).digest(),
            )
        if isinstance(value, np.generic) and not value.dtype.hasobject:
            return kind, repr(value.dtype), value.tobytes()
        if isinstance(value, (types.ModuleType, np.ufunc)) or (isinstance(value, type) and foreign(value)):
            return id(value)
        # A method of a container, which may change, is a built-in function too.
        if isinstance(value, types.BuiltinFunctionType) and isinstance(value.__self__, (types.ModuleType, type(None))):
            return id(value)
        if kind.__module__.startswith("dask_nlsq.") and dataclasses.is_dataclass(kind):
            return kind, *(self.read(getattr(value, name)) for name in _fields(kind))
        if kind.__module__.partition(".")[0] in ("jax", "jaxlib"):
            return id(value), self._of_jax(value, kind.__name__)
        raise _Unknown

    def _of_jax(self, value: Any, kind: str) -> Hashable:
        """Return what may change beneath an object of JAX: nothing of an array, and of a function what it wraps."""
        if kind == "ArrayImpl":
            return None
        wrapped = value.__wrapped__
        if kind == "PjitFunction" or (
            isinstance(wrapped, types.FunctionType) and installed(wrapped.__code__.co_filename)
        ):
            return self.read(wrapped)
        raise _Unknown  # it may hold more functions, such as those of a derivative

    def _function(self, function: types.FunctionType) -> Hashable:
        code, cells = function.__code__, function.__closure__ or ()
        outside = installed(code.co_filename)
        if outside and not cells:
            return id(function)
        self._keep(code)
        self._keep(function.__globals__)
        return (
            id(code),
            id(function.__globals__),
            self.read(function.__defaults__),
            self.read(function.__kwdefaults__),
            self.read([cell.cell_contents for cell in cells]),
            self.read(vars(function)),
            () if outside else self._referred(function),
        )

    def _referred(self, function: types.FunctionType) -> Hashable:
        globe = function.__globals__
        parts = attributes(function)
        if _imports(function.__code__) or any(_is_editable(part) for part in parts):
            raise _Unknown  # what it reads there is in no name of its own
        named = tuple((name, self.read(globe[name])) for name in names(function) if name in globe)
        return named, tuple(map(self.read, parts))


def _is_editable(value: object) -> bool:
    return isinstance(value, types.ModuleType) and not installed(getattr(value, "__file__", None))


@functools.lru_cache(1024)
def _imports(code: types.CodeType) -> bool:
    """Whether a function imports a module, as it runs, that may change in this process."""
    imported = {step.argval for step in dis.get_instructions(code) if step.opname == "IMPORT_NAME"}
    inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
    found = (sys.modules.get(name) for name in imported)
    return any(module is None or _is_editable(module) for module in found) or any(map(_imports, inner))


def _refuse() -> bool:
    raise _Unknown


@functools.cache
def _fields(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind) if field.compare)
