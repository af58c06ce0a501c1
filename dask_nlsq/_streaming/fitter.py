"""StreamingFitter: a fit that learns from batches as they come, from anywhere, each seen once."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import math
import numbers
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from dask_nlsq._checkpoint import archive, to_text, versions
from dask_nlsq._errors import DataError, ModelError, NlsqError, TooFewRows, warn
from dask_nlsq._fit import (
    FitOptions,
    agrees,
    differences_taken,
    expand,
    explain,
    fitted,
    guess_start,
    optimizer_of,
    reservations,
    resolve_objective,
    responds_elsewhere,
    run_in_memory,
    to_model,
    warm_start,
    warn_of_open_ends,
)
from dask_nlsq._kernel import Block, Reduction, concatenate, faults, kernel, validate
from dask_nlsq._model import Objective
from dask_nlsq._result import FitResult, columns_of
from dask_nlsq._solver import (
    FACTORS,
    State,
    Status,
    Streaming,
    StreamState,
    TrustRegion,
    final,
    inference,
    preconditioner,
)
from dask_nlsq._sources import Columns
from dask_nlsq._streaming.batches import blocks, weighing
from dask_nlsq._streaming.relinearise import Relinearised, Slices, relinearise
from dask_nlsq._streaming.reservoir import Drawn, Reservoir
from dask_nlsq._streaming.saved import Rows, check, differing, identify, read
from dask_nlsq._streaming.saved import SavedFitter as _Saved
from dask_nlsq._sweep import non_finite, serialize
from dask_nlsq._system import peak_memory
from dask_nlsq._typing import Matrix, Vector

WARM_ROWS = 50
"""Rows for each parameter that are gathered before the first estimate, which is an ordinary fit of them."""

HISTORY = 10_000
"""Updates that the history holds before the older ones are thinned."""

SAMPLE = 4_000
"""Rows that are kept, at which the sums are relinearised."""

_FAR = 5.0
"""Standard errors; a batch that moves the estimate farther shows that the model was not linear on the way."""

_STRAYED = 3.0
"""Distance from the points of linearisation, beside what noise explains, that shows the same. In random order it stays
below 2; where sorted rows led several standard errors astray it was above 4."""

_ODD = 0.1
"""Share of the batches above which those that are set aside are no outliers."""

_VAGUE = 1e6
"""Condition of the scaled Jacobian from which a step may be long in the parameters and short in standard errors."""

_HARDLY = 1.0 + 1e-6
"""Rise of the cost of some rows that rounding explains, or a step that ends a fit."""

_SEARCHES = 4
"""Times that the sums are begun anew from the best of several starts; later, the last estimate is a good one."""

_SWEEPS = 30
"""Sweeps over the sample at most, each time."""

_COUNTS = ("batches", "rows", "dropped", "skipped", "forgotten", "set_aside")
"""What a state counts that begins anew."""

_SETTLED = 1.0
"""Standard errors by which the last batch may have moved the estimate."""


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
        robust: bool = False,
        method: Any = None,
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
        whole = [np.isfinite(column).all() for column in (*block.x, block.y)]
        if not all(whole) and (error := non_finite(block, self._objective.columns)):
            raise error

    @property
    def _empty(self) -> bool:
        return self._state is None and not self._waiting

    def _warm_up(self) -> None:
        """Fit the rows that have been gathered, and begin the sums there."""
        block = concatenate(self._waiting)
        parameters = self._parameters
        if parameters.guessed:
            parameters = guess_start(self._model, parameters, block)
        validate.check_rows(self._objective, block, parameters.start)
        starts = [parameters.start]
        if self._optimizer is not None:
            starts.insert(0, warm_start(self._objective, parameters, block, self._optimizer, 0).theta)
        begun = self._begin(block, starts, 4 * _SWEEPS)  # where that is refused, the rows wait on
        self._state, self._parameters, self._waiting = begun, parameters, []
        self._remember(block, begun.totals.gram, begun.origin)
        self._note(begun)

    def _begin(self, block: Block, starts: list[Vector], sweeps: int = _SWEEPS) -> StreamState:
        """Return the state that an ordinary fit of some rows leads to, from the start that leads lowest."""
        theta, state = self._fit_block(block, starts, sweeps)
        stream = self._solver.init(theta, preconditioner(state.at.factor))
        begun = self._solver.step(stream, self._reduce(block, stream).placed(1))
        return begun if self._falls(block, theta, begun.theta) else dataclasses.replace(begun, theta=theta)

    def _falls(self, block: Block, before: Vector, after: Vector) -> bool:
        """Whether the cost of some rows hardly rises from one estimate to another.

        Along a direction that the rows hardly see, the linear model may lead anywhere.
        """
        costs = [kernel.reduce_block(self._objective, block, theta, None).cost for theta in (before, after)]
        return bool(np.isfinite(costs[1]) and costs[1] <= _HARDLY * costs[0])

    def _reduce(self, block: Block, state: StreamState) -> Reduction:
        request = self._solver.request(state)
        whitening = None if request.whitening is None else request.whitening.s
        return kernel.reduce_block(self._objective, block, request.theta, whitening)

    def _fit_block(self, block: Block, starts: list[Vector], sweeps: int = _SWEEPS) -> tuple[Vector, State]:
        """Fit rows in memory from each start; return the lowest minimum."""
        lower, upper = self._parameters.lower, self._parameters.upper
        solver = TrustRegion(lower, upper, self._parameters.prior, tolerance=1e-3, max_nfev=sweeps)
        ends, refused = [], None
        for start in starts:
            try:
                ends.append(_fit_rows(self._objective, self._parameters.free, solver, block, start))
            except ModelError as error:
                refused = error
        if not ends and refused is not None:
            raise refused
        state = min(ends, key=_cost)
        theta = final(state, lower, upper)[0]
        return (theta if self._falls(block, state.at.theta, theta) else state.at.theta), state

    def _learn(self, state: StreamState, block: Block) -> None:
        reduction, theta = self._evaluate(state, block)
        reduction = reduction.placed(state.batches + 1)
        now = self._solver.step(state, reduction, theta)
        if now.skipped > state.skipped:
            warn(f"The model is not finite on batch {now.batches}; its {block.rows} rows were left out.")
        elif reduction.rows and now.pending is None:
            if now.forgotten > state.forgotten:
                self._slices, self._sample.drawn = Slices.empty(len(theta)), Drawn(np.empty((0, 0)))
            self._remember(block, self._solver.about_origin(state, reduction, theta).gram, theta)
            now = self._steadied(now)
            self._note(now)
        self._state = now

    def _remember(self, block: Block, gram: Matrix, theta: Vector) -> None:
        """Keep the sums of a batch that was linearised at `theta` (p,), and some of its rows."""
        place = self._slices.total + block.rows
        self._slices = self._slices.add(gram[None], np.array([float(block.rows)]), np.array([place]))
        self._sample.add(block, int(place), theta)

    def _evaluate(self, state: StreamState, block: Block) -> tuple[Reduction, Vector]:
        """Reduce a block at the estimate, or where the model is not finite there, at one that is safer."""
        first = self._reduce(block, state)
        if first.finite or not block.rows:
            return first, state.theta
        safer = [state.origin, self._parameters.start]
        with contextlib.suppress(ModelError):
            safer.insert(0, self._fit_block(self._sample.drawn.block(), [state.theta, *safer])[0])
        for theta in safer:
            found = self._reduce(block, dataclasses.replace(state, theta=theta))
            if found.finite:
                return found, theta
        return first, state.theta

    def _steadied(self, state: StreamState) -> StreamState:
        """Return a state relinearised where the estimate has moved too far from where batches were linearised."""
        far = state.moved > _FAR or self._strayed(state) > _STRAYED
        if self._solver.forget == 1 and not far and self._solver.factor(state).condition > _VAGUE:
            far = not agrees(self._objective, self._solver, state, self._sample.drawn.block())
        if self._doubled(state):
            far = far or self._contradicted_by_sample(state)
        if self._solver.forget is None or not far:  # batches that mislead are forgotten as those of another process
            return state
        starts, sample = [state.origin], self._sample.drawn.block()
        if state.restarts < _SEARCHES or self._solver.forget != 1:
            starts += [state.theta, self._parameters.start]
        try:
            anew = self._begin(sample, starts)
        except ModelError:  # nowhere finite on all of the sample: told as not settled, until more rows are known
            return state
        if self._solver.forget == 1:
            found = self._relinearise(state, anew.origin)
            if found.converged:
                target = self._solver.init(found.state.theta, preconditioner(self._solver.factor(found.state)))
                anew = self._solver.moved(found.state, target)
        slices = self._solver.about(state, anew, self._slices.gram)
        self._slices = dataclasses.replace(self._slices, gram=slices)
        kept = {name: getattr(state, name) for name in _COUNTS}
        return dataclasses.replace(anew, restarts=state.restarts + 1, **kept)

    def _doubled(self, state: StreamState) -> bool:
        """Whether the rows that have come have just passed a power of two."""
        before = 0 if self._state is None else self._state.rows
        return self._solver.forget == 1 and state.rows.bit_length() > before.bit_length()

    def _contradicted_by_sample(self, state: StreamState) -> bool:
        """Whether the sample lies lower at p0 than at the estimate: the first rows have led to another minimum."""
        return not agrees(self._objective, self._solver, state, self._sample.drawn.block(), self._parameters.start)

    def _relinearise(self, state: StreamState, start: Vector | None) -> Relinearised:
        return relinearise(self._objective, self._solver, state, self._sample.drawn, self._slices, start)

    def _strayed(self, state: StreamState) -> float:
        """Return how far the estimate is from where batches were linearised, beside what noise makes of that."""
        return self._solver.strayed(state) / (len(state.theta) * math.log(math.e + state.batches))

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
        assert self._state is not None
        relinearised = self._now(self._state)
        state, solver, parameters = relinearised.state, self._solver, self._parameters
        cost, theta = solver.cost(state), state.theta.copy()
        side = parameters.side(theta)
        statistics = self._statistics(state, cost, int((side == 0).sum()))
        factor = solver.factor(state)
        s2 = 1.0 if solver.absolute_sigma else statistics.redchi if statistics.dof > 0 else np.inf
        free_cov = solver.covariance(state, s2, side == 0)
        notes = self._notes(state)
        notes += reservations(parameters.free, side, inference.entangled(factor, theta, free_cov, side == 0))
        notes += differences_taken(parameters.free, state.totals, "batch")
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
            status=self._status(relinearised, ~np.isfinite(np.diag(free_cov))),
            sweeps={"cost": [cost], "step": [state.moved], "seconds": [self._seconds]},
            provenance=self._provenance(state),
            notes=notes,
            payload=serialize(self._objective),
            columns=self._columns,
            factor=factor,
        )

    def _now(self, state: StreamState) -> Relinearised:
        """Return what is known, relinearised at the estimate where nothing is to be forgotten."""
        if self._solver.forget == 1:
            found = self._relinearise(state, None) if state.restarts == 0 else None
            if found is not None and found.converged and not self._contradicted_by_sample(found.state):
                return found
            starts, sample = [state.theta, state.origin, self._parameters.start], self._sample.drawn.block()
            with contextlib.suppress(ModelError):  # which leaves it as it is, and not converged
                return self._relinearise(state, self._fit_block(sample, starts)[0])
            return Relinearised(state, False, False)
        return Relinearised(state, True, False)

    def _statistics(self, state: StreamState, cost: float, p: int) -> inference.Statistics:
        """Return the statistics of the rows; where old ones count for less, the degrees of freedom are effective."""
        solver = self._solver
        believed = 0.0 if solver.prior is None else solver.prior.chisqr(state.theta)
        found = inference.statistics(solver.with_prior(state), cost, p, solver.absolute_sigma, believed)
        n, dof, redchi = round(found.n_obs), round(found.dof), found.redchi
        if solver.forget != 1:
            dof = round(solver.effective_rows(state)) - p
            redchi = solver.residual_variance(state)
        return dataclasses.replace(found, n_obs=n, dof=dof, redchi=redchi if dof > 0 else float("nan"))

    def _status(self, found: Relinearised, open_ends: npt.NDArray[np.bool_]) -> Status:
        """Judge the estimate, by the sample of the rows too; `open_ends` (p,) are those without a finite variance."""
        sample, state = self._sample.drawn.block(), found.state
        if not found.converged or self._contradicted(state):
            return Status.NOT_SETTLED
        drifts = state.bank is not None and state.bank.best > 0  # then the sample is of what the process was, too
        strayed = not (drifts or found.changed) and self._strayed(state) > _STRAYED
        if strayed or (state.moved > _SETTLED and not found.changed):
            return Status.NOT_SETTLED
        if not drifts and not agrees(self._objective, self._solver, state, sample):
            return Status.NOT_SETTLED
        silent = open_ends & (kernel.reduce_block(self._objective, sample, state.theta, None).gram.diagonal()[:-1] == 0)
        if self._solver.prior is not None:
            silent &= self._solver.prior.weight == 0
        if silent.any() and responds_elsewhere(self._objective, self._parameters, sample, state.theta, silent):
            return Status.UNIDENTIFIABLE
        return Status.STREAMED

    def _contradicted(self, state: StreamState) -> bool:
        """Whether a batch waits to be confirmed, or more than a few were set aside."""
        return state.pending is not None or state.set_aside > max(_ODD * state.batches, 2)

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
                f"{state.restarts} batches moved the estimates so far that the sums were begun anew from a sample of "
                f"{len(self._sample.drawn.rows):,} rows and those batches that were linearised near the estimates; the "
                "standard errors allow for that."
            )
        if state.forgotten:
            notes.append(f"The process changed {state.forgotten} times; what came before the last change is forgotten.")
        if state.bank is not None and (factor := FACTORS[state.bank.best]) < 1:
            notes.append(f"The process drifts: each batch makes those before it count {factor:g} times as much.")
        if state.set_aside:
            notes.append(f"{state.set_aside} batches contradicted the others and were set aside.")
        if state.pending is not None:
            notes.append(f"The last {state.waiting} batches contradict the others; the next will show which are right.")
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
            waiting=None if waiting is None else Rows.of(waiting),
            sample=self._sample.drawn,
            state=self._state,
            history=np.array(self._history, float),
            seconds=self._seconds,
            slices=self._slices,
        )
        archive.save(path, saved)

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: Any, **options: Any) -> StreamingFitter:
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
        found = copy.copy(self)
        found._waiting, found._history = list(self._waiting), [list(row) for row in self._history]
        found._sample = copy.copy(self._sample)
        return found

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
        one, two = (other.copy(), self) if self._state is None else (self.copy(), other)
        one._seconds = self._seconds + other._seconds
        if one._state is None or two._state is None:
            for block in two._waiting:
                one._take(block)
            return one
        first, second = one._state, two._state
        moved = one._solver.moved(second, first)
        now = one._solver.merge(first, moved)
        slices = one._solver.about(second, first, two._slices.gram)
        before = one._slices.total
        one._sample.merge(two._sample.drawn, int(two._slices.total), int(before))
        one._slices = one._slices.add(slices, two._slices.rows, two._slices.last + before)
        one._state = one._steadied(now)
        one._note(one._state)
        return one

    def _check_same(self, other: StreamingFitter) -> None:
        parameters = dataclasses.replace(other._parameters, start=self._parameters.start)
        there = identify(parameters, other._objective, other._columns, other._solver)
        if text := differing(there, self._identity()):
            raise NlsqError(f"The two fitters are not of one fit. {text}. Make both with the same model and options.")
        if not (self._empty or other._empty) and self._objective.weighted != other._objective.weighted:
            raise NlsqError("sigma came with the batches of one fitter only; give it to both or to none.")


def _fit_rows(objective: Objective, names: Sequence[str], solver: TrustRegion, block: Block, start: Vector) -> State:
    """Fit rows in memory from a start (p,)."""
    state = run_in_memory(objective, block, fitted(solver, start))
    if state is None:
        raise explain(objective, names, start, faults.find(objective, block, start), part="batch")
    return state


def _cost(state: State) -> float:
    """Return the cost where the fit of some rows has ended, as measured and not as predicted a step ahead."""
    return state.at.reduction.cost


def _is_share(value: Any) -> bool:
    """Whether this is a number above 0, up to 1."""
    return isinstance(value, numbers.Real) and 0 < float(value) <= 1
