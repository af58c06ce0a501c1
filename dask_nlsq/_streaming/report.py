"""Report: what a stream knows so far, as the result of a fit."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt

from dask_nlsq._fit import differences_taken, expand, reservations, responds_elsewhere, warn_of_open_ends
from dask_nlsq._kernel import kernel
from dask_nlsq._result import FitResult
from dask_nlsq._solver import FACTORS, Status, StreamState, inference
from dask_nlsq._sources import Columns
from dask_nlsq._streaming.estimator import Estimator
from dask_nlsq._streaming.nonlinearity import STRAYED, strayed
from dask_nlsq._streaming.relinearise import Relinearised
from dask_nlsq._streaming.reservoir import Drawn
from dask_nlsq._sweep import serialize
from dask_nlsq._system import peak_memory

_ODD = 0.1
"""Share of the batches above which those that are set aside are no outliers."""

_SETTLED = 1.0
"""Standard errors by which the last batch may have moved the estimate."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What is reported of a stream, beside its state."""

    model: str
    columns: Columns
    estimator: Estimator
    sample: Drawn
    seconds: float

    def result(self, relinearised: Relinearised) -> FitResult:
        """Return what is known, as `fit` returns it."""
        state, solver, parameters = relinearised.state, self.estimator.solver, self.estimator.parameters
        cost, theta = solver.cost(state), state.theta.copy()
        side = parameters.side(theta)
        statistics = self._statistics(state, cost, int((side == 0).sum()))
        factor = solver.factor(state)
        s2 = statistics.residual_variance(solver.absolute_sigma)
        free_cov = solver.covariance(state, s2, side == 0)
        notes = self._notes(state)
        notes += reservations(parameters.free, side, inference.entangled(factor, theta, free_cov, side == 0))
        notes += differences_taken(parameters.free, state.totals, "batch")
        popt, pcov, active = expand(parameters, self.estimator.objective, theta, free_cov, side)
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
            sweeps={"cost": [cost], "step": [state.moved], "seconds": [self.seconds]},
            provenance=self._provenance(state),
            notes=notes,
            payload=serialize(self.estimator.objective),
            columns=self.columns,
            absolute_sigma=solver.absolute_sigma,
            factor=factor,
        )

    def _statistics(self, state: StreamState, cost: float, p: int) -> inference.Statistics:
        """Return the statistics of the rows; where old ones count for less, the degrees of freedom are effective."""
        solver = self.estimator.solver
        believed = 0.0 if solver.prior is None else solver.prior.chisqr(state.theta)
        of_sums = inference.statistics(solver.with_prior(state), cost, p, solver.absolute_sigma, believed)
        n, dof, redchi = round(of_sums.n_obs), round(of_sums.dof), of_sums.redchi
        if solver.forget != 1:
            dof = round(solver.effective_rows(state)) - p
            redchi = solver.residual_variance(state)
        return dataclasses.replace(of_sums, n_obs=n, dof=dof, redchi=redchi if dof > 0 else float("nan"))

    def _status(self, relinearised: Relinearised, open_ends: npt.NDArray[np.bool_]) -> Status:
        """Judge the estimate, by the sample of the rows too; `open_ends` (p,) are those without a finite variance."""
        estimator, sample, state = self.estimator, self.sample.block(), relinearised.state
        if not relinearised.converged or _is_contradicted(state):
            return Status.NOT_SETTLED
        drifts = state.bank is not None and state.bank.best > 0  # then the sample is of what the process was, too
        astray = not (drifts or relinearised.changed) and strayed(estimator.solver, state) > STRAYED
        if astray or (state.moved > _SETTLED and not relinearised.changed):
            return Status.NOT_SETTLED
        if not drifts and not estimator.agrees(state, sample):
            return Status.NOT_SETTLED
        gram = kernel.reduce_block(estimator.objective, sample, state.theta, None).gram
        silent = open_ends & (gram.diagonal()[:-1] == 0)
        if estimator.solver.prior is not None:
            silent &= estimator.solver.prior.weight == 0
        if silent.any() and responds_elsewhere(estimator.objective, estimator.parameters, sample, state.theta, silent):
            return Status.UNIDENTIFIABLE
        return Status.STREAMED

    def _provenance(self, state: StreamState) -> dict[str, Any]:
        return {
            "model": self.model,
            "loss": "linear",
            "data": "batches",
            "partitions": state.batches,
            "executor": "serial",
            "seconds": self.seconds,
            "rows_per_second": state.rows / max(self.seconds, 1e-9),
            "peak_memory": peak_memory(),
        }

    def _notes(self, state: StreamState) -> tuple[str, ...]:
        notes = [f"Each of {state.rows:,} rows was seen once; no pass over all of them has certified the answer."]
        if state.skipped:
            notes.append(f"The model was not finite on {state.skipped} batches, which were left out.")
        if state.restarts:
            notes.append(
                f"{state.restarts} batches moved the estimates so far that the sums were begun anew from a sample of "
                f"{len(self.sample.rows):,} rows and those batches that were linearised near the estimates; the "
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


def _is_contradicted(state: StreamState) -> bool:
    """Whether a batch waits to be confirmed, or more than a few were set aside."""
    return state.pending is not None or state.set_aside > max(_ODD * state.batches, 2)
