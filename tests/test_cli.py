"""The command line on real files: what it prints, writes and returns to the shell."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import zarr
from click.testing import CliRunner

import dask_nlsq
from dask_nlsq import FitResult
from dask_nlsq.cli import main
from dask_nlsq.cli.arguments import load_model

MODELS = """
import jax.numpy as jnp

def decay(t, amplitude, rate):
    return amplitude * jnp.exp(-rate * t)

def plane(t, u, level, slope_t, slope_u):
    return level + slope_t * t + slope_u * u

def twice(t, a, b):
    return (a + b) * t
"""
ROWS = 500
TRUTH = {"amplitude": 2.0, "rate": 0.5}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory: decay.parquet, decay.zarr, and the user's module."""
    t, u = np.linspace(0, 4, ROWS), np.cos(np.arange(ROWS))
    noise = np.random.default_rng(0).normal(0, 0.01, ROWS)  # what has structure would be tried from other starts
    columns = {"t": t, "u": u, "signal": 2.0 * np.exp(-0.5 * t) + noise, "height": 1 + 2 * t + 3 * u}
    pd.DataFrame(columns).to_parquet(tmp_path / "decay.parquet")
    group = zarr.create_group(tmp_path / "decay.zarr", zarr_format=3)
    for name, values in columns.items():
        group.create_array(name, data=values, chunks=(100,))
    (tmp_path / "usermodels.py").write_text(MODELS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "usermodels", raising=False)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(main, ["fit", *arguments])


def read(path):
    return FitResult.from_dict(json.loads(Path(path).read_text("utf-8")))


@pytest.mark.parametrize("data", ["decay.parquet", "decay.zarr", "dec*.parquet"])
def test_converged_is_0_and_output_round_trips(folder, data):
    start = ("--p0", "amplitude=1,rate=1", "--bounds", "amplitude=0:10,rate=:5")
    seen = run(data, "--model", "usermodels:decay", "--y", "signal", *start, "--output", "result.json")
    assert seen.exit_code == 0, seen.output
    result = read("result.json")
    assert seen.stdout == f"{result.report()}\n" and "converged" in seen.stdout
    # The noise is a hundredth, on 500 rows.
    assert result.params.to_dict() == pytest.approx(TRUTH, abs=5e-3)
    assert result.n_obs == ROWS


WRITTEN = {"page.html": b"<!doctype html>", "fit.png": b"\x89PNG", "fit.svg": b"<?xml", "fit.zip": b"PK"}


def test_output_is_what_its_name_says(folder):
    outputs = [part for name in WRITTEN for part in ("-o", name)]
    seen = run("decay.parquet", "-m", "usermodels:decay", "-y", "signal", *outputs)
    assert seen.exit_code == 0, seen.output
    assert {name: Path(name).read_bytes()[: len(start)].lower() for name, start in WRITTEN.items()} == {
        name: start.lower() for name, start in WRITTEN.items()
    }
    assert FitResult.load("fit.zip").params.to_dict() == pytest.approx(TRUTH, abs=5e-3)


@pytest.mark.parametrize("x", [("--x", "t,u"), ("--x", "t", "--x", "u")])
def test_columns_are_repeated_or_separated_by_commas(folder, x):
    seen = run("decay.parquet", "-m", "usermodels:plane", *x, "-y", "height", "-o", "result.json")
    assert seen.exit_code == 0, seen.output
    assert read("result.json").popt == pytest.approx([1, 2, 3])


def test_sigma_is_a_number_or_a_name(folder):
    pd.read_parquet("decay.parquet").assign(error=0.01).to_parquet("weighted.parquet")
    for sigma in ("0.01", "error"):
        fit = ("weighted.parquet", "-m", "usermodels:decay", "-y", "signal", "--sigma", sigma, "--absolute-sigma")
        assert run(*fit, "-o", f"{sigma}.json").exit_code == 0
    assert (read("0.01.json").popt == read("error.json").popt).all()
    assert read("0.01.json").pcov == pytest.approx(read("error.json").pcov)


SIGMA_X = {
    "in their order": ("plane", ("--sigma-x", "0.1,error"), [0.1, "error"]),
    "by name": ("plane", ("--sigma-x", "u=error"), {"u": "error"}),
    "a number": ("plane", ("--sigma-x", "0.1"), 0.1),
    "a column": ("decay", ("--sigma-x", "error"), "error"),
}


@pytest.mark.crossed(2)
@pytest.mark.parametrize("name", SIGMA_X)
def test_sigma_x_is_a_number_or_names(folder, name):
    model, typed, sigma_x = SIGMA_X[name]
    pd.read_parquet("decay.parquet").assign(error=0.02).to_parquet("weighted.parquet")
    x, y = (["t", "u"], "height") if model == "plane" else (["t"], "signal")
    seen = run("weighted.parquet", "-m", f"usermodels:{model}", "-x", ",".join(x), "-y", y, "--sigma", "0.01", *typed,
               "-o", "result.json")  # fmt: skip
    assert seen.exit_code == 0, seen.output
    function = load_model(f"usermodels:{model}")
    expected = dask_nlsq.fit(function, x, y, data="weighted.parquet", sigma=0.01, sigma_x=sigma_x)
    assert (read("result.json").popt == expected.popt).all() and np.isnan(expected.rmse)


LOSSES = {
    "robust": ("signal", ("--loss", "huber", "--f-scale", "0.5"), {"loss": "huber", "f_scale": 0.5}),
    "counts": ("photons", ("--loss", "poisson"), {"loss": "poisson"}),
    "over-dispersion": (
        *("photons", ("--loss", "poisson", "--scale", "pearson")),
        {"loss": "poisson", "scale": "pearson"},
    ),
    "a number of trials": ("alive", ("--loss", "binomial", "--trials", "9"), {"loss": "binomial", "trials": 9}),
    "a column of trials": ("alive", ("--loss", "binomial", "--trials", "n"), {"loss": "binomial", "trials": "n"}),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_those_of_fit(folder, name):
    y, typed, options = LOSSES[name]
    t, rng = pd.read_parquet("decay.parquet")["t"], np.random.default_rng(0)
    counts = {"photons": rng.poisson(9 * np.exp(-0.5 * t)), "alive": rng.binomial(9, 0.8 * np.exp(-0.5 * t)), "n": 9}
    pd.read_parquet("decay.parquet").assign(**counts).to_parquet("counts.parquet")
    start = {"amplitude": 0.5, "rate": 0.4}
    seen = run("counts.parquet", "-m", "usermodels:decay", "-y", y, "--p0", "amplitude=0.5,rate=0.4", *typed,
               "-o", "result.json")  # fmt: skip
    assert seen.exit_code == 0, seen.output
    expected = dask_nlsq.fit(load_model("usermodels:decay"), data="counts.parquet", y=y, p0=start, **options)
    found = read("result.json")
    assert (found.popt == expected.popt).all() and (found.pcov == expected.pcov).all()


MISFITS = {
    "trials of no counts": (("--trials", "9"), 1, 'trials= is for loss="binomial"'),
    "no trials": (("--loss", "binomial"), 1, "needs trials="),
    "a scale of no counts": (("--scale", "pearson"), 1, "is for counts"),
    "another scale": (("--loss", "poisson", "--scale", "deviance"), 2, "pearson"),
    "an unknown loss": (("--loss", "cubic"), 1, "cubic"),
}


@pytest.mark.parametrize("name", MISFITS)
def test_losses_that_do_not_fit_the_rest_are_refused(folder, name):
    typed, code, message = MISFITS[name]
    seen = run("decay.parquet", "-m", "usermodels:decay", "-y", "signal", *typed)
    assert seen.exit_code == code and message in seen.output


def test_not_converged_is_3_and_is_written(folder):
    seen = run("decay.parquet", "-m", "usermodels:decay", "-y", "signal", "--max-nfev", "1", "-o", "result.json")
    assert seen.exit_code == 3 and "NOT converged" in seen.stdout
    assert not read("result.json").success


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-m", "usermodels:decay"), ["no column 'y'", "'signal'"]),
        (("-m", "usermodels:decay", "-x", "time", "-y", "signal"), ["no column 'time'"]),
        (("-m", "nosuchmodule:decay", "-y", "signal"), ["'nosuchmodule' cannot be imported"]),
        (("-m", "usermodels:growth", "-y", "signal"), ["'usermodels' has no 'growth'"]),
        (("-m", "usermodels", "-y", "signal"), ["module:function"]),
        (("-m", "usermodels:decay", "-y", "signal", "--p0", "speed=1"), ["speed", "amplitude"]),
        (("-m", "usermodels:decay", "-y", "signal", "--bounds", "rate=2:1"), ["'rate'", "upper bound"]),
    ],
)
def test_an_error_is_1_and_a_sentence(folder, arguments, said):
    seen = run("decay.parquet", *arguments)
    assert seen.exit_code == 1 and seen.stdout == ""
    assert seen.stderr.startswith("Error: ") and "Traceback" not in seen.stderr
    assert all(part in seen.stderr for part in said), seen.stderr


def test_a_missing_file_is_1(folder):
    seen = run("nothing.parquet", "-m", "usermodels:decay")
    assert seen.exit_code == 1 and "nothing.parquet" in seen.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("--p0", "amplitude"),
        ("--bounds", "rate=5"),
        ("--storage-options", "[1]"),
        ("--storage-options", "{"),
        ("--output", "result.txt"),
        ("--output", "no/such/folder/result.json"),
    ],
)
def test_wrong_usage_is_2_before_any_work(folder, arguments):
    seen = run("nothing.parquet", "-m", "nosuchmodule:decay", *arguments)
    assert seen.exit_code == 2 and arguments[0] in seen.stderr


def test_a_warning_is_a_line(folder):
    seen = run("decay.parquet", "-m", "usermodels:twice", "-y", "signal")
    assert seen.stderr.splitlines() == ["Warning: The data do not determine a, b; their variance is infinite."]


@pytest.mark.slow
def test_a_scheduler_needs_not_find_the_module(folder, monkeypatch):
    from distributed import LocalCluster

    elsewhere = folder / "elsewhere"
    elsewhere.mkdir()
    data = str(folder / "decay.parquet")
    with monkeypatch.context() as patch:
        patch.chdir(elsewhere)
        cluster = LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=":0")
    with cluster:
        address = cluster.scheduler_address
        seen = run(
            data,
            "-m",
            "usermodels:decay",
            "-y",
            "signal",
            "--scheduler",
            address,
            "-o",
            "result.json",
            "--tier=chunked",
        )
    assert seen.exit_code == 0, seen.output
    assert read("result.json").provenance["executor"] == "cluster"


def test_a_plan_is_a_page_or_json(folder):
    arguments = ["plan", "decay.parquet", "-m", "usermodels:decay", "-y", "signal", "--memory-limit", "8 GB"]
    page, whole, plain = (CliRunner().invoke(main, [*arguments, *more]) for more in ([], ["--explain"], ["--json"]))
    assert page.exit_code == whole.exit_code == plain.exit_code == 0, page.output
    assert page.stdout.startswith("Plan: decay(") and "STANDARD" in page.stdout
    assert "LOW memory" in whole.stdout
    assert json.loads(plain.stdout)["tier"] == "standard"


def test_info_names_versions_and_devices():
    seen = CliRunner().invoke(main, ["info"])
    assert seen.exit_code == 0, seen.output
    names = {line.split()[0] for line in seen.stdout.splitlines()}
    assert {"python", "dask-nlsq", "dask", "jax", "zarr", "devices", "processors", "memory"} <= names


@pytest.mark.parametrize("command", [["dask-nlsq"], ["dask", "nlsq"]])
def test_help_from_the_shell(command):
    script = Path(sys.executable).with_name(command[0])
    seen = subprocess.run([script, *command[1:], "--help"], capture_output=True, text=True, timeout=60)
    assert seen.returncode == 0, seen.stderr
    assert "fit" in seen.stdout and "info" in seen.stdout
