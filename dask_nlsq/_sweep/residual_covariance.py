"""Products of the residuals of a row: what the covariance of several responses is estimated from, in one pass."""

from __future__ import annotations

import dataclasses

import numpy as np

from dask_nlsq._kernel import Block
from dask_nlsq._model import Objective
from dask_nlsq._sweep.failure import Failure
from dask_nlsq._sweep.groups import Group, of_each_block
from dask_nlsq._sweep.payload import Payload
from dask_nlsq._sweep.task import predict_rows
from dask_nlsq._typing import Matrix, Vector


@dataclasses.dataclass(frozen=True)
class ResidualProducts:
    """Rows of the data, and the sum of the products of their residuals, (responses, responses)."""

    rows: int
    products: Matrix

    def __add__(self, other: ResidualProducts) -> ResidualProducts:
        return ResidualProducts(self.rows + other.rows, self.products + other.products)


def residual_products(group: Group, payload: Payload, theta: Vector) -> list[ResidualProducts] | Failure:
    """Return the sum over each of some partitions, each row of which has all its responses."""
    objective: Objective = payload.value
    responses = objective.responses
    assert responses is not None
    k = len(responses)

    def of_block(block: Block) -> ResidualProducts:
        if not block.rows:
            return ResidualProducts(0, np.zeros((k, k)))
        fit, wide = predict_rows(payload, theta, block.x), block.wide()
        weighted = ((wide.y - fit) * wide.weights).reshape(-1, k)
        # Residuals as they are, of those that are weighted and combined: the covariance is in other units each time.
        combined = wide.weights[:k, None] * np.stack([c[:k] for c in responses.shares(wide.x)], axis=1)
        residual = np.linalg.solve(combined, weighted.T)
        return ResidualProducts(len(weighted), np.einsum("ai,bi->ab", residual, residual))

    return of_each_block(group, of_block)
