"""Random numbers that are the same bits on every machine: Philox words, and own formulae on them.

NumPy promises the words of its bit generators but not the distributions built on them, and the logarithm and cosine of
the platform differ in the last bit between processors. Whatever client and server must agree on is therefore made
from additions, multiplications, divisions and square roots alone, which IEEE 754 rounds in one way. Relative accuracy
1e-7 (float32), like the messages themselves.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from krossfuse.privacy.keys import Key

Floats = NDArray[np.float32]

_LN2 = np.float32(math.log(2.0))
_LOG_SERIES = tuple(np.float32(2.0 / (2 * k + 1)) for k in range(6))  # ln m = Σ 2/(2k+1)·s^(2k+1), s = (m−1)/(m+1)
_SINE_SERIES = tuple(np.float32((-1) ** k * math.pi ** (2 * k + 1) / math.factorial(2 * k + 1)) for k in range(7))
_SQRT_HALF_BITS = np.int32(0x3F3504F3)
_TINY = np.float32(2.0**-120)


class Stream:
    """A sequence of Philox 4×64 words; reading it in pieces of any size gives the same words.

    Args:
        key: the shared key.
        name: of the stream; streams of different names are independent.
    """

    def __init__(self, key: Key, name: str) -> None:
        self._philox = np.random.Philox(key=int.from_bytes(key.derive(name, 16), "little"))

    def words(self, count: int) -> NDArray[np.uint64]:
        """Return the next ``count`` words."""
        return self._philox.random_raw(count).astype("<u8", copy=False)

    def open_uniforms(self, count: int) -> Floats:
        """Return ``count`` uniforms on (0, 1], from 64 bits each, as small as 2^-64."""
        words = self.words(count)
        np.bitwise_or(words, np.uint64(1), out=words)
        return np.multiply(words.astype(np.float32), np.float32(2.0**-64))

    def uniforms(self, count: int) -> NDArray[np.float64]:
        """Return ``count`` uniforms on (0, 1), from 32 bits each; an odd last half of a word is dropped."""
        halves = self.words(-(-count // 2)).view("<u4")[:count]
        out = halves.astype(np.float64)
        out += 0.5
        out *= 2.0**-32
        return out


def minus_log(x: Floats) -> Floats:
    """Return −ln x for (n,) float32 in (0, 1]; the same bits everywhere."""
    bits = x.view(np.int32)
    exponent = (bits - _SQRT_HALF_BITS) >> np.int32(23)
    m = (bits - (exponent << np.int32(23))).view(np.float32)  # in [√½, √2)
    s = m - np.float32(1)
    m += np.float32(1)
    s /= m
    z = s * s
    series = np.multiply(z, _LOG_SERIES[-1], out=m)
    for coefficient in _LOG_SERIES[-2:0:-1]:
        series += coefficient
        series *= z
    series += _LOG_SERIES[0]
    series *= s
    out = exponent.astype(np.float32)
    out *= -_LN2
    out -= series
    return out


def squared_cosine(turn: Floats) -> Floats:
    """Return cos²(π·(turn + ½)/2) for (n,) float32 on [−½, ½]; the same bits everywhere.

    Over a uniform ``turn`` it has the law of cos² of a uniform angle.
    """
    y = turn * turn
    series = y * _SINE_SERIES[-1]
    for coefficient in _SINE_SERIES[-2:0:-1]:
        series += coefficient
        series *= y
    series += _SINE_SERIES[0]
    series *= turn
    out = np.float32(0.5) - np.float32(0.5) * series  # cos²(π(t + ½)/2) = (1 − sin πt)/2
    return np.clip(out, np.float32(0), np.float32(1), out=out)


class ChiSquare:
    """Independent χ² variates of ``degrees`` degrees of freedom.

    −2·ln of a product of ⌊degrees/2⌋ uniforms; for odd degrees plus the square of a normal, where two neighbours
    share the radius of one Box-Muller pair (their squares, with cos² and sin², are independent).
    """

    def __init__(self, key: Key, degrees: int, name: str) -> None:
        self._products = [Stream(key, f"{name}/{i}") for i in range(degrees // 2)]
        self._odd = (Stream(key, f"{name}/pair"), Stream(key, f"{name}/turn")) if degrees % 2 else None

    def draw(self, count: int) -> Floats:
        """Return the next ``count`` variates; a multiple of 4, unless it is the last call."""
        product = self._products[0].open_uniforms(count)
        for stream in self._products[1:]:
            product *= stream.open_uniforms(count)
        if len(self._products) > 1:
            np.maximum(product, _TINY, out=product)
        out = minus_log(product)
        if self._odd is not None:
            pairs = -(-count // 2)
            radius = minus_log(self._odd[0].open_uniforms(pairs))
            share = squared_cosine((self._odd[1].uniforms(pairs) - 0.5).astype(np.float32))
            cosine = radius * share
            out[0::2] += cosine
            out[1::2] += (radius - cosine)[: count // 2]
        out *= np.float32(2)
        return out


class Gamma2:
    """Independent Gamma(2, 1) variates: −ln of the product of two uniforms."""

    def __init__(self, key: Key, name: str) -> None:
        self._streams = [Stream(key, f"{name}/{i}") for i in range(2)]

    def draw(self, count: int) -> Floats:
        """Return the next ``count`` variates."""
        product = self._streams[0].open_uniforms(count)
        product *= self._streams[1].open_uniforms(count)
        return minus_log(np.maximum(product, _TINY, out=product))


def normals(key: Key, name: str, count: int) -> NDArray[np.float64]:
    """Return ``count`` independent N(0, 1): a fair sign times the root of χ²(1)."""
    pairs = -(-count // 2)
    radius = minus_log(Stream(key, f"{name}/pair").open_uniforms(pairs)).astype(np.float64)
    share = squared_cosine((Stream(key, f"{name}/turn").uniforms(pairs) - 0.5).astype(np.float32)).astype(np.float64)
    out = np.empty(2 * pairs)
    out[0::2], out[1::2] = radius * share, radius * (1 - share)
    out *= 2
    np.sqrt(out, out=out)
    out[:count] *= signs(key, name, count)
    return out[:count]


def laplaces(key: Key, name: str, count: int) -> NDArray[np.float64]:
    """Return ``count`` independent Laplace(1): a fair sign times an exponential."""
    out = signs(key, name, count)
    out *= minus_log(Stream(key, f"{name}/radius").open_uniforms(count))
    return out


def signs(key: Key, name: str, count: int) -> NDArray[np.float64]:
    """Return ``count`` fair signs."""
    packed = Stream(key, f"{name}/sign").words(-(-count // 64)).view(np.uint8)
    out = np.unpackbits(packed, count=count, bitorder="little").astype(np.float64)
    out *= -2
    out += 1
    return out
