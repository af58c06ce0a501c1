"""Codec: plain dataclasses as the keys of a Zarr group, and back to the bit.

A dataclass is a group. Its arrays are arrays, each in one chunk; its numbers, texts and flags are attributes; its
dataclasses are groups again. A tuple of dataclasses is a table: a group with one array a field, a row each; where they
hold dataclasses in their turn it is a group of numbered groups. What is None is an attribute ``null``. JSON holds
floats to the last bit, and those that are not finite by name.

Nothing is pickled, and what is read is looked at by `check_group` before it is decoded. What Zarr would write and read
is written and read here: dozens of small arrays would each take a round trip through its event loop.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import gzip
import json
import math
import re
import types
import typing
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from dask_nlsq._errors import CheckpointCorrupt, NlsqError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

T = TypeVar("T", bound="DataclassInstance")

Keys = dict[str, bytes]
"""Names below a Zarr group, and what they hold."""


class CheckedKeys(dict[str, bytes]):
    """Keys that `check_group` has looked at, with the metadata that it read; they are not to be changed."""

    def __init__(self, keys: Mapping[str, bytes], metadata: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__(keys)
        self.metadata = metadata


Text = npt.NDArray[np.uint8]
"""A text as bytes, for what is too long for an attribute."""

METADATA_BYTES = 1_000_000
"""Most that one ``zarr.json`` may hold."""

TOTAL_BYTES = 2**31
"""Most that a generation may hold, decoded."""

TABLE_ROWS = 10**7
"""Most rows that a table may have: each becomes an object, whatever it takes on the disk."""

_DTYPES = {"bool": 1, "uint8": 1, "float32": 4, "float64": 8, "int64": 8, "uint64": 8}

_PART = "[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}"

_NAME = re.compile(f"{_PART}(/{_PART}){{0,19}}")

_LENGTH = "table rows"
"""The attribute that says how many rows a table has; no field can have that name."""

_COUNT = "numbered groups"
"""The attribute that says how many numbered groups there are, in a table's stead."""

_ABSENT = "__absent"
"""What is appended to the name of a column of a table for the array that says where it holds nothing."""

_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}

GROUP = {"zarr_format": 3, "node_type": "group", "attributes": {}}
"""The metadata of a group without attributes."""


# --- writing ----------------------------------------------------------------------------------------------------------


def pack(value: DataclassInstance, compression: str | None = None) -> Keys:
    """Return a dataclass as the keys of a Zarr group."""
    if compression not in (None, "gzip"):
        raise NlsqError(f'compression is {compression!r}; None or "gzip" is needed.')
    keys: Keys = {}
    _write(keys, "", value, compression)
    return keys


def _write(keys: Keys, path: str, value: DataclassInstance, compression: str | None) -> None:
    members = {_stored_name(field): getattr(value, field.name) for field in dataclasses.fields(value)}
    _put(keys, path, members, compression)


def _stored_name(field: dataclasses.Field[Any]) -> str:
    """Return the name under which a field is stored: its own, or the one that it had when the format was made."""
    return str(field.metadata.get("stored", field.name))


def _put(keys: Keys, path: str, members: Mapping[str, Any], compression: str | None, table: bool = False) -> None:
    """Write the members of one group, whose path is empty or ends with a slash."""
    arrays = {name: member for name, member in members.items() if isinstance(member, np.ndarray)}
    groups = {name: member for name, member in members.items() if _is_group(member)}
    rest = {name: _plain(member) for name, member in members.items() if name not in arrays and name not in groups}
    keys[f"{path}zarr.json"] = _json(GROUP | {"attributes": rest})
    for name, array in arrays.items():
        first = ("row",) if table else (f"{name}_0",)
        dimensions = (first + tuple(f"{name}_{i}" for i in range(1, array.ndim)))[: array.ndim]
        keys[f"{path}{name}/zarr.json"] = _json(_about(array, dimensions, compression))
        if array.size:
            # gzip would otherwise write the time of day, and equal states would differ in their bytes.
            chunk = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
            keys[_chunk(f"{path}{name}", array.shape)] = gzip.compress(chunk, 5, mtime=0) if compression else chunk
    for name, member in groups.items():
        below = f"{path}{name}/"
        if not isinstance(member, tuple):
            _write(keys, below, member, compression)
        elif any(_is_group(value) for row in member for value in vars(row).values()):
            numbered = {_COUNT: len(member), **{str(i): row for i, row in enumerate(member)}}
            _put(keys, below, numbered, compression)
        else:
            _put(keys, below, _columns(member), compression, table=True)


def _about(array: npt.NDArray[Any], dimensions: Sequence[str], compression: str | None) -> dict[str, Any]:
    """Return the metadata of an array in one chunk."""
    if array.dtype.name not in _DTYPES:
        raise TypeError(f"an array of {array.dtype} is no part of a state")
    little = {"configuration": {"endian": "little"}} if array.dtype.itemsize > 1 else {}
    codecs = [{"name": "bytes", **little}, {"name": "gzip", "configuration": {"level": 5}}]
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": array.shape,
        "data_type": array.dtype.name,
        # A chunk of Zarr has at least one element along each axis, that of an empty array too.
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [max(n, 1) for n in array.shape]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": array.dtype.type(0).item(),
        "codecs": codecs if compression else codecs[:1],
        "attributes": {"order": "F"} if array.flags.f_contiguous and not array.flags.c_contiguous else {},
        "dimension_names": dimensions,
    }


def _json(about: Mapping[str, Any]) -> bytes:
    return json.dumps(about, allow_nan=False).encode()


def _chunk(path: str, shape: Sequence[int]) -> str:
    """Return the key of the one chunk of an array."""
    return "/".join([path, "c", *("0" for _ in shape)])


def _is_group(member: object) -> bool:
    return dataclasses.is_dataclass(member) or (
        isinstance(member, tuple) and bool(member) and dataclasses.is_dataclass(member[0])
    )


def _columns(rows: Sequence[Any]) -> dict[str, Any]:
    """Return a tuple of dataclasses of one kind field by field."""
    columns: dict[str, Any] = {_LENGTH: len(rows)}
    for field in dataclasses.fields(rows[0]):
        name, values = _stored_name(field), [getattr(row, field.name) for row in rows]
        example = next((v for v in values if v is not None), None)
        if isinstance(example, (np.ndarray, float, int, bool, np.generic)):
            # A column is one array, and where it holds nothing an array of its own says.
            nothing = np.zeros_like(example)
            columns[name] = np.stack([np.asarray(nothing if v is None else v) for v in values])
            if any(v is None for v in values):
                columns[name + _ABSENT] = np.array([v is None for v in values])
        elif all(v is None for v in values):
            columns[name] = None
        else:
            columns[name] = [_plain(v) for v in values]
    return columns


def _plain(value: object) -> Any:
    """Return what JSON can hold."""
    if isinstance(value, np.generic):
        # A scalar of NumPy would come back as one of Python, without its type.
        return {str(value.dtype): _plain(value.item())}
    if isinstance(value, enum.Enum):
        return value.value
    # JSON has no number for these.
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, (tuple, list)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{type(value).__name__} is no part of a state")


# --- reading ----------------------------------------------------------------------------------------------------------


def unpack(kind: type[T], keys: Mapping[str, bytes]) -> T:
    """Return the dataclass that `pack` wrote.

    Raises
    ------
    CheckpointCorrupt
        The keys are no such dataclass; nothing is decoded before that is known of their metadata.
    """
    checked = keys if isinstance(keys, CheckedKeys) else check_group(keys)
    try:
        value: T = _read(kind, _open(checked))
    except Exception as error:
        raise CheckpointCorrupt(f"The state cannot be read: {type(error).__name__}: {error}") from error
    return value


class _Group(NamedTuple):
    """A group that has been read."""

    attributes: Mapping[str, Any]
    members: dict[str, Any]  # groups and arrays


def _open(keys: CheckedKeys) -> _Group:
    """Decode what has been looked at."""
    groups: dict[str, _Group] = {}
    for key in sorted(keys.metadata, key=len):  # a group before its members
        path, about = key.removesuffix("zarr.json").rstrip("/"), keys.metadata[key]
        above, _, name = path.rpartition("/")
        if about["node_type"] == "array":
            groups[above].members[name] = _array(keys, path, about)
            continue
        groups[path] = _Group(about.get("attributes", {}), {})
        if path:
            groups[above].members[name] = groups[path]
    return groups[""]


def _array(keys: Mapping[str, bytes], path: str, about: Mapping[str, Any]) -> npt.NDArray[Any]:
    data, dtype = keys.get(_chunk(path, about["shape"]), b""), np.dtype(about["data_type"])
    if data and len(about["codecs"]) == 2:
        data = gzip.decompress(data)
    # astype also makes the copy that is needed: what frombuffer returns cannot be written to.
    array = np.frombuffer(data, dtype.newbyteorder("<")).astype(dtype).reshape(about["shape"])
    return np.asfortranarray(array) if about.get("attributes", {}).get("order") == "F" else array


@functools.cache
def _hints(kind: type[DataclassInstance]) -> Mapping[str, Any]:
    """Return the types of the fields of a dataclass, whose texts are compiled once."""
    return typing.get_type_hints(kind)


def _read(kind: type[T], group: _Group) -> T:
    hints = _hints(kind)
    values = {}
    for field in dataclasses.fields(kind):
        name = _stored_name(field)
        if name in group.members:
            values[field.name] = _member(hints[field.name], group.members[name])
        elif name in group.attributes:
            values[field.name] = _value(hints[field.name], group.attributes[name])
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise KeyError(name)
    return kind(**values)


def _member(hint: object, member: npt.NDArray[Any] | _Group) -> Any:
    if isinstance(member, np.ndarray):
        return member
    kind = _bare(hint)
    if typing.get_origin(kind) is tuple:
        return _rows(typing.get_args(kind)[0], member)
    return _read(kind, member)


def _rows(kind: type[T], group: _Group) -> tuple[T, ...]:
    hints = _hints(kind)
    attributes, members = group
    if _COUNT in attributes:
        return tuple(_read(kind, members[str(i)]) for i in range(len(members)))
    columns: dict[str, Any] = {}
    rows = int(attributes[_LENGTH])
    if not 0 <= rows <= TABLE_ROWS:
        raise ValueError(f"a table of {rows} rows; {TABLE_ROWS} are the most")
    for field in dataclasses.fields(kind):
        name = _stored_name(field)
        if name in members:
            array = members[name]
            if len(array) > rows:
                raise ValueError("the columns of a table differ in length")
            column: list[Any] = list(array) if array.ndim > 1 else array.tolist()
            if name + _ABSENT in members:
                absent = members[name + _ABSENT]
                column = [None if gone else v for v, gone in zip(column, absent, strict=True)]
            columns[field.name] = column
        elif name not in attributes and field.default is not dataclasses.MISSING:
            columns[field.name] = [field.default] * rows  # of a version that did not have it
        elif (each := attributes[name]) is None:
            columns[field.name] = [None] * rows
        else:
            columns[field.name] = [_value(hints[field.name], value) for value in each]
    if any(len(column) != rows for column in columns.values()):
        raise ValueError("the columns of a table differ in length")
    return tuple(kind(**{name: column[i] for name, column in columns.items()}) for i in range(rows))


def _value(hint: object, value: Any) -> Any:
    """Return a value as its type says."""
    if value is None:
        return None
    hint = _bare(hint)
    if isinstance(value, dict) and len(value) == 1 and next(iter(value)) in _DTYPES:
        ((dtype, held),) = value.items()
        return np.dtype(dtype).type(_value(float, held) if dtype.startswith("float") else held)
    origin = typing.get_origin(hint)
    if hint is float:
        return _SPECIAL[value] if isinstance(value, str) else float(value)
    if origin is frozenset:
        return frozenset(value)
    if origin is tuple:
        return tuple(_value(typing.get_args(hint)[0], v) for v in value)
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return next(member for member in hint if member.value == value)
    return value


def _bare(hint: object) -> Any:
    """Return a type without its ``| None``."""
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        (hint,) = (each for each in typing.get_args(hint) if each is not type(None))
    return hint


def to_text(values: object) -> Text:
    """Return plain values as JSON, in an array."""
    return np.frombuffer(json.dumps(values).encode(), np.uint8).copy()


def from_text(text: Text) -> Any:
    """Return the values that `to_text` wrote.

    Raises
    ------
    CheckpointCorrupt
        It is no JSON.
    """
    try:
        return json.loads(text.tobytes())
    except (ValueError, RecursionError) as error:
        raise CheckpointCorrupt(f"A text in the checkpoint cannot be read: {error}") from error


# --- looking before reading -------------------------------------------------------------------------------------------


def check_key(key: str) -> None:
    """Refuse a name that could lead out of its folder.

    Raises
    ------
    CheckpointCorrupt
    """
    if not _NAME.fullmatch(key):
        raise CheckpointCorrupt(f"{key[:100]!r} is no name of a file in a checkpoint.")


def check_group(keys: Mapping[str, bytes]) -> CheckedKeys:
    """Refuse keys that are not what `pack` writes, without decoding any: dtypes, codecs, sizes, depth.

    Raises
    ------
    CheckpointCorrupt
    """
    if "zarr.json" not in keys:
        raise CheckpointCorrupt("There is no group: zarr.json is missing.")
    metadata: dict[str, dict[str, Any]] = {}
    chunks, total = set(keys), 0
    for key, data in keys.items():
        check_key(key)
        if key.rpartition("/")[2] != "zarr.json":
            continue
        chunks.discard(key)
        about = metadata[key] = parse(data, key)
        kinds = ("group",) if key == "zarr.json" else ("group", "array")
        if about.get("zarr_format") != 3 or about.get("node_type") not in kinds:
            raise CheckpointCorrupt(f"{key} describes no group or array of Zarr 3.")
        if about["node_type"] == "array":
            chunk, size = _check_array(key, about)
            total += size
            if total > TOTAL_BYTES:
                raise CheckpointCorrupt(f"{key}: the arrays take more than {TOTAL_BYTES} bytes.")
            if chunk in keys:
                _check_chunk(chunk, keys[chunk], size, about)
            elif size:
                raise CheckpointCorrupt(f"{chunk} is missing.")
            chunks.discard(chunk)
    if chunks:
        raise CheckpointCorrupt(f"{min(chunks)!r} belongs to no array.")
    return CheckedKeys(keys, metadata)


def parse(data: bytes, name: str) -> dict[str, Any]:
    """Read a small JSON object.

    Raises
    ------
    CheckpointCorrupt
        It is none, or large, or deep.
    """
    if len(data) > METADATA_BYTES:
        raise CheckpointCorrupt(f"{name} holds {len(data)} bytes of metadata; {METADATA_BYTES} are the most.")
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CheckpointCorrupt(f"{name} is no JSON: {type(error).__name__}.") from error
    if not isinstance(value, dict):
        raise CheckpointCorrupt(f"{name} is no JSON object.")
    return value


def _check_array(key: str, about: Mapping[str, Any]) -> tuple[str, int]:
    """Return the key of the one chunk of an array, and its bytes once decoded."""
    try:
        width, shape = _DTYPES[about["data_type"]], about["shape"]
        whole = all(type(n) is int and 0 <= n <= TOTAL_BYTES for n in shape) and len(shape) <= 4
        grid, keys, codecs = about["chunk_grid"], about["chunk_key_encoding"], about["codecs"]
        plain = (
            grid == {"name": "regular", "configuration": {"chunk_shape": [max(n, 1) for n in shape]}}
            and keys == {"name": "default", "configuration": {"separator": "/"}}
            and [codec["name"] for codec in codecs] in (["bytes"], ["bytes", "gzip"])
            and not about.get("storage_transformers")
        )
        little = width == 1 or codecs[0]["configuration"] == {"endian": "little"}
    except (KeyError, TypeError) as error:
        raise CheckpointCorrupt(f"{key} describes no array of a checkpoint.") from error
    if not (whole and plain and little):
        raise CheckpointCorrupt(f"{key} describes an array that no checkpoint has.")
    return _chunk(key.removesuffix("/zarr.json"), shape), width * math.prod(shape)


def _check_chunk(key: str, data: bytes, size: int, about: Mapping[str, Any]) -> None:
    """See that a chunk decodes to so many bytes, and to no more."""
    if len(about["codecs"]) == 2:
        try:
            # 31 asks for the header of gzip and the largest window. One byte beyond the size says that there are more,
            # and none of those is decompressed.
            whole = zlib.decompressobj(31)
            data = whole.decompress(data, size + 1)
        except zlib.error as error:
            raise CheckpointCorrupt(f"{key} does not decompress: {error}.") from error
        if len(data) == size and (not whole.eof or whole.unused_data):
            raise CheckpointCorrupt(f"{key} is cut off, or goes on behind its end.")
    if len(data) != size:
        raise CheckpointCorrupt(f"{key} holds {len(data)} bytes; {size} were expected.")
