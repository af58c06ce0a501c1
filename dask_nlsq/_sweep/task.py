"""What a task does with one partition. Failures come back as values: a task never fails for the scheduler.

That keeps the original exception with its cause on the way to the driver, and a model that raises is not
run again and again by a scheduler that hopes for better luck.
"""

from __future__ import annotations

import dataclasses
import pickle
import time
import traceback
from typing import Any

import numpy as np

from dask_nlsq._errors import DataError, NlsqError, SweepError
from dask_nlsq._numerics.block import Block
from dask_nlsq._numerics.reduction import Reduction
from dask_nlsq._numerics.request import Request
from dask_nlsq._sweep.shipped import Shipped
from dask_nlsq._typing import Vector

READS = 3
"""How often a read is tried when the file system reports an error."""


@dataclasses.dataclass(frozen=True)
class Failure:
    """An exception as a value, and what was being done when it was raised."""

    doing: str
    exception: BaseException
    trace: str = ""

    def error(self, partition: int, theta: Any = None) -> NlsqError:
        """Return the exception to raise on the driver."""
        where: dict[str, Any] = {"partition": partition}
        if isinstance(self.exception, NlsqError):
            return self.exception.at(**where)
        if theta is not None and self.doing == "evaluating the model":
            where["theta"] = np.array2string(theta, precision=6, separator=", ")
        error = SweepError(f"{type(self.exception).__name__} while {self.doing}: {self.exception}", **where)
        error.__cause__ = self.exception
        return error


def load(partition: Any) -> Block | Failure:
    """Read a partition, trying again where the file system fails."""
    for attempt in range(1, READS + 1):
        try:
            block: Block = partition.load()
            return block
        except OSError as error:
            if attempt == READS or isinstance(error, (FileNotFoundError, PermissionError)):
                return failure("reading the data", error)
            time.sleep(0.1 * 2**attempt)
        except Exception as error:
            return failure("reading the data", error)
    raise AssertionError


def reduce_partition(partition: Any, shipped: Shipped, request: Request) -> Reduction | Failure:
    """Load a partition and reduce it."""
    block = load(partition) if not isinstance(partition, Failure) else partition
    if isinstance(block, Failure):
        return block
    try:
        objective = shipped.value
        whitening = None if request.whitening is None else request.whitening.s
        reduction: Reduction = _kernel().reduce_block(objective, block, request.theta, whitening)
        if not np.isfinite(reduction.sums).all():
            _refuse_non_finite(block, objective.columns)
        if request.first:
            _kernel().check_rows(objective, block, request.theta)
        return reduction
    except Exception as error:
        return failure("evaluating the model", error)


def draw(partition: Any, count: int, seed: int) -> tuple[Block, int] | Failure:
    """Load a partition; return at most `count` of its rows, in order, and how many it has."""
    block = load(partition) if not isinstance(partition, Failure) else partition
    if isinstance(block, Failure):
        return block
    if block.rows <= count:
        return block, block.rows
    mark = int(np.bitwise_xor.reduce(block.y.view(np.uint64)))  # partitions of one length differ in their rows
    rows = np.random.default_rng([seed, mark]).choice(block.rows, count, replace=False, shuffle=False)
    return block.take(np.sort(rows)), block.rows


def predict_rows(shipped: Shipped, theta: Vector, x: tuple[Vector, ...]) -> Vector:
    """Evaluate the model at columns x, each of shape (rows,)."""
    values: Vector = _kernel().predict_block(shipped.value, Block(x, x[0]), theta)
    return values


def _kernel() -> Any:
    """Import the kernel at its first use: the scheduler imports this module too, and must not start XLA."""
    from dask_nlsq._numerics import kernel

    return kernel


def failure(doing: str, error: BaseException) -> Failure:
    """Keep an exception for the driver; one that cannot be pickled is told in words."""
    trace = "".join(traceback.format_exception(error))
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    return Failure(doing, error, trace)


def _refuse_non_finite(block: Block, names: tuple[str, ...]) -> None:
    """Raise for the first column with a cell that is not finite; a sum may also overflow, which is no fault."""
    for name, column in zip(names, (*block.x, block.y), strict=True):
        bad = ~np.isfinite(column)
        if bad.any():
            row = int(np.argmax(bad))
            raise DataError(
                f"{int(bad.sum())} of {len(bad)} cells are not finite; the first is row {row} with {column[row]}. "
                'nan_policy="omit" drops such rows and counts them.',
                column=name,
            )
