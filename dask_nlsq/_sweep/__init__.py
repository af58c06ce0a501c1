"""One pass over the data: groups of partitions, reduced and folded in a fixed tree, whatever executes the tasks."""

from dask_nlsq._sweep.cluster import Cluster, outside_pool
from dask_nlsq._sweep.executors import Executor, Serial, Threads
from dask_nlsq._sweep.failure import Failure
from dask_nlsq._sweep.group import Group, group
from dask_nlsq._sweep.partial import Finished, Partial
from dask_nlsq._sweep.shipped import Shipped, ship
from dask_nlsq._sweep.sweep import Ledger, sweep, sweep_each

__all__ = [
    "Cluster",
    "Executor",
    "Failure",
    "Finished",
    "Group",
    "Ledger",
    "Partial",
    "Serial",
    "Shipped",
    "Threads",
    "group",
    "outside_pool",
    "ship",
    "sweep",
    "sweep_each",
]
