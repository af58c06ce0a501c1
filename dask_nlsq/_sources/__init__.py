"""Where rows come from: frames, arrays, Parquet and Zarr stores, memory; a `Block` a partition afterwards.

`open_source` is in a module of its own, which imports every kind of source: a worker reads partitions of one kind.
"""

from dask_nlsq._sources.columns import Columns
from dask_nlsq._sources.files import are_paths, files
from dask_nlsq._sources.source import Info, Partition, Source

__all__ = ["Columns", "Info", "Partition", "Source", "are_paths", "files"]
