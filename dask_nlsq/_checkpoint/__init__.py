"""Checkpoints: generations of a state in a Zarr store, committed by a record written last, verified before use."""

from dask_nlsq._checkpoint.checkpoints import KEEP, Checkpoints, Generation, versions
from dask_nlsq._checkpoint.lock import HEARTBEAT, Lock
from dask_nlsq._checkpoint.tree import Keys, pack, unpack

__all__ = ["HEARTBEAT", "KEEP", "Checkpoints", "Generation", "Keys", "Lock", "pack", "unpack", "versions"]
