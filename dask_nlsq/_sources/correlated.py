"""Correlated rows: blocks whose rows know what they need of their group, wherever the rest of it lies.

See `dask_nlsq._model.correlation` for what is done with them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Protocol

import dask
import numpy as np

from dask_nlsq._errors import DataError
from dask_nlsq._kernel import Block
from dask_nlsq._sources.source import Source
from dask_nlsq._typing import Matrix, Vector


@dataclasses.dataclass(frozen=True)
class Grouping:
    """Where the columns of a block lie that correlation needs."""

    inputs: int  # columns of the model
    key: int | None  # the column that tells groups apart; without one all rows are of one group

    def keys(self, block: Block) -> Vector:
        """Return the key of the group of each row, (rows,)."""
        return np.zeros(block.rows) if self.key is None else np.asarray(block.x[self.key], float)


@dataclasses.dataclass(frozen=True)
class LastRows:
    """The last row of each group, as far as the partitions have been looked at."""

    keys: Vector  # (groups,), in their order
    columns: tuple[Vector, ...]  # those of the model, y and the weight, (groups,) each
    order: float = 0.0  # what tells whether the rows of a partition come in the same order again

    @classmethod
    def of(cls, block: Block, grouping: Grouping) -> LastRows:
        """Return the last rows of a block."""
        keys, backwards = np.unique(grouping.keys(block)[::-1], return_index=True)
        last = block.rows - 1 - backwards
        columns = tuple(np.asarray(c[last], float) for c in (*block.x[: grouping.inputs], block.y, _weights(block)))
        return cls(keys, columns, _order_of(block))

    def followed_by(self, later: LastRows) -> LastRows:
        """Return the last rows after partitions that come later."""
        kept = ~np.isin(self.keys, later.keys)
        keys = np.concatenate([self.keys[kept], later.keys])
        order = np.argsort(keys, kind="stable")
        pairs = zip(self.columns, later.columns, strict=True)
        return LastRows(keys[order], tuple(np.concatenate([a[kept], b])[order] for a, b in pairs))

    def among(self, keys: Vector) -> LastRows:
        """Return those of some groups."""
        wanted = np.isin(self.keys, keys)
        return LastRows(self.keys[wanted], tuple(c[wanted] for c in self.columns))


def _order_of(block: Block) -> float:
    """Return a sum that is another where the rows come in another order."""
    return float(np.einsum("i,i", np.asarray(block.y, float), np.arange(1.0, block.rows + 1)))


class PrecedingRows:
    """Rows of a block with the row before each in its group; the first of a group is before itself.

    Raises
    ------
    DataError
        The rows come in another order than before.
    """

    def __init__(self, block: Block, grouping: Grouping, before: LastRows, expected: float) -> None:
        now = _order_of(block)
        if now != expected and not np.isnan(now):
            raise DataError(
                "The rows come in another order each time they are read, as after a shuffle of Dask by a column with "
                "equal values, and a correlation of neighbours has no meaning then. Sort by group and time, write the "
                "rows or persist() them, and fit those."
            )
        keys = grouping.keys(block)
        order = np.argsort(keys, kind="stable")
        place, same = np.arange(block.rows), keys[order][1:] == keys[order][:-1]
        place[order[1:][same]] = order[:-1][same]
        linked = np.zeros(block.rows, bool)
        linked[order[1:][same]] = True
        *x, y, weight = (c[place] for c in (*block.x[: grouping.inputs], np.asarray(block.y, float), _weights(block)))
        if len(before.keys):
            first = np.flatnonzero(~linked)
            found = np.minimum(np.searchsorted(before.keys, keys[first]), len(before.keys) - 1)
            known = before.keys[found] == keys[first]
            rows, found = first[known], found[known]
            for column, earlier in zip((*x, y, weight), before.columns, strict=True):
                column[rows] = earlier[found]
            linked[rows] = True
        self.x, self.y, self.weight = tuple(x), y, weight  # of the rows before
        self.linked = linked  # whether there is one


class Whitening(Protocol):
    """Makes rows independent that are correlated inside their groups."""

    def whitened(self, block: Block, grouping: Grouping) -> Block:
        """Return the rows with what they need of their groups."""


@dataclasses.dataclass(frozen=True)
class AutoRegression:
    """Rows of which each depends on the one before."""

    rho: float
    before: LastRows  # of the partitions before
    order: float  # of the rows as they were

    def whitened(self, block: Block, grouping: Grouping) -> Block:
        """Return the rows with those before them, and y combined."""
        preceding, weight = PrecedingRows(block, grouping, self.before, self.order), _weights(block)
        share = np.where(preceding.linked, self.rho * preceding.weight / weight, 0.0)
        weight = np.where(preceding.linked, weight / np.sqrt(1 - self.rho**2), weight)
        return _extended(block, (*preceding.x, share), np.asarray(block.y, float) - share * preceding.y, weight)


@dataclasses.dataclass(frozen=True)
class Exchangeable:
    """Rows that all depend alike on one another, with the means of the weighted [J, r] of their groups at `theta`."""

    rho: float
    keys: Vector  # (groups,), in their order
    counts: Vector  # (groups,)
    means: Matrix  # (groups, p + 1)
    theta: Vector  # (p,)

    def among(self, keys: Vector) -> Exchangeable:
        """Return what rows of some groups need."""
        wanted = np.isin(self.keys, keys)
        each = self.keys[wanted], self.counts[wanted], self.means[wanted]
        return Exchangeable(self.rho, *each, self.theta)

    def whitened(self, block: Block, grouping: Grouping) -> Block:
        """Return the rows with what of the mean of their group is taken from them."""
        place, weight, p = np.searchsorted(self.keys, grouping.keys(block)), _weights(block), len(self.theta)
        # A row whose group is missing is refused by the sweep; its place is behind all others.
        place = np.minimum(place, len(self.keys) - 1)
        taken = share_of_mean(self.rho, self.counts)[:, None] * self.means
        columns = [column[place] / weight for column in taken.T]
        offset = columns[p] - sum((t * c for t, c in zip(self.theta, columns, strict=False)), np.zeros(block.rows))
        return _extended(block, tuple(columns[:p]), np.asarray(block.y, float) + offset, weight / np.sqrt(1 - self.rho))


@dataclasses.dataclass(frozen=True)
class Neighbours:
    """Rows as they are, with those before them: their columns of x, y, the weight, and whether there is one."""

    before: LastRows  # of the partitions before
    order: float  # of the rows as they were

    def whitened(self, block: Block, grouping: Grouping) -> Block:
        """Return the rows with those before them, not combined."""
        preceding = PrecedingRows(block, grouping, self.before, self.order)
        return _extended(
            block,
            (*preceding.x, preceding.y, preceding.weight, preceding.linked.astype(float)),
            block.y,
            _weights(block),
        )


@dataclasses.dataclass(frozen=True)
class Correlation:
    """How rows are correlated inside their groups, and what makes them independent, for each partition."""

    kind: str
    rho: float = 0.0
    whitenings: tuple[Whitening, ...] | None = None  # None: rows are taken as they are read
    about: tuple[float, ...] = ()  # the free parameters at which means were taken

    @property
    def identity(self) -> list[Any]:
        """What of it decides about an answer."""
        return [self.kind, self.rho, self.whitenings is not None, *self.about]


def share_of_mean(rho: float, counts: Vector) -> Vector:
    """Return how much of its mean is taken from each row of a group of so many, (groups,)."""
    share: Vector = 1 - np.sqrt((1 - rho) / (1 + (counts - 1) * rho))
    return share


@dataclasses.dataclass(frozen=True)
class _Correlated:
    """A partition whose rows are made independent when it is read."""

    partition: Any
    grouping: Grouping
    whitening: Whitening

    def load(self) -> Block:
        return self.whitening.whitened(self.partition.load(), self.grouping)


def make_independent(source: Source, grouping: Grouping, whitenings: Sequence[Whitening], beside: int) -> Source:
    """Return a source whose rows are made independent, each partition by its own whitening.

    Parameters
    ----------
    beside : int
        Columns that a row has then in addition.
    """
    partitions = [
        _whitened(partition, grouping, whitening)
        for partition, whitening in zip(source.partitions, whitenings, strict=True)
    ]
    info = dataclasses.replace(source.info, row_bytes=source.info.row_bytes + 8 * beside)
    return dataclasses.replace(source, partitions=partitions, info=info)


def _whitened(partition: Any, grouping: Grouping, whitening: Whitening) -> Any:
    if isinstance(partition, Block):
        return whitening.whitened(partition, grouping)
    if hasattr(partition, "dask"):  # which is computed together with the others
        return dask.delayed(functools.partial(_whiten, grouping=grouping, whitening=whitening))(partition)
    return _Correlated(partition, grouping, whitening)


def _whiten(block: Block, grouping: Grouping, whitening: Whitening) -> Block:
    return whitening.whitened(block, grouping)


def _extended(block: Block, columns: tuple[Vector, ...], y: Vector, weight: Vector) -> Block:
    """Return a block with further columns behind those of x, and another y and weight."""
    x = (*block.x, *(np.ascontiguousarray(c) for c in columns))
    return dataclasses.replace(block, x=x, y=y, weight=np.ascontiguousarray(weight), held=False, memory=None)


def _weights(block: Block) -> Vector:
    """Return the weight of each row as float64."""
    return np.asarray(block.weights, float)
