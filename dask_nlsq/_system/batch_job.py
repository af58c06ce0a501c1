"""Batch job: the job that this process runs in, as its queue describes it.

A queue says most in environment variables. The time that is left, and the memory, some say only to a command that asks;
it gets a few seconds, and what it does not say is not known. Nothing here raises because of what a queue says.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from dask_nlsq._errors import NlsqError, one_of

T = TypeVar("T")
Environ = Mapping[str, str]
Ask = Callable[[Sequence[str]], str]

SCHEDULERS = ("slurm", "pbs", "sge", "lsf")

ASKING = 5.0
"""Seconds that a queue's command may take."""


@dataclasses.dataclass(frozen=True)
class Job:
    """The batch job that this process runs in.

    Attributes
    ----------
    scheduler : {"slurm", "pbs", "sge", "lsf", "none"}
        Whose job it is.
    id : str or None
        Its name there; that of a task, in an array of jobs.
    nodes, cores, gpus : int
        On all nodes together; 0 where it is not known.
    memory : int or None
        Bytes on all nodes together, as far as the queue says.
    time_left : float or None
        Seconds until the queue ends it.

    Examples
    --------
    >>> from dask_nlsq.cluster import Job
    >>> Job("slurm", "4711", nodes=2, cores=16, time_left=3600.0)
    Job(scheduler='slurm', id='4711', nodes=2, cores=16, gpus=0, memory=None, time_left=3600.0)
    """

    scheduler: str = "none"
    id: str | None = None
    nodes: int = 0
    cores: int = 0
    gpus: int = 0
    memory: int | None = None
    time_left: float | None = None


def detect(environ: Environ | None = None, run: Ask | None = None) -> Job:
    """Return the batch job that this process runs in, as far as its queue describes it.

    Parameters
    ----------
    environ : mapping, optional
        Environment variables; by default those of this process.
    run : callable, optional
        Takes a command and its arguments and returns what it prints; by default it is run, for at most five seconds.
        It is called only where the environment leaves time or memory open.

    Returns
    -------
    Job
        ``scheduler`` is "none" outside of a job.

    Examples
    --------
    >>> from dask_nlsq import cluster
    >>> environ = {"SLURM_JOB_ID": "4711", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_CPUS_PER_NODE": "8(x2)"}
    >>> job = cluster.detect(environ, run=lambda command: "TimeLimit=01:00:00 RunTime=00:10:00")
    >>> job.scheduler, job.cores, job.time_left
    ('slurm', 16, 3000.0)
    >>> cluster.detect({}).scheduler
    'none'
    """
    environ = os.environ if environ is None else environ
    identity = identify(environ)
    if identity is None:
        return Job()

    def ask(*command: str) -> str:
        with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
            return (run or _run)(command)
        return ""

    scheduler, name = identity
    return _READERS[scheduler](environ, name, ask)


def time_left() -> float | None:
    """Return the seconds that the job of this process has left; its queue is asked once."""
    end = _end(identify(os.environ))
    return None if end is None else max(0.0, end - time.monotonic())


@functools.lru_cache(maxsize=1)
def _end(job: tuple[str, str] | None) -> float | None:
    """Return when a job ends, by the monotonic clock."""
    left = None if job is None else detect().time_left
    return None if left is None else time.monotonic() + left


def identify(environ: Environ) -> tuple[str, str] | None:
    """Return the queue and the name of the job, from the environment alone; a requeued job keeps its name."""
    for scheduler, variable in _NAMES.items():
        name = environ.get(variable)
        if not name:
            continue
        if scheduler == "sge" and not (environ.get("SGE_ROOT") or environ.get("SGE_TASK_ID")):
            continue  # anything may set JOB_ID
        # Tasks of an array share the name of the job; Slurm and PBS give each one of its own.
        task = {"sge": environ.get("SGE_TASK_ID"), "lsf": environ.get("LSB_JOBINDEX")}.get(scheduler)
        return scheduler, f"{name}.{task}" if _whole(task) else name  # "undefined" or 0 where there is no array
    return None


def run_count(environ: Environ) -> str | None:
    """Return how often the queue has started this job again, as far as it says so."""
    identity = identify(environ)
    counts = {"slurm": environ.get("SLURM_RESTART_COUNT") or "0", "sge": environ.get("RESTARTED")}
    return None if identity is None else counts.get(identity[0])


def offered(environ: Environ | None = None) -> str | None:
    """Return the queue that this process runs in, or whose commands are installed here."""
    environ = os.environ if environ is None else environ
    identity = identify(environ)
    if identity is not None:
        return identity[0]
    qsub = "sge" if environ.get("SGE_ROOT") else "pbs"
    commands = {"slurm": "sbatch", "lsf": "bsub", qsub: "qsub"}  # Slurm may come with a qsub of its own
    return next((queue for queue, name in commands.items() if shutil.which(name, path=environ.get("PATH"))), None)


def seconds(walltime: str | float) -> int:
    """Return the seconds of a walltime that a user has written.

    Raises
    ------
    NlsqError
        It is none of ``HH:MM:SS``, ``D-HH:MM:SS`` and a number of seconds.
    """
    total = None
    if isinstance(walltime, str):
        form = re.fullmatch(r"\s*(?:(?:(\d+)-)?(\d+):([0-5]?\d):([0-5]?\d)|(\d+))\s*", walltime, re.ASCII)
        if form is not None:
            days, hours, minutes, rest, alone = (int(part or 0) for part in form.groups())
            total = alone or ((days * 24 + hours) * 60 + minutes) * 60 + rest
    elif math.isfinite(walltime):
        total = math.ceil(walltime)
    if total is None or total <= 0:
        raise NlsqError(
            f"walltime is {walltime!r}; hours, minutes and seconds such as '12:00:00', days before them such as "
            "'2-12:00:00', or a number of seconds above 0 is needed."
        )
    return total


def known(scheduler: str | None) -> str:
    """Return the queue that is meant, by default that of this machine.

    Raises
    ------
    NlsqError
        There is no such queue, or none is named and none is found.
    """
    scheduler = offered() if scheduler is None else scheduler
    if scheduler is None:
        raise NlsqError("No queue was found here: no job, and no sbatch, qsub or bsub. Say which one is meant.")
    one_of("scheduler", scheduler, *SCHEDULERS)
    return scheduler


_NAMES = {"slurm": "SLURM_JOB_ID", "pbs": "PBS_JOBID", "lsf": "LSB_JOBID", "sge": "JOB_ID"}
"""Variables in which queues name the job that runs."""


def _run(command: Sequence[str]) -> str:
    # A command without a terminal cannot ask for a password, and wait for it.
    done = subprocess.run(command, capture_output=True, timeout=ASKING, stdin=subprocess.DEVNULL)
    return done.stdout.decode("utf-8", "replace")


# --- one reader for each queue ----------------------------------------------------------------------------------------


def _slurm(environ: Environ, name: str, ask: Callable[..., str]) -> Job:
    nodes = _whole(environ.get("SLURM_JOB_NUM_NODES")) or _whole(environ.get("SLURM_NNODES")) or 0
    cores = _repeated(environ.get("SLURM_JOB_CPUS_PER_NODE"))
    # SLURM_CPUS_ON_NODE counts the cores of this node; SLURM_JOB_CPUS_PER_NODE those of each, as in 8(x2).
    cores = cores or (_whole(environ.get("SLURM_CPUS_ON_NODE")) or 0) * max(nodes, 1)
    here = environ.get("SLURM_JOB_GPUS") or environ.get("SLURM_STEP_GPUS")
    on_node = _whole(environ.get("SLURM_GPUS_ON_NODE")) or len([gpu for gpu in (here or "").split(",") if gpu])
    gpus = _last(environ.get("SLURM_GPUS")) or on_node * max(nodes, 1)
    memory = _times(environ.get("SLURM_MEM_PER_NODE"), nodes) or _times(environ.get("SLURM_MEM_PER_CPU"), cores)
    memory = memory or _times(environ.get("SLURM_MEM_PER_GPU"), gpus)
    # The time of the end is in the environment from Slurm 23 on; before, only the commands know it.
    ends = _number(environ.get("SLURM_JOB_END_TIME"))
    left = None if ends is None else max(0.0, ends - time.time())
    if left is None or memory is None:
        fields = _fields(ask("scontrol", "show", "job", name), name)
        limit, gone = _clock(fields.get("TimeLimit")), _clock(fields.get("RunTime"))
        if left is None and limit is not None and gone is not None:
            left = max(0.0, limit - gone)
        elif left is None:
            left = _clock(ask("squeue", "--noheader", "--format=%L", f"--jobs={name}").strip())
        total = re.search(r"(?:^|,)mem=([^,]+)", fields.get("TRES", ""))
        memory = memory or _bytes(total and total[1], "m")
        # scontrol prints one of these two, by node or by CPU, as the memory was asked for.
        memory = memory or _product(_bytes(fields.get("MinMemoryNode"), "m"), max(nodes, 1))
        memory = memory or _product(_bytes(fields.get("MinMemoryCPU"), "m"), cores)
    return Job("slurm", name, nodes, cores, gpus, memory, left)


def _fields(text: str, name: str) -> dict[str, str]:
    """Return ``Name=value`` pairs of a job; an array's own name brings all of its tasks."""
    records = re.split(r"\n\s*\n", text)
    records_of_job = [record for record in records if re.search(rf"\bJobId={re.escape(name)}\b", record)]
    pairs = re.findall(r"(?:^|\s)([A-Za-z:/]+)=(\S*)", (records_of_job or records)[0])
    return dict(pairs)


def _pbs(environ: Environ, name: str, ask: Callable[..., str]) -> Job:
    lines = _lines(environ.get("PBS_NODEFILE"))
    # PBS_NUM_NODES, PBS_NUM_PPN and PBS_NP are of Torque; PBS Professional sets NCPUS, and its node file has a line for
    # each process.
    nodes = _whole(environ.get("PBS_NUM_NODES")) or len(set(lines))
    on_node = _whole(environ.get("PBS_NUM_PPN")) or _whole(environ.get("NCPUS")) or 0
    cores = _whole(environ.get("PBS_NP")) or max(on_node * max(nodes, 1), len(lines))
    gpus = len(_lines(environ.get("PBS_GPUFILE")))
    # qstat wraps long values, and begins each further line of one with a tab.
    text = re.sub(r"\n\t", "", ask("qstat", "-f", name))
    attributes = dict(re.findall(r"^\s+([\w.]+) = (.*)$", text, re.MULTILINE))
    limit = _clock(attributes.get("Resource_List.walltime"))
    gone = _clock(attributes.get("resources_used.walltime"))
    since = _since(attributes.get("stime"))  # the walltime that was used is brought up to date now and then only
    if limit is not None and since is not None and 0 <= since <= limit:
        gone = max(gone or 0.0, since)
    # The walltime in the environment, again of Torque, does where qstat is not answered on the nodes.
    if limit is None:
        limit, gone = _number(environ.get("PBS_WALLTIME")), _age(environ.get("PBS_NODEFILE"))
    return Job(
        "pbs",
        name,
        nodes or _whole(attributes.get("Resource_List.nodect")) or 0,
        max(cores, _whole(attributes.get("Resource_List.ncpus")) or 0),
        gpus or _whole(attributes.get("Resource_List.ngpus")) or 0,
        _bytes(attributes.get("Resource_List.mem"), "b"),
        None if limit is None or gone is None else max(0.0, limit - gone),
    )


def _sge(environ: Environ, name: str, ask: Callable[..., str]) -> Job:
    cores = _whole(environ.get("NSLOTS")) or 0
    text = ask("qstat", "-j", name.partition(".")[0])
    # The forks of Grid Engine write the name with a space or with an underscore.
    hard_limits = re.search(r"^hard[_ ]resource_list:\s+(.*)$", text, re.MULTILINE)
    asked = dict(re.findall(r"([\w.]+)=([^,\s]+)", hard_limits[1] if hard_limits else ""))
    limit = _clock(asked.get("h_rt"))
    walls = re.search(r"^usage.*\bwallclock=([\d:]+)", text, re.MULTILINE)
    gone = _clock(walls[1]) if walls and "." not in name else None  # the line of a task need not be the first
    if gone is None:
        gone = _age(environ.get("SGE_JOB_SPOOL_DIR") and os.path.join(environ["SGE_JOB_SPOOL_DIR"], "environment"))
    return Job(
        "sge",
        name,
        _whole(environ.get("NHOSTS")) or 0,
        cores,
        len((environ.get("SGE_HGR_gpu") or "").split()),
        # SGE asks for resources by slot.
        _product(_bytes(asked.get("h_vmem"), "b"), max(cores, 1)),
        None if limit is None or gone is None else max(0.0, limit - gone),
    )


def _lsf(environ: Environ, name: str, ask: Callable[..., str]) -> Job:
    words = (environ.get("LSB_MCPU_HOSTS") or "").split()
    hosts, counts = words[::2], [_whole(word) or 0 for word in words[1::2]]
    visible = [gpu for gpu in (environ.get("CUDA_VISIBLE_DEVICES") or "").split(",") if gpu.strip()]
    number, _, task = name.partition(".")
    who = f"{number}[{task}]" if task else number
    text = ask("bjobs", "-noheader", "-o", "time_left memlimit delimiter='|'", who)
    left, _, memory = text.strip().partition("|")
    form = re.match(r"(\d+):(\d+)", left.strip(), re.ASCII)  # hours and minutes, and a letter that says whose limit
    return Job(
        "lsf",
        name,
        len(hosts),
        sum(counts) or _whole(environ.get("LSB_DJOB_NUMPROC")) or 0,
        len(visible) * max(len(hosts), 1),
        # A bare number is in KB, the unit of LSF's limits.
        _bytes(memory.replace(" ", ""), "k"),
        None if form is None else _clock(f"{form[1]}:{form[2]}:00"),
    )


_READERS: dict[str, Callable[[Environ, str, Callable[..., str]], Job]]
_READERS = {"slurm": _slurm, "pbs": _pbs, "sge": _sge, "lsf": _lsf}


# --- what queues write: None where it cannot be read ------------------------------------------------------------------


def _whole(text: str | None) -> int | None:
    form = re.fullmatch(r"\s*(\d{1,12})\s*", text or "", re.ASCII)
    return int(form[1]) if form else None


def _number(text: str | None) -> float | None:
    form = re.fullmatch(r"\s*(\d{1,12}(?:\.\d*)?)\s*", text or "", re.ASCII)
    return float(form[1]) if form else None


def _last(text: str | None) -> int | None:
    """Return the sum of counts such as ``4``, ``a100:4`` or ``a100:2,v100:1``."""
    counts = [_whole(part.rpartition(":")[2]) or 0 for part in (text or "").split(",")]
    return sum(counts) or None


def _repeated(text: str | None) -> int:
    """Return the sum of counts such as ``4(x2),2``; 0 where one cannot be read."""
    total = 0
    for part in (text or "").split(","):
        form = re.fullmatch(r"\s*(\d{1,9})(?:\(x(\d{1,9})\))?\s*", part, re.ASCII)
        if form is None:
            return 0
        total += int(form[1]) * int(form[2] or 1)
    return total


def _clock(text: str | None) -> float | None:
    """Return the seconds of ``SS``, ``MM:SS``, ``HH:MM:SS``, or any of them after ``D-``."""
    form = re.fullmatch(r"(?:(\d{1,6})-)?(\d{1,9}(?::\d{1,9}){0,2})", (text or "").strip(), re.ASCII)
    if form is None:
        return None
    parts = [int(part) for part in form[2].split(":")]
    if form[1]:
        parts += [0] * (3 - len(parts))  # after days, hours come first
    total = 0
    for part in parts:
        total = 60 * total + part
    return float(total + 86400 * int(form[1] or 0))


def _bytes(text: str | None, unit: str) -> int | None:
    """Return the bytes of ``4gb``, ``500M`` or ``2.5G``, all powers of 1024; `unit` is that of a bare number."""
    form = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)([bkmgtpe]?)(?:i?b)?", (text or "").strip().lower(), re.ASCII)
    if form is None:
        return None
    return int(float(form[1]) * 1024 ** "bkmgtpe".index(form[2] or unit)) or None


def _times(megabytes: str | None, count: int) -> int | None:
    return _product(_bytes(megabytes, "m"), max(count, 1))


def _product(quantity: int | None, count: int) -> int | None:
    return None if quantity is None else quantity * count or None


def _lines(path: str | None) -> list[str]:
    if not path:
        return []
    with contextlib.suppress(OSError, ValueError):
        return [line for line in Path(path).read_text("utf-8", "replace").split("\n") if line.strip()]
    return []


def _age(path: str | None) -> float | None:
    """Return the seconds since a file was written: queues write some as a job starts."""
    with contextlib.suppress(OSError, ValueError):
        return max(0.0, time.time() - os.path.getmtime(path)) if path else None
    return None


def _since(text: str | None) -> float | None:
    """Return the seconds since a date of the form that C's asctime gives."""
    with contextlib.suppress(ValueError, OverflowError):
        return time.time() - time.mktime(time.strptime(text.strip())) if text else None
    return None
