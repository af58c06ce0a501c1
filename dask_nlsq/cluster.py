"""Clusters that suit a fit.

Examples
--------
>>> from dask_nlsq import cluster
>>> cluster.local_cluster.__name__
'local_cluster'
"""

from __future__ import annotations

from typing import Any

from distributed import LocalCluster

from dask_nlsq._plan import Plan, memory_limit

__all__ = ["local_cluster"]


def local_cluster(plan: Plan, **options: Any) -> LocalCluster:
    """Start worker processes on this machine, as many and as large as suits a plan.

    Each has one thread, its share of the memory, and an XLA that keeps to that thread.

    Parameters
    ----------
    plan : Plan
        Of `dask_nlsq.plan`.
    **options
        Passed to `distributed.LocalCluster`, before what the plan says.

    Returns
    -------
    distributed.LocalCluster

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> from distributed import Client
    >>> x = np.linspace(0, 1, 1000)
    >>> plan = dask_nlsq.plan("line", x, 1 + 2 * x)
    >>> with dask_nlsq.local_cluster(plan, processes=False) as cluster, Client(cluster) as client:
    ...     result = dask_nlsq.fit("line", x, 1 + 2 * x, client=client, tier="chunked")
    >>> result.params.round(6).to_dict()
    {'intercept': 1.0, 'slope': 2.0}
    """
    workers = options.get("n_workers", plan.n_workers)
    chosen = {
        "n_workers": workers,
        "threads_per_worker": 1,
        "memory_limit": memory_limit().limit // max(workers, 1),
        "dashboard_address": ":0",
    }
    if options.get("processes", True):
        options["env"] = {"PJRT_NPROC": "1"} | (options.get("env") or {})
    return LocalCluster(**(chosen | options))
