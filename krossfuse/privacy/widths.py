"""How wide the coder's prior is, by stretches of an update: s = rms·2^(level/2) where the stretches differ enough.

Layers of a network, and neurons of a layer, get updates of very different size: with one width for all of a CNN's
update its messages are longer by a tenth and more. The levels are a part of the message; like its length they depend on
the update itself and are not covered by the privacy of what is decoded (:mod:`krossfuse.privacy.statement`).
"""

from __future__ import annotations

from dataclasses import dataclass

import constriction
import numpy as np
from numpy.typing import NDArray

from krossfuse.privacy.lattices import Floats, Integers
from krossfuse.privacy.messages import Reader, signed_varint, varint

STRETCH = 64
"""Coordinates that share a width (of 32, 64, 128 and 256 the fewest bits for the updates of a CNN and an MLP)."""
MOST_LEVEL = 63
"""Half octaves that a stretch's width may be above or below the rms."""
_COST, _LEAST_COST = 3.4, 0.03
"""A coordinate of width s costs about log₂(1 + 3.4 s/scale) bits (fitted to Z1: linear below the noise, logarithmic
above it); where 3.4 s/scale is below .03, a smaller width gains less than telling it costs."""

_ROUNDING = 0.015
"""Bits a coordinate that a width up to a quarter of an octave off costs on the average: the mean over |x| ≤ ¼ of
x + (4^−x − 1)/(2 ln 2) is .0145."""


@dataclass(frozen=True)
class Widths:
    """The prior's standard deviations.

    Attributes:
        rms: of the whole update, a float32.
        levels: (stretches,) half octaves above it; empty where one width serves all.
    """

    rms: float
    levels: Integers

    def of_blocks(self, m: int, dim: int) -> Floats:
        """Return the width of each of m lattice blocks of ``dim`` coordinates: (m,), or (1,) where all have one.

        Powers of two and one constant alone, so that both sides have the same bits.
        """
        if not len(self.levels):
            return np.array([self.rms])
        steps = np.where(self.levels % 2, np.sqrt(2.0), 1.0)
        return np.repeat(np.ldexp(self.rms * steps, self.levels // 2), _blocks(dim))[:m]


def _blocks(dim: int) -> int:
    """Return how many lattice blocks a stretch has."""
    return max(1, STRETCH // dim)


def root_mean_square(x: NDArray) -> float:
    """Return the rms of an update as a float32."""
    return float(np.float32(np.sqrt(np.mean(np.square(x, dtype=np.float64))))) if len(x) else 0.0


def widths_of(x: NDArray, dim: int, scale: float) -> Widths:
    """Return the widths of an update that make its message shortest: those of stretches, or one for all.

    Args:
        x: (d,) numbers that are quantised.
        dim: of the lattice.
        scale: mean scale of the quantiser.
    """
    rms = root_mean_square(x)
    one = Widths(rms, np.zeros(0, np.int32))
    size = _blocks(dim) * dim
    if rms == 0 or len(x) <= size:
        return one
    starts = np.arange(0, len(x), size)
    counts = np.diff(np.append(starts, len(x)))
    square = np.add.reduceat(np.square(x, dtype=np.float64), starts) / counts
    with np.errstate(divide="ignore", under="ignore"):
        exact = np.log2(square) - 2 * np.log2(rms)
    least = np.clip(2 * np.log2(_LEAST_COST * scale / (_COST * rms)), -MOST_LEVEL, MOST_LEVEL)
    levels = np.clip(np.rint(exact), np.floor(least), MOST_LEVEL).astype(np.int32)
    widths = Widths(rms, levels)
    _, times = np.unique(levels, return_counts=True)
    told = float(-(times * np.log2(times / len(levels))).sum()) + 8 * 5 + _ROUNDING * len(x)
    gained = len(x) * _cost(rms, scale) - float(counts @ _cost(np.sqrt(square), scale))
    return widths if gained > told else one


def _cost(width: Floats | float, scale: float) -> Floats:
    return np.asarray(np.log2(1 + _COST / scale * width))


def effective_width(x: NDArray, scale: float) -> float:
    """Return the width at which an update of one width would cost as much as this one does with its own."""
    widths = widths_of(x, 1, scale)
    if not len(widths.levels):
        return widths.rms
    cost = _cost(widths.of_blocks(len(x), 1), scale).mean()
    return float(np.exp2(cost) - 1) * scale / _COST


def write_widths(encoder: constriction.stream.queue.RangeEncoder, widths: Widths) -> bytes:
    """Append the levels, and return what the decoder must know before it reads them: their range, mean and spread."""
    levels = widths.levels
    if not len(levels):
        return varint(0)
    low, high = int(levels.min()), int(levels.max())
    mean, std = round(4 * float(levels.mean())), max(1, round(8 * float(levels.std())))
    if low < high:
        encoder.encode(levels, _model(low, high, mean, std))
    return varint(high - low + 1) + signed_varint(low) + signed_varint(mean) + varint(std)


@dataclass(frozen=True)
class LevelRange:
    """What :func:`write_widths` returned, read back."""

    low: int
    high: int
    mean: int
    std: int


def read_range(reader: Reader) -> LevelRange | None:
    """Return the range of the levels; None where one width serves all."""
    span = reader.varint()
    if not span:
        return None
    low = reader.signed_varint()
    return LevelRange(low, low + span - 1, reader.signed_varint(), reader.varint())


def read_widths(
    decoder: constriction.stream.queue.RangeDecoder, rms: float, told: LevelRange | None, m: int, dim: int
) -> Widths:
    """Return the widths of :func:`write_widths`.

    Raises:
        ValueError: the range is none that was written here.
    """
    if told is None:
        return Widths(rms, np.zeros(0, np.int32))
    if not (-MOST_LEVEL <= told.low <= told.high <= MOST_LEVEL and 0 < told.std <= 8 * MOST_LEVEL):
        raise ValueError("no range of levels")
    count = -(-m // _blocks(dim))
    if told.low == told.high:
        return Widths(rms, np.full(count, told.low, np.int32))
    return Widths(rms, decoder.decode(_model(told.low, told.high, told.mean, told.std), count))


def _model(low: int, high: int, mean: int, std: int) -> constriction.stream.model.QuantizedGaussian:
    return constriction.stream.model.QuantizedGaussian(low, high, mean / 4, std / 8)
