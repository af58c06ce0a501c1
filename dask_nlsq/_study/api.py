"""study: many fits to the same data, or to parts of it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import dask

from dask_nlsq._errors import NlsqError, warn
from dask_nlsq._plan import whole
from dask_nlsq._study.artifacts import Artifact, check_artifacts
from dask_nlsq._study.log import Log
from dask_nlsq._study.progress import StudyBar
from dask_nlsq._study.result import Study, place_of
from dask_nlsq._study.run import Runner, fits_at_a_time
from dask_nlsq._study.variants import Variant, to_variants

_NAME = re.compile(r"[\w][\w .,+-]*")


def study(
    variants: Mapping[str, Variant | Mapping[str, Any]],
    x: Any = None,
    y: Any = None,
    *,
    data: Any = None,
    model: Any = None,
    cache_dir: str | os.PathLike[str] | None = None,
    name: str = "study",
    artifacts: Mapping[str, Artifact] | None = None,
    record: Sequence[str] = (),
    max_concurrent: int | None = None,
    client: Any = None,
    progress: bool | None = None,
    **options: Any,
) -> Study:
    """Fit many variants, which share the reads of the data, and return a table of what came of them.

    Each variant is a full fit, with the bits that it has alone. Those to the same rows are swept together: each
    partition is read once for all of them. A variant may follow others, and begin from their results.

    Parameters
    ----------
    variants : mapping
        By name, `Variant`, a model, or the options of `fit`, in which ``after``, ``resources`` and ``priority`` may
        stand too. `grid` returns one for each combination of values.
    x, y, data, model
        As for `fit`, of all variants that have no other.
    cache_dir : str or path, optional
        A folder or URL in which results are kept. Variants whose results are there are not fitted again: a study that
        was killed goes on where it was. By default ``nlsq.cache-dir`` of Dask's configuration.
    name : str
        Under which table and log are kept in ``cache_dir``; see `Study.load`.
    artifacts : mapping, optional
        Functions of a result, by name: they make a figure, a table, an array, text or plain values.
    record : sequence of str
        Artifacts to be made of each result, and kept with its fit in ``cache_dir``: those of `artifacts`, or "plot",
        "residuals", "history", "page", "report".
    max_concurrent : int, optional
        Variants under way at a time; by default all for which this process has memory, at most 64.
    client : distributed.Client, optional
        As for `fit`.
    progress : bool, optional
        As for `fit`.
    **options
        Further options of `fit` for all variants, such as ``sigma="error"``. Of ``p0``, ``bounds``, ``fixed``, ``tied``
        and ``prior``, given by name, each variant takes what its model has.

    Returns
    -------
    Study
        A table of results, the results by name, comparisons, plots. A variant that failed is a row with its error.

    Raises
    ------
    NlsqError
        An option does not exist, or a variant follows one that does not.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> t = np.linspace(0, 4, 50)
    >>> y = 2 * np.exp(-1.5 * t) + 0.5 + 0.01 * np.sin(40 * t)
    >>> models = {"decay": "a*exp(-b*t)", "with offset": "a*exp(-b*t) + c"}
    >>> study = dask_nlsq.study(dask_nlsq.grid(model=models), t, y)
    >>> study.table["weight"].round(3).to_dict()
    {'decay': 0.0, 'with offset': 1.0}
    >>> study["with offset"].params.round(1).to_dict()
    {'a': 2.0, 'b': 1.5, 'c': 0.5}
    """
    given = {"x": x, "y": y, "data": data, "model": model}
    common = {**{key: value for key, value in given.items() if value is not None}, **options}
    each = to_variants(variants, common)
    recorded = (record,) if isinstance(record, str) else tuple(record)
    known = check_artifacts(artifacts or {}, recorded)
    if max_concurrent is not None:
        max_concurrent = whole("max_concurrent", max_concurrent, 1)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise NlsqError(f"The name of the study is {name!r}; letters, digits, spaces and . , + - _ are possible.")
    cache_dir = cache_dir if cache_dir is not None else dask.config.get("nlsq.cache-dir", None)
    if recorded and cache_dir is None:
        raise NlsqError("record= keeps artifacts with the fits in the cache: give cache_dir= as well.")
    folder = None if cache_dir is None else os.fspath(cache_dir)
    place = None if folder is None else place_of(folder, name)
    if place is not None and "://" not in place:
        Path(place).mkdir(parents=True, exist_ok=True)
    log = Log(None if place is None or "://" in place else Path(place) / "log.jsonl")
    log.write("begin", variants=list(each))
    settings = {"client": client, "cache_dir": folder}
    with StudyBar(len(each), progress) as bar:
        try:
            most = fits_at_a_time(len(each), max_concurrent)
            outcomes = Runner(each, settings, most, log, bar.ended, bar.passed).run()
        finally:
            log.close()
    made = Study(each, outcomes, name, folder, log.lines, known)
    if folder is not None:
        made.save()
    if not len(made):
        warn(f"No variant has a result. The first failed so: {next(iter(made.errors.values()))}")
    for artifact in recorded:
        made.record(artifact)
    return made
