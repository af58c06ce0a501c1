"""``dask-nlsq fit-many`` and ``fit-groups``: many small fits, of series of an array or groups of a table."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any

import click

import dask_nlsq
from dask_nlsq._errors import DataError, NlsqError
from dask_nlsq.cli.arguments import (
    COLUMNS,
    CONSTRAINTS,
    LOSS,
    MODEL,
    SCHEDULER,
    STORAGE,
    VALUES,
    load_model,
    read_names,
)
from dask_nlsq.cli.job_commands import connected, with_options
from dask_nlsq.cli.terminal import NOT_CONVERGED, plainly

_FIRST = 5
"""Rows of the answer that are printed."""

FITS = (
    *VALUES,
    *CONSTRAINTS,
    *LOSS,
    click.option(
        "--nan-policy",
        type=click.Choice(["omit", "raise"]),
        default="omit",
        show_default=True,
        help="What to do with points where x or y is not finite.",
    ),
    click.option(
        "--max-nfev",
        type=click.IntRange(min=1),
        default=200,
        show_default=True,
        metavar="N",
        help="Most steps of a fit in one attempt.",
    ),
    click.option(
        "--shared",
        multiple=True,
        callback=read_names,
        metavar="NAMES",
        help="Parameters that are common to all, repeated or separated by commas; the others belong to each.",
    ),
    *STORAGE,
    *SCHEDULER,
    click.option("--covariance", is_flag=True, help="Write the covariance of each fit, too."),
    click.option("--overwrite", is_flag=True, help="Replace what is at the output."),
)
"""What many fits are told."""


@click.command(
    "fit-many", epilog="Example: dask-nlsq fit-many cube.zarr -m decay:model --axis time --p0 rate=1 -o fits.zarr"
)
@click.argument("data")
@with_options(MODEL)
@click.option("--array", metavar="NAME", help="Array of a group that is fitted, where it has several.")
@click.option(
    "--axis",
    default="-1",
    show_default=True,
    metavar="N|NAME",
    help="Dimension along which a series lies, by its number or name.",
)
@click.option(
    "--x",
    "-x",
    multiple=True,
    callback=read_names,
    metavar="NAMES|PATHS",
    help="Columns of the model: arrays of the group, or paths of Zarr arrays; by default the coordinate of the axis.",
)
@with_options(FITS)
@click.option(
    "--start",
    type=click.Choice(["given", "neighbours"]),
    default="given",
    show_default=True,
    help="Where series start that fail from --p0: nowhere else, or at the mean of those beside them.",
)
@click.option("--output", "-o", required=True, metavar="OUT.zarr", help="Path or URL of the group that is written.")
@click.option("--progress/--no-progress", default=None, help="Show a progress bar; by default on a terminal.")
@click.pass_context
def fit_many(
    context: click.Context,
    /,
    data: str,
    model: str,
    array: str | None,
    axis: str,
    x: list[str] | None,
    sigma: str | float | None,
    output: str,
    overwrite: bool,
    scheduler: str | None,
    storage_options: dict[str, Any] | None,
    **options: Any,
) -> None:
    """Fit a model to every series along an axis of DATA, a path or URL of a Zarr array or group, each by itself.

    An array of parameters, standard errors or statistics is written for each; it is printed how many series ended how.

    Exit status: 0 a series converged, 1 an error, 2 wrong usage, 3 no series converged.
    """
    stores = _stores()
    with plainly():
        series = stores.Series.open(data, storage_options, array=array, axis=axis, x=x, sigma=sigma)
        stores.check_output(output, storage_options, overwrite, "Zarr", series.paths)
        with connected(scheduler, {}) as client:
            fits = dask_nlsq.fit_many(
                load_model(model), series.x, series.y, axis=series.axis, sigma=series.sigma, client=client, **options
            )
            labelled = dataclasses.replace(fits, labels=series.labels)
            labelled.to_zarr(output, overwrite=overwrite, **stores.remote(output, storage_options))
            # The figures lie in the store now, and need not be fitted again to be counted.
            ends = stores.count_status(output, storage_options)
        if fits.shared is not None:
            click.echo(f"{fits.shared}\n")
        succeeded = _say(ends, "series", output)
    context.exit(0 if succeeded else NOT_CONVERGED)


@click.command(
    "fit-groups",
    epilog="Example: dask-nlsq fit-groups runs.parquet --by detector -m decay:model -y signal -o fits.parquet",
)
@click.argument("data")
@click.option(
    "--by",
    required=True,
    multiple=True,
    callback=read_names,
    metavar="KEYS",
    help="Columns that tell groups apart, repeated or separated by commas.",
)
@with_options((*MODEL, *COLUMNS, *FITS))
@click.option(
    "--within-partitions",
    is_flag=True,
    help="Every group lies within one file, so that no rows are shuffled.",
)
@click.option(
    "--output", "-o", required=True, metavar="OUT.parquet", help="Path or URL of the Parquet that is written."
)
@click.pass_context
def fit_groups(
    context: click.Context,
    /,
    data: str,
    by: list[str] | None,
    model: str,
    x: list[str] | None,
    y: str | None,
    within_partitions: bool,
    output: str,
    overwrite: bool,
    scheduler: str | None,
    storage_options: dict[str, Any] | None,
    **options: Any,
) -> None:
    """Fit a model to every group of rows of DATA, a path or URL of Parquet or CSV, each by itself.

    A row is written for each group: keys, parameters, standard errors and statistics. It is printed how many groups
    ended how, and the first rows.

    Exit status: 0 a group converged, 1 an error, 2 wrong usage, 3 no group converged.
    """
    keys = by or []
    stores = _stores()
    with plainly():
        stores.check_output(output, storage_options, overwrite, "Parquet", [data])
        frame = stores.read_frame(data, storage_options, keys, within_partitions)
        with connected(scheduler, {}):
            fits: Any = dask_nlsq.fit_groups(
                frame,
                keys,
                load_model(model),
                x,
                y or "y",
                within_partitions=within_partitions or None,
                full_output=bool(options["shared"]),
                **options,
            )
            table, together = fits if options["shared"] else (fits, None)
            try:
                with stores.replacing(output, overwrite, storage_options) as place:
                    table.to_parquet(place, write_index=False, storage_options=storage_options)
            except ValueError as error:
                # So Dask says that a block of text is not of the types of the first.
                raise error if isinstance(error, NlsqError) else DataError(f"{data!r}: {error}") from error
            written = stores.read_frame(output, storage_options)
            ends = written["status"].value_counts().compute().to_dict()
            rows = written.head(_FIRST, npartitions=-1)
        if together is not None:
            click.echo(f"{together}\n")
        click.echo(rows.to_string(index=False))
        succeeded = _say(ends, "groups", output)
    context.exit(0 if succeeded else NOT_CONVERGED)


def _stores() -> Any:
    """Import what reads and writes; Dask loads this module for each of its commands, and that takes seconds."""
    return importlib.import_module("dask_nlsq.cli.stores")


def _say(ends: Mapping[str, int], what: str, output: str) -> bool:
    """Print how many fits ended how, and where they are; return whether any converged."""
    width = max(map(len, [*ends, "status"]))
    click.echo(f"{'status':{width}}  {what}")
    for name, count in sorted(ends.items(), key=lambda end: -end[1]):
        click.echo(f"{name:{width}}  {count:,}")
    click.echo(f"Wrote {output}.")
    return any(count and dask_nlsq.Status[name].success for name, count in ends.items())
