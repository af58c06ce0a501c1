"""Where rows come from: frames, arrays, Parquet and Zarr stores, memory; a `Block` a partition afterwards."""

from dask_nlsq._sources.columns import Columns
from dask_nlsq._sources.files import files
from dask_nlsq._sources.open import open_source
from dask_nlsq._sources.source import Info, Partition, Source

__all__ = ["Columns", "Info", "Partition", "Source", "files", "open_source"]
