"""Linear algebra for a few parameters agrees with NumPy, in C order."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dask_nlsq._solver import lapack


@pytest.mark.parametrize("p", [1, 2, 3, 7, 40])
def test_decompositions_give_the_matrix_back(p):
    rng = np.random.default_rng(p)
    a, b = rng.normal(size=(p, p)), rng.normal(size=p)
    values, vectors = lapack.eigh(a @ a.T)
    u, sigma, vt = lapack.svd(a)
    r, qtb = lapack.triangle(a, b)
    np.testing.assert_allclose(vectors * values @ vectors.T, a @ a.T, atol=1e-12)
    np.testing.assert_allclose(u * sigma @ vt, a, atol=1e-12)
    np.testing.assert_allclose(r.T @ r, a.T @ a, atol=1e-12)
    np.testing.assert_allclose(r.T @ qtb, a.T @ b, atol=1e-12)
    assert (r == np.triu(r)).all() and (np.diff(values) >= 0).all() and (np.diff(sigma) <= 0).all()
    assert all(m.flags.c_contiguous for m in (vectors, u, vt, r))


@pytest.mark.slow
@given(st.lists(st.floats(-1e150, 1e150), min_size=1, max_size=40).map(np.array))
def test_a_length_has_the_bits_of_numpy(v):
    assert lapack.norm(v) == np.linalg.norm(v)
