"""Tests with a real Slurm: workers and drivers as jobs, which are ended or warned.

`bash tests/slurm.sh` starts one where there is none; without one these tests are skipped.
"""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import resumed
from distributed import Client
from resumed import bits, decay, rows, run

import dask_nlsq
from dask_nlsq import cluster

TESTS = Path(__file__).parent
ENDS = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT"}
"""States that no job leaves; there are others between them, such as SIGNALING and REQUEUED."""

pytestmark = pytest.mark.slow


def slurm(command, *arguments):
    done = subprocess.run([command, *map(str, arguments)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def silence():
    """Why no Slurm can be asked, or None."""
    try:
        done = subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True, timeout=5)
    except FileNotFoundError:
        return "Slurm is not installed"
    except subprocess.TimeoutExpired:
        return "Slurm does not answer"
    usable = {"idle", "mixed", "allocated", "completing"} & {state.rstrip("*") for state in done.stdout.split()}
    return None if usable else f"Slurm has no usable node: {(done.stdout or done.stderr).strip()}"


@pytest.fixture(autouse=True, scope="session")
def _slurm():
    if why := silence():
        pytest.skip(f"{why}; `bash tests/slurm.sh` as root starts one")


@pytest.fixture
def client(tmp_path, monkeypatch):
    """Two workers, each a job of Slurm, whose logs and files stay in a folder of the test."""
    monkeypatch.setattr("dask_nlsq.cluster.workers.RENEWAL", 1.0)
    options = {"memory": "1 GB", "walltime": "00:10:00", "log_directory": str(tmp_path), "job_name": "nlsq-workers"}
    options["job_script_prologue"] = ["export JAX_PLATFORMS=cpu", f"export PYTHONPATH={TESTS}"]
    with cluster.slurm(2, **options) as jobs, Client(jobs, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        yield client


def workers():
    return set(slurm("squeue", "--noheader", "--name=nlsq-workers", "--states=RUNNING", "--format=%i").split())


def until(true, seconds):
    """Wait until something is true, and return it."""
    deadline = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < deadline, true
        time.sleep(0.2)
    return found


def test_jobs_fit_parquet_to_the_bits_of_threads(client, tmp_path):
    import pandas as pd

    for i in range(0, resumed.PIECES, 10):
        pd.concat([rows(j, 0) for j in range(i, i + 10)]).to_parquet(tmp_path / f"rows-{i:02d}.parquet")
    options = {"data": str(tmp_path / "rows-*.parquet"), "p0": [2.0, 1.0, 0.3], "tier": "chunked", "cache": "none"}
    expected = dask_nlsq.fit(decay, **options)
    result = dask_nlsq.fit(decay, client=client, **options)
    assert result.provenance["executor"] == "cluster" and result.plan.inputs.processes == 2
    assert bits(result) == bits(expected)


def test_a_job_that_is_cancelled_changes_no_bit_and_is_replaced(client):
    expected = bits(run(None, "chunked"))
    before = until(lambda: len(found := workers()) == 2 and found, 30)
    cancelled = threading.Timer(1.0, slurm, ["scancel", min(before)])  # in the middle of the second sweep
    begin = lambda seen: cancelled.start() if seen.nfev == 1 else None  # noqa: E731
    result = run(None, "chunked", pause=0.1, client=client, callback=begin)
    cancelled.join()
    assert bits(result) == expected and result.provenance["executor"] == "cluster"
    after = until(lambda: len(found := workers()) == 2 and found, 60)
    assert min(before) not in after and max(before) in after


def test_jobs_that_end_at_their_time_change_no_bit(tmp_path, monkeypatch):
    """Both jobs of the workers end in the middle of the fit, and others come in their place."""
    monkeypatch.setattr("dask_nlsq.cluster.workers.RENEWAL", 1.0)
    options = {"memory": "1 GB", "walltime": "00:01:00", "log_directory": str(tmp_path), "job_name": "nlsq-short"}
    options["job_script_prologue"] = ["export JAX_PLATFORMS=cpu", f"export PYTHONPATH={TESTS}"]
    expected = bits(run(None, "chunked"))
    with cluster.slurm(2, **options) as jobs, Client(jobs, set_as_default=False) as client:
        client.wait_for_workers(2, timeout=60)
        first = set(client.nthreads())
        result = run(None, "chunked", pause=1.2, client=client)
        assert not first & set(client.nthreads())
    assert bits(result) == expected and result.provenance["executor"] == "cluster"


def test_a_driver_is_warned_queues_again_and_goes_on_to_the_same_bits(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import resumed; print('begun', flush=True); "
    code += "print('bits', resumed.bits(resumed.run('run', 'chunked', 1.0)))"
    text = cluster.job_script(
        [sys.executable, "-c", code],
        "slurm",
        walltime="00:02:00",
        cores=1,
        memory="1 GB",
        warn=60,
        output="out.txt",
        setup=["export JAX_PLATFORMS=cpu"],
    )
    (tmp_path / "fit.sh").write_text(text)
    number = slurm("sbatch", "--parsable", f"--chdir={tmp_path}", tmp_path / "fit.sh")
    expected = bits(run(None, "chunked"))

    def state():
        fields = slurm("scontrol", "show", "job", number)
        return dict(word.partition("=")[::2] for word in fields.split())

    found = until(lambda: (s := state())["JobState"] in ENDS and s, 270)
    said = (tmp_path / "out.txt").read_text()
    assert found["JobState"] == "COMPLETED" and int(found["Restarts"]) >= 1, said
    assert said.count("begun") == int(found["Restarts"]) + 1 and said.count("bits") == 1
    assert said.split()[-1] == expected
    assert dask_nlsq.FitResult.load(tmp_path / "run").success


def test_the_command_line_starts_workers_for_the_time_of_a_fit(tmp_path):
    rows(0, 0).to_parquet(tmp_path / "rows.parquet")
    arguments = ["-m", "a*exp(-b*t)", "-o", "result.json", "--tier", "chunked", "--p0", "a=3,b=1"]
    asked = ["--cluster", "slurm", "--workers", "1", "--memory", "1 GB", "--walltime", "00:05:00"]
    script = Path(sys.executable).with_name("dask-nlsq")
    command = [script, "fit", "rows.parquet", *arguments, *asked]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    result = dask_nlsq.FitResult.from_dict(json.loads((tmp_path / "result.json").read_text()))
    assert result.provenance["executor"] == "cluster"
    until(lambda: not slurm("squeue", "--noheader", "--name=dask-worker"), 30)


def test_a_job_knows_itself(tmp_path):
    code = "import dataclasses, json; from dask_nlsq.cluster import detect; "
    code += "print(json.dumps(dataclasses.asdict(detect())))"
    (tmp_path / "say.sh").write_text(f"#!/bin/sh\n{sys.executable} -c '{code}'\n")
    asked = ["--cpus-per-task=2", "--mem=700M", "--time=00:03:00", f"--output={tmp_path}/said.json", "--wait"]
    number = slurm("sbatch", "--parsable", *asked, tmp_path / "say.sh")
    job = json.loads((tmp_path / "said.json").read_text())
    left = job.pop("time_left")
    facts = {"scheduler": "slurm", "id": number, "nodes": 1, "cores": 2, "gpus": 0, "memory": 700 * 2**20}
    assert job == facts and 120 < left <= 180
