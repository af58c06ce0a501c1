"""The names that `import dask_nlsq` exports, and the absence of side effects."""

import ast
import inspect
import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

import dask_nlsq
from dask_nlsq._accessors.accessor import NlsqAccessor, XarrayAccessor

STUB = Path(dask_nlsq.__file__).with_suffix(".pyi")

PROBE = """
import json, os, sys
before = dict(os.environ)
import dask_nlsq
seen = {
    "heavy": sorted({"dask.array", "dask.dataframe", "jax", "jaxlib", "pandas", "scipy", "zarr"} & sys.modules.keys()),
    "environ": sorted(dict(before.items() ^ os.environ.items())),
}
for name in dask_nlsq.__all__:
    getattr(dask_nlsq, name)
import jax
print(json.dumps(seen | {"x64": jax.config.jax_enable_x64}))
"""


@pytest.mark.slow
def test_import_is_quiet():
    # EAGER_IMPORT is lazy_loader's own switch, JAX_ENABLE_X64 is the user's.
    env = {k: v for k, v in os.environ.items() if k not in {"EAGER_IMPORT", "JAX_ENABLE_X64"}}
    run = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == {"heavy": [], "environ": [], "x64": False}


@pytest.mark.slow
def test_everything_can_be_imported_at_once():
    """EAGER_IMPORT makes every lazy face import all that it hands out."""
    subprocess.run([sys.executable, "-c", "import dask_nlsq"], env=os.environ | {"EAGER_IMPORT": "1"}, check=True)


@pytest.mark.slow
@pytest.mark.parametrize("order", list(itertools.permutations(["pandas", "dask.dataframe", "dask_nlsq"])), ids=" ".join)
def test_frames_have_the_accessor_in_whatever_order_they_are_imported(order):
    code = f"import {', '.join(order)}; pandas.DataFrame.nlsq.fit, dask.dataframe.DataFrame.nlsq.fit"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("module", ["pandas", "dask.dataframe"])
def test_another_thread_may_be_importing_the_frames(module):
    code = f"""if True:
        import importlib, sys, threading
        thread = threading.Thread(target=importlib.import_module, args=["{module}"])
        thread.start()
        while "{module}" not in sys.modules:
            pass
        import dask_nlsq
        thread.join()
        sys.modules["{module}"].DataFrame.nlsq.fit
    """
    subprocess.run([sys.executable, "-c", code], check=True)


def test_all_is_sorted():
    assert list(dask_nlsq.__all__) == sorted(set(dask_nlsq.__all__))


@pytest.mark.parametrize("name", [n for n in dask_nlsq.__all__ if not n.startswith("__")])
def test_name_says_what_it_is(name):
    value = getattr(dask_nlsq, name)
    # Not inspect.getdoc: a summary inherited from a base class describes the base class.
    doc = getattr(value, "__doc__", None)
    assert doc, f"{name} has no docstring"
    summary, _, rest = doc.strip().partition("\n")
    assert summary.endswith("."), f"{name}: the summary is one sentence on one line: {summary!r}"
    assert not rest.split("\n")[0].strip(), f"{name}: a blank line follows the summary"
    assert isinstance(value, ModuleType) or value.__module__.startswith("dask_nlsq")


def test_stub_names_what_is_exported():
    body = ast.parse(STUB.read_text("utf-8")).body
    imported = [a.asname or a.name for n in body if isinstance(n, ast.ImportFrom) for a in n.names]
    public = [name for name in dask_nlsq.__all__ if not name.startswith("__")]
    assert sorted(imported) == public


ACCESSORS = [
    (NlsqAccessor.fit, dask_nlsq.fit, {"data"}),
    (NlsqAccessor.plan, dask_nlsq.plan, {"data"}),
    (NlsqAccessor.fit_groups, dask_nlsq.fit_groups, {"data"}),
    (XarrayAccessor.fit, dask_nlsq.fit, {"data"}),
    (XarrayAccessor.fit_many, dask_nlsq.fit_many, {"axis"}),
]


@pytest.mark.parametrize(("method", "function", "given"), ACCESSORS, ids=lambda v: getattr(v, "__qualname__", ""))
def test_accessors_show_the_options_of_their_functions(method, function, given):
    options = {p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY}
    shown = {p.name: p.default for p in inspect.signature(method).parameters.values()}
    assert {name: shown[name] for name in options if name not in given} == {
        name: default for name, default in options.items() if name not in given
    }
    assert not given & set(shown) and "options" not in shown and next(iter(shown)) == "self"
    for section in ("Parameters", "Returns", "Raises", "Examples"):
        assert method.__doc__.count(f"{section}\n{'-' * len(section)}\n") == 1


def test_an_accessor_shows_each_parameter_once():
    entries = XarrayAccessor.fit_many.__doc__.partition("Returns")[0]
    assert [entries.count(f"\n{name} : ") for name in ("x", "dim", "p0", "axis")] == [1, 1, 1, 0]
    assert "\nloss : " in NlsqAccessor.fit.__doc__ and "\ndata : " not in NlsqAccessor.fit.__doc__


FRAME = pd.DataFrame({"x": [0.0, 1, 2], "y": [0.0, 1, 2]})


@pytest.mark.parametrize(
    ("call", "nearest"),
    [
        (lambda: dask_nlsq.fit("line", bound=1), "'bounds'"),
        (lambda: dask_nlsq.plan("line", memory=1), "'memory_limit'"),
        (lambda: dask_nlsq.fit_many("line", [0.0], [0.0], shard="slope"), "'shared'"),
        (lambda: dask_nlsq.fit_groups(FRAME, "x", "line", fix="slope"), "'fixed'"),
        (lambda: FRAME.nlsq.fit("line", bound=1), "'bounds'"),
        (lambda: FRAME.nlsq.plan("line", tear="auto"), "'tier'"),
        (lambda: FRAME.nlsq.fit_groups("x", "line", shard="slope"), "'shared'"),
        (lambda: FRAME.to_xarray().nlsq.fit("line", bound=1), "'bounds'"),
        (lambda: FRAME.to_xarray().nlsq.fit_many("line", "no dimension", shard="slope"), "'shared'"),
        (lambda: FRAME.nlsq.fit("line", data=FRAME), "help"),
    ],
)
def test_the_nearest_option_is_named(call, nearest):
    with pytest.raises(TypeError, match=f"unexpected keyword argument.*{nearest}"):
        call()
