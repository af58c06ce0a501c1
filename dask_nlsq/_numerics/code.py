"""Code: a hash of a function, of what it is made of and what it refers to, without running it."""

from __future__ import annotations

import dis
import functools
import hashlib
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

_PACKAGES = {"site-packages", "dist-packages"}
_INSTALLED = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), str(Path(__file__).parents[1]))

_PLAIN = (int, float, complex, str, bytes, tuple)
_STORES = dis.opmap["STORE_GLOBAL"]

Known = dict[int, tuple[Any, bytes]]
"""Values that were read, kept so that nothing else takes their place in memory, with their digests."""


def code(value: Any, known: Known | None = None) -> str:
    """Return a hash of a function: its code, its constants, and what it refers to, functions and arrays included.

    What is in `known` is not read again; it may be given to several calls, as long as nothing changes between them.
    """
    return _digest(value, {} if known is None else known).hex()


def attributes(function: types.FunctionType) -> list[Any]:
    """Return what a function refers to as attributes of modules, but for those of installed packages."""
    if _installed(function.__code__.co_filename):
        return []
    names = _names(function)
    modules = [function.__globals__.get(name) for name in names]
    own = [m for m in modules if isinstance(m, types.ModuleType) and not _installed(getattr(m, "__file__", None))]
    return [vars(module)[name] for module in own for name in names if name in vars(module)]


def definition(value: Any, known: Known | None = None) -> str:
    """Return a hash of what the text of modules says of a function or class; nothing where all of it is installed.

    That is its code, the code of what it calls, and the constants that they refer to; not what may be another one since
    the module was imported: containers, instances, and globals that some function of the module assigns.
    """
    known = {} if known is None else known
    fed: list[Any] = []
    todo, seen = [value], {id(value)}
    while todo:
        for part in _parts(todo.pop()):
            if isinstance(part, types.CodeType) or _is_constant(part):
                fed.append(part)
            elif id(part) not in seen:
                seen.add(id(part))
                todo.append(part)
    digest = hashlib.sha256()
    _feed(fed, digest.update, known)
    return digest.hexdigest() if fed else ""


def _parts(value: Any) -> list[Any]:
    """Return what the text of a module says of a value, and what that refers to."""
    if isinstance(value, types.FunctionType):
        if _installed(value.__code__.co_filename):
            return []
        names = [name for name in _names(value) if name not in _assigned(value.__globals__)]
        named = [value.__globals__[name] for name in names if name in value.__globals__]
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        return [value.__code__, *defaults, *_cells(value), *named, *attributes(value)]
    if isinstance(value, type):
        if _installed(getattr(sys.modules.get(value.__module__), "__file__", None)):
            return []
        held = [part for name, part in vars(value).items() if callable(part) or not name.startswith("__")]
        return [*held, *value.__bases__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if callable(value) or isinstance(value, (property, staticmethod, classmethod)):
        return [getattr(value, name) for name in ("__wrapped__", "__func__", "fget") if hasattr(value, name)]
    return []


def _is_constant(value: Any) -> bool:
    return isinstance(value, _PLAIN) or (hasattr(value, "__array__") and not isinstance(value, type))


def _assigned(globe: dict[str, Any]) -> set[str]:
    """Return the globals that functions of their module assign."""
    own = [f for f in list(globe.values()) if isinstance(f, types.FunctionType) and f.__globals__ is globe]
    codes = [code for function in own for code in _codes(function.__code__) if _STORES in code.co_code[::2]]
    return {step.argval for code in codes for step in dis.get_instructions(code) if step.opcode == _STORES}


def _digest(value: Any, known: Known) -> bytes:
    """Read a value once; what holds itself is no further read."""
    if id(value) not in known:
        known[id(value)] = value, b"itself"
        digest = hashlib.sha256(f"<{type(value).__qualname__}>".encode())
        _read(value, digest.update, known)
        known[id(value)] = value, digest.digest()
    return known[id(value)][1]


def _feed(values: Iterable[Any], update: Callable[[bytes], None], known: Known) -> None:
    for value in values:
        if isinstance(value, (int, float, complex, str, bytes, type(None))):
            update(f"<{type(value).__qualname__}>{value!r}".encode())
        else:
            update(_digest(value, known))


def _read(value: Any, update: Callable[[bytes], None], known: Known) -> None:
    parts: Iterable[Any] = ()
    if isinstance(value, types.ModuleType):
        update(value.__name__.encode())
    elif isinstance(value, (types.BuiltinFunctionType, type)):
        update(f"{value.__module__}.{value.__qualname__}".encode())
    elif isinstance(value, types.CodeType):
        update(value.co_code)
        parts = (*value.co_names, *value.co_consts)
    elif isinstance(value, types.FunctionType):
        parts = (value.__code__, value.__defaults__, value.__kwdefaults__, *_cells(value), *_globals(value))
    elif hasattr(value, "__dask_graph__") and hasattr(value, "__dask_tokenize__"):
        update(repr(value.__dask_tokenize__()).encode())  # by its name, not by what it would come to
    elif hasattr(value, "__array__"):
        array = np.asarray(value)
        update(f"{array.dtype}{array.shape}".encode() + (b"" if array.dtype.hasobject else array.tobytes()))
    elif isinstance(value, (tuple, list)):
        parts = value
    elif isinstance(value, (set, frozenset)):
        parts = sorted(_digest(part, known) for part in value)
    elif isinstance(value, functools.partial):
        parts = (value.func, value.args, value.keywords)
    elif isinstance(value, types.MethodType):
        parts = (value.__func__, value.__self__)
    elif isinstance(value, dict):
        parts = sorted(_digest(key, known) + _digest(part, known) for key, part in value.items())
    else:
        parts = (getattr(value, "func", None), *(part for pair in _lasting(value) for part in pair))
    _feed(parts, update, known)


def _lasting(value: Any) -> list[tuple[str, Any]]:
    """Return the attributes of an instance that last, with their names: not caches, locks and files."""
    slots = (vars(kind).get("__slots__", ()) for kind in type(value).__mro__)
    names = {name for some in slots for name in ((some,) if isinstance(some, str) else some)}
    held = {name: getattr(value, name) for name in names if hasattr(value, name)} | getattr(value, "__dict__", {})
    return [(n, held[n]) for n in sorted(held) if isinstance(held[n], types.FunctionType) or _is_constant(held[n])]


def _cells(function: types.FunctionType) -> list[Any]:
    return [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]


def _globals(function: types.FunctionType) -> list[Any]:
    """Return what a function refers to by name: globals, and attributes of modules; nothing of installed packages."""
    if _installed(function.__code__.co_filename):
        return []
    globe = [function.__globals__[name] for name in _names(function) if name in function.__globals__]
    return [*globe, *attributes(function)]


def _names(function: types.FunctionType) -> list[str]:
    return sorted({name for code in _codes(function.__code__) for name in code.co_names})


def _installed(file: str | None) -> bool:
    """Whether a file is part of Python or of an installed package, or none: it does not change in a process."""
    return file is None or not _PACKAGES.isdisjoint(Path(file).parts) or file.startswith(_INSTALLED)


def _codes(code: types.CodeType) -> list[types.CodeType]:
    """Return a code object and those within."""
    return [code, *(c for part in code.co_consts if isinstance(part, types.CodeType) for c in _codes(part))]
