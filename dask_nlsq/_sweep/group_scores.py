r"""Group scores: the scores of rows summed by the group that each belongs to, :math:`s_g = \sum_{i \in g} s_i`.

Other sums over the rows of a group are formed likewise: of the weighted Jacobian, the residual and its square.

The rows of a group may lie in any partitions. What a partition knows of each of its groups is added up in the tree of a
sweep, so that the sums have the same bits whoever forms them.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from dask_nlsq._kernel import FAN_IN, Block
from dask_nlsq._model import Objective
from dask_nlsq._sweep.failure import Failure
from dask_nlsq._sweep.groups import Group
from dask_nlsq._sweep.payload import Payload
from dask_nlsq._typing import Matrix, Vector

_CHUNK = 1 << 17
"""Rows at a time."""


@dataclasses.dataclass(frozen=True)
class GroupScores:
    """Sums of the scores of each group, or of what else is formed of its rows."""

    keys: Vector  # (groups,), in their order
    sums: Matrix  # (groups, p)

    @classmethod
    def of(cls, keys: Vector, scores: Matrix) -> GroupScores:
        """Add up the scores (rows, p) of rows with these keys (rows,), one row after the other."""
        distinct, which = np.unique(keys, return_inverse=True)
        columns = [np.bincount(which, column, len(distinct)) for column in scores.T]
        return cls(distinct, np.stack(columns, axis=1))


def merge_scores(parts: Sequence[GroupScores]) -> GroupScores:
    """Add the sums of disjoint sets of rows, from left to right."""
    keys = np.unique(np.concatenate([part.keys for part in parts]))
    sums = np.zeros((len(keys), parts[0].sums.shape[1]))
    for part in parts:
        sums[np.searchsorted(keys, part.keys)] += part.sums
    return GroupScores(keys, sums)


@dataclasses.dataclass(frozen=True)
class ScoreAnswer:
    """What came of a group of partitions: the rows of each, and the nodes of the tree, leaves or above."""

    rows: dict[int, int]  # by the number of the partition
    parts: tuple[tuple[GroupScores, ...]]
    nodes: tuple[tuple[int, int], ...]  # what the parts are, by level and place


def sum_scores(group: Group, payload: Payload, theta: Vector, rows_too: bool = False) -> ScoreAnswer | Failure:
    """Sum the scores of a group of partitions at `theta` (p,), the free parameters.

    Keys are the last column of x that is read. Of `rows_too`, what is summed is J, r, r², and 1, all but the last times
    the weight: p + 3 columns.
    """
    blocks, rows, nodes = group.blocks(), dict[int, int](), []
    nothing = GroupScores(np.empty(0), np.empty((0, len(theta) + 3 * rows_too)))
    for level, _ in group.nodes:
        node = nothing
        for number, block in itertools.islice(blocks, FAN_IN**level):
            if isinstance(block, Failure):
                return block.at(number)
            try:
                # Added one by one: of all leaves of a node the same groups would be there as often.
                node = merge_scores([node, _of_block(block, payload, theta, rows_too)])
            except Exception as error:
                return Failure.of("evaluating the model", error).at(number)
            rows[number] = block.rows
            del block  # before the next is read
        nodes.append(node)
    return ScoreAnswer(rows, (tuple(nodes),), group.nodes)


def _of_block(block: Block, payload: Payload, theta: Vector, rows_too: bool) -> GroupScores:
    from dask_nlsq._kernel import evaluate_residuals, evaluate_scores  # with JAX, at its first use

    objective: Objective = payload.value
    place = -1 - objective.n_appended
    pieces = [GroupScores(np.empty(0), np.empty((0, len(theta) + 3 * rows_too)))]
    for piece in block.cut(_CHUNK):
        if rows_too:
            a = evaluate_residuals(objective, piece, theta)
            formed = np.concatenate([a, a[:, -1:] ** 2, np.ones((len(a), 1))], axis=1)
        else:
            formed = evaluate_scores(objective, piece, theta)
        pieces.append(GroupScores.of(piece.x[place], formed))
    return merge_scores(pieces)
