"""Lattice points as bytes: a range coder that is told all that client and server share.

Given the scale a and the dither V, a coordinate's integer M says that the decoded value a·(w·M + o + V) is the nearest
to x + error, so with a prior N(0, s²) for the values the ideal model of M is a normal of mean −(V + o)/w and standard
deviation s/(a·w), quantised to integers. For Z1 its rate goes to 0 with s/σ, where the entropy of M alone never falls
below a bit. s is a part of the message (:mod:`krossfuse.privacy.widths`). Where a cell is no box (D_n, E8) the
model is a little wider; a coset is told by which of the two has a point nearer to −V. Tries are coded by their
geometric law. Only operations that IEEE 754 rounds in one way come before the coder's own.

Coder: ``constriction``'s range coder with 24-bit probabilities.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import constriction
import numpy as np

from krossfuse.core.errors import ConfigError
from krossfuse.privacy.lattices import Floats, Integers, Lattice, squared_norm

MOST_SYMBOLS = 1 << 22
"""Integers that one message may span: the coder's probabilities have 24 bits."""
_LEAST_STD, _MOST_STD = 1e-6, 1e12
_CELL_STD = 0.07
"""Width that a cell beyond its box adds to the model of a lattice of even sums (tuned: fewest bits for E8, D4)."""
_COSET_STD = 0.4
"""Width at which a coset is told by the distance (tuned: the fewest bits for E8 and A2 from s/σ = .01 to 3)."""


@dataclass(frozen=True)
class Alphabet:
    """What the decoder must know before it can read.

    Attributes:
        low: the smallest integer of any coordinate.
        high: the largest.
        most_tries: the largest number of tries.
    """

    low: int
    high: int
    most_tries: int = 1


def alphabet_of(tries: Integers, index: Integers, lattice: Lattice, rms: float) -> Alphabet:
    """Return the alphabet of a message.

    Raises:
        ConfigError: its integers span more than the coder can tell apart.
    """
    integers = index[-lattice.dim :]
    low, high = (int(integers.min()), int(integers.max())) if integers.size else (0, 0)
    if high - low >= MOST_SYMBOLS:
        raise ConfigError(
            f"the update (rms {rms:.3g}) spans {high - low + 1} quantiser steps, more than {MOST_SYMBOLS}: it is too "
            "large for this noise; clip it, raise sigma, or send it by mechanism 'none'"
        )
    return Alphabet(low, high, int(tries.max(initial=1)))


def write_tries(encoder: constriction.stream.queue.RangeEncoder, tries: Integers, lattice: Lattice, most: int) -> None:
    """Append the tries."""
    if most > 1:
        encoder.encode(tries - np.int32(1), _tries_model(lattice, most))


def read_tries(decoder: constriction.stream.queue.RangeDecoder, m: int, lattice: Lattice, most: int) -> Integers:
    """Return the tries of :func:`write_tries`."""
    if most == 1:
        return np.ones(m, np.int32)
    tries: Integers = decoder.decode(_tries_model(lattice, most), m) + np.int32(1)
    return tries


def _tries_model(lattice: Lattice, most: int) -> constriction.stream.model.Categorical:
    rejection = 1.0 - lattice.density
    weights = np.ones(most)
    for h in range(1, most):  # products alone, the same bits everywhere
        weights[h] = weights[h - 1] * rejection
    return constriction.stream.model.Categorical(weights, perfect=False)


def write_points(
    encoder: constriction.stream.queue.RangeEncoder,
    index: Integers,
    lattice: Lattice,
    scale: Floats,
    dither: Floats,
    alphabet: Alphabet,
    widths: Floats,
) -> None:
    """Append the points; ``widths`` are s of the (m,) blocks, or (1,) of all."""
    if index.shape[0] > lattice.dim:
        model = constriction.stream.model.Bernoulli(perfect=False)
        encoder.encode(np.ascontiguousarray(index[0]), model, _second_coset(lattice, scale, dither, widths))
    if alphabet.low == alphabet.high:
        return
    family = constriction.stream.model.QuantizedGaussian(alphabet.low, alphabet.high)
    for coordinate in range(lattice.dim):
        means, stds = _normal(index, coordinate, lattice, scale, dither, widths)
        encoder.encode(np.ascontiguousarray(index[index.shape[0] - lattice.dim + coordinate]), family, means, stds)


def read_points(
    decoder: constriction.stream.queue.RangeDecoder,
    lattice: Lattice,
    scale: Floats,
    dither: Floats,
    alphabet: Alphabet,
    widths: Floats,
) -> Integers:
    """Return the points of :func:`write_points`."""
    m = len(scale)
    first = lattice.index_rows - lattice.dim
    index = np.full((lattice.index_rows, m), alphabet.low, np.int32)
    if first:
        model = constriction.stream.model.Bernoulli(perfect=False)
        index[0] = decoder.decode(model, _second_coset(lattice, scale, dither, widths))
    if alphabet.low == alphabet.high:
        return index
    family = constriction.stream.model.QuantizedGaussian(alphabet.low, alphabet.high)
    for coordinate in range(lattice.dim):
        means, stds = _normal(index, coordinate, lattice, scale, dither, widths)
        index[first + coordinate] = decoder.decode(family, means, stds)
    return index


def _normal(
    index: Integers, coordinate: int, lattice: Lattice, scale: Floats, dither: Floats, widths: Floats
) -> tuple[Floats, Floats]:
    """Return the (m,) means and standard deviations of a coordinate's integers."""
    width, offset = lattice.grid_line(index, coordinate)
    means = -(dither[coordinate] + offset)
    stds = widths / scale
    if lattice.even:
        stds = np.sqrt(stds * stds + _CELL_STD**2)
    if width != 1.0:
        means /= width
        stds /= width
    return means, np.clip(stds, _LEAST_STD, _MOST_STD, out=stds)


def _second_coset(lattice: Lattice, scale: Floats, dither: Floats, widths: Floats) -> Floats:
    """Return the (m,) probabilities that a block's point is in the second of two cosets."""
    first, second = (squared_norm(lattice.nearest_in_coset(-dither, coset) + dither) for coset in (0, 1))
    stds = widths / scale
    t = (first - second) / (2 * (stds * stds + _COSET_STD**2))
    return np.clip(0.5 + 0.5 * t / np.sqrt(1 + t * t), 1e-6, 1 - 1e-6)


def checksum(tries: Integers, index: Integers) -> int:
    """Return the CRC-32 of what was sent, to be compared with what was read.

    It catches a decoder whose models differ in a bit (another version of the coder, another machine's logarithm), which
    no checksum of the bytes can see.
    """
    content = zlib.crc32(np.ascontiguousarray(index, dtype="<i4").tobytes())
    if tries.max(initial=1) > 1:
        content = zlib.crc32(np.ascontiguousarray(tries, dtype="<i4").tobytes(), content)
    return content
