"""The models of `battery.py` in textbook form, each with its parameters, its rows and the scaling of both.

A model is a function of a namespace, a column and parameters, so that the same code runs in NumPy and in JAX. Rows at
which the textbook form is numerically awkward (a power at zero, an exponential that overflows) are included.
"""

import dataclasses
import functools
import inspect
import types
from collections.abc import Callable

import jax.numpy as jnp
import jax.scipy.special
import numpy as np
import scipy.special


def namespace(module, **functions):
    """Return a copy of a module with functions added.

    A module is known by its name: a model that holds any other namespace would be compiled again in each fit.
    """
    added = types.ModuleType(module.__name__)
    vars(added).update(vars(module), **functions)
    return added


NUMPY = namespace(np, erf=scipy.special.erf)
JAX = namespace(jnp, erf=jax.scipy.special.erf)


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A true value, and what it scales with."""

    value: float
    y: int = 0  # power of the response's unit
    x: int = 0  # power of the column's unit
    scatter: float | None = None  # scale of the starts; None is the value itself
    position: bool = False  # moves along with the column
    level: bool = False  # adds to the response


def position(value, scatter):
    """Return a place on the column's axis; its starts scatter by so much, wherever the origin is."""
    return Parameter(value, x=1, scatter=scatter, position=True)


def phase(value):
    """Return an angle; its starts scatter by radians."""
    return Parameter(value, scatter=1.0)


def level(value, y=1):
    """Return what is added to all rows."""
    return Parameter(value, y=y, level=True)


@dataclasses.dataclass(frozen=True, eq=False)
class Textbook:
    """A model with its true parameters and its column."""

    name: str
    function: Callable  # of (xp, x, *theta)
    parameters: dict[str, Parameter]
    x: np.ndarray  # (rows,)
    noise: float = 0.01  # standard deviation, in ranges of the signal
    x_units: bool = True  # whether the column may change its unit
    pedestal: bool = True  # whether a level can be added that is determined

    @property
    def level(self):
        """Name of the parameter that adds to all rows, or None."""
        return next((name for name, p in self.parameters.items() if p.level), None)

    @property
    def positions(self):
        """Names of the parameters that move along with the column."""
        return [name for name, p in self.parameters.items() if p.position]

    @functools.cached_property
    def raised(self):
        """The model with a level as its last parameter; itself where it has one."""
        return (
            self
            if self.level
            else dataclasses.replace(
                self, function=raise_level(self.function), parameters={**self.parameters, "level": level(0.0)}
            )
        )

    @functools.cached_property
    def numpy(self):
        """The function of (x, *theta) for SciPy."""
        return functools.partial(self.function, NUMPY)

    @functools.cached_property
    def jax(self):
        """The function of (x, *theta) for us: one object, so that it is compiled once."""
        return functools.partial(self.function, JAX)


def raise_level(function):
    """Return a function with one more parameter, `level`, that is added."""

    def raised(xp, x, *theta):
        return function(xp, x, *theta[:-1]) + theta[-1]

    signature = inspect.signature(function)
    added = inspect.Parameter("level", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    raised.__signature__ = signature.replace(parameters=[*signature.parameters.values(), added])
    raised.__name__ = f"{function.__name__}_raised"
    return raised


TEXTBOOKS = {}
"""All models by name."""


def textbook(x, parameters, **options):
    """Register a model."""

    def register(function):
        TEXTBOOKS[function.__name__] = Textbook(function.__name__, function, parameters, np.asarray(x), **options)
        return function

    return register


P = Parameter
GRID = np.linspace


# --- decay and growth -------------------------------------------------------------------------------------------------


@textbook(GRID(0, 5, 100), {"amplitude": P(3.0, y=1), "rate": P(1.3, x=-1)})
def decay(xp, t, amplitude, rate):
    return amplitude * xp.exp(-rate * t)


@textbook(GRID(0, 5, 100), {"amplitude": P(3.0, y=1), "rate": P(1.3, x=-1), "offset": level(0.5)})
def decay_level(xp, t, amplitude, rate, offset):
    return amplitude * xp.exp(-rate * t) + offset


@textbook(GRID(0, 100, 100), {"amplitude": P(3.0, y=1), "lifetime": P(20.0, x=1), "offset": level(0.5)})
def lifetime(xp, t, amplitude, lifetime, offset):
    return amplitude * xp.exp(-t / lifetime) + offset


@textbook(GRID(0, 10, 150), {"a1": P(2.0, y=1), "k1": P(3.0, x=-1), "a2": P(1.0, y=1), "k2": P(0.3, x=-1)})
def double_decay(xp, t, a1, k1, a2, k2):
    return a1 * xp.exp(-k1 * t) + a2 * xp.exp(-k2 * t)


@textbook(GRID(0, 10, 101), {"amplitude": P(2.0, y=1), "tau": P(1.5, x=1), "beta": P(0.6)})
def stretched(xp, t, amplitude, tau, beta):
    return amplitude * xp.exp(-((t / tau) ** beta))


@textbook(GRID(0, 10, 80), {"initial": P(0.5, y=1), "rate": P(0.4, x=-1)})
def growth(xp, t, initial, rate):
    return initial * xp.exp(rate * t)


@textbook(GRID(0, 10, 80), {"ceiling": P(200.0, y=1), "rate": P(0.55, x=-1)})
def saturation(xp, t, ceiling, rate):
    return ceiling * (1 - xp.exp(-rate * t))


@textbook(GRID(0, 24, 100), {"amplitude": P(10.0, y=1), "absorption": P(1.2, x=-1), "elimination": P(0.2, x=-1)})
def bateman(xp, t, amplitude, absorption, elimination):
    ratio = absorption / (absorption - elimination)
    return amplitude * ratio * (xp.exp(-elimination * t) - xp.exp(-absorption * t))


@textbook(GRID(0, 0.7, 80), {"current": P(1e-6, y=1), "thermal": P(0.05, x=1)})
def diode(xp, v, current, thermal):
    return current * (xp.exp(v / thermal) - 1)


@textbook(GRID(0, 12, 100), {"amplitude": P(1.5, y=1), "alpha": P(2.2), "beta": P(1.4, x=1)}, x_units=False)
def gamma_variate(xp, t, amplitude, alpha, beta):
    return amplitude * t**alpha * xp.exp(-t / beta)


# --- growth to a ceiling ----------------------------------------------------------------------------------------------


@textbook(GRID(0, 20, 100), {"ceiling": P(5.0, y=1), "middle": position(9.0, 4.0), "width": P(1.5, x=1)})
def logistic(xp, t, ceiling, middle, width):
    return ceiling / (1 + xp.exp(-(t - middle) / width))


@textbook(GRID(0, 20, 100), {"ceiling": P(5.0, y=1), "displacement": P(6.0), "rate": P(0.4, x=-1)})
def gompertz(xp, t, ceiling, displacement, rate):
    return ceiling * xp.exp(-displacement * xp.exp(-rate * t))


@textbook(
    GRID(0, 20, 120),
    {"ceiling": P(5.0, y=1), "rate": P(0.8, x=-1), "middle": position(9.0, 4.0), "shape": P(1.8)},
)
def richards(xp, t, ceiling, rate, middle, shape):
    return ceiling / (1 + shape * xp.exp(-rate * (t - middle))) ** (1 / shape)


@textbook(GRID(0, 10, 100), {"total": P(1.0, y=1), "scale": P(3.5, x=1), "shape": P(1.8)})
def weibull_cdf(xp, t, total, scale, shape):
    return total * (1 - xp.exp(-((t / scale) ** shape)))


@textbook(
    GRID(-5, 5, 100), {"height": P(2.0, y=1), "centre": position(0.7, 2.0), "width": P(0.8, x=1), "low": level(0.3)}
)
def erf_edge(xp, x, height, centre, width, low):
    return low + 0.5 * height * (1 + xp.erf((x - centre) / width))


@textbook(
    GRID(-5, 5, 100), {"height": P(2.0, y=1), "centre": position(0.7, 2.0), "width": P(0.8, x=1), "low": level(0.3)}
)
def tanh_step(xp, x, height, centre, width, low):
    return low + height * xp.tanh((x - centre) / width)


@textbook(
    np.r_[GRID(-0.01, 0.012, 100), GRID(0.02, 1.0, 60)],  # exp overflows in the last rows
    {"height": P(2.0, y=1), "edge": position(0.001, 0.004), "thermal": P(0.0013, x=1)},
)
def fermi_edge(xp, energy, height, edge, thermal):
    return height / (xp.exp((energy - edge) / thermal) + 1)


# --- peaks ------------------------------------------------------------------------------------------------------------


@textbook(GRID(0, 10, 100), {"height": P(3.0, y=1), "centre": position(4.2, 1.0), "width": P(0.8, x=1)})
def gaussian(xp, x, height, centre, width):
    return height * xp.exp(-0.5 * ((x - centre) / width) ** 2)


@textbook(
    GRID(0, 10, 100), {"height": P(3.0, y=1), "centre": position(4.2, 1.0), "width": P(0.5, x=1), "low": level(0.4)}
)
def lorentzian(xp, x, height, centre, width, low):
    return height / (1 + ((x - centre) / width) ** 2) + low


@textbook(
    GRID(0, 10, 150),
    {"height": P(3.0, y=1), "centre": position(4.2, 1.0), "width": P(0.7, x=1), "mixing": P(0.4)},
)
def pseudo_voigt(xp, x, height, centre, width, mixing):
    z = ((x - centre) / width) ** 2
    return height * (mixing / (1 + z) + (1 - mixing) * xp.exp(-xp.log(2.0) * z))


@textbook(
    GRID(0, 10, 200),
    {
        "h1": P(2.0, y=1), "c1": position(3.0, 1.0), "w1": P(0.6, x=1),
        "h2": P(1.2, y=1), "c2": position(6.0, 1.0), "w2": P(0.9, x=1), "low": level(0.5),
    },
)  # fmt: skip
def two_gaussians(xp, x, h1, c1, w1, h2, c2, w2, low):
    return h1 * xp.exp(-0.5 * ((x - c1) / w1) ** 2) + h2 * xp.exp(-0.5 * ((x - c2) / w2) ** 2) + low


@textbook(GRID(0.1, 12, 120), {"height": P(4.0, y=1), "mode": P(3.0, x=1), "width": P(0.45)})
def lognormal_peak(xp, x, height, mode, width):
    return height * xp.exp(-0.5 * (xp.log(x / mode) / width) ** 2)


@textbook(GRID(-6, 6, 120), {"height": P(2.0, y=1), "centre": position(0.5, 1.2), "width": P(1.1, x=1)})
def soliton(xp, x, height, centre, width):
    return height / xp.cosh((x - centre) / width) ** 2


@textbook(
    GRID(0, 10, 150),
    {
        "height": P(1.0, y=1),
        "resonance": position(5.0, 1.0),
        "width": P(0.8, x=1),
        "asymmetry": P(1.5),
        "low": level(0.2),
    },
)
def fano(xp, energy, height, resonance, width, asymmetry, low):
    z = 2 * (energy - resonance) / width
    return height * (asymmetry + z) ** 2 / (1 + z**2) + low


@textbook(GRID(0.5, 8, 120), {"force": P(6.0, x=2, y=1), "natural": P(3.0, x=1), "damping": P(0.6, x=1)})
def driven_oscillator(xp, w, force, natural, damping):
    return force / xp.sqrt((natural**2 - w**2) ** 2 + (damping * w) ** 2)


@textbook(GRID(0.1, 12, 120), {"amplitude": P(2.0, y=1, x=-3), "temperature": P(1.2, x=1)})
def planck(xp, frequency, amplitude, temperature):
    return amplitude * frequency**3 / (xp.exp(frequency / temperature) - 1)


# --- binding and kinetics ---------------------------------------------------------------------------------------------

DOSES = np.r_[0.0, np.geomspace(0.01, 100, 79)]


@textbook(DOSES, {"top": P(2.0, y=1), "half": P(1.5, x=1), "slope": P(1.4)})
def hill(xp, dose, top, half, slope):
    return top * dose**slope / (half**slope + dose**slope)


@textbook(DOSES, {"bottom": level(0.2), "span": P(1.8, y=1), "ec50": P(1.5, x=1), "slope": P(1.4)})
def dose_response(xp, dose, bottom, span, ec50, slope):
    return bottom + span / (1 + (dose / ec50) ** slope)


@textbook(GRID(0.1, 20, 80), {"vmax": P(3.0, y=1), "km": P(2.5, x=1)})
def michaelis_menten(xp, s, vmax, km):
    return vmax * s / (km + s)


@textbook(GRID(0, 10, 81), {"capacity": P(4.0, y=1), "affinity": P(0.7, x=-1)})
def langmuir(xp, p, capacity, affinity):
    return capacity * affinity * p / (1 + affinity * p)


@textbook(GRID(0, 10, 101), {"capacity": P(4.0, y=1), "affinity": P(0.7, x=-1), "exponent": P(0.75)})
def sips(xp, p, capacity, affinity, exponent):
    q = (affinity * p) ** exponent
    return capacity * q / (1 + q)


@textbook(GRID(0, 30, 100), {"vmax": P(5.0, y=1), "km": P(2.0, x=1), "inhibition": P(8.0, x=1)})
def haldane(xp, s, vmax, km, inhibition):
    return vmax * s / (km + s + s**2 / inhibition)


@textbook(GRID(0, 10, 80), {"a": P(5.0, x=1, y=1), "b": P(2.0, x=1)})
def rational(xp, x, a, b):
    return a / (b + x)


# --- temperature ------------------------------------------------------------------------------------------------------


@textbook(GRID(1 / 500, 1 / 300, 80), {"prefactor": P(1e6, y=1), "energy": P(5000.0, x=-1)})
def arrhenius(xp, inverse, prefactor, energy):
    return prefactor * xp.exp(-energy * inverse)


@textbook(GRID(300, 500, 80), {"prefactor": P(1e6, y=1), "energy": P(5000.0, x=1)})
def arrhenius_kelvin(xp, temperature, prefactor, energy):
    return prefactor * xp.exp(-energy / temperature)


@textbook(GRID(300, 500, 100), {"prefactor": P(0.1, y=1), "energy": P(900.0, x=1), "vanishing": position(180.0, 40.0)})
def vogel(xp, temperature, prefactor, energy, vanishing):
    return prefactor * xp.exp(energy / (temperature - vanishing))


@textbook(GRID(1, 100, 100), {"a": level(8.07, y=1), "b": P(1730.6, x=1, y=1), "c": P(233.4, x=1)}, noise=1e-3)
def antoine(xp, celsius, a, b, c):
    return a - b / (c + celsius)


# --- oscillations -----------------------------------------------------------------------------------------------------


@textbook(GRID(0, 10, 120), {"sine": P(1.2, y=1), "cosine": P(0.8, y=1), "frequency": P(2.0, x=-1), "low": level(0.5)})
def sinusoid(xp, t, sine, cosine, frequency, low):
    return sine * xp.sin(frequency * t) + cosine * xp.cos(frequency * t) + low


@textbook(
    GRID(0, 10, 120), {"amplitude": P(1.5, y=1), "frequency": P(2.0, x=-1), "angle": phase(0.6), "low": level(0.5)}
)
def sinusoid_phase(xp, t, amplitude, frequency, angle, low):
    return amplitude * xp.sin(frequency * t + angle) + low


@textbook(GRID(0, 10, 120), {"amplitude": P(1.5, y=1), "period": P(3.1, x=1), "epoch": position(0.9, 0.8)})
def sinusoid_epoch(xp, t, amplitude, period, epoch):
    return amplitude * xp.sin(2 * xp.pi * (t - epoch) / period)


@textbook(
    GRID(0, 12, 150),
    {"amplitude": P(2.0, y=1), "rate": P(0.3, x=-1), "frequency": P(3.0, x=-1), "angle": phase(0.4)},
)
def damped_sinusoid(xp, t, amplitude, rate, frequency, angle):
    return amplitude * xp.exp(-rate * t) * xp.cos(frequency * t + angle)


@textbook(GRID(-9.9, 9.9, 120), {"height": P(3.0, y=1), "centre": position(0.4, 1.5), "width": P(1.6, x=1)})
def slit(xp, x, height, centre, width):
    z = (x - centre) / width
    return height * (xp.sin(z) / z) ** 2


# --- potentials, spectra, soils ---------------------------------------------------------------------------------------


@textbook(GRID(0.6, 4, 100), {"depth": P(4.5, y=1), "stiffness": P(1.9, x=-1), "bond": position(1.1, 0.3)})
def morse(xp, r, depth, stiffness, bond):
    return depth * (1 - xp.exp(-stiffness * (r - bond))) ** 2


@textbook(GRID(0.95, 3, 100), {"depth": P(1.2, y=1), "diameter": P(1.0, x=1)})
def lennard_jones(xp, r, depth, diameter):
    return 4 * depth * ((diameter / r) ** 12 - (diameter / r) ** 6)


@textbook(np.geomspace(1e-2, 1e3, 120), {"strength": P(8.0, y=1), "tau": P(0.5, x=-1), "high": P(2.0, y=1)})
def debye(xp, w, strength, tau, high):
    return xp.sqrt((high + strength / (1 + (w * tau) ** 2)) ** 2 + (strength * w * tau / (1 + (w * tau) ** 2)) ** 2)


@textbook(
    np.r_[0.0, np.geomspace(1, 15000, 99)],
    {"residual": level(0.08), "span": P(0.35, y=1), "alpha": P(0.02, x=-1), "n": P(1.6)},
)
def van_genuchten(xp, h, residual, span, alpha, n):
    return residual + span * (1 + (alpha * h) ** n) ** (1 / n - 1)


@textbook(GRID(3, 62, 60), {"limit": level(5.0), "rydberg": P(13.6, x=2, y=1), "defect": P(1.35, x=1)}, noise=1e-3)
def rydberg(xp, n, limit, rydberg, defect):
    return limit - rydberg / (n - defect) ** 2


@textbook(GRID(1, 60, 60), {"friction": P(0.8, y=1), "roughness": P(0.05, x=1)}, pedestal=False)
def log_law(xp, z, friction, roughness):
    return friction * xp.log(z / roughness)


@textbook(GRID(0, 10, 101), {"scale": P(1.5, y=1), "exponent": P(1.7), "low": level(2.0)}, x_units=False)
def power_law(xp, x, scale, exponent, low):
    return scale * x**exponent + low


@textbook(GRID(0.1, 8, 80), {"moment": P(2.0, y=1), "field": P(0.8, x=1)})
def langevin(xp, h, moment, field):
    return moment * (1 / xp.tanh(h / field) - field / h)
