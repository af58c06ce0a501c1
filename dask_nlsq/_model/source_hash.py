"""Source hash: a hash of a function, of what it is made of and what it refers to, without running it."""

from __future__ import annotations

import argparse
import collections
import collections.abc
import dis
import functools
import hashlib
import itertools
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

_PACKAGES = {"site-packages", "dist-packages"}
_INSTALLED = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"), str(Path(__file__).parents[1]))

_PLAIN = (int, float, complex, str, bytes, tuple)
_STORES = dis.opmap["STORE_GLOBAL"]

Known = dict[int, tuple[Any, bytes]]
"""Values that were read, kept so that nothing else takes their place in memory, with their digests."""

MOST = 20_000
"""Values that `settings` reads: a model may refer to more than anybody wants to look at."""

_NAMESPACES = (types.SimpleNamespace, argparse.Namespace)


def code(value: object, known: Known | None = None) -> str:
    """Return a hash of a function: its code, its constants, and what it refers to, functions and arrays included.

    What is in `known` is not read again; it may be given to several calls, as long as nothing changes between them.
    """
    return _digest(value, {} if known is None else known).hex()


def settings(value: object) -> bytes:
    """Return a hash of the values that a function may read when it is called: containers, objects, and what these hold.

    It is of this process: of two alike whose globals are not the same, each may see other values later.

    Raises
    ------
    ValueError
        There are more than `MOST` of them.
    """
    digest = hashlib.sha256()
    for part in _reach(value):
        if isinstance(part, (int, float, complex, str, bytes, type(None))):
            digest.update(f"<{type(part).__qualname__}>{part!r}".encode())
        elif hasattr(part, "__array__") and not isinstance(part, type):
            array = np.asarray(part)
            held = repr(array.tolist()).encode() if array.dtype.hasobject else array.tobytes()
            digest.update(f"{array.dtype}{array.shape}".encode() + held)
        elif isinstance(part, types.FunctionType):
            digest.update(f"<function>{id(part.__globals__)}".encode())
        else:
            digest.update(f"<{type(part).__qualname__}>".encode())
    return digest.digest()


def reached(value: object) -> list[Any]:
    """Return the arrays that a function refers to, also as parts of what it refers to."""
    parts = itertools.islice(_reach(value, limited=False), MOST)
    return [part for part in parts if hasattr(part, "__array__") and not isinstance(part, type)]


def _reach(value: object, limited: bool = True) -> Iterator[Any]:
    """Yield a value and all that it holds or refers to, each once, numbers and texts as often as they are met."""
    todo, seen, count = [value], {}, 0
    while todo:
        part = todo.pop()
        if not isinstance(part, (int, float, complex, str, bytes, type(None))):
            if id(part) in seen:
                continue
            seen[id(part)] = part  # kept, so that nothing else takes its place in memory
        count += 1
        if limited and count > MOST:
            raise ValueError(f"more than {MOST} values")
        yield part
        todo += _held(part)


def _held(value: object) -> list[Any]:
    """Return what a value holds or refers to, as far as that may be changed from outside."""
    if isinstance(value, types.FunctionType):
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        own = list(vars(value).values())  # __wrapped__ is one of its attributes
        return [*defaults, *_cells(value), *_globals(value), *own]
    if isinstance(value, (tuple, list, collections.deque)):
        return list(value)
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    if isinstance(value, collections.abc.Mapping):
        return [part for pair in value.items() for part in pair]
    if isinstance(value, functools.partial):
        return [value.func, value.args, value.keywords]
    if isinstance(value, types.MethodType):
        return [value.__func__, value.__self__]
    if isinstance(value, (property, staticmethod, classmethod)):
        return [getattr(value, name) for name in ("__func__", "fget") if hasattr(value, name)]
    if isinstance(value, type):
        members = [] if foreign(value) else [(n, part) for n, part in vars(value).items() if not n.startswith("__")]
        call = [value.__call__] if members and isinstance(value.__call__, types.FunctionType) else []
        return [*(part for _, part in members), *call, *(base for base in value.__bases__ if members)]
    if hasattr(value, "__array__") or isinstance(value, types.ModuleType):
        return []
    if isinstance(value, _NAMESPACES) or not foreign(type(value)):
        return [type(value), *(part for pair in _attributes(value) for part in pair)]
    return [value.__wrapped__] if hasattr(value, "__wrapped__") else [part for _, part in _lasting(value)]


def foreign(kind: type) -> bool:
    """Whether a class is of Python, of an installed package or of this one."""
    return kind.__module__ != "__main__" and installed(getattr(sys.modules.get(kind.__module__), "__file__", None))


def attributes(function: types.FunctionType) -> list[Any]:
    """Return what a function refers to as attributes of modules, but for those of installed packages."""
    if installed(function.__code__.co_filename):
        return []
    used = names(function)
    modules = [function.__globals__.get(name) for name in used]
    editable = [m for m in modules if isinstance(m, types.ModuleType) and not installed(getattr(m, "__file__", None))]
    return [vars(module)[name] for module in editable for name in used if name in vars(module)]


def definition(value: object, known: Known | None = None) -> str:
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


def _parts(value: object) -> list[Any]:
    """Return what the text of a module says of a value, and what that refers to."""
    if isinstance(value, types.FunctionType):
        if installed(value.__code__.co_filename):
            return []
        kept = [name for name in names(value) if name not in _assigned(value.__globals__)]
        named = [value.__globals__[name] for name in kept if name in value.__globals__]
        defaults = [*(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
        return [value.__code__, *defaults, *_cells(value), *named, *attributes(value)]
    if isinstance(value, type):
        if installed(getattr(sys.modules.get(value.__module__), "__file__", None)):
            return []
        held = [part for name, part in vars(value).items() if callable(part) or not name.startswith("__")]
        return [*held, *value.__bases__]
    if isinstance(value, functools.partial):
        return [value.func, *value.args, *value.keywords.values()]
    if callable(value) or isinstance(value, (property, staticmethod, classmethod)):
        return [getattr(value, name) for name in ("__wrapped__", "__func__", "fget") if hasattr(value, name)]
    return []


def _is_constant(value: object) -> bool:
    return isinstance(value, _PLAIN) or (hasattr(value, "__array__") and not isinstance(value, type))


def _assigned(globe: dict[str, Any]) -> set[str]:
    """Return the globals that functions of their module assign."""
    # Functions that were imported assign the globals of another module. The copy is for threads that import meanwhile.
    functions = [f for f in list(globe.values()) if isinstance(f, types.FunctionType) and f.__globals__ is globe]
    # An instruction has two bytes, of which the first says what it does.
    codes = [code for function in functions for code in _codes(function.__code__) if _STORES in code.co_code[::2]]
    return {step.argval for code in codes for step in dis.get_instructions(code) if step.opcode == _STORES}


def _digest(value: object, known: Known) -> bytes:
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


def _read(value: object, update: Callable[[bytes], None], known: Known) -> None:
    parts: Iterable[Any] = ()
    if isinstance(value, types.ModuleType):
        update(value.__name__.encode())
    elif isinstance(value, (types.BuiltinFunctionType, type)):
        update(f"{value.__module__}.{value.__qualname__}".encode())
    elif isinstance(value, types.CodeType):
        # Without line numbers and names of files: code that was moved is the same code.
        update(value.co_code)
        parts = (*value.co_names, *value.co_consts)
    elif isinstance(value, types.FunctionType):
        parts = (value.__code__, value.__defaults__, value.__kwdefaults__, *_cells(value), *_globals(value))
    elif hasattr(value, "__dask_graph__") and hasattr(value, "__dask_tokenize__"):
        update(repr(value.__dask_tokenize__()).encode())  # by its name, not by what it would come to
    elif hasattr(value, "__array__"):
        array = np.asarray(value)
        # The bytes of an array of objects are addresses.
        update(f"{array.dtype}{array.shape}".encode() + (b"" if array.dtype.hasobject else array.tobytes()))
    elif isinstance(value, (tuple, list)):
        parts = value
    elif isinstance(value, (set, frozenset)):
        # The order of a set is another one in each process.
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


def _lasting(value: object) -> list[tuple[str, Any]]:
    """Return the attributes of an instance that last, with their names: not caches, locks and files."""
    return [(n, v) for n, v in _attributes(value) if isinstance(v, types.FunctionType) or _is_constant(v)]


def _attributes(value: object) -> list[tuple[str, Any]]:
    """Return the attributes of an instance, with their names."""
    slots = (vars(kind).get("__slots__", ()) for kind in type(value).__mro__)
    names = {name for some in slots for name in ((some,) if isinstance(some, str) else some)}
    held = {name: getattr(value, name) for name in names if hasattr(value, name)} | getattr(value, "__dict__", {})
    return sorted(held.items(), key=lambda pair: pair[0])


def _cells(function: types.FunctionType) -> list[Any]:
    # A cell is empty until its variable is assigned, and cannot be read then; only empty ones equal an empty one.
    return [cell.cell_contents for cell in function.__closure__ or () if cell != types.CellType()]


def _globals(function: types.FunctionType) -> list[Any]:
    """Return what a function refers to by name: globals, and attributes of modules; nothing of installed packages."""
    if installed(function.__code__.co_filename):
        return []
    globe = [function.__globals__[name] for name in names(function) if name in function.__globals__]
    return [*globe, *attributes(function)]


def names(function: types.FunctionType) -> tuple[str, ...]:
    """Return the names of globals and attributes in the code of a function, of those within it too."""
    return _names_in(function.__code__)


@functools.lru_cache(1024)
def _names_in(code: types.CodeType) -> tuple[str, ...]:
    return tuple(sorted({name for part in _codes(code) for name in part.co_names}))


@functools.lru_cache(1024)
def installed(file: str | None) -> bool:
    """Whether a file is part of Python or of an installed package, or none: it does not change in a process."""
    return file is None or not _PACKAGES.isdisjoint(Path(file).parts) or file.startswith(_INSTALLED)


def _codes(code: types.CodeType) -> list[types.CodeType]:
    """Return a code object and those within."""
    return [code, *(c for part in code.co_consts if isinstance(part, types.CodeType) for c in _codes(part))]
