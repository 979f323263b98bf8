"""What protects the updates of a federation, whichever way its messages travel; and the account of its rounds."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from krossfuse.core.errors import ConfigError, check_positive
from krossfuse.federated.noise import NoisePlan, client_stds
from krossfuse.federated.participation import ClientSampling
from krossfuse.privacy import Ledger, Mechanism, privacy_statement
from krossfuse.privacy.accountant import Method, Unit
from krossfuse.privacy.clipping import NORMS, Norm


@dataclass(frozen=True, kw_only=True)
class Protection:
    """How updates are sent, bounded and accounted for.

    Attributes:
        mechanism: how an update is sent; its noise is ONE client's.
        clip: C, the bound on the WHOLE update, one or by client; None for none, which only a mechanism without noise
            may have.
        sampling: who takes part. Poisson sampling is accounted as secret, and keeps the noise of the sum constant.
        sigmas: σ_k by client in place of the mechanism's.
        clip_norm: ``l2`` or ``l1``; None is what the law of the noise asks for.
        unit: of privacy.
        accounting: ``pld`` or ``rdp``.
        delta: at which ε is stated; None states none.
        budgets: ε at ``delta`` by client (or one for all), over all rounds; who cannot afford a round leaves before it.
        top_up: whether the server adds the Gaussian noise that dropouts took away; always so with budgets and with
            Poisson sampling.

    Raises:
        ConfigError: an impossible value, noise without a clip, or budgets without a δ.
    """

    mechanism: Mechanism
    clip: float | Sequence[float] | None = None
    sampling: ClientSampling = field(default_factory=ClientSampling)
    sigmas: Sequence[float] | None = None
    clip_norm: Norm | None = None
    unit: Unit = "client"
    accounting: Method = "pld"
    delta: float | None = None
    budgets: float | Sequence[float] | None = None
    top_up: bool = False

    def __post_init__(self) -> None:
        if self.clip is None and self.mechanism.noise != "none":
            raise ConfigError(f"mechanism {self.mechanism.name!r} needs clip=C: without it no noise bounds anything")
        if self.clip_norm not in (None, *NORMS):
            raise ConfigError(f"clip_norm={self.clip_norm!r} is not one of {list(NORMS)}")
        if self.clip_norm == "l1" and self.mechanism.noise == "gaussian":
            raise ConfigError("clip_norm='l1' with Gaussian noise: the sensitivity is the L2 norm; choose 'l2'")
        if self.budgets is not None and self.delta is None:
            raise ConfigError("budgets are given without the delta at which they hold")
        if self.delta is not None:
            check_positive("delta", self.delta)
            if self.delta >= 1:
                raise ConfigError(f"delta={self.delta!r} must be below 1")

    @property
    def norm(self) -> Norm:
        """The norm that updates are clipped in."""
        return self.clip_norm or ("l1" if self.mechanism.noise == "laplace" else "l2")

    @property
    def secretly_sampled(self) -> bool:
        """Whether who takes part is secret, and the account counts on it."""
        return self.mechanism.noise == "gaussian" and self.sampling.kind == "poisson"


@dataclass(frozen=True)
class OpenRound:
    """A round before anything is sent.

    Attributes:
        population: the clients that can afford it, in order.
        stds: σ_k by participant.
    """

    population: list[int]
    stds: dict[int, float]


class RoundAccount:
    """Says before a round who takes part with how much noise, and charges it afterwards.

    Args:
        protection: see :class:`Protection`.
        clients: K.
        d: coordinates of an update.
        rates: chance of every client's unit to be drawn in a round.
        population: clients or records, for the warning on δ; None is K.

    Raises:
        ConfigError: another number of clips, budgets or sigmas than of clients, or one that is not positive.
    """

    def __init__(
        self,
        protection: Protection,
        clients: int,
        d: int,
        *,
        rates: Sequence[float] | None = None,
        population: int | None = None,
    ) -> None:
        self.protection, self.clients = protection, clients
        self.clips = per_client("clip", protection.clip, clients)
        self.budgets = per_client("budget epsilon", protection.budgets, clients)
        mechanism = protection.mechanism
        self.plan = NoisePlan(
            mechanism.noise,
            client_stds(mechanism, protection.sigmas, clients),
            protection.sampling,
            protection.top_up or self.budgets is not None,
        )
        self.ledger = Ledger(
            self._sensitivities(d),
            unit=protection.unit,
            method=protection.accounting,
            rates=rates,
            population=clients if population is None else population,
        )

    def open(self, seed: int, round: int, candidates: Collection[int] | None = None) -> OpenRound | None:
        """Return who takes part in a round, or None where no client can afford any.

        Args:
            seed: of the draw of clients.
            round: its number.
            candidates: those who can be asked; None is everybody.
        """
        population = self._affordable(list(range(self.clients)))
        if not population:
            return None
        eligible = set(population) if candidates is None else set(population) & set(candidates)
        drawn = [k for k in self.protection.sampling.draw(self.clients, seed, round) if k in eligible]
        if not self.plan.scaled:  # else the noise of the sum is planned for the population, whoever is drawn
            drawn = self._affordable(drawn)
        return OpenRound(population, self.plan.participants(drawn, population))

    def close(self, opened: OpenRound, received: dict[int, float]) -> tuple[float, float]:
        """Charge a round.

        Args:
            opened: what :meth:`open` returned.
            received: σ_k by client whose message is in the sum.

        Returns:
            the standard deviation of the noise that the server must add to the sum, and the divisor that makes a mean
            of it; 0 where there is nothing to divide.
        """
        server_std = self.plan.missing_std(opened.stds, received, opened.population)
        self.ledger.step(
            received,
            law=self.plan.law,
            server_std=server_std,
            charged=opened.population if self.plan.scaled else None,
        )
        # Under secret sampling the number that took part is secret too: the divisor is the expected one.
        rate = self.protection.sampling.rate
        return server_std, rate * len(opened.population) if self.plan.scaled else float(len(received))

    def mechanism(self, std: float) -> Mechanism:
        """Return the mechanism with noise of ``std``."""
        mechanism = self.protection.mechanism
        if mechanism.noise == "none" or std == mechanism.noise_std:
            return mechanism
        return replace(mechanism, sigma=std)  # type: ignore[call-arg]

    def epsilons(self) -> list[float] | None:
        """Return every client's ε so far at the protection's δ, or None without one."""
        return None if self.protection.delta is None else self.ledger.epsilons(self.protection.delta)

    def statement(self, rounds: int) -> str:
        """Return what may be claimed after ``rounds``, in words."""
        protection, epsilons = self.protection, self.epsilons()
        return privacy_statement(
            epsilon=math.inf if epsilons is None else max(epsilons),
            delta=protection.delta or 0.0,
            rounds=rounds,
            clients=self.clients,
            unit=protection.unit,
            method=protection.accounting,
            law=protection.mechanism.noise if protection.delta is not None else "none",
            sigma=max(self.plan.stds),
            clip=None if self.clips is None else max(self.clips),
            rate=max(self.ledger.rates),
            mechanism=protection.mechanism.name,
        )

    def _affordable(self, clients: list[int]) -> list[int]:
        if self.budgets is None or self.protection.delta is None:
            return clients
        return self.plan.affordable(self.ledger, self.budgets, self.protection.delta, clients)

    def _sensitivities(self, d: int) -> list[float]:
        """Return every client's clip in the norm that the law asks for."""
        if self.clips is None:
            return [1.0] * self.clients  # never charged: there is no noise
        if self.plan.law == "laplace" and self.protection.norm == "l2":
            return [c * math.sqrt(d) for c in self.clips]
        return self.clips


def per_client(name: str, value: float | Sequence[float] | None, clients: int) -> list[float] | None:
    """Return one value a client.

    Raises:
        ConfigError: another number of values than of clients, or one that is not positive.
    """
    if value is None:
        return None
    values = [float(value)] * clients if isinstance(value, (int, float)) else [float(v) for v in value]
    if len(values) != clients:
        raise ConfigError(f"{len(values)} values of {name} for {clients} clients")
    for each in values:
        check_positive(name, each)
    return values
