"""From a budget to a federation's noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from krossfuse.core.errors import ConfigError
from krossfuse.federated.local import LocalTraining
from krossfuse.federated.participation import ClientSampling
from krossfuse.federated.partition import Rows
from krossfuse.privacy import Mechanism, record_rate, sigma_for
from krossfuse.privacy.accountant import Method, Unit


def unit_rates(unit: Unit, sampling_rate: float, local: LocalTraining, parts: Sequence[Rows]) -> list[float]:
    """Return the chance of every client's unit to be drawn in a round.

    Args:
        unit: of privacy; a record must be drawn by its client, too.
        sampling_rate: secret chance of a client to take part.
        local: training at the clients.
        parts: rows by client.
    """
    if unit != "record":
        return [sampling_rate] * len(parts)
    draws, replacement = local.steps * local.batch_size, local.replacement
    return [
        sampling_rate * record_rate(len(rows), draws if replacement else min(draws, len(rows)), replacement=replacement)
        for rows in parts
    ]


def with_budget(
    mechanism: Mechanism,
    epsilons: float | Sequence[float],
    delta: float,
    *,
    clip: float | Sequence[float],
    rounds: int,
    parts: Sequence[Rows],
    sampling: ClientSampling,
    local: LocalTraining,
    unit: Unit = "client",
    method: Method = "pld",
) -> Mechanism:
    """Return the mechanism with the least sigma that keeps every client's (ε, δ) over all rounds.

    All clients add the same noise: enough for the most demanding of them. A client that takes part in fewer rounds
    (fixed sampling) spends less. Dropouts are not foreseen: have the server add what they take away
    (``Settings.top_up``), or account for the worst.

    Args:
        mechanism: with any sigma.
        epsilons: ε by client, or one for all.
        delta: at which they hold.
        clip: C by client, or one for all, in the norm that the law asks for.
        rounds: T.
        parts: rows by client.
        sampling: of clients.
        local: training at the clients.
        unit: of privacy.
        method: of accounting.

    Raises:
        ConfigError: a mechanism without noise, or an impossible number.
    """
    poisson = sampling.kind == "poisson" and mechanism.noise == "gaussian"
    return least_noise(
        mechanism,
        epsilons,
        delta,
        clip=clip,
        rounds=rounds,
        rates=unit_rates(unit, sampling.rate if poisson else 1.0, local, parts),
        sampling=sampling,
        unit=unit,
        method=method,
    )


def least_noise(
    mechanism: Mechanism,
    epsilons: float | Sequence[float],
    delta: float,
    *,
    clip: float | Sequence[float],
    rounds: int,
    rates: Sequence[float],
    sampling: ClientSampling,
    unit: Unit = "client",
    method: Method = "pld",
) -> Mechanism:
    """Return what :func:`with_budget` does, from the chance of every client's unit to be drawn in a round.

    Raises:
        ConfigError: a mechanism without noise, or an impossible number.
    """
    law, clients = mechanism.noise, len(rates)
    if law == "none":
        raise ConfigError(
            f"mechanism {mechanism.name!r} adds no noise that protects: it cannot keep epsilon={epsilons}"
        )
    each = [float(epsilons)] * clients if isinstance(epsilons, (int, float)) else [float(e) for e in epsilons]
    clips = [float(clip)] * clients if isinstance(clip, (int, float)) else [float(c) for c in clip]
    if not len(each) == len(clips) == clients:
        raise ConfigError(f"{len(each)} budgets and {len(clips)} clips for {clients} clients")
    sigmas = {
        needs: sigma_for(
            needs[0], delta, clip=needs[1], clients=1, rounds=rounds, rate=needs[2], unit=unit, law=law, method=method
        )
        for needs in set(zip(each, clips, rates, strict=True))
    }
    sigma = max(sigmas.values())
    if law == "gaussian":
        sigma /= math.sqrt(sampling.expected(clients))
    return replace(mechanism, sigma=sigma)  # type: ignore[call-arg]
