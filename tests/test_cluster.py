"""Batch jobs: detection of the current job, the scripts written for each queue, and their behaviour."""

import logging
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import dask
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from dask_nlsq import NlsqError, cluster
from dask_nlsq._checkpoint.lock import job as lock_job
from dask_nlsq._system import batch_job
from dask_nlsq.cli import main
from dask_nlsq.cluster import Job, detect, gpu_preload, job_script, workers

TESTS = Path(__file__).parent
EXAMPLES = TESTS.parent / "examples"
QUEUES = ("slurm", "pbs", "sge", "lsf")

# --- what a queue says ------------------------------------------------------------------------------------------------

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_JOBID": "4711",
    "SLURM_JOB_NAME": "fit",
    "SLURM_JOB_NUM_NODES": "3",
    "SLURM_NNODES": "3",
    "SLURM_JOB_NODELIST": "node[01-03]",
    "SLURM_JOB_CPUS_PER_NODE": "4(x2),2",
    "SLURM_CPUS_ON_NODE": "4",
    "SLURM_NTASKS": "1",
}
SCONTROL = """\
JobId=4711 JobName=fit
   UserId=ann(1000) GroupId=ann(1000) MCS_label=N/A
   JobState=RUNNING Reason=None Dependency=(null)
   Requeue=1 Restarts=0 BatchFlag=1 Reboot=0 ExitCode=0:0
   RunTime=00:10:00 TimeLimit=1-02:00:00 TimeMin=N/A
   StartTime=2026-11-25T04:10:11 EndTime=2026-11-26T06:10:11 Deadline=N/A
   NumNodes=3 NumCPUs=10 NumTasks=1 CPUs/Task=1 ReqB:S:C:T=0:0:*:*
   TRES=cpu=10,mem=30G,node=3,billing=10,gres/gpu=6
   MinCPUsNode=1 MinMemoryNode=10G MinTmpDiskNode=0
   Command=/home/ann/fit.sh --a=b
"""
ARRAY = "JobId=4712 ArrayJobId=4711 ArrayTaskId=1\n   RunTime=00:00:01 TimeLimit=00:01:00\n\n" + SCONTROL
PBS = {"PBS_JOBID": "123.head", "PBS_JOBNAME": "fit", "PBS_ENVIRONMENT": "PBS_BATCH", "NCPUS": "4", "PBS_QUEUE": "work"}
QSTAT = """\
Job Id: 123.head
    Job_Name = fit
    resources_used.cput = 00:19:00
    resources_used.mem = 301kb
    resources_used.walltime = 00:10:00
    Resource_List.mem = 4gb
    Resource_List.ncpus = 8
    Resource_List.ngpus = 2
    Resource_List.nodect = 2
    Resource_List.walltime = 01:00:00
    Variable_List = PBS_O_HOME=/home/ann,PBS_O_LANG=C,
\tPBS_O_PATH=/usr/bin:/bin
"""
SGE = {"JOB_ID": "99", "SGE_ROOT": "/opt/sge", "SGE_TASK_ID": "undefined", "NSLOTS": "4", "NHOSTS": "1"}
QSTAT_J = """\
==============================================================
job_number:                 99
hard resource_list:         h_rt=3600,h_vmem=2G
usage         1:            wallclock=00:10:00, cpu=00:30:00, mem=12.4 GBs, io=0.1 GB, vmem=1.2G, maxvmem=1.3G
"""
LSF = {"LSB_JOBID": "77", "LSB_JOBINDEX": "0", "LSB_MCPU_HOSTS": "h1 4 h2 2", "LSB_HOSTS": "h1 h1 h1 h1 h2 h2"}
GB = 2**30

DETECTED = {
    "nothing": ({"PATH": "/bin"}, {}, Job()),
    "JOB_ID of something else": ({"JOB_ID": "5"}, {}, Job()),
    "slurm": (SLURM, {"scontrol": SCONTROL}, Job("slurm", "4711", 3, 10, 0, 30 * GB, 93000.0)),
    "slurm, a task of an array": (SLURM, {"scontrol": ARRAY}, Job("slurm", "4711", 3, 10, 0, 30 * GB, 93000.0)),
    "slurm, squeue alone": (SLURM, {"squeue": "1:02:03\n"}, Job("slurm", "4711", 3, 10, 0, None, 3723.0)),
    "slurm, no end": (
        SLURM,
        {"scontrol": "RunTime=00:10:00 TimeLimit=UNLIMITED", "squeue": "UNLIMITED\n"},
        Job("slurm", "4711", 3, 10),
    ),
    "slurm, by node": (SLURM | {"SLURM_MEM_PER_NODE": "1024"}, {}, Job("slurm", "4711", 3, 10, 0, 3 * GB)),
    "slurm, by core": (SLURM | {"SLURM_MEM_PER_CPU": "1024"}, {}, Job("slurm", "4711", 3, 10, 0, 10 * GB)),
    "slurm, all of a node": (SLURM | {"SLURM_MEM_PER_NODE": "0"}, {}, Job("slurm", "4711", 3, 10)),
    "slurm, GPUs": (SLURM | {"SLURM_GPUS": "a100:6"}, {}, Job("slurm", "4711", 3, 10, 6)),
    "slurm, GPUs of a node": (SLURM | {"SLURM_GPUS_ON_NODE": "2"}, {}, Job("slurm", "4711", 3, 10, 6)),
    "slurm, GPUs by number": (SLURM | {"SLURM_JOB_GPUS": "0,1"}, {}, Job("slurm", "4711", 3, 10, 6)),
    "pbs": (PBS, {"qstat": QSTAT}, Job("pbs", "123.head", 2, 8, 2, 4 * GB, 3000.0)),
    "pbs, silent": (PBS, {}, Job("pbs", "123.head", 0, 4)),
    "torque": (
        {"PBS_JOBID": "1[7].head", "PBS_NUM_NODES": "2", "PBS_NUM_PPN": "8", "PBS_NP": "16"},
        {},
        Job("pbs", "1[7].head", 2, 16),
    ),
    "sge": (SGE, {"qstat": QSTAT_J}, Job("sge", "99", 1, 4, 0, 8 * GB, 3000.0)),
    "sge, GPUs": (SGE | {"SGE_HGR_gpu": "gpu0 gpu1"}, {}, Job("sge", "99", 1, 4, 2)),
    "sge, a task of an array": (SGE | {"SGE_TASK_ID": "3"}, {}, Job("sge", "99.3", 1, 4)),
    "lsf": (LSF, {"bjobs": "0:50 L|4 G\n"}, Job("lsf", "77", 2, 6, 0, 4 * GB, 3000.0)),
    "lsf, no limits": (LSF, {"bjobs": "-|-\n"}, Job("lsf", "77", 2, 6)),
    "lsf, a task of an array": (LSF | {"LSB_JOBINDEX": "2"}, {}, Job("lsf", "77.2", 2, 6)),
    "malformed": (
        SLURM | {"SLURM_JOB_CPUS_PER_NODE": "4(x", "SLURM_CPUS_ON_NODE": "-1", "SLURM_JOB_END_TIME": "soon"},
        {"scontrol": "TimeLimit=1:2:3:4 RunTime=x TRES=mem=much", "squeue": "?"},
        Job("slurm", "4711", 3),
    ),
}


@pytest.mark.parametrize(("environ", "answers", "job"), DETECTED.values(), ids=DETECTED)
def test_a_job_is_what_its_queue_says(environ, answers, job):
    assert detect(environ, run=lambda command: answers.get(command[0], "")) == job


def test_files_of_pbs_are_counted(tmp_path):
    nodes, gpus = tmp_path / "nodes", tmp_path / "gpus"
    nodes.write_text("n1\n" * 8 + "n2\n" * 8)
    gpus.write_text("n1-gpu0\nn2-gpu0\n")
    os.utime(nodes, (time.time() - 600,) * 2)
    environ = PBS | {"PBS_NODEFILE": str(nodes), "PBS_GPUFILE": str(gpus), "PBS_WALLTIME": "3600"}
    job = detect(environ, run=lambda command: "")
    assert (job.nodes, job.cores, job.gpus) == (2, 16, 2) and job.time_left == pytest.approx(3000, abs=5)


def test_what_the_environment_says_is_not_asked_for():
    def run(command):
        raise AssertionError(command)

    environ = SLURM | {"SLURM_JOB_END_TIME": str(time.time() + 3600), "SLURM_MEM_PER_NODE": "1"}
    assert detect(environ, run=run).time_left == pytest.approx(3600, abs=5)


@pytest.mark.parametrize("error", [FileNotFoundError, subprocess.TimeoutExpired("squeue", 5), UnicodeDecodeError])
@pytest.mark.parametrize("environ", [SLURM, PBS, SGE, LSF], ids=QUEUES)
def test_a_command_that_fails_is_no_error(environ, error):
    def run(command):
        raise UnicodeDecodeError("utf-8", b"", 0, 1, "") if error is UnicodeDecodeError else error

    assert detect(environ, run=run).time_left is None


VARIABLES = sorted({*SLURM, *PBS, *SGE, *LSF, "SLURM_JOB_END_TIME", "SLURM_MEM_PER_CPU", "PBS_NODEFILE", "SLURM_GPUS"})
TEXT = st.text("0123456789:-,(x).kgG\n =T") | st.text(max_size=20)


@given(
    st.sampled_from(["SLURM_JOB_ID", "PBS_JOBID", "JOB_ID", "LSB_JOBID"]),
    st.dictionaries(st.sampled_from(VARIABLES), TEXT),
    TEXT,
)
def test_nothing_that_a_queue_says_is_an_error(name, environ, answer):
    said = [SCONTROL, QSTAT, QSTAT_J, answer]
    for text in (answer, *(re.sub(r"\d+", answer.replace("\\", ""), each) for each in said)):
        job = detect(environ | {"SGE_ROOT": "/", name: "7"}, run=lambda command, text=text: text)
        assert job.scheduler != "none" and job.cores >= 0 and (job.time_left or 0) >= 0 and (job.memory or 1) > 0


def test_the_queue_is_asked_once_for_the_time_left(monkeypatch):
    asked = []
    monkeypatch.setattr(batch_job, "detect", lambda: asked.append(1) or Job("pbs", "1", time_left=60.0))
    monkeypatch.setenv("PBS_JOBID", "once.only")
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    first, second = batch_job.time_left(), batch_job.time_left()
    assert asked == [1] and 59 < second <= first <= 60


@pytest.mark.parametrize(
    ("environ", "said"),
    [({"SLURM_JOB_ID": "1"}, "slurm:1"), (PBS, "pbs:123.head"), (SGE, "sge:99"), ({"JOB_ID": "99"}, None)],
)
def test_the_lock_of_a_checkpoint_names_the_same_job(monkeypatch, environ, said):
    monkeypatch.setattr(os, "environ", environ)
    assert lock_job() == said


@pytest.mark.parametrize(
    ("walltime", "seconds"),
    [("01:00:00", 3600), ("2-12:00:00", 216_000), ("100:00:01", 360_001), ("90", 90), (90, 90), (89.5, 90)],
)
def test_walltimes(walltime, seconds):
    assert batch_job.seconds(walltime) == seconds


@pytest.mark.parametrize("walltime", ["01:00", "1:60:00", "", "an hour", "-1:00:00", 0, -5, float("nan"), float("inf")])
def test_walltimes_that_could_be_misread_are_refused(walltime):
    with pytest.raises(NlsqError, match=r"HH:MM:SS|hours, minutes and seconds"):
        batch_job.seconds(walltime)


@pytest.mark.parametrize(
    ("commands", "environ", "queue"),
    [
        ((), {}, None),
        (("sbatch", "qsub"), {}, "slurm"),
        (("qsub",), {}, "pbs"),
        (("qsub",), {"SGE_ROOT": "/"}, "sge"),
        (("bsub",), {}, "lsf"),
        (("sbatch",), PBS, "pbs"),
    ],
)
def test_the_queue_of_this_machine(tmp_path, commands, environ, queue):
    for name in commands:
        stub(tmp_path, name, "")
    assert batch_job.offered({"PATH": str(tmp_path)} | environ) == queue


def test_a_script_is_for_the_queue_of_this_machine_or_says_that_there_is_none(tmp_path, monkeypatch):
    for name in (*batch_job._NAMES.values(), "SGE_ROOT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NlsqError, match="No queue was found here"):
        job_script("true", **WANTED)
    stub(tmp_path, "sbatch", "")
    assert job_script("true", **WANTED) == job_script("true", "slurm", **WANTED)


# --- clusters ---------------------------------------------------------------------------------------------------------

LIVES = "--lifetime 3300s --lifetime-stagger 240s"
MADE = {
    "slurm": (
        {},
        ["#SBATCH --cpus-per-task=4", "#SBATCH --mem=8G", "#SBATCH -t 01:00:00", "--nworkers 4", "--nthreads 1"],
    ),
    "slurm GPU": ({"gpus": 2}, ["#SBATCH --gres=gpu:2"]),
    "slurm words": ({"queue": "long", "account": "physics"}, ["#SBATCH -p long", "#SBATCH -A physics"]),
    "slurm threads": ({"processes": 1}, ["export PJRT_NPROC=4\n", "--nthreads 4"]),
    "pbs": ({}, ["#PBS -l select=1:ncpus=4:mem=8192MB", "#PBS -l walltime=01:00:00", "export PJRT_NPROC=1\n"]),
    "pbs GPU": ({"gpus": 2}, ["#PBS -l select=1:ncpus=4:ngpus=2:mem=8388608kb"]),
    "sge": ({}, ["#$ -pe smp 4", "#$ -l mem_free=2048M", "#$ -l h_rt=01:00:00"]),
    "sge GPU": ({"gpus": 2, "parallel_environment": "mpi"}, ["#$ -l mem_free=2048M,gpu=2", "#$ -pe mpi 4"]),
    "lsf": ({}, ["#BSUB -n 4", "#BSUB -W 01:00", '#BSUB -R "span[hosts=1]"']),
    "lsf GPU": ({"gpus": 2}, ['#BSUB -gpu "num=2"']),
}
ON_GPUS = [
    "--resources GPU=1",
    "--preload-nanny dask_nlsq.cluster.gpu_preload",
    "PREALLOCATE=false",
    "--nworkers 2",
    "PJRT_NPROC=2\n",
]


@pytest.mark.parametrize("name", MADE)
def test_jobs_of_a_cluster(name):
    options, expected = MADE[name]
    with getattr(cluster, name.split()[0])(0, cores=4, memory="8 GiB", **options) as made:
        text = made.job_script()
    for part in [*expected, LIVES, *(ON_GPUS if "gpus" in options else [])]:
        assert part in text, text
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


@pytest.mark.parametrize(
    ("said", "line"),
    [
        (None, '="${XDG_CACHE_HOME:-$HOME/.cache}/dask-nlsq"\n'),
        ("/all of ours", "='/all of ours'\n"),
        (False, None),
    ],
)
def test_the_compilation_cache_of_jobs_is_that_of_the_configuration(said, line):
    with dask.config.set({"nlsq.compilation-cache": said}), cluster.pbs(0, memory="1 GB") as made:
        text = made.job_script()
    name = "export DASK_NLSQ__COMPILATION_CACHE"
    assert name not in text if line is None else f"{name}{line}" in text


def test_what_the_user_says_comes_before_and_beside():
    options = {"death_timeout": 9, "local_directory": "/fast", "job_extra_directives": ["--exclusive"]}
    options |= {"job_script_prologue": ["module load x"], "worker_extra_args": ["--no-dashboard"]}
    options |= {"scheduler_options": {"host": "127.0.0.1"}}
    with cluster.slurm(0, memory="1 GB", gpus=1, **options) as made:
        text = made.job_script()
        assert made.scheduler_address.startswith("tcp://127.0.0.1")
    parts = [
        "--death-timeout 9",
        "--local-directory /fast",
        "--exclusive",
        "module load x",
        "--no-dashboard",
        "--gres=",
    ]
    for part in [*parts, "PJRT_NPROC=1", "--lifetime"]:
        assert part in text, text
    assert "gpu_preload" not in text  # one GPU needs no sharing out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"cores": 2, "processes": 3}, "3 processes need as many cores"),
        ({"cores": 8, "processes": 4, "gpus": 2}, "4 processes cannot share 2 GPUs"),
        ({"cores": 0}, "cores is 0"),
        ({"memory": "much"}, "memory is 'much'"),
        ({"walltime": "soon"}, "walltime is 'soon'"),
    ],
)
@pytest.mark.parametrize("queue", QUEUES)
def test_numbers_that_do_not_go_together_are_refused(queue, options, said):
    with pytest.raises(NlsqError, match=said):
        getattr(cluster, queue)(0, **({"memory": "1 GB"} | options))


def test_without_dask_jobqueue_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "dask_jobqueue", None)
    with pytest.raises(ImportError, match=r"dask-nlsq\[jobqueue\]"):
        cluster.slurm(0, memory="1 GB")


@pytest.mark.parametrize("walltime", [5, 30, 60, 600, 3600, 10**6])
def test_workers_leave_before_their_wall_time(walltime):
    lives, varies = workers.lifetime(walltime)
    assert lives - varies >= 0 and lives + varies < walltime


@pytest.mark.parametrize(
    ("visible", "name", "device"),
    [
        ("3,5", "w-1-0", "3"),
        ("3,5", "w-1-1", "5"),
        (None, "w-1-1", "1"),
        ("GPU-a,GPU-b", "w-0-1", "GPU-b"),
        ("7", 3, "7"),
    ],
)
def test_a_process_sees_a_gpu_of_its_own(monkeypatch, visible, name, device):
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nanny = SimpleNamespace(name=name, env={})
    gpu_preload.dask_setup(nanny)
    assert nanny.env == {"CUDA_VISIBLE_DEVICES": device}


def visible():
    return os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.mark.slow
def test_worker_processes_of_a_job_share_its_gpus_out():
    """Two worker processes started as a job starts them, and what each is shown."""
    from distributed import Client

    with Client(n_workers=0, dashboard_address=":0", processes=True) as client:
        command = [sys.executable, "-m", "distributed.cli.dask_worker", client.scheduler.address, "--name", "job-0"]
        command += ["--nworkers", "2", "--nthreads", "1", "--resources", "GPU=1"]
        command += ["--preload-nanny", "dask_nlsq.cluster.gpu_preload"]
        job = subprocess.Popen(
            command,
            env=os.environ | {"CUDA_VISIBLE_DEVICES": "3,5", "PYTHONPATH": str(TESTS)},
            stderr=subprocess.DEVNULL,
        )
        try:
            client.wait_for_workers(2, timeout=60)
            assert sorted(client.run(visible).values()) == ["3", "5"]
        finally:
            job.terminate()
            job.wait()


# --- scripts of a driver ----------------------------------------------------------------------------------------------

WANTED = {"walltime": "12:00:00", "cores": 8, "memory": "16 GiB"}
DIRECTIVES = {
    "slurm": """--job-name=nlsq --time=12:00:00 --nodes=1 --ntasks=1 --cpus-per-task=8 --mem=16384M --signal=B:USR1@120
        --requeue --open-mode=append --output=nlsq-%j.out --partition=long --account=physics --gres=gpu:2""",
    "pbs": """-N|nlsq -l|walltime=12:00:00 -l|select=1:ncpus=8:ngpus=2:mem=16384mb -r|y -j|oe -o|nlsq.out -q|long
        -A|physics""",
    "sge": """-N|nlsq -S|/bin/bash -cwd -l|h_rt=12:00:00 -l|s_rt=11:58:00 -l|mem_free=2048M -pe|smp|8 -r|y -j|y
        -o|nlsq.out -q|long -P|physics -l|gpu=2""",
    "lsf": """-J|nlsq -W|12:00 -n|8 -R|"span[hosts=1]" -M|16384MB -wa|USR1|-wt|2 -r -Q|"75" -o|nlsq-%J.out -q|long
        -P|physics -gpu|"num=2\"""",
}
PREFIX = {"slurm": "#SBATCH", "pbs": "#PBS", "sge": "#$", "lsf": "#BSUB"}


@pytest.mark.parametrize("queue", QUEUES)
def test_directives(queue):
    text = job_script("true", queue, **WANTED, queue="long", account="physics", gpus=2)
    lines = [line.removeprefix(PREFIX[queue] + " ") for line in text.splitlines() if line.startswith(PREFIX[queue])]
    assert lines == [word.replace("|", " ") for word in DIRECTIVES[queue].split()]
    assert text.startswith("#!/usr/bin/env bash\n") and max(map(len, text.splitlines())) <= 120
    assert subprocess.run(["bash", "-n"], input=text, text=True).returncode == 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"name": "a\nb"}, "name is 'a"),
        ({"name": "a b"}, "name is 'a b'"),
        ({"queue": "-x"}, "queue is '-x'"),
        ({"account": "$(id);"}, "account is"),
        ({"output": 'a"b'}, "output is"),
        ({"setup": ["one\ntwo"]}, "A line of setup"),
        ({"command": "a\nb"}, "The command"),
        ({"command": ["a", "b\nc"]}, "The command"),
        ({"command": "echo 'a"}, "open quote"),
        ({"command": ""}, "The command is empty"),
        ({"command": "OMP_NUM_THREADS=1"}, "The command is empty"),
        ({"walltime": 60}, "warn is 120 seconds, and the walltime is 60"),
        ({"walltime": "1:00"}, "walltime is"),
        ({"memory": "?"}, "memory is"),
        ({"cores": 0}, "cores is 0"),
        ({"warn": -1}, "warn is -1"),
        ({"scheduler": "cron"}, "scheduler is 'cron'; \"slurm\""),
    ],
)
def test_what_cannot_be_written_is_refused(options, said):
    with pytest.raises(NlsqError, match=re.escape(said)):
        job_script(**({"command": "true", "scheduler": "slurm"} | WANTED | options))


def test_setup_may_be_one_text():
    lines = ["module load python", "ulimit -c 0"]
    one = job_script("true", "slurm", **WANTED, setup="\n".join(lines))
    assert one == job_script("true", "slurm", **WANTED, setup=lines)


@pytest.mark.parametrize(
    ("command", "sign"),
    [
        ("python fit.py 2>&1 | tee log", "|"),
        ("python fit.py|tee log", "|"),
        ("python fit.py |& tee log", "|"),
        ("python fit.py || true", "||"),
        ("cd there && python fit.py", "&&"),
        ("cd there; python fit.py", ";"),
        ("python fit.py &", "&"),
        ("python fit.py >log 2>&1&", "&"),
        ("echo 'a;b' \\; ; python fit.py", ";"),
        ("(python fit.py)", "("),
        ("! python fit.py", "!"),
    ],
)
def test_a_command_is_one_process(command, sign):
    with pytest.raises(NlsqError, match=re.escape(f"has {sign!r}") + ".*output=.*setup="):
        job_script(command, "slurm", **WANTED)


@pytest.mark.parametrize(
    ("command", "printed"),
    [
        ("fit a >out 2>&1", "a"),
        ("fit a &>out", "a"),
        ("fit a &>>out", "a"),
        ("fit a >|out 2>&1", "a"),
        ('fit \'a | b\' "c && \\" ; d" e\\&f >out', 'a | b c && " ; d e&f'),
        ("fit $(echo a | cat) `echo b; echo c`", "a b c"),
        ("fit a > >(cat | cat)", "a"),
        ("ONE=1 TWO='2 3' fit a", "a 1 2 3"),
        (["ONE=1", "TWO=2 3", "fit", "a;", "|", ">out"], "a; | >out 1 2 3"),
    ],
)
def test_what_one_process_may_have_is_left_to_the_shell(tmp_path, command, printed):
    stub(tmp_path, "fit", "echo $* $ONE $TWO\nexit 3")
    (tmp_path / "job.sh").write_text(job_script(command, "slurm", **WANTED))
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", tmp_path / "job.sh"], env=environ, cwd=tmp_path, capture_output=True, text=True)
    files = [path.read_text() for path in tmp_path.glob("out")]
    assert done.returncode == 3 and "".join([done.stdout, *files]).strip() == printed, done.stderr


@pytest.mark.parametrize(
    ("command", "active", "setup", "full"),
    [
        ("dask-nlsq fit 'a b'", False, [], True),
        (["dask-nlsq", "fit", "a b"], False, [], True),
        ("dask-nlsq fit 'a b'", True, [], False),
        ("dask-nlsq fit 'a b'", False, ["source .venv/bin/activate"], False),
        ("dask-nlsq fit 'a b'", False, ["export OMP_NUM_THREADS=1"], True),
        ("dask-nlsqs fit 'a b'", False, [], False),
    ],
)
def test_an_environment_that_is_not_active_is_called_by_its_path(tmp_path, monkeypatch, command, active, setup, full):
    bin = tmp_path / "an environment"
    bin.mkdir()
    stub(bin, "dask-nlsq", "")
    monkeypatch.setattr(sys, "executable", str(bin / "python"))
    monkeypatch.setenv("PATH", str(bin) if active else "/nowhere")
    name = command.partition(" ")[0] if isinstance(command, str) else command[0]
    expected = f"'{bin}/dask-nlsq'" if full else name
    assert f"exec {expected} fit 'a b'\n" in job_script(command, "slurm", **WANTED | {"setup": setup})


def stub(folder, name, body):
    """Write a command that notes each of its calls."""
    path = folder / name
    path.write_text(f'#!/bin/bash\necho "{name} $*" >>"{folder}/calls"\n{body}\n')
    path.chmod(0o755)


def started(folder, queue, body, qsub="", **options):
    """Start the script of a driver with a fit that does `body`, and with stubs of the queue's commands."""
    stub(folder, "scontrol", "")
    stub(folder, "qsub", qsub)
    stub(folder, "fit", body)
    (folder / "job.sh").write_text(job_script(["fit", "a b", "$HOME"], queue, **WANTED | options))
    environ = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711", "PBS_O_WORKDIR": str(folder)}
    return subprocess.Popen(["bash", folder / "job.sh"], env=environ, cwd=folder, start_new_session=True)


def calls(folder):
    return (folder / "calls").read_text().splitlines()


SUBMITTED = (75, ["qsub {}/job.sh"])
AGAIN = {"slurm": (75, ["scontrol requeue 4711"]), "pbs": SUBMITTED, "sge": SUBMITTED, "lsf": (75, [])}
LISTENING = """import pathlib, signal, sys, time
def leave(*_):
    signal.signal(signal.SIGUSR1, signal.SIG_IGN), time.sleep(0.5), print("committed", file=open("calls", "a"))
    sys.exit(75)
signal.signal(signal.SIGUSR1, leave), signal.signal(signal.SIGTERM, leave)
pathlib.Path("ready").touch()
while True: time.sleep(0.05)
"""
WARNED = f"exec python3 -c '{LISTENING}'"


@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("status", [0, 1, 3, 75, 127])
def test_only_an_interrupted_fit_comes_back(tmp_path, queue, status):
    returned, asked = AGAIN[queue] if status == 75 else (status, [])
    assert started(tmp_path, queue, f"exit {status}").wait(20) == returned
    assert calls(tmp_path) == ["fit a b $HOME", *(line.format(tmp_path) for line in asked)]


@pytest.mark.crossed
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("warnings", [1, 3])
def test_a_warning_reaches_the_fit_which_is_waited_for(tmp_path, queue, warnings):
    job = started(tmp_path, queue, WARNED)
    wait_for(tmp_path / "ready")
    for _ in range(warnings):
        job.send_signal(signal.SIGUSR1)
        time.sleep(0.1)
    status, asked = AGAIN[queue]
    assert job.wait(20) == status
    assert calls(tmp_path) == ["fit a b $HOME", "committed", *(line.format(tmp_path) for line in asked)]


@pytest.mark.crossed
@pytest.mark.parametrize("queue", QUEUES)
def test_a_warning_waits_for_a_fit_that_still_loads(tmp_path, queue):
    job = started(tmp_path, queue, f"touch loading; sleep 1.5; {WARNED}")
    wait_for(tmp_path / "loading")
    job.send_signal(signal.SIGUSR1)
    status, asked = AGAIN[queue]
    assert job.wait(20) == status
    assert calls(tmp_path) == ["fit a b $HOME", "committed", *(line.format(tmp_path) for line in asked)]


@pytest.mark.crossed
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("queue", QUEUES)
@pytest.mark.parametrize("status", [0, 3])
def test_a_warning_ends_no_job_whose_fit_has_ended(tmp_path, queue, status):
    job = started(tmp_path, queue, f"touch writing; sleep 0.5; exit {status}")
    wait_for(tmp_path / "writing")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) == status and calls(tmp_path) == ["fit a b $HOME"]


@pytest.mark.slow
def test_a_warning_during_the_setup_is_not_lost(tmp_path):
    job = started(tmp_path, "slurm", WARNED, setup=["touch setting", "sleep 1"])
    wait_for(tmp_path / "setting")
    job.send_signal(signal.SIGUSR1)
    assert job.wait(20) == 75 and calls(tmp_path) == ["fit a b $HOME", "committed", "scontrol requeue 4711"]


@pytest.mark.crossed
@pytest.mark.parametrize("queue", QUEUES)
def test_a_job_that_is_ended_commits_and_does_not_come_back(tmp_path, queue):
    job = started(tmp_path, queue, WARNED)
    wait_for(tmp_path / "ready")
    job.terminate()
    assert job.wait(20) == 143 and calls(tmp_path) == ["fit a b $HOME", "committed"]


def test_a_host_of_sge_that_may_not_submit_asks_for_another_run(tmp_path):
    job = started(tmp_path, "sge", "exit 75", qsub="exit 1")
    assert job.wait(20) == 99 and calls(tmp_path) == ["fit a b $HOME", f"qsub {tmp_path}/job.sh"]


def test_pbs_is_its_own_clock(tmp_path):
    job = started(tmp_path, "pbs", WARNED, walltime=4, warn=2)
    assert job.wait(20) == 75 and calls(tmp_path)[1:] == ["committed", f"qsub {tmp_path}/job.sh"]


def wait_for(path):
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


# --- the command line -------------------------------------------------------------------------------------------------

FIT = ["fit", "data/*.parquet", "-m", "decay:model", "--checkpoint", "run"]
ASKED = ["--walltime", "12:00:00", "--memory", "16 GiB", "--cores", "8"]


def command(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments)])


@pytest.mark.parametrize("queue", QUEUES)
def test_job_script_is_written(tmp_path, queue):
    expected = job_script(["dask-nlsq", *FIT], queue, **WANTED, setup=["module load python"])
    more = ["job-script", "--scheduler", queue, *ASKED, "--setup", "module load python"]
    printed, written = command(*more, "--", *FIT), command(*more, "-o", tmp_path / "fit.sh", "--", *FIT)
    assert printed.exit_code == written.exit_code == 0 and printed.stdout == expected, printed.output
    assert (tmp_path / "fit.sh").read_text() == expected and os.access(tmp_path / "fit.sh", os.X_OK)


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        ([*ASKED, "--", "fit", "data", "-m", "line"], 2, "--checkpoint"),
        ([*ASKED, "--", *FIT, "--resume", "no"], 2, "--resume no"),
        ([*ASKED, "--", *FIT, "--resume=no"], 2, "--resume no"),
        ([*ASKED], 2, "COMMAND"),
        (["--memory", "1 GB", "--", *FIT], 2, "--walltime"),
        (["--walltime", "1:00:00", "--", *FIT], 2, "--memory"),
        (["--walltime", "1:00", "--memory", "1 GB", "--", *FIT], 1, "walltime is '1:00'"),
    ],
)
def test_job_script_says_what_is_missing(arguments, status, said):
    seen = command("job-script", "--scheduler", "slurm", *arguments)
    assert seen.exit_code == status and said in seen.stderr, seen.output


@pytest.mark.parametrize("workflow", [["--workflow", "hpc"], ["--workflow=hpc"]], ids=" ".join)
def test_a_workflow_may_bring_the_checkpoint(workflow):
    seen = command("job-script", "--scheduler", "slurm", *ASKED, "--", "fit", "data", "-m", "line", *workflow)
    assert seen.exit_code == 0 and " ".join(workflow) in seen.stdout


def test_dasks_configuration_may_bring_the_checkpoint():
    with dask.config.set({"nlsq.checkpoint": "run"}):
        seen = command("job-script", "--scheduler", "slurm", *ASKED, "--", "fit", "data", "-m", "line")
    assert seen.exit_code == 0, seen.output


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--cluster", "slurm"], "--memory"),
        (["--cluster", "slurm", "--memory", "1 GB", "--scheduler", "tcp://127.0.0.1:1"], "--scheduler"),
        (["--cluster", "local", "--walltime", "1:00:00"], "--workers"),
        (["--workers", "3"], "--cluster"),
    ],
)
def test_what_does_not_go_with_a_cluster_is_wrong_usage(arguments, said):
    seen = command("fit", "nothing.parquet", "-m", "line", *arguments)
    assert seen.exit_code == 2 and said in seen.stderr, seen.output


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGINT])
@pytest.mark.parametrize("by", ["option", "configuration"])
def test_a_signal_ends_the_wait_for_workers(monkeypatch, tmp_path, signum, by):
    """A queue that never starts a job, and a warning or Ctrl-C that comes meanwhile."""
    from distributed import LocalCluster

    def never(**_):
        os.kill(os.getpid(), signum)
        return LocalCluster(n_workers=0, processes=False, dashboard_address=":0")

    monkeypatch.setattr(cluster, "slurm", never)
    option, configured = (["--checkpoint", tmp_path / "run"], None) if by == "option" else ([], str(tmp_path / "run"))
    with dask.config.set({"nlsq.checkpoint": configured}):
        seen = command("fit", "nothing.parquet", "-m", "line", "--cluster", "slurm", "--memory", "1 GB", *option)
    assert seen.exit_code == 75 and not (tmp_path / "run").exists(), seen.output


def test_fit_starts_a_local_cluster(tmp_path):
    import numpy as np
    import pandas as pd

    from dask_nlsq import FitResult

    x = np.linspace(0, 1, 100)
    pd.DataFrame({"x": x, "y": 1 + 2 * x}).to_parquet(tmp_path / "line.parquet")
    arguments = ["--cluster", "local", "--workers", "1", "--tier", "chunked", "--checkpoint", tmp_path / "run"]
    seen = command("fit", tmp_path / "line.parquet", "-m", "line", *arguments)
    assert seen.exit_code == 0, seen.output
    assert FitResult.load(tmp_path / "run").provenance["executor"] == "cluster"


SCRIPT = """
import sys, numpy as np, pandas as pd, dask.dataframe as dd, dask_nlsq
from distributed import Client

if __name__ == "__main__":
    x = np.linspace(0, 1, 1000)
    rows = pd.DataFrame({"x": x, "y": 1 + 2 * x})
    plan = dask_nlsq.plan("line", x, rows["y"].to_numpy())
    cluster = dask_nlsq.local_cluster(plan, n_workers=2, processes=sys.argv[1] == "processes")
    client = Client(cluster)
    kept = dd.from_pandas(rows, npartitions=4).persist()
    assert kept.nlsq.fit("line", client=client, tier="chunked").success
    if sys.argv[2] == "closed":
        cluster.close()
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["closed", "left open"])
@pytest.mark.parametrize("where", ["processes", "threads"])
def test_a_local_cluster_warns_of_nothing_and_closes_in_silence(tmp_path, where, how):
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, "-W", "default", tmp_path / "script.py", where, how]
    run = subprocess.run(command, capture_output=True, text=True)
    assert (run.returncode, run.stderr) == (0, "")


def test_closing_a_local_cluster_leaves_the_log_as_it_was():
    import numpy as np
    from distributed import LocalCluster

    import dask_nlsq

    log = logging.getLogger("distributed.scheduler")
    x = np.linspace(0, 1, 100)
    local = dask_nlsq.local_cluster(dask_nlsq.plan("line", x, x), n_workers=1, processes=False)
    level = log.level
    assert isinstance(local, LocalCluster) and local.dashboard_link.endswith("/status")
    local.close()
    local.close()
    assert log.level == level


WRITTEN = {  # examples/: how each was written
    "slurm.sh": ["--scheduler", "slurm"],
    "pbs.sh": ["--scheduler", "pbs", "--queue", "workq"],
}
QUICKSTART = [
    "fit",
    "data/*.parquet",
    "-m",
    "quickstart:decay",
    "-y",
    "signal",
    "--checkpoint",
    "run",
    "-o",
    "run.json",
]


@pytest.mark.parametrize("name", WRITTEN)
def test_examples_are_what_is_written(name):
    asked = ["--walltime", "02:00:00", "--cores", 8, "--memory", "16 GiB", "--setup", "source .venv/bin/activate"]
    seen = command("job-script", *WRITTEN[name], *asked, "--", *QUICKSTART)
    assert seen.stdout == (EXAMPLES / name).read_text("utf-8")
