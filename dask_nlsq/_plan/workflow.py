"""Workflows: settings under one name, and the order in which what is said in several places counts."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Mapping
from typing import Any, SupportsFloat, SupportsIndex

import dask
from dask.utils import parse_bytes

from dask_nlsq._errors import NlsqError, one_of
from dask_nlsq._plan.limits import memory_limit
from dask_nlsq._plan.tiers import MemoryTier, OptimizationGoal, WorkflowTier, get_memory_tier, member, select_tier

N_STARTS = 64
"""Starts of a search, where nobody says how many."""

SAMPLERS = ("sobol", "halton", "lhs")
"""Ways to spread them, of `scipy.stats.qmc`."""


@dataclasses.dataclass(frozen=True)
class WorkflowConfig:
    """Settings of a fit that are kept together; a field that is None is not said.

    What is said in several places counts in this order: an argument of ``fit``, its ``config``, its ``workflow``,
    Dask's configuration (``nlsq.*``, also from the environment), the default.

    Parameters
    ----------
    tier : str or WorkflowTier, optional
        How to go about the data; "auto" chooses.
    goal : str or OptimizationGoal, optional
        What matters most.
    memory_limit : int or str, optional
        Bytes that a process may hold, or a text such as "4 GB".
    cache : {"auto", "persist", "none"}, optional
        Whether partitions stay in memory between sweeps.
    ftol, xtol, gtol : float, optional
        SciPy's tests.
    max_nfev : int, optional
        Most sweeps.
    time_limit : float, optional
        Seconds after which no further sweep is begun.
    precision : float or mapping, optional
        Standard errors, relative or by name, at which a streaming fit stops reading.
    checkpoint : str, path or Zarr store, optional
        Where a fit leaves its state on the way.
    checkpoint_interval, checkpoint_every : float, int, optional
        Seconds, and sweeps, between two commits.
    keep : int, optional
        Generations that are kept.
    compression : {"gzip"}, optional
        Of the arrays in a checkpoint.
    n_starts : int, optional
        Starts of a search for the lowest minimum; with a search, the bounds must be finite.
    sampler : {"sobol", "halton", "lhs"}, optional
        How starts are spread over the bounds.

    Examples
    --------
    >>> from dask_nlsq import WorkflowConfig
    >>> config = WorkflowConfig.from_preset("memory_efficient").replace(memory_limit="4 GB")
    >>> config.to_dict()
    {'goal': 'memory_efficient', 'memory_limit': '4 GB', 'cache': 'none'}
    """

    tier: Any = None
    goal: Any = None
    memory_limit: Any = None
    cache: str | None = None
    ftol: float | None = None
    xtol: float | None = None
    gtol: float | None = None
    max_nfev: int | None = None
    time_limit: float | None = None
    precision: Any = None
    checkpoint: Any = None
    checkpoint_interval: float | None = None
    checkpoint_every: int | None = None
    keep: int | None = None
    compression: str | None = None
    n_starts: int | None = None
    sampler: str | None = None

    def __post_init__(self) -> None:
        for name, kind in (("tier", WorkflowTier), ("goal", OptimizationGoal)):
            value = getattr(self, name)
            if name == "tier" and str(value).lower() == "auto":
                object.__setattr__(self, name, "auto")
            elif value is not None:
                object.__setattr__(self, name, member(kind, name, value))
        if self.cache is not None:
            one_of("cache", self.cache, "auto", "persist", "none")
        for name in ("max_nfev", "checkpoint_every", "keep", "n_starts"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, whole(name, given, 1))
        for name in ("ftol", "xtol", "gtol", "time_limit", "checkpoint_interval"):
            if (given := getattr(self, name)) is not None:
                object.__setattr__(self, name, _real(name, given))
        if self.compression is not None:
            one_of("compression", self.compression, "gzip")
        if self.sampler is not None:
            one_of("sampler", self.sampler, *SAMPLERS)
        if self.memory_limit is not None:
            try:
                parse_bytes(self.memory_limit)
            except (ValueError, TypeError, AttributeError) as error:
                raise NlsqError(
                    f'memory_limit is {self.memory_limit!r}; a number of bytes or a text such as "4 GB" is needed.'
                ) from error

    @property
    def starts(self) -> int:
        """How many starts a fit begins from: what is said, or what its goal asks for."""
        return self.n_starts or (N_STARTS if self.goal is OptimizationGoal.GLOBAL else 1)

    @classmethod
    def from_preset(cls, name: str) -> WorkflowConfig:
        """Return the settings of a preset.

        Raises
        ------
        NlsqError
            There is no preset of that name.
        """
        if name not in PRESETS:
            raise NlsqError(f"There is no workflow {name!r}; there are {', '.join(PRESETS)}.")
        return PRESETS[name]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> WorkflowConfig:
        """Return the settings that a mapping holds, as `to_dict` writes it.

        Raises
        ------
        NlsqError
            A name is no setting.
        """
        known = [field.name for field in dataclasses.fields(cls)]
        if unknown := [name for name in values if name not in known]:
            raise NlsqError(
                f"{', '.join(map(repr, unknown))} is no setting of a workflow; there are {', '.join(known)}."
            )
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Return what is said, as plain values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        # A member of an enumeration is written as its value, which JSON holds and `member` reads.
        return {name: getattr(value, "value", value) for name, value in values.items() if value is not None}

    def replace(self, **changes: Any) -> WorkflowConfig:
        """Return the settings with some of them changed."""
        return dataclasses.replace(self, **changes)


SETTINGS = tuple(field.name for field in dataclasses.fields(WorkflowConfig))
"""Names of what a workflow sets."""


def merge_config(
    arguments: WorkflowConfig, config: object = None, workflow: str | None = None, configured: bool = True
) -> WorkflowConfig:
    """Return what counts of arguments, a config, a workflow, and, where `configured`, Dask's configuration."""
    if isinstance(config, Mapping):
        config = WorkflowConfig.from_dict(config)
    if not isinstance(config, (WorkflowConfig, type(None))):
        raise NlsqError(f"config is a {type(config).__name__}; a WorkflowConfig or a mapping is needed.")
    in_dask = dask.config.get("nlsq", {}) if configured else {}
    settings = {key.replace("-", "_"): value for key, value in in_dask.items() if value is not None}
    known = {name: settings[name] for name in SETTINGS if name in settings}
    for more in (None if workflow is None else WorkflowConfig.from_preset(workflow), config):
        # Only what is said overrides what was said before: `to_dict` leaves out what is None.
        known |= {} if more is None else more.to_dict()
    return WorkflowConfig.from_dict(known | arguments.to_dict()) if known else arguments


def whole(name: str, given: SupportsIndex, least: int) -> int:
    """Return a whole number that was given, as Python's.

    Raises
    ------
    NlsqError
        It is none, or too small.
    """
    try:
        # Unlike int(), this refuses 2.5 and the text "3".
        number = operator.index(given)
    except TypeError as error:
        raise NlsqError(f"{name} is {given!r}; a whole number is needed.") from error
    if number < least:
        raise NlsqError(f"{name} is {number}; {least} is the least.")
    return number


def _real(name: str, given: SupportsFloat | str) -> float:
    try:
        number = float(given)
    except (TypeError, ValueError):
        number = float("nan")
    # NaN is not at least 0 either.
    if not number >= 0:
        raise NlsqError(f"{name} is {given!r}; a number that is not negative is needed.")
    return number


_T, _G = WorkflowTier, OptimizationGoal
PRESETS: Mapping[str, WorkflowConfig] = {
    "auto": WorkflowConfig(tier="auto"),
    "standard": WorkflowConfig(tier=_T.STANDARD),
    "fast": WorkflowConfig(goal=_G.FAST),
    "robust": WorkflowConfig(goal=_G.ROBUST),
    "quality": WorkflowConfig(goal=_G.QUALITY),
    "large_robust": WorkflowConfig(tier=_T.CHUNKED, goal=_G.ROBUST),
    "streaming": WorkflowConfig(tier=_T.STREAMING),
    "streaming_large": WorkflowConfig(tier=_T.STREAMING_CHECKPOINT),
    "memory_efficient": WorkflowConfig(goal=_G.MEMORY_EFFICIENT, cache="none"),
    "hpc_distributed": WorkflowConfig(tier=_T.STREAMING_CHECKPOINT, goal=_G.ROBUST),
    "global": WorkflowConfig(goal=_G.GLOBAL),
    "auto_global": WorkflowConfig(tier="auto", goal=_G.GLOBAL),
    "hpc": WorkflowConfig(tier="auto", goal=_G.GLOBAL, checkpoint="nlsq-checkpoint"),
    "spectroscopy": WorkflowConfig(goal=_G.QUALITY),  # many peaks, small noise: all digits, and perturbed restarts
    "timeseries": WorkflowConfig(tier=_T.CHUNKED, cache="auto"),  # long tables in the order of time
}
"""Settings by name."""


def auto_select_workflow(
    n_points: int, n_params: int, memory: float | None = None, goal: str | OptimizationGoal | None = None
) -> WorkflowConfig:
    """Choose a tier from the number of rows, the memory and the goal.

    Parameters
    ----------
    n_points, n_params : int
        Rows and free parameters. The parameters do not enter today's table.
    memory : float, optional
        GB that the workers may use; by default what this process may.
    goal : str or OptimizationGoal, optional
        What matters most; by default ROBUST.

    Returns
    -------
    WorkflowConfig
        With the tier of the table, whether or not this version can run it, and the goal.

    Examples
    --------
    >>> from dask_nlsq import auto_select_workflow
    >>> str(auto_select_workflow(50_000, 3, memory=8).tier), str(auto_select_workflow(50_000, 3, memory=32).tier)
    ('CHUNKED', 'STANDARD')
    """
    if n_points < 0 or n_params < 0:
        raise NlsqError(f"There are {n_points} rows and {n_params} parameters; neither can be negative.")
    goal = member(OptimizationGoal, "goal", goal or OptimizationGoal.ROBUST)
    tier: MemoryTier = get_memory_tier(memory_limit().limit / 1e9 if memory is None else memory)
    return WorkflowConfig(tier=select_tier(n_points, tier, goal), goal=goal)
