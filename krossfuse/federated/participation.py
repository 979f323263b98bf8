"""Who takes part in a round, and whose message arrives."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from krossfuse.core.errors import ConfigError, check_choice
from krossfuse.core.seeds import derived_generator

SAMPLINGS = ("all", "poisson", "fixed")


@dataclass(frozen=True)
class ClientSampling:
    """Which clients take part in a round.

    Attributes:
        kind: ``all``; ``poisson``: each with chance ``rate``, which amplifies privacy if it stays secret; ``fixed``:
            ⌈rate·K⌉ of them, which is not accounted as amplification.
        rate: chance, or share.

    Raises:
        ConfigError: an unknown kind, or a rate outside (0, 1].
    """

    kind: str = "all"
    rate: float = 1.0

    def __post_init__(self) -> None:
        check_choice("sampling", self.kind, SAMPLINGS)
        if not 0 < self.rate <= 1 or (self.kind == "all" and self.rate != 1):
            raise ConfigError(f"sampling rate {self.rate!r} with sampling={self.kind!r} must be above 0 and at most 1")

    def expected(self, clients: int) -> float:
        """Return the expected number of participants, the divisor of the mean."""
        return float(math.ceil(self.rate * clients)) if self.kind == "fixed" else self.rate * clients

    def draw(self, clients: int, seed: int, round: int) -> list[int]:
        """Return the participants of a round, in order."""
        if self.kind == "all":
            return list(range(clients))
        generator = derived_generator(seed, "sampling", round)
        if self.kind == "poisson":
            chosen = torch.rand(clients, generator=generator, dtype=torch.float64) < self.rate
            return [int(k) for k in chosen.nonzero()[:, 0]]
        return sorted(torch.randperm(clients, generator=generator)[: math.ceil(self.rate * clients)].tolist())


class Transport(Protocol):
    """What lies between client and server."""

    def __call__(self, message: bytes, client: int, round: int) -> bytes | None:
        """Return what arrives of a message, or None."""


@dataclass(frozen=True)
class Dropouts:
    """A transport that loses a message with chance ``rate``, independently.

    Attributes:
        rate: in [0, 1).
        seed: of the draws.

    Raises:
        ConfigError: a rate outside [0, 1).
    """

    rate: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.rate < 1:
            raise ConfigError(f"dropout rate {self.rate!r} must be at least 0 and below 1")

    def __call__(self, message: bytes, client: int, round: int) -> bytes | None:
        """See the class."""
        if self.rate:
            generator = derived_generator(self.seed, "dropout", client, round)
            if float(torch.rand(1, generator=generator, dtype=torch.float64)) < self.rate:
                return None
        return message
