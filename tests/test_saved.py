"""A result that is written and read again, with and without its model."""

import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
import zarr

import dask_nlsq
from dask_nlsq import CheckpointCorrupt, CheckpointError, CheckpointMismatch, FitResult, Model, NlsqError

T = np.linspace(0, 4, 60)
RNG = np.random.default_rng(0)
FRAME = pd.DataFrame(
    {
        "t": T,
        "u": RNG.uniform(0, 1, T.size),
        "when": pd.Timestamp("2026-05-01") + pd.to_timedelta(T, "s"),
        "y": 3 * np.exp(-1.3 * T) + 0.5 + RNG.normal(0, 0.1, T.size),
        "s": RNG.uniform(0.05, 0.2, T.size),
    }
)


def decay(t, amplitude, rate, offset=0.0):
    return amplitude * jnp.exp(-rate * t) + offset


def untraceable(t, amplitude, rate, offset=0.0):
    return amplitude * np.exp(-rate * np.asarray(t, float)) + offset


def other(t, amplitude, rate, offset=0.0):
    return amplitude / (1 + rate * t) + offset


def renamed(t, amplitude, speed, offset=0.0):
    return amplitude * jnp.exp(-speed * t) + offset


def tilted(t, u, amplitude, rate, tilt):
    return amplitude * jnp.exp(-rate * t) + tilt * u


def variadic(t, *p):
    return p[0] * jnp.exp(-p[1] * t) + p[2]


FORMULA = "a*exp(-b*t) + c"
FITS = {
    "function": (decay, {}),
    "Model": (Model(decay), {}),
    "formula": (FORMULA, {}),
    "library": ("exponential_decay", {"x": "t"}),
    "two columns": (tilted, {"x": ["t", "u"]}),
    "dates": (decay, {"x": "when"}),
    "a column of sigma": (decay, {"sigma": "s", "absolute_sigma": True}),
    "one sigma": (decay, {"sigma": 0.1}),
    "fixed": (decay, {"fixed": {"offset": 0.5}}),
    "tied": (decay, {"tied": {"offset": "amplitude/6"}}),
    "at a bound": (decay, {"bounds": {"rate": (0, 1.2)}}),
    "robust": (decay, {"loss": "huber", "f_scale": 0.1}),
    "NumPy": (untraceable, {"jac": "3-point"}),
    "*args": (variadic, {"p0": [3, 1, 0.5]}),
}


@pytest.mark.one_at_a_time
@pytest.mark.parametrize("where", ["r.zip", "r"])
@pytest.mark.parametrize("name", FITS)
def test_a_saved_result_predicts_again(tmp_path, name, where):
    model, options = FITS[name]
    result = dask_nlsq.fit(model, data=FRAME, **options)
    result.save(tmp_path / where)
    again = FitResult.load(tmp_path / where, model=model)
    assert again == result and (tmp_path / where).is_file() == where.endswith("zip")
    pd.testing.assert_series_equal(again.predict(FRAME), result.predict(FRAME), rtol=1e-13)
    for band in (FitResult.confidence_band, FitResult.prediction_band):
        pd.testing.assert_frame_equal(band(again, FRAME), band(result, FRAME), rtol=1e-6)


def test_a_result_without_its_model_keeps_what_is_recorded(tmp_path):
    result = dask_nlsq.fit(decay, data=FRAME)
    result.save(tmp_path / "r.zip", compression="gzip")
    read = FitResult.load(tmp_path / "r.zip")
    with pytest.raises(NlsqError, match=r"model=\.\.\."):
        read.predict(FRAME)
    read.save(tmp_path / "r.zip")
    assert FitResult.load(tmp_path / "r.zip", model=decay).to_json() == result.to_json()
    group = zarr.open_group(zarr.storage.ZipStore(tmp_path / "r.zip", mode="r"), mode="r")
    assert "result" in group


@pytest.mark.parametrize(
    ("model", "message"),
    [(renamed, "'rate'.*'speed'"), (other, "another model"), (tilted, "'tilt'"), ("line", "'slope'")],
)
def test_another_model_is_refused(tmp_path, model, message):
    dask_nlsq.fit(decay, data=FRAME).save(tmp_path / "r.zip")
    with pytest.raises(CheckpointMismatch, match=message):
        FitResult.load(tmp_path / "r.zip", model=model)


def older(folder):
    shutil.unpack_archive(Path(__file__).parent / "data" / "checkpoints-format-1.zip", folder)
    return folder / "ended"


def torn(folder):
    (folder / "r.zip").write_bytes(b"PK")
    return folder / "r.zip"


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (older, CheckpointError, "earlier version"),
        (torn, CheckpointCorrupt, "cannot be read"),
        (lambda folder: folder / "r.zip", CheckpointError, "no file"),
        (lambda folder: folder / "r", CheckpointError, "no checkpoint"),
        (lambda folder: "s3://bucket/r.zip", NlsqError, "local disk"),
    ],
    ids=["older", "torn", "no file", "no folder", "url"],
)
def test_what_cannot_be_read_is_refused(tmp_path, make, error, message):
    with pytest.raises(error, match=message):
        FitResult.load(make(tmp_path), model=decay)


def test_an_earlier_result_is_read_without_its_model(tmp_path):
    assert FitResult.load(older(tmp_path)).success


def test_a_fit_with_a_checkpoint_predicts_again(tmp_path):
    result = dask_nlsq.fit(decay, data=FRAME, checkpoint=tmp_path / "run")
    again = FitResult.load(tmp_path / "run", model=decay)
    assert again == result and (again.predict(T) == result.predict(T)).all()


def test_a_joint_fit_has_no_one_model(tmp_path):
    part = {"model": decay, "data": FRAME}
    dask_nlsq.fit([part, part], shared="rate").save(tmp_path / "r.zip")
    with pytest.raises(CheckpointError, match="several data sets"):
        FitResult.load(tmp_path / "r.zip", model=decay)
