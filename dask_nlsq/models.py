"""Named models with starts guessed from the data.

``fit("gaussian", ...)`` takes them by name. ``+`` adds models of the same column, and `Model.prefix` keeps the names of
their parameters apart. None has a background of its own: add `constant` or `line`.

Examples
--------
>>> import numpy as np, dask_nlsq
>>> from dask_nlsq import models
>>> x = np.linspace(0, 10, 201)
>>> y = 3 * np.exp(-(((x - 4) / 0.5) ** 2) / 2) + 1 + 0.2 * x
>>> result = dask_nlsq.fit(models.gaussian + models.line, x, y)
>>> result.params.round(6).to_dict()
{'amplitude': 3.0, 'center': 4.0, 'sigma': 0.5, 'intercept': 1.0, 'slope': 0.2}
"""

from dask_nlsq._model import (
    LIBRARY,
    constant,
    damped_sinusoid,
    exponential_decay,
    exponential_growth,
    gaussian,
    hill,
    line,
    logistic,
    lorentzian,
    michaelis_menten,
    polynomial,
    power_law,
    pseudo_voigt,
    sinusoid,
    step,
    step_arctan,
)

__all__ = [
    "LIBRARY",
    "constant",
    "damped_sinusoid",
    "exponential_decay",
    "exponential_growth",
    "gaussian",
    "hill",
    "line",
    "logistic",
    "lorentzian",
    "michaelis_menten",
    "polynomial",
    "power_law",
    "pseudo_voigt",
    "sinusoid",
    "step",
    "step_arctan",
]
