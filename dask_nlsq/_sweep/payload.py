"""Payload: what travels to workers in an objective's stead: a token and bytes that a process opens once.

Dask unpickles the arguments of every task anew, so an objective sent as it is would be a new object in each
task, and its kernel would be compiled in each. This stand-in unpickles to the one object that the process
already has under the same token. The bytes are opened at the first use, by a worker: the scheduler,
which unpickles graphs too, never imports JAX.
"""

from __future__ import annotations

import collections
import functools
import hashlib
import importlib
import io
import itertools
import os
import pickle
import sys
import threading
import types
import uuid
import weakref
from collections.abc import Hashable
from typing import Any

import cloudpickle
import dask
from dask.utils import parse_bytes

from dask_nlsq._errors import ModelError, ModelNotPicklable, NlsqError
from dask_nlsq._kernel import Retention, set_retention
from dask_nlsq._model import Key, Known, attributes, code, definition, key, settings
from dask_nlsq._system import trim_memory

_TRIM_EVERY = 8
"""Models that are forgotten between two times at which the C library gives back what they have left free."""

_MODELS, _BYTES, _FOLDER = "nlsq.compiled-models", "nlsq.compiled-models-bytes", "nlsq.compilation-cache"
"""Names of the limits and of the folder in Dask's configuration."""

_PYTHON = sys.version_info[:2]
"""Other versions make other code of the same text."""

_lock = threading.Lock()
_registry: collections.OrderedDict[str, Payload] = collections.OrderedDict()
"""What this process remembers, the least recently used first; a model's kernels live as long as it is here."""

_keys: weakref.WeakValueDictionary[Hashable, Payload] = weakref.WeakValueDictionary()
"""The payloads of values that need not be pickled again, by their keys."""

_KEYS = 8
"""Most keys of a payload: functions that were defined anew with the same text have another."""

_forgotten = itertools.count(1)


class Payload:
    """A value that is unpickled once a process, however often it is sent."""

    def __init__(self, token: str, data: bytes | None, value: object = None, why_not: str = "") -> None:
        self.token = token
        self._data = data
        self._value: Any = value
        self._why_not = why_not
        self._opening = threading.Lock()
        # What the keys refer to by address lives as long as they are in use.
        self.keys: collections.OrderedDict[Hashable, list[Any]] = collections.OrderedDict()

    @property
    def value(self) -> Any:
        """The value, opened at the first call."""
        # Tasks that come at the same time must get one object, or each would compile it.
        with self._opening:
            if self._value is None:
                self._value = cloudpickle.loads(self.bytes())
        return self._value

    @property
    def nbytes(self) -> int:
        """Bytes of what is sent."""
        return len(self._data or b"")

    def holds(self, value: object) -> bool:
        """Whether this is the very object that is wrapped."""
        return self._value is value and value is not None

    def __reduce__(self) -> Any:
        return intern, (self.token, self.bytes())

    def bytes(self) -> bytes:
        """Return what is sent, or say why nothing can be."""
        if self._data is None:
            raise ModelNotPicklable(
                f"The model cannot be sent to another process: {self._why_not}. Pass what it holds as data or "
                "constants instead of locks, files and connections, or fit without a distributed client."
            )
        return self._data


def serialize(value: object) -> Payload:
    """Wrap a value, which must not change; one that cannot be pickled still serves in this process."""
    with _lock:
        known = next((payload for payload in _registry.values() if payload.holds(value)), None)
    # The token of an objective is the hash of its pickle, which takes longer than the search.
    if known is not None:
        return _keep(known)
    found = key(value)
    if found is None:
        return _pickled(value)
    with _lock:
        known = _keys.get(found.parts)
    return _keep(known) if known is not None else _named(_pickled(value), found)


def _named(payload: Payload, found: Key) -> Payload:
    """Let a payload be found by a key."""
    with _lock:
        payload.keys[found.parts] = found.held
        _keys[found.parts] = payload
        if len(payload.keys) > _KEYS:
            _keys.pop(payload.keys.popitem(last=False)[0], None)
    return payload


def _pickled(value: object) -> Payload:
    """Return the payload under the hash of a pickle."""
    file = io.BytesIO()
    pickler = _Pickler(file, protocol=pickle.HIGHEST_PROTOCOL)
    try:
        pickler.dump(value)
    except Exception as error:
        return Payload(uuid.uuid4().hex, None, value, f"{type(error).__name__}: {error}")
    data = file.getvalue()
    token = hashlib.blake2b(data + b"".join(pickler.codes) + _settings(value), digest_size=16).hexdigest()
    return _keep(Payload(token, data, value))


def _settings(value: object) -> bytes:
    """Return what tells one state of what the functions of an objective refer to from another, in this process."""
    functions = [
        getattr(getattr(value, "model", None), "func", None),
        *(getattr(value, n, None) for n in ("jac", "loss")),
    ]
    try:
        return b"".join(settings(function) for function in functions if callable(function))
    except Exception:  # more than is worth looking at, or an object of the user's that raises
        return uuid.uuid4().bytes


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """Also notes what the bytes do not tell of functions.

    Of one sent by name, what it is made of: a module that was changed has another of the same name, and a process that
    has the old one finds that out. Of one sent as it is, the attributes of modules that it refers to, and where its
    globals are: two alike may see unlike values later.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.codes: list[bytes] = []
        self._known: Known = {}

    def reducer_override(self, obj: object) -> Any:
        reduced = super().reducer_override(obj)
        by_name = reduced is NotImplemented
        try:
            # What jax.jit and functools.wraps return is no function, and has the function as an attribute.
            if isinstance(obj, types.FunctionType) or hasattr(obj, "__wrapped__"):
                self.codes.append(self._note(obj, by_name).encode())
            if by_name and isinstance(obj, (types.FunctionType, type)):
                text = definition(obj, self._known)
                self.codes.append(text.encode())
                if text:
                    return named, (obj.__module__, obj.__qualname__, _PYTHON, text)
        except Exception:  # whatever objects of the user's raise when they are looked at
            # Something that no other model has: it is never taken for one that is known.
            self.codes.append(uuid.uuid4().bytes)
        return reduced

    def _note(self, function: Any, by_name: bool) -> str:
        if by_name:
            return code(function, self._known)
        return f"{code(attributes(function), self._known)} {id(function.__globals__)}"


def named(module: str, name: str, python: tuple[int, int], text: str) -> Any:
    """Return a function or class of a module that must say of it what it said where it was sent.

    Raises
    ------
    ModelError
        The module is another, or was imported before it was changed.
    """
    value = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    if python == _PYTHON and definition(value) != text:
        raise ModelError(
            f"{name} of the module {module} is another in this process than where it was sent: one of both has "
            f"imported {module}, or a module that it uses, before it was changed, or has another copy. Restart the "
            "workers (client.restart()), or the driver."
        )
    return value


def intern(token: str, data: bytes) -> Payload:
    """Return this process's own object for a token."""
    with _lock:
        known = _registry.get(token)
    return known if known is not None else _keep(Payload(token, data))


def _keep(payload: Payload) -> Payload:
    set_retention(limits := _limits())
    with _lock:
        surplus = 0 if payload.token in _registry else _surplus(limits, payload)
        forgotten = [_registry.popitem(last=False) for _ in range(surplus)]
        kept = _registry.setdefault(payload.token, payload)
        _registry.move_to_end(payload.token)
    if any(next(_forgotten) % _TRIM_EVERY == 0 for _ in forgotten):
        # Let go first: what is still referred to cannot be given back.
        forgotten.clear()
        trim_memory()
    return kept


def _surplus(limits: Retention, new: Payload) -> int:
    """Return how many of those least recently used exceed the limits beside a new one, which stays."""
    sizes = [payload.nbytes for payload in (*_registry.values(), new)]
    fitting = itertools.takewhile(lambda total: total <= limits.nbytes, itertools.accumulate(reversed(sizes)))
    return len(sizes) - max(1, min(limits.models, sum(1 for _ in fitting)))


@functools.lru_cache(8)
def _parsed(size: Any) -> int:
    return int(parse_bytes(size))


def _limits() -> Retention:
    """Return the limits in Dask's configuration.

    Raises
    ------
    NlsqError
        If they are no whole number above 0, and no number of bytes or text such as "256 MiB"; or the folder is none.
    """
    models, size, folder = dask.config.get(_MODELS), dask.config.get(_BYTES), dask.config.get(_FOLDER, None)
    if folder is not None and folder is not False and not isinstance(folder, (str, os.PathLike)):
        raise NlsqError(f"{_FOLDER} is {folder!r}; a folder is needed, or false.")
    if not isinstance(models, int) or models < 1:
        raise NlsqError(f"{_MODELS} is {models!r}; a whole number above 0 is needed.")
    try:
        return Retention(models, _parsed(size), os.fspath(folder) if folder else None)
    except (AttributeError, TypeError, ValueError):
        raise NlsqError(f'{_BYTES} is {size!r}; bytes are needed, or a text such as "256 MiB".') from None
