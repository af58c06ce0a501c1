"""Versions: whether a worker computes what its driver would, to the bit."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import sys
from collections.abc import Mapping

from dask_nlsq._errors import SweepError

Versions = tuple[tuple[str, str], ...]
"""Names and versions of what the answer depends on."""

_PACKAGES = ("jax", "jaxlib", "numpy")
"""Other minor versions of these may give other bits."""


@functools.cache
def own() -> Versions:
    """Return the versions of this process, without importing what they are of."""
    minor = [(name, _minor(name)) for name in _PACKAGES]
    python = ".".join(map(str, sys.version_info[:2]))
    return (("Python", python), *minor, ("dask_nlsq", _package()))


def _minor(name: str) -> str:
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "none"
    return ".".join(version.split(".")[:2])


def _package() -> str:
    """Return the version of this package, as it says itself: an installation may be older than its source."""
    return str(sys.modules["dask_nlsq"].__version__)


def survey() -> tuple[str | None, Versions]:
    """Return what a driver wants to know of a worker: the threads that XLA is limited to, and its versions."""
    return os.environ.get("PJRT_NPROC"), own()


def difference(versions: Versions, where: str, driver: Versions | None = None) -> SweepError | None:
    """Return the error of a worker whose versions are not those of the driver."""
    here = dict(own() if driver is None else driver)
    unlike = [(name, version) for name, version in versions if here.get(name) != version]
    if not unlike:
        return None
    seen = ", ".join(f"{name} {version}" for name, version in unlike)
    needed = ", ".join(f"{name} {here.get(name, 'none')}" for name, _ in unlike)
    return SweepError(
        f"{where} has {seen}, and the driver {needed}: the answer could be another. Start workers from the "
        "environment of the driver, or the driver from theirs."
    )


def check_survey(answers: Mapping[str, object]) -> None:
    """Refuse workers, by address, that cannot say their versions or have others than this process.

    Raises
    ------
    SweepError
        The first such worker, with its versions and those of this process.
    """
    for address, answer in answers.items():
        if isinstance(answer, Exception):
            raise SweepError(
                f"The worker {address} cannot run tasks of dask_nlsq {_package()} "
                f"({type(answer).__name__}: {answer}). Install it there, as on the driver."
            ) from answer
        assert isinstance(answer, tuple)
        if (error := difference(answer[1], f"The worker {address}")) is not None:
            raise error


def here() -> str:
    """Return what to call the worker that runs this task."""
    from distributed import get_worker

    try:
        return f"The worker {get_worker().address}"
    except ValueError:
        return f"A worker on {platform.node()}"
