"""A fit of every container, by each kind of access, equals SciPy on the same rows or raises an error with a remedy."""

import sys
from pathlib import Path

import numpy as np
import pytest
import scipy.optimize
from containers import CONTAINERS, T, Y, table
from problems import decay

import dask_nlsq
from dask_nlsq import DataError

PAGE = Path(__file__).parents[1] / "docs" / "data.md"
P0 = {"amplitude": 2.0, "rate": 1.0, "offset": 0.3}


@pytest.fixture(scope="module")
def expected():
    popt, _ = scipy.optimize.curve_fit(
        lambda t, a, k, c: a * np.exp(-k * t) + c, T, Y, [2.0, 1.0, 0.3], ftol=1e-15, xtol=1e-15
    )
    return popt


FULL = {"parquet_folder"}
CASES = [  # quick: the first way into each container, what is refused, and every way into one of them
    pytest.param(
        c,
        way,
        id=f"{c.make.__name__}-{way}",
        marks=() if number == 0 or way in c.refused or c.make.__name__ in FULL else pytest.mark.slow,
    )
    for c in CONTAINERS
    for number, way in enumerate(c.ways)
]


@pytest.mark.parametrize(("container", "way"), CASES)
def test_it_is_fitted_or_refused_with_what_to_do(container, way, request, tmp_path, expected):
    if container.missing:
        pytest.skip(f"{container.missing} is not installed")
    made = container.make(tmp_path)
    client = request.getfixturevalue("client") if way == "workers" else False
    x, y = made[way] if container.array_call else (None, "y")
    data = None if container.array_call else made[way]
    if way in container.refused:
        with pytest.raises(DataError) as caught:
            dask_nlsq.fit(decay, x, y, data=data, p0=P0, client=client)
        assert container.refused[way] in str(caught.value)
        return
    result = dask_nlsq.fit(decay, x, y, data=data, p0=P0, client=client)
    np.testing.assert_allclose(result.popt, expected, rtol=1e-6)
    assert result.n_obs % len(T) == 0


def test_the_page_has_the_table():
    text = PAGE.read_text()
    assert table() in text, f"`{Path(sys.executable).name} tests/containers.py` prints the table of {PAGE.name}"
