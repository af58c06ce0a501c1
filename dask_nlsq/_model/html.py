"""HTML of a model, as a notebook shows it."""

from __future__ import annotations

from dask_nlsq._display import Fragment, Part, Table
from dask_nlsq._model.expression import Expression
from dask_nlsq._model.parametric_function import ParametricFunction


def fragment_of(model: ParametricFunction) -> Fragment:
    """Return the formula, the columns, and the parameters with their starts."""
    columns = tuple(model.columns) or model.inputs
    parts: list[Part] = []
    if isinstance(model.func, Expression) and model.func.text != model.name:
        parts.append(f"Formula: {model.func.text}")
    if columns:
        parts.append(f"Column{'s' * (len(columns) > 1)}: {', '.join(columns)}")
    else:
        parts.append("Which names are columns is left to the data.")
    otherwise = "" if model.guess_func is None else "guessed from the data"
    rows = [(name, model.defaults.get(name, otherwise)) for name in model.parameters]
    header = ("parameter" if columns else "parameter or column", "start")
    return Fragment(model.name, [*parts, Table(rows, header, align="lr")])
