"""StreamingFitter: a fit that learns from batches as they come, from anywhere, each seen once."""

from __future__ import annotations

import copy
import dataclasses
import numbers
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dask_nlsq._display import Fold, Fragment, Table
from dask_nlsq._errors import DataError, ModelError, NlsqError, TooFewRows, warn
from dask_nlsq._fit import (
    FitOptions,
    UndeterminedWarning,
    guess_start,
    optimizer_of,
    resolve_objective,
    to_model,
    warm_start,
)
from dask_nlsq._kernel import Block, concatenate, validate
from dask_nlsq._model import Model
from dask_nlsq._result import FitResult, columns_of, fragment_of
from dask_nlsq._solver import Streaming, StreamState
from dask_nlsq._sources import Columns
from dask_nlsq._streaming.batches import blocks, weighing
from dask_nlsq._streaming.estimator import SWEEPS, Estimator
from dask_nlsq._streaming.nonlinearity import Evidence
from dask_nlsq._streaming.relinearise import Slices
from dask_nlsq._streaming.report import Report
from dask_nlsq._streaming.reservoir import Drawn, Reservoir
from dask_nlsq._streaming.saved import Rows, check, differing, identify, read, seal, write
from dask_nlsq._streaming.saved import SavedFitter as _Saved
from dask_nlsq._sweep import non_finite
from dask_nlsq._typing import Matrix, Vector

if TYPE_CHECKING:
    from optax import GradientTransformation

WARM_ROWS = 50
"""Rows for each parameter that are gathered before the first estimate, which is an ordinary fit of them."""

HISTORY = 10_000
"""Updates that the history holds before the older ones are thinned."""

SAMPLE = 4_000
"""Rows that are kept, at which the sums are relinearised."""

_SHOWN = 10
"""Updates that a notebook shows."""


class StreamingFitter:
    r"""A fit that learns from batches of rows as they come, each seen once.

    Every batch adds its information, linearised at the estimate that stood when it came, and the estimate then
    minimises the sum: :math:`\sum_b \tfrac12 |J_b (\theta - \theta_b) + r_b|^2`. After one pass over well-posed data in
    no particular order it lies within hundredths of a standard error of the fit of all rows at once. Memory holds a
    batch, a sample of the rows that have come, and some p × p matrices.

    Where the estimate ends farther from the points of linearisation than noise explains, as where the rows come in the
    order of x, what the linear models miss is estimated from the sample. Less is known then, and the standard errors
    say so.

    Parameters
    ----------
    model : callable, Model or str
        As in `fit`.
    p0 : mapping, sequence or FitResult, optional
        Starting values, as in `fit`; a model with a guess guesses from the first rows.
    x : str or sequence of str, optional
        Names of the columns, where the model takes several, or where batches are frames.
    y : str
        Name of the response, where batches are frames.
    bounds, fixed, tied, prior, absolute_sigma, nan_policy
        As in `fit`.
    forget : float or "auto"
        Factor of what is known before each batch is added: 1 never forgets; below 1, 1 / (1 - forget) batches count in
        the long run. "auto" chooses the factor by how well each batch was predicted, and begins anew where the process
        has changed at once.
    robust : bool
        Set aside batches that contradict what is known, as long as the next do not confirm them; "auto" always does.
    method : {"lm", "trf", "dogbox", "adam"} or optax.GradientTransformation, optional
        As in `fit`: an optimizer goes down on the first rows before they are fitted.

    Raises
    ------
    ModelError, BoundsError
        As in `fit`.
    NlsqError
        ``forget`` or ``method`` is none.

    Notes
    -----
    Recursive least squares in information form, relinearised at each batch (Ljung & Söderström, Theory and
    Practice of Recursive Identification, 1983).

    Examples
    --------
    >>> import numpy as np, jax.numpy as jnp, dask_nlsq
    >>> def decay(t, amplitude, rate):
    ...     return amplitude * jnp.exp(-rate * t)
    >>> fitter = dask_nlsq.StreamingFitter(decay, p0=[1.0, 1.0])
    >>> rng = np.random.default_rng(0)
    >>> for _ in range(20):
    ...     t = rng.uniform(0, 4, 1000)
    ...     fitter = fitter.partial_fit(t, 2.5 * np.exp(-1.3 * t) + rng.normal(0, 0.1, 1000))
    >>> fitter.params.round(2).to_dict()
    {'amplitude': 2.5, 'rate': 1.3}
    """

    def __init__(
        self,
        model: Callable[..., Any] | Model | str,
        p0: Mapping[str, float] | npt.ArrayLike | FitResult | None = None,
        *,
        x: str | Sequence[str] | None = None,
        y: str = "y",
        bounds: Mapping[str, tuple[float, float]] | Sequence[npt.ArrayLike] | None = None,
        fixed: Mapping[str, float] | None = None,
        tied: Mapping[str, Any] | None = None,
        prior: Mapping[str, tuple[float, float]] | None = None,
        absolute_sigma: bool = False,
        nan_policy: str = "raise",
        forget: float | str = 1.0,
        robust: bool = False,
        method: str | GradientTransformation | None = None,
    ) -> None:
        options = FitOptions(
            model,
            p0=p0,
            bounds=bounds,
            fixed=fixed,
            tied=tied,
            prior=prior,
            absolute_sigma=absolute_sigma,
            nan_policy=nan_policy,
            method=method,
            configured=False,
        )
        model = to_model(model, p0)
        names = model.inputs if x is None else (x,) if isinstance(x, str) else tuple(x)
        if not names:
            raise ModelError("An expression needs x=, the names of its columns.")
        if not _is_share(forget) and not (isinstance(forget, str) and forget == "auto"):
            raise NlsqError(f'forget is {forget!r}; a number above 0, up to 1, or "auto" is needed.')
        self._model = model.bind(names)
        self._columns = Columns(tuple(names), y, None, options.nan_policy)
        self._parameters, self._objective = resolve_objective(self._model, self._columns, options)
        if self._objective.responses is not None:
            raise ModelError(f"The model {self._model.name!r} is complex; StreamingFitter takes one real y.")
        self._solver = Streaming(
            self._parameters.lower,
            self._parameters.upper,
            self._parameters.prior,
            absolute_sigma,
            None if forget == "auto" else float(forget),
            robust=bool(robust),
        )
        self._optimizer = optimizer_of(options.method, self._parameters.bounded)
        self._state: StreamState | None = None
        self._waiting: list[Block] = []
        self._sample = Reservoir(max(SAMPLE, 2 * WARM_ROWS * self._parameters.p), newest=forget != 1)
        self._slices = Slices.empty(self._parameters.p)
        self._seconds = 0.0
        self._history: list[list[float]] = []

    # --- batches ------------------------------------------------------------------------------------------------------

    def partial_fit(
        self, x: object, y: npt.ArrayLike | None = None, sigma: npt.ArrayLike | None = None
    ) -> StreamingFitter:
        """Learn from a batch of rows, and return the fitter itself.

        Parameters
        ----------
        x : array of shape (n,) or (k, n), tuple of arrays, or DataFrame or mapping
            The columns of the model; a frame or mapping holds them by name, the response too.
        y : array of shape (n,), optional
            The response; left out beside a frame, which holds it.
        sigma : float, array of shape (n,), or str
            Standard deviation of y, in every batch or in none; in a frame, it may be the name of its column.

        Raises
        ------
        DataError
            Columns of unlike lengths, of no numbers, or with NaN under ``nan_policy="raise"``, a sigma that is not
            positive, or a y beside a frame; the batch is not taken.
        ModelError
            The guess fails on the first rows, or the model is not finite at the start; the rows are kept.
        """
        started = time.perf_counter()
        for block in blocks(self._model, self._columns, x, y, sigma):
            self._take(block)
        self._seconds += time.perf_counter() - started
        return self

    def _take(self, block: Block) -> None:
        """Learn from a block, or let it wait for the first estimate."""
        self._check(block)
        if self._state is not None:
            self._learn(self._state, block)
            return
        if block.rows or block.dropped:
            self._waiting.append(concatenate([block]))  # a copy: the arrays are the caller's
        if sum(b.rows for b in self._waiting) >= WARM_ROWS * self._parameters.p:
            self._warm_up()

    def _check(self, block: Block) -> None:
        """Refuse a block with weights beside others without, or with cells that are not finite."""
        weighted = block.weight is not None
        if self._empty:
            self._objective = weighing(self._objective, weighted)
        elif weighted != self._objective.weighted:
            raise DataError("sigma must come with every batch or with none.")
        # Before the block is learned from, so that one that is refused leaves no trace.
        whole = [np.isfinite(column).all() for column in (*block.x, block.y)]
        if not all(whole) and (error := non_finite(block, self._objective)):
            raise error

    @property
    def _empty(self) -> bool:
        return self._state is None and not self._waiting

    @property
    def _estimator(self) -> Estimator:
        return Estimator(self._objective, self._parameters, self._solver)

    @property
    def _evidence(self) -> Evidence:
        return Evidence(self._sample.drawn, self._slices)

    def _warm_up(self) -> StreamState:
        """Fit the rows that have been gathered, and begin the sums there."""
        block = concatenate(self._waiting)
        parameters = self._parameters
        if parameters.guessed:
            parameters = guess_start(self._model, parameters, block)
        validate.check_rows(self._objective, block, parameters.start)
        starts = [parameters.start]
        if self._optimizer is not None:
            # The start that was given stays one of those tried, for an optimizer may lead astray.
            starts.insert(0, warm_start(self._objective, parameters, block, self._optimizer, 0).theta)
        begun = self._estimator.begin(block, starts, 4 * SWEEPS)  # where that is refused, the rows wait on
        self._state, self._parameters, self._waiting = begun, parameters, []
        self._remember(block, begun.totals.gram, begun.origin)
        self._note(begun)
        return begun

    def _learn(self, state: StreamState, block: Block) -> None:
        reduction, theta = self._estimator.reduce_safely(block, state, self._sample.drawn)
        reduction = reduction.placed(state.batches + 1)
        now = self._solver.step(state, reduction, theta)
        if now.skipped > state.skipped:
            warn(f"The model is not finite on batch {now.batches}; its {block.rows} rows were left out.")
        elif reduction.rows and now.pending is None:
            # The process has changed at once: the rows before are of another, and so are their sums.
            if now.forgotten > state.forgotten:
                self._slices, self._sample.drawn = Slices.empty(len(theta)), Drawn(np.empty((0, 0)))
            self._remember(block, self._solver.about_origin(state, reduction, theta).gram, theta)
            now = self._steadied(now, state.rows)
            self._note(now)
        self._state = now

    def _remember(self, block: Block, gram: Matrix, theta: Vector) -> None:
        """Keep the sums of a batch that was linearised at `theta` (p,), and some of its rows."""
        # Places count all rows of the stream, so that a row of the sample is found in its slice.
        place = self._slices.total + block.rows
        self._slices = self._slices.add(gram[None], np.array([float(block.rows)]), np.array([place]))
        self._sample.add(block, int(place), theta)

    def _steadied(self, state: StreamState, rows_before: int) -> StreamState:
        """Return a state relinearised where the estimate has moved too far from where batches were linearised."""
        steadied, self._slices = self._evidence.steadied(self._estimator, state, rows_before)
        return steadied

    def _note(self, state: StreamState) -> None:
        s2 = self._solver.residual_std(state) ** 2
        covariance = self._solver.covariance(state, s2, self._parameters.side(state.theta) == 0)
        error = np.sqrt(np.maximum(np.diag(covariance), 0.0))
        self._history.append([state.batches, state.rows, state.moved, *state.theta, *error])
        if len(self._history) > HISTORY:  # every other one of the older half is forgotten
            del self._history[: HISTORY // 2 : 2]

    # --- what is known ------------------------------------------------------------------------------------------------

    @property
    def params(self) -> pd.Series:
        """Estimates by name."""
        return self.result().params

    @property
    def stderr(self) -> pd.Series:
        """Standard errors by name."""
        return self.result().stderr

    @property
    def history(self) -> pd.DataFrame:
        """One row an update, older ones thinned: rows seen, the move in standard errors, estimates and their errors.

        A parameter that is called as one of the other columns is has the column "NAME (parameter)".
        """
        free, leading = self._parameters.free, ["batch", "rows", "moved"]
        names = [*leading, *columns_of(free, leading), *(f"{name} stderr" for name in free)]
        return pd.DataFrame(self._history, columns=names).astype({"batch": int, "rows": int}).set_index("batch")

    def result(self) -> FitResult:
        """Return what is known so far, as `fit` returns it.

        The covariance is that of the sums. ``success`` says that the last batch moved the estimate by less than a
        standard error, that it lies no farther from where the batches were linearised than noise explains, and that a
        sample of the rows bears it out; not where parameters are silent that would speak elsewhere.

        Raises
        ------
        TooFewRows
            Fewer rows have come than there are parameters; a prior counts as a row.
        ModelError
            The guess fails on the rows that have come, or the model is not finite at the start.

        Warns
        -----
        OptimizeWarning
            The data do not determine some parameters; their variance is infinite.
        """
        state = self._state
        if state is None or state.sums is None:
            rows = sum(block.rows for block in self._waiting)
            if rows < (fewest := self._parameters.fewest_rows):
                raise TooFewRows(
                    f"{rows} rows have come, for {self._parameters.p} parameters; at least {fewest} are needed."
                )
            state = self._warm_up()
        report = Report(self._model.name, self._columns, self._estimator, self._sample.drawn, self._seconds)
        return report.result(self._evidence.relinearised(self._estimator, state))

    @property
    def _title(self) -> str:
        return f"StreamingFitter of {self._model.name}({', '.join(self._parameters.names)})"

    def __repr__(self) -> str:
        state = self._state
        waiting = sum(block.rows for block in self._waiting)
        known = f"{waiting:,} rows wait" if state is None else f"{state.rows:,} rows in {state.batches:,} batches"
        return f"<{self._title}: {known}>"

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the result, and folded the last updates; rows that wait are left alone."""
        if self._state is None or self._state.sums is None:
            waiting, needed = sum(block.rows for block in self._waiting), WARM_ROWS * self._parameters.p
            return Fragment(self._title, [f"{waiting:,} rows have come; the first estimate takes {needed:,}."]).html()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UndeterminedWarning)  # the table says it
            fragment = fragment_of(self.result())
        history = self.history.iloc[: -_SHOWN - 1 : -1].reset_index().to_dict("split")
        updates = Table(history["data"], history["columns"], align="r")
        parts = [*fragment.parts, Fold(f"Last of {len(self._history):,} updates", [updates])]
        return dataclasses.replace(fragment, title=self._title, parts=parts).html()

    # --- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that is known to one file; the model is not in it.

        The file is complete or the old one stays: it is written beside and then renamed. It is a Zarr group in a zip,
        and holds no pickle.
        """
        waiting = concatenate(self._waiting) if self._waiting else None
        saved = _Saved(
            identity=seal(self._identity()),
            weighted=self._objective.weighted,
            start=self._parameters.start,
            waiting=None if waiting is None else Rows.of(waiting),
            sample=self._sample.drawn,
            state=self._state,
            history=np.array(self._history, float),
            seconds=self._seconds,
            slices=self._slices,
        )
        write(path, saved)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: Callable[..., Any] | Model | str, **options: Any
    ) -> StreamingFitter:
        """Go on from a file that `save` wrote, with the same model and options.

        Files of the format before are read too.

        Raises
        ------
        CheckpointCorrupt
            The file is damaged.
        NlsqError
            It is of another model or other options; the message says what differs.
        """
        fitter = cls(model, **options)
        saved, there = read(path)
        # Before the comparison, for the identity of the model is computed at the start.
        if there.get("free") == list(fitter._parameters.free):
            fitter._parameters = dataclasses.replace(fitter._parameters, start=saved.start)
        check(path, there, fitter._identity())
        fitter._objective = weighing(fitter._objective, saved.weighted)
        fitter._waiting = [] if saved.waiting is None else [saved.waiting.block(saved.weighted)]
        fitter._sample.drawn = saved.sample
        fitter._state = saved.state
        fitter._history = saved.history.tolist()
        fitter._seconds = saved.seconds
        fitter._slices = saved.slices or fitter._slices
        return fitter

    def _identity(self) -> dict[str, Any]:
        return identify(self._parameters, self._objective, self._columns, self._solver)

    # --- several streams ----------------------------------------------------------------------------------------------

    def copy(self) -> StreamingFitter:
        """Return a fitter that knows the same and goes its own way."""
        fitter = copy.copy(self)
        fitter._waiting, fitter._history = list(self._waiting), [list(row) for row in self._history]
        fitter._sample = copy.copy(self._sample)
        return fitter

    def __add__(self, other: StreamingFitter) -> StreamingFitter:
        """Return a new fitter that knows what both know, as if the batches of both had come to one.

        The history is that of the left one.

        Raises
        ------
        NlsqError
            They have unlike models or options, or sigma came with the batches of one only.
        """
        if not isinstance(other, StreamingFitter):
            return NotImplemented
        self._check_same(other)
        # The one that has a state takes in the other: rows that wait are learned from, a state is added to a state.
        left, right = (other.copy(), self) if self._state is None else (self.copy(), other)
        left._seconds = self._seconds + other._seconds
        if left._state is None or right._state is None:
            for block in right._waiting:
                left._take(block)
            return left
        first, second = left._state, right._state
        moved = left._solver.moved(second, first)
        now = left._solver.merge(first, moved)
        slices = left._solver.about(second, first, right._slices.gram)
        before = left._slices.total
        left._sample.merge(right._sample.drawn, int(right._slices.total), int(before))
        left._slices = left._slices.add(slices, right._slices.rows, right._slices.last + before)
        left._state = left._steadied(now, first.rows)
        left._note(left._state)
        return left

    def _check_same(self, other: StreamingFitter) -> None:
        # A start that was guessed differs with the rows, and does not make another fit.
        parameters = dataclasses.replace(other._parameters, start=self._parameters.start)
        there = identify(parameters, other._objective, other._columns, other._solver)
        if text := differing(there, self._identity()):
            raise NlsqError(f"The two fitters are not of one fit. {text}. Make both with the same model and options.")
        if not (self._empty or other._empty) and self._objective.weighted != other._objective.weighted:
            raise NlsqError("sigma came with the batches of one fitter only; give it to both or to none.")


def _is_share(value: object) -> bool:
    """Whether this is a number above 0, up to 1."""
    return isinstance(value, numbers.Real) and 0 < float(value) <= 1
