"""CEPAM: the quantiser's error is the privacy noise (arXiv 2501.12046)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from numpy.typing import NDArray

from krossfuse.core.errors import ConfigError
from krossfuse.privacy.keys import Key
from krossfuse.privacy.lattices import Lattice, choose_lattice, find_lattice, lattice_of_code
from krossfuse.privacy.mechanism import Mechanism, Noise, Update
from krossfuse.privacy.mechanisms.points import read_quantised, write_quantised
from krossfuse.privacy.messages import Header, MessageError, Reader
from krossfuse.privacy.quantizer import Law, Quantiser
from krossfuse.privacy.widths import effective_width

AUTO = "auto"
Z1_SCALE = 2 * math.sqrt(8 / math.pi)
"""Mean of the quantiser's scale a = 2σ√r on Z1, r of the χ² law with 3 degrees of freedom, in σ."""


@dataclass(frozen=True)
class Cepam(Mechanism):
    """The layered rejection-sampled universal quantiser with conditional range coding.

    The decoded update is the update plus noise of exactly the law of ``law`` (up to floating point), independent of the
    update; compression adds no distortion of its own.

    Attributes:
        sigma: standard deviation of one client's noise; Laplace noise has scale b = sigma/√2.
        law: ``gaussian`` or ``laplace``.
        lattice: a lattice's name, or ``auto``: E8 for updates of effective width above 0.85·sigma, Z1 below (always
            for Laplace).
            The choice depends on the update but the error's law does not depend on the choice.

    Raises:
        ConfigError: ``sigma`` is not positive, an unknown law or lattice, or Laplace on another lattice than Z1.
    """

    sigma: float
    law: Law = "gaussian"
    lattice: str = AUTO
    name: ClassVar[str] = "cepam"
    code: ClassVar[int] = 6

    def __post_init__(self) -> None:
        Quantiser(self.law, self.sigma, find_lattice("Z1" if self.lattice == AUTO else self.lattice))

    @property
    def noise(self) -> Noise:
        """``law``."""
        return self.law

    @property
    def noise_std(self) -> float:
        """``sigma``."""
        return self.sigma

    def _write(self, update: Update, key: Key) -> tuple[Lattice | None, bytes]:
        lattice = self._lattice(update)
        quantised = Quantiser(self.law, self.sigma, lattice).encode(update, key)
        return lattice, write_quantised(quantised, lattice, update)

    def _lattice(self, update: Update) -> Lattice:
        if self.lattice != AUTO:
            return find_lattice(self.lattice)
        if self.law == "laplace":
            return find_lattice("Z1")
        return choose_lattice(effective_width(update, Z1_SCALE * self.sigma), self.sigma)

    def _read(self, reader: Reader, header: Header, key: Key) -> NDArray:
        lattice = lattice_of_code(header.lattice)
        if lattice is None:
            raise MessageError(f"the message is on a lattice with number {header.lattice}, which nobody knows here")
        if self.lattice not in (AUTO, lattice.name):
            raise MessageError(f"the message is on lattice {lattice.name}; {self.lattice} was agreed")
        try:
            quantiser = Quantiser(self.law, self.sigma, lattice)
        except ConfigError as error:
            raise MessageError(f"the message is on lattice {lattice.name}: {error}") from error
        quantised = read_quantised(
            reader, lattice, header.d, lambda m: quantiser.scales(key, m), lambda tries: quantiser.dithers(tries, key)
        )
        return quantised.values(lattice, header.d)
