"""Several devices in one process, and blocks that stay on their device; threads of this CPU act as devices."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json, sys
import dask, dask.dataframe as dd, jax, numpy as np, pandas as pd
import dask_nlsq
from dask_nlsq._kernel import compile_cache, device
from problems import decay, decay_rows

put = []
device._put = lambda slab, where, inner=device._put: (put.append(where.id), inner(slab, where))[1]
t, y = decay_rows(40_000)
frame = dd.from_pandas(pd.DataFrame({"t": t, "y": y}), npartitions=12, sort=False)

def outcome(keeps, cache):
    device.keeps = lambda _: keeps
    put.clear()
    compile_cache._compiled.clear()
    with dask.config.set(num_workers=6):
        result = frame.nlsq.fit(decay, p0=[2, 1, 0.1], cache=cache)
    used = {kind[3].id for kinds in compile_cache._compiled.values() for kind in kinds if len(kind) == 7}
    return [result.popt.tobytes().hex(), result.nsweeps, sorted(used), list(put)]

print(json.dumps([outcome(*case) for case in json.loads(sys.argv[1])]))
"""
CASES = [(False, "none"), (True, "persist"), (False, "persist"), (True, "none")]
"""Whether blocks stay on their device, and what is held."""


def run(devices, cases):
    flags = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-c", SCRIPT, json.dumps(cases)]
    environment = os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.path.dirname(__file__)}
    out = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    return json.loads(out.splitlines()[-1])


@pytest.fixture(scope="module")
def one_device():
    return run(1, CASES[:1])[0]


@pytest.fixture(scope="module")
def three_devices():
    return dict(zip(CASES, run(3, CASES), strict=True))


@pytest.mark.slow
@pytest.mark.parametrize(("keeps", "cache"), CASES)
def test_several_devices_share_the_blocks_and_give_the_bits_of_one(one_device, three_devices, keeps, cache):
    bits, sweeps, used, put = three_devices[keeps, cache]
    assert (bits, sweeps) == tuple(one_device[:2])
    assert (one_device[2], used) == ([0], [0, 1, 2])
    # What is held is put on a device once, whatever the number of sweeps; what is read each time never stays.
    assert len(put) == (12 if keeps and cache == "persist" else 0)


TOLD = """
import jax
from dask_nlsq._kernel import device
second = jax.devices()[1]
with jax.default_device(second):
    assert device.own() == second
jax.config.update("jax_default_device", "cpu")
assert device.own() == jax.local_devices(backend="cpu")[0]
"""


def test_the_device_that_jax_was_told_to_use_is_used():
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run([sys.executable, "-c", TOLD], env=environment, check=True)
