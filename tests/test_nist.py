"""NIST's 27 nonlinear problems from both starts, with default options: certified digits, also for a million rows."""

import functools
import itertools
import math

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from nist import PROBLEMS

from dask_nlsq import Model

CASES = [(problem, start) for problem in PROBLEMS for start in (0, 1)]
IDS = [f"{problem.name}-{start + 1}" for problem, start in CASES]
WITH_FIRST_STARTS_FAST = [case if case[1] == 0 else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
ROWS = 1_000_000  # above them a fit stops at a ten-thousandth of a standard error, which is fewer digits
EQUAL_TERMS = {"MGH17": [("b2", "b4"), ("b3", "b5")]}  # from start 1, rounding decides which exponential is which
MIRRORED = {"Eckerle4": ["b1", "b2"]}  # the curve is the same where both change sign
FAINT = {"Lanczos1": 3}  # its residuals are rounding errors, and its standard errors are their size


def digits(values, certified):
    """Correct digits of the worst value, at most the 11 that NIST certifies."""
    error = np.abs(np.asarray(values) - certified) / np.abs(certified)
    worst = float(np.max(error))  # a NaN stays one, and fails
    return min(11.0, -math.log10(worst)) if worst else 11.0


@functools.cache
def solve(problem, start, repeats=1):
    """Fit the rows, repeated so often, from one of the two starts."""
    columns = {name: np.tile(values, repeats) for name, values in (problem.x | {"y": problem.y}).items()}
    rows = dd.from_pandas(pd.DataFrame(columns), npartitions=4)
    p0 = dict(zip(problem.parameters, problem.starts[start], strict=True))
    return rows.nlsq.fit(Model.from_expression(problem.expression), p0=p0)


def scores(problem, start, repeats=1):
    """Digits of the parameters and of the standard errors."""
    result = solve(problem, start, repeats)
    n, p = len(problem.y), len(problem.params)
    # Repeating r times leaves s²(JᵀJ)⁻¹ = (r rss / (r n − p)) (r JᵀJ)⁻¹, so only the degrees of freedom differ.
    shrunk = np.array(problem.stderr) * np.sqrt((n - p) / (repeats * n - p))
    params = result.params.copy()
    mirrored = MIRRORED.get(problem.name, [])
    params[mirrored] *= np.sign(params[mirrored[:1]].iloc[0]) if mirrored else 1.0
    return max(
        (digits(params[names], problem.params), digits(result.stderr[names], shrunk)) for names in labellings(problem)
    )


def labellings(problem):
    """Yield the names of the parameters, in every order that names the same curve: equal terms may change places."""
    terms = EQUAL_TERMS.get(problem.name, ())
    for order in itertools.permutations(terms):
        other = {old: new for one, two in zip(terms, order, strict=True) for old, new in zip(one, two, strict=True)}
        yield [other.get(name, name) for name in problem.parameters]


@pytest.mark.crossed
@pytest.mark.parametrize(("problem", "start"), WITH_FIRST_STARTS_FAST, ids=IDS)
def test_certified(problem, start):
    parameters, errors = scores(problem, start)
    result = solve(problem, start)
    assert result.success
    assert parameters >= 6
    assert errors >= FAINT.get(problem.name, 6)
    assert result.dof == problem.dof == len(problem.y) - len(problem.params)
    # Those of the Lanczos problems lie far below the data, whose rounding limits them.
    assert result.chisqr == pytest.approx(problem.rss, rel=1e-8, abs=1e-15 * np.square(problem.y).sum())


@pytest.mark.slow
def test_mean_digits():
    """Digits of the worst parameter, averaged over the cases."""
    assert np.mean([scores(problem, start)[0] for problem, start in CASES]) >= 9.3


@pytest.mark.slow
@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.name)
def test_certified_at_a_million_rows(problem):
    parameters, errors = scores(problem, 1, ROWS // len(problem.y))
    assert parameters >= 6
    assert errors >= (2 if problem.name in FAINT else 6)  # the sum of a million rounding errors
