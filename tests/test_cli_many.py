"""Many fits from the shell: the answer of the Python call, in a store, and an exit status that says how it went."""

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest
import xarray as xr
import zarr
from click.testing import CliRunner

import dask_nlsq
from dask_nlsq.cli import main

FORMULA = "a*exp(-b*t)"
T = np.linspace(0, 2, 16)
RATES = np.array([[0.5, 1.0, 1.5], [2.0, 2.5, 3.0]])
CUBE = 3 * np.exp(-RATES[..., None] * T) + 0.01 * np.cos(7 * np.arange(16) + RATES[..., None])
CUBE[1, 2] = np.nan  # one series is of no use
SIGMA = np.linspace(0.5, 2, 16)
START = {"a": 2.0, "b": 1.0}
MODEL = dask_nlsq.Model.from_expression(FORMULA, columns=["t"])


def rows():
    number, other = (index.ravel() for index in np.indices(RATES.shape).repeat(16, axis=2))
    t = np.tile(T, RATES.size)
    frame = pd.DataFrame({"run": number, "detector": [f"d{n}" for n in other], "t": t, "y": CUBE.ravel(), "unused": t})
    return frame.assign(s=np.tile(SIGMA, RATES.size)).sample(frac=1, random_state=0).reset_index(drop=True)


FRAME = rows()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current directory: a cube in stores of several kinds, and its points as rows."""
    monkeypatch.chdir(tmp_path)
    dataset = xr.Dataset({"image": (("y", "x", "t"), CUBE), "s": ("t", SIGMA)}, coords={"t": T})
    dataset.to_zarr("xarray.zarr")
    dataset.to_zarr("xarray2.zarr", zarr_format=2)
    packed = {"image": {"dtype": "int32", "scale_factor": 1e-8, "_FillValue": -(2**31)}}
    dataset.to_zarr("packed.zarr", encoding=packed)
    group = zarr.create_group("plain.zarr")
    group.create_array("image", data=np.moveaxis(CUBE, -1, 0), chunks=(5, 1, 2))
    group.create_array("s", data=SIGMA)
    zarr.create_array("t.zarr", data=T)
    FRAME.to_parquet("rows.parquet")
    FRAME.to_csv("rows.csv", index=False)
    (tmp_path / "files").mkdir()
    for number, part in FRAME.groupby("run"):
        part.to_parquet(f"files/{number}.parquet", row_group_size=10)
    return tmp_path


def run(command, *arguments, model=FORMULA, start=("--p0", "a=2,b=1")):
    return CliRunner().invoke(main, [command, *arguments, "-m", model, *start])


STORES = {
    "by xarray": ("xarray.zarr",),
    "by xarray, with names": ("xarray.zarr", "--array", "image", "--axis", "t", "--x", "t"),
    "by xarray, Zarr 2": ("xarray2.zarr", "--axis", "t"),
    "packed": ("packed.zarr",),
    "a group without names": ("plain.zarr", "--axis", "0", "-x", "t.zarr"),
    "an array": ("plain.zarr/image", "--axis", "0", "-x", "t.zarr"),
}
OPTIONS = {
    "sigma": (("--sigma", "s"), {"sigma": SIGMA}),
    "tied": (("--tied", "a=maximum(b,2)"), {"tied": {"a": "maximum(b,2)"}}),
    "a fixed value, and neighbours": (
        ("--fixed", "a=3", "--start", "neighbours"),
        {"fixed": {"a": 3.0}, "start": "neighbours"},
    ),
    "shared": (("--shared", "a"), {"shared": ["a"]}),
    "a name that is fixed, and a loss": (("--fixed", "a", "--loss", "huber"), {"fixed": ["a"], "loss": "huber"}),
    "bounds": (
        ("--bounds", "b=:1.2", "--sigma", "0.01", "--absolute-sigma", "--covariance", "--max-nfev", "50"),
        {"bounds": {"b": (-np.inf, 1.2)}, "sigma": 0.01, "absolute_sigma": True, "covariance": True, "max_nfev": 50},
    ),
}


def check(output, **options):
    fits = dask_nlsq.fit_many(MODEL, {"t": T}, CUBE, p0=START, **options).compute()
    written = xr.open_zarr(output, consolidated=False)
    assert set(written) == set(fits.to_dataset())
    return {name: (written[name].values, array.values) for name, array in fits.to_dataset().items()}


@pytest.mark.parametrize("name", STORES)
def test_every_store_has_the_answer_of_fit_many(folder, name):
    seen = run("fit-many", *STORES[name], "-o", "out.zarr")
    assert seen.exit_code == 0, seen.output
    assert seen.stdout.splitlines() == ["status     series", "CONVERGED  5", "TOO_FEW    1", "Wrote out.zarr."]
    for found, expected in check("out.zarr").values():
        # Packed values are rounded to 1e-8.
        np.testing.assert_allclose(found, expected, **({"rtol": 1e-3} if name == "packed" else {"rtol": 0}))
    dims = ("y", "x") if name in ("by xarray", "by xarray, Zarr 2") else None
    assert dims in (None, xr.open_zarr("out.zarr", consolidated=False)["b"].dims)


@pytest.mark.crossed(2)
@pytest.mark.parametrize("name", OPTIONS)
def test_options_are_those_of_fit_many(folder, name):
    typed, options = OPTIONS[name]
    assert run("fit-many", "xarray.zarr", *typed, "-o", "out.zarr").exit_code == 0
    for found, expected in check("out.zarr", **options).values():
        np.testing.assert_array_equal(found, expected)


TABLES = {
    "Parquet": ("rows.parquet", "--by", "run,detector"),
    "CSV": ("rows.csv", "--by", "run", "--by", "detector"),
    "files of whole groups": ("files", "--by", "run,detector", "--within-partitions"),
}


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_the_answer_of_fit_groups(folder, name):
    seen = run("fit-groups", *TABLES[name], "--x", "t", "--sigma", "s", "-o", "out.parquet")
    assert seen.exit_code == 0, seen.output
    said = seen.stdout.splitlines()
    assert said[0].split()[:4] == ["run", "detector", "a", "b"] and len(said) == 6 + 4
    assert said[-4:] == ["status     groups", "CONVERGED  5", "TOO_FEW    1", "Wrote out.parquet."]
    written = dd.read_parquet("out.parquet").compute().sort_values(["run", "detector"]).reset_index(drop=True)
    expected = dask_nlsq.fit_groups(FRAME, ["run", "detector"], MODEL, "t", sigma="s", p0=START)
    # Text has no shortest digits for every double, which pandas reads to the last but one.
    close = {"rtol": 1e-9} if name == "CSV" else {"check_exact": True}
    pd.testing.assert_frame_equal(written, expected, check_dtype=False, **close)


def test_an_expression_finds_its_columns(folder):
    assert run("fit-groups", "rows.parquet", "--by", "run,detector", "-o", "out.parquet").exit_code == 0


def test_a_scheduler_does_the_work(folder, cluster):
    there = ("--scheduler", cluster.scheduler_address)
    assert run("fit-many", str(folder / "xarray.zarr"), *there, "-o", str(folder / "out.zarr")).exit_code == 0
    seen = run("fit-groups", str(folder / "rows.csv"), "--by", "run,detector", *there, "-o", str(folder / "o.parquet"))
    assert seen.exit_code == 0, seen.output


@pytest.mark.parametrize("arguments", [("fit-many", "xarray.zarr"), ("fit-groups", "rows.parquet", "--by", "run")])
def test_none_that_converges_is_3_and_is_written(folder, arguments):
    nothing = xr.open_zarr("xarray.zarr").load() * np.nan
    nothing.assign_coords(t=T).to_zarr("xarray.zarr", mode="w")
    FRAME.assign(y=np.nan).to_parquet("rows.parquet")
    seen = run(*arguments, "-o", "out")
    assert seen.exit_code == 3 and "TOO_FEW" in seen.stdout and (folder / "out").is_dir()


def test_an_output_is_replaced_only_on_request(folder):
    for arguments in (("fit-many", "xarray.zarr"), ("fit-groups", "rows.parquet", "--by", "run,detector")):
        first = run(*arguments, "-o", arguments[0])
        again = run(*arguments, "-o", arguments[0])
        assert first.exit_code == 0 and again.exit_code == 1 and "--overwrite" in again.stderr
        (folder / arguments[0] / ("b/c/0/0" if arguments[0] == "fit-many" else "part.9.parquet")).touch()
        last = run(*arguments, "-o", arguments[0], "--overwrite")
        assert last.exit_code == 0 and last.stdout == first.stdout


@pytest.mark.crossed
@pytest.mark.parametrize("arguments", [("fit-many", "xarray.zarr"), ("fit-groups", "rows.parquet", "--by", "run")])
def test_an_output_stays_where_fits_fail(folder, arguments):
    assert run(*arguments, "-o", "out").exit_code == 0
    before = {str(path): path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()}
    nothing = xr.open_zarr("xarray.zarr").load() * np.nan
    nothing.assign_coords(t=T).to_zarr("xarray.zarr", mode="w")
    FRAME.assign(y=np.nan).to_parquet("rows.parquet")
    listed = sorted(path.name for path in folder.iterdir())
    seen = run(*arguments, "-o", "out", "--overwrite", "--nan-policy", "raise")
    assert seen.exit_code == 1 and "not finite" in seen.stderr
    assert {str(path): path.read_bytes() for path in (folder / "out").rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in folder.iterdir()) == listed


MANY = ("fit-many", "xarray.zarr", "-o", "out")
GROUPS = ("fit-groups", "rows.parquet", "--by", "run,detector", "-o", "out")
REFUSED = {
    "no such store": (("fit-many", "nothing.zarr", "-o", "out"), ["nothing.zarr"]),
    "no store of a pattern": (("fit-many", "nothing*.zarr", "-o", "out"), ["is a pattern"]),
    "no table of a pattern": (("fit-groups", "none/*.parquet", "--by", "run", "-o", "out"), ["Nothing was found at"]),
    "a folder that is no store": (("fit-many", "files", "-o", "out"), ["'files' cannot be read"]),
    "no such array": ((*MANY, "--array", "picture"), ["'picture'", "'image'"]),
    "an array within an array": (("fit-many", "t.zarr", "--array", "t", "-o", "out"), ["one array"]),
    "no such dimension": ((*MANY, "--axis", "time"), ["'time'", "['y', 'x', 't']"]),
    "an axis too many": ((*MANY, "--axis", "3"), ["axis is 3"]),
    "an axis without a coordinate": ((*MANY, "--axis", "y"), ["--x"]),
    "an x that is nowhere": ((*MANY, "--x", "time"), ["'time'", "'image'"]),
    "an x of another length": ((*MANY, "--axis", "y", "--x", "t"), ["16 values"]),
    "an unknown parameter": ((*MANY, "--bounds", "tau=0:1"), ["tau"]),
    "an unknown loss": ((*MANY, "--loss", "cubic"), ["cubic"]),
    "a loss of counts": ((*MANY, "--loss", "poisson"), ["poisson", "dask_nlsq.fit"]),
    "a store onto itself": ((*MANY[:2], "-o", "xarray.zarr", "--overwrite"), ["is read from it"]),
    "a store onto its array": ((*MANY[:2], "-o", "xarray.zarr/t", "--overwrite"), ["is read from it"]),
    "a store onto a folder": ((*MANY[:2], "-o", "files", "--overwrite"), ["replaces nothing else"]),
    "no such table": (("fit-groups", "nothing.parquet", "--by", "run", "-o", "out"), ["nothing.parquet"]),
    "a store for a table": (("fit-groups", "xarray.zarr", "--by", "run", "-o", "out"), ["is Zarr"]),
    "no such key": (("fit-groups", "rows.parquet", "--by", "place", "-x", "t", "-o", "out"), ["'place'", "'detector'"]),
    "files onto themselves": (("fit-groups", "files/*", "--by", "run", "-o", "files", "--overwrite"), ["is read from"]),
    "a table onto a store": ((*GROUPS[:-1], "plain.zarr", "--overwrite"), ["replaces nothing else"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_an_error_is_1_and_a_sentence(folder, name):
    arguments, said = REFUSED[name]
    before = sorted(map(str, folder.rglob("*")))
    seen = run(*arguments)
    assert seen.exit_code == 1 and seen.stdout == "" and seen.stderr.startswith("Error: "), seen.output
    assert all(part in seen.stderr for part in said), seen.stderr
    assert sorted(map(str, folder.rglob("*"))) == before


@pytest.mark.parametrize(
    "arguments",
    [(*MANY, "--fixed", "a=1,b"), (*MANY, "--tied", "a"), (*MANY, "--f-scale", "0"), MANY[:2], GROUPS[:2]],
)
def test_wrong_usage_is_2(folder, arguments):
    assert run(*arguments).exit_code == 2


def test_what_only_rows_tell_is_a_sentence_as_well(folder):
    seen = run("fit-groups", "rows.parquet", "--by", "run", "-x", "t", "-y", "detector", "-o", "out")
    assert seen.exit_code == 1 and "numbers are needed" in seen.stderr
    text = FRAME.to_csv(index=False).splitlines()
    lines = [text[0], *text[1:] * 40, text[1].replace(text[1].split(",")[2], "high")]
    (folder / "late.csv").write_text("\n".join(lines))
    seen = run("fit-groups", "late.csv", "--by", "run,detector", "-o", "late")
    assert seen.exit_code == 1 and seen.stderr.startswith("Error: 'late.csv': ")
