"""The library of models: known parameters are recovered from noisy rows without a start, alone and in sums."""

import doctest
import pickle
from pathlib import Path

import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner

import dask_nlsq
from dask_nlsq import Model, ModelError, models
from dask_nlsq._fit.sample import draw_sample
from dask_nlsq._kernel.block import Block
from dask_nlsq._model import library
from dask_nlsq._sweep.executors.local import Serial, Threads
from dask_nlsq._sweep.groups import group
from dask_nlsq.cli import main
from dask_nlsq.models import LIBRARY

ROWS = 4000
NOISE = 0.05  # of the range of y

TRUTHS = {
    "constant": [{"offset": 3.0}, {"offset": -200.0}],
    "line": [{"intercept": 3.0, "slope": -2.0}, {"intercept": 0.1, "slope": 50.0}],
    "exponential_decay": [
        {"amplitude": 2.5, "rate": 1.3},
        {"amplitude": -40.0, "rate": 0.1},
        {"amplitude": 5.0, "rate": 20.0},
    ],
    "exponential_growth": [{"amplitude": 2.5, "rate": 0.3}, {"amplitude": 1e-3, "rate": 1.5}],
    "power_law": [{"amplitude": 2.5, "exponent": 1.3}, {"amplitude": -0.3, "exponent": 3.2}],
    "gaussian": [
        {"amplitude": 2.5, "center": 3.0, "sigma": 0.5},
        {"amplitude": -100.0, "center": 8.0, "sigma": 2.0},
        {"amplitude": 1.0, "center": 5.0, "sigma": 0.05},
    ],
    "lorentzian": [
        {"amplitude": 2.5, "center": 3.0, "gamma": 0.5},
        {"amplitude": -100.0, "center": 8.0, "gamma": 2.0},
        {"amplitude": 1.0, "center": 5.0, "gamma": 0.05},
    ],
    "pseudo_voigt": [
        {"amplitude": 2.5, "fraction": 0.3, "center": 3.0, "gamma": 0.5},
        {"amplitude": -100.0, "fraction": 0.8, "center": 8.0, "gamma": 1.0},
    ],
    "logistic": [
        {"amplitude": 2.5, "rate": 2.0, "center": 4.0},
        {"amplitude": 100.0, "rate": -0.8, "center": 6.0},
        {"amplitude": -1.0, "rate": 20.0, "center": 9.0},
    ],
    "step": [{"amplitude": 2.5, "center": 4.0, "sigma": 0.5}, {"amplitude": -1.0, "center": 7.0, "sigma": 1.5}],
    "step_arctan": [{"amplitude": 2.5, "center": 4.0, "gamma": 0.5}, {"amplitude": 9.0, "center": 6.0, "gamma": 0.05}],
    "michaelis_menten": [{"vmax": 2.5, "km": 0.5}, {"vmax": 100.0, "km": 8.0}],
    "hill": [{"amplitude": 2.5, "n": 1.0, "half": 2.0}, {"amplitude": 100.0, "n": 4.0, "half": 5.0}],
    "sinusoid": [
        {"amplitude": 2.5, "frequency": 1.23, "phase": 0.5},
        {"amplitude": 100.0, "frequency": 0.06, "phase": -2.0},
        {"amplitude": 1.0, "frequency": 57.3, "phase": 1.0},
    ],
    "damped_sinusoid": [
        {"amplitude": 2.5, "rate": 0.3, "frequency": 1.23, "phase": 0.5},
        {"amplitude": 1.0, "rate": 3.0, "frequency": 20.3, "phase": 1.0},
    ],
}
CASES = [
    pytest.param(name, truth, marks=[pytest.mark.slow] if i else [], id=f"{name}-{i}")
    for name, truths in TRUTHS.items()
    for i, truth in enumerate(truths)
]


def noisy(model, truth, rng, rows=ROWS):
    """Rows in no order, with noise of 5 % of the range (of the level, where it is constant)."""
    x = rng.uniform(0.01, 10, rows)
    y = model.func(x=x, **truth)
    return pd.DataFrame({"x": x, "y": rng.normal(y, NOISE * (np.ptp(y) or abs(y[0])))})


def assert_recovers(result, truth):
    distance = (result.params - pd.Series(truth)) / result.stderr
    assert result.success and (distance.abs() < 5).all(), result.report()


@pytest.mark.crossed(3)
@pytest.mark.parametrize(("name", "truth"), CASES)
def test_recovers_what_is_known(name, truth, rng):
    ddf = dd.from_pandas(noisy(LIBRARY[name], truth, rng), npartitions=5, sort=False)
    result = ddf.nlsq.fit(name)
    assert_recovers(result, truth)
    assert any(f"guessed from {ROWS:,} rows" in note for note in result.notes)


@pytest.mark.parametrize("name", TRUTHS)
def test_a_guess_is_finite_and_names_every_parameter(name, rng):
    rows = noisy(LIBRARY[name], TRUTHS[name][0], rng)
    start = LIBRARY[name].guess(rows["x"].to_numpy(), rows["y"].to_numpy())
    assert start.keys() == set(LIBRARY[name].parameters) and np.isfinite(list(start.values())).all()


def test_every_model_is_in_the_table():
    assert TRUTHS.keys() == LIBRARY.keys()
    assert sorted([*LIBRARY, "LIBRARY", "polynomial"]) == sorted(models.__all__)


def test_polynomial_is_that_of_numpy(rng):
    x = rng.uniform(-3, 5, ROWS)
    y = rng.normal(1 - x + 0.5 * x**3, 0.3)
    np.testing.assert_allclose(dask_nlsq.fit(models.polynomial(3), x, y).popt, np.polyfit(x, y, 3)[::-1], rtol=1e-9)


@pytest.mark.parametrize("degree", [-1, 101])
def test_a_polynomial_has_a_degree(degree):
    with pytest.raises(ModelError, match="degree"):
        models.polynomial(degree)


def test_a_name_that_is_not_there_lists_those_that_are():
    with pytest.raises(ModelError, match=r"'gausian'.*gaussian"):
        dask_nlsq.fit("gausian", np.arange(5.0), np.arange(5.0))


PEAKS = models.gaussian.prefix("p1_") + models.gaussian.prefix("p2_")
SUMS = {
    "peaks on a line": (
        PEAKS + models.line,
        {"p1_amplitude": 3, "p1_center": 3, "p1_sigma": 0.5, "p2_amplitude": 2, "p2_center": 6, "p2_sigma": 1}
        | {"intercept": 1, "slope": 0.3},
    ),
    "decay to a level": (models.exponential_decay + models.constant, {"amplitude": -2.5, "rate": 1.3, "offset": 4}),
    "wave about a level": (
        models.sinusoid + models.constant,
        {"amplitude": 1, "frequency": 3.3, "phase": 1, "offset": 10},
    ),
    "rise from a level": (
        models.logistic + models.constant,
        {"amplitude": 3, "rate": 2, "center": 7, "offset": 10},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", SUMS)
def test_sums_recover_what_is_known(case, rng):
    model, truth = SUMS[case]
    result = noisy(model, truth, rng).nlsq.fit(model)
    names = {p: p for p in truth}
    if "p1_center" in truth and result.params["p1_center"] > result.params["p2_center"]:  # either may be the first
        names = {p: p.translate(str.maketrans("12", "21")) if p[0] == "p" else p for p in truth}
    assert_recovers(result, {names[p]: value for p, value in truth.items()})


@pytest.mark.slow
def test_functions_and_formulas_add_up(rng):
    def background(t, level, slope=0.0):
        return level + slope * t

    model = models.gaussian + Model.from_function(background).prefix("b_")
    assert model.parameters == ("amplitude", "center", "sigma", "b_level", "b_slope")
    assert model.defaults == {"b_slope": 0.0} and model.name == "gaussian + b_background"
    x = rng.uniform(0, 10, ROWS)
    y = rng.normal(3 * np.exp(-(((x - 4) / 0.5) ** 2) / 2) + 2 - 0.1 * x, 0.1)
    ours = dask_nlsq.fit(model, x, y)
    assert ours.success
    np.testing.assert_allclose(ours.popt, dask_nlsq.fit(models.gaussian + models.line, x, y).popt, rtol=1e-6)


def test_names_that_clash_are_refused_with_the_remedy():
    with pytest.raises(ModelError, match=r"'amplitude'.*prefix\('p1_'\)"):
        models.gaussian + models.lorentzian
    with pytest.raises(ModelError, match="same columns"):
        models.gaussian + Model.from_expression("a*t*u", columns=["t", "u"])
    with pytest.raises(ModelError, match="columns="):
        Model.from_expression("a*t") + Model.from_expression("b*u")


def test_prefix_renames_parameters_only():
    model = models.gaussian.prefix("x")
    assert model.parameters == ("xamplitude", "xcenter", "xsigma") and model.inputs == ("x",)
    start = model.guess(np.linspace(0, 1, 50), np.linspace(0, 1, 50))
    assert start.keys() == set(model.parameters)
    with pytest.raises(ModelError, match="prefix"):
        models.gaussian.prefix("1-")
    with pytest.raises(ModelError, match="'pi', as a number is"):
        Model.from_expression("i*x", columns=["x"]).prefix("p")


def test_a_part_may_have_a_parameter_called_column():
    model = models.gaussian + Model.from_function(lambda x, column: column + 0 * x)
    assert model.bind(["x"])((np.zeros(2),), [0.0, 1.0, 1.0, 3.0], np.stack).tolist() == [3.0, 3.0]


def test_a_start_comes_before_a_guess_and_bounds_hold_it(rng):
    truth = {"amplitude": 2.5, "center": 3.0, "sigma": 0.5}
    frame = noisy(models.gaussian, truth, rng)
    result = frame.nlsq.fit("gaussian", p0={"center": 3.1}, bounds={"sigma": (0.6, 2)})
    assert any(note.startswith("p0 was not given for amplitude, sigma;") for note in result.notes)
    assert result.params["sigma"] == 0.6


def test_a_guess_of_ones_own(rng):
    x = rng.uniform(0, 1, 300)
    model = Model.from_expression("a*sin(b*x)", columns=["x"], guess=lambda x, y: {"a": y.max(), "b": 40.0})
    result = dask_nlsq.fit(model, x, rng.normal(2 * np.sin(41 * x), 0.1))
    assert_recovers(result, {"a": 2, "b": 41})
    with pytest.raises(ModelError, match="Give p0 for a, b"):
        dask_nlsq.fit(Model.from_expression("a*x + b", columns=["x"], guess=lambda x, y: 1 / 0), x, x)


@pytest.mark.slow
def test_a_guess_sees_neither_holes_nor_rows_without_weight(rng):
    frame = noisy(models.gaussian, {"amplitude": 2.5, "center": 3.0, "sigma": 0.5}, rng).assign(s=0.1)
    frame.loc[::7, "y"] = np.nan
    frame.loc[1::7, ["y", "s"]] = 1e9, np.inf
    result = frame.nlsq.fit("gaussian", sigma="s", nan_policy="omit")
    assert_recovers(result, {"amplitude": 2.5, "center": 3.0, "sigma": 0.5})


@pytest.mark.slow
def test_sums_travel_to_a_cluster(client, rng):
    def background(t, level):
        return level + 0 * jnp.exp(-t)

    frame = noisy(models.gaussian, {"amplitude": 2.5, "center": 3.0, "sigma": 0.5}, rng)
    ddf = dd.from_pandas(frame, npartitions=5, sort=False)
    result = ddf.nlsq.fit(models.gaussian + Model.from_function(background))
    assert result.provenance["executor"] == "cluster"
    assert_recovers(result, {"amplitude": 2.5, "center": 3.0, "sigma": 0.5, "level": 0.0})


def test_a_sample_is_drawn_evenly_and_the_same_each_time(rng):
    partitions = [Block((np.full(100, float(i)),), np.arange(100.0), np.arange(100.0) + 1) for i in range(40)]
    samples = [
        draw_sample(executor, group(partitions, 0.0, 2), 40, 400, seed=s).block
        for executor, s in [(Serial(), 1), (Threads(2), 1), (Serial(), 2)]
    ]
    first, again, other = samples
    assert np.array_equal(first.y, again.y) and not np.array_equal(first.y, other.y)
    drawn = np.unique(first.x[0])
    assert len(drawn) >= 16 and drawn[0] == 0 and drawn[-1] == 39 and np.diff(drawn).max() <= 3
    assert np.array_equal(first.weight, first.y + 1) and 400 <= first.rows <= 420
    assert (np.diff(first.y)[np.diff(first.x[0]) == 0] > 0).all()  # in order


def test_the_page_has_the_table_of_the_library():
    page = (Path(__file__).parents[1] / "docs" / "models.md").read_text("utf-8")
    for model in LIBRARY.values():
        assert f"| `{model.name}` | `{model.func.text}` | {', '.join(model.parameters)} |" in page


def test_the_command_line_lists_and_fits(tmp_path, rng):
    listed = CliRunner().invoke(main, ["models"])
    assert listed.exit_code == 0 and all(name in listed.output for name in LIBRARY)
    noisy(models.gaussian, {"amplitude": 2.5, "center": 3.0, "sigma": 0.5}, rng).to_parquet(tmp_path / "a.parquet")
    seen = CliRunner().invoke(main, ["fit", str(tmp_path / "a.parquet"), "-m", "gaussian"])
    assert seen.exit_code == 0, seen.output


def test_docstring_examples_of_the_library_run():
    assert doctest.testmod(library).failed == 0


@pytest.mark.parametrize(
    ("partitions", "rows", "drawn"), [(1000, 1200, 84), (1000, 900, 16), (16, 90_000, 16), (500, 2100, 48)]
)
def test_a_sample_of_many_rows_is_large_enough(partitions, rows, drawn):
    """Sixteen partitions of few rows are too few, where there are more than a million rows."""
    one = Block((np.arange(rows, dtype=float),), np.ones(rows))
    sample = draw_sample(Serial(), group([one] * partitions, float("inf"), 1), partitions)
    assert sample.partitions == drawn and sample.estimated_rows == partitions * rows


FORMULA = "a*exp(-b*t) + c"
FIT_BY = {
    "a frame": lambda model, frame: dask_nlsq.fit(model, data=frame),
    "the accessor": lambda model, frame: frame.nlsq.fit(model),
    "arrays": lambda model, frame: dask_nlsq.fit(model, frame["t"].to_numpy(), frame["y"].to_numpy()),
    "a mapping": lambda model, frame: dask_nlsq.fit(model, {"t": frame["t"].to_numpy()}, frame["y"].to_numpy()),
}


@pytest.mark.slow
@pytest.mark.parametrize("way", FIT_BY)
def test_a_formula_is_a_model_wherever_one_is_taken(way):
    t = np.linspace(0, 4, 50)
    frame = pd.DataFrame({"t": t, "y": 2 * np.exp(-t) + 0.5 + 0.01 * np.cos(9 * t)})
    expected = FIT_BY[way](Model.from_expression(FORMULA), frame)
    assert FIT_BY[way](FORMULA, frame).params.to_dict() == expected.params.to_dict()
    many = dask_nlsq.fit_many(FORMULA, t, frame["y"].to_numpy()[None]).compute()
    assert many["b"][0] == pytest.approx(expected.params["b"], rel=1e-6)
    (row,) = frame.assign(g=1).nlsq.fit_groups("g", FORMULA)["b"]
    assert row == pytest.approx(expected.params["b"], rel=1e-6)


@pytest.mark.parametrize("make", [lambda: models.gaussian, lambda: models.line + models.gaussian.prefix("p_")])
def test_a_pickled_model_is_the_same(make):
    assert pickle.loads(pickle.dumps(make())) == make()
