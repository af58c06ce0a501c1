"""Checkpoints: generations of a state in a Zarr store, committed by a record written last, verified before use."""

from dask_nlsq._checkpoint.checkpoints import KEEP, Checkpoints, Generation, versions
from dask_nlsq._checkpoint.lock import Lock
from dask_nlsq._checkpoint.tree import Keys, Text, from_text, pack, to_text, unpack

__all__ = [
    "KEEP",
    "Checkpoints",
    "Generation",
    "Keys",
    "Lock",
    "Text",
    "from_text",
    "pack",
    "to_text",
    "unpack",
    "versions",
]
