"""Problem: a fit with every argument resolved; here arguments become one, and its rows are laid out."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dask
import dask.multiprocessing
import dask.threaded
import distributed
import numpy as np
from dask.base import named_schedulers

from dask_nlsq._errors import DataError, DifferencesWarning, ModelError, NlsqError, warn
from dask_nlsq._fit.options import FitOptions
from dask_nlsq._fit.responses import Given, given_responses
from dask_nlsq._kernel import PER_THREAD, SLABS, Block, Reduction, Request, lay, validate
from dask_nlsq._model import COUNTS, ErrorInX, Model, Objective, Parameters, columns_beside, named
from dask_nlsq._plan import Plan, WorkflowTier
from dask_nlsq._sources import (
    Columns,
    Grouping,
    Source,
    as_stored,
    check_known,
    check_travels,
    columns_of,
    count_absent,
    hdf5,
    is_hdf5,
    is_zarr,
    lazy,
    locate,
    make_independent,
    once,
    open_source,
)
from dask_nlsq._sweep import (
    Cluster,
    Executor,
    Failure,
    Group,
    PartitionDigests,
    Payload,
    Serial,
    Threads,
    group,
    serialize,
    sweep_each,
)
from dask_nlsq._system import check_not_forked
from dask_nlsq._typing import Vector


@dataclasses.dataclass(frozen=True)
class Resolved:
    """A fit whose arguments are resolved, and whose rows are not read yet."""

    source: Source
    columns: Columns
    model: Model  # bound to its columns, with its guess
    objective: Objective
    parameters: Parameters
    executor: Executor
    as_read: Source | None = None  # the rows as they are read, where those of `source` are combined inside their groups


@dataclasses.dataclass(frozen=True)
class Problem:
    """A fit whose rows are at hand, in groups of partitions, read or not."""

    source: Source
    columns: Columns
    objective: Objective
    payload: Payload
    parameters: Parameters
    executor: Executor
    groups: Sequence[Any]
    plan: Plan
    reader: Executor  # who reads the partitions, where that is not who reduces them
    digests: PartitionDigests = dataclasses.field(default_factory=PartitionDigests)
    progress: bool | None = None  # whether a bar is wanted, also of later passes
    clustered: bool = False  # whether the covariance is that of groups
    as_read: Source | None = None  # the rows as they are read, where those of `source` are combined inside their groups

    def uncorrelated(self) -> Problem:
        """Return the problem that takes each row for itself, as what its residual says is asked for."""
        if self.as_read is None:
            return self
        objective = self.objective.uncorrelated()
        objective = dataclasses.replace(objective, weighted=self.columns.weight is not None)
        return dataclasses.replace(
            self, source=self.as_read, objective=objective, payload=serialize(objective), as_read=None
        )

    def sweep(self, requests: Sequence[Request], **options: Any) -> list[Reduction]:
        """Reduce every partition for each request, in one pass over the data."""
        return sweep_each(self.executor, self.groups, self.payload, requests, digests=self.digests, **options)

    def in_memory(self, *blocks: Block) -> Problem:
        """Return the same fit to the rows of some blocks alone, in this process."""
        groups = [Group(0, blocks)]
        return dataclasses.replace(self, executor=Serial(), groups=groups, digests=PartitionDigests())


def resolve(options: FitOptions) -> Resolved:
    """Resolve the arguments of a fit; of the data, only what describes them is read."""
    check_not_forked()
    data, columns, bound = assign_roles(options)
    if options.correlation is not None:
        columns = dataclasses.replace(columns, correlation=(options.correlation.kind, options.correlation.rho))
    parameters, objective = resolve_objective(bound, columns, options)
    columns = _of_complex(columns, objective)
    if options.correlation is not None and options.correlation.kind == "exchangeable":
        _check_differentiable(objective)
    source = open_source(data, columns, options.filters, options.storage_options, options.version)
    source = count_absent(source, _laid_out(options.x, options.y, options.sigma))
    warn_of_namesakes(bound, source)
    as_read, correlation = None, options.correlation
    if correlation is not None and columns.n_responses > 1:
        raise NlsqError(f"correlation={correlation.kind!r} does not go with several responses, or complex ones.")
    if objective.correlation is not None:
        as_read, beside = source, objective.n_appended + (columns.weight is None)
        source = make_independent(source, grouping(columns), correlation.whitenings, beside)
    if options.missing_chunks == "raise" and source.info.absent:
        raise DataError(f"{'; '.join(source.info.absent.values())}.", column=next(iter(source.info.absent)))
    if not source.partitions:
        raise DataError("There are no rows to fit.")
    executor = Serial() if options.client is False else choose_executor(options.client, len(source.partitions))
    payload = serialize(objective)
    if executor.remote:
        payload.bytes()  # refused here, by name, rather than by the scheduler
        check_travels(source)
    return Resolved(source, columns, bound, payload.value, parameters, executor, as_read)


def _check_differentiable(objective: Objective) -> None:
    """Refuse differences where the derivative of the mean of a group is taken."""
    if objective.jacobian == "numeric":
        raise ModelError(
            f"The model {objective.model.name!r} is differentiated by differences; correlation='exchangeable' needs "
            "one that JAX differentiates."
        )


def grouping(columns: Columns) -> Grouping:
    """Return where columns lie that correlation needs."""
    return Grouping(len(columns.x), None if columns.groups is None else len(columns.inputs) - 1)


def _laid_out(x: object, y: object, sigma: object) -> dict[str, Any]:
    """Return the Zarr arrays of several dimensions, of which columns were made before the source was opened."""
    each: dict[str, Any] = {}
    for role, given in {"x": x, "y": y, "sigma": sigma}.items():
        if isinstance(given, (list, tuple)) and len(given) <= 100:
            each |= {f"{role}[{i}]": a for i, a in enumerate(given)}
        else:
            each[role] = given
    return {name: a for name, a in each.items() if is_zarr(a) and getattr(a, "ndim", 0) > 1}


def resolve_objective(model: Model, columns: Columns, options: FitOptions) -> tuple[Parameters, Objective]:
    """Return the parameters of a bound model, and what is to be evaluated of them, looked at before any data."""
    given = options.bounds, options.fixed, options.tied, options.prior
    parameters = Parameters.of(model, options.p0, *given)
    whitened = options.correlation is not None and options.correlation.whitenings is not None
    beside = columns_beside(options.correlation.kind, columns.x, parameters.free) if whitened else ()
    objective = Objective(
        # Only this process guesses, so that the guess of a model need not be one that can be sent.
        dataclasses.replace(model, guess_func=None),
        (*columns.inputs, *columns.appended, *beside, columns.y),
        columns.weight is not None or whitened,
        jac=options.jac if callable(options.jac) else None,
        loss=options.loss,
        f_scale=options.f_scale,
        sandwich=options.cov_type == "sandwich",
        expansion=parameters.expansion,
        errors=_errors_in_x(columns),
        responses=columns.several,
        correlation=options.correlation.kind if whitened else None,
    )
    return parameters, _checked_objective(serialize(objective).value, parameters.start, options.jac)


def _of_complex(columns: Columns, objective: Objective) -> Columns:
    """Return the columns of a model that returns complex numbers, of which y is one, or its parts are two."""
    if objective.responses is None:
        return columns
    if objective.jac is not None:
        raise NlsqError("jac= is a function, and the model returns several numbers a row, or complex ones: omit it.")
    if columns.n_responses > 1:
        return dataclasses.replace(columns, together=columns.together or objective.responses.is_complex)
    if columns.counts or columns.sigma_x:
        raise NlsqError(f"The model {objective.model.name!r} is complex; counts and errors in x need a real one.")
    return dataclasses.replace(columns, is_complex=True, together=True)


def _checked_objective(objective: Objective, start: Vector, jac: object) -> Objective:
    """Check the model before any data are read, and say how its Jacobian will be formed."""
    if not callable(jac) and jac not in (None, "jax", "2-point", "3-point"):
        raise ModelError(f'jac is {jac!r}; "jax", "2-point", "3-point" or a function is needed.')
    objective, obstacle, single, traceable = validate.check(objective, start)
    name = objective.model.name
    if single:
        warn(
            f"The model {name!r} holds float32 constants ({_listed(single)}): jax.numpy made them before the fit "
            "turned float64 on, and what float32 rounds off is lost. Make them with NumPy, or inside the model."
        )
    if obstacle is None:
        return (
            objective if jac in (None, "jax") or callable(jac) else dataclasses.replace(objective, jacobian="numeric")
        )
    message = f"The model {name!r} {obstacle}"
    if not traceable:
        message += (
            ". Write it with jax.numpy: jnp.exp for np.exp, jnp.where(condition, a, b) for an if on a parameter or a "
            "column"
        )
    if jac == "jax":
        raise ModelError(f'{message}. jac="3-point" differentiates it by differences.')
    if jac is None:
        advice = 'It is differentiated by differences, slowly; jac="3-point" asks for them without a word.'
        warn(f"{message}. {advice}", DifferencesWarning)
    return objective


def _listed(texts: Sequence[str]) -> str:
    more = f" and {len(texts) - 3} more" if len(texts) > 3 else ""
    return ", ".join(texts[:3]) + more


def to_model(model: object, p0: object = None) -> Model:
    """Return a model from a function, a model, its name or a formula; p0 counts the parameters of ``*theta``."""
    if isinstance(model, str):
        model = named(model)
    if isinstance(model, Model):
        return model
    if not callable(model):
        raise ModelError(
            f"model is a {type(model).__name__}; a function f(x, *parameters), a Model, a name or a formula is needed."
        )
    values: Any = getattr(p0, "popt", p0)
    n = len(p0) if isinstance(p0, Mapping) else None if p0 is None else np.size(values)
    return Model.from_function(model, n)


def assign_roles(options: FitOptions) -> tuple[Any, Columns, Model]:
    """Say which data plays which role, by name whatever the form; return data, columns and the bound model."""
    data, x, y = options.data, options.x, options.y
    role = "sigma" if options.trials is None else "trials"  # what the rows are weighted by
    sigma = options.sigma if options.trials is None else options.trials
    several = given_responses(options)
    for given in (data, x, y, sigma, options.sigma_x, options.groups):
        check_known(given)
    model, data = to_model(options.model, options.p0), once(data)
    if several is not None:
        return _assign_responses(options, several, model, data)
    sigma = resolve_sigma(sigma, named=data is not None, role=role)
    constant = sigma if isinstance(sigma, float) else None
    if data is None:
        if any(arg is None or isinstance(arg, str) for arg in (x, y)):
            raise DataError("Give x and y as arrays, or data= with x and y as the names of its columns.")
        _check_no_name(role, sigma)
        names, arrays = split(model, x, y, options.p0)
        sigma_x, beside = _resolve_sigma_x(options.sigma_x, names, named=False)
        groups = _resolve_groups(options.groups, names, beside)
        if getattr(y, "ndim", 1) > 1:
            arrays, y, sigma = columns_of([*arrays, *beside.values()], y, sigma)
        else:
            arrays = [*arrays, *beside.values()]
        # An argument of the model may have one of these names already.
        free = ("y", role) if {"y", role}.isdisjoint(names) else ("fitted y", f"{role} of y")
        data = dict(zip((*names, *beside), arrays, strict=True)) | {free[0]: y}
        if sigma is not None and constant is None:
            data[free[1]] = sigma
        y, sigma = free[0], None if sigma is None else free[1]
    else:
        y = "y" if y is None else y
        if not isinstance(y, str):
            raise DataError(f"With data=, y must be the name of a column; it is a {type(y).__name__}.")
        names = model.inputs if x is None else _column_names(x)
        if x is None and not names:  # an expression whose columns are those that the data has
            columns = _columns((), y, constant or sigma, options)
            reading = options.storage_options, options.version
            data = locate(data, *reading)  # it is opened twice
            present = open_source(data, columns, options.filters, *reading).info.present
            names = model.inputs_among(present, (y, sigma))
        sigma_x, _ = _resolve_sigma_x(options.sigma_x, names, named=True)
        groups = _resolve_groups(options.groups, names)
    bound = model.bind(names)
    sigma = constant if constant is not None else sigma
    return data, dataclasses.replace(_columns(tuple(names), y, sigma, options), sigma_x=sigma_x, groups=groups), bound


def _assign_responses(options: FitOptions, responses: Given, model: Model, data: Any) -> tuple[Any, Columns, Model]:
    """Say which data plays which role where y has several responses; return data, columns and the bound model."""
    named, x, names = data is not None, options.x, responses.names
    sigmas = [resolve_sigma(each, named) for each in responses.sigmas]
    if named:
        x_names = model.inputs if x is None else _column_names(x)
        if not x_names:
            raise DataError("An expression with several responses needs x=, the names of its columns.")
        ys = names if isinstance(options.y, (list, tuple)) else (options.y,)
        groups = _resolve_groups(options.groups, x_names)
    else:
        if x is None:
            raise DataError("Give x and y as arrays, or data= with x and y as the names of its columns.")
        first, *others = responses.arrays
        x_names, arrays = split(model, x, first, options.p0)
        ys = ("y",) if responses.is_complex else names
        ys = tuple(f"fitted {y}" if y in x_names else y for y in ys)  # an argument of the model may be called so
        beside: dict[str, Any] = dict(zip(ys[1:], others, strict=True))
        for c, sigma in enumerate(sigmas):
            _check_no_name("sigma", sigma)
            if sigma is not None and not isinstance(sigma, float):
                same = next((name for name, given in beside.items() if given is sigma), f"sigma of {names[c]}")
                beside[same], sigmas[c] = sigma, same
        groups = _resolve_groups(options.groups, (*x_names, *ys), beside)
        arrays = [*arrays, *beside.values()]
        if getattr(first, "ndim", 1) > 1:
            arrays, first, _ = columns_of(arrays, first, None)
        data = dict(zip((*x_names, *beside, ys[0]), [*arrays, first], strict=True))
    columns = Columns(
        tuple(x_names),
        ys[0],
        None if not sigmas else sigmas[0] if len(set(sigmas)) == 1 else tuple(sigmas),
        options.nan_policy,
        responses=ys if len(ys) > 1 else (),
        is_complex=responses.is_complex,
        covariance=responses.covariance,
        together=responses.is_complex or bool(responses.covariance),
        groups=groups,
    )
    return data, columns, model.bind(x_names)


def _check_no_name(role: str, given: object) -> None:
    """Refuse the name of a column beside arrays, which have none."""
    if isinstance(given, str):
        raise DataError(
            f"{role} is the name {given!r}, and x and y are arrays: give an array or a number, or the data as data=."
        )


def _errors_in_x(columns: Columns) -> tuple[ErrorInX, ...]:
    """Return which of the columns have errors."""
    return tuple(
        ErrorInX(place, columns.inputs.index(sigma) if isinstance(sigma, str) else sigma)
        for place, sigma in enumerate(columns.sigma_x)
        if sigma is not None
    )


def _resolve_sigma_x(
    sigma_x: Any, names: Sequence[str], named: bool
) -> tuple[tuple[str | float | None, ...], dict[str, Any]]:
    """Return the standard deviation of each x, a number, a name or None, and arrays under the names they get."""
    if sigma_x is None:
        return (), {}
    if isinstance(sigma_x, Mapping):
        unknown = [name for name in sigma_x if name not in names]
        if unknown:
            raise DataError(f"sigma_x has {unknown}; the columns of x are {list(names)}.")
        each = [sigma_x.get(name) for name in names]
    elif isinstance(sigma_x, (list, tuple)) and (named or len(names) > 1 or len(sigma_x) == 1):
        each = list(sigma_x)
    elif len(names) > 1 and not isinstance(sigma_x, numbers.Real):
        raise DataError(
            f"sigma_x is {_seen(sigma_x)}, and there are {len(names)} columns of x: give a number for all, a sequence, "
            f"or a mapping from their names {list(names)}."
        )
    else:
        each = [sigma_x] * len(names)
    if len(each) != len(names):
        raise DataError(f"sigma_x has {len(each)} entries, and there are {len(names)} columns of x: {list(names)}.")
    found, arrays = [], {}
    for name, given in zip(names, each, strict=True):
        sigma = resolve_sigma(given, named, "sigma_x")
        if isinstance(sigma, float) and not np.isfinite(sigma):
            raise DataError(f"sigma_x is {sigma}; it must be finite.")
        if not named and sigma is not None and not isinstance(sigma, float):
            _check_no_name("sigma_x", sigma)
            arrays[f"sigma of {name}"], sigma = sigma, f"sigma of {name}"
        found.append(sigma)
    if all(sigma is None for sigma in found):
        raise DataError("sigma_x names no column that has errors; leave it out.")
    return tuple(found), arrays


def _resolve_groups(groups: Any, names: Sequence[str], beside: dict[str, Any] | None = None) -> str | None:
    """Return the name of the column of groups; an array is put `beside` x and y, where these are arrays."""
    if groups is None:
        return None
    if beside is None:
        if not isinstance(groups, str):
            raise DataError(
                f"With data=, groups must be the name of a column; it is {_seen(groups)}. Add it to the data."
            )
        return groups
    _check_no_name("groups", groups)
    if not np.ndim(groups):
        raise DataError(f"groups is {groups!r:.80}; the group of each row is needed, as an array.")
    name = "groups" if "groups" not in names else "groups of rows"
    beside[name] = groups
    return name


def _columns(x: tuple[str, ...], y: str, weight: str | float | None, options: FitOptions) -> Columns:
    """Return the columns, of which `weight` is sigma, or the trials of counts."""
    if options.loss in COUNTS:
        return Columns(x, y, None, options.nan_policy, counts=True, trials=weight)
    return Columns(x, y, weight, options.nan_policy)


def _column_names(x: object) -> tuple[Any, ...]:
    """Return the names that x= gives with data=."""
    if isinstance(x, str):
        return (x,)
    if isinstance(x, Iterable) and not hasattr(x, "__dask_graph__") and getattr(x, "ndim", 1) == 1:
        names = tuple(x)
        if all(isinstance(name, (str, int)) for name in names):
            return names
    raise DataError(f"With data=, x must be the name of a column or a list of names; it is {_seen(x)}.")


def resolve_sigma(sigma: object, named: bool, role: str = "sigma") -> Any:
    """Return a number as a float, and all else as it is; where columns are `named`, that must be a name or None."""
    if getattr(sigma, "ndim", None) == 0 and hasattr(sigma, "item"):
        sigma = sigma.item()
    if isinstance(sigma, numbers.Real):
        constant = float(sigma)
        if not constant > 0:
            raise DataError(f"{role} is {constant}; it must be positive.")
        return constant
    if named and not isinstance(sigma, (str, type(None))):
        raise DataError(
            f"With data=, {role} must be the name of a column or a number; it is {_seen(sigma)}. Add it to the data as "
            "a column, and give its name."
        )
    return sigma


def _seen(value: object) -> str:
    """Say what an argument is, and its shape where it has one."""
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}{'' if shape is None else f' of shape {shape}'}"


def warn_of_namesakes(model: Model, source: Source) -> None:
    """Say where a column of the data bears the name of a parameter, which is fitted all the same."""
    for name in model.parameters:
        if name in source.info.present and name not in source.info.columns:
            warn(
                f"The data has a column {name!r}, and the model a parameter of that name: the parameter is fitted, "
                f"and the column is not read. To use the column, add {name!r} to x=.",
            )


def split(model: Model, x: Any, y: Any, p0: object = None) -> tuple[tuple[str, ...], Sequence[Any]]:
    """Return names and columns of an x given as arrays, which stand beside y."""
    if isinstance(x, Mapping):
        return tuple(x), list(x.values())
    if hasattr(x, "columns") and x.ndim == 2:
        raise DataError(f"x is a {type(x).__name__}; give data=frame, and the names of its columns as x= and y=.")
    if isinstance(x, (tuple, list)) and x and getattr(x[0], "ndim", 0) >= 1:
        arrays = list(x)
    elif getattr(y, "ndim", 1) > 1:  # x may be a stack of arrays as y is, or one that is repeated to y
        arrays = list(x) if getattr(x, "ndim", 1) == y.ndim + 1 and x.shape[1:] == y.shape else [x]
    elif getattr(x, "ndim", 1) == 2:
        rows = y.shape[0] if getattr(y, "ndim", 0) else len(y) if isinstance(y, Sequence) else None
        if x.shape[0] == rows != x.shape[1]:
            raise DataError(f"x has shape {x.shape}, and y {rows} rows; (columns, rows) is needed: give x.T.")
        if is_zarr(x):  # of which a row would be read whole, here and now
            x = lazy(as_stored("x", x))
        elif is_hdf5(x):
            x = lazy(hdf5.as_stored("x", x))
        arrays = [x[i] for i in range(x.shape[0])]
    else:
        arrays = [x]
    return model.array_names(len(arrays), p0), arrays


def choose_executor(client: distributed.Client | None, partitions: int) -> Executor:
    """Return who runs the tasks: a client that was given, else whom Dask itself would take.

    That is its setting `scheduler`, then the cluster of the task that this is, the open client, threads.
    """
    named = dask.config.get("scheduler", None) if client is None else None
    if named is not None and (local := local_executor(named)) is not None:
        return local
    if client is None:
        try:
            # Inside a task this is the client of its worker, whose cluster runs the fit as well.
            client = _client_of(named) or distributed.get_client()
        except ValueError:  # no client is open
            return Threads() if partitions > 1 else Serial()
    if client.asynchronous:
        raise NlsqError("The client is asynchronous, and fit waits for its answers: use a synchronous Client.")
    executor = Cluster(client)
    if (remedy := executor.check_workers()) is not None:
        warn(remedy)
    return executor


def local_executor(scheduler: object) -> Executor | None:
    """Return who stands in this process for a scheduler of Dask, or None for one of a cluster.

    Raises
    ------
    NlsqError
        It is no scheduler.
    """
    if isinstance(scheduler, concurrent.futures.ThreadPoolExecutor):
        return Threads(pool=scheduler)
    if isinstance(scheduler, concurrent.futures.Executor):
        return _no_processes()
    if _client_of(scheduler) is not None:
        return None
    if isinstance(scheduler, str) and scheduler.lower() in ("distributed", "dask.distributed"):
        return None
    # Dask's names of schedulers stand for functions that compute graphs, and one may be given itself.
    get = named_schedulers.get(scheduler.lower()) if isinstance(scheduler, str) else scheduler
    if get is dask.multiprocessing.get:
        return _no_processes()
    if get is dask.threaded.get:
        return Threads()
    if callable(get):
        return Serial(alone=True)
    raise NlsqError(
        f"The scheduler of Dask's configuration is {scheduler!r}; one of {', '.join(sorted(named_schedulers))}, "
        '"distributed", a Client or a ThreadPoolExecutor is needed.'
    )


def _no_processes() -> Executor:
    warn(
        "A fit has no processes of its own, so that the scheduler of Dask's configuration runs in this thread. For "
        "several processes open a Client: Client(dask_nlsq.local_cluster(plan))."
    )
    return Serial(alone=True)


def _client_of(scheduler: object) -> distributed.Client | None:
    """Return the client that a scheduler is, or whose method that computes graphs it is."""
    owner = getattr(scheduler, "__self__", scheduler)
    return owner if isinstance(owner, distributed.Client) else None


def executor_of(plan: Plan, executor: Executor) -> Executor:
    """Return the executor that runs as many tasks at a time as the plan says, and where it says."""
    if executor.remote and plan.tier is not WorkflowTier.STANDARD:
        limited = plan.at_a_time < plan.inputs.threads
        return executor.limited(plan.at_a_time) if limited else executor
    if executor.serial or plan.inputs.partitions == 1:
        return executor if executor.serial else executor.here(threads=False)
    return executor.here(threads=True) if executor.remote else executor.limited(plan.at_a_time)


def arrange(source: Source, executor: Executor, plan: Plan) -> Sequence[Any]:
    """Cut the partitions into groups, and read them where the plan keeps them.

    Under STANDARD they are gathered in this process, whoever reads them. Few rows that are in memory already are copied
    to where the kernel takes them as they are, lest each sweep does so.
    """
    check_not_forked()
    inputs = plan.inputs
    # Partitions of an unknown size may be large: each is a group by itself then.
    nbytes = float("inf") if inputs.nbytes is None or source.shared else inputs.nbytes
    embedded = isinstance(source.partitions[0], Block)
    here = executor_of(plan, executor)
    if embedded and plan.cache != "none" and not here.remote and _few(source.partitions):
        return [Group(0, tuple(lay(source.partitions)))]
    stays = here.remote and plan.cache != "none"  # on its worker: more tasks would even nothing out
    each = (here.workers, 1) if stays else (executor.workers, PER_THREAD)
    groups: Sequence[Any] = group(source.partitions, nbytes, *each)
    if here.remote or not executor.remote:
        if plan.cache == "none" or (embedded and not here.remote):
            groups = [dataclasses.replace(g, ahead=plan.ahead) for g in groups]
            return groups if embedded else here.describe(groups)
        return here.hold(groups, source.shared)
    if embedded:
        return group(source.partitions, nbytes, here.workers)
    groups = executor.hold(groups, shared=True) if source.shared else groups
    # Groups come as they are read; the tree of reductions goes by their places.
    read = sorted(executor.run(Group.load, groups), key=lambda loaded: loaded[0])
    for _, loaded in read:
        if isinstance(loaded, Failure):
            raise loaded.error()
    return group([block for _, part in read for block in part.partitions], nbytes, here.workers)


def _few(blocks: Sequence[Block]) -> bool:
    """Whether these are rows of which a slab holds all."""
    return len(blocks) == 1 and 0 < blocks[0].rows <= SLABS[1]
