"""Metamorphic tests, which need no reference: changes of the data or the model with a known effect on the result."""

import functools

import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from problems import decay, decay_rows

import dask_nlsq

pytestmark = pytest.mark.slow

N = 120
T, Y = decay_rows(N, seed=11)
SIGMA = np.linspace(0.1, 0.4, N)
P0 = [2.0, 1.0, 0.1]
ROUNDING = 1e-7
"""Fits stop at 1e-8 standard errors; other sums round otherwise, and the standard errors follow the parameters."""

law = settings(max_examples=4, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
factors = st.sampled_from([-1e6, -3.0, 1e-6, 0.1, 7.0, 1e4])
seeds = st.integers(0, 2**32 - 1)


def frame(t=T, y=Y, s=SIGMA):
    return pd.DataFrame({"t": t, "y": y, "s": s})


def solve(t=T, y=Y, s=SIGMA, model=decay, p0=P0, **options):
    return dask_nlsq.fit(model, data=frame(t, y, s), sigma="s", p0=p0, **options)


@functools.cache
def plain():
    return solve()


def assert_same(result, base=None, scale=1.0, errors=1.0, tolerance=ROUNDING):
    """Parameters, divided by `scale`, agree in standard errors; standard errors by the known ratio `errors`."""
    base = base or plain()
    assert result.success and base.success
    gap = np.abs(result.popt / scale - base.popt) / base.stderr.to_numpy()
    assert gap.max() < tolerance
    np.testing.assert_allclose(result.stderr / np.abs(scale), errors * base.stderr.to_numpy(), rtol=tolerance)


@given(seed=seeds)
@law
def test_permuted_rows(seed):
    order = np.random.default_rng(seed).permutation(N)
    assert_same(solve(T[order], Y[order], SIGMA[order]))


@given(cuts=st.lists(st.integers(0, N), max_size=6))
@law
def test_cuts_at_any_row_and_empty_partitions(cuts):
    edges = [0, *sorted(cuts), N]
    parts = dd.from_map(lambda i: frame()[edges[i] : edges[i + 1]], range(len(edges) - 1), meta=frame()[:0])
    result = parts.nlsq.fit(decay, sigma="s", p0=P0)
    assert_same(result)
    assert (result.n_obs, result.dof) == (plain().n_obs, plain().dof)


@given(before=st.integers(1, 9), after=st.integers(1, 9))
@law
def test_repartitioned(before, after):
    rows = dd.from_pandas(frame(), npartitions=before)
    assert_same(rows.repartition(npartitions=after).nlsq.fit(decay, sigma="s", p0=P0))


@given(times=st.integers(2, 40), absolute_sigma=st.booleans())
@law
def test_tiled_rows_shrink_the_standard_errors(times, absolute_sigma):
    """Repeating r times gives s²(JᵀJ)⁻¹ = (r χ² / (r n − p)) (r JᵀJ)⁻¹, and (r JᵀJ)⁻¹ where sigma is absolute."""
    result = solve(*(np.tile(c, times) for c in (T, Y, SIGMA)), absolute_sigma=absolute_sigma)
    base = solve(absolute_sigma=absolute_sigma)
    dof = 1.0 if absolute_sigma else times * (N - 3) / (times * N - 3)
    assert_same(result, base, errors=np.sqrt(dof / times))


@given(seed=seeds)
@law
def test_integer_weights_are_repetitions(seed):
    counts = np.random.default_rng(seed).integers(1, 6, N)
    weighted = solve(s=1 / np.sqrt(counts), absolute_sigma=True)
    repeated = solve(*(np.repeat(c, counts) for c in (T, Y, np.ones(N))), absolute_sigma=True)
    assert_same(weighted, repeated)
    assert weighted.cost == pytest.approx(repeated.cost, rel=1e-12)


@given(factor=factors)
@law
def test_scaled_y_scales_the_linear_parameters(factor):
    scale = np.array([factor, 1.0, factor])
    assert_same(solve(y=factor * Y, p0=scale * P0), scale=scale)


@given(shift=st.sampled_from([-1e3, -7.0, 0.3, 50.0, 1e4]))
@law
def test_shifted_x_with_a_shifted_model(shift):
    t = T + shift
    shifted = lambda t, amplitude, rate, offset: decay(t - shift, amplitude, rate, offset)  # noqa: E731
    assert_same(solve(t, model=shifted), solve(t - shift))  # the same rounded t


@given(powers=st.tuples(*[st.integers(-40, 40)] * 3))
@law
def test_parameters_rescaled_by_powers_of_two(powers):
    scale = 2.0 ** np.array(powers)
    rescaled = lambda t, a, b, c: decay(t, *(v / k for v, k in zip((a, b, c), scale, strict=True)))  # noqa: E731
    assert_same(solve(model=rescaled, p0=scale * P0), scale=scale)


@given(factor=st.sampled_from([1e-6, 0.2, 3.0, 1e5]), absolute_sigma=st.booleans())
@law
def test_scaled_sigma(factor, absolute_sigma):
    result = solve(s=factor * SIGMA, absolute_sigma=absolute_sigma)
    base = solve(absolute_sigma=absolute_sigma)
    # An absolute sigma far above the scatter lets the fit stop early, at a small part of these larger errors.
    assert_same(result, base, errors=factor if absolute_sigma else 1.0, tolerance=ROUNDING * max(1.0, factor))


@given(
    f_scale=st.sampled_from([1e3, 1e6, 1e12]), loss=st.sampled_from(["huber", "soft_l1", "cauchy", "arctan", "tukey"])
)
@law
def test_a_huge_f_scale_is_linear(f_scale, loss):
    residual = np.abs(decay(T, *plain().popt) - Y) / SIGMA
    bend = (residual.max() / f_scale) ** 2  # largest relative change of a weight
    assert_same(solve(loss=loss, f_scale=f_scale), tolerance=ROUNDING + 10 * bend)


@given(room=st.floats(3.0, 1e6), sided=st.sampled_from(["lower", "upper", "both"]))
@law
def test_inactive_bounds_are_none(room, sided):
    lower = np.full(3, -np.inf) if sided == "upper" else plain().popt - room
    upper = np.full(3, np.inf) if sided == "lower" else plain().popt + room
    result = solve(bounds=(lower, upper))
    assert_same(result)
    assert not result.active_mask.any()


@given(start=st.sampled_from([0.3, 1.0, 2.5]))
@law
def test_a_rate_by_its_logarithm(start):
    by_log = lambda t, amplitude, log_rate, offset: decay(t, amplitude, jnp.exp(log_rate), offset)  # noqa: E731
    result = solve(model=by_log, p0=[2.0, np.log(start), 0.1])
    base = solve(p0=[2.0, start, 0.1])
    rate = base.params["rate"]
    assert result.popt[1] == pytest.approx(np.log(rate), abs=ROUNDING * base.stderr["rate"])
    np.testing.assert_allclose(result.stderr, base.stderr.to_numpy() / [1, rate, 1], rtol=ROUNDING)
    assert result.cost == pytest.approx(base.cost, rel=1e-12)


@given(extra=st.integers(1, 200), where=st.integers(0, N), value=st.sampled_from([0.0, -1e3, 1e6]))
@law
def test_rows_of_infinite_sigma_are_none(extra, where, value):
    columns = [np.insert(c, [where] * extra, v) for c, v in ((T, 1.0), (Y, value), (SIGMA, np.inf))]
    assert_same(solve(*columns))


@given(seed=seeds)
@law
def test_equal_terms_may_be_swapped(seed):
    rng = np.random.default_rng(seed)
    two = lambda t, a, b, c, d: a * jnp.exp(-b * t) + c * jnp.exp(-d * t)  # noqa: E731
    y = 3 * np.exp(-2.5 * T) + 2 * np.exp(-0.4 * T) + rng.normal(0, 0.01, N)
    start = np.array([2.5, 2.0, 2.5, 0.5])
    swap = [2, 3, 0, 1]
    one, other = solve(y=y, model=two, p0=start), solve(y=y, model=two, p0=start[swap])
    assert np.max(np.abs(other.popt[swap] - one.popt) / one.stderr) < ROUNDING
    # The condition number of some tens multiplies what the parameters leave uncertain.
    np.testing.assert_allclose(other.stderr.to_numpy()[swap], one.stderr, rtol=1e-6)
