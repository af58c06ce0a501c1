"""Nonlinearity: an estimate that has moved too far from where batches were linearised, and what is done about it."""

from __future__ import annotations

import contextlib
import dataclasses
import math

from dask_nlsq._errors import ModelError
from dask_nlsq._solver import Streaming, StreamState, preconditioner
from dask_nlsq._streaming.estimator import Estimator
from dask_nlsq._streaming.relinearise import Relinearised, Slices, relinearise
from dask_nlsq._streaming.reservoir import Drawn
from dask_nlsq._typing import Vector

STRAYED = 3.0
"""Distance from the points of linearisation, beside what noise explains, that shows that the model was not linear on
the way. In random order it stays below 2; where sorted rows led several standard errors astray it was above 4."""

_FAR = 5.0
"""Standard errors; a batch that moves the estimate farther shows the same."""

_VAGUE = 1e6
"""Condition of the scaled Jacobian from which a step may be long in the parameters and short in standard errors."""

_SEARCHES = 4
"""Times that the sums are begun anew from the best of several starts; later, the last estimate is a good one."""

_COUNTS = ("batches", "rows", "dropped", "skipped", "forgotten", "set_aside")
"""What a state counts that begins anew."""


def strayed(solver: Streaming, state: StreamState) -> float:
    """Return how far the estimate is from where batches were linearised, beside what noise makes of that."""
    return solver.strayed(state) / (len(state.theta) * math.log(math.e + state.batches))


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What is kept of the rows of a stream beside their sums: a sample of them, and the sums slice by slice."""

    sample: Drawn
    slices: Slices

    def steadied(self, estimator: Estimator, state: StreamState, rows_before: int) -> tuple[StreamState, Slices]:
        """Return a state and its slices, relinearised where the estimate has moved too far.

        Parameters
        ----------
        estimator : Estimator
            What is fitted, and how.
        state : StreamState
            The sums, the last batch among them.
        rows_before : int
            Rows of the stream before that batch.
        """
        solver = estimator.solver
        far = state.moved > _FAR or strayed(solver, state) > STRAYED
        if solver.forget == 1 and not far and solver.factor(state).condition > _VAGUE:
            far = not estimator.agrees(state, self.sample.block())
        # Whenever the rows pass a power of two, so that the fits of the sample number the logarithm of the rows.
        if solver.forget == 1 and state.rows.bit_length() > rows_before.bit_length():
            far = far or estimator.is_contradicted(state, self.sample.block())
        if solver.forget is None or not far:  # batches that mislead are forgotten as those of another process
            return state, self.slices
        starts = [state.origin]
        if state.restarts < _SEARCHES or solver.forget != 1:
            starts += [state.theta, estimator.parameters.start]
        try:
            anew = estimator.begin(self.sample.block(), starts)
        except ModelError:  # nowhere finite on all of the sample: told as not settled, until more rows are known
            return state, self.slices
        if solver.forget == 1:
            relinearised = self._relinearise(estimator, state, anew.origin)
            if relinearised.converged:
                factor = solver.factor(relinearised.state)
                anew = solver.moved(relinearised.state, solver.init(relinearised.state.theta, preconditioner(factor)))
        slices = dataclasses.replace(self.slices, gram=solver.about(state, anew, self.slices.gram))
        kept = {name: getattr(state, name) for name in _COUNTS}
        return dataclasses.replace(anew, restarts=state.restarts + 1, **kept), slices

    def relinearised(self, estimator: Estimator, state: StreamState) -> Relinearised:
        """Return what is known, relinearised at the estimate where nothing is to be forgotten."""
        if estimator.solver.forget != 1:
            return Relinearised(state, True, False)
        sample = self.sample.block()
        if state.restarts == 0:
            near = self._relinearise(estimator, state, None)
            if near.converged and not estimator.is_contradicted(near.state, sample):
                return near
        starts = [state.theta, state.origin, estimator.parameters.start]
        with contextlib.suppress(ModelError):  # which leaves it as it is, and not converged
            return self._relinearise(estimator, state, estimator.fit(sample, starts)[0])
        return Relinearised(state, False, False)

    def _relinearise(self, estimator: Estimator, state: StreamState, start: Vector | None) -> Relinearised:
        return relinearise(estimator.objective, estimator.solver, state, self.sample, self.slices, start)
