"""Code: a hash of a function, of what it is made of and what it refers to, without running it."""

from __future__ import annotations

import functools
import hashlib
import sysconfig
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

_PACKAGES = {"site-packages", "dist-packages"}
_PYTHON = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))


def code(value: Any) -> str:
    """Return a hash of a function: its code, its constants, and what it refers to, functions and arrays included."""
    digest = hashlib.sha256()
    _feed(value, digest.update, set())
    return digest.hexdigest()


def _feed(value: Any, update: Callable[[bytes], None], seen: set[int]) -> None:
    update(f"<{type(value).__qualname__}>".encode())
    if isinstance(value, (int, float, complex, str, bytes, type(None))):
        update(repr(value).encode())
    elif isinstance(value, types.ModuleType):
        update(value.__name__.encode())
    elif id(value) in seen:
        return
    elif isinstance(value, types.CodeType):
        update(value.co_code)
        for part in (*value.co_names, *value.co_consts):
            _feed(part, update, seen)
    elif isinstance(value, types.FunctionType):
        seen.add(id(value))
        _feed(value.__code__, update, seen)
        cells = [c.cell_contents for c in value.__closure__ or () if c != types.CellType()]
        for part in (value.__defaults__, value.__kwdefaults__, *cells, *_globals(value)):
            _feed(part, update, seen)
    elif hasattr(value, "__array__"):
        array = np.asarray(value)
        update(f"{array.dtype}{array.shape}".encode() + (b"" if array.dtype.hasobject else array.tobytes()))
    elif isinstance(value, (tuple, list)):
        for part in value:
            _feed(part, update, seen)
    elif isinstance(value, (set, frozenset)):
        for part in sorted(value, key=repr):
            _feed(part, update, seen)
    elif isinstance(value, functools.partial):
        _feed((value.func, value.args, value.keywords), update, seen)
    elif isinstance(value, types.MethodType):
        _feed((value.__func__, value.__self__), update, seen)
    elif isinstance(value, dict):
        for key in sorted(value, key=repr):
            _feed(key, update, seen)
            _feed(value[key], update, seen)
    elif isinstance(value, (types.BuiltinFunctionType, type)):
        update(f"{value.__module__}.{value.__qualname__}".encode())
    else:
        seen.add(id(value))
        _feed(getattr(value, "func", None), update, seen)
        for name, held in sorted(getattr(value, "__dict__", {}).items()):  # what lasts; not caches, locks and files
            if isinstance(held, (int, float, str, types.FunctionType, np.ndarray)):
                _feed((name, held), update, seen)


def _globals(function: types.FunctionType) -> list[Any]:
    """Return what a function refers to by name: globals, and attributes of modules; nothing of installed packages."""
    if _installed(function.__code__.co_filename):
        return []
    names = sorted({n for c in _codes(function.__code__) for n in c.co_names})
    globe = [function.__globals__[n] for n in names if n in function.__globals__]
    modules = [each for each in globe if isinstance(each, types.ModuleType)]
    own = [vars(module) for module in modules if not _installed(getattr(module, "__file__", None))]
    return [*globe, *(module[n] for module in own for n in names if n in module)]


def _installed(file: str | None) -> bool:
    """Whether a file is part of Python or of an installed package, or none: it does not change in a process."""
    return file is None or not _PACKAGES.isdisjoint(Path(file).parts) or file.startswith(_PYTHON)


def _codes(code: types.CodeType) -> list[types.CodeType]:
    """Return a code object and those within."""
    return [code, *(c for part in code.co_consts if isinstance(part, types.CodeType) for c in _codes(part))]
