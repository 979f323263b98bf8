"""How much noise a round carries, whom it is charged to, and who can still afford it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from krossfuse.core.errors import ConfigError, check_positive
from krossfuse.federated.participation import ClientSampling
from krossfuse.privacy import Ledger, Mechanism


@dataclass(frozen=True)
class NoisePlan:
    """The noise of the sum that every round is to have.

    Poisson sampling amplifies privacy only if the noise does not tell who took part: participants scale theirs so that
    the sum of a round always has the expected variance, and the server adds what dropouts take away. With budgets it
    does so too, so that no round costs more than was planned.

    Attributes:
        law: of the noise.
        stds: σ_k by client.
        sampling: of clients.
        top_up: whether the server adds missing Gaussian noise.
    """

    law: str
    stds: tuple[float, ...]
    sampling: ClientSampling
    top_up: bool

    @property
    def scaled(self) -> bool:
        """Whether participants scale their noise to the expected variance."""
        return self.law == "gaussian" and self.sampling.kind == "poisson"

    def variance(self, clients: Sequence[int]) -> float:
        """Return the planned variance of the sum over a population of clients."""
        total = sum(self.stds[k] ** 2 for k in clients)
        return total * self.sampling.rate if self.scaled else total

    def participants(self, drawn: Sequence[int], population: Sequence[int]) -> dict[int, float]:
        """Return σ_k by participant."""
        stds = {k: self.stds[k] for k in drawn}
        if self.scaled and stds:
            factor = math.sqrt(self.variance(population) / sum(std * std for std in stds.values()))
            stds = {k: factor * std for k, std in stds.items()}
        return stds

    def missing_std(self, sent: dict[int, float], received: dict[int, float], population: Sequence[int]) -> float:
        """Return the standard deviation of the noise that the server adds to the sum of what it received."""
        if self.law != "gaussian" or not (self.top_up or self.scaled):
            return 0.0
        planned = self.variance(population) if self.scaled else sum(std * std for std in sent.values())
        missing = planned - sum(std * std for std in received.values())
        return math.sqrt(missing) if missing > 1e-12 * planned else 0.0

    def affordable(self, ledger: Ledger, budgets: Sequence[float], delta: float, clients: Sequence[int]) -> list[int]:
        """Return the clients that keep their budget ε at ``delta`` if they play one more round together.

        Who leaves takes noise away from the others, so that this is repeated until nobody has to.
        """
        staying = list(clients)
        while staying:
            trial = Ledger(ledger.clips, unit=ledger.unit, method=ledger.method, rates=ledger.rates)
            trial.load_state(ledger.state())
            if self.law == "gaussian":
                trial.step({}, server_std=math.sqrt(self.variance(staying)), charged=staying)
            else:
                trial.step({k: self.stds[k] for k in staying}, law=self.law)
            able = [k for k in staying if trial.accounts[k].epsilon(delta) <= budgets[k] * (1 + 1e-9)]
            if len(able) == len(staying):
                break
            staying = able
        return staying


def client_stds(mechanism: Mechanism, sigmas: Sequence[float] | None, clients: int) -> tuple[float, ...]:
    """Return σ_k by client.

    Raises:
        ConfigError: another number of sigmas than of clients, one that is not positive, or a mechanism without noise.
    """
    if sigmas is None:
        return (mechanism.noise_std,) * clients
    if len(sigmas) != clients:
        raise ConfigError(f"{len(sigmas)} sigmas for {clients} clients")
    if mechanism.noise == "none":
        raise ConfigError(f"sigmas are given, but mechanism {mechanism.name!r} adds no noise that protects")
    for sigma in sigmas:
        check_positive("sigma", float(sigma))
    return tuple(float(sigma) for sigma in sigmas)
