"""Text: files of comma- or tab-separated values, read by Dask's reader in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import dask.dataframe as dd
import fsspec
import pandas as pd

from dask_nlsq._errors import DataError
from dask_nlsq._sources.columns import Columns, check_columns
from dask_nlsq._sources.frame import open_frame
from dask_nlsq._sources.source import Source

_SAMPLE = 1000
"""Rows at the head of the first file that say which columns there are, and which hold numbers."""

COMPRESSED = ("gz", "bz2", "xz", "zst", "zip")


def open_text(path: str | Sequence[str], columns: Columns, storage_options: dict[str, Any]) -> Source:
    """Take a file, a folder, a pattern or a list of them; every column of numbers is read as float64."""
    fs, _, found = fsspec.get_fs_token_paths(path, storage_options=storage_options)
    found = [name for one in found for name in (sorted(fs.glob(f"{one}/*")) if fs.isdir(one) else [one])]
    if not found:
        raise DataError(f"Nothing was found at {path!r}.")
    how: dict[str, Any] = {"sep": "\t" if ".tsv" in found[0].rpartition("/")[2] else ","}
    with fsspec.open(fs.unstrip_protocol(found[0]), compression="infer", **storage_options) as file:
        head = pd.read_csv(file, nrows=_SAMPLE, **how)
    check_columns(list(head.columns), columns.names)
    for name in columns.names:
        if head[name].dtype.kind not in "fiub":
            first = head[name].dropna().iloc[:1].to_list()
            raise DataError(
                f"The column holds text, as {first[0] if first else None!r}; numbers are needed. Read it where it can "
                f"be converted: data=dask.dataframe.read_csv(path, parse_dates=[{name!r}]) for dates.",
                column=name,
            )
    frame = dd.read_csv(
        [fs.unstrip_protocol(name) for name in found],
        usecols=list(columns.names),
        dtype=dict.fromkeys(columns.names, "float64"),
        blocksize=None if found[0].rpartition(".")[2] in COMPRESSED else "default",
        compression="infer",
        storage_options=storage_options,
        **how,
    )
    return open_frame(frame[list(columns.names)], columns, tuple(head.columns))
