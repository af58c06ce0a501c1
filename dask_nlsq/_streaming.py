"""StreamingFitter: a fit that learns from batches as they come, from anywhere, each seen once."""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dask_nlsq._checkpoint import Text, archive, from_text, to_text, versions
from dask_nlsq._descent import descend, optimizer_of
from dask_nlsq._errors import CheckpointCorrupt, DataError, ModelError, NlsqError, TooFewRows, one_of, warn
from dask_nlsq._fingerprint import differences, other_writers
from dask_nlsq._minimise import speak_elsewhere
from dask_nlsq._numerics import faults, inference, inspection, kernel
from dask_nlsq._numerics.block import Block, concatenate
from dask_nlsq._numerics.compiled import once
from dask_nlsq._numerics.objective import Objective
from dask_nlsq._numerics.program import program
from dask_nlsq._numerics.reduction import Reduction
from dask_nlsq._numerics.reservoir import Drawn, Reservoir
from dask_nlsq._numerics.solver.streaming import Streaming, StreamState
from dask_nlsq._numerics.solver.trust_region import State, TrustRegion, final
from dask_nlsq._numerics.status import Status
from dask_nlsq._outcome import differences_taken, expand, reservations, warn_of_open_ends
from dask_nlsq._peak import peak_memory
from dask_nlsq._problem import exact_objective, exact_sigma, split, to_model
from dask_nlsq._refusal import explain
from dask_nlsq._result import FitResult, columns_of
from dask_nlsq._sample import guess_start
from dask_nlsq._sources import Columns
from dask_nlsq._stream import agrees
from dask_nlsq._sweep import ship
from dask_nlsq._sweep.task import non_finite
from dask_nlsq._typing import Matrix, Vector

WARM_ROWS = 50
"""Rows for each parameter that are gathered before the first estimate, which is an ordinary fit of them."""

HISTORY = 10_000
"""Updates that the history holds before the older ones are thinned."""

SAMPLE = 2_000
"""Rows that are kept for a new start."""

_FAR = 5.0
"""Standard errors; a batch that moves the estimate farther shows that the model was not linear on the way."""

_STRAYED = 3.0
"""Distance from the points of linearisation, beside what noise explains, that shows the same. In random order it stays
below 2; where sorted rows led several standard errors astray it was above 4."""

_SETTLED = 1.0
"""Standard errors by which the last batch may have moved the estimate."""

_FORMAT = 2


class StreamingFitter:
    r"""A fit that learns from batches of rows as they come, each seen once.

    Every batch adds its information, linearised at the estimate that stood when it came, and the estimate then
    minimises the sum: :math:`\sum_b \tfrac12 |J_b (\theta - \theta_b) + r_b|^2`. After one pass over well-posed data in
    no particular order it lies within hundredths of a standard error of the fit of all rows at once. Memory holds a
    batch, a sample of the rows that have come, and some p × p matrices.

    Where the estimate ends farther from the points of linearisation than noise explains, as where the rows come in the
    order of x, the sample is fitted in memory and the sums begin anew with it: less is known then, and the standard
    errors say so.

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
        the long run. "auto" forgets only where a batch contradicts what came before it.
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
        model: Any,
        p0: Any = None,
        *,
        x: Any = None,
        y: str = "y",
        bounds: Any = None,
        fixed: Any = None,
        tied: Mapping[str, Any] | None = None,
        prior: Mapping[str, tuple[float, float]] | None = None,
        absolute_sigma: bool = False,
        nan_policy: str = "raise",
        forget: float | str = 1.0,
        method: Any = None,
    ) -> None:
        model = to_model(model, p0)
        names = model.inputs if x is None else (x,) if isinstance(x, str) else tuple(x)
        if not names:
            raise ModelError("An expression needs x=, the names of its columns.")
        if not _is_share(forget) and not (isinstance(forget, str) and forget == "auto"):
            raise NlsqError(f'forget is {forget!r}; a number above 0, up to 1, or "auto" is needed.')
        self._model = model.bind(names)
        self._columns = Columns(tuple(names), y, None, nan_policy)  # type: ignore[arg-type]
        one_of("nan_policy", nan_policy, "raise", "omit", error=DataError)
        self._parameters, self._objective = exact_objective(
            self._model, self._columns, p0, bounds=bounds, fixed=fixed, tied=tied, prior=prior
        )
        self._solver = Streaming(
            self._parameters.lower,
            self._parameters.upper,
            self._parameters.prior,
            absolute_sigma,
            None if forget == "auto" else float(forget),
        )
        self._optimizer = optimizer_of(method, self._parameters.bounded)
        self._state: StreamState | None = None
        self._waiting: list[Block] = []
        self._sample = Reservoir(max(SAMPLE, 2 * WARM_ROWS * self._parameters.p), newest=forget != 1)
        self._seconds = 0.0
        self._history: list[list[float]] = []

    # --- batches ------------------------------------------------------------------------------------------------------

    def partial_fit(self, x: Any, y: Any = None, sigma: Any = None) -> StreamingFitter:
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
        block = self._block(x, y, sigma)
        if self._state is None:
            if block.rows or block.dropped:
                self._waiting.append(concatenate([block]))  # a copy: the arrays are the caller's
            if sum(b.rows for b in self._waiting) >= WARM_ROWS * self._parameters.p:
                self._warm_up()
        else:
            self._learn(self._state, block)
        self._seconds += time.perf_counter() - started
        return self

    def _block(self, x: Any, y: Any, sigma: Any) -> Block:
        columns, sigma = self._columns, exact_sigma(sigma, named=False)
        if isinstance(x, (pd.DataFrame, Mapping)):
            if y is not None:
                raise DataError(
                    f"y is read from the frame, which holds it as {columns.y!r}. Leave y out; where another column is "
                    "the response, name it in StreamingFitter(y=...)."
                )
            columns = dataclasses.replace(columns, sigma=sigma if isinstance(sigma, str) else None)
            missing = [name for name in columns.names if name not in x]
            if missing:
                raise DataError(f"The batch has no column {missing[0]!r}; it has {list(x)}.", column=missing[0])
            raw = {name: x[name] for name in columns.names}
        else:
            if y is None:
                raise DataError("Give x and y, or a frame that holds both.")
            _, arrays = split(self._model, x, y)
            if len(arrays) != len(columns.x):
                raise DataError(f"x has {len(arrays)} columns; the model takes {list(columns.x)}.")
            if columns.y in columns.x:
                columns = dataclasses.replace(columns, y="fitted y")
            raw = dict(zip(columns.x, map(_array, arrays), strict=True)) | {columns.y: _array(y)}
        if isinstance(sigma, float):
            columns = dataclasses.replace(columns, sigma=sigma)
        elif sigma is not None and columns.sigma is None:
            columns = dataclasses.replace(columns, sigma="sigma of y")
            raw["sigma of y"] = _array(sigma)
        if dates := [name for name, values in raw.items() if getattr(getattr(values, "dtype", 0), "kind", "") == "M"]:
            raise DataError("The column holds dates; give seconds since an instant of your own.", column=dates[0])
        block = columns.block(raw)
        weighted = block.weight is not None
        if self._empty:
            self._objective = dataclasses.replace(self._objective, weighted=weighted)
        elif weighted != self._objective.weighted:
            raise DataError("sigma must come with every batch or with none.")
        whole = [np.isfinite(column).all() for column in (*block.x, block.y)]
        if not all(whole) and (error := non_finite(block, self._objective.columns)):
            raise error
        return block

    @property
    def _empty(self) -> bool:
        return self._state is None and not self._waiting

    def _warm_up(self) -> None:
        """Fit the rows that have been gathered, and begin the sums there."""
        block = concatenate(self._waiting)
        parameters = self._parameters
        if parameters.guessed:
            parameters = guess_start(self._model, parameters, block)
        inspection.check_rows(self._objective, block, parameters.start)
        starts = [parameters.start]
        if self._optimizer is not None:
            starts.insert(0, descend(self._objective, parameters, block, self._optimizer, 0).theta)
        begun = self._begin(block, starts)  # where that is refused, the rows wait on
        self._state, self._parameters, self._waiting = begun, parameters, []
        self._sample.add(block, 0)
        self._note(begun)

    def _begin(self, block: Block, starts: list[Vector]) -> StreamState:
        """Return the state that an ordinary fit of some rows leads to, from the start that leads lowest."""
        parameters = self._parameters
        solver = TrustRegion(parameters.lower, parameters.upper, parameters.prior, tolerance=1e-3)
        ends, refused = [], None
        for start in starts:
            try:
                ends.append(_fit_rows(self._objective, parameters.free, solver, block, start))
            except ModelError as error:
                refused = error
        if not ends and refused is not None:
            raise refused
        state = min(ends, key=lambda end: final(end, parameters.lower, parameters.upper)[1])
        theta, _ = final(state, parameters.lower, parameters.upper)
        assert state.point is not None
        stream = self._solver.init(theta, state.point.factor.whitening())
        return self._solver.step(stream, self._reduce(block, stream).placed(1))

    def _reduce(self, block: Block, state: StreamState) -> Reduction:
        request = self._solver.request(state)
        whitening = None if request.whitening is None else request.whitening.s
        return kernel.reduce_block(self._objective, block, request.theta, whitening)

    def _learn(self, state: StreamState, block: Block) -> None:
        now = self._solver.step(state, self._reduce(block, state).placed(state.batches + 1))
        if now.skipped > state.skipped:
            warn(f"The model is not finite on batch {now.batches}; its {block.rows} rows were left out.")
        elif now.rows > state.rows:
            self._sample.add(block, now.batches)
            if now.moved > _FAR or self._strayed(now) > _STRAYED:
                anew = self._begin(self._sample.drawn.block(), [state.theta, self._parameters.start])
                counts = {name: getattr(now, name) for name in ("batches", "rows", "dropped", "skipped", "forgotten")}
                now = dataclasses.replace(anew, restarts=now.restarts + 1, **counts)
            self._note(now)
        self._state = now

    def _strayed(self, state: StreamState) -> float:
        """Return how far the estimate is from where batches were linearised, beside what noise makes of that."""
        return self._solver.strayed(state) / (len(state.theta) * math.log(math.e + state.batches))

    def _note(self, state: StreamState) -> None:
        factor, s2 = self._solver.factor(state), self._solver.spread(state) ** 2
        error = np.sqrt(np.diag(inference.covariance(factor, s2, self._parameters.side(state.theta) == 0)))
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
        free, own = self._parameters.free, ["batch", "rows", "moved"]
        names = [*own, *columns_of(free, own), *(f"{name} stderr" for name in free)]
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
        if self._state is None or self._state.sums is None:
            rows = sum(block.rows for block in self._waiting)
            if rows < (fewest := self._parameters.fewest_rows):
                raise TooFewRows(
                    f"{rows} rows have come, for {self._parameters.p} parameters; at least {fewest} are needed."
                )
            self._warm_up()
        state, solver, parameters = self._state, self._solver, self._parameters
        assert state is not None and state.sums is not None
        sums, cost, theta = solver.with_prior(state), solver.cost(state), state.theta.copy()
        side = parameters.side(theta)
        believed = 0.0 if solver.prior is None else solver.prior.chisqr(theta)
        statistics = inference.statistics(sums, cost, int((side == 0).sum()), solver.absolute_sigma, believed)
        statistics = dataclasses.replace(statistics, n_obs=round(statistics.n_obs), dof=round(statistics.dof))
        factor = solver.factor(state)
        s2 = 1.0 if solver.absolute_sigma else statistics.redchi if statistics.dof > 0 else np.inf
        free_cov = inference.covariance(factor, s2, side == 0)
        notes = self._notes(state)
        notes += reservations(parameters.free, side, inference.entangled(factor, theta, free_cov, side == 0))
        notes += differences_taken(parameters.free, sums, "batch")
        popt, pcov, active = expand(parameters, self._objective, theta, free_cov, side)
        warn_of_open_ends(parameters.names, pcov)
        gradient = factor.r.T @ (factor.z + factor.r @ (theta - state.origin))
        return FitResult(
            names=parameters.names,
            popt=popt,
            pcov=pcov,
            cost=cost,
            optimality=float(np.abs(np.where(side == 0, gradient, 0.0)).max()),
            statistics=statistics,
            n_dropped=state.dropped,
            condition_number=factor.condition,
            active_mask=active,
            status=self._status(state, ~np.isfinite(np.diag(free_cov))),
            sweeps={"cost": [cost], "step": [state.moved], "seconds": [self._seconds]},
            provenance=self._provenance(state),
            notes=notes,
            shipped=ship(self._objective),
            columns=self._columns,
            factor=factor,
        )

    def _status(self, state: StreamState, open_ends: npt.NDArray[np.bool_]) -> Status:
        """Judge the estimate, by the sample of the rows too; `open_ends` (p,) are those without a finite variance."""
        sample = self._sample.drawn.block()
        settled = state.moved <= _SETTLED and self._strayed(state) <= _STRAYED
        if not settled or not agrees(self._objective, self._solver, state, sample):
            return Status.UNSETTLED
        silent = open_ends & (kernel.reduce_block(self._objective, sample, state.theta, None).gram.diagonal()[:-1] == 0)
        if self._solver.prior is not None:
            silent &= self._solver.prior.weight == 0
        if silent.any() and speak_elsewhere(self._objective, self._parameters, sample, state.theta, silent):
            return Status.SILENT
        return Status.STREAMED

    def _provenance(self, state: StreamState) -> dict[str, Any]:
        return {
            "model": self._model.name,
            "data": "batches",
            "partitions": state.batches,
            "executor": "serial",
            "seconds": self._seconds,
            "rows_per_second": state.rows / max(self._seconds, 1e-9),
            "peak_memory": peak_memory(),
        }

    def _notes(self, state: StreamState) -> tuple[str, ...]:
        notes = [f"Each of {state.rows:,} rows was seen once; no pass over all of them has certified the answer."]
        if state.skipped:
            notes.append(f"The model was not finite on {state.skipped} batches, which were left out.")
        if state.restarts:
            notes.append(
                f"{state.restarts} batches moved the estimates so far that the sums were begun anew from a sample; "
                f"what is known rests on {round(state.sums.rows) if state.sums else 0:,} rows."
            )
        if state.forgotten:
            notes.append(f"{state.forgotten} batches contradicted what came before them, which then counted for less.")
        return tuple(notes)

    # --- files --------------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write all that is known to one file; the model is not in it.

        The file is complete or the old one stays: it is written beside and then renamed. It is a Zarr group in a zip,
        and holds no pickle.
        """
        waiting = concatenate(self._waiting) if self._waiting else None
        saved = _Saved(
            identity=to_text(self._identity() | {"versions": versions()}),
            weighted=self._objective.weighted,
            start=self._parameters.start,
            waiting=None if waiting is None else _Rows(np.stack(waiting.wide().columns), waiting.dropped),
            sample=self._sample.drawn,
            state=self._state,
            history=np.array(self._history, float),
            seconds=self._seconds,
        )
        archive.save(path, saved)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Any, **options: Any) -> StreamingFitter:
        """Go on from a file that `save` wrote, with the same model and options.

        Raises
        ------
        CheckpointCorrupt
            The file is damaged.
        NlsqError
            It is of another model or other options; the message says what differs.
        """
        fitter = cls(model, **options)
        try:
            saved = archive.load(_Saved, path)
            there = dict(from_text(saved.identity))
            if there.get("free") == list(fitter._parameters.free):
                fitter._parameters = dataclasses.replace(fitter._parameters, start=saved.start)
            here = fitter._identity()
        except (CheckpointCorrupt, TypeError, ValueError) as error:
            raise CheckpointCorrupt(f"{str(path)!r} is no whole file of a StreamingFitter: {error}") from error
        strict = not other_writers(there.pop("versions", {}))
        if "model" not in there:  # which files had not at first
            del here["model"]
        if differs := differences(there, here, strict):
            said = "; ".join(f"{name}: {text}" for name, text in differs.items())
            raise NlsqError(
                f"{str(path)!r} is of another fit. {said}. Load it with the model and options that it was saved with."
            )
        fitter._objective = dataclasses.replace(fitter._objective, weighted=saved.weighted)
        fitter._waiting = [] if saved.waiting is None else [saved.waiting.block(saved.weighted)]
        fitter._sample.drawn = saved.sample
        fitter._state = saved.state
        fitter._history = saved.history.tolist()
        fitter._seconds = saved.seconds
        return fitter

    def _identity(self) -> dict[str, Any]:
        """Return what must be the same for a file to be gone on from."""
        prior, start = self._parameters.prior, self._parameters.start
        computes = functools.partial(program, self._objective, start)
        return {
            "format": _FORMAT,
            "parameters": list(self._parameters.names),
            "free": list(self._parameters.free),
            "fixed": dict(self._parameters.fixed),
            "tied": {name: tie.text for name, tie in self._parameters.tied.items()},
            "prior": None if prior is None else [prior.mean.tolist(), prior.weight.tolist()],
            "nan_policy": self._columns.nan_policy,
            "columns": [*self._columns.x, self._columns.y],
            "lower": self._parameters.lower.tolist(),
            "upper": self._parameters.upper.tolist(),
            "absolute_sigma": self._solver.absolute_sigma,
            "forget": self._solver.forget,
            "model": once(self._objective, ("program", start.tobytes()), computes),
        }


@dataclasses.dataclass(frozen=True)
class _Rows:
    """Rows that wait for the first estimate."""

    columns: Matrix  # (columns, rows): x, y, and the weight where there is one
    dropped: int

    def block(self, weighted: bool) -> Block:
        *x, y = self.columns[:-1] if weighted else self.columns
        return Block(tuple(x), y, self.columns[-1] if weighted else None, self.dropped)


@dataclasses.dataclass(frozen=True)
class _Saved:
    """What a file holds."""

    identity: Text  # what must be the same for it to be gone on from
    weighted: bool
    start: Vector  # a guess, it may be
    waiting: _Rows | None
    sample: Drawn
    state: StreamState | None
    history: Matrix  # (updates, columns)
    seconds: float


def _fit_rows(objective: Objective, names: Sequence[str], solver: TrustRegion, block: Block, start: Vector) -> State:
    """Fit rows in memory from a start (p,): the loop as it reads."""
    state = solver.init(start)
    while state.status is None:
        request = solver.request(state)
        whitening = None if request.whitening is None else request.whitening.s
        reduction = kernel.reduce_block(objective, block, request.theta, whitening)
        if state.point is None and not reduction.finite:
            raise explain(objective, names, start, faults.find(objective, block, start), part="batch")
        state = solver.step(state, reduction)
    return state


def _is_share(value: Any) -> bool:
    """Whether this is a number above 0, up to 1."""
    return isinstance(value, numbers.Real) and 0 < float(value) <= 1


def _array(values: Any) -> Any:
    return values if hasattr(values, "dtype") else np.asarray(values)
