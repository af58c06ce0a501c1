"""NLSQRegressor: scikit-learn's own checks, and that a fit is that of `dask_nlsq.fit`."""

import pickle
import subprocess
import sys

import dask.array as da
import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.base import clone
from sklearn.compose import TransformedTargetRegressor
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.linear_model import LinearRegression
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

import dask_nlsq
from dask_nlsq import DataError, Model, ModelError, NlsqError, TooFewRows
from dask_nlsq.sklearn import NLSQRegressor

EXPECTED_FAILURES = {
    "check_sample_weight_equivalence_on_dense_data": "has 27 rows of positive weight for 31 parameters",
}
"""By check of scikit-learn, why it must fail for the linear model; `test_a_weight_counts_rows` makes the same check."""

DECAY = "a*exp(-b*t)"
RNG = np.random.default_rng(0)
T = RNG.uniform(0, 4, 200)
Y = 2.5 * np.exp(-1.3 * T) + RNG.normal(0, 0.1, T.size)
W = RNG.uniform(0.5, 2, T.size)
X = T[:, None]
FRAME = pd.DataFrame({"t": T, "u": T**2, "y": Y, "w": W})
DDF = dd.from_pandas(FRAME, npartitions=3)


def blocks(array):
    return da.from_array(array, chunks=(70, *array.shape[1:]))


@pytest.mark.crossed(keep=12)
@parametrize_with_checks([NLSQRegressor()], expected_failed_checks=lambda _: EXPECTED_FAILURES)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


LAZY = {
    "Dask DataFrame": (DDF[["t"]], DDF["y"], DDF["w"]),
    "Dask arrays": (blocks(X), blocks(Y), blocks(W)),
    "only X of Dask": (blocks(X), Y, W),
}
DATA = {"arrays": (X, Y, W), "lists": (X.tolist(), Y.tolist(), W.tolist()), "frame": (FRAME[["t"]], FRAME.y, FRAME.w)}


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("data", (DATA | LAZY).values(), ids=[*DATA, *LAZY])
def test_fits_as_fit_does(data, weighted):
    x, y, weight = data
    estimator = NLSQRegressor(DECAY).fit(x, y, weight if weighted else None)
    expected = dask_nlsq.fit(DECAY, T, Y, sigma=W**-0.5 if weighted else None)
    # Rows are added up in other blocks.
    pd.testing.assert_series_equal(estimator.params_, expected.params, rtol=1e-10)
    np.testing.assert_allclose(estimator.result_.pcov, expected.pcov, rtol=1e-9)


def test_numbered_columns_of_dask_are_features_without_names():
    frame = dd.from_pandas(pd.DataFrame({0: T}), npartitions=3)
    estimator = NLSQRegressor(DECAY).fit(frame, DDF["y"])
    assert not hasattr(estimator, "feature_names_in_")
    np.testing.assert_allclose(estimator.predict(frame), NLSQRegressor(DECAY).fit(X, Y).predict(X), rtol=1e-9)


def test_dask_may_drop_rows_that_are_not_finite():
    y = np.where(np.arange(T.size) == 3, np.nan, Y)
    estimator = NLSQRegressor(DECAY, options={"nan_policy": "omit"}).fit(blocks(X), blocks(y))
    assert estimator.result_.n_dropped == 1


def test_std_is_that_of_the_confidence_band():
    estimator = NLSQRegressor(DECAY).fit(X, Y, W)
    predicted, std = estimator.predict(X[:9], return_std=True)
    band = estimator.result_.confidence_band(T[:9], 0.9)
    np.testing.assert_array_equal(predicted, band.predicted)
    reach = std * stats.t.ppf(0.95, estimator.result_.dof)
    np.testing.assert_allclose(reach, band.upper - band.predicted, rtol=1e-12)


@pytest.mark.parametrize("model", [None, DECAY])
@pytest.mark.parametrize("data", LAZY.values(), ids=LAZY)
def test_prediction_and_score_are_lazy(data, model):
    x, y, weight = data
    here, lazy = NLSQRegressor(model).fit(X, Y), NLSQRegressor(model).fit(x, y)
    for values, expected in zip(lazy.predict(x, return_std=True), here.predict(X, return_std=True), strict=True):
        assert isinstance(values, (da.Array, dd.Series))
        np.testing.assert_allclose(values.compute(), expected, rtol=1e-9)
    assert lazy.score(x, y) == pytest.approx(r2_score(Y, here.predict(X)), abs=1e-12)
    assert lazy.score(x, y, weight) == pytest.approx(here.score(X, Y, W), abs=1e-12)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_score_of_a_constant_is_that_of_scikit_learn(level):
    estimator = NLSQRegressor(fixed={"coef_x0": 0.0}, bounds={"intercept": (1.0, 2.0)}).fit(X, np.ones_like(T))
    assert estimator.score(blocks(X), blocks(np.full_like(T, level))) == estimator.score(X, np.full_like(T, level))


def test_a_weight_counts_rows():
    weight = RNG.integers(0, 4, T.size)
    weighted = NLSQRegressor(DECAY).fit(X, Y, weight)
    repeated = NLSQRegressor(DECAY).fit(X.repeat(weight, axis=0), Y.repeat(weight))
    np.testing.assert_allclose(weighted.params_, repeated.params_, rtol=1e-9)


def test_the_default_is_linear():
    features = FRAME[["t", "u"]].to_numpy()
    estimator, expected = NLSQRegressor().fit(features, Y, W), LinearRegression().fit(features, Y, W)
    assert list(estimator.params_.index) == ["intercept", "coef_x0", "coef_x1"]
    np.testing.assert_allclose(estimator.params_, [expected.intercept_, *expected.coef_], rtol=1e-9)


def two(t, u, a, b):
    return a * t + b * u


def stacked(x, a, b):
    return a * x[0] + b * x[1]


PAIR = FRAME[["t", "u"]]
NAMESAKES = PAIR.rename(columns={"t": "intercept", "u": "coef_intercept"})
SWAPPED = FRAME[["u", "t"]]
BINDINGS = {
    "formula, by name": ("a*t + b*u", SWAPPED),
    "function, by name": (two, SWAPPED),
    "formula, numbered": ("a*x0 + b*x1", PAIR.to_numpy()),
    "formula with columns, in order": (Model.from_expression("a*p + b*q", ["p", "q"]), PAIR.to_numpy()),
    "formula with columns of other names": (Model.from_expression("a*p + b*q", ["p", "q"]), PAIR),
    "function, stacked": (stacked, PAIR.to_numpy()),
    "function, stacked frame": (stacked, PAIR),
    "Dask DataFrame, by name": (two, DDF[["u", "t"]]),
    "linear, names of parameters": (None, NAMESAKES),
    "linear, names of parameters in Dask": (None, dd.from_pandas(NAMESAKES, npartitions=3)),
}


@pytest.mark.parametrize(("model", "features"), BINDINGS.values(), ids=BINDINGS)
def test_features_are_columns_of_the_model(model, features):
    y = DDF if isinstance(features, dd.DataFrame) else FRAME
    estimator = NLSQRegressor(model).fit(features, 3 * y["t"] - 2 * y["u"])
    np.testing.assert_allclose(estimator.params_.to_numpy()[-2:], [3, -2], rtol=1e-9)


@pytest.mark.slow
def test_pipelines_and_searches():
    logarithm = make_pipeline(FunctionTransformer(np.log1p, np.expm1), NLSQRegressor("a*exp(-b*(exp(x) - 1))"))
    search = GridSearchCV(logarithm, {"nlsqregressor__loss": ["linear", "huber"]}, cv=3)
    assert cross_val_score(search.fit(X, Y).best_estimator_, X, Y, cv=3).min() > 0.9
    models = GridSearchCV(NLSQRegressor(), {"model": ["a + b*t", DECAY, "a/(1 + b*t)"]}, cv=3).fit(X, Y)
    assert models.best_params_ == {"model": DECAY}
    target = TransformedTargetRegressor(NLSQRegressor(), func=np.log, inverse_func=np.exp).fit(X, np.exp(-T))
    assert target.regressor_.params_["coef_x0"] == pytest.approx(-1)


def test_copies():
    estimator = NLSQRegressor(DECAY, p0=dask_nlsq.fit(DECAY, T, Y), bounds={"b": (0, 9)}, options={"seed": 1})
    copy = clone(estimator)
    assert copy.get_params()["options"] == {"seed": 1} and not hasattr(copy, "result_")
    restored = pickle.loads(pickle.dumps(copy.fit(X, Y)))
    np.testing.assert_array_equal(restored.predict(X, return_std=True), copy.predict(X, return_std=True))


def test_counts_are_fitted_by_their_likelihood():
    y = np.random.default_rng(0).poisson(5 * np.exp(-T))
    estimator, options = NLSQRegressor(DECAY, loss="poisson"), {"x": T, "y": y, "loss": "poisson"}
    np.testing.assert_array_equal(estimator.fit(X, y).result_.popt, dask_nlsq.fit(DECAY, **options).popt)


ERRORS = {
    "negative weight": (lambda: NLSQRegressor(DECAY).fit(X, Y, -W), DataError, "200 of 200"),
    "negative weight of Dask": (lambda: NLSQRegressor(DECAY).fit(DDF[["t"]], DDF["y"], -DDF["w"]), DataError, "weight"),
    "no weight": (lambda: NLSQRegressor(DECAY).fit(X, Y, 0 * W), DataError, "zero weight"),
    "too few rows": (lambda: NLSQRegressor("a + b*x + c*x**2").fit(X[:2], Y[:2]), TooFewRows, "2 rows"),
    "NaN": (lambda: NLSQRegressor(DECAY).fit(X * np.nan, Y), ValueError, "NaN"),
    "Dask array of one dimension": (lambda: NLSQRegressor().fit(blocks(T), Y), DataError, r"shape \(200,\)"),
    "other collection": (lambda: NLSQRegressor().fit(DDF["t"], DDF["y"]), DataError, "lazy Series"),
    "a feature without a column": (lambda: NLSQRegressor(DECAY).fit(PAIR, Y), ModelError, "does not fit"),
    "no model": (lambda: NLSQRegressor(3).fit(X, Y), ModelError, "model is a int"),
    "X in options": (lambda: NLSQRegressor(options={"x": T}).fit(X, Y), NlsqError, "options holds"),
    "p0 in options": (lambda: NLSQRegressor(options={"p0": [1]}).fit(X, Y), NlsqError, "options holds"),
    "unknown option": (lambda: NLSQRegressor(options={"goals": 1}).fit(X, Y), TypeError, "goals"),
    "score with y in memory": (lambda: NLSQRegressor().fit(PAIR, Y).score(DDF[["t", "u"]], Y), DataError, "ndarray in"),
    "score with one y": (lambda: NLSQRegressor().fit(X, Y).score(blocks(X), Y[:1]), DataError, "200 rows"),
    "trials": (lambda: NLSQRegressor(DECAY, loss="binomial").fit(X, Y), NlsqError, "needs the trials of each row"),
    "weights of counts": (lambda: NLSQRegressor(DECAY, loss="poisson").fit(X, Y, W), NlsqError, "sample_weight is"),
    "not fitted": (lambda: NLSQRegressor().predict(X), NotFittedError, "not fitted"),
    "other names": (lambda: NLSQRegressor().fit(PAIR, Y).predict(SWAPPED), ValueError, "same order"),
    "other names of Dask": (lambda: NLSQRegressor().fit(PAIR, Y).predict(DDF[["u", "t"]]), ValueError, "same order"),
    "fewer features of Dask": (lambda: NLSQRegressor().fit(PAIR, Y).predict(DDF[["t"]]), ValueError, "feature"),
}


@pytest.mark.parametrize(("call", "error", "text"), ERRORS.values(), ids=ERRORS)
def test_refused(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_says_when_it_did_not_converge():
    with pytest.warns(ConvergenceWarning, match="MAX_NFEV"):
        NLSQRegressor(DECAY, max_nfev=1).fit(X, Y)


@pytest.mark.slow
def test_the_package_does_without_scikit_learn():
    code = "import sys; sys.modules['sklearn'] = None; import dask_nlsq; dask_nlsq.fit; import dask_nlsq.sklearn"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stderr.strip().endswith(
        'ImportError: dask_nlsq.sklearn needs scikit-learn: pip install "dask-nlsq[sklearn]".'
    )
