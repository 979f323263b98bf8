"""What the code released with arXiv 2501.12046 computes instead of CEPAM: for comparison, never a default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from krossfuse.core.errors import check_choice
from krossfuse.privacy.coding import root_mean_square
from krossfuse.privacy.keys import Key
from krossfuse.privacy.lattices import Floats, Integers, Lattice, find_lattice
from krossfuse.privacy.mechanism import Mechanism, Noise, Update
from krossfuse.privacy.mechanisms.points import read_quantised, write_quantised
from krossfuse.privacy.messages import Header, MessageError, Reader
from krossfuse.privacy.quantizer import Dithers, Law, Quantised, Quantiser, from_blocks, to_blocks

LATTICES = ("Z1", "Z2", "Z3")


@dataclass(frozen=True)
class Released(Mechanism):
    """The released behaviour: the decoder draws another radius (and another dither) than the encoder.

    The update is multiplied by r'/r, whose mean is 4/π = 1.2732 for Z1 (1.1781 for Z2, 1.1318 for Z3, 2 for Laplace),
    so that it acts as a larger server step. On Z2 and Z3 the test never rejects and the dither is 0: there is no noise
    that does not shrink with the update. Its error depends on the update and protects nothing that could be stated.

    Attributes:
        sigma: what the radius is drawn for.
        law: ``gaussian`` or ``laplace``.
        lattice: Z1, Z2 or Z3.

    Raises:
        ConfigError: ``sigma`` is not positive, an unknown law or lattice, or Laplace on another lattice than Z1.
    """

    sigma: float
    law: Law = "gaussian"
    lattice: str = "Z1"
    name: ClassVar[str] = "released"
    code: ClassVar[int] = 7

    def __post_init__(self) -> None:
        check_choice("lattice", self.lattice, LATTICES)
        _ = self._quantiser

    @property
    def noise(self) -> Noise:
        """None that protects."""
        return "none"

    @property
    def noise_std(self) -> float:
        """None that protects."""
        return 0.0

    @property
    def _quantiser(self) -> Quantiser:
        return Quantiser(self.law, self.sigma, find_lattice(self.lattice))

    def _write(self, update: Update, key: Key) -> tuple[Lattice | None, bytes]:
        lattice = find_lattice(self.lattice)
        target = to_blocks(update, lattice.dim)
        tries = np.ones(target.shape[1], np.int32)
        scale, dither = self._quantiser.scales(key, len(tries)), self._dither(tries, key, "dither")
        points, cosets = lattice.nearest(target / scale - dither)
        quantised = Quantised(scale, dither, tries, lattice.index(points, cosets))
        return lattice, write_quantised(quantised, lattice, root_mean_square(update))

    def _read(self, reader: Reader, header: Header, key: Key) -> NDArray:
        lattice = find_lattice(self.lattice)
        if header.lattice != lattice.code:
            raise MessageError(f"the message is on the lattice with number {header.lattice}, not on {self.lattice}")
        sent = read_quantised(
            reader,
            lattice,
            header.d,
            lambda m: self._quantiser.scales(key, m),
            lambda tries: self._dither(tries, key, "dither"),
        )
        other = Key(key.derive("the decoder's own draws", 32), key.client, key.round)
        scale = self._quantiser.scales(other, len(sent.tries))
        values = (lattice.points(sent.index) + self._dither(sent.tries, other, "dither")) * scale
        return from_blocks(values, header.d)

    def _dither(self, tries: Integers, key: Key, name: str) -> Floats:
        lattice = find_lattice(self.lattice)
        if lattice.dim > 1:
            return np.zeros((lattice.dim, len(tries)))
        return Dithers(key, lattice, name).draw(len(tries))
