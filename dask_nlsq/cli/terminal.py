"""Terminal: how commands read what is typed, and say what went wrong."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator
from typing import Any

import click

from dask_nlsq._errors import NlsqError

NOT_CONVERGED = 3
"""Exit status of a fit that no test of convergence ended, and of many of which none converged."""

as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def mapping(_: click.Context, __: click.Parameter, text: str | None) -> dict[str, Any] | None:
    """Read an option that is JSON."""
    try:
        options = None if text is None else json.loads(text)
    except json.JSONDecodeError as error:
        raise click.BadParameter(f"{text!r} is not JSON: {error}.") from error
    if options is not None and not isinstance(options, dict):
        raise click.BadParameter(f'{text!r} is not a JSON object such as {{"anon": true}}.')
    return options


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Say warnings, and errors that a user can mend, on stderr without source lines."""
    with warnings.catch_warnings():
        # The context puts the function back as well.
        warnings.showwarning = _say
        try:
            yield
        except (NlsqError, OSError, ImportError) as error:  # files, schedulers; packages that fsspec misses
            raise click.ClickException(str(error)) from error


def _say(message: Warning | str, *_: Any, **__: Any) -> None:
    click.echo(f"Warning: {message}", err=True)
