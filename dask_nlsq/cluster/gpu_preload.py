"""GPU: which one a worker process sees, where one job has several. Loaded by ``dask worker --preload-nanny``."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distributed import Nanny


# Dask calls a preloaded module by this name.
def dask_setup(nanny: Nanny) -> None:
    """Show the worker process of a nanny one GPU of those that the job may use: the first to name-0, and so on."""
    # dask-jobqueue numbers the processes of a job from 0, behind the name of the job.
    form = re.search(r"-(\d+)$", str(nanny.name))
    number = int(form[1]) if form else 0
    devices = [device.strip() for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device.strip()]
    nanny.env["CUDA_VISIBLE_DEVICES"] = devices[number % len(devices)] if devices else str(number)
