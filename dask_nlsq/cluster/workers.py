"""Workers that suit a fit: processes of this machine, or jobs of a queue."""

from __future__ import annotations

import logging
import math
import os
import shlex
from typing import Any

import dask
from distributed import LocalCluster
from tornado.ioloop import PeriodicCallback

from dask_nlsq._errors import NlsqError
from dask_nlsq._plan import Plan, memory_limit
from dask_nlsq._system import seconds
from dask_nlsq.cluster.script import clock, minutes, parse_memory

RENEWAL = 10.0
"""Seconds between two looks for jobs that have ended."""


class _Workers(LocalCluster):
    """Closes in silence: what its workers still hold goes with them, which is no loss worth a warning."""

    def close(self, timeout: float | None = None) -> Any:
        """Close the cluster."""
        log = logging.getLogger("distributed.scheduler")
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            return super().close(timeout)
        finally:
            log.setLevel(level)


def local_cluster(plan: Plan, **options: Any) -> LocalCluster:
    """Start worker processes on this machine, as many and as large as suits a plan.

    Each has one thread, its share of the memory, and an XLA that keeps to that thread. The dashboard, which needs
    bokeh, is at ``cluster.dashboard_link``.

    Parameters
    ----------
    plan : Plan
        Of `dask_nlsq.plan`.
    **options
        Passed to `distributed.LocalCluster`, before what the plan says.

    Returns
    -------
    distributed.LocalCluster

    Examples
    --------
    >>> import numpy as np, dask_nlsq
    >>> from distributed import Client
    >>> x = np.linspace(0, 1, 1000)
    >>> plan = dask_nlsq.plan("line", x, 1 + 2 * x)
    >>> with dask_nlsq.local_cluster(plan, processes=False) as cluster, Client(cluster) as client:
    ...     result = dask_nlsq.fit("line", x, 1 + 2 * x, client=client, tier="chunked")
    >>> result.params.round(6).to_dict()
    {'intercept': 1.0, 'slope': 2.0}
    """
    workers = options.get("n_workers", plan.n_workers)
    chosen = {
        "n_workers": workers,
        "threads_per_worker": 1,
        "memory_limit": memory_limit().limit // max(workers, 1),
        # Port 8787 may be taken by another cluster of this machine.
        "dashboard_address": ":0",
    }
    if options.get("processes", True):
        # Each worker's XLA would otherwise start as many threads as the machine has cores.
        options["env"] = {"PJRT_NPROC": "1"} | (options.get("env") or {})
    return _Workers(**(chosen | options))  # type: ignore[no-untyped-call]


def slurm(
    workers: int = 1,
    *,
    memory: str | int,
    cores: int = 1,
    processes: int | None = None,
    walltime: str | float = "01:00:00",
    queue: str | None = None,
    account: str | None = None,
    gpus: int = 0,
    **options: Any,
) -> Any:
    """Start workers as jobs of Slurm, sized for a fit.

    XLA keeps to the threads of its process; with `gpus` each process declares one GPU and sees no other. Workers leave
    before their wall time, one after another, and jobs that end are submitted again until the cluster is closed.

    Parameters
    ----------
    workers : int
        Worker processes in all; 0 leaves it to ``scale`` or ``adapt`` of the cluster.
    memory : str or int
        Of each job, such as ``"16 GB"``.
    cores : int
        Of each job.
    processes : int, optional
        Of each job; by default one for each GPU, or for each core.
    walltime : str or float
        Of each job: ``"HH:MM:SS"``, ``"D-HH:MM:SS"``, or seconds.
    queue, account : str, optional
        Partition or queue, and what is charged: account or project.
    gpus : int
        Of each job; each serves one process.
    **options
        Passed to the class of ``dask_jobqueue``, before what is said here; prologue, directives and arguments of the
        worker are added to ours.

    Returns
    -------
    dask_jobqueue.SLURMCluster
        ``print(cluster.job_script())`` shows the jobs.

    Raises
    ------
    NlsqError
        The numbers do not go together; the message says which.

    Examples
    --------
    >>> from dask_nlsq import cluster
    >>> cluster.slurm(8, cores=4, processes=8, memory="16 GB")
    Traceback (most recent call last):
    dask_nlsq._errors.NlsqError: 8 processes need as many cores; a job has 4. Ask for fewer processes or more cores.
    """
    directives = [f"--gres=gpu:{gpus}"] * bool(gpus)
    requested = {"queue": queue, "account": account, "job_extra_directives": directives}
    return _start("SLURMCluster", workers, cores, processes, memory, walltime, gpus, requested, options)


def pbs(
    workers: int = 1,
    *,
    memory: str | int,
    cores: int = 1,
    processes: int | None = None,
    walltime: str | float = "01:00:00",
    queue: str | None = None,
    account: str | None = None,
    gpus: int = 0,
    **options: Any,
) -> Any:
    """Start workers as jobs of PBS, sized for a fit; arguments are those of `slurm`.

    Returns
    -------
    dask_jobqueue.PBSCluster

    Examples
    --------
    >>> from dask_nlsq import cluster
    >>> cluster.pbs(8, memory="16 GB", walltime="an hour")
    Traceback (most recent call last):
    dask_nlsq._errors.NlsqError: walltime is 'an hour'; hours, minutes and seconds such as '12:00:00', ...
    """
    requested: dict[str, Any] = {"queue": queue, "account": account}
    if gpus:
        kib = math.ceil(parse_memory(memory) / 1024)
        requested["resource_spec"] = f"select=1:ncpus={cores}:ngpus={gpus}:mem={kib}kb"
    return _start("PBSCluster", workers, cores, processes, memory, walltime, gpus, requested, options)


def sge(
    workers: int = 1,
    *,
    memory: str | int,
    cores: int = 1,
    processes: int | None = None,
    walltime: str | float = "01:00:00",
    queue: str | None = None,
    account: str | None = None,
    gpus: int = 0,
    parallel_environment: str = "smp",
    **options: Any,
) -> Any:
    """Start workers as jobs of SGE, sized for a fit; arguments are those of `slurm`.

    Parameters
    ----------
    parallel_environment : str
        Of a job with several cores: the name that your site gives to one for a single node (``qconf -spl``).

    Returns
    -------
    dask_jobqueue.SGECluster

    Notes
    -----
    What `memory` and `gpus` ask the queue for are ``mem_free`` for each core and ``gpu``; a site that calls them
    otherwise is served by ``resource_spec=``.

    Examples
    --------
    >>> from dask_nlsq import cluster
    >>> cluster.sge(8, cores=2, gpus=4, memory="16 GB")
    Traceback (most recent call last):
    dask_nlsq._errors.NlsqError: 4 processes need as many cores; a job has 2. Ask for fewer processes or more cores.
    """
    _processes(cores, processes, gpus)
    mib = math.ceil(parse_memory(memory) / cores / 2**20)
    requested: dict[str, Any] = {"queue": queue, "project": account, "resource_spec": f"mem_free={mib}M"}
    if gpus:
        requested["resource_spec"] += f",gpu={gpus}"
    if cores > 1:
        requested["job_extra_directives"] = [f"-pe {parallel_environment} {cores}"]
    return _start("SGECluster", workers, cores, processes, memory, walltime, gpus, requested, options)


def lsf(
    workers: int = 1,
    *,
    memory: str | int,
    cores: int = 1,
    processes: int | None = None,
    walltime: str | float = "01:00:00",
    queue: str | None = None,
    account: str | None = None,
    gpus: int = 0,
    **options: Any,
) -> Any:
    """Start workers as jobs of LSF, sized for a fit; arguments are those of `slurm`.

    Returns
    -------
    dask_jobqueue.LSFCluster

    Examples
    --------
    >>> from dask_nlsq import cluster
    >>> cluster.lsf(8, memory="much")
    Traceback (most recent call last):
    dask_nlsq._errors.NlsqError: memory is 'much'; bytes, or a text such as "16 GB", are needed.
    """
    directives = [f'-gpu "num={gpus}"'] * bool(gpus)
    requested = {"queue": queue, "project": account, "job_extra_directives": directives}
    options.setdefault("walltime", minutes(seconds(walltime)))
    return _start("LSFCluster", workers, cores, processes, memory, walltime, gpus, requested, options)


def _processes(cores: int, processes: int | None, gpus: int) -> int:
    """Return the worker processes of a job: one a GPU, else one a core, where nothing else is said."""
    for name, number, least in (("cores", cores, 1), ("processes", processes, 1), ("gpus", gpus, 0)):
        if number is not None and (not isinstance(number, int) or number < least):
            raise NlsqError(f"{name} is {number!r}; a whole number from {least} is needed.")
    processes = processes or gpus or cores
    if gpus and processes != gpus:
        raise NlsqError(f"{processes} processes cannot share {gpus} GPUs; one process for each is needed.")
    if processes > cores:
        raise NlsqError(
            f"{processes} processes need as many cores; a job has {cores}. Ask for fewer processes or more cores."
        )
    return processes


def lifetime(walltime: int) -> tuple[int, int]:
    """Return when workers leave, and by how much that varies, so that all are gone before the wall time."""
    return walltime - min(300, walltime // 12 + 1), min(240, walltime // 15)


def _start(
    name: str,
    workers: int,
    cores: int,
    processes: int | None,
    memory: str | int,
    walltime: str | float,
    gpus: int,
    requested: dict[str, Any],
    options: dict[str, Any],
) -> Any:
    """Start a cluster of ``dask_jobqueue``; what `options` say comes first, and lists are added to ours."""
    processes = _processes(cores, processes, gpus)
    lives, varies = lifetime(seconds(walltime))
    arguments = ["--lifetime", f"{lives}s", "--lifetime-stagger", f"{varies}s"]
    prologue = [f"export PJRT_NPROC={cores // processes}", *_compilation_cache()]
    if gpus:
        arguments += ["--resources", "GPU=1"]
        preload = ["--preload-nanny", "dask_nlsq.cluster.gpu_preload"]
        arguments += preload * (gpus > 1)  # the queue shows one job its one GPU
        # JAX takes three quarters of the memory of a GPU as it starts, unless it is told not to.
        prologue.append("export XLA_PYTHON_CLIENT_PREALLOCATE=false")
    chosen = {
        "cores": cores,
        "processes": processes,
        "memory": parse_memory(memory),
        "walltime": clock(seconds(walltime)),
        # A worker whose driver has gone gives its job up after a minute.
        "death_timeout": 60,
        **{key: value for key, value in requested.items() if value},
    }
    try:
        import dask_jobqueue
    except ImportError as error:
        raise ImportError('Jobs of a queue need dask-jobqueue: pip install "dask-nlsq[jobqueue]".') from error
    make = getattr(dask_jobqueue, name)
    config = f"jobqueue.{make.job_cls.config_name}"
    if dask.config.get(f"{config}.local-directory", None) is None:
        chosen["local_directory"] = "${TMPDIR:-/tmp}"  # the shell of the job looks it up, on its own node
    for key, ours in {
        "worker_extra_args": arguments,
        "job_script_prologue": prologue,
        "job_extra_directives": chosen.pop("job_extra_directives", []),
    }.items():
        # What is given as an argument replaces what Dask's configuration says, so that its lists are added here.
        theirs = options.pop(key, None)
        if theirs is None:
            theirs = dask.config.get(f"{config}.{key.replace('_', '-')}", None)
        chosen[key] = [*ours, *(theirs or [])]
    network = dask.config.get(f"{config}.scheduler-options", None) or {}
    options["scheduler_options"] = {"dashboard_address": ":0", **network, **(options.get("scheduler_options") or {})}
    cluster = make(**(chosen | options))
    if workers:
        cluster.scale(workers)
    _renew(cluster)
    return cluster


def _compilation_cache() -> list[str]:
    """Return the line that tells workers where compiled models are kept: by default in the user's cache."""
    folder = dask.config.get("nlsq.compilation-cache", None)
    if folder is False:
        return []
    where = '"${XDG_CACHE_HOME:-$HOME/.cache}/dask-nlsq"' if folder is None else shlex.quote(os.fspath(folder))
    return [f"export DASK_NLSQ__COMPILATION_CACHE={where}"]


def _renew(cluster: Any) -> None:
    """Submit jobs again that have ended, for as long as the cluster runs; Dask by itself leaves them ended.

    One whose workers were gone before they were seen here is left as well: a mistake must not flood the queue.
    """
    arrived: set[Any] = set()
    missed: set[Any] = set()

    def resubmit() -> None:
        if cluster.status.name != "running":
            watch.stop()
            return
        # A job of several processes names them after itself, with the suffixes of its group.
        names = {str(worker.name) for worker in cluster.scheduler.workers.values()}
        here = {
            job
            for job, spec in cluster.worker_spec.items()
            if names & {f"{job}{each}" for each in spec.get("group", [""])}
        }
        arrived.intersection_update(cluster.worker_spec)  # the user may have asked for fewer
        ended = (missed & arrived) - here  # twice in a row: a worker that its nanny restarts is away for less
        missed.clear()
        missed.update(arrived - here - ended)
        arrived.difference_update(ended)
        arrived.update(here)
        for job in ended & set(cluster.workers):
            # Closing is a coroutine, for the loop of the cluster.
            cluster.loop.add_callback(cluster.workers.pop(job).close)
        if ended:
            cluster.scale(jobs=len(cluster.worker_spec))

    watch = PeriodicCallback(resubmit, 1000 * RENEWAL)
    cluster.loop.add_callback(watch.start)
