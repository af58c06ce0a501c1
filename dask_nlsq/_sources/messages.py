"""Messages: batches of rows as they arrive, whatever holds them, as mappings from names to arrays."""

from __future__ import annotations

import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow

from dask_nlsq._errors import DataError

if TYPE_CHECKING:
    import dask.dataframe as dd


def is_table(batch: object) -> bool:
    """Whether a batch holds its columns by name: a frame, a mapping, records, a list of mappings, an Arrow table."""
    if isinstance(batch, (pd.DataFrame, Mapping)) or getattr(getattr(batch, "dtype", None), "names", None):
        return True
    if isinstance(batch, (list, tuple)):
        return len(batch) > 0 and all(isinstance(row, Mapping) for row in batch)
    capsule = any(hasattr(batch, f"__arrow_c_{kind}__") for kind in ("stream", "array"))
    named = hasattr(batch, "columns") and hasattr(batch, "shape") and len(batch.shape) == 2
    return named or hasattr(batch, "__dataframe__") or (capsule and hasattr(batch, "schema"))


def each_table(batch: object) -> Iterator[Mapping[str, Any]]:
    """Yield what a batch holds by name: one mapping or frame, or one for each partition of a Dask frame.

    Parameters
    ----------
    batch : table
        What `is_table` accepts.
    """
    if _is_lazy(batch):
        for i in range(batch.npartitions):
            yield batch.partitions[i].compute()
    else:
        yield _table(batch)


def _is_lazy(batch: object) -> TypeGuard[dd.DataFrame]:
    """Whether this is a Dask DataFrame, for which Dask need not be imported."""
    return hasattr(batch, "__dask_graph__")


def _table(batch: object) -> Mapping[str, Any]:
    if isinstance(batch, pd.DataFrame):
        return batch  # type: ignore[return-value]  # which is indexed by names too
    if isinstance(batch, Mapping):
        return _message(batch)
    if names := getattr(getattr(batch, "dtype", None), "names", None):
        records = np.atleast_1d(np.asanyarray(batch))
        return {name: records[name] for name in names}
    if isinstance(batch, (list, tuple)):
        return _records(batch)
    if any(hasattr(batch, f"__arrow_c_{kind}__") for kind in ("stream", "array")):
        frame: Mapping[str, Any] = pyarrow.table(batch).to_pandas()
        return frame
    if hasattr(batch, "__dataframe__"):
        return pd.api.interchange.from_dataframe(batch)  # type: ignore[return-value]
    raise DataError(f"A batch is a {type(batch).__name__}; a frame, a mapping, records or arrays are needed.")


def _message(batch: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a mapping with numbers as arrays of one row."""
    return {name: np.array([_cell(value)]) if _is_cell(value) else value for name, value in batch.items()}


def _records(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Return a list of mappings as columns; what a row lacks is NaN."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([_cell(row.get(name)) for row in rows]) for name in names}


def _is_cell(value: npt.ArrayLike | None) -> bool:
    return value is None or isinstance(value, numbers.Number) or (hasattr(value, "dtype") and np.ndim(value) == 0)


def _cell(value: object) -> object:
    return np.nan if value is None or value is pd.NA else value
