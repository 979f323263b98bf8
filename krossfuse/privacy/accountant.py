"""The accountant: what has been spent, and what it comes to."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal

from krossfuse.core.errors import ConfigError, DataError, check_choice, check_positive
from krossfuse.privacy.pairs import Relation, Round
from krossfuse.privacy.pld import pld_epsilon
from krossfuse.privacy.rdp import rdp_epsilon

Method = Literal["pld", "rdp"]
METHODS: tuple[Method, ...] = ("pld", "rdp")
Unit = Literal["client", "client_replace", "record"]
UNITS: dict[str, tuple[Relation, float]] = {
    "client": ("zero_out", 1.0),
    "client_replace": ("replace", 2.0),
    "record": ("replace", 2.0),
}
"""By unit of privacy: how neighbours differ, and the sensitivity of the sum over the clip."""


class PrivacyWarning(UserWarning):
    """A privacy statement that is true and says little."""


class Accountant:
    """Adds up rounds of noise on the SUM of clipped updates, and states (ε, δ) over all of them.

    Args:
        unit: what is protected. ``client``: a client's whole update is in the sum or is zero (its message still carries
            its noise). ``client_replace``: it is another one. ``record``: ONE record of a client is another one; one
            record can change a clipped update by 2C.
        method: ``pld`` (tight) or ``rdp`` (an upper bound of it).
        population: clients, or records for unit ``record``: δ of 1/population or more is warned of.

    Raises:
        ConfigError: an unknown unit or method.

    Example:
        >>> accountant = Accountant()
        >>> accountant.step(noise_std=5.0, clip=1.0, rounds=80)
        >>> round(accountant.epsilon(1e-5), 2), round(accountant.epsilon(1e-5, method="rdp"), 2)
        (8.72, 9.37)
    """

    def __init__(self, unit: Unit = "client", *, method: Method = "pld", population: int | None = None) -> None:
        self.unit: Unit = check_choice("unit", unit, UNITS)  # type: ignore[assignment]
        self.method: Method = check_choice("accounting", method, METHODS)  # type: ignore[assignment]
        self.population = population
        self.rounds: Counter[Round] = Counter()
        self.unprotected = 0

    def step(self, *, noise_std: float, clip: float, rate: float = 1.0, rounds: int = 1, law: str = "gaussian") -> None:
        """Spend.

        Args:
            noise_std: standard deviation of the noise that protects, a coordinate. Gaussian: of the SUM of all
                messages, √(Σσ_k²). Laplace: of this client's own noise, since a sum of Laplace noises is not
                Laplace. 0 is a round without protection: ε is infinite from then on.
            clip: bound on this client's whole update: L2 for Gaussian, L1 for Laplace.
            rate: chance to be drawn, where nobody sees who is: Poisson sampling of clients, or for unit ``record``
                :func:`record_rate`.
            rounds: how many such rounds.
            law: ``gaussian`` or ``laplace``.

        Raises:
            ConfigError: ``clip`` or ``rounds`` is not positive, ``noise_std`` is negative, or ``rate`` is not a chance.
        """
        check_positive("clip", clip)
        check_positive("rounds", rounds, integer=True)
        if noise_std == 0:
            self.unprotected += rounds
            return
        self.rounds[round_of(self.unit, noise_std=noise_std, clip=clip, rate=rate, law=law)] += rounds

    def epsilon(self, delta: float, *, method: Method | None = None) -> float:
        """Return ε at δ over all rounds so far.

        Raises:
            ConfigError: δ is not between 0 and 1, or an unknown method.
        """
        self._check_delta(delta)
        if self.unprotected:
            return math.inf
        chosen = check_choice("accounting", method or self.method, METHODS)
        return _epsilon(frozenset(self.rounds.items()), delta, chosen)

    def delta(self, epsilon: float, *, method: Method | None = None) -> float:
        """Return the least δ ≥ 1e-10 at which ``epsilon`` is reached over all rounds so far, within 0.1 %."""
        check_positive("epsilon", epsilon)
        if self.unprotected:
            return 1.0
        low, high = math.log(1e-10), 0.0
        while high - low > 1e-3:
            middle = (low + high) / 2
            chosen = check_choice("accounting", method or self.method, METHODS)
            reached = _epsilon(frozenset(self.rounds.items()), math.exp(middle), chosen) <= epsilon
            low, high = (low, middle) if reached else (middle, high)
        return math.exp(high)

    def upper_bound(self, delta: float) -> float:
        """Return the closed form A + 2√(A·ln(1/δ)), A = Σ 1/2z², of Gaussian rounds taken without sampling.

        No ε may exceed it; sampling only lowers ε for unit ``client``.

        Raises:
            ConfigError: δ is not between 0 and 1, or a round is not Gaussian.
        """
        self._check_delta(delta)
        if any(r.law != "gaussian" for r in self.rounds):
            raise ConfigError("the closed form is for Gaussian rounds alone")
        total = sum(count / (2 * r.multiplier**2) for r, count in self.rounds.items())
        return math.inf if self.unprotected else total + 2 * math.sqrt(total * math.log(1 / delta))

    def state(self) -> dict[str, Any]:
        """Return what has been spent as a JSON-able mapping."""
        spent = [[r.law, r.multiplier, r.rate, r.relation, count] for r, count in self.rounds.items()]
        return {"unit": self.unit, "spent": spent, "unprotected": self.unprotected}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take over what :meth:`state` returned, in place of what this accountant has.

        Raises:
            DataError: the state is another unit's.
        """
        if state["unit"] != self.unit:
            raise DataError(f"the saved account is of unit {state['unit']!r}; this one is of {self.unit!r}")
        self.rounds = Counter({Round(law, z, rate, relation): n for law, z, rate, relation, n in state["spent"]})
        self.unprotected = int(state["unprotected"])

    def _check_delta(self, delta: float) -> None:
        check_delta(delta, self.population)
        drawn = 1 - math.prod((1 - r.rate) ** count for r, count in self.rounds.items())
        if self.rounds and drawn <= delta:
            warnings.warn(
                f"delta={delta:g} says nothing: the chance to be drawn at all is {drawn:.3g}, so that no noise "
                "whatever would do; choose a smaller delta",
                PrivacyWarning,
                stacklevel=3,
            )


def round_of(unit: Unit, *, noise_std: float, clip: float, rate: float = 1.0, law: str = "gaussian") -> Round:
    """Return one round of a unit of privacy: see :meth:`Accountant.step`."""
    check_positive("noise_std", noise_std)
    check_positive("clip", clip)
    relation, factor = UNITS[unit]
    scale = noise_std if law == "gaussian" else noise_std / math.sqrt(2)
    return Round(law, scale / (factor * clip), rate, relation)


def check_delta(delta: float, population: int | None = None) -> None:
    """Check that δ is a chance, and warn where it is too large to mean anything.

    Raises:
        ConfigError: it is not between 0 and 1.
    """
    check_positive("delta", delta)
    if delta >= 1:
        raise ConfigError(f"delta={delta!r} must be below 1")
    if population is not None and delta * population >= 1:
        warnings.warn(
            f"delta={delta:g} is not below 1/{population}: publishing one of {population} at random would do; choose a "
            "smaller delta",
            PrivacyWarning,
            stacklevel=3,
        )


def record_rate(records: int, draws: int, *, replacement: bool) -> float:
    """Return the chance that a given record of a client is drawn in one round, for unit ``record``.

    It amplifies only if all draws stay secret, and the whole local run counts as one subsampling.

    Args:
        records: of the client.
        draws: local steps times batch size.
        replacement: whether records are drawn with replacement; else a round draws ``draws`` different ones.

    Raises:
        ConfigError: a number is not positive, or more draws than records without replacement.
    """
    check_positive("records", records, integer=True)
    check_positive("draws", draws, integer=True)
    if replacement:
        return -math.expm1(draws * math.log1p(-1 / records)) if records > 1 else 1.0
    if draws > records:
        raise ConfigError(f"{draws} draws without replacement from {records} records")
    return draws / records


@lru_cache(maxsize=1024)
def _epsilon(rounds: frozenset[tuple[Round, int]], delta: float, method: str) -> float:
    return (pld_epsilon if method == "pld" else rdp_epsilon)(dict(rounds), delta)
