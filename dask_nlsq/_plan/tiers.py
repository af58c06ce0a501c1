"""Tiers: how a fit goes about its data, chosen from the number of rows, the memory and the goal.

One table decides, `RULES`; the selection, the documents and the figure are made from it.
"""

from __future__ import annotations

import enum
import math
from typing import TypeVar

from dask_nlsq._errors import NlsqError, one_of

E = TypeVar("E", bound="_Named")


class _Named(enum.Enum):
    """An enumeration whose members may be given by name, in either case."""

    def __str__(self) -> str:
        return str(self.name)


class WorkflowTier(_Named):
    """How a fit goes about its data; the answer is the same.

    ``STANDARD`` gathers all rows in this process once. ``CHUNKED`` leaves them in partitions, on disk or on workers,
    and passes over them. ``STREAMING`` takes mini-batches in random order while the estimate moves, and then certifies
    it. ``STREAMING_CHECKPOINT`` is the same with a checkpoint, in which it leaves its state on the way.

    Examples
    --------
    >>> from dask_nlsq import WorkflowTier
    >>> WorkflowTier.CHUNKED.memory
    'a few partitions'
    """

    STANDARD = "standard"
    CHUNKED = "chunked"
    STREAMING = "streaming"
    STREAMING_CHECKPOINT = "streaming_checkpoint"

    @property
    def memory(self) -> str:
        """What is held at a time."""
        return {"standard": "all rows", "chunked": "a few partitions"}.get(self.value, "a few batches")

    @property
    def streams(self) -> bool:
        """Whether it takes mini-batches."""
        return self in (WorkflowTier.STREAMING, WorkflowTier.STREAMING_CHECKPOINT)


class OptimizationGoal(_Named):
    """What matters most in a fit.

    ``FAST`` stops a tenth of a standard error from the minimum. ``ROBUST``, the default, stops far below one.
    ``QUALITY`` goes on to the rounding level, and fits again from perturbed starts. ``MEMORY_EFFICIENT`` keeps nothing
    between passes. ``GLOBAL`` looks for the lowest minimum from many starts.

    Examples
    --------
    >>> from dask_nlsq import OptimizationGoal
    >>> [goal.name for goal in OptimizationGoal]
    ['FAST', 'ROBUST', 'GLOBAL', 'QUALITY', 'MEMORY_EFFICIENT']
    """

    FAST = "fast"
    ROBUST = "robust"
    GLOBAL = "global"
    QUALITY = "quality"
    MEMORY_EFFICIENT = "memory_efficient"


class DatasetSizeTier(_Named):
    """Names for numbers of rows, each up to `max_points` and not including it.

    Examples
    --------
    >>> from dask_nlsq import DatasetSizeTier
    >>> DatasetSizeTier.of(50_000_000), DatasetSizeTier.HUGE.tolerance
    (<DatasetSizeTier.HUGE: 100000000.0>, 1e-12)
    """

    TINY = 1e3
    SMALL = 1e4
    MEDIUM = 1e5
    LARGE = 1e6
    VERY_LARGE = 1e7
    HUGE = 1e8
    MASSIVE = math.inf

    @property
    def max_points(self) -> float:
        """Rows from which the next size begins."""
        return float(self.value)

    @property
    def tolerance(self) -> float:
        r"""An ``ftol`` that stops within a hundredth of a standard error.

        A step of e standard errors changes the cost of n rows by about :math:`e^2/n` of itself, so a tolerance that
        does not shrink with n would stop farther from the minimum the more data there are.
        """
        return 1e-4 / min(self.max_points, 1e9)

    @classmethod
    def of(cls, rows: float) -> DatasetSizeTier:
        """Return the size of so many rows."""
        return next(size for size in cls if rows < size.max_points)


class MemoryTier(_Named):
    """Names for amounts of memory, each from its value, in GB, upwards.

    Examples
    --------
    >>> from dask_nlsq import MemoryTier
    >>> [(tier.name, tier.value) for tier in MemoryTier]
    [('LOW', 0), ('MEDIUM', 16), ('HIGH', 64), ('VERY_HIGH', 128)]
    """

    LOW = 0
    MEDIUM = 16
    HIGH = 64
    VERY_HIGH = 128

    @property
    def description(self) -> str:
        """The range in words."""
        above = [tier.value for tier in MemoryTier if tier.value > self.value]
        if self is MemoryTier.LOW:
            return f"less than {above[0]} GB"
        return f"{self.value} to {above[0]} GB" if above else f"more than {self.value} GB"


def get_memory_tier(gb: float) -> MemoryTier:
    """Return the tier of so many GB of memory.

    Parameters
    ----------
    gb : float
        Memory that the workers may use, in GB of 10⁹ bytes. A tier begins above its lower end: 16 GB are MEDIUM, 64
        GB MEDIUM still.

    Returns
    -------
    MemoryTier

    Examples
    --------
    >>> from dask_nlsq import get_memory_tier
    >>> get_memory_tier(12.5).name, get_memory_tier(16).name, get_memory_tier(200).name
    ('LOW', 'MEDIUM', 'VERY_HIGH')
    """
    if not gb >= 0:
        raise NlsqError(f"The memory is {gb} GB; a number that is not negative is needed.")
    if gb < MemoryTier.MEDIUM.value:
        return MemoryTier.LOW
    if gb <= MemoryTier.HIGH.value:
        return MemoryTier.MEDIUM
    return MemoryTier.HIGH if gb <= MemoryTier.VERY_HIGH.value else MemoryTier.VERY_HIGH


_S, _C, _T, _K = WorkflowTier
RULES: tuple[tuple[float, tuple[WorkflowTier, ...]], ...] = (
    # rows below        LOW, MEDIUM, HIGH, VERY_HIGH
    (1e4, (_S, _S, _S, _S)),
    (1e7, (_C, _S, _S, _S)),
    (1e8, (_T, _T, _C, _C)),
    (math.inf, (_K, _K, _K, _K)),
)
"""The tier for each number of rows, not included, and each `MemoryTier`."""


def select_tier(rows: float, memory: MemoryTier, goal: OptimizationGoal = OptimizationGoal.ROBUST) -> WorkflowTier:
    """Look a tier up in `RULES`; a goal that saves memory counts as little memory."""
    column = 0 if goal is OptimizationGoal.MEMORY_EFFICIENT else list(MemoryTier).index(memory)
    return next(tiers[column] for below, tiers in RULES if rows < below)


def member(kind: type[E], name: str, value: object) -> E:
    """Return a member from itself or its name in either case."""
    if isinstance(value, kind):
        return value
    one_of(name, str(value).lower(), *(m.name.lower() for m in kind))
    return kind[str(value).upper()]
