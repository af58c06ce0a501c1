"""Variants: the fits of a study, each with its options and the fits that it follows."""

from __future__ import annotations

import dataclasses
import graphlib
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from dask_nlsq._errors import NlsqError, nearest
from dask_nlsq._fit import FitOptions, to_model
from dask_nlsq._result import FitResult

Taken: TypeAlias = "str | Sequence[str] | Mapping[str, Any] | Callable[[FitResult], Mapping[str, Any]]"
"""What of an earlier result a fit takes over: see `Variant`."""

_TAKES = ("p0", "fixed", "bounds")

_BY_NAME = ("p0", "bounds", "fixed", "tied", "prior")
"""Options that may speak of parameters by name."""

_NOT_HERE = ("checkpoint", "resume", "callback", "progress", "client", "cache_dir", "shared")
"""Options of `fit` that belong to a study as a whole, or to none of its fits."""

OPTIONS = tuple(
    each.name for each in dataclasses.fields(FitOptions) if each.init and each.name not in (*_NOT_HERE, "configured")
)
"""Options of `fit` that a variant may have."""


@dataclasses.dataclass(frozen=True)
class Variant:
    """One fit of a study.

    Parameters
    ----------
    options : mapping
        Arguments of `fit`, among them ``model``; those that all fits share are given to `study`.
    labels : mapping of str, optional
        Where it stands in a grid: the label of each axis.
    after : str, sequence of str or mapping, optional
        The variants that it follows, and what it takes of the result of each: ``"p0"``, the estimates as starting
        values, which is meant by a name alone; ``"fixed"``, all of them; or a mapping of ``{"p0": names, "fixed":
        names, "bounds": k}``, where names are those of parameters, or None for all, and bounds lie k standard errors on
        either side of the estimate; or a function that returns options, given the result.
    resources : mapping, optional
        What each task needs of the resources that Dask's workers declare, such as ``{"GPU": 1}``.
    priority : int
        Of its tasks, as Dask's: the higher, the earlier.

    Examples
    --------
    >>> from dask_nlsq import Variant
    >>> Variant({"model": "a*exp(-b*t) + c"}, after={"decay": {"p0": None, "bounds": 5}}).follows
    ('decay',)
    """

    options: Mapping[str, Any]
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    after: str | Sequence[str] | Mapping[str, Taken] = ()
    resources: Mapping[str, float] = dataclasses.field(default_factory=dict)
    priority: int = 0

    @property
    def follows(self) -> tuple[str, ...]:
        """Names of the variants that must have ended before."""
        if not isinstance(self.after, (str, Iterable)):
            raise NlsqError(f"after is {self.after!r}; a name, several, or a mapping from names is needed.")
        return (self.after,) if isinstance(self.after, str) else tuple(self.after)

    def taken(self) -> dict[str, Taken]:
        """Return what it takes of each variant that it follows."""
        return dict(self.after) if isinstance(self.after, Mapping) else dict.fromkeys(self.follows, "p0")


def grid(**axes: Sequence[Any] | Mapping[str, Any]) -> dict[str, Variant]:
    """Return a variant for each combination of values of options of `fit`.

    Parameters
    ----------
    **axes : sequence or mapping
        Values of each option; a mapping has their labels. A model or function is called by its name otherwise, and
        anything else by how it is written. A model may come with options of its own, as ``{"model": function, "x":
        ["t", "z"]}``.

    Returns
    -------
    dict
        Variants by name: their labels, with ", " between them.

    Raises
    ------
    NlsqError
        An axis is no option of a variant, is empty, or has two values of one label.

    Examples
    --------
    >>> import dask_nlsq
    >>> list(dask_nlsq.grid(model={"decay": "a*exp(-b*t)", "line": "a + b*t"}, loss=["linear", "huber"]))
    ['decay, linear', 'decay, huber', 'line, linear', 'line, huber']
    """
    labelled = {name: _labelled(name, values) for name, values in axes.items()}
    variants = {}
    for combination in itertools.product(*(axis.items() for axis in labelled.values())):
        labels = dict(zip(labelled, (label for label, _ in combination), strict=True))
        options: dict[str, Any] = {}
        for name, (_, value) in zip(labelled, combination, strict=True):
            # A model may bring options of its own, such as its columns.
            own = value if name == "model" and isinstance(value, Mapping) else {name: value}
            _check_options(f"the model {labels.get('model')!r}", own)
            options |= own
        if (label := ", ".join(labels.values())) in variants:
            raise NlsqError(f"Two variants would be called {label!r}: give labels without commas.")
        variants[label] = Variant(options, labels)
    return variants


def _labelled(name: str, values: object) -> dict[str, Any]:
    """Return the values of an axis by label."""
    if name not in OPTIONS:
        raise NlsqError(f"{name!r} is no option of a variant.{nearest(name, OPTIONS) or ' help(fit) lists them.'}")
    if isinstance(values, Mapping):
        labelled = {str(label): value for label, value in values.items()}
        count = len(values)
    elif isinstance(values, Iterable) and not isinstance(values, str):
        each = list(values)
        labelled, count = {_label(value): value for value in each}, len(each)
    else:
        raise NlsqError(f"{name} is {values!r}; a list of values, or a mapping from labels to values, is needed.")
    if not labelled:
        raise NlsqError(f"The axis {name} has no values.")
    if name in ("p0", "prior", "tied") and isinstance(values, Mapping) and not any(map(_is_group, labelled.values())):
        raise NlsqError(
            f"{name} is {values!r}; an axis is a list of such mappings, or a mapping from labels to them. What is the "
            "same for all is given to the study."
        )
    if any("\n" in label for label in labelled):
        raise NlsqError(f"A value of {name} has no label of one line: give a mapping from labels to values.")
    if len(labelled) < count:
        raise NlsqError(f"Two values of {name} have the same label: give a mapping from labels to values.")
    return labelled


def _is_group(value: object) -> bool:
    return value is None or (not isinstance(value, str) and hasattr(value, "__len__"))


def _label(value: object) -> str:
    name = getattr(value, "name", None) or getattr(value, "__name__", None)
    return name if isinstance(name, str) else str(value)


def to_variants(given: Mapping[str, Variant | Mapping[str, Any]], common: Mapping[str, Any]) -> dict[str, Variant]:
    """Return variants whose options are whole: what is said of all, and what of each.

    Raises
    ------
    NlsqError
        There are none; one has an option that none can have, follows one that is not there, or itself.
    """
    if not isinstance(given, Mapping) or not given:
        raise NlsqError(
            f"The variants are {given!r}; a mapping from names to options of fit is needed, as grid() returns it."
        )
    _check_options("a study", common)
    variants = {str(name): _variant(str(name), each) for name, each in given.items()}
    if len(variants) < len(given):
        raise NlsqError(f"Two variants have the same name as text: {sorted(map(str, given))}.")
    for name, variant in variants.items():
        _check_options(f"the variant {name!r}", variant.options)
        for other in variant.follows:
            if other not in variants:
                raise NlsqError(
                    f"The variant {name!r} follows {other!r}, which is no variant.{nearest(other, variants)}"
                )
        for other, taken in variant.taken().items():
            _check_taken(name, other, taken)
    try:
        graphlib.TopologicalSorter({n: v.follows for n, v in variants.items()}).prepare()
    except graphlib.CycleError as error:
        raise NlsqError(f"Variants follow one another in a circle: {' → '.join(error.args[1])}.") from error
    whole = {name: dataclasses.replace(v, options=_whole(v, common)) for name, v in variants.items()}
    lacking = [name for name, variant in whole.items() if variant.options.get("model") is None]
    if lacking:
        raise NlsqError(f"The variant {lacking[0]!r} has no model; give model= to it or to the study.")
    for option in _BY_NAME:
        named = common.get(option)
        models = [to_model(v.options["model"], v.options.get("p0")).parameters for v in whole.values()]
        if isinstance(named, Mapping) and (none := [n for n in named if not any(n in names for names in models)]):
            raise NlsqError(f"{option}= names {none}, which no model has.")
    return whole


def _whole(variant: Variant, common: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a variant with those of all; of what is said by name of many, that which its model has."""
    options = {**common, **variant.options}
    shared = [name for name in _BY_NAME if name in variant.labels or name not in variant.options]
    if any(isinstance(options.get(name), Mapping) for name in shared) and options.get("model") is not None:
        names = to_model(options["model"], options.get("p0")).parameters
        for option in shared:
            if isinstance(of_all := options.get(option), Mapping):
                options[option] = {name: value for name, value in of_all.items() if name in names}
    return options


def _variant(name: str, given: object) -> Variant:
    """Return a variant from a model, or a mapping of options, in which after, resources and priority may stand too."""
    if isinstance(given, Variant):
        return given
    if isinstance(given, str) or callable(given):
        return Variant({"model": given})
    if not isinstance(given, Mapping):
        raise NlsqError(
            f"The variant {name!r} is a {type(given).__name__}; a model or a mapping of options of fit is needed."
        )
    own = {key: given[key] for key in ("labels", "after", "resources", "priority") if key in given}
    return Variant({str(key): value for key, value in given.items() if key not in own}, **own)


def _check_options(whose: str, options: Mapping[str, Any]) -> None:
    for name in options:
        if name in _NOT_HERE:
            raise NlsqError(f"{name}= is no option of {whose}: a study has one for all of its fits, or none.")
        if name not in OPTIONS:
            remedy = nearest(name, OPTIONS) or " help(fit) lists those that there are."
            raise NlsqError(f"{name!r} is no option of fit, for {whose}.{remedy}")


def _check_taken(name: str, other: str, taken: Taken) -> None:
    parts = (taken,) if isinstance(taken, str) else taken
    if callable(parts):
        return
    if unknown := [part for part in parts if part not in _TAKES]:
        raise NlsqError(f"The variant {name!r} takes {unknown} of {other!r}; {', '.join(_TAKES)} can be taken.")


def options_after(variant: Variant, results: Mapping[str, FitResult]) -> dict[str, Any]:
    """Return the options of a variant, with what it takes of the results that it follows."""
    options = dict(variant.options)
    for other, taken in variant.taken().items():
        result = results[other]
        if callable(taken):
            if not isinstance(computed := taken(result), Mapping):
                raise NlsqError(f"The function that takes over from {other!r} has returned {computed!r}, no options.")
            _check_options(f"what is taken over from {other!r}", computed)
            options |= computed
            continue
        names = to_model(options["model"], options.get("p0")).parameters
        parts: Mapping[str, Any] = (
            taken if isinstance(taken, Mapping) else dict.fromkeys((taken,) if isinstance(taken, str) else taken)
        )
        for part, how in parts.items():
            options[part] = _merged(options.get(part), _take(part, how, result, names, other))
        if "p0" in parts and isinstance(options.get("bounds"), Mapping):
            options["p0"] = _within(options["bounds"], options["p0"])
    return options


def _within(bounds: Mapping[str, Any], start: Mapping[str, float]) -> dict[str, float]:
    """Return starting values, with those that lie beyond a bound moved to it."""
    return {name: float(np.clip(value, *bounds[name])) if name in bounds else value for name, value in start.items()}


def _take(part: str, how: Any, result: FitResult, names: Sequence[str], other: str) -> dict[str, Any]:
    """Return starting values, fixed values or bounds from a result."""
    estimates = result.params.to_dict()
    errors = result.stderr.to_dict()
    listed = (how,) if isinstance(how, str) else how
    if part != "bounds" and not isinstance(listed, (Sequence, type(None))):
        raise NlsqError(f"{part} to be taken from {other!r} is {how!r}; names of parameters are needed.")
    chosen = [name for name in names if name in estimates] if part == "bounds" or how is None else list(listed)
    if unknown := [name for name in chosen if name not in estimates or name not in names]:
        raise NlsqError(f"{unknown} are to be taken from {other!r} and are no parameters of both models.")
    if not chosen:
        raise NlsqError(f"Nothing can be taken from {other!r}: the models have no parameter in common.")
    if part != "bounds":
        return {name: estimates[name] for name in chosen}
    if not isinstance(how, (Mapping, int, float, type(None))) or isinstance(how, bool):
        raise NlsqError(f"bounds to be taken from {other!r} are {how!r}; a number of standard errors is needed.")
    widths = how if isinstance(how, Mapping) else dict.fromkeys(chosen, 5.0 if how is None else float(how))
    return {
        name: (estimates[name] - k * errors[name], estimates[name] + k * errors[name])
        for name, k in widths.items()
        if 0 < errors[name] < float("inf")
    }


def _merged(given: Any, taken: Mapping[str, Any]) -> Any:
    """Return what was taken, below what was given by name."""
    if given is None:
        return dict(taken)
    if not isinstance(given, Mapping):
        raise NlsqError(f"{given!r} stands beside what is taken of another result; a mapping from names is needed.")
    return {**taken, **given}
