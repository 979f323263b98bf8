"""Quantised embeddings: bounds, the law of the angles, and what is refused."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from krossfuse.core.errors import ConfigError, DataError
from krossfuse.model.quantise import Quantised, quantise


def rows(n: int, dim: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, dim, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 7), st.integers(1, 40), st.floats(-30, 30), st.integers(0, 5))
def test_no_number_is_off_by_more_than_half_a_step(n: int, dim: int, exponent: float, seed: int) -> None:
    x = rows(n, dim, seed) * 10**exponent
    small = quantise(x, "int8")
    assert small.codes.dtype == torch.int8
    assert small.codes.abs().amax(1).tolist() == [127] * n
    step = x.abs().amax(1, keepdim=True) / 127
    assert bool(((small.dequantised() - x).abs() <= step * 0.5001).all())


@pytest.mark.parametrize("dim", [24, 2000])
def test_similarities_of_integers_are_those_of_what_they_stand_for(dim: int) -> None:
    a, b = quantise(rows(5, dim), "int8"), quantise(rows(7, dim, 1), "int8")
    x, y = a.dequantised().double(), b.dequantised().double()
    torch.testing.assert_close(a.similarity(b).double(), x @ y.T, rtol=1e-5, atol=1e-4)
    unit = torch.nn.functional.normalize
    torch.testing.assert_close(a.similarity(b, cosine=True).double(), unit(x) @ unit(y).T, rtol=1e-5, atol=1e-6)


def test_bits_differ_as_the_angle_says() -> None:
    """The share of signs that differ is θ/π, within five standard deviations of independent directions."""
    x = torch.zeros(5, 30, dtype=torch.float64)
    angles = torch.tensor([0.0, 0.3, 1.0, math.pi / 2, 2.5], dtype=torch.float64)
    # Coordinates of very different size, as a spectral embedding has them: the plane of the angles is the smallest.
    x[:, 28], x[:, 29] = angles.cos(), angles.sin()
    bits = 16_000
    codes = quantise(x, "binary", bits=bits, seed=1)
    cosines = codes.similarity(codes, cosine=True)[0].double().clamp(-1, 1)
    share = cosines.arccos() / math.pi
    p = angles / math.pi
    assert bool(((share - p).abs() <= 5 * (p * (1 - p) / bits).sqrt() + 1e-6).all()), share - p
    norms = x.norm(dim=1).float()
    torch.testing.assert_close(codes.similarity(codes)[0], cosines.float() * norms[0] * norms, atol=1e-5, rtol=1e-5)


def test_bits_are_those_of_the_signs_and_an_eighth_of_them_bytes() -> None:
    from krossfuse.core.seeds import derived_generator
    from krossfuse.fusion.draws import orthogonal_rows

    x = rows(9, 20)
    codes = quantise(x, "binary")
    assert codes.codes.shape == (9, 3)  # 24 bits: the dimension rounded up
    assert codes.nbytes == 9 * 3 + 9 * 4
    directions = orthogonal_rows(24, 20, derived_generator(0, "quantise", 24, 20)).float()
    expected = np.packbits((x @ directions.T > 0).numpy(), axis=1, bitorder="little")
    np.testing.assert_array_equal(codes.codes.numpy(), expected)


def test_more_bits_are_nearer() -> None:
    x = rows(40, 64)
    true = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x).T
    errors = []
    for bits in (64, 256, 1024):
        codes = quantise(x, "binary", bits=bits)
        errors.append(float((codes.similarity(codes, cosine=True) - true).square().mean()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]


def test_what_cannot_be_is_said() -> None:
    x = rows(3, 8)
    with pytest.raises(ConfigError, match="precision"):
        quantise(x, "int4")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="multiple of 8"):
        quantise(x, "binary", bits=12)
    with pytest.raises(ConfigError, match="bits=8"):
        quantise(x, "int8", bits=8)
    with pytest.raises(DataError, match=r"\(n, dim\) floats"):
        quantise(x[0], "int8")
    with pytest.raises(DataError, match="row 1 .* is not finite"):
        quantise(x.index_fill(0, torch.tensor([1]), math.nan), "int8")
    with pytest.raises(DataError, match="row 2 .* is zero"):
        quantise(x.index_fill(0, torch.tensor([2]), 0.0), "binary")
    bits = quantise(x, "binary")
    with pytest.raises(ConfigError, match="keep angles"):
        bits.dequantised()
    others: list[Quantised] = [
        quantise(x, "int8"),
        quantise(x, "binary", seed=1),
        quantise(x, "binary", bits=16),
        quantise(rows(3, 7), "binary"),
    ]
    for other in others:
        with pytest.raises(DataError, match="quantise both alike"):
            bits.similarity(other)
