"""Inconsistent Zarr stores: missing chunks, outdated metadata, disks that other hosts lack."""

import json
import warnings

import numpy as np
import pytest
import zarr
from problems import decay

import dask_nlsq
from dask_nlsq import DataError
from dask_nlsq._sources.columns import Columns
from dask_nlsq._sources.open import open_source
from dask_nlsq._sources.zarr import MOST

T = np.linspace(0, 4, 2000)
Y = 2.5 * np.exp(-1.3 * T) + 0.5
COLUMNS = Columns(("t",), "y")


def write(path, t=T, y=Y, **options):
    group = zarr.open_group(path, mode="w", zarr_format=options.pop("zarr_format", 3))
    for name, values in (("t", t), ("y", y)):
        group.create_array(name, data=values, **{"chunks": (50,), **options})
    return group


@pytest.mark.parametrize("where", ["path", "memory", "zip", "url"])
@pytest.mark.parametrize("index", ["start", "end"])
@pytest.mark.parametrize(("stop", "missing"), [(100, 20), (200, 0), (50, 30)])
def test_chunks_that_lack_inside_of_shards_are_counted(stop, missing, index, where, tmp_path):
    store = {
        "path": str(tmp_path / "runs.zarr"),
        "memory": zarr.storage.MemoryStore(),
        "zip": zarr.storage.ZipStore(tmp_path / "runs.zip", mode="w"),
        "url": "memory://shards.zarr",
    }[where]
    group = zarr.open_group(store, mode="w")
    shards = {"shape": (200,), "index_location": index}
    group.create_array("t", data=T, chunks=(50,), shards=shards)
    y = group.create_array("y", shape=T.shape, dtype="f8", chunks=(50,), shards=shards)
    for start in range(0, len(T), 200):
        with warnings.catch_warnings(action="ignore"):  # a ZIP file keeps what is written twice
            y[start : start + stop] = Y[start : start + stop]
    found = open_source(store if where in ("path", "url") else group, COLUMNS).info.absent
    assert found == (
        {"y": f"{missing} of 40 chunks of 'y' are not in the store, and are read as 0.0"} if missing else {}
    )


@pytest.mark.parametrize("length", [1999, 1801, 2000, 150])
def test_what_lies_beyond_the_end_of_an_array_does_not_lack(length, tmp_path):
    write(tmp_path / "runs.zarr", T[:length], Y[:length], shards=(200,))
    assert open_source(tmp_path / "runs.zarr", COLUMNS).info.absent == {}


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("given", ["path", "group"])
def test_consolidated_metadata_that_are_older_hide_no_rows(given, zarr_format, tmp_path):
    path = str(tmp_path / "runs.zarr")
    group = write(path, T[:1000], Y[:1000], zarr_format=zarr_format)
    with warnings.catch_warnings(action="ignore"):
        zarr.consolidate_metadata(path)
    for name, values in (("t", T), ("y", Y)):
        group[name].append(values[1000:])
    source = open_source(path if given == "path" else zarr.open_group(path, mode="r"), COLUMNS)
    assert source.info.rows == 2000
    assert all("out of date" in note for note in source.info.notes) and len(source.info.notes) == 2


def test_an_array_that_consolidated_metadata_do_not_list_is_found(tmp_path):
    path = str(tmp_path / "runs.zarr")
    group = write(path)
    with warnings.catch_warnings(action="ignore"):
        zarr.consolidate_metadata(path)
    group.create_array("late", data=Y)
    assert "no such array" in open_source(path, Columns(("t",), "late")).info.notes[0]


@pytest.mark.parametrize("rows", [10**13, 10**15])
def test_rows_that_are_claimed_are_refused_before_memory_is_asked_for(rows, tmp_path):
    write(tmp_path, chunks=(1000,))
    for name in "ty":
        about = json.loads((tmp_path / name / "zarr.json").read_text())
        (tmp_path / name / "zarr.json").write_text(json.dumps(about | {"shape": [rows]}))
    with pytest.raises(DataError, match=f"claim {rows:,} rows in .* no more than {MOST:,}"):
        open_source(tmp_path, COLUMNS)


@pytest.mark.parametrize("lacking", ["all", "some"])
def test_a_worker_that_sees_another_store_ends_the_fit(lacking, tmp_path, client):
    """Its disk is another: the chunks are removed once the array has been opened."""
    group = write(tmp_path / "runs.zarr", chunks=(500,))
    source = open_source(tmp_path / "runs.zarr", COLUMNS)
    for chunk in list((tmp_path / "runs.zarr" / "y" / "c").iterdir())[: None if lacking == "all" else 1]:
        chunk.unlink()
    with pytest.raises(DataError, match="had 4 chunks of the array when it was opened, and the process on") as caught:
        client.submit(lambda p: p.load(), source.partitions[0], pure=False).result()
    assert caught.value.column == "y" and group["y"].nchunks_initialized < 4


def test_a_store_in_the_memory_of_the_driver_is_seen_by_no_worker(client):
    write("memory://unseen.zarr", chunks=(500,))
    with pytest.raises(DataError, match="had 4 chunks"):
        dask_nlsq.fit(decay, data="memory://unseen.zarr", p0=[2.0, 1.0, 0.3], client=client)


def test_chunks_of_fill_value_that_are_stored_are_values(tmp_path):
    zarr.config.set({"array.write_empty_chunks": True})
    try:
        write(tmp_path, y=np.where(T > 2, 0.0, Y), chunks=(500,))
    finally:
        zarr.config.set({"array.write_empty_chunks": False})
    source = open_source(tmp_path, COLUMNS)
    assert source.info.absent == {}
    np.testing.assert_array_equal(np.concatenate([p.load().y for p in source.partitions]), np.where(T > 2, 0.0, Y))


@pytest.mark.skipif(not hasattr(zarr.Array, "write_chunk_sizes"), reason="Zarr makes such chunks since 3.2")
@pytest.mark.parametrize("sizes", [[300, 700, 1000], [1, 1999], [2000]])
def test_chunks_of_unlike_lengths(sizes, tmp_path):
    with zarr.config.set({"array.rectilinear_chunks": True}):
        group = zarr.open_group(tmp_path, mode="w", zarr_format=3)
        for name, values in (("t", T), ("y", Y)):
            group.create_array(name, shape=T.shape, dtype="f8", chunks=[sizes])[:] = values
        result = dask_nlsq.fit(decay, data=tmp_path, p0=[2.0, 1.0, 0.3])
    np.testing.assert_allclose(result.popt, [2.5, 1.3, 0.5])


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("attribute", ["_FillValue", "missing_value"])
def test_a_number_for_no_value_is_none(attribute, zarr_format, tmp_path):
    """xarray itself keeps -9999 of Zarr 2 as a value, and cannot read Zarr 3 of this kind."""
    group = write(tmp_path, y=np.where(np.arange(2000) % 10, Y, -9999.0), zarr_format=zarr_format)
    group["y"].attrs.update({attribute: -9999.0, "_ARRAY_DIMENSIONS": ["row"]})
    result = dask_nlsq.fit(decay, data=tmp_path, p0=[2.0, 1.0, 0.3], nan_policy="omit")
    assert result.n_dropped == 200
    np.testing.assert_allclose(result.popt, [2.5, 1.3, 0.5])


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({"units": "days since 2000-01-01", "calendar": "noleap"}, "noleap.*cannot be decoded"),
        ({"scale_factor": "ten"}, "cannot be decoded"),
    ],
)
def test_what_the_conventions_do_not_define_is_refused(attributes, said, tmp_path):
    write(tmp_path)["y"].attrs.update(attributes)
    with pytest.raises(DataError, match=said) as caught:
        open_source(tmp_path, COLUMNS)
    assert caught.value.column == "y"


def test_a_range_that_is_not_applied_is_told_of(tmp_path):
    write(tmp_path)["y"].attrs["valid_range"] = [0.0, 2.0]
    assert "'y' has valid_range [0.0, 2.0], which is not applied" in open_source(tmp_path, COLUMNS).info.notes[0]
