"""What a notebook shows, and the page and the tables of a result."""

import html.parser
import itertools
import re
import sys

import dask
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import xarray as xr

import dask_nlsq
from dask_nlsq import Checkpoints, FitResult, Model, NlsqError, StreamingFitter
from dask_nlsq._display import Fold, Fragment, Table, Text, page
from dask_nlsq._result import html as result_html
from dask_nlsq._result.table import rounded

T = np.linspace(0, 4, 60)
HOSTILE = [
    "<script>alert('1')</script>",
    "<img src=x onerror=\"f('&')\">",
    "\"' onclick=f() x='",
    "&lt;b&gt; & </table></style></div>",
]


def decay(t, amplitude, rate, offset):
    return amplitude * jnp.exp(-rate * t) + offset


Y = 2.5 * np.exp(-1.3 * T) + 0.5 + 0.1 * np.random.default_rng(0).normal(size=T.size)


class Page(html.parser.HTMLParser):
    """The tags, attributes and texts of a page, whose tags must all be closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.text, self.open = set(), [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        self.open += [tag] * (tag not in {"img", "meta"})

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += [data.strip()] if data.strip() and self.open[-1:] != ["style"] else []

    @property
    def names(self):
        return {name for name, _ in self.attributes}


TAGS = {"div", "style", "p", "pre", "strong", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"}
RESULTS = {
    "plain": ({}, "converged (CONVERGED)"),
    "fixed": ({"fixed": {"offset": 0.5}}, "fixed"),
    "tied to one at a bound": (
        {"bounds": {"offset": (0.6, 1.0)}, "tied": {"amplitude": "4 * offset"}},
        "follows one at a bound",
    ),
    "at a bound": ({"bounds": {"offset": (0.6, 1.0)}}, "at its lower bound"),
    "not converged": ({"max_nfev": 1}, "NOT converged (MAX_NFEV)"),
}


@pytest.mark.filterwarnings("ignore::scipy.optimize.OptimizeWarning")
@pytest.mark.parametrize("name", RESULTS)
def test_a_page_and_a_report_say_what_has_no_ordinary_error(name):
    options, words = RESULTS[name]
    result = dask_nlsq.fit(decay, T, Y, **{"p0": [2, 1, 0.7]} | options)
    page = Page(result._repr_html_())
    assert page.tags <= TAGS and page.names <= {"class", "style", "scope"}
    assert words in " ".join(page.text) and {*result.names, *map(str, result.provenance)} <= set(page.text)
    for value, error in zip(result.popt.tolist(), result.stderr.tolist(), strict=True):
        assert not 0 < error < np.inf or set(rounded(value, error)) <= set(page.text)
    assert words in str(result)
    assert "± 0 " not in str(result) and "nan" not in str(result).partition("rows")[0]


def test_no_parameter_of_an_exact_fit_is_called_fixed():
    assert "fixed" not in str(dask_nlsq.fit("a*t", T, 0 * T))


def hostile_model(text):
    """A model whose name and second parameter are a text."""
    return Model(decay, ("t", "amplitude", text, "offset"), ("t",), name=text)


def hostile_fit(text, **options):
    frame = pd.DataFrame({f"x{text}": T, f"y{text}": Y})
    return dask_nlsq.fit(hostile_model(text), data=frame, x=f"x{text}", y=f"y{text}", p0=[2, 1, 0.4], **options)


def hostile_many(text, **options):
    t, y = T[::3], np.stack([Y[::3], np.full(T[::3].size, np.nan)])  # of as many points as other tests have compiled
    y = xr.DataArray(y, dims=(text, "t"))
    return dask_nlsq.fit_many(hostile_model(text), t, y, p0=[2, 1, 0.4], axis="t", **options)


def checkpoints(text, folder):
    hostile_fit(text, checkpoint=folder / text)
    return Checkpoints(folder / text)


SHOWN = {
    "result": lambda text, _: hostile_fit(text),
    "failed result": lambda text, _: hostile_fit(text, max_nfev=1),
    "diagnostics": lambda text, _: hostile_fit(text, bounds={text: (0, 1.1)}).diagnostics(),
    "plan": lambda text, _: dask_nlsq.plan(hostile_model(text), T, Y, p0=[2, 1, 0.4]),
    "plan of a fit": lambda text, _: hostile_fit(text).plan,
    "model": lambda text, _: hostile_model(text),
    "formula": lambda text, _: Model.from_expression("a*x < 2", name=text),
    "checkpoints": checkpoints,
    "no checkpoint": lambda text, folder: Checkpoints(folder / text),
    "lazy fits": lambda text, _: hostile_many(text),
    "computed fits": lambda text, _: hostile_many(text).compute(),
    "waiting stream": lambda text, _: StreamingFitter(hostile_model(text), p0=[2, 1, 0.4]),
    "stream": lambda text, _: StreamingFitter(hostile_model(text), p0=[2, 1, 0.4]).partial_fit(
        np.tile(T, 5), np.tile(Y, 5)
    ),
    "shared": lambda text, _: hostile_many(text, shared=text).compute(),  # the last takes long
}


@pytest.mark.crossed(len(SHOWN) - 1)
@pytest.mark.filterwarnings("ignore::scipy.optimize.OptimizeWarning")
@pytest.mark.parametrize(
    ("text", "name"),
    list(itertools.product(HOSTILE, SHOWN)),
)
def test_text_of_the_user_is_escaped(text, name, tmp_path):
    page = Page(SHOWN[name](text, tmp_path)._repr_html_())
    assert page.tags <= TAGS and page.names <= {"class", "style", "scope"}
    # The name of a folder has no double slashes.
    assert re.sub("/+", "/", text) in re.sub("/+", "/", "\n".join(page.text))


TEXT = "<b> & 'c' \"d\""
PARTS = [
    TEXT,
    Text(TEXT),
    Table([[TEXT, 1.5, True]], header=[TEXT, "", ""]),
    Fold(TEXT, [TEXT, Fold("", [Text(TEXT)])]),
]


@pytest.mark.parametrize("part", PARTS)
def test_every_part_is_escaped(part):
    shown = Page(page(Fragment(TEXT, [part], TEXT, TEXT, [TEXT]), [(TEXT, b"<svg></svg>")]))
    assert shown.tags <= TAGS | {"html", "head", "meta", "title", "body", "figure", "figcaption", "img"}
    assert shown.text.count(TEXT) >= 6 and dict(shown.attributes)["alt"] == TEXT


def test_no_rule_of_style_reaches_what_is_around():
    (style,) = re.findall("<style>(.*)</style>", Fragment("").html(), re.DOTALL)
    rules = re.findall(r"^([^{}]+){", re.sub(r"/\*.*?\*/", "", style, flags=re.DOTALL), re.MULTILINE)
    selectors = [selector.strip() for rule in rules for selector in re.sub(r"\(.*?\)", "", rule).split(",")]
    assert len(rules) > 5 and all(selector.startswith(".dask-nlsq") for selector in selectors)


def test_what_many_fits_show_is_not_computed_for_it():
    def refuse(*_, **__):
        raise AssertionError("computed")

    with dask.config.set(scheduler=refuse):
        lazy = Page(hostile_many("pixel")._repr_html_())
    assert {"Not computed yet: compute(), to_zarr(path) or to_dataset().", "pixel: 2"} <= set(lazy.text)


def test_computed_fits_show_how_they_ended_and_their_medians():
    fits = hostile_many("rate").compute()
    shown = Page(fits._repr_html_()).text
    assert shown[1] == "1 of 2 series did not converge; failures() names them."
    assert {"TOO_FEW", dask_nlsq.Status.TOO_FEW.sentence, f"{fits['rate'][0]:.6g}"} <= set(shown)


def test_rows_that_wait_for_a_first_estimate_wait_on_after_they_were_shown():
    fitter = StreamingFitter(decay, p0=[2, 1, 0.4]).partial_fit(T, Y)
    assert "60 rows have come; the first estimate takes 150." in Page(fitter._repr_html_()).text
    assert repr(fitter) == "<StreamingFitter of decay(amplitude, rate, offset): 60 rows wait>"
    fitter = fitter.partial_fit(T, Y).partial_fit(T, Y)
    assert repr(fitter).endswith("offset): 180 rows in 1 batches>")
    assert "Last of 1 updates" in Page(fitter._repr_html_()).text


def test_damaged_checkpoints_come_first_and_old_ones_are_folded(tmp_path):
    result = dask_nlsq.fit("line", T, Y)
    for _ in range(5):
        result.save(tmp_path)
    (tmp_path / "commits/00000003.json").write_text("{}")
    (tmp_path / "commits/00000009.json").write_text("{}")
    shown = Page(Checkpoints(tmp_path)._repr_html_()).text
    assert shown[1] == "generation 9: commits/00000009.json is no record of a commit."
    assert "1 older" in shown and repr(Checkpoints(tmp_path)) == f"<Checkpoints at {tmp_path}>"


def refuses(result, ax):
    raise NlsqError("It keeps no data.")


FIGURES = {"Fit": ((3, 2), [FitResult.plot]), "Map": ((3, 2), [FitResult.plot_history, refuses])}


@pytest.mark.crossed
@pytest.mark.parametrize("text", HOSTILE)
def test_a_page_needs_no_other_file(text, monkeypatch, tmp_path):
    monkeypatch.setattr(result_html, "_FIGURES", FIGURES)
    result = hostile_fit(text)
    assert result.to_html(tmp_path / "fit.html") is None
    written = (tmp_path / "fit.html").read_text("utf-8")
    shown = Page(written)
    sources = [value for name, value in shown.attributes if name in {"src", "href", "srcset", "data"}]
    assert [source[:22] for source in sources] == ["data:image/png;base64,"]
    assert written.startswith("<!DOCTYPE html>") and not re.search(r"http|url\(|@import|<script|<link", written)
    assert {("charset", "utf-8"), ("name", "viewport")} <= set(shown.attributes)
    assert {"Fit", result.report(), "Map could not be drawn: It keeps no data."} <= set(shown.text)
    assert shown.text[0] == shown.text[1] == f"{text}(amplitude, {text}, offset)"


def test_a_page_has_all_figures():
    shown = Page(dask_nlsq.fit(decay, T, Y, p0=[2, 1, 0.4]).to_html())
    assert [value for name, value in shown.attributes if name == "alt"] == list(result_html._FIGURES)


@pytest.mark.parametrize(("plots", "installed", "count"), [(False, True, 0), (True, False, 1)])
def test_a_page_without_plots_says_why(plots, installed, count, monkeypatch):
    if not installed:
        monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    shown = Page(dask_nlsq.fit(decay, T, Y, p0=[2, 1, 0.4]).to_html(plots=plots))
    assert "img" not in shown.tags and "\n".join(shown.text).count('pip install "dask-nlsq[plot]"') == count


VALUES = {
    (2.4998587, 0.0003227): ("2.49986", "0.00032"),
    (-0.5, 0.25): ("-0.50", "0.25"),
    (123456.7, 1234.0): ("123500", "1200"),
    (1.5e-12, 2e-14): ("1.500e-12", "0.020e-12"),
    (3.2e20, 1e18): ("3.200e+20", "0.010e+20"),
    (0.0, 0.02): ("0.000", "0.020"),
    (0.001, 5.0): ("0.0", "5.0"),
    (1.2345, 0.0996): ("1.23", "0.10"),
    (1.25, 0.0): ("1.25", "0"),
    (1.25, np.inf): ("1.25", "inf"),
    (1.25, np.nan): ("1.25", "nan"),
}


@pytest.mark.parametrize("pair", VALUES)
def test_values_are_rounded_by_their_errors(pair):
    assert rounded(*pair) == VALUES[pair]


def test_the_summary_is_a_table_of_values():
    table = dask_nlsq.fit(decay, T, Y, p0=[2, 1, 0.4]).summary()
    assert list(table.columns) == ["value", "stderr", "lower", "upper"] and table.index[0] == "amplitude"


def test_tables_for_papers_are_rounded_by_the_errors():
    result = dask_nlsq.fit(decay, T, Y, p0=[2, 1, 0.4], fixed={"offset": 0.5})
    table = result.to_dataframe()
    assert table.drop(columns="remark").equals(result.summary()) and table["remark"].tolist() == ["", "", "fixed"]
    value, error = rounded(result.params["rate"], result.stderr["rate"])
    for text, sign in ((result.to_markdown(), "|"), (result.to_latex(caption="Decay"), "&")):
        (line,) = [line for line in text.splitlines() if "rate" in line]
        cells = [cell.strip() for cell in line.strip("|").split(sign)]
        assert cells[:3] == ["rate", value, error] and len({len(cell.partition(".")[2]) for cell in cells[1:5]}) == 1
    assert r"\caption{Decay}" in text


@pytest.mark.parametrize("text", ["<script>", "a|b", "a_b"])
def test_names_in_tables_for_papers_are_escaped(text):
    result = hostile_fit(text)
    names = [line.split(" | ")[0] for line in result.to_markdown().splitlines()]
    assert names[3].strip("| ") == text.replace("<", "&lt;").replace(">", "&gt;").replace("|", r"\|")
    assert text.replace("_", r"\_") in result.to_latex()


def test_markdown_names_the_package_that_it_lacks(monkeypatch):
    monkeypatch.setitem(sys.modules, "tabulate", None)
    with pytest.raises(NlsqError, match=r'pip install "dask-nlsq\[tables\]"'):
        dask_nlsq.fit("line", T, Y).to_markdown()
