"""Derivatives that are not finite although the model is: detected, replaced by differences, and reported."""

import pickle
import re

import dask.dataframe as dd
import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

import dask_nlsq
from dask_nlsq import Model, ModelError
from dask_nlsq._checkpoint.codec import pack, unpack
from dask_nlsq._kernel import kernel, safeguarded_difference
from dask_nlsq._kernel.block import SLABS, TILE, Block
from dask_nlsq._kernel.reduction import Reduction, fold
from dask_nlsq._model.objective import Objective
from dask_nlsq._sweep.tree import Finished


def stretched(t, height, tau, beta):
    return height * jnp.exp(-((t / tau) ** beta))


def stretched_smoothly(t, height, tau, beta):
    """The same with derivatives that are finite everywhere."""
    return height * jnp.exp(-jnp.where(t > 0, jnp.where(t > 0, t / tau, 1.0) ** beta, 0.0))


def hill(dose, top, half, n):
    return top / (1 + (half / dose) ** n)


def hill_smoothly(dose, top, half, n):
    return jnp.where(dose > 0, top / (1 + (half / jnp.where(dose > 0, dose, 1.0)) ** n), 0.0)


def sips(p, most, k, n):
    return most * (k * p) ** (1 / n) / (1 + (k * p) ** (1 / n))


def sips_smoothly(p, most, k, n):
    q = jnp.where(p > 0, k * p, 1.0) ** (1 / n)
    return jnp.where(p > 0, most * q / (1 + q), 0.0)


def edge(e, step, mu, width):
    return step / (1 + jnp.exp((e - mu) / width))


def edge_smoothly(e, step, mu, width):
    return step * jax.nn.sigmoid(-(e - mu) / width)


def branch(t, level, slope, rate):
    """Rises as a logarithm from 0 on; before 0 the branch that is not taken has no derivative."""
    return level + slope * jnp.where(t > 0, jnp.log(t * rate), t)


def branch_smoothly(t, level, slope, rate):
    return level + slope * jnp.where(t > 0, jnp.log(jnp.where(t > 0, t, 1.0) * rate), t)


def radius(t, x0, slope):
    """The distance from a centre that lies on a row."""
    return slope * jnp.sqrt((t - x0) ** 2)


def radius_smoothly(t, x0, slope):
    return slope * (t - x0) * jnp.sign(t - x0)


def newton_root(t, a, b):
    """Return the square root of a + b t, by a loop without a reverse derivative, times the root of (b - 1)²."""
    step = lambda z: z - (z**2 - a - b * t) / (2 * z)  # noqa: E731
    root = jax.lax.while_loop(lambda z: jnp.any(jnp.abs(z**2 - a - b * t) > 1e-13), step, jnp.ones_like(t) + 0 * a)
    return root + jnp.where(t > 2, jnp.sqrt(t - 2), 0.0) * b


MODELS = {
    "stretched": (stretched, stretched_smoothly, (7.5, 6.0, 0.62), np.linspace(0, 40, 200)),
    "hill": (hill, hill_smoothly, (2e-9, 3e4, 1.7), np.r_[np.zeros(5), np.geomspace(1e2, 1e7, 200)]),
    "sips": (sips, sips_smoothly, (3.0, 2e-5, 1.4), np.r_[np.zeros(5), np.geomspace(1e3, 1e6, 200)]),
    "edge": (edge, edge_smoothly, (12.0, 0.4, 0.035), np.linspace(-30, 30, 601)),
    "edge in small units": (edge, edge_smoothly, (12.0, 1e-10, 4e-12), np.linspace(-5e-9, 5e-9, 601)),
    "branch": (branch, branch_smoothly, (1.0, 0.5, 3.0), np.linspace(-1, 5, 301)),
    "radius": (radius, radius_smoothly, (0.0, 2.0), np.linspace(-5, 5, 101)),
}


def rows(name, noise=1e-2):
    _, smooth, truth, t = MODELS[name]
    with jax.enable_x64(True):
        y = np.asarray(smooth(t, *truth))
    return t, y + noise * np.std(y) * np.random.default_rng(0).normal(size=len(t))


def objective(func, weighted=False, **options):
    return Objective(Model.from_function(func).bind(["t"]), ("t", "y"), weighted, **options)


OPTIONS = [{}, {"loss": "soft_l1", "f_scale": 0.1}, {"sandwich": True}, {"jacobian": "forward"}]


@pytest.mark.slow
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("weighted", [False, True])
def test_sums_equal_those_of_a_model_with_finite_derivatives(name, weighted, options):
    model, smooth, truth, t = MODELS[name]
    t, y = rows(name)
    block = Block((t,), y, np.linspace(0.5, 2, len(t)) if weighted else None)
    theta = np.array(truth)
    scale = np.diag(np.where(theta == 0, 1.0, theta))
    one, two = (
        kernel.reduce_block(objective(func, weighted, **options), block, theta, scale) for func in (model, smooth)
    )
    assert one.finite and two.differences is None
    assert one.differences is not None or options == {"jacobian": "forward"}
    for sums in ("gram", "curvature", "meat"):
        if (expected := getattr(two, sums)) is not None:
            size = np.sqrt(np.abs(np.diag(expected)))
            np.testing.assert_allclose(getattr(one, sums), expected, rtol=0, atol=1e-9 * np.outer(size, size).max())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_fits_equal_those_of_a_model_with_finite_derivatives(name):
    model, smooth, truth, _ = MODELS[name]
    t, y = rows(name)
    start = [1.05 * value for value in truth]
    if name == "radius":  # its kink has no smooth minimum; its start lies on a row
        start = [0.0, 1.0]
    one, two = (dask_nlsq.fit(func, t, y, p0=start) for func in (model, smooth))
    assert (np.abs(one.popt - two.popt) < 1e-5 * two.stderr.to_numpy()).all()
    np.testing.assert_allclose(one.stderr, two.stderr, rtol=1e-5)


@pytest.mark.slow
def test_the_note_names_parameter_count_and_first_row():
    t, y = rows("stretched")
    result = dask_nlsq.fit(stretched, t, y, p0=[7, 5, 0.7])
    (note,) = [note for note in result.notes if "derivative" in note]
    assert "respect to 'tau' is not finite in 1 row (the first: row 0 of partition 0)" in note
    assert not any("derivative" in note for note in dask_nlsq.fit(stretched_smoothly, t, y, p0=[7, 5, 0.7]).notes)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["threads", "client"])
def test_executors_have_the_same_bits_and_say_the_same(where, request):
    t, y = rows("edge")
    frame = pd.DataFrame({"e": t, "y": y})
    base = dd.from_pandas(frame, npartitions=4).nlsq.fit(edge, p0=[10, 0.3, 0.03])
    if where == "client":
        request.getfixturevalue("client")
    other = dd.from_pandas(frame, npartitions=4).nlsq.fit(edge, p0=[10, 0.3, 0.03])
    np.testing.assert_array_equal(base.popt, other.popt)
    said = [[note for note in result.notes if "derivative" in note] for result in (base, other)]
    assert said[0] == said[1] and "row 117 of partition 3" in " ".join(said[0])


DOORS = {
    "formula": lambda t, y: dask_nlsq.fit(
        Model.from_expression("height*exp(-(t/tau)**beta)"), data=pd.DataFrame({"t": t, "y": y}), p0=START
    ),
    "search": lambda t, y: dask_nlsq.fit(
        stretched, t, y, n_starts=20, bounds={"height": (0, 20), "tau": (0.1, 50), "beta": (0.1, 2)}
    ),
    "loss": lambda t, y: dask_nlsq.fit(stretched, t, y, p0=START, loss="huber", f_scale=10),
    "sandwich": lambda t, y: dask_nlsq.fit(stretched, t, y, p0=START, cov_type="sandwich"),
    "tied": lambda t, y: dask_nlsq.fit(
        lambda t, height, tau, beta, half: height * jnp.exp(-((t / (2 * half)) ** beta)) + 0 * tau,
        t,
        y,
        p0={**START, "half": 3.0},
        tied={"half": "tau / 2"},
    ),
    "given jac": lambda t, y: dask_nlsq.fit(stretched_numpy, t, y, p0=START, jac=jacobian_numpy),
}
START = {"height": 7.0, "tau": 5.0, "beta": 0.7}


def stretched_numpy(t, height, tau, beta):
    return height * np.exp(-((t / tau) ** beta))


def jacobian_numpy(t, height, tau, beta):
    with np.errstate(all="ignore"):
        u = (t / tau) ** beta
        e = height * np.exp(-u)
        return np.stack([e / height, e * beta * t * (t / tau) ** (beta - 1) / tau**2, -e * u * np.log(t / tau)], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("door", DOORS)
@pytest.mark.filterwarnings("ignore::dask_nlsq.NlsqWarning")
def test_every_door_finds_them_and_says_so(door):
    t, y = rows("stretched")
    result = DOORS[door](t, y)
    base = dask_nlsq.fit(stretched_smoothly, t, y, p0=START)
    np.testing.assert_allclose(result.popt[:3], base.popt, rtol=1e-6)
    assert any("derivative with respect to" in note for note in result.notes)


@pytest.mark.parametrize("in_jax", [True, False])
def test_curve_fit_finds_them(in_jax):
    t, y = rows("stretched")
    popt, _ = dask_nlsq.curve_fit(stretched if in_jax else stretched_numpy, t, y, p0=[7, 5, 0.7])
    np.testing.assert_allclose(popt, dask_nlsq.fit(stretched_smoothly, t, y, p0=START).popt, rtol=1e-6)


def test_a_stream_finds_them_and_names_the_batch(tmp_path):
    t, y = rows("stretched")
    fitter = dask_nlsq.StreamingFitter(stretched, p0=START)
    for _ in range(4):
        fitter.partial_fit(t[1:], y[1:])
    fitter.partial_fit(t, y).save(tmp_path / "state.zip")
    for one in (fitter, dask_nlsq.StreamingFitter.load(tmp_path / "state.zip", stretched, p0=START)):
        assert "is not finite in 1 row (the first: row 0 of batch 5)" in " ".join(one.result().notes)


# --- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_rows_without_weight_and_rows_that_fill_a_tile_do_not_count():
    """The first row, which fills the tile, has no derivative, and in the second block no weight either."""
    t = np.r_[0.0, np.linspace(1, 40, 99)]
    weight = np.ones(100)
    one = kernel.reduce_block(objective(stretched), Block((t,), t), np.array([7, 5, 0.7]), None)
    np.testing.assert_array_equal(one.differences, [[0, 0, 0, 0], [1, 0, 0, 1], [0, 0, 0, 0]])
    weight[0] = 0.0
    two = kernel.reduce_block(objective(stretched, True), Block((t,), t, weight), np.array([7, 5, 0.7]), None)
    assert two.finite and two.differences is None


def test_blocks_in_one_slab_have_the_bits_they_have_alone(rng):
    theta, one = np.array([7, 5, 0.7]), objective(stretched)
    blocks = []
    for i, length in enumerate([10, TILE, 1, TILE + 5, SLABS[1] + 100, 700]):
        t = rng.uniform(1, 40, length)
        t[-1] = 0.0 if i % 2 else 1.0
        blocks.append(Block((t,), t))
    together = kernel.reduce_blocks(one, blocks, theta, None)
    for block, reduction in zip(blocks, together, strict=True):
        alone = kernel.reduce_block(one, block, theta, None)
        for name, value in vars(alone).items():
            np.testing.assert_array_equal(getattr(reduction, name), value, err_msg=name)
        last = [1, 0, block.rows - 1, 1] if block.x[0][-1] == 0 else None
        assert (None if reduction.differences is None else reduction.differences[1].tolist()) == last


def test_the_row_is_counted_from_the_first_of_its_block():
    t = np.ones(SLABS[1] + 50)
    t[-3:] = 0.0
    found = kernel.reduce_block(objective(stretched), Block((t,), t), np.array([7, 5, 0.7]), None)
    np.testing.assert_array_equal(found.differences[1], [3, 0, SLABS[1] + 47, 3])


def leaf(counts, partition=0):
    counts = None if counts is None else np.array([[n, partition, row, 1] for n, row in counts])
    nothing = np.zeros((3, 3))
    return Reduction(5, 0, 0.0, nothing, 1.0, 0.0, 0.0, 0.0, np.zeros(1), np.zeros(2, np.uint64), differences=counts)


def test_counts_add_up_in_the_order_of_partitions():
    leaves = [leaf(None), leaf([(0, 0), (2, 7)], 1), leaf([(3, 4), (1, 1)], 2), *[leaf(None, i) for i in range(3, 70)]]
    np.testing.assert_array_equal(fold(leaves).differences, [[3, 2, 4, 2], [3, 1, 7, 2]])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fold(leaves))).differences, fold(leaves).differences)


def test_checkpoints_hold_counts_and_those_that_have_none_are_read():
    zeros = np.zeros(3, np.int64)
    finished = Finished(np.ones(3, bool), zeros, zeros, zeros, (leaf(None), leaf([(0, 0), (2, 7)], 1), leaf(None)))
    again = unpack(Finished, pack(finished)).nodes
    np.testing.assert_array_equal(again[1].differences, [[0, 1, 0, 1], [2, 1, 7, 1]])
    assert again[0].differences is None
    keys = {name: data for name, data in pack(finished).items() if "/differences" not in name}
    assert [node.differences for node in unpack(Finished, keys).nodes] == [None] * 3


# --- the search for a derivative --------------------------------------------------------------------------------------

SLOPES = {
    "smooth": (lambda v: np.exp(v), 0.3, np.exp(0.3)),
    "smooth, in small units": (lambda v: np.exp(1e12 * v), 3e-13, 1e12 * np.exp(0.3)),
    "smooth, in large units": (lambda v: np.sin(v / 1e9), 3e8, np.cos(0.3) / 1e9),
    "a flank far from zero": (
        lambda v: np.exp(-0.5 * ((57958.02 - v) / 0.05) ** 2),
        57958.0,
        0.4 / 0.05 * np.exp(-0.08),
    ),
    "the end of a domain": (lambda v: np.where(v >= 0, np.exp(v), np.nan), 0.0, 1.0),
    "constant": (lambda v: 0 * v + 3.0, 57958.0, 0.0),
    "zero": (lambda v: 0 * v, 0.0, 0.0),
    "a symmetric kink": (lambda v: 1 + np.abs(v), 0.0, 0.0),
    "a symmetric cusp": (lambda v: np.sqrt(np.abs(v)), 0.0, 0.0),
    "an infinite slope": (lambda v: np.sqrt(v), 0.0, np.nan),
    "an infinite slope of one side": (lambda v: 1e3 + np.sqrt(np.maximum(v - 2, 0)), 2.0, np.nan),
    "an infinite slope of a slow kind": (lambda v: v**0.95, 0.0, np.nan),
    "a value at one point only": (lambda v: np.where(v == 1, 1.0, np.nan), 1.0, np.nan),
}


@pytest.mark.parametrize("name", SLOPES)
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_difference_is_the_derivative_or_is_refused(name):
    func, value, slope = SLOPES[name]
    theta = np.array([value])
    found = safeguarded_difference.mend(func, theta, func(theta), np.full((1, 1), np.nan))[0, 0]
    np.testing.assert_allclose(found, slope, rtol=1e-7)
    if slope == 0:
        assert found == 0


# --- starts that are refused ------------------------------------------------------------------------------------------

REFUSED = {
    "a power of negative x": (
        lambda x, a, k: a * x**k,
        [1, 0.5],
        r"in 14 rows.*row 0 of partition 0.*x=-1\.5 the model gives nan",
    ),
    "NumPy": (
        lambda x, a, k: a * np.asarray(x) ** np.float64(k),
        [1, 0.5],
        r"in 14 rows.*row 0 of partition 0.*nan_policy=\"omit\" drops",
    ),
}


ELSEWHERE = {
    "a logarithm": (lambda x, a, b: a + jnp.log(x - b), [1, 15.0], r"in 153 rows.*row 0 of partition 0"),
    "overflow": (
        lambda x, a, b: a * jnp.exp(b * x),
        [1, 100.0],
        r"in 120 rows.*row 80 of partition 0, where x=7\.14322 the model gives inf",
    ),
    "an infinite derivative": (
        lambda x, a, b: a * x + jnp.sqrt(jnp.maximum(b, 0.0)),
        [1, 0.0],
        r"in 200 rows, although the model is.*row 0 of partition 0",
    ),
    "a parameter out of its domain": (
        lambda x, a, b: a * x + jnp.sqrt(jnp.maximum(b, 0.0)),
        [1, -1.0],
        r"in 200 rows, although the model is, and that does not change",
    ),
}
"""Models that are not finite at a start, and are at others."""

TRUE = {"a logarithm": -4.0, "overflow": 0.3, "an infinite derivative": 4.0, "a parameter out of its domain": 4.0}
NOISE = 0.01 * np.cos(90 * np.linspace(-1.5, 20, 200))


@pytest.mark.one_at_a_time
@pytest.mark.parametrize("where", ["threads", "client"])
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore::dask_nlsq.NlsqWarning", "ignore::RuntimeWarning")
def test_a_start_that_is_refused_names_its_rows(name, where, request):
    if where == "client":
        request.getfixturevalue("client")
    model, start, match = REFUSED[name]
    x = np.linspace(-1.5, 20, 200)
    frame = pd.DataFrame({"x": x, "y": 2.2 * np.abs(x) ** 0.5})
    with pytest.raises(ModelError, match=f"(?s)not finite at the start p0=.*{match}"):
        dd.from_pandas(frame, npartitions=2).nlsq.fit(model, p0=start)


@pytest.mark.slow
@pytest.mark.one_at_a_time
@pytest.mark.parametrize("where", ["threads", "client", "path"])
@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_start_that_is_not_finite_is_left_for_one_that_is(name, where, request, tmp_path):
    if where == "client":
        request.getfixturevalue("client")
    model, start, match = ELSEWHERE[name]
    x = np.linspace(-1.5, 20, 200)
    rows = dd.from_pandas(pd.DataFrame({"x": x, "y": model(x, 2.0, TRUE[name]) + NOISE}), npartitions=2)
    if where == "path":
        rows.to_parquet(tmp_path, write_index=False)
    result = dask_nlsq.fit(model, data=tmp_path if where == "path" else rows, p0=start)
    assert result.success and abs(result.popt[0] - 2.0) < 0.01
    assert re.search(f"(?s)not finite at the start p0=.*{match}.*of 512 other starts", " ".join(result.notes))


def test_a_stream_names_the_rows_too():
    x = np.linspace(-1.5, 20, 200)
    with pytest.raises(ModelError, match=r"in 14 rows.*row 0 of batch 0.*x=-1\.5"):
        dask_nlsq.StreamingFitter(lambda x, a, k: a * x**k, [1.0, 0.5]).partial_fit(x, x)


VISITS = pd.DataFrame({"when": pd.date_range("2024-02-01", periods=10, freq="14D"), "visits": np.arange(10.0)})


@pytest.mark.slow
def test_dates_are_said_to_be_seconds():
    result = VISITS.nlsq.fit(lambda when, first, rate: first * jnp.exp(rate * when), y="visits", p0=[100, 0.01])
    assert "'when' holds dates; the model saw seconds since 2024-02-01" in " ".join(result.notes)


def test_a_start_that_is_refused_is_said_to_have_seen_seconds():
    with pytest.raises(ModelError, match="'when' holds dates, which the model saw as seconds since 2024-02-01"):
        VISITS.nlsq.fit(lambda when, first, rate: first * (-when - 1) ** rate, y="visits", p0=[100, 0.5])
