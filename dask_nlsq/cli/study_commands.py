"""``dask-nlsq study``: run, show and compare studies that are written in YAML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

import dask_nlsq
from dask_nlsq.cli.arguments import SCHEDULER, load_model
from dask_nlsq.cli.job_commands import CLUSTER, connected, take, with_options
from dask_nlsq.cli.terminal import NOT_CONVERGED, as_json, plainly

FILE = click.argument("file", type=click.Path(dir_okay=False, path_type=Path))


@click.group()
def study() -> None:
    """Fit many models to the same data: a study, written in YAML."""


@study.command(epilog="Example: dask-nlsq study run airtime.yaml --html airtime.html")
@FILE
@click.option("--html", type=click.Path(dir_okay=False, writable=True, path_type=Path), help="Write a page there.")
@with_options(SCHEDULER)
@with_options(CLUSTER)
@click.option("--progress/--no-progress", default=None, help="Show a progress bar; by default on a terminal.")
@click.pass_context
def run(
    context: click.Context,
    /,
    file: Path,
    html: Path | None,
    scheduler: str | None,
    progress: bool | None,
    **options: Any,
) -> None:
    """Run the study in FILE, and print its table. What is in its cache is not fitted again.

    Exit status: 0 all fits converged, 1 an error, 2 wrong usage, 3 some fit failed or did not converge.
    """
    started = take(options)
    with plainly():
        asked = dask_nlsq.StudyFile.read(file, load_model)

        def plan() -> Any:
            first = next(iter(asked.variants.values()))
            own = ("name", "cache_dir", "record", "max_concurrent")
            common = {key: value for key, value in asked.arguments.items() if key not in own}
            return dask_nlsq.plan(**{**common, **first.options})

        with connected(scheduler, started, plan) as client:
            done = asked.run(client, progress)
            click.echo(done.report())
            if html is not None:
                done.to_html(html)
    whole = all(result.success for result in done.values()) and not done.errors
    context.exit(0 if whole else NOT_CONVERGED)


@study.command()
@FILE
@as_json
def show(file: Path, as_json: bool) -> None:
    """Show what a study in FILE came to when it was run."""
    with plainly():
        done = dask_nlsq.StudyFile.read(file).load()
        if as_json:
            click.echo(json.dumps(_rows(done.table.reset_index()), indent=2))
        else:
            click.echo(done.report())


@study.command()
@FILE
@as_json
def compare(file: Path, as_json: bool) -> None:
    """Compare the fits of a study in FILE to the same rows: AIC, BIC, weights, F-tests of nested models."""
    with plainly():
        comparisons = dask_nlsq.StudyFile.read(file).load().comparisons
        if as_json:
            read = [{"models": _rows(each.table.reset_index()), "f_tests": _rows(each.f_tests)} for each in comparisons]
            click.echo(json.dumps(read, indent=2))
            return
        if not comparisons:
            raise click.ClickException("No two fits of the study that converged are to the same rows.")
        click.echo("\n\n".join(map(repr, comparisons)))


def _rows(table: Any) -> list[dict[str, Any]]:
    """Return the rows of a table as plain values, numbers with all their digits, and None for what is not there."""
    rows = table.astype(object).where(table.notna(), None).to_dict("records")
    return [{name: getattr(value, "item", lambda value=value: value)() for name, value in row.items()} for row in rows]
