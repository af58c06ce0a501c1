"""fit_many: from arrays of many series to lazy arrays of estimates."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import dask
import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.delayed import Delayed, delayed

from dask_nlsq._errors import BoundsError, DataError, ModelError, NlsqError, check_keywords
from dask_nlsq._fit import to_model
from dask_nlsq._many.labels import Labels, labelled
from dask_nlsq._many.neighbours import refit_from_neighbours
from dask_nlsq._many.result import ManyFits
from dask_nlsq._many.shared import Chunks, Reduced, Rows, estimate
from dask_nlsq._many.task import Task, as_float, make_task
from dask_nlsq._model import Loss, Model
from dask_nlsq._result import computing
from dask_nlsq._sweep import Payload, serialize
from dask_nlsq._system import check_not_forked
from dask_nlsq._typing import AnyArray, Matrix

if TYPE_CHECKING:
    from distributed import Client

_CHUNK_BYTES = 2**23
"""Bytes of a chunk of series that is cut here: a tenth of a second's work, and little beside what a worker holds."""


@check_keywords
def fit_many(
    model: Callable[..., Any] | Model | str,
    x: Any,
    y: Any,
    *,
    axis: int | str = -1,
    sigma: Any = None,
    p0: Any = None,
    bounds: Any = None,
    fixed: Any = None,
    tied: Mapping[str, str] | None = None,
    loss: Loss = "linear",
    f_scale: float = 1.0,
    nan_policy: str = "omit",
    absolute_sigma: bool = False,
    shared: str | Sequence[str] | None = None,
    covariance: bool = False,
    max_nfev: int = 200,
    start: str = "given",
    client: Client | None = None,
    progress: bool | None = None,
) -> ManyFits:
    r"""Fit a model to every series along an axis of an array, each by itself.

    For every series s minimises
    :math:`\tfrac12 \sum_i \left(\frac{f(x_i; \theta_s) - y_{si}}{\sigma_i}\right)^2`. Series are fitted side by side in
    one compiled loop, chunk by chunk; nothing is read before the result is computed.

    Parameters
    ----------
    model : callable, Model or str
        As in `fit`: a formula, the name of one of `dask_nlsq.models`, a Model, or a function ``f(x, *parameters)`` in
        ``jax.numpy``.
    x : array, tuple or mapping of arrays, or str
        Of shape (points,), which all series share, or of the shape of `y`; a tuple of such columns where the model
        takes several, or a mapping from names, of which each goes to the argument that bears it. With a DataArray as
        `y`, the name of a coordinate, or None for that of the axis.
    y : Dask, NumPy, Zarr or xarray array
        The series. Where their axis is cut into chunks, it is rechunked.
    axis : int or str
        Along which a series lies; the name of a dimension with xarray.
    sigma : number or array, optional
        Standard deviation of y: one for all, of shape (points,), or of the shape of `y`. ``inf`` gives a point no
        weight.
    p0 : mapping, sequence or ManyFits, optional
        Starting values; each a number, or an array of the outer shape (that of `y` without the axis). NaN in such an
        array, and what is not given, comes from the model's guess for each series, else from the defaults in the
        signature, else it is 1. A guess that raises, as it may for a series of a few points, counts as none.
    bounds : tuple or mapping, optional
        ``(lower, upper)`` or ``{name: (lower, upper)}``; each a number or an array of the outer shape.
    fixed : mapping or sequence of str, optional
        ``{name: value}``, a number or an array of the outer shape; or names to be fixed at their start.
    tied : mapping, optional
        ``{name: "expression of other parameters"}``.
    loss, f_scale
        As in `fit`.
    nan_policy : {"omit", "raise"}
        What to do with points that are not finite: leave them out of their series, or raise when the result is
        computed.
    absolute_sigma : bool
        Whether `sigma` is in units of y; else the covariance of each series is scaled by its reduced chi-square.
    shared : str or sequence of str, optional
        Parameters that are common to all series; the others belong to each. They are estimated when this is called, in
        about ten passes over the data, and `ManyFits.shared` has what is known of them.
    covariance : bool
        Whether to keep the covariance of every series besides the standard errors.
    max_nfev : int
        Most evaluations of a series in one attempt.
    start : {"given", "neighbours"}
        Where series start that fail from what `p0` says: nowhere else, or at the mean of the estimates of those beside
        them, diagonally too, that have converged. The latter goes on for three rounds, in which estimates spread over
        as many pixels; a series that fails in all of them keeps its first status.
    client : distributed.Client, optional
        Who computes, where the result's methods are not told otherwise; by default whom Dask itself would take.
    progress : bool, optional
        Show a progress bar while the result is computed; by default on a terminal and in a notebook.

    Returns
    -------
    ManyFits
        Lazy arrays of parameters, standard errors, cost and status, chunked like `y`.

    Raises
    ------
    ModelError
        The model cannot be traced by JAX, or has more than 16 free parameters.
    DataError
        Shapes do not fit together; with ``nan_policy="raise"``, when the result is computed, a point is not finite.
    BoundsError
        A lower bound lies above its upper bound.

    Notes
    -----
    Levenberg-Marquardt on the normal equations of each series, and a last step and covariance from an orthogonal
    factorisation. A series that does not converge is fitted once more with the parameters in which the model is linear
    projected out (`Golub & Pereyra <https://doi.org/10.1137/0710036>`_). A series that fails is NaN, and its status
    says why; no series depends on another, nor on how the array is cut into chunks, to the bit.

    With `shared`, the sum of squares of all series is minimised. For each trial of the shared parameters every series
    is fitted by itself, and its own parameters are eliminated from the normal equations (their Schur complement), so
    that these have the size of the shared ones however many series there are. The covariance is that of the whole fit.

    Examples
    --------
    >>> import numpy as np, jax.numpy as jnp, dask_nlsq
    >>> t = np.linspace(0, 4, 20)
    >>> rates = np.array([[0.5, 1.0], [1.5, 2.0]])
    >>> image = 3.0 * np.exp(-rates[..., None] * t)
    >>> def decay(t, amplitude, rate):
    ...     return amplitude * jnp.exp(-rate * t)
    >>> result = dask_nlsq.fit_many(decay, t, image).compute()
    >>> result["rate"].round(6).tolist()
    [[0.5, 1.0], [1.5, 2.0]]
    """
    check_not_forked()
    if start not in ("given", "neighbours"):
        raise NlsqError(f'start is {start!r}; "given" or "neighbours" is needed.')
    named = tuple(x) if isinstance(x, Mapping) else None
    x = tuple(x.values()) if isinstance(x, Mapping) else x
    labels, x, y, sigma, axis = labelled(x, y, sigma, axis)
    series = _series(y, axis)
    several = isinstance(x, (tuple, list)) and (not len(x) or any(np.ndim(c) for c in x))
    columns = [_column(c, series, axis, f"x[{i}]", labels.dims) for i, c in enumerate(x if several else [x])]
    model = to_model(model, p0)
    bound = model.bind(model.array_names(len(columns), p0) if named is None else named)
    outer = series.shape[:-1]
    split = functools.partial(_split, bound, labels, outer)
    starts, shared_start = split(_mapping(bound, p0, "p0"), "p0")
    fixed_values, shared_fixed = split(_fixed(fixed), "fixed")
    lower, upper, shared_bounds = limits(split, bounds)
    names = fixed if isinstance(fixed, (str, list, tuple)) else shared_fixed
    weights = None if sigma is None else _column(sigma, series, axis, "sigma", labels.dims)
    given = {f"x{i}": c for i, c in enumerate(columns)} if any(c.ndim > 1 for c in columns) else {}
    given = {name: da.broadcast_to(c, series.shape) if c.ndim == 1 else c for name, c in given.items()}
    if weights is not None and weights.ndim > 1:
        given["sigma"] = weights
    if isinstance(p0, ManyFits):
        common = {shared} if isinstance(shared, str) else set(shared or ())
        known = {} if p0.shared is None else p0.shared.params.to_dict()
        shared_start |= {name: value for name, value in known.items() if name in common}
        without = {*shared_fixed, *(tied or {}), *(name for name in common if name in known)}
        starts = {name: values for name, values in starts.items() if name not in without}
    for name, values in fixed_values.items():
        # A series that has no value for it is not fitted: at infinity its model is not finite.
        starts[name] = lower[name] = upper[name] = da.where(da.isnan(da.asarray(values)), np.inf, values)
    task = make_task(
        bound,
        columns=None if "x0" in given else [np.asarray(c) for c in columns],
        sigma=None if weights is None or weights.ndim > 1 else np.asarray(weights),
        p0=shared_start,
        bounds=shared_bounds,
        fixed=names,
        tied=tied,
        loss=loss,
        f_scale=f_scale,
        absolute_sigma=absolute_sigma,
        nan_policy=nan_policy,
        covariance=covariance,
        max_nfev=max_nfev,
        shared=shared,
    )
    roles = {"start": starts, "lower": lower, "upper": upper}
    varying = [name for name in task.free[task.n_own :] if any(name in values for values in roles.values())]
    if isinstance(p0, ManyFits):  # each is fitted by itself from there, and their mean is the start
        task = dataclasses.replace(task, guessed=(*task.guessed, *(name for name in varying if name in starts)))
        varying = [name for name in varying if name in lower or name in upper]
    if varying:
        raise DataError(f"{varying} are shared by all series, and have values of each in p0, bounds or fixed.")
    given |= {role: _stack(task.free, values, series) for role, values in roles.items() if values}
    shared_fit = None
    if task.n_shared:
        if start == "neighbours":
            raise NlsqError('start="neighbours" fits each series by itself, and shared= all of them together.')
        present = [role for role in roles if role in given]
        with computing(client, progress):  # else they would be computed in each pass
            given |= dict(zip(present, dask.persist(*(given[role] for role in present)), strict=True))
        estimates, shared_fit, states = estimate(task, _chunks(series, given, client, progress))
        task, given["start"] = dataclasses.replace(task, shared=estimates), _last_thetas(series, states, task)
    payload = serialize(task)
    figures = _lazy(payload, series, given)
    if start == "neighbours" and outer and series.size:
        figures = refit_from_neighbours(payload, series, given, figures)
    return ManyFits(
        shared=shared_fit,
        names=bound.parameters,
        figures=figures,
        has_covariance=covariance,
        labels=labels,
        payload=payload,
        x=tuple(columns),
        y=series,
        client=client,
        progress=progress,
    )


def _series(y: Any, axis: int) -> da.Array:
    """Return y as a Dask array with its series along the last axis, in one chunk each."""
    if isinstance(y, da.Array):
        array = y
    elif hasattr(y, "chunks") and hasattr(y, "store"):
        array = da.from_zarr(y)
    else:
        array = da.from_array(np.asanyarray(y), chunks=-1, name=False)
    if array.dtype.kind not in "fiub":
        raise DataError(f"y has the dtype {array.dtype}; real numbers are needed.")
    if not isinstance(axis, (int, np.integer)) or array.ndim == 0 or not -array.ndim <= axis < array.ndim:
        raise DataError(f"axis is {axis}, and y has {array.ndim} dimensions.")
    array = da.moveaxis(array, axis, -1)
    if array.shape[-1] == 0:
        raise DataError("The series have no points.")
    wanted: dict[int, Any] = {array.ndim - 1: -1}
    limit = _CHUNK_BYTES * array.dtype.itemsize // 8
    joined = math.prod(array.chunksize[:-1]) * array.shape[-1] * array.dtype.itemsize > limit
    if array.ndim > 1 and (not isinstance(y, da.Array) or (array.numblocks[-1] > 1 and joined)):
        # Chunks across which series lie would be joined to ones that are too large.
        wanted |= dict.fromkeys(range(array.ndim - 1), "auto")
    cut: da.Array = array.rechunk(wanted, block_size_limit=limit)
    return cut


def _as_array(column: Any, name: str) -> AnyArray:
    try:
        return np.asarray(column, float)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} is {column!r}; numbers are needed.") from error


def _other_axis(series: da.Array, axis: int, points: int, dims: tuple[str, ...]) -> str:
    """Return in words along which axes of y, which had its series along `axis`, there are so many points."""
    others = [i for i in range(series.ndim) if i != axis % series.ndim]
    fitting = [i for i, size in enumerate(series.shape[:-1]) if size == points]
    if not fitting:
        return ""
    said = " or ".join(repr(dims[i]) if dims else f"axis={others[i]}" for i in fitting)
    return f" Along {said} of y there are {points}: give that, if series lie there."


def _column(column: Any, series: da.Array, axis: int, name: str, dims: tuple[str, ...] = ()) -> Any:
    """Return a column that all series share, as an array (points,), or one of the shape of y, with its chunks."""
    points = series.shape[-1]
    if not hasattr(column, "ndim"):
        column = _as_array(column, name)
    if column.ndim == 0:
        column = np.full(points, float(column))
    if column.ndim == 1:
        values = np.asanyarray(column.compute() if isinstance(column, da.Array) else column)
        if values.dtype.kind not in "fiubmM":
            raise DataError(f"{name} has the dtype {values.dtype}; real numbers are needed.")
        values = as_float(values)
        if values.shape != (points,):
            raise DataError(
                f"{name} has {len(values)} values, and each series has {points} points."
                f"{_other_axis(series, axis, len(values), dims)}"
            )
        return values
    array = column if isinstance(column, da.Array) else da.asarray(column)
    if array.dtype.kind not in "fiubmM":
        raise DataError(f"{name} has the dtype {array.dtype}; real numbers are needed.")
    array = da.moveaxis(array, axis, -1) if array.ndim == series.ndim else array
    if array.shape != series.shape:
        raise DataError(
            f"{name} has the shape {tuple(column.shape)}; that of y is needed, or ({points},), a value for each point."
        )
    return array.rechunk(series.chunks)


def _mapping(model: Model, p0: Any, what: str) -> dict[str, Any]:
    """Return values by name, from a mapping, a sequence in the order of the parameters, or fits."""
    if p0 is None:
        return {}
    if isinstance(p0, ManyFits):
        return dict(p0.params)
    if isinstance(p0, Mapping):
        return dict(p0)
    values = list(getattr(p0, "params", p0))
    if len(values) != len(model.parameters):
        raise ModelError(f"{what} has {len(values)} values; the parameters are {list(model.parameters)}.")
    return dict(zip(model.parameters, values, strict=True))


def _fixed(fixed: Any) -> dict[str, Any]:
    return dict(fixed) if isinstance(fixed, Mapping) else {}


def _split(
    model: Model, labels: Labels, outer: tuple[int, ...], values: Mapping[str, Any], what: str
) -> tuple[dict[str, Any], dict[str, float]]:
    """Tell values that each series has of its own from numbers that all share."""
    unknown = [name for name in values if name not in model.parameters]
    if unknown:
        raise ModelError(f"{what} names {unknown}; the parameters are {list(model.parameters)}.")
    own = {name: labels.align(v, f"{what} of {name!r}") for name, v in values.items() if np.ndim(v) > 0}
    for name, value in own.items():
        if tuple(np.shape(value)) != outer:
            raise DataError(
                f"{what} of {name!r} has the shape {np.shape(value)}; a number or the shape {outer} is needed."
            )
    return own, {name: value for name, value in values.items() if name not in own}


def limits(
    split: Callable[[Mapping[str, Any], str], tuple[dict[str, Any], dict[str, float]]], bounds: Any
) -> tuple[dict[str, Any], dict[str, Any], Any]:
    """Return the lower and upper bounds that each series has of its own, and those that all share."""
    if not isinstance(bounds, Mapping):
        return {}, {}, bounds
    for name, pair in bounds.items():
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise BoundsError(f"The bounds of {name!r} are {pair!r}; a pair (lower, upper) is needed.")
    lower, low = split({name: pair[0] for name, pair in bounds.items()}, "bounds")
    upper, high = split({name: pair[1] for name, pair in bounds.items()}, "bounds")
    shared = {name: (low.get(name, -np.inf), high.get(name, np.inf)) for name in bounds}
    return lower, upper, shared


def _stack(free: Sequence[str], own: Mapping[str, Any], series: da.Array) -> da.Array:
    """Return values (*outer, p) of the free parameters, NaN where all series share one."""
    outer = series.shape[:-1]
    missing = [name for name in own if name not in free]
    if missing:
        raise ModelError(f"{missing} are fixed or tied for all series; leave them out of p0 and bounds.")
    columns = [da.asarray(own[name]) if name in own else da.full(outer, np.nan) for name in free]
    stacked: da.Array = da.stack(columns, axis=-1).rechunk((*series.chunks[:-1], (len(free),)))
    return stacked


def _chunks(series: da.Array, given: Mapping[str, da.Array], client: Client | None, progress: bool | None) -> Chunks:
    """Return the series in their chunks, each to be taken by itself."""
    arrays = [array.to_delayed().ravel() for array in (series, *given.values())]
    rows = [delayed(_chunk)(tuple(given), *blocks) for blocks in zip(*arrays, strict=True)]
    return Chunks(rows, functools.partial(computing, client, progress))


def _chunk(names: Sequence[str], *arrays: AnyArray) -> list[Rows]:
    y, *given = (as_float(array).reshape(-1, array.shape[-1]) for array in arrays)
    return [(y, dict(zip(names, given, strict=True)))]


def _last_thetas(series: da.Array, states: Sequence[Delayed], task: Task) -> da.Array:
    """Return the last parameters of the series of each chunk, (*outer, p)."""
    blocks = np.empty((*series.numblocks[:-1], 1), object)  # `block` joins the last axis first
    for place, state in zip(np.ndindex(blocks.shape), states, strict=True):
        size = [chunks[i] for chunks, i in zip(series.chunks[:-1], place, strict=False)]
        shape = (*size, len(task.free))
        blocks[place] = da.from_delayed(delayed(_thetas_of)(state, shape), shape, np.float64)
    whole: da.Array = da.block(blocks.tolist())
    return whole


def _thetas_of(state: Reduced, shape: tuple[int, ...]) -> AnyArray:
    ((series_state,), _) = state
    return series_state.theta.reshape(shape)


def _lazy(payload: Payload, series: da.Array, given: Mapping[str, da.Array]) -> da.Array:
    """Return the rows of figures, (*outer, width), as a Dask array in chunks like those of the series."""
    outer = tuple(range(series.ndim - 1))
    points, parameters, figures = range(series.ndim, series.ndim + 3)  # axes of one chunk each
    arguments: list[Any] = [series, (*outer, points)]
    for name, array in given.items():
        arguments += [array, (*outer, parameters if name in ("start", "lower", "upper") else points)]
    lazy: da.Array = da.blockwise(
        _compute,
        (*outer, figures),
        *arguments,
        payload=payload,
        names=tuple(given),
        new_axes={figures: payload.value.width},
        concatenate=True,
        dtype=np.float64,
        meta=np.empty((0,) * series.ndim),
        align_arrays=False,
    )
    return lazy


def _compute(y: AnyArray, *arrays: AnyArray, payload: Payload, names: Sequence[str]) -> AnyArray:
    """Fit the series of one chunk."""
    outer = y.shape[:-1]

    def rows(array: AnyArray) -> Matrix:
        return as_float(array).reshape(math.prod(outer), array.shape[-1])

    figures: npt.NDArray[np.float64] = payload.value(rows(y), {n: rows(a) for n, a in zip(names, arrays, strict=True)})
    return figures.reshape(*outer, figures.shape[-1])
