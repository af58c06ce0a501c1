"""Unusual but possible input, each with one expected outcome: a result, a warning or an error."""

import functools
import warnings

import dask.array as da
import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from problems import decay, decay_rows
from scipy.optimize import OptimizeWarning

import dask_nlsq
from dask_nlsq import BoundsError, DataError, ModelError, NlsqError, NlsqWarning

pytestmark = pytest.mark.slow

T, Y = decay_rows(400)
P0 = np.array([2.0, 1.0, 0.1])
HOLES = np.arange(400) % 10 == 0


@functools.cache
def plain():
    return dask_nlsq.fit(decay, T, Y, p0=P0)


def assert_same(result, base, scale=1.0, tolerance=1e-6):
    """Equal, apart from the scale of the parameters; fits stop at 1e-8 standard errors, or at rounding level."""
    assert result.success
    assert np.max(np.abs(result.popt / scale - base.popt) / base.stderr) < tolerance
    np.testing.assert_allclose(result.stderr / scale, base.stderr.to_numpy(), rtol=1e-6)


def assert_same_or_refused(solve, base, scale):
    """The same digits, an error, or an end that is no success or determines nothing: never the start as an answer."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)
        try:
            result = solve()
        except NlsqError:
            return
    if result.success and np.isfinite(result.stderr).any():
        assert_same(result, base, scale)


def line(t, a, b):
    return a + b * t


class TestTrials:
    """B4: what is not finite at a trial is a refused step."""

    @pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
    def test_a_wall_behind_the_minimum(self, value):
        def walled(t, shift, scale):
            return jnp.where(shift > 0, scale * jnp.log(t + jnp.abs(shift)), value)

        t = np.linspace(0.1, 5, 400)
        result = dask_nlsq.fit(walled, t, np.log(t + 0.01), p0=[5.0, 30.0])
        refused = result.history[~result.history["accepted"]]
        assert (refused["shift"] <= 0).any()
        np.testing.assert_allclose(result.popt, [0.01, 1], rtol=1e-6)

    def test_a_derivative_alone_that_is_not_finite(self):
        def root(t, a, b):
            return a * t + jnp.sqrt(jnp.maximum(b, 0.0))  # its derivative is infinite at b = 0

        result = dask_nlsq.fit(root, T, 2 * T + 0.01, p0=[1.0, 4.0])
        assert result.success
        np.testing.assert_allclose(result.popt, [2, 1e-4], rtol=1e-6)

    def test_a_wall_before_the_minimum_is_no_success(self):
        result = dask_nlsq.fit(lambda t, b: jnp.where(b < 1, jnp.inf, b) + 0 * t, T, np.full(400, 0.5), p0=[3.0])
        assert not result.success


class TestUndetermined:
    """B10: infinite variance and a warning for what the data do not determine, finite answers for the rest."""

    def undetermined(self, names, model, y, t=T, **options):
        with pytest.warns(OptimizeWarning, match=f"do not determine {names};"):
            result = dask_nlsq.fit(model, t, y, **options)
        assert np.isinf(result.stderr[names.split(", ")]).all()
        assert np.isfinite(result.stderr.drop(names.split(", "))).all()
        assert result.success
        # The cost is that of the answer: no step was added that the model does not follow.
        assert result.cost == pytest.approx(0.5 * np.sum((result.predict(t) - y) ** 2), rel=1e-6, abs=1e-20)
        return result

    def test_one_value_of_x(self):
        level = 1.5 + 0.1 * np.sin(np.arange(50))
        result = self.undetermined("a, b", line, level, np.full(50, 2.0))
        np.testing.assert_allclose(result.predict([2.0]), level.mean(), rtol=1e-10)
        self.undetermined("amplitude, rate, offset", decay, level, np.full(50, 2.0))

    @pytest.mark.parametrize("start", [[1.0, 1.0, 1.0], [2.0, 3.0, 1.0], [1e-3, 1e3, 0.0]])
    def test_a_product(self, start):
        result = self.undetermined("a, b", lambda t, a, b, c: a * b * jnp.exp(-t) + c, Y, p0=start)
        slope, level = np.linalg.lstsq(np.stack([np.exp(-T), np.ones(400)], 1), Y, rcond=None)[0]
        assert result.params["a"] * result.params["b"] == pytest.approx(slope, rel=1e-8)
        assert result.params["c"] == pytest.approx(level, rel=1e-8)

    @pytest.mark.parametrize(
        "start",
        [[1.0, 0.5, 1.0, 3.0], [2.0, 1.0, 1.0, 2.0], [1.392, 3.434, 0.76, 3.014], [0.83, 2.95, 1.32, 0.8]],
    )
    def test_two_exponentials_where_there_is_one(self, start):
        two = lambda t, a, b, c, d: a * jnp.exp(-b * t) + c * jnp.exp(-d * t)  # noqa: E731
        with pytest.warns(OptimizeWarning, match="do not determine"):
            result = dask_nlsq.fit(two, T, 3 * np.exp(-1.3 * T), p0=start)
        assert result.success
        assert np.isinf(result.stderr).any()
        np.testing.assert_allclose(result.predict(T), 3 * np.exp(-1.3 * T), atol=1e-7)

    @pytest.mark.parametrize("slope", [0.0, -0.5])
    def test_a_square_whose_best_root_is_zero(self, slope):
        residual = Y - np.polyval(np.polyfit(T, Y, 1), T)  # has neither level nor slope
        result = self.undetermined("a", lambda t, a, b: a**2 * t + b, 1 + slope * T + residual, p0=[1, 1])
        assert abs(result.params["a"]) < 0.1

    def test_a_product_whose_best_value_is_zero(self):
        residual = Y - np.polyval(np.polyfit(T, Y, 1), T)  # has neither level nor slope
        result = self.undetermined("a, b", lambda t, a, b, c: a * b * t + c, residual, p0=[1, 1, 1])
        assert abs(result.params["a"] * result.params["b"]) < 1e-3

    @pytest.mark.parametrize("origin", [0.0, 1.6e9])
    def test_an_origin_beside_an_amplitude(self, origin):
        moved = lambda t, a, b, t0, c: a * jnp.exp(-b * (t - t0)) + c  # noqa: E731
        x = origin + 100 * np.sort(T)  # seconds, the amplitude and the origin act alike
        y = 3 * np.exp(-0.013 * (x - origin)) + 0.5 + 0.1 * np.sin(99 * T)
        result = self.undetermined("a, t0", moved, y, x, p0=[2.0, 0.01, origin, 0.1])
        base = dask_nlsq.fit(decay, x - origin, y, p0=[2.0, 0.01, 0.1])
        np.testing.assert_allclose(result.popt[[1, 3]], base.popt[1:], rtol=1e-6)

    @pytest.mark.parametrize("start", [[0.0, 0.0], [0.0, 1e-9]])
    def test_a_saddle_is_no_answer(self, start):
        def solve():
            return dask_nlsq.fit(lambda t, a, b: a * b * t, T, 2.0 * T, p0=start)

        assert_same_product_or_refused(solve, 2.0)

    def test_a_start_that_no_parameter_moves_is_told_from_a_parameter_that_moves_nothing(self):
        with pytest.warns(OptimizeWarning):
            saddle = dask_nlsq.fit(lambda t, a, b: a * b * t, T, 2.0 * T, p0=[0.0, 0.0])  # looks elsewhere
        with pytest.warns(OptimizeWarning):
            unused = dask_nlsq.fit(lambda t, a, b: a * t, T, 2.0 * T, p0=[0.0, 0.0])
        assert saddle.success and np.prod(saddle.popt) == pytest.approx(2.0)
        assert "other starts led to a lower cost" in saddle.notes[-1]
        assert unused.success
        np.testing.assert_array_equal(np.isinf(unused.stderr), [False, True])


def assert_same_product_or_refused(solve, product):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OptimizeWarning)
        try:
            result = solve()
        except NlsqError:
            return
    assert not result.success or np.prod(result.popt) == pytest.approx(product, rel=1e-6)


class TestScales:
    """B11: the digits of the unscaled problem, or an error."""

    @pytest.mark.parametrize(("of_y", "of_t"), [(1e12, 1e12), (1e-12, 1e-12), (1e12, 1e-12), (1e-12, 1e12)])
    def test_1e12_beside_1e_minus_12(self, of_y, of_t):
        scale = np.array([of_y, 1 / of_t, of_y])
        assert_same(dask_nlsq.fit(decay, T * of_t, Y * of_y, p0=P0 * scale), plain(), scale)

    def test_1e12_beside_1e_minus_12_inside_a_model(self):
        def uneven(t, a, b, c):
            return decay(t, a * 1e-12, b * 1e12, c)

        scale = np.array([1e12, 1e-12, 1.0])
        assert_same(dask_nlsq.fit(uneven, T, Y, p0=P0 * scale), plain(), scale)

    @pytest.mark.one_at_a_time
    @pytest.mark.parametrize("size", [1e-30, 1e-100, 1e-140, 1e30, 1e100, 1e140])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_y_whose_squares_are_in_range(self, size, weighted):
        scale = np.array([size, 1.0, size])
        sigma = np.full(400, size) if weighted else None
        result = dask_nlsq.fit(decay, T, Y * size, sigma=sigma, p0=P0 * scale)
        assert_same(result, plain(), scale)
        assert np.isfinite([result.loglik, result.aic, result.bic, result.rsquared]).all()

    @pytest.mark.one_at_a_time
    @pytest.mark.parametrize("size", [1e-200, 1e-160, 1e-155, 1e-152, 1e152, 1e153, 1e154, 1e160, 1e200])
    @pytest.mark.parametrize("weighted", [False, True])
    def test_y_whose_squares_are_not(self, size, weighted):
        scale = np.array([size, 1.0, size])
        sigma = np.full(400, size) if weighted else None
        assert_same_or_refused(lambda: dask_nlsq.fit(decay, T, Y * size, sigma=sigma, p0=P0 * scale), plain(), scale)

    @pytest.mark.parametrize("size", [1e-12, 1e12])
    def test_a_start_at_zero(self, size):
        result = dask_nlsq.fit(line, T, Y * size, p0=[0.0, 0.0])
        np.testing.assert_allclose(result.popt / size, np.polyfit(T, Y, 1)[::-1], rtol=1e-8)

    def test_seconds_since_1970_in_a_model_that_centres_them(self):
        origin, elapsed = 1.6e9, np.round(100 * T, 6)
        x = origin + elapsed
        centred = dask_nlsq.fit(lambda t, a, b, c: decay(t - origin, a, b, c), x, Y, p0=[2.0, 0.01, 0.1])
        # What x keeps of the seconds, 2.4e-7, is exactly what the model then sees.
        assert_same(centred, dask_nlsq.fit(decay, x - origin, Y, p0=[2.0, 0.01, 0.1]))

    @pytest.mark.parametrize(
        "start",
        [
            [1.0, 1.0, 1.0],
            [1.0, 0.01, 0.1],
            [1e300, 0.01, 0.1],
            [1.0, -1.0, 1.0],
        ],
    )
    def test_seconds_since_1970_in_a_model_that_does_not(self, start):
        base = dask_nlsq.fit(decay, 100 * T, Y, p0=[2.0, 0.01, 0.1])
        scale = np.array([np.exp(min(base.params["rate"] * 1.6e9, 700)), 1.0, 1.0])  # beyond float64
        assert_same_or_refused(lambda: dask_nlsq.fit(decay, 1.6e9 + 100 * T, Y, p0=start), base, scale)

    def test_a_line_through_seconds_since_1970(self):
        x, y = 1.6e9 + np.round(100 * T), 5 + 0.3 * np.round(100 * T) + Y
        result = dask_nlsq.fit(line, x, y)
        slope, level = np.polyfit(x - 1.6e9, y, 1)
        assert result.success
        assert abs(result.params["b"] - slope) < 1e-4 * result.stderr["b"]
        # a + 1.6e9 b cancels nine digits, of which float64 has sixteen.
        assert result.params["a"] + 1.6e9 * result.params["b"] == pytest.approx(level, abs=1e-4)


class TestStart:
    """B12: NaN, length, place, kind."""

    @pytest.mark.parametrize(
        ("p0", "message"),
        [
            ([2, 1, np.nan], "finite"),
            ([2, np.inf, 1], "finite"),
            ({"rate": np.nan}, "finite"),
            ([2, 1, None], "finite"),
            ([2, 1], r"shape \(2,\)"),
            ([[2, 1, 0]], "shape"),
            ({"nope": 1}, "nope"),
            (np.array([2, 1, 1j]), "p0"),
            (["a", "b", "c"], "p0"),
            ({"rate": "a"}, "p0"),
        ],
    )
    def test_unusable(self, p0, message):
        with pytest.raises(ModelError, match=message):
            dask_nlsq.fit(decay, T, Y, p0=p0)

    def test_outside_the_bounds(self):
        with pytest.raises(BoundsError, match=r"'rate' is 3, outside its bounds \[0, 2\]"):
            dask_nlsq.fit(decay, T, Y, p0=[2, 3, 0], bounds={"rate": (0, 2)})

    @pytest.mark.one_at_a_time
    @pytest.mark.parametrize("amplitude", [0.0, 1.0, 10.0])
    @pytest.mark.parametrize("rate", [0.0, 1.0, 2.0])
    @pytest.mark.parametrize("offset", [0.0, 0.5])
    def test_on_a_bound(self, amplitude, rate, offset):
        bounds = ([0.0, 0.0, 0.0], [10.0, 2.0, 10.0])
        assert_same(dask_nlsq.fit(decay, T, Y, p0=[amplitude, rate, offset], bounds=bounds), plain())

    def test_absent(self):
        assert_same(dask_nlsq.fit(decay, T, Y), plain())
        between = dask_nlsq.fit(decay, T, Y, bounds={"amplitude": (2, 10), "rate": (0.1, 0.9)})
        np.testing.assert_array_equal(between.history.loc[1, ["amplitude", "rate", "offset"]], [6, 0.5, 0])


@pytest.mark.parametrize(
    ("bounds", "error"),
    [
        ({"rate": (2, 1)}, BoundsError),
        ({"rate": (np.nan, 1)}, BoundsError),
        ({"rate": (0, 1, 2)}, BoundsError),
        ({"rate": 1}, BoundsError),
        ({"rate": (np.inf, np.inf)}, BoundsError),
        ({"nope": (0, 1)}, BoundsError),
        (([0, 0], [1, 1]), BoundsError),
        ((0, 1, 2), BoundsError),
        (5, BoundsError),
        (("a", "b"), BoundsError),
        (([1, 1, 1], [1, 1, 1]), ModelError),
    ],
    ids=str,
)
def test_unusable_bounds(bounds, error):
    """B13."""
    with pytest.raises(error):
        dask_nlsq.fit(decay, T, Y, bounds=bounds)


class TestFewRows:
    """B14, and rows that weigh nothing."""

    def test_as_many_rows_as_parameters_with_absolute_sigma(self):
        t = np.array([0.0, 1, 3])
        result = dask_nlsq.fit(decay, t, 3 * np.exp(-1.3 * t) + 0.5, sigma=0.1, absolute_sigma=True)
        jac = np.stack([np.exp(-1.3 * t), -3 * t * np.exp(-1.3 * t), np.ones(3)], 1) / 0.1
        np.testing.assert_allclose(result.pcov, np.linalg.inv(jac.T @ jac), rtol=1e-6)

    def test_omitted_rows_do_not_count(self):
        with pytest.raises(dask_nlsq.TooFewRows, match="2 rows for 3"):
            dask_nlsq.fit(decay, np.arange(4.0), np.array([2, 1, np.nan, np.nan]), nan_policy="omit")

    def test_held_parameters_need_no_rows(self):
        with pytest.warns(OptimizeWarning):
            result = dask_nlsq.fit(decay, np.array([0.0, 1]), np.array([2.0, 1]), fixed={"offset": 0})
        np.testing.assert_allclose(result.popt, [2, np.log(2), 0], atol=1e-8)

    def test_a_prior_is_a_row(self):
        result = dask_nlsq.fit(
            decay, np.array([0.0, 1]), np.array([2.0, 1]), prior={"offset": (0, 0.1)}, sigma=0.1, absolute_sigma=True
        )
        np.testing.assert_allclose(result.popt, [2, np.log(2), 0], atol=1e-8)
        assert np.isfinite(result.stderr).all()

    def test_arrays_without_rows(self):
        with pytest.raises(DataError, match="no rows"):
            dask_nlsq.fit(decay, np.empty(0), np.empty(0))

    def test_no_row_weighs_anything(self):
        with pytest.raises(DataError):
            dask_nlsq.fit(decay, T, Y, sigma=np.full(400, np.inf))

    def test_rows_that_weigh_nothing_are_no_degrees_of_freedom(self):
        sigma = np.where(HOLES, np.inf, 0.1)
        result = dask_nlsq.fit(decay, T, Y, sigma=sigma, p0=P0)
        without = dask_nlsq.fit(decay, T[~HOLES], Y[~HOLES], sigma=sigma[~HOLES], p0=P0)
        assert_same(result, without)
        assert result.dof == without.dof == 357


class TestFrames:
    """B15: what a frame may hold, and what it may lack."""

    @pytest.fixture(params=["pandas", "dask"])
    def held(self, request):
        return (lambda f: f) if request.param == "pandas" else (lambda f: dd.from_pandas(f, npartitions=4, sort=False))

    @pytest.mark.parametrize("dtype", ["Float64", "float64[pyarrow]"])
    def test_missing_values_of_nullable_columns(self, held, dtype):
        rows = pd.DataFrame({"t": T, "y": pd.array(np.where(HOLES, None, Y), dtype=dtype)})
        with pytest.raises(DataError, match="not finite") as caught:
            held(rows).nlsq.fit(decay)
        assert caught.value.column == "y"
        result = held(rows).nlsq.fit(decay, nan_policy="omit", p0=P0)
        assert (result.n_obs, result.n_dropped) == (360, 40)
        assert_same(result, dask_nlsq.fit(decay, T[~HOLES], Y[~HOLES], p0=P0))

    @pytest.mark.parametrize(
        "values",
        [Y.astype(object), np.where(HOLES, None, Y), np.where(HOLES, pd.NA, Y), pd.Categorical(["a", "b"] * 200)],
        ids=["numbers", "None", "NA", "category"],
    )
    def test_objects_and_words_are_refused_by_column(self, held, values):
        with pytest.raises(DataError, match="numbers are needed") as caught:
            held(pd.DataFrame({"t": T, "y": values})).nlsq.fit(decay, nan_policy="omit")
        assert caught.value.column == "y"

    def test_a_category_of_numbers(self, held):
        t = np.round(T)
        result = held(pd.DataFrame({"t": pd.Categorical(t), "y": Y})).nlsq.fit(decay, p0=P0)
        assert_same(result, dask_nlsq.fit(decay, t, Y, p0=P0))

    def test_an_index_of_one_value(self, held):
        assert_same(held(pd.DataFrame({"t": T, "y": Y}, index=np.zeros(400, int))).nlsq.fit(decay, p0=P0), plain())

    def test_two_columns_of_one_name(self, held):
        twice = pd.DataFrame(np.stack([T, Y, T], 1), columns=["t", "y", "t"])
        with pytest.raises(DataError) as caught:
            held(twice).nlsq.fit(decay)
        assert caught.value.column == "t"

    def test_a_column_that_one_partition_lacks(self):
        rows = pd.DataFrame({"t": T, "y": Y})
        read = lambda i: rows[i * 100 : i * 100 + 100][["t", "y"] if i != 2 else ["t"]]  # noqa: E731
        with pytest.raises(DataError, match="'y'") as caught:
            dd.from_map(read, range(4), meta=rows[:0]).nlsq.fit(decay)
        assert (caught.value.partition, caught.value.column) == (2, "y")

    def test_one_value_is_not_stretched(self):
        for y in (Y[:1], Y[:1, None], Y[:, None], np.float64(1.0)):
            with pytest.raises(DataError):
                dask_nlsq.fit(decay, T, y)

    def test_partitions_of_unlike_lengths(self):
        t, y = da.from_array(T, chunks=100), da.from_array(Y, chunks=100)
        with pytest.raises(DataError, match="unlike lengths") as caught:
            dask_nlsq.fit(decay, t[t > 1], y[y > 1])
        assert caught.value.partition in range(4)  # the first to be read


def forms(y):
    """The same column as an array, as a Dask array, and beside a Dask array."""
    lazy = da.from_array(T, chunks=100)
    return {"array": (T, y), "lazy": (lazy, da.from_array(y, chunks=100)), "beside": (lazy, y)}


@pytest.mark.parametrize("form", forms(Y))
class TestKinds:
    """B16: what is a number becomes float64, the rest is refused."""

    @pytest.mark.parametrize("dtype", ["bool", "float16", "float32", "uint8", "int8", "int64", "uint64", ">f8"])
    def test_numbers(self, form, dtype):
        y = Y > 1 if dtype == "bool" else (Y * 30).astype(dtype)
        x, column = forms(y)[form]
        result = dask_nlsq.fit(line, x, column)
        np.testing.assert_allclose(result.popt, np.polyfit(T, y.astype(float), 1)[::-1], rtol=1e-8)

    @pytest.mark.parametrize(
        "y",
        [
            Y + 0j, (Y + 1j).astype("c8"), Y.astype(str), Y.astype("S"), Y.astype(object), Y.view([("y", float)]),
            np.ma.masked_array(Y + 1j, HOLES), np.ma.masked_array(Y.astype(str), HOLES),
        ],
        ids=["complex128", "complex64", "text", "bytes", "object", "records", "masked complex", "masked text"],
    )  # fmt: skip
    def test_what_is_no_real_number(self, form, y):
        with pytest.raises(DataError, match="numbers are needed") as caught:
            dask_nlsq.fit(decay, *forms(y)[form], nan_policy="omit")
        assert caught.value.column == "y"

    @pytest.mark.parametrize("dtype", ["float64", "int64", "float32"])
    def test_masked_cells_are_missing(self, form, dtype):
        values = (100 * np.where(HOLES, 1e6, Y)).astype(dtype)
        x, y = forms(np.ma.masked_array(values, HOLES))[form]
        with pytest.raises(DataError, match="not finite"):
            dask_nlsq.fit(decay, x, y)
        result = dask_nlsq.fit(decay, x, y, nan_policy="omit", p0=[200, 1, 10])
        assert (result.n_obs, result.n_dropped) == (360, 40)
        assert_same(result, dask_nlsq.fit(decay, T[~HOLES], values[~HOLES], p0=[200, 1, 10]))


def test_masked_columns_of_several():
    x = np.ma.masked_array(np.stack([T, T**2]), [HOLES, np.zeros(400, bool)])
    plane = lambda x, a, b: a * x[0] + b * x[1]  # noqa: E731
    for columns in (x, (x[0], x[1]), {"u": x[0], "v": x[1]}):
        result = dask_nlsq.fit(plane, columns, Y, nan_policy="omit")
        assert_same(result, dask_nlsq.fit(plane, np.stack([T, T**2])[:, ~HOLES], Y[~HOLES]))


def test_masked_dates_are_missing():
    when = np.datetime64("2026-01-01T00:00:00.000") + np.round(1000 * np.sort(T)).astype("m8[ms]")
    masked = np.ma.masked_array(when, HOLES)
    result = dask_nlsq.fit(decay, masked, Y, nan_policy="omit")
    base = dask_nlsq.fit(decay, (when[~HOLES] - when[~HOLES][0]) / np.timedelta64(1, "s"), Y[~HOLES])
    np.testing.assert_allclose(result.popt, base.popt, rtol=1e-9)


def wide_integers(kind, path):
    """Integers of which float64 keeps not all digits."""
    y = 2**53 + np.arange(100)
    rows = {"t": np.arange(100.0), "y": y}
    if kind == "the least":
        return rows | {"y": np.where(np.arange(100) == 5, np.iinfo(np.int64).min, 0)}
    if kind == "masked":
        return rows | {"y": np.ma.masked_array(y, np.arange(100) == 3)}
    if kind == "parquet with nulls":
        pq.write_table(pa.table(rows | {"y": pa.array(y, mask=np.arange(100) == 3)}), path / "a.parquet")
        return path / "a.parquet"
    if kind in ("Int64", "int64[pyarrow]"):
        return pd.DataFrame(rows | {"y": pd.array(y, dtype=kind)})
    return dd.from_pandas(pd.DataFrame(rows), npartitions=3) if kind == "frame" else rows | {"y": y.astype(kind)}


@pytest.mark.parametrize(
    "kind",
    [
        "int64",
        "uint64",
        "the least",
        "masked",
        "Int64",
        "int64[pyarrow]",
        "parquet with nulls",
        "frame",
        "on workers",
    ],
)
def test_integers_beyond_float64_warn(kind, tmp_path, request):
    if kind == "on workers":
        request.getfixturevalue("client")
    data = wide_integers("frame" if kind == "on workers" else kind, tmp_path)
    with pytest.warns(NlsqWarning, match=r"'y' holds integers beyond 2\*\*53") as caught:
        dask_nlsq.fit(line, data=data, nan_policy="omit")
    assert len([w for w in caught if "2**53" in str(w.message)]) == 1


@pytest.mark.parametrize("budget", [1, 2, 3])
def test_a_budget_that_is_too_small(budget):
    """B17."""
    result = dask_nlsq.fit(decay, T, Y, p0=P0, max_nfev=budget)
    assert (result.success, result.nsweeps, int(result.status)) == (False, budget, 0)
    assert "maximum number of sweeps" in result.message
    assert "NOT converged" in str(result)
    with pytest.raises(NlsqError, match="did not converge"):
        result.check()
