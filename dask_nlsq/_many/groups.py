"""fit_groups: one fit for each group of the rows of a frame, and a row of the answer for each."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import dask.dataframe as dd
import numpy as np
import numpy.typing as npt
import pandas as pd
from dask.delayed import Delayed, delayed

from dask_nlsq._errors import DataError, ModelError, NlsqError, check_keywords
from dask_nlsq._fit import to_model
from dask_nlsq._many.api import limits
from dask_nlsq._many.estimates import Flags
from dask_nlsq._many.shared import Chunks, Reduced, Rows, estimate
from dask_nlsq._many.task import STATISTICS, Task, check_names, make_task
from dask_nlsq._model import Loss, Model
from dask_nlsq._result import FitResult
from dask_nlsq._solver import Status
from dask_nlsq._sweep import Payload, serialize
from dask_nlsq._system import check_not_forked
from dask_nlsq._typing import Matrix, Vector

Own: TypeAlias = Mapping[str, Mapping[str, str]]
"""By role, "start", "lower" or "upper", the column that holds a parameter's value in each group, by the parameter."""

_SHORTEST = 32
"""Points of the shortest bucket; each is four times as long as the one before, so that few loops are compiled."""


@check_keywords
def fit_groups(
    data: dd.DataFrame | pd.DataFrame,
    by: str | Sequence[str],
    model: Callable[..., Any] | Model | str,
    x: str | Sequence[str] | None = None,
    y: str = "y",
    *,
    sigma: str | float | None = None,
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
    within_partitions: bool | None = None,
    full_output: bool = False,
) -> Any:
    r"""Fit a model to every group of rows, each by itself, and return a row for each group.

    Parameters
    ----------
    data : Dask or pandas DataFrame
        The rows.
    by : str or sequence of str
        Columns whose values tell the groups apart; the name of the index counts as a column.
    model : callable, Model or str
        As in `fit`.
    x : str or sequence of str, optional
        Columns of the model; by default those that it names.
    y : str
        The column that is fitted.
    sigma : str or number, optional
        Standard deviation of y.
    p0, bounds, fixed : mapping, sequence or tuple, optional
        As in `fit_many`. A value by name is a number, which all groups share, or the name of a column that has one
        value in each group: ``p0={"rate": "rate_before"}``, ``bounds={"rate": (0, "fastest")}``,
        ``fixed={"offset": "dark"}``. Where p0 gives none, or NaN, the model guesses for each group.
    tied, loss, f_scale, nan_policy, absolute_sigma, max_nfev
        As in `fit_many`.
    shared : str or sequence of str, optional
        Parameters that are common to all groups; the others belong to each. They are estimated when this is called, in
        about ten passes over the rows. Rows that have to be shuffled stay in memory as long as the result does: of
        the workers, which may spill them to disk, or of this process. Every row of the result has their values.
    covariance : bool
        Whether the result has a column ``A_B_cov`` for each two parameters A and B, besides the standard errors.
    within_partitions : bool, optional
        Whether every group lies within one partition, as it does after ``set_index(by)`` or in files that are written
        a group each. Partitions are then fitted as they lie, and a group that is met in two of them has two rows.
        By default this holds where `by` is the index and its divisions are known; else rows are shuffled once, by
        Dask's ``dataframe.shuffle.method``: over the network with a client, and on disk without.
    full_output : bool
        With shared parameters, return also the `FitResult` of them, whose statistics are those of all groups together.

    Returns
    -------
    DataFrame, or with `full_output` a DataFrame and a FitResult
        Of Dask, lazily, where `data` is. Columns are the keys with their types, the parameters, their standard errors
        as ``NAME_stderr``, and ``cost``, ``redchi``, ``rsquared``, ``n_obs``, ``nfev`` and ``status``, which is the
        name of a `Status`. The estimates of a group that failed are NaN.

    Raises
    ------
    DataError
        A column is missing or not numeric, or a shared parameter has values of each group. When it is computed: a
        column of p0, bounds or fixed has several values in a group, or none where bounds or fixed need one; with
        ``nan_policy="raise"``, a value is not finite.
    ModelError
        As in `fit_many`.
    NlsqError
        `full_output` is True and no parameter is shared.

    Examples
    --------
    >>> import numpy as np, pandas as pd, jax.numpy as jnp, dask_nlsq
    >>> t = np.tile(np.linspace(0, 4, 20), 2)
    >>> rate = np.repeat([0.5, 2.0], 20)
    >>> frame = pd.DataFrame({"detector": np.repeat(["a", "b"], 20), "t": t, "y": 3 * np.exp(-rate * t)})
    >>> def decay(t, amplitude, rate):
    ...     return amplitude * jnp.exp(-rate * t)
    >>> frame.nlsq.fit_groups("detector", decay)[["detector", "rate"]].round(6).to_dict("list")
    {'detector': ['a', 'b'], 'rate': [0.5, 2.0]}
    """
    check_not_forked()
    if not isinstance(data, (pd.DataFrame, dd.DataFrame)):
        raise DataError(
            f"The data are a {type(data).__name__}; a pandas or Dask DataFrame is needed, as of read_parquet."
        )
    keys = [by] if isinstance(by, str) else list(by)
    model = to_model(model, p0)
    taken = (*keys, y, *([sigma] if isinstance(sigma, str) else []))
    if x is None:
        x = model.inputs or model.inputs_among(list(data.columns), taken)  # an expression names none by itself
    columns = [x] if isinstance(x, str) else list(x)
    model = model.bind(columns)
    own, p0, bounds, fixed = _of_each_group(model, p0, bounds, fixed)
    _check_columns(data, keys, columns, y, sigma, [column for values in own.values() for column in values.values()])
    task = make_task(
        model,
        None,
        sigma=None if isinstance(sigma, str) else sigma,
        p0=p0,
        bounds=bounds,
        fixed=fixed,
        tied=tied,
        loss=loss,
        f_scale=f_scale,
        absolute_sigma=absolute_sigma,
        nan_policy=nan_policy,
        max_nfev=max_nfev,
        covariance=covariance,
        shared=shared,
    )
    check_names(task.model.parameters, keys)
    _check_own(task, own)
    if full_output and not task.n_shared:
        raise NlsqError("full_output=True returns the fit of shared parameters, and shared= names none.")
    # Groups are padded with NaN, so that they see to the policy themselves.
    groups = Groups(
        serialize(dataclasses.replace(task, nan_policy="omit")),
        tuple(keys),
        tuple(columns),
        y,
        sigma if isinstance(sigma, str) else None,
        strict=nan_policy == "raise",
        own=own,
    )
    if isinstance(data, pd.DataFrame):
        if not task.n_shared:
            return groups(data)
        groups, result, (state,) = groups.with_shared([delayed(data, traverse=False)], scheduler="sync")
        fits = groups(data, state.compute(scheduler="sync"))
        return (fits, result) if full_output else fits
    rows = data
    if within_partitions is None:
        within_partitions = keys == [data.index.name] and data.known_divisions
    if any(key not in data.columns for key in keys):
        rows = rows.reset_index()
    rows = rows[list(dict.fromkeys(groups.needed))]
    if signed := [key for key in keys if rows.dtypes[key].kind == "f"]:
        rows = rows.assign(**{key: rows[key] + 0.0 for key in signed})  # -0.0 would be shuffled apart from 0.0
    if not within_partitions:
        rows = rows.shuffle(on=keys)
    meta = groups.empty(rows.dtypes)
    if task.n_shared:
        rows = rows if within_partitions else rows.persist()
        frames = rows.to_delayed()
        groups, result, states = groups.with_shared(frames)
        tables = [delayed(groups)(frame, state) for frame, state in zip(frames, states, strict=True)]
        together: dd.DataFrame = dd.from_delayed(tables, meta=meta, verify_meta=False)
        return (together, result) if full_output else together
    fitted: dd.DataFrame = rows.map_partitions(groups, meta=meta, enforce_metadata=False)
    return fitted


@dataclasses.dataclass(frozen=True)
class Groups:
    """Fits the groups that lie in a pandas frame."""

    payload: Payload  # of a Task
    keys: tuple[str, ...]
    x: tuple[str, ...]
    y: str
    sigma: str | None
    strict: bool = False  # whether a value that is not finite is refused
    own: Own = dataclasses.field(default_factory=dict)

    @property
    def needed(self) -> tuple[str, ...]:
        """The columns that are read."""
        own = (column for values in self.own.values() for column in values.values())
        return (*self.keys, *self.x, self.y, *(() if self.sigma is None else (self.sigma,)), *own)

    def __call__(self, frame: pd.DataFrame, state: Reduced | None = None) -> pd.DataFrame:
        """Return a row for each group, sorted by its keys; with shared parameters, from where the groups stand."""
        keys, places, buckets = self._arrange(frame)
        task: Task = self.payload.value
        figures = np.full((len(keys), task.width), np.nan)
        for i, (some, (y, given)) in enumerate(zip(places, buckets, strict=True)):
            figures[some] = task(y, given if state is None else {**given, "start": state[0][i].theta})
        return self._table(keys, figures)

    def rows(self, frame: pd.DataFrame) -> list[Rows]:
        """Return the groups as series, those of alike lengths together."""
        return self._arrange(frame)[2]

    def with_shared(
        self, frames: Sequence[Delayed], scheduler: str | None = None
    ) -> tuple[Groups, FitResult, list[Delayed]]:
        """Estimate what all groups share; return who fits each with that, what is known of it, and where all stand."""
        task: Task = self.payload.value
        chunks = Chunks([delayed(self.rows)(frame) for frame in frames], contextlib.nullcontext, scheduler)
        known, result, states = estimate(task, chunks)
        payload = serialize(dataclasses.replace(task, shared=known))
        return dataclasses.replace(self, payload=payload), result, states

    def _arrange(self, frame: pd.DataFrame) -> tuple[pd.DataFrame, list[npt.NDArray[np.int64]], list[Rows]]:
        """Return the keys of the groups, and in buckets of alike lengths their places and their points."""
        if any(key not in frame.columns for key in self.keys):
            frame = frame.reset_index()
        signed = [key for key in self.keys if frame.dtypes[key].kind == "f"]
        frame = frame.assign(**{key: frame[key] + 0.0 for key in signed})  # of -0.0 and 0.0, which are one group
        grouped = frame.groupby(list(self.keys), sort=True, observed=True, dropna=False)
        number = grouped.ngroup().to_numpy()
        columns = [_numbers(frame[name], name) for name in (*self.x, self.y, *([self.sigma] if self.sigma else []))]
        if self.strict:
            self._check_finite(frame, columns)
        # In this order the sums of a group do not hang on the order in which a shuffle brings its rows.
        order = np.lexsort((*columns[::-1], number))
        number, columns = number[order], [column[order] for column in columns]
        first = np.flatnonzero(np.r_[True, number[1:] != number[:-1]]) if len(number) else np.zeros(0, np.int64)
        lengths = np.diff(np.r_[first, len(number)])
        own = self._own_values(frame, order, first)
        sizes, places = _bucket(lengths), list[npt.NDArray[np.int64]]()
        buckets: list[Rows] = []
        for points in np.unique(sizes):
            some = np.flatnonzero(sizes == points)
            some = some[np.argsort(lengths[some], kind="stable")]  # alike ones go through the loop together
            places.append(some)
            series, given = self._padded(columns, first[some], lengths[some], int(points))
            buckets.append((series, {**given, **{role: values[some] for role, values in own.items()}}))
        return frame.iloc[order[first]][list(self.keys)], places, buckets

    def _own_values(
        self, frame: pd.DataFrame, order: npt.NDArray[np.int64], first: npt.NDArray[np.int64]
    ) -> dict[str, Matrix]:
        """Return by role what each group has of its own, (groups, p); NaN stands for what all share."""
        free = self.payload.value.free
        found = {}
        for role, columns in self.own.items():
            found[role] = np.full((len(first), len(free)), np.nan)
            for name, column in columns.items():
                values = _numbers(frame[column], column)[order]
                low, high = np.fmin.reduceat(values, first), np.fmax.reduceat(values, first)
                self._check_one(frame.iloc[order[first]], column, name, low < high, "several values")
                if role != "start":  # which the model may guess
                    self._check_one(frame.iloc[order[first]], column, name, np.isnan(low), "no value")
                found[role][:, free.index(name)] = low
        return found

    def _check_one(self, groups: pd.DataFrame, column: str, name: str, bad: Flags, what: str) -> None:
        """Refuse a column that does not have one value in each group."""
        if bad.any():
            key = groups.iloc[int(bad.argmax())][list(self.keys)].to_dict()
            raise DataError(
                f"The column gives each group its value of {name!r}, and has {what} in {bad.sum():,} of {len(bad):,} "
                f"groups of a partition, the first of them {key}; one is needed.",
                column=column,
            )

    def _padded(
        self, columns: Sequence[Vector], first: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64], points: int
    ) -> Rows:
        """Return groups of so many rows at most as series."""
        place = first[:, None] + np.arange(points)
        there = np.arange(points) < lengths[:, None]
        place = np.where(there, place, first[:, None])
        padded = [column[place] for column in columns]
        y = np.where(there, padded[len(self.x)], np.nan)  # what is not finite has no weight
        given = {f"x{i}": column for i, column in enumerate(padded[: len(self.x)])}
        if self.sigma is not None:
            given["sigma"] = padded[-1]
        return y, given

    def _check_finite(self, frame: pd.DataFrame, columns: Sequence[Vector]) -> None:
        names = (*self.x, self.y, *(() if self.sigma is None else (self.sigma,)))
        for name, column in zip(names, columns, strict=True):
            bad = np.isnan(column) if name == self.sigma else ~np.isfinite(column)
            if bad.any():
                key = frame.iloc[int(bad.argmax())][list(self.keys)].to_dict()
                raise DataError(
                    f"The column {name!r} is not finite in {bad.sum():,} rows of a partition, the first of them of the "
                    f'group {key}; nan_policy="omit" leaves such rows out.',
                    column=name,
                )

    def _table(self, keys: pd.DataFrame, figures: Matrix) -> pd.DataFrame:
        task: Task = self.payload.value
        names = task.model.parameters
        k = len(names)
        table = keys.reset_index(drop=True)
        for i, name in enumerate(names):
            table[name] = figures[:, i]
        for i, name in enumerate(names):
            table[f"{name}_stderr"] = figures[:, k + i]
        for i, name in enumerate(STATISTICS):
            table[name] = figures[:, 2 * k + i]
        for name in ("n_obs", "nfev"):
            table[name] = table[name].astype(np.int64)
        cov = figures[:, 2 * k + len(STATISTICS) :].reshape(-1, k, k) if task.covariance else None
        if cov is not None:
            for i, j in itertools.combinations(range(k), 2):
                table[f"{names[i]}_{names[j]}_cov"] = cov[:, i, j]
        codes = figures[:, 2 * k + STATISTICS.index("status")]
        table["status"] = pd.array([Status.of(int(code)).name for code in codes], dtype="string")
        return table

    def empty(self, dtypes: pd.Series) -> pd.DataFrame:
        """Return the table of no groups, with the types of its columns."""
        keys = pd.DataFrame({key: pd.Series(dtype=dtypes[key]) for key in self.keys})
        return self._table(keys, np.empty((0, self.payload.value.width)))


def _of_each_group(model: Model, p0: Any, bounds: Any, fixed: Any) -> tuple[Own, Any, Any, Any]:
    """Tell the columns that hold a value for each group from the numbers that all groups share."""
    split = functools.partial(_split, model)
    starts, p0 = split(p0, "p0") if isinstance(p0, Mapping) else ({}, p0)
    held, fixed = split(fixed, "fixed") if isinstance(fixed, Mapping) else ({}, fixed)
    lower, upper, bounds = limits(split, bounds)
    own = {"start": starts | held, "lower": lower | held, "upper": upper | held}
    return {role: values for role, values in own.items() if values}, p0, bounds, fixed


def _split(model: Model, values: Mapping[str, Any], what: str) -> tuple[dict[str, str], dict[str, Any]]:
    unknown = [name for name in values if name not in model.parameters]
    if unknown:
        raise ModelError(f"{what} names {unknown}; the parameters are {list(model.parameters)}.")
    own = {name: value for name, value in values.items() if isinstance(value, str)}
    return own, {name: value for name, value in values.items() if name not in own}


def _check_own(task: Task, own: Own) -> None:
    """Refuse values of each group for parameters that are not free in each."""
    named = list(dict.fromkeys(name for values in own.values() for name in values))
    if held := [name for name in named if name not in task.free]:
        raise ModelError(
            f"{held} are fixed or tied for all groups; leave them out of p0 and bounds, or give "
            f"fixed={{{held[0]!r}: COLUMN}}."
        )
    if common := [name for name in named if name in task.free[task.n_own :]]:
        raise DataError(f"{common} are shared by all groups, and have values of each in p0, bounds or fixed.")


def _check_columns(
    data: dd.DataFrame | pd.DataFrame,
    keys: Sequence[str],
    x: Sequence[str],
    y: str,
    sigma: str | float | None,
    own: Sequence[str],
) -> None:
    """Refuse columns that are not there, or that play two parts."""
    if not keys or not x:
        raise DataError(f"by is {list(keys)!r} and x is {list(x)!r}; each must name a column.")
    present = [*data.columns, *([data.index.name] if data.index.name is not None else [])]
    wanted = [*keys, *x, y, *([sigma] if isinstance(sigma, str) else []), *own]
    missing = [name for name in wanted if name not in present]
    if missing:
        raise DataError(
            f"There is no column {missing[0]!r}; there are {list(map(str, present))}.", column=str(missing[0])
        )
    twice = [name for name in keys if name in (*x, y)]
    if twice:
        raise DataError(f"The column {twice[0]!r} tells groups apart and is fitted; it can be one of the two.")


def _numbers(column: pd.Series, name: str) -> Vector:
    """Return a column as float64; dates are seconds since 1970."""
    if column.dtype.kind in "mM" or isinstance(column.dtype, pd.DatetimeTZDtype):
        seconds = column.to_numpy(f"{'M' if column.dtype.kind == 'M' else 'm'}8[ns]")
        return np.where(np.isnat(seconds), np.nan, seconds.astype(np.int64) / 1e9)
    try:
        values = column.cat.categories if isinstance(column.dtype, pd.CategoricalDtype) else column
        if pd.api.types.is_string_dtype(values.dtype) and any(isinstance(v, (str, bytes)) for v in values):
            raise TypeError("text, though it may be of digits")
        return column.to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"The column {name!r} has the dtype {column.dtype}; numbers are needed.", column=name
        ) from error


def _bucket(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the padded length of each group: 32, 128, 512 and so on."""
    fours = np.ceil(np.log2(np.maximum(lengths, _SHORTEST) / _SHORTEST) / 2).astype(np.int64)
    return _SHORTEST << 2 * fours
