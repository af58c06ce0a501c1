"""Study: what many fits came to, as a table, and the fits themselves."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
import numpy as np
import pandas as pd
from dask.utils import format_bytes, format_time

from dask_nlsq._display import Fold, Fragment, Table, axes, page
from dask_nlsq._errors import CheckpointError, NlsqError, nearest, warn
from dask_nlsq._fit import stored_result
from dask_nlsq._result import Comparison, FitResult, columns_of, comparable, compare, rounded
from dask_nlsq._study import artifacts
from dask_nlsq._study.log import as_frame, read_log
from dask_nlsq._study.run import Outcome
from dask_nlsq._study.variants import Variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STUDIES = "nlsq-studies"

_STATISTICS = ("n_obs", "chisqr", "redchi", "aic", "aicc", "bic")

_DELTAS = ("delta_aic", "delta_aicc", "delta_bic", "weight")

_COLUMNS = ("n_parameters", *_STATISTICS, *_DELTAS, "set", "status", "sweeps", "seconds", "cached", "error")

_SHOWN = 8
"""Parameters up to which a notebook shows the estimates."""


def place_of(cache_dir: str, name: str) -> str:
    """Return where the table and the log of a study are kept."""
    return f"{cache_dir.rstrip('/')}/{_STUDIES}/{name}"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Study(Mapping[str, FitResult]):
    """The results of many fits, by the names of their variants; `study` returns one.

    A mapping of those that have a result: ``study["line"]`` is a `FitResult`. `table` has a row for each variant,
    `errors` says why others have none.

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> t = np.linspace(0, 4, 50)
    >>> study = dask_nlsq.study(dask_nlsq.grid(model=["a + b*t", "a + b*t + c*t**2"]), t, 1 + t**2)
    >>> study["a + b*t + c*t**2"].params["c"].round(6)
    np.float64(1.0)
    >>> list(study), dict(study.errors)
    (['a + b*t', 'a + b*t + c*t**2'], {})
    """

    variants: Mapping[str, Variant]
    outcomes: Mapping[str, Outcome]
    name: str = "study"
    cache_dir: str | None = None
    lines: Sequence[Mapping[str, Any]] = ()
    known: Mapping[str, artifacts.Artifact] = dataclasses.field(default_factory=lambda: artifacts.BUILT_IN)

    def __getitem__(self, name: str) -> FitResult:
        if name in self.outcomes and (result := self.outcomes[name].result) is not None:
            return result
        if name in self.outcomes:
            raise KeyError(f"The variant {name!r} has no result: {self.outcomes[name].error}")
        raise KeyError(f"There is no variant {name!r}.{nearest(name, self.outcomes)}")

    def __iter__(self) -> Iterator[str]:
        return (name for name, outcome in self.outcomes.items() if outcome.result is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def errors(self) -> dict[str, str]:
        """Why variants have no result, by name."""
        return {name: outcome.error for name, outcome in self.outcomes.items() if outcome.result is None}

    @functools.cached_property
    def comparisons(self) -> tuple[Comparison, ...]:
        """Comparisons by `compare` of the variants to the same rows: a set for each selection of rows, sigma and y.

        Fits with a robust loss, whose cost is no likelihood, and fits that did not converge are in none.
        """
        return tuple(
            compare(*(self[name] for name in names), names=names) for names in self._comparable if len(names) > 1
        )

    @functools.cached_property
    def _comparable(self) -> list[list[str]]:
        return comparable({name: result for name, result in self.items() if result.success})

    @property
    def f_tests(self) -> pd.DataFrame:
        """F-tests of all pairs of variants to the same rows of which one contains the other; see `compare`."""
        tests = [comparison.f_tests for comparison in self.comparisons if len(comparison.f_tests)]
        columns = ["restricted", "full", "F", "dof", "dof_full", "p_value"]
        return pd.concat(tests, ignore_index=True) if tests else pd.DataFrame(columns=columns)

    @functools.cached_property
    def table(self) -> pd.DataFrame:
        """A row for each variant, in their order.

        The labels of a grid; each parameter and its standard error, ``NAME_stderr``, with ``(parameter)`` where another
        column has that name; ``n_parameters``, ``n_obs``, ``chisqr``, ``redchi``, ``aic``, ``aicc``, ``bic``; the
        differences ``delta_aic``, ``delta_aicc`` and ``delta_bic`` from the smallest among variants to the same rows,
        which have the same number in ``set``, and the Akaike ``weight``; ``status``, ``sweeps``, ``seconds``,
        ``cached``, and ``error``.
        """
        names = list(dict.fromkeys(name for result in self.values() for name in result.names))
        axes = {label for variant in self.variants.values() for label in variant.labels}
        columns = dict(zip(names, columns_of(names, {*_COLUMNS, *axes}), strict=True))
        lines = [self._line(name, columns) for name in self.outcomes]
        table = pd.DataFrame(lines, index=pd.Index(list(self.outcomes), name="variant"))
        for number, alike in enumerate(self._comparable):
            table.loc[alike, "set"] = number
            for criterion in ("aic", "aicc", "bic"):
                table.loc[alike, f"delta_{criterion}"] = table.loc[alike, criterion] - table.loc[alike, criterion].min()
        for comparison in self.comparisons:
            table.loc[comparison.table.index, "weight"] = comparison.table["weight"]
        return table.astype({"set": "Int64"})

    def _line(self, name: str, columns: Mapping[str, str]) -> dict[str, Any]:
        outcome, labels = self.outcomes[name], self.variants[name].labels
        result = outcome.result
        line: dict[str, Any] = dict(labels)
        errors = {} if result is None else result.stderr.to_dict()
        for parameter, column in columns.items():
            line[column] = np.nan if result is None or parameter not in result else result.params[parameter]
            line[f"{column}_stderr"] = errors.get(parameter, np.nan)
        line["n_parameters"] = np.nan if result is None else result.n_obs - result.dof
        line |= {each: np.nan if result is None else getattr(result, each) for each in _STATISTICS}
        line |= dict.fromkeys(_DELTAS, np.nan)
        return line | {
            "set": np.nan,
            "status": "" if result is None else result.status.name,
            "sweeps": 0 if result is None else result.nsweeps,
            "seconds": outcome.seconds,
            "cached": outcome.cached,
            "error": outcome.error,
        }

    @property
    def metrics(self) -> pd.DataFrame:
        """What happened, a line for each event: sweeps, passes over the data, ends of fits; as in ``log.jsonl``."""
        return as_frame([dict(line) for line in self.lines])

    @property
    def passes(self) -> pd.DataFrame:
        """Passes over the data: which variants shared each, and what it took."""
        frame = as_frame([dict(line) for line in self.lines if line["event"] == "pass"])
        return frame.drop(columns="event") if len(frame) else frame

    def report(self) -> str:
        """Return the table in short as text, F-tests, and what it took."""
        lines = [self._title(), "", self._short().to_string(float_format="{:.6g}".format, na_rep="")]
        if len(self.f_tests):
            lines += ["", "F-tests of nested models", self.f_tests.to_string(float_format="{:.6g}".format)]
        lines += [""] + [f"  {what:<14}{text}" for what, text in self._took()]
        lines += [f"  {name}: {error}" for name, error in self.errors.items()]
        return "\n".join(lines)

    def _title(self) -> str:
        ended = sum(result.success for result in self.values())
        return f"Study {self.name!r}: {ended} of {len(self.outcomes)} fits converged"

    def _short(self) -> pd.DataFrame:
        table = self.table[["status", "n_parameters", "n_obs", "redchi", "set", "delta_aicc", "weight", "seconds"]]
        table = table.assign(
            status=table["status"].where(table["status"] != "", "failed"), seconds=table["seconds"].round(3)
        )
        if table["set"].dropna().nunique() <= 1:  # all are comparable
            table = table.drop(columns="set")
        return table.astype({"n_parameters": "Int64", "n_obs": "Int64"})

    def _took(self) -> list[tuple[str, str]]:
        passes = [line for line in self.lines if line["event"] == "pass" and line["what"] != "hold"]
        held = [line for line in self.lines if line["event"] == "pass" and line["what"] == "hold"]
        cached = sum(outcome.cached for outcome in self.outcomes.values())
        rows = []
        if passes:
            together = max(len(line["variants"]) for line in passes)
            rows.append(("passes", f"{len(passes)} over the data, shared by up to {together} fits"))
            read = sum(line["read_seconds"] for line in (*passes, *held))
            computed = sum(line["compute_seconds"] for line in passes)
            rows.append(("tasks", f"{format_time(read)} reading, {format_time(computed)} computing"))
            if nbytes := sum(line["bytes"] for line in (*passes, *held)):  # not known of what workers hold
                rows.append(("read", format_bytes(nbytes)))
        return rows + ([("cache", f"{cached} of {len(self.outcomes)} results were there")] if cached else [])

    def __repr__(self) -> str:
        return self.report()

    def _fragment(self) -> Fragment:
        short, parameters = self._short(), self._estimates()
        short_rows = [
            [name, *("" if value is pd.NA or value != value else value for value in row)]
            for name, row in zip(short.index, short.to_numpy(object).tolist(), strict=True)
        ]
        parts: list[Any] = [Table(short_rows, header=("variant", *short.columns), align="ll")]
        if parameters:
            parts.append(Fold("Estimates", [Table(parameters[1:], header=parameters[0])]))
        if len(self.f_tests):
            tests = self.f_tests
            parts.append(
                Fold("F-tests of nested models", [Table(tests.to_numpy(object).tolist(), header=[*map(str, tests)])])
            )
        if took := self._took():
            parts.append(Fold("What it took", [Table(took)]))
        notes = [f"{name}: {error}" for name, error in self.errors.items()]
        return Fragment(self._title(), parts, notes=notes)

    def _estimates(self) -> list[list[str]]:
        """Return the estimates with their errors, rounded; a line of names first."""
        names = list(dict.fromkeys(name for result in self.values() for name in result.names))
        if not 0 < len(names) <= _SHOWN:
            return []
        lines = [["", *names]]
        for variant, result in self.items():
            errors = result.stderr.to_dict()
            texts = {name: rounded(result.params[name], errors[name]) for name in result.names}
            lines.append([variant, *(" ± ".join(filter(None, texts.get(name, ()))) for name in names)])
        return lines

    def _repr_html_(self) -> str:
        return self._fragment().html()

    def to_html(self, path: str | os.PathLike[str] | None = None, *, plots: bool = True) -> str | None:
        """Return a page of HTML that needs no other file, or write it to a file.

        Parameters
        ----------
        path : str or path, optional
            The file, which is replaced if it exists; without one, the text is returned.
        plots : bool
            Whether plots are drawn, which needs the extra ``plot``: of the comparison, and of each parameter.
        """
        figures = self._figures() if plots and len(self) else []
        text = page(self._fragment(), figures)
        if path is None:
            return text
        Path(path).write_text(text, encoding="utf-8")
        return None

    def _figures(self) -> list[tuple[str, bytes]]:
        figures = [("Comparison", artifacts.encoded("comparison", each.plot())[1]) for each in self.comparisons]
        names = list(dict.fromkeys(name for result in self.values() for name in result.names))
        for name in names[:_SHOWN] if len(self) > 1 else ():
            figures.append((name, artifacts.encoded(name, self.plot_parameter(name))[1]))
        return figures

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw how far the AICc of each variant lies above the smallest of those to the same rows, with its weight.

        Of several sets of rows the largest set of variants is drawn; `comparisons` has all of them.

        Parameters
        ----------
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default in a new figure.

        Raises
        ------
        NlsqError
            No two variants are to the same rows, or matplotlib is not installed.
        """
        if not self.comparisons:
            raise NlsqError("No two variants that converged are to the same rows with one likelihood.")
        return max(self.comparisons, key=lambda comparison: len(comparison.table)).plot(ax)

    def plot_parameter(self, name: str, ax: Axes | None = None) -> Axes:
        """Draw the estimates of a parameter by all variants that have it, with their standard errors.

        Parameters
        ----------
        name : str
        ax : matplotlib.axes.Axes, optional
            Where to draw; by default in a new figure.

        Raises
        ------
        NlsqError
            No variant has such a parameter, or matplotlib is not installed.
        """
        having = {variant: result for variant, result in self.items() if name in result}
        if not having:
            names = {each for result in self.values() for each in result.names}
            raise NlsqError(f"No variant with a result has a parameter {name!r}.{nearest(name, names)}")
        ax = axes(ax, (6.4, 1.4 + 0.4 * len(having)))
        values = [float(result.params[name]) for result in having.values()]
        errors = [float(result.stderr[name]) for result in having.values()]
        drawn = [error if np.isfinite(error) else 0.0 for error in errors]
        ax.errorbar(values, range(len(having)), xerr=drawn, fmt="o", capsize=3)
        ax.set_yticks(range(len(having)), list(having))
        ax.set_ylim(len(having) - 0.5, -0.5)
        ax.set(xlabel=name, title=f"{name} ± standard error")
        return ax

    def record(self, name: str, function: artifacts.Artifact | None = None) -> dict[str, str]:
        """Make an artifact of each result, and keep it with its fit in the cache; return the files by variant.

        What is there already is not made again, unless a function is given.

        Parameters
        ----------
        name : str
            Of the artifact: one that the study was given, or "plot", "residuals", "history", "page", "report".
        function : callable, optional
            Makes a figure, a table, an array, text, bytes or plain values of a result.
        """
        checked = artifacts.check_artifacts({**self.known, **({name: function} if function else {})}, (name,))
        made = {}
        for variant, result in self.items():
            there = artifacts.recorded(result)
            if function is None and name in there:
                made[variant] = there[name]
                continue
            try:
                made[variant] = artifacts.record(result, name, checked[name])
            except Exception as error:  # of a function of the user's, or of a result that cannot read its data
                warn(f"The artifact {name!r} of {variant!r} could not be made: {type(error).__name__}: {error}")
        return made

    @property
    def recorded(self) -> dict[str, dict[str, str]]:
        """Files of artifacts that have been recorded, by variant and name."""
        return {variant: artifacts.recorded(result) for variant, result in self.items()} if self.cache_dir else {}

    def save(self) -> None:
        """Write down which fits in the cache belong to the study, and how each has ended."""
        if self.cache_dir is None:
            raise NlsqError("The study has no cache_dir, where its results would be kept.")
        contents = {"name": self.name, "variants": {name: self._record(name) for name in self.outcomes}}
        fs, root = fsspec.core.url_to_fs(place_of(self.cache_dir, self.name))
        fs.makedirs(root, exist_ok=True)
        with fs.transaction, fs.open(f"{root}/study.json", "w") as file:
            json.dump(contents, file, indent=1)

    def _record(self, name: str) -> dict[str, Any]:
        outcome, variant = self.outcomes[name], self.variants[name]
        cache = {} if outcome.result is None else outcome.result.provenance.get("cache", {})
        return {
            "labels": dict(variant.labels),
            "follows": list(variant.follows),
            "entry": cache.get("entry"),
            "status": None if outcome.result is None else outcome.result.status.name,
            "error": outcome.error,
            "seconds": outcome.seconds,
            "cached": outcome.cached,
        }

    @classmethod
    def load(
        cls, cache_dir: str | os.PathLike[str], name: str = "study", models: Mapping[str, Any] | None = None
    ) -> Study:
        """Return a study as it was last written down, with its results.

        Those of formulas predict by themselves; others need their function, as with `FitResult.load`.

        Parameters
        ----------
        cache_dir : str or path
            As given to `study`.
        name : str
            As given to `study`.
        models : mapping, optional
            Models of variants, by the names of these.

        Raises
        ------
        NlsqError
            There is no such study, or it was begun and has not ended; or a model is none of its variants'.
        """
        folder = os.fspath(cache_dir)
        fs, root = fsspec.core.url_to_fs(place_of(folder, name))
        if not fs.exists(f"{root}/study.json"):
            above = root.rsplit("/", 1)[0]
            there = [str(path).rsplit("/", 1)[-1] for path in fs.ls(above, detail=False)] if fs.exists(above) else []
            if fs.exists(f"{root}/log.jsonl"):
                raise NlsqError(
                    f"The study {name!r} was begun and has not ended: run it again, and what has ended is in the cache."
                )
            raise NlsqError(f"There is no study {name!r} in {folder!r}; there are {sorted(there)}.")
        with fs.open(f"{root}/study.json", "r") as file:
            contents = json.load(file)
        variants, outcomes, models = {}, {}, models or {}
        if unknown := [label for label in models if label not in contents["variants"]]:
            raise NlsqError(f"models= names {unknown}; the variants are {list(contents['variants'])}.")
        for label, each in contents["variants"].items():
            variants[label] = Variant({}, each["labels"], tuple(each["follows"]))
            outcomes[label] = _outcome(folder, each, models.get(label))
        log = Path(root) / "log.jsonl"
        lines = read_log(log) if "://" not in folder else []
        begun = max((i for i, line in enumerate(lines) if line["event"] == "begin"), default=0)
        return cls(variants, outcomes, name, folder, lines[begun:])  # those of the last run


def _outcome(folder: str, each: Mapping[str, Any], model: Any) -> Outcome:
    if each["entry"] is None:
        return Outcome(None, each["error"] or "It was not kept.", each["seconds"])
    try:
        return Outcome(stored_result(folder, each["entry"], model), "", each["seconds"], each.get("cached", False))
    except CheckpointError as error:
        return Outcome(None, str(error), each["seconds"])
