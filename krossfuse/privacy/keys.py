"""The secret that one client and the server share for one round, and the independent streams drawn from it."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from krossfuse.core.errors import ConfigError

MIN_SECRET_BYTES = 16


@dataclass(frozen=True)
class Key:
    """What client and server share for ONE message: a secret, and which client and round it is for.

    Every stream (radius, dither, noise, authentication) is named and gets 128 bits of its own by keyed BLAKE2b, so that
    streams of another name, client, round or secret are independent. A key must never serve for two updates: the error
    of both would be the same.

    Attributes:
        secret: at least 16 bytes that nobody but this client and the server knows.
        client: number of the client.
        round: number of the round.

    Raises:
        ConfigError: a secret that is too short, or a negative number.
    """

    secret: bytes = field(repr=False)
    client: int = 0
    round: int = 0

    def __post_init__(self) -> None:
        if len(self.secret) < MIN_SECRET_BYTES:
            raise ConfigError(f"a key's secret has {len(self.secret)} bytes; it needs {MIN_SECRET_BYTES} or more")
        if self.client < 0 or self.round < 0:
            raise ConfigError(f"a key's client={self.client} and round={self.round} must not be negative")

    @staticmethod
    def from_seed(seed: int, *, client: int = 0, round: int = 0) -> Key:
        """Return the key of a simulation: the secret is a hash of ``seed``, which is no secret to whoever knows it."""
        return Key(hashlib.sha256(f"krossfuse/simulation/{seed}".encode()).digest(), client, round)

    def derive(self, name: str, size: int = 16) -> bytes:
        """Return the ``size`` bytes of the stream called ``name``."""
        secret = self.secret if len(self.secret) <= 64 else hashlib.sha256(self.secret).digest()
        text = f"krossfuse/privacy/1/{self.client}/{self.round}/{name}"
        return hashlib.blake2b(text.encode(), key=secret, digest_size=size).digest()
