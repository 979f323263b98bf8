"""The random numbers: their laws, and the same bits everywhere."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest
from scipy import stats

from krossfuse.core.errors import ConfigError
from krossfuse.privacy import Key
from krossfuse.privacy.streams import ChiSquare, Gamma2, Stream, laplaces, minus_log, normals, squared_cosine

KEY = Key.from_seed(3)
N = 300_000


def test_words_are_philox_and_frozen():
    words = Stream(KEY, "radius/0").words(4)
    assert [hex(word) for word in words] == GOLDEN_WORDS


GOLDEN_WORDS = ["0xb3366b6aa5a58f74", "0xab2661840c98cab3", "0xb85ef95cc46de6af", "0xa7ce296173d7a0d4"]


def test_a_stream_read_in_pieces_is_the_same_stream():
    whole = Stream(KEY, "a").words(1000)
    pieces = Stream(KEY, "a")
    assert np.array_equal(whole, np.concatenate([pieces.words(n) for n in (1, 2, 3, 94, 900)]))


@pytest.mark.parametrize("other", [Key.from_seed(4), Key.from_seed(3, client=1), Key.from_seed(3, round=1)])
def test_other_keys_and_names_give_other_streams(other):
    words = Stream(KEY, "a").words(100)
    assert not np.intersect1d(words, Stream(other, "a").words(100)).size
    assert not np.intersect1d(words, Stream(KEY, "b").words(100)).size


def test_a_secret_is_checked_and_not_shown():
    with pytest.raises(ConfigError, match="8 bytes; it needs 16"):
        Key(b"12345678")
    with pytest.raises(ConfigError, match="client=-1"):
        Key(b"1234567890123456", client=-1)
    assert "1234567890123456" not in repr(Key(b"1234567890123456"))
    long = Key(b"x" * 100)
    assert long.derive("a") != Key(b"x" * 99).derive("a")


def test_logarithm_and_cosine_are_accurate():
    x = np.concatenate(
        [np.random.default_rng(0).random(100_000), 2.0 ** -np.arange(64), 1 - 2.0 ** -np.arange(1.0, 24), [1.0]]
    ).astype(np.float32)
    exact = -np.log(x.astype(np.float64))
    assert np.abs(minus_log(x) - exact).max() < 4e-6  # absolute, where the value is 44
    assert (np.abs(minus_log(x) - exact) <= 3e-7 * np.maximum(exact, 1e-3)).mean() > 0.9999
    assert minus_log(np.ones(1, np.float32))[0] == 0
    turn = np.linspace(-0.5, 0.5, 10_001, dtype=np.float32)
    exact = np.cos(math.pi * (turn.astype(np.float64) + 0.5) / 2) ** 2
    assert np.abs(squared_cosine(turn) - exact).max() < 4e-7


@pytest.mark.parametrize("degrees", [3, 4, 5, 6, 10])
def test_chi_square(degrees):
    x = ChiSquare(KEY, degrees, "radius").draw(N)
    assert stats.kstest(x, stats.chi2(degrees).cdf, method="asymp").pvalue > 1e-3
    assert abs(np.corrcoef(x[1:], x[:-1])[0, 1]) < 4.5 / math.sqrt(N)  # neighbours share a Box-Muller pair
    assert abs(stats.spearmanr(x[0::2], x[1::2]).statistic) < 4.5 / math.sqrt(N / 2)


def test_the_other_laws():
    assert stats.kstest(Gamma2(KEY, "radius").draw(N), stats.gamma(2).cdf, method="asymp").pvalue > 1e-3
    normal = normals(KEY, "noise", N + 1)
    assert len(normal) == N + 1
    assert stats.kstest(normal, stats.norm.cdf, method="asymp").pvalue > 1e-3
    assert stats.kstest(laplaces(KEY, "noise", N), stats.laplace.cdf, method="asymp").pvalue > 1e-3
    assert stats.kstest(Stream(KEY, "dither").uniforms(N), stats.uniform.cdf, method="asymp").pvalue > 1e-3


def test_the_bits_are_frozen():
    digest = hashlib.sha256()
    for degrees in (3, 4, 5, 10):
        digest.update(ChiSquare(KEY, degrees, "radius").draw(1001).tobytes())
    digest.update(Gamma2(KEY, "radius").draw(1001).tobytes())
    digest.update(normals(KEY, "noise", 1001).tobytes())
    digest.update(laplaces(KEY, "noise", 1001).tobytes())
    assert digest.hexdigest() == "7f18149c3ce3322e2cf271f09dfa750fe0cc3d69a9c5f6eb5351c82493046d4b"
