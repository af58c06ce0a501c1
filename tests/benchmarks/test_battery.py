"""Tests of the battery: scaling and shifts of its models, scores of artificial runs, and a small run."""

import inspect
import json

import numpy as np
import pytest
from battery import SCATTERS, VARIANTS, failures, main, plain, score, standing, table, tally, totals
from textbook import TEXTBOOKS

MODELS = pytest.mark.parametrize("name", TEXTBOOKS)
PEERS = ["ours", "lm"]


def made_up(method, cost, answered=True, success=True, finite=True, seed=0):
    return {"method": method, "scatter": 0.2, "seed": seed, "cost": cost, "answered": answered, "success": success,
            "finite": finite, "status": "MADE_UP", "sweeps": 3, "seconds": 0.1}  # fmt: skip


def scored(*runs):
    problem = plain(TEXTBOOKS["decay"])
    return {"model": "decay", "problem": "decay", "best": 1.0, "runs": score(problem, 1.0, runs)}


@MODELS
def test_parameters_are_those_of_the_signature(name):
    model = TEXTBOOKS[name]
    assert list(inspect.signature(model.numpy).parameters)[1:] == list(model.parameters)
    assert list(inspect.signature(model.raised.jax).parameters)[1:] == list(model.raised.parameters)
    assert model.jax is model.jax and model.raised is model.raised  # one object, compiled once


@MODELS
@pytest.mark.parametrize("variant", ["offset", "units"])
def test_problems_keep_their_signal(name, variant):
    """The response in other units, or from another origin, is the same but for its unit."""
    base = plain(TEXTBOOKS[name])
    for problem in VARIANTS[variant](base.model):
        unit = np.ptp(problem.y) / np.ptp(base.y)
        rounding = 1e-13 + 8 * np.finfo(float).eps * np.abs(problem.x).max() / np.diff(np.unique(problem.x)).min()
        np.testing.assert_allclose(problem.y / unit, base.y, rtol=0, atol=rounding * 10 * np.ptp(base.y))


@MODELS
def test_the_level_alone_is_raised(name):
    base = plain(TEXTBOOKS[name])
    for problem in VARIANTS["pedestal"](base.model):
        raised = problem.y - base.y
        assert np.ptp(raised) <= 1e-12 * raised.mean() and raised.mean() > 50 * np.ptp(base.y)
        assert problem.start(0.2, 1)[problem.which] == pytest.approx(1.1 * problem.truth[problem.which])


def test_starts_repeat():
    problem = plain(TEXTBOOKS["hill"])
    starts = [problem.start(scatter, seed) for scatter in SCATTERS for seed in range(3)]
    assert np.unique(starts, axis=0).shape == (6, 3)
    np.testing.assert_array_equal(plain(TEXTBOOKS["hill"]).start(0.2, 0), starts[0])


@pytest.mark.parametrize(
    ("run", "right", "false"),
    [
        (made_up("ours", 1.0), True, False),
        (made_up("ours", 1.0 + 9e-7), True, False),
        (made_up("ours", 1.0, success=False), True, False),
        (made_up("ours", 1.1), False, True),
        (made_up("ours", np.inf), False, True),
        (made_up("ours", 1.1, success=False), False, False),
        (made_up("ours", 1.1, finite=False), False, False),
        (made_up("ours", np.inf, answered=False), False, False),
    ],
)
def test_scores(run, right, false):
    (found,) = scored(run)["runs"]
    assert (found["right"], found["false"]) == (right, false)


def test_tables_and_failures():
    result = scored(made_up("ours", 2.0), made_up("lm", 1.0), made_up("ours", 1.0, seed=1), made_up("lm", 3.0, seed=1))
    assert tally([result], "ours") | {"right": 1, "false": 1, "raised": 0, "sweeps": 6} == tally([result], "ours")
    assert table([result], PEERS).splitlines()[1].split() == ["decay", "1", "(1)", "1", "(1)", "yes"]
    assert totals([result], PEERS).splitlines()[1].split()[:5] == ["ours", "1", "of", "2", "50.00"]
    assert list(failures([result])) == [("decay", 0.2, 0, "MADE_UP", 2.0, ["lm"])]
    assert standing({"ours": 1, "lm": 3, "trf": 2}) == "−2"


@pytest.mark.slow
def test_a_small_run(tmp_path, capsys):
    file = tmp_path / "runs.json"
    assert main(["--models", "decay", "hill", "--starts", "1", "--methods", *PEERS, "--json", str(file)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in out[1:3]] == ["decay", "hill"]
    results = json.loads(file.read_text("utf-8"))
    assert all(r["right"] for result in results for r in result["runs"] if r["scatter"] == 0.2)
