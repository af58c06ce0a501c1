"""Failure: an exception as a value, with what was being done; and the reading of a partition, which may end in one.

A task never fails for the scheduler. That keeps the original exception with its cause on the way to the driver,
and a model that raises is not run again and again by a scheduler that hopes for better luck.
"""

from __future__ import annotations

import dataclasses
import pickle
import traceback
from typing import TYPE_CHECKING, Any

import numpy as np

from dask_nlsq._errors import NlsqError, SweepError
from dask_nlsq._kernel import Block
from dask_nlsq._system import read_again
from dask_nlsq._typing import Vector

if TYPE_CHECKING:
    from dask_nlsq._sources import Partition


@dataclasses.dataclass(frozen=True)
class Failure:
    """An exception, what was being done when it was raised, and on which partition."""

    doing: str
    exception: BaseException
    trace: str = ""
    partition: int | None = None

    @classmethod
    def of(cls, doing: str, error: BaseException) -> Failure:
        """Keep an exception for the driver; one that cannot be pickled is told in words."""
        # As text, for pickle keeps neither the traceback of an exception nor its cause.
        trace = "".join(traceback.format_exception(error))
        try:
            # Read back too: an exception whose __init__ takes other arguments than it hands on is pickled, and cannot
            # be unpickled.
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = RuntimeError(f"{type(error).__name__}: {error}")
        return cls(doing, error, trace)

    def at(self, partition: int) -> Failure:
        """Return the failure with its place."""
        return dataclasses.replace(self, partition=partition)

    def error(self, theta: Vector | None = None) -> NlsqError:
        """Return the exception to raise on the driver."""
        where: dict[str, Any] = {} if self.partition is None else {"partition": self.partition}
        error = self.exception
        if not isinstance(error, NlsqError):
            error = SweepError(f"{type(error).__name__} while {self.doing}: {error}{remedy(error)}")
            error.__cause__ = self.exception
        if theta is not None and isinstance(error, SweepError) and self.doing != "reading the data":
            where["theta"] = np.array2string(theta, precision=6, separator=", ")
        return error.at(**where)


def remedy(error: BaseException) -> str:
    """Return what to do about a module that a worker does not find."""
    if not isinstance(error, ModuleNotFoundError) or not error.name:
        return ""
    name = error.name.partition(".")[0]
    return (
        f". The process that ran this cannot import {name}. Where it is a file of yours, "
        f"client.upload_file('{name}.py') gives it to the workers, and cloudpickle.register_pickle_by_value({name}) "
        "sends it along with the model; a package is to be installed on the workers."
    )


def load(partition: Partition | Failure) -> Block | Failure:
    """Read a partition, trying again where the file system fails."""
    if isinstance(partition, (Block, Failure)):
        return partition
    try:
        return read_again(partition.load)
    except Exception as error:
        return Failure.of("reading the data", error)
