"""A process that was forked after a fit raises an error; one that was spawned, or forked before any fit, can fit."""

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")]

USES = {
    "fit": 'dask_nlsq.fit("exponential_decay", x, y, progress=False)',
    "fit by threads": "dask_nlsq.fit(model, dx, dy, progress=False)",
    "plan": "dask_nlsq.plan(model, x, y)",
    "curve_fit": "dask_nlsq.curve_fit(model, x, y)",
    "curve_fit by rows": "dask_nlsq.curve_fit(model, dx, dy)",
    "a new StreamingFitter": "dask_nlsq.StreamingFitter(model, [1.0, 1.0]).partial_fit(x, y).result()",
    "a StreamingFitter of before": "fitter.partial_fit(x, y).result()",
    "predict": "result.predict(x)",
    "profile": 'result.conf_int(method="profile")',
}

SCRIPT = """
import json, multiprocessing, subprocess, sys
import dask.array as da, jax.numpy as jnp, numpy as np
import dask_nlsq

def model(x, a, b):
    return a * jnp.exp(-b * x)

x = np.linspace(0, 1, 2000)
y = 2 * np.exp(-3 * x) + 0.01 * np.sin(1e4 * x)
dx, dy = da.from_array(x, chunks=500), da.from_array(y, chunks=500)

def attempt(use, pipe):
    try:
        exec(use, globals())
        pipe.send("fitted")
    except dask_nlsq.ForkedProcessError as error:
        assert 'get_context("spawn")' in str(error), error
        pipe.send("refused")

def outcome(method, use):
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    process = context.Process(target=attempt, args=(use, there))
    process.start()
    said = here.recv() if here.poll(90) else "hangs"
    process.kill()
    process.join()
    return said

if __name__ == "__main__":
    attempts = json.loads(sys.argv[1])
    found = {"before": outcome("fork", attempts["fit"][1])}
    fitter = dask_nlsq.StreamingFitter(model, [1.0, 1.0]).partial_fit(x, y)
    result = dask_nlsq.fit(model, dx, dy, p0=[1.0, 1.0], progress=False, tier="chunked")
    done = subprocess.run([sys.executable, "-c", "print(1)"], stdout=-1, preexec_fn=lambda: None)
    found |= {"subprocess": done.stdout.decode().strip()}
    found |= {name: outcome(*attempt) for name, attempt in attempts.items()}
    exec(attempts["fit"][1])  # the parent goes on
    print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """What comes of the processes that one has started, the first of them before it fits itself."""
    script = tmp_path_factory.mktemp("fork") / "script.py"
    script.write_text(SCRIPT)
    others = [method for method in ("spawn", "forkserver") if method in multiprocessing.get_all_start_methods()]
    attempts = {name: ("fork", use) for name, use in USES.items()} | {name: (name, USES["fit"]) for name in others}
    path = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *filter(None, sys.path)])}
    command = [sys.executable, str(script), json.dumps(attempts)]
    done = subprocess.run(command, capture_output=True, text=True, env=path, timeout=280)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("use", USES)
def test_a_process_forked_after_a_fit_refuses(outcomes, use):
    assert outcomes[use] == "refused"


@pytest.mark.parametrize("method", ["before", "spawn", "forkserver"])
def test_a_process_spawned_or_forked_before_fits(outcomes, method):
    assert outcomes.get(method, "fitted") == "fitted" and outcomes["subprocess"] == "1"
