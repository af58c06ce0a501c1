"""The contract of every source: the same rows, in the same order, as float64, for any storage."""

import contextlib
import datetime
import decimal
import importlib.util
import itertools
import pickle
import re
from decimal import Decimal

import dask
import dask.array as da
import dask.bag
import dask.dataframe as dd
import fsspec
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import xarray as xr
import zarr
from problems import STORES, decay, decay_rows

import dask_nlsq
from dask_nlsq import DataError, Model
from dask_nlsq._kernel.block import ALIGNMENT, SLABS, Block, concatenate
from dask_nlsq._plan import READERS
from dask_nlsq._sources.columns import Columns
from dask_nlsq._sources.file_stamps import files
from dask_nlsq._sources.open import open_source
from dask_nlsq._sweep.executors.local import Serial
from dask_nlsq._sweep.groups import group

ROWS = 1000
T = np.linspace(0, 5, ROWS)
RAW = {"t": T, "y": np.cos(T), "s": 1 + T, "extra": -T}
FRAME = pd.DataFrame(RAW)


def parquet_frame(path):
    dd.from_pandas(FRAME, npartitions=7).to_parquet(path / "frame")
    return dd.read_parquet(path / "frame")


def parquet_path(path):
    dd.from_pandas(FRAME, npartitions=7).to_parquet(path / "frame")
    return str(path / "frame")


def shuffled_frame(path):
    return dd.from_pandas(FRAME.sample(frac=1, random_state=0), npartitions=7).sort_values("t")


def zarr_group(path, shards=None):
    group = zarr.create_group(path / "rows.zarr")
    for name, column in RAW.items():
        group.create_array(name, data=column, chunks=(100,), shards=shards)
    return group


def zarr_path(path):
    zarr_group(path)
    return path / "rows.zarr"


def unknown_chunks(path):
    frame = parquet_frame(path)
    return {name: frame[name].values for name in RAW}


def dask_arrays(path):
    return {name: da.from_array(a, chunks=130) for name, a in RAW.items()}


def unlike_chunks(path):
    return {name: da.from_array(a, chunks=130 + 10 * i) for i, (name, a) in enumerate(RAW.items())}


def mixed_arrays(path):
    return dask_arrays(path) | {"y": RAW["y"]}


def series(path):
    frame = parquet_frame(path)
    return {name: frame[name] for name in RAW}


def series_and_arrays(path):
    frame = dd.from_pandas(FRAME, npartitions=7)
    return dict(zarr_group(path).arrays()) | {"t": da.from_array(T, chunks=130), "y": frame.y}


def zarr_and_dask(path):
    return dict(zarr_group(path).arrays()) | {"y": da.from_array(RAW["y"], chunks=130)}


SOURCES = {
    "parquet frame": parquet_frame,
    "parquet path": parquet_path,
    "pandas-backed frame": lambda _: dd.from_pandas(FRAME, npartitions=7),
    "derived frame": lambda path: parquet_frame(path).assign(extra=1.0).query("t >= 0"),
    "shuffled frame": shuffled_frame,
    "ragged frame": lambda _: dd.concat([dd.from_pandas(FRAME[a:b], npartitions=1) for a, b in [(0, 1), (1, 1000)]]),
    "arrow frame": lambda _: dd.from_pandas(FRAME.convert_dtypes(dtype_backend="pyarrow"), npartitions=3),
    "pandas": lambda _: FRAME,
    "mapping": lambda _: RAW,
    "lists": lambda _: {name: a.tolist() for name, a in RAW.items()},
    "float columns of integers and booleans": lambda _: RAW,
    "dask arrays": dask_arrays,
    "unlike chunks": unlike_chunks,
    "mixed arrays": mixed_arrays,
    "unknown chunks": unknown_chunks,
    "zarr group": zarr_group,
    "zarr shards": lambda path: zarr_group(path, (300,)),
    "zarr arrays": lambda path: dict(zarr_group(path).arrays()),
    "zarr path": zarr_path,
    "zarr and dask": zarr_and_dask,
    "zarr and numpy": lambda path: dict(zarr_group(path, (300,)).arrays()) | {"y": RAW["y"]},
    "series": series,
    "shuffled series": lambda path: dict(shuffled_frame(path).items()),
    "series and arrays": series_and_arrays,
}


@pytest.mark.parametrize("kind", SOURCES)
class TestContract:
    """What every source promises."""

    @pytest.fixture
    def source(self, kind, tmp_path):
        return open_source(SOURCES[kind](tmp_path), Columns(("t",), "y", "s"))

    @pytest.fixture
    def blocks(self, source):
        groups = Serial().hold(group(source.partitions, float("inf"), 1), source.shared)
        return [block for held in groups for block in held.partitions]

    def test_rows_come_in_order(self, blocks):
        whole = concatenate(blocks)
        np.testing.assert_array_equal(whole.x[0], RAW["t"])
        np.testing.assert_array_equal(whole.y, RAW["y"])
        np.testing.assert_array_equal(whole.weight, 1 / RAW["s"])

    def test_columns_are_contiguous_float64(self, blocks):
        for block in blocks:
            for column in (*block.x, block.y, block.weight):
                assert column.dtype == np.float64
                assert column.flags.c_contiguous

    def test_partitions_travel_and_load_again(self, source):
        if source.shared:
            pytest.skip("partitions of a shuffle are computed together")
        for partition in pickle.loads(pickle.dumps(list(source.partitions))):
            first, second = partition.load(), partition.load()
            np.testing.assert_array_equal(first.y, second.y)

    def test_what_is_said_of_it_holds(self, source, blocks):
        assert source.info.columns == ("t", "y", "s")
        assert source.info.rows in (None, ROWS)
        assert source.token

    def test_a_missing_column_is_named(self, kind, tmp_path):
        with pytest.raises(DataError, match=r"no column 'nope'.*'t'"):
            open_source(SOURCES[kind](tmp_path), Columns(("nope",), "y"))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([1, 2], "uint8"), [1, 2]),
        (np.array([True, False]), [1, 0]),
        (np.array([1.5, 2.5], "float16"), [1.5, 2.5]),
        (np.array([1.5, 2.5], ">f8"), [1.5, 2.5]),
        (pd.array([1, None], dtype="Int64"), [1, np.nan]),
        (pd.array([1.5, None], dtype="float64[pyarrow]"), [1.5, np.nan]),
        (np.ma.masked_array([1.0, 2.0], [False, True]), [1, np.nan]),
        (np.array([1, 2], "timedelta64[m]"), [60, 120]),
        (np.array(["2026-01-01T00:00:01", "NaT"], "datetime64[ns]"), [1, np.nan]),
        (pd.Series(pd.to_datetime(["2026-01-01T00:00:01", None])), [1, np.nan]),
    ],
    ids=lambda v: str(getattr(v, "dtype", "")),
)
def test_what_is_a_number_becomes_float64(values, expected):
    columns = Columns(("t",), "y", origins={"t": np.datetime64("2026-01-01")})
    np.testing.assert_array_equal(columns.to_float("t", values), expected)


NOON = np.datetime64("2026-01-01T12:00:00.500000")
FAR = ["0001-01-01", "9999-12-31", "2026-01-02"]


def since_noon(*days):
    """What Python's calendar says."""
    return [(datetime.datetime.fromisoformat(day) - NOON.item()).total_seconds() for day in days]


@pytest.mark.parametrize("origin", ["us", "ns"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array(FAR, "datetime64[s]"), since_noon(*FAR)),
        (np.array(FAR, "datetime64[us]"), since_noon(*FAR)),
        (np.array(FAR, "datetime64[D]"), since_noon(*FAR)),
        (np.array(["2026-01-01T12:00:01.750", "NaT"], "datetime64[ms]"), [1.25, np.nan]),
        (np.array(["2026-01-01T12:00:00.25", "2262-01-01"], "datetime64[ns]"), [-0.25, *since_noon("2262-01-01")]),
        (np.array(["2026-02", "NaT"], "datetime64[M]"), [*since_noon("2026-02-01"), np.nan]),
        (np.array(["2027"], "datetime64[Y]"), since_noon("2027-01-01")),
        (pd.Series(pd.to_datetime(["2026-01-01 13:00", None])).dt.tz_localize("Europe/Paris"), [-0.5, np.nan]),
        (pd.Series(np.array(["3026-01-01"], "M8[s]")).dt.tz_localize("UTC"), since_noon("3026-01-01")),
        (pd.Series(np.array(["3026-01-01"], "M8[us]")).astype("timestamp[us][pyarrow]"), since_noon("3026-01-01")),
    ],
    ids=lambda v: str(getattr(v, "dtype", "")),
)
def test_dates_of_every_unit_count_from_one_instant(values, expected, origin):
    columns = Columns(("t",), "y", origins={"t": NOON.astype(f"datetime64[{origin}]")})
    np.testing.assert_array_equal(columns.to_float("t", values), expected)


def test_dates_further_apart_than_their_unit_can_count():
    values = np.array(["1700-01-01", "2262-01-01"], "datetime64[ns]")
    columns = Columns(("t",), "y", origins={"t": values[0]})
    np.testing.assert_array_equal(columns.to_float("t", values), [0, 205266 * 86400.0])


STEPS = pd.Series(pd.to_datetime(["2026-01-01T18:00:00.500"]))
PIECES = {
    "microseconds, then days": (STEPS.astype("M8[us]"), pd.Series([datetime.date(2026, 1, 2)]), 21599.5),
    "microseconds, then milliseconds": (STEPS.astype("M8[us]"), (STEPS + pd.Timedelta("2ms")).astype("M8[ms]"), 0.002),
    "nanoseconds, then seconds": (STEPS.astype("M8[ns]"), pd.Series(np.array(["2026-01-02"], "M8[s]")), 21599.5),
}


@pytest.mark.parametrize("kind", ["parquet", "frame"])
@pytest.mark.parametrize("pieces", PIECES.values(), ids=PIECES)
def test_partitions_of_unlike_units_count_from_one_instant(pieces, kind, tmp_path):
    *columns, expected = pieces
    frames = [pd.DataFrame({"t": column, "y": 0.0}) for column in columns]
    for i, frame in enumerate(frames):
        frame.to_parquet(tmp_path / f"{i}.parquet")
    data = str(tmp_path)
    if kind == "frame":
        data = dd.from_map(lambda i: frames[i].astype({"t": f"M8[{'ms' if i else 'ns'}]"}), [0, 1], meta=frames[0])
    source = open_source(data, Columns(("t",), "y"))
    np.testing.assert_array_equal(concatenate([p.load() for p in source.partitions]).x[0], [0, expected])


UNORDERED = {
    "months": np.array([1, 2], "timedelta64[M]"),
    "years": np.array([1, 2], "timedelta64[Y]"),
    "categories": pd.Categorical(pd.to_datetime(["2026-01-01", "2026-01-02"])),
}


@pytest.mark.parametrize("values", UNORDERED.values(), ids=UNORDERED)
def test_times_without_seconds_are_refused(values):
    with pytest.raises(DataError, match=r"Convert it first") as caught:
        open_source({"t": values, "y": np.arange(2.0)}, Columns(("t",), "y"))
    assert caught.value.column == "t"


@pytest.mark.parametrize(
    "values", [np.array([1j]), np.array(["a"]), np.array([1, "a"], object), pd.Categorical(["a"]), np.ones((2, 2))]
)
def test_what_is_not_a_number_is_refused(values):
    with pytest.raises(DataError) as caught:
        Columns(("t",), "y").to_float("t", values)
    assert caught.value.column == "t"


def test_a_block_is_its_own_partition():
    block = Block((T,), T)
    assert block.load() is block


@pytest.mark.parametrize("as_path", [False, True])
def test_filters_and_dates(tmp_path, as_path):
    stamps = pd.date_range("2026-01-01", periods=100, freq="s")
    pd.DataFrame({"when": stamps, "y": np.arange(100.0)}).to_parquet(tmp_path / "a.parquet", row_group_size=10)
    data = str(tmp_path / "a.parquet") if as_path else dd.read_parquet(tmp_path, filters=[("y", ">=", 50)])
    source = open_source(data, Columns(("when",), "y"), [("y", ">=", 50)] if as_path else None)
    block = concatenate([p.load() for p in source.partitions])
    np.testing.assert_array_equal(block.y, np.arange(50.0, 100))
    np.testing.assert_array_equal(block.x[0], np.arange(50.0))


def test_row_groups_keep_their_order_on_the_way_to_a_worker(tmp_path):
    """Pickled, the numbers 88 to 99 have come back as 96 to 99 and 88 to 95."""
    rows = 100 * 12_000
    frame = pd.DataFrame({"t": np.arange(rows, dtype=float), "y": 0.0})
    frame.to_parquet(tmp_path / "many.parquet", row_group_size=12_000)
    partitions = open_source(str(tmp_path / "many.parquet"), Columns(("t",), "y", None, "raise")).partitions
    blocks = [pickle.loads(pickle.dumps(partition)).load() for partition in partitions]
    assert len(blocks) > 1 and (concatenate(blocks).x[0] == np.arange(rows)).all()


def test_a_row_group_is_decoded_in_one_piece(tmp_path, monkeypatch):
    """Pieces would be joined, in a copy."""
    pd.DataFrame({"t": np.arange(600_000.0), "y": 0.0}).to_parquet(tmp_path / "one.parquet", row_group_size=600_000)
    (partition,) = open_source(str(tmp_path / "one.parquet"), Columns(("t",), "y")).partitions
    pieces = []
    monkeypatch.setattr("dask_nlsq._sources.arrow.to_numpy", lambda c: pieces.append(c.num_chunks) or c.to_numpy())
    assert partition.load().rows == 600_000 and pieces == [1, 1]


@pytest.mark.parametrize("npartitions", [1, 5])
def test_the_index_can_be_x(npartitions):
    frame = FRAME.set_index("t")
    for data in (frame, dd.from_pandas(frame, npartitions=npartitions)):
        source = open_source(data, Columns(("index",), "y"))
        np.testing.assert_array_equal(concatenate([p.load() for p in source.partitions]).x[0], T)


OTHERS = {
    "the same": RAW,
    "integers": {**RAW, "t": np.arange(ROWS)},
    "float32": {**RAW, "y": RAW["y"].astype("f4")},
    "another order": dict(reversed(RAW.items())),
}


@pytest.mark.parametrize("filters", [None, [("s", ">", 1.5)]])
@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_parquet_files_need_not_be_alike(tmp_path, other, filters):
    """Arrow's scanner reads what is filtered, or has other types than the first file; the rest is read without it."""
    frames = [FRAME, pd.DataFrame(other)]
    for i, frame in enumerate(frames):
        frame.to_parquet(tmp_path / f"{i}.parquet")
    source = open_source(str(tmp_path), Columns(("t",), "y"), filters=filters)
    whole = pd.concat(frames)
    whole = whole if filters is None else whole[whole.s > 1.5]
    read = concatenate([partition.load().wide() for partition in source.partitions])
    np.testing.assert_array_equal(read.y, whole.y)
    np.testing.assert_array_equal(read.x[0], whole.t)
    alike = filters is None and all(np.asarray(other[name]).dtype == float for name in "ty")
    assert source.info.reader == ("Parquet" if alike else "scanned Parquet")


def test_a_parquet_file_without_a_column_is_named(tmp_path):
    FRAME.to_parquet(tmp_path / "0.parquet")
    FRAME.drop(columns="y").to_parquet(tmp_path / "1.parquet")
    with pytest.raises(DataError, match=r"no column 'y'; the file '.*1\.parquet' has 't'"):
        open_source(str(tmp_path), Columns(("t",), "y"))


WHENS = pd.Series(pd.to_datetime(["2026-01-01", "2026-01-02"]))
UNLIKE = {"dates": WHENS, "numbers": pd.Series([1, 2]), "durations": WHENS - WHENS[0]}


@pytest.mark.parametrize("filters", [None, [("y", ">", -1)]])
@pytest.mark.parametrize(("first", "second"), [*itertools.permutations(UNLIKE, 2)])
def test_parquet_files_that_hold_unlike_things_in_one_column_are_refused(first, second, filters, tmp_path):
    for i, kind in enumerate((first, second)):
        pd.DataFrame({"t": UNLIKE[kind], "y": [0.0, 1.0]}).to_parquet(tmp_path / f"{i}.parquet")
    with pytest.raises(DataError, match=rf"{first} \(.*\) in '.*0\.parquet' and {second} \(.*\) in '.*1\.p") as caught:
        open_source(str(tmp_path), Columns(("t",), "y"), filters)
    assert caught.value.column == "t"


def test_unlike_lengths_are_refused(tmp_path):
    stored = zarr.create_array(tmp_path / "y.zarr", data=T[:-1])
    for y in (T[:-1], da.from_array(T[:-1]), stored, dd.from_pandas(FRAME[:-1], npartitions=2).y):
        with pytest.raises(DataError, match="length"):
            open_source({"t": da.from_array(T), "y": y}, Columns(("t",), "y"))
    with pytest.raises(DataError, match="unlike lengths"):
        open_source({"t": T, "y": T[:-1]}, Columns(("t",), "y"))


def test_unknown_chunks_must_match(tmp_path):
    frame = parquet_frame(tmp_path)
    arrays = {"t": frame["t"].values, "y": frame.repartition(npartitions=2)["y"].values}
    with pytest.raises(DataError, match="compute_chunk_sizes"):
        open_source(arrays, Columns(("t",), "y"))


@pytest.mark.parametrize("kind", ["arrays", "frame", "parquet"])
def test_float32_is_kept_in_half_the_memory_and_fitted_in_float64(kind, tmp_path):
    t, y = (column.astype("f4") for column in decay_rows(5000))
    frame = pd.DataFrame({"t": t, "y": y})
    frame.to_parquet(tmp_path / "a.parquet")
    data = {"arrays": {"t": t, "y": y}, "frame": dd.from_pandas(frame, 3), "parquet": tmp_path / "a.parquet"}[kind]
    source = open_source(data, Columns(("t",), "y"))
    assert sum(p.load().nbytes for p in source.partitions) == 2 * 4 * 5000
    half, full = (dask_nlsq.fit(decay, data=d) for d in (data, {"t": t.astype("f8"), "y": y.astype("f8")}))
    np.testing.assert_allclose(half.popt, full.popt, rtol=1e-10)
    np.testing.assert_allclose(dask_nlsq.fit(decay, data=data, jac="3-point").popt, full.popt, rtol=1e-7)
    np.testing.assert_allclose(half.predict(t), full.predict(t.astype("f8")), rtol=1e-12)


@pytest.mark.parametrize("kind", ["zarr path", "zarr group", "zarr and numpy", "pandas", "dask arrays"])
def test_filters_of_what_is_no_parquet_are_refused(kind, tmp_path):
    with pytest.raises(DataError, match="filters= needs"):
        open_source(SOURCES[kind](tmp_path), Columns(("t",), "y"), [("t", "<", 1)])


@pytest.mark.parametrize("shards", [None, (200,)])
def test_chunks_that_a_store_lacks_are_counted_or_refused(shards, tmp_path):
    t, y = decay_rows(1000)
    group = zarr.create_group(tmp_path / "rows.zarr")
    group.create_array("t", data=t, chunks=(100,), shards=shards)
    group.create_array("y", data=np.where(np.arange(1000) < 200, 0.0, y), chunks=(100,), shards=shards)
    group.create_array("whole", data=y, chunks=(100,), shards=shards)
    filled = dask_nlsq.fit(decay, data=str(tmp_path / "rows.zarr"))
    assert filled.n_obs == 1000
    assert any("2 of 10 chunks of 'y'" in note for note in filled.notes)
    with pytest.raises(DataError, match="2 of 10 chunks") as caught:
        dask_nlsq.fit(decay, data=group, missing_chunks="raise")
    assert caught.value.column == "y"
    assert dask_nlsq.fit(decay, data=group, y="whole", missing_chunks="raise").success


@pytest.mark.parametrize("beside", ["numpy", "dask", "zarr", "series", "mapping", "sigma", "two rows of x"])
def test_chunks_that_arrays_lack_are_counted_or_refused_beside_others(beside, tmp_path):
    t, y = decay_rows(1000)
    lacking = zarr.create_array(tmp_path / "lacking", shape=(1000,), chunks=(100,), dtype="f8", fill_value=1.0)
    lacking[200:] = y[200:]
    if beside == "two rows of x":
        x = zarr.create_array(tmp_path / "x", shape=(2, 1000), chunks=(2, 100), dtype="f8", fill_value=1.0)
        x[:, 200:] = np.array([t, t])[:, 200:]
        options = {"model": lambda x, a, b: a * jnp.exp(-b * x[0]), "x": x, "y": y, "p0": [1, 1]}
    else:
        x = {"dask": da.from_array(t, chunks=130), "series": dd.from_pandas(pd.Series(t), npartitions=3)}.get(beside, t)
        roles = {"sigma": {"x": x, "y": y, "sigma": lacking}, "mapping": {"data": {"t": x, "y": lacking}}}
        if beside == "zarr":
            x, y, lacking = lacking, y, zarr.create_array(tmp_path / "y", data=y, chunks=(100,))
        options = {"model": decay} | roles.get(beside, {"x": x, "y": lacking})
    assert sum("2 of 10 chunks" in note for note in dask_nlsq.fit(**options).notes) == 1
    with pytest.raises(DataError, match="2 of 10 chunks"):
        dask_nlsq.fit(**options, missing_chunks="raise")


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_arrays_in_memory_are_cut_where_nothing_needs_a_copy(dtype):
    t = np.zeros(3 * SLABS[1] + 100, dtype)
    first, *middle, last = open_source({"t": t, "y": t}, Columns(("t",), "y")).partitions
    assert (first.rows, last.rows) == (SLABS[1] - 16 // t.itemsize, 100 + 16 // t.itemsize)
    assert [b.rows for b in middle] == 2 * [SLABS[1]]
    assert all(
        np.shares_memory(c, t) and (c.ctypes.data - t.ctypes.data + 16) % ALIGNMENT == 0 for c in middle[0].columns
    )


HOURS = pd.date_range("2020-01-01", periods=4, freq="h")
VARIABLES = {
    "y": np.array([10, 20.5, np.nan, 30]),
    "single": np.arange(4, dtype="f4"),
    "integers": np.arange(4),
    "shifted": np.arange(4.0),
    "counted": np.array([1, 2, np.nan, 4]),
    "lacking": np.array([1, 2, np.nan, 4], "f4"),
    "lasting": HOURS - HOURS[0],
    "neutral": np.arange(4.0),
}
ENCODING = {
    "y": {"dtype": "int16", "scale_factor": 0.5, "add_offset": 5.0, "_FillValue": -9999},
    "shifted": {"add_offset": 1.0, "_FillValue": None},
    "counted": {"dtype": "int16", "_FillValue": -1},
    "lacking": {"_FillValue": -99.0, "missing_value": -99.0},
    "neutral": {"scale_factor": 1.0, "add_offset": 0.0},
}


@pytest.fixture(scope="module", params=[2, 3])
def encoded(request, tmp_path_factory):
    """The path of what xarray wrote, in both formats of Zarr."""
    data = xr.Dataset({name: ("time", values) for name, values in VARIABLES.items()}, {"time": HOURS})
    path = tmp_path_factory.mktemp("encoded") / "rows.zarr"
    data.to_zarr(path, zarr_format=request.param, encoding=ENCODING, consolidated=False)
    return str(path)


@pytest.mark.parametrize("how", ["path", "group", "arrays", "some arrays"])
@pytest.mark.parametrize("name", ["y", "shifted", "counted", "lacking", "lasting", "time"])
def test_zarr_is_decoded_as_xarray_decodes_it(encoded, name, how):
    group = zarr.open_group(encoded, mode="r")
    arrays = {name: group[name], "single": group["single"]}
    data = {"path": encoded, "group": group, "arrays": arrays, "some arrays": {**arrays, "single": np.arange(4)}}[how]
    expected = 3600.0 * np.arange(4) if name in ("time", "lasting") else VARIABLES[name]
    for source in (data, xr.open_zarr(encoded, decode_timedelta=True, consolidated=False)):
        (block,) = open_source(source, Columns((name,), "single")).partitions
        np.testing.assert_array_equal(block.load().x[0], expected)


@pytest.mark.parametrize("name", ["integers", "neutral"])
def test_zarr_that_xarray_wrote_as_it_is_needs_no_xarray(encoded, name):
    (partition,) = open_source(encoded, Columns((name,), "single")).partitions
    np.testing.assert_array_equal(partition.load().x[0], VARIABLES[name])


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(("units", "date"), [("seconds since the trigger", False), ("hours since 1970-01-01", True)])
def test_units_that_are_no_date_are_a_remark(units, date, zarr_format, tmp_path):
    group = zarr.open_group(tmp_path, mode="w", zarr_format=zarr_format)
    for name, values in (("t", T), ("y", T)):
        group.create_array(name, data=values)
    group["t"].attrs["units"] = units
    source = open_source(str(tmp_path), Columns(("t",), "y"))
    assert list(source.info.origins) == ["t"] * date
    np.testing.assert_allclose(concatenate([p.load() for p in source.partitions]).x[0], T * 3600**date, atol=1e-6)


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize(
    ("dtype", "unsigned", "other"),
    [("i1", "true", "u1"), ("u1", "false", "i1"), ("i1", "false", "i1"), ("u1", "true", "u1"), ("f4", "true", "f4")],
)
def test_integers_that_are_stored_with_another_sign_are_decoded(dtype, unsigned, other, zarr_format, tmp_path):
    group, stored = zarr.open_group(tmp_path, mode="w", zarr_format=zarr_format), np.array([0, 1, 100, 120])
    for name in "ty":
        group.create_array(name, data=(-stored - 1).astype(dtype), attributes={"_Unsigned": unsigned})
    (partition,) = open_source(group, Columns(("t",), "y")).partitions
    np.testing.assert_array_equal(partition.load().y, (-stored - 1).astype(dtype).astype(other))


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("fill", [-1.0, 0.0, np.nan, None])
def test_a_fill_value_of_zarr_itself_is_no_missing_value(fill, zarr_format, tmp_path):
    group = zarr.create_group(tmp_path / "rows.zarr", zarr_format=zarr_format)
    for name in "ty":
        array = group.create_array(
            name, shape=4, dtype="f8", fill_value=fill, attributes={"units": "s", "missing_value": "n/a"}
        )
        array[:] = np.arange(4.0)
    (partition,) = open_source(group, Columns(("t",), "y")).partitions
    np.testing.assert_array_equal(partition.load().y, np.arange(4.0))


class Counted:
    """A frame of four partitions that counts how often it is read, and of how many columns."""

    def __init__(self, path):
        self.path = path
        path.touch()
        self.t, self.y = decay_rows(1000)
        meta = pd.DataFrame({"t": self.t[:1], "y": self.y[:1], "unused": 0.0})
        self.frame = dd.from_map(self.read, range(4), meta=meta)

    def read(self, i, columns=None):
        """Read a partition."""
        with self.path.open("a") as log:
            log.write(f"{i} {columns}\n")
        rows = slice(250 * i, 250 * (i + 1))
        return pd.DataFrame({"t": self.t[rows], "y": self.y[rows], "unused": 0.0})[columns or ["t", "y", "unused"]]

    def reads(self):
        """Return what has been read since this was called last."""
        found = sorted(self.path.read_text().splitlines())
        self.path.write_text("")
        return found


def test_series_may_be_cut_at_unlike_rows():
    three, one = (dd.from_pandas(FRAME, npartitions=n) for n in (3, 1))
    expected = dask_nlsq.fit(decay, data=FRAME)
    np.testing.assert_allclose(dask_nlsq.fit(decay, three.t, one.y).popt, expected.popt, rtol=1e-9)


@pytest.mark.parametrize("how", ["arguments", "mapping", "sigma"])
def test_series_of_one_frame_are_read_as_the_frame_is(how, tmp_path):
    counted = Counted(tmp_path / "reads")
    frame = counted.frame
    expected = dask_nlsq.fit(decay, data=frame, sigma="t" if how == "sigma" else None)
    reads = counted.reads()
    if how == "mapping":
        found = dask_nlsq.fit(decay, data={"t": frame.t, "y": frame.y, "unused": frame.unused})
    else:
        found = dask_nlsq.fit(decay, frame.t, frame.y, sigma=frame.t if how == "sigma" else None)
    assert counted.reads() == reads and len(reads) >= 4
    np.testing.assert_array_equal(found.popt, expected.popt)


def test_series_that_do_not_belong_together_are_refused():
    three = dd.from_pandas(FRAME, npartitions=3)
    (first, *_) = open_source({"t": three.t, "y": three[three.y > 0].y}, Columns(("t",), "y")).partitions
    with pytest.raises(DataError, match="unlike lengths"):
        first.load()


@pytest.mark.parametrize("shape", [(4,), (2, 4)])
@pytest.mark.parametrize("options", [{"x": "t", "y": "y"}, {}, {"model": Model.from_expression("a * t + b")}])
def test_one_array_of_zarr_is_no_table(shape, options, tmp_path, zarr_reads):
    array = zarr.create_array(tmp_path / "rows", data=np.zeros(shape))
    with pytest.raises(DataError, match=r"a Zarr group with one array a column is needed. Or give x= and y= as arrays"):
        dask_nlsq.fit(**{"model": decay, "data": array, **options})
    assert not zarr_reads


@pytest.fixture
def zarr_reads(monkeypatch):
    """How many rows of Zarr arrays are read at a time, of which a partition has 100."""
    reads, read = [], zarr.Array.__getitem__

    def spy(self, where):
        found = read(self, where)
        reads.append(np.shape(found)[-1])
        return found

    monkeypatch.setattr("dask_nlsq._sources.zarr.ROWS", 100)
    monkeypatch.setattr(zarr.Array, "__getitem__", spy)
    return reads


def decay_of_two(x, amplitude=1.0, rate=1.0, offset=0.1):
    return amplitude * jnp.exp(-rate * x[0]) + offset * x[1]


@pytest.mark.parametrize("other", ["numpy", "dask", "zarr"])
@pytest.mark.parametrize("columns", [1, 2])
def test_zarr_beside_other_arrays_is_read_partition_by_partition(columns, other, tmp_path, zarr_reads):
    t, y = decay_rows(1000)
    group = zarr.create_group(tmp_path / "rows.zarr")
    x = group.create_array(
        "x", data=t if columns == 1 else np.array([t, np.ones_like(t)]), chunks=(columns, 100)[-columns:]
    )
    y = {"numpy": y, "dask": da.from_array(y, chunks=250), "zarr": group.create_array("y", data=y, chunks=(100,))}[
        other
    ]

    found = dask_nlsq.fit(decay if columns == 1 else decay_of_two, x, y)
    rows = 250 if (columns, other) == (1, "dask") else 100
    assert set(zarr_reads) == {rows}
    arrays = 2 if other == "zarr" else 1
    assert len(zarr_reads) == arrays * 1000 / rows  # a chunk that holds both rows of x is read once
    np.testing.assert_allclose(found.popt, dask_nlsq.fit(decay, *decay_rows(1000)).popt, rtol=1e-9)


@pytest.mark.parametrize("kind", ["series", "dask arrays", "zarr arrays", "zarr and numpy", "mapping"])
def test_an_expression_finds_its_columns_in_every_mapping(kind, tmp_path):
    source = open_source(SOURCES[kind](tmp_path), Columns((), "y"))
    assert sorted(source.info.present) == sorted(RAW)


class Lazy(xr.backends.BackendArray):
    """A column that counts how many rows are read of it at a time."""

    def __init__(self, values):
        self.values, self.reads = values, []
        self.shape, self.dtype = values.shape, values.dtype

    def __getitem__(self, key):
        found = self.values[key.tuple]
        self.reads.append(len(found))
        return found


def test_of_a_dataset_only_what_is_needed_is_read_piece_by_piece(monkeypatch):
    monkeypatch.setattr("dask_nlsq._sources.zarr.ROWS", 100)
    lazy = {name: Lazy(values) for name, values in RAW.items()}
    variables = {n: xr.Variable("row", xr.core.indexing.LazilyIndexedArray(a)) for n, a in lazy.items()}
    variables["t"].encoding["preferred_chunks"] = {"row": 150}
    data = xr.Dataset(variables)
    source = open_source(data, Columns(("t",), "y"))
    assert sorted(source.info.present) == sorted(RAW)
    assert not any(a.reads for a in lazy.values())
    whole = concatenate([partition.load() for partition in source.partitions])
    np.testing.assert_array_equal(whole.y, RAW["y"])
    assert {name: a.reads for name, a in lazy.items() if a.reads} == dict.fromkeys("ty", [150] * 6 + [100])
    with pytest.raises(DataError, match=r"no column 'nope'.*'extra'"):
        open_source(data, Columns(("nope",), "y"))


INSIDE = {
    "loaded": lambda a: a.values,
    "chunked": lambda a: da.from_array(a.values, chunks=100),
    "lazy": xr.core.indexing.LazilyIndexedArray,
}


@pytest.mark.parametrize("beside", ["alone", "numpy", "dask"])
@pytest.mark.parametrize("kind", INSIDE)
def test_of_variables_of_xarray_the_arrays_inside_are_read(kind, beside, monkeypatch):
    monkeypatch.setattr("dask_nlsq._sources.zarr.ROWS", 100)
    lazy = {name: Lazy(RAW[name]) for name in "ty"}
    raw = {name: xr.DataArray(xr.Variable(f"rows of {name}", INSIDE[kind](a))) for name, a in lazy.items()}
    raw |= {"alone": {}, "numpy": {"t": T}, "dask": {"t": da.from_array(T, chunks=100)}}[beside]
    source = open_source(raw, Columns(("t",), "y"))
    assert not any(a.reads for a in lazy.values())
    assert len(source.partitions) == (1 if kind == "loaded" and beside != "dask" else 10)
    whole = concatenate([p if isinstance(p, Block) else p.load() for p in source.partitions])
    np.testing.assert_array_equal([*whole.x, whole.y], [T, RAW["y"]])
    assert {rows for a in lazy.values() for rows in a.reads} == ({100} if kind == "lazy" else set())


@pytest.mark.parametrize("kind", ["loaded", "chunked"])
@pytest.mark.parametrize("rows", [1, 2])
def test_variables_of_xarray_are_arguments_as_arrays_are(kind, rows):
    t, y = (xr.DataArray(INSIDE[kind](Lazy(a)), dims="row") for a in decay_rows(1000))
    x, model = t, decay
    if rows == 2:
        x, model = xr.concat([t, t], "k"), lambda x, amplitude, rate, offset: decay(x[1], amplitude, rate, offset)
    found = dask_nlsq.fit(model, x, y, sigma=t + 1, p0=[2, 1, 0.3])
    assert found.provenance["partitions"] == (1 if kind == "loaded" else 10)
    t, y = t.values, y.values
    np.testing.assert_allclose(found.popt, dask_nlsq.fit(decay, t, y, sigma=t + 1, p0=[2, 1, 0.3]).popt, rtol=1e-8)
    with pytest.raises(DataError, match=r"shape \(\); one dimension"):
        dask_nlsq.fit(decay, t, xr.DataArray(1.0))


def test_a_dataset_in_memory_is_taken_as_it_is():
    data = xr.Dataset({name: ("row", values) for name, values in RAW.items()}, {"row": T})
    (block,) = open_source(data, Columns(("row",), "y")).partitions
    assert np.shares_memory(block.y, RAW["y"])


@pytest.mark.parametrize(("y", "dims"), [("y", ("b",)), ("n", ())])
def test_variables_of_unlike_dimensions_are_refused(y, dims):
    four = np.arange(4.0)
    data = xr.Dataset({"t": ("a", four), "y": ("b", four), "z": (("a", "b"), np.ones((4, 4))), "n": 1.0})
    with pytest.raises(DataError, match=re.escape(f"{{'t': ('a',), {y!r}: {dims}}}")) as caught:
        open_source(data, Columns(("t",), y))
    assert caught.value.column == "t"


@pytest.mark.parametrize("filters", [[("s", ">", 1.5)], pc.field("s") > 1.5, ds.field("s") > 1.5])
def test_filters_may_be_an_expression(filters, tmp_path):
    FRAME.to_parquet(tmp_path / "0.parquet")
    source = open_source(str(tmp_path), Columns(("t",), "y"), filters)
    read = concatenate([partition.load() for partition in source.partitions])
    np.testing.assert_array_equal(read.x[0], T[RAW["s"] > 1.5])
    assert source.info.rows is None


def hive(folder):
    """Write rows into folders, a folder for each of three keys."""
    frame = FRAME.assign(k=np.repeat([1, 2, 3], [300, 300, 400]))
    frame.to_parquet(folder, partition_cols=["k"])
    return frame


@pytest.mark.parametrize("pattern", ["", "/k=*/*.parquet", "/**/*.parquet"])
@pytest.mark.parametrize(
    ("filters", "ks"), [(None, [1, 2, 3]), ([("k", "==", 2)], [2]), (pc.field("k") > 1, [2, 3])], ids=str
)
def test_folders_may_be_named_after_keys(filters, ks, pattern, tmp_path):
    frame = hive(tmp_path / "a=b" / "runs")
    chosen = frame[frame.k.isin(ks)]
    for x in ("k", "t"):
        source = open_source(f"{tmp_path}/a=b/runs{pattern}", Columns((x,), "y", "s"), filters)
        read = concatenate([pickle.loads(pickle.dumps(partition)).load() for partition in source.partitions])
        np.testing.assert_array_equal(read.x[0], chosen[x])
        np.testing.assert_array_equal(read.y, chosen.y)
        assert set(source.info.present) == {*RAW, "k"}
        assert source.info.reader == ("Parquet" if filters is None and x == "t" else "scanned Parquet")


def test_folders_named_after_keys_at_a_url(tmp_path):
    frame = hive(tmp_path / "runs")
    memory = fsspec.filesystem("memory")
    memory.put(f"{tmp_path}/runs", "/keys=1/runs", recursive=True)
    for pattern in ("", "/k=*/*.parquet"):
        source = open_source(f"memory://keys=1/runs{pattern}", Columns(("k",), "y"), [("k", "<", 3)])
        read = concatenate([partition.load() for partition in source.partitions])
        np.testing.assert_array_equal(read.x[0], frame.k[:600])
        assert set(source.info.present) == {*RAW, "k"}


@pytest.mark.parametrize("pattern", ["", "/*.parquet", "/0.parquet"])
def test_folders_above_the_data_are_no_keys(pattern, tmp_path):
    (tmp_path / "t=1" / "a=b").mkdir(parents=True)
    FRAME.to_parquet(tmp_path / "t=1" / "a=b" / "0.parquet")
    source = open_source(f"{tmp_path}/t=1/a=b{pattern}", Columns(("t",), "y"))
    np.testing.assert_array_equal(source.partitions[0].load().x[0], T)
    assert source.info.present == tuple(RAW) and source.info.reader == "Parquet"


@pytest.mark.parametrize("dtype", ["float64", "int64", "int32"])
@pytest.mark.parametrize("filters", [None, [("t", ">=", 10)]])
def test_a_column_goes_before_a_key_of_its_name(tmp_path, dtype, filters):
    frame = FRAME.assign(t=np.arange(10, 10 + len(FRAME)).astype(dtype))
    for k in (1, 2):
        (tmp_path / f"t={k}").mkdir()
        frame.to_parquet(tmp_path / f"t={k}" / "0.parquet")
    source = open_source(str(tmp_path), Columns(("t",), "y"), filters)
    np.testing.assert_array_equal(source.partitions[0].load().x[0], frame["t"])


def test_a_file_outside_the_folders_has_no_key(tmp_path):
    hive(tmp_path)
    FRAME.to_parquet(tmp_path / "outside.parquet")
    with pytest.raises(DataError, match=r"no column 'k'; the file '.*outside\.parquet' has 't'"):
        open_source(str(tmp_path), Columns(("k",), "y"))


NULLS = {
    "booleans": ([True, None, False], [True, False, True], [1, np.nan, 0, 1, 0, 1]),
    "nothing": ([None, None, None], [None, None, None], [np.nan] * 6),
    "nothing, then floats": ([None, None, None], [1.5, None, 2.5], [np.nan] * 3 + [1.5, np.nan, 2.5]),
    "integers, then nothing": ([1, None, 2], [None, None, None], [1, np.nan, 2] + [np.nan] * 3),
    "booleans, then integers": ([None, True, False], [2, 3, None], [np.nan, 1, 0, 2, 3, np.nan]),
    "nothing, then dates": ([None] * 3, [NOON.item(), None, NOON.item()], [np.nan] * 3 + [0, np.nan, 0]),
    "days, then nothing": ([datetime.date(2026, 1, 1)] * 3, [None] * 3, [0] * 3 + [np.nan] * 3),
}


@pytest.mark.parametrize("filters", [None, [("y", ">=", 0)]], ids=["all", "filtered"])
@pytest.mark.parametrize(("first", "second", "expected"), NULLS.values(), ids=NULLS)
def test_nulls_of_parquet_are_missing_values(first, second, expected, filters, tmp_path):
    for i, values in enumerate((first, second)):
        pq.write_table(pa.table({"t": values, "y": [0.0, 1.0, 2.0]}), tmp_path / f"{i}.parquet")
    source = open_source(str(tmp_path), Columns(("t",), "y"), filters)
    np.testing.assert_array_equal(concatenate([p.load() for p in source.partitions]).x[0], expected)
    kept = open_source(str(tmp_path), Columns(("t",), "y", None, "omit"), filters).partitions
    assert sum(p.load().dropped for p in kept) == np.isnan(expected).sum()


def test_an_index_of_several_levels_is_no_column():
    frame = FRAME.set_index(["t", "s"])
    with pytest.raises(DataError, match=r"2 levels \('t', 's'\).*reset_index\(\)") as caught:
        open_source(frame, Columns(("index",), "y"))
    assert caught.value.column == "index"
    np.testing.assert_array_equal(open_source(frame, Columns(("y",), "extra")).partitions[0].y, -T)


OBJECTS = {
    "decimals": ([decimal.Decimal("0.5"), None, decimal.Decimal(2)], None),
    "datetimes": ([datetime.datetime(2026, 1, 1)] * 3, "pandas.to_datetime(data['t'])"),
    "dates": ([datetime.date(2026, 1, 1)] * 3, "pandas.to_datetime(data['t'])"),
    "times of day": (
        [datetime.time(1), None, datetime.time(3)],
        "pandas.to_timedelta(data['t'].map(str, na_action='ignore'))",
    ),
    "lists": ([[1.0], [2.0], [3.0]], "data.explode('t')"),
    "texts": (["1", "2", "3"], "pandas.to_numeric(data['t'])"),
}


@pytest.mark.parametrize("kind", OBJECTS)
@pytest.mark.parametrize("container", ["pandas", "Dask", "mapping"])
def test_objects_are_numbers_or_refused_with_a_line_that_works(kind, container):
    values, remedy = OBJECTS[kind]
    frame = pd.DataFrame({"t": pd.Series(values, dtype=object), "y": np.arange(3.0)})
    with dask.config.set({"dataframe.convert-string": False}):
        data = {"pandas": frame, "Dask": dd.from_pandas(frame, npartitions=1), "mapping": dict(frame.items())}[
            container
        ]
    refusal = contextlib.nullcontext() if remedy is None else pytest.raises(DataError, match=re.escape(remedy))
    with refusal:
        (block,) = [p if isinstance(p, Block) else p.load() for p in open_source(data, Columns(("t",), "y")).partitions]
        np.testing.assert_array_equal(block.x[0], [0.5, np.nan, 2])
    if remedy is not None:
        eval(remedy.replace("data", "frame"), {"pandas": pd, "frame": frame})


@pytest.mark.parametrize("keys", [["0.5", "1.5"], ["-1e-3", "2"], ["0.5", None]])
@pytest.mark.parametrize("filters", [None, [("k", ">", -1.0)]])
def test_keys_of_folders_that_are_numbers_are_columns(keys, filters, tmp_path):
    for key in keys:
        folder = tmp_path / f"k={'__HIVE_DEFAULT_PARTITION__' if key is None else key}"
        folder.mkdir()
        pd.DataFrame({"y": [1.0, 2.0]}).to_parquet(folder / "0.parquet")
    source = open_source(tmp_path, Columns(("k",), "y"), filters)
    found = concatenate([p.load() for p in source.partitions]).x[0]
    expected = np.repeat([np.nan if key is None else float(key) for key in keys], 2)
    np.testing.assert_array_equal(np.sort(found), np.sort(expected if filters is None else expected[expected > -1]))


@pytest.mark.parametrize("zones", [("UTC", None), (None, "Europe/Berlin"), ("UTC", "Europe/Berlin"), (None, None)])
def test_dates_of_a_zone_beside_dates_of_none_are_refused(zones, tmp_path):
    when = np.datetime64("2026-07-01T12:00", "us") + np.arange(4) * np.timedelta64(1, "s")
    for i, zone in enumerate(zones):
        table = pa.table({"t": pa.array(when, pa.timestamp("us", zone)), "y": np.arange(4.0)})
        pq.write_table(table, tmp_path / f"{i}.parquet")
    alike = (zones[0] is None) == (zones[1] is None)
    with contextlib.nullcontext() if alike else pytest.raises(DataError, match="dates with a time zone"):
        assert open_source(tmp_path, Columns(("t",), "y")).info.rows == 8


def test_a_metadata_file_that_is_older_is_told_of(tmp_path):
    dd.from_pandas(FRAME, npartitions=2).to_parquet(tmp_path, write_metadata_file=True)
    assert open_source(tmp_path, Columns(("t",), "y")).info.notes == ()
    FRAME.to_parquet(tmp_path / "part.2.parquet")
    (note,) = open_source(tmp_path, Columns(("t",), "y")).info.notes
    assert f"lists {ROWS} rows, and the files hold {2 * ROWS}" in note


@pytest.mark.parametrize("name", ["_temporary/0/part.parquet", ".hidden.parquet", "notes.txt", "_SUCCESS"])
def test_what_is_left_out_of_a_folder_is_counted(name, tmp_path):
    FRAME.to_parquet(tmp_path / "0.parquet")
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    FRAME.to_parquet(tmp_path / name)
    info = open_source(tmp_path, Columns(("t",), "y")).info
    assert info.rows == ROWS
    assert [name in note for note in info.notes] == ([] if name == "_SUCCESS" else [True])


@pytest.mark.parametrize("data", [FRAME, RAW], ids=["frame", "mapping"])
def test_a_version_is_of_tables_alone(data, tmp_path):
    FRAME.to_parquet(tmp_path / "0.parquet")
    for other in (data, str(tmp_path)):
        with pytest.raises(DataError, match="version= needs"):
            open_source(other, Columns(("t",), "y"), version=3)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("0.csv", "t,y\n2026-01-01,1\n", "holds text, as '2026-01-01'.*parse_dates"),
        ("0.csv", "a,b\n1,1\n", "no column 't'"),
        ("0.tsv", "t\ty\n1\t2\n", None),
        ("0.csv", "t,y\n1,2\n,\n", None),
    ],
)
def test_text_is_numbers_or_refused(name, text, said, tmp_path):
    (tmp_path / name).write_text(text)
    with contextlib.nullcontext() if said is None else pytest.raises(DataError, match=said):
        (partition,) = open_source(tmp_path / name, Columns(("t",), "y", None, "omit")).partitions
        np.testing.assert_array_equal(partition.load().x[0], [1.0])


@pytest.mark.parametrize(
    "first", [b"\x89HDF\r\n\x1a\n", b"CDF\x02", b"SIMPLE  =", b"ARROW1", b"Obj\x01", b"SQLite format 3"]
)
@pytest.mark.parametrize("name", ["runs", "runs.dat", "runs.parquet"])
def test_a_file_of_another_format_is_named(first, name, tmp_path):
    (tmp_path / name).write_bytes(first + bytes(100))
    with pytest.raises(DataError, match=r"is (HDF5|netCDF|FITS|Feather \(Arrow IPC\)|Avro|SQLite), and.*: data="):
        open_source(tmp_path / name, Columns(("t",), "y"))


def test_sizes_of_parquet_are_about_those_of_its_columns(tmp_path):
    """Without the metadata of single columns, of which pyarrow 26 may end the process where it cannot read them."""
    pd.DataFrame({name: np.random.default_rng(0).random(100_000) for name in "tyabcdef"}).to_parquet(
        tmp_path / "0.parquet"
    )
    info = open_source(tmp_path / "0.parquet", Columns(("t",), "y")).info
    assert info.encoded == pytest.approx(1.6e6, rel=0.3)


@pytest.mark.parametrize("dtype", ["int64", "uint64", "uint8", "int16", "float32"])
@pytest.mark.parametrize("fill", [2**63 - 1, 2**64 - 2, -9999, 1e20, -999.5, 241, [0.5], "n/a"])
def test_a_number_for_no_value_is_compared_as_it_is(dtype, fill, tmp_path):
    limits = np.iinfo(dtype) if np.dtype(dtype).kind != "f" else np.finfo(dtype)
    values = np.array([1, 2, limits.max // 2, limits.min], dtype)
    number = fill[0] if isinstance(fill, list) else fill
    held = not isinstance(number, str) and number == dtype_value(dtype, number)
    if held:
        values[0] = number
    group = zarr.open_group(tmp_path, mode="w")
    for name in "ty":
        group.create_array(name, data=values, attributes={"_FillValue": fill})
    (partition,) = open_source(tmp_path, Columns(("t",), "y")).partitions
    expected = values.astype(float)
    expected[values == number if held else np.zeros(4, bool)] = np.nan
    np.testing.assert_array_equal(partition.load().y, expected)


def dtype_value(dtype, number):
    """What a number becomes in a type, or None where it has no place there."""
    if number != int(number) and dtype != "float32":
        return None
    try:
        return np.array([number]).astype(dtype)[0].item()
    except OverflowError:
        return None


NEEDS_CFTIME = pytest.mark.skipif(importlib.util.find_spec("cftime") is None, reason="cftime is not installed")


@pytest.mark.parametrize(
    "units",
    [
        pytest.param("days since 0001-01-01", marks=NEEDS_CFTIME),  # before the calendar of today
        "hours since 1600-01-01",
        "seconds since 1970-01-01",
    ],
)
def test_times_may_count_from_long_ago(units, tmp_path):
    length = {"days": 86400.0, "hours": 3600.0, "seconds": 1.0}[units.split()[0]]
    group = zarr.open_group(tmp_path, mode="w")
    group.create_array("t", data=730_000 + np.arange(4), attributes={"units": units})
    group.create_array("y", data=np.arange(4.0), attributes={"scale_factor": [0.5]})
    (partition,) = open_source(tmp_path, Columns(("t",), "y")).partitions
    np.testing.assert_array_equal(partition.load().x[0], length * np.arange(4))
    np.testing.assert_array_equal(partition.load().y, 0.5 * np.arange(4))


@pytest.mark.parametrize(
    ("paths", "rows"),
    [
        (["a", "b"], 2000),
        (["a/0.parquet", "b/0.parquet"], 2000),
        (["**"], 2000),
        (["a", "a/0.parquet"], None),
        (["a/0.parquet"] * 2, None),
    ],
)
def test_a_list_of_paths_counts_no_row_twice(paths, rows, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        FRAME.to_parquet(tmp_path / name / "0.parquet")
    given = [str(tmp_path / path) for path in paths]
    with contextlib.nullcontext() if rows else pytest.raises(DataError, match="more than once"):
        assert open_source(given, Columns(("t",), "y")).info.rows == rows


def test_files_of_one_name_in_a_list_are_told_apart(tmp_path):
    for name in "abc":
        (tmp_path / name).mkdir()
        (FRAME * ord(name)).to_parquet(tmp_path / name / "0.parquet")
    first, second = ([tmp_path / a / "0.parquet", tmp_path / b / "0.parquet"] for a, b in ("ab", "cb"))
    assert len(files(first)) == 2 and files(first) != files(second)


TEXT = {"0.csv": "t,y\n1,2\n", "1.csv": "y,t\n2,1\n", "_SUCCESS": "", ".0.csv.crc": "crc", "_tmp.csv": "t,y\n9,9\n"}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["0.csv", "1.csv"], r"has the columns \['t', 'y'\], and .* has \['y', 't'\]"),
        (["0.csv", "_SUCCESS", ".0.csv.crc", "_tmp.csv"], None),
    ],
)
def test_a_folder_of_text_is_one_table(names, said, tmp_path):
    for name in names:
        (tmp_path / name).write_text(TEXT[name])
    with contextlib.nullcontext() if said is None else pytest.raises(DataError, match=said):
        source = open_source(tmp_path, Columns(("t",), "y"))
        assert sum(p.load().rows for p in source.partitions) == 1 and "3 files were left out" in source.info.notes[0]


@pytest.mark.parametrize(("name", "text"), [("0.csv", "t,y\n"), ("0.csv", "t,y\n,\n,\n")])
def test_text_without_values_has_no_rows(name, text, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match="no rows to fit"):
        dask_nlsq.fit(decay, data=tmp_path / name, p0=[1, 1, 1], nan_policy="omit")


BAD = {
    "filters of another type": (lambda p: {"data": p, "filters": [("y", "=", "a")]}, "not of the types|cannot be read"),
    "filters that are none": (lambda p: {"data": p, "filters": 3}, "filters is 3; a list such as"),
    "a list with a missing file": (lambda p: {"data": [p, f"{p}.missing.parquet"]}, "cannot be read|Nothing was found"),
    "a list of unlike formats": (lambda p: {"data": [p, f"{p}.csv"]}, "list of paths of Parquet and text"),
    "a version of a list": (lambda p: {"data": [p], "version": 1}, "version= needs one"),
    "a column of Arrow": (lambda p: {"data": pa.chunked_array([[1.0]])}, "data is a ChunkedArray"),
    "a text column of Arrow": (lambda p: {"data": pa.table({"t": ["a"], "y": [1.0]})}, "has the type string"),
    "a dictionary of texts": (
        lambda p: {"data": pa.table({"t": pa.array(["a"]).dictionary_encode(), "y": [1.0]})},
        "has the type dictionary",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_is_a_data_error(kind, tmp_path):
    FRAME.to_parquet(tmp_path / "0.parquet")
    (tmp_path / "0.parquet.csv").write_text("t,y\n1,2\n")
    options, said = BAD[kind]
    with pytest.raises(DataError, match=said):
        open_source(columns=Columns(("t",), "y"), **options(str(tmp_path / "0.parquet")))


@pytest.mark.parametrize("inside", ["_delta_log/0.json", ".hoodie/x", "metadata/0.metadata.json"])
@pytest.mark.parametrize("given", ["runs", "runs/k=1", "runs/k=1/0.parquet", "runs/*/*.parquet", "**/*.parquet", ""])
def test_a_path_inside_or_above_a_table_is_refused(inside, given, tmp_path):
    (tmp_path / "above/runs/k=1").mkdir(parents=True)
    (tmp_path / "above/runs" / inside).parent.mkdir()
    (tmp_path / "above/runs" / inside).touch()
    FRAME.to_parquet(tmp_path / "above/runs/k=1/0.parquet")
    for data in (str(tmp_path / "above" / given), [str(tmp_path / "above" / given)]):
        with pytest.raises(DataError, match=r"Delta|Hudi|Iceberg"):
            open_source(data, Columns(("t",), "y"))


class Typeless:
    """Stands for the lazy arrays of dask-awkward, which no present Dask can import."""


Typeless.__module__ = "dask_awkward.lib.core"
LAZY = {"Delayed": lambda: dask.delayed(np.arange)(3.0), "Bag": lambda: dask.bag.range(3, 1), "awkward": Typeless}


@pytest.mark.parametrize("kind", LAZY)
@pytest.mark.parametrize("role", ["data", "x", "y", "columns", "a column"])
def test_what_is_lazy_without_rows_is_refused_with_a_line(kind, role):
    lazy, plain = LAZY[kind](), np.arange(3.0)
    given = {
        "data": {"data": lazy},
        "x": {"x": lazy, "y": plain},
        "y": {"x": plain, "y": lazy},
        "columns": {"x": (plain, lazy), "y": plain},
        "a column": {"data": {"t": lazy, "y": plain}},
    }[role]
    with pytest.raises(DataError, match=r"from_delayed|to_dask_array"):
        dask_nlsq.fit(lambda t, a, b: a * t + b, **given)


@pytest.mark.parametrize("make", ["pyarrow", "deltalake"])
@pytest.mark.parametrize("model", ["a*t + b", lambda t, a, b: a * t + b], ids=["expression", "function"])
def test_a_reader_of_batches_is_read_once(make, model, tmp_path):
    table = pa.table({"t": T, "y": 2 * T + 3})
    if make == "deltalake":
        pytest.importorskip("deltalake").write_deltalake(tmp_path, table)
        reader = pytest.importorskip("deltalake").DeltaTable(tmp_path).scan()
    else:
        reader = table.to_reader(max_chunksize=100)
    result = dask_nlsq.fit(
        Model.from_expression(model) if isinstance(model, str) else model, data=reader, p0=[1.0, 1.0]
    )
    np.testing.assert_allclose(result.popt, [2, 3], rtol=1e-9)


@pytest.mark.parametrize(
    ("store", "reader"), [("parquet", "Dask DataFrame"), ("arrays", "Dask arrays"), ("zarr", "Zarr")]
)
def test_a_plan_knows_what_reading_takes(store, reader, tmp_path):
    data = STORES[store](*decay_rows(100), 2, tmp_path)
    assert open_source(data, Columns(("t",), "y")).info.reader == reader in READERS


def test_a_plan_knows_what_reading_hdf5_takes(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "rows.h5", "w") as file:
        file["t"], file["y"] = decay_rows(100)
        found = open_source({"t": file["t"], "y": file["y"]}, Columns(("t",), "y")).info.reader
    assert found in READERS


CELLS = {
    "decimals": [Decimal("1.5"), None, Decimal("2")],
    "missing": [None, np.nan, pd.NA],
    "later": [None] * 2000 + [Decimal(1)],
}


@pytest.mark.parametrize("name", CELLS)
def test_decimals_and_missing_cells_are_numbers(name):
    found = Columns(("t",), "y").to_float("y", np.array(CELLS[name], object))
    missing = [cell is None or cell is pd.NA or cell != cell for cell in CELLS[name]]
    np.testing.assert_array_equal(np.isnan(found), missing)
