"""Provenance: where a result comes from, as a dict that prints in lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any


class Provenance(dict[str, Any]):
    """What was fitted to what, by which versions, where, and in which time; plain values, under their names.

    Examples
    --------
    >>> from dask_nlsq._result.provenance import Provenance
    >>> print(Provenance(model="decay", versions={"jax": "0.8.1"}))
    model     decay
    versions
      jax     0.8.1
    """

    def __str__(self) -> str:
        rows = list(_rows(self))
        width = max((len(name) for name, _ in rows), default=0)
        return "\n".join(f"{name:<{width}}  {text}".rstrip() for name, text in rows)


def _rows(values: Mapping[str, Any], indent: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield f"{indent}{name}", ""
            yield from _rows(value, f"{indent}  ")
        else:
            listed = isinstance(value, (list, tuple))
            yield f"{indent}{name}", ", ".join(map(str, value)) if listed else str(value)
