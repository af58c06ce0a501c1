"""Provenance: what a result says of where it comes from, and of the file of its model in a working tree of Git."""

import importlib.util
import json
import subprocess

import numpy as np
import pytest
from problems import decay_rows

import dask_nlsq
from dask_nlsq import FitResult

T, Y = decay_rows(200)
MODEL = "import jax.numpy as jnp\n\ndef falling(t, a, b):\n    return a * jnp.exp(-b * t)\n"
PEOPLE = ["-c", "user.name=nobody", "-c", "user.email=nobody@example.org"]


def git(folder, *command):
    return subprocess.run(["git", "-C", folder, *PEOPLE, *command], check=True, capture_output=True, text=True).stdout


def model_in(folder):
    spec = importlib.util.spec_from_file_location("written_model", folder / "written_model.py")
    spec.loader.exec_module(module := importlib.util.module_from_spec(spec))
    return module.falling


@pytest.fixture
def tree(tmp_path):
    """A working tree with a model, committed."""
    (tmp_path / "written_model.py").write_text(MODEL)
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "A model")
    return tmp_path


def test_the_commit_of_the_models_file(tree):
    clean = dask_nlsq.fit(model_in(tree), T, Y).provenance["source"]
    assert clean == {
        "file": str(tree / "written_model.py"),
        "commit": git(tree, "rev-parse", "HEAD").strip(),
        "dirty": False,
    }
    (tree / "written_model.py").write_text(MODEL + "# more\n")
    assert dask_nlsq.fit(model_in(tree), T, Y).provenance["source"] == {**clean, "dirty": True}


NO_FILE = {
    "formula": "a*exp(-b*t)",
    "callable": type("Falling", (), {"__call__": lambda self, t, a, b: a - b * t, "__name__": "falling"})(),
}


@pytest.mark.parametrize("name", NO_FILE)
def test_no_file(name):
    assert dask_nlsq.fit(NO_FILE[name], T, Y).provenance["source"] == {}


def test_a_file_in_no_working_tree(tmp_path):
    (tmp_path / "written_model.py").write_text(MODEL)
    assert dask_nlsq.fit(model_in(tmp_path), T, Y).provenance["source"] == {}


def test_prints_and_goes_round(tmp_path):
    result = dask_nlsq.fit("a*exp(-b*t)", T, Y)
    lines = str(result.provenance).splitlines()
    assert any(line.split() == ["jax", result.provenance["versions"]["jax"]] for line in lines)
    assert len(lines) > 20 and not any("{" in line for line in lines)
    back = FitResult.from_dict(json.loads(json.dumps(result.to_dict())))
    assert back.provenance == result.provenance and np.array_equal(back.popt, result.popt)
    result.save(tmp_path / "fit.zip")
    assert str(FitResult.load(tmp_path / "fit.zip").provenance) == str(result.provenance)
