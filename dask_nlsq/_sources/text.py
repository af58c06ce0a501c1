"""Text: files of comma- or tab-separated values, read by Dask's reader in pieces."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask.dataframe as dd
import fsspec
import pandas as pd

from dask_nlsq._errors import DataError
from dask_nlsq._sources.columns import Columns, check_columns
from dask_nlsq._sources.file_stamps import files_were
from dask_nlsq._sources.frame import open_frame
from dask_nlsq._sources.places import TEXTS, check_above
from dask_nlsq._sources.source import Source

_SAMPLE = 1000
"""Rows at the head of the first file that say which columns hold numbers."""

_AT_A_TIME = 16

COMPRESSED = ("gz", "bz2", "xz", "zst", "zip")


def open_text(path: str | Sequence[str], columns: Columns, storage_options: dict[str, Any]) -> Source:
    """Take a file, a folder, a pattern or a list of them; every column of numbers is read as float64."""
    urls, left_out, how = _find(path, storage_options)
    present = _headers(urls, storage_options, how)
    check_columns(present, columns.names)
    types = _types(urls[0], columns, storage_options, how)
    frame = dd.read_csv(
        urls,
        usecols=list(columns.names),
        # Dask would infer the types from a sample, and fail on a later block of integers with a missing value.
        dtype=types,
        # A compressed file cannot be entered in the middle.
        blocksize=None if urls[0].rpartition(".")[2] in COMPRESSED else "default",
        compression="infer",
        storage_options=storage_options,
        **how,
    )
    source = open_frame(frame[list(columns.names)], columns, tuple(present))
    notes = (f"{files_were(left_out)} left out, by their names.",) if left_out else ()
    return dataclasses.replace(source, info=dataclasses.replace(source.info, notes=(*source.info.notes, *notes)))


def read_text(
    path: str, storage_options: dict[str, Any], keys: Sequence[str], whole_files: bool = False
) -> dd.DataFrame:
    """Return a file, a folder or a pattern as a frame with the types of its head, where numbers but keys are float64.

    Parameters
    ----------
    keys : sequence of str
        Columns of whole numbers that stay such.
    whole_files : bool
        Whether each file is one partition.
    """
    urls, _, how = _find(path, storage_options)
    _headers(urls, storage_options, how)
    with fsspec.open(urls[0], compression="infer", **storage_options) as file:
        head = pd.read_csv(file, nrows=_SAMPLE, **how)
    # A later block of whole numbers may have a missing value.
    types = {name: "float64" for name in head.columns if head[name].dtype.kind in "iu" and name not in keys}
    whole_files |= urls[0].rpartition(".")[2] in COMPRESSED
    frame: dd.DataFrame = dd.read_csv(
        urls,
        dtype=types,
        blocksize=None if whole_files else "default",
        compression="infer",
        storage_options=storage_options,
        **how,
    )
    return frame


def _find(path: str | Sequence[str], storage_options: dict[str, Any]) -> tuple[list[str], int, dict[str, Any]]:
    """Return the files that are meant, how many others lie beside them, and how they are read."""
    fs, _, roots = fsspec.get_fs_token_paths(path, storage_options=storage_options)
    check_above(fs, roots, path)
    files, left_out = _files(fs, roots)
    if not files:
        raise DataError(f"Nothing was found at {path!r}.")
    how = {"sep": "\t" if ".tsv" in files[0].rpartition("/")[2] else ","}
    return [fs.unstrip_protocol(name) for name in files], left_out, how


def _files(fs: fsspec.AbstractFileSystem, roots: Sequence[str]) -> tuple[list[str], int]:
    """Return the files of text that are named, or lie in a folder, and how many others lie there."""
    files, others = [], 0
    for root in roots:
        inside = sorted(fs.glob(f"{root.rstrip('/')}/*")) if fs.isdir(root) else [root]
        chosen = [n for n in inside if n == root or (n.lower().endswith(TEXTS) and n.rpartition("/")[2][0] not in "_.")]
        files += chosen
        others += len(inside) - len(chosen)
    return list(dict.fromkeys(files)), others


def _headers(urls: Sequence[str], storage_options: dict[str, Any], how: dict[str, Any]) -> list[str]:
    """Return the names of the columns, which every file must have in the same order."""

    def names(url: str) -> list[str]:
        with fsspec.open(url, compression="infer", **storage_options) as file:
            return list(pd.read_csv(file, nrows=0, **how).columns)

    with ThreadPoolExecutor(_AT_A_TIME, "nlsq-headers") as pool:
        first, *others = pool.map(names, urls)
    for url, other in zip(urls[1:], others, strict=True):
        if other != first:
            raise DataError(
                f"The file {urls[0]!r} has the columns {first}, and {url!r} has {other}. Write them with one header, "
                "or join them: data=dask.dataframe.concat([dask.dataframe.read_csv(path) for path in paths])."
            )
    return first


def _types(url: str, columns: Columns, storage_options: dict[str, Any], how: dict[str, Any]) -> dict[str, str]:
    """Return the types of columns by the head of the first file, and refuse those that should hold numbers and do not.

    Groups are texts, so that 007 and 7 are two.
    """
    with fsspec.open(url, compression="infer", **storage_options) as file:
        head = pd.read_csv(file, nrows=_SAMPLE, usecols=list(columns.names), **how)
    for name in columns.numbers.names:
        values = head[name].dropna()
        if len(values) and values.dtype.kind not in "fiub":
            raise DataError(
                f"The column holds text, as {values.iloc[0]!r}; numbers are needed. Read it where it can be "
                f"converted: data=dask.dataframe.read_csv(path, parse_dates=[{name!r}]) for dates.",
                column=name,
            )
    return dict.fromkeys(columns.names, "str") | dict.fromkeys(columns.numbers.names, "float64")
