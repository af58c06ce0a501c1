"""Every Python block of the README and of docs/, and every docstring example of a public name, runs."""

import doctest
import inspect
import re
import tempfile
from pathlib import Path

import click
import numpy as np
import pandas as pd
import pytest

import dask_nlsq
from dask_nlsq._accessors.accessor import NlsqAccessor, XarrayAccessor
from dask_nlsq.cli.commands import main
from dask_nlsq.sklearn import NLSQRegressor

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/reference").glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")
AUTODOC = re.compile(r"^\.\. auto(?:class|data|exception|function):: (\S+)$", re.MULTILINE)


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
        t, noise = np.linspace(0, 5, 1000), np.random.default_rng(0).normal(0, 0.01, 1000)
        pd.DataFrame({"t": t, "signal": 2.5 * np.exp(-1.3 * t) + noise}).to_parquet("data.parquet")
    namespace = {"__name__": "page"}  # no module of that name: models travel by value, as from a notebook
    for block in blocks(page):
        exec(block, namespace)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    text = page.read_text("utf-8")
    missing = [link for link in LINK.findall(text) if not (page.parent / link).exists()]
    missing += [test for test in re.findall(r"`(tests/\w+\.py)`", text) if not (ROOT / test).exists()]
    assert not missing


def test_gallery_has_each_notebook():
    notebooks = sorted(p.stem for p in (ROOT / "examples").glob("*.py") if p.read_text("utf-8").startswith("# ---"))
    page = (ROOT / "docs/gallery.md").read_text("utf-8")
    assert sorted(re.findall(r"^examples/(\w+)$", page, re.MULTILINE)) == notebooks
    assert sorted(re.findall(r"^:link: examples/(\w+)$", page, re.MULTILINE)) == notebooks


def test_readme_has_its_two_commands():
    text = (ROOT / "README.md").read_text("utf-8")
    for name in ("main job", "test command"):
        assert len(re.findall(rf"^<!-- {name} -->\n```bash\n[^\n]+\n```$", text, re.MULTILINE)) == 1


def test_reference_has_each_public_name_once():
    pages = (ROOT / "docs/reference").glob("*.md")
    documented = sorted(name for page in pages for name in AUTODOC.findall(page.read_text("utf-8")))
    modules = {"dask_nlsq": dask_nlsq, "dask_nlsq.cluster": dask_nlsq.cluster, "dask_nlsq.models": dask_nlsq.models}
    public = {f"{module}.{name}" for module, of in modules.items() for name in of.__all__ if not name.startswith("__")}
    accessors = {f"{one.__module__}.{one.__name__}" for one in (NlsqAccessor, XarrayAccessor)}
    public.add(f"{NLSQRegressor.__module__}.NLSQRegressor")
    assert documented == sorted((public | accessors) - {*modules, "dask_nlsq.cluster.local_cluster"})  # it is above


SHARED_SECTIONS = {
    "plan": ["dask-nlsq fit DATA"],
    "fit-many": ["Options of fit-many and fit-groups"],
    "fit-groups": ["Options of fit-many and fit-groups", "dask-nlsq fit DATA"],
}
GROUPS = {name: group for name, group in main.commands.items() if isinstance(group, click.Group)}
COMMANDS = {
    **main.commands,
    **{f"{name} {each}": command for name, group in GROUPS.items() for each, command in group.commands.items()},
}


@pytest.mark.parametrize("name", COMMANDS)
def test_command_line_page_has_every_option(name):
    page = (ROOT / "docs/cli.md").read_text("utf-8")
    sections = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE))
    own = next(title for title in sections if re.match(rf"dask-nlsq {name.split()[0]}( |$)", title))
    text = "".join(sections[title] for title in [own, *SHARED_SECTIONS.get(name, ())])
    options = [p for p in COMMANDS[name].params if isinstance(p, click.Option)]
    missing = [p.opts[-1] for p in options if not re.search(rf"`{p.opts[-1]}[ `]", text)]
    assert not missing
    for option in options:
        if option.required:
            assert re.search(rf"`{option.opts[-1]}[ `][^\n]*\*\*required\*\*", text)


def test_fitting_page_has_every_option_in_a_table():
    rows = re.findall(r"^\| (`[^|]+) \|", (ROOT / "docs/fitting.md").read_text("utf-8"), re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    assert set(inspect.signature(dask_nlsq.fit).parameters) <= named


PUBLIC = {name: getattr(dask_nlsq, name) for name in dask_nlsq.__all__ if not name.startswith("__")}
PUBLIC |= {"NlsqAccessor": NlsqAccessor, "XarrayAccessor": XarrayAccessor, "NLSQRegressor": NLSQRegressor}
PUBLIC |= {f"cluster.{name}": getattr(dask_nlsq.cluster, name) for name in dask_nlsq.cluster.__all__}


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    value = PUBLIC[name]
    # module=False: methods that another module defines are looked at, too.
    found = doctest.DocTestFinder().find(value, name, module=False, globs={})
    examples = sum(len(test.examples) for test in found)
    assert examples or issubclass(value, (Exception, Warning)), f"{name} has no example"
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for test in found:
        runner.run(test)
    assert runner.summarize(verbose=False).failed == 0
