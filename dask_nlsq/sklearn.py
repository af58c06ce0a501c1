"""NLSQRegressor: a fit as an estimator of scikit-learn.

The features X, of shape (rows, features), become the columns x of `dask_nlsq.fit`, sample weights become sigma, and
the `FitResult` predicts. scikit-learn validates data in memory; the fit validates Dask collections, partition by
partition.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import dask
import dask.array as da
import dask.dataframe as dd
import numpy as np
import numpy.typing as npt
import pandas as pd

from dask_nlsq._errors import DataError, NlsqError, warn
from dask_nlsq._fit import fit, to_model
from dask_nlsq._model import COUNTS, Expression, Loss, Model
from dask_nlsq._result import curve_stderr

try:
    from sklearn.base import BaseEstimator, RegressorMixin
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d, validate_data
except ImportError as error:
    raise ImportError('dask_nlsq.sklearn needs scikit-learn: pip install "dask-nlsq[sklearn]".') from error

__all__ = ["NLSQRegressor"]


class NLSQRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no type information
    """Nonlinear least squares as an estimator of scikit-learn.

    Parameters
    ----------
    model : callable, Model or str, optional
        As for `dask_nlsq.fit`. The features are its columns: by name where X is a frame, otherwise in order. In a
        formula, several features without names are called ``x0``, ``x1``, …; a single one may also be called ``x`` or
        ``t``. Several features without names are one argument of a function, of shape (features, rows). By default the
        model is linear in the features, with the parameters ``intercept`` and ``coef_NAME``.
    p0, bounds, fixed, tied, prior, loss, f_scale, absolute_sigma, cov_type, n_starts, max_nfev
        As for `dask_nlsq.fit`.
    options : mapping, optional
        Other arguments of `dask_nlsq.fit`, such as ``{"seed": 1, "progress": False}``.

    Attributes
    ----------
    result_ : FitResult
        Covariance, statistics and history of the fit.
    params_ : Series
        Estimates by name.
    n_features_in_ : int
        Number of features seen during `fit`.
    feature_names_in_ : ndarray of shape (``n_features_in_``,)
        Names of the features, if X is a frame whose columns all have text as names.

    Examples
    --------
    >>> import numpy as np
    >>> from dask_nlsq.sklearn import NLSQRegressor
    >>> t = np.linspace(0, 4, 50)
    >>> regressor = NLSQRegressor("amplitude*exp(-rate*t)").fit(t[:, None], 2.5 * np.exp(-1.3 * t))
    >>> regressor.params_.round(6).to_dict()
    {'amplitude': 2.5, 'rate': 1.3}
    >>> regressor.predict([[0.0], [1.0]]).round(3).tolist()
    [2.5, 0.681]
    """

    def __init__(
        self,
        model: Any = None,
        *,
        p0: Any = None,
        bounds: Any = None,
        fixed: Any = None,
        tied: Mapping[str, Any] | None = None,
        prior: Mapping[str, tuple[float, float]] | None = None,
        loss: Loss = "linear",
        f_scale: float = 1.0,
        absolute_sigma: bool = False,
        cov_type: str = "standard",
        n_starts: int | None = None,
        max_nfev: int | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.p0 = p0
        self.bounds = bounds
        self.fixed = fixed
        self.tied = tied
        self.prior = prior
        self.loss = loss
        self.f_scale = f_scale
        self.absolute_sigma = absolute_sigma
        self.cov_type = cov_type
        self.n_starts = n_starts
        self.max_nfev = max_nfev
        self.options = options

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> NLSQRegressor:
        """Fit the model to all rows.

        Parameters
        ----------
        X : array or frame of shape (rows, features)
            A Dask DataFrame or array is read partition by partition. Every feature must be a column of the model.
        y : array or Series of shape (rows,)
            Of Dask, in as many partitions as X, or in memory.
        sample_weight : array or Series of shape (rows,), optional
            Each row has the standard deviation ``1 / sqrt(sample_weight)``; a row of weight 0 does not count.

        Returns
        -------
        NLSQRegressor
            The estimator itself.

        Raises
        ------
        DataError
            A Dask collection has a shape, a length or a value that cannot be fitted, or a weight is negative.
        NlsqError
            As from `dask_nlsq.fit`, or `options` has an argument that the estimator gives itself, the loss is
            "binomial", or counts have weights.
        ValueError
            scikit-learn refuses X or y.

        Warns
        -----
        ConvergenceWarning
            No test of convergence holds.
        """
        options = self._options()
        self._check_counts(sample_weight)
        if dask.is_dask_collection(X):
            validate_data(self, _outline(X), skip_check_array=True)
        else:
            # One row determines no spread.
            X, y = validate_data(self, X, y, y_numeric=True, ensure_min_samples=2)
            check_consistent_length(X, sample_weight)
        sigma = None if sample_weight is None else _sigma(sample_weight)
        model, names = self._model()
        columns = _columns(X)
        self.result_ = fit(
            model,
            columns if names is None else dict(zip(names, columns, strict=True)),
            y,
            sigma=sigma,
            p0=self.p0,
            bounds=self.bounds,
            fixed=self.fixed,
            tied=self.tied,
            prior=self.prior,
            loss=self.loss,
            f_scale=self.f_scale,
            absolute_sigma=self.absolute_sigma,
            cov_type=self.cov_type,
            n_starts=self.n_starts,
            max_nfev=self.max_nfev,
            **options,
        )
        self.params_ = self.result_.params
        if not self.result_.success:
            warn(f"The fit did not converge ({self.result_.status.name}): {self.result_.message}", ConvergenceWarning)
        return self

    def predict(self, X: Any, return_std: bool = False) -> Any:
        """Evaluate the fitted model; lazy for Dask collections.

        Parameters
        ----------
        X : array or frame of shape (rows, features)
        return_std : bool
            Return the standard error of the model at each row too, on which `FitResult.confidence_band` rests. The
            scatter of observations is not part of it.

        Returns
        -------
        array of shape (rows,), or two of them; Series for a Dask DataFrame

        Raises
        ------
        ValueError
            X has other features than in `fit`.
        """
        check_is_fitted(self)
        result: Any = self.result_
        if dask.is_dask_collection(X):
            validate_data(self, _outline(X), reset=False, skip_check_array=True)
        else:
            X = validate_data(self, X, reset=False)
        frame = isinstance(X, dd.DataFrame)
        data = X.rename(columns=dict(zip(X.columns, result.columns.x, strict=True))) if frame else _columns(X)
        predicted = result.predict(data)
        if not return_std:
            return predicted
        stderr = curve_stderr(result.payload, result.columns, result.params, result.cov, data)
        return predicted, stderr.rename("std") if frame else stderr

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Return the coefficient of determination R² of the prediction; out of core for Dask collections.

        Parameters
        ----------
        X : array or frame of shape (rows, features)
        y : array or Series of shape (rows,)
            Beside a Dask DataFrame, a Dask Series of as many partitions.
        sample_weight : array or Series of shape (rows,), optional
            As `y`.

        Returns
        -------
        float

        Raises
        ------
        DataError
            `y` or `sample_weight` cannot lie beside a Dask collection row by row.
        """
        if not dask.is_dask_collection(X):
            return float(super().score(X, y, sample_weight))
        rows = self.predict(X)
        predicted, y = _beside(rows, rows, "X"), _beside(rows, y, "y")
        weight = da.ones_like(predicted) if sample_weight is None else _beside(rows, sample_weight, "sample_weight")
        # Computed first, for what follows would otherwise hold y until the mean is known.
        total, weights = dask.compute((weight * y).sum(), weight.sum())
        residual, spread = weight * (y - predicted) ** 2, weight * (y - total / weights) ** 2
        unexplained, variation = dask.compute(residual.sum(), spread.sum())
        # As scikit-learn's r2_score where y is constant.
        return float(1 - unexplained / variation) if variation else float(unexplained == 0)

    def _options(self) -> Mapping[str, Any]:
        """Return `options`, none of which is an argument that the estimator gives itself."""
        options: Mapping[str, Any] = self.options or {}
        taken = [name for name in options if name in (*self.get_params(deep=False), "x", "y", "data", "sigma")]
        if taken:
            raise NlsqError(
                f"options holds {taken}, which the estimator passes itself: give data and weights to its method fit, "
                "and the other arguments to NLSQRegressor."
            )
        return options

    def _check_counts(self, sample_weight: Any) -> None:
        """Refuse counts that an estimator cannot have: with trials, or with weights."""
        if self.loss == "binomial":
            raise NlsqError(
                "loss='binomial' needs the trials of each row, for which an estimator has no argument; use "
                "dask_nlsq.fit with trials=."
            )
        if self.loss in COUNTS and sample_weight is not None:
            raise NlsqError(
                f"sample_weight is given, and the variance of counts follows from the model (loss={self.loss!r}); "
                "leave it out."
            )

    def _model(self) -> tuple[Any, Sequence[str] | None]:
        """Return the model, and the names of its columns where they have some."""
        names = getattr(self, "feature_names_in_", None)
        unnamed = [f"x{i}" for i in range(self.n_features_in_)]
        if self.model is None:
            return _linear_model(unnamed if names is None else names), None
        model = to_model(self.model, self.p0)
        if names is None and isinstance(model.func, Expression) and set(unnamed) <= set(model.arguments):
            names = unnamed
        return model, names


def _linear_model(names: Sequence[str]) -> Model:
    parameters = "intercept", *(f"coef_{name}" for name in names)
    return Model(_linear, ("x", *parameters), ("x",), frozenset(), {}, {}, "linear")


def _linear(x: Any, intercept: Any, *coefs: Any) -> Any:
    columns = (x,) if len(coefs) == 1 else x
    return sum((coef * column for coef, column in zip(coefs, columns, strict=True)), intercept)


def _columns(X: Any) -> tuple[Any, ...]:
    """Return the features one by one."""
    return tuple(X[name] for name in X.columns) if isinstance(X, dd.DataFrame) else tuple(X.T)


def _outline(X: Any) -> pd.DataFrame | npt.NDArray[np.float64]:
    """Return data without rows that have the features of a Dask collection."""
    if isinstance(X, dd.DataFrame):
        return pd.DataFrame(columns=X.columns)
    if isinstance(X, da.Array) and X.ndim == 2:
        return np.empty((0, X.shape[1]))
    raise DataError(
        f"X is {_seen(X)}; a Dask DataFrame, a Dask array of shape (rows, features) or data in memory are needed."
    )


def _beside(rows: Any, values: Any, name: str) -> da.Array:
    """Return values that belong to lazy rows one by one, without an index by which Dask would align them."""
    if isinstance(rows, dd.Series):
        if not isinstance(values, dd.Series) or values.npartitions != rows.npartitions:
            raise DataError(
                f"X is a Dask DataFrame of {rows.npartitions} partitions, beside which {name} must be a Dask Series of "
                f"as many; it is {_seen(values)}.",
                column=name,
            )
        return values.to_dask_array()
    array: da.Array = da.asarray(values)
    if array.shape != rows.shape and not np.isnan(array.size + rows.size):
        raise DataError(f"{name} has the shape {array.shape}, and X {rows.shape[0]} rows.", column=name)
    return array


def _seen(data: Any) -> str:
    """Say what was given."""
    if isinstance(data, da.Array):
        return f"a Dask array of shape {data.shape}"
    if not dask.is_dask_collection(data):
        return f"a {type(data).__name__} in memory"
    partitions = f" of {data.npartitions} partitions" if isinstance(data, dd.Series) else ""
    return f"a lazy {type(data).__name__}{partitions}"


def _sigma(weight: Any) -> Any:
    """Return the standard deviations that weights stand for; lazily for a Dask collection."""
    if isinstance(weight, dd.Series):
        return weight.map_partitions(_standard_deviation, meta=("sigma", "f8"))
    if dask.is_dask_collection(weight):
        return da.map_blocks(_standard_deviation, weight, dtype="f8", meta=np.empty(0))
    return _standard_deviation(column_or_1d(weight, dtype=np.float64))


def _standard_deviation(weight: Any) -> Any:
    """Return 1 / sqrt(weight), inf for 0."""
    bad = ~(np.isfinite(weight) & (weight >= 0))
    if bad.any():
        raise DataError(
            f"sample_weight must be finite and not negative; {int(bad.sum())} of {len(weight)} rows are not.",
            column="sample_weight",
        )
    with np.errstate(divide="ignore"):
        return weight**-0.5
