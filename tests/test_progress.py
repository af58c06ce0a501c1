"""The bar of a fit: what it says, where it is shown, and that it never ends a fit."""

import io
import re
import time
from pathlib import Path

import dask.dataframe as dd
import numpy as np
import pandas as pd
import pytest

import dask_nlsq
from dask_nlsq._fit import progress
from dask_nlsq._fit.observer import Estimates, SweepBegin

HERE = str(Path(__file__).parent)
X = np.linspace(0, 1, 100)
Y = 2 * np.exp(-X) + np.random.default_rng(0).normal(0, 0.01, X.size)
FORMULA = "a*exp(-b*x)"


def part(i, pause=0.0):
    time.sleep(pause)
    return pd.DataFrame({"x": X[i::4], "y": Y[i::4]})


def frame(pause=0.0):
    return dd.from_map(part, range(4), pause=pause, meta=part(0))


def shown(text):
    """The states of a bar, each of which begins the line anew."""
    return [state.strip() for state in re.split(r"[\r\n]", text) if state.strip()]


@pytest.mark.parametrize("tier", ["standard", "chunked"])
def test_the_last_line_says_how_the_fit_went(tier, capsys):
    result = dask_nlsq.fit(FORMULA, data=frame(), tier=tier, progress=True)
    out, err = capsys.readouterr()
    last = shown(err)[-1]
    assert f"CONVERGED after {result.nsweeps} sweeps: 100%" in last and "4/4 partitions" in last and not out
    assert f"cost {result.cost:.6g}" in last and " SE, " in last and "rows/s" in last


def test_a_long_read_is_shown(capsys, monkeypatch):
    monkeypatch.setattr(progress, "_TICK", 0.02)
    dask_nlsq.fit(FORMULA, data=frame(0.1), tier="chunked", cache="none", progress=True)
    states = " ".join(shown(capsys.readouterr().err))
    assert "reading a sample of the rows [" in states and "sweep 1: " in states and "sweep 2: " in states


@pytest.mark.parametrize(
    ("show", "terminal", "delay", "seen"),
    [(None, True, 60.0, False), (None, True, 0.0, True), (None, False, 0.0, False), (False, True, 0.0, False)],
)
def test_where_a_bar_is_shown(show, terminal, delay, seen, capsys, monkeypatch):
    monkeypatch.setattr(progress, "DELAY", delay)
    monkeypatch.setattr(progress, "_TICK", 0.001)
    monkeypatch.setattr("sys.stderr.isatty", lambda: terminal, raising=False)
    dask_nlsq.fit(FORMULA, data=frame(0.02), tier="chunked", progress=show)
    assert bool(capsys.readouterr().err) == seen


def test_estimates_are_shown_with_their_errors(capsys):
    names = ["a", "b", "c", "d", "e"]
    with progress.Progress(4, True) as bar:
        bar.notify(SweepBegin("batches"))
        bar.notify(Estimates(names, lambda: (np.full(5, 1.23456), np.full(5, 0.01))))
    last = shown(capsys.readouterr().err)[-1]
    assert last.startswith("batches: 100%") and "a 1.235 ± 0.01, b 1.235" in last and "…" in last and "e 1" not in last


class Broken(io.StringIO):
    def write(self, text):
        raise BrokenPipeError


def test_a_broken_stream_does_not_end_the_fit(monkeypatch):
    monkeypatch.setattr(progress, "stream", Broken)
    assert dask_nlsq.fit(FORMULA, X, Y, progress=True).success


def test_a_fit_that_fails_leaves_its_last_state(capsys):
    def model(x, a):
        return a * x

    with pytest.raises(dask_nlsq.DataError):
        dask_nlsq.fit(model, X, np.where(X > 0.5, np.nan, Y), progress=True)
    assert "100%" not in capsys.readouterr().err


CELL = """
import time, warnings
import dask_nlsq
from dask_nlsq._fit import progress
progress.DELAY, progress._TICK = 0.0, 0.01
from test_progress import FORMULA, frame
result = dask_nlsq.fit(FORMULA, data=frame(0.05), tier="chunked")
"""


@pytest.mark.slow
def test_a_notebook_shows_the_bar_the_result_and_what_to_do_about_an_error():
    reason = "it comes with the extra `examples`"
    nbformat = pytest.importorskip("nbformat", reason=reason)
    nbclient = pytest.importorskip("nbclient", reason=reason)
    sources = [f"import sys; sys.path[:0] = {[HERE]}\n{CELL}", "result", "dask_nlsq.fit(FORMULA, data=frame(), y='yy')"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])
    nbclient.NotebookClient(book, timeout=240, allow_errors=True).execute()
    bar, shown, error = (cell.outputs for cell in book.cells)
    assert len(bar) == 1, bar  # one output, updated in its place, and nothing on stderr
    assert "CONVERGED after" in bar[0]["data"]["text/plain"] or "widget" in str(bar)
    assert 'class="dask-nlsq"' in shown[0]["data"]["text/html"]
    assert "Say which to use with x=, y= and sigma=." in error[-1]["evalue"]
