"""Columns: which data plays which role, and how raw arrays become a Block."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import decimal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from dask_nlsq._errors import DataError, NlsqError, SweepError, nearest
from dask_nlsq._kernel import Block
from dask_nlsq._model import PARTS, Responses, mix, whitening
from dask_nlsq._sources.group_keys import to_keys
from dask_nlsq._typing import AnyArray, Vector

SECOND = np.timedelta64(1, "s")


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of the columns and what is to be done with their cells.

    ``sigma`` is the name of a column, a constant, or None, and so are ``trials``, of counts alone, and each of
    ``sigma_x``. Of several responses, ``sigma`` may be one of these for each. ``origins`` holds, for datetime columns,
    the instant from which seconds are counted. ``groups`` is the name of the column of which the values tell the groups
    of rows apart, of any type.
    """

    x: tuple[str, ...]
    y: str  # the first, of several
    sigma: str | float | tuple[str | float, ...] | None = None
    nan_policy: str = "raise"  # or "omit"
    origins: Mapping[str, Any] = dataclasses.field(default_factory=dict, hash=False)
    counts: bool = False  # whether y is a number of events
    trials: str | float | None = None  # of which so many are the most
    sigma_x: tuple[str | float | None, ...] = ()  # of each x, as sigma; none where all are exact
    responses: tuple[str, ...] = ()  # columns of y, where they are several
    is_complex: bool = False  # whether the column y holds complex numbers
    covariance: tuple[tuple[float, ...], ...] = ()  # of the responses of a row, in place of sigma
    together: bool = False  # whether a row has all responses or none, as parts of one number, or correlated ones
    groups: str | None = None
    correlation: tuple[str, float] | None = None  # of the rows of a group: its kind, and the number rho of it

    @property
    def response_names(self) -> tuple[str, ...]:
        """What the responses of a row are called, of which a complex number is two."""
        return tuple(self.y + part for part in PARTS) if self.is_complex else self.responses or (self.y,)

    @property
    def n_responses(self) -> int:
        """Rows of a block that a row of the data becomes."""
        return len(self.response_names)

    @property
    def several(self) -> Responses | None:
        """The responses of a row, where it has several."""
        if self.n_responses == 1:
            return None
        return Responses(self.response_names, mixed=bool(self.covariance))

    @property
    def appended(self) -> tuple[str, ...]:
        """The columns of a block behind `inputs`, which are not read."""
        return () if self.several is None else self.several.appended

    def of_response(self, c: int) -> Columns:
        """Return what one response would be by itself."""
        sigma = self.covariance[c][c] ** 0.5 if self.covariance else self.sigmas[c]
        y = self.response_names[c]
        alone: dict[str, Any] = {"responses": (), "is_complex": False, "covariance": (), "together": False}
        return dataclasses.replace(self, y=y, sigma=sigma, **alone)

    @property
    def sigmas(self) -> tuple[str | float | None, ...]:
        """The standard deviation of each response."""
        return self.sigma if isinstance(self.sigma, tuple) else (self.sigma,) * self.n_responses

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns of a block beside y and its weight: x, the standard deviations of x, and the keys of groups."""
        own = (name for name in dict.fromkeys(self.sigma_x) if isinstance(name, str) and name not in self.x)
        return (*self.x, *own, *(() if self.groups is None else (self.groups,)))

    @property
    def numbers(self) -> Columns:
        """The columns that have to hold numbers or dates."""
        return dataclasses.replace(self, groups=None)

    @property
    def weight(self) -> Any:
        """What the weights of the rows are made from; None where there are none."""
        return self.trials if self.counts else self.covariance or self.sigma

    @property
    def names(self) -> tuple[str, ...]:
        """Every column that is read, x first, then its sigma, y, and its sigma or trials; each once."""
        weight = (self.trials,) if self.counts else self.sigmas
        weights = (each for each in weight if isinstance(each, str))
        return tuple(dict.fromkeys((*self.inputs, *(self.responses or (self.y,)), *weights)))

    def row_bytes(self, dtypes: Mapping[str, Any]) -> int:
        """Return the bytes that a row takes in a block, for columns of these types."""
        # Arrow calls float32 "float"; all other types become float64 in a block.
        sizes = {name: 4 if str(dtypes[name]).lower() in ("float", "float32") else 8 for name in self.numbers.names}
        y = max(sizes[name] for name in self.responses or (self.y,))
        beside = 8 * ((self.weight is not None) + len(self.appended) + (self.groups is not None))
        return self.n_responses * (sum(sizes[name] for name in self.numbers.inputs) + y + beside)

    def block(self, raw: Mapping[str, Any]) -> Block:
        """Turn raw arrays, one for each of `names`, into columns of one length."""
        numbers = self.numbers
        values = {
            name: self.to_float(name, raw[name]) for name in numbers.names if not (self.is_complex and name == self.y)
        }
        ys = _parts(self.y, raw[self.y]) if self.is_complex else [values[name] for name in self.responses or (self.y,)]
        keys = {} if self.groups is None else {self.groups: _keys(self.groups, raw[self.groups])}
        lengths = {name: len(v) for each in (values, keys) for name, v in each.items()} | {self.y: len(ys[0])}
        if len(set(lengths.values())) > 1:
            raise DataError(
                f"Columns have unlike lengths in one partition: {lengths}. They must come from rows that "
                "belong together, cut at the same places."
            )
        x = (*(values[name] for name in numbers.inputs), *keys.values())
        rounded = tuple(name for name, v in values.items() if _rounded(raw[name], v))
        if len(ys) > 1:
            return self._block_of_responses(x, ys, values, rounded)
        (y,) = ys
        keep = _finite(*x, y) if self.nan_policy == "omit" else None  # else found by the sweep, whose sums turn NaN
        for name in (each for each in self.sigma_x if isinstance(each, str)):
            s = values[name]
            bad = ~((s > 0) & (s < np.inf))
            _refuse_rows("sigma_x must be positive and finite", name, bad, keep, {"sigma_x": s})
        block = Block(x, y, self._weight(values, len(y), keep), rounded=rounded)
        if keep is not None:
            block = dataclasses.replace(block.take(keep), dropped=int(len(keep) - keep.sum()))
        if block.weight is not None and not block.weight.all():
            self._refuse_gaps(block.weight == 0)
            block = block.take(block.weight > 0)  # a row of infinite sigma, or of no trial, is no observation
        return block

    def _refuse_gaps(self, gaps: AnyArray) -> None:
        """Refuse rows that do not count where the neighbours of a row do."""
        if self.correlation is not None and self.correlation[0] == "ar1":
            _refuse_rows(
                'correlation="ar1" is of neighbours, and rows whose sigma is infinite would leave gaps',
                self.sigmas[0] or "sigma",
                gaps,
                None,
                {"sigma": np.full(len(gaps), np.inf)},
            )

    def _block_of_responses(
        self, x: tuple[Vector, ...], ys: list[Vector], values: Mapping[str, Vector], rounded: tuple[str, ...]
    ) -> Block:
        """Return a block in which each response is a row: those of one row of the data lie behind one another."""
        k, rows = len(ys), len(ys[0])
        keep: AnyArray | None = None
        if self.nan_policy == "omit" and _finite(*x, *ys) is not None:
            with np.errstate(all="ignore"):
                keep = np.isfinite(np.stack(ys, axis=1)) & np.logical_and.reduce([np.isfinite(c) for c in x])[:, None]
            keep = np.repeat(keep.all(axis=1), k).reshape(rows, k) if self.together else keep
        shares = np.empty((0, 0))
        weights, number = None, np.arange(k, dtype=float)
        if self.covariance:
            shares, constants = whitening(self.covariance)
            ys, weights = mix(ys, shares), np.tile(constants, rows)
        elif self.sigma is not None:
            kept = [None if keep is None else keep[:, c] for c in range(k)]
            each = [self._inverse(sigma, values, rows, kept[c]) for c, sigma in enumerate(self.sigmas)]
            weights = np.stack(each, axis=1).ravel()
        block = Block(
            (*(np.repeat(c, k) for c in x), *(np.tile(c, rows) for c in np.transpose(shares)), np.tile(number, rows)),
            np.stack(ys, axis=1).ravel(),
            weights,
            rounded=rounded,
        )
        if keep is not None:
            block = dataclasses.replace(block.take(keep.ravel()), dropped=int(keep.size - keep.sum()))
        if block.weight is not None and not block.weight.all():
            block = block.take(block.weight > 0)
        return block

    def _weight(self, values: Mapping[str, Vector], rows: int, keep: AnyArray | None) -> Vector | None:
        """Return 1 / sigma, or the trials of counts, for all rows."""
        if self.counts:
            return self._trials(values, rows, keep)
        return None if self.sigma is None else self._inverse(self.sigmas[0], values, rows, keep)

    def _inverse(
        self, given: str | float | None, values: Mapping[str, Vector], rows: int, keep: AnyArray | None
    ) -> Vector:
        """Return 1 / sigma for all rows."""
        if not isinstance(given, str):
            return np.full(rows, 1.0 / (given or 1.0))
        sigma = values[given]
        needed = "sigma must be positive (inf gives a row no weight)"
        _refuse_rows(needed, given, ~(sigma > 0), keep, {"sigma": sigma})
        return 1.0 / sigma.astype(np.float64)

    def _trials(self, values: Mapping[str, Vector], rows: int, keep: AnyArray | None) -> Vector | None:
        """Return the trials of counts that have some, once the counts are possible."""
        y = values[self.y]
        _refuse_rows("Counts must not be negative", self.y, y < 0, keep, {"y": y})
        if self.trials is None:
            return None
        trials = values[self.trials] if isinstance(self.trials, str) else np.full(rows, self.trials)
        _refuse_rows(
            "trials must be finite and not negative",
            self.trials,
            ~((trials >= 0) & (trials < np.inf)),
            keep,
            {"trials": trials},
        )
        _refuse_rows("y counts some of the trials", self.y, y > trials, keep, {"y": y, "trials": trials})
        return trials.astype(np.float64)

    def to_float(self, name: str, values: object) -> Vector:
        """Convert one column to contiguous float64, or leave it float32; refuse what has no order on the real line."""
        array = _plain(name, values)
        if array.dtype.kind == "O":
            array = _decimals(array)
        kind = array.dtype.kind
        if kind not in "fiubmM":
            raise DataError(
                f"The column has dtype {array.dtype}{_seen(array)}; {'real ' * (kind == 'c')}numbers are needed. "
                f"{_advice(name, array)}.",
                column=name,
            )
        if array.ndim != 1:
            raise DataError(f"The column has shape {array.shape}; one dimension is needed.", column=name)
        if kind in "mM":
            return self._seconds(name, array)
        return np.ascontiguousarray(array, dtype=np.float32 if array.dtype == np.float32 else np.float64)

    def _seconds(self, name: str, array: AnyArray) -> Vector:
        if array.dtype.kind == "M":
            if name not in self.origins:  # which a column has whose type, known beforehand, is one of dates
                raise DataError(
                    "The column holds dates, though its type does not say so, as that of categories does not. "
                    "Convert it first, for example with .astype('datetime64[ns]').",
                    column=name,
                )
            return _since(array, np.asarray(self.origins[name]))
        if np.datetime_data(array.dtype)[0] in ("Y", "M"):
            raise DataError(
                f"The column has dtype {array.dtype}, and no month or year lasts a fixed number of seconds. "
                "Convert it first, for example with .astype('float64').",
                column=name,
            )
        return np.asarray(array / SECOND)


def _refuse_rows(
    needed: str, column: str | float, bad: AnyArray, keep: AnyArray | None, values: Mapping[str, Vector]
) -> None:
    """Raise an error that says how many rows that are kept are bad, and what the first of them holds."""
    bad = bad if keep is None else keep & bad
    if not bad.any():
        return
    first = int(np.argmax(bad))
    held = " and ".join(
        str(each[first]) if len(values) == 1 else f"{name} {each[first]}" for name, each in values.items()
    )
    raise DataError(
        f"{needed}; {int(bad.sum())} of {len(bad)} rows break this, the first is row {first} with {held}.",
        column=column if isinstance(column, str) else None,
    )


def _since(array: AnyArray, origin: AnyArray) -> Vector:
    """Return the seconds since an instant, which need not be in the same unit."""
    if array.dtype == origin.dtype and np.datetime_data(array.dtype)[0] not in ("Y", "M"):
        with contextlib.suppress(OverflowError):  # newer NumPys say so where instants are too far apart for their unit
            elapsed = array - origin
            if ((elapsed < 0 * SECOND) == (array < origin)).all():  # older ones turn the sign
                return np.asarray(elapsed / SECOND)
    # Whole seconds have room for every date, and what remains for every unit.
    whole, first = array.astype("datetime64[s]"), origin.astype("datetime64[s]")
    rest = (array - whole) - (origin - first)
    return np.asarray((whole - first) / SECOND + rest / SECOND)


def check_columns(
    present: Sequence[str],
    names: Sequence[str],
    where: str = "the data",
    remedy: str = "Say which to use with x=, y= and sigma=.",
) -> None:
    """Refuse names that the data does not have, or has twice."""
    missing = [name for name in names if name not in present]
    if missing:
        raise DataError(
            f"There is no column {', '.join(map(repr, missing))}; {where} has "
            f"{', '.join(map(repr, present))}.{nearest(missing[0], present)} {remedy}",
            column=missing[0],
        )
    twice = [name for name in names if list(present).count(name) > 1]
    if twice:
        raise DataError(
            f"{list(present).count(twice[0])} columns are called {twice[0]!r}; rename them.", column=twice[0]
        )


def first_instants(names: Sequence[str], reads: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the first instant of each of these datetime columns, from which its seconds will be counted.

    Parameters
    ----------
    names : sequence of str
        The datetime columns.
    reads : iterable of mapping
        Raw arrays, partition by partition; taken only until every column has shown an instant.

    Raises
    ------
    SweepError
        A partition cannot be read.
    """
    origins: dict[str, Any] = {}
    for raw in _read_each(reads) if names else ():
        for name in set(names) - origins.keys():
            array = _plain(name, raw[name])
            if array.dtype.kind != "M":  # a partition without a value may be of no type
                continue
            instants = array[~np.isnat(array)]
            if len(instants):
                origins[name] = instants[0]
        if len(origins) == len(names):
            break
    return {name: origins.get(name, np.datetime64(0, "s")) for name in names}


def _read_each(reads: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    """Read partition by partition; what fails is reported as a sweep reports it."""
    remaining, partition = iter(reads), 0
    while True:
        try:
            raw = next(remaining)
        except StopIteration:
            return
        except NlsqError as error:
            raise error.at(partition=partition) from error.__cause__
        except Exception as error:
            raise SweepError(f"{type(error).__name__} while reading the data: {error}", partition=partition) from error
        yield raw
        partition += 1


def _plain(name: str, values: object) -> AnyArray:
    """Return a NumPy array, with missing cells of pandas' nullable and Arrow types as NaN."""
    if isinstance(values, np.ma.MaskedArray):
        if values.dtype.kind in "mM":
            return np.where(np.ma.getmaskarray(values), np.array("NaT", values.dtype), np.asarray(values.data))
        if values.dtype.kind not in "fiubc":
            return np.asarray(values.data)  # refused by its dtype
        return np.where(np.ma.getmaskarray(values), np.nan, np.asarray(values.data, _floating(values)))
    if hasattr(values, "unmasked") and hasattr(values, "mask"):  # of astropy, with or without a unit
        return np.where(np.asarray(values.mask), np.nan, np.asarray(values.unmasked, _floating(values)))
    dtype: Any = getattr(values, "dtype", None)
    if not isinstance(values, np.ndarray) and hasattr(values, "to_numpy"):
        kind = getattr(dtype, "kind", "O")
        if isinstance(dtype, np.dtype) and dtype.kind != "O":
            return np.asarray(values.to_numpy())
        if kind in "fiub":
            # pandas makes objects of nullable types, unless it is told what stands for a missing cell.
            return np.asarray(values.to_numpy(dtype="float64", na_value=np.nan))
        if kind in "mM":
            # pandas' dates with a time zone say their unit, and those of Arrow a type of NumPy.
            unit = getattr(dtype, "unit", None) or np.datetime_data(dtype.numpy_dtype)[0]
            missing = np.array("NaT", f"{kind}8[{unit}]")[()]
            return np.asarray(values.to_numpy(dtype=missing.dtype, na_value=missing))
    return np.asarray(values)


def _floating(values: Any) -> type:
    """Return the type in which numbers can be missing."""
    return complex if values.dtype.kind == "c" else float


def _keys(name: str, values: Any) -> Vector:
    """Return what tells the groups of rows apart; of categories, each is looked at once."""
    categories = getattr(getattr(values, "dtype", None), "categories", None)
    if isinstance(values, np.ma.MaskedArray) and values.dtype.kind not in "fiubmM":
        missing, values = np.ma.getmaskarray(values), values.data.astype(object)
        values[missing] = None
    if categories is None:
        return to_keys(name, _plain(name, values))
    each = np.append(to_keys(name, _plain(name, categories)), np.nan)
    keys: Vector = each[np.asarray(getattr(values, "cat", values).codes)]  # the code of a missing one is -1
    return keys


def _decimals(array: AnyArray) -> AnyArray:
    """Return decimals, as pandas holds those of Arrow and Parquet, and cells that are all missing as float64.

    Other objects stay as they are.
    """
    first = _first(array)
    if array.ndim != 1 or not isinstance(first, (decimal.Decimal, type(None))):
        return array
    values = array.tolist()
    if not all(isinstance(value, (decimal.Decimal, float, int)) or _is_missing(value) for value in values):
        return array
    return np.array([np.nan if _is_missing(value) else float(value) for value in values], float)


def _first(array: AnyArray) -> Any:
    """Return the first value of an array of objects that is not missing, or None."""
    return next((value for value in array.ravel().tolist() if not _is_missing(value)), None)


def _is_missing(value: object) -> bool:
    """Whether a value stands for a missing cell; a worker that reads Zarr has no pandas to ask."""
    try:
        return value is None or bool(value != value)
    except TypeError:  # pandas' NA is neither equal to itself nor unequal
        return True
    except ValueError:  # an array in a cell
        return False


def _seen(array: AnyArray) -> str:
    value = _first(array) if array.dtype.kind == "O" else None
    return "" if value is None else f" and holds values of type {type(value).__name__}"


def _advice(name: str, array: AnyArray) -> str:
    """Say how an array becomes numbers."""
    if array.dtype.kind == "c":
        return "A complex y needs a model that returns complex numbers; or fit its real or imaginary part by itself"
    return f"Convert it first, for example with {_remedy(name, array)}"


def _parts(name: str, values: object) -> list[Vector]:
    """Return the real and the imaginary part of a column of complex numbers."""
    array = _plain(name, values)
    if array.dtype.kind != "c":
        raise DataError(
            f"The column has dtype {array.dtype}, and the model returns complex numbers: give a complex y, or "
            "y=[real, imaginary] as two columns.",
            column=name,
        )
    return [np.ascontiguousarray(part, np.float64) for part in (array.real, array.imag)]


def _remedy(name: str, array: AnyArray) -> str:
    """Return the line that makes numbers or dates of what an array holds."""
    value = _first(array) if array.dtype.kind == "O" else ""
    if isinstance(value, datetime.date):
        return f"pandas.to_datetime(data[{name!r}])"
    if isinstance(value, datetime.time):
        return f"pandas.to_timedelta(data[{name!r}].map(str, na_action='ignore'))"
    if isinstance(value, datetime.timedelta):
        return f"pandas.to_timedelta(data[{name!r}])"
    if isinstance(value, (list, tuple, dict, np.ndarray)):
        return f"data.explode({name!r}), or one column for each element"
    return f"pandas.to_numeric(data[{name!r}])"


def _rounded(raw: object, values: Vector) -> bool:
    """Whether integers have become float64 that has no room for all their digits."""
    dtype = getattr(raw, "dtype", None)
    wide = getattr(dtype, "kind", "O") in "iu" and getattr(dtype, "itemsize", 0) == 8
    return wide and bool((np.abs(values) >= 2.0**53).any())


def _finite(*columns: Vector) -> AnyArray | None:
    """Return which rows are finite in all columns; None where all are."""
    with np.errstate(all="ignore"):
        # A sum takes less time and memory than a mask of the rows. One that overflows costs the mask, and no row.
        if all(np.isfinite(c.sum()) for c in columns):
            return None
    finite: AnyArray = np.logical_and.reduce([np.isfinite(c) for c in columns])
    return finite
