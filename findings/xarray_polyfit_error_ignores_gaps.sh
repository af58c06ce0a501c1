#!/usr/bin/env bash
# xarray: DataArray.polyfit with missing rows reports the covariance of a series without gaps.
#
# Guess: skipna leaves the NaN rows out of the fit and of the covariance, as numpy.polyfit gives for the rows that are left.
# What happens (xarray 2026.9.0): the coefficients agree with numpy.polyfit on the rows that are left. The covariance is
# made from the design matrix of all rows, missing ones included, and from the number of all rows. Where nine tenths are
# missing the standard error is about a tenth of the right one.
# Why it matters: series from satellites and buoys have gaps, and polyfit(cov=True) over a grid is how trends get their
# error bars; the gappiest cells look the most certain, and trends become significant that are not.
# Instead: fit with numpy.polyfit on da.dropna("t"), cell by cell, or use curvefit, whose covariance is right.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check xarray==2026.9.0 numpy==2.4.6 pandas==3.1.1 scipy==1.17.1
cd "$dir"
venv/bin/python -W ignore - <<'PY'
import numpy as np
import xarray as xr

print("xarray", xr.__version__, "numpy", np.__version__)
x = np.linspace(0, 10, 400)
noise = np.random.default_rng(0).normal(0, 0.5, 400)
for missing in (0, 40, 360):
    y = 0.02 * x + 1 + noise
    y[np.random.default_rng(1).permutation(400)[:missing]] = np.nan
    keep = np.isfinite(y)
    p, c = np.polyfit(x[keep], y[keep], 1, cov=True)
    da = xr.DataArray(y, dims="t", coords={"t": x})
    fit = da.polyfit("t", 1, cov=True)
    slope, error = float(fit.polyfit_coefficients[0]), float(fit.polyfit_covariance[0, 0]) ** 0.5
    curve = da.curvefit("t", lambda t, a, b: a * t + b)
    curve_error = float(curve.curvefit_covariance[0, 0]) ** 0.5
    print(f"{missing} of 400 missing: slope numpy {p[0]:.4f} +- {c[0, 0] ** 0.5:.4f}, xarray polyfit {slope:.4f} +- {error:.4f},"
          f" curvefit +- {curve_error:.4f}")
    assert np.isclose(slope, p[0])
    ratio = error / c[0, 0] ** 0.5
    assert np.isclose(curve_error, c[0, 0] ** 0.5, rtol=1e-3)
    assert abs(ratio - 1) < 1e-6 if missing == 0 else ratio < 0.99
assert ratio < 0.15, ratio
PY
echo "as described: with 360 of 400 rows missing the error is too small by a factor of more than six"
