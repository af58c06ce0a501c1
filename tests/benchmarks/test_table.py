"""Tests of the table with artificial figures: ratios, thresholds, sentences, Markdown, and a file written and read."""

import json

import pytest
from against import row
from comparisons import COMPARISONS, RATIOS
from table import THRESHOLDS, cells, main, ratio, regressions, table

MADE_UP = {
    "kernel": {"ours": [2.0, 2.0, 9.0], "peer": [1.0, 1.0, 1.0]},  # half as fast
    "parquet": {"ours": [0.5], "peer": [0.01]},  # 50 times the time
    "standard": {"ours": [0.005], "peer": [0.001]},  # 4 ms more
    "scipy-memory": {"ours": [3e8], "peer": [4e8]},
    "zarr": {"failed": "ValueError: no"},
    "nlsq-large": {"skipped": "nlsq"},
}


@pytest.mark.parametrize("size", THRESHOLDS)
def test_thresholds_are_of_comparisons(size):
    assert THRESHOLDS[size].keys() <= {n for n, c in COMPARISONS.items() if size == "full" or not c.full_only}


def test_every_comparison_says_what_it_is():
    assert all(c.kind in RATIOS and c.what and c.against for c in COMPARISONS.values())


@pytest.mark.parametrize(
    ("name", "said", "value"),
    [
        ("kernel", "0.5 times as fast", 0.5),
        ("parquet", "50 times the time", 50.0),
        ("standard", "+4.0 ms", 0.004),
        ("scipy-memory", "0.75 times the memory", 0.75),
    ],
)
def test_ratio_is_the_median_and_is_told(name, said, value):
    assert ratio(name, MADE_UP[name]) == pytest.approx(value)
    assert cells(name, MADE_UP[name], "full")[5] == said


def test_regressions_are_sentences():
    found = list(regressions(MADE_UP, "full"))
    assert [s.split()[0] for s in found] == ["parquet", "scipy-memory", "zarr"]
    assert "50 times the time" in found[0] and "≤ 10 is needed" in found[0]


def test_written_figures_are_read_again(tmp_path, capsys):
    file = tmp_path / "figures.json"
    file.write_text(json.dumps({"machine": "a machine", "size": "full", "results": MADE_UP}))
    assert main(["--from", str(file), "--markdown"]) == 0
    assert main(["--from", str(file), "--check"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("a machine\n") and table(MADE_UP, "full", markdown=True) in out


@pytest.mark.parametrize(("unit", "factor", "said"), [("s", 1.0, "2 ms"), ("B", 1e9, "2 MB")])
def test_a_checkout_is_said_to_be_as_many_times_as_fast(unit, factor, said):
    figures = [[factor * each for each in side] for side in ((1e-3, 3e-3, 2e-3), (1e-2, 1e-2, 9e-2))]
    line = row("fit-200", "200 rows", figures, unit)
    assert said in line and line.split()[-3:] == ["5", "200", "rows"]
