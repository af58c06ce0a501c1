"""Labels: the names that parameters bear in a table that has columns of its own."""

from __future__ import annotations

from collections.abc import Collection, Iterable


def columns_of(names: Iterable[str], taken: Collection[str]) -> list[str]:
    """Return a label for each parameter, another than those of the columns that the table has of its own."""
    return [f"{name} (parameter)" if name in taken else name for name in names]
