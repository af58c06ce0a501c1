"""The comparisons of `table.py` under pytest-benchmark, which keeps their history and compares runs.

::

    pytest -n 0 tests/benchmarks/bench.py --benchmark-autosave          # small; -m slow for the full size
    pytest-benchmark compare --group-by=group

A comparison is measured once, alternating its two sides in a process of its own; a clock passes the measured times to
pytest-benchmark. (The file's name excludes it from the ordinary tests.)
"""

import functools

import pytest
from comparisons import COMPARISONS, measure_apart
from measure import Missing
from table import ratio

pytest.importorskip("pytest_benchmark", reason="it comes with the extra `bench`")


class Clock:
    """A timer that stands still until it is told to go on."""

    now = 0.0

    def __call__(self):
        return self.now

    def go_on(self, seconds):
        self.now += seconds


CLOCK = Clock()
measured = functools.cache(measure_apart)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("rows")


@pytest.mark.timeout(0)
@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("side", ["ours", "peer"])
@pytest.mark.parametrize("name", [name for name, c in COMPARISONS.items() if c.unit == "s"])
@pytest.mark.parametrize("size", ["small", pytest.param("full", marks=pytest.mark.slow)])
def test_comparison(size, name, side, folder, benchmark):
    try:
        result = measured(name, size == "small", folder)
    except Missing as missing:
        pytest.skip(f"what is compared with is not installed: {missing}")
    benchmark.group = f"{name}, {size}: {COMPARISONS[name].what}"
    benchmark.extra_info["ratio"] = ratio(name, result)
    figures = iter(result[side])
    benchmark.pedantic(lambda: CLOCK.go_on(next(figures)), rounds=len(result[side]))
