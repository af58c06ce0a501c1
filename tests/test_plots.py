"""Plots of a fit: one pass over the data, what they show, and how they look."""

import copy
import functools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import dask.dataframe as dd
import hypothesis.strategies as st
import lmfit
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from distributed import Client
from hypothesis import given, settings
from matplotlib.testing.compare import compare_images
from scipy import stats

import dask_nlsq
from dask_nlsq import NlsqError, models
from dask_nlsq._kernel import Block
from dask_nlsq._sweep import ResidualSummary
from dask_nlsq._sweep.binned import Axis, Binned, FixedAxis

mpl.use("agg")

DRAWN_BY = "3.11."
LOOKS = Path(__file__).parent / "data" / "plots"
DECAY = "a * exp(-b*t) + c"
P0 = {"a": 1.0, "b": 1.0, "c": 0.0}
FINITE = st.floats(-1e9, 1e9, allow_nan=False).map(lambda v: v if abs(v) > 1e-6 else 0.0)


def rows(n, seed=0):
    rng = np.random.default_rng(seed)
    t = rng.uniform(0, 5, n)
    return pd.DataFrame({"t": t, "signal": 2.5 * np.exp(-1.3 * t) + 0.5 + rng.normal(0, 0.1, n)})


@functools.cache
def fitted(kind):
    rng, x = np.random.default_rng(1), np.linspace(-3, 3, 120)
    if kind == "few":
        return dask_nlsq.fit(DECAY, data=rows(60), y="signal", p0=P0)
    if kind == "many":
        return dd.from_pandas(rows(20_000), npartitions=4).nlsq.fit(DECAY, y="signal", p0=P0)
    if kind == "weighted":
        frame = rows(300).assign(s=lambda f: 0.1 + 0 * f.t)
        return dask_nlsq.fit(DECAY, data=frame, y="signal", sigma="s", p0=P0)
    if kind == "sum":
        y = 3 * np.exp(-((x - 0.5) ** 2)) + 0.3 * x + 1 + rng.normal(0, 0.1, len(x))
        return dask_nlsq.fit(models.gaussian + models.line, x, y)
    if kind == "dates":
        when = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(300), unit="D")
        frame = pd.DataFrame({"when": when, "level": np.arange(300) / 100 + rng.normal(0, 0.3, 300)})
        return dask_nlsq.fit("a + b*when/86400", data=frame, y="level", p0={"a": 1.0, "b": 1.0})
    if kind == "two columns":
        u, v = rng.uniform(0, 1, (2, 8_000))
        frame = pd.DataFrame({"u": u, "v": v, "z": np.exp(-2 * u) * v + rng.normal(0, 0.1, 8_000)})
        return dask_nlsq.fit("a * exp(-b*u) * v", data=frame, y="z", p0={"a": 1.0, "b": 1.0})
    y = np.sin(3 * x) + rng.normal(0, 0.1, len(x))
    return dask_nlsq.fit("sin(w*x)", x, y, p0={"w": 1.0}, bounds={"w": (0.0, 9.0)}, n_starts=8, seed=0)


@functools.cache
def line():
    return dask_nlsq.fit("a + b*t", data=rows(60), y="signal", p0={"a": 1.0, "b": 0.0})


@functools.cache
def maps(outer):
    t, rng = np.linspace(0, 4, 20), np.random.default_rng(2)
    y = 3 * np.exp(-rng.uniform(0.5, 2, outer)[..., None] * t) + rng.normal(0, 0.02, (*outer, 20))
    y[(1,) * len(outer)] = np.nan
    return dask_nlsq.fit_many("amplitude * exp(-rate * x)", t, y).compute()


PLOTS = {
    "few": lambda: fitted("few").plot(),
    "many": lambda: fitted("many").plot(),
    "dates": lambda: fitted("dates").plot(),
    "two columns": lambda: fitted("two columns").plot("v"),
    "weighted": lambda: fitted("weighted").plot(level=0.68),
    "residuals of few": lambda: fitted("few").plot_residuals(),
    "residuals of many": lambda: fitted("many").plot_residuals(),
    "components": lambda: fitted("sum").plot_components(),
    "history": lambda: fitted("few").plot_history("step"),
    "correlation": lambda: fitted("few").plot_correlation(),
    "profile": lambda: fitted("few").plot_profile("b"),
    "contour": lambda: fitted("few").plot_contour("a", "b", points=9),
    "starts": lambda: fitted("starts").plot_starts(),
    "map": lambda: maps((6, 8)).plot("rate"),
    "status": lambda: maps((6, 8)).plot("status"),
    "series": lambda: maps((9,)).plot("rate"),
    "comparison": lambda: dask_nlsq.compare(fitted("few"), line()).plot(),
}


@pytest.fixture(autouse=True)
def _closed():
    with mpl.rc_context({"figure.dpi": 50, "savefig.dpi": 50}):
        yield
    plt.close("all")


@pytest.mark.parametrize("name", PLOTS)
def test_looks_as_it_did(name, tmp_path):
    """Compared with a stored picture, without its text, which is of other fonts elsewhere."""
    if not mpl.__version__.startswith(DRAWN_BY):
        pytest.skip(f"the stored pictures are of matplotlib {DRAWN_BY}, whose releases lay out axes each in their way")
    first = np.ravel(PLOTS[name]())[0]
    for text in first.figure.findobj(mpl.text.Text):
        text.set_visible(False)
    seen, stored = tmp_path / "seen.png", LOOKS / f"{name.replace(' ', '_')}.png"
    first.figure.savefig(seen)
    if not stored.exists():
        first.figure.savefig(stored)
        pytest.fail(f"{stored} is new: look at it, and commit it")
    assert compare_images(str(stored), str(seen), tol=12) is None


LABELS = {
    "few": ("", "signal"),
    "dates": ("", "level"),
    "two columns": ("", "z"),
    "history": ("sweep", "remaining step, standard errors"),
    "profile": ("b", "τ"),
    "contour": ("a", "b"),
    "components": ("x", "y"),
    "starts": ("start, by cost", "cost"),
    "map": ("dim_1", "dim_0"),
    "series": ("dim_0", "rate"),
}


@pytest.mark.parametrize("name", LABELS)
def test_axes_are_named(name):
    ax = PLOTS[name]()
    assert (ax.get_xlabel(), ax.get_ylabel()) == LABELS[name]
    assert ax.get_title()


def test_a_stream_has_a_history_of_one_sweep():
    fitter = dask_nlsq.StreamingFitter(DECAY, p0=P0, x="t").partial_fit(*rows(300).to_numpy().T)
    line, *_ = fitter.result().plot_history().get_lines()
    assert line.get_xdata().tolist() == [1]


@pytest.mark.parametrize("call", ["plot", "plot_history", "plot_correlation"])
def test_draws_on_the_axes_that_it_is_given(call):
    _, ax = plt.subplots()
    assert getattr(fitted("few"), call)(ax=ax) is ax


@pytest.mark.parametrize("kind", ["x", "fit", "histogram", "quantiles"])
def test_one_panel_of_residuals(kind):
    _, ax = plt.subplots()
    assert fitted("many").plot_residuals(kind, ax=ax) is ax


def counted(i, reads):
    reads.append(i)
    return rows(1_000, seed=i)


def test_all_plots_of_rows_take_one_pass():
    reads = []
    frame = dd.from_map(counted, range(3), reads=reads, meta=rows(1), enforce_metadata=False)
    result = frame.nlsq.fit(DECAY, y="signal", p0=P0, tier="chunked", client=False)
    before = len(reads)
    result.plot()
    result.plot_residuals()
    assert len(reads) - before == 3


SPLITS = {"one": 1, "three": 3, "sixteen": 16}


@pytest.mark.parametrize("npartitions", SPLITS.values(), ids=SPLITS)
def test_counts_are_those_of_all_rows_together(npartitions):
    frame = rows(6_000)
    result = dd.from_pandas(frame, npartitions=npartitions).nlsq.fit(DECAY, y="signal", p0=P0)
    summary = result._residual_summary
    z = result.residuals(frame).to_numpy() / result.redchi**0.5
    horizontal, vertical = summary.density[0].axes
    expected, *_ = np.histogram2d(frame.t, frame.signal, [horizontal.edges, vertical.edges])
    assert np.array_equal(summary.density[0].counts, expected)
    assert summary.score_counts.sum() == summary.rows == len(frame)
    assert np.isclose(summary.partitions[:, 2].sum(), z @ z, rtol=1e-9)


@pytest.mark.slow
def test_a_cluster_counts_the_same(client):
    frame = dd.from_pandas(rows(6_000), npartitions=5)
    here = frame.nlsq.fit(DECAY, y="signal", p0=P0, client=False)._residual_summary
    there = frame.nlsq.fit(DECAY, y="signal", p0=P0, client=client)._residual_summary
    assert all(np.array_equal(a.counts, b.counts) for a, b in zip(here.density, there.density, strict=True))
    assert np.array_equal(here.partitions, there.partitions)


UNIT = FixedAxis(np.array([0.0, 1.0]))


def cells(column, most):
    """The counts of a column, and its totals, as a task makes them."""
    axis = Axis.of(column, most)
    a, first = axis.grid
    place = (np.floor(a * column) - first).astype(int)
    counts = np.bincount(place, minlength=axis.cells)[:, None]
    return Binned((axis, UNIT), counts, np.bincount(place, column, axis.cells))


@settings(max_examples=200, deadline=None)
@given(st.lists(FINITE, min_size=2, max_size=60), st.integers(1, 59), st.integers(2, 16))
def test_cells_do_not_depend_on_how_rows_are_cut(values, cut, most):
    column = np.array(values)
    pieces = [piece for piece in np.split(column, [min(cut, len(values) - 1)]) if len(piece)]
    binned = [cells(piece, most) for piece in pieces]
    whole, joined = cells(column, most), functools.reduce(Binned.merge, binned)
    assert whole.axes == joined.axes and whole.axes[0].cells <= most
    assert np.array_equal(whole.counts, joined.counts)
    assert np.allclose(whole.total, joined.total, rtol=1e-9, atol=1e-6 * np.abs(column).max())


@pytest.mark.parametrize("rows", [1, 100, 8192, 8193, 300_000])
def test_compiled_counts_are_those_of_numpy(rows):
    rng = np.random.default_rng(rows)
    x, y, fit = rng.normal(size=(3, rows)) + 1e6
    weight = rng.uniform(0.5, 2, rows)
    summary = ResidualSummary.of(0, Block((x,), y, weight), fit, 0.7, False)
    z = np.clip((y - fit) * weight / 0.7, -8.0, 8.0)
    for binned, columns in (
        (summary.density[0], (x, y)),
        (summary.by_column[0], (x, z)),
        (summary.by_fit, (fit, z)),
    ):
        expected, *_ = np.histogram2d(*columns, [axis.edges for axis in binned.axes])
        # A score may lie within rounding of an edge.
        assert np.abs(binned.counts - expected).sum() <= (0 if columns[1] is y else 4)


REFUSED = {
    "no such column": (lambda: fitted("few").plot("z"), "no column 'z'"),
    "no such panel": (lambda: fitted("few").plot_residuals("pie"), "kind"),
    "axes without a panel": (lambda: fitted("few").plot_residuals(ax=1), "kind="),
    "no such history": (lambda: fitted("few").plot_history("speed"), "column"),
    "one start": (lambda: fitted("few").plot_starts(), "n_starts"),
    "no sum": (lambda: fitted("few").plot_components(), "no sum"),
    "no such parameter": (lambda: fitted("few").plot_contour("a", "z"), "no two free"),
    "the same twice": (lambda: fitted("few").plot_contour("a", "a"), "no two free"),
    "no such map": (lambda: maps((6, 8)).plot("speed"), "name"),
    "three dimensions": (lambda: maps((2, 2, 2)).plot("rate"), "3 dimensions"),
    "a level in percent": (lambda: fitted("few").plot(level=95), "0.95"),
    "levels in percent": (lambda: fitted("few").plot_contour("a", "b", levels=(68, 95)), "between 0 and 1"),
    "one point": (lambda: fitted("few").plot_contour("a", "b", points=1), "5 or more"),
    "one sequence": (lambda: fitted("few").contour("a", "b", values=([1.0],)), "two sequences"),
    "no data": (lambda: dask_nlsq.FitResult.from_dict(fitted("few").to_dict()).plot(), "keeps no data"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, words = REFUSED[name]
    with pytest.raises(NlsqError, match=words):
        call()


CHANGES = {
    "fewer rows": lambda frame: frame.iloc[:-1],
    "no rows": lambda frame: frame.iloc[:0],
    "other values": lambda frame: frame.assign(signal=frame.signal * 2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_data_that_have_changed_are_refused(name):
    changed = []

    def read(i):
        return CHANGES[name](rows(500, i)) if changed and i == 0 else rows(500, i)

    frame = dd.from_map(read, range(2), meta=rows(1), enforce_metadata=False)
    result = frame.nlsq.fit(DECAY, y="signal", p0=P0, tier="chunked", client=False)
    changed.append(True)
    with pytest.raises(dask_nlsq.DataError, match="changed"):
        result.plot()


def test_a_stream_that_ended_early_is_drawn(tmp_path):
    for i in range(12):
        rows(20_000, i).to_parquet(tmp_path / f"{i:02}.parquet")
    result = dask_nlsq.fit(DECAY, data=str(tmp_path), y="signal", p0=P0, precision=0.05)
    assert result.status.name == "PRECISION"
    result.plot()
    assert result._residual_summary.rows == 240_000


def test_after_its_client_has_closed(cluster):
    frame = dd.from_pandas(rows(3_000), npartitions=3)
    with Client(cluster) as client:
        here = frame.nlsq.fit(DECAY, y="signal", p0=P0)
        there = frame.nlsq.fit(DECAY, y="signal", p0=P0, tier="chunked", client=client)
    here.plot()
    with pytest.raises(NlsqError, match="client of this fit is closed"):
        there.plot()


def test_what_was_drawn_does_not_travel():
    result = dask_nlsq.fit(DECAY, data=rows(4_000), y="signal", p0=P0)
    size = len(pickle.dumps(result))
    result.plot()
    assert len(pickle.dumps(result)) == size
    copy.copy(result).plot()


def test_contour_is_the_profile_likelihood_of_lmfit():
    data = rows(60)
    result = fitted("few")
    minimizer = lmfit.Minimizer(
        lambda p: p["a"] * np.exp(-p["b"] * data.t) + p["c"] - data.signal, lmfit.create_params(**result.params)
    )
    best = minimizer.minimize()
    x, y, chisqr = lmfit.conf_interval2d(minimizer, best, "a", "b", 7, 7, nsigma=2, chi2_out=True)
    expected = stats.f.cdf((chisqr.T - best.chisqr) / best.redchi / 2, 2, best.nfree)
    assert np.allclose(result.contour("a", "b", values=(x, y)), expected, rtol=0.01, atol=1e-4)


@pytest.mark.slow
def test_matplotlib_waits_for_the_first_plot():
    code = (
        "import sys, numpy as np, dask_nlsq\n"
        "r = dask_nlsq.fit('a + b*x', np.arange(4.0), np.array([1.0, 2.9, 5.1, 7.0]))\n"
        "print(r, r._repr_html_()); assert 'matplotlib' not in sys.modules\n"
        "r.plot_correlation(); assert 'matplotlib' in sys.modules\n"
    )
    env = {**os.environ, "MPLBACKEND": "agg"}
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, env=env)


@pytest.mark.parametrize("progress", [None, False, True])
def test_later_passes_show_the_bar_that_was_wanted(progress):
    result = dask_nlsq.fit(DECAY, data=rows(100), y="signal", p0=P0, progress=progress)
    assert result.profiler.problem.progress is progress
