"""Frames of `dd.read_parquet` are read as paths are, with the partitions, rows and types of Dask, or by Dask itself."""

import decimal
import pickle

import dask
import dask.dataframe as dd
import fsspec
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import dask_nlsq
from dask_nlsq._sources import frame
from dask_nlsq._sources.columns import Columns
from dask_nlsq._sources.frame_files import FilePartition
from dask_nlsq._sources.open import open_source

ROWS, FILES = 60, 4
T = np.linspace(0.0, 5.0, FILES * ROWS)
RAW = {"t": T, "y": np.cos(T), "s": 1 + T, "n": np.arange(len(T)), "site": np.where(T < 2, "a", "b")}


def write(path, raw=RAW, names="part.{}.parquet"):
    """Write files of which the tenth comes after the ninth only where names are ordered by their numbers."""
    for i in range(FILES):
        table = {name: column[i * ROWS : (i + 1) * ROWS] for name, column in raw.items()}
        file = path / names.format(7 + i)
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(table), file, row_group_size=25)
    return path


def read(path, **options):
    return dd.read_parquet(write(path), **options)


def keyed(path, **options):
    return dd.read_parquet(write(path, names="run={}/part.parquet"), **options)


def indexed(path):
    """Rows whose index lies in the files."""
    for i in range(FILES):
        some = pd.DataFrame(RAW)[i * ROWS : (i + 1) * ROWS]
        some.index = pd.Index(some.n[::-1] ** 2, name="square")
        some.to_parquet(path / f"part.{7 + i}.parquet")
    return dd.read_parquet(path)


def with_metadata(path):
    dd.from_pandas(pd.DataFrame(RAW), npartitions=FILES).to_parquet(path / "rows", write_metadata_file=True)
    return dd.read_parquet(path / "rows")


def with_empty_file(path):
    write(path)
    pq.write_table(pa.table(RAW).slice(0, 0), path / "part.8.parquet")
    return dd.read_parquet(path)


def of(**columns):
    """Rows with other columns."""
    return lambda path: dd.read_parquet(write(path, RAW | columns))


def stamps(unit):
    return of(t=np.datetime64("2026-01-01", unit) + (1000 * T).astype("m8[ms]").astype(f"m8[{unit}]"))


def in_memory(path):
    """Rows on a file system of fsspec that is no disk."""
    fsspec.filesystem("memory").put(str(write(path / "rows")) + "/", f"{path}/", recursive=True)
    return dd.read_parquet(f"memory://{path}")


BY_FILES = {
    "a folder": read,
    "a pattern": lambda path: dd.read_parquet(str(write(path) / "*.parquet")),
    "a list": lambda path: dd.read_parquet([str(write(path) / f"part.{i}.parquet") for i in (10, 8)]),
    "a file": lambda path: dd.read_parquet(write(path) / "part.8.parquet"),
    "a URL": lambda path: dd.read_parquet(f"file://{write(path)}"),
    "another file system": in_memory,
    "columns": lambda path: read(path, columns=["y", "s", "t"]),
    "a selection": lambda path: read(path)[["y", "s", "t", "site"]],
    "twice selected": lambda path: read(path)[["n", "y", "s", "t"]][["t", "s", "y"]],
    "no index": lambda path: read(path, index=False),
    "an index in the files": indexed,
    "a file of metadata": with_metadata,
    "an empty file": with_empty_file,
    "a filter": lambda path: read(path, filters=[("t", "<", 1.9)]),
    "a filter of texts": lambda path: read(path, filters=[("site", "==", "a"), ("n", ">=", 3)]),
    "filters of which one must hold": lambda path: read(path, filters=[[("t", "<", 1)], [("n", "in", [70, 200])]]),
    "folders of keys": keyed,
    "float32": of(y=RAW["y"].astype("f4")),
    "integers": of(t=RAW["n"].astype("i2")),
    "seconds": stamps("s"),
    "nanoseconds": stamps("ns"),
    "missing values": of(y=pa.array(RAW["y"], mask=T > 4.7), t=np.where(T > 4.9, np.nan, T)),
    "missing integers": of(t=pa.array(RAW["n"], mask=T > 4.9)),
}
"""Frames whose partitions are files."""

AS_BEFORE = {
    "map_partitions": lambda path: read(path).map_partitions(lambda rows: rows[::-1]),
    "assign": lambda path: read(path).assign(y=1.0),
    "a filter on rows": lambda path: (lambda ddf: ddf[ddf.t < 2])(read(path)),
    "rename": lambda path: read(path).rename(columns={"n": "t", "t": "n"}),
    "astype": lambda path: read(path).astype({"t": "float32"}),
    "fillna": lambda path: read(path).fillna(0.0),
    "some partitions": lambda path: read(path).partitions[1:3],
    "repartition": lambda path: read(path).repartition(npartitions=2),
    "concat": lambda path: dd.concat([read(path), dd.read_parquet(path)]),
    "set_index": lambda path: read(path).set_index("n"),
    "sort_values": lambda path: read(path).sort_values("y"),
    "sample": lambda path: read(path).sample(frac=0.5, random_state=0),
    "persist": lambda path: read(path).persist(scheduler="synchronous"),
    "categories": lambda path: of(site=pa.array(RAW["n"] % 7).dictionary_encode())(path).categorize(["site"]),
    "index=": lambda path: read(path, index="n"),
    "calculate_divisions": lambda path: read(path, index="n", calculate_divisions=True),
    "nullable types": lambda path: read(path, dtype_backend="numpy_nullable"),
    "Arrow's types": lambda path: read(path, dtype_backend="pyarrow"),
    "a mapper of types": lambda path: read(path, arrow_to_pandas={"types_mapper": {pa.int64(): pd.Int64Dtype()}.get}),
    "options of a reader": lambda path: read(path, read={"pre_buffer": False}),
    "aggregate_files": lambda path: read(path, aggregate_files=True, split_row_groups=2),
    "split_row_groups": lambda path: read(path, split_row_groups=True),
    "blocksize": lambda path: read(path, blocksize="1 KiB"),
    "the other reader": lambda path: dd.read_parquet(str(write(path)), filesystem="arrow"),
    "a filter of other rows": lambda path: read(path, filters=[("n", "!=", 3)]),
    "a filter of missing values": lambda path: read(path, filters=[("t", "is not", np.nan)]),
    "a filter of folders": lambda path: keyed(path, filters=[("run", "<", 9)]),
    "a filter beside folders": lambda path: keyed(path, filters=[("t", "<", 2.0)]),
}
"""Frames that Dask makes."""

BY_TASKS = {
    "booleans": of(t=T < 2),
    "decimals": of(t=pa.array([decimal.Decimal(round(1000 * t)) / 1000 for t in T])),
    "categories": of(t=pa.array(RAW["n"] % 7).dictionary_encode()),
    "dates": of(t=pa.array(RAW["n"].astype("i4")).cast("date32")),
    "dates of a zone": of(t=pa.array(RAW["n"]).cast(pa.timestamp("ms", "UTC"))),
    "durations": of(t=RAW["n"].astype("m8[ms]")),
    "nothing": of(t=pa.nulls(len(T))),
}
"""Columns of types that are left to Dask, whatever it makes of them."""


def unlike(second):
    def make(path):
        write(path)
        table = pa.table({name: column[ROWS : 2 * ROWS] for name, column in (RAW | second).items()})
        pq.write_table(table, path / "part.8.parquet")
        return dd.read_parquet(path)

    return make


UNLIKE = {
    "integers": unlike({"t": RAW["n"]}),
    "float32": unlike({"t": T.astype("f4")}),
    "booleans": unlike({"t": T < 2}),
    "decimals": unlike({"t": pa.array([decimal.Decimal(round(1000 * t)) / 1000 for t in T])}),
}
"""Frames of which the second file has a column of another type."""


def rows_of(data, names):
    """Return the source and its blocks, or the error, as the files say and as Dask does."""
    try:
        source = open_source(data, Columns(names, "y", "s", "omit"))
        partitions = [part.compute() for part in source.partitions] if source.shared else source.partitions
        return source, [part.load() for part in pickle.loads(pickle.dumps(list(partitions)))]
    except Exception as error:
        return type(error), str(error)


def compare(data, monkeypatch, names=("t",)):
    """Compare both ways of reading, to the bit; return the partitions."""
    source, blocks = rows_of(data, names)
    monkeypatch.setattr(frame, "file_partitions", lambda *_: None)
    before, expected = rows_of(data, names)
    if isinstance(before, type):
        assert (source, blocks) == (before, expected)
        return []
    for attribute in ("token", "shared"):
        assert getattr(source, attribute) == getattr(before, attribute)
    assert source.info == before.info and len(blocks) == len(expected)
    for one, other in zip(blocks, expected, strict=True):
        assert (one.dropped, one.rows) == (other.dropped, other.rows)
        for a, b in zip((*one.x, one.y, one.weight), (*other.x, other.y, other.weight), strict=True):
            assert a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return source.partitions


def by_files(partitions):
    return len(partitions) > 0 and all(isinstance(part, FilePartition) for part in partitions)


def tasks_of(partitions, monkeypatch):
    """Return how many of the partitions Dask reads."""
    ran, get = [], dask.get
    monkeypatch.setattr(dask, "get", lambda *given: ran.append(1) or get(*given))
    for part in partitions:
        part.load()
    return len(ran)


@pytest.mark.parametrize("kind", BY_FILES)
def test_what_is_read_as_files(kind, tmp_path, monkeypatch):
    data = BY_FILES[kind](tmp_path)
    partitions = compare(data, monkeypatch)
    assert by_files(partitions) and len(partitions) == data.npartitions


@pytest.mark.parametrize("kind", AS_BEFORE)
def test_what_dask_makes(kind, tmp_path, monkeypatch):
    assert not by_files(compare(AS_BEFORE[kind](tmp_path), monkeypatch))


@pytest.mark.parametrize("kind", BY_TASKS)
def test_types_that_dask_converts(kind, tmp_path, monkeypatch):
    compare(BY_TASKS[kind](tmp_path), monkeypatch)


@pytest.mark.parametrize("kind", UNLIKE)
def test_a_file_that_is_unlike_the_frame_is_left_to_dask(kind, tmp_path, monkeypatch):
    partitions = compare(UNLIKE[kind](tmp_path), monkeypatch)
    assert by_files(partitions) and tasks_of(partitions, monkeypatch) == 1


def test_the_index_is_made_by_dask(tmp_path, monkeypatch):
    assert not by_files(compare(indexed(tmp_path), monkeypatch, ("index",)))


@pytest.mark.parametrize("kind", BY_FILES)
def test_no_task_of_dask_runs(kind, tmp_path, monkeypatch):
    source = open_source(BY_FILES[kind](tmp_path), Columns(("t",), "y", nan_policy="omit"))
    assert tasks_of(source.partitions, monkeypatch) == 0


def test_each_file_is_opened_once_and_only_the_columns_of_the_fit_are_read(tmp_path, monkeypatch):
    source = open_source(read(tmp_path), Columns(("t",), "y"))
    opens, reads, opened = [], [], pq.ParquetFile
    monkeypatch.setattr(pq, "ParquetFile", lambda *given, **how: opens.append(1) or opened(*given, **how))
    whole = opened.read_row_groups
    monkeypatch.setattr(opened, "read_row_groups", lambda *given, **how: reads.append(how) or whole(*given, **how))
    assert sum(part.load().rows for part in source.partitions) == len(T)
    assert len(opens) == FILES and [how["columns"] for how in reads] == FILES * [["t", "y"]]


OTHER_DASK = {
    "another expression": ("_EXPRESSION", "ReadFiles"),
    "another task": ("_TASK", "ReadFiles"),
    "another option": ("_OPTIONS", {"a new one": (None,)}),
}


@pytest.mark.parametrize("what", OTHER_DASK)
def test_another_release_of_dask_reads_as_before(what, tmp_path, monkeypatch):
    monkeypatch.setattr(f"dask_nlsq._sources.frame_files.{OTHER_DASK[what][0]}", OTHER_DASK[what][1])
    assert not by_files(compare(read(tmp_path), monkeypatch))


def model(t, a, b):
    return a * jnp.cos(b * t)


def stop_at_once(intermediate):
    raise StopIteration


@pytest.mark.parametrize("first", ["files", "tasks"])
def test_a_checkpoint_of_either_way_goes_on_the_other_way(first, tmp_path, monkeypatch):
    data = read(tmp_path / "rows")
    options = {"p0": [0.8, 1.1], "tier": "chunked", "checkpoint": tmp_path / "run", "client": False}
    with monkeypatch.context() as patch:
        if first == "tasks":
            patch.setattr(frame, "file_partitions", lambda *_: None)
        begun = dask_nlsq.fit(model, data=data, **options, callback=stop_at_once)
    if first == "files":
        monkeypatch.setattr(frame, "file_partitions", lambda *_: None)
    ended = dask_nlsq.fit(model, data=data, **options, resume=True)
    whole = dask_nlsq.fit(model, data=data, **(options | {"checkpoint": None}))
    assert not begun.success and ended.popt.tobytes() == whole.popt.tobytes() and ended.nsweeps == whole.nsweeps


def test_an_error_names_the_partition_of_the_frame(tmp_path):
    data = read(tmp_path)
    (tmp_path / "part.9.parquet").unlink()
    with pytest.raises(dask_nlsq.SweepError, match=r"part\.9\.parquet.*") as caught:
        data.nlsq.fit(model, p0=[0.8, 1.1])
    assert caught.value.partition == 2


def test_the_plan_has_the_partitions_of_the_frame(tmp_path):
    plan = dask_nlsq.plan(model, data=read(tmp_path, filters=[("t", "<", 1.9)]), p0=[0.8, 1.1])
    assert plan.inputs.partitions == dd.read_parquet(tmp_path, filters=[("t", "<", 1.9)]).npartitions
