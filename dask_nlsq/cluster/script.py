"""Script: a batch job around a fit, which the queue warns before its time is over, and which then queues again.

What differs between queues is a table: the lines that they read, and how a job comes back.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from dask.utils import parse_bytes

from dask_nlsq._errors import NlsqError
from dask_nlsq._system import known, seconds
from dask_nlsq.cluster import shell

WARN = 120
"""Seconds between the warning and the end, as a rule: a commit takes less than one, a task may take minutes."""


@dataclasses.dataclass(frozen=True)
class Queue:
    """How a queue is told what a job needs; each text is formatted with what the user has said."""

    prefix: str
    directives: tuple[str, ...]
    queue: str
    account: str
    gpus: str
    again: str
    """Lines that send the job back; they may set ``status``."""
    begin: str = ""
    clock: str = ""
    """Lines that give the warning where the queue itself gives none."""


QUEUES = {
    "slurm": Queue(
        prefix="#SBATCH",
        directives=(
            "--job-name={name}",
            "--time={time}",
            "--nodes=1",
            "--ntasks=1",
            "--cpus-per-task={cores}",
            "--mem={mib}M",
            # B: signals the shell of the script; without it the steps of the job alone are signalled, of which there
            # are none.
            "--signal=B:USR1@{warn}",
            "--requeue",
            # A job that is requeued would otherwise begin its output anew.
            "--open-mode=append",
            "--output={output}",
        ),
        queue="--partition={queue}",
        account="--account={account}",
        gpus="--gres=gpu:{gpus}",
        again='scontrol requeue "$SLURM_JOB_ID"',
    ),
    "pbs": Queue(
        prefix="#PBS",
        directives=(
            "-N {name}",
            "-l walltime={time}",
            "-l select=1:ncpus={cores}{select}:mem={mib}mb",
            "-r y",
            "-j oe",
            "-o {output}",
        ),
        queue="-q {queue}",
        account="-A {account}",
        gpus="",
        # qrerun is for operators; anybody may submit again the copy of this file that the job is run from.
        again='qsub "$0"',
        begin='cd "$PBS_O_WORKDIR"\n',
        clock='{{ while kill -0 "$child" && [ "$SECONDS" -lt {left} ]; do sleep 1; done; ring; }} 2>/dev/null &\n',
    ),
    "sge": Queue(
        prefix="#$",
        directives=(
            "-N {name}",
            # SGE does not read the first line of a script in its default mode.
            "-S /bin/bash",
            # SGE and PBS start a job in the home directory.
            "-cwd",
            "-l h_rt={time}",
            "-l s_rt={soft}",
            # Resources are asked for by slot.
            "-l mem_free={share}M",
            "-pe smp {cores}",
            "-r y",
            "-j y",
            "-o {output}",
        ),
        queue="-q {queue}",
        account="-P {account}",
        gpus="-l gpu={gpus}",
        # A job that runs a second time is not warned but killed by SGE 8.1.9; a new one is. Where this host may not
        # submit, the status by which SGE knows a job that is to run again is better than nothing.
        again='qsub "$0" || status=99',
    ),
    "lsf": Queue(
        prefix="#BSUB",
        directives=(
            "-J {name}",
            "-W {minutes}",
            "-n {cores}",
            # The cores of a job may otherwise lie on several hosts.
            '-R "span[hosts=1]"',
            "-M {mib}MB",
            # LSF counts in minutes.
            "-wa USR1 -wt {before}",
            "-r",
            '-Q "75"',
            "-o {output}",
        ),
        queue="-q {queue}",
        account="-P {account}",
        gpus='-gpu "num={gpus}"',
        again=":  # LSF does it, for -Q names the status",
    ),
}

OUTPUT = {"slurm": "{name}-%j.out", "pbs": "{name}.out", "sge": "{name}.out", "lsf": "{name}-%J.out"}

BODY = """\
# What runs: one command, which leaves with status 75 when it was interrupted and can go on.
{begin}setup() {{
{setup}
}}
run() {{
    exec {command}
}}

# How the job comes back after that.
again() {{
    {again}
}}

# Nothing below here needs to be changed. A warning (USR1) makes a fit commit and leave. It is passed on every second,
# for a command that still loads, or has its fit behind it, ignores it. The end of the job (TERM) is passed on once; a
# job that was ended by hand does not come back.
ended=0
signals=0
ring() {{ while kill -USR1 "$child"; do sleep 1; done 2>/dev/null; }}
trap 'signals=$((signals + 1)); ring &' USR1
(trap '' USR1; setup; run) &
child=$!
trap 'signals=$((signals + 1)); ended=1; kill -TERM "$child"' TERM INT
[ "$signals" -eq 0 ] || ring & # it came before there was a child
{clock}status=127
while
    seen=$signals
    wait "$child"
    found=$?
    [ "$found" -eq 127 ] || status=$found
    [ "$signals" -ne "$seen" ] # a signal ends wait, and not the command
do :; done
if [ "$ended" -ne 0 ]; then
    status=143
elif [ "$status" -eq 75 ]; then
    setup
    again
fi
exit "$status"
"""


def job_script(
    command: str | Sequence[str],
    scheduler: str | None = None,
    *,
    walltime: str | float,
    cores: int,
    memory: str | int,
    name: str = "nlsq",
    queue: str | None = None,
    account: str | None = None,
    gpus: int = 0,
    warn: int = WARN,
    output: str | None = None,
    setup: str | Sequence[str] = (),
) -> str:
    """Return the text of a batch job that is warned before its wall time, and queues again until its fit has ended.

    `warn` seconds before the end a signal makes the fit commit and leave with status 75; the job then returns to its
    queue, and the same command goes on from the checkpoint.

    Parameters
    ----------
    command : str or sequence of str
        One command, as typed in a shell or word by word, such as ``dask-nlsq fit ... --checkpoint run``. Variables
        and redirections may belong to it, pipes and lists of several not. ``dask-nlsq`` gets its full path where this
        environment is not active and no line of `setup` brings one.
    scheduler : {"slurm", "pbs", "sge", "lsf"}, optional
        By default that of this machine.
    walltime : str or float
        ``"HH:MM:SS"``, ``"D-HH:MM:SS"``, or seconds.
    cores, gpus : int
        On one node.
    memory : str or int
        Such as ``"16 GB"``.
    name, queue, account : str
        Of the job; the queue or partition; what is charged.
    warn : int
        Seconds between the warning and the end; a commit takes less than one, but waits up to 30 for tasks under way.
    output : str, optional
        File that takes what the job prints; by default called as the job.
    setup : str or sequence of str
        Lines before the command, such as ``module load python``.

    Returns
    -------
    str

    Raises
    ------
    NlsqError
        Something cannot be written in such a script; the message says what.

    Examples
    --------
    >>> from dask_nlsq import cluster
    >>> command = "dask-nlsq fit runs.parquet -m decay:model --checkpoint run"
    >>> text = cluster.job_script(command, "slurm", walltime="12:00:00", cores=8, memory="16 GB")
    >>> print(text[: text.index("--nodes")])
    #!/usr/bin/env bash
    #SBATCH --job-name=nlsq
    #SBATCH --time=12:00:00
    #SBATCH
    """
    scheduler = known(scheduler)
    lasts = seconds(walltime)
    for what, number, least in (("cores", cores, 1), ("gpus", gpus, 0), ("warn", warn, 1)):
        if not isinstance(number, int) or number < least:
            raise NlsqError(f"{what} is {number!r}; a whole number from {least} is needed.")
    if warn >= lasts:
        raise NlsqError(f"warn is {warn} seconds, and the walltime is {lasts}; the warning must come before the end.")
    words = {"name": name, "queue": queue, "account": account, "output": output or OUTPUT[scheduler].format(name=name)}
    for what, word in words.items():
        shell.word(what, word)
    lines_before = setup.splitlines() if isinstance(setup, str) else setup
    # In whole MiB, which every queue takes.
    mib = math.ceil(parse_memory(memory) / 2**20)
    values = words | {
        "cores": cores,
        "gpus": gpus,
        "mib": mib,
        "share": math.ceil(mib / cores),
        "select": f":ngpus={gpus}" * bool(gpus),
        "time": clock(lasts),
        "soft": clock(lasts - warn),
        "left": lasts - warn,
        "minutes": minutes(lasts),
        "warn": warn,
        "before": math.ceil(warn / 60),
    }
    table = QUEUES[scheduler]
    lines = [*table.directives]
    lines += [form for form, value in ((table.queue, queue), (table.account, account), (table.gpus, gpus)) if value]
    if scheduler == "sge" and cores == 1:
        # A site need not have the parallel environment, and one core needs none.
        lines.remove("-pe smp {cores}")
    header = [f"{table.prefix} {line.format(**values)}" for line in lines if line]
    body = BODY.format(
        begin=table.begin,
        setup="\n".join(f"    {shell.line('A line of setup', line)}" for line in lines_before or [":"]),
        command=shell.command(shell.installed(command, lines_before)),
        again=table.again,
        clock=table.clock.format(**values),
    )
    return "\n".join(["#!/usr/bin/env bash", *header, "", body])


def clock(duration: int) -> str:
    """Return seconds as ``HH:MM:SS``, which every queue but LSF reads."""
    return f"{duration // 3600:02d}:{duration % 3600 // 60:02d}:{duration % 60:02d}"


def minutes(duration: int) -> str:
    """Return seconds as ``HH:MM`` for LSF, rounded up."""
    whole = math.ceil(duration / 60)
    return f"{whole // 60:02d}:{whole % 60:02d}"


def parse_memory(memory: str | int) -> int:
    """Return the bytes that a user has written.

    Raises
    ------
    NlsqError
        They cannot be read.
    """
    try:
        nbytes = int(parse_bytes(memory))
    except (ValueError, TypeError):
        nbytes = 0
    if nbytes <= 0:
        raise NlsqError(f'memory is {memory!r}; bytes, or a text such as "16 GB", are needed.')
    return nbytes
