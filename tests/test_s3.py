"""Rows in a bucket give the bits of the same files on disk; this machine serves the bucket."""

import numpy as np
import pytest
import s3fs
from moto import server as moto
from problems import STORES, decay, decay_rows

import dask_nlsq
from dask_nlsq import CheckpointMismatch, DataError


@pytest.fixture(scope="session")
def disk(tmp_path_factory):
    """A folder of Parquet files, and a Zarr group."""
    folder = tmp_path_factory.mktemp("disk")
    (folder / "rows").mkdir()
    STORES["parquet"](*decay_rows(20_000), 4, folder / "rows")
    STORES["zarr"](*decay_rows(20_000), 4, folder)
    return folder


@pytest.fixture(scope="session")
def bucket(disk):
    """A bucket with what is on disk, once a process, for the server keeps it when it is stopped: how to open it."""
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    options = {"key": "key", "secret": "secret", "endpoint_url": f"http://{host}:{port}"}
    fs = s3fs.S3FileSystem(**options)
    fs.mkdir("bucket")
    fs.put(str(disk / "rows"), "bucket/rows", recursive=True)
    fs.put(str(disk / "rows.zarr"), "bucket/rows.zarr", recursive=True)
    yield options
    server.stop()


@pytest.fixture(params=["threads", "cluster"])
def where(request):
    """Read here, and in two processes."""
    if request.param == "cluster":
        request.getfixturevalue("client")


@pytest.mark.crossed
@pytest.mark.one_at_a_time
@pytest.mark.usefixtures("where")
@pytest.mark.parametrize("rows", ["rows", "rows/*.parquet", "rows.zarr"])
def test_a_bucket_gives_the_bits_of_the_disk(disk, bucket, rows, monkeypatch):
    monkeypatch.setattr("dask_nlsq._sources.zarr.ROWS", 5_000)  # four partitions, as there are files
    there = dask_nlsq.fit(decay, data=f"s3://bucket/{rows}", storage_options=bucket)
    here = dask_nlsq.fit(decay, data=f"{disk}/{rows}")
    np.testing.assert_array_equal(there.popt, here.popt)
    np.testing.assert_array_equal(there.pcov, here.pcov)


@pytest.mark.parametrize("rows", ["gone", "gone.zarr", "gone/*.parquet"])
def test_what_is_not_there(bucket, rows):
    with pytest.raises(DataError, match="gone"):
        dask_nlsq.fit(decay, data=f"s3://bucket/{rows}", storage_options=bucket)


@pytest.mark.crossed
@pytest.mark.parametrize("rows", ["anew", "anew/*.parquet", "anew/0.parquet"])
def test_what_others_write_anew_is_noticed(bucket, rows, tmp_path):
    """A file system remembers what it has listed."""
    options = {"model": decay, "data": f"s3://bucket/{rows}", "storage_options": bucket, "checkpoint": tmp_path / "run"}
    other = s3fs.S3FileSystem(**bucket, skip_instance_cache=True)
    for source in ("0000.parquet", "0001.parquet"):
        other.copy(f"bucket/rows/{source}", "bucket/anew/0.parquet")
        if source == "0000.parquet":
            first = dask_nlsq.fit(**options)
            np.testing.assert_array_equal(dask_nlsq.fit(**options).popt, first.popt)
    with pytest.raises(CheckpointMismatch, match="files: "):
        dask_nlsq.fit(**options)
