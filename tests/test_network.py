"""Workers on separate hosts, which are network namespaces with separate disks: a broken link changes no bit.

These tests need root, and a kernel with virtual Ethernet pairs; they are skipped otherwise.
"""

import contextlib
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from distributed import Client
from resumed import bits, run

TESTS = Path(__file__).parent
QUIET = ("--no-dashboard", "--no-show")

CUTS = {"shorter than Dask's timeout, 30 seconds": 10.0, "longer, so that a worker is lost": 40.0}
"""Seconds that a link is cut."""

pytestmark = pytest.mark.slow


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True)


@contextlib.contextmanager
def host(number):
    """A network namespace that is joined to this one by a link; yields its name and the address of this end."""
    name, here, there = f"nlsq{number}", f"10.213.{number}.1", f"10.213.{number}.2"
    commands = [
        ["netns", "add", name],
        ["link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name],
        ["address", "add", f"{here}/24", "dev", name],
        ["link", "set", name, "up"],
        ["-n", name, "address", "add", f"{there}/24", "dev", "eth0"],
        ["-n", name, "link", "set", "eth0", "up"],
        ["-n", name, "link", "set", "lo", "up"],
        ["-n", name, "route", "add", "default", "via", here],
    ]
    try:
        for command in commands:
            if (done := ip(*command)).returncode:
                pytest.skip(f"ip {' '.join(command)}: {done.stderr.strip()}")
        Path(f"/proc/sys/net/ipv4/conf/{name}/forwarding").write_text("1")  # workers must reach one another
        yield name, here
    finally:
        ip("link", "delete", name)
        ip("netns", "delete", name)


def worker(name, address, folder):
    """Start a worker in a namespace, for which an empty disk lies over a folder."""
    command = f"mount -t tmpfs none {folder} && cd {folder} && exec {sys.executable} -m distributed.cli.dask_worker"
    command += f" {address} --nthreads 1 --no-dashboard --no-nanny --local-directory {folder}"
    environ = os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}", "PJRT_NPROC": "1"}
    return subprocess.Popen(
        ["ip", "netns", "exec", name, "unshare", "--mount", "sh", "-c", command], env=environ, stderr=subprocess.DEVNULL
    )


@pytest.fixture
def hosts(tmp_path):
    """A client, and the names of the links to its two workers."""
    if os.geteuid():
        pytest.skip("only root makes network namespaces")
    with contextlib.ExitStack() as stack:
        names, heres = zip(*(stack.enter_context(host(number)) for number in (1, 2)), strict=True)
        scheduler = subprocess.Popen(
            [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", heres[0], "--port", "8799", *QUIET],
            env=os.environ | {"PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}"},
            stderr=subprocess.DEVNULL,
        )
        stack.callback(scheduler.kill)
        for name in names:
            (tmp_path / name).mkdir()
            stack.callback(worker(name, f"tcp://{heres[0]}:8799", tmp_path / name).kill)
        client = stack.enter_context(Client(f"tcp://{heres[0]}:8799", timeout=60, set_as_default=False))
        client.wait_for_workers(2, timeout=60)
        yield client, names


@pytest.mark.parametrize("seconds", CUTS.values(), ids=CUTS)
def test_a_link_that_is_cut_changes_no_bit(hosts, seconds):
    client, names = hosts
    expected = bits(run(None, "chunked"))

    def break_link():
        ip("link", "set", names[0], "down")
        time.sleep(seconds)
        ip("link", "set", names[0], "up")

    breaks = threading.Timer(1.0, break_link)
    started = []

    def callback(_):
        if not started:
            started.append(breaks.start())

    result = run(None, "chunked", pause=0.1, client=client, callback=callback)
    breaks.join()
    assert bits(result) == expected and result.provenance["executor"] == "cluster"
