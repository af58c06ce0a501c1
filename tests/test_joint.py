"""Several data sets with a model each, some parameters being common: the answer of one dense fit of all of them."""

import re

import dask.array as da
import dask.dataframe as dd
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import least_squares

import dask_nlsq
from dask_nlsq import BoundsError, CheckpointError, CheckpointMismatch, DataError, ModelError, NlsqError

RNG = np.random.default_rng(0)
T, X = np.linspace(0, 10, 200), np.linspace(0, 6, 80)
Y = 3 * np.exp(-T / 2) + 0.5 + 0.05 * RNG.normal(size=200)
Z = 2 * (1 - np.exp(-X / 2)) + 0.05 * RNG.normal(size=80)
SIGMA = RNG.uniform(0.5, 2, 80)
P0 = {"tau": 1.0, "amplitude": 1.0, "offset": 0.0, "height": 1.0}
NAMES = ("tau", "amplitude_pump", "offset_pump", "height_probe")


def decay(t, amplitude, tau, offset):
    return amplitude * jnp.exp(-t / tau) + offset


def rise(x, height, tau):
    return height * (1 - jnp.exp(-x / tau))


def sets(pump=None, probe=None):
    frame = dd.from_pandas(pd.DataFrame({"t": T, "signal": Y}), npartitions=3)
    pump = {"model": decay, "data": frame, "y": "signal"} | (pump or {})
    return {"pump": pump, "probe": {"model": rise, "x": X, "y": Z} | (probe or {})}


def dense(sigma=1.0, rows=80, **options):
    def residuals(theta):
        tau, amplitude, offset, height = theta
        return np.r_[amplitude * np.exp(-T / tau) + offset - Y, ((height * (1 - np.exp(-X / tau)) - Z) / sigma)[:rows]]

    def jacobian(theta):
        tau, amplitude, _, height = theta
        e, f = np.exp(-T / tau), np.exp(-X / tau)
        pump = np.stack([amplitude * e * T / tau**2, e, np.ones(200), np.zeros(200)], axis=1)
        probe = np.stack([-height * f * X / tau**2, 0 * X, 0 * X, 1 - f], axis=1) / np.reshape(sigma, (-1, 1))
        return np.concatenate([pump, probe[:rows]])

    tight = dict.fromkeys(("ftol", "xtol", "gtol"), 1e-15)
    found = least_squares(residuals, [1.0, 1, 0, 1], jacobian, **tight, **options)
    cov = np.linalg.inv(found.jac.T @ found.jac) * 2 * found.cost / (200 + rows - 4)
    return found.x, cov, found.cost


ROBUST = {"loss": "soft_l1", "f_scale": 0.05}
CASES = {
    "plain": ({}, {}, {}),
    "in pieces": ({"x": da.from_array(X, chunks=30), "y": da.from_array(Z, chunks=30)}, {}, {}),
    "a single row": ({"x": X[:1] + 1, "y": Z[:1] + 1}, {}, None),
    "robust": ({}, ROBUST, ROBUST),
    "weighted": ({"sigma": SIGMA}, {}, {"sigma": SIGMA}),
}


@pytest.mark.crossed(3)
@pytest.mark.parametrize("name", CASES)
def test_the_answer_is_that_of_a_dense_fit(name):
    probe, options, reference = CASES[name]
    result = dask_nlsq.fit(sets(probe=probe), shared="tau", p0=P0, **options)
    assert result.success and result.names == NAMES
    if reference is None:  # the row determines the height, and says nothing of the others
        alone = dask_nlsq.fit(decay, T, Y, p0=[1.0, 1.0, 0.0])
        np.testing.assert_allclose(result.params[["amplitude_pump", "tau"]], alone.params[["amplitude", "tau"]])
        return
    theta, cov, cost = dense(**reference)
    np.testing.assert_allclose(result.popt, theta, rtol=1e-8)
    np.testing.assert_allclose(result.pcov, cov, rtol=1e-7)
    assert result.cost == pytest.approx(cost, rel=1e-10) and result.dof == 276


def test_each_part_has_the_names_of_its_model():
    result = dask_nlsq.fit(sets(), shared=["tau"], p0=P0)
    pump, probe = result.parts["pump"], result.parts["probe"]
    assert pump.names == ("amplitude", "tau", "offset") and probe.stderr["tau"] == result.stderr["tau"]
    expected = result.params["height_probe"] * (1 - np.exp(-X / result.params["tau"]))
    np.testing.assert_allclose(probe.predict({"x": X}), expected)
    assert "2 data sets" in str(result)
    parts = [re.search(r"These (\d+) rows add ([\d.e+-]+) to χ²", part.notes[0]).groups() for part in (pump, probe)]
    rows, squares = zip(*parts, strict=True)
    assert sum(map(int, rows)) == result.n_obs and sum(map(float, squares)) == pytest.approx(result.chisqr, rel=1e-5)


def test_a_list_is_numbered_and_constraints_hold():
    first, second = sets(pump={"fixed": {"offset": 0.5}}, probe={"tied": {"height": "tau"}}).values()
    result = dask_nlsq.fit([first, second], shared="tau", p0=P0, bounds={"tau": (0.1, 5.0)})
    assert result.names == ("tau", "amplitude_0", "offset_0", "height_1") and result.free == result.names[:2]
    assert result.parts["0"].params["offset"] == result.params["offset_0"] == 0.5
    assert result.params["tau"] == result.parts["1"].params["height"] == result.params["height_1"]
    assert result.stderr["offset_0"] == 0 and result.stderr["tau"] == result.stderr["height_1"]
    assert "(fixed)" in str(result) and result.correlation.loc["tau", "height_1"] == pytest.approx(1)


HELD = {
    "a fixed parameter": {"fixed": {"offset": 0.5}},
    "fixed in one of them": {"fixed": {"tau": 2.0}},
    "a tie": {"tied": {"offset": "0.2 * amplitude"}},
}


@pytest.mark.parametrize("name", HELD)
def test_what_is_held_is_in_the_result_and_in_what_is_saved(name, tmp_path):
    several = sets(pump=HELD[name])
    several["third"] = several["probe"] | {"y": 0.9 * Z}
    result = dask_nlsq.fit(several, shared="tau", p0=P0)
    held = [label for label in result.names if label not in result.free]
    ((option, given),) = HELD[name].items()
    assert held == [f"{each}_pump" for each in given] and len(result.popt) == len(result.pcov) == len(result.names)
    assert [result.stderr[label] == 0 for label in held] == [option == "fixed"]
    result.save(tmp_path / "r.zip")
    again = dask_nlsq.FitResult.load(tmp_path / "r.zip")
    assert again == result and again.free == result.free and str(again) == str(result)
    assert all(again.parts[key] == part for key, part in result.parts.items())


def test_parts_are_saved_and_evaluate_the_models_that_are_given(tmp_path):
    several = sets() | {"line": {"model": "a + b*t", "data": {"t": T, "y": 1 + T}}}
    result = dask_nlsq.fit(several, shared="tau", p0=P0)
    result.save(tmp_path / "folder")
    again = dask_nlsq.FitResult.load(tmp_path / "folder", model={"pump": decay})
    for key, x in (("pump", {"t": T}), ("line", {"t": T})):
        np.testing.assert_array_equal(again.parts[key].predict(x), result.parts[key].predict(x))
    with pytest.raises(NlsqError, match="model"):
        again.parts["probe"].predict({"x": X})


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (decay, CheckpointError, "several data sets"),
        ({"pumps": decay}, CheckpointMismatch, "pumps"),
        ({"pump": rise}, CheckpointMismatch, "rise"),
    ],
)
def test_other_models_are_refused(model, error, words):
    saved = dask_nlsq.fit(sets(), shared="tau", p0=P0).to_dict()
    with pytest.raises(error, match=words):
        dask_nlsq.FitResult.from_dict(saved, model)


def test_a_result_that_was_saved_without_parts_is_read():
    saved = dask_nlsq.fit(sets(), shared="tau", p0=P0).to_dict()
    del saved["parts"]
    assert dask_nlsq.FitResult.from_dict(saved).parts == {}


REFUSED = {
    "one alone": (lambda: dask_nlsq.fit([sets()["pump"]], shared="tau"), NlsqError, "Several data sets"),
    "no model": (lambda: dask_nlsq.fit([{"x": X, "y": Z}] * 2, shared="tau"), NlsqError, "a model"),
    "a misspelt argument": (lambda: dask_nlsq.fit(sets(pump={"sigmas": 1}), shared="tau"), NlsqError, "sigmas"),
    "nothing in common": (lambda: dask_nlsq.fit(sets(), shared="height", p0=P0), ModelError, "two data sets"),
    "bounds apart": (
        lambda: dask_nlsq.fit(
            sets({"bounds": {"tau": (0, 1)}}, {"bounds": {"tau": (2, 3)}}), shared="tau", p0={"amplitude": 1.0}
        ),
        BoundsError,
        "leave no value",
    ),
    "columns of all": (lambda: dask_nlsq.fit(sets(), x="t", shared="tau"), NlsqError, "belongs to a data set"),
    "a misspelt parameter": (lambda: dask_nlsq.fit(sets(), shared="tau", fixed={"ofset": 0}), ModelError, "ofset"),
    "p0 in two forms": (
        lambda: dask_nlsq.fit(sets(pump={"p0": [1.0, 1.0, 0.0]}), shared="tau", p0=P0),
        NlsqError,
        "must be a mapping",
    ),
    "a jac of all": (lambda: dask_nlsq.fit(sets(), shared="tau", jac=lambda *a: a), NlsqError, "jac="),
    "one key twice": (lambda: dask_nlsq.fit({1: sets()["pump"], "1": sets()["probe"]}), NlsqError, "the key '1'"),
    "a checkpoint": (lambda: dask_nlsq.fit(sets(), shared="tau", checkpoint="here"), NlsqError, "checkpoint="),
    "a shared name that is none": (lambda: dask_nlsq.fit(sets(), shared="taw", p0=P0), ModelError, "taw"),
    "one name for two": (
        lambda: dask_nlsq.fit([{"model": lambda x, a, a_1: a * x + a_1, "x": X, "y": Z}] * 2, shared="a_1"),
        ModelError,
        "one name",
    ),
    "cells that are not finite": (
        lambda: dask_nlsq.fit(sets(pump={"y": np.full(len(T), np.nan)}), shared="tau", p0=P0),
        DataError,
        "data_set 'pump'",
    ),
    "one model": (lambda: dask_nlsq.fit(decay, T, Y, shared="tau"), NlsqError, "several data sets"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_refused(name):
    call, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        call()
