"""Output: a fit's result as SciPy returns it: pcov, infodict, mesg and ier.

`fit_rows` and `fit_whole` make one; `curve_fit` takes it apart. Under "lm" the rules are those of MINPACK, else those
of `least_squares`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import linalg

from dask_nlsq._curve_fit.call import Call
from dask_nlsq._result import FitResult
from dask_nlsq._solver import EPS, Status
from dask_nlsq._typing import Matrix

_MINPACK = {1: 4, 2: 1, 3: 2, 4: 3}
"""`leastsq`'s number for what `least_squares` calls by another."""

_RENAMED = {
    Status.CONVERGED: Status.XTOL,
    Status.STREAMED: Status.XTOL,
    Status.PRECISION: Status.XTOL,
    Status.ROUNDING: Status.BOTH,
    Status.UNIDENTIFIABLE: Status.GTOL,
}
"""SciPy's nearest names for tests that it does not have."""


@dataclasses.dataclass(frozen=True)
class Output:
    """The result of a call, in SciPy's terms."""

    call: Call
    result: FitResult
    rows: int
    fvec: Callable[[], Any]  # the weighted residuals

    @property
    def silent(self) -> bool:
        """Whether some parameters move nothing where the fit ended, which SciPy takes for a minimum."""
        return self.result.status is Status.UNIDENTIFIABLE

    @property
    def success(self) -> bool:
        """Whether SciPy would return it."""
        return self.result.success or self.silent

    @property
    def message(self) -> str:
        """Why the fit stopped."""
        if self.result.status is Status.MAX_NFEV:
            passes = self.result.nfev
            return f"The maximum number of function evaluations is exceeded ({passes} passes over the data)."
        return self.result.message

    @property
    def code(self) -> int:
        """The same as a number, 1 to 4."""
        code = int(_RENAMED.get(self.result.status, self.result.status))
        return _MINPACK[code] if self.call.lm else code

    @property
    def covariance(self) -> Matrix | None:
        """The covariance by SciPy's rules, or None where they give none."""
        factor, dof = self.result.factor, self.rows - self.call.p
        if factor is None or self.silent or (not self.call.absolute_sigma and dof <= 0):
            return None
        if factor.determined.all():
            _, sigma, vt = factor.svd
            half = vt.T / sigma / factor.norms[:, None]
        elif self.call.lm:
            return None
        else:  # SciPy's pseudo-inverse, of the Jacobian as it is
            _, sigma, vt = np.linalg.svd(factor.r)
            # The threshold below which SciPy leaves a singular value out.
            seen = sigma > EPS * max(self.rows, factor.p) * sigma[0]
            half = vt[seen].T / sigma[seen]
        cov: Matrix = half @ half.T
        return cov if self.call.absolute_sigma else cov * (2.0 * self.result.cost / dof)

    @property
    def info(self) -> dict[str, Any]:
        """The residuals, and under "lm" the triangle with its diagonal in descending order by MINPACK's names."""
        info = {"nfev": self.result.nfev, "fvec": self.fvec()}
        factor = self.result.factor
        if factor is None or not self.call.lm:
            return info
        # MINPACK pivots, so that the diagonal falls, and stores R by columns. Its n columns may exceed memory, so that
        # there are p.
        q, r, order = linalg.qr(factor.r, pivoting=True)
        return info | {"fjac": r.T, "ipvt": order.astype(np.int32), "qtf": q.T @ factor.z}
