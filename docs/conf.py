"""Sphinx: ``pip install -e '.[docs,examples]' && sphinx-build docs docs/_build/html``."""

from pathlib import Path

import dask_nlsq
from dask_nlsq import Model

project = "dask_nlsq"
author = "dask_nlsq developers"
version = release = dask_nlsq.__version__

extensions = [
    "myst_nb",
    "numpydoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_design",
    "sphinxcontrib.mermaid",
]
exclude_patterns = ["_build", "conf.py", "examples/quickstart.py", "thumbnails.py"]
default_role = "py:obj"
smartquotes = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3

# The notebooks are Python files in which "# %%" begins a cell; docs/examples is a link to examples/.
nb_custom_formats = {".py": ["jupytext.reads", {"fmt": "py:percent"}]}
nb_execution_mode = "cache"
nb_execution_cache_path = str(Path(__file__).parent / "_build/.jupyter_cache")
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True

autodoc_typehints = "none"  # the docstrings have the types
autodoc_class_signature = "separated"
autodoc_member_order = "bysource"
autosummary_generate = False
numpydoc_show_class_members = False
add_module_names = False

html_theme = "furo"
html_title = f"dask_nlsq {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False


def describe_model(app, what, name, model, options, lines):
    """Document a model of the library by its formula and its parameters."""
    if isinstance(model, Model):
        lines[:] = [f"``{model.func.text}``", "", f"Parameters: {', '.join(model.parameters)}.", ""]


def setup(app):
    app.connect("autodoc-process-docstring", describe_model, priority=1)
