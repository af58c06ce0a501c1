"""Tests with a real SGE: workers as jobs, and a driver that is warned; `bash tests/sge.sh` starts one."""

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from distributed import Client
from resumed import bits, run

from dask_nlsq import cluster

TESTS = Path(__file__).parent

pytestmark = pytest.mark.slow


def silence():
    """Why no SGE can be asked, or None."""
    try:
        done = subprocess.run(["qstat", "-f", "-q", "main.q"], capture_output=True, text=True, timeout=5)
    except FileNotFoundError:
        return "SGE is not installed"
    except subprocess.TimeoutExpired:
        return "SGE does not answer"
    return None if "main.q@" in done.stdout else f"SGE has no main.q: {done.stderr.strip()}"


@pytest.fixture(autouse=True)
def _sge(monkeypatch):
    if "SGE_ROOT" not in os.environ:
        monkeypatch.setenv("SGE_ROOT", "/var/lib/gridengine")
    if why := silence():
        pytest.skip(f"{why}; `bash tests/sge.sh` as root starts one")


def test_jobs_fit_to_the_bits_of_threads(tmp_path):
    prologue = ["export JAX_PLATFORMS=cpu", f"export PYTHONPATH={TESTS}"]
    options = {"memory": "1 GB", "walltime": "00:10:00", "log_directory": str(tmp_path)}
    with (
        cluster.sge(2, **options, job_script_prologue=prologue) as jobs,
        Client(jobs, set_as_default=False) as client,
    ):
        client.wait_for_workers(2, timeout=60)
        assert bits(run(None, "chunked", client=client)) == bits(run(None, "chunked"))


def test_a_driver_is_warned_runs_again_and_goes_on_to_the_same_bits(tmp_path):
    code = f"import sys; sys.path.insert(0, {str(TESTS)!r}); import resumed; from dask_nlsq.cluster import detect; "
    code += "print('begun', detect(), flush=True); print('bits', resumed.bits(resumed.run('run', 'chunked', 0.4)))"
    # Thirty seconds of reading, and a warning after 15: the second run must be warned too.
    options = {"walltime": 90, "warn": 75, "cores": 2, "memory": "1 GB", "output": "out.txt"}
    text = cluster.job_script([sys.executable, "-c", code], "sge", **options, setup=["export JAX_PLATFORMS=cpu"])
    (tmp_path / "fit.sh").write_text(text)
    subprocess.run(["qsub", "fit.sh"], cwd=tmp_path, check=True, capture_output=True, timeout=30)
    expected = bits(run(None, "chunked"))
    deadline = time.monotonic() + 270
    while "bits" not in (said := (tmp_path / "out.txt").read_text() if (tmp_path / "out.txt").exists() else ""):
        assert time.monotonic() < deadline, said
        time.sleep(0.5)
    assert said.count("begun") >= 3 and said.split()[-1] == expected
    job = re.search(r"begun Job\(scheduler='sge', id='\d+', nodes=1, cores=2, .* time_left=([\d.]+)\)", said)
    assert job and 0 < float(job[1]) <= 90
