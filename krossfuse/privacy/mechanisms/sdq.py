"""Subtractive dithered quantisation (SDQ), alone and after Gaussian noise: compression without a privacy law."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from krossfuse.core.errors import check_positive
from krossfuse.privacy.keys import Key
from krossfuse.privacy.lattices import Floats, Integers, Lattice, find_lattice
from krossfuse.privacy.mechanism import Mechanism, Noise, Update
from krossfuse.privacy.mechanisms.points import read_quantised, write_quantised
from krossfuse.privacy.messages import Header, MessageError, Reader
from krossfuse.privacy.quantizer import Dithers, Quantised
from krossfuse.privacy.streams import normals


@dataclass(frozen=True)
class SDQ(Mechanism):
    """Rounding to a grid of ``step`` with a shared dither: the error is uniform of width ``step``, whatever the update.

    Its error is no privacy noise: it is bounded, so that an update far enough away is told apart with certainty.

    Attributes:
        step: width of the grid.

    Raises:
        ConfigError: ``step`` is not positive.
    """

    step: float
    name: ClassVar[str] = "sdq"
    code: ClassVar[int] = 4

    def __post_init__(self) -> None:
        check_positive("step", self.step)

    @property
    def noise(self) -> Noise:
        """None that protects."""
        return "none"

    @property
    def noise_std(self) -> float:
        """None that protects."""
        return 0.0

    def _write(self, update: Update, key: Key) -> tuple[Lattice | None, bytes]:
        return write_dithered(update, self.step, key)

    def _read(self, reader: Reader, header: Header, key: Key) -> NDArray:
        return read_dithered(reader, header, self.step, key)


@dataclass(frozen=True)
class GaussianSDQ(Mechanism):
    """Gaussian noise, then SDQ: the usual way to compress a Gaussian mechanism.

    The quantiser sees the noisy update alone, so that the privacy is the Gaussian's; the total error has step²/12 more
    variance and is not Gaussian.

    Attributes:
        sigma: standard deviation of one client's Gaussian noise.
        step: width of the grid; None means ``sigma``.

    Raises:
        ConfigError: ``sigma`` or ``step`` is not positive.
    """

    sigma: float
    step: float | None = None
    name: ClassVar[str] = "gaussian_sdq"
    code: ClassVar[int] = 5

    def __post_init__(self) -> None:
        check_positive("sigma", self.sigma)
        if self.step is not None:
            check_positive("step", self.step)

    @property
    def noise(self) -> Noise:
        """Gaussian."""
        return "gaussian"

    @property
    def noise_std(self) -> float:
        """``sigma``."""
        return self.sigma

    def _write(self, update: Update, key: Key) -> tuple[Lattice | None, bytes]:
        noisy = update + self.sigma * normals(key, "noise", len(update))
        return write_dithered(noisy, self.step or self.sigma, key)

    def _read(self, reader: Reader, header: Header, key: Key) -> NDArray:
        return read_dithered(reader, header, self.step or self.sigma, key)


def write_dithered(values: NDArray, step: float, key: Key) -> tuple[Lattice, bytes]:
    """Return Z1 and the body of (d,) numbers on the dithered grid of ``step``."""
    lattice = find_lattice("Z1")
    tries = np.ones(len(values), np.int32)
    dither = _dither(tries, key)
    points, cosets = lattice.nearest(values[None].astype(np.float64) / step - dither)
    quantised = Quantised(np.full(len(values), step), dither, tries, lattice.index(points, cosets))
    return lattice, write_quantised(quantised, lattice, values)


def read_dithered(reader: Reader, header: Header, step: float, key: Key) -> Floats:
    """Return the (d,) numbers of :func:`write_dithered`.

    Raises:
        MessageError: the message is on another lattice, or broken.
    """
    lattice = find_lattice("Z1")
    if header.lattice != lattice.code:
        raise MessageError(f"the message is on the lattice with number {header.lattice}, not on Z1")
    quantised = read_quantised(reader, lattice, header.d, lambda m: np.full(m, step), lambda tries: _dither(tries, key))
    return quantised.values(lattice, header.d)


def _dither(tries: Integers, key: Key) -> Floats:
    return Dithers(key, find_lattice("Z1"), "sdq").draw(len(tries))
