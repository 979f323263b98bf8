"""What every mechanism is: an update and a key to bytes, and back."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from krossfuse.privacy.keys import Key
from krossfuse.privacy.lattices import Lattice
from krossfuse.privacy.messages import Header, MessageError, Reader, seal, unseal
from krossfuse.privacy.quantizer import check_finite

Update = NDArray[np.float32]
Noise = Literal["none", "gaussian", "laplace"]


@dataclass(frozen=True)
class Mechanism(ABC):
    """Sends one client's clipped update of one round.

    A mechanism is immutable and knows no client; another noise for a client is ``dataclasses.replace(mechanism,
    sigma=...)``. ``decode(encode(update, key), key)`` is the update plus noise of the law :attr:`noise` with
    standard deviation :attr:`noise_std`; what is lost beyond that noise, if anything, is said in the class.

    Attributes:
        name: as in configurations and records.
        code: number in the messages.
    """

    name: ClassVar[str]
    code: ClassVar[int]

    @property
    @abstractmethod
    def noise(self) -> Noise:
        """The law of the privacy noise, for the accountant; ``none`` protects nothing."""

    @property
    @abstractmethod
    def noise_std(self) -> float:
        """Standard deviation of the privacy noise of ONE client, a coordinate; 0 for none."""

    @abstractmethod
    def _write(self, update: Update, key: Key) -> tuple[Lattice | None, bytes]:
        """Return the lattice, if any, and the body of the message."""

    @abstractmethod
    def _read(self, reader: Reader, header: Header, key: Key) -> NDArray:
        """Return the (d,) decoded numbers of a genuine message.

        Raises:
            MessageError: the body is not what the header says.
        """

    @property
    def settings(self) -> str:
        """The settings that both sides must share, in words."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        canonical = {name: float(value) if isinstance(value, int) else value for name, value in values.items()}
        return f"{self.name}({', '.join(f'{name}={value!r}' for name, value in canonical.items())})"

    def described(self) -> dict[str, Any]:
        """Return name and settings as a JSON-able mapping, for the records."""
        return {"mechanism": self.name, **{field.name: getattr(self, field.name) for field in fields(self)}}

    def encode(self, update: NDArray, key: Key) -> bytes:
        """Return the message.

        Args:
            update: (d,) finite numbers, the WHOLE update, clipped; sent in float32.
            key: of this client and round, for this message alone.

        Raises:
            DataError: the update is not one vector, or not finite.
            ConfigError: the update is too large for the noise.
        """
        update = np.asarray(update)
        check_finite(update)
        with np.errstate(over="ignore"):
            single = update.astype(np.float32)
        check_finite(single)
        lattice, body = self._write(single, key)
        header = Header(self.code, lattice.code if lattice else 0, len(single), key.client, key.round)
        return seal(header, body, key, self.settings)

    def decode(self, message: bytes, key: Key, *, d: int | None = None) -> Update:
        """Return the (d,) noisy update of a message.

        Args:
            message: of :meth:`encode`.
            key: the client's.
            d: the number of coordinates that is expected, if known.

        Raises:
            MessageError: the message is truncated, altered, replayed, of another version, mechanism, lattice or size,
                or made with another secret or other settings. Nothing of it has been used.
        """
        header, reader = unseal(message, key, self.settings)
        if header.mechanism != self.code:
            raise MessageError(f"the message's mechanism has number {header.mechanism}, not {self.name}'s {self.code}")
        if d is not None and header.d != d:
            raise MessageError(f"the message has {header.d} coordinates; the model has {d}")
        out = self._read(reader, header, key).astype(np.float32)
        if len(out) != header.d or not np.isfinite(out).all():
            raise MessageError(f"the message of client {key.client} does not decode to {header.d} finite numbers")
        return out
