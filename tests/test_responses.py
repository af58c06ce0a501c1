"""Several responses of a row: complex numbers and vectors, against SciPy's least squares of all residuals together."""

from typing import ClassVar

import dask.array as da
import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import zarr
from scipy.optimize import least_squares, minimize

import dask_nlsq
from dask_nlsq._errors import DataError, ModelError, NlsqError

ROWS = 120
X = np.linspace(0.2, 8.0, ROWS)
SIGMA = np.array([0.02, 0.05, 0.1])
COVARIANCE = np.array([[4.0, 3.0, 0.5], [3.0, 5.0, 0.2], [0.5, 0.2, 1.0]]) * 1e-3


def impedance(w, r0, r, c):
    return r0 + r / (1 + 1j * w * r * c)


def reaction(t, a, k, b):
    return a * jnp.exp(-k * t), a * k * t + b, jnp.stack([a * jnp.exp(-b * t)])[0]


def of_numpy(t, a, k, b):
    return np.stack([a * np.exp(-k * t), a * k * t + b, a * np.exp(-b * t)])


def noise(shape, seed=7):
    return np.random.default_rng(seed).standard_normal(shape)


Z = impedance(X, 0.3, 2.0, 0.5) + 0.02 * noise(ROWS) + 0.03j * noise(ROWS, 8)
Y = of_numpy(X, 2.0, 0.5, 0.8) + np.linalg.cholesky(COVARIANCE) @ noise((3, ROWS))
START = [0.1, 1.0, 1.0]
WHITENS = np.linalg.inv(np.linalg.cholesky(COVARIANCE))
ROW_SIGMA = 0.02 + 0.01 * np.abs(noise((3, ROWS), 9))


def parts(z):
    return np.stack([z.real, z.imag])


def residuals_of_impedance(weights=1.0):
    return lambda theta: (parts(impedance(X, *theta) - Z) * weights).ravel()


def residuals_of_reaction(whiten):
    return lambda theta: whiten(of_numpy(X, *theta) - Y).ravel()


# What fit is given, and the residuals whose squares it minimises.
CASES = {
    "complex": ((impedance, X, Z), {}, residuals_of_impedance()),
    "complex, sigma": ((impedance, X, Z), {"sigma": 0.02}, residuals_of_impedance(50.0)),
    "complex, sigma of rows": (
        (impedance, X, Z),
        {"sigma": ROW_SIGMA[0]},
        residuals_of_impedance(1 / ROW_SIGMA[0]),
    ),
    "complex, sigma of each part": (
        (impedance, X, Z),
        {"sigma": [0.02, 0.03]},
        residuals_of_impedance(1 / np.array([[0.02], [0.03]])),
    ),
    "complex, covariance": (
        (impedance, X, Z),
        {"sigma": COVARIANCE[:2, :2]},
        lambda theta: (WHITENS[:2, :2] @ parts(impedance(X, *theta) - Z)).ravel(),
    ),
    "two real columns": ((impedance, X, [Z.real, Z.imag]), {}, residuals_of_impedance()),
    "vector": ((reaction, X, list(Y)), {}, residuals_of_reaction(lambda r: r)),
    "vector, sigma of each": (
        (reaction, X, list(Y)),
        {"sigma": SIGMA.tolist()},
        residuals_of_reaction(lambda r: r / SIGMA[:, None]),
    ),
    "vector, sigma of rows": (
        (reaction, X, list(Y)),
        {"sigma": list(ROW_SIGMA)},
        residuals_of_reaction(lambda r: r / ROW_SIGMA),
    ),
    "vector, covariance": (
        (reaction, X, list(Y)),
        {"sigma": COVARIANCE},
        residuals_of_reaction(lambda r: WHITENS @ r),
    ),
    "vector, covariance by name": (
        (reaction, X, dict(zip("abc", Y, strict=True))),
        {"sigma": pd.DataFrame(COVARIANCE, list("abc"), list("abc")).iloc[::-1]},
        residuals_of_reaction(lambda r: WHITENS @ r),
    ),
}


def dense(residuals, start=START, **options):
    tight = {"xtol": 1e-15, "ftol": 1e-15, "gtol": 1e-15}
    found = least_squares(residuals, start, **tight | options)
    return found, np.linalg.inv(found.jac.T @ found.jac)


@pytest.mark.crossed(6)
@pytest.mark.parametrize("absolute_sigma", [False, True])
@pytest.mark.parametrize("name", CASES)
@pytest.mark.one_at_a_time
def test_estimates_and_errors_are_those_of_all_residuals(name, absolute_sigma):
    arguments, given, residuals = CASES[name]
    result = dask_nlsq.fit(*arguments, p0=START, absolute_sigma=absolute_sigma, **given)
    found, cov = dense(residuals)
    dof = len(found.fun) - 3
    s2 = 1.0 if absolute_sigma else 2 * found.cost / dof
    np.testing.assert_allclose(result.popt, found.x, rtol=1e-8)
    np.testing.assert_allclose(result.stderr, np.sqrt(s2 * np.diag(cov)), rtol=1e-6)
    np.testing.assert_allclose(result.chisqr, 2 * found.cost, rtol=1e-10)
    assert (result.n_obs, result.dof) == (len(found.fun), dof)
    assert np.isnan(result.rsquared)


def test_lmfit_finds_the_same_of_complex_numbers():
    lmfit = pytest.importorskip("lmfit")
    model = lmfit.Model(impedance)
    there = model.fit(Z, w=X, r0=0.1, r=1.0, c=1.0, fit_kws={"ftol": 1e-14, "xtol": 1e-14})
    here = dask_nlsq.fit(impedance, X, Z, p0=START)
    for name, parameter in there.params.items():
        np.testing.assert_allclose(here.params[name], parameter.value, rtol=1e-6)
        np.testing.assert_allclose(here.stderr[name], parameter.stderr, rtol=1e-4)
    assert here.dof == there.nfree


FRAME = pd.DataFrame({"w": X, "z": Z, "re": Z.real, "im": Z.imag, "s": ROW_SIGMA[0]})


def as_zarr(folder):
    group = zarr.open_group(folder / "z.zarr", mode="w")
    for name in FRAME:
        group.create_array(name, data=FRAME[name].to_numpy(), chunks=(50,))
    return group


def as_parquet(folder):
    dd.from_pandas(FRAME.drop(columns="z"), npartitions=4).to_parquet(folder / "z.parquet")
    return str(folder / "z.parquet")


def as_dataset(folder):
    xarray = pytest.importorskip("xarray")
    return xarray.Dataset({name: ("row", FRAME[name].to_numpy()) for name in FRAME})


HOLDERS = {
    "pandas": (lambda folder: FRAME, "z"),
    "two columns of pandas": (lambda folder: FRAME, ["re", "im"]),
    "Dask": (lambda folder: dd.from_pandas(FRAME, npartitions=5), "z"),
    "two columns of Dask": (lambda folder: dd.from_pandas(FRAME, npartitions=5), ["re", "im"]),
    "a mapping": (lambda folder: {name: da.from_array(FRAME[name].to_numpy(), chunks=33) for name in FRAME}, "z"),
    "Zarr": (as_zarr, "z"),
    "two arrays of Zarr": (as_zarr, ["re", "im"]),
    "Parquet": (as_parquet, ["re", "im"]),
    "xarray": (as_dataset, "z"),
    "records": (lambda folder: FRAME.to_records(index=False), "z"),
}


@pytest.mark.parametrize("name", HOLDERS)
def test_whatever_holds_the_rows(name, tmp_path):
    make, y = HOLDERS[name]
    result = dask_nlsq.fit(impedance, data=make(tmp_path), x="w", y=y, sigma="s", p0=START)
    expected = dask_nlsq.fit(impedance, X, Z, sigma=ROW_SIGMA[0], p0=START)
    np.testing.assert_allclose(result.popt, expected.popt, rtol=1e-12)
    np.testing.assert_allclose(result.pcov, expected.pcov, rtol=1e-9)


def test_arrays_of_several_dimensions_are_elements():
    shape = (10, 12)
    z, x = Z.reshape(shape), X.reshape(shape)
    expected = dask_nlsq.fit(impedance, X, Z, p0=START)
    for y in (z, da.from_array(z, chunks=(5, 6)), [z.real, z.imag]):
        np.testing.assert_allclose(dask_nlsq.fit(impedance, x, y, p0=START).popt, expected.popt, rtol=1e-12)


@pytest.mark.parametrize("cuts", [(1,), (7, 3), "threads", "cluster"])
def test_the_same_bits_for_threads_and_workers(cuts, request):
    frame = dd.from_pandas(pd.DataFrame({"t": X, "a": Y[0], "b": Y[1], "c": Y[2]}), npartitions=6)

    def fit(**options):
        found = frame.nlsq.fit(reaction, x="t", y=["a", "b", "c"], sigma=COVARIANCE, p0=START, **options)
        return found.popt.tobytes() + found.pcov.tobytes()

    if cuts == "cluster":
        assert fit(client=False) == fit(client=request.getfixturevalue("client"))
    elif cuts == "threads":
        assert fit(client=False) == fit(tier="chunked")
    else:
        other = dask_nlsq.fit(reaction, X, list(Y), sigma=COVARIANCE, p0=START)
        np.testing.assert_allclose(np.frombuffer(fit()[:24]), other.popt, rtol=1e-12)


OPTIONS = {
    "bounds": {"bounds": ([0, 0, 0], [1.9, 1, 1])},
    "robust": {"loss": "soft_l1", "f_scale": 0.02},
    "many starts": {"n_starts": 8, "bounds": ([0.5, 0.1, 0.1], [5, 2, 2]), "p0": [1.0, 0.5, 0.5]},
    "a tie": {"tied": {"b": "1.6 * k"}, "p0": {"a": 1.0, "k": 1.0}},
    "a prior": {"prior": {"a": (2.0, 0.01)}},
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "many starts")) for n in OPTIONS])
def test_what_else_a_fit_has(name):
    options = {"p0": START} | OPTIONS[name]
    result = dask_nlsq.fit(reaction, X, list(Y), sigma=SIGMA.tolist(), **options)

    def residuals(theta):
        if name == "a tie":
            theta = [*theta, 1.6 * theta[1]]
        rows = ((of_numpy(X, *theta) - Y) / SIGMA[:, None]).ravel()
        return np.append(rows, (theta[0] - 2.0) / 0.01) if name == "a prior" else rows

    limits = {"bounds": options["bounds"]} if "bounds" in options else {}
    robust = {"loss": "soft_l1", "f_scale": 0.02} if name == "robust" else {}
    found, _ = dense(residuals, [1.0, 0.5] if name == "a tie" else [1.0, 0.5, 0.5], **limits, **robust)
    np.testing.assert_allclose(result.params[:2], found.x[:2], rtol=2e-6)


def test_a_missing_response_leaves_the_others():
    y = Y.copy()
    y[1, 5] = np.nan
    result = dask_nlsq.fit(reaction, X, list(y), p0=START, nan_policy="omit")
    there = np.isfinite(y)
    found, _ = dense(lambda theta: (of_numpy(X, *theta) - y)[there])
    assert (result.n_obs, result.n_dropped) == (3 * ROWS - 1, 1)
    np.testing.assert_allclose(result.popt, found.x, rtol=1e-8)


@pytest.mark.parametrize(
    ("model", "y", "sigma"), [(reaction, list(Y), COVARIANCE), (impedance, Z, None)], ids=["covariance", "complex"]
)
def test_what_belongs_together_is_dropped_together(model, y, sigma):
    y = [part.copy() for part in y] if isinstance(y, list) else y.copy()
    (y[1] if isinstance(y, list) else y)[5] = np.nan
    keep = np.arange(ROWS) != 5
    result = dask_nlsq.fit(model, X, y, p0=START, sigma=sigma, nan_policy="omit")
    rest = [part[keep] for part in y] if isinstance(y, list) else y[keep]
    expected = dask_nlsq.fit(model, X[keep], rest, p0=START, sigma=sigma)
    assert result.n_dropped == (3 if isinstance(y, list) else 2)
    np.testing.assert_allclose(result.popt, expected.popt, rtol=1e-12)


def test_masked_cells_are_missing():
    z = np.ma.masked_array(Z, np.arange(ROWS) == 5)
    with pytest.raises(DataError, match="not finite"):
        dask_nlsq.fit(impedance, X, z, p0=START)
    assert dask_nlsq.fit(impedance, X, z, p0=START, nan_policy="omit").n_dropped == 2


def test_a_model_of_numpy_is_differentiated_by_differences():
    def without_jax(t, a, k, b):
        return [np.asarray(each) * 1.0 for each in of_numpy(np.asarray(t, float), a, k, b)]

    with pytest.warns(UserWarning, match="differentiated by differences"):
        result = dask_nlsq.fit(without_jax, X, list(Y), sigma=COVARIANCE, p0=START)
    expected = dask_nlsq.fit(reaction, X, list(Y), sigma=COVARIANCE, p0=START)
    np.testing.assert_allclose(result.popt, expected.popt, rtol=1e-6)


def shared(w, r0, r):
    return r0 + r / (1 + 0.5j * w)


def test_data_sets_share_parameters_with_complex_numbers():
    real = {"model": lambda t, r0: r0 + 0 * t, "x": X, "y": 0.3 + 0.02 * noise(ROWS, 3)}
    result = dask_nlsq.fit([{"model": shared, "x": X, "y": Z}, real], shared=["r0"], p0={"r0": 0.2, "r": 1.0})

    def residuals(theta):
        return np.concatenate([parts(shared(X, *theta) - Z).ravel(), theta[0] - real["y"]])

    np.testing.assert_allclose(result.popt, dense(residuals, [0.2, 1.0])[0].x, rtol=1e-8)


@pytest.fixture(scope="module")
def estimated():
    return dask_nlsq.fit(reaction, X, dict(zip("abc", Y, strict=True)), p0=START, estimate_sigma=True)


class TestEstimatedCovariance:
    def test_determinant_is_least(self, estimated):
        result = estimated

        def criterion(theta):
            residual = of_numpy(X, *theta) - Y
            return np.linalg.slogdet(residual @ residual.T)[1]

        found = minimize(criterion, result.popt * 1.01, method="Nelder-Mead", options={"xatol": 1e-10, "fatol": 1e-13})
        assert np.abs((result.popt - found.x) / result.stderr).max() < 1e-4
        residual = of_numpy(X, *result.popt) - Y
        np.testing.assert_allclose(result.response_cov, residual @ residual.T / ROWS, rtol=1e-6)
        assert list(result.response_cov.columns) == ["a", "b", "c"]

    def test_criteria_count_the_covariance(self, estimated):
        result = estimated
        logdet = np.linalg.slogdet(result.response_cov)[1]
        loglik = -0.5 * ROWS * (3 * np.log(2 * np.pi) + logdet + 3)
        np.testing.assert_allclose([result.loglik, result.aic], [loglik, 2 * (3 + 6) - 2 * loglik], rtol=1e-6)

    @pytest.mark.slow
    def test_of_complex_numbers_out_of_core(self):
        frame = dd.from_pandas(FRAME, npartitions=4)
        result = frame.nlsq.fit(impedance, x="w", y="z", p0=START, estimate_sigma=True)
        residual = parts(Z - impedance(X, *result.popt))
        np.testing.assert_allclose(result.response_cov, residual @ residual.T / ROWS, rtol=1e-6)

    REFUSED: ClassVar = {
        "one real y": ({"y": Y[0], "model": "a + b*x"}, "several responses"),
        "sigma": ({"sigma": SIGMA.tolist()}, "leave one out"),
        "a checkpoint": ({"checkpoint": "folder"}, "one fit"),
        "absolute_sigma": ({"absolute_sigma": True}, "absolute_sigma"),
        "a response twice": (
            {"y": [Y[0], Y[0]], "model": lambda t, a: jnp.stack([a * t, a * t]), "p0": [1]},
            "inverted",
        ),
    }

    @pytest.mark.parametrize("name", REFUSED)
    def test_what_has_no_covariance_is_refused(self, name):
        given, match = self.REFUSED[name]
        arguments = {"model": reaction, "x": X, "y": list(Y), "p0": START} | given
        with pytest.raises((NlsqError, DataError), match=match):
            dask_nlsq.fit(**arguments, estimate_sigma=True)


BAD = {
    "complex y, real model": ({"y": Z, "model": "a*exp(-b*x) + c"}, DataError, "real numbers are needed"),
    "complex column, real model": (
        {"data": FRAME, "x": "w", "y": "z", "model": lambda w, a, b, c: a * jnp.exp(-b * w) + c},
        DataError,
        "real numbers are needed",
    ),
    "real y, complex model": ({"y": Z.real}, DataError, "complex"),
    "three columns, complex model": ({"y": [Z.real, Z.imag, Z.real]}, ModelError, "2 real numbers a row, and y has 3"),
    "two of three responses": ({"model": reaction, "y": list(Y[:2])}, ModelError, "3 real numbers a row, and y has 2"),
    "a vector for one y": ({"model": reaction, "y": Y[0]}, ModelError, "several"),
    "a response of another length": (
        {"model": lambda t, r0, r, c: (r0 * t, (r + c) * t[1:]), "y": list(Y[:2])},
        ModelError,
        "for each response",
    ),
    "complex sigma": ({"y": Z, "sigma": Z}, DataError, "real numbers"),
    "complex x": ({"x": Z, "y": Z}, DataError, "real"),
    "sigma of zero": ({"y": Z, "sigma": np.zeros(ROWS)}, DataError, "sigma must be positive"),
    "sigma for two of three": ({"model": reaction, "y": list(Y), "sigma": [0.1, 0.2]}, DataError, "2 entries"),
    "sigma with a gap": ({"model": reaction, "y": list(Y), "sigma": [0.1, None, 0.2]}, DataError, "lacks a response"),
    "covariance of another size": ({"y": Z, "sigma": COVARIANCE}, DataError, r"\(2, 2\)"),
    "covariance, not symmetric": ({"y": Z, "sigma": np.array([[1.0, 0.5], [0.1, 1.0]])}, DataError, "symmetric"),
    "covariance, not definite": ({"y": Z, "sigma": np.ones((2, 2))}, DataError, "positive definite"),
    "covariance with NaN": ({"y": Z, "sigma": np.array([[1.0, np.nan], [np.nan, 1.0]])}, DataError, "finite"),
    "covariance of other names": ({"y": Z, "sigma": pd.DataFrame(COVARIANCE[:2, :2])}, DataError, "labels"),
    "unlike lengths": ({"y": [Z.real, Z.imag[1:]]}, DataError, "unlike lengths"),
    "counts": ({"y": Z, "loss": "poisson"}, NlsqError, "counts"),
    "errors in x": ({"y": Z, "sigma": 0.1, "sigma_x": 0.1}, NlsqError, "sigma_x"),
    "a column twice": ({"data": FRAME, "x": "w", "y": ["re", "re"]}, DataError, "twice"),
    "no such column": ({"data": FRAME, "x": "w", "y": ["re", "img"]}, DataError, "'im'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_by_name(name):
    given, error, match = BAD[name]
    with pytest.raises(error, match=match):
        dask_nlsq.fit(**{"model": impedance, "p0": START} | ({} if "data" in given else {"x": X}) | given)


@pytest.mark.parametrize("y", [Z, Z.tolist(), da.from_array(Z, chunks=50)], ids=["array", "list", "Dask"])
def test_curve_fit_drops_no_imaginary_part(y):
    with pytest.raises(DataError, match="complex"):
        dask_nlsq.curve_fit(lambda w, r, c: r / (1 + (w * c) ** 2), X, y)


def test_fits_of_one_real_y_refuse_complex_models():
    with pytest.raises(ModelError, match="one real y"):
        dask_nlsq.fit_many(impedance, X, np.ones((2, ROWS)), p0=START)
    with pytest.raises(ModelError, match="one real y"):
        dask_nlsq.StreamingFitter(impedance, p0=START, x="w", y="z")


class TestPredictions:
    complex_fit = staticmethod(lambda: dask_nlsq.fit(impedance, data=FRAME, x="w", y="z", p0=START))
    vectors = pd.DataFrame({"t": X, "a": Y[0], "b": Y[1], "c": Y[2]})

    def vector_fit(self, **options):
        return dask_nlsq.fit(reaction, data=self.vectors, x="t", y=["a", "b", "c"], p0=START, **options)

    def test_complex(self):
        result = self.complex_fit()
        expected = impedance(X, *result.popt)
        np.testing.assert_allclose(result.predict(X), expected, rtol=1e-12)
        np.testing.assert_allclose(result.predict(FRAME), expected, rtol=1e-12)
        for data, y in ((FRAME, None), (X, Z), (dd.from_pandas(FRAME, npartitions=2), None)):
            np.testing.assert_allclose(result.residuals(data, y), Z - expected, atol=1e-14)

    def test_vectors(self):
        result = self.vector_fit()
        expected = of_numpy(X, *result.popt)
        np.testing.assert_allclose(result.predict(X), expected, rtol=1e-12)
        np.testing.assert_allclose(result.predict(da.from_array(X, chunks=50)), expected, rtol=1e-12)
        frame = result.predict(dd.from_pandas(self.vectors, npartitions=3)).compute()
        np.testing.assert_allclose(frame[["a", "b", "c"]].T, expected, rtol=1e-12)
        np.testing.assert_allclose(result.residuals(self.vectors).T, Y - expected, atol=1e-14)

    def test_weighted_residuals_under_a_covariance_are_those_that_were_squared(self):
        result = self.vector_fit(sigma=COVARIANCE)
        square = (result.residuals(self.vectors, weighted=True) ** 2).to_numpy().sum()
        np.testing.assert_allclose(square, result.chisqr, rtol=1e-12)

    def test_bands_are_those_of_the_delta_method(self):
        result = self.vector_fit(absolute_sigma=True, sigma=SIGMA.tolist())
        step = 1e-6
        columns = [
            (of_numpy(X, *(result.popt + step * e)) - of_numpy(X, *(result.popt - step * e))) / (2 * step)
            for e in np.eye(3)
        ]
        g = np.stack(columns, axis=-1)  # (3, rows, p)
        stderr = np.sqrt(np.einsum("cri,ij,crj->cr", g, result.pcov, g))
        band = result.confidence_band(X)
        reach = (band.upper - band.lower) / 2 / 1.9668  # Student's t with 357 degrees of freedom
        np.testing.assert_allclose(reach, stderr, rtol=1e-3)
        new = result.prediction_band(X)
        np.testing.assert_allclose(
            (new.upper - new.lower) / 2 / 1.9668, np.sqrt(stderr**2 + SIGMA[:, None] ** 2), rtol=1e-3
        )
        assert {"a_lower", "c_upper"} < set(result.confidence_band(self.vectors).columns)

    def test_one_response_is_a_result_of_one(self):
        result = self.vector_fit(sigma=COVARIANCE)
        one = result.response("b")
        np.testing.assert_allclose(one.predict(X), of_numpy(X, *result.popt)[1], rtol=1e-12)
        np.testing.assert_allclose(
            one.residuals(self.vectors, weighted=True) * COVARIANCE[1, 1] ** 0.5, one.residuals(self.vectors)
        )
        with pytest.raises(NlsqError, match="no response"):
            result.response("d")

    def test_a_saved_result_predicts_again(self, tmp_path):
        for result, model in ((self.complex_fit(), impedance), (self.vector_fit(sigma=COVARIANCE), reaction)):
            path = str(tmp_path / f"{result.provenance['model']}.zip")
            result.save(path)
            again = dask_nlsq.FitResult.load(path, model=model)
            np.testing.assert_array_equal(again.predict(X), result.predict(X))

    def test_diagnostics_and_plots_see_each_response(self):
        matplotlib = pytest.importorskip("matplotlib")
        matplotlib.use("Agg")
        result = self.vector_fit(sigma=COVARIANCE)
        assert "autocorrelation" in result.diagnostics().table.index
        axes = result.plot()
        assert [ax.get_ylabel() for ax in axes] == ["a", "b", "c"]
        (data,) = (line for line in axes[1].get_lines() if line.get_label() != "fit")
        np.testing.assert_allclose(np.sort(data.get_ydata()), np.sort(Y[1]), rtol=1e-9)
        assert self.complex_fit().plot_nyquist().get_xlabel() == "real part of z"
        assert self.complex_fit().plot_bode()[0].get_xscale() == "log"
        with pytest.raises(NlsqError, match="not complex"):
            result.plot_nyquist()


def test_an_ended_checkpoint_and_a_stored_result_answer_without_reading(tmp_path):
    frame = dd.from_pandas(FRAME, npartitions=3)
    for option in ({"checkpoint": str(tmp_path / "c.zarr")}, {"cache_dir": str(tmp_path / "cache")}):
        first, second = (frame.nlsq.fit(impedance, x="w", y=["re", "im"], p0=START, **option) for _ in range(2))
        assert first.popt.tobytes() == second.popt.tobytes()
        changed = {"sigma": [0.02, 0.03]}
        if "checkpoint" in option:
            with pytest.raises(dask_nlsq.CheckpointMismatch, match="sigma"):
                frame.nlsq.fit(impedance, x="w", y=["re", "im"], p0=START, **changed, **option)


def test_the_checkpoint_of_a_covariance_is_of_no_other(tmp_path):
    options = {"p0": START, "checkpoint": str(tmp_path / "c.zarr")}
    dask_nlsq.fit(impedance, X, Z, sigma=COVARIANCE[:2, :2], **options)
    with pytest.raises(dask_nlsq.CheckpointMismatch):
        dask_nlsq.fit(impedance, X, Z, sigma=COVARIANCE[1:, 1:], **options)


def nan_beyond(t, a, b):
    return a * t, jnp.sqrt(b - t)


REFUSED_IN_WORDS = {
    "a Jacobian of several": (lambda: fit_frame(jac=lambda w, *_: w), "jac= is a function"),
    "a Jacobian of a complex model": (
        lambda: dask_nlsq.fit(impedance, X, Z, p0=START, jac=lambda w, *_: w),
        "jac= is a function",
    ),
    "a covariance of one": (lambda: fit_frame("line", y=["re"], sigma=np.eye(1)), "give its root"),
    "an estimate of one": (lambda: fit_frame("line", y=["re"], estimate_sigma=True), "is for several responses"),
    "an estimate of one real column": (lambda: fit_frame("line", y="re", estimate_sigma=True), "taken for complex"),
    "two sigmas of one real column": (lambda: fit_frame("line", y="re", sigma=[0.1, 0.2]), "taken for complex"),
    "an estimate beside a robust loss": (
        lambda: fit_frame(estimate_sigma=True, loss="huber"),
        "does not count all alike",
    ),
    "a model that ends": (
        lambda: dask_nlsq.fit(nan_beyond, X, [X, X], p0=[1.0, X[-1] - 1e-9], bounds={"b": (0, X[-1] - 1e-9)}),
        rf"row {ROWS - 1} of partition 0, where t=8 and for 'y\[1\]'",
    ),
}


def fit_frame(model=impedance, **options):
    return dask_nlsq.fit(
        model, data=FRAME, x="w", **{"y": ["re", "im"], "p0": START[: 2 if model == "line" else 3]} | options
    )


@pytest.mark.parametrize("name", REFUSED_IN_WORDS)
def test_what_several_responses_do_not_have_is_refused_in_words(name):
    refused, words = REFUSED_IN_WORDS[name]
    with pytest.raises(NlsqError, match=words):
        refused()


def test_parts_of_one_number_are_dropped_together_wherever_they_lie():
    z, frame = Z.copy(), FRAME.copy()
    z[5] = complex(z[5].real, np.nan)
    frame.loc[5, "im"] = np.nan
    whole = dask_nlsq.fit(impedance, X, z, p0=START, nan_policy="omit")
    parts = dask_nlsq.fit(impedance, data=frame, x="w", y=["re", "im"], p0=START, nan_policy="omit")
    assert whole.n_obs == parts.n_obs == 2 * (ROWS - 1)
    np.testing.assert_allclose(parts.popt, whole.popt, rtol=1e-12)


def test_a_cell_is_named_beside_rows_without_weight():
    z, infinite = Z.copy(), np.full(ROWS, 0.03)
    infinite[:51], z[77] = np.inf, complex(1.0, np.nan)
    with pytest.raises(DataError, match=r"the first is row 26 with nan.*y\.imag"):  # of those that count
        dask_nlsq.fit(impedance, X, z, p0=START, sigma=[np.full(ROWS, 0.02), infinite])


def test_a_band_takes_a_sigma_for_each_response_as_a_fit_does():
    result = dask_nlsq.fit(impedance, X, Z, p0=START, sigma=[0.02, 0.03], absolute_sigma=True)
    wider = result.prediction_band(X[:2], sigma=[0.02, 0.3])
    narrow = result.prediction_band(X[:2])
    np.testing.assert_allclose(wider.upper.real, narrow.upper.real)
    assert (wider.upper.imag > narrow.upper.imag + 0.3).all()
