"""Clipping: the bound holds after rounding to float32, and short updates are untouched."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from krossfuse.core.errors import ConfigError
from krossfuse.privacy import clip


@given(
    seed=st.integers(0, 10_000),
    d=st.integers(1, 300),
    bound=st.floats(-3, 3).map(lambda power: 10**power),
    scale=st.floats(-4, 4).map(lambda power: 10**power),
    norm=st.sampled_from(["l2", "l1"]),
)
def test_the_bound_holds_and_the_direction_stays(seed, d, bound, scale, norm):
    updates = (np.random.default_rng(seed).normal(size=(3, d)) * scale).astype(np.float32)
    out = clip(updates, bound, norm)
    order = 2 if norm == "l2" else 1
    before = np.linalg.norm(updates.astype(np.float64), ord=order, axis=1)
    after = np.linalg.norm(out.astype(np.float64), ord=order, axis=1)
    assert out.dtype == np.float32
    assert (after <= bound).all()
    assert np.array_equal(out[before <= bound], updates[before <= bound])
    assert np.allclose(
        out * before[:, None], updates * after[:, None], rtol=1e-4, atol=1e-6 * before.max() * after.max()
    )
    assert (after[before > bound] >= bound * (1 - 1e-6)).all()


def test_one_bound_a_client():
    updates = np.ones((3, 4))
    out = clip(updates, np.array([1.0, 2.0, 0.5]))
    assert np.linalg.norm(out, axis=1) == pytest.approx([1.0, 2.0, 0.5], rel=1e-6)
    assert np.array_equal(clip(np.zeros(4), 1.0), np.zeros(4))


@pytest.mark.parametrize("bound", [0.0, -1.0, np.nan, np.array([1.0, 0.0])])
def test_the_bound_must_be_positive(bound):
    with pytest.raises(ConfigError, match="clip="):
        clip(np.ones((2, 3)), bound)


def test_unknown_norm():
    with pytest.raises(ConfigError, match="norm='l3'"):
        clip(np.ones(3), 1.0, "l3")  # type: ignore[arg-type]
