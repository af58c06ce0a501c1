"""Jobs on the command line: ``dask-nlsq job-script``, and the clusters of ``dask-nlsq fit --cluster``."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
import dask

from dask_nlsq._plan import PRESETS
from dask_nlsq._system import SCHEDULERS
from dask_nlsq.cli.terminal import plainly
from dask_nlsq.cluster import WARN
from dask_nlsq.cluster import job_script as write_script

T = TypeVar("T", bound=Callable[..., None])

PATIENCE = 30
"""Seconds that workers are waited for once the first has arrived."""

QUEUES = (
    click.option("--cores", type=click.IntRange(min=1), metavar="N", help="Of each job; by default 1."),
    click.option("--memory", metavar="BYTES", help='Of each job, such as "16 GB".'),
    click.option("--walltime", metavar="HH:MM:SS", help="Of each job; also D-HH:MM:SS, or seconds."),
    click.option("--queue", metavar="NAME", help="Queue or partition."),
    click.option("--account", metavar="NAME", help="Account or project that is charged."),
    click.option("--gpus", type=click.IntRange(min=0), metavar="N", help="Of each job."),
)
"""What a queue is asked for."""

CLUSTER = (
    click.option(
        "--cluster",
        type=click.Choice([*SCHEDULERS, "local"]),
        help="Start workers for the time of the fit: jobs of a queue, or processes of this machine.",
    ),
    click.option("--workers", type=click.IntRange(min=1), metavar="N", help="Worker processes of the cluster."),
    *QUEUES,
)
"""What `fit` is told about a cluster."""


def with_options(options: Sequence[Callable[[T], T]]) -> Callable[[T], T]:
    """Give a command all of some options."""

    def decorate(command: T) -> T:
        # click lists the options of a command in the order of its decorators, of which the last is applied first.
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def take(options: dict[str, Any]) -> dict[str, Any]:
    """Take what is said about a cluster out of what is said about a fit."""
    names = ("cluster", "workers", "cores", "memory", "walltime", "queue", "account", "gpus")
    return {name: value for name in names if (value := options.pop(name)) is not None}


def keeps(checkpoint: str | None, workflow: str | None) -> bool:
    """Whether a fit has a checkpoint, by its own option, by that of a workflow, or by Dask's configuration."""
    preset = PRESETS.get(workflow or "")
    places = (checkpoint, preset and preset.checkpoint, dask.config.get("nlsq.checkpoint", None))
    return any(place is not None for place in places)


@contextlib.contextmanager
def connected(
    address: str | None,
    requested: dict[str, Any],
    plan: Callable[[], Any] | None = None,
    check: Callable[[], None] = lambda: None,
) -> Iterator[Any]:
    """Connect to a scheduler, or start a cluster, for the time of a fit; None where neither is asked for.

    `plan` sizes a cluster of this machine; `check` raises where a signal has come while workers queue.
    """
    # The rest is what the cluster is asked for, and means nothing without one.
    kind = requested.pop("cluster", None)
    if kind is None:
        if requested:
            raise click.UsageError(f"--{next(iter(requested))} is of a cluster; say which with --cluster.")
        if address is None:
            yield None
            return
    elif address is not None:
        raise click.UsageError("--cluster starts a scheduler, and --scheduler names a running one; say one of them.")
    elif kind == "local" and set(requested) - {"workers"}:
        raise click.UsageError("--cluster local takes --workers, and its share of this machine.")
    elif kind != "local" and "memory" not in requested:
        raise click.UsageError(f"--cluster {kind} needs --memory, what each of its jobs may hold.")
    # Importing distributed takes longer than most commands.
    from distributed import Client

    with contextlib.ExitStack() as stack:
        where: Any = address
        if kind is not None:
            # Entered before the client, so that the client is closed first.
            where = stack.enter_context(_cluster(kind, requested, plan))
        client = stack.enter_context(Client(where))
        if kind not in (None, "local"):
            # A second at a time, so that a signal is noticed while the jobs queue.
            while not client.nthreads():
                check()
                with contextlib.suppress(TimeoutError):
                    client.wait_for_workers(1, timeout=1)
            with contextlib.suppress(TimeoutError):  # those that still queue help later
                client.wait_for_workers(requested.get("workers", 1), timeout=PATIENCE)
        yield client


def _cluster(kind: str, requested: dict[str, Any], plan: Callable[[], Any] | None) -> Any:
    clusters = importlib.import_module("dask_nlsq.cluster")
    if kind == "local" and plan is not None:
        return clusters.local_cluster(plan(), **({"n_workers": requested["workers"]} if "workers" in requested else {}))
    return getattr(clusters, kind)(**requested)


@click.command(
    "job-script",
    epilog="Example: dask-nlsq job-script --walltime 12:00:00 --memory '16 GB' -o fit.sh -- "
    "fit runs.parquet -m decay:model --checkpoint run",
)
@click.option(
    "--scheduler", type=click.Choice(SCHEDULERS), help="Whose script; by default that of the queue installed here."
)
@with_options(QUEUES)
@click.option("--name", default="nlsq", show_default=True, help="Of the job.")
@click.option(
    "--warn", type=click.IntRange(min=1), default=WARN, show_default=True, help="Seconds between warning and end."
)
@click.option("--setup", multiple=True, metavar="LINE", help="A line before the fit, such as 'module load python'.")
@click.option("--log", metavar="FILE", help="Takes what the job prints; by default called as the job.")
@click.option("--output", "-o", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Write it there.")
# Options behind the two hyphens belong to the command that the job runs.
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def job_script(
    command: tuple[str, ...],
    scheduler: str | None,
    output: Path | None,
    log: str | None,
    cores: int | None,
    gpus: int | None,
    walltime: str | None,
    memory: str | None,
    **options: Any,
) -> None:
    """Write a batch job that runs `dask-nlsq COMMAND`, is warned before its time is over, and then queues again.

    The command stands after two hyphens, and a fit in it has --checkpoint, from which it goes on.
    """
    # Checked here, for `fit` shares these options and requires neither.
    for name, value in (("--walltime", walltime), ("--memory", memory)):
        if value is None:
            raise click.UsageError(f"Missing option '{name}'.")
    # An option may be joined to its value by an equals sign.
    words = [part for word in command for part in word.split("=", 1)]
    given = dict(itertools.pairwise([*words, ""]))
    if command[0] == "fit" and not keeps(given.get("--checkpoint"), given.get("--workflow")):
        raise click.UsageError("The fit has no --checkpoint; without one it could not go on when its job runs again.")
    if command[0] == "fit" and given.get("--resume") == "no":
        raise click.UsageError("--resume no starts anew each time the job runs again; leave it out.")
    with plainly():
        text = write_script(
            ["dask-nlsq", *command],
            scheduler,
            walltime=walltime or "",
            memory=memory or "",
            cores=cores or 1,
            gpus=gpus or 0,
            output=log,
            **options,
        )
        if output is None:
            click.echo(text, nl=False)
            return
        output.write_text(text, encoding="utf-8")
        output.chmod(0o755)
        click.echo(f"Wrote {shlex.quote(str(output))}.")
