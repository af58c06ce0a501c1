"""Clusters that suit a fit: processes of this machine, or jobs of a queue; and the job that this process runs in.

Examples
--------
>>> from dask_nlsq import cluster
>>> cluster.detect({}).scheduler
'none'
"""

from dask_nlsq._system import Job, detect
from dask_nlsq.cluster.script import WARN as WARN
from dask_nlsq.cluster.script import job_script
from dask_nlsq.cluster.workers import local_cluster, lsf, pbs, sge, slurm

__all__ = ["Job", "detect", "job_script", "local_cluster", "lsf", "pbs", "sge", "slurm"]
