"""From a budget to the noise: the least σ at which (ε, δ) is kept over all rounds."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from scipy.optimize import brentq

from krossfuse.core.errors import ConfigError, check_positive
from krossfuse.privacy.accountant import UNITS, Method, Unit, _epsilon, check_delta
from krossfuse.privacy.pairs import Round

_TOLERANCE = 1e-3


def noise_multiplier_for(
    epsilon: float,
    delta: float,
    *,
    rounds: int,
    rate: float = 1.0,
    unit: Unit = "client",
    law: str = "gaussian",
    method: Method = "pld",
) -> float:
    """Return the least noise multiplier (noise over sensitivity) that keeps (ε, δ), within 0.1 % and never below.

    Args:
        epsilon: the budget, over all rounds.
        delta: its δ.
        rounds: T.
        rate: chance to be drawn in a round.
        unit: of privacy; decides how neighbours differ, not the sensitivity.
        law: ``gaussian`` or ``laplace``.
        method: ``pld`` or ``rdp``.

    Raises:
        ConfigError: ``epsilon``, ``delta`` or ``rounds`` is not positive, or no noise below 10⁶ would do.
    """
    check_positive("epsilon", epsilon)
    check_delta(delta)
    check_positive("rounds", rounds, integer=True)
    relation, _ = UNITS[unit]

    def spent(multiplier: float, by: str) -> float:
        return _epsilon(frozenset({(Round(law, multiplier, rate, relation), rounds)}), delta, by)

    enough = 0.5
    while spent(enough, "rdp") > epsilon:
        enough *= 2
        if enough > 1e6:
            raise ConfigError(f"no noise keeps epsilon={epsilon:g} at delta={delta:g} over {rounds} rounds")
    enough = _least_multiplier(lambda z: spent(z, "rdp"), epsilon, enough)
    return enough if method == "rdp" else _least_multiplier(lambda z: spent(z, "pld"), epsilon, enough)


def _least_multiplier(spent: Callable[[float], float], epsilon: float, enough: float) -> float:
    """Return the least multiplier that spends at most ``epsilon``, from above, given one that does."""

    def excess(log_multiplier: float) -> float:
        return math.log(max(spent(math.exp(log_multiplier)), 1e-12) / epsilon)

    low = high = math.log(enough)
    while excess(low) <= 0:
        high, low = low, low - 0.5
        if low < -20:
            return math.exp(high)
    root = brentq(excess, low, high, xtol=_TOLERANCE / 4)
    while excess(root) > 0:
        root += _TOLERANCE / 4
    return math.exp(root)


def sigma_for(
    epsilon: float,
    delta: float,
    *,
    clip: float,
    clients: int,
    rounds: int,
    rate: float = 1.0,
    unit: Unit = "client",
    law: str = "gaussian",
    method: Method = "pld",
) -> float:
    """Return the standard deviation of ONE client's noise that keeps (ε, δ) over all rounds.

    Args:
        epsilon: the budget.
        delta: its δ.
        clip: bound on the whole update (L2; L1 for Laplace).
        clients: the fewest whose messages a round sums; each adds its share of a Gaussian's variance. For Laplace each
            client protects itself.
        rounds: T.
        rate: chance to be drawn in a round.
        unit: of privacy.
        law: ``gaussian`` or ``laplace``.
        method: ``pld`` or ``rdp``.

    Raises:
        ConfigError: a number is not positive.
    """
    check_positive("clip", clip)
    check_positive("clients", clients, integer=True)
    multiplier = noise_multiplier_for(epsilon, delta, rounds=rounds, rate=rate, unit=unit, law=law, method=method)
    total = multiplier * UNITS[unit][1] * clip
    return total / math.sqrt(clients) if law == "gaussian" else total * math.sqrt(2)


def sigmas_for_budgets(
    epsilons: Sequence[float],
    deltas: Sequence[float],
    clips: Sequence[float],
    *,
    rounds: int,
    rate: float = 1.0,
    unit: Unit = "client",
    law: str = "gaussian",
    method: Method = "pld",
) -> list[float]:
    """Return every client's σ_k such that every client's own budget is kept.

    Gaussian noise protects through the sum, so that the most demanding client decides how much the sum needs,
    max z_k·C_k; the clients share its variance equally, and those with larger budgets spend less than they may. Laplace
    noise is each client's own.

    Args:
        epsilons: by client.
        deltas: by client.
        clips: by client.
        rounds: T.
        rate: chance to be drawn in a round.
        unit: of privacy.
        law: ``gaussian`` or ``laplace``.
        method: ``pld`` or ``rdp``.

    Raises:
        ConfigError: lists of different lengths, or a number that is not positive.
    """
    if not len(epsilons) == len(deltas) == len(clips) or not epsilons:
        raise ConfigError(
            f"{len(epsilons)} budgets epsilon, {len(deltas)} delta and {len(clips)} clips: one each a client is needed"
        )
    alone = [
        sigma_for(e, d, clip=c, clients=1, rounds=rounds, rate=rate, unit=unit, law=law, method=method)
        for e, d, c in zip(epsilons, deltas, clips, strict=True)
    ]
    if law != "gaussian":
        return alone
    return [max(alone) / math.sqrt(len(alone))] * len(alone)


def clips_for_budgets(
    epsilons: Sequence[float],
    deltas: Sequence[float],
    *,
    sigma: float,
    rounds: int,
    rate: float = 1.0,
    unit: Unit = "client",
    method: Method = "pld",
) -> list[float]:
    """Return the largest C_k by which every client keeps its own budget under the Gaussian noise that all add.

    The other way to adapt: a client that wants more privacy lets its update be clipped shorter.

    Args:
        epsilons: by client.
        deltas: by client.
        sigma: of one client's noise, the same for all.
        rounds: T.
        rate: chance to be drawn in a round.
        unit: of privacy.
        method: ``pld`` or ``rdp``.

    Raises:
        ConfigError: lists of different lengths, or a number that is not positive.
    """
    check_positive("sigma", sigma)
    if len(epsilons) != len(deltas):
        raise ConfigError(f"{len(epsilons)} budgets epsilon and {len(deltas)} delta: one each a client is needed")
    total = sigma * math.sqrt(len(epsilons))
    return [
        total / (UNITS[unit][1] * noise_multiplier_for(e, d, rounds=rounds, rate=rate, unit=unit, method=method))
        for e, d in zip(epsilons, deltas, strict=True)
    ]
