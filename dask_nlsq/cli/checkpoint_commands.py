"""``dask-nlsq checkpoints``: list, show, verify, prune and export what fits have left."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from typing import Any

import click

import dask_nlsq
from dask_nlsq.cli.terminal import as_json, mapping, plainly


@click.group()
def checkpoints() -> None:
    """Look after the checkpoints of a fit."""


WHERE = (
    click.argument("where"),
    click.option("--storage-options", callback=mapping, metavar="JSON", help="Options of fsspec, for URLs."),
)


def _where(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the place of the checkpoints, opened."""

    @functools.wraps(command)
    def opened(where: str, storage_options: dict[str, Any] | None, **options: Any) -> None:
        with plainly():
            command(dask_nlsq.Checkpoints(where, storage_options), **options)

    # As in `with_options`, the last decorator is applied first.
    for argument in reversed(WHERE):
        opened = argument(opened)
    return opened


@checkpoints.command("list")
@_where
@as_json
def list_checkpoints(store: dask_nlsq.Checkpoints, as_json: bool) -> None:
    """List the generations at WHERE: when, sweeps, cost, status, bytes."""
    table = store.list()
    if as_json:
        click.echo(table.reset_index().to_json(orient="records", indent=2))
    else:
        click.echo(table.to_string(na_rep="") if len(table) else f"There is no checkpoint at {store.place}.")


@checkpoints.command()
@_where
@click.option("--generation", type=int, metavar="N", help="By default the newest.")
@as_json
def show(store: dask_nlsq.Checkpoints, generation: int | None, as_json: bool) -> None:
    """Show what the record of a generation at WHERE says."""
    record = store.describe(generation)
    facts = {"generation": record.number, "created": record.created, "bytes": record.nbytes, **record.about}
    facts |= {"fingerprint": dict(record.fingerprint), "versions": dict(record.versions)}
    if as_json:
        click.echo(json.dumps(facts, indent=2))
        return
    for name, fact in facts.items():
        pairs = fact.items() if isinstance(fact, dict) else ()
        click.echo(f"{name}:" if pairs else f"{name}: {fact}")
        for key, value in pairs:
            click.echo(f"  {key}: {value}")


@checkpoints.command()
@_where
@as_json
@click.pass_context
def verify(context: click.Context, store: dask_nlsq.Checkpoints, as_json: bool) -> None:
    """Hash every file of every generation at WHERE; the exit status is 1 where something is wrong."""
    numbers, faults = store.numbers(), store.verify()
    if as_json:
        click.echo(json.dumps({"generations": numbers, "faults": faults}, indent=2))
    else:
        for number in numbers:
            click.echo(f"{number}: {faults.get(number, 'verified')}")
        if not numbers:
            click.echo(f"There is no checkpoint at {store.place}.")
    if faults or not numbers:
        context.exit(1)


@checkpoints.command()
@_where
@click.option("--keep", type=click.IntRange(min=2), default=2, show_default=True, metavar="N")
def prune(store: dask_nlsq.Checkpoints, keep: int) -> None:
    """Remove all generations at WHERE but the newest; a fit must not be writing there."""
    removed = store.prune(keep)
    click.echo(f"Removed {len(removed)} generations; {len(store.numbers())} are left.")


@checkpoints.command()
@_where
@click.argument("target")
@click.option("--generation", type=int, metavar="N", help="By default the newest that verifies.")
def export(store: dask_nlsq.Checkpoints, target: str, generation: int | None) -> None:
    """Copy a generation at WHERE to TARGET, a path or URL."""
    store.export(target, generation)
    click.echo(f"Copied to {target}.")
