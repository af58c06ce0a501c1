"""Sphinx: ``pip install -e '.[docs]' && sphinx-build docs docs/_build``."""

import dask_nlsq

project = "dask_nlsq"
author = "dask_nlsq developers"
version = release = dask_nlsq.__version__

extensions = ["myst_parser", "numpydoc", "sphinx.ext.mathjax", "sphinxcontrib.mermaid"]
myst_enable_extensions = ["dollarmath"]
myst_fence_as_directive = ["mermaid"]
myst_heading_anchors = 3
numpydoc_show_class_members = False
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"dask_nlsq {release}"
