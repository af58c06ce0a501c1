"""Config: the package's defaults among those of Dask."""

from __future__ import annotations

from pathlib import Path

import dask
import yaml


def register() -> None:
    """Add the defaults of ``nlsq.yaml`` to Dask's configuration, below what the user has set."""
    text = Path(__file__).with_name("nlsq.yaml").read_text("utf-8")
    dask.config.update_defaults(yaml.safe_load(text))
