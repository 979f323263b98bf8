"""The layered rejection-sampled universal quantiser: its error has exactly the law of the privacy noise.

For a block x of n coordinates, client and server draw the same radius r and the same dithers V_1, V_2, ...:

    Gaussian    r = σ·√U, U ~ χ²(n + 2)              Laplace (n = 1)    r = b·U, U ~ Gamma(2, 1), b = σ/√2
    scale       a = r/ρ, ρ the packing radius
    tries       M_h = nearest(x/a − V_h); the first h with ‖M_h + V_h − x/a‖ ≤ ρ is H
    decoder     a·(M_H + V_H)

Given r, the error is uniform on the ball of radius r; over r it is N(0, σ²I), or Laplace, whatever x is (Ling and Li,
Rejection-sampled universal quantization for smaller quantization errors, arXiv 2402.03030; CEPAM, arXiv 2501.12046).
The tries run in passes: pass h draws a dither for the blocks that are still open, in order. The decoder knows all H,
hence who was open, and draws the same stream again. The arithmetic is floating point, so that the law is approximate
as that of every Gaussian sampler is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from krossfuse.core.blocks import blocks
from krossfuse.core.errors import ConfigError, DataError, check_choice, check_positive
from krossfuse.privacy.keys import Key
from krossfuse.privacy.lattices import Cosets, Integers, Lattice, squared_norm
from krossfuse.privacy.streams import ChiSquare, Gamma2, Stream
from krossfuse.privacy.streams import Floats as Singles

Floats = NDArray[np.float64]
Law = Literal["gaussian", "laplace"]
LAWS: tuple[Law, ...] = ("gaussian", "laplace")

CHUNK = 1 << 14
"""Coordinates at a time, so that they stay in the cache; the bits do not depend on it."""
MOST_TRIES = 100_000


@dataclass(frozen=True)
class Quantised:
    """Blocks on the lattice.

    Attributes:
        scale: (m,) float64, a = r/ρ, shared.
        dither: (n, m) float64, V_H, shared.
        tries: (m,) int32, H; all 1 for a lattice that accepts at once.
        index: (index_rows, m) int32, the lattice point M.
    """

    scale: Floats
    dither: Floats
    tries: Integers
    index: Integers

    def values(self, lattice: Lattice, d: int) -> Floats:
        """Return the (d,) decoded coordinates a·(M + V)."""
        out = lattice.points(self.index)
        out += self.dither
        out *= self.scale
        return from_blocks(out, d)


@dataclass(frozen=True)
class Quantiser:
    """Encoder and decoder of one law on one lattice.

    Attributes:
        law: ``gaussian``, or ``laplace`` on Z1.
        sigma: standard deviation of the error a coordinate; Laplace has b = σ/√2.
        lattice: to quantise on.
        chunk: coordinates at a time.

    Raises:
        ConfigError: an unknown law, a sigma that is not positive, or Laplace on another lattice than Z1.
    """

    law: Law
    sigma: float
    lattice: Lattice
    chunk: int = CHUNK

    def __post_init__(self) -> None:
        check_choice("law", self.law, LAWS)
        check_positive("sigma", self.sigma)
        if self.law == "laplace" and self.lattice.dim != 1:
            raise ConfigError(
                f"lattice={self.lattice.name!r} cannot shape Laplace noise: its law is not that of a ball's radius; "
                "choose lattice='Z1'"
            )

    @property
    def _chunk(self) -> int:
        return max(4, self.chunk // self.lattice.dim // 4 * 4)  # two share a Box-Muller pair, two pairs share a word

    def scales(self, key: Key, m: int) -> Floats:
        """Return the (m,) scales a = r/ρ of m blocks."""
        out = np.empty(m)
        draw: Callable[[int], Singles]
        if self.law == "gaussian":
            draw, factor = ChiSquare(key, self.lattice.dim + 2, "radius").draw, self.sigma
        else:
            draw, factor = Gamma2(key, "radius").draw, self.sigma * math.sqrt(0.5)
        for block in blocks(m, self._chunk):
            variates = draw(block.stop - block.start).astype(np.float64)
            np.maximum(variates, 1e-12, out=variates)
            out[block] = np.sqrt(variates) if self.law == "gaussian" else variates
        out *= factor / self.lattice.packing_radius
        return out

    def encode(self, x: NDArray, key: Key) -> Quantised:
        """Quantise.

        Args:
            x: (d,) finite numbers.
            key: of this message.

        Raises:
            DataError: NaN or infinity in ``x``.
            ConfigError: ``x`` is too large for ``sigma``.
        """
        check_finite(x)
        n, m = self.lattice.dim, -(-len(x) // self.lattice.dim)
        scale = self.scales(key, m)
        y = to_blocks(x, n)
        y /= scale
        dithers = Dithers(key, self.lattice)
        if n == 1:  # every try is accepted
            dither, index = np.empty((1, m)), np.empty((1, m), np.int32)
            for block in blocks(m, self._chunk):
                dither[:, block] = dithers.draw(block.stop - block.start)
                points = np.rint(y[:, block] - dither[:, block])
                index[:, block] = self.lattice.index(points, _NO_COSETS)
            return Quantised(scale, dither, np.ones(m, np.int32), index)
        dither, index = np.empty((n, m)), np.empty((self.lattice.index_rows, m), np.int32)
        tries = np.zeros(m, np.int32)
        limit = self.lattice.packing_radius**2
        left = np.arange(m)
        for h in range(1, MOST_TRIES):
            dithers.next_pass()
            still = []
            for block in blocks(len(left), self._chunk):
                here = left[block]
                v = dithers.draw(len(here))
                target = np.take(y, here, axis=1) - v
                points, cosets = self.lattice.nearest(target)
                accepted = squared_norm(points - target) <= limit
                done = here[accepted]
                tries[done] = h
                dither[:, done] = v[:, accepted]
                index[:, done] = self.lattice.index(points[:, accepted], cosets[accepted])
                still.append(here[~accepted])
            left = np.concatenate(still) if still else left
            if not len(left):
                return Quantised(scale, dither, tries, index)
        raise DataError(f"{len(left)} blocks were rejected {MOST_TRIES} times on lattice {self.lattice.name}")

    def dithers(self, tries: Integers, key: Key) -> Floats:
        """Return the (n, m) accepted dithers of blocks whose (m,) ``tries`` are known, as the encoder drew them."""
        dithers = Dithers(key, self.lattice)
        m = len(tries)
        out = np.empty((self.lattice.dim, m))
        if self.lattice.dim == 1:
            for block in blocks(m, self._chunk):
                out[:, block] = dithers.draw(block.stop - block.start)
            return out
        left = np.arange(m)
        h = 1
        while len(left):
            dithers.next_pass()
            for block in blocks(len(left), self._chunk):
                here = left[block]
                v = dithers.draw(len(here))
                accepted = tries[here] == h
                out[:, here[accepted]] = v[:, accepted]
            left = left[tries[left] > h]
            h += 1
        return out

    def decode(self, tries: Integers, index: Integers, d: int, key: Key) -> Floats:
        """Return the (d,) decoded values of a message (tries, index)."""
        quantised = Quantised(self.scales(key, len(tries)), self.dithers(tries, key), tries, index)
        return quantised.values(self.lattice, d)


class Dithers:
    """The stream of dithers: uniform on the lattice's periodic box, block after block."""

    def __init__(self, key: Key, lattice: Lattice, name: str = "dither") -> None:
        self._key, self._name = key, name
        self._lattice = lattice
        self._period = np.asarray(lattice.period)[:, None]
        self._pass = 0
        self._stream = Stream(key, f"{name}/0")

    def next_pass(self) -> None:
        """Begin the next pass: a stream of its own."""
        self._pass += 1
        self._stream = Stream(self._key, f"{self._name}/{self._pass}")

    def draw(self, m: int) -> Floats:
        """Return the next (n, m) dithers; m is even, unless they are the last of the pass."""
        n = self._lattice.dim
        uniforms = self._stream.uniforms(n * m)
        if n == 1:
            return uniforms[None]
        columns: Floats = np.multiply(uniforms.reshape(m, n).T, self._period, order="C")
        return columns


def to_blocks(x: NDArray, n: int) -> Floats:
    """Return (d,) numbers as (n, ⌈d/n⌉) float64 columns, zeros after the end."""
    m = -(-len(x) // n)
    padded = np.zeros(m * n)
    padded[: len(x)] = x
    return np.ascontiguousarray(padded.reshape(m, n).T)


def from_blocks(columns: Floats, d: int) -> Floats:
    """Return the (d,) numbers of :func:`to_blocks`."""
    values: Floats = np.ravel(columns, order="F")[:d]
    return values


def check_finite(update: NDArray) -> None:
    """Check that an update is a vector of finite numbers.

    Raises:
        DataError: it has another shape or no coordinate, or NaN or infinity; the message names the first place.
    """
    if update.ndim != 1 or not update.size:
        raise DataError(f"an update is one vector of all parameters; this has shape {update.shape}: flatten it")
    if not np.isfinite(update).all():
        place = int(np.flatnonzero(~np.isfinite(update))[0])
        raise DataError(
            f"the update is not finite: {update[place]} at coordinate {place} of {len(update)}; the local training "
            "diverged (a smaller learning rate, or clipped gradients)"
        )


_NO_COSETS: Cosets = np.zeros(0, np.uint8)
