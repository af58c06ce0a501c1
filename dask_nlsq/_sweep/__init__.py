"""One pass over the data: a task a partition, folded in a fixed tree, whatever executes the tasks."""

from dask_nlsq._sweep.executors import Cluster, Executor, Serial, Threads
from dask_nlsq._sweep.shipped import Shipped, ship
from dask_nlsq._sweep.sweep import Ledger, sweep

__all__ = ["Cluster", "Executor", "Ledger", "Serial", "Shipped", "Threads", "ship", "sweep"]
