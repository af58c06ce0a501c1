"""Arguments: how what is typed becomes a model, columns, numbers and bounds."""

from __future__ import annotations

import importlib
import operator
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import click
import cloudpickle

import dask_nlsq
from dask_nlsq._errors import ModelError
from dask_nlsq.cli.terminal import mapping

T = TypeVar("T")


def load_model(text: str) -> Any:
    """Import the model that ``module:function`` names, or take one of the library, or read an expression.

    A module is looked for in the current directory first.

    Raises
    ------
    ModelError
        The text has another form, the module cannot be imported, or it has no such name.
    """
    # Every expression but a bare name has one of these signs, and no name of a module or of the library has.
    if ":" not in text and any(sign in text for sign in "+-*/("):
        return dask_nlsq.Model.from_expression(text)
    if text in dask_nlsq.models.LIBRARY:
        return dask_nlsq.models.LIBRARY[text]
    module_name, colon, name = text.partition(":")
    if not (module_name and colon and name):
        raise ModelError(
            f"The model is {text!r}; an expression is needed, such as 'a*exp(-b*t)', a name that `dask-nlsq models` "
            "lists, or module:function, such as decay:model for model in decay.py."
        )
    here = os.getcwd()
    if here not in sys.path:
        # A console script finds modules in the folder of its environment, and not in the current one.
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ModelError(
            f"The module {module_name!r} cannot be imported from {here} or the installed packages: "
            f"{type(error).__name__}: {error}"
        ) from error
    if Path(getattr(module, "__file__", None) or os.sep).is_relative_to(here):
        cloudpickle.register_pickle_by_value(module)  # workers need not find it in their own directory
    try:
        # The name may have dots, for a function that is an attribute of something else in the module.
        return operator.attrgetter(name)(module)
    except AttributeError as error:
        raise ModelError(f"The module {module_name!r} has no {name!r}; it is {module.__file__}.") from error


def _items(values: Iterable[str]) -> list[str]:
    """Split what is repeated or separated by commas."""
    return [item.strip() for value in values for item in value.split(",") if item.strip()]


def _assignments(values: Iterable[str], parse: Callable[[str], T], form: str) -> dict[str, T] | None:
    """Read ``name=value`` pairs, or None where there are none."""
    pairs = {}
    for item in _items(values):
        name, _, text = item.partition("=")
        try:
            pairs[name.strip()] = parse(text)
        except ValueError:
            raise click.BadParameter(f"{item!r} is not of the form {form}.") from None
    return pairs or None


def _interval(text: str) -> tuple[float, float]:
    low, high = (side.strip() for side in text.split(":"))
    return float(low or "-inf"), float(high or "inf")


def read_names(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> list[str] | None:
    """Read names that are repeated or separated by commas."""
    return _items(values) or None


def _p0(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, float] | None:
    return _assignments(values, float, "name=number")


def _bounds(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, tuple[float, float]] | None:
    return _assignments(values, _interval, "name=lower:upper")


def _fixed(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, float] | list[str] | None:
    names = _items(values)
    if any("=" in name for name in names):
        return _assignments(names, float, "name=number, and all are where one is")
    return names or None


def _tied(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> dict[str, str] | None:
    """Read expressions, in which a comma may separate arguments."""
    ties = {}
    for item in values:
        name, equals, text = item.partition("=")
        if not (equals and text.strip()):
            raise click.BadParameter(f"{item!r} is not of the form name=expression.")
        ties[name.strip()] = text.strip()
    return ties or None


def _correlation(_: click.Context, __: click.Parameter, text: str | None) -> str | dict[str, float] | None:
    """Read a kind of correlation, with its number where one is given."""
    return text if text is None or "=" not in text else _assignments([text], float, "KIND=RHO")


def _column_or_number(_: click.Context, __: click.Parameter, text: str | None) -> str | float | None:
    try:
        # A column whose name is a number cannot be named here: it is taken for the number.
        return text and float(text)
    except ValueError:
        return text


def _sigma_x(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, str | float | None] | list[str | float | None] | str | float | None:
    """Read one standard deviation for all columns of x, one for each in their order, or pairs name=value."""
    items = _items(values)
    if any("=" in item for item in items):
        return _assignments(
            items, lambda text: _column_or_number(context, parameter, text), "name=column or name=number"
        )
    each = [_column_or_number(context, parameter, item) for item in items]
    return each if len(each) > 1 else next(iter(each), None)


MODEL = (
    click.option(
        "--model",
        "-m",
        required=True,
        metavar="MODEL",
        help="An expression, a name of the library, or module:function.",
    ),
)
"""Which model is fitted."""

COLUMNS = (
    click.option(
        "--x",
        "-x",
        multiple=True,
        callback=read_names,
        metavar="NAMES",
        help="Columns of the model, repeated or separated by commas; by default its first argument, or those names of "
        "an expression that the data has.",
    ),
    click.option("--y", "-y", metavar="NAME", help='Column that is fitted; by default "y".'),
)
"""Which columns of a table are fitted."""

VALUES = (
    click.option("--sigma", callback=_column_or_number, metavar="NAME|NUMBER", help="Standard deviation of y."),
    click.option("--absolute-sigma", is_flag=True, help="sigma is in units of y, not only relative."),
    click.option("--p0", multiple=True, callback=_p0, metavar="a=1,b=2", help="Starting values."),
    click.option(
        "--bounds", multiple=True, callback=_bounds, metavar="a=0:10,b=:5", help="Bounds; an empty side is open."
    ),
)
"""Weights, starts and bounds."""

ERRORS_IN_X = (
    click.option(
        "--sigma-x",
        multiple=True,
        callback=_sigma_x,
        metavar="NAME|NUMBER|x=NAME",
        help="Standard deviation of x, beside --sigma: of all columns, of each in their order, or by their names, "
        "repeated or separated by commas.",
    ),
)
"""Orthogonal distances."""

COVARIANCE = (
    click.option(
        "--cov-type",
        type=click.Choice(["standard", "sandwich", "cluster"]),
        default="standard",
        show_default=True,
        help="Covariance: of equal spread; of one that differs from row to row; of groups of rows, with --groups.",
    ),
    click.option(
        "--groups", metavar="NAME", help="Column of the group of each row, with --cov-type cluster and --correlation."
    ),
    click.option(
        "--correlation",
        metavar="KIND[=RHO]",
        callback=_correlation,
        help="Correlation of the rows of a group: ar1 or exchangeable, estimated or given.",
    ),
)
"""What standard errors take for granted."""

CONSTRAINTS = (
    click.option(
        "--fixed",
        multiple=True,
        callback=_fixed,
        metavar="a=1,b=2|NAMES",
        help="Parameters that are held, at a value or where they start.",
    ),
    click.option(
        "--tied",
        multiple=True,
        callback=_tied,
        metavar="a=EXPRESSION",
        help="A parameter that follows from others; repeated for several.",
    ),
)
"""What parameters are held to."""

LOSS = (
    click.option(
        "--loss",
        default="linear",
        show_default=True,
        metavar="NAME",
        help="Such as soft_l1, huber, cauchy or tukey; poisson, binomial, neyman and pearson for counts, of one fit.",
    ),
    click.option(
        "--f-scale",
        type=click.FloatRange(min=0, min_open=True),
        default=1.0,
        show_default=True,
        metavar="NUMBER",
        help="Residual, in units of sigma, from which a loss counts less.",
    ),
)
"""What large residuals count."""

COUNTS = (
    click.option(
        "--trials",
        callback=_column_or_number,
        metavar="NAME|NUMBER",
        help="Trials of which y counts the successes, beside --loss binomial.",
    ),
    click.option(
        "--scale",
        type=click.Choice(["pearson"]),
        help="Scale the covariance of counts by their over-dispersion, beside --loss poisson or binomial.",
    ),
)
"""Likelihoods of counts."""

STORAGE = (click.option("--storage-options", callback=mapping, metavar="JSON", help="Options of fsspec, for URLs."),)
"""How files are reached."""

SCHEDULER = (
    click.option(
        "--scheduler", metavar="ADDRESS", help="A running Dask scheduler; by default threads of this process."
    ),
)
"""Who computes."""
