"""Every Python block of the README and of docs/, and every docstring example of a public name, runs."""

import doctest
import re
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import dask_nlsq
from dask_nlsq._accessors.accessor import NlsqAccessor, XarrayAccessor
from dask_nlsq.sklearn import NLSQRegressor

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)\)")


def blocks(page):
    """Yield the Python blocks of a page, each compiled under its own line numbers."""
    text = page.read_text("utf-8")
    for match in BLOCK.finditer(text):
        if not match[1].startswith("# not run"):
            line = text.count("\n", 0, match.start(1))
            yield compile("\n" * line + match[1], str(page), "exec")


@pytest.mark.crossed(4)
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if page.name == "README.md":  # its reader brings data of their own
        t = np.linspace(0, 5, 1000)
        pd.DataFrame({"t": t, "signal": 2.5 * np.exp(-1.3 * t) + 0.01 * np.sin(99 * t)}).to_parquet("data.parquet")
    namespace = {"__name__": "page"}  # no module of that name: models travel by value, as from a notebook
    for block in blocks(page):
        exec(block, namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    missing = [link for link in LINK.findall(page.read_text("utf-8")) if not (page.parent / link).exists()]
    assert not missing


def test_readme_has_its_two_commands():
    text = (ROOT / "README.md").read_text("utf-8")
    for name in ("main job", "test command"):
        assert len(re.findall(rf"^<!-- {name} -->\n```bash\n[^\n]+\n```$", text, re.MULTILINE)) == 1


PUBLIC = {name: getattr(dask_nlsq, name) for name in dask_nlsq.__all__ if not name.startswith("__")}
PUBLIC |= {"NlsqAccessor": NlsqAccessor, "XarrayAccessor": XarrayAccessor, "NLSQRegressor": NLSQRegressor}
PUBLIC |= {f"cluster.{name}": getattr(dask_nlsq.cluster, name) for name in dask_nlsq.cluster.__all__}


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    value = PUBLIC[name]
    found = doctest.DocTestFinder().find(value, name, globs={})
    examples = sum(len(test.examples) for test in found)
    assert examples or issubclass(value, (Exception, Warning)), f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in found:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
