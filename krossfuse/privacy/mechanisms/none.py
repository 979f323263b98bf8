"""Plain federated averaging: the update as float32, no noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from krossfuse.privacy.keys import Key
from krossfuse.privacy.lattices import Lattice
from krossfuse.privacy.mechanism import Mechanism, Noise, Update
from krossfuse.privacy.messages import Header, MessageError, Reader


@dataclass(frozen=True)
class Plain(Mechanism):
    """The update itself, 32 bits a coordinate; protects nothing."""

    name: ClassVar[str] = "none"
    code: ClassVar[int] = 1

    @property
    def noise(self) -> Noise:
        """No noise."""
        return "none"

    @property
    def noise_std(self) -> float:
        """No noise."""
        return 0.0

    def _write(self, update: Update, key: Key) -> tuple[Lattice | None, bytes]:
        return None, write_floats(update)

    def _read(self, reader: Reader, header: Header, key: Key) -> NDArray:
        return read_floats(reader, header.d)


def write_floats(values: NDArray) -> bytes:
    """Return (d,) numbers as little-endian float32."""
    return values.astype("<f4").tobytes()


def read_floats(reader: Reader, d: int) -> NDArray[np.float32]:
    """Return the d numbers of :func:`write_floats`.

    Raises:
        MessageError: the body has another length.
    """
    data = reader.rest()
    if len(data) != 4 * d:
        raise MessageError(f"the message has {len(data)} bytes for {d} float32 coordinates ({4 * d} bytes)")
    return np.frombuffer(data, "<f4")
