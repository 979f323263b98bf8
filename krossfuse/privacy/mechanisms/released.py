"""What the code released with arXiv 2501.12046 computes instead of CEPAM: for comparison, never a default."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from krossfuse.core.errors import ConfigError, check_choice, check_positive
from krossfuse.privacy.keys import Key
from krossfuse.privacy.lattices import Floats, Lattice, find_lattice
from krossfuse.privacy.mechanism import Mechanism, Noise, Update
from krossfuse.privacy.mechanisms.none import read_floats, write_floats
from krossfuse.privacy.messages import Header, Reader
from krossfuse.privacy.quantizer import LAWS, Law, Quantiser
from krossfuse.privacy.streams import Stream

DIMS = (1, 2, 3)


@dataclass(frozen=True)
class Released(Mechanism):
    """The released behaviour: the decoder draws another radius (and another dither) than the encoder.

    With r and v of the encoder, r' and v' of the decoder, and the step s:

        dim 1     M = round((x/r − v)/s),   decoded r'·s·(M + v') ≈ (r'/r)·x − r'·v
        dim 2, 3  M = round(x/(r·s) − v),   decoded r'·s·M ≈ (r'/r)·x, since the test never rejects for a small s

    So the update is multiplied by r'/r, whose mean is 4/π = 1.2732 for dim 1 (1.1781 for 2, 1.1318 for 3, 2 for
    Laplace): a larger server step. For dim 2 and 3 there is no other noise; none of it protects anything that could be
    stated. Its messages were never measured; here M goes as float32.

    Attributes:
        sigma: what the radius is drawn for; Laplace has b = sigma/√2.
        law: ``gaussian``, or ``laplace`` with dim 1.
        dim: coordinates of a block.
        step: the released ``lattice_scale``, in units of r.

    Raises:
        ConfigError: ``sigma`` or ``step`` is not positive, an unknown law, or another ``dim``.
    """

    sigma: float
    law: Law = "gaussian"
    dim: int = 1
    step: float = 1e-3
    name: ClassVar[str] = "released"
    code: ClassVar[int] = 7

    def __post_init__(self) -> None:
        check_choice("law", self.law, LAWS)
        check_positive("step", self.step)
        if self.dim not in DIMS:
            raise ConfigError(f"dim={self.dim!r} is not one of {list(DIMS)}")
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
        return Quantiser(self.law, self.sigma, find_lattice(f"Z{self.dim}"))

    def _radii(self, key: Key, d: int) -> Floats:
        """Return the (d,) radii, one a block."""
        scales = self._quantiser.scales(key, -(-d // self.dim))
        return np.repeat(scales / 2, self.dim)[:d]  # a = r/ρ, ρ = ½

    def _write(self, update: Update, key: Key) -> tuple[Lattice | None, bytes]:
        r, v = self._radii(key, len(update)), Stream(key, "dither").uniforms(len(update)) - 0.5
        m = np.rint((update / r - v) / self.step) if self.dim == 1 else np.rint(update / (r * self.step) - v)
        return None, write_floats(m)

    def _read(self, reader: Reader, header: Header, key: Key) -> NDArray:
        m = read_floats(reader, header.d).astype(np.float64)
        other = Key(key.derive("the decoder's own draws", 32), key.client, key.round)
        if self.dim == 1:
            m += Stream(other, "dither").uniforms(header.d) - 0.5
        values: Floats = self._radii(other, header.d) * self.step * m
        return values
