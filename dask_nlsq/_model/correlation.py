r"""Correlation: how the residuals of a group of rows depend on one another, and what a row is told of its group.

With the correlation matrix R of the rows of a group, whose weighted residuals are z, a fit minimises the sum over
groups of :math:`\tfrac12 z^T R^{-1} z` (generalised least squares). Combinations e of the residuals are independent:

===============  ===============================  ===========================================================
"ar1"            :math:`R_{ij} = \rho^{|i-j|}`    :math:`e_1 = z_1`, and
                                                  :math:`e_i = (z_i - \rho z_{i-1}) / \sqrt{1 - \rho^2}`
"exchangeable"   :math:`R_{ij} = \rho`            :math:`e_i = (z_i - \lambda \bar z) / \sqrt{1 - \rho}` with the
                                                  mean of the group and, of n rows,
                                                  :math:`\lambda = 1 - \sqrt{(1 - \rho) / (1 + (n - 1) \rho)}`
===============  ===============================  ===========================================================

So that each row can be reduced by itself, it brings along what it needs of its group: the row before it, where the
model is evaluated too, or the mean of the group, linear in the parameters about the last estimate.
"""

from __future__ import annotations

from collections.abc import Sequence

CORRELATIONS = ("ar1", "exchangeable")
"""Kinds of correlation inside a group of rows."""


def columns_beside(kind: str, inputs: Sequence[str], free: Sequence[str]) -> tuple[str, ...]:
    """Return the columns of a block behind all others, which tell a row of its group.

    Parameters
    ----------
    inputs, free : sequence of str
        The columns that the model takes, and its free parameters.
    """
    if kind == "ar1":
        return (*(f"{name} of the row before" for name in inputs), "share of the row before")
    return tuple(f"share of the mean derivative by {name}" for name in free)
