"""Multi-start searches: the lowest minimum, the same bits on any executor, no additional reads, no repeated starts."""

import dataclasses
import json

import dask.array as da
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nist import PROBLEMS
from problems import decay, decay_rows
from resumed import bits, run
from scipy.optimize import least_squares
from test_stream import Reader, frame

import dask_nlsq
from dask_nlsq import BoundsError, Checkpoints, DataError, FitResult, Model, NlsqError, Status, SweepError
from dask_nlsq._fit.loop import run_shared
from dask_nlsq._fit.start.multistart import Explorer, distinct
from dask_nlsq._kernel.block import Block
from dask_nlsq._model.objective import Objective
from dask_nlsq._solver import LocalMinima, screen
from dask_nlsq._solver.starts import draw_starts

N = 20_000
SEEDS = [pytest.param(0, 1, id="one seed"), pytest.param(1, 8, id="seven more")]


# --- problems with many minima ----------------------------------------------------------------------------------------


def exponentials(t, a, k, b, m):
    return a * jnp.exp(-k * t) + b * jnp.exp(-m * t)


def sinusoid(t, amplitude, frequency, phase, offset):
    return amplitude * jnp.sin(2 * jnp.pi * frequency * t + phase) + offset


def peaks(t, a, u, s, b, v, w):
    return a * jnp.exp(-0.5 * ((t - u) / s) ** 2) + b * jnp.exp(-0.5 * ((t - v) / w) ** 2)


MADE = {  # model, truth, noise, range of t, bounds
    "two exponentials": (exponentials, (2.0, 0.4, 1.0, 3.0), 0.05, 5.0, ([0, 0.01] * 2, [10, 20] * 2)),
    "sinusoid, 20 periods": (
        sinusoid,
        (1.5, 13.37, 0.8, 2.0),
        0.5,
        1.0,
        ([0, 0, -np.pi, -10], [10, 20, np.pi, 10]),
    ),
    "overlapping peaks": (peaks, (3.0, 4.0, 0.6, 2.0, 5.2, 0.5), 0.1, 10.0, ([0, 0, 0.05] * 2, [10, 10, 5] * 2)),
}


def made(name, n=N):
    """Return model, columns, bounds and the chi-square at the global minimum, found from the truth."""
    model, truth, noise, end, bounds = MADE[name]
    rng = np.random.default_rng(7)
    t = np.sort(rng.uniform(0, end, n))
    with jax.enable_x64(True):
        y = np.asarray(model(t, *truth)) + rng.normal(0, noise, n)
        best = least_squares(lambda p: np.asarray(model(t, *p)) - y, truth, xtol=1e-12, ftol=1e-12)
    return model, t, y, bounds, 2 * best.cost


def nist(name):
    """Return the same of a problem of NIST, in bounds a decade beyond start 1 and the answer."""
    problem = next(p for p in PROBLEMS if p.name == name)
    model = Model.from_expression(problem.expression, columns=["x"])
    at = [problem.parameters.index(n) for n in model.parameters]
    one, two = (np.array(v)[at] for v in (problem.starts[0], problem.params))
    ends = [f * s for s in (one, two) for f in (0.1, 10.0)]
    bounds = (np.min(ends, axis=0), np.max(ends, axis=0))
    return model, np.array(problem.x["x"]), np.array(problem.y), bounds, problem.rss


PROBLEMS_OF_MANY_MINIMA = {name: (made, name) for name in MADE} | {n: (nist, n) for n in ("BoxBOD", "MGH17")}


@pytest.mark.slow
@pytest.mark.timeout(900)  # seven seeds take half a minute, and more beside other work
@pytest.mark.parametrize(("first", "last"), SEEDS)
@pytest.mark.parametrize(("make", "name"), PROBLEMS_OF_MANY_MINIMA.values(), ids=PROBLEMS_OF_MANY_MINIMA)
def test_the_lowest_minimum_is_found(make, name, first, last):
    model, t, y, bounds, least = make(name)
    lost = []
    for seed in range(first, last):
        result = dask_nlsq.fit(model, t, y, bounds=bounds, n_starts=64, seed=seed, client=False)
        if not (result.success and result.chisqr <= least * (1 + 1e-6)):
            lost.append(seed)
    assert lost == []


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["sobol", "halton", "lhs"])
def test_every_start_is_listed(sampler):
    model, t, y, bounds, least = made("overlapping peaks")
    result = dask_nlsq.fit(model, t, y, bounds=bounds, n_starts=40, sampler=sampler)
    table = result.starts
    assert len(table) == 40 and table.index[0] == 0 and result.chisqr == pytest.approx(least)
    assert table.loc[0, [f"p0_{n}" for n in result.names]].tolist() == [1.0] * 6
    best = table[table["minimum"] == 0]
    assert np.allclose(best[list(result.names)], result.popt) and set(best["rows"]) == {N}
    assert np.allclose(2 * best["cost"], result.chisqr) and set(best["status"]) <= {"CONVERGED", "ROUNDING"}
    others = table[table["minimum"] > 0]
    assert (others["rows"] < N).any() and set(table["status"]) <= set(Status.__members__)
    assert any(f"{len(best)} of 40 starts led to this minimum; the next lies" in note for note in result.notes)
    again = FitResult.from_dict(json.loads(result.to_json()))
    assert again.starts.equals(table) and again.starts.index.name == "start"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cost", "status", "start", "p0_amplitude"])
def test_the_columns_of_the_starts_keep_their_names(name):
    t, y = decay_rows(200)
    named, plain = (
        dask_nlsq.fit(
            Model.from_expression(f"amplitude * exp(-{rate} * t) + offset", columns=["t"]),
            *(t, y),
            bounds={"amplitude": (0, 10), rate: (0.1, 5), "offset": (-1, 1)},
            n_starts=4,
        ).starts
        for rate in (name, "rate")
    )
    expected = plain.rename(columns={"rate": f"{name} (parameter)", "p0_rate": f"p0_{name}"})
    assert named.reset_index()[[*expected.columns]].equals(expected) and named.shape == plain.shape


@pytest.mark.slow
def test_of_equal_minima_that_of_the_given_start_is_the_answer():
    model, t, y, bounds, _ = made("two exponentials")
    for p0, fast in (((2, 0.5, 1, 2), "m"), ((1, 2, 2, 0.5), "k")):
        result = dask_nlsq.fit(model, t, y, p0=p0, bounds=bounds, n_starts=16)
        assert result.params[fast] == pytest.approx(3.0, rel=0.1) and "at the same cost" in " ".join(result.notes)


OPTIONS = {
    "goal": {"goal": "global"},
    "workflow": {"workflow": "auto_global"},
    "robust": {"n_starts": 64, "loss": "soft_l1"},
    "sandwich": {"n_starts": 64, "cov_type": "sandwich"},
    "weights": {"n_starts": 64, "sigma": np.full(N, 0.5)},
    "fixed": {"n_starts": 64, "fixed": {"offset": 2.0}},
    "tied": {"n_starts": 32, "tied": {"offset": "amplitude + 0.5"}},
    "prior": {"n_starts": 32, "prior": {"offset": (2.0, 0.1)}},
    "quality": {"n_starts": 32, "goal": "quality"},
    "differences": {"n_starts": 32, "jac": "3-point"},
    "streaming": {"n_starts": 32, "tier": "streaming"},
    "fast": {"n_starts": 32, "goal": "fast"},
}


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_a_search_goes_with_the_other_options(options):
    model, t, y, bounds, _ = made("sinusoid, 20 periods")
    bounds = dict(zip(("amplitude", "frequency", "phase", "offset"), zip(*bounds, strict=True), strict=True))
    columns = {"x": da.from_array(t, chunks=2500), "y": da.from_array(y, chunks=2500)}
    if "tied" in options:
        del bounds["offset"]
    if "sigma" in options:
        options = options | {"sigma": da.from_array(options["sigma"], chunks=2500)}
    result = dask_nlsq.fit(model, **columns, bounds=bounds, seed=3, **options)
    assert result.success and result.params["frequency"] == pytest.approx(13.37, abs=0.05)
    assert len(result.starts) == options.get("n_starts", 64)


# --- the same bits, and no more reads ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("where", ["threads", "cluster"])
def test_the_bits_are_those_of_any_executor(where, request):
    model, t, y, bounds, _ = made("two exponentials")
    columns = {"x": da.from_array(t, chunks=2500), "y": da.from_array(y, chunks=2500)}
    options = columns | {"bounds": bounds, "n_starts": 40, "tier": "chunked"}
    expected = dask_nlsq.fit(model, client=False, **options)
    client = request.getfixturevalue("client") if where == "cluster" else None
    result = dask_nlsq.fit(model, client=client, **options)
    assert bits(result) == bits(expected) and result.starts.equals(expected.starts)


def test_reads_do_not_depend_on_the_number_of_starts_or_minima():
    """A sample of 16 partitions, and the sweeps: two equal minima go over all rows together."""
    model, t, y, bounds, _ = made("two exponentials")
    options = {"bounds": bounds, "tier": "chunked", "cache": "none", "client": False, "p0": (2, 0.5, 1, 2)}
    reads = set()
    for starts in (2, 16, 128):
        Reader.reads = 0
        result = dask_nlsq.fit(model, data=frame(40, t, y), n_starts=starts, **options)
        reads.add(Reader.reads)
        assert Reader.reads == 16 + 40 * result.nsweeps
        together = (result.starts["rows"] == N) & (result.starts["minimum"] == 1)
        assert together.any() or starts == 2
    assert len(reads) == 1


# --- checkpoints ------------------------------------------------------------------------------------------------------

SEARCH = {"n_starts": 64, "bounds": {"amplitude": (0, 10), "rate": (0.01, 20), "offset": (-5, 5)}, "client": False}


class Stop(BaseException):
    """Stands for whatever ends a process."""


@pytest.mark.slow
@pytest.mark.parametrize("commits", [3, 6, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 5, 8))])
def test_a_search_that_was_stopped_explores_no_start_twice(tmp_path, monkeypatch, commits):
    explored, commit = [], Checkpoints.commit
    call = Explorer.__call__

    def counted(self, batch, block):
        explored.extend((self.abreast, i) for i in batch.indices)
        return call(self, batch, block)

    def stopping(self, *args, **options):
        number = commit(self, *args, **options)
        if len(self.numbers()) == commits:
            raise Stop
        return number

    expected = run(None, "chunked", **SEARCH)
    monkeypatch.setattr(Explorer, "__call__", counted)
    monkeypatch.setattr(Checkpoints, "commit", stopping)
    with pytest.raises(Stop):
        run(tmp_path, "chunked", checkpoint_interval=0, keep=100, **SEARCH)
    monkeypatch.setattr(Checkpoints, "commit", commit)
    result = run(tmp_path, "chunked", resume=True, **SEARCH)
    assert sorted(i for abreast, i in explored if abreast) == list(range(64))
    assert len(set(explored)) == len(explored)
    assert bits(result) == bits(expected) and result.starts.equals(expected.starts) and result.notes == expected.notes
    again = run(tmp_path, "chunked", **SEARCH)
    assert again.starts.equals(expected.starts)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"n_starts": 32}, {"sampler": "lhs"}, {"seed": 4}], ids=str)
def test_another_search_is_another_fit(tmp_path, change):
    run(tmp_path, "chunked", **SEARCH)
    with pytest.raises(dask_nlsq.CheckpointMismatch, match=next(iter(change))):
        run(tmp_path, "chunked", **SEARCH | change)


@pytest.mark.slow
def test_rivals_are_in_the_checkpoint(tmp_path, monkeypatch):
    """Two minima on their way over all rows, stopped between two sweeps and within one."""
    model, t, y, bounds, _ = made("two exponentials")
    columns = {"x": da.from_array(t, chunks=500), "y": da.from_array(y, chunks=500)}
    options = columns | {"bounds": bounds, "n_starts": 16, "tier": "chunked", "cache": "none", "client": False}
    expected, commit = dask_nlsq.fit(model, **options), Checkpoints.commit
    for stop in (6, 14, 22):
        where = tmp_path / str(stop)

        def stopping(self, *args, stop=stop, **more):
            if len(self.numbers()) == stop:
                raise Stop
            return commit(self, *args, **more)

        monkeypatch.setattr(Checkpoints, "commit", stopping)
        with pytest.raises(Stop):
            dask_nlsq.fit(model, **options, checkpoint=where, checkpoint_interval=0, keep=1000)
        monkeypatch.setattr(Checkpoints, "commit", commit)
        result = dask_nlsq.fit(model, **options, checkpoint=where, resume=True)
        assert bits(result) == bits(expected) and result.starts.equals(expected.starts), stop


@pytest.mark.crossed
@pytest.mark.parametrize("limit", [{"max_nfev": 1}, {"max_nfev": 2}, {"time_limit": 0.0}], ids=str)
def test_a_search_goes_on_where_a_limit_has_ended_it(tmp_path, limit):
    """With every minimum that was under way: the answer and its table are those of a fit without a limit."""
    model, t, y, bounds, _ = made("two exponentials")
    columns = {"x": da.from_array(t, chunks=500), "y": da.from_array(y, chunks=500)}
    options = columns | {"bounds": bounds, "n_starts": 16, "tier": "chunked", "cache": "none", "client": False}
    expected = dask_nlsq.fit(model, **options)
    assert not dask_nlsq.fit(model, **options, checkpoint=tmp_path, **limit).success
    for _ in range(2):  # goes on, and is then known to have ended
        result = dask_nlsq.fit(model, **options, checkpoint=tmp_path)
        np.testing.assert_array_equal(result.popt, expected.popt)
        assert result.starts.equals(expected.starts) and result.notes == expected.notes


def test_a_deadline_stops_rivals_of_one_that_has_ended(monkeypatch):
    model, t, y, bounds, _ = made("two exponentials")
    columns = {"x": da.from_array(t, chunks=500), "y": da.from_array(y, chunks=500)}
    problem, solver, states = [], [], []

    def seen(*args, **options):
        problem.append(args[0]), solver.append(args[1]), states.append(args[2])
        return run_shared(*args, **options)

    monkeypatch.setattr("dask_nlsq._fit.api.run_shared", seen)
    dask_nlsq.fit(model, **columns, bounds=bounds, n_starts=16, tier="chunked", client=False)
    first = states[0][0]
    states, seconds = run_shared(problem[0], solver[0], [first], deadline=None)
    ended = dataclasses.replace(states[0], status=Status.CONVERGED)
    states, seconds = run_shared(problem[0], solver[0], [ended, solver[0].init(first.trial * 1.01)], deadline=0.0)
    assert [state.status for state in states] == [Status.CONVERGED, Status.TIME_LIMIT] and len(seconds) == 1


def test_hpc_keeps_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run(None, "chunked", workflow="hpc", **{k: v for k, v in SEARCH.items() if k != "n_starts"})
    assert len(result.starts) == 64 and Checkpoints("nlsq-checkpoint").list()["finished"].iloc[-1]


def test_a_time_limit_ends_a_race_at_the_lowest_of_its_minima():
    model, t, y, bounds, least = made("two exponentials")
    options = {"bounds": bounds, "n_starts": 16, "tier": "chunked", "goal": "quality"}
    result = dask_nlsq.fit(model, t, y, time_limit=0, **options)
    assert result.status is Status.TIME_LIMIT and result.nsweeps == 1
    assert result.chisqr == pytest.approx(least, rel=1e-3)


# --- refusals ---------------------------------------------------------------------------------------------------------

BAD = {
    "no bounds": ({"n_starts": 8}, BoundsError, "amplitude, rate, offset have none"),
    "half": (
        {"n_starts": 8, "bounds": {"amplitude": (0, 5), "rate": (0, 9), "offset": (0, np.inf)}},
        BoundsError,
        "of",
    ),
    "goal": ({"goal": "global"}, BoundsError, "Give bounds="),
    "none": ({"n_starts": 0}, NlsqError, "n_starts is 0; 1 is the least"),
    "sampler": ({"n_starts": 8, "sampler": "random"}, NlsqError, "sobol"),
}


@pytest.mark.parametrize(("options", "error", "text"), BAD.values(), ids=BAD)
def test_what_cannot_be_searched_is_refused(options, error, text):
    with pytest.raises(error, match=text):
        dask_nlsq.fit(decay, *decay_rows(100), **options)


@pytest.mark.slow
def test_a_start_where_the_model_is_not_finite_is_listed_as_such():
    t, y = decay_rows(2000)
    model = lambda t, amplitude, rate: amplitude * jnp.where(rate > 0, 1.0, jnp.nan) * jnp.exp(-rate * t) + 0.5  # noqa: E731
    result = dask_nlsq.fit(model, t, y, p0=[1, 1], bounds=([0, -5], [10, 5]), n_starts=32)
    bad = result.starts[result.starts["p0_rate"] < 0]
    assert result.success and len(bad) and set(bad["status"]) == {"NOT_FINITE"} and set(bad["minimum"]) == {-1}


@pytest.mark.slow
def test_without_noise_ends_that_differ_by_rounding_are_one_minimum():
    t = np.linspace(0, 5, 500)
    options = {"p0": [1, 1, 0.5], "bounds": ([0, 0, -2], [9, 9, 2]), "n_starts": 16}
    result = dask_nlsq.fit(decay, t, 2.5 * np.exp(-1.3 * t), **options)
    assert set(result.starts["minimum"]) == {0} and "and none to another" in " ".join(result.notes)


def test_no_rows_is_said_of_a_search_too():
    t, y = decay_rows(50)
    with pytest.raises(DataError, match="no rows to fit"):
        dask_nlsq.fit(decay, t, y * np.nan, nan_policy="omit", bounds=([0, 0, -2], [9, 9, 2]), n_starts=8)


@pytest.mark.filterwarnings("ignore::dask_nlsq.NlsqWarning")
def test_a_model_that_fails_on_a_start_is_named():
    def fussy(t, a, b):
        if b > 2:
            raise ValueError("b is too large")
        return a * np.exp(-b * t)

    with pytest.raises(SweepError, match=r"Exploring the starts .* b is too large"):
        dask_nlsq.fit(fussy, *decay_rows(200), p0=[1, 1], bounds=([0, 0], [5, 5]), n_starts=16)


# --- the parts --------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 200),
    st.sampled_from(["sobol", "halton", "lhs"]),
    st.lists(
        st.tuples(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6)).map(lambda pair: (pair[0], pair[0] + pair[1])),
        min_size=1,
        max_size=6,
    ),
    st.integers(0, 99),
)
def test_starts_lie_within_the_bounds_and_repeat(n, sampler, pairs, seed):
    lower, upper = np.array(pairs).T
    starts = draw_starts(sampler, n, lower, upper, lower, seed)
    assert starts.shape == (n, len(pairs)) and (starts >= lower).all() and (starts <= upper).all()
    assert (starts[0] == lower).all() and (starts == draw_starts(sampler, n, lower, upper, lower, seed)).all()


@pytest.mark.parametrize("sampler", ["sobol", "halton", "lhs"])
def test_starts_are_spread_evenly_on_the_scale_of_the_bounds(sampler):
    lower, upper = np.array([0.0, 1e-3, -10.0]), np.array([1.0, 10.0, -1e-3])
    starts = draw_starts(sampler, 65, lower, upper, lower, 0)[1:]
    assert np.allclose(np.quantile(starts[:, 0], [0.25, 0.5, 0.75]), [0.25, 0.5, 0.75], atol=0.05)
    assert np.allclose(np.quantile(np.log10(starts[:, 1]), [0.25, 0.5, 0.75]), [-2, -1, 0], atol=0.2)
    assert np.allclose(np.quantile(np.log10(-starts[:, 2]), [0.25, 0.5, 0.75]), [-2, -1, 0], atol=0.2)


def objective_of(name):
    model, t, y, bounds, _ = made(name, 500)
    bound = Model.from_function(model).bind(("t",))
    return Objective(bound, ("t", "y")), Block((t,), y), *(np.array(b, float) for b in bounds)


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_a_start_ends_at_the_same_bits_in_any_company(name):
    objective, block, lower, upper = objective_of(name)
    starts = draw_starts("sobol", 40, lower, upper, 0.5 * (lower + upper), 1)
    ends = screen(objective, block, starts, lower, upper)
    order = np.random.default_rng(0).permutation(40)
    for part in (order[:1], order[1:8], order[8:]):
        alone = screen(objective, block, starts[part], lower, upper)
        assert (alone.theta == ends.theta[part]).all() and (alone.status == ends.status[part]).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", MADE)
def test_where_a_start_ends_is_a_minimum(name):
    """SciPy goes on from there, to another minimum or to one lower by what two thirds of a standard error are worth."""
    objective, block, lower, upper = objective_of(name)
    starts = draw_starts("sobol", 24, lower, upper, 0.5 * (lower + upper), 2)
    ends = screen(objective, block, starts, lower, upper)
    model = MADE[name][0]
    for theta, cost, status in zip(ends.theta, ends.cost, ends.status, strict=True):
        if status == Status.CONVERGED:
            inside = np.clip(theta, lower + 1e-9, upper - 1e-9)
            with jax.enable_x64(True):
                more = least_squares(
                    lambda p: np.asarray(model(block.x[0], *p)) - block.y, inside, bounds=(lower, upper)
                )
            assert cost - more.cost <= 0.2 * 2 * cost / (block.rows - len(theta)) or more.cost < 0.99 * cost


def test_ends_within_a_standard_error_are_one_minimum():
    theta = np.array([[1.0, 2.0], [1.05, 2.0], [3.0, 2.0], [np.nan, np.nan], [1.0, 2.0]])
    curvature = np.broadcast_to(np.diag([100.0, 1.0]), (5, 2, 2))
    ends = LocalMinima(theta, np.array([50.0, 49.0, 60.0, np.inf, 51.0]), curvature, np.full(5, 5))
    assert distinct(ends, 100) == [[1, 0, 4], [2]]
