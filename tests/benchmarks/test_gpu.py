"""The script for a GPU runs where there is none, and finds answers that are wrong."""

import subprocess
import sys
from pathlib import Path

import gpu
import numpy as np
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--bare"]], ids=["with Dask", "without Dask"])
def test_it_runs_on_a_cpu(options):
    command = [sys.executable, str(Path(gpu.__file__)), "--small", *options]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "0 disagree" in run.stdout and "fits/s" in run.stdout
    assert ("fit of arrays in memory" in run.stdout) == (not options)


def right():
    """Answers as they should be."""
    answers = {"many": np.random.default_rng(0).normal(size=(9, 3)), "converged": np.ones(9, bool), "costs": np.ones(9)}
    for name, truth in gpu.TRUTH.items():
        answers |= {f"gram: {name}": np.eye(len(truth) + 1), f"estimates: {name}": truth}
        answers[f"errors: {name}"] = 0.01 * truth
    return answers


@pytest.mark.parametrize(
    ("name", "off", "said"),
    [
        ("many", 0.0, None),
        ("gram: 15 parameters", 1e-9, "The sums of 15 parameters"),
        ("estimates: 3 parameters", 1e-4, "The estimates of 3 parameters"),
        ("errors: 3 parameters, with sigma", 1e-3, "The estimates of 3 parameters, with sigma"),
        ("many", 1e-5, "The estimates of some series"),
        ("costs", 1e-6, "The estimates of some series"),
        ("converged", -1, "Other series converge: 9 of 9"),
    ],
)
def test_wrong_answers_are_told(name, off, said):
    ours = right()
    ours[name] = ours[name] + off
    found = list(gpu.disagreements(ours, right()))
    assert [s.startswith(said) for s in found] == ([] if said is None else [True])
