"""STREAMING, one pass in mini-batches and one sweep that certifies: sorted rows, counted reads, bits, precision."""

import dataclasses
import itertools

import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
from distributed import Client, LocalCluster
from problems import decay, decay_rows

import dask_nlsq
from dask_nlsq import BoundsError, DataError, NlsqError, Status
from dask_nlsq._fit.observer import Estimates
from dask_nlsq._fit.options import FitOptions
from dask_nlsq._fit.problem import resolve_objective, to_model
from dask_nlsq._fit.progress import Progress
from dask_nlsq._fit.start.stream_pass import _unmeasured
from dask_nlsq._fit.start.warm_start import warm_start
from dask_nlsq._kernel.block import Block
from dask_nlsq._kernel.kernel import reduce_block
from dask_nlsq._plan.mini_batches import BATCHES, schedule
from dask_nlsq._solver.streaming import Streaming
from dask_nlsq._solver.trust_region import TrustRegion
from dask_nlsq._sources.columns import Columns

N = 1_200_000  # above a million one sweep certifies; below, where sweeps are cheap, the fit goes on to rounding level
T, Y = (column[np.argsort(decay_rows(N)[0])] for column in decay_rows(N))


class Reader:
    """Makes partition i of sorted rows, and counts how often any was made here."""

    reads = 0

    def __init__(self, pieces, t=T, y=Y):
        self.pieces, self.t, self.y = pieces, t, y

    def __call__(self, i):
        Reader.reads += 1
        rows = slice(i * len(self.t) // self.pieces, (i + 1) * len(self.t) // self.pieces)
        return pd.DataFrame({"t": self.t[rows], "y": self.y[rows]})


def frame(pieces, *columns):
    return dd.from_map(Reader(pieces, *columns), range(pieces), meta=pd.DataFrame({"t": [0.0], "y": [0.0]}))


def bits(result):
    return (
        result.popt.tobytes() + result.pcov.tobytes() + result.history.drop(columns="seconds").to_numpy(float).tobytes()
    )


@pytest.fixture(scope="module")
def whole():
    return dask_nlsq.fit(decay, T, Y, goal="quality")


@pytest.mark.parametrize("partitions", [1, 5, 100, 2000])
def test_every_partition_is_in_one_batch(partitions):
    batches = list(schedule(partitions, 3))
    assert sorted(itertools.chain(*batches)) == list(range(partitions)) and len(batches) == min(partitions, BATCHES)
    assert batches == list(schedule(partitions, 3)) != list(schedule(partitions, 4)) or partitions == 1


@pytest.mark.parametrize(("pieces", "drawn"), [(3, 3), (40, 16), pytest.param(600, 66, marks=pytest.mark.slow)])
def test_sorted_rows_in_one_pass_and_one_sweep(whole, pieces, drawn):
    """One pass ends within 0.05 standard errors, the certifying sweep within 1e-4: two reads beside the sample."""
    Reader.reads = 0
    fast = dask_nlsq.fit(decay, data=frame(pieces), tier="streaming", goal="fast", client=False)
    once = Reader.reads
    certified = dask_nlsq.fit(decay, data=frame(pieces), tier="streaming", client=False)
    assert (once, Reader.reads - once) == (drawn + pieces, drawn + 2 * pieces)
    assert (abs(fast.popt - whole.popt) < 0.05 * whole.stderr).all()
    assert (abs(certified.popt - whole.popt) < 1e-4 * whole.stderr).all()
    np.testing.assert_allclose(certified.stderr, whole.stderr, rtol=1e-5)
    assert (fast.status, certified.status) == (Status.STREAMED, Status.CONVERGED)
    assert (fast.nsweeps, certified.nsweeps, certified.n_obs) == (1, 2, N)


OPTIONS = [
    {"bounds": {"rate": (0, 1.2)}},
    {"fixed": {"offset": 0.5}},
    {"prior": {"rate": (1.4, 0.001)}},
    {"absolute_sigma": True},
    {"sigma": "y", "nan_policy": "omit"},
]


@pytest.mark.crossed
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_options_end_where_chunked_ends(options):
    rows = frame(40)
    options = {"data": rows, "p0": [2, 1, 0.5]} | options
    chunked, streamed = (dask_nlsq.fit(decay, tier=tier, **options) for tier in ("chunked", "streaming"))
    free = chunked.stderr > 0
    assert (abs(streamed.popt - chunked.popt)[free] < 1e-4 * chunked.stderr[free]).all()
    assert streamed.n_obs == chunked.n_obs and streamed.active_mask.tolist() == chunked.active_mask.tolist()


@pytest.fixture(scope="module")
def on_disk(tmp_path_factory):
    """Sorted rows in 40 files, cheap to send to workers."""
    folder = tmp_path_factory.mktemp("rows")
    for i in range(40):
        Reader(40)(i).to_parquet(folder / f"{i:02}.parquet")
    return str(folder)


def test_the_bits_are_those_of_any_executor(client, on_disk):
    rows = on_disk
    here = dask_nlsq.fit(decay, data=rows, tier="streaming", client=False)
    on_workers = dask_nlsq.fit(decay, data=rows, tier="streaming", client=client)
    assert (here.provenance["executor"], on_workers.provenance["executor"]) == ("serial", "cluster")
    assert bits(here) == bits(on_workers)
    other = dask_nlsq.fit(decay, data=rows, tier="streaming", client=False, seed=1)
    assert bits(other) != bits(here)
    assert (abs(other.popt - here.popt) < 1e-4 * here.stderr).all()


@pytest.mark.crossed
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_bits_are_those_of_any_number_of_threads(threads):
    import dask

    serial = dask_nlsq.fit(decay, data=frame(40), tier="streaming", client=False)
    with dask.config.set(num_workers=threads):
        assert bits(dask_nlsq.fit(decay, data=frame(40), tier="streaming")) == bits(serial)


@pytest.mark.slow
def test_the_bits_are_those_of_any_number_of_workers(on_disk):
    found = set()
    for workers in (1, 2):
        with (
            LocalCluster(workers, threads_per_worker=1, dashboard_address=":0", env={"PJRT_NPROC": "1"}) as cluster,
            Client(cluster, set_as_default=False) as client,
        ):
            found.add(bits(dask_nlsq.fit(decay, data=on_disk, tier="streaming", client=client)))
            assert dask_nlsq.fit(decay, data=on_disk, tier="streaming", client=client, ordered=False).success
    assert found == {bits(dask_nlsq.fit(decay, data=on_disk, tier="streaming", client=False))}


@pytest.mark.crossed
@pytest.mark.parametrize("where", ["serial", "threads", "cluster"])
def test_out_of_order_the_answer_is_the_same_but_for_digits(request, where, on_disk):
    client = request.getfixturevalue("client") if where == "cluster" else {"serial": False}.get(where)
    ordered, free = (
        dask_nlsq.fit(decay, data=on_disk, tier="streaming", client=client, ordered=o) for o in (True, False)
    )
    assert (abs(free.popt - ordered.popt) < 1e-4 * ordered.stderr).all()
    assert "folded as it came" in free.notes[-1] and "folded as it came" not in ordered.notes[-1]
    assert "at most 15 updates old" in ordered.notes[-1]


FAR = {"amplitude": 2.0, "rate": 1.3e-3, "offset": 0.5}  # the rate is three decades too slow


@pytest.mark.slow
def test_a_far_start_is_recovered_and_the_route_said(whole):
    lost = online_from(list(FAR.values()))
    assert not (abs(lost - whole.popt) < 1000 * whole.stderr).all()  # Gauss-Newton alone
    result = dask_nlsq.fit(decay, data=frame(100), tier="streaming", p0=FAR)
    assert (abs(result.popt - whole.popt) < 1e-4 * whole.stderr).all() and result.success
    assert "Started from a fit of 100,000 rows of 16 partitions." in result.notes


def bound(p0, **options):
    """Return parameters and objective of the decay."""
    columns = Columns(("t",), "y", None, "raise")
    return resolve_objective(to_model(decay).bind(("t",)), columns, FitOptions(decay, p0=p0, **options))


def online_from(p0):
    """One pass of Gauss-Newton over batches of rows, from a start, and nothing beside it."""
    parameters, objective = bound(p0)
    solver = Streaming(parameters.lower, parameters.upper)
    state = solver.init(parameters.start)
    for (places,) in schedule(100, 0):
        rows = slice(places * N // 100, (places + 1) * N // 100)
        state = solver.step(state, reduce_block(objective, Block((T[rows],), Y[rows]), state.theta, None))
    return state.theta


@pytest.mark.crossed
@pytest.mark.parametrize("method", ["adam", optax.adabelief(0.05)], ids=["adam", "adabelief"])
@pytest.mark.parametrize("how", [{"tier": "streaming"}, {"tier": "chunked"}], ids=str)
def test_an_optimizer_goes_down_first(whole, method, how):
    result = dask_nlsq.fit(decay, data=frame(50), p0=FAR, method=method, **how)
    assert (abs(result.popt - whole.popt) < 1e-4 * whole.stderr).all() and result.success
    assert any(" went down on 100,000 rows for " in note for note in result.notes)


@pytest.mark.slow
def test_a_descent_ends_near_the_minimum_inside_its_bounds():
    parameters, objective = bound(FAR, bounds={"amplitude": (0, 2.5)})
    ends = [warm_start(objective, parameters, Block((T,), Y), optax.adam(0.05), seed) for seed in (0, 0, 1)]
    assert (abs(ends[0].theta / [2.5, 1.0, 0.45] - 1) < 0.2).all() and ends[0].theta[0] <= 2.5
    assert ends[0].theta.tobytes() == ends[1].theta.tobytes() != ends[2].theta.tobytes()


def test_an_optimizer_need_not_be_traceable():
    update = lambda gradient, memory, u, value: (-0.05 * np.sign(gradient), memory)  # noqa: E731
    mine = optax.GradientTransformationExtraArgs(lambda u: None, update)
    result = dask_nlsq.fit(decay, T[:5000], Y[:5000], p0=FAR, method=mine)
    assert result.success and "the optimizer went down" in str(result.notes)


def test_a_descent_that_leaves_where_the_model_is_finite_comes_back():
    def root(t, a, b):
        return a * jnp.sqrt(t - b)

    result = dask_nlsq.fit(root, T[:5000] + 1, 2 * np.sqrt(T[:5000] + 0.5), p0=[1, 0.9], method=optax.sgd(100.0))
    assert result.success and abs(result.params["b"] - 0.5) < 1e-6


@pytest.mark.parametrize("method", ["lm", "trf", "dogbox"])
def test_the_methods_of_scipy_are_one_solver(method):
    assert bits(dask_nlsq.fit(decay, T[::9999], Y[::9999], method=method)) == bits(
        dask_nlsq.fit(decay, T[::9999], Y[::9999])
    )


def test_a_method_is_one():
    with pytest.raises(NlsqError, match='"adam" is needed'):
        dask_nlsq.fit(decay, T[:9], Y[:9], method="newton")
    with pytest.raises(BoundsError, match="lm"):
        dask_nlsq.fit(decay, T[:9], Y[:9], method="lm", bounds={"rate": (0, 9)})


def test_an_optimizer_that_wants_more_is_refused():
    with pytest.raises(NlsqError, match="gradients alone"):
        dask_nlsq.fit(decay, T[:999], Y[:999], p0=FAR, method=optax.lbfgs())
    with pytest.raises(NlsqError, match="made by a call"):
        dask_nlsq.fit(decay, T[:999], Y[:999], p0=FAR, method=optax.adam)


@pytest.mark.parametrize("seed", [-1, 1.5, None])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(NlsqError, match="seed"):
        dask_nlsq.fit(decay, T[:999], Y[:999], seed=seed)


def test_what_shares_work_has_no_precision():
    rows = dd.from_pandas(pd.DataFrame({"t": T[::999], "y": Y[::999]}), npartitions=4).shuffle("t")
    with pytest.raises(NlsqError, match="share work"):
        dask_nlsq.fit(decay, data=rows, precision=0.1)


def test_the_bar_is_told_estimates_and_their_errors(monkeypatch):
    told = []

    class Told(Progress):
        def notify(self, event):
            told.extend([event.values()] if isinstance(event, Estimates) else [])

    monkeypatch.setattr("dask_nlsq._fit.api.Progress", Told)
    dask_nlsq.fit(decay, data=frame(40), tier="streaming", client=False)
    theta, errors = told[-1]
    assert theta[1] == pytest.approx(1.3, abs=0.1) and (errors > 0).all()


def peak(t, height, centre, width, level):
    return height * jnp.exp(-0.5 * ((t - centre) / width) ** 2) + level


@pytest.mark.crossed
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("how", [{"goal": "fast"}, {"precision": 0.01}, {}], ids=str)
@pytest.mark.parametrize("width", [0.4, 0.05, 0.03])
def test_a_pass_that_lost_its_way_is_not_believed(width, how):
    """Few of the scattered partitions see a narrow peak, and the sample none."""
    t = np.sort(np.random.default_rng(0).uniform(0, 5, 200_000))
    y = 5 * np.exp(-0.5 * ((t - 2.53) / width) ** 2) + 1 + np.random.default_rng(1).normal(0, 0.1, t.size)
    options = {"data": frame(200, t, y), "p0": [4, 2.5, width, 1]}
    whole = dask_nlsq.fit(peak, **options, tier="chunked")
    streamed = dask_nlsq.fit(peak, **options, tier="streaming", **how)
    assert streamed.success and (abs(streamed.popt - whole.popt) < 5 * streamed.stderr).all()


@pytest.mark.crossed(4)
@pytest.mark.parametrize("seed", range(12))
def test_noisy_little_data_end_where_chunked_ends(seed):
    """The cost of a pass is that of linearised batches, and no yardstick for a sweep."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.uniform(0, 5, 300))
    y = rng.normal(3.0 * np.exp(-1.3 * t) + 0.5, 1.0)
    options = {"data": frame(10, t, y), "p0": [2, 1, 0.3], "client": False}
    chunked, streamed = (dask_nlsq.fit(decay, tier=tier, **options) for tier in ("chunked", "streaming"))
    assert streamed.success == chunked.success
    np.testing.assert_allclose(streamed.cost, chunked.cost, rtol=1e-9)


@pytest.mark.slow
def test_a_precision_rests_on_rows_enough():
    t, y = T[:: N // 400], Y[:: N // 400]  # a row in each partition: neither sample nor batches say enough
    result = dask_nlsq.fit(decay, data=frame(400, t, y), precision=0.5, p0=[2, 1, 0.5], client=False)
    assert result.n_obs == 400 and result.status is not Status.PRECISION


def test_a_parameter_at_a_bound_of_zero_needs_no_precision():
    Reader.reads = 0
    options = {"p0": [2, 1, 0.5], "client": False, "bounds": {"offset": (0, np.inf)}}
    result = dask_nlsq.fit(decay, data=frame(400, T, Y - 0.505), precision=0.05, **options)
    assert result.status is Status.PRECISION and Reader.reads < 100


def test_rows_dropped_are_counted_in_empty_batches_too():
    hole = Y.copy()
    hole[: N // 40] = np.nan  # all of one partition
    options = {"tier": "streaming", "goal": "fast", "nan_policy": "omit", "p0": [2, 1, 0.5]}
    result = dask_nlsq.fit(decay, data=frame(40, T, hole), **options)
    assert (result.n_obs, result.n_dropped) == (N - N // 40, N // 40)


def test_limits_hold_for_the_pass_too():
    options = {"data": frame(20), "tier": "streaming", "p0": [2, 1, 0.5]}
    assert dask_nlsq.fit(decay, **options, time_limit=1e-9).nsweeps == 1
    assert dask_nlsq.fit(decay, **options, max_nfev=1).nsweeps == 1

    def stop(_):
        raise StopIteration

    stopped = dask_nlsq.fit(decay, **options, callback=stop)
    assert (stopped.nsweeps, stopped.status) == (1, Status.CALLBACK)
    assert abs(stopped.redchi - 0.01) < 1e-3 and np.isfinite(stopped.stderr).all()


def test_after_a_pass_a_rise_is_taken_and_what_is_not_finite_refused():
    """No sweep has measured the cost of a pass; the first one is not compared with it, and must still be finite."""
    parameters, objective = bound([2, 1, 0.5])
    solver, block = TrustRegion(parameters.lower, parameters.upper), Block((T[::99],), Y[::99])
    state = _unmeasured(
        solver.step(solver.init(parameters.start), reduce_block(objective, block, parameters.start, None))
    )
    found = reduce_block(objective, block, state.trial, None)
    risen = solver.step(state, dataclasses.replace(found, cost=2 * state.point.reduction.cost))
    assert risen.history[-1].accepted and risen.point.measured
    lost = solver.step(state, dataclasses.replace(found, cost=np.nan))
    assert not lost.history[-1].accepted and lost.status is None


def test_a_lost_pass_is_not_read_to_its_end():
    t = T.copy()
    t[N // 2] = 1e9  # the model is not finite there, at the start

    def broken(t, amplitude, rate, offset=0.0):
        return jnp.where(t > 1e8, jnp.log(rate - 1.25), amplitude * jnp.exp(-rate * t)) + offset

    Reader.reads = 0
    dask_nlsq.fit(broken, data=frame(100, t), tier="streaming", goal="fast", p0=[3, 1.26, 0.5], client=False)
    assert Reader.reads <= 16 + 100 + 100 * 3


@pytest.mark.parametrize("precision", [5e-3, {"rate": 0.005}])
def test_reading_stops_at_a_precision(whole, precision):
    Reader.reads = 0
    result = dask_nlsq.fit(decay, data=frame(400), precision=precision, client=False)
    assert result.status is Status.PRECISION and result.success and result.plan.tier.name == "STREAMING"
    if isinstance(precision, float):
        assert (result.stderr <= precision * abs(result.params)).all()
    assert result.stderr["rate"] <= 0.0065 and Reader.reads < 150 and "% of the batches were read" in result.notes[-1]
    assert (abs(result.popt - [3.0, 1.3, 0.5]) < 4.5 * result.stderr).all()


def test_a_precision_that_is_not_reached_is_said():
    result = dask_nlsq.fit(decay, data=frame(20), precision=1e-9, client=False)
    assert result.status is Status.CONVERGED and "not reached" in result.notes[-1]


class Synthetic:
    """Makes partition i of rows without end."""

    def __init__(self, rows, seed=0):
        self.rows, self.seed = rows, seed

    def __call__(self, i):
        rng = np.random.default_rng([self.seed, i])
        t = rng.uniform(0, 5, self.rows)
        return pd.DataFrame({"t": t, "y": rng.normal(3.0 * np.exp(-1.3 * t) + 0.5, 0.1)})


class Sorted(Reader):
    """Makes partition i of ten million rows sorted by t."""

    def __call__(self, i):
        Reader.reads += 1
        rng = np.random.default_rng(i)
        t = np.sort(rng.uniform(5 * i / self.pieces, 5 * (i + 1) / self.pieces, 10_000_000 // self.pieces))
        return pd.DataFrame({"t": t, "y": rng.normal(3.0 * np.exp(-1.3 * t) + 0.5, 0.1)})


@pytest.mark.slow
def test_ten_million_sorted_rows_in_two_reads():
    rows = dd.from_map(Sorted(200, None, None), range(200), meta=pd.DataFrame({"t": [0.0], "y": [0.0]}))
    chunked = dask_nlsq.fit(decay, data=rows, tier="chunked", goal="quality", cache="none")
    Reader.reads = 0
    fast = dask_nlsq.fit(decay, data=rows, tier="streaming", goal="fast")
    once = Reader.reads
    certified = dask_nlsq.fit(decay, data=rows, tier="streaming")
    assert (once, Reader.reads - once) == (16 + 200, 16 + 400)
    assert (abs(fast.popt - chunked.popt) < 0.05 * chunked.stderr).all()
    assert (abs(certified.popt - chunked.popt) < 1e-4 * chunked.stderr).all()


@pytest.mark.slow
def test_a_hundred_million_rows_are_not_read_for_three_digits():
    rows = dd.from_map(Synthetic(100_000), range(1000), meta=pd.DataFrame({"t": [0.0], "y": [0.0]}))
    result = dask_nlsq.fit(decay, data=rows, precision=1e-3)
    assert (result.stderr <= 1e-3 * result.params).all() and result.status is Status.PRECISION
    assert (16 + 16) * 100_000 + result.n_obs < 5e6  # the sample, and what was under way


@pytest.mark.slow
def test_intervals_after_an_early_stop_cover_the_truth():
    covered = 0
    for seed in range(100):
        rows = dd.from_map(Synthetic(200, seed), range(200), meta=pd.DataFrame({"t": [0.0], "y": [0.0]}))
        ends = dask_nlsq.fit(decay, data=rows, precision=0.02, p0=[2, 1, 0.3], client=False).conf_int()
        covered += ends.loc["rate", "lower"] < 1.3 < ends.loc["rate", "upper"]
    assert 87 <= covered <= 100


def test_odd_partitions():
    hole = Y.copy()
    hole[N // 2] = np.nan
    with pytest.raises(DataError, match="not finite") as caught:
        dask_nlsq.fit(decay, data=frame(40, T, hole), tier="streaming", p0=[2, 1, 0.5])
    assert (caught.value.column, caught.value.partition) == ("y", 20)
    omitted = dask_nlsq.fit(decay, data=frame(40, T, hole), tier="streaming", nan_policy="omit")
    assert (omitted.n_obs, omitted.n_dropped) == (N - 1, 1)
    few = dask_nlsq.fit(decay, data=frame(50, T[:: N // 20], Y[:: N // 20]), tier="streaming", p0=[2, 1, 0.5])
    assert few.n_obs == 20 and few.success  # most partitions are empty


def test_data_that_change_between_pass_and_sweep_are_noticed():
    class Changing(Reader):
        def __call__(self, i):
            rows = super().__call__(i)
            return rows.assign(y=rows["y"] + 1e-9 * Reader.reads)

    rows = dd.from_map(Changing(20), range(20), meta=pd.DataFrame({"t": [0.0], "y": [0.0]}))
    with pytest.raises(DataError, match="first sweep"):
        dask_nlsq.fit(decay, data=rows, tier="streaming", p0=[2, 1, 0.5], client=False)


@pytest.mark.slow
def test_a_pass_that_lacks_rows_is_not_used():
    """One row lies where the model is not defined at first; at the answer it is."""

    def log_model(t, a, b):
        return a * jnp.log(t - b)

    t = np.sort(np.random.default_rng(0).uniform(1.0, 5.0, 40_000))
    y = 2 * np.log(t - 0.5) + np.random.default_rng(1).normal(0, 0.1, t.size)
    t[0] = 0.6
    y[0] = 2 * np.log(0.1)
    rows = frame(200, t, y)
    for goal in ("fast", "robust"):
        streamed, chunked = (
            dask_nlsq.fit(log_model, data=rows, tier=tier, goal=goal, p0=[1.0, 0.2])
            for tier in ("streaming", "chunked")
        )
        assert streamed.n_obs == chunked.n_obs == t.size and streamed.success
        assert (abs(streamed.popt - chunked.popt) < 0.1 * chunked.stderr).all()


@pytest.mark.parametrize("options", [{"loss": "huber"}, {"cov_type": "sandwich"}], ids=str)
@pytest.mark.parametrize("how", [{"tier": "streaming"}, {"precision": 0.1}], ids=str)
def test_what_is_not_a_sum_of_squares_is_not_streamed(options, how):
    for call in (dask_nlsq.fit, dask_nlsq.plan):
        with pytest.raises(NlsqError, match="squares"):
            call(decay, data=frame(4), p0=[2, 1, 0.5], **options, **how)


def test_few_rows_are_certified_too():
    few = dask_nlsq.fit(decay, data=frame(16, T[::4000], Y[::4000]), tier="streaming", p0=[2, 1, 0.5])
    assert few.nsweeps == 2 and few.success


@pytest.mark.parametrize(
    ("precision", "match"),
    [(-1, "above 0"), ({"ratte": 1}, "ratte"), ({}, "above 0"), ({"rate": -1}, "above 0"), ("a", "above 0")],
)
def test_a_precision_makes_sense(precision, match):
    with pytest.raises(NlsqError, match=match):
        dask_nlsq.fit(decay, data=frame(4), precision=precision)
