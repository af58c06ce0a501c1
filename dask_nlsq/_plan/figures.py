"""Figures: the choice of a tier as a tree, and memory against rows, drawn from the tables that decide."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from dask_nlsq._display import axes
from dask_nlsq._plan.memory import estimate_memory
from dask_nlsq._plan.tiers import RULES, MemoryTier, WorkflowTier

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS = dict(zip(WorkflowTier, ("#a8d5a2", "#ffd28a", "#f5a089", "#d69ad6"), strict=True))


def plot_tiers(ax: Axes | None = None) -> Axes:
    """Draw which tier the table chooses, as a tree of rows and memory.

    Parameters
    ----------
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Notes
    -----
    Needs the extra ``plot``.

    Examples
    --------
    >>> from dask_nlsq import plot_tiers
    >>> ax = plot_tiers()
    >>> ax.get_title()
    'Which tier is chosen'
    """
    ax = axes(ax, (11, 6))
    boxes = {"boxstyle": "round,pad=0.4", "edgecolor": "0.3"}
    line = {"arrowstyle": "-", "color": "0.5"}
    centre = (len(RULES) - 1) / 2
    ax.text(centre, 3.0, "How many rows?", ha="center", va="center", bbox=boxes | {"facecolor": "#cfe3f5"})
    low = 0.0
    for i, (below, tiers) in enumerate(RULES):
        runs = _runs(tiers)
        label = f"from {_count(low)}" if math.isinf(below) else f"below {_count(below)}"
        ax.annotate("", (i, 2.15), (centre, 2.85), arrowprops=line)
        ax.text(i, 2.0, label, ha="center", va="center", bbox=boxes | {"facecolor": "white"})
        for k, (names, tier) in enumerate(runs):
            x = i + (k - (len(runs) - 1) / 2) * 0.52
            ax.annotate("", (x, 1.0), (i, 1.85), arrowprops=line)
            if len(runs) > 1:
                ax.text((2 * x + i) / 3, 1.4, names, ha="center", va="center", fontsize=7, backgroundcolor="white")
            text = tier.name.replace("_", "\n")
            ax.text(x, 0.85, text, ha="center", va="center", fontsize=8, bbox=boxes | {"facecolor": _COLOURS[tier]})
        low = below
    ranges = ", ".join(f"{tier} {tier.description}" for tier in MemoryTier)
    ax.text(centre, 0.2, f"Memory of all workers: {ranges}.", ha="center", va="center", fontsize=8)
    ax.set(xlim=(-0.6, len(RULES) - 0.4), ylim=(0, 3.3), title="Which tier is chosen")
    ax.set_axis_off()
    return ax


def plot_memory(n_params: int = 5, *, n_columns: int = 2, threads: int = 1, ax: Axes | None = None) -> Axes:
    """Draw the memory that each tier takes against the number of rows.

    Parameters
    ----------
    n_params, n_columns, threads : int
        As in `estimate_memory`.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default a new figure.

    Returns
    -------
    matplotlib.axes.Axes

    Notes
    -----
    Needs the extra ``plot``.

    Examples
    --------
    >>> from dask_nlsq import plot_memory
    >>> ax = plot_memory()
    >>> [line.get_label() for line in ax.get_lines()][:2]
    ['STANDARD', 'CHUNKED']
    """
    ax = axes(ax, (9, 5.5))
    rows = np.unique(np.logspace(3, 9, 61).astype(int))
    for tier in WorkflowTier:
        growth = [estimate_memory(int(n), n_params, tier, n_columns=n_columns, threads=threads) / 1e9 for n in rows]
        ax.loglog(rows, growth, label=tier.name, linewidth=2)
    for memory in list(MemoryTier)[1:]:
        ax.axhline(memory.value, color="0.6", linestyle="--", linewidth=0.8)
        ax.text(rows[-1], memory.value, f"{memory.value} GB ", va="bottom", ha="right", fontsize=8, color="0.4")
    for below, _ in RULES[:-1]:
        ax.axvline(below, color="0.8", linestyle=":", linewidth=0.8)
    ax.set(xlabel="rows", ylabel="growth of a process, GB", title="Memory by tier")
    ax.legend(loc="upper left")
    ax.grid(alpha=0.3)
    return ax


def _runs(tiers: tuple[WorkflowTier, ...]) -> list[tuple[str, WorkflowTier]]:
    """Put neighbouring memory tiers with one answer together."""
    runs: list[tuple[list[str], WorkflowTier]] = []
    for memory, tier in zip(MemoryTier, tiers, strict=True):
        if runs and runs[-1][1] is tier:
            runs[-1][0].append(memory.name)
        else:
            runs.append(([memory.name], tier))
    return [("\nto ".join({names[0]: 0, names[-1]: 0}), tier) for names, tier in runs]


def _count(rows: float) -> str:
    return f"{rows:,.0f}"
