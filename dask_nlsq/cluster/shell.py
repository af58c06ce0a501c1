"""Shell: what a user types that a shell or a queue is going to read, checked before it does.

A command runs behind ``exec``, so it is one process: a queue's warning reaches it, and its status is that of the job.
"""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from dask_nlsq._errors import NlsqError

_HIDDEN = re.compile(r"""\\.|'[^']*'|"(?:\\.|[^"\\])*"|[$<>]\([^()]*\)|`[^`]*`""")
"""What a shell does not split a command at: quotes and substitutions."""

_JOINT = re.compile(r"^\(|^!(?=\s)|\|\||&&|;|(?<!>)\||(?<![<>])&(?!>)")
"""Where it does: subshells, negations, pipes and lists, but not redirections such as ``2>&1`` and ``&>log``."""

_ASSIGNMENT = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")


_ENVIRONMENT = re.compile(r"activate|module|conda|mamba|PATH=")
"""What a line has that may bring an environment of its own."""


def installed(typed: str | Sequence[str], setup: Sequence[str]) -> str | Sequence[str]:
    """Return a command with the full path of this environment's `dask-nlsq`, where a shell would not find that one.

    Where a line of `setup` may bring an environment, the command stays as it is.
    """
    name = "dask-nlsq"
    here, on_path = Path(sys.executable).with_name(name), shutil.which(name)
    # samefile, for the one that the shell finds may be a link to this one.
    active = not here.exists() or (on_path is not None and here.samefile(on_path))
    if active or any(_ENVIRONMENT.search(text) for text in setup):
        return typed
    if isinstance(typed, str):
        first, *rest = typed.strip().split(maxsplit=1) or [""]
        return " ".join([shlex.quote(str(here)), *rest]) if first == name else typed
    return [str(here), *typed[1:]] if typed and typed[0] == name else typed


def line(what: str, text: str) -> str:
    """Return a line as it was typed.

    Raises
    ------
    NlsqError
        It has control characters, such as the end of a line.
    """
    if not text.isprintable():
        raise NlsqError(f"{what} is {text!r}; one line without control characters is needed.")
    return text


def word(what: str, text: str | None) -> str | None:
    """Return a word for a directive, which no shell reads.

    Raises
    ------
    NlsqError
        The queue would take it for something else.
    """
    if text is None:
        return None
    line(what, text)
    if not text or text.startswith("-") or any(sign in text for sign in " '\"\\#;&|<>`"):
        raise NlsqError(f"{what} is {text!r}; a word without spaces, quotes and signs of the shell is needed.")
    return text


def command(typed: str | Sequence[str]) -> str:
    """Return a command, typed as a whole or word by word, as a shell reads it behind ``exec``.

    Raises
    ------
    NlsqError
        It is empty, has an open quote, or is not one process.
    """
    if not isinstance(typed, str):
        words, text = list(typed), shlex.join(typed)
    else:
        text = typed.strip()
        try:
            words = shlex.split(text)
        except ValueError as error:
            raise NlsqError(f"The command {typed!r} has an open quote: {error}.") from error
        if joint := _JOINT.search(_HIDDEN.sub("_", text)):
            raise NlsqError(
                f"The command {typed!r} has {joint[0]!r}; one process is needed, for only that is warned, and its "
                "status says whether the job comes back. output= takes what is printed, setup= lines that stand before."
            )
    if all(_ASSIGNMENT.match(part) for part in words):
        raise NlsqError("The command is empty; one such as 'dask-nlsq fit DATA -m MODEL --checkpoint run' is needed.")
    line("The command", text)
    # exec takes no assignments before its command.
    return f"env {text}" if _ASSIGNMENT.match(words[0]) else text
