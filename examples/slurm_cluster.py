# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   mystnb:
#     execution_mode: "off"
# ---

# %% [markdown]
# # A recipe for a Slurm cluster
#
# **This notebook is not executed when the pages are built**, because it needs a queue. It fits
# files on a parallel file system with workers that are jobs. `pbs`, `sge` and `lsf` take the
# arguments of `slurm`. It needs `pip install "dask-nlsq[jobqueue]"`, in an environment that the
# nodes see.

# %%
import jax.numpy as jnp
from distributed import Client

import dask_nlsq
from dask_nlsq import cluster


def decay(t, amplitude, rate, offset=0.0):
    return amplitude * jnp.exp(-rate * t) + offset


data = {"y": "signal", "data": "/scratch/runs/*.parquet"}

# %% [markdown]
# ## What will it need?
#
# The plan reads the footers of the files and one partition. The memory of a task, plus about 400
# MB, divided by 0.8, is that of a worker process.

# %%
plan = dask_nlsq.plan(decay, tier="chunked", **data)
print(plan)
print(f"{plan.task.total / 1e9:.2f} GB for a task")

# %% [markdown]
# ## Workers that are jobs
#
# Eight jobs of eight processes, each with one thread and 4 GB. Jobs that reach their wall time are
# replaced, and the result does not change by a bit. The checkpoint is for the driver: if this
# process ends, the same cell continues.

# %%
with (
    cluster.slurm(
        64, cores=8, memory="32 GB", walltime="04:00:00", queue="long"
    ) as jobs,
    Client(jobs) as client,
):
    print(jobs.job_script())  # what is submitted
    print(client.dashboard_link)
    result = dask_nlsq.fit(decay, checkpoint="/scratch/run", **data)
result

# %% [markdown]
# ## A driver that is a job too
#
# A notebook ends with its login. This writes a batch job whose driver is warned before its wall
# time, commits, and is requeued until the fit has ended. The model is in `mymodels.py` beside the
# script.

# %%
script = cluster.job_script(
    "dask-nlsq fit '/scratch/runs/*.parquet' -m mymodels:decay -y signal --checkpoint /scratch/run -o fit.json "
    "--cluster slurm --workers 64 --cores 8 --memory '32 GB' --walltime 04:00:00 --queue long",
    "slurm",
    walltime="12:00:00",
    cores=1,
    memory="4 GB",
    setup=["source .venv/bin/activate"],
)
with open("fit.sh", "w") as file:
    file.write(script)

# %% [markdown]
# Submit it once with `sbatch fit.sh`. Afterwards:

# %%
import json

with open("fit.json") as file:
    result = dask_nlsq.FitResult.from_dict(json.load(file))
result
