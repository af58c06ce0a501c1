"""Rows that real writers wrote, changed and deleted: the fit agrees with SciPy on the rows that the writers read."""

import importlib

import numpy as np
import pyarrow as pa
import pytest
import scipy.optimize
import writers
from problems import decay
from writers import WRITERS

import dask_nlsq
from dask_nlsq import DataError


def numpy_decay(t, amplitude, rate, offset):
    return amplitude * np.exp(-rate * t) + offset


@pytest.mark.parametrize("name", WRITERS)
def test_the_fit_is_that_of_the_rows_that_the_writer_reads(name, tmp_path):
    write, library = WRITERS[name]
    try:
        importlib.import_module(library)
    except ImportError:
        pytest.skip(f"{library} is not installed")
    data, frame = write(tmp_path / "runs")
    expected, pcov = scipy.optimize.curve_fit(
        numpy_decay, frame["t"], frame["y"], [2.0, 1.0, 0.3], ftol=1e-14, xtol=1e-14
    )
    result = dask_nlsq.fit(decay, data=data, p0=[2.0, 1.0, 0.3])
    assert result.n_obs == len(frame)
    np.testing.assert_allclose(result.popt, expected, rtol=1e-6)
    np.testing.assert_allclose(result.pcov, pcov, rtol=1e-4)


def test_equality_deletes_are_refused(tmp_path):
    """pyiceberg does not read them."""
    manifest = pytest.importorskip("pyiceberg.manifest")
    table = writers._iceberg(tmp_path / "runs", writers.rows(1))
    deletes = pa.table({"t": writers.rows(1)["t"].to_numpy()[:3]})
    marked = writers.iceberg_with_deletes(table, deletes, manifest.DataFileContent.EQUALITY_DELETES)
    with pytest.raises(DataError, match=r"equality deletes.*rewrites its files"):
        dask_nlsq.fit(decay, data=marked, p0=[2.0, 1.0, 0.3])
