"""The classical mechanisms: noise is added, and the sum sent as float32."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from numpy.typing import NDArray

from krossfuse.core.errors import check_positive
from krossfuse.privacy.keys import Key
from krossfuse.privacy.lattices import Lattice
from krossfuse.privacy.mechanism import Mechanism, Noise, Update
from krossfuse.privacy.mechanisms.none import read_floats, write_floats
from krossfuse.privacy.messages import Header, Reader
from krossfuse.privacy.streams import laplaces, normals


@dataclass(frozen=True)
class Gaussian(Mechanism):
    """The update plus N(0, sigma²) a coordinate, 32 bits a coordinate.

    Attributes:
        sigma: standard deviation of one client's noise.

    Raises:
        ConfigError: ``sigma`` is not positive.
    """

    sigma: float
    name: ClassVar[str] = "gaussian"
    code: ClassVar[int] = 2

    def __post_init__(self) -> None:
        check_positive("sigma", self.sigma)

    @property
    def noise(self) -> Noise:
        """Gaussian."""
        return "gaussian"

    @property
    def noise_std(self) -> float:
        """``sigma``."""
        return self.sigma

    def _write(self, update: Update, key: Key) -> tuple[Lattice | None, bytes]:
        return None, write_floats(update + self.sigma * normals(key, "noise", len(update)))

    def _read(self, reader: Reader, header: Header, key: Key) -> NDArray:
        return read_floats(reader, header.d)


@dataclass(frozen=True)
class Laplace(Mechanism):
    """The update plus Laplace noise of scale b = sigma/√2 a coordinate, 32 bits a coordinate.

    Attributes:
        sigma: standard deviation of one client's noise.

    Raises:
        ConfigError: ``sigma`` is not positive.
    """

    sigma: float
    name: ClassVar[str] = "laplace"
    code: ClassVar[int] = 3

    def __post_init__(self) -> None:
        check_positive("sigma", self.sigma)

    @property
    def noise(self) -> Noise:
        """Laplace."""
        return "laplace"

    @property
    def noise_std(self) -> float:
        """``sigma``."""
        return self.sigma

    def _write(self, update: Update, key: Key) -> tuple[Lattice | None, bytes]:
        return None, write_floats(update + self.sigma * math.sqrt(0.5) * laplaces(key, "noise", len(update)))

    def _read(self, reader: Reader, header: Header, key: Key) -> NDArray:
        return read_floats(reader, header.d)
