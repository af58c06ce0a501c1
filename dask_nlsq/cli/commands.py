"""Commands: ``dask-nlsq``, and ``dask nlsq`` among Dask's own commands.

Dask loads this module for each of its commands, so it imports no JAX; the commands that compute do. Exit status: 0 the
fit converged, 1 an error, 2 the command line was not understood, 3 the fit did not converge, 75 a signal interrupted a
fit whose state is in a checkpoint: the same command goes on from there.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
from dask.system import CPU_COUNT
from dask.utils import format_bytes

import dask_nlsq
from dask_nlsq._plan import SAMPLERS
from dask_nlsq._system import Interrupt
from dask_nlsq.cli.arguments import (
    COLUMNS,
    COUNTS,
    COVARIANCE,
    ERRORS_IN_X,
    LOSS,
    MODEL,
    SCHEDULER,
    STORAGE,
    VALUES,
    load_model,
)
from dask_nlsq.cli.checkpoint_commands import checkpoints
from dask_nlsq.cli.job_commands import CLUSTER, connected, job_script, keeps, take, with_options
from dask_nlsq.cli.many_commands import fit_groups, fit_many
from dask_nlsq.cli.study_commands import study
from dask_nlsq.cli.terminal import NOT_CONVERGED, as_json, plainly

INTERRUPTED = 75
"""Exit status of a fit that a signal has interrupted, and that can go on: EX_TEMPFAIL."""

PACKAGES = ("dask-nlsq", "dask", "distributed", "jax", "jaxlib", "numpy", "scipy", "zarr", "pyarrow")
"""Whose versions `info` prints."""


@click.group(name="nlsq", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(dask_nlsq.__version__, package_name="dask-nlsq")
def main() -> None:
    """Exact nonlinear least squares on more rows than fit in memory."""


_DRAWN = (".png", ".svg", ".pdf")

_WRITERS: dict[str, Callable[[Any, Path], Any]] = {
    ".json": lambda result, path: path.write_text(result.to_json() + "\n", encoding="utf-8"),
    ".html": lambda result, path: result.to_html(path),
    ".zip": lambda result, path: result.save(path),
    **dict.fromkeys(_DRAWN, lambda result, path: result.plot().figure.savefig(path)),
}
"""By the end of a path, what writes a result there."""


def _output(_: click.Context, __: click.Parameter, paths: tuple[Path, ...]) -> tuple[Path, ...]:
    """Refuse before the fit what could not be written after it."""
    for path in paths:
        if path.suffix not in _WRITERS:
            raise click.BadParameter(f"{str(path)!r} does not end in {', '.join(_WRITERS)}.")
        # A fit may take hours, and would then end with its result lost.
        if not path.absolute().parent.is_dir():
            raise click.BadParameter(f"There is no directory {str(path.parent)!r}.")
        if path.suffix in _DRAWN and importlib.util.find_spec("matplotlib") is None:
            raise click.BadParameter(f"{str(path)!r} is drawn with matplotlib: pip install 'dask-nlsq[plot]'.")
    return paths


ARGUMENTS = (
    click.argument("data"),
    *MODEL,
    *COLUMNS,
    *VALUES,
    *ERRORS_IN_X,
    *LOSS,
    *COUNTS,
    *COVARIANCE,
    click.option(
        "--nan-policy",
        type=click.Choice(["raise", "omit"]),
        default="raise",
        show_default=True,
        help="What to do with rows where x or y is not finite.",
    ),
    *STORAGE,
    click.option(
        "--tier",
        type=click.Choice(["auto", "standard", "chunked", "streaming", "streaming_checkpoint"]),
        help="Gather all rows in this process, leave them in partitions, or stream; by default rows and memory decide.",
    ),
    click.option(
        "--precision", type=click.FloatRange(min=0, min_open=True), metavar="P", help="Relative error at which to stop."
    ),
    click.option(
        "--method",
        type=click.Choice(["lm", "trf", "dogbox", "adam"]),
        help="adam goes down from p0 on a sample first, for starts that are far; the others are one solver.",
    ),
    click.option("--seed", type=int, default=0, metavar="N", help="Of what is drawn at random."),
    click.option(
        "--goal",
        type=click.Choice(["fast", "robust", "quality", "global", "memory_efficient"]),
        help="What matters most; by default robust. global looks for the lowest minimum, within --bounds.",
    ),
    click.option("--n-starts", type=click.IntRange(min=1), metavar="N", help="Starts of such a search; by default 64."),
    click.option("--sampler", type=click.Choice(SAMPLERS), help="How starts are spread; by default sobol."),
    click.option("--workflow", metavar="NAME", help="Settings under one name, such as auto_global or hpc."),
    click.option("--memory-limit", metavar="BYTES", help='What a process may hold, such as "4 GB".'),
    click.option(
        "--cache",
        type=click.Choice(["auto", "persist", "none"]),
        help="Whether the data stay in memory between sweeps; by default where they are small.",
    ),
    click.option("--max-nfev", type=click.IntRange(min=1), metavar="N", help="Most sweeps; by default 1000."),
    *SCHEDULER,
)
"""What `fit` and `plan` are told."""


@main.command(epilog="Example: dask-nlsq fit runs.parquet -m decay:model -y signal --p0 amplitude=2,rate=0.5")
@with_options(ARGUMENTS)
@click.option(
    "--output",
    "-o",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    multiple=True,
    callback=_output,
    metavar="FILE",
    help="Write the result: .json, .zip for FitResult.load, a page .html, or a plot .png, .svg, .pdf; repeatable.",
)
@click.option("--checkpoint", metavar="PATH|URL", help="Leave the state there on the way, and go on from it.")
@click.option(
    "--resume",
    type=click.Choice(["auto", "yes", "no", "force"]),
    default="auto",
    show_default=True,
    help="Go on where there is something; insist that there is; start anew; go on though the fit is another.",
)
@click.option(
    "--checkpoint-interval", type=click.FloatRange(min=0), metavar="SECONDS", help="Between commits; by default 60."
)
@click.option("--checkpoint-every", type=click.IntRange(min=1), metavar="SWEEPS", help="Between commits, besides.")
@click.option("--cache-dir", metavar="PATH|URL", help="Keep results there, and return the one of the same fit.")
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="Generations that are kept; by default 5.")
@with_options(CLUSTER)
@click.option("--progress/--no-progress", default=None, help="Show a progress bar; by default on a terminal.")
@click.pass_context
def fit(
    context: click.Context,
    /,
    data: str,
    model: str,
    x: list[str] | None,
    y: str | None,
    scheduler: str | None,
    output: tuple[Path, ...],
    resume: str,
    **options: Any,
) -> None:
    """Fit a model to DATA, a path or URL of Parquet, Delta, Iceberg, Zarr, Icechunk or CSV, and print the report.

    Put quotes around a pattern such as 'runs/*.parquet'. The model is an expression such as 'a*exp(-b*t)', a
    name that `dask-nlsq models` lists, or a function module:function written with jax.numpy, in a module of the
    current directory or of an installed package.

    Exit status: 0 the fit converged, 1 an error, 2 wrong usage, 3 the fit did not converge, 75 it was interrupted by a
    signal, and the same command goes on from its checkpoint.
    """
    started = take(options)
    kept = keeps(options["checkpoint"], options["workflow"])
    how = {"yes": True, "no": False}.get(resume, resume)
    with plainly():
        function = load_model(model)
        arguments = {"x": x, "y": y, "data": data, "resume": how, **options}
        try:
            with (
                _listening(kept) as check,
                connected(scheduler, started, lambda: dask_nlsq.plan(function, **arguments), check) as client,
            ):
                check()
                result = dask_nlsq.fit(function, client=client, **arguments)
                click.echo(result.report())
                for path in output:
                    _WRITERS[path.suffix](result, path)
        except KeyboardInterrupt:
            # With a checkpoint Ctrl-C commits, too, and the same command goes on.
            if not kept:
                raise
            context.exit(INTERRUPTED)
    context.exit(0 if result.success else NOT_CONVERGED)


def run() -> None:
    """Run the command of this process; one that was interrupted, and is written down, waits for no thread."""
    try:
        main()
    except SystemExit as end:
        if end.code != INTERRUPTED:
            raise
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        # Python would join the threads of its pools first, and with them the tasks that they have begun. What is
        # buffered was flushed, for this exit does not do so.
        os._exit(INTERRUPTED)


@contextlib.contextmanager
def _listening(kept: bool) -> Iterator[Callable[[], None]]:
    """Notice the signals that end a fit with a checkpoint also before it begins, while its workers queue."""
    if not kept:
        yield lambda: None
        return
    with Interrupt() as interrupt:
        yield interrupt.check


@main.command(epilog="Example: dask-nlsq plan 'runs/*.parquet' -m decay:model -y signal --explain")
@with_options(ARGUMENTS)
@click.option("--explain", is_flag=True, help="Give every decision with its reason and its numbers.")
@as_json
def plan(
    data: str,
    model: str,
    x: list[str] | None,
    y: str | None,
    scheduler: str | None,
    explain: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Say what a fit of DATA would do: tier, workers, memory, reads, seconds. One partition is read."""
    with plainly(), connected(scheduler, {}) as client:
        planned = dask_nlsq.plan(load_model(model), x, y, data=data, client=client, **options)
        text = planned.explain() if explain else str(planned)
        click.echo(json.dumps(planned.to_dict(), indent=2) if as_json else text)


main.add_command(fit_many)
main.add_command(fit_groups)
main.add_command(checkpoints)
main.add_command(study)
main.add_command(job_script)


@main.command()
def models() -> None:
    """List the models of the library: name, formula, parameters."""
    rows = [
        (model.name, getattr(model.func, "text", ""), ", ".join(model.parameters))
        for model in dask_nlsq.models.LIBRARY.values()
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


@main.command()
def info() -> None:
    """Print versions, devices, processors and memory."""
    # Importing distributed takes longer than most commands.
    from distributed.system import MEMORY_LIMIT

    # JAX is imported by name, so that the module itself can be imported without it.
    devices = Counter(device.device_kind for device in importlib.import_module("jax").devices())
    facts = {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "devices": ", ".join(f"{count} × {kind}" for kind, count in devices.items()),
        "processors": CPU_COUNT,
        "memory": format_bytes(MEMORY_LIMIT),
    }
    width = max(map(len, facts))
    for name, fact in facts.items():
        click.echo(f"{name:<{width}}  {fact}")
