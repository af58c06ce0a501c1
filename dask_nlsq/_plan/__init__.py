"""Plan: tiers, memory, workflows, and the plan of a fit with its reasons."""

from dask_nlsq._plan.figures import plot_memory, plot_tiers
from dask_nlsq._plan.limits import MemoryLimit, memory_limit
from dask_nlsq._plan.memory import IMPORTS, READERS, estimate_memory
from dask_nlsq._plan.plan import Facts, Measured, Plan, make_plan, with_speeds
from dask_nlsq._plan.schedule import BATCHES, WINDOW, schedule
from dask_nlsq._plan.tiers import (
    DatasetSizeTier,
    MemoryTier,
    OptimizationGoal,
    WorkflowTier,
    get_memory_tier,
)
from dask_nlsq._plan.workflow import PRESETS, SAMPLERS, WorkflowConfig, auto_select_workflow, settle, whole

__all__ = [
    "BATCHES",
    "IMPORTS",
    "PRESETS",
    "READERS",
    "SAMPLERS",
    "WINDOW",
    "DatasetSizeTier",
    "Facts",
    "Measured",
    "MemoryLimit",
    "MemoryTier",
    "OptimizationGoal",
    "Plan",
    "WorkflowConfig",
    "WorkflowTier",
    "auto_select_workflow",
    "estimate_memory",
    "get_memory_tier",
    "make_plan",
    "memory_limit",
    "plot_memory",
    "plot_tiers",
    "schedule",
    "settle",
    "whole",
    "with_speeds",
]
