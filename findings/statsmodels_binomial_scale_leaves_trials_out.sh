#!/usr/bin/env bash
# statsmodels: the dispersion of binomial counts leaves the numbers of trials out, so that scaled standard errors are
# too small by about the root of the mean number of trials.
#
# Guess: GLM(successes and failures, Binomial()).fit(scale="X2") scales the covariance by pearson_chi2 / df_resid, as
# its documentation says of Pearson's chi-square, and as the same fit of proportions with var_weights=trials does.
# What happens (statsmodels 0.15.0): both forms have the same estimates and the same pearson_chi2. Of proportions, scale
# is pearson_chi2 / df_resid. Of successes and failures, scale is the sum of (proportion - fit)²/(fit (1 - fit)) over
# df_resid: each row is weighed as one trial.
# Why it matters: over-dispersion is corrected with scale="X2"; with 1 to 30 trials a row the errors come out 2.5 times
# too small, where nothing at all should have changed.
# Instead: proportions with var_weights=trials, or bse of scale=1 times sqrt(pearson_chi2 / df_resid).
set -euo pipefail
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
python3 -m venv "$dir/venv"
"$dir/venv/bin/pip" install -q --disable-pip-version-check statsmodels==0.15.0
cd "$dir"
venv/bin/python - <<'PY'
import numpy as np
import statsmodels
import statsmodels.api as sm

print({"statsmodels": statsmodels.__version__})
rng = np.random.default_rng(0)
dose, trials = np.linspace(0, 2, 400), rng.integers(1, 30, 400)
successes = rng.binomial(trials, 1 / (1 + np.exp(-2 * (dose - 1))))
x, family = sm.add_constant(dose), sm.families.Binomial()
pairs = sm.GLM(np.column_stack([successes, trials - successes]), x, family=family)
proportions = sm.GLM(successes / trials, x, family=family, var_weights=trials)
for name, model in {"successes and failures": pairs, "proportions": proportions}.items():
    plain, scaled = model.fit(), model.fit(scale="X2")
    dispersion = plain.pearson_chi2 / plain.df_resid
    print(f"{name}: pearson_chi2/df_resid {dispersion:.4f}, scale {scaled.scale:.4f}, errors {scaled.bse.round(4)}")
    assert np.isclose(scaled.scale, dispersion) == (name == "proportions")
fit = plain.fittedvalues
unweighted = np.sum((successes / trials - fit) ** 2 / (fit * (1 - fit))) / plain.df_resid
assert np.isclose(pairs.fit(scale="X2").scale, unweighted) and unweighted < 0.2 < 0.9 < dispersion
PY
echo "as described: the scale of successes and failures leaves the trials out"
