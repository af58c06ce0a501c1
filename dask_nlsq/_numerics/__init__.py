"""Pure numerics: no Dask, Zarr, pandas, files, clocks or global state."""
