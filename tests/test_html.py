"""What a notebook shows of a result."""

import html.parser

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import dask_nlsq
from dask_nlsq._result.html import rounded

T = np.linspace(0, 4, 60)
HOSTILE = "<img src=x onerror=\"f('&')\">"


def decay(t, amplitude, rate, offset):
    return amplitude * jnp.exp(-rate * t) + offset


Y = 2.5 * np.exp(-1.3 * T) + 0.5 + 0.1 * np.random.default_rng(0).normal(size=T.size)


class Page(html.parser.HTMLParser):
    """The tags, attributes and cells of a page, whose tags must all be closed."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.names, self.text, self.open = set(), set(), [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}
        self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += [data.strip()] if data.strip() else []


TAGS = {"div", "p", "strong", "table", "thead", "tbody", "tr", "th", "td", "details", "summary"}
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


def test_text_of_the_user_is_escaped():
    frame = pd.DataFrame({HOSTILE: T, "y": Y})
    result = dask_nlsq.fit(decay, data=frame, x=HOSTILE, p0=[2, 1, 0.4])
    text = result._repr_html_()
    assert Page(text).tags <= TAGS and "<img" not in text and "&lt;img" in text


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
