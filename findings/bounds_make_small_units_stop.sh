#!/usr/bin/env bash
# SciPy, Optimistix, JAXopt: with y in volts a fit is right, with the same y in megavolts it stops early, "converged".
#
# Guess: least squares does not care about the unit of y, and a bound that is far away changes nothing either.
# What happens (scipy 1.17.1, optimistix 0.1.0, jaxopt 0.8.5): with bounds, curve_fit goes from MINPACK to trf, and trf
# compares gtol=1e-8 with a gradient that has the unit of y squared. At y of 1e-6 it stops at a rate of 0.72 +- 0.01 where
# the truth is 0.5, and says success; x_scale="jac" does not help. The Levenberg-Marquardt of Optimistix and JAXopt have
# absolute tolerances as well and leave the rate at its start; Optimistix calls that successful.
# Why it matters: currents and fluxes in SI units are often below 1e-6, and a bound such as "rate >= 0" is enough to
# change the solver. Neither status nor covariance shows it.
# Instead: divide y by its scale, or give sigma (then residuals are of order one), or gtol=None.
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check scipy==1.17.1 numpy==2.4.6 optimistix==0.1.0 jaxopt==0.8.5 \
    jax==0.10.2 jaxlib==0.10.2
cd "$dir"
JAX_ENABLE_X64=1 JAX_PLATFORMS=cpu venv/bin/python -W ignore - <<'PY'
from importlib.metadata import version

import jax.numpy as jnp
import jaxopt
import numpy as np
import optimistix as optx
from scipy.optimize import curve_fit

print({name: version(name) for name in ("scipy", "optimistix", "jaxopt", "jax", "numpy")})
t = np.linspace(0, 10, 400)
noise = np.random.default_rng(0).normal(0, 0.05, 400)


def decay(t, a, b):
    return a * np.exp(-b * t)


bounded = {"bounds": ([0, 0], [np.inf, np.inf])}
rates, errors = {}, {}
for unit in (1.0, 1e-6):
    y = unit * (decay(t, 3.0, 0.5) + noise)
    start = (unit, 1.0)

    def residuals(p, args=None):
        return p[0] * jnp.exp(-p[1] * t) - y

    def fit(**options):
        popt, pcov, info, message, status = curve_fit(decay, t, y, start, full_output=True, **options)
        assert status > 0
        return popt[1], pcov[1, 1] ** 0.5

    solution = optx.least_squares(residuals, optx.LevenbergMarquardt(rtol=1e-8, atol=1e-8), jnp.array(start), throw=False)
    assert solution.result == optx.RESULTS.successful
    found = {
        "curve_fit": fit(),
        "curve_fit, bounds": fit(**bounded),
        "curve_fit, bounds, x_scale='jac'": fit(**bounded, x_scale="jac"),
        "curve_fit, bounds, gtol=None": fit(**bounded, gtol=None),
        "curve_fit, bounds, sigma": fit(**bounded, sigma=np.full(400, 0.05 * unit)),
        "optimistix": (float(solution.value[1]), np.nan),
        "jaxopt": (float(jaxopt.LevenbergMarquardt(residuals).run(jnp.array(start)).params[1]), np.nan),
    }
    for name, (rate, error) in found.items():
        print(f"y in units of {1 / unit:g}: rate {rate:.4f} +- {error:.4f}  {name}")
        rates[name, unit], errors[name, unit] = rate, error

for name in found:
    assert abs(rates[name, 1.0] - 0.5) < 0.01, name
for name in ("curve_fit", "curve_fit, bounds, gtol=None", "curve_fit, bounds, sigma"):
    assert abs(rates[name, 1e-6] - 0.5) < 0.01, name
for name in ("curve_fit, bounds", "curve_fit, bounds, x_scale='jac'"):
    assert rates[name, 1e-6] - 0.5 > 10 * errors[name, 1e-6], name
for name in ("optimistix", "jaxopt"):
    assert abs(rates[name, 1e-6] - 1.0) < 1e-3, name
PY
echo "as described"
