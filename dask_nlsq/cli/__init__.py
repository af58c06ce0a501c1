"""The command line: ``dask-nlsq``, and ``dask nlsq`` among Dask's own commands."""

from dask_nlsq.cli.commands import main, run

__all__ = ["main", "run"]
