r"""Joint: several data sets, each with a model of its own, fitted together, some parameters being common to them.

Each data set is fitted by itself first, which says where the joint fit begins. Then one trust region goes on with the
parameters of all of them: a sweep reduces every data set at its own ones, and the triangles R of their Jacobians,
placed in the columns of these parameters, are stacked:

.. math:: J^T J = \sum_d E_d^T R_d^T R_d E_d
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from dask_nlsq._errors import BoundsError, ModelError, NlsqError, TooFewRows
from dask_nlsq._fit.observer import SweepBegin
from dask_nlsq._fit.options import FitOptions
from dask_nlsq._fit.outcome import (
    UndeterminedWarning,
    about_data,
    all_parameters,
    build_combined,
    expand,
    reservations,
)
from dask_nlsq._fit.problem import Problem, to_model
from dask_nlsq._fit.progress import Progress
from dask_nlsq._kernel import Reduction, Request, Whitening, merge
from dask_nlsq._result import FitResult
from dask_nlsq._solver import Factor, State, TrustRegion, factorise, inference
from dask_nlsq._sweep import outside_pool
from dask_nlsq._typing import Matrix, Vector

log = logging.getLogger("dask_nlsq")

T = TypeVar("T")

_DATA = ("x", "y", "data", "sigma", "sigma_x", "trials", "filters", "storage_options", "version")
"""Arguments that belong to a data set."""

_NAMED = ("p0", "bounds", "fixed", "tied")
"""Arguments of each data set that may be given for all by the names of parameters, too."""

_REFUSED = (
    *("prior", "cov_type", "groups", "correlation", "callback", "time_limit", "tier", "goal", "workflow", "config"),
    *("precision", "n_starts", "method", "autotune", "checkpoint", "checkpoint_interval", "checkpoint_every", "resume"),
    *("compression", "keep", "strict", "cache_dir"),
)
"""Arguments that one data set takes and several do not."""


def parts(
    data_sets: Sequence[Mapping[str, Any]] | Mapping[str, Mapping[str, Any]], common: Mapping[str, Any]
) -> dict[str, FitOptions]:
    """Return the options of each data set under its key.

    Parameters
    ----------
    data_sets : sequence or mapping
        The arguments of each, by name; without names, their numbers are the keys.
    common : mapping
        Arguments of all: p0, bounds, fixed and tied by name, for the data sets whose model has the parameter.
    """
    for name in _REFUSED:
        default = next(each.default for each in dataclasses.fields(FitOptions) if each.name == name)
        if common.get(name, default) != default:
            raise NlsqError(f"{name}= is for one data set; a fit of several does not take it.")
    for name in _DATA:
        if common.get(name) is not None:
            raise NlsqError(f"{name}= belongs to a data set: give it in the mapping of each.")
    if callable(common.get("jac")):
        raise NlsqError("jac= is a function of one model: leave it out, or fit one data set.")
    named = data_sets.items() if isinstance(data_sets, Mapping) else enumerate(data_sets)
    found = {}
    for key, given in named:
        if not isinstance(given, Mapping) or "model" not in given:
            seen = f"has {sorted(map(str, given))}" if isinstance(given, Mapping) else f"is a {type(given).__name__}"
            raise NlsqError(f"Data set {key!r} {seen}; a mapping with a model and other arguments is needed.")
        unknown = [name for name in given if name not in ("model", *_DATA, *_NAMED)]
        if unknown:
            possible = ", ".join(("model", *_DATA, *_NAMED))
            raise NlsqError(f"Data set {key!r} has {unknown}; it takes {possible}. Others are for all.")
        if str(key) in found:
            raise NlsqError(f"Two data sets have the key {str(key)!r}.")
        of_all = {name: value for name, value in common.items() if name not in ("shared", *_NAMED)}
        found[str(key)] = FitOptions(**of_all | dict(given) | _by_name(given, common))
    if len(found) < 2:
        raise NlsqError("Several data sets are needed; give one as fit(model, data=…).")
    known = {name for each in found.values() for name in to_model(each.model, each.p0).parameters}
    for option in _NAMED:
        unknown = [name for name in common.get(option) or () if name not in known]
        if unknown:
            raise ModelError(f"{option}= for all data sets names {unknown}; the parameters are {sorted(known)}.")
    return found


def _by_name(given: Mapping[str, Any], common: Mapping[str, Any]) -> dict[str, Any]:
    """Return p0, bounds, fixed and tied of a data set, with what is said of its parameters for all."""
    taken = {}
    names = to_model(given["model"], given.get("p0")).parameters
    for option in _NAMED:
        of_all, own = common.get(option), given.get(option)
        if of_all is None:
            continue
        if not isinstance(of_all, Mapping):
            raise NlsqError(f"{option}= for several data sets must be a mapping from names; it is {of_all!r}.")
        if own is not None and not isinstance(own, Mapping):
            raise NlsqError(f"{option}= is given for all data sets, so that of one must be a mapping too, not {own!r}.")
        taken[option] = {name: value for name, value in of_all.items() if name in names} | dict(own or {})
    return taken


@dataclasses.dataclass(frozen=True)
class Joint:
    """Data sets that are fitted together, and where the parameters of each lie among those of all."""

    everything: tuple[str, ...]  # of all parameters: the shared ones, then those of each data set with its key
    names: tuple[str, ...]  # of the free ones among them
    labels: Mapping[str, Mapping[str, str]]  # what the parameters of each data set are called here
    problems: Mapping[str, Problem]
    places: Mapping[str, npt.NDArray[np.int64]]  # of the free parameters of each data set
    lower: Vector  # (p,)
    upper: Vector

    @classmethod
    def of(cls, problems: Mapping[str, Problem], shared: Sequence[str]) -> Joint:
        """Lay out the parameters.

        Raises
        ------
        ModelError
            A shared parameter is free in fewer than two data sets, or two parameters would have one name.
        BoundsError
            The bounds of a shared parameter leave nothing in common.
        """
        known = {name for problem in problems.values() for name in problem.parameters.names}
        for name in shared:
            if name not in known:
                raise ModelError(f"shared names {name!r}, and the parameters of the models are {sorted(known)}.")
            if sum(name in problem.parameters.free for problem in problems.values()) < 2:
                free = {key: list(problem.parameters.free) for key, problem in problems.items()}
                raise ModelError(f"{name!r} is shared, and must be free in two data sets at least; they have {free}.")
        labels = {key: _labels(key, problem, shared) for key, problem in problems.items()}
        own = [label for each in labels.values() for name, label in each.items() if label != name]
        everything = (*shared, *own)
        if len(set(everything)) < len(everything):
            raise ModelError(f"Two parameters would have one name: {sorted(everything)}. Give other keys.")
        varied = {key: [labels[key][name] for name in problem.parameters.free] for key, problem in problems.items()}
        names = tuple(label for label in everything if any(label in each for each in varied.values()))
        places = {key: np.array([names.index(label) for label in each]) for key, each in varied.items()}
        lower, upper = np.full(len(names), -np.inf), np.full(len(names), np.inf)
        for key, place in places.items():
            parameters = problems[key].parameters
            lower[place] = np.maximum(lower[place], parameters.lower)
            upper[place] = np.minimum(upper[place], parameters.upper)
        for name, low, high in zip(names, lower, upper, strict=True):
            if not low < high:
                raise BoundsError(f"The bounds of {name!r} in the data sets leave no value: [{low:g}, {high:g}].")
        return cls(everything, names, labels, problems, places, lower, upper)

    def start(self, results: Mapping[str, FitResult | None]) -> Vector:
        """Return where to begin: the minimum of the quadratic forms of all data sets at their own estimates.

        A data set that could not be fitted by itself says nothing; its parameters begin where they are told to.
        """
        p = len(self.names)
        start, known = np.zeros(p), np.zeros(p, bool)
        rows, values = [np.zeros((0, p))], [np.zeros(0)]
        for key, place in self.places.items():
            result, parameters = results[key], self.problems[key].parameters
            theta = parameters.start
            if result is not None and result.success and np.isfinite(result.stderr[list(parameters.free)]).all():
                theta = np.array([result.params[name] for name in parameters.free])
                if result.factor is not None:
                    rows.append(_spread(result.factor.r, place, p))
                    values.append(result.factor.r @ theta)
            new = ~known[place]
            start[place[new]] = theta[new]
            known[place] = True
        stacked = np.concatenate(rows)
        length = np.linalg.norm(stacked, axis=0)
        scale = np.where(length > 0, length, 1.0)
        left = np.concatenate(values) - stacked @ start
        start += np.linalg.lstsq(stacked / scale, left, rcond=1e-10)[0] / scale
        return np.clip(start, self.lower, self.upper)

    def sweep(
        self, request: Request, whitenings: Mapping[str, Whitening | None]
    ) -> tuple[dict[str, Reduction], dict[str, Whitening | None]]:
        """Reduce each data set with its own preconditioner; return those for the next sweep as well."""
        p, s = len(self.names), None if request.whitening is None else request.whitening.s
        reductions, following = {}, {}
        for key, problem in self.problems.items():
            place, whitening = self.places[key], whitenings.get(key)
            asked = Request(request.theta[place], whitening, first=request.first)
            (found,) = problem.sweep([asked])
            gram, curvature = np.full((p + 1, p + 1), np.nan), None
            following[key] = whitening
            if found.finite:
                factor = factorise(found.gram[:-1, :-1], found.gram[:-1, -1], whitening)
                following[key] = factor.whitening()
                gram = _gram(factor, place, p, s, float(found.gram[-1, -1]))
                curvature = _curvature(found, whitening, place, p, s)
            none = np.zeros(0)  # columns of data sets are not alike
            bare = dataclasses.replace(found, sums=none, checksum=none.astype(np.uint64), differences=None)
            reductions[key] = dataclasses.replace(bare, gram=gram, curvature=curvature)
        return reductions, following


def _labels(key: str, problem: Problem, shared: Sequence[str]) -> dict[str, str]:
    """Return what the parameters of a data set are called among those of all; one that it holds is its own."""
    free = problem.parameters.free
    return {name: name if name in shared and name in free else f"{name}_{key}" for name in problem.parameters.names}


def _spread(columns: Matrix, place: npt.NDArray[np.int64], p: int) -> Matrix:
    """Return columns at their places among p, (rows, p)."""
    whole = np.zeros((len(columns), p))
    whole[:, place] = columns
    return whole


def _gram(factor: Factor, place: npt.NDArray[np.int64], p: int, s: Matrix | None, corner: float) -> Matrix:
    """Return the Gram matrix (p + 1, p + 1) of a data set in the columns of all parameters, multiplied by S."""
    rows = _spread(factor.r, place, p)
    rows = rows if s is None else rows @ s
    gram = np.empty((p + 1, p + 1))
    gram[:p, :p] = rows.T @ rows
    gram[:p, p] = gram[p, :p] = rows.T @ factor.z
    gram[p, p] = corner
    return gram


def _curvature(
    reduction: Reduction, whitening: Whitening | None, place: npt.NDArray[np.int64], p: int, s: Matrix | None
) -> Matrix | None:
    """Return the curvature of a robust loss in the columns of all parameters, multiplied by S."""
    if reduction.curvature is None:
        return None
    turn = np.eye(len(place)) if whitening is None else whitening.inverse
    turn = _spread(turn, place, p)
    turn = turn if s is None else turn @ s
    curvature: Matrix = turn.T @ reduction.curvature @ turn
    return curvature


def fit_joint(
    options: Mapping[str, FitOptions],
    shared: Sequence[str],
    fit_alone: Callable[[FitOptions], FitResult],
    lay_out: Callable[[FitOptions], Problem],
) -> FitResult:
    """Fit several data sets together.

    Parameters
    ----------
    options : mapping
        Of each data set under its key.
    shared : sequence of str
        The parameters that are common to those in which they are free.
    fit_alone : callable
        Fits a data set by itself.
    lay_out : callable
        Returns a data set as it lies for sweeps.
    """
    begun = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndeterminedWarning)  # by one data set a shared parameter need not be
        results = {key: _of_data_set(key, _by_itself, each, fit_alone) for key, each in options.items()}
    joint = Joint.of({key: _of_data_set(key, lay_out, each) for key, each in options.items()}, shared)
    of_all = next(iter(options.values()))
    solver = TrustRegion(
        joint.lower,
        joint.upper,
        absolute_sigma=not of_all.residual_variance,
        ftol=of_all.ftol,
        xtol=of_all.xtol,
        gtol=of_all.gtol,
        max_nfev=of_all.max_nfev or sys.maxsize,
    )
    state, seconds, whitenings = solver.init(joint.start(results)), list[float](), dict[str, Whitening | None]()
    accepted = dict[str, Reduction]()
    with contextlib.ExitStack() as stack:
        bar = stack.enter_context(Progress(1, of_all.progress))
        stack.enter_context(outside_pool(next(iter(joint.problems.values())).reader))
        while not solver.terminate(state):
            clock = time.perf_counter()
            bar.notify(SweepBegin(f"joint sweep {state.nsweeps + 1}", state, counted=False))
            request = solver.request(state)
            reductions, whitenings = joint.sweep(request, whitenings)
            reduction = merge(list(reductions.values()))
            if state.point is None and not reduction.finite:
                begins = dict(zip(joint.names, state.trial.tolist(), strict=True))
                raise ModelError(f"A model is not finite where the joint fit begins, {begins}.")
            state = solver.step(state, reduction)
            if np.array_equal(state.at.theta, request.theta):
                accepted = reductions
            seconds.append(time.perf_counter() - clock)
    return _result(joint, solver, state, accepted, seconds, time.perf_counter() - begun)


def _of_data_set(key: str, work: Callable[..., T], *arguments: Any) -> T:
    """Do work for one data set, whose key goes into its errors."""
    try:
        return work(*arguments)
    except NlsqError as error:
        error.at(data_set=repr(key))
        raise


def _by_itself(options: FitOptions, fit_alone: Callable[[FitOptions], FitResult]) -> FitResult | None:
    """Return the fit of a data set by itself; None where it is none, as for fewer rows than parameters."""
    try:
        return fit_alone(options)
    except TooFewRows as error:
        log.info("a data set could not be fitted by itself: %s", error)
        return None


def _result(
    joint: Joint,
    solver: TrustRegion,
    state: State,
    reductions: Mapping[str, Reduction],
    seconds: list[float],
    total: float,
) -> FitResult:
    """Return the result of all data sets, with what each sees of it as its parts."""
    whole = build_combined(
        joint.names,
        solver,
        state,
        state.at.reduction,
        seconds,
        total,
        tuple(f"Data set {key!r}: {text}" for key, each in joint.problems.items() for text in about_data(each)),
        {
            "model": " + ".join(dict.fromkeys(problem.objective.model.name for problem in joint.problems.values())),
            "loss": next(iter(joint.problems.values())).objective.loss_name,
            "data": f"{len(joint.problems)} data sets",
            "partitions": sum(len(problem.source.partitions) for problem in joint.problems.values()),
        },
        counts=all(problem.objective.counts for problem in joint.problems.values()),
        errors_in_x=any(problem.objective.errors for problem in joint.problems.values()),
        several=any(problem.objective.responses is not None for problem in joint.problems.values()),
    )
    seen = {key: _part(joint, key, whole, reductions[key]) for key in joint.problems}
    return dataclasses.replace(_with_held(joint, whole), parts=seen)


def _with_held(joint: Joint, whole: FitResult) -> FitResult:
    """Return the result with the parameters that data sets hold fixed or tied too."""
    if joint.everything == joint.names:
        return whole
    values: dict[str, float] = {}
    rows: dict[str, Vector] = {}  # derivatives with respect to the free parameters, (p,) each
    fixed: dict[str, float] = {}
    tied: dict[str, str] = {}
    for key, problem in joint.problems.items():
        parameters, labels, place = problem.parameters, joint.labels[key], joint.places[key]
        everything, jacobian = all_parameters(parameters, problem.objective, whole.popt[place])
        values |= zip(labels.values(), everything.tolist(), strict=True)
        rows |= zip(labels.values(), _spread(jacobian, place, len(joint.names)), strict=True)
        fixed |= {labels[name]: value for name, value in parameters.fixed.items()}
        tied |= {labels[name]: tie.text for name, tie in parameters.tied.items()}
    sides = dict(zip(joint.names, whole.active_mask, strict=True))
    return dataclasses.replace(
        whole,
        names=joint.everything,
        popt=np.array([values[name] for name in joint.everything]),
        pcov=inference.propagate(whole.pcov, np.array([rows[name] for name in joint.everything])),
        active_mask=np.array([sides.get(name, 0) for name in joint.everything]),
        recorded={"fixed": fixed, "tied": tied},
    )


def _part(joint: Joint, key: str, whole: FitResult, reduction: Reduction) -> FitResult:
    """Return the joint estimates as a data set sees them, in the names of its model."""
    place, problem = joint.places[key], joint.problems[key]
    chisqr = "the deviance" if problem.objective.counts else "χ²"
    popt, pcov, side = expand(
        problem.parameters,
        problem.objective,
        whole.popt[place],
        whole.pcov[np.ix_(place, place)],
        whole.active_mask[place],
    )
    return dataclasses.replace(
        whole,
        names=problem.parameters.names,
        popt=popt,
        pcov=pcov,
        active_mask=side,
        notes=(
            *reservations(problem.parameters.names, side, np.zeros(len(side), bool)),
            f"These {reduction.rows:,} rows add {2 * reduction.cost:.6g} to {chisqr}; the statistics are those of all.",
        ),
        factor=None,
        payload=problem.payload,
        columns=dataclasses.replace(problem.columns, origins=problem.source.info.origins),
        provenance={**whole.provenance, "model": problem.objective.model.name},
    )
