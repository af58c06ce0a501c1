"""Why a fit cannot begin at a start where the model is not finite, with the rows that stand in its way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dask_nlsq._errors import ModelError
from dask_nlsq._fit.problem import Problem
from dask_nlsq._kernel import Fault, merge_faults
from dask_nlsq._model import Objective
from dask_nlsq._sweep import Failure, find_faults
from dask_nlsq._typing import Vector


def not_finite(problem: Problem, theta: Vector) -> ModelError:
    """Return the error of a start `theta` (p,) that is not finite, after one more look at the rows."""
    names, origins = problem.parameters.free, problem.source.info.origins
    return explain(problem.objective, names, theta, _find_faults(problem, theta), origins)


def describe_not_finite(problem: Problem, theta: Vector) -> str:
    """Return a sentence that names the rows in which the model is not finite at `theta` (p,)."""
    start, faults = _as_mapping(problem.parameters.free, theta), _find_faults(problem, theta)
    if not faults:
        return f"{_subject(problem.objective)} is not finite at the start p0={start}."
    return _say(problem.objective, problem.parameters.free, faults[0], start, "partition")


def _find_faults(problem: Problem, theta: Vector) -> list[Fault]:
    faults: list[Fault] = []
    for _, answer in problem.executor.run(find_faults, problem.groups, problem.payload, theta):
        faults += [] if isinstance(answer, Failure) else answer
    return merge_faults(faults)


def _as_mapping(names: Sequence[str], theta: Vector) -> dict[str, float]:
    return dict(zip(names, theta.tolist(), strict=True))


def _subject(objective: Objective) -> str:
    return f"The model{', the loss' * callable(objective.loss)} or its derivative"


def explain(
    objective: Objective,
    names: Sequence[str],
    theta: Vector,
    faults: Sequence[Fault],
    origins: Mapping[str, Any] | None = None,
    part: str = "partition",
) -> ModelError:
    """Return the error of a start `theta` (p,) with these faults.

    Parameters
    ----------
    origins : mapping
        Columns that hold dates, and the instant from which the model counts seconds.
    part : str
        What a partition is called.
    """
    start = _as_mapping(names, theta)
    if not faults:
        sentences = [
            f"{_subject(objective)} is not finite at the start p0={start}, although the data are. Start elsewhere "
            "with p0=, or keep the model away from such values with bounds=."
        ]
    else:
        sentences = [_say(objective, names, fault, start, part) for fault in faults]
        sentences.append(
            "Start elsewhere with p0=, or keep the model away from such values with bounds=. Where no start helps, "
            'leave such rows out of the data, or write the model so that it has a value there: nan_policy="omit" drops '
            "rows whose data are not finite, and not these."
        )
    if (reason := getattr(objective.model.func, "not_finite", None)) is not None:
        sentences.insert(0, reason)
    sentences += [
        f"Column {name!r} holds dates, which the model saw as seconds since {instant}: what counts in days, as a start "
        "or a bound, has to be converted, with 86400 seconds a day."
        for name, instant in (origins or {}).items()
    ]
    return ModelError(" ".join(sentences))


def _say(objective: Objective, names: Sequence[str], fault: Fault, start: Mapping[str, float], part: str) -> str:
    what = "The model" if fault.parameter is None else f"The derivative with respect to {names[fault.parameter]!r}"
    read = list(zip(objective.columns, fault.x, strict=False))[: objective.n_columns - objective.n_appended]
    columns = ", ".join(f"{name}={value:g}" for name, value in read)
    row = fault.row
    if objective.responses is not None:  # of which each is a row of a block
        row //= len(objective.responses)
        columns += f" and for {objective.responses.names[int(fault.x[-1])]!r}"
    settles = "differences do not settle there"
    if fault.flat:
        settles = "that does not change there: the parameter is out of its domain"
    although = "the data are" if fault.parameter is None else f"the model is, and {settles}"
    if fault.beyond:
        needed = "between 0 and 1" if objective.loss == "binomial" else "positive"
        rows = f"{fault.count:,} row{'s' * (fault.count > 1)}"
        return (
            f"The model has to be {needed} where loss={objective.loss!r}, and at the start p0={dict(start)} it is not "
            f"in {rows}; the first is row {row} of {part} {fault.partition}, where {columns} it gives "
            f"{fault.value:g}."
        )
    return (
        f"{what} is not finite at the start p0={dict(start)} in {fault.count:,} row{'s' * (fault.count > 1)}, although "
        f"{although}; the first is row {row} of {part} {fault.partition}, where {columns} "
        f"{f'the model gives {fault.value:g}' if fault.parameter is None else f'it is {fault.value:g}'}."
    )
