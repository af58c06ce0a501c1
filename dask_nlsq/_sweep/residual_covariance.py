"""Products of the residuals of a row: what the covariance of several responses is estimated from, in one pass."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from dask_nlsq._model import Objective
from dask_nlsq._sweep.failure import Failure
from dask_nlsq._sweep.groups import Group
from dask_nlsq._sweep.payload import Payload
from dask_nlsq._sweep.task import predict_rows
from dask_nlsq._typing import Matrix, Vector


class ResidualProducts(NamedTuple):
    """Rows of the data, and the sum of the products of their residuals, (responses, responses)."""

    rows: int
    products: Matrix

    def __add__(self, other: ResidualProducts) -> ResidualProducts:  # type: ignore[override]
        return ResidualProducts(self.rows + other.rows, self.products + other.products)


def residual_products(group: Group, payload: Payload, theta: Vector) -> list[ResidualProducts] | Failure:
    """Return the sum over each of some partitions, each row of which has all its responses."""
    objective: Objective = payload.value
    assert objective.responses is not None
    k = len(objective.responses)
    parts = []
    for number, block in group.blocks():
        if isinstance(block, Failure):
            return block.at(number)
        if not block.rows:
            continue
        try:
            fit = predict_rows(payload, theta, block.x)
        except Exception as error:
            return Failure.of("evaluating the model", error).at(number)
        wide = block.wide()
        weighted = ((wide.y - fit) * wide.weights).reshape(-1, k)
        # Residuals as they are, of those that are weighted and combined: the covariance is in other units each time.
        combined = wide.weights[:k, None] * np.stack([c[:k] for c in objective.responses.shares(wide.x)], axis=1)
        residual = np.linalg.solve(combined, weighted.T)
        parts.append(ResidualProducts(len(weighted), np.einsum("ai,bi->ab", residual, residual)))
        del block  # before the next is read
    return parts
